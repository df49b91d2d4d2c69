"""Recovery of a pruned network: which nodes are refitted, how often, and what the report says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnxcomp.analysis.linear import linear_node
from onnxcomp.compiler.channel_pruning.problem import Plan, Scene
from onnxcomp.compiler.evaluation.hold_out import Fitted, HoldOut
from onnxcomp.compiler.evaluation.outputs import note_few_samples
from onnxcomp.compiler.passbase import Context, PassLog
from onnxcomp.compiler.repair.mode import RepairMode
from onnxcomp.compiler.repair.refit import RIDGE, Rows, Site, Solver, matched, refit, refit_once
from onnxcomp.compiler.repair.sites import damaged_sites, kept_positions, teacher_of
from onnxcomp.compiler.repair.walk import ROUNDS, Walk, WalkSettings, collect_moments
from onnxcomp.ir.model import Model

__all__ = ["Recovery", "recover"]


@dataclass(frozen=True)
class Recovery:
    """How a cut network is repaired: the options of a pass that concern it."""

    mode: RepairMode
    joint: int = 0
    sweeps: int = 1
    match_variance: bool = False
    rounds: int = ROUNDS

    @property
    def judged(self) -> bool:
        """Whether held-back samples decide about something."""
        return self.mode.walks and (self.sweeps > 1 or self.match_variance)


def recover(
    recovery: Recovery, cut: Model, scene: Scene, plan: Plan, left_alone: Mapping[str, str], log: PassLog
) -> Model:
    """Return `cut` with the nodes refitted whose inputs the cut changed; `cut` itself may be edited.

    `plan` says what was cut from the model of `scene`, `left_alone` why nodes of these names keep their weights. The log
    notes what is done, and what cannot be.
    """
    return recovery.mode.repair(_Cut(recovery, cut, scene, plan, left_alone, log))


@dataclass(frozen=True)
class _Cut:
    """A network whose channels have been cut, and the ways to repair it."""

    recovery: Recovery
    cut: Model
    scene: Scene
    plan: Plan
    left_alone: Mapping[str, str]
    log: PassLog

    def leave(self) -> Model:
        """Keep the weights as they are."""
        self.log.note("no repair: the weights that read removed channels are as they were")
        return self.cut

    def refit_once(self) -> Model:
        """Refit the readers of removed channels from the original network's values."""
        original, context = self.scene.model, self.scene.context
        kept = kept_positions(self.scene.groups, self.plan.keep)
        sites = self._sites(kept)
        before = {node.name: node for node in original.graph.nodes}
        nodes = [n for s in sites if (n := linear_node(before[s.name])) is not None]
        moments = collect_moments(original, nodes, context, self.scene.shapes, "statistics")
        done = refit_once(original, self.cut, sites, kept, moments, RIDGE)
        self.log.note(f"{done} nodes refitted once, from the original network's values")
        return self.cut

    def refit_in_order(self) -> Model:
        """Refit on the walk; where held-back samples decide, sweep again and match variances as long as they gain."""
        recovery, context = self.recovery, self.scene.context
        sites = self._sites(kept_positions(self.scene.groups, self.plan.keep))
        count = note_few_samples(context, self.log)
        names = [site.name for site in sites]
        walks = _Walks(self, sites, teacher_of(self.scene.model, names, context, self.scene.shapes))
        settings = WalkSettings(joint=recovery.joint, rounds=recovery.rounds)
        if not recovery.judged or count < 2:
            _report(walks.refitted(self.cut, refit, settings, context), self.log)
            return self.cut
        hold_out = HoldOut(walks.teacher, context, self.log)
        fitted = hold_out.context
        first = walks.refitted(self.cut, refit, settings, fitted)
        _report(first, self.log)
        hold_out.start(first.model)

        def sweep(best: Fitted) -> Fitted:
            further = WalkSettings(joint=recovery.joint, rounds=recovery.rounds, anew=False)
            return walks.refitted(best.model.clone(), refit, further, fitted)

        best = hold_out.sweep(first, sweep, range(2, recovery.sweeps + 1))
        if recovery.match_variance:
            trial = walks.refitted(
                best.model.clone(), matched, WalkSettings(rounds=0), fitted, "matching variances"
            )
            best = trial if hold_out.gains(trial.model, "matched variances") else best
        return best.model

    def _sites(self, kept: Mapping[tuple[str, int], Rows]) -> list[Site]:
        """Return what is to be refitted; what cannot be is recorded as skipped."""
        adders = {drop.block.name for drop in self.plan.drops}
        touched = {v.name for node in self.cut.graph.nodes if node.name in adders for v in node.outputs}
        sites, refused = damaged_sites(self.scene.model, self.cut, kept, self.left_alone.get, touched)
        for name, reason in refused.items():
            self.log.skip(name, f"not refitted: {reason}")
        return sites


@dataclass(frozen=True)
class _Walks:
    """Walks over clones of a cut network, all over the same sites and towards the same teacher."""

    network: _Cut
    sites: list[Site]
    teacher: Model

    def refitted(
        self, model: Model, solve: Solver, settings: WalkSettings, context: Context, what: str = "refitting"
    ) -> Fitted:
        """Return `model`, which is edited, after one walk on the samples of `context`."""
        walk = Walk(self.network.scene.model, model, context, settings, teacher=self.teacher)
        return Fitted(model, {site.name: error for site, error in walk.visit(self.sites, solve, what)})


def _report(fitted: Fitted, log: PassLog) -> None:
    if not fitted.errors:
        log.note("nothing could be refitted; the skipped nodes say why")
        return
    worst = sorted(fitted.errors.items(), key=lambda item: -item[1])[:3]
    named = ", ".join(f"{name} {error:.1%}" for name, error in worst)
    log.note(f"{len(fitted.errors)} nodes refitted in order; largest relative errors: {named}")
