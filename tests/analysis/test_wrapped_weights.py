"""Weights behind other nodes: quantized, cast, transposed or handed on, they are cut where they are stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import CalibrationDataReader, quantize_static

from onnxcomp.analysis.channels import channel_groups
from onnxcomp.ir.graph import Array
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.ir.proto import from_proto, to_proto
from onnxcomp.testing import check_cut
from tests.support.channels import IMAGE, axes, free, hold, left, stays, stored
from tests.support.pruning import ZOO
from tests.support.text import net


def integers(dtype: str, *shape: int, seed: int = 0) -> Array:
    low, high = {"int8": (-100, 100), "uint8": (0, 255), "int32": (-2000, 2000)}[dtype]
    return np.random.default_rng([seed, *shape]).integers(low, high, shape).astype(dtype)


def text_of(name: str, array: Array) -> str:
    sizes = ",".join(map(str, array.shape))
    numbers = ",".join(map(str, array.reshape(-1).tolist()))
    return f"{array.dtype.name}{f'[{sizes}]' if sizes else ''} {name} = {{{numbers}}}"


def quantized(zero: str, per_channel: bool, weight: str = "int8") -> str:
    """A convolution with a stored integer weight and an int32 bias, and a reader with an integer weight of its own."""
    count = 6 if per_channel else 1
    size = f"[{count}]" if per_channel else ""
    scales = ",".join(f"{0.004 + 0.001 * i:g}" for i in range(count))
    zeros = {"int8": [0, 3, -5, 7, 0, 9], "uint8": [128, 120, 131, 128, 127, 140]}[weight][:count]
    stored = [
        text_of("a", integers(weight, 6, 3, 3, 3)),
        text_of("q", integers("int32", 6)),
        text_of("b", integers(weight, 4, 6, 1, 1)),
        f"float{size} sa = {{{scales}}}",
        f"float{size} sq = {{{scales}}}",
        "float sb = {0.01}",
        f"{weight}{size} za = {{{','.join(map(str, zeros))}}}",
        f"{weight} zb = {{{zeros[-1]}}}",
    ]
    axis = "<axis=0>" if per_channel else ""
    offset_a, offset_b = (", za", ", zb") if zero == "zero-points" else ("", "")
    if weight == "uint8" and zero != "zero-points":
        stored = stored[:6]
    body = (
        f"w = DequantizeLinear{axis}(a, sa{offset_a}) p = DequantizeLinear{axis}(q, sq)"
        f" v = DequantizeLinear(b, sb{offset_b})"
        " h = Conv<pads=[1,1,1,1]>(x, w, p) r = Sigmoid(h) y = Conv(r, v)"
    )
    return net(IMAGE, ", ".join(stored), body)


# --- quantized weights -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("weight", ["int8", "uint8"])
@pytest.mark.parametrize("zero", ["zero-points", "no-zero-points"])
@pytest.mark.parametrize("per_channel", [True, False], ids=["per-channel", "per-tensor"])
def test_a_quantized_weight_is_cut_with_its_scales_zero_points_and_bias(
    weight: str, zero: str, per_channel: bool
) -> None:
    cut = hold(quantized(zero, per_channel, weight))
    assert free(cut.groups) == {"h": 6}
    assert {("a", 0), ("q", 0), ("b", 1)} <= axes(cut.groups["h"])
    assert (("sa", 0) in axes(cut.groups["h"])) == per_channel
    count = left(cut, "h")
    assert stored(cut, "a") == (count, 3, 3, 3)
    assert stored(cut, "sq") == ((count,) if per_channel else ())
    if zero == "zero-points":
        assert stored(cut, "za") == ((count,) if per_channel else ())
    assert cut.pruned.graph.constants["a"].values.dtype == weight, "the node stays quantized"


def test_a_masked_quantized_weight_holds_its_zero_point() -> None:
    """The oracle zeroes what is consumed; an integer weight is zero where it is its zero point."""
    cut = check_cut(quantized("zero-points", False, "uint8"), {"h": np.arange(6) < 4})
    masked = cut.masked.graph.constants["b"].values
    assert (masked[:, 4:] == cut.masked.graph.constants["zb"].values).all()
    assert (masked[:, :4] == cut.pruned.graph.constants["b"].values).all()


def test_a_float_weight_that_is_quantized_in_the_graph_is_cut_with_its_scales() -> None:
    """What quantization-aware training exports: QuantizeLinear and DequantizeLinear behind a float weight."""
    scales = ",".join(["0.01"] * 6)
    cut = hold(
        net(
            IMAGE,
            f"float[6,3,3,3] a, float[4,6,1,1] b, float[6] s = {{{scales}}}, int8[6] z = {{0,0,0,0,0,0}}, float t = {{0.02}},"
            " int8 o = {0}",
            "u = QuantizeLinear<axis=0>(a, s, z) w = DequantizeLinear<axis=0>(u, s, z) h = Conv<pads=[1,1,1,1]>(x, w)"
            " n = QuantizeLinear(b, t, o) v = DequantizeLinear(n, t, o) y = Conv(h, v)",
        )
    )
    assert axes(cut.groups["h"]) == {("a", 0), ("s", 0), ("z", 0), ("b", 1)}


@pytest.mark.parametrize("axis", [1, -3])
def test_activations_quantized_per_channel_lose_scales_along(axis: int) -> None:
    scales = ",".join(f"{0.02 + 0.001 * i:g}" for i in range(6))
    cut = hold(
        net(
            IMAGE,
            f"float[6,3,3,3] a, float[4,6,1,1] b, float[6] s = {{{scales}}}, uint8[6] z = {{128,127,120,130,128,128}}",
            f"h = Conv<pads=[1,1,1,1]>(x, a) u = QuantizeLinear<axis={axis}>(h, s, z)"
            f" v = DequantizeLinear<axis={axis}>(u, s, z) y = Conv(v, b)",
        ),
        regimes=("normal", "zeros"),
    )
    assert axes(cut.groups["h"]) == {("a", 0), ("s", 0), ("z", 0), ("b", 1)}


def test_activations_quantized_per_tensor_let_channels_through() -> None:
    cut = hold(
        net(
            IMAGE,
            "float[6,3,3,3] a, float[4,6,1,1] b, float s = {0.02}, uint8 z = {128}",
            "h = Conv<pads=[1,1,1,1]>(x, a) u = QuantizeLinear(h, s, z) m = MaxPool<kernel_shape=[1,1]>(u)"
            " v = DequantizeLinear(m, s, z) y = Conv(v, b)",
        ),
        regimes=("normal", "zeros"),
    )
    assert free(cut.groups) == {"h": 6}


def test_a_quantized_depthwise_convolution_and_gemm_are_cut() -> None:
    scales = ",".join(["0.01"] * 6)
    cut = hold(
        net(
            "(float[N,3,8,8] x) => (float[N,5] y)",
            ", ".join(
                [
                    "float[6,3,3,3] a",
                    text_of("d", integers("int8", 6, 1, 3, 3)),
                    text_of("g", integers("int8", 5, 6)),
                    text_of("p", integers("int32", 5)),
                    f"float[6] s = {{{scales}}}",
                    "float t = {0.01}",
                ]
            ),
            "h = Conv<pads=[1,1,1,1]>(x, a) w = DequantizeLinear<axis=0>(d, s) i = Conv<group=6, pads=[1,1,1,1]>(h, w)"
            " f = GlobalAveragePool(i) e = Flatten(f) v = DequantizeLinear(g, t) b = DequantizeLinear(p, t)"
            " y = Gemm<transB=1>(e, v, b)",
        )
    )
    assert free(cut.groups) == {"h": 6}
    assert stored(cut, "d") == (left(cut, "h"), 1, 3, 3)
    assert stored(cut, "g") == (5, left(cut, "h"))


def test_a_weight_that_is_quantized_in_blocks_blocks() -> None:
    text = net(
        "(float[N,6] x) => (float[N,5] y)",
        ", ".join(
            [
                "float[6,8] a",
                text_of("b", integers("int8", 8, 5)),
                "float[2,5] s = {0.1,0.1,0.1,0.1,0.1,0.2,0.2,0.2,0.2,0.2}",
            ]
        ),
        "[first] h = MatMul(x, a) w = DequantizeLinear<axis=0, block_size=4>(b, s) y = MatMul(h, w)",
        21,
    )
    assert "first" in stays(text)


# --- weights that are handed on --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "wrap",
    ["w = Identity(b)", "w = Cast<to=1>(b)", "i = Identity(b) j = Cast<to=10>(i) w = Cast<to=1>(j)"],
)
def test_a_weight_behind_identity_or_cast_is_cut_where_it_is_stored(wrap: str) -> None:
    cut = hold(
        net(
            IMAGE,
            "float[6,3,3,3] a, float[5,6,1,1] b, float[5] q, float[4,5,1,1] c",
            f"h = Conv<pads=[1,1,1,1]>(x, a) {wrap} p = Identity(q) i2 = Conv(h, w, p) y = Conv(i2, c)",
        )
    )
    assert free(cut.groups) == {"h": 6, "i2": 5}
    assert stored(cut, "b") == (left(cut, "i2"), left(cut, "h"), 1, 1)
    assert stored(cut, "q") == (left(cut, "i2"),)


def test_a_weight_in_a_constant_node_is_cut() -> None:
    proto = to_proto(
        parse_model(
            net(
                IMAGE,
                "float[6,3,3,3] a, float[5,6,1,1] b, float[4,5,1,1] c",
                "h = Conv<pads=[1,1,1,1]>(x, a) i = Conv(h, b) y = Conv(i, c)",
            )
        )
    )
    tensor = next(t for t in proto.graph.initializer if t.name == "b")
    node = onnx.helper.make_node("Constant", [], ["b"], value=tensor)
    proto.graph.initializer.remove(tensor)
    proto.graph.node.insert(0, node)
    cut = hold(from_proto(proto))
    assert free(cut.groups) == {"h": 6, "i": 5}
    assert stored(cut, "b") == (left(cut, "i"), left(cut, "h"), 1, 1)


def half(model: Model, name: str) -> Model:
    constant = model.graph.constants[name]
    constant.values = constant.values.astype(np.float16)
    return model


def test_a_weight_stored_in_half_precision_and_cast_is_cut() -> None:
    model = parse_model(
        net(
            IMAGE,
            "float[6,3,3,3] a, float16[5,6,1,1] b, float[4,5,1,1] c",
            "h = Conv<pads=[1,1,1,1]>(x, a) w = Cast<to=1>(b) i = Conv(h, w) y = Conv(i, c)",
        )
    )
    cut = hold(half(model, "b"))
    assert free(cut.groups) == {"h": 6, "i": 5}
    assert cut.pruned.graph.constants["b"].values.dtype == np.float16


def test_a_transposed_weight_is_cut_along_its_own_axes() -> None:
    cut = hold(
        net(
            "(float[N,6] x) => (float[N,5] y)",
            "float[8,6] a, float[5,8] b",
            "[first] w = Transpose(a) [mid] h = MatMul(x, w) r = Relu(h) v = Transpose<perm=[1,0]>(b) y = MatMul(r, v)",
        )
    )
    assert free(cut.groups) == {"mid": 8}
    assert axes(cut.groups["mid"]) == {("a", 0), ("b", 1)}


def test_a_wrapped_weight_that_two_convolutions_read_ties_them() -> None:
    cut = hold(
        net(
            IMAGE,
            "float[6,3,3,3] a, float[6,6,1,1] b, float[4,6,1,1] c",
            "h = Conv<pads=[1,1,1,1]>(x, a) w = Identity(b) i = Conv(h, w) j = Conv(i, w) y = Conv(j, c)",
        )
    )
    assert free(cut.groups) == {"h": 6}
    assert stored(cut, "b") == (left(cut, "h"), left(cut, "h"), 1, 1)


def test_a_wrapped_weight_that_something_else_reads_too_stays() -> None:
    text = net(
        IMAGE,
        "float[6,3,3,3] a, float[6,6,1,1] b, float[4,6,1,1] c",
        "h = Conv<pads=[1,1,1,1]>(x, a) w = Identity(b) [odd] i = Conv(h, w) m = ReduceMean(w) n = Mul(i, m) y = Conv(n, c)",
    )
    assert stays(text)["h"] == "Conv 'odd' has a computed weight"


def test_an_excluded_wrapper_keeps_its_weight() -> None:
    model = parse_model(
        net(
            IMAGE,
            "float[6,3,3,3] a, float[5,6,1,1] b, float[4,5,1,1] c",
            "h = Conv<pads=[1,1,1,1]>(x, a) [wrap] w = Identity(b) i = Conv(h, w) y = Conv(i, c)",
        )
    )
    groups = channel_groups(model, excluded={"wrap": "it is excluded"})
    assert (groups["h"].blocked, groups["i"].blocked) == ("it is excluded", "it is excluded")


# --- a whole quantized network ---------------------------------------------------------------------------------------
class Noise(CalibrationDataReader):  # type: ignore[misc]
    """Four noisy images for onnxruntime's quantizer."""

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self.feeds = iter(
            {name: np.random.default_rng(seed).standard_normal(shape).astype(np.float32)} for seed in range(4)
        )

    def get_next(self) -> dict[str, Array] | None:
        return next(self.feeds, None)


@pytest.mark.parametrize("per_channel", [True, False], ids=["per-channel", "per-tensor"])
@pytest.mark.parametrize("name", ["digits_mobilenet", "digits_resnet"])
def test_a_network_quantized_by_onnxruntime_is_cut_like_the_float_one(
    name: str, per_channel: bool, tmp_path: Path
) -> None:
    source, target = ZOO / f"{name}.onnx", tmp_path / "quantized.onnx"
    proto = onnx.load(source)
    fed = from_proto(proto).graph.inputs[0]
    shape = tuple(size if isinstance(size, int) else 1 for size in fed.shape or ())
    quantize_static(source, target, Noise(fed.name, shape), per_channel=per_channel)
    quantized = from_proto(onnx.load(target))
    assert len(free(channel_groups(quantized))) == len(free(channel_groups(from_proto(proto))))
    cut = hold(quantized, seeds=1, batches=(1,), regimes=("normal",))
    assert {c.values.dtype.name for c in cut.pruned.graph.constants.values()} >= {"int8", "int32"}
