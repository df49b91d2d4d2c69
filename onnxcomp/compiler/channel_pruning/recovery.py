"""What follows a cut: which nodes are refitted, how often, and what the report is told about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from onnxcomp.analysis.linear import linear_node
from onnxcomp.compiler.channel_pruning.problem import Plan, Scene
from onnxcomp.compiler.evaluation.divergence import Reference
from onnxcomp.compiler.evaluation.outputs import FEW, HELD_BACK, judge, outputs_on
from onnxcomp.compiler.passbase import Context, PassLog
from onnxcomp.compiler.repair.refit import RIDGE, Site, Solver, matched, refit, refit_once
from onnxcomp.compiler.repair.sites import damaged_sites, kept_positions, teacher_of
from onnxcomp.compiler.repair.walk import ROUNDS, collect_moments, walk
from onnxcomp.ir.model import Model

__all__ = ["Recovery", "recover"]


@dataclass(frozen=True)
class Recovery:
    """How a cut network is repaired: the options of a pass that concern it."""

    mode: Literal["sequential", "one-shot", "none"]
    joint: int = 0
    sweeps: int = 1
    match_variance: bool = False
    rounds: int = ROUNDS

    @property
    def judged(self) -> bool:
        """Whether held-back samples decide about something."""
        return self.mode == "sequential" and (self.sweeps > 1 or self.match_variance)


def recover(
    recovery: Recovery,
    original: Model,
    cut: Model,
    scene: Scene,
    plan: Plan,
    left_alone: Mapping[str, str],
    log: PassLog,
) -> Model:
    """Return `cut` with what the cut damaged refitted; `cut` itself may be edited.

    `plan` says what was cut from `original`, the model of `scene`. What is done, and what cannot be, goes into `log`.
    """
    context, shapes = scene.context, scene.shapes
    if recovery.mode == "none":
        log.note("no repair: the weights that read removed channels are as they were")
        return cut
    kept = kept_positions(scene.groups, plan.keep)
    adders = {drop.block.name for drop in plan.drops}
    touched = {v.name for node in cut.graph.nodes if node.name in adders for v in node.outputs}
    sites, refused = damaged_sites(original, cut, kept, left_alone.get, touched)
    for name, reason in refused.items():
        log.skip(name, f"not refitted: {reason}")
    if recovery.mode == "one-shot":
        before = {node.name: node for node in original.graph.nodes}
        nodes = [n for s in sites if (n := linear_node(before[s.name])) is not None]
        moments = collect_moments(original, nodes, context, shapes, "statistics")
        done = refit_once(original, cut, sites, kept, moments, RIDGE)
        log.note(f"{done} nodes refitted once, from the original network's values")
        return cut
    count = len(context.calibration) if context.calibration is not None else 0
    if count < FEW:
        log.note(
            f"{count} calibration samples are few: refitted weights lean on what they were, and the errors told here "
            f"are of these samples alone; {FEW} or more are advised"
        )
    teacher = teacher_of(original, [site.name for site in sites], context, shapes)
    if recovery.judged and count >= 2:
        return _judged(recovery, original, teacher, cut, sites, context, shapes, log)
    errors = walk(
        original,
        cut,
        sites,
        refit,
        context,
        shapes,
        "refitting",
        joint=recovery.joint,
        rounds=recovery.rounds,
        teacher=teacher,
    )
    _tell(errors, log)
    return cut


def _judged(
    recovery: Recovery,
    original: Model,
    teacher: Model,
    cut: Model,
    sites: list[Site],
    context: Context,
    shapes: Mapping[str, tuple[int, ...]],
    log: PassLog,
) -> Model:
    """Refit on most of the samples; the others decide about further sweeps and about variances."""
    fitted, held = context.samples.split(HELD_BACK, context.seed)
    context = replace(context, calibration=fitted)

    def again(model: Model, solve: Solver, what: str, **how: Any) -> list[tuple[Site, float]]:
        return walk(original, model, sites, solve, context, shapes, what, teacher=teacher, **how)

    errors = again(cut, refit, "refitting", joint=recovery.joint)
    _tell(errors, log)
    reference = Reference(outputs_on(teacher, held, context))
    best, distance = cut, judge(cut, reference, held, context)
    for number in range(2, recovery.sweeps + 1):
        trial = best.clone()
        again(trial, refit, "refitting", joint=recovery.joint, anew=False)
        found = judge(trial, reference, held, context)
        log.note(f"sweep {number}: distance on held-back samples {distance:.4g} -> {found:.4g}")
        if not found < distance:
            log.note(f"sweep {number} was taken back")
            break
        best, distance = trial, found
    if recovery.match_variance:
        trial = best.clone()
        again(trial, matched, "matching variances", rounds=0)
        found = judge(trial, reference, held, context)
        kept = found < distance
        log.note(
            f"variances matched: distance on held-back samples {distance:.4g} -> {found:.4g}, "
            f"{'kept' if kept else 'taken back'}"
        )
        best = trial if kept else best
    return best


def _tell(errors: list[tuple[Site, float]], log: PassLog) -> None:
    if not errors:
        log.note("nothing could be refitted; the skipped nodes say why")
        return
    worst = sorted(errors, key=lambda item: -item[1])[:3]
    told = ", ".join(f"{site.name} {error:.1%}" for site, error in worst)
    log.note(f"{len(errors)} nodes refitted in order; largest relative errors: {told}")
