"""Scores of channel groups by the criteria of the literature: each against brute force over all values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxcomp.analysis.channels import channel_groups
from onnxcomp.compiler.channel_pruning.criteria import MEASURED, SCORED
from onnxcomp.compiler.channel_pruning.ranking import ranked_ladders
from onnxcomp.compiler.passbase import Context
from onnxcomp.ir.graph import Array
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.numerics.criteria import entropy
from onnxcomp.passes.fold_batchnorm import FoldBatchnorm
from tests.support.pruning import context_for
from tests.support.scoring import PLAIN, Array64, norm_of, only, scaled, score, values
from tests.support.text import net

STREAM = net(
    "(float[N,3,8,8] x) => (float[N,5,8,8] y)",
    "float[6,3,1,1] a, float[6] g, float[6] s, float[6] m, float[6] v, float[6,6,3,3] b, float[5,6,1,1] c",
    "h = Conv(x, a) n = BatchNormalization(h, g, s, m, v) r = Relu(n) i = Conv<pads=[1,1,1,1]>(r, b) t = Add(r, i)"
    " k = Relu(t) y = Conv(k, c)",
)


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
