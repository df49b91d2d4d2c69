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
from numpy.typing import NDArray

from onnxcomp.analysis.linear import LinearNode
from onnxcomp.ir.graph import Graph, Node, Value, Variable
from onnxcomp.ir.model import Model
from onnxcomp.numerics.moments import Moments, ridge
from onnxcomp.runtime.session import Session

__all__ = ["Batch", "Pair", "Weights", "refine"]

Array = NDArray[Any]
Array64 = NDArray[np.float64]

DAMPING = 1e-2
"""Ridge strength of the preconditioners, as a share of their mean diagonal."""


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
    batches: Callable[[], Iterator[Batch]],
    steps: int,
    rng: Callable[[], np.random.Generator],
    threads: int,
) -> Weights:
    """Return weights with a smaller squared error than `start`, after at most `steps` steps.

    `moments` are the input moments of producer and reader; `batches` yields all batches anew at each call. A step that
    does not lower the error is taken back and ends the refinement.
    """
    graphs = _Graphs(pair, start, threads)
    best, error = start, np.inf
    current, last = start, _zeros(start)
    for step in range(steps + 1):
        found, gradient = _gradient(pair, current, graphs, batches(), rng())
        if found >= error:
            return best
        best, error = current, found
        if step == steps:
            return best
        direction = _precondition(pair, current, gradient, moments)
        one, two, again = _lengths(graphs, current, direction, last, batches())
        last = _zeros(start).plus(direction, one, two).plus(last, again, again)
        current = current.plus(last, 1.0, 1.0)
    return best


def _zeros(like: Weights) -> Weights:
    return Weights(*(np.zeros_like(a) for a in (like.w1, like.b1, like.w2, like.b2)))


def _gradient(
    pair: Pair,
    weights: Weights,
    graphs: _Graphs,
    batches: Iterator[Batch],
    rng: np.random.Generator,
) -> tuple[float, tuple[_Signal, _Signal]]:
    """Return the squared error, and for each node how its input varies with the error signal at its output."""
    signals = (_Signal(), _Signal())
    error = 0.0
    for batch in batches:
        back, residual, hidden = graphs.gradient(weights, batch)
        error += float(np.vdot(residual, residual))
        for node, x, y, signal in (
            (pair.producer, batch.x, back, signals[0]),
            (pair.reader, hidden, residual, signals[1]),
        ):
            chosen = _sample(node.positions(x), rng)
            signal.add(node.columns_in(x, chosen), node.columns_out(y, chosen))
    return error, signals


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
        self.sum_x: Array64 = np.zeros(1)
        self.sum_y: Array64 = np.zeros(1)
        self.sum_yx: Array64 = np.zeros(1)

    def add(self, x: Array, y: Array) -> None:
        """Add columns `x` `[g, d, n]` and `y` `[g, o, n]`."""
        self.count += x.shape[2]
        self.sum_x = self.sum_x + x.sum(2, dtype=np.float64)
        self.sum_y = self.sum_y + y.sum(2, dtype=np.float64)
        self.sum_yx = self.sum_yx + y @ x.transpose(0, 2, 1)


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
    """Return the lengths of (W1 part, W2 part, last step) that minimise the linearised error, on every other batch."""
    A, b = np.zeros((3, 3)), np.zeros(3)
    for number, batch in enumerate(batches):
        if number % 2:
            continue
        moves, residual = graphs.moves(weights, direction, last, batch)
        flat = np.stack([m.reshape(-1) for m in moves])
        A += flat @ flat.T
        b += flat @ residual.reshape(-1)
    A[np.diag_indices(3)] += 1e-9 * max(float(A.max()), 1e-30)
    one, two, again = np.linalg.solve(A, b)
    return float(one), float(two), float(again)


class _Graphs:
    """The pair as two onnxruntime graphs: error signals at both outputs, and the linearised effect of directions."""

    def __init__(self, pair: Pair, weights: Weights, threads: int) -> None:
        self._pair, self._like, self._threads = pair, weights, threads
        # The adjoint of a strided reader depends on the size of its input, which samples may differ in.
        self._gradients: dict[tuple[int, ...], Session] = {}
        self._moves = Session(_Builder(pair, weights).moves_model(), threads=threads)

    def gradient(self, weights: Weights, batch: Batch) -> tuple[Array, Array, Array]:
        """Return the error signal before the activation, the residual at the output, and the hidden values."""
        spatial = batch.x.shape[2:]
        if spatial not in self._gradients:
            model = _Builder(self._pair, self._like).gradient_model(spatial)
            self._gradients[spatial] = Session(model, threads=self._threads)
        found = self._gradients[spatial].run({**weights.feeds(""), **_feeds(batch)})
        return found["back"], found["residual"], found["hidden"]

    def moves(
        self, weights: Weights, direction: Weights, last: Weights, batch: Batch
    ) -> tuple[list[Array], Array]:
        """Return how the output moves along each direction, where it counts, and the residual."""
        found = self._moves.run(
            {**weights.feeds(""), **direction.feeds("d"), **last.feeds("l"), **_feeds(batch)}
        )
        return [found["one"], found["two"], found["again"]], found["residual"]


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
        back = self._op("ConvTranspose", [residual, w["w2"]], **self._adjoint(spatial))
        self._output(self._op("Mul", [back, active]), "back")
        self._output(residual, "residual")
        self._output(hidden, "hidden")
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

    def _adjoint(self, spatial: tuple[int, ...]) -> dict[str, Any]:
        """Return the attributes of the ConvTranspose that is the adjoint of the reader, for its input's exact size."""
        hidden = self.pair.producer.window(spatial).output_size(spatial)
        window = self.pair.reader.window(hidden)
        missing = [
            (size + sum(pad) - (k - 1) * dilation - 1) % stride
            for size, pad, k, dilation, stride in zip(
                hidden, window.pads, window.kernel, window.dilations, window.strides, strict=True
            )
        ]
        return {
            "group": self.pair.reader.group,
            "strides": list(window.strides),
            "dilations": list(window.dilations),
            "pads": [p[0] for p in window.pads] + [p[1] for p in window.pads],
            "output_padding": missing,
        }

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
