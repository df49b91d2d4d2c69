"""The text of a model tells models apart, and never obeys what a model calls itself."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from onnx import AttributeProto, ModelProto, helper, numpy_helper

from onnxcomp.ir import Model, from_proto
from onnxcomp.ir.graph import Array
from onnxcomp.ir.text import digest, dump, printable
from tests.ir.helpers import model_of, parsed, rich_proto, small_model, weight


def test_a_small_model_reads_like_this() -> None:
    model = model_of(
        """g (float[N,2,M,?] x, int64[1] axes) => (float[] y) <float[2] w = {1.0, -0.5}> {
            [first] a = my.dom.Mix<pads = [1, 1], group = 2>(x, w)
            y = my.dom.Op<mode = "fast", alpha = 0.5>(a, , axes)
        }"""
    )
    model.metadata["b key"] = "v"
    model.metadata["a"] = "1"
    model.io_protos["x"].type.tensor_type.shape.dim[2].dim_param = "8 by"
    expected = f"""
model ir_version=8 ai.onnx=17 my.dom=1
  metadata a = 1
  metadata "b key" = v
graph g
  input x: float32[N, 2, "8 by", ?]
  input axes: int64[1]
  output y: float32[...]
  constant w: float32[2] {digest(np.array([1.0, -0.5], np.float32))} {{1.0, -0.5}}
  a = my.dom.Mix(x, w) {{group=2, pads=[1, 1]}} as first
  y = my.dom.Op(a, ~, axes) {{alpha=0.5, mode='fast'}} as y
