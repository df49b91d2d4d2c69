"""Older opsets: converted with names, labels, weights and numbers intact, or refused by the operator's name."""

from __future__ import annotations

from collections.abc import Mapping

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxcomp.errors import ModelError
from onnxcomp.ir import Model, from_proto, to_proto
from onnxcomp.ir.check import check_model, interface
from onnxcomp.ir.convert import convert_opset, minimum_ir_version, settle_opset
from onnxcomp.ir.text import dump
from tests.ir.helpers import branch, parsed, weight


def old_proto(text: str, opset: int, weights: Mapping[str, NDArray[np.generic]] | None = None) -> ModelProto:
    proto = parsed(text, opset)
    proto.ir_version = 4
    proto.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in (weights or {}).items())
    return proto


def labelled() -> ModelProto:
    """Return an opset-9 model whose every label the converter drops or changes."""
    proto = old_proto(
        """g (float[N,3,H,W] x, bool cond) => (float[a,b,c,d] y, float[] s) {
            [conv] c = Conv<pads = [1, 1, 1, 1]>(x, x)
            [choice] i = If(cond) <then_branch = t () => (float[] p) { p = Relu(c) }, else_branch = e () => (float[] q) { q = Neg(c) }>
            [up] u = Upsample<mode = "nearest">(i, i)
            [drop] y = Dropout<ratio = 0.3>(u)
            [soft] s = Softmax(i)
            [custom] k = my.dom.Op<f = [1.5]>(i, i)
        }""",
        9,
        {"w": weight(16, 3, 3, 3), "scales": np.array([1, 1, 2, 2], np.float32), "big": weight(4000)},
    )
    names = {"conv": "w", "up": "scales", "custom": "label"}
    for node in proto.graph.node:
        node.doc_string = f"doc of {node.name}"
        node.metadata_props.add(key="of", value=node.name)
        if node.name in names:
            node.input[1] = names[node.name]
    proto.graph.initializer.append(
        TensorProto(name="label", data_type=TensorProto.STRING, dims=[1], string_data=[b"\xff"])
    )
    proto.graph.initializer[0].doc_string = "the weight"
    proto.graph.initializer[0].metadata_props.add(key="k", value="v")
    proto.graph.doc_string, proto.doc_string, proto.domain, proto.model_version = "graph doc", "doc", "org", 5
    proto.graph.input[0].doc_string = "an image"
    proto.graph.metadata_props.add(key="g", value="h")
    proto.graph.value_info.append(helper.make_tensor_value_info("k", TensorProto.FLOAT, ["N", 16, "H", "W"]))
    proto.graph.quantization_annotation.add(tensor_name="c").quant_parameter_tensor_names.add(
        key="S", value="scales"
    )
    helper.set_model_props(proto, {"author": "someone"})
    return proto


def test_what_the_converter_drops_is_put_back() -> None:
    old = from_proto(labelled())
    before = dump(old)
    new = settle_opset(old)
    assert dump(old) == before
    assert new.notes == ["converted from opset 9 to opset 13"]
    assert (new.opset_imports, new.ir_version) == ({"": 13, "my.dom": 1}, 7)
    assert interface(new) == interface(old)
    for field in (
        "metadata",
        "doc_string",
        "domain",
        "model_version",
        "producer_name",
        "graph_extras",
        "declared",
    ):
        assert getattr(new, field) == getattr(old, field)
    nodes = {n.name: n for n in new.graph.nodes}
    for name in ("conv", "choice", "drop", "soft", "custom"):
        assert (nodes[name].doc_string, nodes[name].metadata) == (f"doc of {name}", {"of": name})
    assert nodes["up"].op == "Resize"
    assert new.graph.doc_string == "graph doc"
    assert (new.graph.constants["w"].doc_string, new.graph.constants["w"].metadata) == (
        "the weight",
        {"k": "v"},
    )
    assert nodes["custom"].attrs == {"f": [1.5]}


def test_values_keep_their_names_and_new_ones_say_where_they_come_from() -> None:
    old = from_proto(labelled())
    new = settle_opset(old)
    gone = old.graph.values().keys() - new.graph.values().keys()
    added = new.graph.values().keys() - old.graph.values().keys()
    assert not gone
    assert added
    assert all("__opset13" in name or name == "s_intermediate" for name in added)


def test_weights_are_shared_and_not_copied() -> None:
    old = from_proto(labelled())
    new = settle_opset(old)
    assert np.shares_memory(new.graph.constants["big"].values, old.graph.constants["big"].values)
    assert new.graph.constants["label"].values[0] == b"\xff"


