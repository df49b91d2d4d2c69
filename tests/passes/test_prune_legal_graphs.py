"""Legal but unusual graphs through prune-filters with its default repair: nothing fails, and budgets hold."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.analysis.channels import default_shapes
from onnxcomp.analysis.cost import model_cost
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.passes.prune_filters import PruneFilters
from onnxcomp.testing import assert_valid
from tests.support.pruning import context_for, noise, outputs

HEAD = '<ir_version: 8, opset_import: ["" : 17]> net '
TWO_INPUTS = (
    "(float[N,3,8,8] x, float[{m}] m) => (float[N,4,8,8] y) <float[8,3,3,3] a, float[8,8,3,3] b, float[4,8,1,1] c> {{"
    " h = Conv<pads=[1,1,1,1]>(x, a) r = Relu(h) s = Conv<pads=[1,1,1,1]>(r, b) t = Add(s, m) u = Relu(t)"
    " y = Conv(u, c) }}"
)


def pruned(model: Model, step: PruneFilters) -> Model:
    result = step.run(model.clone(), context_for(model, noise(model, 80)))
    assert result.changed
    assert_valid(result.model, model)
    return result.model


@pytest.mark.parametrize("m", ["N,1,8,8", "N,8,1,1", "N,1,1,1"])
def test_an_addition_that_broadcasts_is_no_residual_branch(m: str) -> None:
    model = parse_model(HEAD + TWO_INPUTS.format(m=m))
    small = pruned(model, PruneFilters(ratio=0.5))
    assert np.isfinite(outputs(small, noise(small, 3))).all()


def test_a_half_precision_network_is_refitted_and_stays_half_precision() -> None:
    text = (
        "(float16[N,3,8,8] x) => (float16[N,4,8,8] y) <float16[8,3,3,3] a, float16[8,8,3,3] b, float16[4,8,1,1] c> {"
        " h = Conv<pads=[1,1,1,1]>(x, a) r = Relu(h) s = Conv<pads=[1,1,1,1]>(r, b) u = Relu(s) y = Conv(u, c) }"
    )
    model = parse_model(HEAD + text)
    feeds = {"x": noise(model, 80)["x"].astype(np.float16)}
    result = PruneFilters(ratio=0.25).run(model.clone(), context_for(model, feeds))
    assert result.changed
    assert {c.values.dtype for c in result.model.graph.constants.values()} == {np.dtype(np.float16)}


def test_biases_that_the_refit_adds_count_towards_a_budget_of_parameters() -> None:
    text = (
        "(float[N,3,6,6] x) => (float[N,4,6,6] y) <float[12,3,1,1] a, float[12,12,1,1] b, float[4,12,1,1] c> {"
        " h = Conv(x, a) r = Relu(h) s = Conv(r, b) u = Relu(s) y = Conv(u, c) }"
    )
    model = parse_model(HEAD + text)
    small = pruned(model, PruneFilters(params=0.5))
    before, after = (model_cost(m, default_shapes(m)).parameters for m in (model, small))
    assert after <= 0.5 * before


def test_readers_too_wide_for_statistics_are_cut_by_norm_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxcomp.compiler.repair.refit.WIDEST", 8)
    text = "(float[N,5,6] x) => (float[N,5,3] y) <float[6,16] a, float[16,3] b> { h = MatMul(x, a) r = Relu(h) y = MatMul(r, b) }"
    model = parse_model(HEAD + text)
    result = PruneFilters(ratio=0.25).run(model.clone(), context_for(model, noise(model, 80)))
    assert any("too wide for statistics" in note for note in result.notes)
    assert result.changed
