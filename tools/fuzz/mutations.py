"""Mutations: small random edits of models, of data files and of the text of pipelines, each of a kind that files really have."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import onnx
from onnx import ModelProto, helper, numpy_helper

from onnxcomp.compiler.registry import Registry
from onnxcomp.numerics.arrays import Array

__all__ = ["PIPELINES", "mutate_arrays", "mutate_bytes", "mutate_model", "mutate_pipeline"]

ODD_NUMBERS = (0, 1, -1, 2, 3, 7, 64, 65, 2**31 - 1, -(2**31), 2**40)
"""Sizes, axes and counts that are legal somewhere, and hardly anywhere."""

PIPELINES = (
    "fold-constants,fold-batchnorm,remove-dead",
    "remove-dead",
    "prune-filters{ratio=0.25 criterion=l1 repair=none}",
    "prune-filters{macs=0.7 scope=uniform}",
    "split-svd{params=0.8}",
    "substitute-depthwise{macs=0.9}",
    "insert-qdq",
    "fold-batchnorm,prune-filters{ratio=0.5 criterion=l2 repair=one-shot},insert-qdq{rounding=nearest}",
)
"""Pipelines that every technique takes part in, none of them slow on these networks."""


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Return `data` with a few bits flipped, a piece cut out or doubled, or its end missing."""
    for _ in range(rng.randint(1, 3)):
        at, size = rng.randrange(len(data) + 1), rng.randint(1, 64)
        match rng.choice(("flip", "cut", "double", "end")):
            case "flip" if at < len(data):
                data = data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
            case "cut":
                data = data[:at] + data[at + size :]
            case "double":
                data = data[:at] + data[at : at + size] + data[at:]
            case _:
                data = data[:at]
    return data


def mutate_model(model: ModelProto, rng: random.Random) -> str:
    """Edit `model` in place once, and return what was done in a word."""
    name, edit = rng.choice(list(_EDITS.items()))
    edit(model, rng)
    return name


def _node(model: ModelProto, rng: random.Random) -> onnx.NodeProto:
    node: onnx.NodeProto = rng.choice(model.graph.node)
    return node


