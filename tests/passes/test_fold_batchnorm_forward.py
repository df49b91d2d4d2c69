from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.ir.parse import parse_model
from onnxcomp.passes.fold_batchnorm import FoldBatchnorm
from onnxcomp.testing import check_pass
from tests.support.text import net

FOLD = FoldBatchnorm()
BN = "float[4] s, float[4] b, float[4] m, float[4] v"
"""Parameters of a BatchNormalization of four channels."""
LATENT = "(float[N,4,6,6] x) => (float[a,c,d,e] y)"


def unchanged(text: str, *reasons: str) -> None:
    """Assert that nothing folds in `text`, for these reasons."""
    check_pass(FOLD, text, changed=False, skips=reasons)


# --- what may not change ---------------------------------------------------------------------------------------------
def test_a_batchnorm_before_a_padded_convolution_stays() -> None:
    body = "n = BatchNormalization(x, s, b, m, v)  y = Conv<pads=[1,1,1,1]>(n, w)"
    unchanged(net(LATENT, f"float[2,4,3,3] w, {BN}", body), "which pads with zeros")


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
def test_a_batchnorm_before_a_convolution_that_pads_by_itself_stays(mode: str) -> None:
    body = f'n = BatchNormalization(x, s, b, m, v)  y = Conv<auto_pad="{mode}">(n, w)'
    unchanged(net(LATENT, f"float[2,4,3,3] w, {BN}", body), "which pads with zeros")


def test_a_shift_before_a_transposed_convolution_stays() -> None:
    body = "n = BatchNormalization(x, s, b, m, v)  y = ConvTranspose(n, w)"
    unchanged(
        net(LATENT, f"float[4,2,3,3] w, {BN}", body), "would not reach all of the output of ConvTranspose"
    )


def test_a_batchnorm_that_two_read_stays_where_one_of_them_cannot_take_it() -> None:
    body = "n = BatchNormalization(x, s, b, m, v)  y = Conv(n, w)  z = Relu(n)"
    signature = "(float[N,4,6,6] x) => (float[a,c,d,e] y, float[N,4,6,6] z)"
    unchanged(net(signature, f"float[2,4,1,1] w, {BN}", body), "Relu 'z' behind it")


def test_a_batchnorm_that_is_read_as_a_bias_stays() -> None:
    text = net(
        "(float[N,4] x, float[N,3] z) => (float[N,4] y)",
        f"float[3,4] w, {BN}",
        "r = Relu(x)  n = BatchNormalization(r, s, b, m, v)  y = Gemm(z, w, n)",
    )
    unchanged(text, "Gemm 'y' behind it reads it otherwise than by weights")


def test_a_constant_that_makes_channels_out_of_one_stays() -> None:
    text = net(
        "(float[N,1] x) => (float[N,2] y)", "float[1,4] k, float[4,2] w", "h = Mul(x, k)  y = MatMul(h, w)"
    )
    unchanged(text, "it may enlarge what it reads")


def test_whole_numbers_are_not_folded() -> None:
    text = net(
        "(int64[N] x) => (int64[N] y)", "int64[1] k = {2}, int64[1] l = {3}", "h = Mul(x, k)  y = Mul(h, l)"
    )
    unchanged(text)


@pytest.mark.parametrize(
    ("pad", "reason"),
    [
        ('Pad<mode="reflect">(x, p)', "more than add a known number of zeros"),
        ("Pad(x, p, one)", "more than add a known number of zeros"),
        ("Pad(x, channels)", "pads the batch or the channels"),
        ("Pad(x, crop)", "more than add a known number of zeros"),
    ],
)
def test_a_pad_of_another_kind_stays(pad: str, reason: str) -> None:
    weights = """float[2,4,3,3] w, float[2,5,3,3] wide, float one = {1}, int64[8] p = {0,0,1,1,0,0,1,1},
        int64[8] channels = {0,1,0,0,0,0,0,0}, int64[8] crop = {0,0,-1,0,0,0,0,0}"""
    kernel = "wide" if "channels" in pad else "w"
    unchanged(net(LATENT, weights, f"h = {pad}  y = Conv(h, {kernel})"), reason)


def test_a_pad_that_others_read_stays() -> None:
    signature = "(float[N,4,6,6] x) => (float[a,c,d,e] y, float[a,c,d,e] z)"
    weights = "float[2,4,3,3] w, int64[8] p = {0,0,1,1,0,0,1,1}"
    unchanged(net(signature, weights, "h = Pad(x, p)  y = Conv(h, w)  z = Relu(h)"), "needed elsewhere too")


