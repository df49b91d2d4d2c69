"""Equalized and split networks compute what they did; where that cannot be, they are left as they are, with the reason."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.analysis.channels import default_shapes
from onnxcomp.analysis.linear import linear_node
from onnxcomp.compiler.equalization import cross_layer as equalize
from onnxcomp.compiler.equalization.cross_layer import equalize_layers
from onnxcomp.compiler.equalization.outlier_split import split_channels
from onnxcomp.compiler.passbase import PassLog
from onnxcomp.compiler.quantization.formats import Formats, formats
from onnxcomp.compiler.target.files import load_target
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.testing import assert_equal_outputs, assert_valid, fingerprint
from tests.support.pruning import context_for, noise, outputs
from tests.support.text import net

IMAGE = "(float[N,3,6,5] x) => (float[N,a] y)"
WEIGHTS = (
    "float[8,3,3,3] w, float[8] b, float[8,1,3,3] d, float[8] e, float[4,8,1,1] p, float[4] q, float[4,7] g"
)
TAIL = "m = GlobalAveragePool(k)  f = Flatten(m)  y = Gemm(f, g)"
PER_TENSOR = formats(load_target("ort-cpu"), {"granularity": "per-tensor"})
POW2 = formats(load_target("pow2"), {})


def chain(first: str, second: str) -> str:
    """Return a network of a convolution, a depthwise one, a 1x1 convolution and a Gemm, with activations between."""
    body = (
        f"c = Conv<pads=[1,1,1,1]>(x, w, b)  r = {first}  h = Conv<group=8>(r, d, e)  s = {second}"
        f"  k = Conv(s, p, q)  {TAIL}"
    )
    return net(IMAGE, f"{WEIGHTS}, float zero = {{0}}, float six = {{0.4}}, float[8,1,1] u", body)


def equalized(
    model: Model, *left_alone: str, wanted: Formats = PER_TENSOR
) -> tuple[Model, PassLog, dict[str, np.ndarray]]:
    """Equalize a copy of `model`; return it, the log and the samples."""
    feeds = noise(model, 16)
    after, log = model.clone(), PassLog()
    equalize_layers(after, default_shapes(model), set(left_alone), wanted, context_for(model, feeds), log)
    assert_valid(after, model)
    assert (fingerprint(after) != fingerprint(model)) == bool(log.changes)
    return after, log, feeds


def spread(model: Model, name: str) -> float:
    """Return how much larger the largest output channel of a node's weight is than the smallest."""
    linear = linear_node(next(n for n in model.graph.nodes if n.output.name == name))
    assert linear is not None
    sizes = np.abs(linear.matrix()).reshape(-1, linear.matrix().shape[2]).max(1)
    return float(sizes.max() / sizes.min())


