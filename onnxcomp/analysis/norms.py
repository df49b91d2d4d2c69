"""Normalisations: which of them see one channel at a time, which see blocks of channels, and which see them all."""

from __future__ import annotations

import numpy as np

from onnxcomp.analysis.flow import Blocked, Flow
from onnxcomp.analysis.labels import Labels
from onnxcomp.ir.graph import Node

__all__ = [
    "batch_norm",
    "group_norm",
    "instance_norm",
    "local_response",
    "mean_variance",
    "tail_norm",
]


def batch_norm(flow: Flow, node: Node) -> list[Labels]:
    """Return the labels of a BatchNormalization: four vectors are cut along."""
    if len(node.outputs) != 1 or node.attrs.get("training_mode"):
        raise Blocked(f"BatchNormalization {node.name!r} is in training mode")
    ids = flow.channels(node, 1)
    for index in range(1, 5):
        flow.use(node, flow.weight(node, index), 0, ids, "follows")
    return [flow.map.fresh_along(flow.shape(node), 1, ids)]


def instance_norm(flow: Flow, node: Node) -> list[Labels]:
    """Return the labels of an InstanceNormalization, which normalises over all axes behind the channels.

    Where a Reshape has laid several channels along those axes (a group normalisation in parts), they go together.
    """
    ids = flow.channels(node, 1)
    for index in (1, 2):
        flow.use(node, flow.weight(node, index), 0, ids, "follows")
    return [flow.map.fresh_along(flow.shape(node), 1, ids)]


def group_norm(flow: Flow, node: Node) -> list[Labels]:
    """Return the labels of a GroupNormalization: a group of channels goes whole, or what it is divided by would change.

    Its scale and bias have one element per group (opset 18) or per channel (opset 21).
    """
    ids = flow.channels(node, 1)
    groups = int(node.attrs["num_groups"])
    blocks = ids.reshape(groups, -1)
    flow.map.tie(blocks[:, :1], blocks)
    whole = np.ascontiguousarray(blocks[:, 0])
    for index in (1, 2):
        weight = flow.weight(node, index)
        flow.use(node, weight, 0, whole if weight.shape == (groups,) else ids, "follows")
    flow.map.rederive.append((node, "norm-groups"))
    return [flow.map.fresh_along(flow.shape(node), 1, np.repeat(whole, blocks.shape[1]))]


def tail_norm(flow: Flow, node: Node) -> list[Labels]:
    """Return the labels of a LayerNormalization or RMSNormalization, where the channels lie before what is normalised."""
    labels = flow.labels(node.inputs[0])
    rank = len(labels.shape)
    axes = range(int(node.attrs.get("axis", -1)) % rank, rank)
    made = flow.mixed(labels, axes, f"{node.op} {node.name!r} normalises over the channels")
    flow.whole(node, (1, 2), f"{node.op} {node.name!r} reads it")
    return [made, *(Labels(made.ids, flow.shape(node, i)) for i in range(1, len(node.outputs)))]


def mean_variance(flow: Flow, node: Node) -> list[Labels]:
    """Return the labels of a MeanVarianceNormalization, by default over all axes but that of the channels."""
    labels = flow.labels(node.inputs[0])
    axes = {int(a) % len(labels.shape) for a in node.attrs.get("axes") or (0, 2, 3)}
    return [flow.mixed(labels, axes, f"{node.op} {node.name!r} normalises over the channels")]


def local_response(flow: Flow, node: Node) -> list[Labels]:
    """Decline an LRN of a value that has channels: it divides each by what its neighbours hold."""
    labels = flow.labels(node.inputs[0])
    if labels.axes:
        raise Blocked(f"LRN {node.name!r} mixes neighbouring channels")
    return [labels]
