"""Gather, embeddings, Expand, Tile and arithmetic on sizes: what picks, repeats and counts channels follows a cut."""

from __future__ import annotations

import pytest

from onnxcomp.ir.parse import parse_model
from tests.support.channels import IMAGE, axes, free, hold, hold_as_run, left, stays, stored, units
from tests.support.text import net

CONV = "float[6,3,3,3] a, float[4,6,1,1] c"
HEAD = "h = Conv<pads=[1,1,1,1]>(x, a)"


# --- picking ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("order", "size"),
    [("5,4,3,2,1,0", 6), ("0,2,4", 3), ("-1,0,-3,1", 4), ("1,1,2,2,0,0,1", 7)],
    ids=["reversed", "every-second", "from-the-end", "repeated"],
)
def test_channels_picked_by_stored_indices_are_renumbered(order: str, size: int) -> None:
    cut = hold(
        net(
            IMAGE,
            f"float[6,3,3,3] a, float[4,6,1,1] b, int64[{size}] order = {{{order}}}, float[4,{size},1,1] c",
            f"{HEAD} g = Gather<axis=1>(h, order) r = Relu(g) s = Conv(r, c) t = Conv(h, b) y = Add(s, t)",
        )
    )
    assert free(cut.groups) == {"h": 6}
    places = [int(n) % 6 for n in order.split(",")]
    assert units(cut.groups["h"], "c", 1) == places


def test_one_picked_channel_stays_and_the_others_may_go() -> None:
    cut = hold(
        net(
            "(float[N,3,8,8] x) => (float[N,4,8,8] y)",
            "float[6,3,3,3] a, float[4,6,1,1] c, int64 second = {2}",
            f"{HEAD} g = Gather<axis=1>(h, second) w = ReduceMean<axes=[1,2], keepdims=0>(g) s = ReduceMean<keepdims=0>(w)"
            " m = Mul(h, s) y = Conv(m, c)",
        )
    )
    assert cut.groups["h"].free.tolist() == [True, True, False, True, True, True]


def test_indices_of_several_axes_pick_channels_into_a_grid() -> None:
    cut = hold(
        net(
            "(float[N,3,8,8] x) => (float[N,2,4,8,8] y)",
            "float[6,3,3,3] a, int64[2,3] grid = {0,1,2,3,4,5}, float[4,3] w",
            f"{HEAD} g = Gather<axis=1>(h, grid) t = Transpose<perm=[0,1,3,4,2]>(g) wt = Transpose(w) m = MatMul(t, wt)"
            " y = Transpose<perm=[0,1,4,2,3]>(m)",
        )
    )
    assert free(cut.groups) == {"h": 3}, "one column of the grid is one unit"


def test_rows_of_an_embedding_are_channels_of_a_producer() -> None:
    model = parse_model(
        net(
            "(int64[N,5] x) => (float[N,5,4] y)",
            "float[9,6] table, float[5,6] place, float[6,8] a, float[8,4] b",
            "[look] e = Gather(table, x) f = Add(e, place) h = MatMul(f, a) r = Relu(h) y = MatMul(r, b)",
        )
    )
    cut = hold(model, batches=(2,), regimes=("normal",))
    assert axes(cut.groups["look"]) == {("table", 1), ("place", 1), ("a", 0)}
    assert stored(cut, "table") == (9, left(cut, "look"))


def test_an_embedding_and_an_output_layer_that_share_a_table_are_cut_together() -> None:
    cut = hold(
        net(
            "(int64[N] x) => (float[N,9] y)",
            "float[9,6] table",
            "[look] e = Gather(table, x) r = Relu(e) y = Gemm<transB=1>(r, table)",
        ),
        batches=(2,),
        regimes=("normal",),
    )
    assert free(cut.groups) == {"look": 6}
    assert stored(cut, "table") == (9, left(cut, "look"))


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        ("k = Gather<axis=1>(h, n) s = Shape(k) z = ReduceMean(k) y = Add(o, z)", "Gather 'k' picks channels by computed indices"),
        ("k = ArgMax<axis=1>(h) f = Cast<to=1>(k) y = Add(o, f)", "ArgMax 'k' returns the numbers of channels"),
        ("k = ArgMin<axis=-3, keepdims=0>(h) f = Cast<to=1>(k) y = Add(o, f)", "ArgMin 'k' returns the numbers of channels"),
        ("k, v = TopK<axis=1>(h, one) y = Add(o, k)", "TopK 'k' picks among the channels"),
    ],
)  # fmt: skip
def test_what_tells_channels_by_number_or_rank_blocks_them(node: str, reason: str) -> None:
    text = net(
        "(float[1,3,8,8] x, int64[2] n) => (float[1,4,8,8] y)",
        f"{CONV}, int64[1] one = {{1}}",
        f"{HEAD} o = Conv(h, c) {node}",
    )
    assert stays(text)["h"] == reason


