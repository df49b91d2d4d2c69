"""The rows of the benchmark quantize: networks, the samples they are quantized and judged on, and what is to be reached."""

from __future__ import annotations

from typing import Any

from tools.bench.cases import NETWORKS, Case

__all__ = ["CASES"]


def _case(name: str, network: str, options: str = "", **targets: Any) -> Case:
    """Return a row of the network called `network`; `options` are those of insert-qdq."""
    passes = f"insert-qdq{{{options}}}" if options else "insert-qdq"
    return Case(name, NETWORKS[network], passes, **{"samples": 100 if network == "lite0" else 300, **targets})


_PER_TENSOR = "granularity=per-tensor"

CASES = (
    _case("resnet20", "resnet20", agreement=99.4, sqnr_db=31.2, latency=0.60, bytes=308_000),
    _case("resnet56", "resnet56", agreement=99.5, sqnr_db=30.5, latency=0.56, bytes=960_000),
    _case("lite0", "lite0", agreement=99.3, sqnr_db=20.5, latency=0.30),
    _case("vgg9", "vgg9", agreement=99.5, sqnr_db=36.0, latency=0.39, bytes=1_185_000),
    _case("resnet8", "resnet8"),
    _case("lite0-per-tensor", "lite0", _PER_TENSOR, agreement=96.0),
    _case("resnet56-free", "resnet56", drop=0.5, calibration="none"),
    _case("lite0-free", "lite0", drop=2.0, calibration="none"),
    *(_case(name.removeprefix("digits_"), name) for name, one in NETWORKS.items() if one.shipped),
)
"""The rows. The shipped networks have nothing to reach: they show other structures."""