def _attribute(model: ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    if not node.attribute:
        node.attribute.append(helper.make_attribute("axis", rng.choice(ODD_NUMBERS[:8])))
        return
    attribute = rng.choice(node.attribute)
    match rng.choice(("value", "doc", "type", "empty", "name")):
        case "value" if attribute.ints:
            attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(ODD_NUMBERS)
        case "value":
            attribute.i = rng.choice(ODD_NUMBERS)
            attribute.f = rng.choice((0.0, -1.0, float("nan"), float("inf"), 1e38))
        case "doc":
            attribute.doc_string = "what this is for"
        case "type":
            attribute.type = rng.choice((1, 2, 3, 4, 5, 6, 7, 8, 11))
        case "empty":
            for field in ("ints", "floats", "strings"):
                attribute.ClearField(field)
        case _:
            attribute.name += "_"


def _wire(model: ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    values = [v for n in model.graph.node for v in n.output] + [t.name for t in model.graph.initializer]
    if node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice([*values, "", "nobody"])


def _outputs(model: ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    match rng.choice(("more", "graph", "inner")):
        case "more":
            node.output.append(rng.choice(("", "another")))
        case "graph":
            del model.graph.output[rng.randrange(len(model.graph.output)) :]
        case _:
            model.graph.output.append(helper.make_empty_tensor_value_info(rng.choice(node.output)))


def _nodes(model: ModelProto, rng: random.Random) -> None:
    nodes = model.graph.node
    at = rng.randrange(len(nodes))
    match rng.choice(("drop", "double", "swap", "rename", "operator", "domain")):
        case "drop":
            del nodes[at]
        case "double":
            nodes.insert(at, nodes[at])
        case "swap":
            other = onnx.NodeProto()
            other.CopyFrom(nodes[at])
            del nodes[at]
            nodes.insert(rng.randrange(len(nodes) + 1), other)
        case "rename":
            nodes[at].name = rng.choice(("", "same", "<script>", "a/b\nc", "x" * 5000))
        case "operator":
            nodes[at].op_type = rng.choice(
                ("Relu", "Identity", "Shape", "NonZero", "TopK", "Nonsense", "If", "Softmax")
            )
        case _:
            nodes[at].domain = rng.choice(("com.microsoft", "ai.onnx", "elsewhere"))


def _weights(model: ModelProto, rng: random.Random) -> None:
    if not model.graph.initializer:
        return
    tensor = rng.choice(model.graph.initializer)
    match rng.choice(("dims", "dtype", "values", "shape", "short", "external", "input")):
        case "dims" if tensor.dims:
            tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(ODD_NUMBERS)
        case "dtype":
            tensor.data_type = rng.choice((1, 3, 6, 7, 9, 10, 11, 16, 21, 99))
        case "values" if tensor.data_type == 1:
            array = numpy_helper.to_array(tensor).copy()
            array.flat[: rng.choice((1, array.size))] = rng.choice((np.nan, np.inf, -3.4e38, 1e-40, 0.0))
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        case "shape":
            array = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(array.reshape(-1), tensor.name))
        case "short":
            tensor.raw_data = tensor.raw_data[: len(tensor.raw_data) // 2]
        case "external":
            tensor.data_location = 1
            tensor.external_data.add(key="location", value=rng.choice(("../../etc/passwd", "gone.bin", "")))
        case _:
            model.graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )


def _sizes(model: ModelProto, rng: random.Random) -> None:
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    sizes = [d for v in values if v.type.HasField("tensor_type") for d in v.type.tensor_type.shape.dim]
    if not sizes:
        return
    size = rng.choice(sizes)
    if rng.random() < 0.5:
        size.dim_param = rng.choice(("N", "batch", "?", "a b", ""))
    else:
        size.dim_value = rng.choice(ODD_NUMBERS)


def _frame(model: ModelProto, rng: random.Random) -> None:
    match rng.choice(("opset", "ir", "metadata", "types", "domains")):
        case "opset" if model.opset_import:
            model.opset_import[0].version = rng.choice((1, 7, 9, 12, 13, 18, 21, 23, 99))
        case "ir":
            model.ir_version = rng.choice((3, 4, 7, 9, 12, 99))
        case "metadata":
            model.metadata_props.add(key="onnxcomp.pipeline", value="\x00")
        case "types":
            model.graph.input[0].type.tensor_type.elem_type = rng.choice((0, 1, 6, 7, 8, 10, 11))
        case _:
            model.opset_import.add(domain=rng.choice(("", "com.microsoft")), version=1)


_EDITS: dict[str, Callable[[ModelProto, random.Random], None]] = {
    "attribute": _attribute,
    "wire": _wire,
    "outputs": _outputs,
    "nodes": _nodes,
    "weights": _weights,
    "sizes": _sizes,
    "frame": _frame,
}


def mutate_arrays(arrays: dict[str, Array], rng: random.Random) -> str:
    """Edit the arrays of a data file in place once, and return what was done in a word."""
    name = rng.choice(list(arrays))
    array = arrays[name]
    what = rng.choice(("name", "dtype", "nan", "huge", "shape", "none", "flat", "more", "objects"))
    match what:
        case "name":
            arrays[name + "x"] = arrays.pop(name)
        case _ if array.dtype.kind == "U":
            arrays[name] = np.array(mutate_bytes(str(array).encode(), rng).decode(errors="replace"))
        case "dtype":
            arrays[name] = array.astype(
                rng.choice(("float64", "int32", "float16", "uint8", "bool", "complex64"))
            )
        case "nan" | "huge" if array.dtype.kind == "f" and array.size:
            arrays[name] = array.copy()
            arrays[name].flat[rng.randrange(array.size)] = np.nan if what == "nan" else 3e38
        case "shape" if array.ndim:
            arrays[name] = np.moveaxis(array, 0, -1)
        case "none":
            arrays[name] = array[:0]
        case "flat":
            arrays[name] = array.reshape(-1)
        case "more":
            arrays["labels"] = np.arange(3)
        case "objects":
            arrays[name] = np.array([None, {}], dtype=object)
        case _:
            arrays[name] = array[:1]
    return what


def mutate_pipeline(text: str, rng: random.Random) -> str:
    """Return another pipeline: options with other values, a pass more or less, or broken text."""
    match rng.choice(("option", "option", "option", "pass", "text")):
        case "option":
            name = rng.choice(Registry.installed().names())
            options = Registry.installed().resolve(name).options()
            words = []
            for option in rng.sample(options, min(len(options), rng.randint(1, 3))):
                value = rng.choice(
                    ("0", "1", "-1", "0.5", "0.25", "2", "1e9", "nan", "none", "true", "auto", "l1", "")
                )
                words.append(f"{option.name}={value}")
            return f"{name}{{{' '.join(words)}}}"
        case "pass":
            return f"{text},{rng.choice(PIPELINES)}"
        case _:
            at = rng.randrange(len(text))
            return text[:at] + rng.choice("{}=,\" \n'x") + text[at + rng.randint(0, 2) :]
