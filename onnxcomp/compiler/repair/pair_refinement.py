"""Refining a producer and its only reader together, where least squares of one at a time leaves something to gain.

After a cut, the filters that stay can do better than copy their old outputs: they can take over what the removed ones
did, as far as the reader can use it. For `y = W2 act(W1 x + b1) + b2` the squared distance of y to its target is lowered
by a few Gauss-Newton steps on all four tensors: the gradient of each weight is preconditioned by the covariance of its
inputs and, for W1, by `sum over taps of W2^T W2` (the Kronecker form of the curvature; Martens 2015, "Optimizing neural
networks with Kronecker-factored approximate curvature"), and the lengths of the steps, the last one's direction
included, come from a small exact least squares on the linearised output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcomp.analysis.linear import LinearNode
from onnxcomp.ir.graph import Graph, Node, Value, Variable
from onnxcomp.ir.model import Model
from onnxcomp.numerics.arrays import Array, Array64
from onnxcomp.numerics.moments import Moments, ridge
from onnxcomp.runtime.overlap import in_order, share, workers
from onnxcomp.runtime.session import Session

__all__ = ["Batch", "Pair", "Weights", "refine"]

Places = tuple[Array | None, Array | None]

DAMPING = 1e-2
"""Ridge strength of the preconditioners, as a share of their mean diagonal."""

LENGTHS_EVERY = 4
"""The lengths of a step, three numbers, come from each fourth batch: ResNet-20 at half the MACs was as good (86.0 %)."""

KEPT_BYTES = 32 * 2**20
"""Columns of the producer's input kept from one step to the next."""


@dataclass(frozen=True)
class Pair:
    """A producer convolution, the bounds of the activation behind it, and its only reader."""

    producer: LinearNode
    reader: LinearNode
    inner: tuple[float, float]
    outer: tuple[float, float]


@dataclass(frozen=True)
class Batch:
    """Values of one batch: the producer's input, the reader's wanted output, and what is added to that afterwards."""

    x: Array
    wanted: Array
    added: Array


@dataclass(frozen=True)
class Weights:
    """Weights of the pair, or a direction in their space; float32, as the nodes store them."""

    w1: Array
    b1: Array
    w2: Array
    b2: Array

    def plus(self, other: Weights, one: float, two: float) -> Weights:
        """Return the sum with `other`, whose first two tensors are scaled by `one` and last two by `two`."""
        return Weights(
            self.w1 + np.float32(one) * other.w1,
            self.b1 + np.float32(one) * other.b1,
            self.w2 + np.float32(two) * other.w2,
            self.b2 + np.float32(two) * other.b2,
        )

    def feeds(self, prefix: str) -> dict[str, Array]:
        """Return the tensors as feeds of the pair's graphs."""
        return {f"{prefix}{name}": getattr(self, name) for name in ("w1", "b1", "w2", "b2")}


def refine(
    pair: Pair,
    start: Weights,
    moments: tuple[Moments, Moments],
    batches: Callable[[int], Iterator[Batch]],
    steps: int,
    rng: Callable[[], np.random.Generator],
    threads: int,
) -> Weights:
    """Return weights with a smaller squared error than `start`, after at most `steps` steps.

    `moments` are the input moments of producer and reader; `batches(n)` yields each n-th batch anew at each call. A step
    that does not lower the error is reverted and ends the refinement.
    """
    graphs = _Graphs(pair, start, threads)
    slope = _Slope(pair, moments, graphs, rng, workers(threads))
    best, error = start, np.inf
    current, last = start, _zeros(start)
    for step in range(steps + 1):
        # What the last step has come to is judged by its error alone.
        found = slope.measure(current, batches(1)) if step < steps else graphs.error(current, batches(1))
        if found >= error or step == steps:
            return current if found < error else best
        best, error = current, found
        direction = _precondition(pair, current, slope.signals, moments)
        one, two, again = _lengths(graphs, current, direction, last, batches(LENGTHS_EVERY))
        last = _zeros(start).plus(direction, one, two).plus(last, again, again)
        current = current.plus(last, 1.0, 1.0)
    return best


def _zeros(like: Weights) -> Weights:
    return Weights(*(np.zeros_like(a) for a in (like.w1, like.b1, like.w2, like.b2)))


