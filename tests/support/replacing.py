"""What tests of split-svd and substitute-depthwise share: runs that are checked, counts made anew, networks of known rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxcomp.analysis.cost import node_macs
from onnxcomp.compiler.cost.latency import structure
from onnxcomp.compiler.passbase import Context, Pass, PassResult
from onnxcomp.ir.graph import Array
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.numerics.forms import FORMS
from onnxcomp.runtime.data.samples import open_samples
from onnxcomp.runtime.inputs import input_specs
from onnxcomp.runtime.observe import observe_shapes
from onnxcomp.runtime.session import Session
from onnxcomp.testing import REGIMES, assert_equal_outputs, assert_valid
from tests.support.pruning import ZOO, context_for, zoo_context
from tests.support.text import net

__all__ = [
    "SIGNATURE",
    "Clock",
    "assert_same",
    "conv",
    "count",
    "distance",
    "held_out",
    "macs",
    "of_rank",
    "replaced",
    "share",
]

SIGNATURE = "(float[N,8,10,10] x) => (float[N,12,1,1] y)"
"""Of the small convolutional networks."""


def replaced(
    model: Model, step: Pass, feeds: Mapping[str, Array] | None = None, count: int = 64, **given: Any
) -> PassResult:
    """Run `step` on a clone of `model`, on digits where it takes them and on noise else, and check what comes out."""
    step.check()
    shipped = feeds is None and model.graph.outputs[0].name == "logits" and len(model.graph.inputs) == 1
    context: Context = zoo_context(model, count, **given) if shipped else context_for(model, feeds, **given)
    result = step.run(model.clone(), context)
    assert_valid(result.model, like=model)
    assert result.changed == bool(result.changes)
    return result


def macs(model: Model, feeds: Mapping[str, Array] | None = None) -> int:
    """Return the multiply-accumulates of `model` for one sample, at sizes observed in a run."""
    shapes = observe_shapes(model, feeds or _one(model))
    return sum(node_macs(node, shapes) for node in model.graph.nodes)


def _one(model: Model) -> dict[str, Array]:
    return {
        v.name: np.zeros([s if isinstance(s, int) else 1 for s in v.shape or ()], v.dtype)
        for v in model.graph.inputs
    }


def count(model: Model, what: str) -> int:
    """Return the multiply-accumulates of `model`, or the elements of everything it stores in floating point."""
    if what == "macs":
        return macs(model)
    stored = model.graph.constants.values()
    return sum(c.values.size for c in stored if np.issubdtype(c.values.dtype, np.floating))


def share(before: Model, after: Model, what: str = "macs") -> float:
    """Return what is left of `before` in `after`."""
    return count(after, what) / count(before, what)


def assert_same(model: Model, other: Model) -> None:
    """Assert that both compute the same to 1e-4 wherever there is something to compute from."""
    regimes = [regime for regime in REGIMES if regime != "zeros"]
    assert_equal_outputs(model, other, tolerance=1e-4, regimes=regimes)


def held_out(model: Model, limit: int = 200) -> dict[str, Array]:
    """Return images that no calibration has seen."""
    samples = open_samples(str(ZOO / "digits_evaluation.npz"), input_specs(model), limit=limit)
    return dict(next(iter(samples.batches(limit))))


def distance(model: Model, other: Model, feeds: Mapping[str, Array]) -> float:
    """Return the squared difference of the first outputs as a share of their squared deviation from the mean."""
    wanted, got = (next(iter(Session(m, threads=1).run(feeds).values())) for m in (model, other))
    spread = wanted - wanted.mean(0)
    return float(((got - wanted) ** 2).sum() / (spread**2).sum())


def of_rank(
    form: str, outputs: int, channels: int, kernel: Sequence[int], ranks: tuple[int, ...], seed: int = 0
) -> Array:
    """Return random weights `[outputs, channels, *kernel]` that `form` can write exactly with `ranks`."""
    made = FORMS[form](outputs, channels, tuple(kernel), ranks)
    rng = np.random.default_rng(seed)
    weight = made.expand(tuple(rng.standard_normal(shape) for shape in made.shapes()))
    weight = weight / weight.std() / np.sqrt(weight.shape[1])
    found: Array = weight.reshape(outputs, channels, *kernel).astype(np.float32)
    return found


def conv(
    attrs: str = "pads=[1,1,1,1]",
    weight: Array | None = None,
    *,
    bias: bool = True,
    kind: str = "Conv",
    shape: str = "12,8,3,3",
) -> Model:
    """Return a network of one convolution `h` of 8 to 12 channels, whose positive values are averaged."""
    stored = f"float[{shape}] w, float[12] b"
    body = f"h = {kind}<{attrs}>(x, w{', b' if bias else ''}) z = Relu(h) y = GlobalAveragePool(z)"
    return parse_model(net(SIGNATURE, stored, body), None if weight is None else {"w": weight})


class Clock:
    """Takes a millisecond for 100,000 multiply-accumulates, `depthwise` times as long for those of depthwise convolutions.

    It drifts a little each time it is asked, so that a second measurement is never the first; it may be stopped.
    """

    def __init__(self, depthwise: float = 1.0) -> None:
        self.depthwise, self.stopped, self.drift = depthwise, False, 1.0

    def __call__(self, models: Sequence[Model], *_: Any, **__: Any) -> list[float]:
        assert not self.stopped, "nothing is to be timed"
        self.drift *= 1.0001
        return [self.drift * self._time(model) for model in models]

    def _time(self, model: Model) -> float:
        shapes = observe_shapes(model, _one(model))
        spent = 0.01
        for node in model.graph.nodes:
            depthwise = node.is_op("Conv") and int(node.attrs.get("group", 1)) > 1
            spent += node_macs(node, shapes) / 1e5 * (self.depthwise if depthwise else 1.0)
        return spent

    def ratio(self, before: Model, after: Model, context: Context) -> float:
        """Stand for `measured_ratio`, with its key."""

        def measure() -> float:
            first, second = self([before, after])
            return second / first

        first, second = (structure(model, context.input_shapes) for model in (before, after))
        return 1.0 if first == second else context.timings.get(f"ratio of {second} to {first}", measure)
