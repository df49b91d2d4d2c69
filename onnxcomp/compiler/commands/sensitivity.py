"""Sensitivity: what compressing one place alone does to the output, and what it saves, measured for every place."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxcomp.analysis.cost import Cost
from onnxcomp.compiler.commands.result_cache import ResultCache, cache_folder, key_of
from onnxcomp.compiler.evaluation.divergence import Measure, Reference
from onnxcomp.compiler.evaluation.technique import Candidate, Technique
from onnxcomp.compiler.evaluation.trials import Judging, Verdict, run_trials
from onnxcomp.compiler.passbase import Context, PassLog, Skip
from onnxcomp.compiler.run.pipeline import Listener, Passed, run_passes
from onnxcomp.compiler.run.prepare import Prepared, prepare
from onnxcomp.compiler.run.report import DataFacts, FileFacts, to_json, versions
from onnxcomp.compiler.run.request import Request
from onnxcomp.compiler.run.synthetic_samples import check_makeable, make_samples
from onnxcomp.errors import ModelError, UsageError
from onnxcomp.ir.files import check_finite
from onnxcomp.ir.model import Model
from onnxcomp.ir.proto import to_proto
from onnxcomp.numerics.threads import single_threaded_blas
from onnxcomp.runtime.inputs import PIECE_LIMIT

__all__ = ["JUDGED", "Effect", "Sensitivity", "measure_sensitivity"]

JUDGED = 512
"""Samples on which effects are judged at most, the first that are given: every candidate runs on all of them."""

REVISION = 1
"""Part of the key of kept results; raised whenever the same call gives other figures."""


@dataclass(frozen=True)
class Effect:
    """What one technique does at one place, alone.

    Attributes:
        technique: its name.
        site: the channel group or node; `tier` the part of a group, from 1, None where it has only one.
        level: the share removed, `removed / units`.
        distance: of the outputs from those of the model before; None where they are no longer finite.
        agreement: percentage of samples on which the same class is chosen; None without class scores.
        macs, parameters: what the cut saves, exactly; `macs_share` and `parameters_share` of the whole model.
    """

    technique: str
    site: str
    tier: int | None
    level: float
    removed: int
    units: int
    distance: float | None
    agreement: float | None
    macs: int
    macs_share: float
    parameters: int
    parameters_share: float

    @property
    def place(self) -> str:
        """Site and tier in words."""
        return self.site if self.tier is None else f"{self.site} (tier {self.tier})"

    @property
    def sensitivity(self) -> float:
        """Distance per share of the MACs saved: infinite where nothing is saved or outputs are not finite."""
        if self.distance is None or self.macs <= 0:
            return math.inf
        return self.distance / self.macs_share


@dataclass(frozen=True)
class Sensitivity:
    """How sensitive a model is to compression, place by place.

    Attributes:
        file: the model's file, None for a model in memory.
        pipeline: the passes that ran before anything was measured; `cost` is that of the model they left.
        data, samples: what was measured on, and how many samples judged.
        measure: what distances are, `decision` the output whose classes agreement is about; None where nothing was judged.
        techniques: the options of each technique by its name; `seed` of every random choice.
        effects: in network order, or as `by_sensitivity` sorts them.
        blocked: what cannot be compressed, and why.
        notes: what else should be known.
        cached: whether this was measured by an earlier call.
    """

    file: FileFacts | None
    pipeline: str
    data: DataFacts
    samples: int
    measure: Measure | None
    decision: str | None
    techniques: Mapping[str, Mapping[str, Any]]
    seed: int
    cost: Cost
    effects: tuple[Effect, ...]
    blocked: tuple[Skip, ...]
    notes: tuple[str, ...]
    cached: bool = False

    def by_sensitivity(self) -> Sensitivity:
        """Return the same with the effects of the highest sensitivity per MAC saved first."""
        return replace(self, effects=tuple(sorted(self.effects, key=lambda e: -e.sensitivity)))

    def ranking(self) -> tuple[Effect, ...]:
        """Return the effect at the middle level of every place, the most sensitive places first."""
        places: dict[tuple[str, str], list[Effect]] = {}
        for effect in sorted(self.effects, key=lambda e: e.level):
            places.setdefault((effect.technique, effect.place), []).append(effect)
        middle = [effects[len(effects) // 2] for effects in places.values()]
        return tuple(sorted(middle, key=lambda e: -(math.inf if e.distance is None else e.distance)))


def measure_sensitivity(
    request: Request,
    techniques: Sequence[Technique],
    listener: Listener | None = None,
    *,
    model: Model | None = None,
    cache: str | os.PathLike[str] | None = None,
) -> Sensitivity:
    """Return how sensitive the model of `request` is to `techniques`, measured on its calibration data after its passes.

    `model` stands in for a file. `cache` is the folder of kept results, None for the user's, `none` for none;
    `request.force` measures anew.

    Raises:
        UsageError, ModelError, DataError: the call, the model or the data is wrong.
        PassError: a pass failed unforeseen.
    """
    if request.calibration is None:
        raise UsageError(
            "sensitivity is measured on samples; give --calibration with an .npz, a folder of images, "
            "random for noise, or none to have them made"
        )
    listener = listener or Listener()
    prepared = prepare(request, model)
    _check_runs(prepared)
    store = ResultCache(cache_folder(cache))
    key = _key(prepared, techniques)
    found = None if key is None or request.force else _restored(store, key, prepared)
    if found is None:
        with single_threaded_blas():
            found = _measured(prepared, techniques, listener)
        if key is not None:
            store.write(key, json.loads(to_json(found)))
    else:
        listener.note(f"kept from an earlier run in {store.path(key or '')}; --force measures anew")
    for note in store.notes:
        listener.note(note)
    return found


def _check_runs(prepared: Prepared) -> None:
    name = prepared.request.source or "the model"
    if prepared.outputs is None:
        raise ModelError(f"{name} cannot be run: {'; '.join(prepared.loaded.notes)}")
    for output, array in prepared.outputs[-1].items():
        if isinstance(array, np.ndarray) and array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ModelError(
                f"output '{output}' of {name} is not finite on the first sample, so nothing can be compared with it"
            )
    check_finite(prepared.original)
    if prepared.request.data_free:
        check_makeable(prepared.original)


# --- measuring -------------------------------------------------------------------------------------------------------
def _measured(prepared: Prepared, techniques: Sequence[Technique], listener: Listener) -> Sensitivity:
    passed = run_passes(prepared, listener)
    context = prepared.context(listener.progress)
    facts = next((d for d in prepared.data.facts if d.role == "calibration"), None)
    notes = [*prepared.loaded.notes, *prepared.verifier.notes, *_reported(passed)]
    if facts is None:
        listener.stage("making synthetic samples")
        made = passed.made or make_samples(prepared.original, context)
        context, facts = replace(context, calibration=made.samples), made.facts
        notes.append(made.note)
    elif facts.mode == "random":
        notes.append("measured on noise: what real samples would show may be another thing")
    log = PassLog()
    listener.stage("measuring")
    effects: list[Effect] = []
    reference: Reference | None = None
    for technique in techniques:
        found, reference = _effects(passed, technique, reference, context, prepared.decision, log)
        effects += found
    judged = min(JUDGED, facts.samples)
    if judged < facts.samples:
        notes.append(f"judged on the first {judged:,} of {facts.samples:,} samples")
    return Sensitivity(
        file=prepared.loaded.facts,
        pipeline=str(prepared.request.pipeline or ""),
        data=facts,
        samples=judged,
        measure=None if reference is None else reference.measure,
        decision=None if reference is None else reference.decision,
        techniques={t.name: _options(t) for t in techniques},
        seed=prepared.request.seed,
        cost=passed.after,
        effects=tuple(effects),
        blocked=tuple(log.skips),
        notes=tuple(dict.fromkeys([*notes, *log.notes])),
    )


def _options(technique: Technique) -> dict[str, Any]:
    """Return the options of `technique` in the form that they have in JSON, too."""
    options = dataclasses.asdict(technique)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}


def _effects(
    passed: Passed,
    technique: Technique,
    reference: Reference | None,
    context: Context,
    decision: str | None,
    log: PassLog,
) -> tuple[list[Effect], Reference | None]:
    """Return what `technique` does at every place, in the order in which they stand in the network."""
    effects: list[Effect] = []
    for portion in technique.candidates(passed.model, context, log):
        trials = [candidate.trial for candidate in portion]
        judging = Judging(JUDGED, decision)
        verdicts, reference = run_trials(passed.model, trials, reference, context, "measuring", judging)
        # Candidates hold the statistics of their portion, so that none may be kept.
        effects += [_effect(technique, c, v, passed.after) for c, v in zip(portion, verdicts, strict=True)]
    place = {node.name: number for number, node in enumerate(passed.model.graph.nodes)}

    def order(effect: Effect) -> tuple[int, str, int]:
        first = place.get(effect.site.removesuffix(":heads"), len(place))
        return first, effect.site, effect.tier or 0

    return sorted(effects, key=order), reference


def _effect(technique: Technique, candidate: Candidate, verdict: Verdict, whole: Cost) -> Effect:
    return Effect(
        technique=technique.name,
        site=candidate.site,
        tier=candidate.tier,
        level=candidate.removed / candidate.units,
        removed=candidate.removed,
        units=candidate.units,
        distance=verdict.damage if math.isfinite(verdict.damage) else None,
        agreement=None if verdict.agreement is None else 100 * verdict.agreement,
        macs=candidate.macs,
        macs_share=candidate.macs / max(1, whole.macs or 0),
        parameters=candidate.parameters,
        parameters_share=candidate.parameters / max(1, whole.parameters),
    )


def _reported(passed: Passed) -> list[str]:
    """Return what became of passes that did not end as they should."""
    reported = [
        f"{r.name} {r.status}: {r.reason}" for r in passed.runs if r.status in ("failed", "rolled-back")
    ]
    return reported + [f"{r.name}: {r.shortfall}" for r in passed.runs if r.shortfall and not r.reason]


# --- keeping ---------------------------------------------------------------------------------------------------------
def _key(prepared: Prepared, techniques: Sequence[Technique]) -> str | None:
    """Return the digest of all that the result depends on; None where that is not known."""
    request = prepared.request
    model = _model_digest(prepared)
    foreign = any(not type(step).__module__.startswith("onnxcomp.") for step in request.passes)
    if model is None or foreign:
        # Of other packages' passes nobody knows when they change.
        return None
    data = next((d.sha256 for d in prepared.data.facts if d.role == "calibration"), None)
    return key_of(
        {
            "kind": "sensitivity",
            "revision": REVISION,
            "versions": versions(),
            "model": model,
            "data": [prepared.data.mode, data],
            "target": request.target,
            "techniques": [repr(technique) for technique in techniques],
            "pipeline": str(request.pipeline),
            "excluded": sorted(prepared.excluded),
            "sizes": {name: list(sizes) for name, sizes in request.set_shape.items()},
            "decision": prepared.decision,
            "seed": request.seed,
            "threads": request.threads,
            "libraries": [hashlib.sha256(Path(p).read_bytes()).hexdigest() for p in request.custom_op_libs],
        }
    )


def _model_digest(prepared: Prepared) -> list[Any] | None:
    facts = prepared.loaded.facts
    if facts is not None:
        return [facts.sha256, dict(facts.external)]
    if prepared.original.weight_bytes > PIECE_LIMIT:
        return None
    return [hashlib.sha256(to_proto(prepared.original).SerializeToString(deterministic=True)).hexdigest()]


def _restored(store: ResultCache, key: str, prepared: Prepared) -> Sensitivity | None:
    """Return the kept result with the files of this call, or None where there is none that can be read."""
    kept = store.read(key)
    if kept is None:
        return None
    try:
        return _rebuilt(kept, prepared)
    except (KeyError, TypeError) as problem:
        store.notes.append(
            f"the cached result {store.path(key)} is of another form ({problem}) and was ignored"
        )
        return None


def _rebuilt(kept: Mapping[str, Any], prepared: Prepared) -> Sensitivity:
    data = DataFacts(**kept["data"])
    same = ("pipeline", "samples", "measure", "decision", "techniques", "seed")
    return Sensitivity(
        **{name: kept[name] for name in same},
        file=prepared.loaded.facts,
        data=next((d for d in prepared.data.facts if d.role == "calibration"), data),
        cost=Cost(**kept["cost"]),
        effects=tuple(Effect(**effect) for effect in kept["effects"]),
        blocked=tuple(Skip(**skip) for skip in kept["blocked"]),
        notes=tuple(kept["notes"]),
        cached=True,
    )
