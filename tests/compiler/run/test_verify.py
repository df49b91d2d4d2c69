"""The verifier catches every way to break a model, and blames no pass for what the input brought along."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxcomp.compiler.passbase import Context
from onnxcomp.compiler.run.verify import Verifier
from onnxcomp.errors import VerificationError
from onnxcomp.ir import Model
from onnxcomp.ir.files import save
from onnxcomp.ir.parse import parse_model
from onnxcomp.runtime.inputs import noise
from tests.support.fakes import Breaker, Nudge, classifier

SINGLE = {"image": (1, 3, 4, 4)}
SEVERAL = {"image": (3, 3, 4, 4)}


def verifier(model: Model) -> Verifier:
    return Verifier(model, [noise(model, SEVERAL, 0), noise(model, SINGLE, 0)])


def broken(way: str) -> Model:
    model = classifier()
    return Breaker(way).run(model, Context(model)).model  # type: ignore[arg-type]


def test_an_unchanged_model_passes() -> None:
    model = classifier()
    held = verifier(model)
    before = held.baseline()
    assert before is not None
    assert held.verify(model.clone(), before, exact=True) is not None
    assert held.notes == []


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        ("name", "the graph's output .* has become output"),
        ("output", "had 2 inputs and outputs and now has 3"),
        ("input", "the graph's input .* has become input"),
        ("nan", "output 'scores' has become NaN or Inf"),
        ("shape", "checker refuses|shape"),
        ("twins", "two values are called 'conv'"),
        ("runtime", "onnxruntime refuses the model"),
        ("dtype", "checker refuses"),
        ("order", "before it is computed"),
        ("batch", "onnxruntime refuses the model|was float32"),
        ("reader", "reads 'nowhere' before it is computed"),
    ],
)
def test_every_way_to_break_a_model_is_caught(way: str, reason: str) -> None:
    held = verifier(classifier())
    before = held.baseline()
    with pytest.raises(VerificationError, match=reason):
        held.verify(broken(way), before, exact=False)


def test_an_exact_pass_may_not_change_the_numbers_and_a_lossy_one_may() -> None:
    model = classifier()
    held = verifier(model)
    before = held.baseline()
    nudged = Nudge(by=1.01).run(model.clone(), Context(model)).model
    with pytest.raises(VerificationError, match=r"changed output 'scores' by .* \(allowed: 0\.0001 of it\)"):
        held.verify(nudged, before, exact=True)
    assert held.verify(nudged, before, exact=False) is not None


def test_the_tolerance_of_exact_passes_is_a_share_of_the_largest_output() -> None:
    model = classifier()
    held = verifier(model)
    before = held.baseline()
    context = Context(model)
    assert held.verify(Nudge(by=1 + 5e-5).run(model.clone(), context).model, before, exact=True)
    with pytest.raises(VerificationError):
        held.verify(Nudge(by=1 + 3e-4).run(model.clone(), context).model, before, exact=True)


def test_integers_must_stay_equal_under_an_exact_pass() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> net (float[N, 4] x) => (int64[N] y)
    <float[4, 3] w> { s = MatMul (x, w)  y = ArgMax <axis = 1, keepdims = 0> (s) }"""
    model = parse_model(text)
    other = parse_model(text, seed=3)
    held = Verifier(model, [noise(model, {"x": (64, 4)}, 0)])
    before = held.baseline()
    with pytest.raises(VerificationError, match="changed the values of output 'y'"):
        held.verify(other, before, exact=True)
    assert held.verify(other, before, exact=False) is not None


def test_what_the_input_itself_does_not_give_finite_is_not_held_against_a_pass() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> net (float[N, 4] x) => (float[N, 4] y)
    <float[4, 4] w> { s = MatMul (x, w)  y = Log (s) }"""
    model = parse_model(text)
    held = Verifier(model, [noise(model, {"x": (8, 4)}, 0)])
    before = held.baseline()
    assert any("NaN or Inf" in note for note in held.notes)
    assert held.verify(model.clone(), before, exact=True) is not None


def test_a_check_that_the_input_fails_is_left_out_and_noted() -> None:
    text = (
        """<ir_version: 8, opset_import: ["" : 17]> net (float[N, 4] x) => (float[N, 9] y) { y = Relu (x) }"""
    )
    model = parse_model(text)
    held = Verifier(model, [noise(model, {"x": (1, 4)}, 0)])
    assert any("the input itself fails a check" in note for note in held.notes)
    assert held.verify(model.clone(), held.baseline(), exact=True) is not None


def test_half_precision_is_held_to_its_own_rounding() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> net (float16[N, 4] x) => (float16[N, 3] y)
    <float16[4, 3] w> { y = MatMul (x, w) }"""
    model = parse_model(text)
    held = Verifier(model, [noise(model, {"x": (8, 4)}, 0)])
    before = held.baseline()
    weight = model.graph.constants["w"].values
    for by, exact_enough in ((1.001, True), (1.1, False)):
        near = model.clone()
        near.graph.set_constant(near.graph.nodes[0], 1, (weight * np.float16(by)).astype(np.float16))
        if exact_enough:
            assert held.verify(near, before, exact=True) is not None
        else:
            with pytest.raises(VerificationError):
                held.verify(near, before, exact=True)


def test_models_above_the_limit_are_checked_but_not_run() -> None:
    model = classifier()
    held = Verifier(model, [noise(model, SINGLE, 0)], piece_limit=100)
    assert held.baseline() is None
    assert held.verify(broken("nan"), None, exact=False) is None
    with pytest.raises(VerificationError, match="two values"):
        held.verify(broken("twins"), None, exact=False)


def test_a_written_file_must_give_what_the_model_gave(tmp_path: Path) -> None:
    model = classifier()
    held = verifier(model)
    outputs = held.baseline()
    save(model, tmp_path / "same.onnx")
    held.verify_file(tmp_path / "same.onnx", outputs)
    save(Nudge().run(model.clone(), Context(model)).model, tmp_path / "other.onnx")
    with pytest.raises(VerificationError, match="scores"):
        held.verify_file(tmp_path / "other.onnx", outputs)
    (tmp_path / "other.onnx").write_bytes(b"no model at all")
    with pytest.raises(VerificationError, match="onnxruntime refuses the written file"):
        held.verify_file(tmp_path / "other.onnx", outputs)
