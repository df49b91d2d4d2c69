"""What a cut damages, what it leaves alone, and refitting once from the original's statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxcomp.analysis.channels import channel_groups, default_shapes
from onnxcomp.analysis.linear import linear_node
from onnxcomp.compiler.repair.refit import Site, refit_once
from onnxcomp.compiler.repair.sites import damaged_sites, kept_positions
from onnxcomp.compiler.repair.walk import collect_moments
from onnxcomp.ir.graph import Array
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from tests.support.pruning import context_for, noise, outputs
from tests.support.text import net

Mask = NDArray[np.bool_]

CHAIN = net(
    "(float[N,3,6,6] x) => (float[N,5] y)",
    "float[6,3,3,3] a, float[6] p, float[8,6,3,3] b, float[8] q, float[8,1,1,1] d, float[32,7] e, float[7] r,"
    " float[7,5] f",
    "one = Conv(x, a, p) act = Relu(one) two = Conv(act, b, q) deep = Conv<group=8>(two, d)"
    " flat = Flatten(deep) three = Gemm(flat, e, r) y = MatMul(three, f)",
)


def cut(
    text: str, keep: Mapping[str, Sequence[int]]
) -> tuple[Model, Model, dict[tuple[str, int], NDArray[np.int64]]]:
    """The model of `text`, what is left of it with only the units in `keep`, and the positions that stay."""
    original = parse_model(text)
    groups = channel_groups(original)
    masks = {name: np.isin(np.arange(groups[name].units), units) for name, units in keep.items()}
    left = original.clone()
    groups.take(left, masks)
    return original, left, kept_positions(groups, masks)


def names(model: Model) -> dict[str, str]:
    """Node names by the name of the first output."""
    return {node.output.name: node.name for node in model.graph.nodes}


def sites_of(text: str, keep: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    original, left, kept = cut(text, keep)
    sites, refused = damaged_sites(original, left, kept, lambda name: None)
    assert not refused
    by_node = {node.name: node.output.name for node in left.graph.nodes}
    return {by_node[site.name]: site.rows.tolist() for site in sites}


def group_of(text: str, output: str) -> str:
    return names(parse_model(text))[output]


def test_positions_that_stay_are_told_for_every_axis_that_is_cut() -> None:
    _, _, kept = cut(CHAIN, {group_of(CHAIN, "two"): [0, 3]})
    assert {key: rows.tolist() for key, rows in kept.items()} == {
        ("b", 0): [0, 3],
        ("q", 0): [0, 3],
        ("d", 0): [0, 3],
        ("e", 0): [0, 1, 2, 3, 12, 13, 14, 15],
    }


def test_readers_of_a_cut_and_all_that_follows_are_damaged_and_nothing_before() -> None:
    assert sites_of(CHAIN, {group_of(CHAIN, "one"): [1, 2]}) == {
        "two": list(range(8)),
        "deep": list(range(8)),
        "three": list(range(7)),
        "y": list(range(5)),
    }
    found = sites_of(CHAIN, {group_of(CHAIN, "two"): [0, 3]})
    assert found == {"deep": [0, 3], "three": list(range(7)), "y": list(range(5))}
    assert sites_of(CHAIN, {group_of(CHAIN, "three"): [6]}) == {"y": list(range(5))}


def test_sites_know_which_of_their_own_outputs_are_left() -> None:
    keep = {group_of(CHAIN, "one"): [1, 2], group_of(CHAIN, "two"): [0, 3], group_of(CHAIN, "three"): [6]}
    assert sites_of(CHAIN, keep) == {"two": [0, 3], "deep": [0, 3], "three": [6], "y": list(range(5))}


def test_a_branch_without_a_cut_is_left_alone() -> None:
    text = net(
        "(float[N,3,4,4] x) => (float[N,4,4,4] y)",
        "float[6,3,1,1] a, float[4,6,1,1] b, float[5,3,1,1] c, float[4,5,1,1] d, float[4,4,1,1] e",
        "h = Conv(x, a) i = Conv(h, b) j = Conv(x, c) k = Conv(j, d) s = Add(i, k) y = Conv(s, e)",
    )
    assert set(sites_of(text, {group_of(text, "h"): [0]})) == {"i", "y"}


def test_damage_passes_through_what_is_not_linear_and_through_stored_operands_that_are_cut() -> None:
    text = net(
        "(float[N,3,4,4] x) => (float[N,4,4,4] y)",
        "float[6,3,1,1] a, float[6,1,1] s, float[4,6,1,1] b",
        "h = Conv(x, a) m = Mul(h, s) r = Sigmoid(m) y = Conv(r, b)",
    )
    assert set(sites_of(text, {group_of(text, "h"): [0, 5]})) == {"y"}


def test_excluded_nodes_and_shared_weights_are_refused_with_their_reason() -> None:
    text = net(
        "(float[N,4] x) => (float[N,4] y)",
        "float[4,6] a, float[6,4] b, float[4,4] w",
        "h = MatMul(x, a) r = Relu(h) i = MatMul(r, b) j = MatMul(i, w) k = Relu(j) y = MatMul(k, w)",
    )
    original, left, kept = cut(text, {group_of(text, "h"): [0, 1]})
    node = names(original)
    sites, refused = damaged_sites(original, left, kept, {node["i"]: "it is excluded"}.get)
    shared = "its weight 'w' is shared, and a refit would make a copy of it"
    assert [site.name for site in sites] == []
    assert refused == {node["i"]: "it is excluded", node["j"]: shared, node["y"]: shared}


@pytest.mark.parametrize(
    ("stored", "body", "reason"),
    [
        (
            "float[4,6,1,1] b, float s = {0.1}, int8 z = {0}",
            "q = QuantizeLinear(b, s, z) v = DequantizeLinear(q, s, z) y = Conv(h, v)",
            "its weight is quantized, and a refit would leave the grid of the quantization",
        ),
        (
            "float[4,6,1,1] b",
            "[wrap] v = Identity(b) y = Conv(h, v)",
            "its weight stands behind Identity 'wrap'; fold constants first",
        ),
        ("float[6,2,1,1] b", "y = ConvTranspose<group=2>(h, b)", "it is a transposed convolution in groups"),
    ],
)
def test_readers_whose_weights_are_no_plain_matrices_are_refused_with_their_reason(
    stored: str, body: str, reason: str
) -> None:
    text = net(
        "(float[N,3,8,8] x) => (float[N,4,8,8] y)", f"float[6,3,1,1] a, {stored}", f"h = Conv(x, a) {body}"
    )
    original, left, kept = cut(text, {group_of(text, "h"): [0, 2]})
    _, refused = damaged_sites(original, left, kept, lambda name: None)
    assert refused == {names(original)["y"]: reason}


# --- once ------------------------------------------------------------------------------------------------------------
def refitted(
    text: str, keep: Mapping[str, Sequence[int]], strength: float
) -> tuple[Model, Model, Model, int]:
    original, left, kept = cut(text, keep)
    bare = left.clone()
    sites, _ = damaged_sites(original, left, kept, lambda name: None)
    nodes = {node.name: node for node in original.graph.nodes}
    linear = [found for site in sites if (found := linear_node(nodes[site.name])) is not None]
    moments = collect_moments(original, linear, context_for(original), default_shapes(original), "statistics")
    done = refit_once(original, left, sites, kept, moments, strength)
    return original, bare, left, done


@pytest.mark.parametrize(
    ("stored", "body", "width"),
    [
        (
            "float[6,3,1,1] a, float[6] p, float[4,6,1,1] b, float[4] q",
            "r = Conv(x, a, p) y = Conv(r, b, q)",
            6,
        ),
        ("float[6,3,1,1] a, float[6] p, float[4,6,1,1] b", "r = Conv(x, a, p) y = Conv(r, b)", 6),
        ("float[6,3,1,1] a, float[4,6,3,3] b", "r = Conv(x, a) y = Conv<pads=[1,1,1,1]>(r, b)", 6),
        ("float[6,3,1,1] a, float[4,3,1,1] b, float[4] q", "r = Conv(x, a) y = Conv<group=2>(r, b, q)", 6),
        (
            "float[6,3,1,1] a, float[6,4,2,2] b, float[4] q",
            "r = Conv<strides=[2,2]>(x, a) y = ConvTranspose<strides=[2,2]>(r, b, q)",
            6,
        ),
    ],
)
def test_channels_that_others_make_up_for_are_made_up_for_exactly(stored: str, body: str, width: int) -> None:
    """Six channels that are linear in three: any three (of each block) make up for the rest."""
    text = net("(float[N,3,4,4] x) => (float[N,4,4,4] y)", stored, body)
    name = group_of(text, "r")
    units = channel_groups(parse_model(text))[name].units
    if units == width:
        keep = {name: [0, 2, 4]}
    else:
        # A grouped reader ties equal positions of its blocks: two of three pairs see only two of the three inputs.
        keep = {name: [0, 2]}
    original, bare, left, done = refitted(text, keep, 1e-9)
    assert done == 1
    feeds = noise(original, 6, seed=9)
    wanted = outputs(original, feeds)
    assert np.abs(outputs(bare, feeds) - wanted).max() > 0.1
    if units == width:
        np.testing.assert_allclose(outputs(left, feeds), wanted, atol=1e-4)
    else:
        gap = [float(((outputs(m, feeds) - wanted) ** 2).mean()) for m in (left, bare)]
        assert gap[0] < gap[1]


def test_the_refit_is_the_least_squares_solution_on_the_kept_columns() -> None:
    text = net(
        "(float[N,5] x) => (float[N,3] y)",
        "float[5,6] a, float[6] p, float[6,4] b, float[4] q, float[4,3] c",
        "h = Gemm(x, a, p) r = Relu(h) s = Gemm(r, b, q) y = MatMul(s, c)",
    )
    keep = [0, 1, 4]
    original, bare, left, done = refitted(text, {group_of(text, "h"): keep}, 1e-9)
    assert done == 1, "what lost no input of its own is not refitted in one shot"
    values = original.graph.constants
    x = noise(original)["x"]
    hidden = np.maximum(x @ values["a"].values + values["p"].values, 0)
    wanted = hidden @ values["b"].values + values["q"].values
    rows = np.column_stack([hidden[:, keep], np.ones(len(x))])
    solution = np.linalg.lstsq(rows.astype(np.float64), wanted.astype(np.float64), rcond=None)[0]
    np.testing.assert_allclose(left.graph.constants["b"].values, solution[:3], rtol=1e-2, atol=1e-3)
    np.testing.assert_allclose(left.graph.constants["q"].values, solution[3], rtol=1e-2, atol=1e-3)
    for name in ("a", "p", "c"):
        np.testing.assert_array_equal(left.graph.constants[name].values, bare.graph.constants[name].values)


def test_a_node_without_a_bias_is_fitted_to_what_is_there_and_not_to_its_deviations() -> None:
    text = net(
        "(float[N,5] x) => (float[N,4] y)",
        "float[5,6] a, float[6] p, float[6,4] b",
        "h = Gemm(x, a, p) r = Relu(h) y = MatMul(r, b)",
    )
    keep = [0, 1, 4]
    original, _, left, done = refitted(text, {group_of(text, "h"): keep}, 1e-9)
    assert done == 1
    values = original.graph.constants
    hidden = np.maximum(noise(original)["x"] @ values["a"].values + values["p"].values, 0).astype(np.float64)
    solution = np.linalg.lstsq(hidden[:, keep], hidden @ values["b"].values, rcond=None)[0]
    np.testing.assert_allclose(left.graph.constants["b"].values, solution, rtol=1e-3, atol=1e-4)


def test_a_node_without_statistics_or_without_a_lost_input_is_passed_over() -> None:
    original, left, kept = cut(CHAIN, {group_of(CHAIN, "three"): [6]})
    before = {name: c.values for name, c in left.graph.constants.items()}
    site = Site(names(left)["y"], np.arange(5))
    assert refit_once(original, left, [site], kept, {}, 1e-3) == 0
    other = Site(names(left)["two"], np.arange(8))
    nodes = [found for n in original.graph.nodes if n.name == other.name and (found := linear_node(n))]
    moments = collect_moments(original, nodes, context_for(original), default_shapes(original), "statistics")
    assert refit_once(original, left, [other], kept, moments, 1e-3) == 0
    after: dict[str, Array] = {name: c.values for name, c in left.graph.constants.items()}
    assert all(after[name] is array for name, array in before.items())


# --- values that subgraphs read --------------------------------------------------------------------------------------
def test_what_follows_from_a_subgraph_that_reads_a_damaged_value_is_refitted() -> None:
    """The branches read `two`, which is damaged; nothing of the If's own inputs is."""
    text = net(
        "(float[N,3,6,6] x, bool c) => (float[N,5,2,2] y)",
        "float[6,3,3,3] a, float[8,6,3,3] b, float[5,8,1,1] d",
        "one = Conv(x, a) two = Conv(one, b) z = If(c) <then_branch = t () => (float[N,8,2,2] p) { p = Relu(two) },"
        " else_branch = e () => (float[N,8,2,2] q) { q = Neg(two) }> y = Conv(z, d)",
    )
    assert list(sites_of(text, {group_of(text, "one"): [0, 1, 2]})) == ["two", "y"]


def test_nodes_that_a_cut_adds_are_no_sites() -> None:
    # Two views share one Concat of sizes; the cut gives one of them a Concat of its own.
    text = net(
        "(float[N,T,8] x) => (float[a,b,c,e] y)",
        "float[8,8] q, float[8,8] k, int64[2] axes = {0,1}, int64[2] split = {2,4}, float[4,3] o, float[4,3] p",
        "i = MatMul(x, q) j = MatMul(x, k) s = Shape(x) f = Gather(s, axes) sizes = Concat<axis=0>(f, split)"
        " a = Reshape(i, sizes) b = Reshape(j, sizes) c = MatMul(a, o) g = MatMul(b, p) y = Add(c, g)",
    )
    name = group_of(text, "i")
    original, left, _ = cut(text, {name: [0, 1]})
    assert {n.name for n in left.graph.nodes} - {n.name for n in original.graph.nodes}
    assert set(sites_of(text, {name: [0, 1]})) == {"c"}
