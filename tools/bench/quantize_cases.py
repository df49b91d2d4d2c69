"""The rows of `tools.bench.quantize`: networks, the samples they are quantized and judged on, and what is to be reached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tools.bench.prune_cases import RAW

__all__ = ["CASES", "ZOO", "Case"]

ZOO = Path(__file__).resolve().parent.parent.parent / "models"
"""The networks that are shipped."""


@dataclass(frozen=True)
class Case:
    """A network, how it is quantized, and what is to be reached; None where nothing is asked.

    Attributes:
        name: that of the row.
        model: the file, without its ending.
        options: those of insert-qdq.
        agreement: least share of the evaluation samples on which it decides as the original does, in percent.
        sqnr_db: least SQNR of the logits.
        latency: largest share of the original's time.
        bytes: largest file.
        drop: most points of top-1 that may be lost.
        samples: how many calibrate.
        data: the name that the files of samples begin with.
        preprocess: the table to use in place of that of the data.
        calibration: given to our run in place of the samples; then there are no peers.
        shipped: whether the network is one of `models/`; else it is one of `../shared`.
    """

    name: str
    model: str
    options: Mapping[str, str] = field(default_factory=dict)
    agreement: float | None = None
    sqnr_db: float | None = None
    latency: float | None = None
    bytes: int | None = None
    drop: float | None = None
    samples: int = 300
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
_LITE0, _VGG9 = "efficientnet_lite0_bn", "cifar10_vgg9_bn"
_PER_TENSOR = {"granularity": "per-tensor"}

CASES = (
    Case("resnet20", _RESNET20, agreement=99.4, sqnr_db=31.2, latency=0.60, bytes=308_000),
    Case("resnet56", _RESNET56, agreement=99.5, sqnr_db=30.5, latency=0.56, bytes=960_000),
    Case("lite0", _LITE0, agreement=99.3, sqnr_db=20.5, latency=0.30, samples=100, data="imagenet"),
    Case("vgg9", _VGG9, agreement=99.5, sqnr_db=36.0, latency=0.39, bytes=1_185_000),
    Case("resnet8", "mlperftiny_resnet8_cifar10", preprocess=RAW),
    Case("lite0-per-tensor", _LITE0, _PER_TENSOR, agreement=96.0, samples=100, data="imagenet"),
    Case("resnet56-free", _RESNET56, drop=0.5, calibration="none"),
    Case("lite0-free", _LITE0, drop=2.0, samples=100, data="imagenet", calibration="none"),
    *(
        Case(name.removeprefix("digits_"), name, data="digits", shipped=True)
        for name in sorted(path.stem for path in ZOO.glob("digits_*.onnx"))
    ),
)
"""The rows. The shipped networks have nothing to reach: they show other structures."""
