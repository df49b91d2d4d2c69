"""The rows of `tools.bench.structure`: networks, the passes that change their layers' shape, and what is to be reached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tools.bench.prune_cases import RAW
from tools.bench.quantize_cases import ZOO

__all__ = ["CASES", "MEMORY_ROWS", "MEMORY_SAMPLES", "NEVER_SLOWER", "SPEED_ROWS", "Case"]

NEVER_SLOWER = 1.01
"""Largest share of the folded original's time with `accept=latency`: 1, and what the clock cannot tell from it."""

MEMORY_SAMPLES = (128, 512)
"""Numbers of samples whose peaks are compared."""

MEMORY_ROWS = ("resnet20-depthwise", "resnet20-split")
"""The rows whose memory is measured where none are asked for."""

SPEED_ROWS = ("resnet20-depthwise", "resnet20-split", "resnet56-depthwise", "resnet56-split")
"""The rows whose time is told in parts where none are asked for."""


@dataclass(frozen=True)
class Case:
    """A network, what runs on it, and what is to be reached; None where nothing is asked.

    Attributes:
        name: that of the row.
        model: the file, without its ending.
        passes: what runs after the exact passes, as pipeline text.
        macs: largest share of the multiply-accumulates that may remain.
        params: largest share of the parameters that may remain.
        drop: most points of top-1 that may be lost.
        agreement: least share of the evaluation samples on which it decides as the original does, in percent.
        latency: largest share of the folded original's time: batch 1, one thread.
        seconds: most for the whole command.
        samples: how many calibrate.
        data: the name that the files of samples begin with.
        preprocess: the table to use in place of that of the data.
        calibration: given to the run in place of the samples.
        shipped: whether the network is one of `models/`; else it is one of `../shared`.
    """

    name: str
    model: str
    passes: str
    macs: float | None = None
    params: float | None = None
    drop: float | None = None
    agreement: float | None = None
    latency: float | None = None
    seconds: float | None = None
    samples: int = 512
    data: str = "cifar10"
    preprocess: Mapping[str, object] | None = None
    calibration: str | None = None
    shipped: bool = False

    def model_path(self, shared: Path) -> Path:
        """Return the network."""
        return (ZOO if self.shipped else shared / "models") / f"{self.model}.onnx"

    def data_path(self, shared: Path, role: str) -> Path:
        """Return the samples for `role`, calibration or evaluation."""
        return (ZOO if self.shipped else shared / "data") / f"{self.data}_{role}.npz"


_RESNET20, _RESNET56 = "cifar10_resnet20_bn", "cifar10_resnet56_bn"
_VGG9, _LITE0, _RESNET8 = "cifar10_vgg9_bn", "efficientnet_lite0_bn", "mlperftiny_resnet8_cifar10"

_DEPTHWISE, _SPLIT = "substitute-depthwise{macs=0.45}", "split-svd{macs=0.5}"
_WEIGHTS, _CHANNEL = "split-svd{macs=0.5 repair=none}", "split-svd{macs=0.5 method=channel}"
_CONTROL = "split-svd{macs=0.5 method=channel repair=none}"
_PIPELINE = "split-svd{macs=0.35}"
_VGG9_TIME = "split-svd{latency=0.45}"
_ACCEPT = "substitute-depthwise{max-error=0.1 accept=latency},split-svd{max-error=0.1 accept=latency}"

CASES = (
    Case("resnet20-depthwise", _RESNET20, _DEPTHWISE, macs=0.45, drop=1.6, seconds=30),
    Case("resnet56-depthwise", _RESNET56, _DEPTHWISE, macs=0.45, drop=1.5, seconds=90),
    Case("resnet20-split", _RESNET20, _SPLIT, macs=0.5, drop=4.5, seconds=30),
    Case("resnet56-split", _RESNET56, _SPLIT, macs=0.5, drop=1.8, seconds=90),
    Case("resnet20-pipeline", _RESNET20, _PIPELINE, macs=0.35, drop=4.0),
    Case("vgg9-time", _VGG9, _VGG9_TIME, latency=0.45, drop=1.5),
    Case("vgg9-time-int8", _VGG9, f"{_VGG9_TIME},insert-qdq", latency=0.25, drop=1.5),
    Case(
        *("lite0-split", _LITE0, "split-svd{macs=0.8}"),
        macs=0.8,
        agreement=88.0,
        samples=128,
        data="imagenet",
    ),
    Case(
        "digits-mlp", "digits_mlp", "split-svd{params=0.4}", params=0.4, drop=0.5, data="digits", shipped=True
    ),
    Case("resnet56-time", _RESNET56, "split-svd{latency=0.75}", latency=0.75, drop=1.5),
    *(
        Case(f"{name}-{kind}", model, passes, calibration=calibration)
        for name, model in (("resnet20", _RESNET20), ("resnet56", _RESNET56))
        for kind, passes, calibration in (
            ("depthwise-free", _DEPTHWISE, "none"),
            ("split-free", _SPLIT, "none"),
            ("split-weights", _WEIGHTS, None),
            ("channel", _CHANNEL, None),
            ("channel-weights", _CONTROL, None),
        )
    ),
    *(
        Case(f"{name}-accept", model, _ACCEPT, latency=NEVER_SLOWER)
        for name, model in (("resnet20", _RESNET20), ("resnet56", _RESNET56), ("vgg9", _VGG9))
    ),
    Case("resnet8-accept", _RESNET8, _ACCEPT, latency=NEVER_SLOWER, preprocess=RAW),
    Case("lite0-accept", _LITE0, _ACCEPT, latency=NEVER_SLOWER, samples=128, data="imagenet"),
    *(
        Case(f"{path.stem}-accept", path.stem, _ACCEPT, latency=NEVER_SLOWER, data="digits", shipped=True)
        for path in sorted(ZOO.glob("digits_*.onnx"))
    ),
)
"""The rows: the figures to reach, then what there is without data, without repair and with one form alone, which has
nothing to reach, then what may never become slower."""
