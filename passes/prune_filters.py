"""Remove channels of convolutions and matrix products, with everything that made, carried and read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from onnxcomp.compiler.channel_pruning.criteria import MEASURED
from onnxcomp.compiler.channel_pruning.ladder import Limits
from onnxcomp.compiler.channel_pruning.problem import Plan, Price, Scene, count_price
from onnxcomp.compiler.channel_pruning.ranking import unmeasured
from onnxcomp.compiler.channel_pruning.recovery import Recovery, recover
from onnxcomp.compiler.channel_pruning.schedule import Budget, Chooser, choose
from onnxcomp.compiler.cost.budget import fits_exactly, pipeline_cost
from onnxcomp.compiler.cost.latency import LatencyPrice, measured_ratio
from onnxcomp.compiler.options import in_range, option
from onnxcomp.compiler.passbase import Context, Need, Pass, PassLog, PassResult
from onnxcomp.errors import UsageError
from onnxcomp.ir.files import check_finite
from onnxcomp.ir.model import Model

__all__ = ["PruneFilters"]

_LIMITS = ("align", "min_channels", "max_ratio")
"""Options that can keep a budget from being reached."""


SLOW_FROM = 16
"""Up to so many channels onnxruntime's kernels take any number alike."""


@dataclass(frozen=True)
class PruneFilters(Pass):
    """Remove the channels that the network misses least, and refit the weights that read or made them.

    Convolution filters, residual streams, neurons of Gemm and MatMul, attention heads and recurrent units are all
    candidates. Under a budget every group gets the share that its measured effect on the output allows. What the cut
    damages is refitted from calibration samples, layer by layer, without labels and without training.
    """

    name = "prune-filters"
    exact = False
    stage = "structure"
    data_free = True

    ratio: float | None = option(None, "share of channels removed from every group, 0 <= ratio < 1")
    macs: float | None = option(None, "share of the multiply-accumulates that may remain, 0 < macs <= 1")
    params: float | None = option(None, "share of the parameters that may remain, 0 < params <= 1")
    latency: float | None = option(
        None,
        "share of the measured time that may remain (batch 1, one thread, this machine), 0 < latency <= 1",
    )
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
    repair: Literal["sequential", "one-shot", "none"] = option(
        "sequential",
        "refit layer by layer from the cut network's own values, once from the original's, or not at all",
    )
    joint: int = option(
        4, "steps of refining a producer and its only reader together after they have been refitted; 0 = off"
    )
    sweeps: int = option(
        1, "times the network is refitted from front to back, as long as the error on held-back samples falls"
    )
    match_variance: bool = option(
        False,
        "also try to give every output its old mean and variance, and keep that if held-back samples gain",
    )

    def check(self) -> None:
        """Raise UsageError unless exactly one of ratio, macs, params and latency is given and all are in range."""
        budgets = ("ratio", "macs", "params", "latency")
        given = [name for name in budgets if getattr(self, name) is not None]
        if len(given) != 1:
            said = f"{' and '.join(given)} are given" if given else "none of them is given"
            raise UsageError(f"{self.name}: give one of ratio, macs, params and latency; {said}")
        in_range(self.name, "ratio", self.ratio, 0, 1, open_high=True)
        for name in budgets[1:]:
            value = getattr(self, name)
            in_range(self.name, name, value, 0, 1)
            if value == 0:
                raise UsageError(f"{self.name}: {name}=0 leaves nothing; give the share that may remain")
        in_range(self.name, "max-ratio", self.max_ratio, 0, 1)
        for opt in self.options():
            if opt.field in ("align", "min_channels", "iterations", "sweeps", "joint"):
                number, least = getattr(self, opt.field), 0 if opt.field == "joint" else 1
                if number < least:
                    raise UsageError(
                        f"{self.name}: {opt.name}={number} is out of range; it is at least {least}"
                    )
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
        if self.repair != "sequential" and (self.sweeps > 1 or self.match_variance):
            name = "sweeps" if self.sweeps > 1 else "match-variance"
            raise UsageError(f"{self.name}: {name} needs repair=sequential, not {self.repair}")

    def may_fall_short(self) -> bool:
        """Return whether a budget is given, which the model may turn out not to reach."""
        return self.ratio is None

    def needs(self) -> frozenset[Need]:
        """Return `calibration` where selection, shares or repair are measured, and `shapes` always."""
        measures = self.criterion in ("obs", *MEASURED) or self.repair != "none"
        measures = measures or (self.scope == "global" and self.ratio is None)
        return frozenset({"shapes", "calibration"} if measures else {"shapes"})

    def without_samples(self) -> str:
        """Return what would have to change for nothing to be measured on samples."""
        changes = {
            "scope=uniform": self.scope == "global" and self.ratio is None,
            "criterion=l2": self.criterion in ("obs", *MEASURED),
            "repair=none": self.repair != "none",
        }
        return " ".join(words for words, needed in changes.items() if needed)

    def run(self, model: Model, context: Context) -> PassResult:
        """Cut and repair `model`."""
        check_finite(model)
        log = PassLog()
        left_alone = {
            node.name: "it is excluded" for node in model.graph.nodes if context.is_excluded(model, node.name)
        }
        original = model.clone()
        chooser = Chooser(
            self._budget(context),
            self.scope,
            self.criterion,
            Limits(self.align, self.min_channels, self.max_ratio),
            self.iterations,
            self.layers,
        )
        quick = partial(self._quick_repair, left_alone)
        scene, plan = choose(chooser, original, left_alone, context, log, quick)
        self._tell_budget(chooser.budget, scene, plan, log)
        if plan.empty:
            return log.result(model)
        model, told = self._carried_out(scene, left_alone, plan)
        for name in plan.keep if self.criterion == "obs" else ():
            if reason := unmeasured(original, scene.groups[name]):
                log.note(f"{name}: {reason}; norms of filters chose its channels")
        _tell_cut(scene, plan, log)
        if self.latency is None and self.align == 1:
            _tell_slow(plan, log)
        log.skips.extend(told.skips)
        log.notes.extend(told.notes)
        return log.result(model)

    def _carried_out(self, scene: Scene, left_alone: Mapping[str, str], plan: Plan) -> tuple[Model, PassLog]:
        """Return the scene's model cut and repaired as planned, and what is to be told about the repair."""
        cut, told = scene.model.clone(), PassLog()
        plan.cut(cut, scene.groups)
        recovery = Recovery(self.repair, self.joint, self.sweeps, self.match_variance)
        return recover(recovery, scene.model, cut, scene, plan, left_alone, told), told

    def _budget(self, context: Context) -> Budget:
        if self.ratio is not None:
            return Budget("ratio", self.ratio, 1.0, lambda scene: lambda keep: 1.0)
        if self.latency is not None:
            measure = partial(measured_ratio, context.original, context=context)
            return Budget("latency", self.latency, 1.0, partial(_latency_price, context), measure)
        what: Literal["macs", "params"] = "macs" if self.macs is not None else "params"
        share = self.macs if self.macs is not None else self.params
        assert share is not None
        refitted = self.repair != "none"
        return Budget(
            what,
            share,
            pipeline_cost(context, what),
            lambda scene: count_price(scene, what, refitted=refitted),
        )

    def _quick_repair(self, left_alone: Mapping[str, str], scene: Scene, plan: Plan) -> Model:
        """Return the network cut as planned so far, refitted without refinement: what the next round measures."""
        cut = scene.model.clone()
        plan.cut(cut, scene.groups)
        recovery = Recovery("none" if self.repair == "none" else "sequential", rounds=0)
        return recover(recovery, scene.model, cut, scene, plan, left_alone, PassLog())

    def _tell_budget(self, budget: Budget, scene: Scene, plan: Plan, log: PassLog) -> None:
        """Say whether the budget is met, and where it is undercut or missed, why."""
        if budget.what == "ratio":
            return
        price = budget.price_of(scene)
        if plan.empty and price({}) <= budget.target:
            log.note(f"the budget {budget.what}={budget.share:g} is met without cutting")
            return
        achieved = price(plan.priced(scene.groups)) if plan.measured is None else plan.measured
        # Channels that an earlier round untied may cost more together than each round counted.
        if not plan.reached or achieved > budget.target:
            limited = [f"{o.name}={getattr(self, o.field):g}" for o in self.options() if o.field in _LIMITS]
            reasons = dict.fromkeys(f"{g.name}: {g.blocked}" for g in scene.groups if g.blocked)
            log.shortfall = (
                f"{budget.what}={budget.share:g} cannot be reached; {achieved / budget.whole:.4f} is the least with "
                + ", ".join(limited)
                + (f"; blocked are {'; '.join(list(reasons)[:5])}" if reasons else "")
            )
        elif not fits_exactly(achieved, budget.target, budget.whole):
            log.note(
                f"{budget.what} {'falls' if budget.what == 'latency' else 'fall'} to {achieved / budget.whole:.4f}, more than asked for: "
                f"align={self.align}, min-channels={self.min_channels} or the size of channel blocks allow nothing between"
            )


def _latency_price(context: Context, scene: Scene) -> Price:
    timed = LatencyPrice(scene.model, scene.groups, scene.shapes, context)
    return lambda keep: timed.of(keep) / timed.whole


def _tell_slow(plan: Plan, log: PassLog) -> None:
    """Say where numbers of channels are left that runtimes compute in a slower way."""
    slow = sum(mask.sum() > SLOW_FROM and mask.sum() % 4 != 0 for mask in plan.keep.values())
    if slow:
        log.note(
            f"{slow} of {len(plan.keep)} groups keep a number of channels that is no multiple of 4, which onnxruntime "
            "computes in a slower way; align=8 or latency=... may be faster for the same MACs"
        )


def _tell_cut(scene: Scene, plan: Plan, log: PassLog) -> None:
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
