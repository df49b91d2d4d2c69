"""onnxcomp: a compiler that makes trained networks in ONNX form smaller and faster."""

__version__ = "0.1.0"
