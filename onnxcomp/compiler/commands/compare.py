"""Two model files on the same data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from onnxcomp.compiler.run.conditions import compare_with_original
from onnxcomp.compiler.run.loading import file_facts, load_checked
from onnxcomp.compiler.run.pipeline import Listener
from onnxcomp.compiler.run.prepare import prepare
from onnxcomp.compiler.run.report import DataFacts, FileFacts
from onnxcomp.compiler.run.request import Request
from onnxcomp.errors import ModelError, UsageError
from onnxcomp.ir.model import Model
from onnxcomp.runtime.compare import Comparison

__all__ = ["Contrast", "contrast", "sizes_fixed_by"]


@dataclass(frozen=True)
class Contrast:
    """How the model `b` differs from the model `a` on the samples of `data`."""

    a: FileFacts
    b: FileFacts
    data: DataFacts
    comparison: Comparison


def contrast(request: Request, other: Path, listener: Listener) -> Contrast:
    """Return how the model `other` differs from the source of `request`, on its evaluation data.

    Where one of them fixes sizes that the other leaves free, both are run at these.

    Raises:
        UsageError, ModelError, DataError: where a file or the data cannot be used, or the models do not compare.
    """
    if request.source is None or request.evaluation is None:
        raise UsageError("two models are compared on data; give both files and --data")
    first, second = (_load(path, request, listener) for path in (request.source, other))
    fixed = sizes_fixed_by(second, first)
    prepared = prepare(replace(request, set_shape=fixed), first)
    if not prepared.verifier.runs:
        raise ModelError(f"{request.source} cannot be run: {'; '.join(prepared.loaded.notes)}")
    comparison, _ = compare_with_original(prepared, str(other), listener)
    if comparison is None:
        raise ModelError("the models do not run here, so there is nothing to compare")
    links = request.allow_links
    return Contrast(
        a=file_facts(request.source, allow_links=links),
        b=file_facts(other, allow_links=links),
        data=prepared.data.facts[-1],
        comparison=comparison,
    )


def _load(path: Path, request: Request, listener: Listener) -> Model:
    if not path.is_file():
        raise UsageError(f"the model {path} does not exist; give the path of an .onnx file")
    listener.stage(f"loading {path.name}")
    model, _ = load_checked(path, allow_links=request.allow_links, custom_op_libs=request.custom_op_libs)
    return model


def sizes_fixed_by(model: Model, other: Model) -> dict[str, tuple[int | None, ...]]:
    """Return the sizes that the inputs of `model` fix where `other` leaves them free, None elsewhere.

    Raises:
        ModelError: where the inputs of the two have different names, numbers of axes, or fixed sizes.
    """
    ours, theirs = ({v.name: v for v in m.graph.inputs} for m in (model, other))
    if ours.keys() != theirs.keys():
        raise ModelError(
            f"the models have different inputs: {', '.join(theirs)} and {', '.join(ours)}; "
            "only models with the same inputs can be compared"
        )
    found: dict[str, tuple[int | None, ...]] = {}
    for name, value in ours.items():
        mine, its = value.shape, theirs[name].shape
        if mine is None or its is None:
            continue
        pairs = list(zip(mine, its, strict=False))
        if len(mine) != len(its) or any(
            isinstance(a, int) and isinstance(b, int) and a != b for a, b in pairs
        ):
            raise ModelError(
                f"input '{name}' has the shape {list(its)} in one model and {list(mine)} in the other"
            )
        found[name] = tuple(a if isinstance(a, int) and not isinstance(b, int) else None for a, b in pairs)
    return {name: sizes for name, sizes in found.items() if any(s is not None for s in sizes)}
