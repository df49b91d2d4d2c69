"""Split layers into products of smaller ones, fitted to what the network does with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from onnxcomp.compiler.choosing_forms import Goal
from onnxcomp.compiler.passbase import Context, Need, Pass, PassResult, in_range, option
from onnxcomp.compiler.replacing import Replacing, replace_nodes
from onnxcomp.errors import UsageError
from onnxcomp.ir.model import Model

__all__ = ["SplitSvd"]

_FORMS = {
    "auto": ("channel", "first", "vertical", "horizontal", "tucker", "cp"),
    "channel": ("channel",),
    "spatial": ("vertical", "horizontal"),
    "tucker": ("tucker",),
    "cp": ("cp",),
    "svd": ("channel",),
}


@dataclass(frozen=True)
class SplitSvd(Pass):
    """Split convolutions and matrix products into two or three smaller ones of low rank."""

    name = "split-svd"
    exact = False
    stage = "structure"
    data_free = True

    goals: ClassVar[tuple[str, ...]] = ("macs", "params", "latency", "rank", "energy", "max_error")

    macs: float | None = option(None, "share of the multiply-accumulates that may remain, 0 < macs <= 1")
    params: float | None = option(None, "share of the parameters that may remain, 0 < params <= 1")
    latency: float | None = option(
        None, "share of the measured time that may remain (batch 1, one thread, this machine)"
    )
    rank: int | None = option(None, "the same rank for every layer")
    energy: float | None = option(
        None, "the least rank of every layer that keeps this share of its output's variance"
    )
    max_error: float | None = option(
        None, "the cheapest split of every layer that misses no more than this share"
    )
    method: Literal["auto", "channel", "spatial", "tucker", "cp", "svd"] = option("auto", "the forms")
    accept: Literal["macs", "latency", "size"] = option("macs", "what a layer has to save to be replaced")
    min_saving: float = option(0.1, "the share of it that it has to save")
    align: int = option(1, "ranks are multiples of this")
    repair: Literal["sequential", "one-shot", "none"] = option("sequential", "repair")
    sweeps: int = option(1, "sweeps")

    def needs(self) -> frozenset[Need]:
        return frozenset({"shapes"} if self.repair == "none" else {"shapes", "calibration"})

    def may_fall_short(self) -> bool:
        return True

    def run(self, model: Model, context: Context) -> PassResult:
        what = next(n for n in self.goals if getattr(self, n) is not None)
        goal = Goal(what.replace("_", "-"), getattr(self, what))
        return replace_nodes(
            Replacing(
                ("Conv", "ConvTranspose", "Gemm", "MatMul"),
                _FORMS[self.method],
                goal,
                self.accept,
                self.min_saving,
                "auto",
                self.align,
                self.repair,
                self.sweeps,
            ),
            model,
            context,
        )
