"""When a Pad in front of a convolution or a mean can be done by that node's own padding."""

from __future__ import annotations

from onnxcomp.analysis.affine import Refusal
from onnxcomp.ir.graph import Array, Node

__all__ = ["merged_pads", "zero_pads"]


def zero_pads(node: Node, rank: int) -> list[int] | None:
    """Return the pads (begins of all `rank` axes, then ends) of a Pad that only adds zeros; None for any other node."""
    pads = node.constant(1)
    if not node.is_op("Pad") or pads is None or node.attrs.get("mode", "constant") != "constant":
        return None
    if node.input(2) is not None and not _is_zero(node.constant(2)):
        return None
    axes = range(rank)
    if node.input(3) is not None:
        given = node.constant(3)
        if given is None:
            return None
        axes = [int(a) % rank for a in given]  # type: ignore[assignment]
    if pads.size != 2 * len(axes) or pads.min(initial=0) < 0:
        return None
    whole = [0] * (2 * rank)
    for place, axis in enumerate(axes):
        whole[axis] += int(pads[place])
        whole[rank + axis] += int(pads[len(axes) + place])
    return whole


def _is_zero(values: Array | None) -> bool:
    return values is not None and not values.any()


def merged_pads(reader: Node, pads: list[int]) -> list[int] | Refusal:
    """Return the `pads` attribute with which `reader` does the zero padding `pads` (of all axes) itself.

    That is exact for a convolution, and for an AveragePool that counts padding or has none of its own; the AveragePool
    must count padding afterwards.
    """
    rank = len(pads) // 2
    spatial = [*pads[2:rank], *pads[rank + 2 :]]
    if any(pads[:2]) or any(pads[rank : rank + 2]):
        return Refusal("it pads the batch or the channels")
    if reader.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return Refusal(f"{reader.op} {reader.name!r} works out its padding from the size of its input")
    own = reader.attrs.get("pads") or [0] * len(spatial)
    if reader.is_op("AveragePool"):
        kernel = reader.attrs["kernel_shape"] * 2
        if reader.attrs.get("ceil_mode", 0) or (any(own) and not reader.attrs.get("count_include_pad", 0)):
            return Refusal(f"{reader.op} {reader.name!r} would not count the padding as this node does")
        if any(new + old >= size for new, old, size in zip(spatial, own, kernel, strict=True)):
            return Refusal(f"it pads by more than the kernel of {reader.op} {reader.name!r}")
    return [new + old for new, old in zip(spatial, own, strict=True)]
