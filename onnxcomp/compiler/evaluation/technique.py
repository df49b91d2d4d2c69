"""The contract of a sensitivity technique: candidates, each a model with one place compressed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from onnxcomp.compiler.evaluation.trials import Trial
from onnxcomp.compiler.passbase import Context, PassLog
from onnxcomp.ir.model import Model

__all__ = ["Candidate", "Technique"]


@dataclass(frozen=True)
class Candidate:
    """A model with one place compressed.

    Attributes:
        site: the place: a channel group, or a node.
        tier: which part of a channel group, from 1; None where the group has only one. Where a residual stream grows, the
            channels that later stages add are a tier of their own.
        removed, units: how many channels go, and of how many.
        macs, parameters: what that saves, exactly.
        trial: makes the model.
    """

    site: str
    tier: int | None
    removed: int
    units: int
    macs: int
    parameters: int
    trial: Trial


@dataclass(frozen=True)
class Technique(ABC):
    """A way to compress single places of a model: a frozen dataclass whose fields are its options.

    `name` is what reports call it. Its `repr` is part of the digest under which results are kept.
    """

    name: ClassVar[str]

    @abstractmethod
    def candidates(self, model: Model, context: Context, log: PassLog) -> Iterator[Sequence[Candidate]]:
        """Yield candidates in portions that fit into memory together; what cannot be compressed is a skip in `log`.

        `model` is not edited. The nodes that `context.left_alone` names are.
        """
