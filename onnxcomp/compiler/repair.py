"""The one walk that repairs: refitting weights in topological order, from the compressed network's own inputs.

Two frontiers advance over the calibration samples, the original network's and the compressed one's. At each site (a
linear node that a pass wants to change) the walk hands the pass the moments of the compressed input x and of the wanted
output y, and installs what comes back; everything after that site sees the new weights. Where the output goes into a
residual addition, y is corrected by what the other branch has already lost, so that the sum is matched and not the
branch (He 2017, "Channel pruning for accelerating very deep neural networks", section 3.3).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxcomp.analysis.linear import Linear, LinearNode, linear_node
from onnxcomp.compiler.gathering import (
    POSITIONS,
    Columns,
    Gathered,
    Sampled,
    collect_moments,
    forgiven,
    sample,
    sample_positions,
)
from onnxcomp.compiler.joint import Batch, Pair, Weights, refine
from onnxcomp.compiler.passbase import Context
from onnxcomp.compiler.visiting import visiting_order
from onnxcomp.ir.graph import Constant, Node, Value, Variable
from onnxcomp.ir.model import Model
from onnxcomp.numerics.moments import Moments, ridge
from onnxcomp.runtime.capture import Frontier, Spool, batch_size

__all__ = [
    "Site",
    "Solution",
    "Visit",
    "collect_moments",
    "refit",
    "ridge_strength",
    "sample_positions",
    "too_wide",
    "walk",
]

Array = NDArray[Any]
Array64 = NDArray[np.float64]
Rows = NDArray[np.int64]

RIDGE = 1e-3
"""Ridge strength of a refit in one shot, as a share of the mean variance of a layer's inputs."""

RIDGE_FLOOR = 1e-4
"""The least ridge strength: covariances of dead channels are singular."""

WIDEST = 4700
"""Wider inputs are not refitted, and are selected by their channels alone: memory grows with the square (4608: 170 MB)."""

ROUNDING = 1e-12
"""Share of an output's square below which its variance is that of rounding."""

ROUNDS = 3
"""Solves after the first at a node that an activation follows: the gain of a fourth was within noise."""


@dataclass(frozen=True)
class Site:
    """A node to visit: its name (the same in both networks) and which of the original's output channels it still makes."""

    name: str
    rows: Rows


@dataclass(frozen=True)
class Visit:
    """What the walk hands a solver: the compressed network's node and the moments of its input and wanted output."""

    site: Site
    node: Linear
    moments: Moments
    independent: float


@dataclass(frozen=True)
class Solution:
    """New weights `[g, o, d]` of a visited node, and its bias `[o]` or None where it has none."""

    matrix: Array64
    bias: Array64 | None


Solver: TypeAlias = Callable[[Visit], Solution | None]
"""Makes the weights of a visited node, or None to leave them."""


_NO_CHAINS: Mapping[str, Linear] = {}


def refit(visit: Visit) -> Solution:
    """Return the weights that best make the wanted outputs from the inputs there now: centred ridge regression.

    The ridge leans towards the weights as they are, the more so the fewer independent samples there are per input.
    """
    node, moments = visit.node, visit.moments
    prior = node.matrix()
    strength = ridge_strength(visit)
    if not node.has_bias:
        H, G = moments.second()
        return Solution(ridge(H, G, prior, strength), None)
    matrix = ridge(moments.covariance(), moments.cross(), prior, strength)
    bias = moments.mean_y - np.einsum("god,gd->go", matrix, moments.mean_x)
    return Solution(matrix, bias.reshape(-1))


def ridge_strength(visit: Visit) -> float:
    """Return the ridge strength: inputs per independent sample, within bounds."""
    return min(1.0, max(RIDGE_FLOOR, int(visit.moments.sum_x.shape[1]) / visit.independent))


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
            other = _other_branch(
                place.node, teacher or original, new, {s.name for s in sites[step:]}, shapes
            )
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
                errors.append((site, _missed(moments, solution, place.has_bias)))
        context.progress(what, len(sites), len(sites))
    return errors


def _frontier(model: Model, spool: Spool, size: int, context: Context) -> Frontier:
    assert context.calibration is not None, "the driver's preflight supplies calibration samples"
    count = spool.fill(context.calibration, size)
    return Frontier(model, spool, count, threads=context.threads, custom_op_libs=context.custom_op_libs)


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
    bounds = _activation_bounds(node.node, new.model, stop.other) or (-np.inf, np.inf)
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
    bounds = _activation_bounds(node.node, new.model, stop.other) if node.has_bias and rounds else None
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