class _Slope:
    """The squared error and, for each node, how its input varies with the error signal at its output.

    The producer's input never changes: its columns are kept from the first pass over the batches, as far as there is room.
    """

    def __init__(
        self,
        pair: Pair,
        moments: tuple[Moments, Moments],
        graphs: _Graphs,
        rng: Callable[[], np.random.Generator],
        count: int,
    ) -> None:
        self._pair, self._moments, self._graphs, self._rng, self._workers = pair, moments, graphs, rng, count
        self._kept: dict[int, Array] = {}
        self._room = KEPT_BYTES
        self.signals = (_Signal(), _Signal())

    def measure(self, weights: Weights, batches: Iterator[Batch]) -> float:
        """Return the squared error over `batches`, and renew `signals`."""
        self.signals = (_Signal(), _Signal())
        error = 0.0

        def work(job: tuple[int, Batch, Places]) -> tuple[int, float, Array, _Signal, _Signal]:
            return job[0], *self._one(weights, *job)

        for number, missed, columns, first, second in in_order(work, self._jobs(batches), self._workers):
            error += missed
            for signal, part in zip(self.signals, (first, second), strict=True):
                signal.merge(part)
            if number not in self._kept and columns.nbytes <= self._room:
                self._kept[number] = columns
                self._room -= columns.nbytes
        return error

    def _jobs(self, batches: Iterator[Batch]) -> Iterator[tuple[int, Batch, Places]]:
        rng, pair = self._rng(), self._pair
        for number, batch in enumerate(batches):
            self._graphs.prepare(batch.x.shape[2:])
            hidden = pair.producer.output_size(batch.x.shape[2:])
            sizes = (hidden, pair.reader.output_size(hidden))
            first, second = (_sample(int(np.prod(size)), rng) for size in sizes)
            yield number, batch, (first, second)

    def _one(
        self, weights: Weights, number: int, batch: Batch, places: Places
    ) -> tuple[float, Array, _Signal, _Signal]:
        pair = self._pair
        back, residual, hidden = self._graphs.gradient(weights, batch)
        columns = self._kept.get(number)
        if columns is None:
            columns = pair.producer.columns_in(batch.x, places[0])
        first = _Signal.of(self._moments[0], columns, pair.producer.columns_out(back, places[0]))
        x, y = pair.reader.columns_in(hidden, places[1]), pair.reader.columns_out(residual, places[1])
        return float(np.vdot(residual, residual)), columns, first, _Signal.of(self._moments[1], x, y)


def _sample(total: int, rng: np.random.Generator, most: int = 128) -> Array | None:
    return None if total <= most else np.sort(rng.choice(total, most, replace=False))


def _precondition(
    pair: Pair, weights: Weights, signals: tuple[_Signal, _Signal], moments: tuple[Moments, Moments]
) -> Weights:
    """Return the direction: error signals regressed on the inputs, and for W1 divided by the reader's own curvature."""
    w1, b1 = _regress(signals[0], moments[0])
    w2, b2 = _regress(signals[1], moments[1])
    curvature = _curvature(pair, weights)
    flat = np.concatenate([w1.reshape(-1, w1.shape[2]), b1[:, None]], 1)
    flat = _divide(curvature, flat)
    first = flat[:, :-1].reshape(weights.w1.shape).astype(np.float32)
    return Weights(
        first,
        flat[:, -1].astype(np.float32),
        w2.reshape(weights.w2.shape).astype(np.float32),
        b2.astype(np.float32),
    )


def _regress(signal: _Signal, inputs: Moments) -> tuple[Array64, Array64]:
    mean_x, mean_y = signal.sum_x / signal.count, signal.sum_y / signal.count
    G = signal.sum_yx / signal.count - mean_y[:, :, None] * mean_x[:, None, :]
    matrix = ridge(inputs.covariance(), G, np.zeros_like(G), DAMPING)
    return matrix, (mean_y - np.einsum("god,gd->go", matrix, mean_x)).reshape(-1)


class _Signal:
    """Sums of inputs x, error signals y, and their products."""

    def __init__(self) -> None:
        self.count = 0
        self.sum_x: Array = np.zeros(1)
        self.sum_y: Array = np.zeros(1)
        self.sum_yx: Array = np.zeros(1)

    @staticmethod
    def of(inputs: Moments, x: Array, y: Array) -> _Signal:
        """Return the sums over columns `x` `[g, d, n]` and `y` `[g, o, n]`; `inputs` are the moments of such x."""
        signal, target = _Signal(), inputs.target_of(x, y)
        signal.count = x.shape[2]
        signal.sum_x, signal.sum_y, signal.sum_yx = x.sum(2), target.sum_y, target.sum_yx
        return signal

    def merge(self, other: _Signal) -> None:
        """Add the sums of another, in float64."""
        self.count += other.count
        self.sum_x = self.sum_x + other.sum_x.astype(np.float64)
        self.sum_y = self.sum_y + other.sum_y.astype(np.float64)
        self.sum_yx = self.sum_yx + other.sum_yx.astype(np.float64)


