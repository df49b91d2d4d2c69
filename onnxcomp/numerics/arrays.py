"""Types of arrays and shapes that signatures of all rooms share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "Array64", "Mask", "Shapes"]

Array: TypeAlias = NDArray[Any]
"""An array of any type of numbers."""

Array64: TypeAlias = NDArray[np.float64]
"""An array in double precision, which statistics accumulate in."""

Mask: TypeAlias = NDArray[np.bool_]
"""Which elements are meant: channels that stay, unless the text says otherwise."""

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
"""Shapes of values by name."""
