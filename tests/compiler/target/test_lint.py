"""Files held against targets: a right one gives no finding, and one thing that is wrong gives that finding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy.typing import DTypeLike

from onnxcomp.compiler.target.files import load_target, target_names
from onnxcomp.compiler.target.lint import Finding, check_target, hard_notes
from onnxcomp.ir.graph import Node, Variable
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.ir.text import dump
from tests.support.quantized import Quantized
from tests.support.text import net


@dataclass(frozen=True)
class Style:
    """How the small residual network of `quantized` is quantized."""

    dtype: DTypeLike = np.uint8
    zero: int = 128
    relu_zero: int = 0
    scale: float = 0.05
    weight: DTypeLike = np.int8
    weight_scale: float = 0.01
    per_channel: bool = True
    int_bias: bool = False
    out: bool = True


RIGHT = {
    "ort-cpu": Style(),
    "ort-cpu-avx2": Style(),
    "openvino": Style(),
    "tensorrt": Style(np.int8, 0, 0),
    "qnn": Style(int_bias=True),
    "pow2": Style(np.int8, 0, 0, 2**-4, weight_scale=2**-7, per_channel=False, int_bias=True),
    "amd-npu": Style(np.int8, 0, 0, 2**-4, weight_scale=2**-7, per_channel=False, int_bias=True),
    "st-edge-ai": Style(np.int8, 0, -128, int_bias=True),
    "st-mp2": Style(weight=np.uint8, per_channel=False, int_bias=True),
}
"""What suits each target that reads pairs."""


def quantized(style: Style) -> Model:
    """Return convolutions `one` and `two`, a residual Add `sum`, a Concat `join` and a pooling `pool`, all in pairs."""
    graph = Quantized()

    def pair(value: str, name: str, zero: int | None = None) -> str:
        kind = np.dtype(style.dtype)
        return graph.pair(value, style.scale, style.zero if zero is None else zero, kind, name)

    def conv(name: str, value: str) -> str:
        count = 8 if style.per_channel else ()
        parts = [
            graph.store(
                f"{name}.w", np.arange(-60, 60).astype(style.weight)[:72].repeat(8).reshape(8, 8, 3, 3)
            ),
            graph.store(f"{name}.w.scale", np.full(count, style.weight_scale, np.float32)),
            graph.store(f"{name}.w.zero", np.zeros(count, style.weight)),
        ]
        weight = graph.node("DequantizeLinear", f"{name}.w.dq", *parts, axis=0)
        bias = graph.store(f"{name}.b", np.arange(8).astype(np.int32 if style.int_bias else np.float32))
        if style.int_bias:
            scale = np.full(count, np.float32(style.scale) * np.float32(style.weight_scale), np.float32)
            parts = [
                bias,
                graph.store(f"{name}.b.scale", scale),
                graph.store(f"{name}.b.zero", np.zeros(count, np.int32)),
            ]
            bias = graph.node("DequantizeLinear", f"{name}.b.dq", *parts, axis=0)
        return graph.node("Conv", name, value, weight, bias, pads=[1] * 4)

    first = pair(graph.node("Relu", "relu", conv("one", pair("x", "given"))), "first", style.relu_zero)
    both = pair(graph.node("Add", "sum", pair(conv("two", first), "second"), first), "both")
    joined = pair(graph.node("Concat", "join", both, both, axis=1), "joined")
    pooled = pair(graph.node("MaxPool", "pool", joined, kernel_shape=[2, 2]), "pooled")
    model = graph.model(pooled, opset=17)
    model.ir_version = 8
    return model


def node(model: Model, name: str) -> Node:
    return next(n for n in model.graph.nodes if n.name == name)


def put(model: Model, name: str, index: int, values: object, dtype: DTypeLike) -> None:
    """Give a node its own stored input."""
    model.graph.set_constant(node(model, name), index, np.asarray(values, dtype))


def of_pair(model: Model, name: str, index: int, values: object, dtype: DTypeLike) -> None:
    """Give both nodes of a pair the same new scale (1) or zero point (2)."""
    for end in ("q", "dq"):
        put(model, f"{name}.{end}", index, values, dtype)


def unpair(model: Model, name: str) -> None:
    """Let the readers of a pair read what stands in front of it."""
    before, after = node(model, f"{name}.q").inputs[0], node(model, f"{name}.dq").output
    assert model.graph.replace_all_uses(after, before)
    model.graph.remove_nodes([node(model, f"{name}.dq"), node(model, f"{name}.q")])


def found(model: Model, target: str) -> list[tuple[str, str, bool]]:
    return [(f.table, f.where, f.hard) for f in check_target(model, load_target(target))]


@pytest.mark.parametrize("target", RIGHT)
def test_a_file_that_is_right_gives_no_finding(target: str) -> None:
    assert check_target(quantized(RIGHT[target]), load_target(target)) == ()


def test_every_target_that_reads_pairs_has_its_right_file() -> None:
    assert {n for n in target_names() if load_target(n).family == "qdq"} == set(RIGHT)


# --- one thing wrong -------------------------------------------------------------------------------------------------
def _opset(model: Model) -> None:
    model.opset_imports[""] = 21


def _ir(model: Model) -> None:
    model.ir_version = 10


def _free(model: Model) -> None:
    model.graph.inputs[0].shape = ("N", 8, 16, 16)


def _shapeless(model: Model) -> None:
    model.graph.inputs[0].shape = None


def _foreign(model: Model) -> None:
    node(model, "pool").domain = "com.example"


def _transposed_axis(model: Model) -> None:
    node(model, "two.w.dq").attrs["axis"] = 1


def _one_scale_of_all(model: Model) -> None:
    put(model, "two.w.dq", 1, 0.01, np.float32)
    put(model, "two.w.dq", 2, 0, np.int8)


def _many_scales(model: Model) -> None:
    put(model, "two.w.dq", 1, np.full(8, 2**-7), np.float32)
    put(model, "two.w.dq", 2, np.zeros(8), np.int8)


def _asymmetric_weight(model: Model) -> None:
    put(model, "two.w.dq", 2, np.ones(8), np.int8)


def _wide_weight(model: Model) -> None:
    put(model, "two.w.dq", 0, np.full((8, 8, 3, 3), -100), np.int8)


def _wider_weight(model: Model) -> None:
    put(model, "two.w.dq", 0, np.full((8, 8, 3, 3), -128), np.int8)


def _float_bias(model: Model) -> None:
    model.graph.set_input(node(model, "two"), 2, model.graph.add_constant("bias", np.zeros(8, np.float32)))


def _scale_of_bias(model: Model) -> None:
    put(model, "two.b.dq", 1, np.full(8, 0.02 * 0.05), np.float32)


def _side_in_float(model: Model) -> None:
    unpair(model, "second")


def _relu_apart(model: Model) -> None:
    graph, relu = model.graph, node(model, "relu")
    numbers = [node(model, "given.q").inputs[1], node(model, "given.q").inputs[2]]
    stored, real = (
        Variable("apart.s", np.dtype(np.uint8), None),
        Variable("apart.r", np.dtype(np.float32), None),
    )
    graph.insert(Node("QuantizeLinear", "apart.q", {}, [relu.inputs[0], *numbers], [stored]), relu)
    graph.insert(Node("DequantizeLinear", "apart.dq", {}, [stored, *numbers], [real]), relu)
    graph.set_input(relu, 0, real)


def _other_scale_behind_concat(model: Model) -> None:
    of_pair(model, "joined", 1, 0.1, np.float32)
    of_pair(model, "pooled", 1, 0.1, np.float32)


def _bare_end(model: Model) -> None:
    unpair(model, "pooled")


WRONG: dict[str, tuple[str, Callable[[Model], None], list[tuple[str, str, bool]]]] = {
    "opset": ("st-edge-ai", _opset, [("opset", "the file", True)]),
    "opset, advice": ("pow2", _opset, [("opset", "the file", False)]),
    "IR version": ("st-edge-ai", _ir, [("ir", "the file", True)]),
    "free size": ("qnn", _free, [("shapes", "x", True)]),
    "no shape": ("qnn", _shapeless, [("shapes", "x", True)]),
    "foreign domain": ("tensorrt", _foreign, [("domains", "pool", True)]),
    "axis of scales": ("tensorrt", _transposed_axis, [("weights", "two", True)]),
    "per tensor": ("tensorrt", _one_scale_of_all, [("weights", "two", False)]),
    "per channel": ("pow2", _many_scales, [("weights", "two", True)]),
    "asymmetric weight": (
        "tensorrt",
        _asymmetric_weight,
        [("weights", "two", True), ("zero-point", "two.w.dq", True)],
    ),
    "seven bits": ("ort-cpu-avx2", _wide_weight, [("weights", "two", True)]),
    "-128": ("tensorrt", _wider_weight, [("weights", "two", True)]),
    "float bias": ("qnn", _float_bias, [("bias", "two", False)]),
    "scale of a bias": ("qnn", _scale_of_bias, [("bias", "two", True)]),
    "float side": ("ort-cpu", _side_in_float, [("placement", "sum", False), ("placement", "two", False)]),
    "pair in front of Relu": ("ort-cpu", _relu_apart, [("operators", "relu", False)]),
    "bare output": ("qnn", _bare_end, [("boundary", "pooled.dq.out", True)]),
    "activation type": (
        "qnn",
        lambda m: of_pair(m, "both", 2, 0, np.int8),
        [("activations", "both.q", True)],
    ),
    "second choice": (
        "ort-cpu",
        lambda m: of_pair(m, "both", 2, 0, np.int8),
        [("activations", "both.q", False)],
    ),
    "zero point": (
        "tensorrt",
        lambda m: of_pair(m, "given", 2, 3, np.int8),
        [
            ("activations", "given.q", True),
            ("zero-point", "given.dq", True),
            ("boundary", "given.q", False),
        ],
    ),
    "power of two": (
        "pow2",
        lambda m: of_pair(m, "second", 1, 0.3, np.float32),
        [("scale", "second.dq", True)],
    ),
    "negative scale": (
        "ort-cpu",
        lambda m: of_pair(m, "second", 1, -0.5, np.float32),
        [("scale", "second.dq", True)],
    ),
    "scale of Concat": (
        "tensorrt",
        _other_scale_behind_concat,
        [("placement", "join", False)],
    ),
    "scale across pooling": (
        "ort-cpu",
        lambda m: of_pair(m, "pooled", 1, 0.1, np.float32),
        [("operators", "pool", False)],
    ),
    "range behind Relu": (
        "ort-cpu",
        lambda m: of_pair(m, "first", 2, 128, np.uint8),
        [("operators", "relu", False)],
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_one_thing_wrong_gives_that_finding_and_no_other(case: str) -> None:
    target, spoil, expected = WRONG[case]
    model = quantized(RIGHT[target])
    spoil(model)
    assert sorted(found(model, target)) == sorted(expected)
    for finding in check_target(model, load_target(target)):
        assert finding.what
        assert finding.advice


def test_operators_that_are_not_taken_are_named() -> None:
    text = net(
        "(bool c, float[2] x) => (float[2] y)",
        "float[2] w = {1, 2}",
        "y = If (c) <then_branch = g () => (float[2] a) { a = Add(x, w) }, else_branch = h () => (float[2] b) { b = Mul(x, w) }>",
    )
    model = parse_model(text)
    (finding,) = [f for f in check_target(model, load_target("qnn")) if f.hard]
    assert (finding.table, finding.what) == ("refuses", "operator If is not taken")


def test_a_float_file_is_advised_to_be_quantized_and_a_quantized_one_refused_by_those_who_quantize() -> None:
    plain = parse_model(
        net("(float[1, 2] x) => (float[1, 2] y)", "float[2, 2] w = {1, 2, 3, 4}", "y = MatMul(x, w)")
    )
    (advice,) = check_target(plain, load_target("tensorrt"))
    assert (advice.table, advice.hard) == ("family", False)
    assert advice.advice == "run insert-qdq with --target tensorrt"
    assert check_target(plain, load_target("ncnn")) == ()
    findings = check_target(quantized(Style()), load_target("ncnn"))
    assert {f.table for f in findings} == {"family"}
    assert all(f.hard for f in findings)
    assert len(findings) == 6


def test_weights_that_are_only_stored_in_integers_bind_no_target() -> None:
    """A float input means that the weight is dequantized: its type and symmetry are nobody's business."""
    model = quantized(replace(RIGHT["tensorrt"], dtype=np.int8))
    put(model, "one.w.dq", 2, np.ones(8), np.int8)
    unpair(model, "given")
    tables = [(f.table, f.where) for f in check_target(model, load_target("tensorrt"))]
    assert tables == [("zero-point", "one.w.dq")]


