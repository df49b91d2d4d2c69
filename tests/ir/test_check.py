"""The checks that every model must pass after every edit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxcomp.errors import ModelError
from onnxcomp.ir.check import check_model, check_names, interface, serialized_bytes
from onnxcomp.ir.files import save
from onnxcomp.ir.graph import Constant, Variable
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model

TEXT = """<ir_version: 8, opset_import: ["" : 17]> net (float[N, 40] x) => (float[N, 50] y)
<float[40, 50] w> { h = Relu (x)  y = MatMul (h, w) }"""


def model() -> Model:
    return parse_model(TEXT)


def test_a_sound_model_passes_and_its_face_is_told() -> None:
    check_model(model())
    check_names(model())
    assert len(interface(model())) == 2
    assert interface(model()) == interface(model())


def test_a_wrong_attribute_is_refused_with_the_reason_of_the_checker() -> None:
    bad = model()
    bad.graph.nodes[0].attrs["nonsense"] = 3
    with pytest.raises(ModelError, match=r"the ONNX checker refuses the model: .*nonsense"):
        check_model(bad)


def test_shapes_that_contradict_are_refused() -> None:
    bad = model()
    bad.graph.set_constant(bad.graph.nodes[1], 1, np.zeros((40, 49), np.float32))
    with pytest.raises(ModelError, match="checker refuses"):
        check_model(bad)


def test_two_values_of_one_name_are_found_though_the_file_would_hide_them() -> None:
    bad = model()
    bad.graph.nodes[1].inputs[1] = Constant("x", np.zeros((40, 50), np.float32))
    with pytest.raises(ModelError, match="reads another value called 'x'"):
        check_names(bad)


def test_a_value_that_nothing_computes_and_a_wrong_order_are_found() -> None:
    bad = model()
    bad.graph.nodes.reverse()
    with pytest.raises(ModelError, match="'h' before it is computed"):
        check_names(bad)
    bad = model()
    bad.graph.outputs[0] = Variable("y")
    with pytest.raises(ModelError, match="graph output 'y' is not the value"):
        check_names(bad)


def test_the_face_tells_names_types_order_and_symbols() -> None:
    other = parse_model(TEXT.replace("float[N, 40] x", "float[M, 40] x"))
    assert interface(other)[0] != interface(model())[0]
    assert interface(other)[1] == interface(model())[1]


def test_the_estimated_size_is_that_of_the_file(tmp_path: Path) -> None:
    save(model(), tmp_path / "m.onnx")
    size = (tmp_path / "m.onnx").stat().st_size
    assert abs(serialized_bytes(model()) - size) < 0.02 * size
