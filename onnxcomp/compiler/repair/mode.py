"""Repair modes: how weights are refitted once a network has been cut or its nodes have been replaced."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeVar

from onnxcomp.compiler.pass_options import RepairName

__all__ = ["NO_REPAIR", "ONE_SHOT", "SEQUENTIAL", "RepairMode", "Repairs", "repair_mode"]

Repaired_co = TypeVar("Repaired_co", covariant=True)
"""What a technique returns of a repair."""


class Repairs(Protocol[Repaired_co]):
    """A compressed network that a technique can repair in each of the ways; a mode calls one of the methods."""

    def leave(self) -> Repaired_co:
        """Keep the weights that the compression left, without samples."""
        ...

    def refit_once(self) -> Repaired_co:
        """Refit every damaged node once, from the original network's values."""
        ...

    def refit_in_order(self) -> Repaired_co:
        """Refit node by node on the walk, each from what the compressed network then makes."""
        ...


@dataclass(frozen=True)
class RepairMode(ABC):
    """One way to repair.

    Attributes:
        name: as the option of passes says it.
        refits: whether weights are fitted to calibration samples, and nodes without a bias may get one.
        walks: whether that goes on node by node, so that further sweeps have something to gain.
    """

    name: ClassVar[RepairName]
    refits: ClassVar[bool] = True
    walks: ClassVar[bool] = False

    @abstractmethod
    def repair(self, network: Repairs[Repaired_co]) -> Repaired_co:
        """Repair `network` in this way."""


class _Sequential(RepairMode):
    name = "sequential"
    walks = True

    def repair(self, network: Repairs[Repaired_co]) -> Repaired_co:
        return network.refit_in_order()


class _OneShot(RepairMode):
    name = "one-shot"

    def repair(self, network: Repairs[Repaired_co]) -> Repaired_co:
        return network.refit_once()


class _NoRepair(RepairMode):
    name = "none"
    refits = False

    def repair(self, network: Repairs[Repaired_co]) -> Repaired_co:
        return network.leave()


SEQUENTIAL: RepairMode = _Sequential()
"""Node by node on the walk, from what the compressed network makes."""

ONE_SHOT: RepairMode = _OneShot()
"""Once, from the original network's values."""

NO_REPAIR: RepairMode = _NoRepair()
"""Not at all."""

_MODES: dict[RepairName, RepairMode] = {mode.name: mode for mode in (SEQUENTIAL, ONE_SHOT, NO_REPAIR)}


def repair_mode(name: RepairName) -> RepairMode:
    """Return the mode that the option text `name` stands for."""
    return _MODES[name]
