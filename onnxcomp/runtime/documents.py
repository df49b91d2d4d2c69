"""The version of the JSON documents that onnxcomp writes, and the versions that it still reads."""

from __future__ import annotations

__all__ = ["READABLE_VERSIONS", "SCHEMA_VERSION"]

SCHEMA_VERSION = 2
"""Of every JSON document; raised when a field changes its name or meaning or goes away.

2: `harm` and `weight_harm` of the rows of mixed precision are called `sensitivity` and `weight_sensitivity`.
"""

READABLE_VERSIONS = (SCHEMA_VERSION - 1, SCHEMA_VERSION)
"""Of the documents that `--timings` and `--ranges` take: the present one, and for one version the one before."""
