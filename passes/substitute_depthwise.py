"""Put depthwise and pointwise convolutions in the place of dense ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from onnxcomp.compiler.factorization.factorize import replace_nodes
from onnxcomp.compiler.factorization.problem import Replacing
from onnxcomp.compiler.factorization.selection import goal_of
from onnxcomp.compiler.options import at_least, in_range, option
from onnxcomp.compiler.pass_options import BUDGETS, AcceptOptions, RepairOptions
from onnxcomp.compiler.passbase import Context, PassResult
from onnxcomp.errors import UsageError
from onnxcomp.ir.model import Model

__all__ = ["SubstituteDepthwise"]

_ORDERS = {"auto": ("depthwise", "pointwise"), "depthwise": ("depthwise",), "pointwise": ("pointwise",)}
"""The forms that an order chooses among, layer by layer."""


@dataclass(frozen=True)
class SubstituteDepthwise(AcceptOptions, RepairOptions):
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

    goals = (*BUDGETS, "multiplier", "max_error")
    wording: ClassVar[Mapping[str, str]] = {
        "repair": "fit the parts layer by layer from the changed network's own values, once from the original's, or to the "
        "weights alone (singular values, no samples)"
    }

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

    def check(self) -> None:
        """Raise UsageError unless exactly one goal is given and all options are in range."""
        super().check()
        in_range(self.name, "max-error", self.max_error, 0, 1, open_low=True, open_high=True)
        at_least(self.name, "multiplier", self.multiplier, 1)
        if self.layout == "concat" and self.order == "pointwise":
            raise UsageError(
                f"{self.name}: layout=concat joins the results of depthwise convolutions, and with order=pointwise "
                "those come last; give layout=sum or plain"
            )

    def run(self, model: Model, context: Context) -> PassResult:
        """Replace convolutions of `model`, and repair what follows."""
        settings = Replacing(
            ops=("Conv", "ConvTranspose"),
            forms=_ORDERS[self.order],
            goal=goal_of(self),
            accept=self.accept,
            min_saving=self.min_saving,
            layout=self.layout,
            align=1,
            repair=self.repair,
            sweeps=self.sweeps,
        )
        return replace_nodes(settings, model, context)
