"""split-svd on what it should leave alone, on odd models and odd samples, and on the networks that are shipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxcomp.compiler.passbase import Context
from onnxcomp.ir.files import load
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.passes.split_svd import SplitSvd
from onnxcomp.runtime.data.samples import open_samples
from onnxcomp.runtime.inputs import input_specs
from onnxcomp.runtime.session import Session
from onnxcomp.testing import fingerprint
from tests.support.pruning import noise, zoo
from tests.support.replacing import (
    assert_same,
    conv,
    distance,
    held_out,
    macs,
    replaced,
    share,
)
from tests.support.text import net

SHARED = Path(__file__).parents[2].parent / "shared"


def reasons(model: Model, step: SplitSvd, **given: Any) -> dict[str, str]:
    """What the pass says about nodes it left, by name; it must have left all."""
    result = replaced(model, step, **given)
    assert not result.changed
    assert fingerprint(result.model) == fingerprint(model)
    return {s.where: s.reason for s in result.skips}


# --- what is left alone ----------------------------------------------------------------------------------------------
BRANCHES = "d = Squeeze(c) y = If(d) <then_branch = t () => (a) { a = Conv(x, w) }, else_branch = e () => (b) { b = Conv(x, v) }>"
QUANTIZED = "q = QuantizeLinear(w, s, z) d = DequantizeLinear(q, s, z) h = Conv(x, d) k = Relu(h) y = GlobalAveragePool(k)"


@pytest.mark.parametrize(
    ("signature", "stored", "body", "where", "reason"),
    [
        (
            "(float[N,8,9,9] x, float[12,8,3,3] u) => (float[N,12,7,7] y)",
            "float[1] unread",
            "y = Conv(x, u)",
            "y",
            "its weight is computed, not stored",
        ),
        (
            "(float[N,8,9,9] x) => (float[N,12,1,1] y)",
            "float[12,8,3,3] w, float s = {0.01}, int8 z = {0}",
            QUANTIZED,
            "h",
            "its weight is quantized, and a refit would leave the grid of the quantization",
        ),
        (
            "(float[N,8,9,9] x) => (float[N,8,9,9] y)",
            "float[8,8,3,3] w",
            "h = Conv<pads=[1,1,1,1]>(x, w) k = Relu(h) y = Conv<pads=[1,1,1,1]>(k, w)",
            "y",
            "its weight 'w' is shared, and a refit would make a copy of it",
        ),
        (
            "(float[N,8,9,9] x) => (float[N,12,11,11] y)",
            "float[8,6,3,3] w",
            "y = ConvTranspose<group=2>(x, w)",
            "y",
            "it is a transposed convolution in groups",
        ),
        (
            "(float[N,3,5,20] x) => (float[N,3,5,30] y)",
            "float[3,20,30] w",
            "y = MatMul(x, w)",
            "y",
            "its weight is a stack of matrices, one for each entry of a batch",
        ),
        ("(float[N,20] x) => (float[N] y)", "float[20] w", "y = MatMul(x, w)", "y", "its weight is a vector"),
        (
            "(float[8,6] x) => (float[6,30] y)",
            "float[8,30] w",
            "y = Gemm<transA=1>(x, w)",
            "y",
            "it transposes what it reads (transA)",
        ),
        (
            "(float[8,20] x) => (float[8,30] y)",
            "float[20,30] w, float[8,1] b",
            "y = Gemm(x, w, b)",
            "y",
            "its bias has a number for every row",
        ),
        (
            "(float[N,8,9,9] x, bool[1] c) => (float[N,12,7,7] y)",
            "float[12,8,3,3] w, float[12,8,3,3] v",
            BRANCHES,
            "y",
            "its branches hold Conv, and what is inside a node stays as it is",
        ),
    ],
)
def test_what_cannot_be_replaced_is_named(
    signature: str, stored: str, body: str, where: str, reason: str
) -> None:
    model = parse_model(net(signature, stored, body))
    rng = np.random.default_rng(0)
    feeds = {
        v.name: np.ones((8, 1), bool)
        if v.dtype == bool
        else rng.standard_normal(
            (8, *((1,) if v.name == "u" or "u" in signature else ()), *v.shape[1:])
        ).astype("f")
        for v in model.graph.inputs
    }
    if "u" in feeds:
        feeds["u"] = rng.standard_normal((8, 12, 8, 3, 3)).astype(np.float32)
    if "c" in feeds:
        feeds = {"x": feeds["x"][:, None], "c": feeds["c"]}
    assert reasons(model, SplitSvd(rank=2), feeds=feeds)[where] == reason


def test_layers_beside_a_branch_that_reads_them_are_replaced() -> None:
    model = parse_model(
        net(
            "(float[N,8,9,9] x, bool[1] c) => (float[N,12,5,5] y)",
            "float[12,8,3,3] u, float[12,12,3,3] w, float[12,12,3,3] v",
            "h = Conv(x, u) d = Squeeze(c) y = If(d) <then_branch = t () => (a) { a = Conv(h, w) }, "
            "else_branch = e () => (b) { b = Conv(h, v) }>",
        )
    )
    rng = np.random.default_rng(0)
    feeds = {"x": rng.standard_normal((8, 1, 8, 9, 9)).astype(np.float32), "c": np.ones((8, 1), bool)}
    result = replaced(model, SplitSvd(macs=0.6), feeds)
    assert [c.where for c in result.changes] == ["h"]


def test_kernels_of_one_tap_are_split_as_matrices_and_have_nothing_spatial() -> None:
    model = conv("pads=[0,0,0,0]", shape="12,8,1,1")
    (change,) = replaced(model, SplitSvd(macs=0.6)).changes
    assert change.details["form"] == "channel"
    (reason,) = reasons(model, SplitSvd(macs=0.6, method="spatial")).values()
    assert "its kernel of one tap leaves vertical nothing to split" in reason


def test_excluded_nodes_keep_their_weights_and_are_told() -> None:
    model = zoo("digits_mlp")
    result = replaced(model, SplitSvd(rank=4), excluded=frozenset({"/layer2/Gemm"}))
    assert ("/layer2/Gemm", "it is excluded") in {(s.where, s.reason) for s in result.skips}
    assert "/layer2/Gemm" not in {c.where for c in result.changes}
    nodes = [{n.name: n for n in m.graph.nodes}["/layer2/Gemm"] for m in (model, result.model)]
    for index in (1, 2):
        np.testing.assert_array_equal(nodes[0].constant(index), nodes[1].constant(index))


def test_a_model_without_linear_layers_has_nothing_to_replace() -> None:
    model = parse_model(net("(float[N,8] x) => (float[N,8] y)", "float[1] unread", "y = Relu(x)"))
    assert reasons(model, SplitSvd(rank=2)) == {}
    assert replaced(model, SplitSvd(macs=0.5)).shortfall is None, "no share of nothing is exceeded"


# --- odd inputs ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("feed", ["zeros", "ones", "one sample", "one alive"])
@pytest.mark.parametrize(
    "options", [{"macs": 0.5}, {"rank": 2}, {"max_error": 0.5}, {"macs": 0.5, "sweeps": 2}]
)
def test_inputs_that_say_little_leave_a_network_of_numbers(feed: str, options: dict[str, Any]) -> None:
    model = conv()
    x = noise(model, 32)["x"]
    alive = x * (np.arange(8) == 2)[:, None, None].astype(np.float32)
    given = {"zeros": 0 * x, "ones": 0 * x + 1, "one sample": x[:1], "one alive": alive}[feed]
    result = replaced(model, SplitSvd(**options), {"x": given})
    assert result.changed
    (found,) = Session(result.model, threads=1).run({"x": x}).values()
    assert np.isfinite(found).all()
    assert any("calibration samples are few" in n for n in result.notes)
    if feed in ("zeros", "ones"):
        assert distance_at(model, result.model, given) < 0.05


def distance_at(model: Model, other: Model, x: Any) -> float:
    wanted, got = (next(iter(Session(m, threads=1).run({"x": x}).values())) for m in (model, other))
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("step", [SplitSvd(macs=0.5), SplitSvd(rank=2), SplitSvd(params=0.5, repair="none")])
def test_weights_of_nothing_but_zeros_cost_nothing_to_replace(step: SplitSvd) -> None:
    model = conv(weight=np.zeros((12, 8, 3, 3), np.float32))
    result = replaced(model, step)
    assert result.changes[0].details["error"] == 0
    assert_same(model, result.model)


@pytest.mark.parametrize(("dtype", "word"), [(np.float16, "float16"), (np.float64, "double")])
def test_other_precisions_stay_what_they_are(dtype: Any, word: str) -> None:
    model = parse_model(
        net(
            f"({word}[N,20] x) => ({word}[N,12] y)",
            f"{word}[20,30] w, {word}[30] b, {word}[30,12] v",
            "h = Gemm(x, w, b) k = Tanh(h) y = MatMul(k, v)",
        )
    )
    rng = np.random.default_rng(0)
    feeds = {"x": rng.standard_normal((64, 20)).astype(dtype)}
    result = replaced(model, SplitSvd(macs=0.6), feeds)
    assert result.changed
    assert {c.values.dtype for c in result.model.graph.constants.values()} == {np.dtype(dtype)}
    blind = replaced(model, SplitSvd(macs=0.6, repair="none"), feeds)
    assert distance(model, result.model, feeds) < distance(model, blind.model, feeds) < 1


GRAPHS = {
    "output of the graph": "y = Conv<pads=[1,1,1,1]>(x, w) z = Relu(y)",
    "read twice": "h = Conv<pads=[1,1,1,1]>(x, w) k = Relu(h) y = Conv<pads=[1,1,1,1]>(k, v) z = Add(y, h)",
    "added with its mean": "h = Conv<pads=[1,1,1,1]>(x, w) g = GlobalAveragePool(h) y = Conv<pads=[1,1,1,1]>(h, v)"
    " z = Add(g, y)",
    "normalized": "h = Conv<pads=[1,1,1,1]>(x, w) i = BatchNormalization(h, s, t, m, q) y = Relu(i)"
    " z = Conv<pads=[1,1,1,1]>(y, v)",
}


@pytest.mark.parametrize("kind", GRAPHS)
def test_graphs_of_several_outputs_and_readers_keep_both(kind: str) -> None:
    model = parse_model(
        net(
            "(float[N,8,H,W] x) => (float[N,12,H,W] y, float[N,12,H,W] z)",
            "float[12,8,3,3] w, float[12,12,3,3] v, float[12] s, float[12] t, float[12] m, float[12] q",
            GRAPHS[kind],
        )
    )
    feeds = {"x": np.random.default_rng(0).standard_normal((64, 8, 7, 7)).astype(np.float32)}
    result = replaced(model, SplitSvd(macs=0.6), feeds)
    one = {"x": feeds["x"][:1]}
    assert 0.5 < macs(result.model, one) / macs(model, one) <= 0.6
    assert distance(model, result.model, feeds) < 0.6
    larger = {"x": np.ones((2, 8, 9, 5), np.float32)}
    assert Session(result.model, threads=1).run(larger)["z"].shape == (2, 12, 9, 5), "sizes stay free"


def test_two_inputs_are_fine() -> None:
    model = parse_model(
        net(
            "(float[N,8,9,9] x, float[N,8,9,9] u) => (float[N,12,9,9] y)",
            "float[12,8,3,3] w, float[12,8,3,3] v",
            "a = Conv<pads=[1,1,1,1]>(x, w) b = Conv<pads=[1,1,1,1]>(u, v) y = Add(a, b)",
        )
    )
    assert share(model, replaced(model, SplitSvd(macs=0.6)).model) <= 0.6


# --- the zoo ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("digits_mlp", 0.9),
        ("digits_lstm", 0.0),
        ("digits_vit", 0.8),
        pytest.param("digits_resnet", 0.9, marks=pytest.mark.slow),
        pytest.param("digits_vgg", 0.9, marks=pytest.mark.slow),
        pytest.param("digits_unet", 0.9, marks=pytest.mark.slow),
        pytest.param("digits_mobilenet", 0.9, marks=pytest.mark.slow),
        pytest.param("digits_densenet", 0.9, marks=pytest.mark.slow),
        pytest.param("digits_shufflenet", 0.9, marks=pytest.mark.slow),
    ],
)
def test_shipped_networks_lose_work_or_say_why_not(name: str, least: float) -> None:
    model = zoo(name)
    result = replaced(model, SplitSvd(macs=0.6), count=32)
    left = share(model, result.model)
    assert left <= 1
    assert (left <= 0.6) == (result.shortfall is None)
    feeds = held_out(model)
    wanted, got = (next(iter(Session(m, threads=1).run(feeds).values())) for m in (model, result.model))
    assert np.isfinite(got).all()
    assert (wanted.argmax(-1) == got.argmax(-1)).mean() >= least


@pytest.mark.slow
def test_a_residual_network_of_the_shared_models_keeps_its_accuracy() -> None:
    path = SHARED / "models/cifar10_resnet20_bn.onnx"
    if not path.exists():
        pytest.skip("../shared/models/cifar10_resnet20_bn.onnx is not here")
    model = load(path)
    samples = open_samples(str(SHARED / "data/cifar10_calibration.npz"), input_specs(model), limit=64)
    shapes = {n: a.shape for n, a in next(iter(samples.batches(1))).items()}
    context = Context(model.clone(), calibration=samples, input_shapes=shapes, threads=1)
    result = SplitSvd(macs=0.7).run(model.clone(), context)
    assert 0.69 <= share(model, result.model) <= 0.7
    judged = open_samples(str(SHARED / "data/cifar10_evaluation.npz"), input_specs(model), limit=256)
    feeds = next(iter(judged.batches(256)))
    wanted, got = (next(iter(Session(m, threads=1).run(feeds).values())) for m in (model, result.model))
    assert (wanted.argmax(-1) == got.argmax(-1)).mean() > 0.85
