"""Sensitivity: its figures are those of a model that is really cut, refitted once and compared."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.special

import onnxcomp
from onnxcomp.analysis.channels import channel_groups
from onnxcomp.compiler.channel_pruning.ladder import Limits
from onnxcomp.compiler.channel_pruning.problem import open_scene
from onnxcomp.compiler.channel_pruning.sensitivity_curves import CutAlone, nearest_counts
from onnxcomp.compiler.channel_pruning.technique import CRITERIA, PruneChannels
from onnxcomp.compiler.commands.sensitivity import Effect, Sensitivity
from onnxcomp.compiler.evaluation.divergence import Reference
from onnxcomp.compiler.passbase import PassLog
from onnxcomp.compiler.repair.refit import RIDGE
from onnxcomp.errors import UsageError
from onnxcomp.ir.graph import Array
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.passes.prune_filters import PruneFilters
from onnxcomp.runtime.capture import stream_values
from onnxcomp.runtime.session import Session
from tests.support.pruning import CHAIN, ZOO, context_for, cost, noise, zoo, zoo_context
from tests.support.text import net

DATA = str(ZOO / "digits_calibration.npz")
COUNT = 96


def measured(model: Model | str, **options: Any) -> Sensitivity:
    """Measure on the first calibration images, without a cache."""
    settings: dict[str, Any] = {"passes": "remove-dead", "samples": COUNT, "threads": 1, "cache": "none"}
    settings |= options
    return onnxcomp.sensitivity(model, settings.pop("calibration", DATA), **settings)


def prepared(name: str) -> Model:
    return onnxcomp.optimize(zoo(name)).model


def cuts(model: Model, level: float) -> Iterator[tuple[CutAlone, int]]:
    """Yield what the command tries at `level`, each with the number of channels it removes."""
    context = zoo_context(model, COUNT)
    scene = open_scene(model, {}, Limits(), "obs", context, PassLog())
    depths = {name: [len(x.order) for x in ladders] for name, ladders in scene.blank().items()}
    for ladders, moments in scene.ordered_waves(depths):
        for ladder in ladders:
            for count in nearest_counts(ladder, scene.limits, [level]):
                yield CutAlone(model, scene.groups, ladder, moments), count


def feeds(model: Model) -> list[dict[str, Array]]:
    samples = zoo_context(model, COUNT).calibration
    assert samples is not None
    return list(samples.batches(32))


def given(model: Model, name: str) -> Array:
    """Return the value `name` for all samples, `[n, ...]`."""
    samples = zoo_context(model, COUNT).calibration
    assert samples is not None
    return np.concatenate([values[name] for values in stream_values(model, [name], samples, 32, threads=1)])


def test_the_figures_are_those_of_the_network_cut_refitted_by_least_squares_and_compared() -> None:
    """Every step is done here once more by other means: lstsq on the values themselves, divergence by its definition."""
    model = prepared("digits_mlp")
    effects = measured(model, levels=[0.5]).effects
    before = given(model, "logits").astype(np.float64)
    checked = 0
    for (alone, count), effect in zip(cuts(model, 0.5), effects, strict=True):
        assert (effect.site, effect.removed) == (alone.ladder.group, count)
        keep = alone.keep(count)
        (reader,) = alone.groups[effect.site].consumers
        node = next(n for n in model.graph.nodes if n.name == reader)
        x = given(model, node.inputs[0].name).astype(np.float64)
        W, b = (np.asarray(node.constant(i), np.float64) for i in (1, 2))
        W = W.T if node.attrs.get("transB") else W
        stays = keep[effect.site]
        centred = x - x.mean(0)
        # Fewer samples than inputs: the refit leans on the weights as they were, the more so the fewer there are.
        strength = min(1.0, max(RIDGE, x.shape[1] / len(x)))
        lam = strength * np.square(centred[:, stays]).sum(1).mean() / stays.sum()
        rows = np.vstack([centred[:, stays] / math.sqrt(len(x)), math.sqrt(lam) * np.eye(stays.sum())])
        wanted = np.vstack([centred @ W / math.sqrt(len(x)), math.sqrt(lam) * W[stays]])
        refit, *_ = np.linalg.lstsq(rows, wanted, rcond=None)
        cut = model.clone()
        alone.groups.take(cut, keep)
        after = next(n for n in cut.graph.nodes if n.name == reader)
        stored = refit.T if node.attrs.get("transB") else refit
        cut.graph.set_constant(after, 1, stored.astype(np.float32))
        bias = b + x.mean(0) @ W - x.mean(0)[stays] @ refit
        cut.graph.set_constant(after, 2, bias.astype(np.float32))
        found = given(cut, "logits").astype(np.float64)
        temperature = (before - before.mean(1, keepdims=True)).std()
        p, q = (scipy.special.log_softmax(z / temperature, axis=1) for z in (before, found))
        divergence = temperature**2 * (np.exp(p) * (p - q)).sum() / len(before)
        assert effect.distance == pytest.approx(divergence, rel=1e-3)
        assert effect.agreement == pytest.approx(100 * (before.argmax(1) == found.argmax(1)).mean())
        assert (effect.macs, effect.parameters) == (
            (cost(model).macs or 0) - (cost(cut).macs or 0),
            cost(model).parameters - cost(cut).parameters,
        )
        checked += 1
    assert checked == 2


@pytest.mark.parametrize("name", ["digits_resnet", "digits_densenet", "digits_lstm"])
def test_what_is_told_of_a_masked_network_holds_for_the_smaller_one(name: str) -> None:
    """Candidates are masked; here each is really cut, and run and counted as a whole."""
    model = prepared(name)
    effects = {(e.site, e.tier or 1): e for e in measured(model, levels=[0.5]).effects}
    reference = Reference([dict(Session(model, threads=1).run(f)) for f in feeds(model)])
    seen: dict[str, int] = {}
    for alone, count in cuts(model, 0.5):
        group = alone.ladder.group
        seen[group] = seen.get(group, 0) + 1
        effect = effects.pop((group, seen[group]))
        smaller = alone.trial(count).build()
        channel_groups(smaller).take(smaller, alone.keep(count))
        session = Session(smaller, threads=1)
        distance, agreement = reference.judge(dict(session.run(f)) for f in feeds(model))
        assert effect.distance == pytest.approx(distance, rel=2e-3, abs=1e-6)
        assert effect.agreement == pytest.approx(100 * (agreement or 0), abs=100 / COUNT)
        cut = model.clone()
        alone.groups.take(cut, alone.keep(count))
        assert effect.macs == (cost(model).macs or 0) - (cost(cut).macs or 0)
        assert effect.parameters == cost(model).parameters - cost(cut).parameters
    assert effects == {}


def test_refitting_makes_every_layer_less_sensitive_than_norms_alone_would() -> None:
    """Groups come in network order, levels ascend, and what obs chooses does less than what chance does."""
    model = prepared("digits_resnet")
    chosen, chance = (measured(model, criterion=c).effects for c in ("obs", "random"))
    assert [(e.site, e.removed) for e in chosen] == [(e.site, e.removed) for e in chance]
    order = [node.name for node in model.graph.nodes]
    places = [order.index(e.site) for e in chosen]
    assert places == sorted(places)
    assert sum(e.distance or 0 for e in chosen) < 0.5 * sum(e.distance or 0 for e in chance)


def test_the_ranking_names_every_place_once_with_its_middle_level() -> None:
    found = measured(prepared("digits_resnet"), levels=[0.75, 0.25, 0.5, 0.5])
    assert found.techniques == {"prune-filters": {"levels": [0.25, 0.5, 0.75], "criterion": "obs"}}
    ranking = found.ranking()
    assert sorted(e.place for e in ranking) == sorted({e.place for e in found.effects})
    assert {e.level for e in ranking} == {0.5}
    distances = [e.distance or 0 for e in ranking]
    assert distances == sorted(distances, reverse=True)


def test_a_stream_that_grows_is_measured_tier_by_tier() -> None:
    """Option-A shortcuts: the channels that the second stage adds are cut apart from those that the first has, too."""
    model = parse_model(
        net(
            "(float[N,3,6,6] x) => (float[N,4] y)",
            "float[4,3,1,1] a, float[8,4,1,1] b, float[4,8,1,1] c, float[8,4] d, int64[8] p",
            "s = Conv(x, a) r = Relu(s) t = Conv(r, b) u = Pad(r, p) v = Add(t, u) w = Relu(v)"
            " g = GlobalAveragePool(w) f = Flatten(g) y = MatMul(f, d)",
        ),
        {"p": np.array([0, 0, 0, 0, 0, 4, 0, 0])},
    )
    found = measured(model, calibration=noise(model), levels=[0.5])
    stream = [e for e in found.effects if e.tier is not None]
    assert [(e.place, e.removed, e.units) for e in stream] == [("s (tier 1)", 2, 4), ("s (tier 2)", 2, 4)]
    assert stream[0].macs > stream[1].macs


def test_whole_numbers_are_judged_by_how_many_differ() -> None:
    text = net(
        "(float[N,6] x) => (int64[N,1] y)",
        "float[6,8] a, float[8,4] b",
        "h = MatMul(x, a) r = Relu(h) z = MatMul(r, b) y = ArgMax<axis = 1>(z)",
    )
    model = parse_model(text)
    found = measured(model, calibration=noise(model), levels=[0.9])
    (effect,) = found.effects
    assert (found.measure, found.decision, effect.agreement) == ("differing", None, None)
    assert effect.distance is not None and 0 < effect.distance < 1


def test_sensitivity_is_infinite_where_nothing_is_saved_or_nothing_is_finite() -> None:
    effect = Effect("prune-filters", "a", None, 0.5, 1, 2, 0.25, None, 8, 0.125, 8, 0.1)
    assert effect.sensitivity == 2.0
    assert dataclasses.replace(effect, macs=0, macs_share=0.0).sensitivity == math.inf
    assert dataclasses.replace(effect, distance=None).sensitivity == math.inf


def test_the_criteria_are_those_of_the_pass() -> None:
    hint = typing.get_type_hints(PruneFilters)["criterion"]
    assert set(CRITERIA) == set(typing.get_args(hint))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_has_its_order_and_no_model_is_edited(criterion: str) -> None:
    model = parse_model(CHAIN)
    context = context_for(model)
    before = [c.values.tobytes() for c in model.graph.constants.values()]
    portions = PruneChannels((0.5,), criterion).candidates(model, context, PassLog())
    counts = [(c.site, c.removed, c.units) for portion in portions for c in portion if c.trial.build()]
    assert counts == [("h", 8, 16), ("i", 12, 24), ("g", 10, 20)]
    assert [c.values.tobytes() for c in model.graph.constants.values()] == before


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PruneChannels(()), "--levels is empty"),
        (lambda: PruneChannels((0.5, 1.5)), "--levels: 1.5 is no share removed"),
        (lambda: PruneChannels(criterion="ops"), "unknown criterion 'ops'; did you mean 'obs'"),
        (lambda: measured("none.onnx"), "the model none.onnx is missing"),
        (
            lambda: measured(parse_model(CHAIN), sampels=3),
            "sensitivity has no option 'sampels'; did you mean 'samples'",
        ),
        (lambda: measured(parse_model(CHAIN), max_drop=1.0), "sensitivity has no option 'max_drop'"),
        (lambda: measured(parse_model(CHAIN), calibration=None, samples=None), "give --calibration"),
    ],
)
def test_wrong_calls_are_refused(call: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call()


def test_more_samples_than_are_judged_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxcomp.compiler.commands.sensitivity.JUDGED", 32)
    found = measured(prepared("digits_mlp"), levels=[0.5])
    assert found.samples == 32 and found.data.samples == COUNT
    assert "judged on the first 32 of 96 samples" in found.notes


def test_a_model_in_memory_is_kept_by_its_content(tmp_path: Path) -> None:
    model = parse_model(CHAIN)
    data = noise(model)
    first = measured(model, calibration=data, samples=None, cache=tmp_path)
    again = measured(model.clone(), calibration=data, samples=None, cache=tmp_path)
    assert not first.cached and again == dataclasses.replace(first, cached=True)
    node = next(n for n in model.graph.nodes if n.name == "h")
    model.graph.set_constant(node, 1, np.asarray(node.constant(1)) * np.float32(2))
    assert not measured(model, calibration=data, samples=None, cache=tmp_path).cached
