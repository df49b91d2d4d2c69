"""The joint refinement of a convolution and its only reader: the gradient is right, the error falls, bounds hold."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from onnxcomp.analysis.linear import LinearNode, linear_node
from onnxcomp.compiler.repair.neighbourhood import find_pairs
from onnxcomp.compiler.repair.pair_refinement import Batch, Pair, Weights, refine
from onnxcomp.ir import Constant, Graph, Model, Node, Value, Variable
from onnxcomp.ir.graph import Array
from onnxcomp.ir.parse import parse_model
from onnxcomp.numerics.moments import Moments
from onnxcomp.runtime.session import Session

RELU = (0.0, np.inf)
RELU6 = (0.0, 6.0)
FREE = (-np.inf, np.inf)


def conv(rng: np.random.Generator, shape: tuple[int, ...], **attrs: Any) -> LinearNode:
    weight = (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
    bias = (rng.standard_normal(shape[0]) * 0.1).astype(np.float32)
    inputs: list[Value] = [Variable("x"), Constant("w", weight), Constant("b", bias)]
    node = linear_node(Node("Conv", "conv", dict(attrs), inputs, [Variable("y")]))
    assert node is not None
    return node


def weights_of(pair: Pair, noise: float = 0.0, seed: int = 0) -> Weights:
    rng = np.random.default_rng(seed)
    found = []
    for node in (pair.producer, pair.reader):
        for index in (1, 2):
            array = node.node.constant(index)
            assert array is not None
            found.append((array + noise * array.std() * rng.standard_normal(array.shape)).astype(np.float32))
    return Weights(*found)


def clip(values: Array, bounds: tuple[float, float]) -> Array:
    return np.clip(values, *bounds).astype(np.float32)


def run(node: LinearNode, x: Array, weight: Array, bias: Array) -> Array:
    model = Model(Graph("conv"))
    graph = model.graph
    source, out = (
        Variable("x", np.dtype(np.float32), ("n", *x.shape[1:])),
        Variable("y", np.dtype(np.float32)),
    )
    graph.inputs.append(source)
    graph.outputs.append(out)
    inputs: list[Value] = [source, graph.add_constant("w", weight), graph.add_constant("b", bias)]
    graph.nodes.append(Node("Conv", "conv", node.node.attrs, inputs, [out]))
    return Session(model, optimize=False).run({"x": x})["y"]


def output(pair: Pair, weights: Weights, x: Array) -> Array:
    hidden = clip(run(pair.producer, x, weights.w1, weights.b1), pair.inner).astype(np.float32)
    return run(pair.reader, hidden, weights.w2, weights.b2)


def statistics(pair: Pair, weights: Weights, xs: list[Array]) -> tuple[Moments, Moments]:
    first, second = Moments(), Moments()
    for x in xs:
        hidden = clip(run(pair.producer, x, weights.w1, weights.b1), pair.inner).astype(np.float32)
        first.add(pair.producer.columns_in(x, None))
        second.add(pair.reader.columns_in(hidden, None))
    return first, second


def error(pair: Pair, weights: Weights, xs: list[Array], wanted: list[Array]) -> float:
    return sum(
        float(np.square(clip(output(pair, weights, x), pair.outer) - clip(y, pair.outer)).sum())
        for x, y in zip(xs, wanted, strict=True)
    )


CASES: dict[str, Any] = {
    "3x3 then 3x3": (conv, (6, 4, 3, 3), {"pads": [1] * 4}, (5, 6, 3, 3), {"pads": [1] * 4}, RELU, RELU),
    "strided reader": (conv, (6, 4, 3, 3), {"pads": [1] * 4}, (5, 6, 3, 3), {"pads": [1] * 4, "strides": [2, 2]}, RELU, FREE),
    "strided producer, pointwise reader": (conv, (6, 4, 3, 3), {"strides": [2, 2]}, (5, 6, 1, 1), {}, RELU6, FREE),
    "depthwise producer": (conv, (4, 1, 3, 3), {"group": 4, "pads": [1] * 4}, (5, 4, 1, 1), {}, RELU6, FREE),
    "grouped reader": (conv, (6, 4, 1, 1), {}, (4, 3, 3, 3), {"group": 2}, RELU, RELU),
    "same padding": (conv, (6, 4, 3, 3), {"auto_pad": "SAME_UPPER"}, (5, 6, 3, 3), {"auto_pad": "SAME_LOWER", "strides": [2, 2]}, RELU, FREE),
    "dilated": (conv, (6, 4, 3, 3), {"dilations": [2, 2], "pads": [2] * 4}, (5, 6, 3, 3), {"dilations": [2, 2]}, RELU, FREE),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_perturbed_pair_finds_back_towards_the_network_that_made_its_targets(case: str) -> None:
    make, shape1, attrs1, shape2, attrs2, inner, outer = CASES[case]
    rng = np.random.default_rng(1)
    pair = Pair(make(rng, shape1, **attrs1), make(rng, shape2, **attrs2), inner, outer)
    xs = [rng.standard_normal((8, 4, 9, 9)).astype(np.float32) for _ in range(4)]
    wanted = [output(pair, weights_of(pair), x) for x in xs]
    start = weights_of(pair, noise=0.3)

    def batches(every: int) -> Iterator[Batch]:
        for x, y in zip(xs[::every], wanted[::every], strict=True):
            yield Batch(x, y, np.zeros((1, 1, 1, 1), np.float32))

    moments = statistics(pair, start, xs)
    found = refine(pair, start, moments, batches, 8, lambda: np.random.default_rng(0), 1)
    assert error(pair, found, xs, wanted) < 0.1 * error(pair, start, xs, wanted)


def test_no_steps_give_back_the_weights_as_they_were() -> None:
    rng = np.random.default_rng(2)
    pair = Pair(conv(rng, (6, 4, 1, 1)), conv(rng, (5, 6, 1, 1)), RELU, FREE)
    x = rng.standard_normal((4, 4, 5, 5)).astype(np.float32)
    start = weights_of(pair)

    def batches(every: int) -> Iterator[Batch]:
        yield Batch(
            x, rng.standard_normal((4, 5, 5, 5)).astype(np.float32), np.zeros((1, 1, 1, 1), np.float32)
        )

    moments = statistics(pair, start, [x])
    assert refine(pair, start, moments, batches, 0, lambda: np.random.default_rng(0), 1) is start


def test_a_pair_that_is_right_already_stays() -> None:
    rng = np.random.default_rng(3)
    pair = Pair(conv(rng, (6, 4, 1, 1)), conv(rng, (5, 6, 1, 1)), RELU, FREE)
    x = rng.standard_normal((4, 4, 5, 5)).astype(np.float32)
    start = weights_of(pair)
    wanted = output(pair, start, x)

    def batches(every: int) -> Iterator[Batch]:
        yield Batch(x, wanted, np.zeros((1, 1, 1, 1), np.float32))

    moments = statistics(pair, start, [x])
    found = refine(pair, start, moments, batches, 3, lambda: np.random.default_rng(0), 1)
    assert np.abs(found.w1 - start.w1).max() < 1e-3
    assert error(pair, found, [x], [wanted]) <= 1e-6


NET = """<ir_version: 8, opset_import: ["" : 17]> net (float[N,3,6,6] x) => (float[N,4,6,6] y)
<float[8,3,1,1] a, float[4,8,1,1] b, float[1] low, float[1] high> {
  h = Conv(x, a)
  r = Clip(h, low, high)
  y = Conv(r, b)
}"""


def test_a_clip_whose_bounds_are_arrays_of_one_element_joins_a_pair() -> None:
    model = parse_model(NET, {"low": np.zeros(1, np.float32), "high": np.full(1, 6, np.float32)})
    names = [node.name for node in model.graph.nodes if node.op == "Conv"]
    (link,) = find_pairs(model, names).values()
    assert link.bounds == (0.0, 6.0)
    assert [node.op for node in link.between] == ["Conv", "Clip"]


def test_a_hidden_value_that_a_second_node_reads_makes_no_pair() -> None:
    text = NET.replace("y = Conv(r, b)", "z = Conv(r, b)\n  s = ReduceMean <axes = [1]> (r)\n  y = Add(z, s)")
    model = parse_model(text, {"low": np.zeros(1, np.float32), "high": np.full(1, 6, np.float32)})
    assert not find_pairs(model, [node.name for node in model.graph.nodes if node.op == "Conv"])
