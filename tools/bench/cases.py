"""What the benchmarks of the whole command have in common: networks, their samples, and rows with figures to reach."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

__all__ = ["EXACT", "NETWORKS", "ROOT", "ZOO", "Case", "Network", "Setting", "missing_file", "with_options"]

ROOT = Path(__file__).resolve().parent.parent.parent
"""The repository."""

ZOO = ROOT / "models"
"""The networks that are shipped."""

EXACT = "fold-constants,fold-batchnorm,remove-dead"
"""What runs in front of every lossy pass."""

RAW = {"layout": "NHWC->NCHW", "scale": 1.0, "mean": [0, 0, 0], "std": [1, 1, 1]}
"""The preprocess table of a network that takes the values 0..255 as they are."""


@dataclass(frozen=True)
class Network:
    """A network and its samples.

    Attributes:
        model: the file, without its ending.
        data: the name that the files of samples begin with.
        preprocess: the table to use in place of that of the data.
        shipped: whether the files are those of `models/`; else they are those of `../shared`.
    """

    model: str
    data: str = "cifar10"
    preprocess: Mapping[str, object] | None = None
    shipped: bool = False

    def model_path(self, shared: Path) -> Path:
        """Return the file of the network."""
        return (ZOO if self.shipped else shared / "models") / f"{self.model}.onnx"

    def data_path(self, shared: Path, role: str) -> Path:
        """Return the samples for `role`, calibration or evaluation."""
        return (ZOO if self.shipped else shared / "data") / f"{self.data}_{role}.npz"


NETWORKS: Mapping[str, Network] = {
    "resnet20": Network("cifar10_resnet20_bn"),
    "resnet56": Network("cifar10_resnet56_bn"),
    "vgg9": Network("cifar10_vgg9_bn"),
    "lite0": Network("efficientnet_lite0_bn", data="imagenet"),
    "resnet8": Network("mlperftiny_resnet8_cifar10", preprocess=RAW),
    **{
        path.stem: Network(path.stem, data="digits", shipped=True)
        for path in sorted(ZOO.glob("digits_*.onnx"))
    },
}
"""The networks that are measured on, by name; the shipped ones have the names of their files."""


@dataclass(frozen=True)
class Case:
    """A row: a network, what runs on it, and what is to be reached; None where nothing is asked.

    Attributes:
        name: that of the row.
        network: what runs.
        passes: what runs after the exact passes, as pipeline text.
        macs: largest share of the multiply-accumulates that may remain.
        params: largest share of the parameters that may remain.
        accuracy: least top-1 in percent, on all evaluation samples.
        drop: most points of top-1 that may be lost.
        agreement: least share of the evaluation samples on which it decides as the original does, in percent.
        sqnr_db: least SQNR of the outputs.
        bytes: largest file.
        latency: largest share of the time that it is held against: batch 1, one thread.
        seconds: most for the whole command.
        peak_bytes: most memory for the whole command.
        samples: how many calibrate.
        calibration: given to the run in place of the samples.
    """

    name: str
    network: Network
    passes: str
    macs: float | None = None
    params: float | None = None
    accuracy: float | None = None
    drop: float | None = None
    agreement: float | None = None
    sqnr_db: float | None = None
    bytes: int | None = None
    latency: float | None = None
    seconds: float | None = None
    peak_bytes: int | None = None
    samples: int = 512
    calibration: str | None = None

    @property
    def pipeline(self) -> str:
        """The text of all that runs."""
        return f"{EXACT},{self.passes}"

    def reads(self, shared: Path) -> list[Path]:
        """Return the files that a run reads."""
        roles = ("evaluation",) if self.calibration is not None else ("calibration", "evaluation")
        return [self.network.model_path(shared), *(self.network.data_path(shared, role) for role in roles)]


@dataclass(frozen=True)
class Setting:
    """How rows are run.

    Attributes:
        shared: where models/ and data/ are.
        samples: how many calibrate, where not None in the place of what a row says.
        threads: of onnxruntime while the command runs; 0 = all cores.
        passes: what runs in the place of the passes of every row.
        options: of the passes that are measured, which win over those of every row.
        timed: of which rows what was written is timed: those with a latency to reach, all, or none.
        folder: where files, reports and what is left of crashes stay; None for nowhere.
    """

    shared: Path
    samples: int | None = None
    threads: int = 0
    passes: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    timed: Literal["wanted", "all", "none"] = "wanted"
    folder: Path | None = None

    def count(self, case: Case) -> int:
        """Return how many samples calibrate `case`."""
        return case.samples if self.samples is None else self.samples

    def times(self, case: Case) -> bool:
        """Return whether the file written for `case` is timed."""
        return self.timed == "all" or (self.timed == "wanted" and case.latency is not None)

    def applied(self, case: Case, passes: Collection[str], goals: Collection[str] = ()) -> Case:
        """Return `case` with the passes and options given here; options are those of the passes called `passes`."""
        given = case.passes if self.passes is None else self.passes
        return replace(case, passes=with_options(given, self.options, passes, goals))


def with_options(
    text: str, options: Mapping[str, str], passes: Collection[str], goals: Collection[str] = ()
) -> str:
    """Return the pipeline text with `options` given to every pass called one of `passes`.

    They win over those that stand there; where one of `goals` is given, it stands in the place of the one there.
    """
    if not options:
        return text
    replaced = set(goals) - set(options) if set(goals) & set(options) else set()

    def renewed(found: re.Match[str]) -> str:
        pairs = (word.partition("=") for word in (found[2] or "").split())
        merged = {name: value for name, _, value in pairs if name not in replaced} | dict(options)
        return f"{found[1]}{{{' '.join(f'{name}={value}' for name, value in merged.items())}}}"

    return re.sub(rf"\b({'|'.join(passes)})(?![\w-])(?:\{{([^}}]*)\}})?", renewed, text)


def missing_file(case: Case, shared: Path) -> Path | None:
    """Return the first file that a run of `case` would read and that is not there; None where all are."""
    return next((path for path in case.reads(shared) if not path.exists()), None)
