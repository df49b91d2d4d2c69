"""Short ONNX texts for tests."""

from __future__ import annotations


def net(signature: str, weights: str, body: str, opset: int = 17) -> str:
    """Return the text of a model: its signature `(inputs) => (outputs)`, stored tensors and nodes."""
    return f'<ir_version: 8, opset_import: ["" : {opset}]> net {signature} <{weights}> {{ {body} }}'
