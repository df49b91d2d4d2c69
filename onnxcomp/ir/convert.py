"""Opset versions: older models become opset 13, and any model another version, with everything onnx's converter drops.

The converter gets a skeleton: weights stay out of it, so that its cost and its 2 GB limit do not depend on them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import replace
from itertools import chain, count

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, version_converter

from onnxcomp.errors import ModelError
from onnxcomp.ir.graph import Array, Constant, Graph, Variable, is_default_domain
from onnxcomp.ir.model import Model
from onnxcomp.ir.proto import from_proto, stored, to_proto
from onnxcomp.ir.scopes import subgraphs
from onnxcomp.ir.tensors import is_external, read_tensor, write_tensor

__all__ = [
    "NEWEST_IR_VERSION",
    "NEWEST_OPSET",
    "OLDEST_OPSET",
    "convert_opset",
    "minimum_ir_version",
    "settle_opset",
]

OLDEST_OPSET = 13
"""The oldest version of the standard operators that passes transform; older models are converted when loaded."""

NEWEST_OPSET = onnx.defs.onnx_opset_version()
"""The newest version of the standard operators that the installed onnx knows."""

NEWEST_IR_VERSION = int(onnx.IR_VERSION)
"""The newest version of the file format that the installed onnx knows."""

_HELD_ELEMENTS = 1024
"""Larger tensors are kept from the converter: the constants that its adapters read are shapes, axes and scales."""

_INVENTED = re.compile(r"_v_\d+")
"""How the converter names the values it adds, without a look at the names that are taken."""
_SHELTER = "onnxcomp.kept."
"""Put before the names of a model that look like that."""

_RESIZE_OPSET = 11
"""From here on Resize has a choice of coordinates; before, output index divided by scale was the only one."""

_REFUSALS = (
    RuntimeError,
    ValueError,
    IndexError,
    onnx.shape_inference.InferenceError,
    version_converter.ConvertError,
)

_DTYPE_IR = {
    "FLOAT8E4M3FN": 9, "FLOAT8E4M3FNUZ": 9, "FLOAT8E5M2": 9, "FLOAT8E5M2FNUZ": 9, "INT4": 10, "UINT4": 10,
    "FLOAT4E2M1": 11, "FLOAT8E8M0": 12, "INT2": 13, "UINT2": 13, "FLOAT6E2M3": 14, "FLOAT6E3M2": 14,
}  # fmt: skip
"""IR version that brought an element type (comments of onnx.proto)."""

_FUNCTIONS_IR = 8


def minimum_ir_version(model: Model) -> int:
    """Return the IR version that what `model` holds needs, as far as onnxcomp can have put it there."""
    dtypes = {constant.values.dtype for constant in stored(model.graph)}
    numbers = {onnx.helper.np_dtype_to_tensor_dtype(dtype) for dtype in dtypes}
    needed = [_DTYPE_IR.get(TensorProto.DataType.Name(number), 3) for number in numbers]
    # Weights are never graph inputs here, which version 4 allowed.
    return max([4 if dtypes else 3, *needed, *([_FUNCTIONS_IR] if model.functions else [])])


def settle_opset(model: Model) -> Model:
    """Return `model` in an opset that passes transform: itself from opset 13 on, else converted, with a note.

    Raises:
        ModelError: for a missing or unknown version, and for what cannot be converted, by the operator's name.
    """
    version = model.opset_imports.get("")
    if version is None:
        standard = next((n for n in model.graph.nodes if n.standard), None)
        if standard is None and model.opset_imports:
            return model
        what = f"node {standard.name!r} is a standard operator" if standard else "it imports nothing at all"
        raise ModelError(f"the model names no version of the standard operators (opset_import), but {what}")
    if version < 1 or version > NEWEST_OPSET:
        raise ModelError(
            f"the model needs opset {version}; the installed onnx {onnx.__version__} knows 1 to {NEWEST_OPSET}"
        )
    if version >= OLDEST_OPSET:
        return model
    converted = convert_opset(model, OLDEST_OPSET)
    converted.converted_from = version
    converted.notes.append(f"converted from opset {version} to opset {OLDEST_OPSET}")
    return converted


def convert_opset(model: Model, version: int) -> Model:
    """Return `model` in opset `version` of the standard operators; `model` is left as it is.

    Weights are shared, names of values and nodes, declared types, documentation and metadata are kept; values that the
    conversion adds are called `<value>__opset<version>`. The IR version is raised to what the opset came with.

    Raises:
        ModelError: where an operator cannot be converted; its node is named.
    """
    if not 1 <= version <= NEWEST_OPSET:
        raise ModelError(
            f"opset {version} does not exist for onnx {onnx.__version__}; it knows 1 to {NEWEST_OPSET}"
        )
    if version == model.opset or "" not in model.opset_imports:
        return model.clone()
    if model.functions:
        raise ModelError(
            f"cannot convert from opset {model.opset} to {version}: the model has its own function "
            f"{model.functions[0].name!r}, which the converter does not reach"
        )
    held = {c.name: c.values for c in stored(model.graph) if _is_held(c.values)}
    skeleton = _skeleton(model, held)
    try:
        converted = version_converter.convert_version(skeleton, version)
    except _REFUSALS as problem:
        raise ModelError(_why_refused(skeleton, version, problem)) from problem
    if model.opset < _RESIZE_OPSET <= version:
        _keep_resize(converted.graph)
    _restore_names(skeleton.graph, converted.graph, version)
    return _merge(model, converted, held)


def _is_held(values: Array) -> bool:
    # The converter's own representation has no place for strings and the newer element types.
    return values.size > _HELD_ELEMENTS or values.dtype.kind not in "fiub"


def _skeleton(model: Model, held: Mapping[str, Array]) -> ModelProto:
    """Return `model` with the tensors `held` as inputs, and without names that the converter could invent again."""

    def write(constant: Constant) -> TensorProto:
        if constant.name not in held:
            return write_tensor(constant.values, constant.name)
        elem_type = onnx.helper.np_dtype_to_tensor_dtype(constant.values.dtype)
        return TensorProto(name=constant.name, data_type=elem_type, dims=constant.values.shape)

    proto = to_proto(model, write=write)
    proto.ir_version = max(proto.ir_version, minimum_ir_version(model))
    tensors = [_copy(t) for t in proto.graph.initializer]
    del proto.graph.initializer[:]
    for tensor in tensors:
        if tensor.name in held:
            info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            proto.graph.input.append(info)
        else:
            proto.graph.initializer.append(tensor)
    _rename(proto.graph, lambda name: _SHELTER + name if _INVENTED.fullmatch(name) else name)
    return proto


def _copy(tensor: TensorProto) -> TensorProto:
    twin = TensorProto()
    twin.CopyFrom(tensor)
    return twin


def _rename(graph: GraphProto, new: Callable[[str], str]) -> None:
    """Rename every value of `graph` and of its subgraphs, in place."""
    for node in graph.node:
        node.input[:] = map(new, node.input)
        node.output[:] = map(new, node.output)
        for inner in subgraphs(node):
            _rename(inner, new)
    for named in [*graph.input, *graph.output, *graph.value_info, *graph.initializer]:
        named.name = new(named.name)
    for sparse in graph.sparse_initializer:
        sparse.values.name = new(sparse.values.name)
    for note in graph.quantization_annotation:
        note.tensor_name = new(note.tensor_name)


def _restore_names(before: GraphProto, after: GraphProto, version: int) -> None:
    """Give what the converter invented or left without a name its old name, or a new one; sheltered names return."""
    taken = set(_value_names(after))
    names = _lost_names(before, after, taken)
    taken.update(names.values())
    for name, anchor in _invented(after, "value"):
        if name not in names:
            names[name] = _unused(
                f"{names.get(anchor, anchor).removeprefix(_SHELTER)}__opset{version}", taken
            )
            taken.add(names[name])
    _rename(after, lambda name: names.get(name) or name.removeprefix(_SHELTER))
    makers = {output.removeprefix(_SHELTER): node.name for node in before.node for output in node.output}
    used = {node.name for node in after.node}
    for node in after.node:
        lost = makers.get(node.output[0], "")
        if not node.name and lost not in used:
            node.name = lost


def _lost_names(before: GraphProto, after: GraphProto, taken: Container[str]) -> dict[str, str]:
    """Return invented names -> old ones, for values that the converter renamed because it replaced their node."""
    old = {node.name: node for node in before.node if node.name}
    pairs = (
        (a, b)
        for node in after.node
        if node.name in old
        for a, b in zip(old[node.name].input, node.input, strict=False)
    )
    return {now: then for then, now in pairs if then and _INVENTED.fullmatch(now) and then not in taken}


def _unused(base: str, taken: Container[str]) -> str:
    return next(name for name in chain([base], (f"{base}_{i}" for i in count(2))) if name not in taken)


def _value_names(graph: GraphProto) -> Iterator[str]:
    yield from (v.name for v in [*graph.input, *graph.initializer])
    for node in graph.node:
        yield from node.output
        for inner in subgraphs(node):
            yield from _value_names(inner)


def _invented(graph: GraphProto, anchor: str) -> Iterator[tuple[str, str]]:
    """Yield every invented name of any scope with the next real name that is computed after it."""
    found: list[tuple[str, str]] = []
    for node in reversed(graph.node):
        anchor = next((n for n in node.output if n and not _INVENTED.fullmatch(n)), anchor)
        found.extend((n, anchor) for n in node.output if _INVENTED.fullmatch(n))
        for inner in subgraphs(node):
            found.extend(_invented(inner, anchor))
    yield from reversed(found)


def _keep_resize(graph: GraphProto) -> None:
    """Spell out what Resize and Upsample meant before opset 11; the converter leaves opset 11's other defaults."""
    for node in graph.node:
        for inner in subgraphs(node):
            _keep_resize(inner)
        if node.op_type == "Resize" and is_default_domain(node.domain):
            modes = {"coordinate_transformation_mode": "asymmetric"}
            if next((a.s for a in node.attribute if a.name == "mode"), b"nearest") == b"nearest":
                modes["nearest_mode"] = "floor"
            node.attribute.extend(onnx.helper.make_attribute(name, mode) for name, mode in modes.items())


