"""split-svd: what it refuses, that what has a low rank stays what it is, that budgets hold, and what fitting is worth."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
import pytest

from onnxcomp.analysis.linear import linear_node
from onnxcomp.errors import ModelError, UsageError
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.passes.prune_filters import PruneFilters
from onnxcomp.passes.split_svd import SplitSvd
from onnxcomp.testing import fingerprint
from tests.support.pruning import context_for, noise, zoo, zoo_context
from tests.support.replacing import (
    assert_same,
    conv,
    count,
    distance,
    held_out,
    macs,
    of_rank,
    replaced,
    share,
)
from tests.support.text import net

REPAIRS: tuple[Literal["none", "one-shot", "sequential"], ...] = ("none", "one-shot", "sequential")


def reasons(model: Model, step: SplitSvd, **given: Any) -> dict[str, str]:
    """What the pass says about nodes it left, by name; it must have left all."""
    result = replaced(model, step, **given)
    assert not result.changed
    assert fingerprint(result.model) == fingerprint(model)
    return {s.where: s.reason for s in result.skips}


# --- what is refused -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("step", "message"),
    [
        (SplitSvd(), "give one of macs, params, latency, rank, energy and max-error; none of them is given"),
        (SplitSvd(macs=0.5, rank=3), "macs and rank are given"),
        (SplitSvd(macs=0.5, params=0.5), "macs and params are given"),
        (SplitSvd(macs=0.0), "macs=0 leaves nothing; give the share that may remain"),
        (SplitSvd(macs=2.0), "macs=2 is out of range; 0 <= macs <= 1"),
        (SplitSvd(macs=float("nan")), "macs=nan is out of range"),
        (SplitSvd(params=-0.1), "params=-0.1 is out of range"),
        (SplitSvd(latency=float("inf")), "latency=inf is out of range"),
        (SplitSvd(rank=0), "rank=0 is out of range; it is at least 1"),
        (SplitSvd(rank=3, align=2), "rank=3 is no multiple of align=2"),
        (SplitSvd(energy=1.0), "energy=1 is out of range; 0 < energy < 1"),
        (SplitSvd(energy=0.0), "energy=0 is out of range; 0 < energy < 1"),
        (SplitSvd(max_error=float("nan")), "max-error=nan is out of range"),
        (SplitSvd(max_error=0.0), "max-error=0 is out of range"),
        (SplitSvd(macs=0.5, align=0), "align=0 is out of range; it is at least 1"),
        (SplitSvd(macs=0.5, sweeps=0), "sweeps=0 is out of range; it is at least 1"),
        (SplitSvd(macs=0.5, sweeps=2, repair="none"), "sweeps needs repair=sequential, not none"),
        (SplitSvd(macs=0.5, min_saving=1.0), "min-saving=1 is out of range; 0 <= min-saving < 1"),
    ],
)
def test_options_that_contradict_or_are_out_of_range_are_refused_by_name(
    step: SplitSvd, message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        step.check()
    assert str(caught.value).startswith("split-svd: ")
    assert message in str(caught.value)


def test_samples_are_needed_unless_weights_alone_decide() -> None:
    assert SplitSvd(macs=0.5).needs() == {"shapes", "calibration"}
    assert SplitSvd(macs=0.5, repair="one-shot").needs() == {"shapes", "calibration"}
    assert SplitSvd(macs=0.5, repair="none").needs() == {"shapes"}
    assert SplitSvd(macs=0.5).may_fall_short()
    assert not SplitSvd(rank=2).may_fall_short()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(value: float) -> None:
    model = conv(weight=np.full((12, 8, 3, 3), value, np.float32))
    with pytest.raises(ModelError, match="'w' holds"):
        SplitSvd(macs=0.5).run(model.clone(), context_for(model))


# --- oracles ---------------------------------------------------------------------------------------------------------
MATRICES = {
    "gemm": ("[N,20]", "[N,18]", "y = Gemm(x, w, b)", "[20,18]"),
    "gemm-scaled": ("[N,20]", "[N,18]", "y = Gemm<alpha=0.5, beta=2.0, transB=1>(x, w, b)", "[18,20]"),
    "gemm-without-bias": ("[N,20]", "[N,18]", "y = Gemm<transB=1>(x, w)", "[18,20]"),
    "matmul": ("[N,20]", "[N,18]", "y = MatMul(x, w)", "[20,18]"),
    "matmul-of-three-axes": ("[N,5,20]", "[N,5,18]", "y = MatMul(x, w)", "[20,18]"),
    "matmul-from-the-left": ("[N,20,5]", "[N,18,5]", "y = MatMul(w, x)", "[18,20]"),
}


@pytest.mark.parametrize("repair", REPAIRS)
@pytest.mark.parametrize("kind", MATRICES)
def test_matrices_of_low_rank_become_two_that_compute_the_same(kind: str, repair: Any) -> None:
    read, makes, body, shape = MATRICES[kind]
    rows, columns = (int(n) for n in shape[1:-1].split(","))
    weight = of_rank("channel", rows, columns, (), (3,))
    model = parse_model(
        net(f"(float{read} x) => (float{makes} y)", f"float{shape} w, float[18] b", body), {"w": weight}
    )
    result = replaced(model, SplitSvd(rank=3, repair=repair))
    assert [(c.where, c.details["form"], c.details["ranks"]) for c in result.changes] == [
        ("y", "channel", [3])
    ]
    assert macs(result.model) * 20 * 18 == macs(model) * 3 * (20 + 18)
    assert_same(model, result.model)


KERNELS: dict[str, tuple[str, str, int, bool]] = {
    "plain": ("Conv", "pads=[1,1,1,1]", 1, True),
    "strided": ("Conv", "strides=[2,1], pads=[1,0,0,2]", 1, True),
    "dilated": ("Conv", "dilations=[2,1], pads=[2,1,2,1]", 1, True),
    "same": ("Conv", 'auto_pad="SAME_UPPER", strides=[2,2]', 1, True),
    "without-bias": ("Conv", "pads=[0,1,1,0]", 1, False),
    "grouped": ("Conv", "pads=[1,1,1,1], group=2", 2, True),
    "transposed": ("ConvTranspose", "strides=[2,2], pads=[1,1,1,1], output_padding=[1,1]", 1, True),
}


@pytest.mark.parametrize(
    ("method", "form", "ranks"),
    [
        ("svd", "channel", (2,)),
        ("channel", "first", (1,)),
        ("spatial", "vertical", (2,)),
        ("spatial", "horizontal", (2,)),
        ("tucker", "tucker", (3, 2)),
        ("cp", "cp", (1,)),
    ],
)
@pytest.mark.parametrize("kind", KERNELS)
def test_kernels_that_a_form_can_write_keep_their_outputs(
    kind: str, method: Any, form: str, ranks: tuple[int, ...]
) -> None:
    op, attrs, group, bias = KERNELS[kind]
    turned = op == "ConvTranspose"
    blocks = [of_rank(form, 12 // group, 8 // group, (3, 3), ranks, seed=block) for block in range(group)]
    weight = np.concatenate(blocks)
    weight = np.ascontiguousarray(weight.swapaxes(0, 1)) if turned else weight
    model = conv(attrs, weight, bias=bias, kind=op, shape=",".join(map(str, weight.shape)))
    for repair in ("none", "sequential") if kind in ("plain", "grouped") else ("none",):
        step = SplitSvd(rank=max(ranks), method=method, repair=repair)
        result = replaced(model, step)
        (change,) = result.changes
        assert change.details["error"] < 1e-6
        assert (
            macs(result.model) == macs(model) - change.details["macs_before"] + change.details["macs_after"]
        )
        assert_same(model, result.model)


@pytest.mark.parametrize(("dims", "kernel"), [("16", (3,)), ("5,6,4", (3, 2, 3))])
def test_kernels_of_one_and_of_three_axes_are_split_alike(dims: str, kernel: tuple[int, ...]) -> None:
    weight = of_rank("channel", 12, 8, kernel, (2,))
    ones = ",".join("1" for _ in kernel)
    model = parse_model(
        net(
            f"(float[N,8,{dims}] x) => (float[N,12,{ones}] y)",
            f"float[{','.join(map(str, weight.shape))}] w, float[12] b",
            "h = Conv(x, w, b) z = Relu(h) y = GlobalAveragePool(z)",
        ),
        {"w": weight},
    )
    result = replaced(model, SplitSvd(rank=2, method="channel"))
    assert result.changes[0].details["form"] == "channel"
    assert_same(model, result.model)
    (skip,) = replaced(model, SplitSvd(rank=2, method="spatial")).skips
    assert "its kernel has no two axes that vertical could split" in skip.reason


def test_a_network_of_low_ranks_keeps_its_outputs_through_the_whole_walk() -> None:
    weights = {
        "a": of_rank("channel", 16, 3, (3, 3), (4,), 1),
        "c": of_rank("channel", 16, 16, (3, 3), (4,), 2),
        "d": np.ascontiguousarray(of_rank("channel", 20, 256, (), (4,), 3).T),
    }
    text = net(
        "(float[N,3,8,8] x) => (float[N,20] y)",
        "float[16,3,3,3] a, float[16] p, float[16,16,3,3] c, float[256,20] d, float[20] r",
        "h = Conv<pads=[1,1,1,1]>(x, a, p) k = Relu(h) i = Conv<strides=[2,2], pads=[1,1,1,1]>(k, c) j = Relu(i)"
        " f = Flatten(j) y = Gemm(f, d, r)",
    )
    model = parse_model(text, weights)
    for repair in REPAIRS:
        result = replaced(model, SplitSvd(rank=4, method="svd", repair=repair))
        assert len(result.changes) == 3
        assert_same(model, result.model)


def test_a_rank_that_saves_nothing_or_is_above_all_there_is_leaves_the_layer_and_says_so() -> None:
    model = conv("pads=[1,1,1,1]", shape="12,8,3,3")
    (skip,) = replaced(model, SplitSvd(rank=12, method="svd")).skips
    assert "nothing saves 10%: the cheapest, channel 12, takes 1.1" in skip.reason
    tall = parse_model(net("(float[N,4] x) => (float[N,90] y)", "float[4,90] w", "y = MatMul(x, w)"))
    (skip,) = replaced(tall, SplitSvd(rank=5)).skips
    assert skip.reason == "rank 5 is more than it has; 4 is all"


# --- budgets ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name", ["digits_resnet", "digits_mlp", "digits_mobilenet", "digits_vit", "digits_unet"]
)
@pytest.mark.parametrize(("what", "budget"), [("macs", 0.7), ("params", 0.5)])
def test_a_budget_is_never_exceeded_and_hardly_undercut(name: str, what: str, budget: float) -> None:
    model = zoo(name)
    result = replaced(model, SplitSvd(**{what: budget}, method="channel", repair="none"), count=2)  # type: ignore[arg-type]
    left = share(model, result.model, what)
    assert left <= budget
    assert left >= budget - 0.01 or any("more than asked for" in note for note in result.notes)
    assert result.shortfall is None


def test_biases_that_a_refit_adds_are_within_the_budget_of_parameters() -> None:
    model = parse_model(
        net(
            "(float[N,8] x) => (float[N,6] y)",
            "float[8,40] w, float[40,40] u, float[40,6] v",
            "h = MatMul(x, w) k = Relu(h) i = Gemm(k, u) j = Relu(i) y = Gemm(j, v)",
        )
    )
    for budget in (0.5, 0.6, 0.7):
        result = replaced(model, SplitSvd(params=budget))
        assert count(result.model, "params") <= budget * count(model, "params")


def test_a_budget_is_a_share_of_what_the_pipeline_received() -> None:
    received = zoo("digits_resnet")
    cut = replaced(received, PruneFilters(macs=0.7, scope="uniform", criterion="l1", repair="none")).model
    context = dataclasses.replace(zoo_context(cut, 2), original=received)
    step = SplitSvd(macs=0.5, method="channel", repair="none")
    result = step.run(cut.clone(), context)
    assert 0.49 <= share(received, result.model) <= 0.5
    again = step.run(result.model.clone(), context)
    assert not again.changed, "the second finds the budget met"
    assert again.notes == ("the budget macs=0.5 is met without replacing anything",)


def test_ranks_are_multiples_of_what_is_asked_for_where_layers_are_wide_enough() -> None:
    step = SplitSvd(macs=0.6, method="channel", repair="none", align=4)
    result = replaced(zoo("digits_resnet"), step, count=2)
    assert result.changes
    assert {r % 4 for c in result.changes for r in c.details["ranks"]} == {0}


def test_a_budget_that_is_beyond_reach_is_told_with_the_least_there_is() -> None:
    model = conv()
    result = replaced(model, SplitSvd(macs=0.01))
    assert result.shortfall is not None
    assert result.shortfall.startswith(
        f"macs=0.01 cannot be reached; {share(model, result.model):.4f} is the least"
    )
    assert result.changes[0].details["ranks"] == [1]
    low = replaced(model, SplitSvd(macs=0.05))
    assert low.shortfall is None, "curves reach down to the least rank"
    assert share(model, low.model) <= 0.05


@pytest.mark.parametrize("options", [{"macs": 1.0}, {"params": 1.0}, {"latency": 1.0}])
def test_nothing_changes_where_nothing_has_to_go(options: dict[str, float]) -> None:
    assert reasons(conv(), SplitSvd(**options)) == {}  # type: ignore[arg-type]


# --- rules -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", ["auto", "channel", "spatial", "tucker", "cp"])
def test_a_rank_is_kept_to_by_every_layer(method: Any) -> None:
    for rank in (1, 2, 4):
        (change,) = replaced(conv(), SplitSvd(rank=rank, method=method, repair="none")).changes
        assert max(change.details["ranks"]) == rank


@pytest.mark.parametrize("most", [0.6, 0.3, 0.15])
def test_what_a_rule_promises_of_the_error_holds_at_every_layer_fitted_by_itself(most: float) -> None:
    model = conv()
    found = replaced(model, SplitSvd(max_error=most, repair="one-shot"))
    (change,) = found.changes
    assert change.details["error"] <= most + 1e-9
    same = replaced(model, SplitSvd(energy=1 - most, repair="one-shot"))
    assert fingerprint(same.model) == fingerprint(found.model)


def test_a_stricter_rule_never_leaves_less() -> None:
    model = zoo("digits_mlp")
    left = [
        share(model, replaced(model, SplitSvd(max_error=e, repair="one-shot")).model)
        for e in (0.3, 0.1, 0.02)
    ]
    assert left == sorted(left)
    assert left[0] < left[-1]


def test_where_no_split_is_good_enough_the_best_is_told() -> None:
    (reason,) = reasons(conv(), SplitSvd(max_error=0.0001)).values()
    assert reason.startswith("what saves enough misses more: ")
    assert "of the output" in reason


# --- what fitting is worth -------------------------------------------------------------------------------------------
def test_fits_to_samples_beat_the_weights_alone_on_samples_not_seen() -> None:
    for name, rank, share_one, share_two in (("digits_mlp", 6, 0.6, 0.9), ("digits_resnet", 10, 0.8, 0.2)):
        model = zoo(name)
        held, lost = held_out(model), {}
        for repair in REPAIRS:
            made = replaced(model, SplitSvd(rank=rank, method="svd", repair=repair)).model
            lost[repair] = distance(model, made, held)
        assert lost["one-shot"] < share_one * lost["none"]
        assert lost["sequential"] < share_two * lost["one-shot"]


def deep() -> Model:
    """Eight layers with activations in between, on inputs that vary in few directions."""
    body = " ".join(f"h{n} = Gemm(a{n}, w{n}, b{n}) a{n + 1} = Relu(h{n})" for n in range(8))
    stored = ", ".join(f"float[32,32] w{n}, float[32] b{n}" for n in range(8))
    return parse_model(
        net("(float[N,32] a0) => (float[N,4] y)", f"{stored}, float[32,4] v", f"{body} y = MatMul(a8, v)")
    )


def test_what_was_lost_before_is_made_up_for_in_order_on_a_deep_chain() -> None:
    model = deep()
    rng = np.random.default_rng(3)
    mix = rng.standard_normal((12, 32)).astype(np.float32)
    seen, fresh = ({"a0": rng.standard_normal((n, 12)).astype(np.float32) @ mix} for n in (600, 200))
    lost = {}
    for repair in REPAIRS:
        result = replaced(model, SplitSvd(rank=11, repair=repair), seen)
        assert len(result.changes) == 8
        lost[repair] = distance(model, result.model, fresh)
    assert lost["sequential"] < 0.85 * lost["one-shot"] < 0.85 * lost["none"]


def test_the_report_says_of_every_layer_what_became_of_it() -> None:
    model = zoo("digits_mlp")
    result = replaced(model, SplitSvd(macs=0.7))
    linear = {n.name for n in model.graph.nodes if linear_node(n) is not None}
    changed = {c.where for c in result.changes}
    assert changed | {s.where for s in result.skips} == linear
    assert changed.isdisjoint(s.where for s in result.skips)
    for change in result.changes:
        told = change.details
        assert told["form"] == "channel"
        assert told["macs_after"] < told["macs_before"]
        assert told["parameters_after"] < told["parameters_before"]
        assert 0 <= told["error"] < 1
        assert f"{told['macs_after'] / told['macs_before']:.2f} of its MACs" in change.what
    assert any("divergence of the outputs measured" in note for note in result.notes)
    blind = replaced(model, SplitSvd(macs=0.7, repair="none"))
    assert any(
        note.startswith("no repair: weights were split by singular values alone") for note in blind.notes
    )


# --- choices ---------------------------------------------------------------------------------------------------------
def test_the_same_seed_and_threads_give_the_same_weights() -> None:
    model = zoo("digits_mlp")
    for threads in (1, 2):
        made = []
        for _ in range(2):
            context = dataclasses.replace(zoo_context(model, 32), threads=threads)
            made.append(fingerprint(SplitSvd(macs=0.6).run(model.clone(), context).model))
        assert made[0] == made[1]


def test_sweeps_keep_only_what_helps_on_samples_held_back() -> None:
    model = deep()
    feeds = {"a0": noise(model, 64)["a0"]}
    result = replaced(model, SplitSvd(rank=8, sweeps=4), feeds)
    notes = [note for note in result.notes if note.startswith("sweep")]
    steps = [note.split("samples ")[1].split("; ") for note in notes]
    assert steps
    # What is printed is rounded: a gain in the fifth digit does not show.
    changes = [[float(part) for part in change.split(" -> ")] for change, _ in steps]
    ends = [end for _, end in steps]
    assert all(end == "applied" for end in ends[:-1])
    assert all(
        (after <= before) if end == "applied" else (after >= before)
        for (before, after), end in zip(changes, ends, strict=True)
    )
    assert len(steps) == 3 or ends[-1] == "reverted"
