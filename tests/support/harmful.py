"""Networks with one layer that integers ruin: a channel a thousand times larger than the others, made good behind it."""

from __future__ import annotations

from functools import cache

import numpy as np

import onnxcomp
from onnxcomp.ir.graph import Array, Node
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from tests.support.pruning import zoo
from tests.support.text import net

__all__ = ["BAD", "READER", "detector", "planted"]

BAD, READER = "/stage2/stage2.0/Conv", "/stage2/stage2.3/Conv"
"""The layer of digits_vgg whose first channel is large, and the one that reads it."""


@cache
def _folded() -> Model:
    return onnxcomp.optimize(zoo("digits_vgg")).model


def planted(factor: float = 1000.0, bad: str = BAD, reader: str = READER) -> Model:
    """Return digits_vgg with the first output channel of `bad` times `factor`, which `reader` divides by it: equal outputs."""
    model = _folded().clone()
    nodes = {node.name: node for node in model.graph.nodes}
    _scale(model, nodes[bad], 1, 0, factor)
    _scale(model, nodes[bad], 2, 0, factor)
    _scale(model, nodes[reader], 1, 1, 1 / factor)
    return model


def _scale(model: Model, node: Node, index: int, axis: int, factor: float) -> None:
    """Multiply the first position of `axis` of a stored tensor by `factor`, in place."""
    old = node.constant(index)
    assert old is not None
    by = np.ones(old.shape[axis], np.float32)
    by[0] = factor
    shape = [1] * old.ndim
    shape[axis] = -1
    values: Array = old * by.reshape(shape)
    model.graph.set_constant(node, index, values.astype(np.float32), "planted")


def detector() -> Model:
    """Return a small network whose tail joins boxes of hundreds and scores below one, as detectors do."""
    return parse_model(
        net(
            "(float[N, 3, 16, 16] x) => (float[N, 6, 16, 16] found)",
            "float[8, 3, 3, 3] a, float[4, 8, 1, 1] b, float[2, 8, 1, 1] c, float[6, 6, 1, 1] d, float hundreds = {640.0}",
            """features = Conv <pads = [1, 1, 1, 1]> (x, a)  active = Relu (features)
            boxes = Conv (active, b)  far = Mul (boxes, hundreds)
            rates = Conv (active, c)  scores = Sigmoid (rates)
            all = Concat <axis = 1> (far, scores)
            found = Conv (all, d)""",
        )
    )
