"""Transposed convolutions, pixel moves and resizing: decoders and upsamplers lose channels like everything else."""

from __future__ import annotations

import pytest

from onnxcomp.analysis.channels import channel_groups, default_shapes
from onnxcomp.ir.convert import convert_opset
from onnxcomp.ir.parse import parse_model
from tests.support.channels import IMAGE, axes, free, hold, left, stays, stored
from tests.support.text import net

WIDE = "(float[N,3,8,8] x) => (float[N,4,16,16] y)"


# --- transposed convolutions -----------------------------------------------------------------------------------------
def test_a_transposed_convolution_is_cut_along_both_axes_of_its_swapped_weight() -> None:
    cut = hold(
        net(
            WIDE,
            "float[6,3,3,3] a, float[6,5,2,2] t, float[5] q, float[4,5,1,1] b",
            "h = Conv<pads=[1,1,1,1]>(x, a) r = Relu(h) i = ConvTranspose<strides=[2,2]>(r, t, q) s = Sigmoid(i)"
            " y = Conv(s, b)",
        )
    )
    assert free(cut.groups) == {"h": 6, "i": 5}
    assert axes(cut.groups["h"]) == {("a", 0), ("t", 0)}
    assert axes(cut.groups["i"]) == {("t", 1), ("q", 0), ("b", 1)}
    assert stored(cut, "t") == (left(cut, "h"), left(cut, "i"), 2, 2)


def test_the_blocks_of_a_grouped_transposed_convolution_lose_the_same_positions() -> None:
    cut = hold(
        net(
            WIDE,
            "float[6,3,3,3] a, float[6,4,2,2] t, float[8] q, float[4,8,1,1] b",
            "h = Conv<pads=[1,1,1,1]>(x, a) r = Relu(h) i = ConvTranspose<strides=[2,2], group=2>(r, t, q) y = Conv(i, b)",
        )
    )
    assert free(cut.groups) == {"h": 3, "i": 4}
    assert stored(cut, "t") == (2 * left(cut, "h"), left(cut, "i"), 2, 2)
    assert stored(cut, "q") == (2 * left(cut, "i"),)


@pytest.mark.parametrize("multiplier", [1, 2])
def test_a_depthwise_transposed_convolution_goes_with_its_channel(multiplier: int) -> None:
    cut = hold(
        net(
            WIDE,
            f"float[6,3,3,3] a, float[6,{multiplier},2,2] t, float[{6 * multiplier}] q, float[4,{6 * multiplier},1,1] b",
            "h = Conv<pads=[1,1,1,1]>(x, a) i = ConvTranspose<strides=[2,2], group=6>(h, t, q) y = Conv(i, b)",
        )
    )
    assert free(cut.groups) == {"h": 6}
    (node,) = (n for n in cut.pruned.graph.nodes if n.op == "ConvTranspose")
    assert node.attrs["group"] == left(cut, "h")


def test_the_last_transposed_convolution_keeps_the_channels_of_the_output() -> None:
    cut = hold(
        net(
            WIDE,
            "float[6,3,3,3] a, float[6,4,2,2] t",
            "h = Conv<pads=[1,1,1,1]>(x, a) y = ConvTranspose<strides=[2,2]>(h, t)",
        )
    )
    assert free(cut.groups) == {"h": 6}
    assert stays(cut.pruned)["y"] == "it reaches the graph output 'y'"


def test_an_encoder_and_its_decoder_share_the_channels_that_are_concatenated() -> None:
    cut = hold(
        net(
            IMAGE,
            "float[6,3,3,3] a, float[8,6,2,2] b, float[8,5,2,2] t, float[4,11,3,3] c",
            "h = Conv<pads=[1,1,1,1]>(x, a) r = Relu(h) i = Conv<strides=[2,2]>(r, b) s = Relu(i)"
            " j = ConvTranspose<strides=[2,2]>(s, t) k = Concat<axis=1>(r, j) y = Conv<pads=[1,1,1,1]>(k, c)",
        )
    )
    assert free(cut.groups) == {"h": 6, "i": 8, "j": 5}
    assert cut.groups["h"].consumers == ("i", "y")