def test_a_name_that_the_converter_would_invent_is_kept_apart() -> None:
    proto = old_proto(
        "g (float[2,1,4] x) => (float[2,4] y) { _v_4 = Relu(x)\n _v_5 = Neg(_v_4)\n y = Squeeze<axes = [1]>(_v_5) }",
        9,
    )
    new = settle_opset(from_proto(proto))
    assert {"_v_4", "_v_5"} <= new.graph.values().keys()
    assert new.graph.nodes[2].inputs[0].name == "_v_5"
    check_model(new)


def run(model: Model | ModelProto, feeds: dict[str, NDArray[np.generic]]) -> list[NDArray[np.float32]]:
    proto = model if isinstance(model, ModelProto) else to_proto(model)
    return list(ReferenceEvaluator(proto).run(None, feeds))


@pytest.mark.parametrize(
    ("text", "opset", "expected"),
    [
        ("g (float[2,1,4] x) => (float[2,4] y) { y = Squeeze<axes = [1]>(x) }", 11, lambda x: x[:, 0]),
        (
            "g (float[2,1,4] x) => (float[2,1] y) { y = ReduceSum<axes = [2], keepdims = 0>(x) }",
            11,
            lambda x: x.sum(2),
        ),
        (
            "g (float[2,1,4] x) => (float[2,1,4] y) { y = Clip<min = 0.0, max = 0.5>(x) }",
            10,
            lambda x: np.clip(x, 0, 0.5),
        ),
        (
            "g (float[2,1,4] x) => (float[2,1,4] y) { y = Softmax<axis = 1>(x) }",
            11,
            lambda x: np.exp(x) / np.exp(x).sum((1, 2), keepdims=True),
        ),
        (
            "g (float[2,1,4] x) => (float[2,1,6] y) { y = Pad<pads = [0, 0, 1, 0, 0, 1]>(x) }",
            10,
            lambda x: np.pad(x, ((0, 0), (0, 0), (1, 1))),
        ),
        (
            "g (float[2,1,4] x) => (float[2,1,2] y) { y = Slice<axes = [2], starts = [1], ends = [3]>(x) }",
            9,
            lambda x: x[:, :, 1:3],
        ),
    ],
)
def test_converted_models_compute_what_the_old_opset_meant(text: str, opset: int, expected: object) -> None:
    x = weight(2, 1, 4)
    new = settle_opset(from_proto(old_proto(text, opset)))
    check_model(new)
    assert callable(expected)
    np.testing.assert_allclose(run(new, {"x": x})[0], expected(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("opset", [9, 10])
def test_enlarging_keeps_the_coordinates_of_the_old_opset(mode: str, opset: int) -> None:
    op = "Upsample" if opset == 9 else "Resize"
    proto = old_proto(
        f'g (float[1,1,2,3] x) => (float[1,1,6,9] y) {{ y = {op}<mode = "{mode}">(x, x) }}',
        opset,
        {"scales": np.array([1, 1, 3, 3], np.float32)},
    )
    proto.graph.node[0].input[1] = "scales"
    x = np.arange(6, dtype=np.float32).reshape(1, 1, 2, 3)
    rows, columns = np.arange(6) / 3, np.arange(9) / 3
    if mode == "nearest":
        expected = x[0, 0][np.ix_(np.floor(rows).astype(int), np.floor(columns).astype(int))]
    else:
        expected = 3 * np.minimum(rows, 1)[:, None] + np.minimum(columns, 2)[None]
    found = run(settle_opset(from_proto(proto)), {"x": x})[0]
    np.testing.assert_allclose(found[0, 0], expected, rtol=1e-6)


def test_subgraphs_are_converted_too() -> None:
    then = branch("t", "Squeeze", "x", "p")
    then.node[0].attribute.append(helper.make_attribute("axes", [1]))
    other = branch("e", "Squeeze", "z", "q")
    other.node[0].attribute.append(helper.make_attribute("axes", [1]))
    proto = old_proto("g (bool b, float[2,1,4] x) => (float[2,4] y) { z = Neg(x)\n y = Relu(x) }", 11)
    proto.graph.node[1].CopyFrom(helper.make_node("If", ["b"], ["y"], then_branch=then, else_branch=other))
    new = settle_opset(from_proto(proto))
    check_model(new)
    assert set(new.graph.nodes[1].captures) == {"x", "z"}
    x = weight(2, 1, 4)
    for chosen in (True, False):
        np.testing.assert_array_equal(
            run(new, {"b": np.array(chosen), "x": x})[0], (x if chosen else -x)[:, 0]
        )


def test_weights_of_new_element_types_and_of_any_size_stay_out_of_the_converter() -> None:
    model = from_proto(old_proto("g (float[2,1] x) => (float[2] y) { y = Squeeze<axes = [1]>(x) }", 11))
    for name, values in {
        "b": np.ones(3, ml_dtypes.bfloat16),
        "f": np.ones(3, ml_dtypes.float8_e4m3fn),
        "i": np.ones(3, ml_dtypes.int4),
        "huge": np.broadcast_to(np.float32(1), (2**16, 2**16)),
    }.items():
        model.graph.add_constant(name, values)
    new = settle_opset(model)
    for name in ("b", "f", "i", "huge"):
        assert new.graph.constants[name].values.dtype == model.graph.constants[name].values.dtype
        assert np.shares_memory(new.graph.constants[name].values, model.graph.constants[name].values)


@pytest.mark.parametrize(
    ("text", "opset", "reason"),
    [
        (
            "g (float[2] x) => (float[2] y) { a = Relu(x)\n [bad] y = NoSuchOperator(a) }",
            9,
            "refuses 'NoSuchOperator' of node 'bad'",
        ),
        (
            """g (float[2,3,4,4] x, float[3] s) => (float[2,3,4,4] y) {
                a = Relu(x)
                [norm] y = BatchNormalization<spatial = 0>(a, s, s, s, s)
                b = Neg(y)
            }""",
            8,
            r"refuses 'BatchNormalization' of node 'norm'.*spatial",
        ),
    ],
)
def test_what_cannot_be_converted_is_refused_by_name(text: str, opset: int, reason: str) -> None:
    with pytest.raises(ModelError, match=reason) as caught:
        settle_opset(from_proto(old_proto(text, opset)))
    assert f"from opset {opset} to 13" in str(caught.value)
    assert str(caught.value).endswith("export the model with opset 13 or later")
    assert "\n" not in str(caught.value)


def test_a_model_with_functions_of_its_own_is_not_converted() -> None:
    proto = old_proto("g (float[2] x) => (float[2] y) { y = my.dom.F(x) }", 12)
    body = [helper.make_node("Relu", ["a"], ["b"])]
    proto.functions.append(
        helper.make_function("my.dom", "F", ["a"], ["b"], body, [helper.make_opsetid("", 12)])
    )
    with pytest.raises(ModelError, match="function 'F'"):
        settle_opset(from_proto(proto))


@pytest.mark.parametrize("opset", [13, 17, 21])
def test_newer_models_are_left_as_they_are(opset: int) -> None:
    model = from_proto(parsed("g (float[2] x) => (float[2] y) { y = Relu(x) }", opset))
    assert settle_opset(model) is model


def test_a_model_can_be_brought_to_any_version() -> None:
    model = from_proto(
        parsed("g (float[2,3] x) => (float[2] y) { y = ReduceMean<axes = [1], keepdims = 0>(x) }", 13)
    )
    before = dump(model)
    up = convert_opset(model, 18)
    x = weight(2, 3)
    assert (up.opset, up.ir_version) == (18, 8)
    check_model(up)
    np.testing.assert_allclose(run(up, {"x": x})[0], x.mean(1), rtol=1e-6)
    assert convert_opset(model, 21).ir_version == 10
    same = convert_opset(model, 13)
    assert same is not model
    assert dump(same) == dump(model) == before
    foreign = from_proto(parsed("g (float[2] x) => (float[2] y) { y = my.dom.Op(x) }"))
    del foreign.opset_imports[""]
    assert dump(convert_opset(foreign, 18)) == dump(foreign)
    with pytest.raises(ModelError, match="opset 99 does not exist"):
        convert_opset(model, 99)


def test_the_least_ir_version_is_what_the_contents_need() -> None:
    model = from_proto(parsed("g (float[2] x) => (float[2] y) { y = Relu(x) }"))
    assert minimum_ir_version(model) == 3
    model.graph.add_constant("f", np.ones(1, np.float32))
    assert minimum_ir_version(model) == 4
    for dtype, version in ((ml_dtypes.float8_e5m2, 9), (ml_dtypes.int4, 10), (ml_dtypes.float4_e2m1fn, 11)):
        model.graph.add_constant("w", np.ones(1, dtype))
        assert minimum_ir_version(model) == version
