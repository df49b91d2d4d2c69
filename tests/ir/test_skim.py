"""The light view of a graph: who reads what, types as far as they can be known, subgraphs, and data that stays unread."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnxcomp.ir.files import load, save
from onnxcomp.ir.parse import parse_model
from onnxcomp.ir.proto import from_proto, to_proto
from onnxcomp.ir.skim import SkimNode, skim, skim_bytes
from tests.support.text import net


def types(nodes: list[SkimNode]) -> dict[str, str]:
    return {v.name: str(v.dtype) for node in nodes for v in node.outputs}


def test_types_follow_attributes_schemas_and_inputs() -> None:
    body = """
        q = QuantizeLinear(x, scale, zero)  d = DequantizeLinear(q, scale, zero)  m = MaxPool<kernel_shape=[1,1]>(q)
        dq, ds, dz = DynamicQuantizeLinear(x)  plain = QuantizeLinear(x, scale)
        i = MatMulInteger(dq, w)  h = Cast<to=10>(d)  n = Neg(h)  g = Greater(x, d)  s = Shape(g)  c = Concat<axis=0>(q, m)
        k, places = TopK(x, two)  w2 = Where(g, x, d)
        """
    text = net(
        "(float[1,2,4,4] x) => (float[1,2,4,4] w2)",
        "float scale = {0.5}, uint8 zero = {3}, int8[4,4] w = {1,2,3,4,1,2,3,4,1,2,3,4,1,2,3,4}, int64[1] two = {2}",
        body,
    )
    assert types(skim(parse_model(text))) == {
        "q": "uint8",
        "d": "float32",
        "m": "uint8",
        "dq": "uint8",
        "ds": "float32",
        "dz": "uint8",
        "plain": "uint8",
        "i": "int32",
        "h": "float16",
        "n": "float16",
        "g": "bool",
        "s": "int64",
        "c": "uint8",
        "k": "float32",
        "places": "int64",
        "w2": "float32",
    }


def test_operators_without_a_schema_have_the_type_of_what_tells_it() -> None:
    def node(op: str, output: str, *inputs: str) -> onnx.NodeProto:
        return helper.make_node(op, inputs, [output], domain="com.microsoft")

    q = ["a", "f", "u"]
    nodes = [
        node("QLinearConv", "conv", "a", "f", "u", "w", "f", "s", "f", "u"),
        node("QLinearConcat", "concat", "f", "u", *q, *q),
        node("QGemm", "ends", *q, "w", "f", "s", "", "", ""),
        node("QGemm", "goes-on", *q, "w", "f", "s", "", "f", "u"),
        node("MatMulIntegerToFloat", "product", "a", "w", "f", "f"),
        node("QLinearSigmoid", "sigmoid", "a", "f", "u", "f", "u"),
        node("NhwcMaxPool", "pool", "a"),
        node("Odd", "odd", "f"),
    ]
    kinds = {"a": TensorProto.UINT8, "w": TensorProto.INT8, "f": TensorProto.FLOAT}
    kinds |= {"u": TensorProto.UINT8, "s": TensorProto.INT8}
    inputs = [helper.make_tensor_value_info(name, kind, [1]) for name, kind in kinds.items()]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("odd", 1, None)])
    found = types(skim_bytes(helper.make_model(graph).SerializeToString()))
    assert found == {
        "conv": "uint8",
        "concat": "uint8",
        "ends": "float32",
        "goes-on": "uint8",
        "product": "float32",
        "sigmoid": "uint8",
        "pool": "uint8",
        "odd": "float32",
    }


def test_makers_and_readers_are_linked_and_outputs_leave() -> None:
    text = net(
        "(float[2] x) => (float[2] y, float[2] a)",
        "",
        "[one] a = Relu(x)  [two] y = Add(a, a)  [three] b = Neg(a)",
    )
    one, two, three = skim(parse_model(text))
    made = one.outputs[0]
    assert made.producer is one
    assert made.readers == [two, three]
    assert (made.leaves, two.outputs[0].leaves, three.outputs[0].leaves) == (True, True, False)
    assert two.inputs == (made, made)
    assert (one.input(0), one.input(1)) == (one.inputs[0], None)


def test_nodes_of_subgraphs_come_first_and_see_the_values_around_them() -> None:
    text = net(
        "(float[2] x, bool c) => (float[2] y)",
        "",
        """[before] a = Relu(x)
        [choice] y = If (c) <then_branch = t () => (float[2] r) { [inner] r = Neg(a) },
                             else_branch = e () => (float[2] r) { [other] r = Abs(a) }>""",
    )
    nodes = skim(parse_model(text))
    assert [n.name for n in nodes] == ["before", "inner", "other", "choice"]
    before, inner, other, choice = nodes
    assert inner.inputs[0] is before.outputs[0] is other.inputs[0]
    assert choice.inner == (inner.outputs[0], other.outputs[0])
    assert inner.outputs[0].readers == [choice]
    assert inner.outputs[0] is not other.outputs[0]
    assert str(choice.outputs[0].dtype) == "float32"
    assert not inner.outputs[0].leaves


def test_scales_are_read_and_weights_are_not(tmp_path: Path) -> None:
    text = net(
        "(float[1,100] x) => (float[1,100] y)",
        "float[100,100] w, float s = {0.5}",
        "h = MatMul(x, w)  y = Mul(h, s)",
    )
    path = save(parse_model(text), tmp_path / "m.onnx", external_threshold=0)[0]
    for nodes in (skim(load(path)), skim_bytes(path.read_bytes())):
        weight, scale = nodes[0].input(1), nodes[1].input(1)
        assert weight is not None and scale is not None
        assert (weight.stored, weight.array, str(weight.dtype)) == (True, None, "float32")
        assert str(scale.dtype) == "float32"
    assert float(np.asarray(skim(load(path))[1].inputs[1].array)) == 0.5  # type: ignore[union-attr]


def test_constant_nodes_are_stored_values() -> None:
    text = net("(float[2] x) => (float[2] y)", "", "c = Constant<value_float = 2.0>()  y = Mul(x, c)")
    (node,) = skim_bytes(onnx.parser.parse_model(text).SerializeToString())
    value = node.input(1)
    assert value is not None
    assert (value.stored, str(value.dtype)) == (True, "float32")


def test_the_view_of_a_model_is_that_of_its_file() -> None:
    model = parse_model(
        net("(float[2] x) => (float[2] y)", "", "[a] h = Relu(x)  [b] y = LeakyRelu<alpha = 0.5>(h)")
    )
    again = skim_bytes(to_proto(from_proto(to_proto(model))).SerializeToString())
    assert [(n.name, n.op, n.domain, dict(n.attrs)) for n in again] == [
        (n.name, n.op, n.domain, dict(n.attrs)) for n in skim(model)
    ]
    assert again[1].attrs == {"alpha": 0.5}
