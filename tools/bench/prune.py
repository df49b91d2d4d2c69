"""Prune trained networks with the whole command, and print what was reached beside what is to be reached.

    python -m tools.bench prune [--rows NAME,...] [--samples N] [--seed 0,1,2] [--passes TEXT] [--options TEXT]
                                [--time-all | --no-latency] [--memory | --speed] [--threads N] [--shared FOLDER]
                                [--keep FOLDER] [--json FILE]

Every row is one run of `python -m onnxcomp optimize` in a process of its own: wall time and peak memory are measured from
outside; where a latency is to be reached, the file that was written is timed beside the original afterwards; all else is
read from the run's report. The networks and the data are those of `../shared` or `--shared`; no labels reach the run, and
nothing is trained. Exit code 1 where a figure is missed or a run fails.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tools.bench.cases import NETWORKS, Case
from tools.bench.suite import Suite, run_suite

__all__ = ["CASES", "SUITE", "judged", "main"]

PEAK_BYTES = 8 * 10**8
"""What the whole command may take in memory, where the row says nothing else."""

_HALF, _UNIFORM = "macs=0.5", "macs=0.5 scope=uniform"


def _case(name: str, network: str, options: str, **targets: Any) -> Case:
    """Return a row of the network called `network`; `options` are those of prune-filters, the budget among them."""
    return Case(
        name, NETWORKS[network], f"prune-filters{{{options}}}", **{"peak_bytes": PEAK_BYTES, **targets}
    )


CASES = (
    _case("resnet20-50-control", "resnet20", f"{_UNIFORM} criterion=l1 repair=none"),
    _case("resnet20-50-uniform", "resnet20", _UNIFORM, accuracy=82.5, seconds=20),
    _case("resnet20-75", "resnet20", "macs=0.75", accuracy=89.8),
    _case("resnet20-50", "resnet20", _HALF, accuracy=86.5, seconds=60),
    _case("resnet56-50-uniform", "resnet56", _UNIFORM, accuracy=90.3, seconds=70),
    _case("resnet56-50", "resnet56", _HALF, accuracy=91.8, seconds=240),
    _case("resnet56-40-layers", "resnet56", "macs=0.4 layers=true", accuracy=90.0),
    _case("resnet56-latency", "resnet56", "latency=0.6", accuracy=90.5),
    _case("resnet56-50-free", "resnet56", _HALF, accuracy=75.0, calibration="none"),
    _case("vgg9-50", "vgg9", f"{_HALF} align=16", accuracy=85.5, latency=0.6),
    _case("resnet8-50", "resnet8", f"{_HALF} joint=8", accuracy=78.0, samples=1024),
    _case("resnet8-75", "resnet8", "macs=0.75", accuracy=83.0),
    _case("lite0-85", "lite0", "macs=0.85", agreement=88.0, seconds=480, peak_bytes=2 * 10**9, samples=128),
)
"""The rows. The control has no accuracy to reach: it shows what is lost where nothing is measured or repaired."""


def judged(case: Case) -> Case:
    """Return `case` with the budget that stands in its passes as what it is to reach."""
    budget = {what: float(value) for what, value in re.findall(r"\b(macs|latency)=([\d.]+)", case.passes)}
    return replace(case, macs=budget.get("macs"), latency=budget.get("latency", case.latency))


SUITE = Suite(
    "prune",
    __doc__,
    CASES,
    passes=("prune-filters",),
    goals=("ratio", "macs", "params", "latency"),
    example="criterion=l2 align=8",
    memory_rows=("resnet20-50",),
    memory_samples=(512, 1024),
    speed_rows=("resnet20-50-uniform", "resnet20-50", "resnet56-50-uniform", "resnet56-50"),
    judged=judged,
)
"""How these rows are run, and what their options are."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the rows, print the tables and write the document; return 1 where a figure is missed or a run fails."""
    return run_suite(SUITE, arguments)
