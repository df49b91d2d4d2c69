"""What a file says comes back: the round trip through Model loses nothing and mends only what it notes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper

from onnxcomp.errors import ModelError
from onnxcomp.ir import from_proto, to_proto
from tests.ir.helpers import branch, parsed, rich_proto, weight


def sorted_attributes(proto: ModelProto) -> ModelProto:
    twin = ModelProto()
    twin.CopyFrom(proto)
    for node in twin.graph.node:
        ordered = sorted(node.attribute, key=lambda a: a.name)
        del node.attribute[:]
        node.attribute.extend(ordered)
    return twin


def test_the_whole_file_comes_back() -> None:
    proto = rich_proto()
    back = to_proto(from_proto(proto))
    assert sorted_attributes(back) == sorted_attributes(proto)


def test_the_callers_proto_is_left_as_it_is() -> None:
    proto = rich_proto()
    before = proto.SerializeToString(deterministic=True)
    model = from_proto(proto)
    model.functions[0].doc_string = "changed"
    model.graph_extras["metadata_props"][0].value = "changed"
    model.io_protos["x"].doc_string = "changed"
    assert proto.SerializeToString(deterministic=True) == before


def test_subgraphs_come_back_byte_for_byte() -> None:
    body = helper.make_graph(
        [helper.make_node("Add", ["s", "c"], ["o"], doc_string="deep")],
        "body",
        [
            helper.make_tensor_value_info(n, t, [])
            for n, t in {"i": TensorProto.INT64, "go": TensorProto.BOOL, "s": TensorProto.FLOAT}.items()
        ],
        [
            helper.make_tensor_value_info(n, t, [])
            for n, t in {"go": TensorProto.BOOL, "o": TensorProto.FLOAT}.items()
        ],
        [helper.make_tensor("inner", TensorProto.FLOAT, [1], [0.5])],
    )
    scan = helper.make_graph(
        [helper.make_node("Relu", ["p"], ["q"])],
        "scan",
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("q", TensorProto.FLOAT, [2])],
    )
    nodes = [
        helper.make_node("Neg", ["x"], ["c"]),
        helper.make_node(
            "If",
            ["b"],
            ["f"],
            then_branch=branch("t", "Abs", "c", "u"),
            else_branch=branch("e", "Neg", "c", "v"),
        ),
        helper.make_node("Loop", ["n", "b", "f"], ["l"], body=body),
        helper.make_node("Scan", ["x"], ["y"], body=scan, num_scan_inputs=1),
    ]
    inputs = {"x": (TensorProto.FLOAT, [3, 2]), "b": (TensorProto.BOOL, []), "n": (TensorProto.INT64, [])}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, t, s) for n, (t, s) in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("y", "l")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model = from_proto(proto)
    assert [set(n.captures) for n in model.graph.nodes] == [set(), {"c"}, {"c"}, set()]

    def bodies(p: ModelProto) -> list[bytes]:
        found = [
            a for n in p.graph.node for a in sorted(n.attribute, key=lambda a: a.name) if a.HasField("g")
        ]
        return [a.SerializeToString(deterministic=True) for a in found]

    assert len(bodies(proto)) == 4
    assert bodies(to_proto(model)) == bodies(proto)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("BFLOAT16", [1.0, -2.5, 3.0]),
        ("FLOAT16", [1.0, -2.5, 3.0]),
        ("FLOAT8E4M3FN", [1.0, -2.5, 3.0]),
        ("FLOAT8E5M2", [1.0, -2.5, 3.0]),
        ("INT4", [-8, 7, 3]),
        ("UINT4", [0, 15, 3]),
        ("FLOAT4E2M1", [0.5, -6.0, 3.0]),
        ("INT8", [-128, 127, 0]),
        ("UINT16", [0, 65535, 1]),
        ("BOOL", [1, 0, 1]),
        ("DOUBLE", [1e300, -2.5, 3.0]),
        ("INT64", [-(2**62), 2**62, 0]),
        ("UINT64", [0, 2**63, 1]),
        ("COMPLEX64", [1 + 2j, -3j, 0]),
    ],
)
@pytest.mark.parametrize("raw", [True, False])
def test_tensors_of_every_element_type_keep_their_values(name: str, values: list[Any], raw: bool) -> None:
    elem_type = TensorProto.DataType.Value(name)
    typed = helper.make_tensor("w", elem_type, [3], values)
    array = numpy_helper.to_array(typed)
    proto = parsed("g (float[1] x) => (float[1] y) { y = Relu(x)\n z = Identity(x) }")
    proto.graph.node[1].input[0] = "w"
    proto.graph.initializer.append(numpy_helper.from_array(array, "w") if raw else typed)
    back = to_proto(from_proto(proto)).graph.initializer[0]
    assert (back.data_type, list(back.dims), back.HasField("raw_data")) == (elem_type, [3], True)
    assert np.array_equal(numpy_helper.to_array(back), array)


def test_string_tensors_keep_bytes_that_are_no_text() -> None:
    back = to_proto(from_proto(rich_proto())).graph.initializer[1]
    assert list(back.string_data) == [b"one", b"\xff"]


def test_scalars_and_empty_tensors_keep_their_shapes() -> None:
    proto = parsed("g (float[1] x) => (float[1] y) { y = Relu(x) }")
    proto.graph.initializer.extend(
        [
            numpy_helper.from_array(np.array(3.0, np.float32), "s"),
            numpy_helper.from_array(np.zeros((0, 4), np.float32), "e"),
        ]
    )
    model = from_proto(proto)
    assert (model.graph.constants["s"].values.shape, model.graph.constants["e"].values.shape) == ((), (0, 4))
    assert [list(t.dims) for t in to_proto(model).graph.initializer] == [[], [0, 4]]


def test_attributes_of_every_kind_come_back() -> None:
    sparse = helper.make_sparse_tensor(
        helper.make_tensor("", TensorProto.FLOAT, [1], [5.0]),
        helper.make_tensor("", TensorProto.INT64, [1], [2]),
        [4],
    )
    attributes: dict[str, Any] = {
        "f": 0.1, "i": -3, "s": "text", "b": b"\xff\xfe", "t": helper.make_tensor("", TensorProto.FLOAT, [2], [1.0, 2.0]),
        "fs": [0.5, 1.0], "is": [1, 2], "ss": ["a", "b"], "sp": sparse,
        "tp": helper.make_tensor_type_proto(TensorProto.FLOAT, [2]),
    }  # fmt: skip
    node = helper.make_node("Any", ["x"], ["y"], domain="my.dom", **attributes)
    for kind in ("FLOATS", "INTS", "STRINGS"):
        node.attribute.append(
            AttributeProto(name=f"no {kind}", type=AttributeProto.AttributeType.Value(kind))
        )
    proto = parsed("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    proto.graph.node[0].CopyFrom(node)
    back = to_proto(from_proto(proto)).graph.node[0]
    assert {a.name: a.type for a in back.attribute} == {a.name: a.type for a in node.attribute}
    for a, b in zip(
        sorted(back.attribute, key=lambda a: a.name),
        sorted(node.attribute, key=lambda a: a.name),
        strict=True,
    ):
        if a.name == "t":
            assert np.array_equal(numpy_helper.to_array(a.t), numpy_helper.to_array(b.t))
        else:
            assert a == b


def test_functions_keep_attributes_that_refer_to_their_callers() -> None:
    body = helper.make_node("LeakyRelu", ["a"], ["b"])
    body.attribute.append(AttributeProto(name="alpha", type=AttributeProto.FLOAT, ref_attr_name="slope"))
    function = helper.make_function(
        "local", "Leaky", ["a"], ["b"], [body], [helper.make_opsetid("", 17)], ["slope"]
    )
    graph = helper.make_graph(
        [helper.make_node("Leaky", ["x"], ["y"], domain="local", slope=0.3)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    proto = helper.make_model(graph, functions=[function], opset_imports=imports, ir_version=8)
    back = to_proto(from_proto(proto))
    assert back.functions[0] == function
    assert back.graph.node[0] == graph.node[0] or back.graph.node[0].name == "y"


def test_inputs_and_outputs_of_other_types_come_back() -> None:
    sequence = helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, None)
    optional = helper.make_value_info(
        "o", helper.make_optional_type_proto(helper.make_tensor_type_proto(1, [2]))
    )
    graph = helper.make_graph(
        [
            helper.make_node("SequenceLength", ["x"], ["y"]),
            helper.make_node("OptionalHasElement", ["o"], ["z"]),
        ],
        "g",
        [sequence, optional],
        [
            helper.make_tensor_value_info("y", TensorProto.INT64, []),
            helper.make_tensor_value_info("z", TensorProto.BOOL, []),
        ],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    back = to_proto(from_proto(proto)).graph
    assert list(back.input) == [sequence, optional]
    assert list(back.output) == list(graph.output)


def test_constant_nodes_are_held_as_initializers_with_their_labels() -> None:
    proto = parsed(
        "g (float[2] x) => (float[2] y) { [cst] c = Constant<value = float[2] {1.0, 2.0}>()\n y = Add(x, c) }"
    )
    proto.graph.node[0].doc_string = "why"
    proto.graph.node[0].metadata_props.add(key="a", value="b")
    model = from_proto(proto)
    constant = model.graph.constants["c"]
    assert (constant.doc_string, constant.metadata) == ("why", {"a": "b"})
    assert [n.op for n in model.graph.nodes] == ["Add"]
    assert model.aliases == {"cst": ""}
    assert model.notes == ["1 Constant nodes are held as initializers"]


def test_stored_tensors_that_are_also_inputs_are_weights_with_one_note() -> None:
    proto = parsed("g (float[2] x, float[2] w, float[2] v) => (float[2] y) { a = Add(x, w)\n y = Add(a, v) }")
    proto.ir_version = 3
    proto.graph.initializer.extend(numpy_helper.from_array(weight(2), name) for name in ("w", "v"))
    model = from_proto(proto)
    assert [v.name for v in model.graph.inputs] == ["x"]
    assert model.ir_version == 4
    assert model.notes == ["inputs with a stored value are treated as weights: 'w' and 1 more"]


@pytest.mark.parametrize("coordinates", [True, False])
def test_sparse_initializers_are_stored_dense_with_a_note(coordinates: bool) -> None:
    indices = np.array([[0, 1], [2, 0]]) if coordinates else np.array([1, 6])
    proto = parsed("g (float[3,3] x) => (float[3,3] y) { y = Add(x, x) }")
    proto.graph.node[0].input[1] = "w"
    proto.graph.sparse_initializer.append(
        helper.make_sparse_tensor(
            numpy_helper.from_array(np.array([5, 7], np.float32), "w"),
            numpy_helper.from_array(indices),
            [3, 3],
        )
    )
    model = from_proto(proto)
    dense = np.zeros((3, 3), np.float32)
    dense[0, 1], dense[2, 0] = 5, 7
    assert np.array_equal(model.graph.constants["w"].values, dense)
    assert model.notes == ["the sparse initializer 'w' is stored dense"]


@pytest.mark.parametrize(
    ("dims", "indices", "reason"),
    [
        ([10**6, 10**6], [1, 2], "unfolds to"),
        ([4], [1, 9], "malformed"),
        ([4], [-1, 2], "malformed"),
        ([4], [[[1]]], "malformed"),
        ([2**40, 2**40], [1, 2], "impossible shape"),
        ([-4], [1, 2], "negative size"),
    ],
)
def test_sparse_initializers_that_make_no_sense_are_refused(
    dims: list[int], indices: object, reason: str
) -> None:
    proto = parsed("g (float[4] x) => (float[4] y) { y = Add(x, x) }")
    sparse = proto.graph.sparse_initializer.add(dims=dims)
    sparse.values.CopyFrom(numpy_helper.from_array(np.array([5, 7], np.float32), "w"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array(indices)))
    with pytest.raises(ModelError, match=f"'w'.*{reason}"):
        from_proto(proto)


def test_nodes_without_a_name_or_with_anothers_get_one() -> None:
    proto = parsed("g (float[2] x) => (float[2] y) { [n] a = Relu(x)\n [n] b = Neg(a)\n y = Add(a, b) }")
    model = from_proto(proto)
    assert [n.name for n in model.graph.nodes] == ["n", "n_2", "y"]
    assert any("shared a name" in note for note in model.notes)


def test_what_is_not_carried_over_is_said() -> None:
    proto = parsed("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    proto.training_info.add().algorithm.name = "sgd"
    proto.graph.node[0].device_configurations.add(configuration_id="two")
    notes = " ".join(from_proto(proto).notes)
    assert "training" in notes
    assert "device" in notes
