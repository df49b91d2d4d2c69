"""Is this model what ONNX allows, and does it still have the face it had?"""

from __future__ import annotations

import onnx

from onnxcomp.errors import ModelError
from onnxcomp.ir.model import Model
from onnxcomp.ir.proto import stored, to_proto

__all__ = ["check_model", "check_names", "interface", "serialized_bytes"]


def check_model(model: Model) -> None:
    """Hold `model` against the ONNX specification: the checker in full, strict shape inference included.

    Large weights are declared and not copied, so that time and memory do not depend on them.

    Raises:
        ModelError: with the checker's reason in one line.
    """
    try:
        onnx.checker.check_model(to_proto(model, skeleton=True), full_check=True)
    except (
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
        RuntimeError,
        ValueError,
    ) as problem:
        text = " ".join(str(problem).split())
        raise ModelError(f"the ONNX checker refuses the model: {text[:300]}") from problem


def check_names(model: Model) -> None:
    """Make sure that no two values of `model` share a name, and that nodes read only what is defined before them.

    The ONNX checker sees the written file, where two values of one name have become one; this sees the graph.

    Raises:
        ModelError: naming the value.
    """
    graph = model.graph
    owners: dict[str, object] = {}
    for value in [
        *graph.inputs,
        *graph.constants.values(),
        *(v for n in graph.nodes for v in n.outputs if v.name),
    ]:
        if owners.setdefault(value.name, value) is not value:
            raise ModelError(f"two values are called {value.name!r}")
    made = {v.name for v in graph.inputs} | set(graph.constants)
    for node in graph.nodes:
        for value in node.inputs:
            if value.name and owners.setdefault(value.name, value) is not value:
                raise ModelError(f"node {node.name!r} reads another value called {value.name!r}")
            if value.name and value.name not in made and not hasattr(value, "values"):
                raise ModelError(f"node {node.name!r} reads {value.name!r} before it is computed")
        for name in node.captures:
            if name not in made:
                raise ModelError(
                    f"a subgraph of {node.name!r} reads {name!r}, which is not computed before it"
                )
        made.update(v.name for v in node.outputs if v.name)
    for value in graph.outputs:
        if owners.get(value.name, value) is not value:
            raise ModelError(f"the graph output {value.name!r} is not the value that bears its name")


def interface(model: Model) -> tuple[str, ...]:
    """Return the inputs and outputs as the file will declare them: names, types, order, symbolic sizes."""
    graph = to_proto(model, skeleton=True).graph
    inputs = list(graph.input)[: len(model.graph.inputs)]
    return (
        *(f"input {' '.join(str(info).split())}" for info in inputs),
        *(f"output {' '.join(str(info).split())}" for info in graph.output),
    )


def serialized_bytes(model: Model) -> int:
    """Return about how many bytes `model` takes as a file, without copying its weights."""
    proto = to_proto(model, skeleton=True)
    declared = {info.name for info in proto.graph.input}
    return int(proto.ByteSize()) + sum(c.values.nbytes for c in stored(model.graph) if c.name in declared)
