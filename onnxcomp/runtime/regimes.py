"""Made inputs of several kinds, to hold two models against each other where they might part."""

from __future__ import annotations

import numpy as np

from onnxcomp.ir.graph import Variable
from onnxcomp.ir.model import Model
from onnxcomp.numerics.arrays import Array, Shapes

__all__ = ["FREE_SIZE", "LARGE", "REGIMES", "concrete_shape", "made_feeds"]


REGIMES = ("normal", "zeros", "large", "one-hot")
"""Kinds of input: standard normal; all zero; normal times `LARGE`; zero but for one element per sample."""

LARGE = 100.0
"""Factor of the regime `large`: far into the flat parts of Sigmoid, Clip and their like, and not yet Inf in float16."""

FREE_SIZE = 32
"""Size of free axes other than the first where the caller gives none."""


def made_feeds(
    model: Model, regime: str = "normal", *, seed: int = 0, batch: int = 1, shapes: Shapes | None = None
) -> dict[str, Array]:
    """Return one feed of `model` in the given regime.

    A free first axis has size `batch`, other free axes `FREE_SIZE`, unless `shapes` names the input. Integers of 32
    and 64 bits and truth values stay in {0, 1}, as they may be indices.
    """
    rng = np.random.default_rng([seed, REGIMES.index(regime)])
    return {v.name: _draw(v, concrete_shape(v, batch, shapes), regime, rng) for v in model.graph.inputs}


def concrete_shape(value: Variable, batch: int = 1, shapes: Shapes | None = None) -> tuple[int, ...]:
    """Return the shape that `made_feeds` gives to a graph input."""
    if shapes is not None and value.name in shapes:
        return shapes[value.name]
    return tuple(
        size if isinstance(size, int) and size > 0 else (FREE_SIZE if axis else batch)
        for axis, size in enumerate(value.shape or ())
    )


def _draw(value: Variable, shape: tuple[int, ...], regime: str, rng: np.random.Generator) -> Array:
    dtype = np.dtype(value.dtype or np.float32)
    if dtype == object:
        return np.full(shape, "a", object)
    integer = dtype.kind in "iub"
    array = rng.integers(0, 2, shape).astype(np.float64) if integer else rng.standard_normal(shape)
    if regime == "zeros":
        array = np.zeros(shape)
    elif regime == "one-hot":
        array = np.zeros(shape)
        for sample in array if array.ndim > 1 else [array]:
            sample.reshape(-1)[rng.integers(sample.size)] = 1.0
    elif regime == "large":
        if not integer:
            array = array * LARGE
        elif dtype.itemsize < 4 and dtype.kind != "b":
            array = array * float(np.iinfo(dtype).max)
    return array.astype(dtype)