def _merge(model: Model, converted: ModelProto, held: Mapping[str, Array]) -> Model:
    """Return `model` with the graph of `converted`, and everything that the converter dropped put back."""
    inputs = [info for info in converted.graph.input if info.name not in held]
    del converted.graph.input[:]
    converted.graph.input.extend(inputs)
    for name in held:
        converted.graph.initializer.append(TensorProto(name=name, data_location=TensorProto.EXTERNAL))
    fresh = from_proto(
        converted, lambda tensor: held[tensor.name] if is_external(tensor) else read_tensor(tensor)
    )
    _restore_labels(model.graph, fresh.graph)
    version = fresh.opset_imports[""]
    return replace(
        model.clone(),
        graph=fresh.graph,
        opset_imports={**model.opset_imports, "": version},
        ir_version=max(model.ir_version, _opset_ir_version(version) if version > model.opset else 0),
    )


def _restore_labels(before: Graph, after: Graph) -> None:
    """Put documentation, metadata and declared types of `before` back into `after`."""
    after.doc_string = before.doc_string
    nodes = {node.name: node for node in before.nodes}
    for node in after.nodes:
        if node.name in nodes:
            old = nodes[node.name]
            node.doc_string, node.metadata, node.overload = old.doc_string, dict(old.metadata), old.overload
    for name, constant in after.constants.items():
        if name in before.constants:
            constant.doc_string = before.constants[name].doc_string
            constant.metadata = dict(before.constants[name].metadata)
    for now, then in zip([*after.inputs, *after.outputs], [*before.inputs, *before.outputs], strict=True):
        if now.name != then.name:
            raise ModelError(f"the opset conversion lost {then.name!r} among the inputs and outputs")
        if isinstance(now, Variable) and isinstance(then, Variable):
            now.dtype, now.shape, now.type = then.dtype, then.shape, then.type


