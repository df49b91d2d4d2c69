"""Deployment targets by name: what each toolchain wants of an ONNX file, as data with sources."""

from __future__ import annotations

from onnxcomp.compiler.target.facts import Target
from onnxcomp.compiler.target.files import DEFAULT_TARGET, load_target, target_names

__all__ = ["DEFAULT_TARGET", "TARGETS", "Target", "target"]

TARGETS = {name: load_target(name) for name in target_names()}
"""All targets by name, the default first."""


def target(name: str) -> Target:
    """Return the target called `name`.

    Raises:
        UsageError: for an unknown name, with the nearest.
    """
    return load_target(name)
