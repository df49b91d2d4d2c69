"""Pipelines that have a name."""

from __future__ import annotations

from dataclasses import dataclass

from onnxcomp.compiler.spec import Pipeline
from onnxcomp.errors import UsageError, hint

__all__ = ["DEFAULT", "PRESETS", "Preset", "pipeline_of", "preset"]


@dataclass(frozen=True)
class Preset:
    """A pipeline text under a name, with one line on what it is for."""

    name: str
    pipeline: str
    summary: str


DEFAULT = "exact"
"""What runs where neither passes nor a preset are asked for."""

PRESETS = {
    p.name: p
    for p in (
        Preset(
            "exact",
            "fold-constants,fold-batchnorm,remove-dead",
            "simplify without changing what the network computes; needs no data",
        ),
        Preset(
            "int8",
            "fold-constants,fold-batchnorm,remove-dead,insert-qdq",
            "simplify, then store activations and weights in 8 bits; needs calibration samples",
        ),
        Preset(
            "edge",
            "fold-constants,fold-batchnorm,remove-dead,split-svd{max-error=0.03 accept=size},insert-qdq",
            "for small files: split every layer that gets smaller at 3 % of its output, then 8 bits; needs calibration samples",
        ),
        Preset(
            "fastest",
            "fold-constants,fold-batchnorm,remove-dead,split-svd{max-error=0.03 accept=latency},insert-qdq",
            "for this machine: split every layer that is measured to be faster so, then 8 bits; needs calibration samples",
        ),
    )
}
"""All presets by name."""


def preset(name: str) -> Preset:
    """Return the preset called `name`.

    Raises:
        UsageError: for an unknown name, with the nearest.
    """
    if name not in PRESETS:
        raise UsageError(f"unknown preset '{name}'{hint(name, PRESETS)}")
    return PRESETS[name]


def pipeline_of(passes: str | None = None, name: str | None = None) -> Pipeline:
    """Return the pipeline of the text `passes` or of the preset called `name`; without either that of `DEFAULT`.

    Raises:
        UsageError: where both are given, or one is not understood.
    """
    if passes is not None and name is not None:
        raise UsageError("--passes and --preset are both given; keep one")
    return Pipeline.parse(passes if passes is not None else preset(name or DEFAULT).pipeline)
