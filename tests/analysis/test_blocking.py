"""What must not be cut is blocked with a reason a user can act on, and blocks no more than it has to."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.analysis.channels import channel_groups, default_shapes
from onnxcomp.errors import PreconditionError
from onnxcomp.ir.parse import parse_model
from onnxcomp.testing import check_cut
from tests.support.text import net

IMAGE = "(float[N,3,8,8] x) => (float[N,4,8,8] y)"
FRAME = "h = Conv<pads=[1,1,1,1]>(x, a) i = Conv<pads=[1,1,1,1]>(h, b) {} y = Conv(k, c)"
WEIGHTS = "float[5,3,3,3] a, float[6,5,3,3] b, float[4,6,1,1] c"


def framed(middle: str, more: str = "", opset: int = 17, signature: str = IMAGE) -> str:
    """A net in which `middle` makes k `[N,6,8,8]` from i `[N,6,8,8]`; the channels of h are always free."""
    return net(signature, WEIGHTS + more, FRAME.format(middle), opset)


def reasons(text: str, known: dict[str, tuple[int, ...]] | None = None) -> dict[str, str | None]:
    """The reason of every group; `known` adds shapes that inference does not find."""
    model = parse_model(text)
    shapes = {**default_shapes(model), **(known or {})}
    return {group.name: group.blocked for group in channel_groups(model, shapes)}


def assert_blocked(text: str, reason: str) -> None:
    """Channels of i are blocked with `reason`, those of h are not, and can be cut."""
    found = reasons(text)
    assert found["i"] is not None, "i is free"
    assert reason in found["i"]
    assert found["h"] is None
    cut = check_cut(text)
    assert cut.pruned.graph.constants["b"].values.shape[0] == 6


# --- ends of the graph -----------------------------------------------------------------------------------------------
def test_graph_inputs_and_outputs_never_lose_a_channel() -> None:
    text = net(
        "(float[N,3,8,8] x) => (float[N,4,8,8] y, float[N,5,8,8] h)",
        "float[5,3,1,1] a, float[6,5,1,1] b, float[4,6,1,1] c",
        "h = Conv(x, a) i = Conv(h, b) y = Conv(i, c)",
    )
    assert reasons(text) == {
        "h": "it reaches the graph output 'h'",
        "i": None,
        "y": "it reaches the graph output 'y'",
    }
    check_cut(text)


def test_channels_added_to_a_graph_input_stay() -> None:
    text = net(
        "(float[N,6,8,8] x) => (float[N,4,8,8] y)",
        "float[5,6,3,3] a, float[6,5,3,3] b, float[4,6,1,1] c",
        FRAME.format("k = Add(i, x)"),
    )
    assert_blocked(text, "it meets a graph input")


def test_some_units_of_a_group_may_stay_while_others_go() -> None:
    """A slice that leaves the graph holds its channels; the rest of the group is free."""
    text = net(
        "(float[N,3,8,8] x) => (float[N,4,8,8] y, float[N,2,8,8] s)",
        "float[8,3,1,1] a, float[4,8,1,1] b, int64[1] from = {3}, int64[1] to = {5}, int64[1] at = {1}",
        "h = Conv(x, a) s = Slice(h, from, to, at) y = Conv(h, b)",
    )
    group = channel_groups(parse_model(text))["h"]
    assert group.blocked is None
    assert group.free.tolist() == [True] * 3 + [False] * 2 + [True] * 3
    assert {r for r in group.reasons if r} == {"it reaches the graph output 's'"}
    check_cut(text)


def test_the_optional_mask_of_dropout_holds_its_channels_where_it_is_an_output() -> None:
    text = net(
        "(float[N,3,8,8] x) => (float[N,4,8,8] y, bool[N,6,8,8] m)",
        WEIGHTS,
        FRAME.format("k, m = Dropout(i)"),
    )
    assert_blocked(text, "it reaches the graph output 'm'")


# --- operators nobody knows ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("op", "node", "more"),
    [
        ("Trilu", "k = Trilu(i)", ""),
        ("GatherND", "k = GatherND(i, at)", ", int64[1,1] at = {0}"),
        ("DynamicQuantizeLinear", "q, s, z = DynamicQuantizeLinear(i) k = DequantizeLinear(q, s, z)", ""),
    ],
)
def test_an_operator_without_a_rule_blocks_what_it_reads_by_its_name(op: str, node: str, more: str) -> None:
    text = framed(node, more, opset=21)
    assert_blocked(text, f"it passes through {op} '")
    assert str(reasons(text)["i"]).endswith(", which cannot be cut")


def test_pooling_that_returns_indices_blocks() -> None:
    text = framed("[odd] k, at = MaxPool<kernel_shape=[1,1]>(i)")
    assert_blocked(text, "MaxPool 'odd' returns indices")


def test_an_operator_of_another_domain_blocks_by_its_name_even_where_the_name_is_known() -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 17, "com.example" : 1]> net (float[N,3,8,8] x) => (float[N,4,8,8] y) <'
        + WEIGHTS
        + "> { h = Conv<pads=[1,1,1,1]>(x, a) i = Conv<pads=[1,1,1,1]>(h, b) [odd] k = com.example.Relu(i) y = Conv(k, c) }"
    )
    assert reasons(text)["i"] == "it passes through com.example.Relu 'odd', which cannot be cut"
    assert reasons(text)["h"] is None


def test_what_an_unknown_operator_makes_is_blocked_downstream_too() -> None:
    text = framed("t = Trilu(i) u = Conv(i, d) k = Add(t, u)", ", float[6,6,1,1] d")
    assert reasons(text)["u"] == "it passes through Trilu 't', which cannot be cut"


def test_a_value_that_a_subgraph_reads_stays() -> None:
    text = framed(
        "z = ReduceMax<keepdims=0>(x) f = Greater(z, zero) k = If(f) <"
        "then_branch = yes () => (float[N,6,8,8] p) { p = Relu(i) },"
        "else_branch = no () => (float[N,6,8,8] q) { q = Neg(i) }>",
        ", float zero = {0.0}",
    )
    assert_blocked(text, "a subgraph of If 'k' reads it")


def test_a_weight_that_a_subgraph_reads_stays() -> None:
    text = (
        framed(
            "z = ReduceMax<keepdims=0>(x) f = Greater(z, zero) g = If(f) <"
            "then_branch = yes () => (float[1] p) { p = ReduceMax<keepdims=0>(q) },"
            "else_branch = no () => (float[1] r) { r = ReduceMin<keepdims=0>(q) }>"
            " n = Conv(i, d, q) k = Mul(n, g)",
            ", float zero = {0.0}, float[6,6,1,1] d, float[6] q",
        )
        .replace("float[1] p", "float p")
        .replace("float[1] r", "float r")
    )
    assert reasons(text)["n"] == "a subgraph of If 'g' reads it"
    assert reasons(text)["i"] is None
    check_cut(text)


# --- operators that mix channels -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "op", ["Softmax<axis=1>(i)", "LogSoftmax<axis=-3>(i)", "Hardmax<axis=1>(i)", "CumSum(i, one)"]
)
def test_an_operator_that_mixes_channels_blocks_them(op: str) -> None:
    assert_blocked(
        framed(f"[mix] k = {op}", ", int64 one = {1}"),
        f"{op.split('<')[0].split('(')[0]} 'mix' mixes the channels",
    )


def test_a_running_sum_over_space_lets_channels_through() -> None:
    cut = check_cut(framed("k = CumSum(i, two)", ", int64 two = {2}"))
    assert cut.groups["i"].blocked is None


def test_softmax_over_space_lets_channels_through() -> None:
    cut = check_cut(framed("k = Softmax(i)"))
    assert cut.groups["i"].blocked is None


@pytest.mark.parametrize(
    ("node", "opset"),
    [
        ("ReduceMean<axes=[1]>(i)", 17),
        ("ReduceMax<axes=[-3,2]>(i)", 17),
        ("ReduceSum(i, one)", 17),
        ("ReduceSum(i, none)", 17),
        ("ReduceSum(i)", 17),
        ("ReduceL2(i, one)", 18),
    ],
)
def test_a_reduction_over_channels_blocks_them(node: str, opset: int) -> None:
    text = framed(f"[sum] s = {node} k = Mul(i, s)", ", int64[1] one = {1}, int64[0] none = {}", opset)
    assert_blocked(text, "'sum' reduces over the channel axis")


def test_a_reduction_told_to_do_nothing_without_axes_lets_channels_through() -> None:
    text = framed("k = ReduceSum<noop_with_empty_axes=1>(i, none)", ", int64[0] none = {}")
    assert check_cut(text).groups["i"].blocked is None


def test_axes_that_are_computed_block() -> None:
    text = framed("d = Shape<start=2, end=3>(x) [odd] s = ReduceSum(i, d) k = Mul(i, s)")
    assert reasons(text, {"s": (1, 6, 1, 8)})["i"] == "ReduceSum 'odd' has computed axes"


# --- channels on several axes ----------------------------------------------------------------------------------------
def test_values_with_channels_on_two_different_axes_must_not_meet() -> None:
    text = net(
        "(float[N,3,6,1] x) => (float[N,6,6,4] y)",
        "float[6,3,1,1] a, float[6,3,1,1] b, float[6,3,1,1] e, float[1,4] c",
        "h = Conv(x, e) g = ReduceMean<axes=[2]>(h) p = Conv(x, a) q = ReduceMean<axes=[2]>(p)"
        " r = Transpose<perm=[0,2,1,3]>(q) m = Add(g, r) y = MatMul(m, c)",
    )
    assert reasons(text)["h"] == "it meets a value that has channels along another axis"
    assert reasons(text)["p"] == "it meets a value that has channels along another axis"


def test_a_convolution_over_the_axis_beside_the_channels_blocks_them() -> None:
    text = framed(
        "[turn] t = Transpose<perm=[0,2,1,3]>(i) [odd] j = Conv(t, d) k = Transpose<perm=[0,2,1,3]>(j)",
        ", float[8,8,1,1] d",
    )
    assert_blocked(text, "Conv 'odd' reads channels that lie along another axis")


# --- sizes that are read ---------------------------------------------------------------------------------------------
def test_reading_the_number_of_channels_blocks_them() -> None:
    text = framed(
        "[size] s = Shape(i) n = Gather(s, one) m = Add(n, one) f = Cast<to=1>(m) k = Div(i, f)",
        ", int64 one = {1}",
    )
    assert_blocked(text, "Shape 'size' reads the number of channels")


def test_a_number_of_channels_that_is_computed_with_stays_as_it_was() -> None:
    text = framed("s = Shape(i) n = Gather(s, one) f = Cast<to=1>(n) k = Div(i, f)", ", int64 one = {1}")
    cut = check_cut(text)
    assert cut.groups["i"].blocked is None
    assert cut.pruned.graph.constants["f.0"].values == 6


@pytest.mark.parametrize(
    "node",
    [
        "n = Gather(s, three)",
        "n = Gather(s, last)",
        "n = Slice(s, three_, four_)",
        "n = Slice(s, last_, four_)",
    ],
)
def test_reading_other_sizes_does_not_block(node: str) -> None:
    text = framed(
        f"s = Shape(i) {node} f = Cast<to=1>(n) k = Div(i, f)",
        ", int64 three = {3}, int64 last = {-1}, int64[1] three_ = {3}, int64[1] last_ = {-1}, int64[1] four_ = {4}",
    )
    assert check_cut(text).groups["i"].blocked is None


def test_a_shape_that_is_a_graph_output_blocks() -> None:
    text = framed(
        "[size] s = Shape(i) k = Relu(i)", signature="(float[N,3,8,8] x) => (float[N,4,8,8] y, int64[4] s)"
    )
    assert_blocked(text, "Shape 'size' reads the number of channels")


def test_a_shape_of_the_spatial_axes_alone_may_leave_the_graph() -> None:
    text = framed(
        "s = Shape<start=2>(i) k = Relu(i)", signature="(float[N,3,8,8] x) => (float[N,4,8,8] y, int64[2] s)"
    )
    assert check_cut(text).groups["i"].blocked is None


def test_a_reshape_to_a_computed_number_of_channels_blocks() -> None:
    text = framed(
        "s = Shape<end=1>(x) n = Add(s, three) m = Concat<axis=0>(s, n, rest) [odd] r = Reshape(i, m) k = Reshape(r, back)",
        ", int64[1] three = {5}, int64[2] rest = {8,8}, int64[4] back = {-1,6,8,8}",
    )
    assert "Reshape 'odd' computes its shape" in str(reasons(text)["i"])


def test_bounds_and_amounts_that_are_computed_block() -> None:
    start = "z = Shape<end=1>(x) o = Mul(z, zero)"
    more = ", int64[1] zero = {0}, int64[1] one = {1}, int64[1] six = {6}, int64[8] none = {0,0,0,0,0,0,0,0}"
    for node, reason in (
        ("[odd] k = Slice(i, o, six, one)", "Slice 'odd' has computed bounds"),
        ("p = Concat<axis=0>(o, o, o, o, o, o, o, o) [odd] k = Pad(i, p)", "Pad 'odd' has computed amounts"),
        ("p = Add(o, six) [odd] k = Split<axis=1>(i, p)", "Split 'odd' has computed sizes"),
    ):
        assert reason in str(reasons(framed(f"{start} {node}", more), {"k": (1, 6, 8, 8)})["i"])


def test_a_slice_of_every_second_channel_blocks() -> None:
    text = framed(
        "[odd] s = Slice(i, from, to, at, by) k = Concat<axis=1>(s, s)",
        ", int64[1] from = {0}, int64[1] to = {6}, int64[1] at = {1}, int64[1] by = {2}",
    )
    assert_blocked(text, "Slice 'odd' takes channels in steps of 2")


def test_a_pad_that_repeats_or_removes_channels_blocks() -> None:
    more = ", int64[8] pads = {0,1,0,0,0,-1,0,0}"
    assert_blocked(
        framed("[odd] k = Pad(i, pads)", more), "Pad 'odd' pads the channel axis with more than a constant"
    )
    more = ", int64[8] pads = {0,1,0,0,0,1,0,0}, int64[1] from = {1}, int64[1] to = {7}, int64[1] at = {1}"
    text = framed('[odd] p = Pad<mode="edge">(i, pads) k = Slice(p, from, to, at)', more)
    assert_blocked(text, "Pad 'odd' pads the channel axis with more than a constant")


# --- weights ---------------------------------------------------------------------------------------------------------
def test_a_computed_weight_blocks() -> None:
    text = framed("w = Mul(d, two) [odd] k = Conv(i, w)", ", float[6,6,1,1] d, float two = {2.0}")
    assert_blocked(text, "Conv 'odd' has a computed weight")


def test_a_tensor_that_is_a_bias_here_and_a_plain_operand_there_stays() -> None:
    text = framed(
        "j = Conv(i, d, q) t = Transpose<perm=[0,2,3,1]>(i) u = Add(t, q) v = Transpose<perm=[0,3,1,2]>(u) k = Add(j, v)",
        ", float[6,6,1,1] d, float[6] q",
    )
    assert_blocked(text, "'q' is read as a weight and as a plain operand")


def test_gemm_with_a_transposed_input_or_a_computed_bias_blocks() -> None:
    for node, reason in (
        ("h = Gemm(x, a) t = Transpose(h) [odd] y = Gemm<transA=1>(t, b)", "Gemm with transA"),
        ("h = Gemm(x, a) g = ReduceSum<keepdims=0>(x) [odd] y = Gemm(h, b, g)", "has a computed bias"),
    ):
        text = net("(float[N,6] x) => (float[N,5] y)", "float[6,7] a, float[7,5] b", node)
        assert reason in str(reasons(text)["h"])


def test_batch_normalization_in_training_mode_blocks() -> None:
    text = framed("[odd] k, m, v = BatchNormalization<training_mode=1>(i, s, s, s, s)", ", float[6] s")
    assert reasons(text)["i"] == "BatchNormalization 'odd' is in training mode"


# --- wishes ----------------------------------------------------------------------------------------------------------
def test_excluded_nodes_hold_what_they_read_and_what_they_make() -> None:
    text = framed(
        "r = Relu(i) j = Conv(r, d) s = Relu(j) k = Conv(s, e)", ", float[7,6,1,1] d, float[6,7,1,1] e"
    )
    groups = channel_groups(parse_model(text), excluded={"j": "excluded by the user"})
    assert {g.name: g.blocked for g in groups if g.name != "y"} == {
        "h": None,
        "i": "excluded by the user",
        "j": "excluded by the user",
        "k": None,
    }
    check_cut(text, excluded={"j": "excluded by the user"})


def test_shapes_that_nobody_knows_block() -> None:
    text = framed("[sizes] z = NonZero(x) t = Cast<to=1>(z) m = ReduceMax<keepdims=0>(t) [odd] k = Mul(i, t)")
    assert "a shape at" in str(reasons(text)["i"])


# --- all or nothing --------------------------------------------------------------------------------------------------
def test_a_cut_that_may_not_be_leaves_the_model_whole() -> None:
    model = parse_model(
        net(
            IMAGE,
            "float[8,3,1,1] a, float[4,4,1,1] b, float[4,4,1,1] c",
            "h = Conv(x, a) p, q = Split<axis=1>(h) i = Conv(p, b) j = Conv(q, c) y = Add(i, j)",
        )
    )
    groups = channel_groups(model)
    before = {name: c.values for name, c in model.graph.constants.items()}
    wishes = {
        "nothing would be left of channel group 'h'": {"h": np.arange(8) < 4},
        "channel 1 of 'i' must stay: it reaches the graph output 'y'": {"i": np.arange(4) != 1},
        "channel group 'h' has 8 units, not 3": {"h": np.ones(3, bool)},
    }
    for reason, keep in wishes.items():
        with pytest.raises(PreconditionError, match=reason):
            groups.take(model, keep)
    assert all(model.graph.constants[name].values is values for name, values in before.items())


def test_a_value_made_of_two_groups_never_runs_empty() -> None:
    """The middle part of the split holds channels of both h and i; each group alone could give up its share of it."""
    text = net(
        IMAGE,
        "float[4,3,1,1] a, float[4,3,1,1] b, float[4,2,1,1] c, float[4,4,1,1] d, float[4,2,1,1] e, int64[3] s = {2,4,2}",
        "h = Conv(x, a) i = Conv(x, b) k = Concat<axis=1>(h, i) p, q, r = Split<axis=1>(k, s)"
        " t = Conv(p, c) u = Conv(q, d) v = Conv(r, e) y = Sum(t, u, v)",
    )
    groups = channel_groups(parse_model(text))
    keep = {"h": np.array([True, True, False, False]), "i": np.array([False, False, True, True])}
    with pytest.raises(PreconditionError, match="nothing would be left of channel group 'h'"):
        groups.take(parse_model(text), keep)
    for seed in range(5):
        check_cut(text, seed)
