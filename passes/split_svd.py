"""Split layers into products of smaller ones, fitted to what the network does with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from onnxcomp.compiler.cost.budget import goal_of
from onnxcomp.compiler.factorization.factorize import Replacing, check_replacing, replace_nodes
from onnxcomp.compiler.options import in_range, option
from onnxcomp.compiler.passbase import Context, Need, Pass, PassResult
from onnxcomp.errors import UsageError
from onnxcomp.ir.model import Model
from onnxcomp.ir.ops import LINEAR

__all__ = ["SplitSvd"]

_GOALS = ("macs", "params", "latency", "rank", "energy", "max_error")

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
class SplitSvd(Pass):
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

    macs: float | None = option(None, "share of the multiply-accumulates that may remain, 0 < macs <= 1")
    params: float | None = option(None, "share of the parameters that may remain, 0 < params <= 1")
    latency: float | None = option(
        None,
        "share of the measured time that may remain (batch 1, one thread, this machine), 0 < latency <= 1",
    )
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
    accept: Literal["macs", "latency", "size"] = option(
        "macs",
        "what a split must save to be taken: multiply-accumulates, time (measured beside the layer, on its own sizes), or "
        "bytes",
    )
    min_saving: float = option(0.1, "the share of it that a split must save, 0 <= min-saving < 1")
    align: int = option(1, "ranks are multiples of this where layers are wide enough; 16 where time decides")
    repair: Literal["sequential", "one-shot", "none"] = option(
        "sequential",
        "fit factors layer by layer from the split network's own values, once from the original's, or to the weights "
        "alone (singular values, no samples)",
    )
    sweeps: int = option(
        1, "times the network is walked from front to back, as long as the error on held-back samples falls"
    )

    def check(self) -> None:
        """Raise UsageError unless exactly one goal is given and all options are in range."""
        goal_of(self, _GOALS)
        in_range(self.name, "energy", self.energy, 0, 1, open_high=True)
        in_range(self.name, "max-error", self.max_error, 0, 1, open_high=True)
        if self.rank is not None and self.rank < 1:
            raise UsageError(f"{self.name}: rank={self.rank} is out of range; it is at least 1")
        check_replacing(self._settings(), self.name)
        if self.rank is not None and self.rank % self.align:
            raise UsageError(
                f"{self.name}: rank={self.rank} is no multiple of align={self.align}; give one of both"
            )

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
        """Split layers of `model`, and repair what follows."""
        return replace_nodes(self._settings(), model, context)

    def _settings(self) -> Replacing:
        return Replacing(
            ops=LINEAR,
            forms=_METHODS[self.method],
            goal=goal_of(self, _GOALS),
            accept=self.accept,
            min_saving=self.min_saving,
            layout="auto",
            align=self.align,
            repair=self.repair,
            sweeps=self.sweeps,
        )
