"""The one walk that repairs: refitting weights in topological order, from the compressed network's own inputs.

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

__all__ = ["collect_moments", "sample_positions", "walk"]


ROUNDS = 3
"""Solves after the first at a node that an activation follows: the gain of a fourth was within noise."""


_NO_CHAINS: Mapping[str, Linear] = {}


def walk(
    original: Model,
    compressed: Model,
    sites: Sequence[Site],
    solve: Solver,
    context: Context,
    shapes: Mapping[str, tuple[int, ...]],
    what: str,
    *,
    joint: int = 0,
    rounds: int = ROUNDS,
    anew: bool = True,
    positions: int = POSITIONS,
    branches: Callable[[str], bool] = lambda name: True,
    chains: Mapping[str, Linear] = _NO_CHAINS,
    teacher: Model | None = None,
) -> list[tuple[Site, float]]:
    """Visit `sites` in the compressed network's order, install the solutions, and return each site's relative error.

    `compressed` is edited in place. The error of a site is the share of the wanted output's variance that the new weights
    miss, on the calibration samples. `shapes` are the original's, for one sample. `what` names the work for progress. With
    `joint`, a convolution and its only reader that are both sites are refined together after the reader has been solved,
    by at most that many steps; without `anew` from the weights that earlier ones left. `rounds` sharpen what an activation
    follows. `positions` are looked at of each sample at most. Targets are corrected by what other branches lost where
    `branches` says so of the value that a branch adds. `chains` are what stands in for the nodes of these names, where that
    is more than a node. `teacher` has the values to work towards, where `original` is itself not what was wanted.
    """
    nodes = {node.name: node for node in compressed.graph.nodes}
    by_name = {site.name: site for site in sites}
    sites = [by_name[name] for name in visiting_order(compressed, by_name)]
    before = {node.name: node for node in original.graph.nodes}
    size = batch_size(
        shapes, [v.name for s in sites for v in (*before[s.name].inputs[:1], before[s.name].output)]
    )
    errors = []
    with Spool() as first, Spool() as second:
        old = _frontier(teacher or original, first, size, context)
        new = _frontier(compressed, second, size, context)
        pairs = find_pairs(compressed, [s.name for s in sites if s.name not in chains]) if joint else {}
        seen: dict[str, Moments] = {}
        producers = {each.producer.node.name for each in pairs.values()}
        for each in pairs.values():
            new.hold(each.producer.input)
        for step, site in enumerate(sites):
            context.progress(what, step, len(sites))
            place = chains.get(site.name) or linear_node(nodes[site.name])
            assert place is not None, site.name
            other = other_branch(place.node, teacher or original, new, {s.name for s in sites[step:]}, shapes)
            other = other if other is not None and branches(other) else None
            stop = _Stop(site, place, before[site.name].output.name, other, context.seed, positions)
            link = pairs.get(site.name)
            # What a refinement changes again need not be sharpened.
            again = not anew and (link is not None or site.name in producers)
            solver, sharpen = (_leave, 0) if again else (solve, rounds if link is None else 0)
            moments, solution = _visit(stop, old, new, solver, sharpen, context.threads)
            if link is not None and (solution is not None or again):
                inputs = (seen.pop(link.producer.node.name), moments)
                _refine_pair(stop, link, inputs, old, new, joint, context.threads)
                moments, solution = _visit(stop, old, new, solve, rounds, context.threads)
            if link is not None:
                new.release(link.producer.input)
            if site.name in producers:
                seen[site.name] = moments
            if solution is not None:
                errors.append((site, missed_share(moments, solution, place.has_bias)))
        context.progress(what, len(sites), len(sites))
    return errors


def _frontier(model: Model, spool: Spool, size: int, context: Context) -> Frontier:
    count = spool.fill(context.samples, size)
    return Frontier(model, spool, count, **context.runtime)


def _leave(visit: Visit) -> None:
    """Leave the weights as they are; the walk has gathered the moments all the same."""


@dataclass(frozen=True)
class _Stop:
    """One stop of the walk: how to get the columns of input, wanted output and what is added to it, batch by batch.

    `wanted` is the output's name in the original network: in the other one a pair of QuantizeLinear and DequantizeLinear
    behind the node bears it.
    """

    site: Site
    node: Linear
    wanted: str
    other: str | None
    seed: int
    positions: int

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


def _visit(
    stop: _Stop, old: Frontier, new: Frontier, solve: Solver, rounds: int, threads: int
) -> tuple[Moments, Solution | None]:
    """Solve at `stop` and install what comes back."""
    moments, solution = _solve_at(stop, old, new, solve, rounds, threads)
    if solution is not None:
        stop.node.install(new.model, solution.matrix, solution.bias, "refit")
    return moments, solution


def _refine_pair(
    stop: _Stop,
    link: PairLink,
    moments: tuple[Moments, Moments],
    old: Frontier,
    new: Frontier,
    steps: int,
    threads: int,
) -> None:
    """Refine the reader at `stop` together with its producer, and make what lies between them run again."""
    node = stop.node
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
    found = refine(pair, start, moments, batches, steps, stop.rng, threads)
    for linear, weight, bias in ((link.producer, found.w1, found.b1), (node, found.w2, found.b2)):
        linear.install(new.model, weight.reshape(linear.group, -1, weight[0].size), bias, "refit")
    new.rewind(link.between)


def _stored(node: Node, index: int) -> Array:
    array = node.constant(index)
    assert array is not None, f"{node.name} has been solved and has weight and bias"
    return _float32(array)


def _float32(array: Array) -> Array:
    return np.asarray(array, np.float32)


def _solve_at(
    stop: _Stop, old: Frontier, new: Frontier, solve: Solver, rounds: int, threads: int
) -> tuple[Moments, Solution | None]:
    """Advance both frontiers to `stop`, solve, and sharpen the solution where an activation follows."""
    node = stop.node
    wanted_old = [stop.wanted, *([stop.other] if stop.other else [])]
    wanted_new = [node.input, *([stop.other] if stop.other else [])]
    bounds = activation_bounds(node.node, new.model, stop.other) if node.has_bias and rounds else None
    seen = Gathered(stop.columns, threads, keep=bounds is not None)
    values = zip(old.advance(wanted_old), new.advance(wanted_new), strict=True)
    sampled = sample(values, node, stop.rng(), stop.positions)
    moments, independent = seen.first(sampled)
    solution = solve(Visit(stop.site, node, moments, independent))
    if bounds is None:
        return moments, solution
    for _ in range(rounds):
        if solution is None:
            break
        rest = zip(old.again(wanted_old, seen.held), new.again(wanted_new, seen.held), strict=True)
        again = seen.retargeted(moments, rest, partial(_forgiven, solution=solution, bounds=bounds))
        solution = solve(Visit(stop.site, node, again, independent))
    return moments, solution


def _forgiven(columns: Columns, solution: Solution, bounds: tuple[float, float]) -> Array:
    assert solution.bias is not None, "only nodes with a bias are sharpened"
    return forgiven(columns, solution.matrix, solution.bias, bounds)
