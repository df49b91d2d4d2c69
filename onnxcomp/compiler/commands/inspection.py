"""What is in a model: every node with its cost, every channel group with what blocks it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnxcomp.analysis.channels import channel_groups
from onnxcomp.analysis.cost import Cost, node_macs, weight_elements
from onnxcomp.compiler.run.pipeline import measure
from onnxcomp.compiler.run.prepare import Prepared
from onnxcomp.compiler.run.report import FileFacts
from onnxcomp.errors import OnnxcompError
from onnxcomp.ir.graph import Constant, Node, Value
from onnxcomp.ir.model import Model
from onnxcomp.ir.shapes import Shape, infer_types
from onnxcomp.runtime.observe import observe_shapes

__all__ = ["GroupFacts", "Inspection", "NodeFacts", "ValueFacts", "inspect_model"]


@dataclass(frozen=True)
class ValueFacts:
    """A graph input or output as it is declared: symbolic sizes as text, None where nothing is said."""

    name: str
    dtype: str
    shape: Shape | None


@dataclass(frozen=True)
class NodeFacts:
    """One node: its multiply-accumulates for one sample, the elements of the weights that it is first to read.

    `shape` and `dtype` are those of its first output, None where they are not known.
    """

    name: str
    op: str
    domain: str
    macs: int
    parameters: int
    shape: tuple[int, ...] | None
    dtype: str | None


@dataclass(frozen=True)
class GroupFacts:
    """Channels that can only be cut together: how many, who makes and who reads them, why none may go."""

    name: str
    units: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    members: tuple[str, ...]
    blocked: str | None


@dataclass(frozen=True)
class Inspection:
    """Everything `inspect` shows of a model."""

    file: FileFacts | None
    ir_version: int
    opsets: Mapping[str, int]
    producer: str
    metadata: Mapping[str, str]
    inputs: tuple[ValueFacts, ...]
    outputs: tuple[ValueFacts, ...]
    input_shapes: Mapping[str, tuple[int, ...]]
    cost: Cost
    nodes: tuple[NodeFacts, ...]
    groups: tuple[GroupFacts, ...]
    notes: tuple[str, ...]


def inspect_model(prepared: Prepared) -> Inspection:
    """Return what is in the model of `prepared`, at the sizes that run; read only."""
    model, notes = prepared.original, [*prepared.loaded.notes, *prepared.verifier.notes]
    shapes = observe_shapes(
        model,
        prepared.data.sample,
        sizes=prepared.data.shapes,
        threads=prepared.request.threads,
        custom_op_libs=prepared.request.custom_op_libs,
    )
    if not prepared.data.shapes and model.graph.inputs:
        notes.append("no sizes of the inputs are known to run, so costs and channel groups are not complete")
    try:
        groups = _groups(model, shapes)
    except OnnxcompError as problem:
        groups = ()
        notes.append(f"the channel groups cannot be found: {problem}")
    return Inspection(
        file=prepared.loaded.facts,
        ir_version=model.ir_version,
        opsets={domain or "ai.onnx": version for domain, version in model.opset_imports.items()},
        producer=f"{model.producer_name} {model.producer_version}".strip(),
        metadata=model.metadata,
        inputs=tuple(_value(v) for v in model.graph.inputs),
        outputs=tuple(_value(v) for v in model.graph.outputs),
        input_shapes=prepared.data.shapes,
        cost=measure(prepared, model),
        nodes=_nodes(model, shapes),
        groups=groups,
        notes=tuple(notes),
    )


def _value(value: Value) -> ValueFacts:
    dtype = "unknown" if value.dtype is None else str(value.dtype)
    return ValueFacts(value.name, dtype, None if value.shape is None else tuple(value.shape))


def _nodes(model: Model, shapes: Mapping[str, tuple[int, ...]]) -> tuple[NodeFacts, ...]:
    kinds = infer_types(model)
    counted: set[str] = set()
    found: list[NodeFacts] = []
    for node in model.graph.nodes:
        name = next((v.name for v in node.outputs if v.name), "")
        kind = kinds.get(name)
        found.append(
            NodeFacts(
                name=node.name,
                op=node.op,
                domain=node.domain or "",
                macs=node_macs(node, shapes),
                parameters=_parameters(node, counted),
                shape=shapes.get(name),
                dtype=str(kind.dtype) if kind is not None and kind.dtype is not None else None,
            )
        )
    return tuple(found)


def _parameters(node: Node, counted: set[str]) -> int:
    """Return the elements of the weights that `node` reads and no node in `counted` has; add their names to it."""
    total = 0
    for value in node.inputs:
        if isinstance(value, Constant) and value.name not in counted:
            counted.add(value.name)
            total += weight_elements(value)
    return total


def _groups(model: Model, shapes: Mapping[str, tuple[int, ...]]) -> tuple[GroupFacts, ...]:
    return tuple(
        GroupFacts(
            name=group.name,
            units=group.units,
            producers=tuple(group.producers),
            consumers=tuple(group.consumers),
            members=tuple(f"{m.name}[axis {m.axis}]" for m in group.members),
            blocked=group.blocked,
        )
        for group in channel_groups(model, shapes or None)
    )
