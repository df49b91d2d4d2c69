"""Runs of passes that several tests read: a pass is deterministic, so what it made once of a network need not be made again."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace

from onnxcomp.compiler.passbase import Context, Pass, PassResult
from onnxcomp.ir.model import Model
from onnxcomp.testing import fingerprint

__all__ = ["run_once"]

_RESULTS: dict[Hashable, PassResult] = {}


def run_once(
    step: Pass, model: Model, context: Callable[[], Context], given: Hashable, *, fresh: bool = False
) -> PassResult:
    """Return what `step` makes of `model`, from an earlier call with the same step, model and `given` where there was one.

    The model of the result is the caller's own. `given` stands for everything that `context` is made of. With `fresh` the
    pass runs and nothing is kept: for tests that hold two runs against each other, or run it under other conditions.
    """
    key = (repr(step), fingerprint(model), given)
    found = None if fresh else _RESULTS.get(key)
    if found is None:
        found = step.run(model.clone(), context())
        if fresh:
            return found
        _RESULTS[key] = found
    return replace(found, model=found.model.clone())
