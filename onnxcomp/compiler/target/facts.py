"""What a deployment target wants of a file, and how well that is known; `files.py` reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from onnxcomp.ir.graph import Node

__all__ = ["IMPLIED", "INTEGERS", "Fact", "Format", "Note", "OperatorSet", "Role", "Target"]

Role: TypeAlias = Literal["quantize", "same-scale", "keep-float", "unknown"]
"""What a target does with an operator: compute it in integers, move integers, leave it in float, or nobody has said."""

INTEGERS = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767), "uint16": (0, 65535)}
"""Types of quantized tensors with their least and greatest value."""

IMPLIED = {("Resize", "mode"): "nearest"}
"""Attributes that an operator list may ask for, with what the standard says where a node leaves them out."""


@dataclass(frozen=True)
class Fact:
    """One table of a target file as it stands there.

    `source` says where it is known from and `verified_on` when and with what it was tried, empty where it was not. A `hard`
    fact makes the toolchain refuse the file or compute wrong numbers; one that is not hard costs speed or accuracy.
    """

    table: str
    values: Mapping[str, object]
    source: str
    verified_on: str
    hard: bool


@dataclass(frozen=True)
class Note:
    """Something to know of a target that no table holds, with its source."""

    text: str
    source: str
    verified_on: str


@dataclass(frozen=True)
class Format:
    """How a tensor is stored: integers of `dtype` from `low` to `high`, one scale per tensor or per output channel.

    `accepts` are the types the target takes, `dtype` the first choice among them. `symmetric` means a zero point in the
    middle: 0, or 128 for uint8.
    """

    dtype: str
    low: int
    high: int
    symmetric: bool
    per_channel: bool
    accepts: tuple[str, ...]

    @property
    def narrow(self) -> bool:
        """Whether the most negative value stays unused, so that the grid is symmetric: [-127, 127]."""
        return self.low == -self.high

    @property
    def full(self) -> tuple[int, int]:
        """Least and greatest value of `dtype`."""
        return INTEGERS[self.dtype]


@dataclass(frozen=True)
class OperatorSet:
    """Operators by name, some of them only with one value of an attribute: `Resize{mode=nearest}`."""

    names: frozenset[str] = frozenset()
    conditions: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def __contains__(self, node: object) -> bool:
        """Return whether a node, or an operator by its bare name under no condition, is among them."""
        if isinstance(node, str):
            return node in self.names
        if not isinstance(node, Node) or not node.standard:
            return False
        if node.op not in self.conditions:
            return node.op in self.names
        attribute, wanted = self.conditions[node.op]
        return str(node.attrs.get(attribute, IMPLIED[node.op, attribute])) == wanted

    def __bool__(self) -> bool:
        return bool(self.names or self.conditions)

    def __str__(self) -> str:
        limited = [f"{op}{{{a}={v}}}" for op, (a, v) in self.conditions.items()]
        return " ".join(sorted([*self.names, *limited]))


@dataclass(frozen=True)
class Target:
    """What one toolchain wants of an ONNX file.

    Attributes:
        name, summary: how it is called, and what it is in one line.
        family: `qdq` reads QuantizeLinear/DequantizeLinear pairs; `float` has its own quantizer and wants a clean float file.
        opset: least and greatest opset of the standard domain; `ir_max` the greatest IR version.
        static_shapes: every size must be a number.
        domains: operator domains that it knows; `""` is the standard one.
        refuses: operators that it cannot take at all.
        weights, activations: formats of what is quantized.
        bias: `int32` where biases must be quantized too, `float` where they may stay.
        scale: `pow2` where scales must be powers of two.
        zero_point: `0` where no other is taken, `any` otherwise.
        outputs_quantized: graph outputs pass through a pair of their own.
        inputs_symmetric: graph inputs are quantized with zero point 0, whatever `activations` says.
        align: the multiple of channels that it likes; 1 where nothing is known.
        quantize: operators computed in integers, so that pairs pay around them.
        same_scale: operators that move integers: their output has the scale and zero point of their input.
        keep_float: operators that stay float; pairs around them only cost conversions.
        all_inputs: operators of which all data inputs are quantized, or none.
        output_pair: operators that are computed in integers only with a pair behind them.
        one_scale: operators whose inputs and output must share one scale and zero point.
        pair_in_front: operators that need a pair between them and a product computed in integers.
        float_in_front: operators in front of which a product must be computed in float, pair or not; those that are computed
            in integers themselves are right behind a convolution.
        several_inputs: operators that are computed in integers only where they have more than one input.
        absorbs: activations that melt into the operator in front where no pair stands between.
        facts: the tables of the file, with their sources; `notes` what else is known.
    """

    name: str
    family: Literal["qdq", "float"]
    summary: str
    opset: tuple[int, int]
    ir_max: int
    static_shapes: bool
    domains: tuple[str, ...]
    refuses: OperatorSet
    weights: Format
    activations: Format
    bias: Literal["float", "int32"]
    scale: Literal["float", "pow2"]
    zero_point: Literal["any", "0"]
    outputs_quantized: bool
    inputs_symmetric: bool
    align: int
    quantize: OperatorSet
    same_scale: OperatorSet
    keep_float: OperatorSet
    all_inputs: OperatorSet
    output_pair: OperatorSet
    one_scale: OperatorSet
    pair_in_front: OperatorSet
    float_in_front: OperatorSet
    several_inputs: OperatorSet
    absorbs: OperatorSet
    facts: tuple[Fact, ...]
    notes: tuple[Note, ...]

    def role(self, node: Node) -> Role:
        """Return what the target does with `node`; an operator in no list is `unknown` and best left in float."""
        if node in self.quantize:
            return "quantize"
        if node in self.same_scale:
            return "same-scale"
        return "keep-float" if node in self.keep_float else "unknown"

    def must_stay_float(self, product: Node, reader: Node) -> bool:
        """Return whether `product` must be computed in float because `reader` follows."""
        return reader in self.float_in_front and not (product.op == "Conv" and reader in self.quantize)

    def fact(self, table: str) -> Fact | None:
        """Return the fact of a table by name, None where the file has none."""
        return next((f for f in self.facts if f.table == table), None)

    def is_hard(self, table: str) -> bool:
        """Return whether the file has `table` and calls it hard."""
        found = self.fact(table)
        return found is not None and found.hard
