"""Structures at which other structural pruners were reported to break: each is cut, or stays for a reason."""

from __future__ import annotations

import pytest

from tests.support.channels import CLASSES, IMAGE, axes, free, hold, hold_as_run, left, stays, stored, units
from tests.support.text import net


# --- views -----------------------------------------------------------------------------------------------------------
def test_neurons_that_a_view_makes_into_pixels_before_a_transposed_convolution_go_together() -> None:
    """A generator: a vector becomes a small image, whose channels are blocks of neurons."""
    cut = hold(
        net(
            "(float[N,7] x) => (float[N,2,8,8] y)",
            "float[7,96] a, float[96] p, float[6,5,2,2] t, float[5,2,1,1] u, int64[4] image = {0,6,4,4}",
            "h = Gemm(x, a, p) r = Relu(h) v = Reshape(r, image) i = ConvTranspose<strides=[2,2]>(v, t) s = Relu(i)"
            " y = ConvTranspose(s, u)",
        )
    )
    assert free(cut.groups) == {"h": 6, "i": 5}
    assert stored(cut, "a") == (7, 16 * left(cut, "h"))


def test_a_view_that_computes_the_batch_leads_from_convolution_to_gemm() -> None:
    cut = hold(
        net(
            CLASSES,
            "float[6,3,3,3] a, float[384,5] b, int64[1] first = {0}, int64[1] one = {1}, int64[1] rest = {-1}",
            "h = Conv<pads=[1,1,1,1]>(x, a) s = Shape(h) n = Slice(s, first, one) t = Concat<axis=0>(n, rest)"
            " v = Reshape(h, t) y = Gemm(v, b)",
        )
    )
    assert free(cut.groups) == {"h": 6}


def test_a_value_that_is_unbound_along_its_channels_keeps_them() -> None:
    """`a, b = x.unbind(1)`: each part is one channel, and parts cannot run empty."""
    text = net(
        IMAGE,
        "float[2,3,3,3] a, float[4,1,1,1] b, int64[1] at = {1}",
        "h = Conv<pads=[1,1,1,1]>(x, a) p, q = Split<axis=1>(h) r = Squeeze(p, at) s = Squeeze(q, at) m = Mul(r, s)"
        " u = Unsqueeze(m, at) y = Conv(u, b)",
    )
    assert stays(text)["h"] == "its 2 channels can only go all together"


def test_a_chunk_into_gate_and_value_ties_the_halves() -> None:
    cut = hold(
        net(
            IMAGE,
            "float[12,3,3,3] a, float[4,6,1,1] b",
            "h = Conv<pads=[1,1,1,1]>(x, a) p, q = Split<axis=1>(h) g = Sigmoid(q) m = Mul(p, g) y = Conv(m, b)",
        )
    )
    assert units(cut.groups["h"], "a", 0) == [*range(6), *range(6)]


# --- concatenations and splits ---------------------------------------------------------------------------------------
def test_a_value_concatenated_with_itself_before_a_grouped_convolution_ties_nothing_more() -> None:
    cut = hold(
        net(
            IMAGE,
            "float[6,3,3,3] a, float[4,6,3,3] b",
            "h = Conv<pads=[1,1,1,1]>(x, a) k = Concat<axis=1>(h, h) y = Conv<group=2, pads=[1,1,1,1]>(k, b)",
        )
    )
    assert free(cut.groups) == {"h": 6}


def test_parts_of_unequal_size_before_a_grouped_convolution_lose_equally_many_of_each_block() -> None:
    """Blocks that do not end where the concatenated parts do."""
    cut = hold(
        net(
            IMAGE,
            "float[4,3,3,3] a, float[8,3,3,3] b, float[8,6,3,3] c, float[4,8,1,1] d",
            "h = Conv<pads=[1,1,1,1]>(x, a) i = Conv<pads=[1,1,1,1]>(x, b) k = Concat<axis=1>(h, i)"
            " j = Conv<group=2, pads=[1,1,1,1]>(k, c) y = Conv(j, d)",
        )
    )
    assert free(cut.groups)["h"] == 6
    assert cut.groups["h"].producers == ("h", "i")
    assert stored(cut, "c")[1] == left(cut, "h")