def test_a_pad_before_a_convolution_that_pads_by_itself_stays() -> None:
    weights = "float[2,4,3,3] w, int64[8] p = {0,0,1,1,0,0,1,1}"
    unchanged(
        net(LATENT, weights, 'h = Pad(x, p)  y = Conv<auto_pad="SAME_UPPER">(h, w)'), "works out its padding"
    )


def test_a_pad_before_a_maximum_stays() -> None:
    weights = "int64[8] p = {0,0,1,1,0,0,1,1}"
    unchanged(net(LATENT, weights, "h = Pad(x, p)  y = MaxPool<kernel_shape=[3,3]>(h)"))


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        (", pads=[1,1,1,1]", "would not count the padding"),
        (", ceil_mode=1, strides=[2,2]", "would not count the padding"),
    ],
)
def test_a_mean_that_does_not_count_padding_keeps_the_pad(attributes: str, reason: str) -> None:
    weights = "int64[8] p = {0,0,1,1,0,0,1,1}"
    unchanged(
        net(LATENT, weights, f"h = Pad(x, p)  y = AveragePool<kernel_shape=[3,3]{attributes}>(h)"), reason
    )


# --- into the nodes behind -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("weight", "reader"),
    [
        ("float[2,4,3,3] w", "Conv(n, w)"),
        ("float[2,4,3,3] w, float[2] k", "Conv<strides=[2,2]>(n, w, k)"),
        ("float[2,4,3,3] w", "Conv<pads=[0,0,0,0]>(n, w)"),
        ("float[2,4,3,3] w", 'Conv<auto_pad="VALID">(n, w)'),
        ("float[2,4,1,1] w", 'Conv<auto_pad="SAME_UPPER">(n, w)'),
        ("float[4,1,3,3] w", "Conv<group=4>(n, w)"),
        ("float[6,2,3,3] w, float[6] k", "Conv<group=2>(n, w, k)"),
    ],
)
def test_a_batchnorm_before_an_unpadded_convolution_is_folded(weight: str, reader: str) -> None:
    body = f"r = Relu(x)  [norm] n = BatchNormalization(r, s, b, m, v)  [conv] y = {reader}"
    text = net(LATENT, f"{weight}, {BN}", body)
    result = check_pass(FOLD, text, changed=True, removed=["BatchNormalization"], skips=[])
    assert result.model.aliases == {"norm": "conv"}


@pytest.mark.parametrize(
    ("weight", "reader"),
    [
        ("float[2,4,3,3] w", "Conv<pads=[1,1,1,1]>(n, w)"),
        ("float[4,2,3,3] w", "ConvTranspose(n, w)"),
        ("float[4,3,3,3] w", "ConvTranspose<group=2>(n, w)"),
    ],
)
def test_a_scale_alone_passes_any_padding(weight: str, reader: str) -> None:
    text = net(LATENT, f"{weight}, float[1,4,1,1] c", f"r = Relu(x)  n = Mul(r, c)  y = {reader}")
    check_pass(FOLD, text, changed=True, removed=["Mul"])


@pytest.mark.parametrize(
    ("weight", "reader", "added"),
    [
        ("float[4,2] w", "Gemm<alpha=0.5>(n, w)", []),
        ("float[2,4] w, float[2] k", "Gemm<transB=1, beta=3.0>(n, w, k)", []),
        ("float[4,2] w", "MatMul(n, w)", ["Gemm"]),
    ],
)
def test_a_batchnorm_before_a_matrix_product_is_folded(weight: str, reader: str, added: list[str]) -> None:
    body = f"r = Relu(x)  n = BatchNormalization(r, s, b, m, v)  y = {reader}"
    removed = ["BatchNormalization", *(["MatMul"] if added else [])]
    text = net("(float[N,4] x) => (float[N,2] y)", f"{weight}, {BN}", body)
    check_pass(FOLD, text, changed=True, added=added, removed=removed)


def test_a_batchnorm_that_two_convolutions_read_is_folded_into_both() -> None:
    text = net(
        LATENT,
        f"float[2,4,3,3] w, float[2,4,3,3] u, {BN}",
        "r = Relu(x)  n = BatchNormalization(r, s, b, m, v)  p = Conv(n, w)  q = Conv(n, u)  y = Add(p, q)",
    )
    result = check_pass(FOLD, text, changed=True, removed=["BatchNormalization"])
    assert result.model.aliases == {"n": "p"}


