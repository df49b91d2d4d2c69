"""Scores of channel groups by the criteria of the literature: each against brute force over all values, and its limits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxcomp.analysis.channels import channel_groups, default_shapes
from onnxcomp.compiler import scores as module
from onnxcomp.compiler.budget import tiers
from onnxcomp.compiler.ladders import ranked_ladders
from onnxcomp.compiler.passbase import Context
from onnxcomp.compiler.scores import MEASURED, SCORED, Scored, score_groups
from onnxcomp.ir.graph import Array
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.ir.segment import with_outputs
from onnxcomp.numerics.criteria import entropy
from onnxcomp.passes.fold_batchnorm import FoldBatchnorm
from onnxcomp.runtime.capture import stream_values
from onnxcomp.runtime.session import Session
from tests.support.pruning import context_for, noise, zoo, zoo_context
from tests.support.text import net

Array64 = NDArray[np.float64]

PLAIN = net(
    "(float[N,3,8,8] x) => (float[N,5,6,6] y)",
    "float[8,3,3,3] a, float[8] p, float[5,8,1,1] b, float[5] q",
    "h = Conv(x, a, p) r = Relu(h) y = Conv(r, b, q)",
)
STREAM = net(
    "(float[N,3,8,8] x) => (float[N,5,8,8] y)",
    "float[6,3,1,1] a, float[6] g, float[6] s, float[6] m, float[6] v, float[6,6,3,3] b, float[5,6,1,1] c",
    "h = Conv(x, a) n = BatchNormalization(h, g, s, m, v) r = Relu(n) i = Conv<pads=[1,1,1,1]>(r, b) t = Add(r, i)"
    " k = Relu(t) y = Conv(k, c)",
)


def score(model: Model, criterion: str, **given: Any) -> Scored:
    """Score all open groups of `model`, on 48 normal samples unless `context` is given."""
    groups = channel_groups(model)
    context = given.pop("context", None) or context_for(model, **given)
    chosen = [g for g in groups if not g.blocked]
    return score_groups(model, groups, chosen, criterion, context, default_shapes(model))


def only(found: Scored) -> Array64:
    (scores,) = found.scores.values()
    return scores


def values(model: Model, name: str) -> Array:
    """All values `name` at once, on the samples that `context_for` gives."""
    return Session(with_outputs(model, [name]), optimize=False, threads=1).run(noise(model), [name])[name]


def scaled(scores: Array64) -> Array64:
    result: Array64 = np.asarray(scores, np.float64) / np.mean(scores)
    return result


def scale(*numbers: float) -> dict[str, Array]:
    return {"g": np.array(numbers, np.float32)}


# --- brute force -----------------------------------------------------------------------------------------------------
def truth(model: Model, criterion: str) -> Array64:
    """The scores of PLAIN's group by their definitions, channel by channel, map by map."""
    weight = model.graph.constants["a"].values.astype(np.float64)
    reader = model.graph.constants["b"].values.astype(np.float64)
    after = values(model, "r").astype(np.float64)
    found: list[Any] = []
    for c in range(8):
        maps = after[:, c]
        match criterion:
            case "fpgm":
                found.append(sum(np.linalg.norm(weight[c] - other) for other in weight))
            case "apoz":
                found.append(1 - np.mean([(image == 0).mean() for image in maps]))
            case "activation":
                found.append(np.linalg.norm(reader[:, c]) * np.sqrt(np.mean(maps**2)))
            case "hrank":
                found.append(np.mean([np.linalg.matrix_rank(image.astype(np.float32)) for image in maps]))
            case "entropy":
                found.append(float(entropy(np.array([[image.mean()] for image in maps]))[0]))
    return scaled(np.array(found))


@pytest.mark.parametrize("criterion", ["fpgm", *MEASURED])
def test_scores_are_those_of_brute_force(criterion: str) -> None:
    a = np.random.default_rng(1).standard_normal((8, 3, 3, 3)).astype(np.float32) / 5
    p = np.linspace(-2, 1, 8).astype(np.float32)
    model = parse_model(PLAIN, {"a": a, "p": p})
    found = score(model, criterion)
    np.testing.assert_allclose(only(found), truth(model, criterion), rtol=2e-3)
    assert len(np.unique(only(found))) > 4, "a test that tells channels apart"
    assert found.notes() == []


def test_a_ladder_takes_the_least_score_first() -> None:
    model = parse_model(PLAIN)
    (group,) = (g for g in channel_groups(model) if not g.blocked)
    for criterion in SCORED:
        found = score(model, criterion)
        (ladder,) = ranked_ladders(model, group, [5], criterion, 0, found)
        assert ladder.order == tuple(np.argsort(only(found), kind="stable")[:5])
        assert ladder.costs == tuple(sorted(ladder.costs))
    with pytest.raises(ValueError, match="fpgm ranks by the scores of score_groups"):
        ranked_ladders(model, group, [5], "fpgm", 0, score(model, "apoz"))
    assert ranked_ladders(model, group, [0], "fpgm", 0)[0].order == ()


