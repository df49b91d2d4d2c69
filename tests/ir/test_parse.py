"""Models from ONNX text with made-up weights."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest

from onnxcomp.errors import ModelError
from onnxcomp.ir.parse import as_model, parse_model, valueless
from tests.support.text import net

TEXT = net(
    "(float[N,3,4,4] x) => (float[N,2,4,4] y)",
    "float[2,3,1,1] w, float[2] s, float[2] b, float[2] m, float[2] v, float[1] known = {7}, int64[1] at = {3}",
    "h = Conv(x, w) n = BatchNormalization(h, s, b, m, v) y = Mul(n, known)",
)


def test_tensors_without_values_are_made_up_and_the_others_are_read() -> None:
    model = parse_model(TEXT)
    assert sorted(valueless(TEXT)) == ["b", "m", "s", "v", "w"]
    assert {name: c.values.shape for name, c in model.graph.constants.items() if name in valueless(TEXT)} == {
        "w": (2, 3, 1, 1),
        **dict.fromkeys("sbmv", (2,)),
    }
    assert model.graph.constants["known"].values.tolist() == [7.0]
    assert all(c.values.dtype == np.float32 for name, c in model.graph.constants.items() if name != "at")
    assert (model.graph.constants["v"].values > 0).all(), "a variance is positive"


def test_made_up_values_depend_on_seed_name_and_shape_alone() -> None:
    first, again, other = (
        parse_model(TEXT),
        parse_model(TEXT.replace("known)", "s)")),
        parse_model(TEXT, seed=1),
    )
    for name in "wsbmv":
        np.testing.assert_array_equal(first.graph.constants[name].values, again.graph.constants[name].values)
        assert not np.array_equal(first.graph.constants[name].values, other.graph.constants[name].values)
    assert not np.array_equal(first.graph.constants["s"].values, first.graph.constants["b"].values)


def test_values_can_be_given() -> None:
    weight = np.arange(6, dtype=np.float32).reshape(2, 3, 1, 1)
    model = parse_model(TEXT, {"w": weight})
    np.testing.assert_array_equal(model.graph.constants["w"].values, weight)
    with pytest.raises(ModelError, match="the text declares no stored tensor 'z'"):
        parse_model(TEXT, {"z": weight})


def test_models_come_from_text_proto_or_model_and_may_be_edited() -> None:
    model = parse_model(TEXT)
    clone = as_model(model)
    clone.graph.nodes.clear()
    assert len(model.graph.nodes) == 3
    proto = onnx.parser.parse_model(net("(float[N] x) => (float[N] y)", "", "y = Relu(x)"))
    assert [n.op for n in as_model(proto).graph.nodes] == ["Relu"]
    assert [n.op for n in as_model(TEXT).graph.nodes] == ["Conv", "BatchNormalization", "Mul"]


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("h = Conv", "h Conv", "the ONNX text is malformed: .ParseError"),
        (" = {3}", "", "'at' needs a value in the text: only floats of known shape are made up"),
        ("float[2] s", "float[K] s", "'s' needs a value in the text"),
        ("Mul(n, known)", "Mul(n, unknown)", "reads 'unknown', which nothing defines"),
    ],
)
def test_mistakes_are_named_in_one_line(old: str, new: str, reason: str) -> None:
    with pytest.raises(ModelError, match=reason) as problem:
        parse_model(TEXT.replace(old, new))
    assert "\n" not in str(problem.value)
    assert "b'" not in str(problem.value)
