"""What does the harm in a network of integers is ranked, measured where it stands out, and told with what cures it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from onnxcomp.compiler.evaluation.trials import Judging, run_trials
from onnxcomp.compiler.mixed_precision.site_trials import place_trial
from onnxcomp.compiler.mixed_precision.sites import Place, places
from onnxcomp.compiler.passbase import Context, PassLog
from onnxcomp.compiler.quantization.plan import QuantizationPlan
from onnxcomp.ir.model import Model

__all__ = ["exclude_words", "tell_harm"]

HARMFUL = 1e-3
"""Share of the outputs' energy (30 dB) that a place must be expected to disturb before anybody is warned of it ..."""

FAR_ABOVE = 10.0
"""... and how many times more than the middle one of all places."""

APART = 16.0
"""Ranges of a Concat's inputs differ widely where one reaches so many times farther than another: four bits of eight."""

MEASURED = 8
"""Places that are measured where something stands out: the worst by what is expected, and as many unknown ones."""

JUDGED = 32
"""Samples on which they are measured."""

TOLD = 3
"""Places that a note names."""

RANKED = 20
"""Places that the report ranks."""


def tell_harm(found: QuantizationPlan, context: Context, log: PassLog, *, corrected: bool = True) -> None:
    """Rank the places of a plan in the report, and say how to spare what stands out: the `--exclude` to paste.

    Where something stands out, it and whatever comes next, or of which nothing is known, is measured and ranked anew.
    """
    known = [p for p in places(found, context.target, corrected=corrected) if p.nodes]
    expected = [p.expected for p in known if p.expected is not None]
    least = max(HARMFUL, FAR_ABOVE * float(np.median(expected))) if expected else HARMFUL
    ranked = sorted(known, key=lambda p: -(p.expected or 0.0))
    standing = {p for p in ranked if p.expected is not None and p.expected >= least}
    measured: dict[Place, float] = {}
    if standing:
        unknown = [p for p in ranked if p.expected is None]
        asked = dict.fromkeys([*ranked[:MEASURED], *unknown[:MEASURED]])
        measured = _measured(found, list(asked), context)
        ranked.sort(key=lambda p: -measured.get(p, -1.0))
        worst = max(measured.values())
        standing = {p for p in ranked[:TOLD] if measured.get(p, 0.0) * FAR_ABOVE >= worst}
    if ranked:
        log.change(
            "graph", "what alone disturbs the outputs, the worst first", ranking=_ranking(ranked, measured)
        )
    told = [p for p in ranked if p in standing]
    if told:
        names = ", ".join(map(_words, told))
        nodes = [name for p in told for name in p.nodes]
        log.note(f"integers do far more harm at {names} than elsewhere{_cure(found.model, context, nodes)}")
    _tell_concats(found, context, log)


def _measured(found: QuantizationPlan, asked: Sequence[Place], context: Context) -> dict[Place, float]:
    """Return the distance of the outputs (see `divergence.Reference`) with each place alone in integers."""
    trials = [place_trial(found, place) for place in asked]
    verdicts, _ = run_trials(found.model, trials, None, context, "measuring harm", Judging(JUDGED))
    return {place: verdict.damage for place, verdict in zip(asked, verdicts, strict=True)}


def _ranking(ranked: Sequence[Place], measured: Mapping[Place, float]) -> list[dict[str, Any]]:
    """Return the rows of the report: share of the outputs' energy that is expected, and the distance that was measured."""
    rows: list[dict[str, Any]] = []
    for place in ranked[:RANKED]:
        row: dict[str, Any] = {"place": place.name, "kind": place.kind, "nodes": list(place.nodes)}
        if place.expected is not None:
            row["expected"] = float(f"{place.expected:.4g}")
        if place in measured:
            row["distance"] = float(f"{measured[place]:.4g}")
        rows.append(row)
    return rows


def _words(place: Place) -> str:
    return f"the weight of {place.name!r}" if place.kind == "weight" else repr(place.name)


def _tell_concats(found: QuantizationPlan, context: Context, log: PassLog) -> None:
    """Name the Concats whose inputs' ranges differ widely: one scale fits only the largest."""
    for node in found.model.graph.nodes:
        if not node.is_op("Concat") or node.output.name not in found.placement.values:
            continue
        reach = {v.name: _reach(found, v.name) for v in node.inputs if _reach(found, v.name) > 0}
        if len(reach) < 2 or max(reach.values()) < APART * min(reach.values()):
            continue
        large, small = max(reach, key=reach.__getitem__), min(reach, key=reach.__getitem__)
        readers = [n for n in node.output.consumers if n.name in found.placement.nodes]
        nodes = [n.name for n in (node, *readers)]
        log.note(
            f"{node.name}: {large!r} reaches to {reach[large]:.4g} and {small!r} to {reach[small]:.4g}; one scale for "
            f"both fits the larger{_cure(found.model, context, nodes)}"
        )


def _reach(found: QuantizationPlan, name: str) -> float:
    """Return the largest magnitude of a value, 0 where it was not looked at."""
    seen = found.observed.seen.get(name)
    return 0.0 if seen is None or not seen.count else max(abs(seen.low), abs(seen.high))


def _cure(model: Model, context: Context, nodes: Sequence[str]) -> str:
    words = exclude_words(model, context, nodes)
    return f"; to keep them in float: {words}" if words else ""


def exclude_words(model: Model, context: Context, nodes: Iterable[str]) -> str:
    """Return the options that exclude `nodes` of `model`, as a shell reads them; nodes that a pass made are left out."""
    given = {node.name for node in context.original.graph.nodes}
    back: Mapping[str, list[str]] = _before(model)
    names: dict[str, None] = {}
    for name in nodes:
        origin = next((old for old in [name, *back.get(name, [])] if old in given), None)
        if origin is not None:
            names[origin] = None
    return " ".join(f"--exclude {shlex.quote(name)}" for name in names)


def _before(model: Model) -> dict[str, list[str]]:
    """Return the names in the file of each node that is called otherwise now."""
    found: dict[str, list[str]] = {}
    for before, now in model.aliases.items():
        if now is not None:
            found.setdefault(now, []).append(before)
    return found
