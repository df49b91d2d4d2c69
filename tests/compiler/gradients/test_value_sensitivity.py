"""What one run back says of inner values is what really happens to the outputs when they are disturbed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxcomp.compiler.gradients.value_sensitivity import value_sensitivity
from onnxcomp.compiler.passbase import PassLog
from onnxcomp.compiler.quantization.qdq import quantize_values
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.ir.segment import with_outputs
from onnxcomp.numerics.affine import Affine, Grid, range_affine
from onnxcomp.numerics.observers import Histogram, ValueSensitivity
from onnxcomp.runtime.observe import observe_shapes
from onnxcomp.runtime.ranges import observe_values
from onnxcomp.runtime.session import Session
from tests.support.pruning import context_for, noise
from tests.support.text import net

SAMPLES = 96


def network(seed: int = 0) -> Model:
    found = parse_model(
        net(
            "(float[N,3,10,10] x) => (float[N,6] y)",
            "float[8,3,3,3] a, float[8] p, float[8,8,3,3] b, float[8] q, float[8,6] c",
            "h = Conv<pads=[1,1,1,1]>(x, a, p) r = Relu(h) i = Conv<pads=[1,1,1,1]>(r, b, q) s = Add(i, r) t = Relu(s)"
            " g = GlobalAveragePool(t) f = Flatten(g) y = MatMul(f, c)",
            21,
        )
    )
    rng = np.random.default_rng(seed)
    for node in found.graph.nodes:
        for index in range(1, len(node.inputs)):
            old = node.constant(index)
            if old is not None:
                spread = float(np.prod(old.shape[1:])) ** -0.5
                found.graph.set_constant(
                    node, index, (rng.standard_normal(old.shape) * spread).astype(np.float32)
                )
    return found


def sensitivity(
    model: Model, names: list[str], log: PassLog | None = None, **given: Any
) -> tuple[dict[str, ValueSensitivity], dict[str, Histogram]]:
    context = context_for(model, noise(model, SAMPLES, 3), **given)
    assert context.calibration is not None
    shapes = observe_shapes(model, dict(next(iter(context.calibration.batches(1)))))
    seen = observe_values(model, names, context.calibration, shapes, threads=1).histograms
    return value_sensitivity(model, names, seen, context, shapes, log or PassLog()), dict(seen)


def disturbed(model: Model, name: str, affine: Affine) -> float:
    """Return the share of the outputs' energy that storing the value `name` really disturbs."""
    feeds = noise(model, SAMPLES, 3)
    true = Session(with_outputs(model, [name, "y"]), optimize=False, threads=1).run(feeds)
    after = model.clone()
    quantize_values(after, {name: affine})
    now = Session(after, optimize=False, threads=1).run(feeds)["y"]
    # Sensitivity weighs between the size of each sample's output and the usual one.
    size = np.square(true["y"]).sum(1)
    return float((np.square(now - true["y"]).sum(1) / np.sqrt(size * size.mean())).mean())


@pytest.mark.parametrize("name", ["x", "r", "t"])
@pytest.mark.parametrize("bits", [8, 5])
def test_the_sensitivity_to_rounding_is_what_disturbs_the_outputs(name: str, bits: int) -> None:
    model = network()
    found, seen = sensitivity(model, [name])
    affine = range_affine(seen[name].low, seen[name].high, Grid("uint8", bits=bits))
    real = disturbed(model, name, affine)
    assert found[name].cost(affine) == pytest.approx(real, rel=0.5)


@pytest.mark.parametrize("name", ["r", "t"])
def test_the_sensitivity_to_cutting_off_is_what_disturbs_the_outputs(name: str) -> None:
    model = network()
    found, seen = sensitivity(model, [name])
    affine = range_affine(0, 0.6 * seen[name].high, Grid("uint16"))
    assert found[name].cost(affine) == pytest.approx(disturbed(model, name, affine), rel=0.5)


def test_sensitivities_do_not_depend_on_the_batches_they_are_found_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = network()
    names = ["x", "r", "s", "t"]
    whole, _ = sensitivity(model, names)
    monkeypatch.setattr("onnxcomp.compiler.gradients.value_sensitivity.BATCH_BYTES", 1)
    single, _ = sensitivity(model, names)
    assert whole.keys() == single.keys() == set(names)
    for name in names:
        assert len(whole[name].sums) == len(single[name].sums)
        np.testing.assert_allclose(whole[name].squares, single[name].squares, rtol=1e-3, atol=1e-12)
        np.testing.assert_allclose(
            whole[name].sums, single[name].sums, rtol=1e-3, atol=1e-4 * np.abs(whole[name].sums).max()
        )


def test_two_runs_find_the_same_and_another_seed_looks_elsewhere() -> None:
    model = network()
    one, two, other = (sensitivity(model, ["r"], seed=seed)[0]["r"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.sums, two.sums)
    assert (one.sums != other.sums).any()


def test_zeros_which_every_grid_holds_count_nowhere() -> None:
    model = network()
    found, _ = sensitivity(model, ["r", "h"])
    # A Relu makes zeros of half of its elements; their derivatives are there, but storing them disturbs nothing.
    assert found["r"].squares.sum() > 0
    feeds = noise(model, 8, 3)
    values = Session(with_outputs(model, ["r"]), threads=1).run(feeds)["r"]
    assert (values == 0).mean() > 0.3
    at_zero = (found["r"].lows <= 0) & (found["r"].highs >= 0)
    assert found["r"].squares[at_zero].sum() < 0.1 * found["r"].squares.sum()


def test_a_graph_that_cannot_run_back_says_nothing() -> None:
    model = parse_model(
        net("(float[N,4] x) => (float[N,4] y)", "float[4,4] a", "h = MatMul(x, a) e = Sin(h) y = Round(e)")
    )
    found, _ = sensitivity(model, ["h"])
    assert "h" not in found


def test_values_that_no_output_depends_on_are_absent() -> None:
    model = network()
    found, _ = sensitivity(model, ["x", "t"])
    assert set(found) == {"x", "t"}
    constant = parse_model(net("(float[N,4] x) => (float[N,4] y)", "", "y = Sub(x, x)"))
    assert sensitivity(constant, ["x"])[0]["x"].cost(range_affine(-4, 4, Grid("uint8"))) < 1e-6
