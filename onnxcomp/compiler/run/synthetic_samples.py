"""Samples made from the model itself, for passes that are to run without data.

A BatchNormalization holds the mean and variance of every channel before it, on the data the network was trained with.
Images are drawn at random, given colours by the first of them, and then descended on the statistics of all of them, so
that the network sees in them what it used to see (Yin 2020, "Dreaming to distill: data-free knowledge transfer via
DeepInversion"; here from dead leaves instead of noise, in a few dozen steps). Without BatchNormalization the images are
as drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxcomp.analysis.linear import LinearNode, linear_node
from onnxcomp.compiler.gradients.reverse import PREFIX, Adjoint, adjoint
from onnxcomp.compiler.passbase import Context
from onnxcomp.compiler.run.report import DataFacts
from onnxcomp.errors import UsageError
from onnxcomp.ir.graph import Node, Variable
from onnxcomp.ir.model import Model
from onnxcomp.numerics.arrays import Array, Shapes
from onnxcomp.numerics.synthetic import (
    Colours,
    Descent,
    Family,
    Moment,
    fit_colours,
    make_images,
    mismatch,
    paint,
    pull,
    smooth,
)
from onnxcomp.runtime.data.samples import Samples, open_samples
from onnxcomp.runtime.inputs import PIECE_LIMIT, input_specs
from onnxcomp.runtime.session import SessionError

__all__ = ["Made", "check_makeable", "make_samples"]


COUNT = {64: 256, 1 << 62: 64}
"""Samples made, by the largest size of an image: large ones have more places to learn from, and cost more."""

STEPS = 40
"""Steps of the descent. On ResNet-20 the statistics then fit better than those of 512 real images do."""

RATE = 0.04
"""Length of a step, in deviations of the pixels. Longer ones fit less closely and end further from what was drawn."""

TRIED = 4
"""Samples of every family that are tried before one is chosen, as a part of those that are made."""

QUIET = 1e-3
"""Share of a site's median variance that is added to all its variances."""

STEP_BYTES = 160 * 2**20
"""Aim of the values that one batch of the descent holds: forward values live until the way back has read them."""

FAMILIES = (
    Family("dead leaves with a little texture", 30, texture=0.1),
    Family("dead leaves", 30),
    Family("small dead leaves", 60, fall=2.5, texture=0.1),
    Family("smooth noise", 0, spectrum=3.0),
    Family("noise with the spectrum of photographs", 0, spectrum=2.0),
)

RANGES = ((0.0, 1.0), (0.5, 0.25), (120.0, 60.0))
"""Mean and deviation of pixels as networks take them: normalised, 0 to 1, 0 to 255."""

SOURCE = "data made from the model"


@dataclass(frozen=True)
class Made:
    """Samples, what a report says of them, and a sentence on how they were made."""

    samples: Samples
    facts: DataFacts
    note: str


def check_makeable(model: Model) -> None:
    """Raise UsageError where samples for `model` cannot be made, because an input takes no floating-point numbers."""
    for spec in input_specs(model):
        if spec.dtype.kind != "f":
            raise UsageError(
                f"--calibration none: input '{spec.name}' takes {spec}, and only samples of floating-point numbers "
                "can be made; give --calibration samples"
            )
    if not model.graph.inputs:
        raise UsageError("--calibration none: the model has no inputs, so there is nothing to make")


def make_samples(model: Model, context: Context) -> Made:
    """Return samples made for `model`, which still has its BatchNormalization nodes where it had any.

    `context` gives sizes, seed, threads and where progress is reported. The same seed makes the same samples.

    Raises:
        UsageError: see `check_makeable`.
    """
    check_makeable(model)
    shapes = context.input_shapes
    rng = np.random.default_rng([context.seed, 1])
    main = max(model.graph.inputs, key=lambda v: (len(shapes[v.name]) == 4, int(np.prod(shapes[v.name]))))
    rows = _have_rows(model)
    count = _count(main, shapes[main.name])
    others = {
        v.name: rng.standard_normal((count, *_sample(v, shapes, rows)), np.float32).astype(v.dtype)
        for v in model.graph.inputs
        if v is not main
    }
    made, note = _Maker(model, context, main, others, count).make(rng) if rows else (None, "")
    if made is None:
        made = rng.standard_normal((count, *_sample(main, shapes, rows)), np.float32)
        note = note or "noise, because the inputs have no common axis of samples"
    arrays = {v.name: (made if v is main else others[v.name]).astype(v.dtype) for v in model.graph.inputs}
    samples = open_samples(arrays, input_specs(model))
    samples.source = SOURCE
    facts = DataFacts("calibration", "none", SOURCE, len(samples), False, samples.digest())
    return Made(samples, facts, f"data-free: {len(samples)} synthetic samples, {note}")