def _opset_ir_version(version: int) -> int:
    return int(onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", version)]))


def _why_refused(skeleton: ModelProto, version: int, problem: Exception) -> str:
    text = "".join(c if c.isprintable() else " " for c in str(problem))
    reason = " ".join(text.rsplit(" failed: ", 1)[-1].split())[:200]
    node = _first_refused(skeleton, version)
    before = next(o.version for o in skeleton.opset_import if is_default_domain(o.domain))
    what = f"{node.op_type!r} of node {node.name!r}" if node is not None else "the graph"
    return (
        f"cannot convert from opset {before} to {version}: onnx's converter refuses {what}: {reason}; "
        f"export the model with opset {OLDEST_OPSET} or later"
    )


def _first_refused(skeleton: ModelProto, version: int) -> NodeProto | None:
    """Return the first node without which, and without all after it, the conversion goes through."""
    low, high = 0, len(skeleton.graph.node)
    while low < high:
        middle = (low + high + 1) // 2
        if _converts(skeleton, middle, version):
            low = middle
        else:
            high = middle - 1
    return skeleton.graph.node[low] if low < len(skeleton.graph.node) else None


def _converts(skeleton: ModelProto, nodes: int, version: int) -> bool:
    start = ModelProto()
    start.CopyFrom(skeleton)
    del start.graph.node[nodes:]
    del start.graph.output[:]
    for name in start.graph.node[-1].output:
        start.graph.output.add().name = name
    try:
        version_converter.convert_version(start, version)
    except _REFUSALS:
        return False
    return True
