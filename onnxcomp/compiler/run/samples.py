"""The data of a run: what calibrates, what judges, and the few feeds that every model of the run is verified on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from onnxcomp.compiler.run.loading import Loaded
from onnxcomp.compiler.run.report import DataFacts
from onnxcomp.compiler.run.request import Request
from onnxcomp.errors import DataError, UsageError
from onnxcomp.ir.graph import Array
from onnxcomp.ir.model import Model
from onnxcomp.runtime.data.samples import InputSpec, Samples, SampleSource, open_samples
from onnxcomp.runtime.inputs import Shapes, candidate_shapes, input_specs, noise, runnable_shapes
from onnxcomp.runtime.session import Session, SessionError

__all__ = ["Data", "open_data"]

HELD_BACK = 0.2
"""Share of the calibration samples that judge the result where bounds are asked for without evaluation data."""

_TOGETHER = 2
"""Samples in the larger of the two feeds that models are verified on: enough to notice a batch size cast in stone."""

_BATCH = 32
"""Samples that are compared together at most."""

_BATCH_BYTES = 2**21
"""Size of the inputs of samples compared together: activations of both networks take some hundred times that."""

Feeds = Mapping[str, Array]


@dataclass(frozen=True)
class Data:
    """The samples of a run.

    Attributes:
        calibration: for the passes; None where there are none.
        judge: what the result is compared on; None for `feeds`.
        mode: real for the user's data, random for noise, none where the data-free mode was asked for.
        facts: the same for the report.
        feeds: whole feeds `{input: array}` on which models are verified, the last with one sample; none for a model
            that does not run.
        batch: how many samples the model takes at once.
        shapes: concrete sizes of all inputs for one sample (or the one batch that the file fixes); empty if unknown.
    """

    calibration: Samples | None
    judge: Samples | None
    mode: Literal["real", "random", "none"]
    facts: tuple[DataFacts, ...]
    feeds: tuple[Feeds, ...]
    batch: int
    shapes: Shapes

    @property
    def sample(self) -> Feeds:
        """One whole feed of `shapes`; empty for a model that does not run."""
        return self.feeds[-1] if self.feeds else {}


def open_data(request: Request, loaded: Loaded) -> Data:
    """Open the data of `request` and run the model on a little of it.

    Raises:
        UsageError, DataError: for data that does not exist or does not fit, and sizes that nothing gives.
    """
    model, session = loaded.model, loaded.session
    given = (request.evaluation, None if request.data_free else request.calibration)
    guess = all(source is None for source in given) or any(_is_random(source) for source in given)
    known = _known_shapes(loaded, request.seed) if guess else None
    evaluation, calibration = (_open(request, model, source, known) for source in given)
    if calibration is not None and request.samples is not None:
        calibration = calibration.take(request.samples)
    held: Samples | None = None
    if request.judged and evaluation is None and calibration is not None:
        calibration, held = calibration.split(HELD_BACK, request.seed)
    judges = [samples for samples in (evaluation, held, calibration) if samples is not None]
    data = Data(
        calibration=calibration,
        judge=judges[0] if judges else None,
        mode="none" if request.data_free else "random" if _is_random(request.calibration) else "real",
        facts=_facts(request, calibration, evaluation, held),
        feeds=(),
        batch=1,
        shapes=known or {},
    )
    return _with_feeds(request, model, session, data)


def _is_random(source: object) -> bool:
    return isinstance(source, str) and (source == "random" or source.startswith("random:"))


def _known_shapes(loaded: Loaded, seed: int) -> Shapes | None:
    """Return sizes at which the model runs on noise; where it does not run at all, sizes only if all are declared."""
    if loaded.session is not None:
        return runnable_shapes(loaded.model, loaded.session, loaded.shapes, seed)
    shapes = list(candidate_shapes(loaded.model, {}))
    return shapes[0] if len(shapes) == 1 else None


def _open(
    request: Request, model: Model, source: SampleSource | None, known: Shapes | None
) -> Samples | None:
    if source is None:
        return None
    specs = input_specs(model)
    if _is_random(source):
        if known is None:
            raise UsageError(
                f"noise needs the sizes of the inputs, and none of the usual ones runs; {_set_shape(model)}"
            )
        specs = tuple(_sized(spec, known[spec.name]) for spec in specs)
    return open_samples(
        source,
        specs,
        preprocess=None if _is_random(source) else request.preprocess,
        allow_code=request.allow_code,
        seed=request.seed,
    )


def _sized(spec: InputSpec, sizes: tuple[int, ...]) -> InputSpec:
    """Return `spec` with every free axis but the first fixed."""
    first = spec.shape[:1] if spec.shape else ()
    return replace(spec, shape=(*first, *sizes[len(first) :]))


def _set_shape(model: Model) -> str:
    """Return the option that gives the sizes of the inputs that are free, with the sizes to fill in."""
    free = [v for v in model.graph.inputs if v.shape is None or any(not isinstance(s, int) for s in v.shape)]
    words = [
        f"--set-shape {v.name}="
        + ",".join(str(s) if isinstance(s, int) else "SIZE" for s in v.shape or ("SIZE",))
        for v in free
    ]
    return "give " + " ".join(words)


def _facts(
    request: Request, calibration: Samples | None, evaluation: Samples | None, held: Samples | None
) -> tuple[DataFacts, ...]:
    found = []
    roles: Sequence[tuple[Literal["calibration", "evaluation", "held-back"], Samples | None, object]] = (
        ("calibration", calibration, request.calibration),
        ("evaluation", evaluation, request.evaluation),
        ("held-back", held, request.calibration),
    )
    for role, samples, source in roles:
        if samples is None:
            continue
        # The digest walks all samples, so that a NaN in the last one is found before the first pass runs.
        digest, labelled = samples.digest(), samples.labels() is not None
        mode: Literal["real", "random"] = "random" if _is_random(source) else "real"
        found.append(DataFacts(role, mode, samples.source, len(samples), labelled, digest))
    return tuple(found)


def _with_feeds(request: Request, model: Model, session: Session | None, data: Data) -> Data:
    """Return `data` with feeds on which the model is known to run, and what they show of sizes."""
    source = data.calibration if data.calibration is not None else data.judge
    if source is not None:
        single, several = (dict(next(source.batches(n))) for n in (1, _TOGETHER))
        if session is None:
            return replace(data, shapes={name: tuple(np.shape(array)) for name, array in single.items()})
        _run_or_refuse(session, single, source.source)
    elif session is None:
        return data
    elif data.shapes or not model.graph.inputs:
        single = noise(model, data.shapes, request.seed)
        several = noise(model, _stacked(model, data.shapes), request.seed)
    else:
        return data
    shapes = {name: tuple(np.shape(array)) for name, array in single.items()}
    together = any(np.shape(several[name]) != shape for name, shape in shapes.items()) and _runs(
        session, several
    )
    feeds = (several, single) if together else (single,)
    return replace(data, feeds=feeds, batch=_fitting(shapes) if together else 1, shapes=shapes)


def _stacked(model: Model, shapes: Shapes) -> Shapes:
    """Return `shapes` with more than one sample wherever the first axis is free."""
    free = {v.name for v in model.graph.inputs if v.shape and not isinstance(v.shape[0], int)}
    return {n: (_TOGETHER, *s[1:]) if n in free else s for n, s in shapes.items()}


def _runs(session: Session, feeds: Feeds) -> bool:
    try:
        session.run(feeds)
    except SessionError:
        return False
    return True


def _run_or_refuse(session: Session, feeds: Feeds, source: str) -> None:
    try:
        session.run(feeds)
    except SessionError as problem:
        raise DataError(
            f"{source}: onnxruntime cannot run the model on the first sample: {problem}"
        ) from problem


def _fitting(shapes: Shapes) -> int:
    """Return how many samples of `shapes` to run together."""
    size = sum(4 * math.prod(shape) for shape in shapes.values())
    return max(1, min(_BATCH, _BATCH_BYTES // max(1, size)))
