"""Channel groups of the structures convolutional classifiers are made of, each held against the masked reference."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.analysis.channels import channel_groups
from onnxcomp.ir.parse import parse_model
from onnxcomp.testing import check_cut
from tests.support.channels import CLASSES, IMAGE, OUTPUT, axes, free, units
from tests.support.text import net


# --- producers and consumers -----------------------------------------------------------------------------------------
def test_a_plain_chain_has_one_group_per_convolution_and_its_last_one_stays() -> None:
    cut = check_cut(
        net(
            IMAGE,
            "float[8,3,3,3] a, float[8] p, float[6,8,3,3] b, float[4,6,1,1] c, float[4] q",
            "h = Conv<pads=[1,1,1,1]>(x, a, p) r = Relu(h) i = Conv<pads=[1,1,1,1]>(r, b) s = Tanh(i) y = Conv(s, c, q)",
        )
    )
    first, second, last = cut.groups
    assert [(g.name, g.units) for g in cut.groups] == [("h", 8), ("i", 6), ("y", 4)]
    assert axes(first) == {("a", 0), ("p", 0), ("b", 1)}
    assert (first.producers, first.consumers, first.coupled) == (("h",), ("i",), False)
    assert (second.producers, second.consumers) == (("i",), ("y",))
    assert (first.blocked, second.blocked, last.blocked) == (None, None, OUTPUT)
    assert last.reasons == (OUTPUT,) * 4


@pytest.mark.parametrize("dims", ["16", "16,1", "16,1,1,1"])
def test_convolutions_of_any_number_of_spatial_axes_are_cut(dims: str) -> None:
    rank = dims.count(",") + 1
    ones = ",".join("1" * rank)
    cut = check_cut(
        net(
            f"(float[N,2,{dims}] x) => (float[N,3,{dims}] y)",
            f"float[6,2,{ones}] a, float[3,6,{ones}] b",
            "h = Conv(x, a) r = Sigmoid(h) y = Conv(r, b)",
        )
    )
    assert free(cut.groups) == {"h": 6}


@pytest.mark.parametrize("trans", [0, 1])
@pytest.mark.parametrize("bias", ["1,7", "7", "1", "", None])
def test_neurons_of_gemm_go_with_their_biases_in_every_layout(trans: int, bias: str | None) -> None:
    first, second = ("7,6", "5,7") if trans else ("6,7", "7,5")
    stored = "" if bias is None else f", float{f'[{bias}]' if bias else ''} q"
    cut = check_cut(
        net(
            "(float[N,6] x) => (float[N,5] y)",
            f"float[{first}] a, float[{second}] b{stored}",
            f"h = Gemm<transB={trans}, alpha=0.5>(x, a{'' if bias is None else ', q'})"
            f" r = Sigmoid(h) y = Gemm<transB={trans}>(r, b)",
        )
    )
    assert free(cut.groups) == {"h": 7}
    follows = {("q", bias.count(","))} if bias in ("1,7", "7") else set()
    assert axes(cut.groups["h"]) == {("a", 1 - trans), ("b", trans)} | follows
    kept = int(cut.keep["h"].sum())
    assert cut.pruned.graph.constants["a"].values.shape == ((kept, 6) if trans else (6, kept))


def test_neurons_of_matmul_with_the_constant_on_the_right_go() -> None:
    cut = check_cut(
        net(
            "(float[N,5,6] x) => (float[N,5,3] y)",
            "float[6,8] a, float[8] p, float[8,3] b",
            "h = MatMul(x, a) i = Add(p, h) r = Tanh(i) y = MatMul(r, b)",
        )
    )
    assert axes(cut.groups["h"]) == {("a", 1), ("p", 0), ("b", 0)}
    assert not cut.groups["h"].coupled


def test_rows_of_matmul_with_the_constant_on_the_left_go() -> None:
    cut = check_cut(
        net(
            "(float[N,6,5] x) => (float[N,3,5] y)",
            "float[8,6] a, float[8,1] p, float[3,8] b",
            "h = MatMul(a, x) i = Add(h, p) r = Tanh(i) y = MatMul(b, r)",
        )
    )
    assert axes(cut.groups["h"]) == {("a", 0), ("p", 0), ("b", 1)}


def test_a_transpose_to_channels_last_leads_to_a_matmul() -> None:
    cut = check_cut(
        net(
            "(float[N,3,8,8] x) => (float[N,8,8,4] y)",
            "float[6,3,3,3] a, float[6,4] b, float[4] q",
            "h = Conv<pads=[1,1,1,1]>(x, a) t = Transpose<perm=[0,2,3,1]>(h) m = MatMul(t, b) y = Add(m, q)",
        )
    )
    assert free(cut.groups) == {"h": 6}
    assert axes(cut.groups["h"]) == {("a", 0), ("b", 0)}


# --- streams ---------------------------------------------------------------------------------------------------------
def test_a_residual_stream_is_one_coupled_group_and_the_inner_channels_another() -> None:
    cut = check_cut(
        net(
            IMAGE,
            "float[6,3,3,3] a, float[5,6,3,3] b, float[6,5,3,3] c, float[4,6,1,1] d",
            "h = Conv<pads=[1,1,1,1]>(x, a) r = Relu(h) i = Conv<pads=[1,1,1,1]>(r, b) s = Relu(i)"
            " j = Conv<pads=[1,1,1,1]>(s, c) t = Add(j, r) u = Relu(t) y = Conv(u, d)",
        )
    )
    stream, inner = cut.groups["h"], cut.groups["i"]
    assert (stream.units, stream.coupled, stream.producers) == (6, True, ("h", "j"))
    assert stream.consumers == ("i", "y")
    assert (inner.units, inner.coupled, inner.producers) == (5, False, ("i",))


def test_an_option_a_shortcut_ties_the_channels_that_meet_and_pads_the_others() -> None:
    cut = check_cut(
        net(
            CLASSES,
            "float[4,3,3,3] a, float[8,4,3,3] b, float[5,8] c,"
            " int64[2] from = {0,0}, int64[2] to = {8,8}, int64[2] at = {2,3}, int64[2] by = {2,2},"
            " int64[8] pads = {0,2,0,0,0,2,0,0}",
            "h = Conv<pads=[1,1,1,1]>(x, a) r = Relu(h) j = Conv<pads=[1,1,1,1], strides=[2,2]>(r, b)"
            " s = Slice(r, from, to, at, by) p = Pad(s, pads) t = Add(p, j) u = Relu(t)"
            " g = GlobalAveragePool(u) f = Flatten(g) y = Gemm<transB=1>(f, c)",
        )
    )
    (group,) = (g for g in cut.groups if not g.blocked)
    assert (group.units, group.producers, group.coupled) == (8, ("h", "j"), True)
    assert units(group, "a", 0) == units(group, "b", 0)[2:6]
    kept = cut.keep["h"][units(group, "b", 0)]
    pads = next(n for n in cut.pruned.graph.nodes if n.op == "Pad").constant(1)
    assert pads is not None
    assert pads.tolist() == [0, kept[:2].sum(), 0, 0, 0, kept[6:].sum(), 0, 0]


def test_a_projection_shortcut_ties_its_convolution_to_the_stream() -> None:
    cut = check_cut(
        net(
            IMAGE,
            "float[6,3,3,3] a, float[6,3,1,1] b, float[4,6,1,1] c",
            "h = Conv<pads=[1,1,1,1]>(x, a) i = Conv(x, b) t = Sub(h, i) y = Conv(t, c)",
        )
    )
    assert cut.groups["h"].producers == ("h", "i")
    assert cut.groups["h"].coupled


# --- concat and split ------------------------------------------------------------------------------------------------
def test_a_densenet_concat_keeps_its_parts_apart() -> None:
    cut = check_cut(
        net(
            IMAGE,
            "float[4,3,3,3] a, float[3,4,3,3] b, float[5,7,3,3] c, float[4,12,1,1] d",
            "h = Conv<pads=[1,1,1,1]>(x, a) i = Conv<pads=[1,1,1,1]>(h, b) k = Concat<axis=1>(h, i) r = Sigmoid(k)"
            " j = Conv<pads=[1,1,1,1]>(r, c) l = Concat<axis=-3>(r, j) y = Conv(l, d)",
        )
    )
    assert free(cut.groups) == {"h": 4, "i": 3, "j": 5}
    assert units(cut.groups["i"], "d", 1) == [-1] * 4 + [0, 1, 2] + [-1] * 5
    assert cut.groups["h"].consumers == ("i", "j", "y")


def test_a_value_concatenated_with_itself_is_cut_in_both_places() -> None:
    cut = check_cut(
        net(
            IMAGE,
            "float[5,3,3,3] a, float[4,10,1,1] b",
            "h = Conv<pads=[1,1,1,1]>(x, a) k = Concat<axis=1>(h, h) y = Conv(k, b)",
        )
    )
    assert units(cut.groups["h"], "b", 1) == [0, 1, 2, 3, 4] * 2


@pytest.mark.parametrize(
    ("opset", "sizes", "attribute"),
    [
        (17, [4, 4], ""),
        (17, [2, 6], ""),
        (18, [4, 4], "num_outputs=2, "),
        (18, [5, 3], ""),
        (17, [4, 4], "default"),
    ],
)
def test_both_halves_of_a_split_keep_a_channel_and_get_new_sizes(
    opset: int, sizes: list[int], attribute: str
) -> None:
    given = "" if attribute else ", split"
    stored = "" if attribute else f", int64[2] split = {{{sizes[0]},{sizes[1]}}}"
    cut = check_cut(
        net(
            IMAGE,
            f"float[8,3,3,3] a, float[4,{sizes[0]},1,1] b, float[4,{sizes[1]},1,1] c{stored}",
            "h = Conv<pads=[1,1,1,1]>(x, a)"
            f" p, q = Split<{attribute.replace('default', '')}axis=1>(h{given})"
            " i = Conv(p, b) j = Conv(q, c) y = Add(i, j)",
            opset,
        )
    )
    group = cut.groups["h"]
    assert free(cut.groups) == {"h": 8}
    assert sorted(len(span) for span in group.spans) == sorted([*sizes, 8])
    split = next(n for n in cut.pruned.graph.nodes if n.op == "Split")
    kept = cut.keep["h"]
    wanted = [int(kept[: sizes[0]].sum()), int(kept[sizes[0] :].sum())]
    assert np.asarray(split.constant(1)).tolist() == wanted
    assert "num_outputs" not in split.attrs


def test_a_split_into_a_gate_and_a_value_ties_the_halves() -> None:
    cut = check_cut(
        net(
            IMAGE,
            "float[8,3,3,3] a, float[4,4,1,1] b",
            "h = Conv<pads=[1,1,1,1]>(x, a) p, q = Split<axis=1>(h) s = Sigmoid(p) m = Mul(s, q) y = Conv(m, b)",
        )
    )
    assert units(cut.groups["h"], "a", 0) == [0, 1, 2, 3] * 2
    assert not cut.groups["h"].coupled


# --- grouped and depthwise -------------------------------------------------------------------------------------------
def test_the_blocks_of_a_grouped_convolution_lose_the_same_positions() -> None:
    cut = check_cut(
        net(
            IMAGE,
            "float[8,3,3,3] a, float[6,4,3,3] b, float[6] q, float[4,6,1,1] c",
            "h = Conv<pads=[1,1,1,1]>(x, a) r = Relu(h) i = Conv<pads=[1,1,1,1], group=2>(r, b, q) s = Relu(i)"
            " y = Conv(s, c)",
        )
    )
    assert free(cut.groups) == {"h": 4, "i": 3}
    assert units(cut.groups["h"], "a", 0) == [0, 1, 2, 3] * 2
    assert units(cut.groups["h"], "b", 1) == [0, 1, 2, 3]
    assert units(cut.groups["i"], "c", 1) == [0, 1, 2] * 2
    assert next(n for n in cut.pruned.graph.nodes if n.name == "i").attrs["group"] == 2


@pytest.mark.parametrize("multiplier", [1, 2])
def test_the_filters_of_a_depthwise_convolution_go_with_their_channel(multiplier: int) -> None:
    wide = 6 * multiplier
    cut = check_cut(
        net(
            IMAGE,
            f"float[6,3,1,1] a, float[{wide},1,3,3] b, float[{wide}] q, float[4,{wide},1,1] c",
            "h = Conv(x, a) r = Relu(h) i = Conv<pads=[1,1,1,1], group=6>(r, b, q) s = HardSigmoid(i) y = Conv(s, c)",
        )
    )
    group = cut.groups["h"]
    assert free(cut.groups) == {"h": 6}
    assert group.producers == ("h",)
    assert group.consumers == ("y",)
    assert units(group, "b", 0) == np.repeat(range(6), multiplier).tolist()
    kept = int(cut.keep["h"].sum())
    node = next(n for n in cut.pruned.graph.nodes if n.name == "i")
    assert node.attrs["group"] == kept
    assert np.asarray(node.constant(1)).shape == (kept * multiplier, 1, 3, 3)


def test_a_convolution_with_one_output_channel_is_not_taken_for_depthwise() -> None:
    cut = check_cut(
        net(
            IMAGE,
            "float[6,3,1,1] a, float[1,6,3,3] b, float[4,1,1,1] c",
            "h = Conv(x, a) i = Conv<pads=[1,1,1,1]>(h, b) y = Conv(i, c)",
        )
    )
    assert free(cut.groups) == {"h": 6}
    assert cut.groups["i"].blocked == "it is the only channel of a value"


def test_channel_shuffle_ties_what_the_shuffle_interleaves() -> None:
    cut = check_cut(
        net(
            IMAGE,
            "float[8,3,3,3] a, float[8,1,3,3] b, float[4,8,1,1] c,"
            " int64[5] wide = {0,2,4,8,8}, int64[4] narrow = {-1,8,8,8}",
            "h = Conv<pads=[1,1,1,1]>(x, a) r = Reshape(h, wide) t = Transpose<perm=[0,2,1,3,4]>(r)"
            " s = Reshape(t, narrow) i = Conv<pads=[1,1,1,1], group=8>(s, b) y = Conv(i, c)",
        )
    )
    assert free(cut.groups) == {"h": 4}
    assert units(cut.groups["h"], "a", 0) == [0, 1, 2, 3] * 2
    assert units(cut.groups["h"], "c", 1) == [0, 0, 1, 1, 2, 2, 3, 3]
    shapes = [np.asarray(n.constant(1)).tolist() for n in cut.pruned.graph.nodes if n.op == "Reshape"]
    kept = int(cut.keep["h"].sum())
    assert shapes == [[0, 2, kept, 8, 8], [-1, 2 * kept, 8, 8]]


# --- shared tensors --------------------------------------------------------------------------------------------------
def test_a_weight_read_by_two_convolutions_stays_one_tensor_and_ties_their_channels() -> None:
    cut = check_cut(
        net(
            IMAGE,
            "float[6,3,1,1] a, float[6,6,1,1] w, float[4,6,1,1] b",
            "h = Conv(x, a) i = Conv(h, w) r = Tanh(i) j = Conv(r, w) y = Conv(j, b)",
        )
    )
    assert free(cut.groups) == {"h": 6}, "what w makes first is what w reads next"
    assert cut.groups["h"].producers == ("h", "i", "j")
    kept = int(cut.keep["h"].sum())
    assert cut.pruned.graph.constants["w"].values.shape == (kept, kept, 1, 1)


def test_a_bias_read_by_two_convolutions_ties_their_filters() -> None:
    cut = check_cut(
        net(
            IMAGE,
            "float[6,3,1,1] a, float[6,3,1,1] b, float[6] q, float[4,6,1,1] c, float[4,6,1,1] d",
            "h = Conv(x, a, q) i = Conv(x, b, q) r = Conv(h, c) s = Conv(i, d) y = Add(r, s)",
        )
    )
    assert free(cut.groups) == {"h": 6}
    assert cut.groups["h"].producers == ("h", "i")
    assert not cut.groups["h"].coupled


def test_a_bias_read_by_two_gemms_ties_their_neurons() -> None:
    cut = check_cut(
        net(
            "(float[N,6] x) => (float[N,5] y)",
            "float[6,7] a, float[6,7] b, float[7] q, float[7,5] c, float[7,5] d",
            "h = Gemm(x, a, q) i = Gemm(x, b, q) r = MatMul(h, c) s = MatMul(i, d) y = Add(r, s)",
        )
    )
    assert free(cut.groups) == {"h": 7}


def test_groups_without_a_mask_stay_whole() -> None:
    model = parse_model(
        net(
            IMAGE,
            "float[8,3,1,1] a, float[6,8,1,1] b, float[4,6,1,1] c",
            "h = Conv(x, a) i = Conv(h, b) y = Conv(i, c)",
        )
    )
    groups = channel_groups(model)
    keep = np.arange(8) % 2 == 0
    cut = check_cut(model, {groups["h"].name: keep})
    shapes = {name: c.values.shape for name, c in cut.pruned.graph.constants.items()}
    assert shapes == {"a": (4, 3, 1, 1), "b": (6, 4, 1, 1), "c": (4, 6, 1, 1)}
    np.testing.assert_array_equal(
        cut.pruned.graph.constants["a"].values, model.graph.constants["a"].values[keep]
    )
