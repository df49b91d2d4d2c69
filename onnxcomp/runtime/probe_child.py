"""The process that `sandbox.probe` starts: a request as JSON on stdin, what was found as JSON on stdout."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import sys
from typing import Any

import numpy as np

from onnxcomp.errors import ModelError, OnnxcompError, memory_wanted, shortened
from onnxcomp.ir.check import check_model
from onnxcomp.ir.convert import settle_opset
from onnxcomp.ir.files import load
from onnxcomp.ir.graph import Array
from onnxcomp.ir.model import Model
from onnxcomp.runtime.inputs import (
    PIECE_LIMIT,
    Shapes,
    can_be_drawn,
    candidate_shapes,
    noise,
    runnable_shapes,
)
from onnxcomp.runtime.sandbox import Probe
from onnxcomp.runtime.session import Session, SessionError

__all__ = ["look", "main"]

_CONVERSION_TOLERANCE = 1e-4
"""Relative to the largest output: what exact passes are held to as well."""

_MEMORY_SHARE = 0.75
_BASE_BYTES = 2**32
"""The child may allocate this, and its share of the machine's memory; mapped files do not count."""

_NO_MEMORY = re.compile(r"bad_alloc|MemoryError|allocate memory|out of memory", re.IGNORECASE)


def main() -> None:
    """Answer the request on stdin."""
    request: dict[str, Any] = json.loads(sys.stdin.buffer.read())
    answer = _take_stdout()
    _limit_process(request["seconds"])
    found = look(request)
    with os.fdopen(answer, "w", encoding="utf-8") as stream:
        json.dump(found, stream)
    # What is left to do is to unload native code that has seen an untrusted file.
    os._exit(0)


def look(request: dict[str, Any]) -> dict[str, Any]:
    """Return what was found out about the file of `request`, or what is wrong with it as `kind` and `error`."""
    try:
        return dataclasses.asdict(_look(request))
    except OnnxcompError as problem:
        kind = "ModelError" if isinstance(problem, ModelError) else "UsageError"
        return {"kind": kind, "error": str(problem)}
    except MemoryError as problem:
        return {
            "kind": "ModelError",
            "error": f"{request['name']!r} takes {memory_wanted(problem)}",
        }
    except Exception as problem:  # noqa: BLE001 - the parent says what a file did to it: the file may be made to
        reason = shortened(" ".join(f"{type(problem).__name__}: {problem}".split()))
        return {"kind": "ModelError", "error": f"{request['name']!r} cannot be looked at: {reason}"}


def _take_stdout() -> int:
    """Return a private copy of stdout; whatever native code prints goes to stderr from now on."""
    answer = os.dup(1)
    os.dup2(2, 1)
    return answer


