"""Is the model that a pass made still a model, with the same face, that runs, and computes what it should?

A Verifier holds the original: its declared inputs and outputs, and what onnxruntime makes of a few samples with all
optimizations disabled. Whatever the original itself does not pass (strict shape inference, finite outputs) is not held
against later models, and noted once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from onnxcomp.analysis.selection import selected_values
from onnxcomp.errors import ModelError, VerificationError
from onnxcomp.ir.check import check_model, check_names, interface
from onnxcomp.ir.files import load
from onnxcomp.ir.graph import Array
from onnxcomp.ir.model import Model
from onnxcomp.ir.randomness import random_nodes, with_seeds
from onnxcomp.runtime.inputs import PIECE_LIMIT
from onnxcomp.runtime.session import Session, SessionError

__all__ = ["EXACT_TOLERANCE", "Outputs", "Verifier"]

EXACT_TOLERANCE = 1e-4
"""Largest difference of an exact pass, relative to the largest magnitude of the output."""

HALF_TOLERANCE = 1e-2
"""The same where the model holds 16-bit floats: one rounding step of those is 1e-3 (float16) or 8e-3 (bfloat16)."""

Outputs = tuple[Mapping[str, Any], ...]
"""What a model gives for each of the feeds, by output name."""


@dataclass
class Verifier:
    """Holds models against `original`.

    `feeds` are whole feeds `{input: array}`; without any, and for models above `piece_limit` bytes of weights, what
    can be checked without running is checked. `notes` says what had to be left out, one sentence each.
    """

    original: Model
    feeds: Sequence[Mapping[str, Array]]
    threads: int = 0
    custom_op_libs: tuple[str, ...] = ()
    piece_limit: int = PIECE_LIMIT
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._interface = interface(self.original)
        self._tolerance = _tolerance(self.original)
        sizes = {
            name: tuple(np.shape(array)) for name, array in (self.feeds[-1] if self.feeds else {}).items()
        }
        self._selected = selected_values(self.original, lambda model: sizes)
        self._checked = True
        try:
            check_model(self.original)
        except ModelError as problem:
            self._checked = False
            self.notes.append(f"the input itself fails a check, which is left out: {problem}")

    @property
    def runs(self) -> bool:
        """Whether models are run, not only checked."""
        return bool(self.feeds)

    def baseline(self, session: Session | None = None) -> Outputs | None:
        """Return what the original gives, by `session` where that is given.

        None where models are not run, or where the original is too large and there is no session of it.

        Raises:
            SessionError: where the original does not run.
        """
        if session is not None and self.runs:
            outputs: Outputs | None = tuple(session.run(f) for f in self.feeds)
        else:
            outputs = self._outputs(self.original)
        if outputs is not None and not all(_finite(o) for out in outputs for o in out.values()):
            self.notes.append(
                "the input gives NaN or Inf on the samples; only what it gives finite is judged"
            )
        return outputs

    def verify(self, model: Model, before: Outputs | None, *, exact: bool) -> Outputs | None:
        """Return what `model` gives on the feeds, having checked it; `before` is what the model before it gave.

        With `exact` the two must agree to `EXACT_TOLERANCE`. Returns None where models are not run.

        Raises:
            VerificationError: with the first thing that is wrong.
        """
        try:
            check_names(model)
            self._check_interface(model)
            if self._checked:
                check_model(model)
            outputs = self._outputs(model)
        except SessionError as problem:
            raise VerificationError(f"onnxruntime refuses the model: {problem}") from problem
        except ModelError as problem:
            raise VerificationError(str(problem)) from problem
        if outputs is not None and before is not None:
            compare_outputs(before, outputs, self._tolerance if exact else None, self._selected)
        return outputs

    def verify_file(self, path: Path, expected: Outputs | None) -> None:
        """Make sure that the file at `path` loads and gives `expected`, as written and with optimizations.

        Raises:
            VerificationError: with the first thing that is wrong.
        """
        if not self.runs:
            return
        try:
            source = with_seeds(load(path)) if random_nodes(self.original) else str(path)
            plain = Session(source, optimize=False, threads=self.threads, custom_op_libs=self.custom_op_libs)
            outputs: Outputs = tuple(plain.run(f) for f in self.feeds)
            del plain
            if expected is not None:
                compare_outputs(expected, outputs, self._tolerance)
            tuned = Session(str(path), threads=self.threads, custom_op_libs=self.custom_op_libs)
            compare_outputs(outputs, tuple(tuned.run(f) for f in self.feeds), None, self._selected)
        except SessionError as problem:
            raise VerificationError(f"onnxruntime refuses the written file: {problem}") from problem

    def _outputs(self, model: Model) -> Outputs | None:
        if not self.runs or model.weight_bytes > self.piece_limit:
            return None
        session = Session(model, optimize=False, threads=self.threads, custom_op_libs=self.custom_op_libs)
        return tuple(session.run(f) for f in self.feeds)

    def _check_interface(self, model: Model) -> None:
        now = interface(model)
        for old, new in zip(self._interface, now, strict=False):
            if old != new:
                raise VerificationError(f"the graph's {old} has become {new}")
        if len(now) != len(self._interface):
            raise VerificationError(
                f"the graph had {len(self._interface)} inputs and outputs and now has {len(now)}"
            )


def compare_outputs(
    before: Outputs, after: Outputs, tolerance: float | None, selected: Collection[str] = ()
) -> None:
    """Hold the outputs of one model against those of the model before it.

    Names, dtypes and shapes must be equal and what was finite must stay finite. With a `tolerance`, every number must
    agree to this share of the largest magnitude in its output; integers, truth values and text exactly. Without one, the
    outputs named in `selected`, whose rows the data select, may have another number of rows.

    Raises:
        VerificationError: naming the output.
    """
    for old, new in zip(before, after, strict=True):
        if list(old) != list(new):
            raise VerificationError(f"the outputs were {', '.join(old)} and are {', '.join(new)}")
        for name, value in old.items():
            _compare_values(
                name, value, new[name], tolerance, any_rows=name in selected and tolerance is None
            )


def _compare_values(
    name: str, old: Any, new: Any, tolerance: float | None, *, any_rows: bool = False
) -> None:
    if not (isinstance(old, np.ndarray) and isinstance(new, np.ndarray)):
        return  # sequences and maps are checked by having run
    if any_rows and old.dtype == new.dtype and old.shape[1:] == new.shape[1:] and old.ndim == new.ndim:
        if _finite(old) and not _finite(new):
            raise VerificationError(f"output '{name}' has become NaN or Inf")
        return
    if old.dtype != new.dtype or old.shape != new.shape:
        raise VerificationError(
            f"output '{name}' was {old.dtype} {list(old.shape)} and is {new.dtype} {list(new.shape)}"
        )
    if old.dtype.kind in "OUSbiu":
        if tolerance is not None and not np.array_equal(old, new):
            raise VerificationError(f"an exact pass changed the values of output '{name}'")
        return
    a, b = old.astype(np.float64), new.astype(np.float64)
    finite = np.isfinite(a)
    if not np.isfinite(b[finite]).all():
        raise VerificationError(f"output '{name}' has become NaN or Inf")
    if tolerance is None:
        return
    finite &= np.isfinite(b)
    gap = np.abs(a - b, where=finite, out=np.zeros_like(a)).max(initial=0.0)
    scale = np.abs(a, where=finite, out=np.zeros_like(a)).max(initial=0.0)
    if gap > tolerance * scale:
        raise VerificationError(
            f"an exact pass changed output '{name}' by {gap:.3g} where the largest value is {scale:.3g} "
            f"(allowed: {tolerance:g} of it)"
        )


def _finite(value: Any) -> bool:
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fV":
        return True
    return bool(np.isfinite(value.astype(np.float64)).all())


def _tolerance(model: Model) -> float:
    held = {np.dtype(c.values.dtype).name for c in model.graph.constants.values()}
    held |= {
        np.dtype(v.dtype).name for v in [*model.graph.inputs, *model.graph.outputs] if v.dtype is not None
    }
    return HALF_TOLERANCE if held & {"float16", "bfloat16"} else EXACT_TOLERANCE
