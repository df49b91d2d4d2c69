"""What a model would take after a cut, without cutting it: the sum over its operators of times from tables."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial

from onnxcomp.analysis.channels import ChannelGroups
from onnxcomp.analysis.cost import Shapes
from onnxcomp.analysis.cutaxes import Keep
from onnxcomp.compiler.cost.kernel_graphs import Maker
from onnxcomp.compiler.cost.kernel_times import KernelClock, KernelTimes, Timer, clock
from onnxcomp.compiler.cost.operator_walk import OperatorWalk, attribute_text
from onnxcomp.compiler.passbase import Context
from onnxcomp.ir.graph import Constant
from onnxcomp.ir.model import Model
from onnxcomp.runtime.inputs import noise
from onnxcomp.runtime.session import Session
from onnxcomp.runtime.steady import steady_ratio

__all__ = ["LatencyPrice", "measured_ratio", "structure"]

_NETWORK_SECONDS = 3.0
"""Time spent on the whole networks, which all estimates lean on."""

_TRUST = 1.3
"""How far the tables may be off by a common factor."""


class LatencyPrice:
    """Milliseconds of `model` as a function of the units kept: batch 1, one thread, at the sizes of `shapes`.

    `whole` is what the model takes that the pipeline received, `full` what `model` takes as it is; both are measured.
    `of` is an estimate that agrees with `full` where nothing is cut: what a run takes before its first operator stays,
    and what the tables say is scaled to what was measured. They are mostly right to some percent, and more of them are
    wrong by a share than by a number of microseconds (caches, a load at the time); what a sane scale cannot explain is
    taken to stay, whatever is cut. `timer` stands for the clock. `untimed` are the nodes that cannot be timed by themselves
    and are counted as no time, with the reason, by name.
    """

    def __init__(
        self,
        model: Model,
        groups: ChannelGroups,
        shapes: Shapes,
        context: Context,
        timer: Timer | None = None,
    ) -> None:
        timer = timer or partial(clock, custom_op_libs=context.custom_op_libs)
        maker = Maker(model)
        self.whole, self.full, pace = _networks(context.original, model, maker.reference(), context, timer)
        times = KernelTimes(context, maker, KernelClock(context, maker, timer, pace, 40))
        walk = OperatorWalk(model, groups, shapes, times)
        self._walk = walk
        self.untimed: Mapping[str, str] = times.untimed
        start, said = times.empty, walk.spend({})
        self._scale = min(max((self.full - start) / said, 1 / _TRUST), _TRUST) if said > 0 else 1.0
        self._rest = self.full - self._scale * said

    def of(self, keep: Keep) -> float:
        """Return the milliseconds that `model` would about take with only the units in `keep`."""
        return max(0.0, self._rest + self._scale * self._walk.spend(keep))


def measured_ratio(before: Model, after: Model, context: Context) -> float:
    """Return the time of `after` as a share of that of `before`: batch 1, one thread, measured in turns.

    The number is recorded under what decides about time: operators, their attributes and sizes, never the weights.

    Raises:
        SessionError: where one does not load or run.
    """

    def measure() -> float:
        context.progress("measuring the latency of the cut model", 0, 0)
        reference, candidate = (
            Session(m, threads=1, custom_op_libs=context.custom_op_libs) for m in (before, after)
        )
        feed = noise(before, context.input_shapes, context.seed)
        return steady_ratio(reference, candidate, feed).ratio

    first, second = (structure(model, context.input_shapes) for model in (before, after))
    return 1.0 if first == second else context.timings.get(f"ratio of {second} to {first}", measure)


def _networks(
    original: Model, model: Model, reference: Model, context: Context, timer: Timer
) -> tuple[float, float, float]:
    """Return the milliseconds of the `original`, of `model` and of `reference`, all at the pace of the first time."""
    first, second = (structure(m, context.input_shapes) for m in (original, model))
    found: list[float] = []

    def together(place: int) -> float:
        if not found:
            found.extend(measure(original, reference))
        return found[place]

    def measure(*models: Model) -> list[float]:
        context.progress("measuring the latency of the model", 0, 0)
        return timer(models, context.input_shapes, _NETWORK_SECONDS)

    def beside() -> float:
        slow, fast = measure(original, model)
        return fast * whole / slow

    whole = context.timings.get(f"network {first}", partial(together, 0))
    pace = context.timings.get("reference", partial(together, 1))
    full = whole if first == second else context.timings.get(f"network {second}", beside)
    return whole, full, pace


def structure(model: Model, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Return a digest of what decides about the time of `model`: all but names, texts and the values of weights."""
    numbers: dict[str, int] = {"": -1}
    lines = [
        f"in {v.dtype} {shapes.get(v.name, v.shape)} {_number(v.name, numbers)}" for v in model.graph.inputs
    ]
    for node in model.graph.nodes:
        reads = [
            _stored(v) if isinstance(v, Constant) else str(_number(v.name, numbers)) for v in node.inputs
        ]
        makes = [_number(v.name, numbers) for v in node.outputs]
        attrs = sorted((name, attribute_text(value)) for name, value in node.attrs.items())
        lines.append(f"{node.domain} {node.op} {attrs} {reads} {makes}")
    lines.append(f"out {[_number(v.name, numbers) for v in model.graph.outputs]}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _number(name: str, numbers: dict[str, int]) -> int:
    return numbers.setdefault(name, len(numbers))


def _stored(constant: Constant) -> str:
    values = constant.values
    small = values.dtype.kind in "iub" and values.size <= 64
    return f"{values.dtype} {values.shape} {values.tolist() if small else ''}"
