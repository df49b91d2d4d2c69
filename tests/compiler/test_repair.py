"""The walk restores what can be restored: algebra says what that is, and the network must then be the original again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxcomp.analysis.channels import channel_groups, default_shapes
from onnxcomp.analysis.linear import linear_node
from onnxcomp.compiler import repair
from onnxcomp.compiler.damage import damaged_sites, kept_positions
from onnxcomp.compiler.passbase import Context
from onnxcomp.compiler.repair import Site, Solution, Visit, collect_moments, refit, sample_positions, walk
from onnxcomp.ir.graph import Array
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.numerics.moments import ridge
from onnxcomp.runtime import capture
from onnxcomp.testing import assert_equal_outputs, assert_valid, fingerprint
from tests.support.pruning import NETS, context_for, noise, outputs, zoo, zoo_context
from tests.support.text import net

EXACT = 1e-7
"""A ridge that only keeps the solve from breaking: algebra is to show through."""


def weights(seed: int, *shape: int) -> Array:
    spread = 1 / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.5
    return (np.random.default_rng(seed).standard_normal(shape) * spread).astype(np.float32)


def name_of(model: Model, output: str) -> str:
    return next(node.name for node in model.graph.nodes if node.output.name == output)


def all_sites(model: Model) -> list[Site]:
    found = [n for node in model.graph.nodes if (n := linear_node(node)) is not None]
    return [Site(n.node.name, np.arange(n.weight_array().shape[n.out_axis])) for n in found]


def cut(model: Model, keep: Mapping[str, Sequence[int]]) -> tuple[Model, list[Site]]:
    """What is left of `model` with only the units in `keep` (by output of the producer), and what that damages."""
    groups = channel_groups(model)
    masks = {}
    for output, units in keep.items():
        name = name_of(model, output)
        masks[name] = np.isin(np.arange(groups[name].units), units)
    left = model.clone()
    groups.take(left, masks)
    sites, _ = damaged_sites(model, left, kept_positions(groups, masks), lambda name: None)
    return left, sites


def fit(visit: Visit) -> Solution:
    """Centred least squares; plain where the node cannot hold a bias."""
    moments, prior = visit.moments, visit.node.matrix()
    if not visit.node.has_bias:
        return Solution(ridge(*moments.second(), prior, EXACT), None)
    matrix = ridge(moments.covariance(), moments.cross(), prior, EXACT)
    bias = moments.mean_y - np.einsum("god,gd->go", matrix, moments.mean_x)
    return Solution(matrix, bias.reshape(-1))


def repaired(
    original: Model,
    left: Model,
    sites: Sequence[Site],
    solve: Callable[[Visit], Solution | None] = fit,
    feeds: Mapping[str, Array] | None = None,
    **given: Any,
) -> list[tuple[Site, float]]:
    """Walk over `left` in place."""
    context = context_for(original, feeds, **given)
    return walk(original, left, sites, solve, context, default_shapes(original), "refit")


def gap(model: Model, other: Model, seed: int = 9) -> float:
    """The largest difference of outputs on samples that calibration has not seen, relative to the largest output."""
    feeds = noise(model, 16, seed=seed)
    wanted = outputs(model, feeds)
    return float(np.abs(outputs(other, feeds) - wanted).max() / np.abs(wanted).max())


# --- nothing removed -------------------------------------------------------------------------------------------------
def test_a_walk_over_an_intact_network_returns_its_weights() -> None:
    original = redundant("Tanh")
    left = original.clone()
    errors = repaired(original, left, all_sites(left), feeds=noise(original, 512))
    assert max(error for _, error in errors) < 1e-6
    for node, was in zip(left.graph.nodes, original.graph.nodes, strict=True):
        for index in (1, 2):
            now, before = node.constant(index), was.constant(index)
            if now is not None and before is not None:
                factor = was.attrs.get("alpha", 1.0) if index == 1 else 1.0
                np.testing.assert_allclose(now, factor * before, rtol=1e-3, atol=1e-3 * np.abs(before).max())
    assert gap(original, left) < 1e-4


@pytest.mark.parametrize("name", NETS)
def test_a_walk_over_an_intact_trained_network_leaves_what_it_computes(name: str) -> None:
    original = zoo(name)
    left = original.clone()
    context = zoo_context(original, 64)
    errors = walk(original, left, all_sites(left), refit, context, default_shapes(original), "refit")
    assert [site.name for site, _ in errors] == [site.name for site in all_sites(left)]
    assert max(error for _, error in errors) < 1e-5
    assert_equal_outputs(original, left, tolerance=2e-3, regimes=("normal",))


def test_a_solver_that_declines_leaves_every_byte() -> None:
    original = zoo("digits_resnet")
    left, seen = original.clone(), []

    def decline(visit: Visit) -> Solution | None:
        seen.append(visit.site.name)
        return None

    context = zoo_context(original, 16)
    assert walk(original, left, all_sites(left), decline, context, default_shapes(original), "look") == []
    assert fingerprint(left) == fingerprint(original)
    assert seen == [site.name for site in all_sites(left)]


# --- redundant channels ----------------------------------------------------------------------------------------------
SIGNATURE = "(float[N,3,6,6] x) => (float[N,5] y)"


def redundant(activation: str) -> Model:
    """Channels 4 to 7 are made of channels 0 to 3: any sums of them without an activation, multiples with a Relu."""
    a, p = weights(1, 8, 3, 3, 3), weights(2, 8)
    mix = weights(3, 4, 4) if activation == "Identity" else np.diag([0.5, 2.0, 1.0, 3.0]).astype(np.float32)
    a[4:], p[4:] = np.tensordot(mix, a[:4], 1), mix @ p[:4]
    text = net(
        SIGNATURE,
        "float[8,3,3,3] a, float[8] p, float[6,8,3,3] b, float[96,7] c, float[7] r, float[7,5] d",
        f"h = Conv(x, a, p) k = {activation}(h) i = Conv<pads=[1,1,1,1]>(k, b) l = Relu(i) f = Flatten(l)"
        " g = Gemm<alpha=0.5>(f, c, r) m = Relu(g) y = MatMul(m, d)",
    )
    return parse_model(text, {"a": a, "p": p})


@pytest.mark.parametrize("activation", ["Identity", "Relu"])
def test_channels_that_the_others_can_make_up_for_are_made_up_for_exactly(activation: str) -> None:
    original = redundant(activation)
    left, sites = cut(original, {"h": [0, 1, 2, 3]})
    assert gap(original, left) > 0.05
    upstream = {n: left.graph.constants[n].values for n in ("a", "p")}
    errors = repaired(original, left, sites, feeds=noise(original, 256))
    assert_valid(left, like=original)
    assert gap(original, left) < 1e-4
    assert max(error for _, error in errors) < 1e-5
    for name, array in upstream.items():
        assert left.graph.constants[name].values is array, "what is before the damage is not touched"


def test_the_ridge_of_daily_use_costs_little_of_that() -> None:
    original = redundant("Relu")
    left, sites = cut(original, {"h": [0, 1, 2, 3]})
    broken = gap(original, left)
    repaired(original, left, sites, refit, feeds=noise(original, 256))
    assert gap(original, left) < broken / 3


@pytest.mark.parametrize(
    "keep",
    [
        {"h": [0, 1, 5]},
        {"i": [0, 1, 5]},
        {"g": [0, 1, 5]},
        {"h": [0, 4, 5], "i": [1, 3, 5]},
        {"h": [2, 3, 4], "i": [0, 4, 5], "g": [1, 2, 3]},
    ],
)
def test_duplicates_are_restored_wherever_they_are_cut(keep: Mapping[str, Sequence[int]]) -> None:
    """Convolution read by a convolution, by a Gemm behind a Flatten, and a Gemm read by a MatMul without a bias."""
    text = net(
        SIGNATURE,
        "float[6,3,3,3] a, float[6] p, float[6,6,1,1] b, float[6] q, float[96,6] c, float[6] r, float[6,5] d",
        "h = Conv(x, a, p) k = Relu(h) i = Conv(k, b, q) l = Relu(i) f = Flatten(l) g = Gemm(f, c, r)"
        " m = Relu(g) y = MatMul(m, d)",
    )
    given = {"a": weights(1, 6, 3, 3, 3), "p": weights(2, 6), "b": weights(3, 6, 6, 1, 1), "q": weights(4, 6)}
    given |= {"c": weights(5, 96, 6), "r": weights(6, 6)}
    for name in ("a", "p", "b", "q", "r"):
        given[name][3:] = given[name][:3]
    given["c"][:, 3:] = given["c"][:, :3]
    original = parse_model(text, given)
    left, sites = cut(original, keep)
    assert gap(original, left) > 0.02
    repaired(original, left, sites, feeds=noise(original, 256))
    assert gap(original, left) < 1e-4


def test_grouped_and_depthwise_readers_are_restored_block_by_block() -> None:
    """Both blocks hold every channel twice; the depthwise convolution behind them passes what is left."""
    a, p = weights(1, 8, 3, 1, 1), weights(2, 8)
    a[[2, 3, 6, 7]], p[[2, 3, 6, 7]] = 2 * a[[0, 1, 4, 5]], 2 * p[[0, 1, 4, 5]]
    text = net(
        "(float[N,3,6,6] x) => (float[N,4,4,4] y)",
        "float[8,3,1,1] a, float[8] p, float[6,4,3,3] b, float[6] q, float[6,1,1,1] e, float[4,6,1,1] c",
        "h = Conv(x, a, p) k = Relu(h) i = Conv<group=2>(k, b, q) d = Conv<group=6>(i, e) y = Conv(d, c)",
    )
    original = parse_model(text, {"a": a, "p": p})
    groups = channel_groups(original)
    pairs = groups[name_of(original, "h")].units
    left, sites = cut(original, {"h": range(pairs // 2)})
    assert gap(original, left) > 0.05
    repaired(original, left, sites)
    assert left.graph.constants["b"].values.shape == (6, 2, 3, 3)
    assert gap(original, left) < 1e-4


# --- constant channels -----------------------------------------------------------------------------------------------
def with_constant_channels(reader: str, shape: str, bias: bool) -> Model:
    """Channels 1 and 4 have no weights, only a bias: they are 0.8 and Sigmoid(2) whatever the image."""
    a, p = weights(1, 6, 3, 3, 3), weights(2, 6)
    a[[1, 4]], p[[1, 4]] = 0, [0.8, 2.0]
    text = net(
        "(float[N,3,6,6] x) => (float[a,b,c,d] y)",
        f"float[6,3,3,3] a, float[6] p, float[{shape}] b" + (", float[5] q" if bias else ""),
        f"h = Conv(x, a, p) k = Sigmoid(h) y = {reader}(k, b{', q' if bias else ''})",
    )
    return parse_model(text, {"a": a, "p": p, "b": 5 * weights(3, *map(int, shape.split(",")))})


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("reader", "shape"), [("Conv", "5,6,1,1"), ("Conv", "5,6,3,3"), ("Conv<strides=[2,2]>", "5,6,2,2")]
)
def test_a_removed_constant_channel_ends_up_in_the_bias_of_its_reader(
    reader: str, shape: str, bias: bool
) -> None:
    """Without a bias of its own the reader gets one."""
    original = with_constant_channels(reader, shape, bias)
    left, sites = cut(original, {"h": [0, 2, 3, 5]})
    assert gap(original, left) > 0.1
    repaired(original, left, sites, refit)
    assert gap(original, left) < 1e-5
    b, made = original.graph.constants["b"].values, left.graph.nodes[-1].constant(2)
    assert made is not None
    level = 1 / (1 + np.exp(-np.array([0.8, 2.0])))
    wanted = np.tensordot(b.sum((2, 3))[:, [1, 4]], level, 1)
    if bias:
        wanted = wanted + original.graph.constants["q"].values
    np.testing.assert_allclose(made, wanted, rtol=1e-3, atol=1e-4)


def test_constant_neurons_end_up_in_the_bias_of_a_gemm() -> None:
    a, p = weights(1, 4, 6), np.array([0.1, 0.2, 3.0, -0.3, 7.0, 0.5], np.float32)
    a[:, [2, 4]] = 0
    text = net(
        "(float[N,4] x) => (float[N,3] y)",
        "float[4,6] a, float[6] p, float[3,6] b",
        "h = Gemm(x, a, p) k = Relu(h) y = Gemm<transB=1, alpha=2.0>(k, b)",
    )
    original = parse_model(text, {"a": a, "p": p})
    left, sites = cut(original, {"h": [0, 1, 3, 5]})
    assert gap(original, left) > 0.5
    repaired(original, left, sites, refit, feeds=noise(original, 128))
    assert gap(original, left) < 1e-5
    made = left.graph.nodes[-1].constant(2)
    assert made is not None
    np.testing.assert_allclose(made, original.graph.constants["b"].values[:, [2, 4]] @ [6, 14], rtol=1e-4)


# --- residual additions ----------------------------------------------------------------------------------------------
RESIDUAL = net(
    "(float[N,4,5,5] x) => (float[N,8,5,5] y)",
    "float[8,4,1,1] a, float[4,8,1,1] b, float[8,4,1,1] c, float[4,8,1,1] d, float[8,4,1,1] e",
    "stem = Conv(x, a) inner1 = Conv(stem, b) branch1 = Conv(inner1, c) sum1 = Add(stem, branch1)"
    " inner2 = Conv(sum1, d) branch2 = Conv(inner2, e) sum2 = Add(branch2, sum1) y = Identity(sum2)",
)
"""Linear in four channels throughout: what the first block loses, the second can put back, and only there."""


def test_what_one_residual_block_lost_the_next_puts_back_exactly() -> None:
    original = parse_model(RESIDUAL)
    left, sites = cut(original, {"inner1": [0, 2]})
    repaired(original, left, sites)
    feeds = noise(original, 16, seed=9)
    views = [m.clone() for m in (original, left)]
    for view in views:
        view.graph.outputs[:] = [view.graph.values()["sum1"]]
    sums = [outputs(view, feeds) for view in views]
    assert np.abs(sums[0] - sums[1]).max() > 0.05, "after the first block something is missing"
    assert gap(original, left) < 1e-4, "after the second nothing is"


def test_without_the_correction_the_loss_would_stay() -> None:
    """The same walk with the branch's own output as target: made so by giving the stream a second reader."""
    text = RESIDUAL.replace("y = Identity(sum2)", "y = Add(sum2, branch2)")
    original = parse_model(text)
    left, sites = cut(original, {"inner1": [0, 2]})
    repaired(original, left, sites)
    assert gap(original, left) > 1e-2


