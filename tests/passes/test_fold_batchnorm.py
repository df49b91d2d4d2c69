from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.compiler.passbase import Context, PassResult
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.ir.proto import from_proto, to_proto
from onnxcomp.passes.fold_batchnorm import FoldBatchnorm
from onnxcomp.testing import check_pass
from tests.support.text import net

FOLD = FoldBatchnorm()
BN = "float[4] s, float[4] b, float[4] m, float[4] v"
"""Parameters of a BatchNormalization of four channels."""
IMAGE = "(float[N,3,6,6] x) => (float[a,c,d,e] y)"
LATENT = "(float[N,4,6,6] x) => (float[a,c,d,e] y)"
MATRIX = "(float[N,3] x) => (float[N,4] y)"


def unchanged(text: str, *reasons: str) -> None:
    """Assert that nothing folds in `text`, for these reasons."""
    check_pass(FOLD, text, changed=False, skips=reasons)


def run(model: Model, *excluded: str) -> PassResult:
    """Fold in a clone of `model`, without the checks of the harness."""
    return FOLD.run(model.clone(), Context(original=model, excluded=frozenset(excluded)))


# --- what may not change ---------------------------------------------------------------------------------------------
def test_a_network_without_foldable_nodes_stays() -> None:
    unchanged(net(IMAGE, "float[4,3,3,3] w, float[4] k", "h = Conv(x, w, k)  y = Relu(h)"))


def test_a_batchnorm_between_concat_and_relu_stays_and_says_why() -> None:
    text = net(
        "(float[N,2,4,4] x) => (float[N,4,4,4] y)",
        BN,
        "c = Concat<axis=1>(x, x)  n = BatchNormalization(c, s, b, m, v)  y = Relu(n)",
    )
    unchanged(text, "n: Concat 'c' before it has no weights to fold into; Relu 'y' behind it")


def test_a_batchnorm_in_training_mode_stays() -> None:
    body = "h = Conv(x, w)  y, p, q = BatchNormalization<training_mode=1>(h, s, b, m, v)"
    result = run(parse_model(net(IMAGE, f"float[4,3,1,1] w, {BN}", body)))
    assert not result.changed
    assert "training mode" in result.skips[0].reason


def test_a_batchnorm_whose_statistics_are_computed_stays() -> None:
    text = net(
        "(float[N,3,6,6] x, float[4] t) => (float[a,c,d,e] y)",
        f"float[4,3,1,1] w, {BN}",
        "h = Conv(x, w)  k = Abs(t)  y = BatchNormalization(h, s, b, m, k)",
    )
    unchanged(text, "y: its variance is not a constant")


def test_weights_behind_a_dequantize_linear_are_not_touched() -> None:
    text = net(
        "(float[N,1,4,4] x) => (float[a,c,d,e] y)",
        f"int8[4,1,1,1] q = {{1, 2, 3, 4}}, float one = {{0.5}}, int8 z = {{0}}, {BN}",
        "w = DequantizeLinear(q, one, z)  h = Conv(x, w)  y = BatchNormalization(h, s, b, m, v)",
    )
    unchanged(text, "y: the weight of Conv 'h' is not a constant")


def test_a_convolution_that_others_read_keeps_its_weights() -> None:
    text = net(
        IMAGE,
        f"float[4,3,1,1] w, {BN}",
        "h = Conv(x, w)  n = BatchNormalization(h, s, b, m, v)  y = Add(h, n)",
    )
    unchanged(text, "n: the output of Conv 'h' is needed elsewhere too")


def test_a_convolution_that_is_a_graph_output_keeps_its_weights() -> None:
    text = net(
        "(float[N,3,6,6] x) => (float[a,c,d,e] h, float[a,c,d,e] y)",
        f"float[4,3,1,1] w, {BN}",
        "h = Conv(x, w)  y = BatchNormalization(h, s, b, m, v)",
    )
    unchanged(text, "y: the output of Conv 'h' is needed elsewhere too")


def test_a_convolution_that_a_subgraph_reads_keeps_its_weights() -> None:
    text = net(
        "(float[N,3,6,6] x, bool cond) => (float[a,c,d,e] y, float[a,c,d,e] z)",
        f"float[4,3,1,1] w, {BN}",
        """h = Conv(x, w)  y = BatchNormalization(h, s, b, m, v)
           z = If(cond) < then_branch = yes () => (float[a,c,d,e] p) { p = Relu(h) },
                          else_branch = no () => (float[a,c,d,e] q) { q = Neg(h) }>""",
    )
    unchanged(text, "y: the output of Conv 'h' is needed elsewhere too")


