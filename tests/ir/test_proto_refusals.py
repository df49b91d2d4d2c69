"""Malformed graphs are refused by name; what a skeleton and free sizes look like."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxcomp.errors import ModelError
from onnxcomp.ir import from_proto, to_proto
from onnxcomp.ir.shapes import infer_types
from tests.ir.helpers import model_of, parsed, rich_proto, weight


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("g (float[2] x) => (float[2] y) { y = Relu(x)\n y = Neg(x) }", "'y' is used twice"),
        ("g (float[2] x) => (float[2] x) { x = Relu(x) }", "'x' is used twice"),
        ("g (float[2] x, float[2] x) => (float[2] y) { y = Relu(x) }", "'x' is used twice"),
        ("g (float[2] x) => (float[2] y) { [n] y = Relu(lost) }", "'n' reads 'lost', which nothing defines"),
        ("g (float[2] x) => (float[2] y) { z = Relu(x) }", "output 'y' is defined by nothing"),
        ("g (float[2] x) => () { z = Relu(x) }", "no outputs"),
        (
            "g (float[2] x) => (float[2] y) { y = Constant<value_float = 1.0>()\n y = Relu(x) }",
            "'y' is used twice",
        ),
    ],
)
def test_malformed_graphs_are_refused_by_name(text: str, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        model_of(text)


def test_a_subgraph_that_reads_what_nothing_defines_is_refused_by_name() -> None:
    proto = rich_proto()
    for attribute in proto.graph.node[1].attribute:
        attribute.g.node[0].input[0] = "lost"
    with pytest.raises(ModelError, match="a subgraph of 'choice' reads 'lost'"):
        from_proto(proto)


def test_malformed_nodes_and_tensors_are_refused_by_name() -> None:
    def refused(reason: str, **changes: object) -> None:
        proto = parsed("g (float[2] x) => (float[2] y) <float[2] w = {1.0, 2.0}> { [n] y = Add(x, w) }")
        node, tensor = proto.graph.node[0], proto.graph.initializer[0]
        if "op_type" in changes:
            node.op_type = str(changes["op_type"])
        if "outputs" in changes:
            del node.output[:]
        if "attributes" in changes:
            node.attribute.extend([helper.make_attribute("a", 1), helper.make_attribute("a", 2)])
        if "tensor" in changes:
            tensor.name = ""
        if "twice" in changes:
            proto.graph.initializer.append(tensor)
        if "input" in changes:
            proto.graph.input.add()
        with pytest.raises(ModelError, match=reason):
            from_proto(proto)

    refused("node 'n' names no operator", op_type="")
    refused("node 'n' has no outputs", outputs=None)
    refused("node 'n' has two attributes of one name", attributes=None)
    refused("an initializer has no name", tensor=None)
    refused("'w' is used twice", twice=None)
    refused("a graph input has no name", input=None)


def test_two_versions_of_one_domain_are_refused() -> None:
    proto = parsed("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    proto.opset_import.append(helper.make_opsetid("ai.onnx", 13))
    with pytest.raises(ModelError, match=r"'ai\.onnx' in the versions 17 and 13"):
        from_proto(proto)


def test_a_skeleton_declares_large_weights_and_copies_what_shapes_need() -> None:
    proto = parsed("g (float[64,64] x) => (float[64,64] y) { a = MatMul(x, x)\n y = Reshape(a, a) }")
    proto.graph.node[0].input[1], proto.graph.node[1].input[1] = "w", "s"
    tensors = {
        "w": weight(64, 64),
        "s": np.array([64, 64]),
        "big": np.arange(4096),
        "q": np.zeros(4096, np.int8),
    }
    proto.graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in tensors.items())
    skeleton = to_proto(from_proto(proto), skeleton=True)
    assert [i.name for i in skeleton.graph.input] == ["x", "w", "q"]
    assert [t.name for t in skeleton.graph.initializer] == ["s", "big"]
    onnx.checker.check_model(skeleton, full_check=True)


def test_sizes_of_minus_one_and_question_marks_are_free_without_a_name_and_stay_as_declared() -> None:
    proto = parsed("net (float[N,3,H,W] x) => (float[N,3,H,W] y) { y = Relu(x) }")
    for value in (*proto.graph.input, *proto.graph.output):
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if axis == 0:
                dim.dim_value = -1
            elif axis > 1:
                dim.dim_param = "?"
    model = from_proto(proto)
    assert model.graph.inputs[0].shape == (None, 3, None, None)
    assert infer_types(model, {})["y"].shape == (None, 3, None, None)
    back = to_proto(model)
    assert (back.graph.input, back.graph.output) == (proto.graph.input, proto.graph.output)
