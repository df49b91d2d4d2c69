"""The refitting walk: weights are refitted in topological order, from the compressed network's own inputs.

Two frontiers advance over the calibration samples, the original network's and the compressed one's. At each site (a
linear node that a pass wants to change) the walk hands the pass the moments of the compressed input x and of the wanted
output y, and installs what comes back; everything after that site sees the new weights. Where the output goes into a
residual addition, y is corrected by what the other branch has already lost, so that the sum is matched and not the
branch (He 2017, "Channel pruning for accelerating very deep neural networks", section 3.3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from onnxcomp.analysis.linear import Linear, LinearNode, linear_node
from onnxcomp.compiler.passbase import Context
from onnxcomp.compiler.repair.columns import (
    POSITIONS,
    Columns,
    Gathered,
    Sampled,
    collect_moments,
    forgiven,
    sample,
    sample_positions,
)
from onnxcomp.compiler.repair.neighbourhood import (
    PairLink,
    activation_bounds,
    find_pairs,
    other_branch,
    visiting_order,
)
from onnxcomp.compiler.repair.pair_refinement import Batch, Pair, Weights, refine
from onnxcomp.compiler.repair.refit import Site, Solution, Solver, Visit, missed_share
from onnxcomp.ir.graph import Node
from onnxcomp.ir.model import Model
from onnxcomp.numerics.arrays import Array
from onnxcomp.numerics.moments import Moments
from onnxcomp.runtime.capture import Frontier, Spool, batch_size

__all__ = ["Walk", "WalkSettings", "collect_moments", "sample_positions"]


ROUNDS = 3
"""Solves after the first at a node that an activation follows: the gain of a fourth was within noise."""


@dataclass(frozen=True)
class WalkSettings:
    """How a walk refits.

    Attributes:
        joint: steps of the joint (Gauss-Newton) refinement of a convolution and its only reader, where both are sites,
            after the reader has been solved; 0 for none.
        anew: whether a pair is refined from what least squares gives, or else from the weights that earlier walks left.
        rounds: solves with activation-aware targets after the first, at nodes that an activation follows.
        positions: output positions that are observed of each sample, at most.
        corrects: whether targets are corrected by what another branch lost, by the name of the value that it adds.
    """

    joint: int = 0
    anew: bool = True
    rounds: int = ROUNDS
    positions: int = POSITIONS
    corrects: Callable[[str], bool] = lambda name: True


class Walk:
    """The refitting walk over `compressed`, which is edited in place.

    `original` is the network whose nodes the sites name, before the pass changed it. `teacher` has the values to work
    towards, where `original` is itself not what was wanted. `chains` looks up what stands in for a node, by the node's name,
    where that is more than a node.
    """

    def __init__(
        self,
        original: Model,
        compressed: Model,
        context: Context,
        settings: WalkSettings | None = None,
        *,
        teacher: Model | None = None,
        chains: Mapping[str, Linear] | None = None,
    ) -> None:
        self.compressed, self.context = compressed, context
        self.settings = settings or WalkSettings()
        self.teacher = teacher or original
        self.chains: Mapping[str, Linear] = chains or {}
        self.shapes = context.shapes(original)
        self._original = {node.name: node for node in original.graph.nodes}

    def visit(self, sites: Sequence[Site], solve: Solver, what: str) -> list[tuple[Site, float]]:
        """Visit `sites` in the compressed network's order, install what `solve` returns, and return each site's error.

        The error of a site is the share of the wanted output's variance that the new weights miss, on the calibration
        samples. `what` names the work for progress.
        """
        by_name = {site.name: site for site in sites}
        sites = [by_name[name] for name in visiting_order(self.compressed, by_name)]
        size = self._batch_size(sites)
        errors = []
        with Spool() as first, Spool() as second:
            run = _Run(
                self, self._frontier(self.teacher, first, size), self._frontier(self.compressed, second, size)
            )
            run.expect(sites)
            for step, site in enumerate(sites):
                self.context.progress(what, step, len(sites))
                missed = run.at(run.stop(site, {s.name for s in sites[step:]}), solve)
                if missed is not None:
                    errors.append((site, missed))
            self.context.progress(what, len(sites), len(sites))
        return errors

    def wanted(self, name: str) -> str:
        """Return the value that the node `name` makes in the original."""
        return self._original[name].output.name

    def _batch_size(self, sites: Sequence[Site]) -> int:
        nodes = [self._original[site.name] for site in sites]
        return batch_size(self.shapes, [v.name for n in nodes for v in (*n.inputs[:1], n.output)])

    def _frontier(self, model: Model, spool: Spool, size: int) -> Frontier:
        count = spool.fill(self.context.samples, size)
        return Frontier(model, spool, count, **self.context.runtime)


@dataclass(frozen=True)
class _Stop:
    """One stop of the walk: how to get the columns of input, wanted output and what is added to it, batch by batch.

    `wanted` is the output's name in the original network: in the other one a pair of QuantizeLinear and DequantizeLinear
    behind the node bears it. `other` is the value that a residual addition adds, `link` the pair that the node is the reader
    of.
    """

    site: Site
    node: Linear
    wanted: str
    other: str | None
    link: PairLink | None
    seed: int

    def columns(self, sampled: Sampled) -> Columns:
        """Return the columns of one batch, from the values of both networks."""
        node, chosen = self.node, sampled.positions
        target, other = self.target(sampled.was, sampled.now)
        added: Array = np.zeros((1, 1, 1), np.float32) if other is None else node.columns_out(other, chosen)
        x = _float32(sampled.now[node.input])
        return Columns(node.columns_in(x, chosen), node.columns_out(target, chosen), added)

    def target(self, was: Mapping[str, Array], now: Mapping[str, Array]) -> tuple[Array, Array | None]:
        """Return the wanted output, corrected, and what is added to it afterwards, in float32 whatever the model's type."""
        target = _float32(self.node.pick_out(was[self.wanted], self.site.rows))
        if not self.other:
            return target, None
        added = _float32(now[self.other])
        return target + (_float32(self.node.pick_out(was[self.other], self.site.rows)) - added), added

    def rng(self) -> np.random.Generator:
        """Return the generator of sampled positions, the same at every pass over the batches."""
        return np.random.default_rng([self.seed, *self.site.name.encode()])


