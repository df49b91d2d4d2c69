"""The onnx package's light zoo with random weights: real architectures to measure exact passes on.

The files that the `onnx` package ships hold their weights as ConstantOfShape fills, so that equal outputs would prove
nothing on them. Here every fill becomes a stored tensor drawn for its role (a variance is positive, a weight is scaled by
its fan-in), after conversion to an opset that passes transform.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, NodeProto, numpy_helper, version_converter

from onnxcomp.ir.ops import RESHAPING
from onnxcomp.numerics.arrays import Array

__all__ = [
    "light_model",
    "light_paths",
    "networks_in",
    "random_feeds",
    "randomise",
    "relative_error",
    "run_as_written",
]


_LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def light_paths() -> list[Path]:
    """Return the files of the light zoo in the order of their names."""
    return sorted(_LIGHT.glob("light_*.onnx"))


def light_model(path: Path, seed: int = 0, opset: int = 17) -> ModelProto:
    """Return the light model at `path`, converted to `opset` and with random weights.

    Where the model ends in Gemm and Softmax, the Gemm is scaled so that its outputs have unit variance: a saturated
    Softmax would hide errors.
    """
    proto = onnx.load(path)
    # Before IR version 4 the converter insists on initializers that are inputs; 8 is what opset 17 came with.
    proto.ir_version = 8
    proto = randomise(version_converter.convert_version(proto, opset), seed)
    _unit_logits(proto, random_feeds(proto, seed))
    return proto


def randomise(proto: ModelProto, seed: int = 0) -> ModelProto:
    """Return a copy of `proto` whose ConstantOfShape fills of known shape are random stored tensors.

    The tensors keep the names of the values they replace. Weights are normal with variance 1 / fan-in, so that
    activations neither die out nor overflow; statistics and per-channel factors lie around one, offsets around zero.
    """
    rng = np.random.default_rng(seed)
    new = ModelProto()
    new.CopyFrom(proto)
    graph = new.graph
    shapes = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    readers = _readers(graph.node)
    kept: list[NodeProto] = []
    filled: set[str] = set()
    for node in graph.node:
        if node.op_type != "ConstantOfShape" or node.input[0] not in shapes:
            kept.append(node)
            continue
        name = node.output[0]
        values = _draw(rng, tuple(int(n) for n in shapes[node.input[0]]), *_role(name, readers))
        graph.initializer.append(numpy_helper.from_array(values, name))
        filled.add(node.input[0])
    del graph.node[:]
    graph.node.extend(kept)
    _drop_unread(graph, filled)
    return new


def _readers(nodes: Any) -> dict[str, tuple[NodeProto, int]]:
    return {name: (node, index) for node in nodes for index, name in enumerate(node.input) if name}


def _role(name: str, readers: dict[str, tuple[NodeProto, int]]) -> tuple[NodeProto | None, int]:
    node, index = readers.get(name, (None, 0))
    while node is not None and node.op_type in RESHAPING and index == 0:
        node, index = readers.get(node.output[0], (None, 0))
    return node, index


def _unit_logits(proto: ModelProto, feeds: dict[str, Array]) -> None:
    """Scale weight and bias of the Gemm before a last Softmax by what its outputs deviate, in place."""
    graph = proto.graph
    makers = {node.output[0]: node for node in graph.node}
    gemm = makers.get(makers[graph.output[0].name].input[0])
    if gemm is None or gemm.op_type != "Gemm":
        return
    probe = ModelProto()
    probe.CopyFrom(proto)
    probe.graph.output.add().name = gemm.output[0]
    deviation = run_as_written(probe, feeds)[gemm.output[0]].std()
    for tensor in graph.initializer:
        if tensor.name in gemm.input[1:]:
            scaled = numpy_helper.to_array(tensor) / deviation
            tensor.CopyFrom(numpy_helper.from_array(scaled.astype(np.float32), tensor.name))


def run_as_written(proto: ModelProto, feeds: dict[str, Array]) -> dict[str, Array]:
    """Return the outputs of `proto` by name, computed without any optimization of the runtime's own, on one thread."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))


def relative_error(expected: dict[str, Array], got: dict[str, Array]) -> float:
    """Return the largest deviation of any output, relative to the largest magnitude of that output."""
    worst = 0.0
    for name, reference in expected.items():
        scale = max(float(np.abs(reference).max(initial=0)), 1e-30)
        worst = max(worst, float(np.abs(got[name] - reference).max(initial=0)) / scale)
    return worst


def _draw(rng: np.random.Generator, shape: tuple[int, ...], node: NodeProto | None, index: int) -> Array:
    op = node.op_type if node is not None else ""
    match op, index:
        case ("BatchNormalization", 1 | 4) | ("Mul", _):
            return rng.uniform(0.5, 1.3, shape).astype(np.float32)
        case ("Conv", 1):
            return _normal(rng, shape, math.sqrt(1 / max(1, math.prod(shape[1:]))))
        case ("Gemm", 1) if node is not None:
            transposed = any(a.name == "transB" and a.i for a in node.attribute)
            return _normal(rng, shape, math.sqrt(1 / shape[1 if transposed else 0]))
        case _:
            return _normal(rng, shape, 0.1)


def _normal(rng: np.random.Generator, shape: tuple[int, ...], deviation: float) -> Array:
    """Return normal numbers; beyond a million they repeat with a prime period, which saves most of the time."""
    drawn = rng.standard_normal(min(math.prod(shape), 1_000_003), np.float32) * np.float32(deviation)
    return np.resize(drawn, shape)


def _drop_unread(graph: Any, candidates: set[str]) -> None:
    read = {name for node in graph.node for name in node.input}
    gone = candidates - read
    for field in (graph.initializer, graph.input):
        rest = [item for item in field if item.name not in gone]
        del field[:]
        field.extend(rest)


def random_feeds(proto: ModelProto, seed: int = 0, batch: int = 1) -> dict[str, Array]:
    """Return standard-normal arrays for the float inputs of `proto`; a free first axis gets `batch`, other free axes 32."""
    rng = np.random.default_rng(seed)
    stored = {t.name for t in proto.graph.initializer}
    feeds: dict[str, Array] = {}
    for info in proto.graph.input:
        if info.name in stored:
            continue
        dims = info.type.tensor_type.shape.dim
        shape = [d.dim_value or (batch if axis == 0 else 32) for axis, d in enumerate(dims)]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
        feeds[info.name] = rng.normal(size=shape).astype(dtype)
    return feeds


def networks_in(folder: Path) -> list[Path]:
    """Return the networks of `folder` by name; files that only store weights in half precision are none."""
    return [path for path in sorted(folder.glob("*.onnx")) if not path.stem.endswith("_stored_half")]