# --- equalization ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("knows", [True, False])
@pytest.mark.parametrize(
    "first", ["Relu(c)", "LeakyRelu<alpha=0.3>(c)", "PRelu(c, u)", "Identity(c)", "Clip(c, zero)"]
)
def test_homogeneous_activations_let_every_factor_through(
    first: str, knows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not knows:
        monkeypatch.setattr(equalize, "channel_sensitivity", lambda *_: None)
    model = parse_model(chain(first, "MaxPool<kernel_shape=[2,2]>(h)"))
    w = next(n for n in model.graph.nodes if n.output.name == "c")
    model.graph.set_constant(
        w, 1, w.inputs[1].values * np.geomspace(0.01, 1, 8, dtype=np.float32).reshape(8, 1, 1, 1)
    )
    after, log, _ = equalized(model)
    assert_equal_outputs(model, after, tolerance=1e-5)
    assert [c.where for c in log.changes] == ["c", "h", "k"]
    assert spread(after, "c") < 0.5 * spread(model, "c")


def test_a_clip_clips_on_the_samples_what_it_did() -> None:
    model = parse_model(chain("Clip(c, zero, six)", "Clip(h, zero, six)"))
    after, log, feeds = equalized(model)
    assert len(log.changes) == 3
    before, now = outputs(model, feeds), outputs(after, feeds)
    np.testing.assert_allclose(now, before, rtol=1e-5, atol=1e-5 * np.abs(before).max())


def test_where_scales_are_powers_of_two_bounds_move_with_the_channels() -> None:
    model = parse_model(chain("Clip(c, zero, six)", "Clip(h, zero, six)"))
    after, _, feeds = equalized(model, wanted=POW2)
    before, now = outputs(model, feeds), outputs(after, feeds)
    np.testing.assert_allclose(now, before, rtol=1e-5, atol=1e-5 * np.abs(before).max())
    bounds = [float(n.inputs[2].values) for n in after.graph.nodes if n.op == "Clip"]
    assert bounds[0] != 0.4 or bounds[1] != 0.4
    assert model.graph.constants["six"].values == np.float32(0.4)


def test_channels_that_reach_the_bound_keep_their_scale() -> None:
    model = parse_model(chain("Clip(c, zero, six)", "Relu(h)"))
    w = next(n for n in model.graph.nodes if n.output.name == "c")
    scale = np.array([100, 100, 100, 100, 1e-2, 1e-2, 1e-2, 1e-2], np.float32)
    model.graph.set_constant(w, 1, w.inputs[1].values * scale.reshape(8, 1, 1, 1))
    model.graph.set_constant(w, 2, w.inputs[2].values * 0)
    after, log, feeds = equalized(model)
    assert "4 of them reach the bound of the Clip" in log.changes[0].what
    old, new = (next(n for n in m.graph.nodes if n.output.name == "c").constant(1) for m in (model, after))
    assert old is not None and new is not None
    ratio = np.abs(new).max((1, 2, 3)) / np.abs(old).max((1, 2, 3))
    np.testing.assert_allclose(ratio[:4], 1, rtol=1e-6)
    assert (ratio[4:] > 1.5).all()
    np.testing.assert_allclose(outputs(after, feeds), outputs(model, feeds), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("op", ["HardSwish", "Sigmoid", "Tanh", "Elu"])
def test_other_activations_are_refused_with_the_reason(op: str) -> None:
    _, log, _ = equalized(parse_model(chain(f"{op}(c)", "Relu(h)")))
    assert [c.where for c in log.changes] == ["h", "k"]
    assert [(s.where, s.reason) for s in log.skips] == [
        ("c", f"its channels are not equalized: {op} 'r' does not scale with what it reads")
    ]


def test_a_clip_that_does_not_begin_at_zero_is_refused() -> None:
    _, log, _ = equalized(parse_model(chain("Clip(c, six)", "Relu(h)")))
    assert [s.where for s in log.skips] == ["c"]
    assert "does not cut off at 0" in log.skips[0].reason


def test_values_that_somebody_else_reads_and_nodes_left_alone_stay() -> None:
    text = net(
        "(float[N,3,6,5] x) => (float[N,4,a,b] y)",
        "float[8,3,3,3] w, float[4,8,1,1] p, float[4,8,1,1] v",
        "c = Conv(x, w)  r = Relu(c)  k = Conv(r, p)  l = Conv(r, v)  y = Add(k, l)",
    )
    assert not equalized(parse_model(text))[1].changes
    model = parse_model(chain("Relu(c)", "Relu(h)"))
    assert [c.where for c in equalized(model, "h")[1].changes] == ["k"]
    assert [c.where for c in equalized(model, "r")[1].changes] == ["h", "k"]


def test_channels_that_a_reshape_mixes_are_not_followed() -> None:
    text = net(
        "(float[N,8,2,2] x) => (float[N,a] y)",
        "float[8,8,1,1] w, float[32,5] g",
        "c = Conv(x, w)  t = Transpose<perm=[0,2,3,1]>(c)  f = Flatten(t)  y = Gemm(f, g)",
    )
    assert not equalized(parse_model(text))[1].changes
    straight = text.replace("t = Transpose<perm=[0,2,3,1]>(c)  f = Flatten(t)", "f = Flatten(c)")
    after, log, _ = equalized(parse_model(straight))
    assert len(log.changes) == 1
    assert_equal_outputs(parse_model(straight), after, tolerance=1e-5)


# --- splitting -------------------------------------------------------------------------------------------------------
def split(model: Model, share: float, *left_alone: str) -> tuple[Model, PassLog]:
    """Split a copy of `model` and prove that it computes the same."""
    after, log = model.clone(), PassLog()
    added = split_channels(after, share, 127, default_shapes(model), set(left_alone), log)
    assert_valid(after, model)
    assert_equal_outputs(model, after, tolerance=1e-5)
    assert (fingerprint(after) != fingerprint(model)) == bool(log.changes) == bool(added)
    return after, log


@pytest.mark.parametrize("activation", ["Relu(c)", "HardSwish(c)", "Clip(c, zero, six)"])
def test_split_channels_are_copied_through_depthwise_convolutions(activation: str) -> None:
    after, log = split(parse_model(chain(activation, "Sigmoid(h)")), 0.25)
    made, deep, read = (after.graph.nodes[i] for i in (0, 2, 4))
    assert [n.inputs[1].shape[0] for n in (made, deep)] == [10, 10]
    assert deep.attrs["group"] == 10 and read.inputs[1].shape[1] == 10
    assert [c.where for c in log.changes] == ["k", "y"]
    first = log.changes[0]
    assert first.what == "2 outliers of 8 channels from Conv 'c' split"
    assert first.details["largest"][1] < first.details["largest"][0]


def test_features_of_a_flattened_map_are_split_by_channel() -> None:
    text = net(
        "(float[N,3,2,2] x) => (float[N,5] y)",
        "float[6,3,1,1] w, float[24,5] g, float[5] o",
        "c = Conv(x, w)  r = Relu(c)  f = Flatten(r)  y = Gemm<alpha=0.5>(f, g, o)",
    )
    after, _ = split(parse_model(text), 0.5)
    assert after.graph.nodes[-1].inputs[1].shape == (36, 5)


def test_nothing_is_split_where_channels_have_a_slope_each_or_another_reader() -> None:
    _, log = split(parse_model(chain("PRelu(c, u)", "Relu(h)")), 0.25)
    assert [c.where for c in log.changes] == ["y"]
    both = net(
        "(float[N,3,6,5] x) => (float[N,4,a,b] y, float[N,8,e,f] r)",
        "float[8,3,3,3] w, float[4,8,1,1] p",
        "c = Conv(x, w)  r = Relu(c)  y = Conv(r, p)",
    )
    assert not split(parse_model(both), 0.5)[1].changes


def test_groups_are_not_split_and_that_is_said() -> None:
    text = net(
        "(float[N,3,6,5] x) => (float[N,4,a,b] y)",
        "float[8,3,3,3] w, float[4,4,1,1] p",
        "c = Conv(x, w)  r = Relu(c)  y = Conv<group=2>(r, p)",
    )
    _, log = split(parse_model(text), 0.5)
    assert [s.reason for s in log.skips] == ["its channels are not split: 'y' reads them in 2 groups"]


def test_nodes_left_alone_are_not_split() -> None:
    model = parse_model(chain("Relu(c)", "Relu(h)"))
    for name in ("c", "r", "h", "k"):
        assert "k" not in [c.where for c in split(model, 0.25, name)[1].changes]
