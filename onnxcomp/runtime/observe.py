"""Concrete shapes of every value: by inference first, by running the model for what inference leaves open."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from onnxcomp.ir.graph import Array
from onnxcomp.ir.model import Model
from onnxcomp.ir.segment import with_outputs
from onnxcomp.ir.shapes import infer_types
from onnxcomp.runtime.inputs import PIECE_LIMIT
from onnxcomp.runtime.session import Session, SessionError

__all__ = ["observe_shapes"]

_AT_ONCE = 16
"""Values fetched in one run: enough to need few runs, few enough that their arrays are never many."""


def observe_shapes(
    model: Model,
    feeds: Mapping[str, Array],
    *,
    sizes: Mapping[str, tuple[int, ...]] | None = None,
    wanted: Collection[str] | None = None,
    threads: int = 1,
    custom_op_libs: Sequence[str] = (),
) -> dict[str, tuple[int, ...]]:
    """Return the shape of every value of `model` when it runs on `feeds` (one whole feed: `{input: array}`).

    Where a model cannot be run, `feeds` is empty and `sizes` gives the shapes of its inputs. Shape inference answers
    first. If it leaves a value of `wanted` open (by default any value), the model is run once per `16` open values,
    and only the shapes of the results are kept. Values that are no tensors, or that a model which does not run leaves
    open, are absent.
    """
    shapes = {name: tuple(np.shape(array)) for name, array in feeds.items()} or dict(sizes or {})
    known = {
        name: kind.static for name, kind in infer_types(model, shapes).items() if kind.static is not None
    }
    known.update(shapes)
    made = [v.name for node in model.graph.nodes for v in node.outputs if v.name and v.name not in known]
    if wanted is not None and not any(name in wanted for name in made):
        made = []
    if made and (feeds or not model.graph.inputs) and model.weight_bytes < PIECE_LIMIT:
        known.update(_by_running(model, feeds, made, threads, custom_op_libs))
    return known


def _by_running(
    model: Model, feeds: Mapping[str, Array], names: Sequence[str], threads: int, libs: Sequence[str]
) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    try:
        session = Session(with_outputs(model, names), optimize=False, threads=threads, custom_op_libs=libs)
        for start in range(0, len(names), _AT_ONCE):
            results = session.run(feeds, names[start : start + _AT_ONCE])
            found.update((n, v.shape) for n, v in results.items() if isinstance(v, np.ndarray))
    except SessionError:
        # What runs nowhere has no shapes; those found so far are right, and the rest stays unknown.
        return found
    return found
