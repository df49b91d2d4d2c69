"""Convolutions, transposed or not: dense, depthwise, and in groups, whose blocks must lose equally many channels."""

from __future__ import annotations

import numpy as np

from onnxcomp.analysis.flow import Flow
from onnxcomp.analysis.labels import Ids, Labels
from onnxcomp.ir.graph import Node

__all__ = ["conv", "conv_transpose"]


def conv(flow: Flow, node: Node) -> list[Labels]:
    """Return the labels of a Conv, weight `[Cout, Cin / g, ...]`."""
    weight = flow.weight(node, 1)
    ids = flow.channels(node, 1)
    group = int(node.attrs.get("group", 1))
    filters, per_group = weight.shape[:2]
    if group == 1:
        flow.use(node, weight, 1, ids, "consumes")
        out = flow.use(node, weight, 0, None, "produces")
    elif per_group == 1:
        # Depthwise: filter c * m + k reads channel c alone, and goes with it.
        out = flow.use(node, weight, 0, np.repeat(ids, filters // group), "follows")
        flow.map.rederive.append((node, "group"))
    else:
        flow.use(node, weight, 1, _alike(flow, ids, group), "consumes")
        out = flow.use(node, weight, 0, None, "produces")
        flow.map.balanced.append(out.reshape(group, -1))
    _bias(flow, node, out)
    return [flow.map.fresh_along(flow.shape(node), 1, out)]


def conv_transpose(flow: Flow, node: Node) -> list[Labels]:
    """Return the labels of a ConvTranspose, weight `[Cin, Cout / g, ...]`: its blocks share the second axis."""
    weight = flow.weight(node, 1)
    ids = flow.channels(node, 1)
    group = int(node.attrs.get("group", 1))
    channels, per_group = weight.shape[:2]
    if 1 < group == channels:
        flow.use(node, weight, 0, ids, "follows")
        out = np.repeat(ids, per_group)
        flow.map.rederive.append((node, "group"))
    else:
        if group > 1:
            _alike(flow, ids, group)
        flow.use(node, weight, 0, ids, "consumes")
        out = np.tile(flow.use(node, weight, 1, None, "produces"), group)
    _bias(flow, node, out)
    return [flow.map.fresh_along(flow.shape(node), 1, out)]


def _alike(flow: Flow, ids: Ids, group: int) -> Ids:
    """Tie equal positions of all blocks, which must stay equally large, and return the labels of the first."""
    blocks = ids.reshape(group, -1)
    flow.map.tie(blocks[:1], blocks)
    first: Ids = blocks[0]
    return first


def _bias(flow: Flow, node: Node, out: Ids) -> None:
    if node.input(2) is not None:
        flow.use(node, flow.weight(node, 2), 0, out, "follows")
