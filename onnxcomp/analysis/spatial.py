"""Operators that move channels into space and back, resize space, or repeat and make whole values."""

from __future__ import annotations

import math

import numpy as np

from onnxcomp.analysis.flow import Blocked, Flow
from onnxcomp.analysis.labels import MOST_LABELS, Ids, Labels, compact
from onnxcomp.analysis.sizing import follow_target, target_places
from onnxcomp.ir.graph import Node

__all__ = ["constant_of_shape", "depth_to_space", "expand", "resize", "sample_grid", "space_to_depth", "tile"]


def depth_to_space(flow: Flow, node: Node) -> list[Labels]:
    """Return the labels of a DepthToSpace: the channels that make one channel of larger size go together."""
    ids = flow.channels(node, 1)
    pixels = int(node.attrs["blocksize"]) ** 2
    blocks = ids.reshape(-1, pixels).T if node.attrs.get("mode", "DCR") == "CRD" else ids.reshape(pixels, -1)
    flow.map.tie(blocks[:1], blocks)
    return [flow.map.fresh_along(flow.shape(node), 1, np.ascontiguousarray(blocks[0]))]


def space_to_depth(flow: Flow, node: Node) -> list[Labels]:
    """Return the labels of a SpaceToDepth: every channel comes once for each pixel of a block."""
    ids = flow.channels(node, 1)
    return [flow.map.fresh_along(flow.shape(node), 1, np.tile(ids, int(node.attrs["blocksize"]) ** 2))]


def resize(flow: Flow, node: Node) -> list[Labels]:
    """Return the labels of a Resize, which must leave the axis of the channels as long as it is."""
    labels, shape = flow.labels(node.inputs[0]), flow.shape(node)
    made = Labels(labels.ids, shape)
    if not labels.axes:
        return [made]
    rank = len(shape)
    elements = {int(a) % rank: place for place, a in enumerate(node.attrs.get("axes") or range(rank))}
    touched = set(labels.axes) & elements.keys()
    whole = node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize"
    if any(labels.shape[a] != shape[a] for a in labels.axes):
        raise Blocked(f"Resize {node.name!r} resizes the axis of the channels")
    if whole and not _takes_all(node, [place for axis, place in elements.items() if axis in touched]):
        raise Blocked(f"Resize {node.name!r} may take a part of the axis of the channels")
    if node.input(3) is not None:
        if node.attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch" and touched:
            raise Blocked(f"Resize {node.name!r} derives one size from the others")
        follow_target(flow, node, 3, made, elements)
        flow.map.rederive.append((node, "sizes"))
        return [made]
    places = target_places(node, 2, flow.map) or [None] * len(elements)
    for axis in touched:
        place = places[elements[axis]]
        stored = (
            place.node.constant(place.index) if place is not None and place.position is not None else None
        )
        if place is None or stored is None or float(np.ravel(stored)[place.position]) != 1.0:
            raise Blocked(f"Resize {node.name!r} computes its scales; fold them first")
    return [made]


def sample_grid(flow: Flow, node: Node) -> list[Labels]:
    """Return the labels of a GridSample or RoiAlign: where is read does not depend on channels."""
    if any(flow.labels(v).axes and not flow.is_stored(v) for v in node.inputs[1:]):
        raise Blocked(f"{node.op} {node.name!r} reads places that have channels")
    return [flow.map.fresh_along(flow.shape(node), 1, flow.channels(node, 1))]


def tile(flow: Flow, node: Node) -> list[Labels]:
    """Return the labels of a Tile: copies of a channel go with it; what is repeated from one can be repeated less."""
    labels, shape = flow.labels(node.inputs[0]), flow.shape(node)
    repeats = node.constant(1)
    grown = [axis for axis, size in enumerate(labels.shape) if size == 1 and shape[axis] > 1]
    if repeats is None:
        if labels.axes:
            raise Blocked(f"Tile {node.name!r} computes how often it repeats")
        return [Labels(labels.ids, shape)]
    if not labels.axes and grown:
        flow.map.rederive.append((node, "tile"))
        return [_soft(flow, node, shape, grown)]
    times = [int(n) if axis in labels.axes else 1 for axis, n in enumerate(np.ravel(repeats))]
    return [Labels(np.tile(labels.ids, times), shape)]


def expand(flow: Flow, node: Node) -> list[Labels]:
    """Return the labels of an Expand: what was expanded from one position can be expanded to fewer."""
    labels, shape = flow.labels(node.inputs[0]), flow.shape(node)
    missing = len(shape) - len(labels.shape)
    old = (1,) * missing + labels.shape
    made = Labels(labels.ids.reshape((1,) * missing + labels.ids.shape), shape)
    count = flow.shapes[node.inputs[1].name][0]
    elements = {axis: axis - len(shape) + count for axis in range(len(shape) - count, len(shape))}
    grown = [a for a in elements if old[a] == 1 and shape[a] > 1]
    if not labels.axes and grown:
        made = _soft(flow, node, shape, _settled(flow, node, 1, grown, elements))
    follow_target(flow, node, 1, made, elements)
    flow.map.rederive.append((node, "expand"))
    return [made]


def constant_of_shape(flow: Flow, node: Node) -> list[Labels]:
    """Return the labels of a ConstantOfShape: it can be made smaller wherever its size is stored or counted."""
    shape = flow.shape(node)
    elements = {axis: axis for axis in range(len(shape))}
    made = _soft(flow, node, shape, _settled(flow, node, 0, list(elements), elements))
    follow_target(flow, node, 0, made, elements)
    flow.map.rederive.append((node, "fill"))
    return [made]


def _takes_all(node: Node, places: list[int]) -> bool:
    """Return whether the region that a Resize crops to is stored, and is all of the axes at `places`."""
    region = node.constant(1)
    if region is None:
        return not places
    starts, ends = np.split(np.ravel(region), 2)
    return all(starts[place] == 0 and ends[place] == 1 for place in places)


def _settled(flow: Flow, node: Node, index: int, axes: list[int], elements: dict[int, int]) -> list[int]:
    """Return those of `axes` whose size is stored, or is the number of channels of some value."""
    places = target_places(node, index, flow.map)
    sizes = flow.sizes.get(node.inputs[index].name)
    settled = []
    for axis in axes:
        place = places[elements[axis]] if places is not None else None
        counted = sizes is not None and sizes[elements[axis]].copy is not None
        if counted or (place is not None and place.position is not None):
            settled.append(axis)
    return settled


def _soft(flow: Flow, node: Node, shape: tuple[int, ...], axes: list[int]) -> Labels:
    """Return new labels along `axes` of a value that is the same at every position there."""
    flow.soft.add(node.output.name)
    layout = [size if axis in axes else 1 for axis, size in enumerate(shape)]
    if math.prod(layout) > MOST_LABELS:
        raise Blocked(f"{node.op} {node.name!r} makes {math.prod(layout):,} elements of a few")
    ids: Ids = flow.map.fresh(math.prod(layout)).reshape(layout)
    return Labels(compact(ids), shape)