class _Run:
    """One run of a walk: both frontiers, the pairs on the way, and the input moments that their refinement still needs."""

    def __init__(self, walk: Walk, old: Frontier, new: Frontier) -> None:
        self.walk, self.old, self.new = walk, old, new
        self.settings, self.threads = walk.settings, walk.context.threads
        self.nodes = {node.name: node for node in walk.compressed.graph.nodes}
        self.pairs: dict[str, PairLink] = {}
        self.producers: set[str] = set()
        self.moments: dict[str, Moments] = {}

    def expect(self, sites: Sequence[Site]) -> None:
        """Find the pairs among `sites`, and have the inputs of their producers kept until the readers are refined."""
        if self.settings.joint:
            single = [site.name for site in sites if site.name not in self.walk.chains]
            self.pairs = find_pairs(self.walk.compressed, single)
        self.producers = {link.producer.node.name for link in self.pairs.values()}
        for link in self.pairs.values():
            self.new.hold(link.producer.input)

    def stop(self, site: Site, unvisited: set[str]) -> _Stop:
        """Return the stop at `site`."""
        walk = self.walk
        node = walk.chains.get(site.name) or linear_node(self.nodes[site.name])
        assert node is not None, site.name
        other = other_branch(node.node, walk.teacher, self.new, unvisited, walk.shapes)
        other = other if other is not None and self.settings.corrects(other) else None
        wanted = walk.wanted(site.name)
        return _Stop(site, node, wanted, other, self.pairs.get(site.name), walk.context.seed)

    def at(self, stop: _Stop, solve: Solver) -> float | None:
        """Solve at `stop`, with its pair where it has one; return the share that is missed, None where `solve` declines."""
        name, link, rounds = stop.site.name, stop.link, self.settings.rounds
        # The weights of pairs that go on from an earlier walk are not solved for again, but refined.
        again = not self.settings.anew and (link is not None or name in self.producers)
        if again:
            moments, solution = self.install(stop, _leave, 0)
        else:
            # What a refinement changes again needs no activation-aware targets.
            moments, solution = self.install(stop, solve, rounds if link is None else 0)
        if link is not None and (solution is not None or again):
            self.refine(stop, link, (self.moments.pop(link.producer.node.name), moments))
            moments, solution = self.install(stop, solve, rounds)
        if link is not None:
            self.new.release(link.producer.input)
        if name in self.producers:
            self.moments[name] = moments
        return None if solution is None else missed_share(moments, solution, stop.node.has_bias)

    def install(self, stop: _Stop, solve: Solver, rounds: int) -> tuple[Moments, Solution | None]:
        """Solve at `stop` and install what comes back; return it with the moments it was solved from."""
        moments, solution = self.solve(stop, solve, rounds)
        if solution is not None:
            stop.node.install(self.new.model, solution.matrix, solution.bias, "refit")
        return moments, solution

    def solve(self, stop: _Stop, solve: Solver, rounds: int) -> tuple[Moments, Solution | None]:
        """Advance both frontiers to `stop` and solve, again with activation-aware targets where an activation follows."""
        node = stop.node
        wanted_old = [stop.wanted, *([stop.other] if stop.other else [])]
        wanted_new = [node.input, *([stop.other] if stop.other else [])]
        bounds = (
            activation_bounds(node.node, self.new.model, stop.other) if node.has_bias and rounds else None
        )
        seen = Gathered(stop.columns, self.threads, keep=bounds is not None)
        values = zip(self.old.advance(wanted_old), self.new.advance(wanted_new), strict=True)
        sampled = sample(values, node, stop.rng(), self.settings.positions)
        moments, independent = seen.first(sampled)
        solution = solve(Visit(stop.site, node, moments, independent))
        if bounds is None:
            return moments, solution
        for _ in range(rounds):
            if solution is None:
                break
            rest = zip(
                self.old.again(wanted_old, seen.held), self.new.again(wanted_new, seen.held), strict=True
            )
            again = seen.retargeted(moments, rest, partial(_forgiven, solution=solution, bounds=bounds))
            solution = solve(Visit(stop.site, node, again, independent))
        return moments, solution

    def refine(self, stop: _Stop, link: PairLink, moments: tuple[Moments, Moments]) -> None:
        """Refine the reader at `stop` together with its producer, and make what lies between them run again.

        `moments` are those of the inputs of producer and reader.
        """
        node, old, new = stop.node, self.old, self.new
        bounds = activation_bounds(node.node, new.model, stop.other) or (-np.inf, np.inf)
        assert isinstance(node, LinearNode), "chains are in no pair"
        pair = Pair(link.producer, node, link.bounds, bounds)
        extra = [stop.other] if stop.other else []

        def batches(every: int) -> Iterator[Batch]:
            for was, now in zip(
                old.again([stop.wanted, *extra], 0, every),
                new.again([link.producer.input, *extra], 0, every),
                strict=True,
            ):
                wanted, added = stop.target(was, now)
                nothing: Array = np.zeros((1,) * wanted.ndim, np.float32)
                yield Batch(_float32(now[link.producer.input]), wanted, nothing if added is None else added)

        start = Weights(*(_stored(n, i) for n in (link.producer.node, node.node) for i in (1, 2)))
        found = refine(pair, start, moments, batches, self.settings.joint, stop.rng, self.threads)
        for linear, weight, bias in ((link.producer, found.w1, found.b1), (node, found.w2, found.b2)):
            linear.install(new.model, weight.reshape(linear.group, -1, weight[0].size), bias, "refit")
        new.rewind(link.between)


def _leave(visit: Visit) -> None:
    """Leave the weights as they are; the walk has gathered the moments all the same."""


def _stored(node: Node, index: int) -> Array:
    array = node.constant(index)
    assert array is not None, f"{node.name} has been solved and has weight and bias"
    return _float32(array)


def _float32(array: Array) -> Array:
    return np.asarray(array, np.float32)


def _forgiven(columns: Columns, solution: Solution, bounds: tuple[float, float]) -> Array:
    assert solution.bias is not None, "only nodes with a bias have activation-aware targets"
    return forgiven(columns, solution.matrix, solution.bias, bounds)
