"""The walk restores what can be restored: algebra says what that is, and the network must then be the original again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from onnxcomp.analysis.channels import channel_groups
from onnxcomp.analysis.linear import linear_node
from onnxcomp.compiler.repair.refit import Site, Solution, Visit, refit
from onnxcomp.compiler.repair.walk import Walk
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.testing import assert_equal_outputs, assert_valid, fingerprint
from tests.support.pruning import NETS, noise, outputs, zoo, zoo_context
from tests.support.repairing import SIGNATURE, cut, gap, name_of, redundant, repaired, weights
from tests.support.text import net


def all_sites(model: Model) -> list[Site]:
    found = [n for node in model.graph.nodes if (n := linear_node(node)) is not None]
    return [Site(n.node.name, np.arange(n.weight_array().shape[n.out_axis])) for n in found]


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
    errors = Walk(original, left, context).visit(all_sites(left), refit, "refit")
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
    assert Walk(original, left, context).visit(all_sites(left), decline, "look") == []
    assert fingerprint(left) == fingerprint(original)
    assert seen == [site.name for site in all_sites(left)]


# --- redundant channels ----------------------------------------------------------------------------------------------


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