def _activation_bounds(node: Node, model: Model, other: str | None) -> tuple[float, float] | None:
    """Return the bounds of the Relu or Clip that alone reads `node`'s output (after its residual addition), or None."""
    reader = _reader(model, node.output)
    if reader is not None and reader.is_op("Add") and other:
        reader = _reader(model, reader.output)
    if reader is None:
        return None
    if reader.is_op("Relu"):
        return 0.0, np.inf
    if reader.is_op("Clip") and all(
        reader.input(i) is None or reader.constant(i) is not None for i in (1, 2)
    ):
        low, high = reader.constant(1), reader.constant(2)
        # Bounds are scalars by the standard, and arrays of one element in files that runtimes accept all the same.
        return (-np.inf if low is None else low.item()), (np.inf if high is None else high.item())
    return None


def _reader(model: Model, value: Variable) -> Node | None:
    """Return the only reader of `value`, looking through a pair of QuantizeLinear and DequantizeLinear."""
    return model.graph.sole_use(_past_pair(model, value))


def _past_pair(model: Model, value: Variable) -> Variable:
    """Return what a pair of QuantizeLinear and DequantizeLinear makes of `value`, or `value` where there is none."""
    graph = model.graph
    for op in ("QuantizeLinear", "DequantizeLinear"):
        reader = graph.sole_use(value)
        if reader is None or not reader.is_op(op) or reader.inputs[0] is not value:
            return value
        value = reader.output
    return value


def too_wide(node: LinearNode) -> str | None:
    """Return why `node` cannot be refitted, or None: its covariance has the square of its inputs' width."""
    width = node.matrix().shape[2]
    return f"its {width} inputs are more than the {WIDEST} that can be refitted" if width > WIDEST else None


def _missed(moments: Moments, solution: Solution, centred: bool) -> float:
    """Return the share of the wanted output's variance that `solution` does not explain."""
    H, G = (moments.covariance(), moments.cross()) if centred else moments.second()
    W = solution.matrix
    variance = float((moments.variance_y() if centred else moments.second_y()).sum())
    explained = 2 * float(np.einsum("god,god->", W, G)) - float(
        np.einsum("god,gde,goe->", W, H, W, optimize=True)
    )
    # What never varies but by rounding has nothing to miss.
    varies = variance > ROUNDING * float(moments.second_y().sum())
    return max(0.0, 1.0 - explained / variance) if varies else 0.0


@dataclass(frozen=True)
class PairLink:
    """A producer, the bounds of the activation between it and its only reader, and the nodes up to there."""

    producer: LinearNode
    bounds: tuple[float, float]
    between: tuple[Node, ...]


def find_pairs(model: Model, names: Sequence[str]) -> dict[str, PairLink]:
    """Return, by the reader's name, the convolutions among `names` that one other of them alone reads.

    Between them stands one Relu or Clip. In a chain every node is reader of one pair and producer of the next.
    """
    found: dict[str, PairLink] = {}
    nodes = {node.name: node for node in model.graph.nodes}
    wanted = set(names)
    for name in names:
        producer = linear_node(nodes[name])
        activation = model.graph.sole_use(nodes[name].output)
        if producer is None or producer.layout != "conv" or activation is None:
            continue
        bounds = _activation_bounds(nodes[name], model, None)
        reader = model.graph.sole_use(activation.output) if bounds is not None else None
        if bounds is None or reader is None or reader.name not in wanted or not reader.is_op("Conv"):
            continue
        if reader.inputs[0] is activation.output and linear_node(reader) is not None:
            found[reader.name] = PairLink(producer, bounds, (nodes[name], activation))
    return found


def _other_branch(
    node: Node,
    original: Model,
    new: Frontier,
    unvisited: Collection[str],
    shapes: Mapping[str, tuple[int, ...]],
) -> str | None:
    """Return the value that `node`'s output is added to, where the compressed network can already compute it.

    A value of another shape, which the addition would broadcast, is no branch of a residual block and is left alone.
    """
    adder = _reader(new.model, node.output)
    if adder is None or not adder.is_op("Add"):
        return None
    mine = _past_pair(new.model, node.output)
    others: list[Value] = [v for v in adder.inputs if v is not mine]
    if len(others) != 1 or isinstance(others[0], Constant) or others[0].name not in original.graph.values():
        return None
    other = others[0].name
    if shapes.get(other) is None or shapes.get(other) != shapes.get(mine.name):
        return None
    return None if any(n.name in unvisited for n in new.pending([other])) else other
