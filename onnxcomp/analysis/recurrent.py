"""LSTM, GRU and RNN: hidden units are channels that the node's own recurrence weight consumes too.

A hidden unit goes with its rows in all gates of the weights, its columns of the recurrence weight, its biases, peepholes
and initial states; the layer before loses columns of the input weight. Both directions share their tensors, so that they
lose the same units. A state that the graph feeds or gives out holds its units.
"""

from __future__ import annotations

import numpy as np

from onnxcomp.analysis.flow import Blocked, Flow, Rule
from onnxcomp.analysis.labels import Ids, Labels
from onnxcomp.ir.graph import Constant, Node
from onnxcomp.ir.ops import RECURRENT

__all__ = ["RECURRENCES"]

_W, _R, _B, _P = 1, 2, 3, 7
_STATES = (5, 6)


def _recurrent(flow: Flow, node: Node) -> list[Labels]:
    weights = [_stored(node, index) for index in (_W, _R, _B, _P) if node.input(index) is not None]
    recurrence = _stored(node, _R)
    hidden = recurrence.values.shape[2]
    if int(node.attrs.get("hidden_size") or hidden) != hidden or recurrence.values.shape[1] % hidden:
        raise Blocked(f"{node.op} {node.name!r} has a hidden size that is not that of its weights")
    read = flow.labels(node.inputs[0]).along(2)
    if read is None:
        raise Blocked(f"{node.op} {node.name!r} reads channels that lie along another axis")
    made = [flow.shape(node, i) if v.name else () for i, v in enumerate(node.outputs)]
    flow.map.use_axis(node, weights[0], 2, read, "consumes")
    # Gates are stacked along axis 1 of the weights, so that every unit has a row in each of them.
    gates = recurrence.values.shape[1] // hidden
    rows = flow.map.use_axis(node, recurrence, 1, None, "produces")
    ids = rows[:hidden]
    flow.map.tie(rows.reshape(gates, hidden), ids)
    flow.map.use_axis(node, recurrence, 2, ids, "consumes")
    flow.map.use_axis(node, weights[0], 1, np.tile(ids, gates), "produces")
    for tensor in weights[2:]:
        flow.map.use_axis(node, tensor, 1, np.tile(ids, tensor.values.shape[1] // hidden), "follows")
    for index in _STATES:
        _start(flow, node, index, ids)
    flow.map.rederive.append((node, "hidden"))
    return [
        flow.map.fresh_along(shape, len(shape) - 1, ids) if shape else flow.map.uniform((), None)
        for shape in made
    ]


def _start(flow: Flow, node: Node, index: int, ids: Ids) -> None:
    """Tie an initial state, along its last axis, to the hidden units."""
    value = node.input(index)
    if value is None:
        return
    if isinstance(value, Constant):
        flow.map.use_axis(node, value, value.values.ndim - 1, ids, "follows")
        return
    if any(value is fed for fed in flow.graph.inputs):
        flow.map.block(ids, f"the graph input {value.name!r} is a state of {node.op} {node.name!r}")
        return
    state = flow.labels(value)
    flow.map.tie(ids, state.ids.reshape(-1, state.ids.shape[-1]))


def _stored(node: Node, index: int) -> Constant:
    value = node.input(index)
    if not isinstance(value, Constant):
        raise Blocked(f"{node.op} {node.name!r} has a computed weight")
    return value


RECURRENCES: dict[str, Rule] = dict.fromkeys(sorted(RECURRENT), _recurrent)
"""The rules by operator."""