@pytest.mark.parametrize("name", ["conv", "norm"])
def test_excluding_either_side_keeps_both(name: str) -> None:
    body = "[conv] h = Conv(x, w)  [norm] y = BatchNormalization(h, s, b, m, v)"
    text = net(IMAGE, f"float[4,3,1,1] w, {BN}", body)
    context = Context(original=parse_model(text), excluded=frozenset({name}))
    check_pass(
        FOLD,
        text,
        changed=False,
        skips=[f"norm: {'Conv' if name == 'conv' else 'BatchNormalization'}"],
        context=context,
    )


@pytest.mark.parametrize("constant", ["float[1,1,1,6] k", "float[1,4,6,6] k", "float[6] k"])
def test_a_constant_that_varies_with_the_position_stays(constant: str) -> None:
    text = net(IMAGE, f"float[4,3,1,1] w, {constant}", "h = Conv(x, w)  y = Add(h, k)")
    unchanged(text, "is not one number per channel")


def test_a_constant_of_more_axes_than_its_partner_stays() -> None:
    text = net(
        "(float[N,3] x) => (float[a,b,c] y)",
        "float[3,4] w, float[2,1,1] k",
        "h = MatMul(x, w)  y = Mul(h, k)",
    )
    unchanged(text, "is not one number per channel")


def test_a_batchnorm_along_another_axis_than_the_columns_stays() -> None:
    text = net(
        "(float[N,4,3] x) => (float[N,4,4] y)",
        f"float[3,4] w, {BN}",
        "h = MatMul(x, w)  y = BatchNormalization(h, s, b, m, v)",
    )
    unchanged(text, "it normalizes axis 1, but the channels lie along axis 2")


def test_a_bias_on_a_stack_of_matrices_stays_an_add() -> None:
    text = net(
        "(float[N,5,3] x) => (float[N,5,4] y)", "float[3,4] w, float[4] k", "h = MatMul(x, w)  y = Add(h, k)"
    )
    unchanged(text, "MatMul 'h' has no bias, and reads 3 axes")


def test_a_constant_divided_by_a_value_stays() -> None:
    unchanged(net(IMAGE, "float[4,3,1,1] w, float k = {2}", "h = Conv(x, w)  y = Div(k, h)"))


def test_a_division_by_zero_stays() -> None:
    text = net(
        "(float[N,3] x) => (float[N,4] y)", "float[3,4] w, float k = {0}", "h = MatMul(x, w)  y = Div(h, k)"
    )
    assert not run(parse_model(text)).changed


def test_statistics_that_are_not_finite_stay() -> None:
    text = net(IMAGE, f"float[4,3,1,1] w, {BN}", "h = Conv(x, w)  y = BatchNormalization(h, s, b, m, v)")
    result = run(parse_model(text, {"v": np.array([1, 1, -1, 1], np.float32)}))
    assert not result.changed
    assert "its parameters are not finite" in result.skips[0].reason


def test_weights_that_would_overflow_their_type_stay() -> None:
    text = net(
        "(float16[N,3] x) => (float16[N,4] y)",
        "float16[3,4] w, float16[1] k",
        "h = MatMul(x, w)  y = Mul(h, k)",
    )
    result = run(
        parse_model(text, {"w": np.full((3, 4), 10, np.float16), "k": np.full(1, 60000, np.float16)})
    )
    assert not result.changed
    assert "would overflow float16" in result.skips[0].reason


# --- into the node before --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("weight", "conv"),
    [
        ("float[4,3,3,3] w", "Conv(x, w)"),
        ("float[4,3,3,3] w, float[4] k", "Conv<pads=[1,1,0,2], strides=[2,1]>(x, w, k)"),
        ("float[4,3,2,2] w, float[4] k", "Conv<dilations=[2,2]>(x, w, k)"),
        ("float[3,4,3,3] w", "ConvTranspose<pads=[1,1,1,1], strides=[2,2]>(x, w)"),
        ("float[3,4,3,3] w, float[4] k", "ConvTranspose(x, w, k)"),
    ],
)
def test_a_batchnorm_behind_a_convolution_is_folded(weight: str, conv: str) -> None:
    body = f"[conv] h = {conv}  [norm] y = BatchNormalization<epsilon=0.01>(h, s, b, m, v)"
    result = check_pass(
        FOLD, net(IMAGE, f"{weight}, {BN}", body), changed=True, removed=["BatchNormalization"], skips=[]
    )
    assert [n.name for n in result.model.graph.nodes] == ["conv"]
    assert result.model.aliases == {"norm": "conv"}
    assert set(result.model.graph.constants).isdisjoint({"s", "b", "m", "v"})


