"""Remove channels of convolutions and matrix products, with everything that made, carried and read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from onnxcomp.compiler.channel_pruning.criteria import MEASURED
from onnxcomp.compiler.channel_pruning.ladder import Limits
from onnxcomp.compiler.channel_pruning.problem import Plan, Price, Scene, count_price
from onnxcomp.compiler.channel_pruning.ranking import unmeasured
from onnxcomp.compiler.channel_pruning.recovery import Recovery, recover
from onnxcomp.compiler.channel_pruning.schedule import Budget, Chooser, choose
from onnxcomp.compiler.cost.budget import CountedBudget, TimeBudget, budget_of, fits_exactly
from onnxcomp.compiler.cost.latency import LatencyPrice
from onnxcomp.compiler.options import at_least, in_range, option
from onnxcomp.compiler.pass_options import BUDGETS, BudgetOptions, RepairOptions
from onnxcomp.compiler.passbase import Context, Need, PassLog, PassResult
from onnxcomp.compiler.repair.mode import NO_REPAIR, SEQUENTIAL, repair_mode
from onnxcomp.errors import UsageError
from onnxcomp.ir.files import check_finite
from onnxcomp.ir.model import Model

__all__ = ["PruneFilters"]

_LIMITS = ("align", "min_channels", "max_ratio")
"""Options that can keep a budget from being reached."""


SLOW_FROM = 16
"""Up to so many channels onnxruntime's kernels take any number alike."""


@dataclass(frozen=True)
class PruneFilters(BudgetOptions, RepairOptions):
    """Remove the channels that the network misses least, and refit the weights that read or made them.

    Convolution filters, residual streams, neurons of Gemm and MatMul, attention heads and recurrent units are all
    candidates. Under a budget every group gets the share that its measured effect on the output allows. What the cut
    reaches is refitted from calibration samples, layer by layer, without labels and without training.
    """

    name = "prune-filters"
    exact = False
    stage = "structure"
    data_free = True
    goals = ("ratio", *BUDGETS)
    behind: ClassVar[Mapping[str, str]] = {"joint": "repair", "match_variance": "sweeps"}
    wording: ClassVar[Mapping[str, str]] = {
        "repair": "refit layer by layer from the cut network's own values, once from the original's, or not at all",
        "sweeps": "times the network is refitted from front to back, as long as the error on held-back samples falls",
    }

    ratio: float | None = option(None, "share of channels removed from every group, 0 <= ratio < 1")
    scope: Literal["global", "uniform"] = option(
        "global",
        "how a budget is shared out: by each group's measured effect on the output, or the same share from every group",
    )
    criterion: Literal[
        "obs", "l1", "l2", "fpgm", "bn-scale", "apoz", "activation", "hrank", "entropy", "random"
    ] = option(
        "obs",
        "what decides which channels go: output error after refitting (obs), norm of the filters (l1, l2) or their "
        "distance to the others (fpgm), scale of the BatchNormalization (bn-scale), share of zeros (apoz), size "
        "times the readers' weights (activation), rank (hrank) or entropy of activations, or chance",
    )
    align: int = option(1, "keep multiples of this many channels")
    min_channels: int = option(1, "keep at least this many channels of every group")
    max_ratio: float = option(1.0, "remove at most this share of any group")
    layers: bool = option(
        False, "let whole residual blocks compete with channels for the budget (scope=global)"
    )
    iterations: int = option(
        1, "rounds in which a budget is approached, each measured on what the last one left"
    )
    joint: int = option(
        4, "steps of refining a producer and its only reader together after they have been refitted; 0 = off"
    )
    match_variance: bool = option(
        False,
        "also try to give every output its old mean and variance, and keep that if held-back samples gain",
    )

    def check(self) -> None:
        """Raise UsageError unless exactly one of ratio, macs, params and latency is given and all are in range."""
        super().check()
        in_range(self.name, "ratio", self.ratio, 0, 1, open_high=True)
        in_range(self.name, "max-ratio", self.max_ratio, 0, 1)
        for name in ("align", "min_channels", "iterations"):
            at_least(self.name, name.replace("_", "-"), getattr(self, name), 1)
        at_least(self.name, "joint", self.joint, 0)
        if self.ratio is not None and self.iterations > 1:
            raise UsageError(
                f"{self.name}: iterations={self.iterations} approach a budget; give macs, params or latency, not ratio"
            )
        if self.max_ratio < 1 and self.iterations > 1:
            raise UsageError(
                f"{self.name}: max-ratio={self.max_ratio:g} is a share of the network as it came, which the later of "
                f"iterations={self.iterations} no longer see; give one of them"
            )
        if self.layers and (self.scope != "global" or self.ratio is not None):
            raise UsageError(f"{self.name}: layers=true needs a budget and scope=global, which weighs blocks")
        self.check_sequential("match-variance", asked=self.match_variance)

    def needs(self) -> frozenset[Need]:
        """Return `calibration` where selection, shares or repair are measured, and `shapes` always."""
        measured = self.criterion in ("obs", *MEASURED) or (self.scope == "global" and self.ratio is None)
        return super().needs() | (frozenset({"calibration"}) if measured else frozenset())

    def without_samples(self) -> str:
        """Return what would have to change for nothing to be measured on samples."""
        changes = {
            "scope=uniform": self.scope == "global" and self.ratio is None,
            "criterion=l2": self.criterion in ("obs", *MEASURED),
            "repair=none": self.refits,
        }
        return " ".join(words for words, needed in changes.items() if needed)

    def run(self, model: Model, context: Context) -> PassResult:
        """Cut and repair `model`."""
        check_finite(model)
        return _Pruning(self, model, context).result()