def _curvature(pair: Pair, weights: Weights) -> Array64:
    """Return `sum over taps of W2^T W2` `[g, c / g, c / g]` of the reader."""
    group = pair.reader.group
    per = weights.w2.shape[1]
    blocks = weights.w2.reshape(group, -1, per, int(np.prod(weights.w2.shape[2:]))).astype(np.float64)
    curvature: Array64 = np.einsum("goct,godt->gcd", blocks, blocks, optimize=True)
    return curvature


def _divide(curvature: Array64, flat: Array64) -> Array64:
    group, per = curvature.shape[:2]
    mean = np.einsum("gcc->", curvature) / (group * per)
    damped = curvature + (DAMPING * mean + 1e-12) * np.eye(per)
    solved: Array64 = np.linalg.solve(damped, flat.reshape(group, per, -1))
    return solved.reshape(flat.shape)


def _lengths(
    graphs: _Graphs, weights: Weights, direction: Weights, last: Weights, batches: Iterator[Batch]
) -> tuple[float, float, float]:
    """Return the lengths of (W1 part, W2 part, last step) that minimise the linearised error over `batches`."""
    gram = graphs.gram(weights, direction, last, batches)
    A, b = gram[:3, :3].copy(), gram[:3, 3]
    A[np.diag_indices(3)] += 1e-9 * max(float(A.max()), 1e-30)
    one, two, again = np.linalg.solve(A, b)
    return float(one), float(two), float(again)


class _Graphs:
    """The pair as three onnxruntime graphs: the residual, error signals at both outputs, and linearised effects."""

    def __init__(self, pair: Pair, weights: Weights, threads: int) -> None:
        self._pair, self._like = pair, weights
        self._workers, self._threads = workers(threads), share(threads)
        # The adjoint of a strided reader depends on the size of its input, which samples may differ in.
        self._gradients: dict[tuple[int, ...], Session] = {}
        self._residual, self._moves = (
            Session(model, threads=self._threads)
            for model in (
                _Builder(pair, weights).residual_model(),
                _Builder(pair, weights).moves_model(),
            )
        )

    def prepare(self, spatial: tuple[int, ...]) -> None:
        """Make ready for `gradient` of inputs of size `spatial`."""
        if spatial not in self._gradients:
            model = _Builder(self._pair, self._like).gradient_model(spatial)
            self._gradients[spatial] = Session(model, threads=self._threads)

    def gradient(self, weights: Weights, batch: Batch) -> tuple[Array, Array, Array]:
        """Return the error signal before the activation, the residual at the output, and the hidden values."""
        found = self._gradients[batch.x.shape[2:]].run({**weights.feeds(""), **_feeds(batch)})
        return found["back"], found["residual"], found["hidden"]

    def error(self, weights: Weights, batches: Iterator[Batch]) -> float:
        """Return the squared error over `batches`."""

        def work(batch: Batch) -> float:
            residual = self._residual.run({**weights.feeds(""), **_feeds(batch)})["residual"]
            return float(np.vdot(residual, residual))

        return sum(in_order(work, batches, self._workers))

    def gram(self, weights: Weights, direction: Weights, last: Weights, batches: Iterator[Batch]) -> Array64:
        """Return the products `[4, 4]` of the output's moves along W1, W2 and the last step, and of the residual."""

        def work(batch: Batch) -> Array:
            found = self._moves.run(
                {**weights.feeds(""), **direction.feeds("d"), **last.feeds("l"), **_feeds(batch)}
            )
            flat = np.stack([found[name].reshape(-1) for name in ("one", "two", "again", "residual")])
            product: Array = flat @ flat.T
            return product

        gram = np.zeros((4, 4))
        for part in in_order(work, batches, self._workers):
            gram += part
        return gram


def _feeds(batch: Batch) -> dict[str, Array]:
    return {"x": batch.x, "wanted": batch.wanted, "added": batch.added}


