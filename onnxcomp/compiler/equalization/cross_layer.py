"""Equalization across layers: channels are scaled where they are made, and scaled back where they are read.

What the network computes stays the same, up to the rounding of floats. Clip is not homogeneous: a channel that reaches its
upper bound on the samples keeps its scale, and another one grows to the bound at most, so that on the samples nothing is
clipped that was not, and what was stays so.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxcomp.analysis.linear import LinearNode, linear_node
from onnxcomp.analysis.padding import zero_pads
from onnxcomp.analysis.signs import clip_bounds
from onnxcomp.compiler.gradients.channel_sensitivity import ChannelSensitivity, channel_sensitivity
from onnxcomp.compiler.passbase import Context, PassLog
from onnxcomp.compiler.quantization.formats import Formats
from onnxcomp.ir.graph import Node
from onnxcomp.ir.model import Model
from onnxcomp.ir.ops import ACTIVATIONS, HOMOGENEOUS, POOLING, RESHAPING
from onnxcomp.numerics.arrays import Array64, Shapes
from onnxcomp.numerics.equalizing import Between, Layer, balanced, fill_powers, quietest
from onnxcomp.runtime.capture import batch_size, stream_values

__all__ = ["Link", "equalize_layers", "links"]


NEAR = 1e-6
"""A channel that comes this close to the bound of a Clip, as a share of it, counts as reaching it."""


HEADROOM = 0.75
"""Channels grow to this share of the bound of a Clip at most: other samples reach further than those that were seen."""


@dataclass(frozen=True)
class Link:
    """Two nodes with stored weights between which `channels` channels stay apart: `made` makes them, `read` reads them.

    `clips` are the Clips on the way whose upper bound is a number.
    """

    made: LinearNode
    read: LinearNode
    channels: int
    clips: tuple[Node, ...]


def equalize_layers(
    model: Model, shapes: Shapes, left_alone: Container[str], formats: Formats, context: Context, log: PassLog
) -> int:
    """Scale the channels between the layers of `model`, in place; return how many pairs of layers were changed.

    The factors are those with which rounding to `formats` disturbs the outputs least; where nothing is known of the outputs,
    those that balance the weights. Where steps are powers of two, all channels of a pair are scaled alike besides, so that
    the grids are filled, and the bounds of Clips with them. `shapes` are those of all values for one sample; nodes named in `left_alone` keep
    their weights.
    """
    found = links(model, shapes, left_alone, log)
    if not found:
        return 0
    tops = _largest(model, found, shapes, context)
    between = [_limits(link, tops) for link in found]
    nodes = list(dict.fromkeys(node.node for link in found for node in (link.made, link.read)))
    reads = {link.read.node: number for number, link in enumerate(found)}
    makes = {link.made.node: number for number, link in enumerate(found)}
    linears = {node: _linear(node) for node in nodes}
    layers = [
        Layer(
            _sizes(linears[node], found[reads[node]].channels if node in reads else None),
            reads.get(node),
            makes.get(node),
            levels=formats.weights.high - formats.weights.middle,
        )
        for node in nodes
    ]
    known = channel_sensitivity(model, [linears[node] for node in nodes], shapes, context, log)
    if known is None:
        factors = balanced(layers, between)
    else:
        layers = [
            replace(layer, power=_power(linear, layer, known), gain=_gain(linear, known))
            for layer, linear in zip(layers, linears.values(), strict=True)
        ]
        grid = formats.activations
        between = [
            replace(
                limits,
                tops=_by_channel(known.tops[link.read.input], link.channels).max(1),
                gain=_by_channel(known.sensitivity[link.read.input], link.channels).sum(1),
                levels=grid.high - (grid.middle if grid.symmetric else grid.low),
            )
            for link, limits in zip(found, between, strict=True)
        ]
        factors = quietest(layers, between)
        if formats.weights.pow2 and formats.activations.pow2:
            units = fill_powers(layers, between, factors)
            factors = [factor * unit for factor, unit in zip(factors, units, strict=True)]
            _move_bounds(model, found, units)
    for node in nodes:
        incoming, outgoing = reads.get(node), makes.get(node)
        scale_channels(
            model,
            linears[node],
            None if incoming is None else factors[incoming],
            None if outgoing is None else factors[outgoing],
        )
    _tell(found, between, factors, log)
    return len(found)


def _tell(
    found: Sequence[Link], between: Sequence[Between], factors: Sequence[Array64], log: PassLog
) -> None:
    for link, limits, factor in zip(found, between, factors, strict=True):
        held = 0 if limits.held is None else int(limits.held.sum())
        log.change(
            link.made.node.name,
            f"{link.channels} channels equalized with {link.read.node.op} {link.read.node.name!r}"
            + (f"; {held} of them reach the bound of the Clip between and keep their scale" if held else ""),
            factors=[float(f"{factor.min():.4g}"), float(f"{factor.max():.4g}")],
        )


def _move_bounds(model: Model, found: Sequence[Link], units: Sequence[float]) -> None:
    """Make the upper bounds of the Clips on the way as much larger as all channels there become."""
    for link, unit in zip(found, units, strict=True):
        for clip in link.clips:
            old = clip.constant(2)
            assert old is not None
            model.graph.set_constant(clip, 2, np.asarray(old * unit, old.dtype), "equalized")


def _by_channel(features: Array64, channels: int) -> Array64:
    return features.reshape(channels, -1)


def _power(linear: LinearNode, layer: Layer, known: ChannelSensitivity) -> Array64:
    """Return the variance that the weights of each channel multiply, `[g, c]`; of all together where they keep their scale."""
    groups, each = len(layer.sizes), 1 if layer.reads is None else layer.sizes.shape[2]
    variance = known.variance[linear.input]
    kernel = linear.matrix().shape[2] * groups / len(variance)
    power: Array64 = variance.reshape(groups, each, -1).sum(2) * kernel
    return power


def _gain(linear: LinearNode, known: ChannelSensitivity) -> Array64:
    """Return what squared errors of each output of `linear` do to the outputs of the network, `[g, o]`."""
    return known.sensitivity[linear.output].reshape(linear.group, -1)


def links(model: Model, shapes: Shapes, left_alone: Container[str], log: PassLog) -> list[Link]:
    """Return the pairs of layers of `model` between which channels may be scaled; what stands in the way is a skip."""
    found: list[Link] = []
    for node in model.graph.nodes:
        linear = linear_node(node)
        if linear is not None and node.name not in left_alone:
            link = _follow(model, linear, shapes, left_alone, log)
            if link is not None:
                found.append(link)
    return found


def _follow(
    model: Model, made: LinearNode, shapes: Shapes, left_alone: Container[str], log: PassLog
) -> Link | None:
    """Return the link from `made` to the next layer, None where there is none."""
    channels = made.weight_array().shape[made.out_axis]
    value, clips = made.node.output, list[Node]()
    if made.layout == "left" or (not made.spatial and len(shapes.get(value.name, ())) != 2):
        return None
    while True:
        reason = next((r for r in map(_refusal, value.consumers) if r is not None), None)
        if reason is not None:
            log.skip(made.node.name, f"its channels are not equalized: {reason}")
            return None
        node = model.graph.sole_use(value)
        if node is None or node.name in left_alone or node.inputs[0] is not value:
            return None
        read = linear_node(node)
        if read is not None:
            return _linked(made, read, channels, clips, shapes)
        if node.is_op("Clip"):
            if np.isfinite(clip_bounds(node)[1] or np.inf):
                clips.append(node)
        elif not _keeps_channels(node, channels, shapes):
            return None
        value = node.output


def _refusal(node: Node) -> str | None:
    """Return why nothing can be scaled in front of an activation, None where it can or `node` is none."""
    if node.is_op("Clip"):
        low, high = clip_bounds(node)
        if low != 0 or high is None or high <= 0:
            return f"Clip {node.name!r} does not cut off at 0, or at a number that is not stored"
    elif node.is_op(*ACTIVATIONS - HOMOGENEOUS):
        return f"{node.op} {node.name!r} does not scale with what it reads"
    return None


def _linked(
    made: LinearNode, read: LinearNode, channels: int, clips: Sequence[Node], shapes: Shapes
) -> Link | None:
    """Return the link of `made` and `read` where the axis of inputs of `read` is that of the channels."""
    shape = shapes.get(read.input, ())
    wide = read.layout in ("gemm", "right")
    if read.layout == "left" or (wide and len(shape) != 2) or (len(shape) < 2):
        return None
    count = read.weight_array().shape[read.in_axis] * (read.group if read.layout == "conv" else 1)
    if count % channels or (not wide and count != channels):
        return None
    return Link(made, read, channels, tuple(clips))


def _keeps_channels(node: Node, channels: int, shapes: Shapes) -> bool:
    """Return whether `node` computes each channel of axis 1 from that channel alone, and in proportion to it."""
    before, after = shapes.get(node.inputs[0].name, ()), shapes.get(node.output.name, ())
    if len(before) < 2 or len(after) < 2 or any(v.name for v in node.outputs[1:]):
        return False
    if node.is_op(*HOMOGENEOUS | POOLING):
        return True
    if node.is_op("Pad"):
        pads = zero_pads(node, len(before))
        return pads is not None and not pads[1] and not pads[1 + len(before)]
    if node.is_op("ReduceMean"):
        axes = node.attrs.get("axes") if node.input(1) is None else node.constant(1)
        return axes is not None and min(int(a) % len(before) for a in axes) >= 2
    if not node.is_op(*RESHAPING):
        return False
    # Rows of one sample, channel by channel: the first axis stays, and the channels come first in what follows.
    return (
        before[0] == after[0]
        and after[1] in (channels, int(np.prod(before[1:])))
        and before[1] in (channels, after[1])
    )


def _largest(model: Model, found: Sequence[Link], shapes: Shapes, context: Context) -> dict[str, Array64]:
    """Return the largest value of each channel behind every Clip on the way, `[c]`, by the name of the Clip."""
    names = {clip.name: clip.output.name for link in found for clip in link.clips}
    tops: dict[str, Array64] = {}
    if not names or context.calibration is None:
        return tops
    batch = batch_size(shapes, set(names.values()), 8)
    values = [*dict.fromkeys(names.values())]
    for got in stream_values(model, values, context.calibration, batch, **context.runtime):
        for name, value in names.items():
            array = got[value]
            top = array.max(tuple(a for a in range(array.ndim) if a != 1)).astype(np.float64)
            tops[name] = np.maximum(tops[name], top) if name in tops else top
    return tops


def _limits(link: Link, tops: Mapping[str, Array64]) -> Between:
    """Return how far the channels of `link` may be scaled for its Clips to do what they did."""
    most, held = np.full(link.channels, np.inf), np.zeros(link.channels, np.bool_)
    for clip in link.clips:
        high = clip_bounds(clip)[1]
        assert high is not None
        top = tops[clip.name]
        held |= top >= high * (1 - NEAR)
        room = np.divide(HEADROOM * high, top, out=np.full(len(top), np.inf), where=top > 0)
        most = np.minimum(most, np.maximum(room, 1.0))
    return Between(link.channels, most if link.clips else None, held if held.any() else None)


def _linear(node: Node) -> LinearNode:
    linear = linear_node(node)
    assert linear is not None
    return linear


def _sizes(linear: LinearNode, channels: int | None) -> Array64:
    """Return the largest weight from each channel to each output, `[g, o, c]`."""
    matrix = np.abs(linear.matrix())
    groups, outputs, width = matrix.shape
    each = width if channels is None else channels // groups
    sizes: Array64 = matrix.reshape(groups, outputs, each, width // each).max(3)
    return sizes


def scale_channels(model: Model, linear: LinearNode, reads: Array64 | None, makes: Array64 | None) -> None:
    """Divide the weights of each input channel by `reads` and multiply weights and bias of each output by `makes`."""
    matrix, bias = linear.matrix(), None
    groups, outputs, width = matrix.shape
    if reads is not None:
        each = len(reads) // groups
        matrix = matrix.reshape(groups, outputs, each, width // each) / reads.reshape(groups, 1, each, 1)
        matrix = matrix.reshape(groups, outputs, width)
    if makes is not None:
        matrix = matrix * makes.reshape(groups, outputs, 1)
        bias = linear.bias() * makes if linear.node.input(2) is not None else None
    linear.install(model, matrix, bias, "equalized")
