"""Bounds on what a pass may do to the outputs, judged on samples that it has held back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.compiler.evaluation.trials import together
from onnxcomp.compiler.options import in_range
from onnxcomp.compiler.passbase import Context
from onnxcomp.errors import PreconditionError, UsageError
from onnxcomp.ir.model import Model
from onnxcomp.numerics.arrays import Array64
from onnxcomp.runtime.compare import decision_output, numbers
from onnxcomp.runtime.data.samples import Samples
from onnxcomp.runtime.session import Session

__all__ = ["CONFIDENCE", "Bounds", "Judge", "Outcome", "Reached", "check_bounds", "drop_limit", "share_limit"]


CONFIDENCE = 0.9
"""One-sided confidence of what is said of samples that were not seen."""

QUANTILE = 1.2815515655446004
"""Of the normal distribution, at `CONFIDENCE`."""

LEAST_HELD, USUAL_HELD, MOST_HELD = 0.125, 0.25, 0.5
"""Share of the samples that is held back: at least, for dB with few samples, and for decisions at most."""

ENOUGH = 64
"""Samples that tell dB well enough."""

EXCEPTIONS = 3.0
"""Times more samples are held back than a bound needs if not one of them differs, so that a few may."""


def share_limit(count: int, total: int) -> float:
    """Return the upper confidence limit of a share of which `count` of `total` samples were seen (Clopper-Pearson 1934)."""
    # Takes longer to import than most models to read.
    import scipy.special

    return 1.0 if count >= total else float(scipy.special.betaincinv(count + 1, total - count, CONFIDENCE))


def drop_limit(lost: float, differing: int, total: int) -> float:
    """Return the upper confidence limit of the share of accuracy lost, `lost` of `total` samples net.

    `differing` samples were decided otherwise, which is at least the number that changed between right and wrong (Agresti
    and Min 2005, "Simple improved confidence intervals for comparing matched proportions").
    """
    size = total + 2
    spread = (differing + 1) - lost**2 / size
    return min(1.0, lost / size + QUANTILE * math.sqrt(max(0.0, spread)) / size)


def decibels(share: float) -> float:
    """Return the signal-to-noise ratio in dB at which errors have the `share` of the signal's energy."""
    return math.inf if share <= 0 else -10 * math.log10(share)


