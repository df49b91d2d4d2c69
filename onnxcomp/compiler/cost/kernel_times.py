"""How long onnxruntime's kernels take at which channel counts: measured once, looked up ever after.

What a float convolution on the CPU does depends on its channels in steps. `B` is the number of channels that its kernels
work on at once (16 with AVX-512, 8 with AVX2); a value that they make lies in memory in blocks of B channels.

    channels read          kernel                               time moves with            reads       makes
    below B                reads single channels                read, made rounded up      plain       blocks
    multiple of 4          works on blocks                      both rounded up to B       blocks      blocks
    anything else          patches and a matrix product         both                       plain       plain
    depthwise, multiple B  works on blocks                      both                       blocks      blocks
    depthwise, other       one channel at a time                both                       plain       plain

(onnxruntime 1.31: the graph transformer to NCHWc in onnxruntime/core/optimizer; measured: 20 channels cost 32, and so do 21
at the other kernel.) So times are taken at few counts and drawn straight in between.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal, TypeAlias

import numpy as np

from onnxcomp.compiler.cost.kernel_graphs import ConvKind, Maker
from onnxcomp.compiler.passbase import Context
from onnxcomp.ir.graph import Node
from onnxcomp.ir.model import Model
from onnxcomp.runtime.inputs import noise
from onnxcomp.runtime.session import Session, SessionError
from onnxcomp.runtime.steady import fastest

__all__ = ["Kernel", "KernelClock", "KernelTimes", "Timer", "clock"]

Kernel: TypeAlias = Literal["single", "blocks", "plain"]
"""Which of the kernels of the table above runs a convolution; `plain` stands for the last of each kind."""
Timer: TypeAlias = Callable[[Sequence[Model], Mapping[str, tuple[int, ...]], float], list[float]]
"""Takes models, shapes of inputs that do not declare theirs, and about how many seconds to spend; returns milliseconds of one
run of each, taken in turns."""

COPIES = 3
"""Operators in a made graph; what they take beyond one copy is counted."""

_SECONDS = 0.04
"""Time spent on one point of a table: some hundred runs of an ordinary layer, of which the fastest counts."""

_SMALL, _LARGE = 2048, 65536
"""Elements at which what moves data is timed; times of other sizes are drawn from these two."""

_STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Multiples of the block at which convolutions are timed."""


def clock(
    models: Sequence[Model],
    shapes: Mapping[str, tuple[int, ...]],
    seconds: float,
    *,
    custom_op_libs: Sequence[str] = (),
) -> list[float]:
    """Return the milliseconds of one run of each of `models` in onnxruntime: one thread, its CPU time, the fastest run.

    Raises:
        SessionError: where one does not load or run.
    """
    sessions = {
        str(n): Session(model, threads=1, custom_op_libs=custom_op_libs) for n, model in enumerate(models)
    }
    feeds = {
        str(n): noise(model, {v.name: shapes.get(v.name) or v.shape for v in model.graph.inputs}, 0)
        for n, model in enumerate(models)
    }
    return [1000 * found for found in fastest(sessions, feeds, seconds=seconds).values()]