# --- BatchNormalization ----------------------------------------------------------------------------------------------
def test_the_scale_counts_by_its_size_and_a_producer_without_one_by_its_norm() -> None:
    model = parse_model(STREAM, scale(1, -5, 3, 2, -1, 6))
    found = score(model, "bn-scale")
    squares = (model.graph.constants["b"].values.astype(np.float64) ** 2).sum((1, 2, 3))
    np.testing.assert_allclose(only(found), scaled(np.array([1, 5, 3, 2, 1, 6])) + scaled(squares))
    assert found.notes() == [
        "criterion=bn-scale: l2 norms of filters decide for i: no BatchNormalization follows"
    ]


def test_the_norm_of_a_producer_says_nothing_of_units_it_does_not_make() -> None:
    """The stream grows from 4 to 6 channels: its first producer makes 4 of them."""
    text = net(
        "(float[N,3,4,4] x) => (float[N,5,4,4] y)",
        "float[4,3,1,1] a, float[6,4,1,1] c, float[5,6,1,1] d, int64[8] pads = {0,1,0,0,0,1,0,0},"
        " float[6] g, float[6] s, float[6] m, float[6] v",
        "h = Conv(x, a) r = Relu(h) p = Pad(r, pads) j = Conv(r, c) n = BatchNormalization(j, g, s, m, v)"
        " t = Add(p, n) k = Relu(t) y = Conv(k, d)",
    )
    model = parse_model(text, scale(1, -5, 3, 2, -1, 6))
    found = score(model, "bn-scale")
    assert found.fallen_back == {"no BatchNormalization follows": ["h"]}
    (group,) = (g for g in channel_groups(model) if not g.blocked)
    units = {m.name: m.units for m in group.members if m.role == "produces"}
    wanted = np.zeros(6)
    wanted[units["a"]] += norm_of(model, "a")
    wanted[units["c"]] += scaled(np.array([1, 5, 3, 2, 1, 6]))
    np.testing.assert_allclose(only(found), wanted)


def test_after_the_fold_the_scale_is_still_known() -> None:
    original = parse_model(STREAM, scale(1, -5, 3, 2, -1, 6))
    folded = FoldBatchnorm().run(original.clone(), Context(original)).model
    before = score(original, "bn-scale")
    context = context_for(original)
    np.testing.assert_allclose(only(score(folded, "bn-scale", context=context)), only(before))
    lost = score(folded, "bn-scale", context=context_for(folded))
    assert lost.fallen_back == {"no BatchNormalization follows": ["h", "i"]}


def test_after_the_fold_and_a_cut_the_scale_no_longer_fits_and_that_is_said() -> None:
    original = parse_model(STREAM)
    model = FoldBatchnorm().run(original.clone(), Context(original)).model
    groups = channel_groups(model)
    groups.take(model, {"h": np.arange(6) > 1})
    found = score(model, "bn-scale", context=context_for(original))
    assert found.fallen_back["channels went since the BatchNormalization was folded"] == ["h"]
    assert only(found).shape == (4,)


def test_the_scale_of_a_normalization_that_stays_is_cut_with_its_channels() -> None:
    model = parse_model(STREAM, scale(1, -5, 3, 2, -1, 6))
    groups = channel_groups(model)
    original = model.clone()
    groups.take(model, {"h": np.array([0, 1, 1, 0, 1, 1], bool)})
    found = score(model, "bn-scale", context=context_for(original))
    assert found.fallen_back == {"no BatchNormalization follows": ["i"]}
    squares = (model.graph.constants["b"].values.astype(np.float64) ** 2).sum((1, 2, 3))
    np.testing.assert_allclose(only(found), scaled(np.array([5, 3, 1, 6])) + scaled(squares))


# --- quantized weights -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("axis", [0, None])
@pytest.mark.parametrize("criterion", ["fpgm", "activation", "bn-scale"])
def test_quantized_weights_count_as_the_numbers_they_stand_for(criterion: str, axis: int | None) -> None:
    rng = np.random.default_rng(0)
    stored, read = rng.integers(-99, 99, (8, 3, 3, 3)), rng.integers(-99, 99, (5, 8, 1, 1))
    scales = [
        np.geomspace(0.001, 0.1, n).astype(np.float32) if axis == 0 else np.float32(0.01) for n in (8, 5)
    ]
    zeros = [np.arange(n).astype(np.int8) if axis == 0 else np.int8(3) for n in (8, 5)]
    real = [
        ((q - np.reshape(z, (-1, 1, 1, 1))) * np.reshape(s, (-1, 1, 1, 1))).astype(np.float32)
        for q, s, z in zip((stored, read), scales, zeros, strict=True)
    ]
    plain = parse_model(PLAIN, {"a": real[0], "b": real[1]})
    sizes = "[8]" if axis == 0 else ""
    text = (
        PLAIN.replace(
            "float[8,3,3,3] a",
            f"int8[8,3,3,3] ai = {{{_list(stored)}}}, float{sizes} as, int8{sizes} az = "
            f"{{{_list(zeros[0])}}}",
        )
        .replace(
            "float[5,8,1,1] b",
            f"int8[5,8,1,1] bi = {{{_list(read)}}}, float{sizes.replace('8', '5')} bs, "
            f"int8{sizes.replace('8', '5')} bz = {{{_list(zeros[1])}}}",
        )
        .replace(
            "h = Conv",
            "a = DequantizeLinear<axis=0>(ai, as, az) b = DequantizeLinear<axis=0>(bi, bs, bz) h = Conv",
        )
    )
    quantized = parse_model(text, {"as": np.asarray(scales[0]), "bs": np.asarray(scales[1])})
    np.testing.assert_allclose(only(score(quantized, criterion)), only(score(plain, criterion)), rtol=1e-4)