class Outcome:
    """Two models on the same samples, sample by sample.

    `differing` counts the samples decided otherwise on output `decision`, `lost` the right decisions lost net, None without
    labels; `samples` are all that decide. Noise is that of outputs of floats; whole numbers are equal or not and have none.
    Where data select the rows of an output and the two models select different numbers of them, that batch says nothing.
    """

    def __init__(self, labels: NDArray[np.int64] | None) -> None:
        """Start with nothing compared; `labels` are one class per sample."""
        self.labels = labels
        self.decision: str | None = None
        self.samples = self.differing = 0
        self.lost: int | None = None if labels is None else 0
        self._noise: dict[str, list[Array64]] = {}
        self._signal: dict[str, list[Array64]] = {}

    def add(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
        """Take in the outputs of both for a batch."""
        before, after = ({name: numbers(v) for name, v in each.items()} for each in (before, after))
        self.decision = decision_output(before)
        count = len(before[self.decision]) if self.decision is not None else 1
        for name, wanted in before.items():
            found = after[name]
            if not isinstance(wanted, np.ndarray) or wanted.dtype.kind != "f" or wanted.shape != found.shape:
                continue
            a, b = wanted.astype(np.float64), found.astype(np.float64)
            rows = len(a) if a.ndim and len(a) else 1
            gap = np.where(np.isfinite(a), a - b, 0.0).reshape(rows, -1)
            a = np.where(np.isfinite(a), a, 0.0).reshape(rows, -1)
            self._noise.setdefault(name, []).append(np.square(gap).sum(1))
            self._signal.setdefault(name, []).append(np.square(a).sum(1))
        if self.decision is not None and before[self.decision].shape != after[self.decision].shape:
            count = 0
        elif self.decision is not None:
            first, second = (each[self.decision].argmax(1) for each in (before, after))
            self.differing += int((first != second).sum())
            if self.labels is not None and self.lost is not None:
                truth = self.labels[self.samples : self.samples + count]
                self.lost += int((first == truth).sum()) - int((second == truth).sum())
        self.samples += count

    @property
    def judged(self) -> bool:
        """Whether there is an output of floats whose noise is known."""
        return bool(self._noise)

    def noise(self) -> float:
        """Return the energy of the error as a share of that of the output, of the worst output."""
        return max((_ratio(*self._rows(name))[0] for name in self._noise), default=0.0)

    def noise_limit(self) -> float:
        """Return the upper confidence limit of `noise`, from how it differs between samples."""
        return max((sum(_ratio(*self._rows(name))) for name in self._noise), default=0.0)

    def _rows(self, name: str) -> tuple[Array64, Array64]:
        return np.concatenate(self._noise[name]), np.concatenate(self._signal[name])


def _ratio(noise: Array64, signal: Array64) -> tuple[float, float]:
    """Return the ratio of sums, infinite where there is no signal or no number, and how much more it may well be."""
    total = float(signal.sum())
    if not np.isfinite(noise).all() or (total == 0 and noise.any()):
        return math.inf, 0.0
    ratio = float(noise.sum()) / total if total else 0.0
    spread = math.sqrt(float(np.square(noise - ratio * signal).sum()) * len(noise) / max(1, len(noise) - 1))
    return ratio, QUANTILE * spread / total if total else 0.0


@dataclass(frozen=True)
class Reached:
    """What a model reaches of one bound.

    Attributes:
        text: the bound and what was reached, in words.
        met: whether it holds.
        ratio: by how much the harm would have to shrink for it to hold; 1 or more where it holds.
    """

    text: str
    met: bool
    ratio: float


@dataclass(frozen=True)
class Bounds:
    """At least so many dB, at most so many percentage points of accuracy lost, at least so many percent decided alike.

    Accuracy is that of the labels of the samples; without labels what is lost is agreement.
    """

    min_sqnr: float | None = None
    max_drop: float | None = None
    agreement: float | None = None

    def __str__(self) -> str:
        named = {"min-sqnr": self.min_sqnr, "max-drop": self.max_drop, "agreement": self.agreement}
        return " ".join(f"{name}={value:g}" for name, value in named.items() if value is not None)

    @property
    def tolerance(self) -> float | None:
        """The least share of samples that may be decided otherwise; None where no bound is about decisions."""
        allowed = [self.max_drop, None if self.agreement is None else 100 - self.agreement]
        given = [percent / 100 for percent in allowed if percent is not None]
        return min(given) if given else None

    def reached(self, found: Outcome) -> list[Reached]:
        """Return what of each bound is reached in `found`."""
        made = []
        if self.min_sqnr is not None:
            limit = decibels(found.noise_limit())
            ratio = 10 ** (min(300.0, max(-300.0, limit - self.min_sqnr)) / 10)
            words = f"min-sqnr={self.min_sqnr:g}: {decibels(found.noise()):.2f} dB, at least {limit:.2f}"
            made.append(Reached(_confident(words), limit >= self.min_sqnr, ratio))
        if self.agreement is not None:
            limit = share_limit(found.differing, found.samples)
            share = 100 - 100 * found.differing / found.samples
            words = f"agreement={self.agreement:g}: {share:.2f} %, at least {100 - 100 * limit:.2f} %"
            made.append(_judged(words, limit, 1 - self.agreement / 100))
        if self.max_drop is not None:
            if found.lost is not None:
                lost, what = found.lost, "accuracy"
                limit = drop_limit(lost, found.differing, found.samples)
            else:
                lost, what = found.differing, "agreement"
                limit = share_limit(lost, found.samples)
            points = f"{100 * lost / found.samples:.2f} points of {what}, at most {100 * limit:.2f}"
            made.append(_judged(f"max-drop={self.max_drop:g}: {points}", limit, self.max_drop / 100))
        return made


def _confident(words: str) -> str:
    return f"{words} at {CONFIDENCE:.0%} confidence"


def _judged(words: str, limit: float, allowed: float) -> Reached:
    # What decides is the size of the disturbance, whose square harm is.
    ratio = (allowed / max(limit, 1e-9)) ** 2
    return Reached(_confident(words), limit <= allowed, ratio)


def check_bounds(owner: str, bounds: Bounds, *, mixed: bool, keep: str) -> None:
    """Raise UsageError where bounds are out of range, missing under `precision=mixed`, or given without it."""
    if mixed and not str(bounds):
        raise UsageError(f"{owner}: precision=mixed needs a bound; give min-sqnr, max-drop or agreement")
    if not mixed and (str(bounds) or keep != "auto"):
        given = str(bounds) or f"keep={keep}"
        raise UsageError(
            f"{owner}: {given} is for precision=mixed; add it, or leave {given.split('=')[0]} out"
        )
    in_range(owner, "min-sqnr", bounds.min_sqnr, 0, 300)
    in_range(owner, "max-drop", bounds.max_drop, 0, 100)
    in_range(owner, "agreement", bounds.agreement, 0, 100)
    if bounds.tolerance == 0:
        raise UsageError(f"{owner}: no number of samples confirms {bounds}; allow at least a little")


class Judge:
    """Holds samples back and says how far models are from the original on them.

    `rest` are the samples to work with, `held` those held back: more of them the finer a bound is.
    """

    def __init__(self, bounds: Bounds, context: Context) -> None:
        """Split the calibration samples.

        Raises:
            PreconditionError: where there are too few samples to confirm a bound, or no decisions that one is about.
        """
        samples = context.samples
        self.bounds, self._context = bounds, context
        tolerance, count = bounds.tolerance, len(samples)
        share = max(LEAST_HELD, min(USUAL_HELD, ENOUGH / count))
        if tolerance is not None:
            needed = math.ceil(math.log(1 - CONFIDENCE) / math.log1p(-min(tolerance, 0.999)))
            if needed > MOST_HELD * count:
                raise PreconditionError(
                    f"{bounds} takes at least {math.ceil(needed / MOST_HELD):,} samples to confirm, of which half are "
                    f"held back, and there are {count:,}; give more --calibration samples or a looser bound"
                )
            share = max(share, min(MOST_HELD, EXCEPTIONS * needed / count))
        self.rest: Samples
        self.held: Samples
        self.rest, self.held = samples.split(share, context.seed)
        self._labels: NDArray[np.int64] | None = self.held.labels()
        self._original = self._session(context.original)

    def reached(self, model: Model) -> list[Reached]:
        """Return what `model` reaches of each bound, on the samples held back.

        Raises:
            PreconditionError: where a bound is about decisions and the outputs make none.
        """
        other = self._session(model)
        found = Outcome(self._labels)
        for feed in self.held.batches(together(self._context)):
            found.add(self._original.run(feed), other.run(feed))
        if found.decision is None and self.bounds.tolerance is not None:
            raise PreconditionError(
                f"{self.bounds} is about decisions, and no output of shape [N, C >= 2] makes any; give min-sqnr"
            )
        if not found.samples or (self.bounds.min_sqnr is not None and not found.judged):
            raise PreconditionError(
                f"{self.bounds} cannot be judged: the model has no output of floats that can be compared sample by "
                "sample; leave out precision=mixed"
            )
        return self.bounds.reached(found)

    def _session(self, model: Model) -> Session:
        return self._context.session(model)
