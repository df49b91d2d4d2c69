"""Scores of channel groups: where a criterion has no meaning, and what the run over the samples costs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from onnxcomp.analysis.channels import channel_groups, default_shapes
from onnxcomp.compiler.channel_pruning import criteria as module
from onnxcomp.compiler.channel_pruning.criteria import MEASURED, SCORED, Scored, score_groups
from onnxcomp.compiler.channel_pruning.ladder import tiers
from onnxcomp.compiler.channel_pruning.ranking import ranked_ladders
from onnxcomp.ir.graph import Array
from onnxcomp.ir.parse import parse_model
from onnxcomp.numerics.criteria import entropy
from onnxcomp.runtime.capture import stream_values
from tests.support.pruning import context_for, noise, zoo, zoo_context
from tests.support.scoring import PLAIN, norm_of, only, scaled, score, values
from tests.support.text import net


# --- where a criterion has no meaning --------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("criterion", "body", "reason"),
    [
        ("apoz", "r = Identity(h)", "no activation follows"),
        ("apoz", "r = Sigmoid(h)", "its activation is never zero"),
        ("bn-scale", "r = Relu(h)", "no BatchNormalization follows"),
    ],
)
def test_where_a_criterion_has_no_meaning_the_norm_decides_and_that_is_said(
    criterion: str, body: str, reason: str
) -> None:
    model = parse_model(PLAIN.replace("r = Relu(h)", body))
    found = score(model, criterion)
    assert found.notes() == [f"criterion={criterion}: l2 norms of filters decide for h: {reason}"]
    np.testing.assert_allclose(only(found), norm_of(model, "a"))


@pytest.mark.parametrize("criterion", MEASURED)
def test_features_without_positions_have_no_rank_and_everything_else(criterion: str) -> None:
    text = net(
        "(float[N,9] x) => (float[N,5] y)",
        "float[9,8] a, float[8,5] b",
        "h = Gemm(x, a) r = Relu(h) y = Gemm(r, b)",
    )
    model = parse_model(text)
    found = score(model, criterion)
    if criterion == "hrank":
        assert found.fallen_back == {"its channels are no feature maps": ["h"]}
        np.testing.assert_allclose(only(found), norm_of(model, "a", 1))
    else:
        assert found.notes() == []


def test_channels_that_no_weights_read_have_no_readers_to_count() -> None:
    text = net(
        "(float[N,3,8,8] x) => (float[N,5,8,8] y)",
        "float[4,3,1,1] a, float[4,3,1,1] b, float[5,4,1,1] c",
        "h = Conv(x, a) unread = Conv(x, b) r = Relu(h) y = Conv(r, c)",
    )
    found = score(parse_model(text), "activation")
    assert found.fallen_back == {"no weights read it": ["unread"]}


def test_maps_of_one_row_have_no_rank() -> None:
    text = net(
        "(float[N,3,1,9] x) => (float[N,5,1,9] y)",
        "float[8,3,1,1] a, float[5,8,1,1] b",
        "h = Conv(x, a) r = Relu(h) y = Conv(r, b)",
    )
    assert score(parse_model(text), "hrank").fallen_back == {"its channels are no feature maps": ["h"]}


@pytest.mark.parametrize("criterion", ["hrank", "entropy"])
def test_where_no_activation_follows_the_maps_of_the_producer_itself_are_judged(criterion: str) -> None:
    model = parse_model(PLAIN.replace("r = Relu(h)", "r = Identity(h)"))
    found = score(model, criterion)
    assert found.notes() == []
    maps = values(model, "h")
    wanted = (
        np.linalg.matrix_rank(maps).mean(0)
        if criterion == "hrank"
        else entropy(maps.mean((2, 3), dtype=np.float64))
    )
    np.testing.assert_allclose(only(found), scaled(wanted), rtol=1e-3)


@pytest.mark.parametrize("criterion", MEASURED)
def test_channels_along_the_first_axis_leave_no_axis_of_samples(criterion: str) -> None:
    text = net(
        "(float[3,7] x) => (float[5,7] y)",
        "float[8,3] a, float[5,8] b",
        "h = MatMul(a, x) r = Relu(h) y = MatMul(b, r)",
    )
    model = parse_model(text)
    feeds = {"x": np.random.default_rng(0).standard_normal((6, 3, 7)).astype(np.float32)}
    found = score(model, criterion, feeds=feeds)
    made = np.maximum(model.graph.constants["a"].values @ feeds["x"], 0)
    if criterion == "apoz":
        np.testing.assert_allclose(only(found), scaled((made > 0).mean((0, 2))))
    elif criterion == "activation":
        norms = np.linalg.norm(model.graph.constants["b"].values, axis=0)
        np.testing.assert_allclose(only(found), scaled(norms * np.sqrt((made**2).mean((0, 2)))), rtol=1e-5)
    else:
        assert found.fallen_back == {"samples do not lie along the first axis there": ["h"]}
        np.testing.assert_allclose(only(found), norm_of(model, "a"))


def test_a_value_of_one_axis_is_a_sample_of_channels() -> None:
    text = net(
        "(float[3] x) => (float[5] y)",
        "float[8,3] a, float[5,8] b",
        "h = MatMul(a, x) r = Relu(h) y = MatMul(b, r)",
    )
    model = parse_model(text)
    feeds = {"x": np.random.default_rng(0).standard_normal((9, 3)).astype(np.float32)}
    made = model.graph.constants["a"].values @ feeds["x"].T > 0
    np.testing.assert_allclose(only(score(model, "apoz", feeds=feeds)), scaled(made.mean(1)))


def test_steps_in_time_are_no_samples() -> None:
    """The output of a recurrent node has time first and samples third."""
    text = net(
        "(float[N,5,3] x) => (float[5,1,N,6] y)",
        "float[1,32,3] w, float[1,32,8] r, float[8,6] b",
        "t = Transpose<perm=[1,0,2]>(x) h = LSTM<hidden_size=8>(t, w, r) k = Relu(h) y = MatMul(k, b)",
    )
    model = parse_model(text)
    groups = channel_groups(model)
    chosen = [g for g in groups if not g.blocked]
    assert [g.units for g in chosen] == [8]
    for criterion in ("hrank", "entropy"):
        found = score_groups(model, groups, chosen, criterion, context_for(model), default_shapes(model))
        assert found.fallen_back == {"samples do not lie along the first axis there": [chosen[0].name]}
    for criterion in ("fpgm", "apoz", "activation"):
        found = score_groups(model, groups, chosen, criterion, context_for(model), default_shapes(model))
        assert found.notes() == []


def test_many_places_of_one_reason_are_one_note() -> None:
    found = Scored("apoz")
    for number in range(8):
        found.fall_back(f"n{number}", "no activation follows")
        found.fall_back(f"n{number}", "no activation follows")
    found.fall_back("m", "its activation is never zero")
    assert found.notes() == [
        "criterion=apoz: l2 norms of filters decide for n0, n1, n2, n3, n4 and 3 more: no activation follows",
        "criterion=apoz: l2 norms of filters decide for m: its activation is never zero",
    ]


# --- the run over the samples ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("criterion", MEASURED)
def test_one_run_over_the_samples_serves_all_groups_in_batches_of_any_size(
    criterion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = zoo("digits_resnet")
    context = zoo_context(model, 24)
    whole = score(model, criterion, context=context)
    assert len(whole.scores) == len([g for g in channel_groups(model) if not g.blocked])
    batches: list[int] = []

    def counting(*args: Any, **kwargs: Any) -> Iterator[dict[str, Array]]:
        batches.append(0)
        for found in stream_values(*args, **kwargs):
            batches[-1] += 1
            yield found

    monkeypatch.setattr(module, "stream_values", counting)
    monkeypatch.setattr(module, "STREAM_BYTES", 1)
    small = score(model, criterion, context=context)
    assert batches == [24], "one run, a sample at a time"
    for name, scores in whole.scores.items():
        np.testing.assert_allclose(small.scores[name], scores, rtol=0.02)


def test_ranks_are_taken_of_the_first_samples_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model = parse_model(PLAIN)
    feeds = noise(model)
    monkeypatch.setattr(module, "RANK_SAMPLES", 8)
    few = score(model, "hrank", feeds={"x": np.concatenate([feeds["x"][:8], 0 * feeds["x"]])})
    np.testing.assert_array_equal(only(few), only(score(model, "hrank", feeds={"x": feeds["x"][:8]})))


def test_of_many_samples_evenly_spread_ones_are_kept_for_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    model = parse_model(PLAIN)
    feeds = noise(model)
    monkeypatch.setattr(module, "ENTROPY_SAMPLES", 20)
    spread = score(model, "entropy", feeds=feeds)
    np.testing.assert_allclose(only(spread), only(score(model, "entropy", feeds={"x": feeds["x"][::3]})))


def test_progress_is_told_in_samples() -> None:
    model = parse_model(PLAIN)
    told: list[tuple[str, int, int]] = []
    context = context_for(model, progress=lambda *step: told.append(step))
    score(model, "apoz", context=context)
    assert told[-1] == ("scoring channels", 48, 48)


def test_only_the_chosen_groups_are_looked_at() -> None:
    model = zoo("digits_resnet")
    groups = channel_groups(model)
    chosen = [g for g in groups if not g.blocked][1:3]
    shapes = default_shapes(model)
    found = score_groups(model, groups, chosen, "apoz", zoo_context(model, 8), shapes)
    assert list(found.scores) == [g.name for g in chosen]
    none = score_groups(model, groups, [], "apoz", zoo_context(model, 8), shapes)
    assert none.scores == {}


def test_tiers_of_a_stream_share_its_scores() -> None:
    """Units that only the later part of a growing stream has are known there."""
    text = net(
        "(float[N,3,4,4] x) => (float[N,5,4,4] y)",
        "float[4,3,1,1] a, float[6,4,1,1] c, float[5,6,1,1] d, int64[8] pads = {0,1,0,0,0,1,0,0}",
        "h = Conv(x, a) r = Relu(h) p = Pad(r, pads) j = Conv(r, c) t = Add(p, j) k = Relu(t) y = Conv(t, d)",
    ).replace("y = Conv(t, d)", "y = Conv(k, d)")
    model = parse_model(text)
    (group,) = (g for g in channel_groups(model) if not g.blocked)
    sets = tiers(group)
    assert sorted(len(units) for units in sets) == [2, 4]
    for criterion in SCORED:
        found = score(model, criterion)
        assert only(found).shape == (6,)
        if criterion != "bn-scale":
            assert found.notes() == []
        depths = [len(units) - 1 for units in sets]
        ladders = ranked_ladders(model, group, depths, criterion, 0, found)
        assert [len(ladder.order) for ladder in ladders] == depths
