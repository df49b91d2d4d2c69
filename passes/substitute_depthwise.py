"""Put depthwise and pointwise convolutions in the place of dense ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from onnxcomp.compiler.cost.budget import goal_of
from onnxcomp.compiler.factorization.factorize import Replacing, check_replacing, replace_nodes
from onnxcomp.compiler.options import in_range, option
from onnxcomp.compiler.passbase import Context, Need, Pass, PassResult
from onnxcomp.errors import UsageError
from onnxcomp.ir.model import Model

__all__ = ["SubstituteDepthwise"]

_GOALS = ("macs", "params", "latency", "multiplier", "max_error")

_ORDERS = {"auto": ("depthwise", "pointwise"), "depthwise": ("depthwise",), "pointwise": ("pointwise",)}
"""The forms that an order chooses among, layer by layer."""


@dataclass(frozen=True)
class SubstituteDepthwise(Pass):
    """Replace dense convolutions by a few depthwise ones and one of 1 x 1, in whichever order loses less.

    Each layer gets as many depthwise filters per channel as its measured effect on the output allows under the budget, or
    stays dense. Both parts are fitted to the outputs on calibration samples, layer by layer, from what the layers before
    have become, without labels and without training. A kernel that is separable, or given all its filters, is replaced
    exactly.
    """

    name = "substitute-depthwise"
    exact = False
    stage = "structure"
    data_free = True

    macs: float | None = option(None, "share of the multiply-accumulates that may remain, 0 < macs <= 1")
    params: float | None = option(None, "share of the parameters that may remain, 0 < params <= 1")
    latency: float | None = option(
        None,
        "share of the measured time that may remain (batch 1, one thread, this machine), 0 < latency <= 1",
    )
    multiplier: int | None = option(
        None, "the same number of depthwise filters per channel for every layer, where that saves enough"
    )
    max_error: float | None = option(
        None,
        "the fewest filters of every layer that miss at most this share of its output, 0 < max-error < 1",
    )
    order: Literal["auto", "depthwise", "pointwise"] = option(
        "auto", "which comes first: whichever loses less at each layer, or the same for all"
    )
    layout: Literal["auto", "concat", "sum", "plain"] = option(
        "auto",
        "how several filters per channel stand in the graph: as convolutions side by side that are joined (concat) or "
        "added up (sum), or as one convolution with several filters per channel (plain); auto takes what onnxruntime was "
        "measured to run fastest, here and now where time decides",
    )
    accept: Literal["macs", "latency", "size"] = option(
        "macs",
        "what a replacement must save to be taken: multiply-accumulates, time (measured beside the layer, on its own "
        "sizes), or bytes",
    )
    min_saving: float = option(0.1, "the share of it that a replacement must save, 0 <= min-saving < 1")
    repair: Literal["sequential", "one-shot", "none"] = option(
        "sequential",
        "fit the parts layer by layer from the changed network's own values, once from the original's, or to the weights "
        "alone (singular values, no samples)",
    )
    sweeps: int = option(
        1, "times the network is walked from front to back, as long as the error on held-back samples falls"
    )

    def check(self) -> None:
        """Raise UsageError unless exactly one goal is given and all options are in range."""
        goal_of(self, _GOALS)
        in_range(self.name, "max-error", self.max_error, 0, 1, open_high=True)
        if self.multiplier is not None and self.multiplier < 1:
            raise UsageError(f"{self.name}: multiplier={self.multiplier} is out of range; it is at least 1")
        if self.layout == "concat" and self.order == "pointwise":
            raise UsageError(
                f"{self.name}: layout=concat joins the results of depthwise convolutions, and with order=pointwise "
                "those come last; give layout=sum or plain"
            )
        check_replacing(self._settings(), self.name)

    def may_fall_short(self) -> bool:
        """Return whether a budget is given, which the model may turn out not to reach."""
        return goal_of(self, _GOALS).is_budget

    def needs(self) -> frozenset[Need]:
        """Return `calibration` unless factors are those of the weights alone, and `shapes` always."""
        return frozenset({"shapes"} if self.repair == "none" else {"shapes", "calibration"})

    def without_samples(self) -> str:
        """Return what would have to change for nothing to be measured on samples."""
        return "repair=none"

    def run(self, model: Model, context: Context) -> PassResult:
        """Replace convolutions of `model`, and repair what follows."""
        return replace_nodes(self._settings(), model, context)

    def _settings(self) -> Replacing:
        return Replacing(
            ops=("Conv", "ConvTranspose"),
            forms=_ORDERS[self.order],
            goal=goal_of(self, _GOALS),
            accept=self.accept,
            min_saving=self.min_saving,
            layout=self.layout,
            align=1,
            repair=self.repair,
            sweeps=self.sweeps,
        )