def _count(value: Variable, shape: tuple[int, ...]) -> int:
    """Return how many samples to make: full batches where the model fixes their size."""
    fixed = value.shape[0] if value.shape and isinstance(value.shape[0], int) else 1
    wanted = next(count for size, count in COUNT.items() if max(shape[2:], default=1) <= size)
    return -(-wanted // fixed) * fixed


def _have_rows(model: Model) -> bool:
    """Return whether the first axis of every input counts samples, equally many in each."""
    firsts = [v.shape[0] if v.shape else None for v in model.graph.inputs]
    ranked = all(v.shape is not None and len(v.shape) > 1 for v in model.graph.inputs)
    fixed = {first for first in firsts if isinstance(first, int)}
    return ranked and len(fixed) <= 1 and (not fixed or all(isinstance(first, int) for first in firsts))


def _sample(value: Variable, shapes: Shapes, rows: bool) -> tuple[int, ...]:
    """Return the shape of one sample of an input: a row, or a whole feed."""
    return shapes[value.name][1:] if rows else shapes[value.name]


class _Maker:
    """Makes the samples of one input, whose first axis counts them."""

    def __init__(
        self, model: Model, context: Context, main: Variable, others: Mapping[str, Array], count: int
    ) -> None:
        self.model, self.context, self.main, self.others, self.count = model, context, main, others, count
        self.shape = context.input_shapes[main.name][1:]
        self.images = len(self.shape) == 3
        # Channels stand last where that is the only axis short enough to be one of colours.
        self.last = self.images and self.shape[2] <= 4 < self.shape[0]
        self.shapes = context.shapes(model)
        self.goals = _goals(model, self.shapes)

    def make(self, rng: np.random.Generator) -> tuple[Array, str]:
        """Return the samples `[count, ...]`, float32, and a sentence on them."""
        drawn = "normally distributed noise" if not self.images else f"images of {FAMILIES[0].name}"
        statistics, problem = self._statistics()
        if statistics is None:
            return self._draw(FAMILIES[0], RANGES[0], self.count, rng), f"{drawn}; {problem}"
        chosen = self._choose(statistics) if self.images else (FAMILIES[0], RANGES[0])
        if self.images:
            drawn = f"images of {chosen[0].name}"
        samples, (mean, spread) = self._descend(statistics, self._draw(*chosen, self.count, rng))
        return samples, (
            f"{drawn}, fitted to {len(statistics.sites)} BatchNormalization statistics: means are off by "
            f"{mean:.1%} of a deviation, deviations by {spread:.1%}{statistics.left_out}"
        )

    def _statistics(self) -> tuple[_Statistics | None, str]:
        """Return what observes the statistics of inner values, or None and why there is nothing to fit to."""
        if not self.goals:
            return None, "the model has no BatchNormalization that would show what it was trained on"
        if self.model.weight_bytes >= PIECE_LIMIT or self.main.dtype != np.float32:
            return None, "a model that is so large, or whose values are not float32, is not run backwards"
        found = adjoint(self.model, self.main.name, list(self.goals), self.shapes)
        if not found.sites:
            return None, "no BatchNormalization depends on this input"
        try:
            statistics = _Statistics(found, self.goals, self.shapes, self.context, self.main, self.others)
            statistics.measure(np.zeros((statistics.fixed, *self.shape), np.float32))
        except SessionError as problem:
            return None, f"the model cannot be run backwards: {problem}"
        return statistics, ""

    def _draw(
        self, family: Family, range_: tuple[float, float], count: int, rng: np.random.Generator
    ) -> Array:
        """Return `count` samples as they are drawn, in the layout of the input."""
        if not self.images:
            return rng.standard_normal((count, *self.shape), np.float32)
        height, width, channels = (self.shape[i] for i in ((0, 1, 2) if self.last else (1, 2, 0)))
        images = make_images(family, count, channels, (height, width), rng)
        reader = _first_convolution(self.model, self.main, self.goals)
        if reader is not None and reader.weight_array().shape[1] == channels:
            goal = self.goals[reader.output]
            bias = reader.bias()
            colours = fit_colours(
                images[: max(1, self.count // TRIED)], reader.weight_array(), goal.mean - bias, goal.variance
            )
        else:
            mean, deviation = range_
            colours = Colours(np.full(channels, mean), deviation**2 * np.eye(channels))
        painted = paint(images, colours)
        return np.ascontiguousarray(painted.transpose(0, 2, 3, 1)) if self.last else painted

    def _choose(self, statistics: _Statistics) -> tuple[Family, tuple[float, float]]:
        """Return the family, and the range where no first convolution shows it, whose statistics fit best."""
        known = _first_convolution(self.model, self.main, self.goals) is not None
        best: tuple[float, Family, tuple[float, float]] | None = None
        for family in FAMILIES:
            for range_ in RANGES[:1] if known else RANGES:
                rng = np.random.default_rng([self.context.seed, 2])
                count = -(-self.count // TRIED // statistics.fixed) * statistics.fixed
                found, _ = statistics.measure(self._draw(family, range_, count, rng))
                mean, spread = statistics.distance(found)
                loss = mean**2 + (2 * spread) ** 2
                if np.isfinite(loss) and (best is None or loss < best[0]):
                    best = loss, family, range_
        return best[1:] if best is not None else (FAMILIES[0], RANGES[0])

    def _descend(self, statistics: _Statistics, samples: Array) -> tuple[Array, tuple[float, float]]:
        """Return `samples` after the descent, and how far their statistics are off; as they were, if it led nowhere.

        A step goes by the statistics that the step before has left: one run back and forth does for both.
        """
        rate = RATE * float(samples.std()) if samples.std() > 0 else RATE
        descent, drawn = Descent(samples, rate), samples
        found, _ = statistics.measure(samples)
        start = statistics.distance(found)
        for step in range(STEPS):
            self.context.progress("making synthetic samples", step, STEPS)
            found, gradient = statistics.measure(samples, statistics.pulls(found))
            if self.images and not self.last:
                gradient = smooth(gradient)
            elif self.images:
                gradient = smooth(gradient.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
            samples = samples + descent.step(gradient)
        self.context.progress("making synthetic samples", STEPS, STEPS)
        found, _ = statistics.measure(samples)
        end = statistics.distance(found)
        # Written such that numbers which are none count as nowhere.
        if not sum(end) < sum(start):
            return drawn, start
        return np.ascontiguousarray(samples), end


class _Statistics:
    """Measures mean and variance of the values before every BatchNormalization, and their derivative by the input."""

    def __init__(
        self,
        found: Adjoint,
        goals: Mapping[str, Moment],
        shapes: Shapes,
        context: Context,
        main: Variable,
        others: Mapping[str, Array],
    ) -> None:
        self.sites = found.sites
        self.goals = [goals[name] for name in found.sites]
        self._quiet = [_quiet(goal.variance) for goal in self.goals]
        self.left_out = f"; not beyond {', '.join(found.stopped[:3])}" if found.stopped else ""
        self._main, self._others = main.name, others
        self._places = [int(np.prod(shapes[name])) // shapes[name][1] for name in found.sites]
        self._session = context.session(found.model)
        self.fixed = main.shape[0] if main.shape and isinstance(main.shape[0], int) else 1
        each = 10 * sum(int(np.prod(shapes[name])) for name in found.sites) // self.fixed
        self._size = int(np.clip(STEP_BYTES // max(1, each), 1, 64))
        if main.shape and isinstance(main.shape[0], int):
            self._size = self.fixed

    def measure(
        self, samples: Array, pulls: Sequence[tuple[Array, Array]] | None = None
    ) -> tuple[list[Moment], Array]:
        """Return the moments at every site, and the derivative by the samples of the loss that `pulls` belong to."""
        if pulls is None:
            pulls = [(np.zeros(len(g.mean)), np.zeros(len(g.mean))) for g in self.goals]
        weights = {}
        for number, ((offset, slope), places) in enumerate(zip(pulls, self._places, strict=True)):
            # Deeper values have fewer places: each counts for more of its mean.
            weights[f"{PREFIX}offset.{number}"] = (offset / places).astype(np.float32)
            weights[f"{PREFIX}slope.{number}"] = (slope / places).astype(np.float32)
        sums = [np.zeros((2, len(g.mean))) for g in self.goals]
        gradient = np.empty(samples.shape, np.float32)
        for rows, feed in self._feeds(samples):
            found = self._session.run({**feed, **weights})
            gradient[rows] = found[f"{PREFIX}gradient"]
            for number, total in enumerate(sums):
                total += np.stack([found[f"{PREFIX}sum.{number}"], found[f"{PREFIX}squares.{number}"]])
        return [
            self._moment(*item, len(samples)) for item in zip(sums, self._places, self._quiet, strict=True)
        ], gradient

    def _feeds(self, samples: Array) -> Iterator[tuple[slice, dict[str, Array]]]:
        for start in range(0, len(samples), self._size):
            rows = slice(start, start + self._size)
            yield rows, {self._main: samples[rows], **{n: a[rows] for n, a in self._others.items()}}

    def _moment(self, sums: Array, places: int, quiet: float, count: int) -> Moment:
        mean, square = sums / (count * places / self.fixed)
        return Moment(mean, np.maximum(square - mean**2, 0.0) + quiet)

    def pulls(self, found: Sequence[Moment]) -> list[tuple[Array, Array]]:
        """Return offset and slope of the loss at every site."""
        return [pull(moment, goal) for moment, goal in zip(found, self.goals, strict=True)]

    def distance(self, found: Sequence[Moment]) -> tuple[float, float]:
        """Return how far means and deviations are off: root mean squares over the sites."""
        each = np.array([mismatch(moment, goal) for moment, goal in zip(found, self.goals, strict=True)])
        mean, spread = np.sqrt((each**2).mean(0))
        return float(mean), float(spread)


def _goals(model: Model, shapes: Shapes) -> dict[str, Moment]:
    """Return what BatchNormalization nodes remember of their inputs, by the name of the input."""
    found: dict[str, Moment] = {}
    for node in model.graph.nodes:
        if not node.is_op("BatchNormalization") or node.attrs.get("training_mode"):
            continue
        mean, variance = node.constant(3), node.constant(4)
        if mean is None or variance is None or len(shapes.get(node.inputs[0].name, ())) < 2:
            continue
        mean, variance = mean.astype(np.float64), variance.astype(np.float64)
        # Channels that hardly vary say little, and by their logarithms would outweigh all others.
        found[node.inputs[0].name] = Moment(mean, variance + _quiet(variance))
    return found


def _quiet(variance: Array) -> float:
    """Return what is added to every variance of a site before it is compared."""
    return max(QUIET * float(np.median(variance)), 1e-12)


def _first_convolution(model: Model, main: Variable, goals: Mapping[str, Moment]) -> LinearNode | None:
    """Return the convolution that reads the input, if the statistics of what it makes are known."""
    reader: Node | None = model.graph.sole_use(main)
    while reader is not None and reader.is_op("Pad", "Transpose"):
        reader = model.graph.sole_use(reader.output)
    found = linear_node(reader) if reader is not None and reader.is_op("Conv") else None
    if found is None or found.group != 1 or found.weight_array().ndim != 4 or found.output not in goals:
        return None
    return None if any(d != 1 for d in found.node.attrs.get("dilations") or [1]) else found