class KernelClock:
    """Times made graphs by `timer`, at the pace of one moment.

    The machine may be faster or slower from one moment to the next. So the maker's reference is timed beside everything,
    and every time is brought to the moment when the reference took `pace` milliseconds. `expected` is how many points will
    about be timed, for the progress line.
    """

    def __init__(self, context: Context, maker: Maker, timer: Timer, pace: float, expected: int = 1) -> None:
        self._progress = context.progress
        self._timer = timer
        self._pace = pace
        self._maker, self._reference = maker, maker.reference()
        self._expected = expected
        self._timed = 0

    def time(self, models: Sequence[Model], key: str) -> list[float]:
        """Return the milliseconds of `models`, as they were when the reference took its pace.

        Raises:
            SessionError: where one does not load or run.
        """
        self._timed += 1
        self._progress(f"timing {key}", self._timed, max(self._expected, self._timed))
        *times, now = self._timer([*models, self._reference], {}, _SECONDS)
        return [time * self._pace / now for time in times]

    def difference(self, few: Model, many: Model, copies: int, key: str) -> float:
        """Return what one of the `copies` takes that `many` has beyond `few`."""
        short, long = self.time([few, many], key)
        return max(0.0, long - short) / copies

    def block(self) -> float:
        """Return how many channels can be made in the time of one."""
        kind = ConvKind((14, 14), (3, 3), (("pads", (1, 1, 1, 1)),), False)
        models = [self._maker.conv(kind, 64, made, COPIES) for made in (16, 8, 4)]
        sixteen, eight, four = self.time(models, "channels per block")
        return 16 if eight > 0.75 * sixteen else 8 if four > 0.75 * eight else 4


