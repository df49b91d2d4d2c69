"""How far a compressed network's outputs are from the original's, as one number that adds up over small damages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import scipy.special

from onnxcomp.numerics.arrays import Array, Array64
from onnxcomp.runtime.compare import numbers

__all__ = ["Measure", "Reference"]


Measure: TypeAlias = Literal["divergence", "error", "differing", "mixed"]
"""What a distance is: the divergence of class scores, the squared error of other floats, the share of whole numbers that
differ, or a sum of the first two."""

_TINY = 1e-12
"""Least probability: a saturated Softmax in float32 returns exact zeros."""


class Reference:
    """What the original makes of the judging samples, batch by batch.

    The distance of an output of shape `[N, C >= 2]` is the Kullback-Leibler divergence of the two class distributions at
    the output's own temperature: logits (or log probabilities, where rows are distributions) are divided by their
    standard deviation over classes, and the divergence is multiplied by its square, in nats per sample (Hinton 2015,
    "Distilling the knowledge in a neural network", section 2.1). At temperature 1 a network that is sure of its
    calibration images would show no damage until classes flip. The distance of any other output of floats is the squared
    error as a share of the output's variance. Several outputs add up. Where data select the rows of an output and the two
    models select different numbers of them, nobody knows which belong together: they count as if nothing were known of
    them, each row by its share of all. Integers and truth values count only where there
    are no floats, by the share that differ. `decision` is the output that agreement is about, by default the first of
    `classes`, the outputs whose distance is a divergence. `samples` says how many of the first samples these are.
    """

    def __init__(
        self, batches: Sequence[Mapping[str, Array]], decision: str | None = None, samples: int = 0
    ) -> None:
        batches = [{name: numbers(value) for name, value in batch.items()} for batch in batches]
        floats = [{n: a for n, a in batch.items() if _is_array(a, "f")} for batch in batches]
        discrete = [{n: a for n, a in batch.items() if _is_array(a, "iub")} for batch in batches]
        self._batches = floats if any(floats) else discrete
        self.samples = samples
        self.names = list(self._batches[0]) if self._batches else []
        self._scale = {name: self._spread(name) for name in self.names}
        self.classes = [name for name in self.names if _chooses(self._batches[0][name])]
        self.decision = decision if decision in self.classes else next(iter(self.classes), None)

    @property
    def measure(self) -> Measure:
        """What `distance` is."""
        if not self.classes:
            floats = all(self._batches[0][name].dtype.kind == "f" for name in self.names)
            return "error" if floats else "differing"
        return "divergence" if len(self.classes) == len(self.names) else "mixed"

    def distance(self, batches: Iterable[Mapping[str, Array]]) -> float:
        """Return the distance of other outputs for the same batches; infinite where one is not finite."""
        return self.judge(batches)[0]

    def agreement(self, batches: Iterable[Mapping[str, Array]]) -> float | None:
        """Return the share of samples on which `decision` chooses the same class; None without one."""
        return self.judge(batches)[1]

    def judge(self, batches: Iterable[Mapping[str, Array]]) -> tuple[float, float | None]:
        """Return `distance` and `agreement` of other outputs, from one walk over `batches`."""
        total, same = 0.0, 0
        for wanted, given in zip(self._batches, batches, strict=True):
            found = {name: numbers(given[name]) for name in wanted}
            total += sum(self._gap(name, array, found[name]) for name, array in wanted.items())
            if self.decision is not None and len(wanted[self.decision]) == len(found[self.decision]):
                same += int((wanted[self.decision].argmax(1) == found[self.decision].argmax(1)).sum())
        return total, None if self.decision is None else same / self._count(self.decision)

    def _gap(self, name: str, wanted: Array, found: Array) -> float:
        """Return what one output of one batch adds to the distance."""
        if wanted.shape != found.shape:
            return max(len(wanted), len(found)) / self._count(name)
        if wanted.dtype.kind != "f":
            return float((wanted != found).sum()) / self._scale[name]
        if not np.isfinite(found).all():
            return float("inf")
        if name in self.classes:
            return _divergence(wanted, found, self._scale[name]) / self._count(name)
        gap = wanted.astype(np.float64) - found
        return float(np.vdot(gap, gap)) / self._scale[name]

    def _count(self, name: str) -> int:
        """Return how many rows an output has, which of a class output are samples."""
        return max(1, sum(len(batch[name]) for batch in self._batches))

    def _spread(self, name: str) -> float:
        """Return the temperature of a class output, and the summed squared deviation of any other; 1 for a constant.

        Of integers and truth values return how many there are.
        """
        arrays = [batch[name] for batch in self._batches if batch[name].size]
        if not arrays:
            return 1.0
        if arrays[0].dtype.kind != "f":
            spread = float(sum(array.size for array in arrays))
        elif _chooses(arrays[0]):
            logits = np.concatenate([_logits(array, array) for array in arrays])
            spread = float((logits - logits.mean(1, keepdims=True)).std())
        else:
            count = sum(array.size for array in arrays)
            mean = sum(float(array.sum(dtype=np.float64)) for array in arrays) / max(1, count)
            spread = sum(float(np.square(array.astype(np.float64) - mean).sum()) for array in arrays)
        return spread if spread > 0 else 1.0


def _is_array(array: Any, kinds: str) -> bool:
    return isinstance(array, np.ndarray | np.generic) and array.dtype.kind in kinds


def _chooses(array: Array) -> bool:
    return array.dtype.kind == "f" and array.ndim == 2 and array.shape[1] >= 2


def _divergence(wanted: Array, found: Array, temperature: float) -> float:
    """Return the summed divergence `T^2 sum p (log p - log q)` over the rows of two `[n, c]` outputs."""
    p, q = (
        scipy.special.log_softmax(_logits(array, wanted) / temperature, axis=1) for array in (wanted, found)
    )
    return float((np.exp(p) * (p - q)).sum()) * temperature**2


def _logits(array: Array, judged: Array) -> Array64:
    """Return logits; whether rows are distributions, whose logarithms are meant, is told from `judged`."""
    values = array.astype(np.float64)
    if bool((judged >= 0).all()) and np.allclose(judged.sum(1), 1.0, atol=1e-3):
        logs: Array64 = np.log(np.maximum(values, _TINY))
        return logs
    return values


RUINED = 1e9
"""Damage of a cut after which outputs are not finite (half precision overflows early): beyond that of any other."""
