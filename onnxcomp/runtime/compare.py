"""How far two models are apart on the same samples, streamed: nothing but sums is kept from batch to batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.errors import DataError, ModelError, UsageError
from onnxcomp.numerics.arrays import Array
from onnxcomp.runtime.session import Session, SessionError

__all__ = ["Comparison", "OutputDifference", "compare_models", "decision_output", "numbers"]


SQNR_FLOOR = -300.0
"""Decibels reported where an output that was all zero no longer is."""


@dataclass(frozen=True)
class OutputDifference:
    """How one output differs over all samples; None where it holds no numbers, or differs in where it is finite.

    `max_abs` is the largest |a - b|, `mse` the mean of (a - b)^2, `relative` is |a - b| / |a| in the Euclidean norm,
    `sqnr_db` 10 log10(|a|^2 / |a - b|^2), infinite where the outputs are equal; `cosine` a.b / (|a| |b|).
    `identical` means equal bit for bit, `finite` that b is finite wherever a is. Whole numbers (class indices, counts) and
    truth values are no signal with noise: of them only `max_abs` is given, and `equal`, the percentage of elements that are
    the same. `note` says what of the output could not be compared, "" where all was.
    """

    name: str
    identical: bool
    finite: bool
    max_abs: float | None
    mse: float | None
    relative: float | None
    sqnr_db: float | None
    cosine: float | None
    equal: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Comparison:
    """Two models on the same samples.

    `agreement` is the share of samples on which both choose the same class on output `decision`, `accuracy_before` and
    `accuracy_after` the shares that the labels confirm; all in percent, None where the model makes no such choice or
    there are no labels. Where no output holds floats, `agreement` is the share of equal elements of `decision`, the output
    of whole numbers that differs most.
    """

    samples: int
    outputs: tuple[OutputDifference, ...]
    decision: str | None = None
    agreement: float | None = None
    accuracy_before: float | None = None
    accuracy_after: float | None = None

    @property
    def unjudged(self) -> bool:
        """Whether no output holds numbers that could be compared: the two are neither near nor far."""
        return all(o.max_abs is None and o.finite for o in self.outputs)

    @property
    def notes(self) -> tuple[str, ...]:
        """What could not be compared, one sentence for each output that this is said of."""
        return tuple(f"output {o.name!r}: {o.note}" for o in self.outputs if o.note)

    @property
    def worst(self) -> OutputDifference | None:
        """The output with the smallest SQNR; None where no output holds floats."""
        numeric = [o for o in self.outputs if o.sqnr_db is not None]
        return min(numeric, key=lambda o: o.sqnr_db or 0.0) if numeric else None

    @property
    def sqnr_db(self) -> float | None:
        """The smallest SQNR of any output in dB; None where no output holds floats or one is no longer finite."""
        if not all(o.finite for o in self.outputs):
            return None
        return self.worst.sqnr_db if self.worst else None

    @property
    def mse(self) -> float | None:
        """The largest mean squared difference of any output."""
        return max((o.mse for o in self.outputs if o.mse is not None), default=None)


def compare_models(
    before: Session,
    after: Session,
    batches: Iterable[Mapping[str, Array]],
    *,
    labels: NDArray[np.int64] | None = None,
    output: str | None = None,
    counts: Iterable[int] | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Comparison:
    """Run both sessions on `batches` and return how they differ.

    `batches` yields feeds `{input: array}`, `counts` how many samples each of them holds; without it samples are counted
    along the first axis of the decision output (of the first output where there is none). `labels` are one class index per
    sample. `output` names the output on which classes are chosen; by default the first of floats with shape
    `[N, C >= 2]`. Outputs are paired by name. An output whose number of rows differs between the two is left out for that
    batch. `progress` is called with the number of samples done.

    Raises:
        ModelError: where the models have different outputs, or outputs of different shapes.
        UsageError: where `output` does not exist or makes no choice.
        DataError: where `before` does not run on a sample, or there is not one label per sample.
        SessionError: where `after` does not run on a sample.
    """
    _check_outputs(before, after, output)
    sums = {name: _Sums(name) for name in before.outputs}
    choice = _Choice(labels)
    decision: str | None = output
    samples = 0
    sizes = None if counts is None else iter(counts)
    for feeds in batches:
        first = {name: numbers(value) for name, value in _run_original(before, feeds, samples).items()}
        second = {name: numbers(value) for name, value in after.run(feeds).items()}
        if not samples:
            decision = decision_output(first, output)
        for name, total in sums.items():
            total.add(first[name], second[name])
        samples += _count(first, decision) if sizes is None else next(sizes)
        if decision is not None:
            choice.add(first[decision], second[decision])
        progress(samples)
    outputs = tuple(s.result() for s in sums.values())
    found = Comparison(samples, outputs, decision, *choice.percentages())
    return found if decision is not None else _by_equality(found)


def numbers(value: Any) -> Any:
    """Return what a model gives as an array, where it can be one: a list of maps with the same keys is a row for each.

    That is what ZipMap makes, the end of most classifiers that scikit-learn exports. Other sequences stay as they are.
    """
    if not (isinstance(value, list) and value and all(isinstance(row, dict) for row in value)):
        return value
    keys = list(value[0])
    if any(list(row) != keys for row in value):
        return value
    rows = np.array([list(row.values()) for row in value])
    return rows.astype(np.float32) if rows.dtype.kind == "f" else rows


def _by_equality(found: Comparison) -> Comparison:
    """Return `found`, judged by the share of equal elements where no output holds floats."""
    shares = {o.name: o.equal for o in found.outputs if o.equal is not None}
    if not shares or found.worst is not None:
        return found
    worst = min(shares, key=lambda name: shares[name] or 0.0)
    return replace(found, decision=worst, agreement=shares[worst])


def decision_output(values: Mapping[str, Any], wanted: str | None = None) -> str | None:
    """Return the name of the output that chooses classes: `wanted`, else the first float one of shape `[N, C >= 2]`.

    Raises:
        UsageError: where `wanted` is not of that kind.
    """
    for name, given in values.items():
        value = numbers(given)
        if (wanted or name) == name and _chooses(value):
            return name
    if wanted is not None:
        shape = list(np.shape(values[wanted])) if isinstance(values[wanted], np.ndarray) else "no tensor"
        raise UsageError(f"--output '{wanted}' is {shape}; classes are chosen on floats of shape [N, C >= 2]")
    return None


def _run_original(session: Session, feeds: Mapping[str, Array], done: int) -> dict[str, Any]:
    """Return what the first model gives; where it does not run, it is the samples that do not fit."""
    try:
        return session.run(feeds)
    except SessionError as problem:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
        raise DataError(
            f"the original model does not run on the samples from {done} on ({shapes}): {problem}"
        ) from problem


def _chooses(value: Any) -> bool:
    return isinstance(value, np.ndarray) and _is_float(value) and value.ndim == 2 and value.shape[1] >= 2


def _is_float(value: Array) -> bool:
    # bfloat16 and the 8-bit floats are "void" to numpy; they convert to floats and not to complex numbers.
    return value.dtype.kind == "f" or (value.dtype.kind == "V" and "float" in value.dtype.name)


def _check_outputs(before: Session, after: Session, output: str | None) -> None:
    if set(before.outputs) != set(after.outputs):
        raise ModelError(
            f"the models have different outputs: {', '.join(before.outputs)} and {', '.join(after.outputs)}"
        )
    if output is not None and output not in before.outputs:
        raise UsageError(f"--output '{output}' is no output; known: {', '.join(before.outputs)}")


def _count(values: Mapping[str, Any], decision: str | None) -> int:
    name = decision or next(iter(values))
    if isinstance(values[name], list):
        return len(values[name])
    shape = np.shape(values[name]) if isinstance(values[name], np.ndarray) else ()
    return shape[0] if shape else 1


class _Sums:
    """The running sums of one output."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.numeric = True
        self.whole = False
        self.tensor = True
        self.identical = True
        self.finite = True
        self.count = self.same = 0
        self.runs = self.other_rows = 0
        self.max_abs = self.signal = self.other = self.noise = self.dot = 0.0

    def add(self, first: Any, second: Any) -> None:
        self.runs += 1
        if not (isinstance(first, np.ndarray) and isinstance(second, np.ndarray)):
            self.numeric = self.tensor = False
            self.identical &= _same(first, second)
            return
        if first.shape != second.shape:
            if first.shape[1:] != second.shape[1:] or not (first.ndim and second.ndim):
                raise ModelError(
                    f"output '{self.name}' has shape {list(first.shape)} in one model and {list(second.shape)} in the other"
                )
            # Rows that data select: which of them belong together is not known.
            self.other_rows += 1
            self.identical = False
            return
        self.identical &= first.dtype == second.dtype and first.tobytes() == second.tobytes()
        if first.dtype.kind in "OUSc":
            self.numeric = False
            self.identical &= bool(np.array_equal(first, second))
            return
        self.whole |= first.dtype.kind in "biu"
        self.same += int((first == second).sum())
        a, b = first.astype(np.float64).ravel(), second.astype(np.float64).ravel()
        usable = np.isfinite(a)
        self.finite &= bool(np.isfinite(b[usable]).all())
        usable &= np.isfinite(b)
        a, b = a[usable], b[usable]
        gap = a - b
        self.count += a.size
        self.max_abs = max(self.max_abs, float(np.abs(gap).max(initial=0.0)))
        self.signal += float(a @ a)
        self.other += float(b @ b)
        self.noise += float(gap @ gap)
        self.dot += float(a @ b)

    def result(self) -> OutputDifference:
        note = self._note()
        nothing = OutputDifference(
            self.name, self.identical, self.finite, None, None, None, None, None, note=note
        )
        if not self.numeric or not self.count:
            return nothing
        if self.whole:
            return replace(nothing, max_abs=self.max_abs, equal=100.0 * self.same / self.count)
        norms = math.sqrt(self.signal) * math.sqrt(self.other)
        return OutputDifference(
            name=self.name,
            identical=self.identical,
            finite=self.finite,
            max_abs=self.max_abs,
            mse=self.noise / self.count,
            relative=math.sqrt(self.noise / self.signal) if self.signal else None,
            sqnr_db=_decibels(self.signal, self.noise),
            cosine=max(-1.0, min(1.0, self.dot / norms)) if norms else None,
            note=note,
        )

    def _note(self) -> str:
        if not self.tensor:
            return "it is no tensor and cannot be compared"
        if self.other_rows:
            return (
                f"its number of rows depends on the data and differs in {self.other_rows} of {self.runs} runs; "
                + (
                    "nothing of it can be compared"
                    if self.other_rows == self.runs
                    else "the others are compared"
                )
            )
        return ""


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else SQNR_FLOOR


