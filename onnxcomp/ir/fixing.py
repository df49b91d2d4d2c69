"""Free sizes of graph inputs made fixed, and what follows from that for the declared outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxcomp.errors import UsageError
from onnxcomp.ir.graph import Variable
from onnxcomp.ir.model import Model
from onnxcomp.ir.shapes import Shape, infer_types

__all__ = ["fix_input_shapes"]


def fix_input_shapes(model: Model, shapes: Mapping[str, tuple[int | None, ...]]) -> list[str]:
    """Give inputs of `model` the sizes in `shapes` (None: as it is) and return what changed, one sentence each.

    A symbolic size that is fixed is fixed wherever inputs declare it. Declared outputs take the sizes that follow.
    Edits `model` in place; nothing is edited when an error is raised.

    Raises:
        UsageError: for an unknown input, a wrong number of axes, a size below 1, two sizes for one symbol.
    """
    inputs = {v.name: v for v in model.graph.inputs}
    bound: dict[str, int] = {}
    wanted: dict[str, Shape] = {}
    for name, sizes in shapes.items():
        wanted[name] = _fixed(name, sizes, inputs)
        for old, new in zip(inputs[name].shape or (), wanted[name], strict=False):
            if isinstance(old, str) and isinstance(new, int) and bound.setdefault(old, new) != new:
                raise UsageError(f"--set-shape gives {old} the sizes {bound[old]} and {new}; it is one size")
    changes: list[str] = []
    for value in model.graph.inputs:
        shape = wanted.get(value.name, value.shape)
        if shape is None:
            continue
        shape = tuple(bound.get(s, s) if isinstance(s, str) else s for s in shape)
        if shape != value.shape:
            changes.append(f"input {value.name}: {_text(value.shape)} -> {_text(shape)}")
            _declare(model, value, shape)
    if changes:
        _settle_outputs(model)
    return changes


def _fixed(name: str, sizes: tuple[int | None, ...], inputs: Mapping[str, Variable]) -> Shape:
    if name not in inputs:
        raise UsageError(f"--set-shape names '{name}', which is no input; inputs: {', '.join(inputs)}")
    old: Shape = inputs[name].shape if inputs[name].shape is not None else (None,) * len(sizes)
    if len(old) != len(sizes):
        raise UsageError(f"--set-shape gives {name} {len(sizes)} sizes; it has {len(old)} axes: {_text(old)}")
    if any(size is not None and size < 1 for size in sizes):
        raise UsageError(f"--set-shape gives {name} a size below 1")
    return tuple(before if size is None else size for before, size in zip(old, sizes, strict=True))


def _settle_outputs(model: Model) -> None:
    static = {
        v.name: tuple(s for s in v.shape if isinstance(s, int))
        for v in model.graph.inputs
        if v.shape is not None and all(isinstance(s, int) for s in v.shape)
    }
    found = infer_types(model, static)
    for value in model.graph.outputs:
        kind = found.get(value.name)
        if not isinstance(value, Variable) or kind is None or kind.shape is None or value.shape is None:
            continue
        if len(kind.shape) == len(value.shape):
            pairs = zip(value.shape, kind.shape, strict=True)
            _declare(model, value, tuple(new if isinstance(new, int) else old for old, new in pairs))


def _declare(model: Model, value: Variable, shape: Shape) -> None:
    value.shape = shape
    info: Any = model.io_protos.get(value.name)
    if info is None:
        return
    declared = type(info)()
    declared.CopyFrom(info)
    tensor = declared.type.tensor_type.shape
    del tensor.dim[:]
    tensor.SetInParent()
    for size in shape:
        dim = tensor.dim.add()
        if isinstance(size, int):
            dim.dim_value = size
        elif size is not None:
            dim.dim_param = size
    model.io_protos[value.name] = declared


def _text(shape: Shape | None) -> str:
    if shape is None:
        return "unknown"
    return "[" + ", ".join("?" if s is None else str(s) for s in shape) + "]"
