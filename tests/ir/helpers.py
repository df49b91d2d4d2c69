"""Models that the tests of ir/ share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxcomp.ir import Model, from_proto

ROOT = Path(__file__).parents[2]
"""Where a child process finds these tests as modules."""


def parsed(text: str, opset: int = 17) -> ModelProto:
    """Return the ModelProto of a graph in ONNX's text form."""
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}, "my.dom" : 1]> {text}')


def model_of(text: str, opset: int = 17) -> Model:
    """Return the Model of a graph in ONNX's text form."""
    return from_proto(parsed(text, opset))


def branch(name: str, op: str, reads: str, output: str) -> onnx.GraphProto:
    """Return a subgraph of one node that reads an outer value."""
    node = helper.make_node(op, [reads], [output], name=f"{name}.{op}", doc_string="inside")
    return helper.make_graph(
        [node], name, [], [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)]
    )


def weight(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Return standard normal numbers of `shape`."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def rich_proto() -> ModelProto:
    """Return a model that uses every field a file can carry through: labels, metadata, functions, subgraphs, ..."""
    stored = numpy_helper.from_array(weight(4, 3, 3, 3), "w")
    stored.doc_string = "a weight"
    stored.metadata_props.add(key="origin", value="layer1")
    conv = helper.make_node(
        "Conv", ["x", "w"], ["c"], name="conv", doc_string="a convolution", pads=[1, 1, 1, 1]
    )
    conv.metadata_props.add(key="namespace", value="a/b")
    nodes = [
        conv,
        helper.make_node(
            "If",
            ["cond"],
            ["i"],
            name="choice",
            then_branch=branch("then", "Relu", "c", "t"),
            else_branch=branch("else", "Neg", "c", "e"),
        ),
        helper.make_node(
            "Custom", ["i", "", "label"], ["k"], name="custom", domain="my.dom", foo=[1.5, 2.5], bar="z"
        ),
        helper.make_node("Twice", ["k"], ["y"], name="call", domain="local"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, "H", 8], doc_string="an image"),
            helper.make_tensor_value_info("cond", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", None, "H", 8])],
        [
            stored,
            TensorProto(name="label", data_type=TensorProto.STRING, dims=[2], string_data=[b"one", b"\xff"]),
        ],
        doc_string="a graph",
        value_info=[helper.make_tensor_value_info("k", TensorProto.FLOAT, ["N", 4, "H", 8])],
    )
    graph.input[0].metadata_props.add(key="layout", value="NCHW")
    graph.metadata_props.add(key="graph key", value="graph value")
    note = graph.quantization_annotation.add(tensor_name="c")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="label")
    twice = helper.make_function(
        "local",
        "Twice",
        ["a"],
        ["b"],
        [helper.make_node("Mul", ["a", "a"], ["b"], name="square")],
        [helper.make_opsetid("", 17)],
        ["alpha"],
        doc_string="a function",
    )
    model = helper.make_model(
        graph,
        functions=[twice],
        opset_imports=[helper.make_opsetid(d, v) for d, v in {"": 17, "my.dom": 3, "local": 1}.items()],
        ir_version=10,
        producer_name="maker",
        producer_version="1.2",
        domain="org.example",
        model_version=7,
        doc_string="a model",
    )
    helper.set_model_props(model, {"author": "someone", "licence": "none"})
    return model


def external_proto(location: str, dims: tuple[int, ...] = (16,), **entries: object) -> ModelProto:
    """Return `y = x + w` where `w`, float32, keeps its data at `location`."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    proto = parsed("g (float[16] x) => (float[16] y) { y = Add(x, x) }")
    proto.graph.node[0].input[1] = "w"
    proto.graph.initializer.append(tensor)
    return proto


def write(proto: ModelProto, path: Path) -> Path:
    """Write `proto` to `path` as it is, sound or not."""
    path.write_bytes(proto.SerializeToString())
    return path


def small_model(size: int = 64) -> Model:
    """Return `y = (x W) + b` with weights worth `size * size` and `size` numbers."""
    proto = parsed(f"g (float[N,{size}] x) => (float[N,{size}] y) {{ h = MatMul(x, x)\n y = Add(h, h) }}")
    proto.graph.node[0].input[1] = "w"
    proto.graph.node[1].input[1] = "b"
    proto.graph.initializer.extend(
        [numpy_helper.from_array(weight(size, size), "w"), numpy_helper.from_array(weight(size, seed=1), "b")]
    )
    return from_proto(proto)
