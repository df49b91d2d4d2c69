"""Reverse mode on ONNX graphs, and what is read off it."""
