"""Runs over networks that select rows by the data, and whose two versions select different ones."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.analysis.selection import REASON
from onnxcomp.api import optimize
from onnxcomp.compiler.run.verify import Verifier
from onnxcomp.errors import VerificationError
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.runtime.compare import Comparison
from tests.support.text import net

DETECTOR = net(
    "(float[1,3,8,8] x) => (float[R,5] boxes)",
    "float[8,3,3,3] w0, float[8,8,3,3] wm, float[8,12] w1, float[12] b1, float[12,5] w2, int64[2] rows = {-1, 8}, "
    "float limit",
    "c = Conv <pads=[1,1,1,1]> (x, w0) r = Relu(c) c1 = Conv <pads=[1,1,1,1]> (r, wm) r1 = Relu(c1) "
    "t = Transpose <perm=[0,2,3,1]> (r1) f = Reshape(t, rows) best = ReduceMax <axes=[1], keepdims=0> (f) "
    "chosen = Greater(best, limit) s = Compress <axis=0> (f, chosen) h = Gemm(s, w1, b1) hr = Relu(h) "
    "boxes = MatMul(hr, w2)",
)


def detector(limit: float) -> Model:
    rng = np.random.default_rng(0)
    sizes = {"w0": (8, 3, 3, 3), "wm": (8, 8, 3, 3), "w1": (8, 12), "b1": (12,), "w2": (12, 5)}
    weights = {name: (rng.standard_normal(size) * 0.3).astype(np.float32) for name, size in sizes.items()}
    model = parse_model(DETECTOR, {**weights, "limit": np.array(limit, np.float32)})
    for node in model.graph.nodes:
        node.name = node.outputs[0].name
    return model


SAMPLES = {
    "x": np.random.default_rng(1).standard_normal((32, 3, 8, 8)).astype(np.float32).reshape(32, 1, 3, 8, 8)
}


@pytest.mark.parametrize(
    "passes", ["insert-qdq", "insert-qdq{precision=mixed min-sqnr=3}", "split-svd{macs=0.8}"]
)
def test_layers_behind_the_selection_are_left_alone_and_the_rest_is_worked_on(passes: str) -> None:
    result = optimize(detector(3.0), passes=passes, calibration=SAMPLES, evaluation=SAMPLES)
    (run,) = result.report.runs
    assert run.status == "changed", run.reason
    assert {skip.where for skip in run.skips if REASON in skip.reason} >= {"h", "boxes"}
    comparison = result.report.comparison
    assert isinstance(comparison, Comparison)
    assert comparison.samples == 32


def test_an_approximate_pass_may_change_how_many_rows_are_selected_and_an_exact_one_may_not() -> None:
    feeds = [{"x": SAMPLES["x"][0]}]
    first, second = detector(3.0), detector(3.4)
    holder = Verifier(first, feeds, threads=1)
    before = holder.baseline()
    assert before is not None
    after = holder.verify(second, before, exact=False)
    assert after is not None
    assert len(after[0]["boxes"]) < len(before[0]["boxes"])
    with pytest.raises(VerificationError, match="boxes"):
        holder.verify(second, before, exact=True)