class _Pruning:
    """One run of the pass: what is chosen under its options, cut, repaired, and reported."""

    def __init__(self, options: PruneFilters, model: Model, context: Context) -> None:
        self._options, self._context, self._log = options, context, PassLog()
        self._model, self._original = model, model.clone()
        self._left_alone = context.left_alone(model)
        self._budget = self._allowed()

    def result(self) -> PassResult:
        """Return the model as it is after the pass, and what is to be reported."""
        options, log = self._options, self._log
        chooser = Chooser(
            self._budget,
            options.scope,
            options.criterion,
            Limits(options.align, options.min_channels, options.max_ratio),
            options.iterations,
            options.layers,
        )
        scene, plan = choose(
            chooser, self._original, self._left_alone, self._context, log, self._quick_repair
        )
        self._report_budget(scene, plan)
        if plan.empty:
            return log.result(self._model)
        model, repairs = self._applied(scene, plan)
        for name in plan.keep if options.criterion == "obs" else ():
            if reason := unmeasured(self._original, scene.groups[name]):
                log.note(f"{name}: {reason}; norms of filters chose its channels")
        _report_cut(scene, plan, log)
        if options.latency is None and options.align == 1:
            _report_slow(plan, log)
        log.skips.extend(repairs.skips)
        log.notes.extend(repairs.notes)
        return log.result(model)

    def _applied(self, scene: Scene, plan: Plan) -> tuple[Model, PassLog]:
        """Return the scene's model cut and repaired as planned, and what is to be reported about the repair."""
        options, repairs = self._options, PassLog()
        cut = scene.model.clone()
        plan.cut(cut, scene.groups)
        recovery = Recovery(
            repair_mode(options.repair), options.joint, options.sweeps, options.match_variance
        )
        return recover(recovery, cut, scene, plan, self._left_alone, repairs), repairs

    def _allowed(self) -> Budget:
        goal = budget_of(self._options)
        if isinstance(goal, TimeBudget):
            return Budget(
                goal.unit, goal.share, 1.0, self._latency_price, partial(goal.measure, context=self._context)
            )
        if isinstance(goal, CountedBudget):
            price = partial(count_price, what=goal.unit, refitted=self._options.refits)
            return Budget(goal.unit, goal.share, goal.whole(self._context), price)
        return Budget("ratio", self._options.goal()[1], 1.0, lambda scene: lambda keep: 1.0)

    def _latency_price(self, scene: Scene) -> Price:
        timed = LatencyPrice(scene.model, scene.groups, scene.shapes, self._context)
        for name, reason in timed.untimed.items():
            self._log.note(f"{name}: it cannot be timed by itself and counts as no time; {reason}")
        return lambda keep: timed.of(keep) / timed.whole

    def _quick_repair(self, scene: Scene, plan: Plan) -> Model:
        """Return the network cut as planned so far, refitted without refinement: what the next round measures."""
        cut = scene.model.clone()
        plan.cut(cut, scene.groups)
        recovery = Recovery(SEQUENTIAL if self._options.refits else NO_REPAIR, rounds=0)
        return recover(recovery, cut, scene, plan, self._left_alone, PassLog())

    def _report_budget(self, scene: Scene, plan: Plan) -> None:
        """Say whether the budget is met, and where it is undercut or missed, why."""
        budget, options, log = self._budget, self._options, self._log
        if budget.what == "ratio":
            return
        price = budget.price_of(scene)
        if plan.empty and price({}) <= budget.target:
            log.note(f"the budget {budget.what}={budget.share:g} is met without cutting")
            return
        achieved = price(plan.priced(scene.groups)) if plan.measured is None else plan.measured
        # Channels that an earlier round untied may cost more together than each round counted.
        if not plan.reached or achieved > budget.target:
            limited = [
                f"{o.name}={getattr(options, o.field):g}" for o in options.options() if o.field in _LIMITS
            ]
            reasons = dict.fromkeys(f"{g.name}: {g.blocked}" for g in scene.groups if g.blocked)
            log.shortfall = (
                f"{budget.what}={budget.share:g} cannot be reached; {achieved / budget.whole:.4f} is the least with "
                + ", ".join(limited)
                + (f"; blocked are {'; '.join(list(reasons)[:5])}" if reasons else "")
            )
        elif not fits_exactly(achieved, budget.target, budget.whole):
            log.note(
                f"{budget.what} {'falls' if budget.what == 'latency' else 'fall'} to {achieved / budget.whole:.4f}, more than asked for: "
                f"align={options.align}, min-channels={options.min_channels} or the size of channel blocks allow nothing between"
            )


def _report_slow(plan: Plan, log: PassLog) -> None:
    """Say where numbers of channels are left that runtimes compute in a slower way."""
    slow = sum(mask.sum() > SLOW_FROM and mask.sum() % 4 != 0 for mask in plan.keep.values())
    if slow:
        log.note(
            f"{slow} of {len(plan.keep)} groups keep a number of channels that is no multiple of 4, which onnxruntime "
            "computes in a slower way; align=8 or latency=... may be faster for the same MACs"
        )


def _report_cut(scene: Scene, plan: Plan, log: PassLog) -> None:
    for drop in plan.drops:
        log.change(drop.block.name, "residual block removed", nodes=list(drop.block.nodes))
    for name, mask in plan.keep.items():
        group = scene.groups[name]
        log.change(
            name,
            f"{group.units} -> {int(mask.sum())} channels",
            before=group.units,
            after=int(mask.sum()),
            producers=list(group.producers),
            consumers=list(group.consumers),
        )
