"""Additions that round nothing.

Where both operands of an addition and its result have the same scale, the sum of two stored numbers is a stored number:
what the addition would round is saved, and only what enters is rounded, if more coarsely than it might be. In a residual
stream that holds from the first block to the last. The least disturbance of the outputs decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxcomp.compiler.quantization.formats import Formats
from onnxcomp.compiler.quantization.placement import Placement, absorbed_by
from onnxcomp.compiler.quantization.ranges import Chosen
from onnxcomp.compiler.target.facts import Target
from onnxcomp.ir.graph import Variable
from onnxcomp.ir.model import Model
from onnxcomp.numerics.affine import Affine
from onnxcomp.numerics.observers import ValueSensitivity

__all__ = ["tie_additions"]

STEPS = np.geomspace(0.7, 1.1, 17)
"""Common scales that are tried, as parts of the largest scale among the values."""

PLACES = 33
"""Zero points that are tried for a value of both signs."""

GAIN = 0.99
"""Share of the disturbance that must remain at most for a tie to be worth it."""


@dataclass(frozen=True)
class _Stream:
    """Values that would share a scale: `made` come from additions, `fed` enter; both by the value that has the scale."""

    made: tuple[str, ...]
    fed: tuple[str, ...]


def tie_additions(
    model: Model,
    placement: Placement,
    formats: Formats,
    sensitivity: Mapping[str, ValueSensitivity],
    chosen: Chosen,
    target: Target,
) -> Chosen:
    """Return `chosen` with a common scale for the values of every stream of additions that gains by it."""
    affines, costs = dict(chosen.affines), dict(chosen.costs)
    count = 0
    for stream in _streams(model, placement, target):
        names = (*stream.made, *stream.fed)
        known = all(name in sensitivity and name in costs for name in names)
        grids = {chosen.affines[name].grid for name in names}
        if not known or len(grids) != 1 or formats.activations.pow2:
            continue
        found = _common(stream, sensitivity, chosen)
        before = sum(costs[name] for name in names)
        if found is None or sum(cost for _, cost in found.values()) > GAIN * before:
            continue
        count += 1
        for name, (affine, cost) in found.items():
            costs[name] = cost
            for member in placement.sources[name]:
                affines[member] = affine
    return replace(chosen, affines=affines, costs=costs, tied=count)


def _streams(model: Model, placement: Placement, target: Target) -> list[_Stream]:
    """Return the connected additions of `model` whose operands and results are all stored."""
    root: dict[str, str] = {}
    made: set[str] = set()

    def find(name: str) -> str:
        while root.setdefault(name, name) != name:
            name = root[name]
        return name

    for node in model.graph.nodes:
        if not node.is_op("Add") or node.name not in placement.nodes:
            continue
        last = absorbed_by(model, node, target)
        result = (last if last is not None and last.name in placement.nodes else node).output.name
        names = [v.name for v in node.inputs if isinstance(v, Variable)] + [result]
        if len(names) != 3 or any(name not in placement.values for name in names):
            continue
        owners = [placement.values[name] for name in names]
        if len(set(owners)) != 3:
            continue
        made.add(owners[2])
        for owner in owners[:2]:
            root[find(owner)] = find(owners[2])
    parts: dict[str, list[str]] = {}
    for name in root:
        parts.setdefault(find(name), []).append(name)
    return [
        _Stream(tuple(n for n in part if n in made), tuple(n for n in part if n not in made))
        for part in parts.values()
    ]


def _common(
    stream: _Stream, sensitivity: Mapping[str, ValueSensitivity], chosen: Chosen
) -> dict[str, tuple[Affine, float]] | None:
    """Return the parameters of least cost with one scale for all values of `stream`, and the cost of each value."""
    names = (*stream.made, *stream.fed)
    largest = max(float(chosen.affines[name].scale) for name in names)
    best: dict[str, tuple[Affine, float]] | None = None
    least = np.inf
    for step in (largest * STEPS).tolist():
        scale = np.array(step, np.float32)
        found = {
            name: _placed(sensitivity[name], chosen.affines[name], scale, name in stream.made)
            for name in names
        }
        total = sum(cost for _, cost in found.values())
        if total < least:
            best, least = found, total
    return best


def _placed(
    sensitivity: ValueSensitivity, affine: Affine, scale: np.ndarray, made: bool
) -> tuple[Affine, float]:
    """Return the zero point of least cost for a value on `scale`; what an addition has `made` is not rounded anew."""
    tried = [Affine(scale, zero, affine.grid) for zero in _zeros(affine)]
    costs = [sensitivity.clipped(each) + (0.0 if made else sensitivity.rounded(each)) for each in tried]
    best = int(np.argmin(costs))
    return tried[best], costs[best]


def _zeros(affine: Affine) -> Sequence[np.ndarray]:
    """Return the zero points to try: the one there is at the ends of the grid, else all over it."""
    grid, zero = affine.grid, int(affine.zero)
    if grid.symmetric or zero in (grid.low, grid.high):
        return [affine.zero]
    places = np.unique(np.rint(np.linspace(grid.low, grid.high, PLACES)).astype(np.int64))
    return [np.array(place, grid.dtype) for place in places]
