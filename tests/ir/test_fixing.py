"""Free sizes of inputs made fixed, in what the file declares."""

from __future__ import annotations

import pytest

from onnxcomp.errors import UsageError
from onnxcomp.ir.fixing import fix_input_shapes
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.ir.proto import to_proto

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 3, H, W] x, float[N, 2] extra) => (float[N, 2, P, Q] y, float[N, 2] z)
<float[2, 3, 2, 2] w> { y = Conv (x, w)  z = Relu (extra) }"""


def declared(model: Model) -> dict[str, list[int | str]]:
    graph = to_proto(model).graph
    return {
        v.name: [d.dim_value or d.dim_param for d in v.type.tensor_type.shape.dim]
        for v in [*graph.input, *graph.output]
    }


def test_inputs_and_what_follows_for_outputs_are_declared() -> None:
    model = parse_model(TEXT)
    changes = fix_input_shapes(model, {"x": (1, 3, 8, 10), "extra": (None, 2)})
    assert declared(model) == {"x": [1, 3, 8, 10], "extra": [1, 2], "y": [1, 2, 7, 9], "z": [1, 2]}
    assert changes == ["input x: [N, 3, H, W] -> [1, 3, 8, 10]", "input extra: [N, 2] -> [1, 2]"]


def test_an_axis_can_stay_as_it_is() -> None:
    model = parse_model(TEXT)
    fix_input_shapes(model, {"x": (None, None, 8, 10)})
    assert declared(model)["x"] == ["N", 3, 8, 10]
    assert declared(model)["z"] == ["N", 2]


def test_the_model_it_was_cloned_from_stays_as_it_was() -> None:
    model = parse_model(TEXT)
    before = declared(model)
    fix_input_shapes(model.clone(), {"x": (1, 3, 8, 10)})
    assert declared(model) == before


def test_nothing_to_fix_changes_nothing() -> None:
    model = parse_model(TEXT)
    assert fix_input_shapes(model, {}) == []
    assert fix_input_shapes(model, {"x": (None, 3, None, None)}) == []


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"q": (1,)}, "names 'q', which is no input; inputs: x, extra"),
        ({"x": (1, 3, 8)}, r"gives x 3 sizes; it has 4 axes: \[N, 3, H, W\]"),
        ({"x": (1, 3, 0, 8)}, "a size below 1"),
        ({"x": (1, 3, 8, 8), "extra": (2, 2)}, "gives N the sizes 1 and 2"),
    ],
)
def test_sizes_that_cannot_be_are_refused_and_nothing_is_edited(
    shapes: dict[str, tuple[int | None, ...]], message: str
) -> None:
    model = parse_model(TEXT)
    before = declared(model)
    with pytest.raises(UsageError, match=message):
        fix_input_shapes(model, shapes)
    assert declared(model) == before