def test_the_error_of_a_branch_is_that_of_the_sum_it_goes_into() -> None:
    original = parse_model(RESIDUAL)
    left, sites = cut(original, {"inner1": [0, 2]})
    errors = {site.name: error for site, error in repaired(original, left, sites)}
    assert set(errors) == {name_of(original, v) for v in ("branch1", "inner2", "branch2")}
    assert errors[name_of(original, "branch1")] > 0.01
    assert errors[name_of(original, "branch2")] < 1e-4


def test_a_cut_stream_is_restored_as_far_as_its_span_allows() -> None:
    """Eight channels of the stream are linear in four, so that any four independent ones carry all."""
    original = parse_model(
        RESIDUAL.replace("y = Identity(sum2)", "y = Conv(sum2, g)").replace(
            "float[8,4,1,1] e", "float[8,4,1,1] e, float[8,8,1,1] g"
        )
    )
    left, sites = cut(original, {"stem": [0, 1, 2, 3, 4]})
    assert gap(original, left) > 0.1
    repaired(original, left, sites, feeds=noise(original, 64))
    assert gap(original, left) < 1e-3


# --- what is measured ------------------------------------------------------------------------------------------------
def test_visits_carry_the_moments_of_the_cut_networks_inputs_and_of_the_originals_outputs() -> None:
    original = redundant("Relu")
    left, sites = cut(original, {"h": [0, 1, 2, 3]})
    feeds = noise(original, 20)
    seen: dict[str, Visit] = {}

    def look(visit: Visit) -> None:
        seen.setdefault(visit.node.output, visit)

    context = context_for(original, feeds)
    walk(original, left, sites, look, context, default_shapes(original), "look")
    assert list(seen) == ["i", "g", "y"]
    views = [m.clone() for m in (original, left)]
    views[0].graph.outputs[:] = [views[0].graph.values()["g"]]
    views[1].graph.outputs[:] = [views[1].graph.values()["f"]]
    wanted, x = (outputs(view, feeds).astype(np.float64) for view in views)
    moments = seen["g"].moments
    assert moments.count == 20
    np.testing.assert_allclose(moments.mean_x[0], x.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(moments.mean_y[0], wanted.mean(0), rtol=1e-4, atol=1e-5)
    centred = wanted - wanted.mean(0)
    np.testing.assert_allclose(moments.cross()[0], centred.T @ (x - x.mean(0)) / 20, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("reader", "centred"), [("Gemm", True), ("MatMul", False)])
def test_refit_is_the_centred_least_squares_fit_and_the_plain_one_without_a_bias(
    reader: str, centred: bool
) -> None:
    text = net(
        "(float[N,5] x) => (float[N,3] y)",
        "float[5,6] a, float[6] p, float[6,3] b",
        f"h = Gemm(x, a, p) k = Relu(h) y = {reader}(k, b)",
    )
    original = parse_model(text)
    left, sites = cut(original, {"h": [0, 2, 5]})
    feeds = noise(original, 20000)
    repaired(original, left, sites, refit, feeds)
    values = original.graph.constants
    hidden = np.maximum(feeds["x"] @ values["a"].values + values["p"].values, 0)[:, [0, 2, 5]]
    rows = np.column_stack([hidden, np.ones(20000)]) if centred else hidden
    wanted = np.linalg.lstsq(rows.astype(np.float64), outputs(original, feeds), rcond=None)[0]
    np.testing.assert_allclose(left.graph.constants["b"].values, wanted[:3], rtol=0.01, atol=0.01)
    made = left.graph.nodes[-1].constant(2)
    assert (made is not None) == centred
    if made is not None:
        np.testing.assert_allclose(made, wanted[3], rtol=0.01, atol=0.01)


def test_weights_lean_on_what_they_were_where_samples_are_few() -> None:
    moved = {}
    for solve in (fit, refit):
        original = redundant("Relu")
        left, sites = cut(original, {"h": [0, 1, 2, 3]})
        before = left.graph.constants["b"].values
        repaired(original, left, sites[:1], solve, feeds=noise(original, 2))
        moved[solve.__name__] = float(np.abs(left.graph.constants["b"].values - before).mean())
    assert moved["refit"] < 0.8 * moved["fit"]


def test_the_batch_size_of_the_walk_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for size in (1, 7, 64):
        monkeypatch.setattr(repair, "batch_size", lambda *_, size=size, **__: size)
        original = redundant("Relu")
        left, sites = cut(original, {"h": [0, 1, 2, 3]})
        repaired(original, left, sites, refit, feeds=noise(original, 300))
        results.append({n: c.values for n, c in left.graph.constants.items()})
    for constants in results[1:]:
        for name, array in constants.items():
            np.testing.assert_allclose(array, results[0][name], rtol=1e-3, atol=1e-4)


def test_the_order_in_which_sites_are_given_does_not_matter() -> None:
    original = redundant("Relu")
    marks = set()
    for order in (slice(None), slice(None, None, -1)):
        left, sites = cut(original, {"h": [0, 1, 2, 3]})
        repaired(original, left, sites[order])
        marks.add(fingerprint(left))
    assert len(marks) == 1


def test_a_later_site_sees_what_became_of_the_earlier_ones() -> None:
    """The last node has less to make up for where those before it have been refitted."""
    original = redundant("Relu")
    left, sites = cut(original, {"h": [0, 3]})
    every = left.clone()
    errors = {site.name: error for site, error in repaired(original, every, sites)}
    alone = {site.name: error for site, error in repaired(original, left, sites[-1:])}
    assert errors[sites[-1].name] < alone[sites[-1].name]


def test_activations_that_follow_forgive_what_they_cut_off() -> None:
    """Behind a Relu that hides most of it, the refitted branch is better after the Relu than a plain fit would be."""
    text = net(
        "(float[N,3,6,6] x) => (float[N,6,6,6] y)",
        "float[8,3,1,1] a, float[6,8,1,1] b, float[6] q",
        "h = Conv(x, a) k = Relu(h) i = Conv(k, b, q) y = {}(i)",
    )
    gaps = {}
    for activation in ("Relu", "Identity"):
        original = parse_model(text.replace("{}", activation), {"q": np.full(6, -0.8, np.float32)})
        left, sites = cut(original, {"h": [0, 1, 2, 3]})
        repaired(original, left, sites, refit)
        feeds = noise(original, 16, seed=9)
        wanted, made = outputs(original, feeds), outputs(left, feeds)
        after = [np.maximum(v, 0) for v in (wanted, made)]
        gaps[activation] = float(((after[0] - after[1]) ** 2).mean())
    assert gaps["Relu"] < 0.95 * gaps["Identity"]


def test_the_walk_is_the_same_every_time_and_another_seed_samples_other_positions() -> None:
    """An image of 20 x 20 has more positions than are taken of a sample."""
    text = net(
        "(float[N,3,20,20] x) => (float[N,5,20,20] y)",
        "float[6,3,1,1] a, float[5,6,1,1] b",
        "h = Conv(x, a) k = Relu(h) y = Conv(k, b)",
    )
    original = parse_model(text)
    marks = []
    for seed in (0, 0, 1):
        left, sites = cut(original, {"h": [0, 1, 2]})
        repaired(original, left, sites, refit, feeds=noise(original, 4), seed=seed)
        marks.append(fingerprint(left))
    assert marks[0] == marks[1] != marks[2]


def test_nothing_stays_on_disk_and_progress_is_told() -> None:
    original = redundant("Relu")
    left, sites = cut(original, {"h": [0, 1, 2, 3]})
    context = context_for(original)
    told: list[tuple[str, int, int]] = []
    context = dataclasses.replace(context, progress=lambda *step: told.append(step))
    spools: list[capture.Spool] = []
    make = capture.Spool.__init__

    def remember(self: capture.Spool) -> None:
        make(self)
        spools.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(capture.Spool, "__init__", remember)
        walk(original, left, sites, refit, context, default_shapes(original), "mending")
    assert told == [("mending", step, 3) for step in range(4)]
    assert len(spools) == 2
    for spool in spools:
        with pytest.raises(OSError, match="No such file"):
            spool.write("new", np.zeros(3, np.float32))


# --- moments of inputs -----------------------------------------------------------------------------------------------
def moments_of(model: Model, context: Context, **given: Any) -> dict[str, Any]:
    nodes = [n for node in model.graph.nodes if (n := linear_node(node)) is not None]
    found = collect_moments(model, nodes, context, default_shapes(model), "statistics", **given)
    return {n.output: found[n.node.name] for n in nodes}


def test_collected_moments_are_those_of_all_columns() -> None:
    model = redundant("Relu")
    feeds = noise(model, 10)
    found = moments_of(model, context_for(model, feeds))
    view = model.clone()
    view.graph.outputs[:] = [view.graph.values()["f"]]
    x = outputs(view, feeds).astype(np.float64)
    assert found["g"].count == 10
    np.testing.assert_allclose(found["g"].mean_x[0], x.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["g"].covariance()[0], np.cov(x.T, bias=True), rtol=1e-3, atol=1e-4)
    assert found["h"].count == 10 * 16
    assert found["h"].covariance().shape == (1, 27, 27)


def test_channelwise_moments_are_those_of_the_channels() -> None:
    model = redundant("Relu")
    feeds = noise(model, 10)
    found = moments_of(model, context_for(model, feeds), channelwise=frozenset({name_of(model, "h")}))
    x = feeds["x"].swapaxes(0, 1).reshape(3, -1).astype(np.float64)
    np.testing.assert_allclose(found["h"].covariance()[0], np.cov(x, bias=True), rtol=1e-3, atol=1e-4)
    assert found["i"].covariance().shape == (1, 72, 72)


@pytest.mark.parametrize(("total", "taken"), [(1, None), (256, None), (257, 256), (4000, 256)])
def test_positions_are_sampled_where_there_are_many(total: int, taken: int | None) -> None:
    found: NDArray[np.int64] | None = sample_positions(total, np.random.default_rng(0))
    if taken is None:
        assert found is None
        return
    assert found is not None
    assert len(np.unique(found)) == taken
    assert found.tolist() == sorted(found.tolist())
    assert set(found.tolist()) <= set(range(total))