@pytest.mark.parametrize(
    "node",
    [
        "k = ArgMax<axis=3>(h) f = Cast<to=1>(k) g = Add(h, f)",
        "k = ArgMax<axis=2, keepdims=0>(h) f = Cast<to=1>(k) u = Unsqueeze(f, two) g = Add(h, u)",
        "k, v = TopK<axis=2>(h, three) m = ReduceMean<axes=[2]>(k) g = Add(h, m)",
    ],
)
def test_picking_in_space_lets_channels_through(node: str) -> None:
    cut = hold(
        net(
            IMAGE,
            f"{CONV}, int64[1] two = {{2}}, int64[1] three = {{3}}",
            f"{HEAD} {node} y = Conv(g, c)",
        ),
        regimes=("normal",),
    )
    assert free(cut.groups) == {"h": 6}


# --- repeating -------------------------------------------------------------------------------------------------------
def test_a_tile_over_the_channels_repeats_their_labels() -> None:
    cut = hold(
        net(
            IMAGE,
            "float[6,3,3,3] a, float[4,12,1,1] c, int64[4] twice = {1,2,1,1}",
            f"{HEAD} t = Tile(h, twice) y = Conv(t, c)",
        )
    )
    assert units(cut.groups["h"], "c", 1) == [*range(6), *range(6)]


def test_a_tile_over_space_lets_channels_through() -> None:
    cut = hold(
        net(
            "(float[N,3,8,8] x) => (float[N,4,16,16] y)",
            f"{CONV}, int64[4] twice = {{1,1,2,2}}",
            f"{HEAD} t = Tile(h, twice) y = Conv(t, c)",
        )
    )
    assert free(cut.groups) == {"h": 6}


@pytest.mark.parametrize("order", ["h, e", "e, h"])
@pytest.mark.parametrize(
    "node",
    ["e = Expand(m, size)", "e = Expand(m, short)", "e = Tile(m, times)", "s = Shape(h) e = Expand(m, s)"],
    ids=["expand", "expand-without-batch", "tile", "expand-to-the-shape-of-another"],
)
def test_what_is_repeated_to_meet_the_channels_is_repeated_less(node: str, order: str) -> None:
    """A mask over space, spread over all channels before it is multiplied, as exporters write it."""
    cut = hold(
        net(
            "(float[1,3,8,8] x) => (float[1,4,8,8] y)",
            f"{CONV}, int64[4] size = {{1,6,8,8}}, int64[4] times = {{1,6,1,1}}, int64[3] short = {{6,1,1}}",
            f"{HEAD} m = ReduceMean<axes=[1]>(x) {node} p = Mul({order}) y = Conv(p, c)",
        ),
        batches=(1,),
    )
    assert free(cut.groups) == {"h": 6}


def test_an_expand_that_repeats_a_channel_in_space_leaves_one_where_it_says_one() -> None:
    cut = hold(
        net(
            IMAGE,
            f"{CONV}, int64[4] size = {{1,1,8,8}}, int64[4] full = {{1,6,8,8}}",
            f"{HEAD} g = GlobalAveragePool(h) e = Expand(g, size) f = Expand(e, full) p = Mul(h, f) y = Conv(p, c)",
        )
    )
    assert free(cut.groups) == {"h": 6}


def test_what_is_spread_to_the_shape_of_one_value_ties_it_to_the_other_that_it_meets() -> None:
    cut = hold(
        net(
            IMAGE,
            "float[6,3,3,3] a, float[6,3,1,1] b, float[4,6,1,1] c, float[4,6,1,1] d",
            f"{HEAD} i = Conv(x, b) m = ReduceMean<axes=[1]>(x) s = Shape(h) e = Expand(m, s) p = Mul(i, e) q = Conv(p, c)"
            " r = Conv(h, d) y = Add(q, r)",
        )
    )
    assert free(cut.groups) == {"h": 6}
    assert cut.groups["h"].producers == ("h", "i")


@pytest.mark.parametrize("fill", ["f = ConstantOfShape(size)", "s = Shape(h) f = ConstantOfShape(s)"])
def test_a_value_of_zeros_is_made_smaller_where_it_meets_channels(fill: str) -> None:
    cut = hold(
        net(
            "(float[1,3,8,8] x) => (float[1,4,8,8] y)",
            f"{CONV}, int64[4] size = {{1,6,8,8}}",
            f"{HEAD} {fill} g = Greater(h, f) w = Where(g, h, f) y = Conv(w, c)",
        ),
        batches=(1,),
    )
    assert free(cut.groups) == {"h": 6}


def test_a_choice_between_two_streams_ties_them() -> None:
    cut = hold(
        net(
            IMAGE,
            "float[6,3,3,3] a, float[6,3,1,1] b, float[4,6,1,1] c, float zero = {0.0}, float[6,1,1] other",
            f"{HEAD} i = Conv(x, b) g = Less(h, zero) w = Where(g, h, i) v = Where(g, w, other) y = Conv(v, c)",
        )
    )
    assert free(cut.groups) == {"h": 6}
    assert cut.groups["h"].producers == ("h", "i")
    assert ("other", 0) in axes(cut.groups["h"])


