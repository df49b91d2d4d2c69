"""The `[preprocess]` table: how stored images become what a network takes.

The table says `(x * scale - mean) / std`, then a change of layout. It stands in the config file, in a file of
its own, or inside an npz as the array `preprocess` (a JSON string), so that images can be kept as uint8.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxcomp.errors import DataError
from onnxcomp.numerics.arrays import Array

__all__ = ["Channels", "Layout", "Preprocess", "did_you_mean"]

Layout: TypeAlias = Literal["NCHW", "NHWC", "NHWC->NCHW"]
"""The order of axes in a data file, and what it is turned into."""
Channels: TypeAlias = Literal["RGB", "BGR", "L"]
"""The order of colours that a network wants; L is grey."""

_LAYOUTS: tuple[Layout, ...] = ("NCHW", "NHWC", "NHWC->NCHW")
_CHANNELS: tuple[Channels, ...] = ("RGB", "BGR", "L")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` with the name in `known` nearest to `name`, or "" where none is near."""
    near = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""


@dataclass(frozen=True)
class Preprocess:
    """How arrays or image files become the input of a network: `(x * scale - mean) / std`, then the layout.

    scale:    factor on the stored values, applied first.
    mean:     one number, or one per channel, in units of the scaled values.
    std:      one number, or one per channel; never 0.
    layout:   `"NHWC->NCHW"` moves the channels from the last axis to axis 1; `"NCHW"` and `"NHWC"` leave the
              axes and say which of them holds the channels. Image files are always decoded to NHWC, so for
              them only what is behind the arrow counts.
    size:     `(height, width)`. Image files are resized to it (bilinear, aspect ratio not kept); arrays must
              have it.
    channels: what image files are decoded to. Arrays are taken to be in this order already.
    """

    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: Layout = "NCHW"
    size: tuple[int, int] | None = None
    channels: Channels = "RGB"

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, object], where: str) -> Preprocess:
        """Return the table in `mapping`; `where` (a file, a section of the config) opens every message.

        Raises:
            DataError: for an unknown key (naming the nearest), or a value of a wrong type or out of range.
        """
        known = [field.name for field in fields(cls)]
        for key in mapping:
            if key not in known:
                hint = did_you_mean(str(key), known) or f"; known: {', '.join(known)}"
                raise DataError(f"{where}: unknown key '{key}'{hint}")
        values: dict[str, Any] = {
            key: _READERS[key](value, f"{where}: {key}") for key, value in mapping.items()
        }
        table = cls(**values)
        if len(table.mean) != len(table.std) and 1 not in (len(table.mean), len(table.std)):
            raise DataError(
                f"{where}: mean has {len(table.mean)} values and std {len(table.std)}; "
                "give one each, or one per channel each"
            )
        return table

    @classmethod
    def from_json(cls, text: str, where: str) -> Preprocess:
        """Return the table written as a JSON object in `text`; as `from_mapping` otherwise.

        Raises:
            DataError: if `text` is no JSON object, and as `from_mapping`.
        """
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as problem:
            raise DataError(
                f'{where}: not a JSON object ({problem}); write {{"scale": 1.0, "mean": [0], "std": [1]}}'
            ) from problem
        if not isinstance(content, dict):
            raise DataError(
                f"{where}: a JSON object is needed, this is {_kind(content)}; "
                'write {"scale": 1.0, "mean": [0], "std": [1]}'
            )
        return cls.from_mapping(content, where)

    @property
    def only_moves(self) -> bool:
        """Whether the values stay as stored and at most the axes change."""
        return self.scale == 1.0 and set(self.mean) == {0.0} and set(self.std) == {1.0}

    def for_decoded(self) -> Preprocess:
        """Return the table for arrays decoded from image files, which are NHWC whatever the network takes."""
        return replace(self, layout="NHWC" if self.layout == "NHWC" else "NHWC->NCHW")

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape that `apply` makes of an array of shape `stored`."""
        if self.layout != "NHWC->NCHW" or len(stored) < 3:
            return stored
        return (stored[0], stored[-1], *stored[1:-1])

    def check(self, stored: tuple[int, ...], where: str) -> None:
        """Hold the shape `stored` of an array against this table; nothing is returned.

        Raises:
            DataError: if `size` is another, or `mean` or `std` has neither one value nor one per channel.
        """
        shape = self.shape(stored)
        axis = self._channel_axis(len(shape))
        spatial = shape[1:-1] if self.layout == "NHWC" else shape[2:]
        if self.size is not None and len(shape) == 4 and tuple(spatial) != self.size:
            raise DataError(
                f"{where}: images of {spatial[0]} x {spatial[1]} (height x width), the preprocess table says "
                f"size {self.size[0]} x {self.size[1]}; mend size or layout '{self.layout}'"
            )
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) == 1:
                continue
            channels = shape[axis] if 0 <= axis < len(shape) else 1
            if channels != len(values):
                raise DataError(
                    f"{where}: {name} in the preprocess table has {len(values)} values, the array of shape "
                    f"{list(stored)} has {channels} channels in layout '{self.layout}'; "
                    f"mend {name} or the layout"
                )

    def arrange(self, images: Array) -> Array:
        """Return `images` in the layout of the network, same dtype, C-contiguous; never written to."""
        if self.layout == "NHWC->NCHW" and images.ndim >= 3:
            images = np.moveaxis(images, -1, 1)
        return np.asarray(images, order="C")

    def apply(self, images: Array) -> NDArray[np.float32]:
        """Return `(images * scale - mean) / std` in the layout of the network, as a new float32 array.

        `images` is `[n, H, W, C]`, `[n, C, H, W]` or of any other rank whose channel axis the layout names
        (last for NHWC, 1 for NCHW), of a real dtype. The arithmetic is done in float32. Never writes to
        `images`.

        Raises:
            DataError: as `check`.
        """
        self.check(images.shape, "preprocess")
        with np.errstate(over="ignore", invalid="ignore"):
            values = self.arrange(images).astype(np.float32)
            if self.scale != 1.0:
                values *= np.float32(self.scale)
            if set(self.mean) != {0.0}:
                values -= self._per_channel(self.mean, values.ndim)
            if set(self.std) != {1.0}:
                values /= self._per_channel(self.std, values.ndim)
        return values

    def _channel_axis(self, rank: int) -> int:
        return rank - 1 if self.layout == "NHWC" else 1

    def _per_channel(self, values: tuple[float, ...], rank: int) -> NDArray[np.float32]:
        shape = [1] * rank
        if len(values) > 1:
            shape[self._channel_axis(rank)] = len(values)
        return np.array(values, dtype=np.float32).reshape(shape)


def _kind(value: object) -> str:
    """Return how users call the type of `value`."""
    names = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list"}
    return names.get(type(value), "nothing" if value is None else type(value).__name__)


def _number(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{where}: a number is needed, this is {_kind(value)}")
    if abs(value) > float(np.finfo(np.float32).max) or math.isnan(value):
        raise DataError(f"{where}: a finite number in the range of float32 is needed")
    return float(value)


def _divisor(value: object, where: str) -> float:
    number = _number(value, where)
    if np.float32(number) == 0:
        raise DataError(f"{where}: 0 would make every sample the same or infinite; leave the key out for 1")
    return number


def _numbers(value: object, where: str) -> tuple[float, ...]:
    values = value if isinstance(value, list | tuple) else [value]
    if not values:
        raise DataError(f"{where}: the list is empty; give one number, or one per channel")
    return tuple(_number(entry, where) for entry in values)


def _divisors(value: object, where: str) -> tuple[float, ...]:
    return tuple(_divisor(entry, where) for entry in _numbers(value, where))


def _size(value: object, where: str) -> tuple[int, int]:
    pair = [value, value] if isinstance(value, int) else value
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise DataError(f"{where}: two whole numbers [height, width] are needed, this is {_kind(value)}")
    for entry in pair:
        if isinstance(entry, bool) or not isinstance(entry, int) or not 1 <= entry <= 65535:
            raise DataError(f"{where}: [height, width] are whole numbers from 1 to 65535, this is {entry!r}")
    return int(pair[0]), int(pair[1])


def _one_of(value: object, known: tuple[str, ...], where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: one of {', '.join(known)} is needed, this is {_kind(value)}")
    plain = value.replace(" ", "").upper()
    if plain not in known:
        hint = did_you_mean(plain, known) or f"; known: {', '.join(known)}"
        raise DataError(f"{where}: unknown value '{value}'{hint}")
    return plain


_READERS: dict[str, Callable[[object, str], object]] = {
    "scale": _divisor,
    "mean": _numbers,
    "std": _divisors,
    "layout": lambda value, where: _one_of(value, _LAYOUTS, where),
    "size": _size,
    "channels": lambda value, where: _one_of(value, _CHANNELS, where),
}
