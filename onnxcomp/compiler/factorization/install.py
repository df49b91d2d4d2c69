"""Putting chains in the place of nodes, and repairing what follows from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from onnxcomp.compiler.evaluation.hold_out import Fitted, HoldOut
from onnxcomp.compiler.evaluation.outputs import note_few_samples
from onnxcomp.compiler.factorization.candidates import Alternative, Place, with_metrics
from onnxcomp.compiler.factorization.chain import Chain
from onnxcomp.compiler.factorization.solver import FIRST_STEPS, FitChains
from onnxcomp.compiler.passbase import Context, PassLog
from onnxcomp.compiler.repair.mode import RepairMode
from onnxcomp.compiler.repair.sites import replaced_sites, teacher_of
from onnxcomp.compiler.repair.walk import Walk
from onnxcomp.ir.edits import drop_orphans
from onnxcomp.ir.model import Model
from onnxcomp.numerics.arrays import Array, Shapes

__all__ = ["Repair", "carry_out", "install"]

Plan: TypeAlias = Mapping[str, Alternative]


@dataclass(frozen=True)
class Repair:
    """How replaced nodes get their weights: `mode`, how often the network is walked, and what errors of outputs weigh."""

    mode: RepairMode
    sweeps: int
    outputs: Mapping[str, Array]
    left_alone: Callable[[str], str | None]


def install(original: Model, plan: Plan, places: Mapping[str, Place]) -> tuple[Model, dict[str, Chain]]:
    """Return a clone of `original` with chains in the place of the planned nodes, at their starts, and the chains."""
    model = original.clone()
    before = {constant.name for constant in model.graph.constants.values() if not constant.consumers}
    chains = {}
    for name, alternative in plan.items():
        place = places[name]
        blocks = place.start(alternative.form)
        chains[name] = Chain.build(
            model, place.node, alternative.form, alternative.layout, blocks, place.spatial
        )
    drop_orphans(model, before)
    return model, chains


def carry_out(
    original: Model,
    plan: Plan,
    places: Mapping[str, Place],
    repair: Repair,
    context: Context,
    shapes: Shapes,
    log: PassLog,
) -> tuple[Model, dict[str, float]]:
    """Return `original` with the planned nodes replaced and repaired, and the relative error of each place, by name."""
    model, chains = install(original, plan, places)
    start = _Factorized(model, {}, chains)
    fitted = repair.mode.repair(_Replaced(original, start, places, repair, context, shapes, log))
    return fitted.model, fitted.errors


@dataclass(frozen=True)
class _Factorized(Fitted):
    """A model with chains, which hold their factors."""

    chains: Mapping[str, Chain]


@dataclass(frozen=True)
class _Replaced:
    """A network whose nodes have been replaced by chains, `start`, and the ways to repair it."""

    original: Model
    start: _Factorized
    places: Mapping[str, Place]
    how: Repair
    context: Context
    shapes: Shapes
    log: PassLog

    def leave(self) -> _Factorized:
        """Fit every chain once, to the weights alone."""
        self.log.note(
            "no repair: weights were split by singular values alone, blind to what the network does with them; "
            "with calibration samples and repair=sequential far less is lost"
        )
        return self._at_once([[replace(place, metrics=(), means=None) for place in self._wanted()]])

    def refit_once(self) -> _Factorized:
        """Fit every chain once, to the original's values."""
        wanted = self._wanted()
        self.log.note(f"{len(wanted)} nodes fitted once, to the original network's values")
        return self._at_once(with_metrics(self.original, wanted, self.how.outputs, self.context, self.shapes))

    def refit_in_order(self) -> _Factorized:
        """Fit on the walk, with several sweeps each going on from the factors there are, as long as held-back samples gain."""
        sites, refused = replaced_sites(self.original, self.start.chains, self.how.left_alone)
        for name, reason in refused.items():
            self.log.skip(name, f"not refitted: {reason}")
        count = note_few_samples(self.context, self.log)
        names = [site.name for site in sites]
        teacher = teacher_of(self.original, names, self.context, self.shapes)
        fitted_before: set[str] = set()

        def walked(state: _Factorized, context: Context) -> _Factorized:
            weights = {name: self.places[name].weight for name in state.chains}
            solver = FitChains(state.chains, weights, self.how.outputs, fitted_before)
            walk = Walk(self.original, state.model, context, teacher=teacher, chains=state.chains)
            errors = {site.name: error for site, error in walk.visit(sites, solver, "refitting")}
            return _Factorized(state.model, errors, state.chains)

        if self.how.sweeps == 1 or count < 2:
            return walked(self.start, self.context)
        hold_out = HoldOut(teacher, self.context, self.log)
        return hold_out.sweep(
            self.start,
            lambda best: walked(_cloned(best), hold_out.context),
            range(1, self.how.sweeps + 1),
        )

    def _wanted(self) -> list[Place]:
        return [self.places[name] for name in self.start.chains]

    def _at_once(self, waves: Iterable[Sequence[Place]]) -> _Factorized:
        errors = {}
        for wave in waves:
            for place in wave:
                chain = self.start.chains[place.name]
                blocks, errors[place.name] = place.fitted(chain.form, FIRST_STEPS)
                chain.install_factors(self.start.model, blocks, place.shifted_bias(chain.form, blocks))
        return replace(self.start, errors=errors)


def _cloned(state: _Factorized) -> _Factorized:
    model = state.model.clone()
    nodes = {node.name: node for node in model.graph.nodes}
    return _Factorized(model, {}, {name: chain.within(nodes) for name, chain in state.chains.items()})