# --- into each other -------------------------------------------------------------------------------------------------
def test_steps_around_a_batchnorm_that_stays_end_in_it() -> None:
    text = net(
        "(float[N,2,4,4] x) => (float[N,4,4,4] y)",
        f"{BN}, float[4,1,1] c, float[4,1,1] d, float[1,4,1,1] e",
        """k = Concat<axis=1>(x, x)  i = Mul(k, e)  n = BatchNormalization(i, s, b, m, v)
           j = Mul(n, c)  l = Add(j, d)  y = Relu(l)""",
    )
    result = check_pass(FOLD, text, changed=True, removed=["Mul", "Mul", "Add"])
    assert [n.op for n in result.model.graph.nodes] == ["Concat", "BatchNormalization", "Relu"]


def test_two_batchnorms_in_a_row_are_one() -> None:
    text = net(
        LATENT,
        f"{BN}, float[4] s2, float[4] b2, float[4] m2, float[4] v2",
        """r = Relu(x)  i = BatchNormalization(r, s, b, m, v)
           j = BatchNormalization<epsilon=0.1>(i, s2, b2, m2, v2)  y = Relu(j)""",
    )
    model = parse_model(text)
    positive = parse_model(text, {"v2": np.abs(model.graph.constants["v2"].values) + 0.5})
    check_pass(FOLD, positive, changed=True, removed=["BatchNormalization"])


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("a = Mul(x, c)  b = Div(a, d)  y = Mul(b, e)", ["Mul"]),
        ("a = Add(x, c)  b = Sub(a, d)  y = Add(e, b)", ["Add"]),
        ("a = Mul(x, c)  y = Add(a, d)", ["Mul", "Add"]),
    ],
)
def test_scales_in_a_row_are_one_and_shifts_are_one(body: str, left: list[str]) -> None:
    text = net("(float[N,4] x) => (float[N,4] y)", "float[4] c, float[1,4] d, float e = {3}", body)
    result = check_pass(FOLD, text, changed=len(left) == 1)
    assert [n.op for n in result.model.graph.nodes] == left


def test_two_constants_are_not_multiplied_into_a_larger_one() -> None:
    text = net(
        "(float[5,4] x) => (float[5,4] y)", "float[5,1] c, float[1,4] d", "a = Mul(x, c)  y = Mul(a, d)"
    )
    unchanged(text)


# --- padding ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "conv",
    ["Conv(h, w)", "Conv<pads=[1,0,0,1]>(h, w)", 'Conv<auto_pad="VALID", strides=[2,2]>(h, w)'],
)
def test_a_pad_of_zeros_becomes_padding_of_the_convolution(conv: str) -> None:
    weights = "float[2,4,3,3] w, int64[8] p = {0,0,0,1,0,0,2,1}, float zero = {0}"
    text = net(LATENT, weights, f"[pad] h = Pad(x, p, zero)  [conv] y = {conv}")
    result = check_pass(FOLD, text, changed=True, removed=["Pad"])
    assert result.model.aliases == {"pad": "conv"}
    assert "auto_pad" not in result.model.graph.nodes[0].attrs


def test_a_pad_of_named_axes_becomes_padding_of_the_convolution() -> None:
    weights = "float[2,4,3,3] w, int64[4] p = {1,2,3,4}, int64[2] axes = {-1,2}"
    text = net(LATENT, weights, "h = Pad(x, p, , axes)  y = Conv(h, w)", opset=18)
    result = check_pass(FOLD, text, changed=True, removed=["Pad"])
    assert result.model.graph.nodes[0].attrs["pads"] == [2, 1, 4, 3]


@pytest.mark.parametrize("attributes", ["", ", count_include_pad=1, pads=[1,1,0,0]"])
def test_a_pad_of_zeros_becomes_padding_of_a_mean_that_counts_it(attributes: str) -> None:
    weights = "int64[8] p = {0,0,1,1,0,0,1,1}"
    text = net(LATENT, weights, f"h = Pad(x, p)  y = AveragePool<kernel_shape=[3,3]{attributes}>(h)")
    check_pass(FOLD, text, changed=True, removed=["Pad"])
