"""Concrete sizes for the inputs of a model, and noise of these sizes to run it with."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from onnxcomp.ir.graph import Array, Constant, Variable
from onnxcomp.ir.model import Model
from onnxcomp.runtime.data.fitting import InputSpec
from onnxcomp.runtime.session import Session, SessionError

__all__ = [
    "FREE_SIZES",
    "PIECE_LIMIT",
    "Shapes",
    "can_be_drawn",
    "candidate_shapes",
    "input_specs",
    "noise",
    "runnable_shapes",
]

Shapes = dict[str, tuple[int, ...]]
"""Concrete shapes by input name."""

FREE_SIZES = (64, 32, 224, 256, 320, 512, 1)
"""Sizes tried for a free axis other than the first: what image networks are most often exported for."""

PIECE_LIMIT = 2**31 - 2**20
"""Bytes of weights up to which a model can be handed to onnxruntime in one piece; protobuf ends at 2 GB."""

_FEED_LIMIT = 2**28
"""Elements in all noise inputs together; a file that declares more is not worth a gigabyte of memory."""


def input_specs(model: Model) -> tuple[InputSpec, ...]:
    """Return the inputs of `model` as sample data must fit them."""
    return tuple(InputSpec(v.name, np.dtype(v.dtype or np.float32), v.shape) for v in model.graph.inputs)


def candidate_shapes(model: Model, first: Mapping[str, tuple[int, ...]]) -> Iterator[Shapes]:
    """Yield sizes worth trying for all inputs of `model`, most likely first, each set once.

    Known sizes are taken as they are; `first` is what else to begin with, where it fits them. A free first axis is 1,
    other free axes take `FREE_SIZES` in turn. Yields nothing but `first` where the rank of an input is unknown.
    """
    seen: list[Shapes] = []
    if _fits(model, first):
        seen.append(dict(first))
        yield dict(first)
    for size in FREE_SIZES:
        shapes: Shapes = {}
        for value in model.graph.inputs:
            shape = value.shape
            if shape is None:
                return
            shapes[value.name] = tuple(
                axis if isinstance(axis, int) else (size if place else 1) for place, axis in enumerate(shape)
            )
        if shapes not in seen:
            seen.append(shapes)
            yield shapes


def _fits(model: Model, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Return whether `shapes` tells the sizes of all inputs of `model` and contradicts none that is declared."""
    for value in model.graph.inputs:
        given = shapes.get(value.name)
        if given is None or (value.shape is not None and len(value.shape) != len(given)):
            return False
        if any(isinstance(s, int) and s != g for s, g in zip(value.shape or (), given, strict=False)):
            return False
    return bool(model.graph.inputs)


def noise(model: Model, shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, Array]:
    """Return one feed of `shapes`: standard normal floats, integers and truth values in {0, 1}, text "a".

    A scalar that the graph holds against a stored number by Equal is that number: other values may not run.

    Inputs are drawn in the order of the graph, so that the same seed gives the same feed.
    """
    rng = np.random.default_rng(seed)
    return {v.name: _draw(v, shapes[v.name], rng) for v in model.graph.inputs}


def can_be_drawn(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Return whether noise of these shapes is worth its memory; an empty input may still declare sizes of any length."""
    return sum(math.prod(size for size in shape if size) for shape in shapes.values()) <= _FEED_LIMIT


def _draw(value: Variable, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    dtype = np.dtype(value.dtype or np.float32)
    if dtype == object:
        return np.full(shape, "a", object)
    wanted = _asked_for(value) if not shape else None
    if wanted is not None:
        return wanted.astype(dtype).reshape(shape)
    if dtype.kind in "iub":
        return rng.integers(0, 2, shape).astype(dtype)
    return rng.standard_normal(shape, np.float32).astype(dtype)


def _asked_for(value: Variable) -> Array | None:
    """Return the number that the graph asks whether `value` is, such as a sampling rate; None where it asks nothing."""
    for node in value.consumers:
        for other in node.inputs if node.is_op("Equal") else ():
            if isinstance(other, Constant) and other.values.size == 1:
                return other.values
    return None


def runnable_shapes(
    model: Model, session: Session, first: Mapping[str, tuple[int, ...]], seed: int
) -> Shapes | None:
    """Return the first of the candidate shapes at which `session` (of `model`) runs on noise, None where none does."""
    for shapes in candidate_shapes(model, first):
        if not can_be_drawn(shapes):
            continue
        try:
            session.run(noise(model, shapes, seed))
        except SessionError:
            continue
        return shapes
    return None
