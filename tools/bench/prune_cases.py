"""The rows of `tools.bench.prune`: networks, what may remain of them, and what is to be reached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["BUDGETS", "CASES", "PEAK_BYTES", "RAW", "SAMPLES", "Case"]

BUDGETS = ("ratio", "macs", "params", "latency")
"""The options of prune-filters of which a run has one."""

SAMPLES = 512
"""How many samples the run calibrates on, where the row says nothing else."""

PEAK_BYTES = 8 * 10**8
"""What the whole command may take in memory, where the row says nothing else."""

RAW = {"layout": "NHWC->NCHW", "scale": 1.0, "mean": [0, 0, 0], "std": [1, 1, 1]}
"""The preprocess table of a network that takes the values 0..255 as they are."""


@dataclass(frozen=True)
class Case:
    """A network, how it is pruned, and what is to be reached; None where nothing is asked.

    Attributes:
        name: that of the row.
        model: the file, without its ending.
        options: those of prune-filters, the budget among them.
        accuracy: least top-1 in percent, on all evaluation samples.
        agreement: least share of the samples on which it decides as the original does, in percent.
        latency: largest share of the original's time, measured on the file that was written.
        seconds: most for the whole command.
        peak_bytes: most memory for the whole command.
        samples: how many the run calibrates on.
        data: the name that the files of samples begin with.
        preprocess: the table to use in place of that of the data.
        calibration: given to the run in place of the unlabelled samples.
    """

    name: str
    model: str
    options: Mapping[str, str]
    accuracy: float | None = None
    agreement: float | None = None
    latency: float | None = None
    seconds: float | None = None
    peak_bytes: int = PEAK_BYTES
    samples: int = SAMPLES
    data: str = "cifar10"
    preprocess: Mapping[str, object] | None = None
    calibration: str | None = None


_CONTROL = {"macs": "0.5", "scope": "uniform", "criterion": "l1", "repair": "none"}
_UNIFORM = {"macs": "0.5", "scope": "uniform"}
_HALF = {"macs": "0.5"}
_RESNET20, _RESNET56 = "cifar10_resnet20_bn", "cifar10_resnet56_bn"
_RESNET8, _VGG9, _LITE0 = "mlperftiny_resnet8_cifar10", "cifar10_vgg9_bn", "efficientnet_lite0_bn"

CASES = (
    Case("resnet20-50-control", _RESNET20, _CONTROL),
    Case("resnet20-50-uniform", _RESNET20, _UNIFORM, accuracy=82.5, seconds=20),
    Case("resnet20-75", _RESNET20, {"macs": "0.75"}, accuracy=89.8),
    Case("resnet20-50", _RESNET20, _HALF, accuracy=86.5, seconds=60),
    Case("resnet56-50-uniform", _RESNET56, _UNIFORM, accuracy=90.3, seconds=70),
    Case("resnet56-50", _RESNET56, _HALF, accuracy=91.8, seconds=240),
    Case("resnet56-40-layers", _RESNET56, {"macs": "0.4", "layers": "true"}, accuracy=90.0),
    Case("resnet56-latency", _RESNET56, {"latency": "0.6"}, accuracy=90.5, latency=0.6),
    Case("resnet56-50-free", _RESNET56, _HALF, accuracy=75.0, calibration="none"),
    Case("vgg9-50", _VGG9, _HALF | {"align": "16"}, accuracy=85.5, latency=0.6),
    Case("resnet8-50", _RESNET8, _HALF | {"joint": "8"}, accuracy=78.0, samples=1024, preprocess=RAW),
    Case("resnet8-75", _RESNET8, {"macs": "0.75"}, accuracy=83.0, preprocess=RAW),
    Case(
        *("lite0-85", _LITE0, {"macs": "0.85"}),
        agreement=88.0,
        seconds=480,
        peak_bytes=2 * 10**9,
        samples=128,
        data="imagenet",
    ),
)
"""The rows. The control has no accuracy to reach: it shows what is lost where nothing is measured or repaired."""