@pytest.mark.parametrize(
    ("weight", "conv", "channels"),
    [
        ("float[4,1,3,3] w", "Conv<group=4>(x, w)", 4),
        ("float[8,2,3,3] w", "Conv<group=2>(x, w)", 8),
        ("float[4,4,3,3] w", "ConvTranspose<group=2>(x, w)", 8),
        ("float[4,2,3,3] w, float[8] k", "ConvTranspose<group=4>(x, w, k)", 8),
    ],
)
def test_groups_scale_their_own_channels(weight: str, conv: str, channels: int) -> None:
    parameters = ", ".join(f"float[{channels}] {name}" for name in "sbmv")
    body = f"h = {conv}  y = BatchNormalization(h, s, b, m, v)"
    check_pass(
        FOLD, net(LATENT, f"{weight}, {parameters}", body), changed=True, removed=["BatchNormalization"]
    )


@pytest.mark.parametrize(
    ("weight", "gemm"),
    [
        ("float[3,4] w", "Gemm(x, w)"),
        ("float[4,3] w, float[4] k", "Gemm<transB=1, alpha=0.5, beta=2.0>(x, w, k)"),
        ("float[3,4] w, float k", "Gemm(x, w, k)"),
        ("float[3,4] w, float[1,4] k", "Gemm<beta=0.25>(x, w, k)"),
    ],
)
def test_a_batchnorm_behind_a_gemm_is_folded(weight: str, gemm: str) -> None:
    weight = weight.replace("float k", "float k = {0.5}")
    body = f"h = {gemm}  y = BatchNormalization(h, s, b, m, v)"
    check_pass(FOLD, net(MATRIX, f"{weight}, {BN}", body), changed=True, removed=["BatchNormalization"])


def test_a_bias_with_a_row_per_sample_is_folded_whole() -> None:
    text = net(
        "(float[2,3] x) => (float[2,4] y)",
        f"float[3,4] w, float[2,1] k, {BN}",
        "h = Gemm(x, w, k)  y = BatchNormalization(h, s, b, m, v)",
    )
    check_pass(FOLD, text, changed=True, removed=["BatchNormalization"])


def test_a_batchnorm_behind_a_matrix_product_makes_it_a_gemm() -> None:
    body = "[product] h = MatMul(x, w)  y = BatchNormalization(h, s, b, m, v)"
    text = net(MATRIX, f"float[3,4] w, {BN}", body)
    result = check_pass(FOLD, text, changed=True, added=["Gemm"], removed=["MatMul", "BatchNormalization"])
    assert result.model.graph.nodes[0].name == "product"


def test_a_bias_behind_a_matrix_product_makes_it_a_gemm_that_shares_the_weight() -> None:
    text = net(
        "(float[N,4] x) => (float[N,4] y)",
        "float[4,4] w, float[1,4] k",
        "h = MatMul(x, w)  i = Add(k, h)  r = Relu(i)  y = MatMul(r, w)",
    )
    result = check_pass(FOLD, text, changed=True, added=["Gemm"], removed=["MatMul", "Add"])
    assert "w" in result.model.graph.constants
    assert result.model.graph.nodes[0].inputs[1] is result.model.graph.nodes[2].inputs[1]


def test_a_factor_behind_a_stack_of_matrices_is_folded() -> None:
    text = net(
        "(float[N,5,3] x) => (float[N,5,4] y)", "float[3,4] w, float[4] k", "h = MatMul(x, w)  y = Mul(h, k)"
    )
    check_pass(FOLD, text, changed=True, removed=["Mul"])


@pytest.mark.parametrize(
    "arithmetic",
    [
        "Add(h, c)",
        "Add(c, h)",
        "Sub(h, c)",
        "Sub(c, h)",
        "Mul(h, c)",
        "Mul(c, h)",
        "Div(h, c)",
        "Add(h, one)",
        "Mul(h, many)",
    ],
)
@pytest.mark.parametrize("bias", ["", ", k"])
def test_arithmetic_per_channel_behind_a_convolution_is_folded(arithmetic: str, bias: str) -> None:
    weights = "float[4,3,3,3] w, float[4] k, float[1,4,1,1] c, float one = {0.5}, float[4,1,1] many"
    op = arithmetic.split("(")[0]
    check_pass(
        FOLD, net(IMAGE, weights, f"h = Conv(x, w{bias})  y = {arithmetic}"), changed=True, removed=[op]
    )