def test_limits_per_channel_made_of_min_and_max_are_cut_along() -> None:
    """What cross-layer equalisation leaves of a ReLU6: a minimum with one bound per channel."""
    cut = hold(
        net(
            IMAGE,
            f"{CONV}, float[6,1,1] high, float[1,6,1,1] low",
            f"{HEAD} r = Max(h, low) s = Min(r, high) y = Conv(s, c)",
        )
    )
    assert {("high", 0), ("low", 1)} <= axes(cut.groups["h"])


def test_channels_go_through_half_precision_and_back() -> None:
    cut = hold(net(IMAGE, CONV, f"{HEAD} d = Cast<to=11>(h) e = Sigmoid(d) f = Cast<to=1>(e) y = Conv(f, c)"))
    assert free(cut.groups) == {"h": 6}


# --- counting --------------------------------------------------------------------------------------------------------
def test_a_shape_taken_as_it_is_follows_the_channels() -> None:
    cut = hold(
        net(
            IMAGE,
            f"{CONV}, int64[3] flat = {{0,6,-1}}",
            f"{HEAD} f = Reshape(h, flat) r = Relu(f) s = Shape(h) b = Reshape(r, s) y = Conv(b, c)",
        )
    )
    assert free(cut.groups) == {"h": 6}
    assert [n.op for n in cut.pruned.graph.nodes] == ["Conv", "Reshape", "Relu", "Shape", "Reshape", "Conv"]


def test_a_shuffle_whose_sizes_are_computed_from_the_channels_gets_them_stored() -> None:
    """`x.view(n, g, c // g, h, w).transpose(1, 2).reshape(n, c, h, w)`, exported with every size computed."""
    cut = hold_as_run(
        net(
            IMAGE,
            f"{CONV}, int64[1] n0 = {{0}}, int64[1] n1 = {{1}}, int64[1] n2 = {{2}}, int64[1] n3 = {{3}}, int64[1] g = {{2}},"
            " int64[1] minus = {-1}",
            f"{HEAD} s = Shape(h) b = Gather(s, n0) ch = Gather(s, n1) hh = Gather(s, n2) ww = Gather(s, n3) cg = Div(ch, g)"
            " one = Concat<axis=0>(b, g, cg, hh, ww) r = Reshape(h, one) t = Transpose<perm=[0,2,1,3,4]>(r)"
            " two = Concat<axis=0>(b, minus, hh, ww) k = Reshape(t, two) y = Conv(k, c)",
        )
    )
    assert free(cut.groups) == {"h": 3}


def test_a_number_of_channels_that_becomes_another_size_blocks_them() -> None:
    text = net(
        "(float[1,3,8,8] x, float[1,36] z) => (float[1,4,8,8] y, float[u,v] w)",
        f"{CONV}, int64 n1 = {{1}}, int64[1] flat = {{0}}, int64[1] rest = {{-1}}",
        f"{HEAD} [size] s = Shape(h) ch = Gather(s, n1) cu = Unsqueeze(ch, flat) t = Concat<axis=0>(cu, rest)"
        " w = Reshape(z, t) y = Conv(h, c)",
    )
    assert stays(text)["h"] == "Shape 'size' reads the number of channels"


def test_a_computed_target_of_two_reshapes_is_copied_for_what_they_then_need() -> None:
    text = net(
        "(float[N,3,8,8] x) => (float[N,4,8,8] y)",
        f"{CONV}, int64[1] n0 = {{0}}, int64[3] rest = {{6,8,8}}, float[6,3,3,3] d",
        f"{HEAD} i = Conv<pads=[1,1,1,1]>(x, d) s = Shape(h) b = Gather(s, n0) t = Concat<axis=0>(b, rest)"
        " [one] r = Reshape(h, t) [two] v = Reshape(i, t) m = Mul(r, v) y = Conv(m, c)",
    )
    cut = hold(text)
    assert free(cut.groups) == {"h": 6}
    targets = [n.inputs[1].name for n in cut.pruned.graph.nodes if n.op == "Reshape"]
    assert targets[0] != targets[1]


def test_a_computed_target_that_another_reshape_reads_stays_for_that_one() -> None:
    text = net(
        "(float[N,3,8,8] x, float[N,6,4,16] z) => (float[N,4,8,8] y, float[u,v,w,q] w)",
        f"{CONV}, int64[1] n0 = {{0}}, int64[3] rest = {{6,8,8}}",
        f"{HEAD} s = Shape(h) b = Gather(s, n0) t = Concat<axis=0>(b, rest) r = Reshape(h, t) w = Reshape(z, t)"
        " y = Conv(r, c)",
    )
    assert free(hold(text).groups) == {"h": 6}


def test_a_shape_that_is_counted_in_full_blocks() -> None:
    text = net(IMAGE, CONV, f"{HEAD} [size] s = Size(h) f = Cast<to=1>(s) d = Div(h, f) y = Conv(d, c)")
    assert stays(text)["h"] == "Shape 'size' reads the number of channels"


def test_the_shape_of_a_stored_tensor_keeps_it_whole() -> None:
    text = net(
        "(float[N,3,8,8] x) => (float[N,4,8,8] y, int64[4] s)",
        CONV,
        f"{HEAD} [size] s = Shape(a) y = Conv(h, c)",
    )
    assert stays(text)["h"] == "Shape 'size' reads its size"
