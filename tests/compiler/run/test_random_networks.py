"""Runs over networks that draw random numbers: both sides draw the same ones, and the written file its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from onnxcomp.api import optimize
from onnxcomp.ir.files import load, save
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.ir.randomness import random_nodes
from tests.support.text import net


def noisy() -> Model:
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((4, 4, 3, 3)).astype(np.float32) for name in ("v", "w")}
    body = (
        "c = Conv <pads=[1,1,1,1]> (x, v) b = BatchNormalization(c, s, s, s, s) r = Relu(b) "
        "z = RandomNormalLike <scale=0.5> (r) n = Add(r, z) y = Conv <pads=[1,1,1,1]> (n, w)"
    )
    stored = "float[4,4,3,3] v, float[4,4,3,3] w, float[4] s = {1.0, 1.0, 2.0, 1.0}"
    return parse_model(net("(float[N,4,6,6] x) => (float[N,4,6,6] y)", stored, body), weights)


def test_exact_passes_are_kept_and_what_is_lost_is_told_without_the_noise(tmp_path: Path) -> None:
    (source,) = save(noisy(), tmp_path / "in.onnx")
    samples = {"x": np.random.default_rng(1).standard_normal((48, 4, 6, 6)).astype(np.float32)}
    out = tmp_path / "out.onnx"
    result = optimize(
        source, output=out, passes="fold-batchnorm,insert-qdq", calibration=samples, evaluation=samples
    )
    assert [run.status for run in result.report.runs] == ["changed", "changed"]
    assert result.report.comparison is not None
    assert (result.report.comparison.sqnr_db or 0) > 25
    assert any("RandomNormalLike" in note and "seeds" in note for note in result.report.notes)
    for model in (load(out), result.model):
        (node,) = random_nodes(model)
        assert "seed" not in node.attrs
