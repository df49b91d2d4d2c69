"""Ranges are tried out before they are taken."""

from __future__ import annotations

import math

import numpy as np

from onnxcomp.compiler.quantization.ranges import MARGIN_DB, TRIED, Chosen, tried_out
from onnxcomp.ir.parse import parse_model
from onnxcomp.numerics.affine import Grid, range_affine
from tests.support.pruning import context_for
from tests.support.text import net

PLAIN = net("(float[N,512] x) => (float[N,512] y)", "", "h = Relu(x) y = Identity(h)")


def chosen(high: float) -> Chosen:
    return Chosen({"h": range_affine(0, high, Grid())})


def test_ranges_that_cut_off_most_give_way() -> None:
    model = parse_model(PLAIN)
    feeds = {"x": np.random.default_rng(0).standard_normal((32, 512)).astype(np.float32)}
    first, second = chosen(0.1), chosen(3.0)
    taken, one, two = tried_out(model, first, second, context_for(model, feeds))
    assert taken is second
    assert two > one + MARGIN_DB


def test_ranges_stay_where_the_others_are_hardly_better() -> None:
    model = parse_model(PLAIN)
    feeds = {"x": np.random.default_rng(0).standard_normal((32, 512)).astype(np.float32)}
    first, second = chosen(4.05), chosen(4.0)
    taken, one, two = tried_out(model, first, second, context_for(model, feeds))
    assert taken is first
    assert abs(one - two) < MARGIN_DB


def test_the_decibels_are_those_of_signal_over_error() -> None:
    model = parse_model(PLAIN)
    x = np.random.default_rng(0).standard_normal((TRIED, 512)).astype(np.float32)
    affine = range_affine(0, 3, Grid())
    _, one, _ = tried_out(model, Chosen({"h": affine}), chosen(3), context_for(model, {"x": x}))
    h = np.maximum(x, 0)
    error = np.square(affine.round_trip(h) - h, dtype=np.float64).sum()
    assert math.isclose(one, 10 * math.log10(np.square(h, dtype=np.float64).sum() / error), abs_tol=1e-3)
