"""Figures: what is to be reached beside what was reached."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

__all__ = ["FLAT", "Bound", "Figure", "drop_of", "record"]

Bound = Literal[">=", "<="]
"""On which side of a target a figure must be."""

FLAT = 1.1
"""Peak memory with more samples to that with fewer: what counts as equal. Allocators are not exact."""


@dataclass(frozen=True)
class Figure:
    """A target beside what was reached; `bound` says on which side of the target it must be."""

    name: str
    bound: Bound
    target: float
    reached: float | None

    @property
    def met(self) -> bool:
        """Whether the target is reached; what was not measured is not."""
        if self.reached is None:
            return False
        return self.reached >= self.target if self.bound == ">=" else self.reached <= self.target


def record(figure: Figure) -> dict[str, object]:
    """Return what the JSON document holds of `figure`."""
    return asdict(figure) | {"met": figure.met}


def drop_of(before: float | None, after: float | None) -> float | None:
    """Return the points of top-1 that were lost; None where there are no labels or no result."""
    # 91.9 - 90.3 is a little more than 1.6 in floats.
    return None if before is None or after is None else round(before - after, 9)