# --- channels that become pixels -------------------------------------------------------------------------------------
@pytest.mark.parametrize(("mode", "tied"), [("DCR", [0, 1, 2] * 4), ("CRD", [0] * 4 + [1] * 4 + [2] * 4)])
def test_the_channels_that_make_one_larger_one_go_together(mode: str, tied: list[int]) -> None:
    cut = hold(
        net(
            WIDE,
            "float[12,3,3,3] a, float[4,3,1,1] b",
            f'h = Conv<pads=[1,1,1,1]>(x, a) d = DepthToSpace<blocksize=2, mode="{mode}">(h) y = Conv(d, b)',
        )
    )
    assert free(cut.groups) == {"h": 3}
    (member,) = (m for m in cut.groups["h"].members if m.name == "a")
    assert member.units.tolist() == tied


@pytest.mark.parametrize(
    ("split", "order"),
    [("1,3,2,2,8,8", "0,1,4,2,5,3"), ("1,2,2,3,8,8", "0,3,4,1,5,2")],
    ids=["as-CRD", "as-DCR"],
)
def test_a_pixel_shuffle_in_parts_is_cut_like_the_operator(split: str, order: str) -> None:
    cut = hold(
        net(
            "(float[1,3,8,8] x) => (float[1,4,16,16] y)",
            f"float[12,3,3,3] a, float[4,3,1,1] b, int64[6] split = {{{split}}}, int64[4] back = {{1,3,16,16}}",
            f"h = Conv<pads=[1,1,1,1]>(x, a) r = Reshape(h, split) t = Transpose<perm=[{order}]>(r)"
            " d = Reshape(t, back) y = Conv(d, b)",
        ),
        batches=(1,),
    )
    assert free(cut.groups) == {"h": 3}


def test_space_to_depth_hands_every_channel_out_once_for_each_pixel() -> None:
    cut = hold(
        net(
            "(float[N,3,8,8] x) => (float[N,4,4,4] y)",
            "float[5,3,3,3] a, float[4,20,1,1] b",
            "h = Conv<pads=[1,1,1,1]>(x, a) s = SpaceToDepth<blocksize=2>(h) y = Conv(s, b)",
        )
    )
    assert free(cut.groups) == {"h": 5}
    assert stored(cut, "b") == (4, 4 * left(cut, "h"), 1, 1)


def test_depth_to_space_of_what_space_to_depth_made_ties_nothing_more() -> None:
    cut = hold(
        net(
            IMAGE,
            "float[5,3,3,3] a, float[4,5,1,1] b",
            "h = Conv<pads=[1,1,1,1]>(x, a) s = SpaceToDepth<blocksize=2>(h) d = DepthToSpace<blocksize=2>(s) y = Conv(d, b)",
        )
    )
    assert free(cut.groups) == {"h": 5}


# --- resizing --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("operands", "more", "opset"),
    [
        ("r, , scales", "float[4] scales = {1.0, 1.0, 2.0, 2.0}", 17),
        ("r, , , sizes", "int64[4] sizes = {1, 6, 16, 16}", 17),
        ("r, , halves", "float[2] halves = {2.0, 2.0}", 18),
        ("r, , , sizes", "int64[2] sizes = {16, 16}", 18),
    ],
    ids=["scales", "sizes", "scales-of-space", "sizes-of-space"],
)
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_resizing_of_space_lets_channels_through_and_gets_new_sizes(
    operands: str, more: str, opset: int, mode: str
) -> None:
    axes = "axes=[2,3], " if opset == 18 else ""
    cut = hold(
        net(
            "(float[1,3,8,8] x) => (float[1,4,16,16] y)",
            f"float[6,3,3,3] a, float[4,6,1,1] b, {more}",
            f'h = Conv<pads=[1,1,1,1]>(x, a) r = Relu(h) u = Resize<{axes}mode="{mode}">({operands}) y = Conv(u, b)',
            opset,
        ),
        batches=(1,),
    )
    assert free(cut.groups) == {"h": 6}