""".lstrip()
    assert dump(model) == expected


def test_the_dump_is_the_same_for_a_clone_and_for_attributes_in_any_order() -> None:
    proto = rich_proto()
    model = from_proto(proto)
    assert dump(model.clone()) == dump(model)
    for node in proto.graph.node:
        backwards = list(reversed(node.attribute))
        del node.attribute[:]
        node.attribute.extend(backwards)
    assert dump(from_proto(proto)) == dump(model)


def inner(proto: ModelProto) -> ModelProto:
    next(a for a in proto.graph.node[1].attribute if a.name == "then_branch").g.node[0].op_type = "Abs"
    return proto


CHANGES: dict[str, Callable[[ModelProto], object]] = {
    "ir_version": lambda p: setattr(p, "ir_version", 11),
    "opset": lambda p: setattr(p.opset_import[0], "version", 18),
    "producer": lambda p: setattr(p, "producer_name", "other"),
    "model version": lambda p: setattr(p, "model_version", 8),
    "metadata": lambda p: setattr(p.metadata_props[0], "value", "other"),
    "graph name": lambda p: setattr(p.graph, "name", "other"),
    "graph doc": lambda p: setattr(p.graph, "doc_string", "other"),
    "graph metadata": lambda p: setattr(p.graph.metadata_props[0], "value", "other"),
    "annotation": lambda p: setattr(p.graph.quantization_annotation[0], "tensor_name", "i"),
    "declared type": lambda p: setattr(p.graph.value_info[0].type.tensor_type, "elem_type", 10),
    "input dim": lambda p: setattr(p.graph.input[0].type.tensor_type.shape.dim[1], "dim_value", 4),
    "input symbol": lambda p: setattr(p.graph.input[0].type.tensor_type.shape.dim[1], "dim_param", "3"),
    "input metadata": lambda p: setattr(p.graph.input[0].metadata_props[0], "value", "NHWC"),
    "output shape": lambda p: p.graph.output[0].type.tensor_type.ClearField("shape"),
    "weight doc": lambda p: setattr(p.graph.initializer[0], "doc_string", "other"),
    "weight metadata": lambda p: setattr(p.graph.initializer[0].metadata_props[0], "value", "other"),
    "one weight": lambda p: p.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(weight(4, 3, 3, 3) + np.float32(1e-7), "w")
    ),
    "weight shape": lambda p: p.graph.initializer[0].dims.append(1),
    "string": lambda p: p.graph.initializer[1].string_data.__setitem__(1, rb"\xff"),
    "attribute": lambda p: p.graph.node[0].attribute[0].ints.__setitem__(0, 0),
    "node name": lambda p: setattr(p.graph.node[0], "name", "other"),
    "node doc": lambda p: setattr(p.graph.node[0], "doc_string", "other"),
    "node metadata": lambda p: setattr(p.graph.node[0].metadata_props[0], "value", "other"),
    "overload": lambda p: setattr(p.graph.node[2], "overload", "other"),
    "domain": lambda p: setattr(p.graph.node[2], "domain", ""),
    "omitted input": lambda p: p.graph.node[2].input.pop(1),
    "subgraph": inner,
    "function node": lambda p: setattr(p.functions[0].node[0], "op_type", "Add"),
    "function attribute": lambda p: p.functions[0].attribute.append("beta"),
    "function opset": lambda p: setattr(p.functions[0].opset_import[0], "version", 18),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_shows(change: str) -> None:
    proto = rich_proto()
    before = dump(from_proto(proto))
    CHANGES[change](proto)
    assert dump(from_proto(proto)) != before


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (helper.make_attribute("a", 1), helper.make_attribute("a", 1.0)),
        (helper.make_attribute("a", [1]), helper.make_attribute("a", 1)),
        (helper.make_attribute("a", "1"), helper.make_attribute("a", 1)),
        (helper.make_attribute("a", b"\xff"), helper.make_attribute("a", rb"\xff")),
        (helper.make_attribute("a", b"\xff"), helper.make_attribute("a", "bytes(ff)")),
        (
            AttributeProto(name="a", type=AttributeProto.INTS),
            AttributeProto(name="a", type=AttributeProto.FLOATS),
        ),
        (
            AttributeProto(name="a", type=AttributeProto.INT, ref_attr_name="r"),
            AttributeProto(name="a", type=AttributeProto.FLOAT, ref_attr_name="r"),
        ),
    ],
)
def test_attributes_that_differ_only_in_type_differ(one: AttributeProto, other: AttributeProto) -> None:
    def text(attribute: AttributeProto) -> str:
        proto = parsed("g (float[2] x) => (float[2] y) { y = my.dom.Op(x) }")
        proto.graph.node[0].attribute.append(attribute)
        return dump(from_proto(proto))

    assert text(one) != text(other)


def test_digests_know_dtype_shape_and_every_bit() -> None:
    values = weight(100)
    variants: list[Array] = [
        values,
        values.astype(np.float64),
        values.reshape(10, 10),
        -values,
        values.view(np.int32),
    ]
    texts = [np.array([b"a", b"bc"], object), np.array([b"ab", b"c"], object)]
    digests = [digest(v) for v in [*variants, *texts, np.zeros(2, np.float32), -np.zeros(2, np.float32)]]
    assert len(set(digests)) == len(digests)
    assert digest(values.reshape(10, 10).T) == digest(np.ascontiguousarray(values.reshape(10, 10).T))


def test_control_characters_are_shown_and_not_sent() -> None:
    for text in ("a\nb", "\x1b[2J", "a\u202eb", "\x9b31m", "\x00", "a\u2028b", "\U000e0001"):
        shown = printable(text)
        assert shown.isprintable()
        assert shown != text
    assert printable("größe/模型:0") == "größe/模型:0"
    assert printable('say "x"\\') == '"say \\"x\\"\\\\"'
    assert printable("") == '""'


def test_names_of_a_hostile_model_are_escaped_everywhere() -> None:
    evil = "\x1b]0;owned\x07\n  fake = line"
    proto = rich_proto()
    proto.producer_name = proto.doc_string = proto.graph.name = proto.graph.doc_string = evil
    proto.metadata_props[0].key = proto.metadata_props[1].value = evil
    proto.functions[0].doc_string = proto.functions[0].node[0].name = evil
    proto.graph.node[0].name = proto.graph.node[0].doc_string = proto.graph.node[2].op_type = evil
    proto.graph.node[2].attribute[0].name = evil
    proto.graph.node[3].output[0] = proto.graph.output[0].name = evil
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = evil
    text = dump(from_proto(proto))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert not any(line.startswith("  fake") for line in text.splitlines())


def test_changed_models_and_only_they_have_another_dump() -> None:
    def changes(edit: Callable[[Model], object]) -> bool:
        model = small_model()
        before = dump(model)
        edit(model)
        return dump(model) != before

    assert not changes(lambda m: None)
    assert not changes(lambda m: m.notes.append("a note is not part of the file"))
    assert not changes(
        lambda m: m.graph.set_constant(m.graph.nodes[1], 1, m.graph.constants["b"].values.copy())
    )
    assert changes(lambda m: m.graph.set_constant(m.graph.nodes[1], 1, np.zeros(64, np.float32)))
    assert changes(
        lambda m: m.graph.constants.pop("unused", None) or m.graph.add_constant("unused", np.ones(1))
    )
    assert changes(lambda m: setattr(m.graph.nodes[0], "name", "other"))