def _limit_process(seconds: float) -> None:
    try:
        import resource
    except ImportError:  # Windows has no such limits; the parent's timeout still holds
        return
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = {
        resource.RLIMIT_DATA: _BASE_BYTES + int(memory * _MEMORY_SHARE),
        resource.RLIMIT_CPU: int(seconds * (os.cpu_count() or 1)) + 1,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
    }
    for which, limit in limits.items():
        hard = resource.getrlimit(which)[1]
        resource.setrlimit(which, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _look(request: dict[str, Any]) -> Probe:
    given = load(request["path"], allow_links=request["allow_links"], convert=False)
    model = settle_opset(given)
    checker = _objection(model)
    session, reason = _open(request, model)
    if session is None and checker is not None:
        raise ModelError(f"{request['name']!r} is not a valid model: {checker}; onnxruntime: {reason}")
    shapes: Shapes = {}
    if session is not None:
        fixed = {name: tuple(shape) for name, shape in request["input_shapes"].items()}
        shapes, reason = _run(request, model, session, fixed)
    converted = model is not given
    error = None
    if session is not None and shapes and converted:
        error = _conversion_error(request, session, given.opset, model, shapes)
    return Probe(
        checker=checker,
        runtime_loads=session is not None,
        runs=bool(shapes),
        reason=reason,
        input_shapes=shapes,
        sizes=_sizes(model, shapes),
        opset=given.opset_imports.get("", 0),
        converted_to=model.opset if converted else None,
        conversion_error=error,
        notes=tuple(model.notes),
    )


def _objection(model: Model) -> str | None:
    try:
        check_model(model)
    except ModelError as problem:
        return str(problem)
    return None


def _open(request: dict[str, Any], model: Model) -> tuple[Session | None, str]:
    """Return a session over the file, or over what was made of it (onnxruntime follows no links), or the reason."""
    libraries = request["custom_op_libs"]
    try:
        return Session(request["path"], custom_op_libs=libraries), ""
    except SessionError as problem:
        reason = str(problem)
    _check_memory(request, reason)
    if model.weight_bytes > PIECE_LIMIT:
        return None, reason
    try:
        return Session(model, custom_op_libs=libraries), ""
    except SessionError as problem:
        _check_memory(request, str(problem))
    return None, reason


def _check_memory(request: dict[str, Any], reason: str) -> None:
    # What does not fit into the child would only bring down the parent.
    if _NO_MEMORY.search(reason):
        raise ModelError(f"{request['name']!r} needs more memory than this machine has: {reason}")


def _run(request: dict[str, Any], model: Model, session: Session, fixed: Shapes) -> tuple[Shapes, str]:
    """Return the input shapes that `session` runs with, or none and the reason."""
    shapes = runnable_shapes(model, session, fixed, request["seed"])
    if shapes is not None:
        return shapes, ""
    first = next(candidate_shapes(model, fixed), None)
    if first is None:
        return {}, "the number of axes of an input is not known; fix it with --set-shape"
    if not can_be_drawn(first):
        return {}, "the inputs are too large to be made up; fix their sizes with --set-shape"
    try:
        session.run(noise(model, first, request["seed"]))
    except SessionError as problem:
        _check_memory(request, str(problem))
        return {}, str(problem)
    return {}, "the inputs are too large to be made up; fix their sizes with --set-shape"


def _sizes(model: Model, shapes: Shapes) -> dict[str, int]:
    """Return symbol -> size; where inputs give one symbol several sizes, the first."""
    found: dict[str, int] = {}
    for value in model.graph.inputs:
        for axis, size in zip(value.shape or (), shapes.get(value.name, ()), strict=False):
            if isinstance(axis, str):
                found.setdefault(axis, size)
    return found


def _conversion_error(
    request: dict[str, Any], session: Session, opset: int, model: Model, shapes: Shapes
) -> float | None:
    """Return how far the outputs of `model` are from those of `session`, the file before its conversion.

    Raises:
        ModelError: if that is more than rounding, or if the converted model does not run.
    """
    feed = noise(model, shapes, request["seed"])
    before, again = session.run(feed), session.run(feed)
    if model.weight_bytes > PIECE_LIMIT or _distance(before, again) > 0:
        return None
    what = f"onnx's conversion from opset {opset} to {model.opset}"
    advice = f"export the model with opset {model.opset} or later"
    try:
        after = Session(model, custom_op_libs=request["custom_op_libs"]).run(feed)
    except SessionError as problem:
        raise ModelError(f"{what} makes a model that does not run ({problem}); {advice}") from problem
    error = _distance(before, after)
    if error > _CONVERSION_TOLERANCE:
        raise ModelError(
            f"{what} changes the outputs of {request['name']!r} (by {error:.1g} of the largest); {advice}"
        )
    return error


def _distance(first: dict[str, Array], second: dict[str, Array]) -> float:
    """Return the largest difference over all outputs, each relative to its largest finite element."""
    return max((_array_distance(first[name], second[name]) for name in first), default=0.0)


def _array_distance(first: Array, second: Array) -> float:
    if not isinstance(first, np.ndarray) or first.dtype.kind not in "fiub":
        # Text, sequences and maps: the same or not.
        return 0.0 if str(first) == str(second) else math.inf
    if first.shape != second.shape:
        return math.inf
    a, b = first.astype(np.float64), second.astype(np.float64)
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)) or not np.array_equal(
        a[~finite], b[~finite], equal_nan=True
    ):
        return math.inf
    if not finite.any():
        return 0.0
    return float(
        np.abs(a[finite] - b[finite]).max() / max(np.abs(a[finite]).max(), np.finfo(np.float32).tiny)
    )


if __name__ == "__main__":
    main()
