"""Quantization: formats, placement, ranges, QDQ, rounding, conversion."""
