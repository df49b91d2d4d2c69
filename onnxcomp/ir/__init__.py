"""The graph and the file: the only room that imports onnx and onnx_graphsurgeon."""

from onnxcomp.ir.graph import Constant, Graph, Node, Value, Variable, is_default_domain
from onnxcomp.ir.model import Model
from onnxcomp.ir.proto import from_proto, to_proto

__all__ = [
    "Constant",
    "Graph",
    "Model",
    "Node",
    "Value",
    "Variable",
    "from_proto",
    "is_default_domain",
    "to_proto",
]