class _Builder:
    """Builds the graphs of a pair; weights are inputs, so that one session serves all steps."""

    def __init__(self, pair: Pair, weights: Weights) -> None:
        self.pair = pair
        self.graph = Graph("pair")
        ranks = {"x": weights.w1.ndim, "wanted": weights.w1.ndim, "added": weights.w1.ndim}
        self.fed = {name: self._input(name, ndim) for name, ndim in ranks.items()}
        self.shapes = {
            "w1": weights.w1.shape,
            "b1": weights.b1.shape,
            "w2": weights.w2.shape,
            "b2": weights.b2.shape,
        }

    def gradient_model(self, spatial: tuple[int, ...]) -> Model:
        """Return the graph from weights and values (x of size `spatial`) to `back`, `residual` and `hidden`."""
        w = self._weights("")
        active, hidden, residual, _ = self._forward(w)
        reader, size = self.pair.reader, self.pair.producer.window(spatial).output_size(spatial)
        adjoint = reader.window(size).adjoint(size)
        back = self._op("ConvTranspose", [residual, w["w2"]], group=reader.group, **adjoint)
        self._output(self._op("Mul", [back, active]), "back")
        self._output(residual, "residual")
        self._output(hidden, "hidden")
        return Model(self.graph)

    def residual_model(self) -> Model:
        """Return the graph from weights and values to `residual`."""
        self._output(self._forward(self._weights(""))[2], "residual")
        return Model(self.graph)

    def moves_model(self) -> Model:
        """Return the graph from weights, directions and values to `one`, `two`, `again` and `residual`."""
        w, d, last = self._weights(""), self._weights("d"), self._weights("l")
        active, hidden, residual, counts = self._forward(w)
        x = self.fed["x"]

        def first(step: dict[str, Variable]) -> Variable:
            inner = self._op("Mul", [self._conv(self.pair.producer, x, step["w1"], step["b1"]), active])
            return self._conv(self.pair.reader, inner, w["w2"], None)

        def second(step: dict[str, Variable]) -> Variable:
            return self._conv(self.pair.reader, hidden, step["w2"], step["b2"])

        self._output(self._op("Mul", [first(d), counts]), "one")
        self._output(self._op("Mul", [second(d), counts]), "two")
        both = self._op("Add", [first(last), second(last)])
        self._output(self._op("Mul", [both, counts]), "again")
        self._output(residual, "residual")
        return Model(self.graph)

    def _forward(self, w: dict[str, Variable]) -> tuple[Variable, Variable, Variable, Variable]:
        """Return the mask of active hidden values, the hidden values, the residual, and the mask of outputs that count."""
        z = self._conv(self.pair.producer, self.fed["x"], w["w1"], w["b1"])
        active = self._op("Cast", [self._inside(z, self.pair.inner)], to=1)
        hidden = self._clip(z, self.pair.inner)
        y = self._conv(self.pair.reader, hidden, w["w2"], w["b2"])
        made = self._op("Add", [y, self.fed["added"]])
        goal = self._op("Add", [self.fed["wanted"], self.fed["added"]])
        low, high = self.pair.outer
        forgiven: Variable = goal
        if low > -np.inf:
            beyond = self._op("LessOrEqual", [goal, self._scalar(low)])
            forgiven = self._op("Where", [beyond, self._op("Min", [made, self._scalar(low)]), forgiven])
        if high < np.inf:
            beyond = self._op("GreaterOrEqual", [goal, self._scalar(high)])
            forgiven = self._op("Where", [beyond, self._op("Max", [made, self._scalar(high)]), forgiven])
        residual = self._op("Sub", [forgiven, made])
        missed = self._op("Not", [self._op("Equal", [residual, self._scalar(0.0)])])
        return active, hidden, residual, self._op("Cast", [missed], to=1)

    def _inside(self, value: Variable, bounds: tuple[float, float]) -> Variable:
        above = self._op("Greater", [value, self._scalar(max(bounds[0], -3e38))])
        below = self._op("Less", [value, self._scalar(min(bounds[1], 3e38))])
        return self._op("And", [above, below])

    def _clip(self, value: Variable, bounds: tuple[float, float]) -> Variable:
        return self._op(
            "Clip", [value, self._scalar(max(bounds[0], -3e38)), self._scalar(min(bounds[1], 3e38))]
        )

    def _conv(self, node: LinearNode, x: Value, weight: Value, bias: Value | None) -> Variable:
        attrs = {k: v for k, v in node.node.attrs.items() if k in _CONV_ATTRIBUTES}
        return self._op("Conv", [x, weight, *([bias] if bias is not None else [])], **attrs)

    def _weights(self, prefix: str) -> dict[str, Variable]:
        return {name: self._input(f"{prefix}{name}", len(shape)) for name, shape in self.shapes.items()}

    def _input(self, name: str, ndim: int) -> Variable:
        value = Variable(name, np.dtype(np.float32), tuple(f"{name}.{axis}" for axis in range(ndim)))
        self.graph.inputs.append(value)
        return value

    def _scalar(self, number: float) -> Value:
        return self.graph.add_constant("bound", np.array(number, np.float32))

    def _op(self, op: str, inputs: list[Value], **attrs: Any) -> Variable:
        out = Variable(f"v{len(self.graph.nodes)}")
        self.graph.nodes.append(Node(op, f"n{len(self.graph.nodes)}", attrs, inputs, [out]))
        return out

    def _output(self, value: Variable, name: str) -> None:
        out = Variable(name, np.dtype(np.float32))
        self.graph.nodes.append(Node("Identity", f"n{len(self.graph.nodes)}", {}, [value], [out]))
        self.graph.outputs.append(out)


_CONV_ATTRIBUTES = ("auto_pad", "dilations", "group", "pads", "strides", "kernel_shape")
