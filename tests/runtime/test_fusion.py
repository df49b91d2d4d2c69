"""What onnxruntime makes of quantized graphs: the table of patterns, names, reasons, islands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.ir.parse import parse_model
from onnxcomp.ir.proto import from_proto
from onnxcomp.runtime import fusion
from onnxcomp.runtime.fusion import Fusion, KernelNode, fusion_of
from onnxcomp.runtime.session import SessionError
from tests.support.quantized import INT8, UINT16, Quantized
from tests.support.text import net

Body = Callable[[Quantized, str], str]


def names(found: tuple[KernelNode, ...]) -> list[str]:
    return [node.name for node in found]


def after_conv(body: Body) -> Fusion:
    """Return the fusion of `body`, which adds nodes behind a quantized convolution and returns what they make."""
    graph = Quantized()
    return fusion_of(graph.model(body(graph, graph.start())))


FUSES: dict[str, Body] = {
    "Sigmoid": lambda g, v: g.pair(g.node("Sigmoid", "it", v)),
    "LeakyRelu": lambda g, v: g.pair(g.node("LeakyRelu", "it", v)),
    "Softmax": lambda g, v: g.pair(g.node("Softmax", "it", v)),
    "Mul": lambda g, v: g.pair(g.node("Mul", "it", v, v), 0.1),
    "Add": lambda g, v: g.pair(g.node("Add", "it", v, v), 0.1),
    "Concat of one scale": lambda g, v: g.pair(g.node("Concat", "it", v, v, axis=1)),
    "Concat of two scales": lambda g, v: g.pair(g.node("Concat", "it", v, v, axis=1), 0.1),
    "AveragePool": lambda g, v: g.pair(g.node("AveragePool", "it", v, kernel_shape=[2, 2]), 0.03),
    "GlobalAveragePool": lambda g, v: g.pair(g.node("GlobalAveragePool", "it", v), 0.03),
    "MaxPool": lambda g, v: g.pair(g.node("MaxPool", "it", v, kernel_shape=[2, 2])),
    "Transpose": lambda g, v: g.pair(g.node("Transpose", "it", v, perm=[1, 0, 2, 3])),
    "Reshape": lambda g, v: g.pair(g.node("Reshape", "it", v, g.store("shape", np.array([8, -1])))),
    "Gather": lambda g, v: g.pair(g.node("Gather", "it", v, g.store("index", np.array([1, 2])), axis=1)),
    "Resize, nearest": lambda g, v: g.pair(
        g.node("Resize", "it", v, "", g.store("sizes", np.array([1, 1, 2, 2], np.float32)), mode="nearest")
    ),
    "Conv": lambda g, v: g.pair(g.conv("it", v)),
    "Conv and Relu, from zero": lambda g, v: g.pair(g.node("Relu", "relu", g.conv("it", v)), zero=0),
    "Conv and Clip within its bounds": lambda g, v: g.pair(
        g.node("Clip", "clip", g.conv("it", v), g.store("lo", np.float32(0)), g.store("hi", np.float32(6))),
        scale=6 / 255,
        zero=0,
    ),
    "Conv to signed numbers": lambda g, v: g.pair(g.conv("it", v), 0.05, 0, INT8),
    "ArgMax": lambda g, v: g.node("Cast", "cast", g.node("ArgMax", "it", v, axis=1), to=TensorProto.FLOAT),
}


@pytest.mark.parametrize("pattern", FUSES)
def test_what_the_table_says_to_fuse_is_counted_as_running_on_integers(pattern: str) -> None:
    found = after_conv(FUSES[pattern])
    assert names(found.fused) == ["first", "it"]
    assert (found.unfused, found.floats, found.islands) == ((), (), ())
    assert str(found) == "2 fused, 0 unfused, 0 float; 0 float between integer nodes"


STAYS: dict[str, tuple[Body, str]] = {
    "Pad": (
        lambda g, v: g.pair(g.node("Pad", "it", v, g.store("pads", np.array([0, 0, 1, 1, 0, 0, 1, 1])))),
        "onnxruntime has no integer kernel for Pad",
    ),
    "HardSwish": (lambda g, v: g.pair(g.node("HardSwish", "it", v)), "no integer kernel for HardSwish"),
    "Gelu": (lambda g, v: g.pair(g.node("Gelu", "it", v)), "no integer kernel for Gelu"),
    "ReduceMean": (
        lambda g, v: g.pair(g.node("ReduceMean", "it", v, g.store("axes", np.array([2, 3])))),
        "no integer kernel for ReduceMean",
    ),
    "ConvTranspose": (
        lambda g, v: g.pair(g.node("ConvTranspose", "it", v, g.weight("w", 8, 8, 3, 3, axis=1))),
        "no integer kernel for ConvTranspose",
    ),
    "Resize, linear": (
        lambda g, v: g.pair(
            g.node("Resize", "it", v, "", g.store("sizes", np.array([1, 1, 2, 2], np.float32)), mode="linear")
        ),
        "Resize runs on integers with mode nearest only, not linear",
    ),
    "MaxPool across two scales": (
        lambda g, v: g.pair(g.node("MaxPool", "it", v, kernel_shape=[2, 2]), 0.03),
        "scale or zero point change across it",
    ),
    "MaxPool across two zero points": (
        lambda g, v: g.pair(g.node("MaxPool", "it", v, kernel_shape=[2, 2]), zero=100),
        "scale or zero point change across it",
    ),
    "Conv without a pair behind": (lambda g, v: g.conv("it", v), "no QuantizeLinear behind it"),
    "Conv and Relu, around zero": (
        lambda g, v: g.pair(g.node("Relu", "relu", g.conv("it", v)), zero=128),
        "the range behind its Relu begins at -6.4, below 0",
    ),
    "Conv and Clip beyond its bounds": (
        lambda g, v: g.pair(
            g.node("Clip", "c", g.conv("it", v), g.store("lo", np.float32(0)), g.store("hi", np.float32(6))),
            zero=0,
        ),
        "the range behind its Clip ends at 12.75, above 6",
    ),
    "Conv to 16 bits": (
        lambda g, v: g.pair(g.conv("it", v), 0.001, 0, UINT16),
        "16-bit activations",
    ),
    "Add with a float side": (
        lambda g, v: g.pair(g.node("Add", "it", v, "x")),
        "its input x is not quantized",
    ),
}


@pytest.mark.parametrize("pattern", STAYS)
def test_what_the_table_says_to_stay_float_is_named_with_the_reason(pattern: str) -> None:
    body, reason = STAYS[pattern]
    found = after_conv(body)
    assert "first" in names(found.fused)
    assert names(found.unfused) == ["it"]
    assert reason in found.unfused[0].reason


def test_a_convolution_read_in_float_too_says_who_reads_it() -> None:
    graph = Quantized()
    made = graph.conv("it", graph.pair("x"))
    found = fusion_of(graph.model(graph.pair(made), graph.node("Sqrt", "root", made)))
    (node,) = found.unfused
    assert (node.name, node.op) == ("it", "Conv")
    assert node.reason == "its output is read by other nodes beside QuantizeLinear"
    graph = Quantized()
    made = graph.conv("it", graph.pair("x"))
    (node,) = fusion_of(graph.model(graph.pair(made), made)).unfused
    assert node.reason == "its output is read by the output of the graph beside QuantizeLinear"


def test_a_gemm_at_the_end_runs_on_integers_without_a_pair_behind() -> None:
    def gemm(g: Quantized, v: str) -> str:
        flat = g.pair(g.node("Flatten", "flat", g.pair(g.node("GlobalAveragePool", "pool", v))))
        return g.node("Gemm", "it", flat, g.weight("w", 8, 10, axis=1))

    found = after_conv(gemm)
    assert names(found.fused) == ["first", "pool", "flat", "it"]
    assert found.fused[-1].kernel == "com.microsoft.QGemm"
    assert (found.quantize, found.unfused) == (1, ())


def test_a_matmul_and_its_bias_without_a_pair_behind_become_a_float_gemm() -> None:
    def product(g: Quantized, v: str) -> str:
        flat = g.pair(g.node("Flatten", "flat", g.pair(g.node("GlobalAveragePool", "pool", v))))
        made = g.node("MatMul", "it", flat, g.weight("w", 8, 10, axis=1))
        return g.node("Add", "bias", made, g.store("b", np.ones(10, np.float32)))

    (node,) = after_conv(product).unfused
    assert (node.name, node.op, node.kernel) == ("it", "MatMul", "Gemm")
    assert "make it a Gemm" in node.reason


def test_weights_alone_do_not_make_a_convolution_run_on_integers() -> None:
    graph = Quantized()
    (node,) = fusion_of(graph.model(graph.conv("it", "x"))).unfused
    assert (node.name, node.reason) == ("it", "its input x is not quantized")


def test_a_change_of_layout_between_does_not_hide_what_was_meant() -> None:
    graph = Quantized()
    wide = graph.pair(graph.conv("first", graph.pair("x"), 32))
    pool = graph.node("MaxPool", "it", wide, kernel_shape=[2, 2], strides=[2, 2])
    found = fusion_of(graph.model(graph.pair(pool, 0.03)))
    assert names(found.fused) == ["first"]
    (node,) = found.unfused
    assert (node.name, "MaxPool" in node.kernel) == ("it", True)
    assert "needs the same on both sides" in node.reason


@pytest.mark.parametrize(
    ("op", "shape"), [("MatMul", (16, 64)), ("Add", (1, 8, 16, 16)), ("Mul", (1, 8, 1, 1))]
)
def test_a_constant_that_is_not_quantized_is_named(op: str, shape: tuple[int, ...]) -> None:
    graph = Quantized()
    value = graph.node(op, "it", graph.pair("x"), graph.store("w", np.ones(shape, np.float32)))
    (node,) = fusion_of(graph.model(graph.pair(value))).unfused
    assert (node.name, node.reason) == ("it", "its constant w is not quantized")


def test_16_bit_activations_are_told_and_what_moves_them_runs_all_the_same() -> None:
    graph = Quantized()
    value = graph.pair("x", 0.001, 100, UINT16)
    conv = graph.pair(graph.conv("it", value), 0.001, 100, UINT16)
    flat = graph.pair(graph.node("Flatten", "flat", conv), 0.001, 100, UINT16)
    found = fusion_of(graph.model(flat))
    assert names(found.fused) == ["flat"]
    assert [(n.name, n.reason) for n in found.unfused] == [("it", "16-bit activations")]


def test_float_nodes_between_integer_nodes_are_islands_and_those_at_the_ends_are_not() -> None:
    graph = Quantized()
    before = graph.node("Sin", "before", "x")
    one = graph.pair(graph.conv("one", graph.pair(before)))
    island = graph.pair(graph.node("Exp", "second", graph.node("Tanh", "first", one)))
    two = graph.pair(graph.conv("two", island))
    found = fusion_of(graph.model(graph.node("Cos", "behind", two)))
    assert names(found.fused) == ["one", "two"]
    assert (names(found.floats), names(found.unfused)) == (["before", "first", "second", "behind"], [])
    assert names(found.islands) == ["first", "second"]


def test_a_float_branch_beside_integers_is_no_island_and_one_that_returns_is() -> None:
    graph = Quantized()
    value = graph.start()
    beside = graph.node("Sin", "beside", value)
    returning = graph.pair(graph.node("Tanh", "returning", value))
    joined = graph.pair(graph.node("Add", "join", value, returning), 0.1)
    found = fusion_of(graph.model(joined, beside))
    assert names(found.islands) == ["returning"]
    assert names(found.floats) == ["beside"]


def test_what_hangs_together_by_positions_only_is_no_island() -> None:
    graph = Quantized()
    value = graph.start()
    place = graph.node("ArgMax", "place", graph.node("Tanh", "float", value), axis=1)
    found = fusion_of(graph.model(graph.pair(graph.node("Gather", "pick", value, place, axis=1))))
    assert {"first", "pick"} <= set(names(found.fused))
    assert {"float"} <= set(names(found.floats))
    assert found.islands == ()


def test_float_nodes_between_products_of_quantized_weights_alone_convert_nothing() -> None:
    graph = Quantized()
    one = graph.node("MatMul", "one", "x", graph.weight("a", 16, 32, axis=1))
    two = graph.node("MatMul", "two", graph.node("Tanh", "between", one), graph.weight("b", 32, 16, axis=1))
    found = fusion_of(graph.model(two))
    assert "between" in names(found.floats)
    assert found.islands == ()


def test_an_operator_that_onnxruntime_takes_apart_is_one_node_with_all_its_kernels() -> None:
    (node,) = after_conv(lambda g, v: g.pair(g.node("HardSwish", "it", v))).unfused
    assert (node.name, node.op) == ("it", "HardSwish")
    graph = Quantized()
    found = fusion_of(
        graph.model(graph.conv("end", graph.pair(graph.node("HardSwish", "it", graph.start()))))
    )
    assert (names(found.unfused), found.floats) == (["it", "end"], ())


def test_layout_changes_that_onnxruntime_adds_are_no_nodes_of_the_model() -> None:
    found = after_conv(lambda g, v: v)
    assert names(found.fused) == ["first"]
    assert found.layout >= 1


def test_a_float_model_has_float_nodes_only() -> None:
    text = net("(float[N,8,4,4] x) => (float[N,8,4,4] y)", "float[8,8,1,1] w", "h = Conv(x, w)  y = Relu(h)")
    found = fusion_of(parse_model(text))
    assert (found.fused, found.unfused, found.islands, found.quantize, found.dequantize) == ((), (), (), 0, 0)
    assert [(n.name, n.op) for n in found.floats] == [("h", "Conv")]


def test_dynamic_quantization_runs_on_integers() -> None:
    body = "q, s, z = DynamicQuantizeLinear(x)  [it] i = MatMulInteger(q, w, z)  f = Cast<to=1>(i)  y = Mul(f, s)"
    text = net("(float[2,2] x) => (float[2,2] y)", "int8[2,2] w = {1,2,3,4}", body)
    found = fusion_of(parse_model(text))
    assert [n.op for n in found.fused] == ["MatMulInteger"]
    assert (found.unfused, found.islands) == ((), ())


def test_sizes_and_indices_are_no_float_nodes() -> None:
    body = "s = Shape(x)  i = Gather<axis=0>(s, one)  c = Cast<to=1>(i)  z = Relu(x)  y = Mul(z, c)"
    text = net("(float[N,8] x) => (float[N,8] y)", "int64[1] one = {1}", body)
    assert [n.op for n in fusion_of(parse_model(text)).floats] == ["Relu", "Mul"]


def test_nodes_of_subgraphs_are_counted_by_their_names() -> None:
    graph = Quantized()
    value = graph.start()
    then, other = Quantized(), Quantized()
    then.pair(then.conv("inner", then.pair(value, name="begin")), name="end")
    other.node("Tanh", "tanh", value)
    branches = {
        "then_branch": _branch(then, "end.dq.out"),
        "else_branch": _branch(other, "tanh.out"),
    }
    total = graph.node("ReduceMax", "max", "x", keepdims=0)
    condition = graph.node("Greater", "greater", total, graph.store("limit", np.float32(1)))
    found = fusion_of(graph.model(graph.node("If", "choice", condition, **branches)))
    assert set(names(found.fused)) == {"first", "inner"}
    assert {"tanh", "max"} <= set(names(found.floats))
    assert names(found.unfused) == []


def _branch(graph: Quantized, output: str) -> object:
    info = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    stored = [numpy_helper.from_array(v, k) for k, v in graph.stored.items()]
    return helper.make_graph(graph.nodes, "branch", [], [info], stored)


def test_a_model_too_large_for_one_message_goes_by_way_of_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(fusion, "PIECE_LIMIT", 10)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert names(after_conv(lambda g, v: v).fused) == ["first"]
    assert list(tmp_path.iterdir()) == []


def test_the_model_is_left_as_it_is_and_the_result_cannot_be_changed() -> None:
    graph = Quantized()
    model = graph.model(graph.start())
    before = [(n.name, n.op, len(n.inputs)) for n in model.graph.nodes]
    found = fusion_of(model)
    assert [(n.name, n.op, len(n.inputs)) for n in model.graph.nodes] == before
    with pytest.raises(FrozenInstanceError):
        found.quantize = 3  # type: ignore[misc]


def test_a_model_that_onnxruntime_does_not_load_says_so() -> None:
    node = helper.make_node("Odd", ["x"], ["y"], domain="nobody")
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("nobody", 1)]
    proto = helper.make_model(
        helper.make_graph([node], "g", info[:1], info[1:]), opset_imports=imports, ir_version=8
    )
    with pytest.raises(SessionError, match="Odd"):
        fusion_of(from_proto(proto))
