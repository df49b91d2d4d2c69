"""Split and substitute layers of trained networks with the whole command; print what was reached beside what is to be reached.

    python -m tools.bench structure [--rows NAME,...] [--samples N] [--seed 0,1,2] [--passes TEXT]
                                    [--options TEXT] [--time-all | --no-latency] [--memory | --speed] [--threads N]
                                    [--shared FOLDER] [--keep FOLDER] [--json FILE]

Every row is one run of `python -m onnxcomp optimize` in a process of its own: wall time and peak
memory are measured from outside, accuracy and costs are read from the run's report, and in the rows about time the file that
was written is timed beside the folded original afterwards, in one process, in turns: batch 1, one thread. The networks and
data are those of `../shared` or `--shared`, and those of `models/`; no labels reach the passes, and nothing is trained. Exit
code 1 where a figure is missed or a run fails.
"""

from __future__ import annotations

from collections.abc import Sequence

from tools.bench.cases import NETWORKS, Case
from tools.bench.runs import STRUCTURAL
from tools.bench.suite import Suite, run_suite

__all__ = ["CASES", "GOALS", "NEVER_SLOWER", "SUITE", "main"]

GOALS = ("macs", "params", "latency", "rank", "energy", "max-error")
"""The options of these passes of which a run has one."""

NEVER_SLOWER = 1.01
"""Largest share of the folded original's time with `accept=latency`: 1, and what the clock cannot separate from it."""

_DEPTHWISE, _SPLIT = "substitute-depthwise{macs=0.45}", "split-svd{macs=0.5}"
_WEIGHTS, _CHANNEL = "split-svd{macs=0.5 repair=none}", "split-svd{macs=0.5 method=channel}"
_CONTROL = "split-svd{macs=0.5 method=channel repair=none}"
_PIPELINE = "split-svd{macs=0.35}"
_VGG9_TIME = "split-svd{latency=0.45}"
_ACCEPT = "substitute-depthwise{max-error=0.1 accept=latency},split-svd{max-error=0.1 accept=latency}"

CASES = (
    Case("resnet20-depthwise", NETWORKS["resnet20"], _DEPTHWISE, macs=0.45, drop=1.6, seconds=30),
    Case("resnet56-depthwise", NETWORKS["resnet56"], _DEPTHWISE, macs=0.45, drop=1.5, seconds=90),
    Case("resnet20-split", NETWORKS["resnet20"], _SPLIT, macs=0.5, drop=4.5, seconds=30),
    Case("resnet56-split", NETWORKS["resnet56"], _SPLIT, macs=0.5, drop=1.8, seconds=90),
    Case("resnet20-pipeline", NETWORKS["resnet20"], _PIPELINE, macs=0.35, drop=4.0),
    Case("vgg9-time", NETWORKS["vgg9"], _VGG9_TIME, latency=0.45, drop=1.5),
    Case("vgg9-time-int8", NETWORKS["vgg9"], f"{_VGG9_TIME},insert-qdq", latency=0.25, drop=1.5),
    Case(
        *("lite0-split", NETWORKS["lite0"], "split-svd{macs=0.8}"),
        macs=0.8,
        agreement=88.0,
        samples=128,
    ),
    Case("digits-mlp", NETWORKS["digits_mlp"], "split-svd{params=0.4}", params=0.4, drop=0.5),
    Case("resnet56-time", NETWORKS["resnet56"], "split-svd{latency=0.75}", latency=0.75, drop=1.5),
    *(
        Case(f"{name}-{kind}", NETWORKS[name], passes, calibration=calibration)
        for name in ("resnet20", "resnet56")
        for kind, passes, calibration in (
            ("depthwise-free", _DEPTHWISE, "none"),
            ("split-free", _SPLIT, "none"),
            ("split-weights", _WEIGHTS, None),
            ("channel", _CHANNEL, None),
            ("channel-weights", _CONTROL, None),
        )
    ),
    *(
        Case(
            f"{name}-accept", network, _ACCEPT, latency=NEVER_SLOWER, samples=128 if name == "lite0" else 512
        )
        for name, network in NETWORKS.items()
    ),
)
"""The rows: the figures to reach, then what there is without data, without repair and with one form alone, which has
nothing to reach, then what may never become slower."""

SUITE = Suite(
    "structure",
    __doc__,
    CASES,
    passes=STRUCTURAL,
    goals=GOALS,
    example="sweeps=2",
    memory_rows=("resnet20-depthwise", "resnet20-split"),
    memory_samples=(128, 512),
    speed_rows=("resnet20-depthwise", "resnet20-split", "resnet56-depthwise", "resnet56-split"),
    folded=True,
    flags=("--allow-noop", "--accept-ruin", "--force"),
)
"""How these rows are run, and what their options are."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the rows, print the tables and write the document; return 1 where a figure is missed or a run fails."""
    return run_suite(SUITE, arguments)