def test_a_block_that_reads_the_input_holds_the_same_positions_of_the_others() -> None:
    cut = hold(
        net(
            IMAGE,
            "float[5,3,3,3] a, float[8,4,3,3] c, float[4,8,1,1] d",
            "h = Conv<pads=[1,1,1,1]>(x, a) k = Concat<axis=1>(x, h) j = Conv<group=2, pads=[1,1,1,1]>(k, c) y = Conv(j, d)",
        )
    )
    assert cut.groups["h"].reasons == (None, "it meets a graph input")
    assert "j" in free(cut.groups)


def test_an_uneven_split_whose_parts_meet_again_is_cut_in_both() -> None:
    cut = hold(
        net(
            IMAGE,
            "float[9,3,3,3] a, float[6,3,1,1] b, float[4,6,1,1] c, int64[2] sizes = {3,6}",
            "h = Conv<pads=[1,1,1,1]>(x, a) p, q = Split<axis=1>(h, sizes) r = Conv(p, b) s = Add(q, r) y = Conv(s, c)",
        )
    )
    assert free(cut.groups) == {"h": 9}


# --- grouped, shuffled, depthwise ------------------------------------------------------------------------------------
def test_a_unit_of_a_shuffling_network_is_cut() -> None:
    """Split in two, work on one half, concatenate, shuffle: the second generation of shuffle networks."""
    cut = hold(
        net(
            "(float[N,3,8,8] x) => (float[N,4,8,8] y)",
            "float[8,3,3,3] a, float[6,4,1,1] b, float[6,1,3,3] d, float[4,6,1,1] e, float[4,8,1,1] c,"
            " int64[5] wide = {0,2,4,8,8}, int64[4] back = {0,8,8,8}",
            "h = Conv<pads=[1,1,1,1]>(x, a) p, q = Split<axis=1>(h) i = Conv(q, b) r = Relu(i)"
            " s = Conv<group=6, pads=[1,1,1,1]>(r, d) j = Conv(s, e) k = Concat<axis=1>(p, j) v = Reshape(k, wide)"
            " t = Transpose<perm=[0,2,1,3,4]>(v) w = Reshape(t, back) y = Conv(w, c)",
        )
    )
    assert free(cut.groups)["i"] == 6
    assert free(cut.groups)["h"] == 8


def test_a_shuffle_between_grouped_convolutions_is_cut() -> None:
    """Grouped, shuffled, depthwise, grouped: the first generation of shuffle networks."""
    cut = hold(
        net(
            IMAGE,
            "float[12,3,3,3] a, float[16,6,1,1] b, float[16,1,3,3] d, float[12,8,1,1] e, float[4,12,1,1] c,"
            " int64[5] wide = {0,2,8,8,8}, int64[4] back = {0,16,8,8}",
            "h = Conv<pads=[1,1,1,1]>(x, a) i = Conv<group=2>(h, b) r = Relu(i) v = Reshape(r, wide)"
            " t = Transpose<perm=[0,2,1,3,4]>(v) w = Reshape(t, back) j = Conv<group=16, pads=[1,1,1,1]>(w, d)"
            " k = Conv<group=2>(j, e) s = Add(k, h) y = Conv(s, c)",
        )
    )
    assert free(cut.groups) == {"h": 6, "i": 4}


def test_a_convolution_with_one_filter_per_group_is_not_taken_for_depthwise() -> None:
    cut = hold(
        net(
            IMAGE,
            "float[6,3,3,3] a, float[3,2,1,1] b, float[4,3,1,1] c",
            "h = Conv<pads=[1,1,1,1]>(x, a) i = Conv<group=3>(h, b) y = Conv(i, c)",
        )
    )
    assert free(cut.groups) == {"h": 2}
    assert cut.pruned.graph.constants["b"].values.shape == (3, left(cut, "h"), 1, 1)