def _same(first: Any, second: Any) -> bool:
    """Return whether two results that are no arrays (sequences, maps) are equal."""
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        return bool(np.array_equal(first, second))
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(_same(first[k], second[k]) for k in first)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(_same(a, b) for a, b in zip(first, second, strict=True))
    return bool(first == second)


class _Choice:
    """Counts of equal and of right choices."""

    def __init__(self, labels: NDArray[np.int64] | None) -> None:
        self.labels = labels
        self.seen = self.agreeing = self.right_before = self.right_after = 0

    def add(self, first: Array, second: Array) -> None:
        if first.shape != second.shape:
            # Rows that data select are no samples that labels could belong to.
            self.labels = None
            return
        a, b = first.astype(np.float64).argmax(axis=1), second.astype(np.float64).argmax(axis=1)
        self.agreeing += int((a == b).sum())
        if self.labels is not None:
            truth = self.labels[self.seen : self.seen + len(a)]
            self.right_before += int((a[: len(truth)] == truth).sum())
            self.right_after += int((b[: len(truth)] == truth).sum())
        self.seen += len(a)

    def percentages(self) -> tuple[float | None, float | None, float | None]:
        if not self.seen:
            return None, None, None
        agreement = 100.0 * self.agreeing / self.seen
        if self.labels is None:
            return agreement, None, None
        if len(self.labels) != self.seen:
            raise DataError(f"{len(self.labels)} labels for {self.seen} samples; give one class index each")
        return agreement, 100.0 * self.right_before / self.seen, 100.0 * self.right_after / self.seen
