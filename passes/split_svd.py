"""Split layers into products of smaller ones, fitted to what the network does with them."""

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
from onnxcomp.ir.ops import LINEAR

__all__ = ["SplitSvd"]

_METHODS = {
    "auto": ("channel", "first", "vertical", "horizontal", "tucker", "cp"),
    "channel": ("channel", "first"),
    "spatial": ("vertical", "horizontal"),
    "tucker": ("tucker",),
    "cp": ("cp",),
    "svd": ("channel",),
}
"""The forms that a method chooses among, layer by layer."""


@dataclass(frozen=True)
class SplitSvd(AcceptOptions, RepairOptions):
    """Split convolutions and matrix products into two or three smaller ones, of as low a rank as the network bears.

    A convolution becomes k x k and 1 x 1 (channel), k x 1 and 1 x k (spatial), 1 x 1, k x k, 1 x 1 (tucker) or 1 x 1, depthwise
    k x k, 1 x 1 (cp); a matrix product becomes two. Under a budget every layer gets the form and the rank that its measured
    effect on the output allows, or stays. Factors are fitted to the outputs on calibration samples, layer by layer, from
    what the layers before have become, without labels and without training.
    """

    name = "split-svd"
    exact = False
    stage = "structure"
    data_free = True

    goals = (*BUDGETS, "rank", "energy", "max_error")
    behind: ClassVar[Mapping[str, str]] = {"align": "min_saving"}
    wording: ClassVar[Mapping[str, str]] = {
        "accept": "what a split must save to be chosen: multiply-accumulates, time (measured beside the layer, on its own "
        "sizes), or bytes",
        "min_saving": "the share of it that a split must save, 0 <= min-saving < 1",
        "repair": "fit factors layer by layer from the split network's own values, once from the original's, or to the "
        "weights alone (singular values, no samples)",
    }

    rank: int | None = option(None, "the same rank for every layer, where that saves enough")
    energy: float | None = option(
        None,
        "the cheapest split of every layer that keeps this share of the variance of its output, 0 < energy < 1",
    )
    max_error: float | None = option(
        None, "the cheapest split of every layer that misses at most this share of it, 0 < max-error < 1"
    )
    method: Literal["auto", "channel", "spatial", "tucker", "cp", "svd"] = option(
        "auto",
        "how layers are split: the best for each layer, or one way for all; svd splits matrices (Gemm, MatMul, 1x1) and "
        "the flattened kernels of convolutions",
    )
    align: int = option(1, "ranks are multiples of this where layers are wide enough; 16 where time decides")

    def check(self) -> None:
        """Raise UsageError unless exactly one goal is given and all options are in range."""
        super().check()
        in_range(self.name, "energy", self.energy, 0, 1, open_low=True, open_high=True)
        in_range(self.name, "max-error", self.max_error, 0, 1, open_low=True, open_high=True)
        at_least(self.name, "rank", self.rank, 1)
        at_least(self.name, "align", self.align, 1)
        if self.rank is not None and self.rank % self.align:
            raise UsageError(
                f"{self.name}: rank={self.rank} is no multiple of align={self.align}; give one of both"
            )

    def run(self, model: Model, context: Context) -> PassResult:
        """Split layers of `model`, and repair what follows."""
        settings = Replacing(
            ops=LINEAR,
            forms=_METHODS[self.method],
            goal=goal_of(self),
            accept=self.accept,
            min_saving=self.min_saving,
            layout="auto",
            align=self.align,
            repair=self.repair,
            sweeps=self.sweeps,
        )
        return replace_nodes(settings, model, context)
