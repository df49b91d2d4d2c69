"""What the walk measures and hands to solvers, how it samples, and that its order and batches do not matter."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxcomp.analysis.channels import default_shapes
from onnxcomp.analysis.linear import linear_node
from onnxcomp.compiler.passbase import Context
from onnxcomp.compiler.repair import walk as repair
from onnxcomp.compiler.repair.refit import Visit, refit
from onnxcomp.compiler.repair.walk import Walk, collect_moments, sample_positions
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.runtime import capture
from onnxcomp.testing import fingerprint
from tests.support.pruning import context_for, noise, outputs
from tests.support.repairing import cut, fit, name_of, redundant, repaired
from tests.support.text import net


# --- what is measured ------------------------------------------------------------------------------------------------
def test_visits_carry_the_moments_of_the_cut_networks_inputs_and_of_the_originals_outputs() -> None:
    original = redundant("Relu")
    left, sites = cut(original, {"h": [0, 1, 2, 3], "i": [1, 2, 5]})
    feeds = noise(original, 20)
    seen: dict[str, Visit] = {}

    def look(visit: Visit) -> None:
        seen.setdefault(visit.node.output, visit)

    context = context_for(original, feeds)
    Walk(original, left, context).visit(sites, look, "look")
    assert list(seen) == ["i", "g", "y"]
    assert seen["i"].site.rows.tolist() == [1, 2, 5]
    views = [m.clone() for m in (original, left)]
    views[0].graph.outputs[:] = [views[0].graph.values()["g"]]
    views[1].graph.outputs[:] = [views[1].graph.values()["f"]]
    wanted, x = (outputs(view, feeds).astype(np.float64) for view in views)
    whole = original.clone()
    whole.graph.outputs[:] = [whole.graph.values()["i"]]
    kept = outputs(whole, feeds)[:, [1, 2, 5]]
    np.testing.assert_allclose(seen["i"].moments.mean_y[0], kept.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    moments = seen["g"].moments
    assert moments.count == 20
    np.testing.assert_allclose(moments.mean_x[0], x.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(moments.mean_y[0], wanted.mean(0), rtol=1e-4, atol=1e-5)
    centred = wanted - wanted.mean(0)
    np.testing.assert_allclose(moments.cross()[0], centred.T @ (x - x.mean(0)) / 20, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("reader", "centred"), [("Gemm", True), ("MatMul", False)])
def test_refit_is_the_centred_least_squares_fit_and_the_plain_one_without_a_bias(
    reader: str, centred: bool
) -> None:
    text = net(
        "(float[N,5] x) => (float[N,3] y)",
        "float[5,6] a, float[6] p, float[6,3] b",
        f"h = Gemm(x, a, p) k = Relu(h) y = {reader}(k, b)",
    )
    original = parse_model(text)
    left, sites = cut(original, {"h": [0, 2, 5]})
    feeds = noise(original, 20000)
    repaired(original, left, sites, refit, feeds)
    values = original.graph.constants
    hidden = np.maximum(feeds["x"] @ values["a"].values + values["p"].values, 0)[:, [0, 2, 5]]
    rows = np.column_stack([hidden, np.ones(20000)]) if centred else hidden
    wanted = np.linalg.lstsq(rows.astype(np.float64), outputs(original, feeds), rcond=None)[0]
    np.testing.assert_allclose(left.graph.constants["b"].values, wanted[:3], rtol=0.01, atol=0.01)
    made = left.graph.nodes[-1].constant(2)
    assert (made is not None) == centred
    if made is not None:
        np.testing.assert_allclose(made, wanted[3], rtol=0.01, atol=0.01)


def test_weights_lean_on_what_they_were_where_samples_are_few() -> None:
    moved = {}
    for solve in (fit, refit):
        original = redundant("Relu")
        left, sites = cut(original, {"h": [0, 1, 2, 3]})
        before = left.graph.constants["b"].values
        repaired(original, left, sites[:1], solve, feeds=noise(original, 2))
        moved[solve.__name__] = float(np.abs(left.graph.constants["b"].values - before).mean())
    assert moved["refit"] < 0.8 * moved["fit"]


def test_the_batch_size_of_the_walk_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for size in (1, 7, 64):
        monkeypatch.setattr(repair, "batch_size", lambda *_, size=size, **__: size)
        original = redundant("Relu")
        left, sites = cut(original, {"h": [0, 1, 2, 3]})
        repaired(original, left, sites, refit, feeds=noise(original, 300))
        results.append({n: c.values for n, c in left.graph.constants.items()})
    for constants in results[1:]:
        for name, array in constants.items():
            np.testing.assert_allclose(array, results[0][name], rtol=1e-3, atol=1e-4)


def test_the_order_in_which_sites_are_given_does_not_matter() -> None:
    original = redundant("Relu")
    marks = set()
    for order in (slice(None), slice(None, None, -1)):
        left, sites = cut(original, {"h": [0, 1, 2, 3]})
        repaired(original, left, sites[order])
        marks.add(fingerprint(left))
    assert len(marks) == 1


def test_a_later_site_sees_what_became_of_the_earlier_ones() -> None:
    """The last node has less to make up for where those before it have been refitted."""
    original = redundant("Relu")
    left, sites = cut(original, {"h": [0, 3]})
    every = left.clone()
    errors = {site.name: error for site, error in repaired(original, every, sites)}
    alone = {site.name: error for site, error in repaired(original, left, sites[-1:])}
    assert errors[sites[-1].name] < alone[sites[-1].name]


def test_activations_that_follow_forgive_what_they_cut_off() -> None:
    """Behind a Relu that hides most of it, the refitted branch is better after the Relu than a plain fit would be."""
    text = net(
        "(float[N,3,6,6] x) => (float[N,6,6,6] y)",
        "float[8,3,1,1] a, float[6,8,1,1] b, float[6] q",
        "h = Conv(x, a) k = Relu(h) i = Conv(k, b, q) y = {}(i)",
    )
    gaps = {}
    for activation in ("Relu", "Identity"):
        original = parse_model(text.replace("{}", activation), {"q": np.full(6, -0.8, np.float32)})
        left, sites = cut(original, {"h": [0, 1, 2, 3]})
        repaired(original, left, sites, refit)
        feeds = noise(original, 16, seed=9)
        wanted, made = outputs(original, feeds), outputs(left, feeds)
        after = [np.maximum(v, 0) for v in (wanted, made)]
        gaps[activation] = float(((after[0] - after[1]) ** 2).mean())
    assert gaps["Relu"] < 0.95 * gaps["Identity"]


def test_the_walk_is_the_same_every_time_and_another_seed_samples_other_positions() -> None:
    """An image of 20 x 20 has more positions than are taken of a sample."""
    text = net(
        "(float[N,3,20,20] x) => (float[N,5,20,20] y)",
        "float[6,3,1,1] a, float[5,6,1,1] b",
        "h = Conv(x, a) k = Relu(h) y = Conv(k, b)",
    )
    original = parse_model(text)
    marks = []
    for seed in (0, 0, 1):
        left, sites = cut(original, {"h": [0, 1, 2]})
        repaired(original, left, sites, refit, feeds=noise(original, 4), seed=seed)
        marks.append(fingerprint(left))
    assert marks[0] == marks[1] != marks[2]


def test_nothing_stays_on_disk_and_progress_is_told() -> None:
    original = redundant("Relu")
    left, sites = cut(original, {"h": [0, 1, 2, 3]})
    context = context_for(original)
    told: list[tuple[str, int, int]] = []
    context = dataclasses.replace(context, progress=lambda *step: told.append(step))
    spools: list[capture.Spool] = []
    make = capture.Spool.__init__

    def remember(self: capture.Spool) -> None:
        make(self)
        spools.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(capture.Spool, "__init__", remember)
        Walk(original, left, context).visit(sites, refit, "refitting")
    assert told == [("refitting", step, 3) for step in range(4)]
    assert len(spools) == 2
    for spool in spools:
        with pytest.raises(OSError, match="No such file"):
            spool.write("new", np.zeros(3, np.float32))


# --- moments of inputs -----------------------------------------------------------------------------------------------
def moments_of(model: Model, context: Context, **given: Any) -> dict[str, Any]:
    nodes = [n for node in model.graph.nodes if (n := linear_node(node)) is not None]
    found = collect_moments(model, nodes, context, default_shapes(model), "statistics", **given)
    return {n.output: found[n.node.name] for n in nodes}


def test_collected_moments_are_those_of_all_columns() -> None:
    model = redundant("Relu")
    feeds = noise(model, 10)
    found = moments_of(model, context_for(model, feeds))
    view = model.clone()
    view.graph.outputs[:] = [view.graph.values()["f"]]
    x = outputs(view, feeds).astype(np.float64)
    assert found["g"].count == 10
    np.testing.assert_allclose(found["g"].mean_x[0], x.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["g"].covariance()[0], np.cov(x.T, bias=True), rtol=1e-3, atol=1e-4)
    assert found["h"].count == 10 * 16
    assert found["h"].covariance().shape == (1, 27, 27)


def test_channelwise_moments_are_those_of_the_channels() -> None:
    model = redundant("Relu")
    feeds = noise(model, 10)
    found = moments_of(model, context_for(model, feeds), channelwise={name_of(model, "h"): 3})
    x = feeds["x"].swapaxes(0, 1).reshape(3, -1).astype(np.float64)
    np.testing.assert_allclose(found["h"].covariance()[0], np.cov(x, bias=True), rtol=1e-3, atol=1e-4)
    assert found["i"].covariance().shape == (1, 72, 72)


@pytest.mark.parametrize(("total", "taken"), [(1, None), (256, None), (257, 256), (4000, 256)])
def test_positions_are_sampled_where_there_are_many(total: int, taken: int | None) -> None:
    found: NDArray[np.int64] | None = sample_positions(total, np.random.default_rng(0))
    if taken is None:
        assert found is None
        return
    assert found is not None
    assert len(np.unique(found)) == taken
    assert found.tolist() == sorted(found.tolist())
    assert set(found.tolist()) <= set(range(total))
