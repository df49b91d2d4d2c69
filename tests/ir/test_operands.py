"""Stored operands, counts and steps that fit no operator are refused by the name of the node."""

from __future__ import annotations

import pytest

from onnxcomp.errors import ModelError
from onnxcomp.ir.parse import parse_model
from onnxcomp.ir.shapes import infer_types

IMAGE = "<ir_version: 8, opset_import: ['' : 17]> g (float[1,4,8,8] x) => (float[a,b,c,d] y)".replace(
    "'", '"'
)
SERIES = "<ir_version: 8, opset_import: ['' : 17]> g (float[5,2,6] x) => (float[a,b,c,d] y)".replace("'", '"')


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"{IMAGE} <float[8,4,1,1] w> {{ [it] y = Conv<group = 0>(x, w) }}", "Conv 'it' has group=0"),
        (f"{IMAGE} <float[8,4,1,1] w> {{ [it] y = Conv<group = -1>(x, w) }}", "Conv 'it' has group=-1"),
        (f"{IMAGE} <float[8,4,1,1] w> {{ [it] y = Conv<group = 3>(x, w) }}", "Conv 'it' has 8 filters in 3 groups"),
        (f"{IMAGE} <float[8,4,1,1] w> {{ [it] y = Conv<strides = [1, 0]>(x, w) }}", "Conv 'it' has strides="),
        (f"{IMAGE} <float[8,4] w> {{ [it] y = Conv(x, w) }}", "Conv 'it' has a weight of the shape"),
        (f"{IMAGE} <float[8,4,1,1] w, float[5] b> {{ [it] y = Conv(x, w, b) }}", "Conv 'it' has 8 channels, but its bias"),
        (f"{IMAGE} <float[4,3,1,1] w, float[4] b> {{ [it] y = ConvTranspose(x, w, b) }}", "'it' has 3 channels"),
        (f"{IMAGE} <float[4] s, float[3] m> {{ [it] y = BatchNormalization(x, s, s, m, s) }}", "'it' has 4 channels, but its mean"),
        (f"{IMAGE} <float[4] w> {{ [it] y = Gemm(x, w) }}", "Gemm 'it' has a weight"),
        (f"{IMAGE} <float[4,6] w, float[5] b> {{ [it] y = Gemm(x, w, b) }}", "Gemm 'it' has 6 channels"),
        (f"{SERIES} <float[1,16,6] w, float[1,16,5] r> {{ [it] y = LSTM<hidden_size = 5>(x, w, r) }}", "LSTM 'it' has a recurrence weight"),
        (f"{SERIES} <float[1,16,6] w, float[1,16,4] r> {{ [it] y = LSTM<hidden_size = 1099511627776>(x, w, r) }}", "LSTM 'it' has hidden_size"),
        (f"{IMAGE} {{ [it] y = Cast(x) }}", "Cast 'it' has no attribute 'to'"),
    ],
)  # fmt: skip
def test_what_fits_no_operator_is_refused_by_name(text: str, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        parse_model(text)


def test_more_axes_than_an_array_can_have_are_refused_by_name() -> None:
    many = ",".join("1" * 70)
    with pytest.raises(ModelError, match="'x' has 70 axes"):
        parse_model(
            f'<ir_version: 8, opset_import: ["" : 17]> g (float[{many}] x) => (float[a] y) {{ y = Relu(x) }}'
        )
    axes = ",".join(map(str, range(60)))
    text = f'<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) <int64[60] a = {{{axes}}}> {{ u = Unsqueeze(x, a)  y = Squeeze(u, a) }}'
    with pytest.raises(ModelError, match="'u' has 61 axes"):
        infer_types(parse_model(text))