def test_a_scale_that_is_computed_is_no_activation_scale() -> None:
    model = quantized(Style())
    quantize = node(model, "both.q")
    scale = Variable("scale.now", np.dtype(np.float32), ())
    reduced = Node("ReduceMax", "widest", {"keepdims": 0}, [quantize.inputs[0]], [scale])
    model.graph.insert(reduced, quantize)
    model.graph.set_input(quantize, 1, scale)
    findings = check_target(model, load_target("ort-cpu"))
    assert (
        Finding(
            "activations",
            "both.q",
            "scale and zero point are computed at run time",
            "quantize statically",
            False,
        )
        in findings
    )


def test_checking_edits_nothing() -> None:
    model = quantized(Style())
    before = dump(model)
    check_target(model, load_target("pow2"))
    assert dump(model) == before


def test_notes_tell_each_hard_fact_once_with_what_to_do() -> None:
    model = quantized(RIGHT["st-edge-ai"])
    model.opset_imports[""] = 21
    notes = hard_notes(model, load_target("st-edge-ai"))
    assert notes == ("target st-edge-ai wants opset <= 20, the file has 21; use --opset 20",)
    first, second = hard_notes(quantized(Style()), load_target("tensorrt"))
    assert first == (
        "target tensorrt: given.q: the activation is uint8, taken is int8 (and 5 more); quantize activations as int8"
    )
    assert second.startswith(
        "target tensorrt: given.dq: the zero point is 128, only 0 is taken (and 4 more); "
    )
    assert hard_notes(quantized(Style()), load_target("ort-cpu")) == ()