def _list(numbers: object) -> str:
    return ",".join(str(number) for number in np.ravel(np.asarray(numbers)).tolist())


# --- streams ---------------------------------------------------------------------------------------------------------
def test_in_a_stream_every_producer_counts_alike_at_its_own_activation() -> None:
    model = parse_model(STREAM)
    parts = [scaled((values(model, name) != 0).mean((0, 2, 3))) for name in ("r", "k")]
    found = score(model, "apoz")
    np.testing.assert_allclose(only(found), sum(parts), rtol=1e-3)
    assert found.notes() == []
    distances = []
    for name in ("a", "b"):
        flat = model.graph.constants[name].values.reshape(6, -1).astype(np.float64)
        distances.append(scaled(np.linalg.norm(flat[:, None] - flat, axis=2).sum(1)))
    np.testing.assert_allclose(only(score(model, "fpgm")), sum(distances))


def test_readers_of_a_stream_count_alike_by_what_they_read() -> None:
    model = parse_model(STREAM)
    parts = []
    for name, weight in (("r", "b"), ("k", "c")):
        size = np.sqrt((values(model, name).astype(np.float64) ** 2).mean((0, 2, 3)))
        squares = model.graph.constants[weight].values.astype(np.float64) ** 2
        parts.append(scaled(size * np.sqrt(squares.sum((0, 2, 3)))))
    np.testing.assert_allclose(only(score(model, "activation")), sum(parts), rtol=1e-4)


def test_producers_with_one_activation_in_common_are_judged_there_once() -> None:
    text = net(
        "(float[N,3,8,8] x) => (float[N,5,8,8] y)",
        "float[6,3,1,1] a, float[6,3,1,1] b, float[5,6,1,1] c",
        "h = Conv(x, a) i = Conv(x, b) t = Add(h, i) k = Relu(t) y = Conv(k, c)",
    )
    model = parse_model(text)
    np.testing.assert_allclose(only(score(model, "apoz")), scaled((values(model, "k") != 0).mean((0, 2, 3))))


def test_a_producer_that_cannot_be_judged_is_no_loss_where_others_of_its_stream_can() -> None:
    text = net(
        "(float[N,3,8,8] x) => (float[N,5,8,8] y)",
        "float[6,3,1,1] a, float[6,6,1,1] b, float[5,6,1,1] c",
        "h = Conv(x, a) r = Relu(h) i = Conv(r, b) t = Add(r, i) y = Conv(t, c)",
    )
    model = parse_model(text)
    found = score(model, "apoz")
    assert found.notes() == []
    np.testing.assert_allclose(only(found), scaled((values(model, "r") != 0).mean((0, 2, 3))))


# --- positions -------------------------------------------------------------------------------------------------------
def test_behind_a_flatten_all_positions_of_a_channel_count() -> None:
    text = net(
        "(float[N,3,4,4] x) => (float[N,5] y)",
        "float[4,3,1,1] a, float[64,5] b",
        "h = Conv(x, a) r = Relu(h) f = Flatten(r) y = Gemm(f, b)",
    )
    model = parse_model(text)
    size = np.sqrt((values(model, "r").astype(np.float64) ** 2).mean((0, 2, 3)))
    norms = np.sqrt((model.graph.constants["b"].values.astype(np.float64) ** 2).reshape(4, -1).sum(1))
    np.testing.assert_allclose(only(score(model, "activation")), scaled(size * norms), rtol=1e-5)


def test_channels_along_the_last_axis_and_in_a_joined_value_are_told_apart() -> None:
    text = net(
        "(float[N,7,3] x) => (float[N,7,5] y)",
        "float[3,4] a, float[3,2] b, float[6,5] c",
        "h = MatMul(x, a) i = MatMul(x, b) j = Concat<axis=2>(h, i) r = Relu(j) y = MatMul(r, c)",
    )
    model = parse_model(text)
    shares = (values(model, "r") != 0).mean((0, 1))
    found = score(model, "apoz")
    np.testing.assert_allclose(found.scores["h"], scaled(shares[:4]))
    np.testing.assert_allclose(found.scores["i"], scaled(shares[4:]))


# --- where a criterion has no meaning --------------------------------------------------------------------------------
def norm_of(model: Model, name: str, axis: int = 0) -> Array64:
    weight = np.moveaxis(model.graph.constants[name].values.astype(np.float64), axis, 0)
    result: Array64 = (weight.reshape(len(weight), -1) ** 2).sum(1)
    return scaled(result)


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
