"""The oracle of the integer forms: whatever is rewritten, onnxruntime computes the same without optimizations."""

from __future__ import annotations

from collections.abc import Collection

from onnxcomp.compiler.integer_rewrites.operators import ALL_FORMS, integer_forms
from onnxcomp.compiler.passbase import PassLog
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.runtime.observe import observe_shapes
from onnxcomp.testing import assert_equal_outputs, assert_valid, fingerprint

__all__ = ["becomes", "ops", "rewritten", "stays"]


def rewritten(model: Model, *left_alone: str, kinds: Collection[str] = ALL_FORMS) -> tuple[Model, PassLog]:
    """Rewrite a copy of `model`, prove that it computes the same at batch 1 and 3, and return it with the log."""
    sizes = {v.name: tuple(s if isinstance(s, int) else 2 for s in v.shape or ()) for v in model.graph.inputs}
    shapes = observe_shapes(model, {}, sizes=sizes)
    after, log = model.clone(), PassLog()
    integer_forms(after, shapes, set(left_alone), log, kinds)
    assert_valid(after, model)
    assert_equal_outputs(model, after, tolerance=1e-5)
    assert (fingerprint(after) != fingerprint(model)) == bool(log.changes)
    assert all(after.graph.constants[c.name] is c for n in after.graph.nodes for c in n.inputs if _stored(c))
    untouched = {n.name: (n.op, n.attrs) for n in after.graph.nodes if n.name in left_alone}
    assert untouched == {n.name: (n.op, n.attrs) for n in model.graph.nodes if n.name in left_alone}
    return after, log


def _stored(value: object) -> bool:
    return hasattr(value, "values")


def ops(model: Model) -> list[str]:
    """Return the operators of `model` in order."""
    return [node.op for node in model.graph.nodes]


def becomes(text: str, *wanted: str, left: tuple[str, ...] = ()) -> tuple[Model, PassLog]:
    """Assert which operators the network `text` consists of afterwards, and that this is a change."""
    after, log = rewritten(parse_model(text), *left)
    assert ops(after) == list(wanted)
    assert log.changes
    return after, log


def stays(text: str, *skips: str, left: tuple[str, ...] = ()) -> None:
    """Assert that nothing is done to the network `text`, and how what is said about it begins."""
    _, log = rewritten(parse_model(text), *left)
    assert [c.what for c in log.changes] == []
    said = [f"{skip.where}: {skip.reason}" for skip in log.skips]
    assert len(said) == len(skips), said
    assert all(s.startswith(start) for s, start in zip(said, skips, strict=True)), said