def test_sizes_that_begin_with_those_of_another_value_follow_it() -> None:
    """What torch writes for `interpolate(x, size=skip.shape[2:])` with a free batch."""
    cut = hold(
        net(
            "(float[N,3,8,8] x) => (float[N,4,16,16] y)",
            "float[6,3,3,3] a, float[4,6,1,1] b, int64[1] none = {0}, int64[1] two = {2}, int64[2] space = {16,16}",
            "h = Conv<pads=[1,1,1,1]>(x, a) s = Shape(h) f = Slice(s, none, two) z = Concat<axis=0>(f, space)"
            ' u = Resize<mode="nearest">(h, , , z) y = Conv(u, b)',
        )
    )
    assert free(cut.groups) == {"h": 6}


@pytest.mark.parametrize(
    ("call", "size", "reason"),
    [
        ("u = Resize(h, , scales)", 6, "resizes the axis of the channels"),
        (
            'u = Resize<coordinate_transformation_mode="tf_crop_and_resize">(h, roi, ones)',
            8,
            "may take a part of the axis of the channels",
        ),
    ],
)
def test_resizing_over_the_channels_blocks_them(call: str, size: int, reason: str) -> None:
    found = stays(
        net(
            "(float[1,3,8,8] x) => (float[1,4,8,8] y)",
            f"float[8,3,1,1] a, float[4,{size},1,1] b, float[4] ones = {{1.0,1.0,1.0,1.0}},"
            " float[4] scales = {1.0,0.75,1.0,1.0}, float[8] roi = {0.0,0.25,0.0,0.0,1.0,1.0,1.0,1.0}",
            f"h = Conv(x, a) {call} y = Conv(u, b)",
        )
    )
    assert found["h"] == f"Resize 'u' {reason}"


def test_cropping_space_leaves_the_channels_free() -> None:
    cut = hold(
        net(
            "(float[1,3,8,8] x) => (float[1,4,12,12] y)",
            "float[8,3,1,1] a, float[4,8,1,1] b, float[4] grow = {1.0,1.0,1.5,1.5},"
            " float[8] roi = {0.0,0.0,0.1,0.1,1.0,1.0,0.9,0.9}",
            'h = Conv(x, a) u = Resize<mode="linear",coordinate_transformation_mode="tf_crop_and_resize">(h, roi, grow)'
            " y = Conv(u, b)",
            13,
        )
    )
    assert free(cut.groups) == {"h": 8}


def test_scales_that_are_computed_block() -> None:
    model = parse_model(
        net(
            "(float[1,3,8,8] x, int64[4] n) => (float[1,4,8,8] y)",
            "float[6,3,3,3] a, float[4,6,1,1] b",
            "h = Conv<pads=[1,1,1,1]>(x, a) s = Cast<to=1>(n) u = Resize(h, , s) y = Conv(u, b)",
        )
    )
    groups = channel_groups(model, {**default_shapes(model), "u": (1, 6, 8, 8)})
    assert groups["h"].blocked == "Resize 'u' computes its scales; fold them first"


def test_reading_pixels_at_computed_places_lets_channels_through() -> None:
    cut = hold(
        net(
            "(float[N,3,8,8] x, float[N,4,4,2] grid) => (float[N,4,4,4] y)",
            "float[6,3,3,3] a, float[4,6,1,1] b",
            'h = Conv<pads=[1,1,1,1]>(x, a) g = GridSample<mode="bilinear">(h, grid) y = Conv(g, b)',
        ),
        regimes=("normal",),
    )
    assert free(cut.groups) == {"h": 6}


def test_an_upsample_of_an_old_file_is_cut_once_it_is_converted() -> None:
    old = parse_model(
        net(
            "(float[1,3,8,8] x) => (float[1,4,16,16] y)",
            "float[6,3,3,3] a, float[4,6,1,1] c, float[4] s = {1.0, 1.0, 2.0, 2.0}",
            'h = Conv<pads=[1,1,1,1]>(x, a) u = Upsample<mode="nearest">(h, s) y = Conv(u, c)',
            9,
        )
    )
    cut = hold(convert_opset(old, 17), batches=(1,))
    assert free(cut.groups) == {"h": 6}