class KernelTimes:
    """Milliseconds of operators, from `context.timings`; what is not there is timed by `clock` on made graphs of `maker`.

    `untimed` are the nodes that cannot be run by themselves and are counted as no time, with the reason, by name.
    """

    def __init__(self, context: Context, maker: Maker, clock: KernelClock) -> None:
        self._timings = context.timings
        self._maker, self._clock = maker, clock
        self._blocks: int | None = None
        self._convs: dict[tuple[ConvKind, int, int, bool], float] = {}
        self._lines: dict[str, tuple[float, float]] = {}
        self.untimed: dict[str, str] = {}

    @property
    def block(self) -> int:
        """How many channels the kernels work on at once."""
        if self._blocks is None:
            self._blocks = round(self._timings.get("channels per block", self._clock.block))
        return self._blocks

    @property
    def empty(self) -> float:
        """The milliseconds of a run over one operator and one number."""
        return self._timings.get("one run", lambda: self._clock.time([self._maker.moves(1, 1)], "one run")[0])

    def kernel(self, kind: ConvKind, read: int) -> Kernel:
        """Return the kernel of a convolution that reads `read` channels."""
        if kind.depthwise:
            return "plain" if read % self.block else "blocks"
        if read < self.block:
            return "single"
        return "plain" if read % 4 else "blocks"

    def conv(self, kind: ConvKind, read: int, made: int, *, unpack: bool = False) -> float:
        """Return the milliseconds of a convolution from `read` to `made` channels; 0 without channels.

        With `unpack` it reads plain numbers that lie in blocks, and bringing them out of there is part of it.
        """
        key = (kind, read, made, unpack)
        if key not in self._convs:
            self._convs[key] = self._draw_conv(kind, read, made, unpack) if read and made else 0.0
        return self._convs[key]

    def move(self, elements: float) -> float:
        """Return the milliseconds of an elementwise operator over so many numbers."""
        return self._line("elementwise", elements, self._time_moves)

    def convert(self, elements: float) -> float:
        """Return the milliseconds of bringing so many numbers from plain layout into blocks, or back."""
        return self._line("layout", elements, self._time_conversions)

    def unpack(self, size: tuple[int, int], channels: int) -> float:
        """Return the milliseconds of bringing a value of so many channels out of blocks: slow where the last is not full."""
        full, ragged = divmod(channels, self.block)
        spent = self.convert(full * self.block * size[0] * size[1])
        if ragged:
            point = ConvKind(size, (1, 1), (), False)
            taken, plain = (self.conv(point, ragged, self.block, unpack=way) for way in (True, False))
            spent += max(0.0, taken - plain)
        return spent

    def node(self, node: Node, shapes: Mapping[str, tuple[int, ...]], key: str) -> float:
        """Return the milliseconds of `node` at `shapes`, known as `key`; 0, and noted in `untimed`, where it cannot run alone."""
        few, many = (self._maker.node(node, shapes, copies) for copies in (1, COPIES))

        def measure() -> float:
            if few is None or many is None:
                return 0.0
            try:
                return self._clock.difference(few, many, COPIES - 1, key)
            except SessionError as error:
                self.untimed[node.name] = f"onnxruntime does not run {node.op} by itself: {error}"
                return 0.0

        if few is None:
            self.untimed[node.name] = f"{node.op} reads values of a surrounding graph or of unknown sizes"
        return self._timings.get(key, measure)

    # --- drawing ------------------------------------------------------------------------------------------------
    def _draw_conv(self, kind: ConvKind, read: int, made: int, unpack: bool) -> float:
        kernel, block = self.kernel(kind, read), self.block
        if kind.depthwise:
            fringe = block // 2 if kernel == "plain" else 0
            return sum(
                share * self._point(kind, count - fringe, count - fringe, unpack)
                for count, share in _between(read + fringe, self._counts())
            )
        if kernel == "single":
            reads = _between(
                read, sorted({1, block // 4 or 1, block // 2 or 1, 3 * block // 4 or 1, max(1, block - 1)})
            )
        elif kernel == "blocks":
            reads = _between(_up(read, block), self._counts())
        else:
            # One below a multiple of the block is no multiple of 4.
            reads = [
                (count - 1, share) for count, share in _between(read + 1, [block + 2, *self._counts()[1:]])
            ]
        if kernel == "plain":
            mades = _between(made, [1, block // 2, *self._counts()])
        else:
            mades = _between(_up(made, block), self._counts())
        return max(0.0, sum(s * t * self._point(kind, i, o, unpack) for i, s in reads for o, t in mades))

    def _counts(self) -> list[int]:
        return [step * self.block for step in _STEPS]

    def _point(self, kind: ConvKind, read: int, made: int, unpack: bool) -> float:
        behind = self.block if unpack else 0
        key = f"{kind} {read}->{made}{' out of blocks' if unpack else ''}"

        def measure() -> float:
            few, many = (self._maker.conv(kind, read, made, copies, behind) for copies in (1, COPIES))
            both = self._clock.difference(few, many, COPIES - 1, key)
            if not unpack:
                return both
            before = ConvKind(kind.size, (1, 1), (), False)
            return max(0.0, both - self._point(before, behind, _up(read, behind), False))

        return self._timings.get(key, measure)

    def _line(self, what: str, elements: float, measure: Callable[[int], float]) -> float:
        if what not in self._lines:
            small, large = (
                self._timings.get(f"{what} {size}", partial(measure, size)) for size in (_SMALL, _LARGE)
            )
            slope = max(0.0, (large - small) / (_LARGE - _SMALL))
            self._lines[what] = (max(0.0, small - slope * _SMALL), slope)
        start, slope = self._lines[what]
        return start + slope * elements

    # --- timing -------------------------------------------------------------------------------------------------
    def _time_moves(self, elements: int) -> float:
        few, many = (self._maker.moves(elements, copies) for copies in (2, 2 + COPIES))
        return self._clock.difference(few, many, COPIES, f"elementwise {elements}")

    def _time_conversions(self, elements: int) -> float:
        few, many = (
            self._maker.conversions(self.block, elements, COPIES, between=between)
            for between in (False, True)
        )
        both = self._clock.difference(few, many, COPIES, f"layout {elements}")
        return max(0.0, both - self.move(elements)) / 2


def _up(count: int, block: int) -> int:
    return -(-count // block) * block


def _between(count: int, points: Sequence[int]) -> list[tuple[int, float]]:
    """Return the points beside `count` with their shares of the straight line there; beyond the ends the line goes on."""
    if count in points or len(points) == 1:
        return [(count if count in points else points[0], 1.0)]
    place = min(max(int(np.searchsorted(points, count)), 1), len(points) - 1)
    low, high = points[place - 1], points[place]
    share = (count - low) / (high - low)
    return [(low, 1 - share), (high, share)]
