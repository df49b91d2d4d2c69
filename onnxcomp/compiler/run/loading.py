"""The model of a run: checked in a process of its own, loaded, and settled into the form that the passes will see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnxcomp.compiler.run.report import FileFacts
from onnxcomp.compiler.run.request import Request
from onnxcomp.errors import UsageError
from onnxcomp.ir.convert import (
    NEWEST_IR_VERSION,
    NEWEST_OPSET,
    OLDEST_OPSET,
    convert_opset,
    minimum_ir_version,
)
from onnxcomp.ir.files import load, sha256_of
from onnxcomp.ir.fixing import fix_input_shapes
from onnxcomp.ir.graph import Node
from onnxcomp.ir.model import Model
from onnxcomp.ir.randomness import random_nodes, with_seeds
from onnxcomp.runtime.inputs import PIECE_LIMIT, Shapes
from onnxcomp.runtime.sandbox import probe
from onnxcomp.runtime.session import Session, SessionError, missing_library

__all__ = ["Loaded", "file_facts", "load_checked", "load_request"]


@dataclass(frozen=True)
class Loaded:
    """The model a run starts from.

    `facts` are of the input file, None for a model in memory; `settled` says what was changed in the model itself
    (sizes, opset), one sentence each; random operators have seeds, which what is written does not keep. `session` runs it exactly as written, None where onnxruntime cannot load it;
    `shapes` are sizes of the inputs at which it may run, empty where nothing is known.
    """

    model: Model
    facts: FileFacts | None
    settled: tuple[str, ...]
    session: Session | None
    shapes: Shapes
    notes: tuple[str, ...]


def load_checked(
    path: Path,
    *,
    allow_links: bool = False,
    custom_op_libs: Sequence[str] = (),
    sizes: Mapping[str, tuple[int | None, ...]] | None = None,
) -> tuple[Model, Shapes]:
    """Return the model in the file `path`, and sizes of its inputs at which it runs (empty where it does not).

    A process of its own has checked, loaded and run it before; `sizes` are those that the user knows.

    Raises:
        ModelError: where the file is malformed, unsafe, or makes the native libraries crash.
        UsageError: where it cannot be read.
    """
    fixed = {
        name: tuple(s for s in shape if s is not None)
        for name, shape in (sizes or {}).items()
        if None not in shape
    }
    seen = probe(path, allow_links=allow_links, custom_op_libs=tuple(custom_op_libs), input_shapes=fixed)
    return load(path, allow_links=allow_links), seen.input_shapes


def file_facts(path: Path, *, allow_links: bool = False, name: Path | None = None) -> FileFacts:
    """Return what the model file at `path` is, its external data included; `name` is what to call it, if not `path`.

    Raises:
        ModelError: where it is no model, or its external data is missing or unsafe.
    """
    digests = sha256_of(path, allow_links=allow_links)
    return FileFacts(str(name or path), digests.sha256, digests.bytes, digests.external)


def load_request(request: Request, model: Model | None) -> Loaded:
    """Return the model that `request` is about, settled; `model` stands in for its file and is not edited.

    Raises:
        UsageError, ModelError: where there is none, or it cannot be had in the form asked for.
    """
    facts: FileFacts | None = None
    shapes: Shapes = {}
    if model is None:
        if request.source is None:
            raise UsageError("there is no model; give a path or a model")
        model, shapes = load_checked(
            request.source,
            allow_links=request.allow_links,
            custom_op_libs=request.custom_op_libs,
            sizes=request.set_shape,
        )
        facts = file_facts(request.source, allow_links=request.allow_links)
    model = model.clone()
    settled: list[str] = []
    if request.opset is not None and request.opset != model.opset:
        settled.append(f"opset {model.opset} -> {request.opset}")
        model = convert_opset(model, _checked_opset(request.opset))
    if request.ir_version is not None and request.ir_version != model.ir_version:
        settled.append(f"IR version {model.ir_version} -> {request.ir_version}")
        model.ir_version = _checked_ir_version(request.ir_version, model)
    settled += fix_input_shapes(model, request.set_shape)
    notes = [*model.notes, *settled]
    drawing = random_nodes(model)
    if drawing:
        model = with_seeds(model)
        notes.append(_drawn(drawing))
    session = _session(request, model, bool(settled), notes)
    return Loaded(model, facts, tuple(settled), session, shapes, tuple(notes))


def _drawn(nodes: Sequence[Node]) -> str:
    names = ", ".join(f"{node.name} ({node.op})" for node in nodes[:3])
    return (
        f"the network draws random numbers: {names}{', ...' if len(nodes) > 3 else ''}; it is verified and compared with the "
        "same seeds on both sides, and what is written keeps its own"
    )


def _checked_opset(version: int) -> int:
    if not OLDEST_OPSET <= version <= NEWEST_OPSET:
        raise UsageError(f"--opset {version} is not between {OLDEST_OPSET} and {NEWEST_OPSET}")
    return version


def _checked_ir_version(version: int, model: Model) -> int:
    # Weights that are not graph inputs, which is how all models are held here, came with version 4.
    least = max(4, minimum_ir_version(model))
    if not least <= version <= NEWEST_IR_VERSION:
        raise UsageError(
            f"--ir-version {version} is not between {least}, which the model needs, and {NEWEST_IR_VERSION}"
        )
    return version


def _session(request: Request, model: Model, settled: bool, notes: list[str]) -> Session | None:
    """Return a session over `model`, or None with a note that says why there is none."""
    source: Model | str = model
    if model.weight_bytes > PIECE_LIMIT:
        if request.source is None or settled:
            notes.append("the model is too large to run from memory; results are checked in structure only")
            return None
        source = str(request.source)
    try:
        return Session(source, optimize=False, threads=request.threads, custom_op_libs=request.custom_op_libs)
    except SessionError as problem:
        notes.append(
            f"onnxruntime cannot load the model, results are checked in structure only ({problem})"
            f"{missing_library(model)}"
        )
        return None
