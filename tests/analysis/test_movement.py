"""Channel groups through operators that compute element by element, reduce or move data, against the masked reference."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.testing import check_cut
from tests.support.channels import CLASSES, IMAGE, axes, free, units
from tests.support.text import net


# --- element by element ----------------------------------------------------------------------------------------------
def test_squeeze_and_excite_ties_the_gate_to_its_channels_though_its_zero_is_not_zero() -> None:
    cut = check_cut(
        net(
            IMAGE,
            "float[6,3,3,3] a, float[3,6,1,1] b, float[3] p, float[6,3,1,1] c, float[6] q, float[4,6,1,1] d",
            "h = Conv<pads=[1,1,1,1]>(x, a) r = HardSwish(h) g = GlobalAveragePool(r) i = Conv(g, b, p) s = Relu(i)"
            " j = Conv(s, c, q) k = HardSigmoid(j) m = Mul(r, k) y = Conv(m, d)",
        )
    )
    assert free(cut.groups) == {"h": 6, "i": 3}
    assert cut.groups["h"].producers == ("h", "j")
    assert cut.groups["h"].consumers == ("i", "y")
    assert not cut.groups["h"].coupled, "a gate multiplies; nothing is added to a stream"


@pytest.mark.parametrize(
    ("slope", "follows"), [("6,1,1", True), ("1", False), ("1,6,1,1", True), ("6,8,8", True)]
)
def test_the_slopes_of_prelu_go_with_their_channels(slope: str, follows: bool) -> None:
    cut = check_cut(
        net(
            IMAGE,
            f"float[6,3,3,3] a, float[{slope}] s, float[4,6,1,1] b",
            "h = Conv<pads=[1,1,1,1]>(x, a) r = PRelu(h, s) y = Conv(r, b)",
        )
    )
    assert free(cut.groups) == {"h": 6}
    assert (("s", slope.split(",").index("6") if follows else 0) in axes(cut.groups["h"])) == follows


def test_batch_normalization_is_cut_in_all_four_vectors() -> None:
    cut = check_cut(
        net(
            IMAGE,
            "float[6,3,3,3] a, float[6] s, float[6] b, float[6] m, float[6] v, float[4,6,1,1] c",
            "h = Conv<pads=[1,1,1,1]>(x, a) n = BatchNormalization(h, s, b, m, v) r = Relu(n) y = Conv(r, c)",
        )
    )
    assert axes(cut.groups["h"]) == {("a", 0), ("c", 1), ("s", 0), ("b", 0), ("m", 0), ("v", 0)}


@pytest.mark.parametrize("order", ["k, h", "h, k"])
@pytest.mark.parametrize("shape", ["6,1,1", "1,6,8,8", "6,8,8", "1,1,8,8", "8,8", "1"])
def test_a_stored_operand_is_cut_where_it_has_channels_whichever_side_it_is_on(
    order: str, shape: str
) -> None:
    cut = check_cut(
        net(
            IMAGE,
            f"float[6,3,3,3] a, float[{shape}] k, float[4,6,3,3] b",
            f"h = Conv<pads=[1,1,1,1]>(x, a) m = Add({order}) y = Conv<pads=[1,1,1,1]>(m, b)",
        )
    )
    assert free(cut.groups) == {"h": 6}
    assert ("k" in {m.name for m in cut.groups["h"].members}) == ("6" in shape)


@pytest.mark.parametrize(
    "op", ["Clip(h, low, high)", "Clip(h, low)", "Dropout(h)", "Identity(h)", "Cast<to=1>(h)"]
)
def test_operators_of_one_input_let_channels_through(op: str) -> None:
    cut = check_cut(
        net(
            IMAGE,
            "float[6,3,3,3] a, float[4,6,1,1] b, float low = {0.2}, float high = {0.9}",
            f"h = Conv<pads=[1,1,1,1]>(x, a) r = {op} y = Conv(r, b)",
        )
    )
    assert free(cut.groups) == {"h": 6}


@pytest.mark.parametrize(
    "op", ["Max(h, i)", "Min(h, i)", "Where(c, h, i)", "Sum(h, i, h)", "Div(h, i)", "Mean(i, h)"]
)
def test_operators_of_several_inputs_tie_what_meets(op: str) -> None:
    cut = check_cut(
        net(
            IMAGE,
            "float[6,3,1,1] a, float[6,3,1,1] b, float[4,6,1,1] d, float one = {1.0}",
            f"h = Conv(x, a) g = Conv(x, b) e = Abs(g) i = Add(e, one) c = Less(h, i) m = {op} y = Conv(m, d)",
        )
    )
    assert free(cut.groups) == {"h": 6}
    assert cut.groups["h"].producers == ("h", "g")


# --- pooling, reduction, flattening ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "pool",
    [
        "GlobalAveragePool(h)",
        "GlobalMaxPool(h)",
        "MaxPool<kernel_shape=[8,8]>(h)",
        "AveragePool<kernel_shape=[8,8]>(h)",
    ],
)
def test_pooling_keeps_channels_apart(pool: str) -> None:
    cut = check_cut(
        net(
            CLASSES,
            "float[6,3,3,3] a, float[6,5] b",
            f"h = Conv<pads=[1,1,1,1]>(x, a) g = {pool} f = Flatten(g) y = Gemm(f, b)",
        )
    )
    assert free(cut.groups) == {"h": 6}


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("opset", [17, 18])
def test_a_mean_over_space_keeps_channels_apart(keepdims: int, opset: int) -> None:
    attribute, operand = ("axes=[2,-1], ", "") if opset == 17 else ("", ", axes")
    squeeze = "s = Squeeze(g, axes)" if keepdims else "s = Identity(g)"
    cut = check_cut(
        net(
            CLASSES,
            "float[6,3,3,3] a, float[6,5] b, int64[2] axes = {2,-1}",
            f"h = Conv<pads=[1,1,1,1]>(x, a) g = ReduceMean<{attribute}keepdims={keepdims}>(h{operand})"
            f" {squeeze} y = Gemm(s, b)",
            opset,
        )
    )
    assert free(cut.groups) == {"h": 6}


@pytest.mark.parametrize(
    ("flatten", "target"),
    [
        ("Flatten(r)", None),
        ("Flatten<axis=-3>(r)", None),
        ("Reshape(r, to_rest)", [0, -1]),
        ("Reshape(r, to_batch)", [-1, None]),
        ("Reshape(r, fixed)", [1, None]),
    ],
)
def test_flattened_channels_take_all_their_positions_along(
    flatten: str, target: list[int | None] | None
) -> None:
    cut = check_cut(
        net(
            CLASSES,
            "float[6,3,3,3] a, float[5,24] b,"
            " int64[2] to_rest = {0,-1}, int64[2] to_batch = {-1,24}, int64[2] fixed = {1,24}",
            f"h = Conv<pads=[1,1,1,1]>(x, a) r = MaxPool<kernel_shape=[4,4], strides=[4,4]>(h) f = {flatten}"
            " y = Gemm<transB=1>(f, b)",
        ),
        batches=(1,) if target and target[0] == 1 else (1, 3),
    )
    assert units(cut.groups["h"], "b", 1) == np.repeat(range(6), 4).tolist()
    if target:
        wanted = [4 * int(cut.keep["h"].sum()) if size is None else size for size in target]
        assert (
            np.asarray(next(n for n in cut.pruned.graph.nodes if n.op == "Reshape").constant(1)).tolist()
            == wanted
        )


# --- slicing and padding ---------------------------------------------------------------------------------------------
def test_a_slice_of_channels_gets_new_bounds() -> None:
    cut = check_cut(
        net(
            IMAGE,
            "float[8,3,3,3] a, float[4,3,1,1] b, float[4,8,1,1] c,"
            " int64[2] from = {2,-9}, int64[2] to = {-3,9}, int64[2] at = {1,2}",
            "h = Conv<pads=[1,1,1,1]>(x, a) s = Slice(h, from, to, at) i = Conv(s, b) j = Conv(h, c) y = Add(i, j)",
        )
    )
    group, kept = cut.groups["h"], cut.keep["h"]
    assert free(cut.groups) == {"h": 8}
    assert units(group, "b", 1) == [2, 3, 4]
    node = next(n for n in cut.pruned.graph.nodes if n.op == "Slice")
    start, stop = np.asarray(node.constant(1)), np.asarray(node.constant(2))
    assert (start[0], stop[0]) == (kept[:2].sum(), kept[:5].sum())
    assert (start[1], stop[1]) == (-9, 9), "the spatial bounds stay as they were written"


@pytest.mark.parametrize(("pads", "mode"), [("0,0,1,1,0,0,1,1", "reflect"), ("0,0,2,0,0,0,0,2", "constant")])
def test_padding_of_space_lets_channels_through(pads: str, mode: str) -> None:
    cut = check_cut(
        net(
            IMAGE,
            f"float[6,3,1,1] a, float[4,6,3,3] b, int64[8] pads = {{{pads}}}, float fill = {{0.7}}",
            f'h = Conv(x, a) p = Pad<mode="{mode}">(h, pads, fill) y = Conv(p, b)',
        )
    )
    assert free(cut.groups) == {"h": 6}


def test_padding_of_the_channel_axis_is_read_by_its_consumer_like_any_channel() -> None:
    cut = check_cut(
        net(
            IMAGE,
            "float[6,3,1,1] a, float[4,9,1,1] b, int64[2] pads = {1,2}, float fill = {0.7}, int64[1] at = {1}",
            "h = Conv(x, a) p = Pad(h, pads, fill, at) y = Conv(p, b)",
            18,
        )
    )
    assert units(cut.groups["h"], "b", 1) == [-1, 0, 1, 2, 3, 4, 5, -1, -1]
    assert np.asarray(next(n for n in cut.pruned.graph.nodes if n.op == "Pad").constant(1)).tolist() == [1, 2]


# --- several axes at once --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("groups", "of_unit"), [(2, [0, 1, 2, 3] * 2), (4, [0, 0, 1, 1, 2, 2, 3, 3])])
def test_a_channel_axis_split_in_two_is_cut_along_the_side_that_leaves_the_most_choice(
    groups: int, of_unit: list[int]
) -> None:
    cut = check_cut(
        net(
            IMAGE,
            "float[8,3,3,3] a, float[4,8,1,1] b,"
            f" int64[3] wide = {{0,{groups},-1}}, int64[4] back = {{0,-1,8,8}}",
            "h = Conv<pads=[1,1,1,1]>(x, a) r = Reshape(h, wide) s = Tanh(r) k = Reshape(s, back) y = Conv(k, b)",
        )
    )
    assert free(cut.groups) == {"h": 4}
    assert units(cut.groups["h"], "a", 0) == of_unit


def test_two_shuffles_in_a_row_tie_what_both_of_them_need() -> None:
    shuffle = "Transpose<perm=[0,2,1,3,4]>"
    cut = check_cut(
        net(
            IMAGE,
            "float[12,3,3,3] a, float[12,6,3,3] b, float[4,12,1,1] c,"
            " int64[5] halves = {0,2,6,8,8}, int64[5] thirds = {0,3,4,8,8}, int64[4] back = {0,12,8,8}",
            f"h = Conv<pads=[1,1,1,1]>(x, a) p = Reshape(h, halves) q = {shuffle}(p) r = Reshape(q, back)"
            f" i = Conv<pads=[1,1,1,1], group=2>(r, b) s = Reshape(i, thirds) t = {shuffle}(s) u = Reshape(t, back)"
            " y = Conv(u, c)",
        )
    )
    assert set(free(cut.groups)) == {"h", "i"}


def test_concatenation_along_space_ties_the_channels_of_its_parts() -> None:
    cut = check_cut(
        net(
            "(float[N,3,8,8] x) => (float[N,4,20,8] y)",
            "float[6,3,1,1] a, float[6,3,1,1] b, float[1,6,4,8] k, float[4,6,1,1] c",
            "h = Conv(x, a) i = Conv(x, b) j = Concat<axis=2>(h, i, k) y = Conv(j, c)",
        ),
        batches=(1,),
    )
    assert free(cut.groups) == {"h": 6}
    assert axes(cut.groups["h"]) == {("a", 0), ("b", 0), ("k", 1), ("c", 1)}


def test_stored_planes_beside_the_channels_stay_whole() -> None:
    cut = check_cut(
        net(
            IMAGE,
            "float[5,3,1,1] a, float[1,2,8,8] k, float[4,10,1,1] c",
            "h = Conv(x, a) j = Concat<axis=1>(h, k, x) y = Conv(j, c)",
        ),
        batches=(1,),
    )
    assert units(cut.groups["h"], "c", 1) == [0, 1, 2, 3, 4] + [-1] * 5
    assert cut.pruned.graph.constants["k"].values.shape == (1, 2, 8, 8)


def test_a_stored_operand_that_is_reshaped_first_is_cut_with_its_target() -> None:
    cut = check_cut(
        net(
            IMAGE,
            "float[6,3,1,1] a, float[6] q, float[4,6,1,1] c, int64[4] column = {1,6,1,1}, int64[2] at = {1,2}",
            "h = Conv(x, a) p = Reshape(q, column) i = Add(h, p) u = Unsqueeze(q, at) j = Mul(i, u) y = Conv(j, c)",
        )
    )
    assert ("q", 0) in axes(cut.groups["h"])
    kept = int(cut.keep["h"].sum())
    reshape = next(n for n in cut.pruned.graph.nodes if n.op == "Reshape")
    assert np.asarray(reshape.constant(1)).tolist() == [1, kept, 1, 1]


def test_a_stored_operand_of_two_streams_ties_them() -> None:
    cut = check_cut(
        net(
            IMAGE,
            "float[6,3,1,1] a, float[6,3,1,1] b, float[6,1,1] s, float[4,6,1,1] c, float[4,6,1,1] d",
            "h = Conv(x, a) i = Conv(x, b) p = Mul(h, s) q = Mul(i, s) r = Conv(p, c) t = Conv(q, d) y = Add(r, t)",
        )
    )
    assert free(cut.groups) == {"h": 6}
    assert not cut.groups["h"].coupled


def test_a_gate_over_space_is_read_by_all_channels_and_holds_none() -> None:
    cut = check_cut(
        net(
            IMAGE,
            "float[6,3,1,1] a, float[1,3,1,1] b, float[4,6,1,1] c",
            "h = Conv(x, a) g = Conv(x, b) s = Sigmoid(g) m = Mul(s, h) y = Conv(m, c)",
        )
    )
    assert free(cut.groups) == {"h": 6}
    assert cut.groups["g"].blocked == "it is the only channel of a value"


# --- targets that exporters compute ----------------------------------------------------------------------------------
SIZE = "z = Shape(h) n = Gather(z, zero) u = Unsqueeze(n, first)"
SIZES = ", int64 zero = {0}, int64[1] first = {0}"


def test_a_view_with_a_computed_batch_size_and_a_rest_needs_no_new_target() -> None:
    cut = check_cut(
        net(
            CLASSES,
            f"float[6,3,8,8] a, float[5,6] b, int64[1] rest = {{-1}}{SIZES}",
            f"h = Conv(x, a) {SIZE} t = Concat<axis=0>(u, rest) f = Reshape(h, t) y = Gemm<transB=1>(f, b)",
        )
    )
    assert free(cut.groups) == {"h": 6}


def test_a_view_with_a_computed_batch_size_gets_new_stored_sizes() -> None:
    stored = "int64[2] wide = {2,4}, int64[2] plane = {8,8}, int64[4] back = {0,8,8,8}"
    cut = check_cut(
        net(
            IMAGE,
            f"float[8,3,1,1] a, float[4,8,1,1] b, {stored}{SIZES}",
            f"h = Conv(x, a) {SIZE} t = Concat<axis=0>(u, wide, plane) r = Reshape(h, t)"
            " s = Transpose<perm=[0,2,1,3,4]>(r) k = Reshape(s, back) y = Conv(k, b)",
        )
    )
    kept = int(cut.keep["h"].sum())
    assert free(cut.groups) == {"h": 4}
    assert cut.pruned.graph.constants["wide"].values.tolist() == [2, kept]
    assert cut.pruned.graph.constants["plane"].values.tolist() == [8, 8]


def test_a_target_tensor_of_two_reshapes_is_parted_where_they_come_to_differ() -> None:
    cut = check_cut(
        net(
            IMAGE,
            "float[6,3,1,1] a, float[6,3,1,1] b, float[4,6,1,1] c, float[4,6,1,1] d, int64[4] same = {0,6,8,8}",
            "h = Conv(x, a) i = Conv(x, b) p = Reshape(h, same) q = Reshape(i, same) r = Conv(p, c) t = Conv(q, d)"
            " y = Add(r, t)",
        ),
        {"h": np.arange(6) < 4, "i": np.arange(6) < 1},
    )
    targets = [np.asarray(n.constant(1)).tolist() for n in cut.pruned.graph.nodes if n.op == "Reshape"]
    assert targets == [[0, 4, 8, 8], [0, 1, 8, 8]]
