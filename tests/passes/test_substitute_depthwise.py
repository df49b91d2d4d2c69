"""substitute-depthwise: what it refuses, that separable kernels stay what they are, budgets, time and what is left alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from onnxcomp.errors import UsageError
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.passes.prune_filters import PruneFilters
from onnxcomp.passes.split_svd import SplitSvd
from onnxcomp.passes.substitute_depthwise import SubstituteDepthwise
from onnxcomp.runtime.session import Session
from onnxcomp.testing import fingerprint
from tests.support.pruning import context_for, noise, zoo, zoo_context
from tests.support.replacing import (
    assert_same,
    conv,
    distance,
    held_out,
    macs,
    of_rank,
    replaced,
    share,
)
from tests.support.text import net


# --- what is refused -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("step", "message"),
    [
        (
            SubstituteDepthwise(),
            "give one of macs, params, latency, multiplier and max-error; none of them is given",
        ),
        (SubstituteDepthwise(macs=0.5, multiplier=3), "macs and multiplier are given"),
        (SubstituteDepthwise(macs=0.0), "macs=0 leaves nothing; give the share that may remain"),
        (SubstituteDepthwise(macs=2.0), "macs=2 is out of range; 0 <= macs <= 1"),
        (SubstituteDepthwise(latency=float("nan")), "latency=nan is out of range"),
        (SubstituteDepthwise(multiplier=0), "multiplier=0 is out of range; it is at least 1"),
        (SubstituteDepthwise(max_error=1.0), "max-error=1 is out of range; 0 < max-error < 1"),
        (SubstituteDepthwise(macs=0.5, sweeps=0), "sweeps=0 is out of range; it is at least 1"),
        (SubstituteDepthwise(macs=0.5, sweeps=2, repair="one-shot"), "sweeps needs repair=sequential"),
        (SubstituteDepthwise(macs=0.5, order="pointwise", layout="concat"), "give layout=sum or plain"),
        (SubstituteDepthwise(macs=0.5, min_saving=-0.1), "min-saving=-0.1 is out of range"),
        (SubstituteDepthwise(latency=0.5, accept="size"), "leave out accept=size, or give params= instead"),
    ],
)
def test_options_that_contradict_or_are_out_of_range_are_refused_by_name(
    step: SubstituteDepthwise, message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        step.check()
    assert str(caught.value).startswith("substitute-depthwise: ")
    assert message in str(caught.value)


# --- oracles ---------------------------------------------------------------------------------------------------------
KERNELS: dict[str, tuple[str, str, tuple[int, int], bool]] = {
    "plain": ("Conv", "pads=[1,1,1,1]", (3, 3), True),
    "strided": ("Conv", "strides=[2,1], pads=[1,0,0,2]", (3, 3), True),
    "dilated": ("Conv", "dilations=[2,1], pads=[2,1,2,1]", (3, 3), True),
    "same": ("Conv", 'auto_pad="SAME_LOWER", strides=[2,2]', (3, 3), True),
    "without-bias": ("Conv", "pads=[0,1,1,0]", (3, 3), False),
    "large": ("Conv", "pads=[2,2,2,2]", (5, 5), True),
    "oblong": ("Conv", "pads=[0,1,0,1]", (1, 3), True),
    "transposed": ("ConvTranspose", "strides=[2,2], pads=[1,1,1,1], output_padding=[1,1]", (3, 3), True),
}


def separable(kind: str, order: str, times: int) -> Model:
    op, attrs, kernel, bias = KERNELS[kind]
    weight = of_rank(order, 12, 8, kernel, (times,))
    if op == "ConvTranspose":
        weight = np.ascontiguousarray(weight.swapaxes(0, 1))
    return conv(attrs, weight, bias=bias, kind=op, shape=",".join(map(str, weight.shape)))


@pytest.mark.parametrize("repair", ["none", "one-shot", "sequential"])
@pytest.mark.parametrize("order", ["depthwise", "pointwise"])
@pytest.mark.parametrize("kind", KERNELS)
def test_separable_kernels_become_two_convolutions_that_compute_the_same(
    kind: str, order: str, repair: Any
) -> None:
    model = separable(kind, order, 1)
    result = replaced(model, SubstituteDepthwise(multiplier=1, repair=repair))
    (change,) = result.changes
    assert (change.details["form"], change.details["ranks"]) == (order, [1]), "the order that loses nothing"
    assert [n.op for n in result.model.graph.nodes].count("Conv") >= 1
    assert macs(result.model) == macs(model) - change.details["macs_before"] + change.details["macs_after"]
    assert_same(model, result.model)


LAYOUTS = [
    (kind, order, layout)
    for kind in ("strided", "transposed", "large")
    for order, layouts in (("depthwise", ("concat", "sum", "plain")), ("pointwise", ("sum", "plain")))
    for layout in layouts
    # Transposed with strides, a 1 x 1 behind is dearer than the kernel.
    if (kind, order) != ("transposed", "depthwise")
]


@pytest.mark.parametrize(("kind", "order", "layout"), LAYOUTS)
def test_kernels_of_several_filters_keep_their_outputs_in_every_layout(
    kind: str, order: Any, layout: Any
) -> None:
    model = separable(kind, order, 2)
    step = SubstituteDepthwise(multiplier=2, order=order, layout=layout)
    result = replaced(model, step)
    (change,) = result.changes
    assert change.details["layout"] == layout
    ops = [n.op for n in result.model.graph.nodes]
    assert ops.count("Concat") == (layout == "concat")
    assert ops.count("Add") + ops.count("Sum") == (layout == "sum")
    assert_same(model, result.model)


def test_more_filters_than_there_are_and_such_that_save_nothing_are_named() -> None:
    text = net(
        "(float[N,2,9,9] x) => (float[N,64,1,1] y)",
        "float[64,2,5,5] w, float[64] b",
        "h = Conv(x, w, b) y = GlobalAveragePool(h)",
    )
    model = parse_model(text)
    (skip,) = replaced(model, SubstituteDepthwise(multiplier=3, order="pointwise")).skips
    assert skip.reason == "rank 3 is more than it has; 2 is all"
    (skip,) = replaced(model, SubstituteDepthwise(multiplier=2, order="pointwise")).skips
    assert skip.reason.startswith("nothing saves 10%: the cheapest, pointwise 2, takes 1.26")


# --- budgets and choices ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "what", "budget"),
    [("digits_resnet", "macs", 0.6), ("digits_vgg", "params", 0.5), ("digits_unet", "macs", 0.7)],
)
def test_a_budget_is_never_exceeded_and_hardly_undercut(name: str, what: str, budget: float) -> None:
    model = zoo(name)
    result = replaced(model, SubstituteDepthwise(**{what: budget}, repair="none"), count=2)  # type: ignore[arg-type]
    left = share(model, result.model, what)
    assert left <= budget
    assert left >= budget - 0.01 or any("more than asked for" in note for note in result.notes)
    assert result.shortfall is None


def test_what_cannot_be_reached_ends_with_the_least_and_what_was_in_the_way() -> None:
    model = zoo("digits_mobilenet")
    result = replaced(model, SubstituteDepthwise(macs=0.5, repair="none"), count=2)
    assert result.shortfall is not None
    assert result.shortfall.startswith(
        f"macs=0.5 cannot be reached; {share(model, result.model):.4f} is the least"
    )
    assert "it is depthwise already" in result.shortfall


def test_the_fewest_filters_that_a_bound_allows_are_taken() -> None:
    weight = of_rank("depthwise", 12, 8, (3, 3), (2,))
    weight += 0.05 * of_rank("channel", 12, 8, (3, 3), (8,), seed=1)
    model = conv(weight=weight)
    step = SubstituteDepthwise(max_error=0.02, order="depthwise", repair="one-shot")
    (change,) = replaced(model, step).changes
    assert change.details["ranks"] == [2]
    assert change.details["error"] <= 0.02
    fewer = replaced(model, dataclasses.replace(step, max_error=None, multiplier=1))
    assert fewer.changes[0].details["error"] > 0.02


def test_fits_to_samples_in_order_beat_the_weights_alone_on_samples_not_seen() -> None:
    model = zoo("digits_resnet")
    held = held_out(model)
    lost = [
        distance(
            model, replaced(model, SubstituteDepthwise(multiplier=2, repair=repair), count=32).model, held
        )
        for repair in ("none", "one-shot", "sequential")
    ]
    assert lost[1] < lost[0]
    assert lost[2] < 0.5 * lost[1]


def test_the_same_seed_and_threads_give_the_same_weights() -> None:
    model = conv()
    for threads in (1, 2):
        made = []
        for _ in range(2):
            context = dataclasses.replace(context_for(model), threads=threads)
            made.append(fingerprint(SubstituteDepthwise(macs=0.6).run(model.clone(), context).model))
        assert made[0] == made[1]


# --- what is left alone ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("stored", "attrs", "reason"),
    [
        ("float[16,1,3,3] w", "group=8", "it is depthwise already"),
        ("float[16,8,1,1] w", "group=1", "its kernel of one tap leaves depthwise nothing to split"),
        ("float[16,8,3,3] w, float[16,8,3,3] v", "group=1", ""),
    ],
    ids=["depthwise", "one tap", "dense"],
)
def test_what_cannot_be_replaced_is_named(stored: str, attrs: str, reason: str) -> None:
    signature = "(float[N,8,9,9] x) => (float[N,16,1,1] y)"
    model = parse_model(net(signature, stored, f"h = Conv<{attrs}>(x, w) y = GlobalAveragePool(h)"))
    result = replaced(model, SubstituteDepthwise(multiplier=1))
    assert result.changed == (not reason)
    if reason:
        assert result.skips[0].where == "h"
        assert reason in result.skips[0].reason
        assert fingerprint(result.model) == fingerprint(model)


def test_grouped_convolutions_are_replaced_block_by_block() -> None:
    weight = np.concatenate([of_rank("depthwise", 6, 4, (3, 3), (1,), seed) for seed in range(2)])
    model = conv("group=2", weight, shape="12,4,3,3")
    result = replaced(model, SubstituteDepthwise(multiplier=1))
    assert result.changed
    assert_same(model, result.model)
    twice = np.concatenate([of_rank("depthwise", 12, 4, (3, 3), (2,), seed) for seed in range(2)])
    wide = parse_model(
        net(
            "(float[N,8,9,9] x) => (float[N,24,1,1] y)",
            "float[24,4,3,3] w",
            "h = Conv<group=2>(x, w) y = GlobalAveragePool(h)",
        ),
        {"w": twice},
    )
    result = replaced(wide, SubstituteDepthwise(multiplier=2, order="depthwise", layout="concat"))
    assert result.changes[0].details["layout"] == "sum", "results of blocks cannot be joined as one"
    assert_same(wide, result.model)


def test_excluded_nodes_and_matrices_stay() -> None:
    model = zoo("digits_resnet")
    name = "/stage2_block1/conv1/Conv"
    result = replaced(
        model, SubstituteDepthwise(multiplier=1, repair="none"), count=2, excluded=frozenset({name})
    )
    assert ("it is excluded") in {s.reason for s in result.skips if s.where == name}
    before, after = ({n.name: n for n in m.graph.nodes} for m in (model, result.model))
    for stays in (name, "/head/logits/Gemm"):
        np.testing.assert_array_equal(before[stays].constant(1), after[stays].constant(1))


@pytest.mark.parametrize("feed", ["zeros", "ones", "one sample"])
def test_inputs_that_say_little_leave_a_network_of_numbers(feed: str) -> None:
    model = conv()
    x = noise(model, 32)["x"]
    given = {"zeros": 0 * x, "ones": 0 * x + 1, "one sample": x[:1]}[feed]
    result = replaced(model, SubstituteDepthwise(macs=0.6), {"x": given})
    assert result.changed
    (found,) = Session(result.model, threads=1).run({"x": x}).values()
    assert np.isfinite(found).all()


def test_a_half_precision_network_stays_one() -> None:
    model = parse_model(
        net(
            "(float16[N,8,9,9] x) => (float16[N,12,7,7] y)",
            "float16[12,8,3,3] w, float16[12] b",
            "y = Conv(x, w, b)",
        ),
        {"w": of_rank("depthwise", 12, 8, (3, 3), (1,)).astype(np.float16)},
    )
    feeds = {"x": np.random.default_rng(0).standard_normal((64, 8, 9, 9)).astype(np.float16)}
    result = replaced(model, SubstituteDepthwise(multiplier=1), feeds)
    assert {c.values.dtype for c in result.model.graph.constants.values()} == {np.dtype(np.float16)}
    assert distance(model, result.model, feeds) < 1e-4


# --- what a replacement must save ------------------------------------------------------------------------------------
def test_bytes_decide_where_they_are_asked_for() -> None:
    tiny = conv(shape="12,8,1,3", attrs="pads=[0,1,0,1]")
    step = SubstituteDepthwise(multiplier=1, min_saving=0.5)
    assert replaced(tiny, step).changed, "less than half of the multiply-accumulates"
    (skip,) = replaced(tiny, dataclasses.replace(step, accept="size")).skips
    assert skip.reason.startswith("nothing saves 50%: the cheapest, "), "nodes take bytes of their own"
    assert replaced(conv(), dataclasses.replace(step, accept="size")).changed


# --- together --------------------------------------------------------------------------------------------------------
PRUNE = PruneFilters(macs=0.6, scope="uniform", criterion="l1", repair="none")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (SplitSvd(macs=0.8, method="channel", repair="none"), PRUNE),
        (dataclasses.replace(PRUNE, macs=0.8), SplitSvd(macs=0.6, method="channel")),
        pytest.param(
            SubstituteDepthwise(macs=0.7, repair="none"),
            SplitSvd(macs=0.6, method="channel", repair="one-shot"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["split, prune", "prune, split", "depthwise, split"],
)
def test_passes_compose_and_budgets_stay_shares_of_the_first_model(first: Any, second: Any) -> None:
    received = zoo("digits_resnet")
    middle = replaced(received, first, count=32).model
    context = dataclasses.replace(zoo_context(middle, 32), original=received)
    result = second.run(middle.clone(), context)
    assert result.changed
    assert result.shortfall is None
    assert 0.58 <= share(received, result.model) <= 0.6
    (found,) = Session(result.model, threads=1).run(held_out(received)).values()
    assert np.isfinite(found).all()


# --- the zoo ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("digits_mlp", 1.0),
        ("digits_lstm", 1.0),
        ("digits_vit", 0.0),
        ("digits_shufflenet", 0.0),
        ("digits_mobilenet", 0.0),
        pytest.param("digits_resnet", 0.9, marks=pytest.mark.slow),
        pytest.param("digits_vgg", 0.9, marks=pytest.mark.slow),
        pytest.param("digits_unet", 0.9, marks=pytest.mark.slow),
        pytest.param("digits_densenet", 0.9, marks=pytest.mark.slow),
    ],
)
def test_shipped_networks_lose_work_or_say_why_not(name: str, least: float) -> None:
    model = zoo(name)
    result = replaced(model, SubstituteDepthwise(macs=0.6), count=32)
    left = share(model, result.model)
    assert (left <= 0.6) == (result.shortfall is None)
    assert result.shortfall is None or "macs=0.6 cannot be reached; " in result.shortfall
    feeds = held_out(model)
    wanted, got = (next(iter(Session(m, threads=1).run(feeds).values())) for m in (model, result.model))
    assert np.isfinite(got).all()
    assert (wanted.argmax(-1) == got.argmax(-1)).mean() >= least