# --- shared, several ends --------------------------------------------------------------------------------------------
def test_a_weight_shared_by_a_convolution_and_a_transposed_one_ties_both_of_its_axes() -> None:
    """Tied weights of an autoencoder: `[out, in]` for the one is `[in, out]` for the other."""
    cut = hold(
        net(
            IMAGE,
            "float[5,3,1,1] a, float[6,5,1,1] w, float[4,5,1,1] c",
            "h = Conv(x, a) i = Conv(h, w) r = Relu(i) j = ConvTranspose(r, w) s = Relu(j) y = Conv(s, c)",
        )
    )
    assert free(cut.groups) == {"h": 5, "i": 6}
    assert cut.groups["h"].producers == ("h", "j")
    assert stored(cut, "w") == (left(cut, "i"), left(cut, "h"), 1, 1)


def test_every_head_holds_its_own_channels_only() -> None:
    cut = hold(
        net(
            "(float[N,3,8,8] x) => (float[N,4,8,8] y, float[N,5] z, float[N,2,16,16] m)",
            "float[6,3,3,3] a, float[4,6,1,1] b, float[6,5] c, float[6,7,2,2] d, float[2,7,1,1] e",
            "h = Conv<pads=[1,1,1,1]>(x, a) r = Relu(h) y = Conv(r, b) g = ReduceMean<axes=[2,3], keepdims=0>(r)"
            " z = MatMul(g, c) [up] u = ConvTranspose<strides=[2,2]>(r, d) m = Conv(u, e)",
        )
    )
    assert free(cut.groups) == {"h": 6, "up": 7}
    assert len(cut.groups["h"].consumers) == 3


@pytest.mark.parametrize(
    ("pool", "opset"),
    [
        ("p = GlobalAveragePool(h) q = Flatten(p)", 17),
        ("q = ReduceMean<axes=[2,3], keepdims=0>(h)", 17),
        ("q = ReduceMean<axes=[-1,-2], keepdims=0>(h)", 17),
        ("p = ReduceMean<axes=[2,3]>(h) q = Squeeze(p, space)", 17),
        ("q = ReduceMean<keepdims=0>(h, space)", 18),
        ("p = ReduceSum<keepdims=1>(h, space) q = Flatten(p)", 18),
        ("p = GlobalMaxPool(h) q = Reshape(p, flat)", 17),
    ],
)
def test_every_way_to_pool_space_away_keeps_channels_apart(pool: str, opset: int) -> None:
    cut = hold(
        net(
            CLASSES,
            "float[6,3,3,3] a, float[6,5] c, int64[2] space = {2,3}, int64[2] flat = {0,-1}",
            f"h = Conv<pads=[1,1,1,1]>(x, a) {pool} y = Gemm(q, c)",
            opset,
        )
    )
    assert free(cut.groups) == {"h": 6}


def test_a_means_variance_gate_over_space_is_cut_per_channel() -> None:
    """An instance normalisation in parts: mean, difference, square, mean, root, all over space."""
    cut = hold(
        net(
            IMAGE,
            "float[6,3,3,3] a, float[4,6,1,1] c, float e = {0.1}, float two = {2.0}",
            "h = Conv<pads=[1,1,1,1]>(x, a) m = ReduceMean<axes=[2,3]>(h) d = Sub(h, m) q = Pow(d, two)"
            " v = ReduceMean<axes=[2,3]>(q) w = Add(v, e) o = Sqrt(w) n = Div(d, o) y = Conv(n, c)",
        )
    )
    assert free(cut.groups) == {"h": 6}


def test_sizes_taken_from_the_value_itself_at_every_turn_are_followed() -> None:
    """A flatten over space and back, every size read at run time."""
    cut = hold_as_run(
        net(
            IMAGE,
            "float[6,3,3,3] a, float[4,6,1,1] c, int64[1] n0 = {0}, int64[1] n1 = {1}, int64[1] n2 = {2}, int64[1] n3 = {3}",
            "h = Conv<pads=[1,1,1,1]>(x, a) s = Shape(h) b = Gather(s, n0) ch = Gather(s, n1) hh = Gather(s, n2)"
            " ww = Gather(s, n3) hw = Mul(hh, ww) f = Concat<axis=0>(b, ch, hw) r = Reshape(h, f) g = Relu(r)"
            " t = Concat<axis=0>(b, ch, hh, ww) k = Reshape(g, t) y = Conv(k, c)",
        )
    )
    assert free(cut.groups) == {"h": 6}
    assert axes(cut.groups["h"]) == {("a", 0), ("c", 1)}
