"""Attributes are values in the graph and come back as the file said them; others than the operator takes are refused."""

from __future__ import annotations

from typing import Any

import pytest
from onnx import AttributeProto, ModelProto, TensorProto, helper

from onnxcomp.errors import ModelError
from onnxcomp.ir import from_proto, to_proto
from tests.ir.helpers import parsed


def with_attributes(text: str, **changes: Any) -> ModelProto:
    """Return the model of `text`, its first node with other fields in its attributes."""
    proto = parsed(text)
    for attribute in proto.graph.node[0].attribute:
        for name, value in changes.items():
            attribute.ClearField(name)
            if value is not None:
                setattr(attribute, name, value)
    return proto


CONV = (
    "g (float[1,1,8,8] x, float[1,1,3,3] w) => (float[1,1,3,3] y) { [it] y = Conv<strides = [2, 2]>(x, w) }"
)


def test_attributes_with_doc_strings_are_values_and_keep_their_doc_strings() -> None:
    proto = with_attributes(CONV, doc_string="said by the exporter")
    model = from_proto(proto)
    assert model.graph.nodes[0].attrs == {"strides": [2, 2]}
    assert to_proto(model.clone()).graph.node[0].attribute == proto.graph.node[0].attribute


def test_an_empty_list_says_the_same_as_no_attribute_and_comes_back() -> None:
    proto = with_attributes(CONV, ints=None)
    model = from_proto(proto)
    assert model.graph.nodes[0].attrs == {}
    assert to_proto(model.clone()).graph.node[0].attribute == proto.graph.node[0].attribute


def test_an_attribute_that_does_not_say_its_type_is_read_by_what_it_holds() -> None:
    model = from_proto(with_attributes(CONV, type=None))
    assert model.graph.nodes[0].attrs == {"strides": [2, 2]}


@pytest.mark.parametrize(
    "changes",
    [
        {"type": AttributeProto.FLOATS},
        {"type": AttributeProto.INT, "i": 2},
        {"type": AttributeProto.STRING, "s": b"2"},
        {"ref_attr_name": "outer"},
    ],
)
def test_an_attribute_of_another_type_is_refused_by_node_and_name(changes: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="'strides' of Conv 'it'"):
        from_proto(with_attributes(CONV, **changes))


def test_a_small_sparse_constant_is_held_dense() -> None:
    proto = parsed("g (float[4] x) => (float[4] y) { s = Constant()\n y = Add(x, s) }")
    sparse = helper.make_sparse_tensor(
        helper.make_tensor("v", TensorProto.FLOAT, [1], [5.0]),
        helper.make_tensor("i", TensorProto.INT64, [1], [2]),
        [4],
    )
    proto.graph.node[0].attribute.append(helper.make_attribute("sparse_value", sparse))
    assert from_proto(proto).graph.constants["s"].values.tolist() == [0, 0, 5, 0]
    proto.graph.node[0].attribute[0].sparse_tensor.dims[0] = 2**40
    assert [n.op for n in from_proto(proto).graph.nodes] == ["Constant", "Add"]
