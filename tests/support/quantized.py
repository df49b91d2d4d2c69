"""Small quantized graphs: a chain of operators on one image, each pair of QuantizeLinear and DequantizeLinear told apart."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from onnxcomp.ir.model import Model
from onnxcomp.ir.proto import from_proto

UINT8, INT8, UINT16 = np.dtype(np.uint8), np.dtype(np.int8), np.dtype(np.uint16)


class Quantized:
    """A graph in the making: every method adds nodes and returns the name of the value they make.

    The input is `x`, `[1, 8, 16, 16]`; nodes are named as the caller says.
    """

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.stored: dict[str, NDArray[Any]] = {}
        self._rng = np.random.default_rng(0)

    def store(self, name: str, values: Any) -> str:
        """Add a stored tensor."""
        self.stored[name] = np.asarray(values)
        return name

    def node(self, op: str, name: str, *inputs: str, **attributes: Any) -> str:
        """Add a node, whose output has the name `<name>.out`."""
        self.nodes.append(helper.make_node(op, list(inputs), [f"{name}.out"], name=name, **attributes))
        return f"{name}.out"

    def pair(
        self, value: str, scale: float = 0.05, zero: int = 128, dtype: np.dtype[Any] = UINT8, name: str = ""
    ) -> str:
        """Add QuantizeLinear and DequantizeLinear behind `value`."""
        where = name or f"{value}.pair"
        numbers = [
            self.store(f"{where}.scale", np.float32(scale)),
            self.store(f"{where}.zero", dtype.type(zero)),
        ]
        quantized = self.node("QuantizeLinear", f"{where}.q", value, *numbers)
        return self.node("DequantizeLinear", f"{where}.dq", quantized, *numbers)

    def weight(self, name: str, *shape: int, axis: int = 0, dtype: np.dtype[Any] = INT8) -> str:
        """Add a stored weight and its DequantizeLinear, one scale per index along `axis`."""
        low, high = (0, 255) if dtype.kind == "u" else (-127, 127)
        inputs = [
            self.store(f"{name}.int", self._rng.integers(low, high, shape).astype(dtype)),
            self.store(f"{name}.scale", np.full(shape[axis], 0.01, np.float32)),
            self.store(f"{name}.zero", np.zeros(shape[axis], dtype)),
        ]
        return self.node("DequantizeLinear", f"{name}.dq", *inputs, axis=axis)

    def conv(self, name: str, value: str, out: int = 8, **options: Any) -> str:
        """Add a 3x3 convolution of 8 channels with a quantized weight."""
        return self.node("Conv", name, value, self.weight(f"{name}.w", out, 8, 3, 3, **options), pads=[1] * 4)

    def start(self) -> str:
        """Add the quantized input and a quantized convolution `first`, whose quantized output is returned."""
        return self.pair(self.conv("first", self.pair("x")))

    def model(self, *outputs: str, opset: int = 21) -> Model:
        """Return the model that makes `outputs`."""

        graph = helper.make_graph(
            self.nodes,
            "quantized",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 16, 16])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            [numpy_helper.from_array(v, name) for name, v in self.stored.items()],
        )
        imports = [helper.make_opsetid("", opset)]
        return from_proto(helper.make_model(graph, opset_imports=imports, ir_version=10))
