"""Partitions of labels: which labels go together, in each of the ways in which channels can go.

A partition makes every class a whole slab along one axis of every value, since no array can lose single elements. A value
of attention `[heads, positions]` has two such partitions, by position and by head, and both may be used at once: what is
left then is the heads that stay, each with the positions that stay. So there are up to two *views* of one label map, and a
position of a stored tensor is removed if its class in any view is (decision 7).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxcomp.analysis.balance import companions
from onnxcomp.analysis.labels import DIMS, HEADS, Deferred, LabelMap, compact
from onnxcomp.numerics.arrays import Mask

__all__ = ["Classes", "Mask", "partition", "removed_at"]

Classes = NDArray[np.int64]
"""The class of every label in every view, `[views, labels]`; classes of the same labels have the same number."""

_CROSSED = "it meets a value that has channels along another axis"
_UNTIED = "a stored tensor that it meets is read along another axis elsewhere"


def partition(labels: LabelMap) -> Classes:
    """Return the classes of all labels, view by view; adds the ties that make every class a slab to `labels`."""
    if labels.views == 1:
        return _settle(labels, None)[None]
    for blocks in labels.balanced:
        # What goes by either view must be even, and so must what goes by both: equal positions are.
        labels.tie(blocks[:1], blocks)
    dims, heads = _settle(labels, DIMS), _settle(labels, HEADS)
    count = int(dims.max(initial=-1)) + 1
    return np.stack([dims, np.where(_same_members(dims, heads), dims, heads + count)])


def removed_at(classes: Classes, removed: Mask, ids: NDArray[np.int64]) -> Mask:
    """Return for each of `ids` whether its class is marked in `removed` `[classes]` in any view."""
    gone: Mask = np.asarray(removed[classes[:, ids]].any(axis=0), bool)
    return gone


def _same_members(first: NDArray[np.int64], second: NDArray[np.int64]) -> Mask:
    """Return for every label whether its two classes hold the same labels."""
    if not len(first):
        return np.zeros(0, bool)
    _, pairs, sizes = np.unique(np.stack([first, second]), axis=1, return_inverse=True, return_counts=True)
    together = sizes[pairs.reshape(-1)]
    same: Mask = (together == np.bincount(first)[first]) & (together == np.bincount(second)[second])
    return same


def _settle(labels: LabelMap, view: int | None) -> NDArray[np.int64]:
    """Tie labels until every class of `view` is a slab along one axis of every value; return the classes.

    Ties whose axis depends on others come as soon as it is known. Where a value's labels still differ along two axes then,
    all labels of one slab are tied, along the axis that has the most different slabs, so that the most classes are left.
    Ties only grow, so the loop ends.
    """
    waiting = list(labels.deferred)
    while True:
        roots = labels.roots(view)
        open_still = [each for each in waiting if not _resolve(labels, view, roots, each)]
        if len(open_still) < len(waiting):
            waiting = open_still
        elif not _tie_slabs(labels, view, roots) and not _balance(labels, view, roots):
            return roots


def _resolve(labels: LabelMap, view: int | None, roots: NDArray[np.int64], each: Deferred) -> bool:
    """Tie what `each` holds, or let it rest, if it is known along which axis its labels go; return whether it is."""
    axes = _varying(roots, each.ids)
    if len(axes) > 1:
        return False
    if each.own and set(_varying(roots, each.other)) - set(axes):
        labels.rest(each.ids, view, _CROSSED)
        labels.rest(each.other, view, _CROSSED)
    elif axes and axes[0] in each.full:
        labels.tie(each.ids, each.other, additive=each.additive, view=view)
    elif each.full:
        labels.rest(each.other, view, _UNTIED)
        labels.flatten(each.other, range(each.other.ndim), view)
    return True


def _tie_slabs(labels: LabelMap, view: int | None, roots: NDArray[np.int64]) -> bool:
    changed = False
    for value in [*labels.values.values(), *(spread for _, spread in labels.spread.values())]:
        if len(value.axes) < 2:
            continue
        classes = compact(roots[value.ids])
        axes = [a for a, size in enumerate(classes.shape) if size > 1]
        if len(axes) < 2:
            continue
        keep = max(axes, key=lambda a: np.unique(classes, axis=a).shape[a])
        slabs = np.moveaxis(value.ids, keep, 0).reshape(value.ids.shape[keep], -1)
        labels.tie(slabs[:, :1], slabs, view=view)
        changed = True
    return changed


def _balance(labels: LabelMap, view: int | None, roots: NDArray[np.int64]) -> bool:
    """Tie classes to companions until every block of grouped filters has equally many of each; return whether any were."""
    changed = False
    for blocks in labels.balanced:
        member = np.zeros(int(roots.max()) + 1, np.int64)
        member[roots[blocks]] = blocks
        for classes in companions(roots[blocks]):
            labels.tie(member[classes[:1]], member[classes], view=view)
            changed = True
    return changed


def _varying(roots: NDArray[np.int64], ids: NDArray[np.int64]) -> list[int]:
    return [a for a, size in enumerate(compact(roots[ids]).shape) if size > 1]
