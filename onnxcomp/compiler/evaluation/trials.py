"""Trials: what one change alone does to a model's outputs, each run only from where the change begins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from onnxcomp.compiler.evaluation.divergence import Reference
from onnxcomp.compiler.passbase import Context
from onnxcomp.errors import PreconditionError
from onnxcomp.ir.graph import Constant, Value
from onnxcomp.ir.model import Model
from onnxcomp.runtime.capture import Frontier, Spool

__all__ = ["BATCH", "JUDGES", "Judging", "Trial", "Verdict", "first_change", "run_trials", "together"]

JUDGES = 128
"""Samples on which curves are measured: differences of damage are far larger than what more samples would tell."""

BATCH = 32
"""Samples that are run together at most."""

TOGETHER_BYTES = 4 * 2**20
"""Size of the inputs of samples run together: activations take some hundred times that."""


@dataclass(frozen=True)
class Trial:
    """A change to try: `build` returns a changed clone of the model, `first` names the first node that differs in it.

    The clone has the model's nodes by name, with other weights; nodes may have been put in between. `first` is None where
    nothing differs.
    """

    first: str | None
    build: Callable[[], Model]


@dataclass(frozen=True)
class Verdict:
    """What a trial did: `damage` is its distance less that of the unchanged model, `agreement` a share or None."""

    damage: float
    agreement: float | None


@dataclass(frozen=True)
class Judging:
    """On how many samples trials are judged, and by which output's choice of classes (None: the first that makes one)."""

    samples: int = JUDGES
    decision: str | None = None


def run_trials(
    model: Model,
    trials: Sequence[Trial],
    reference: Reference | None,
    context: Context,
    what: str,
    judging: Judging | None = None,
) -> tuple[list[Verdict], Reference]:
    """Return a verdict for every trial, in the order given, and the outputs they were judged by.

    `reference` are the outputs to judge by, of the same samples; None for those of `model`. One model is held at a time.
    """
    samples, judging = context.samples, judging or Judging()
    number_of = judging.samples if reference is None else reference.samples
    place = {node.name: number for number, node in enumerate(model.graph.nodes)}
    outputs = [v.name for v in model.graph.outputs]
    found: dict[int, Verdict] = {}
    with Spool() as spool:
        count = spool.fill(samples.take(number_of), together(context))
        frontier = Frontier(model, spool, count, **context.runtime)
        base = list(frontier.preview(model, outputs))
        if reference is None:
            reference = Reference(base, judging.decision, judging.samples)
        floor = reference.distance(base)
        if not np.isfinite(floor):
            raise PreconditionError(
                "outputs are not finite on the calibration samples, so that nothing can be judged by them; "
                "use scope=uniform, or samples on which the network gives numbers"
            )
        order = sorted(range(len(trials)), key=lambda n: place.get(trials[n].first or "", len(place)))
        reached: str | None = None
        for number in order:
            trial = trials[number]
            if trial.first is not None and trial.first != reached:
                reached = trial.first
                for _ in frontier.advance(frontier.live_before(model.graph.nodes[place[reached]])):
                    pass
            distance, agreement = reference.judge(frontier.preview(trial.build(), outputs))
            found[number] = Verdict(distance - floor, agreement)
            context.progress(what, len(found), len(trials))
    return [found[number] for number in range(len(trials))], reference


def together(context: Context) -> int:
    """Return how many samples to run together, so that a whole network's activations stay small."""
    size = sum(4 * int(np.prod(shape)) for shape in context.input_shapes.values())
    return max(1, min(BATCH, TOGETHER_BYTES // max(1, size)))


def first_change(model: Model, changed: Model) -> str | None:
    """Return the name of the first node of `model` that reads other values or weights in its clone `changed`, or None."""
    after = {node.name: node for node in changed.graph.nodes}
    for node in model.graph.nodes:
        pairs = zip(node.inputs, after[node.name].inputs, strict=True)
        if any(was.name != now.name or _differ(was, now) for was, now in pairs):
            return node.name
    return None


def _differ(was: Value, now: Value) -> bool:
    """Return whether a stored tensor was replaced: clones share memory, through views of their own."""
    if not isinstance(was, Constant) or not isinstance(now, Constant):
        return type(was) is not type(now)
    before, after = was.values, now.values
    return before.shape != after.shape or before.ctypes.data != after.ctypes.data
