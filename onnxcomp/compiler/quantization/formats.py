"""How values and weights are stored: what the target wants, and what the options of a pass change of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from onnxcomp.compiler.target.facts import Format, Target
from onnxcomp.errors import PreconditionError
from onnxcomp.numerics.affine import Grid

__all__ = ["Formats", "formats", "wide"]

WIDE = {"uint8": "uint16", "int8": "int16", "uint16": "uint16", "int16": "int16"}
"""The type of sixteen bits that is like each type."""

WIDE_OPSET = 21
"""QuantizeLinear makes integers of sixteen bits from this opset on."""


@dataclass(frozen=True)
class Formats:
    """The grids of a run.

    Attributes:
        activations, inputs: of inner values and of graph inputs.
        weights: of stored weights; `per_channel` whether each output channel has its own scale.
        bias: whether biases are stored as int32 or stay float.
        wide: names of values that are stored in 16 bits.
    """

    activations: Grid
    inputs: Grid
    weights: Grid
    per_channel: bool
    bias: Literal["float", "int32"]
    wide: frozenset[str] = field(default_factory=frozenset)

    def grid(self, name: str, graph_input: bool) -> Grid:
        """Return the grid of the value `name`."""
        grid = self.inputs if graph_input else self.activations
        return wide(grid) if name in self.wide else grid

    @property
    def opset(self) -> int:
        """The opset that these types need."""
        names = {self.activations.dtype, self.inputs.dtype}
        return WIDE_OPSET if self.wide or names & {"uint16", "int16"} else 13


def wide(grid: Grid) -> Grid:
    """Return the grid of sixteen bits that is like `grid`."""
    return replace(grid, dtype=WIDE[grid.dtype], bits=None)


def formats(target: Target, chosen: Mapping[str, str]) -> Formats:
    """Return the formats of `target`, changed by the options `chosen`: activations, weights, granularity, scale, bias.

    `auto` and options that are absent leave what the target says.

    Raises:
        PreconditionError: for what the target refuses.
    """
    wanted = {name: value for name, value in chosen.items() if value != "auto"}
    activations, weights = target.activations, target.weights
    pow2 = wanted.get("scale", target.scale) == "pow2"
    kind = wanted.get("activations")
    symmetric = activations.symmetric
    dtype = activations.dtype
    if kind is not None:
        dtype, symmetric = kind.removesuffix("-symmetric"), kind.endswith("-symmetric")
    _check(target, "activations", activations, dtype)
    if target.zero_point == "0" and not symmetric:
        raise PreconditionError(
            f"{target.name} takes no zero point but 0; use activations={dtype.removeprefix('u')}-symmetric"
        )
    if target.scale == "pow2" and not pow2:
        raise PreconditionError(f"{target.name} takes no scales but powers of two; leave out scale=float")
    per_channel = wanted.get("granularity", "per-channel" if weights.per_channel else "per-tensor")
    if per_channel == "per-channel" and not weights.per_channel and target.is_hard("weights"):
        raise PreconditionError(
            f"{target.name} takes one scale per weight; leave out granularity=per-channel"
        )
    bits = _bits(activations) if dtype == activations.dtype else None
    narrow = activations.narrow and dtype == activations.dtype
    acts = Grid(dtype, symmetric, narrow, bits, pow2)
    inputs = replace(acts, symmetric=True) if target.inputs_symmetric else acts
    bias = wanted.get("bias", target.bias)
    if weights.dtype != "int8" and not weights.symmetric:
        # Weights that must be unsigned are stored around the middle of their type.
        stored = Grid(weights.dtype, True, False, None, pow2)
    else:
        stored = Grid(weights.dtype, True, weights.narrow, _bits(weights), pow2)
    return Formats(
        acts, inputs, stored, per_channel == "per-channel", "int32" if bias == "int32" else "float"
    )


def _check(target: Target, what: str, wanted: Format, dtype: str) -> None:
    if dtype not in wanted.accepts and target.is_hard(what):
        raise PreconditionError(
            f"{target.name} takes {what} of type {' or '.join(wanted.accepts)}, not {dtype}; leave out "
            f"{what}={dtype}"
        )


def _bits(stored: Format) -> int | None:
    """Return how many bits of its type a format uses, None for all."""
    low, high = stored.full
    if (stored.low, stored.high) in ((low, high), (low + 1, high)):
        return None
    return max(1, int(stored.high + 1).bit_length() - 1 + (low < 0))
