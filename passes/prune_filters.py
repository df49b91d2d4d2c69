"""Remove channels of convolutions and matrix products, with everything that made, carried and read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from onnxcomp.analysis.channels import ChannelGroup, ChannelGroups, channel_groups
from onnxcomp.analysis.cost import model_cost
from onnxcomp.analysis.cutcost import CutCost
from onnxcomp.analysis.linear import linear_node
from onnxcomp.compiler.budget import Ladder, Limits, at_share, fits_exactly, keep_of, tiers, uniform_keep
from onnxcomp.compiler.damage import biases_to_come, damaged_sites, kept_positions, refit_once
from onnxcomp.compiler.ladders import blank_ladders, obs_ladders, ranked_ladders, unmeasured
from onnxcomp.compiler.passbase import Context, Need, Pass, PassLog, PassResult, in_range, option
from onnxcomp.compiler.repair import RIDGE, collect_moments, refit, walk
from onnxcomp.compiler.scores import MEASURED, SCORED, score_groups
from onnxcomp.errors import UsageError
from onnxcomp.ir.files import check_finite
from onnxcomp.ir.model import Model
from onnxcomp.runtime.observe import observe_shapes

__all__ = ["PruneFilters"]

_LIMITS = ("align", "min_channels", "max_ratio")
"""Options that can keep a budget from being reached."""

_FEW = 64
"""Fewer samples than this are said to be few: with 32 ResNet-20 at half the MACs lost ten points against 512."""

Shapes = Mapping[str, tuple[int, ...]]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class PruneFilters(Pass):
    """Remove the channels that the network misses least, and refit the weights that read or made them.

    Convolution filters, residual streams and neurons of Gemm and MatMul are all candidates. What the cut damages is
    refitted from calibration samples, layer by layer, without labels and without training.
    """

    name = "prune-filters"
    exact = False
    stage = "structure"
    data_free = True

    ratio: float | None = option(None, "share of channels removed from every group, 0 <= ratio < 1")
    macs: float | None = option(None, "share of the multiply-accumulates that may remain, 0 < macs <= 1")
    params: float | None = option(None, "share of the parameters that may remain, 0 < params <= 1")
    scope: Literal["uniform"] = option("uniform", "how shares are chosen: the same share from every group")
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
    repair: Literal["sequential", "one-shot", "none"] = option(
        "sequential",
        "refit layer by layer from the cut network's own values, once from the original's, or not at all",
    )
    joint: int = option(
        4, "steps of refining a producer and its only reader together after they have been refitted; 0 = off"
    )

    def check(self) -> None:
        """Raise UsageError unless exactly one of ratio, macs and params is given and all are in range."""
        given = [name for name in ("ratio", "macs", "params") if getattr(self, name) is not None]
        if len(given) != 1:
            said = f"{' and '.join(given)} are given" if given else "none of them is given"
            raise UsageError(f"{self.name}: give one of ratio, macs and params; {said}")
        in_range(self.name, "ratio", self.ratio, 0, 1, open_high=True)
        for name in ("macs", "params"):
            value = getattr(self, name)
            in_range(self.name, name, value, 0, 1)
            if value == 0:
                raise UsageError(f"{self.name}: {name}=0 leaves nothing; give the share that may remain")
        in_range(self.name, "max-ratio", self.max_ratio, 0, 1)
        for name, number in (("align", self.align), ("min-channels", self.min_channels)):
            if number < 1:
                raise UsageError(f"{self.name}: {name}={number} is out of range; it is at least 1")
        if self.joint < 0:
            raise UsageError(f"{self.name}: joint={self.joint} is out of range; it is at least 0")

    def may_fall_short(self) -> bool:
        """Return whether a budget is given, which the model may turn out not to reach."""
        return self.ratio is None

    def needs(self) -> frozenset[Need]:
        """Return `calibration` where selection or repair measures, and `shapes` always."""
        measures = self.criterion in ("obs", *MEASURED) or self.repair != "none"
        return frozenset({"shapes", "calibration"} if measures else {"shapes"})

    def run(self, model: Model, context: Context) -> PassResult:
        """Cut and repair `model`."""
        check_finite(model)
        log = PassLog()
        feeds = {name: np.zeros(shape, _dtype(model, name)) for name, shape in context.input_shapes.items()}
        shapes = observe_shapes(model, feeds, threads=context.threads, custom_op_libs=context.custom_op_libs)
        left_alone = {
            node.name: "it is excluded" for node in model.graph.nodes if context.is_excluded(model, node.name)
        }
        groups = channel_groups(model, shapes, excluded=left_alone)
        keep = self._choose(model, groups, context, shapes, log)
        for name in keep if self.criterion == "obs" else ():
            if reason := unmeasured(model, groups[name]):
                log.note(f"{name}: {reason}; norms of filters chose its channels")
        if not keep:
            return log.result(model)
        original = model.clone()
        groups.take(model, keep)
        for name, mask in keep.items():
            log.change(
                name,
                f"{groups[name].units} -> {int(mask.sum())} channels",
                before=groups[name].units,
                after=int(mask.sum()),
                producers=list(groups[name].producers),
                consumers=list(groups[name].consumers),
            )
        self._repair(original, model, groups, keep, left_alone, context, shapes, log)
        return log.result(model)

    # --- what goes ----------------------------------------------------------------------------------------------
    def _choose(
        self, model: Model, groups: ChannelGroups, context: Context, shapes: Shapes, log: PassLog
    ) -> dict[str, Mask]:
        """Return the masks of the units to keep, by group; empty where nothing goes."""
        open_groups: list[ChannelGroup] = []
        for group in groups:
            if group.blocked:
                log.skip(group.name, f"{group.units} channels stay: {group.blocked}")
            elif group.units == 1:
                log.skip(group.name, "it has one channel only")
            else:
                open_groups.append(group)
                for reason in sorted({r for r in group.reasons if r}):
                    count = sum(r == reason for r in group.reasons)
                    log.skip(group.name, f"{count} of {group.units} channels stay: {reason}")
        limits = Limits(self.align, self.min_channels, self.max_ratio)
        sizes = {group.name: group.units for group in open_groups}
        blank = {group.name: blank_ladders(group) for group in open_groups}
        if self.ratio is not None:
            depths = {name: [at_share(x, self.ratio, limits) for x in steps] for name, steps in blank.items()}
            ladders = self._ladders(model, groups, open_groups, depths, context, shapes, log)
            return keep_of(sizes, ladders, [len(x.order) for x in ladders])
        return self._choose_for_budget(model, groups, open_groups, blank, limits, context, shapes, log)

    def _choose_for_budget(
        self,
        model: Model,
        groups: ChannelGroups,
        open_groups: Sequence[ChannelGroup],
        blank: Mapping[str, list[Ladder]],
        limits: Limits,
        context: Context,
        shapes: Shapes,
        log: PassLog,
    ) -> dict[str, Mask]:
        """Plan the depths with unordered ladders, order them by the criterion, and plan again with the real order."""
        what: Literal["macs", "params"] = "macs" if self.macs is not None else "params"
        share = self.macs if self.macs is not None else self.params
        assert share is not None
        cutcost = CutCost(model, groups, shapes, [] if self.repair == "none" else biases_to_come(model))
        place = 1 if what == "macs" else 0
        whole = self._whole(context, what)
        target = int(share * whole)
        sizes = {group.name: group.units for group in open_groups}
        if CutCost(model, groups, shapes).count({})[place] <= target:
            log.note(f"the budget {what}={share:g} is met without cutting")
            return {}

        def plan(ladders: Mapping[str, Sequence[Ladder]], fill: bool) -> tuple[dict[str, Mask], bool]:
            inner = [x for g in open_groups if not g.coupled for x in ladders[g.name]]
            streams = [x for g in open_groups if g.coupled for x in ladders[g.name]]
            return uniform_keep(
                sizes, inner, streams, lambda keep: cutcost.count(keep)[place], target, limits, fill=fill
            )

        rough, _ = plan(blank, fill=False)
        depths = {g.name: self._depths(g, rough.get(g.name), limits) for g in open_groups}
        ordered: dict[str, list[Ladder]] = {g.name: [] for g in open_groups}
        for ladder in self._ladders(model, groups, open_groups, depths, context, shapes, log):
            ordered[ladder.group].append(ladder)
        keep, reached = plan(ordered, fill=True)
        achieved = cutcost.count(keep)[place]
        if not reached:
            limited = [f"{o.name}={getattr(self, o.field):g}" for o in self.options() if o.field in _LIMITS]
            said = f"{what}={share:g} cannot be reached; {achieved / whole:.4f} is the least with {', '.join(limited)}"
            log.shortfall = self._shortfall_text(said, groups)
        elif not fits_exactly(achieved, target, whole):
            log.note(
                f"{what} fall to {achieved / whole:.4f}, more than asked for: "
                f"align={self.align}, min-channels={self.min_channels} or the size of channel blocks allow nothing between"
            )
        return keep

    def _depths(self, group: ChannelGroup, rough: Mask | None, limits: Limits) -> list[int]:
        """Return how many units of each tier to order: what the rough plan removes, and one step of slack."""
        if rough is None:
            return [0 for _ in tiers(group)]
        return [int((~rough[units]).sum()) + limits.align for units in tiers(group)]

    def _ladders(
        self,
        model: Model,
        groups: ChannelGroups,
        open_groups: Sequence[ChannelGroup],
        depths: Mapping[str, list[int]],
        context: Context,
        shapes: Shapes,
        log: PassLog,
    ) -> list[Ladder]:
        if self.criterion == "obs":
            return obs_ladders(model, open_groups, depths, context, shapes)
        scored = None
        if self.criterion in SCORED:
            cut = [group for group in open_groups if any(depths[group.name])]
            scored = score_groups(model, groups, cut, self.criterion, context, shapes)
            for note in scored.notes():
                log.note(note)
        return [
            ladder
            for group in open_groups
            for ladder in ranked_ladders(
                model, group, depths[group.name], self.criterion, context.seed, scored
            )
        ]

    def _whole(self, context: Context, what: Literal["macs", "params"]) -> int:
        """Return what the pipeline's input costs: budgets are shares of that."""
        feeds = {n: np.zeros(s, _dtype(context.original, n)) for n, s in context.input_shapes.items()}
        shapes = observe_shapes(
            context.original, feeds, threads=context.threads, custom_op_libs=context.custom_op_libs
        )
        cost = model_cost(context.original, shapes)
        return (cost.macs or 0) if what == "macs" else cost.parameters

    def _shortfall_text(self, text: str, groups: ChannelGroups) -> str:
        reasons = dict.fromkeys(f"{g.name}: {g.blocked}" for g in groups if g.blocked)
        return text + (f"; blocked are {'; '.join(list(reasons)[:5])}" if reasons else "")

    # --- what is refitted ---------------------------------------------------------------------------------------
    def _repair(
        self,
        original: Model,
        model: Model,
        groups: ChannelGroups,
        keep: Mapping[str, Mask],
        left_alone: Mapping[str, str],
        context: Context,
        shapes: Shapes,
        log: PassLog,
    ) -> None:
        if self.repair == "none":
            log.note("no repair: the weights that read removed channels are as they were")
            return
        kept = kept_positions(groups, keep)
        sites, refused = damaged_sites(original, model, kept, left_alone.get)
        for name, reason in refused.items():
            log.skip(name, f"not refitted: {reason}")
        if self.repair == "one-shot":
            before = {node.name: node for node in original.graph.nodes}
            nodes = [n for s in sites if (n := linear_node(before[s.name])) is not None]
            moments = collect_moments(original, nodes, context, shapes, "statistics")
            done = refit_once(original, model, sites, kept, moments, RIDGE)
            log.note(f"{done} nodes refitted once, from the original network's values")
            return
        count = len(context.calibration) if context.calibration is not None else 0
        if count < _FEW:
            log.note(
                f"{count} calibration samples are few: refitted weights lean on what they were, and the errors told here "
                f"are of these samples alone; {_FEW} or more are advised"
            )
        errors = walk(original, model, sites, refit, context, shapes, "refitting", joint=self.joint)
        worst = sorted(errors, key=lambda item: -item[1])[:3]
        told = ", ".join(f"{site.name} {error:.1%}" for site, error in worst)
        log.note(f"{len(errors)} nodes refitted in order; largest relative errors: {told}")


def _dtype(model: Model, name: str) -> np.dtype[np.generic]:
    return next(np.dtype(v.dtype) for v in model.graph.inputs if v.name == name)