def test_a_chain_of_steps_ends_in_the_convolution() -> None:
    text = net(
        IMAGE,
        f"float[4,3,3,3] w, {BN}, float[1,4,1,1] c, float[4,1,1] d, float two = {{2}}",
        "h = Conv(x, w)  i = BatchNormalization(h, s, b, m, v)  j = Mul(i, c)  k = Sub(d, j)  l = Div(k, two)  y = Relu(l)",
    )
    result = check_pass(FOLD, text, changed=True, removed=["BatchNormalization", "Mul", "Sub", "Div"])
    assert result.model.aliases == {"i": "h", "j": "h", "k": "h", "l": "h"}


def test_a_scale_leaves_a_missing_bias_missing() -> None:
    result = check_pass(
        FOLD, net(IMAGE, "float[4,3,1,1] w, float[4,1,1] c", "h = Conv(x, w)  y = Mul(h, c)"), changed=True
    )
    assert len(result.model.graph.nodes[0].inputs) == 2


def test_the_folded_value_keeps_the_name_that_readers_know() -> None:
    text = net(
        "(float[N,3,6,6] x, bool cond) => (float[a,c,d,e] z)",
        f"float[4,3,1,1] w, {BN}",
        """h = Conv(x, w)  n = BatchNormalization(h, s, b, m, v)
           z = If(cond) < then_branch = yes () => (float[a,c,d,e] p) { p = Relu(n) },
                          else_branch = no () => (float[a,c,d,e] q) { q = Neg(n) }>""",
    )
    result = check_pass(FOLD, text, changed=True, removed=["BatchNormalization"])
    assert result.model.graph.nodes[0].output.name == "n"


# --- shared weights --------------------------------------------------------------------------------------------------
TWINS = net(
    "(float[N,3,6,6] x, float[N,3,6,6] z) => (float[a,c,d,e] y)",
    f"float[4,3,3,3] w, {BN}, float[4] s2",
    "[one] h = Conv(x, w)  n = BatchNormalization(h, s, b, m, v)  [two] g = Conv(z, w)  {rest}  y = Add(n, o)",
)


def test_a_shared_weight_is_copied_for_the_convolution_that_changes() -> None:
    text = TWINS.replace("{rest}", "o = Relu(g)")
    result = check_pass(FOLD, text, changed=True, removed=["BatchNormalization"])
    constants = result.model.graph.constants
    assert {"w", "w__fold-batchnorm"} <= set(constants)
    assert np.array_equal(constants["w"].values, parse_model(text).graph.constants["w"].values)
    assert result.notes == (
        "weights that several nodes shared were copied for those that changed: 432 bytes more",
    )


def test_a_shared_weight_that_nobody_reads_any_more_goes() -> None:
    text = TWINS.replace("{rest}", "o = BatchNormalization(g, s2, b, m, v)")
    result = check_pass(FOLD, text, changed=True, removed=["BatchNormalization"] * 2)
    kernels = [c.name for c in result.model.graph.constants.values() if c.values.ndim == 4]
    assert len(kernels) == 2
    assert result.model.weight_bytes <= 2 * (432 + 16)


def test_weights_that_a_subgraph_captures_are_copied() -> None:
    text = net(
        "(float[N,3,6,6] x, bool cond) => (float[a,c,d,e] y, float[4,3,1,1] z)",
        f"float[4,3,1,1] w, {BN}",
        """h = Conv(x, w)  y = BatchNormalization(h, s, b, m, v)
           z = If(cond) < then_branch = yes () => (float[4,3,1,1] p) { p = Relu(w) },
                          else_branch = no () => (float[4,3,1,1] q) { q = Neg(w) }>""",
    )
    result = check_pass(FOLD, text, changed=True, removed=["BatchNormalization"])
    assert {"w", "w__fold-batchnorm"} <= set(result.model.graph.constants)


def test_doc_strings_of_attributes_are_in_nobodys_way() -> None:
    body = "h = Conv<strides=[2,2]>(x, w)  y = BatchNormalization<epsilon=0.001>(h, s, b, m, v)"
    proto = to_proto(parse_model(net(IMAGE, f"float[4,3,1,1] w, {BN}", body)))
    for attribute in (a for node in proto.graph.node for a in node.attribute):
        attribute.doc_string = "said by the exporter"
    assert run(from_proto(proto)).changed
