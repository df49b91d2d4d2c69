"""A harness that cannot fail proves nothing: here it is shown models that differ in one small thing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.testing import (
    REGIMES,
    assert_equal_outputs,
    assert_same_graph,
    assert_valid,
    fingerprint,
    made_feeds,
)
from tests.support.text import net

NET = net(
    "(float[N,3,6,6] x) => (float[N,4] y, float[N,5,6,6] r)",
    "float[5,3,3,3] a, float[5] p, float[4,5] b, float[4] q",
    "h = Conv<pads=[1,1,1,1]>(x, a, p) r = Relu(h) g = GlobalAveragePool(r) f = Flatten(g) y = Gemm<transB=1>(f, b, q)",
)


def changed(name: str, edit: Callable[[np.ndarray], object]) -> Model:
    model = parse_model(NET)
    array = np.array(model.graph.constants[name].values)
    edit(array)
    model.graph.constants[name].values = array
    return model


def test_a_model_equals_itself_exactly() -> None:
    assert assert_equal_outputs(NET, parse_model(NET)) == 0.0


def test_rounding_passes_and_is_measured() -> None:
    split = NET.replace("h = Conv<pads=[1,1,1,1]>(x, a, p)", "i = Conv<pads=[1,1,1,1]>(x, a) h = Add(i, p3)")
    model = parse_model(split.replace("float[5] p", "float[5,1,1] p3"))
    model.graph.constants["p3"].values = parse_model(NET).graph.constants["p"].values.reshape(5, 1, 1)
    assert 0.0 <= assert_equal_outputs(NET, model) < 1e-6


@pytest.mark.parametrize("regime", ["normal", "large"])
@pytest.mark.parametrize("name", ["a", "b"])
def test_one_weight_that_is_one_percent_off_fails(name: str, regime: str) -> None:
    model = changed(name, lambda w: np.multiply.at(w.reshape(-1), np.abs(w).argmax(), 1.01))
    with pytest.raises(AssertionError, match=r"output '[yr]', regime \w+, batch 1, seed 0: differs by"):
        assert_equal_outputs(NET, model, regimes=[regime])


def test_one_weight_that_is_one_percent_off_fails_on_some_one_hot_input() -> None:
    model = changed("a", lambda w: np.multiply.at(w.reshape(-1), np.abs(w).argmax(), 1.01))
    with pytest.raises(AssertionError, match="regime one-hot"):
        assert_equal_outputs(NET, model, regimes=["one-hot"], seeds=range(20))


@pytest.mark.parametrize("regime", REGIMES)
def test_one_bias_that_is_off_fails_in_every_regime_but_behind_large_inputs(regime: str) -> None:
    model = changed("q", lambda w: np.add.at(w, 1, 0.01))
    if regime == "large":
        assert assert_equal_outputs(NET, model, regimes=[regime], tolerance=1e-2) > 0
        return
    with pytest.raises(AssertionError, match=f"output 'y', regime {regime}"):
        assert_equal_outputs(NET, model, regimes=[regime])


def test_two_swapped_channels_fail() -> None:
    model = changed("b", lambda w: w.__setitem__((slice(None), [1, 2]), w[:, [2, 1]]))
    with pytest.raises(AssertionError, match="output 'y'"):
        assert_equal_outputs(NET, model)


def test_a_difference_only_beyond_the_first_sample_fails() -> None:
    """A batch of three sees what a batch of one does not: a mean over the batch."""
    before = net("(float[N,2] x) => (float[N,2] y)", "", "y = Identity(x)")
    after = net(
        "(float[N,2] x) => (float[N,2] y)", "", "m = ReduceMean<axes=[0]>(x) z = Sub(x, x) y = Add(z, m)"
    )
    assert_equal_outputs(before, after, batches=(1,))
    with pytest.raises(AssertionError, match="batch 3"):
        assert_equal_outputs(before, after)


def test_a_difference_only_at_large_inputs_fails() -> None:
    before = net("(float[N,2] x) => (float[N,2] y)", "", "y = Identity(x)")
    after = net(
        "(float[N,2] x) => (float[N,2] y)", "float low = {-20}, float high = {20}", "y = Clip(x, low, high)"
    )
    assert_equal_outputs(before, after, regimes=["normal"])
    with pytest.raises(AssertionError, match="regime large"):
        assert_equal_outputs(before, after)


def test_a_difference_only_at_zero_fails() -> None:
    before = net(
        "(float[N,2] x) => (float[N,2] y)", "float one = {1}", "z = Mul(x, x) w = Div(z, z) y = Sub(one, w)"
    )
    after = net("(float[N,2] x) => (float[N,2] y)", "", "y = Sub(x, x)")
    assert_equal_outputs(before, after, regimes=["normal"])
    with pytest.raises(
        AssertionError, match=r"regime zeros, batch 1, seed 0: differs where it is not finite"
    ):
        assert_equal_outputs(before, after)


def test_what_was_finite_must_stay_so() -> None:
    before = net("(float[N,2] x) => (float[N,2] y)", "", "y = Identity(x)")
    after = net("(float[N,2] x) => (float[N,2] y)", "", "z = Div(x, x) y = Mul(x, z)")
    with pytest.raises(AssertionError, match="has become NaN or Inf"):
        assert_equal_outputs(before, after)


def test_integers_must_agree_exactly() -> None:
    before = net("(float[N,8] x) => (int64[N,1] y)", "", "y = ArgMax<axis=1>(x)")
    after = net("(float[N,8] x) => (int64[N,1] y)", "", "y = ArgMax<axis=1, select_last_index=1>(x)")
    assert_equal_outputs(before, after, regimes=["normal"])
    with pytest.raises(AssertionError, match="regime zeros, batch 1, seed 0: 1 of 1 values differ"):
        assert_equal_outputs(before, after)


@pytest.mark.parametrize(
    ("dtype", "within", "beyond"),
    [("float", 1.00005, 1.0003), ("double", 1.0 + 1e-12, 1.0 + 1e-9), ("float16", 1.003, 1.03)],
)
def test_the_tolerance_depends_on_the_dtype(dtype: str, within: float, beyond: float) -> None:
    def scaled(factor: float) -> Model:
        text = net(f"({dtype}[N,8] x) => ({dtype}[N,8] y)", f"{dtype} s", "y = Mul(x, s)")
        kind = {"float": np.float32, "double": np.float64, "float16": np.float16}[dtype]
        return parse_model(text, {"s": np.array(factor, kind)})

    assert_equal_outputs(scaled(1.0), scaled(within))
    with pytest.raises(AssertionError, match="differs by"):
        assert_equal_outputs(scaled(1.0), scaled(beyond))


def test_other_outputs_or_shapes_fail() -> None:
    with pytest.raises(AssertionError, match="outputs were"):
        assert_equal_outputs(NET, NET.replace(", float[N,5,6,6] r)", ")"))
    with pytest.raises(AssertionError, match="has become float32"):
        assert_equal_outputs(
            net("(float[N,2] x) => (float[N,2] y)", "", "y = Identity(x)"),
            net("(float[N,2] x) => (float[N,M,P] y)", "int64[1] at = {1}", "y = Unsqueeze(x, at)"),
        )


def test_a_model_that_does_not_run_at_a_batch_size_is_said_to() -> None:
    fixed = net("(float[N,4] x) => (float[A,B] y)", "int64[2] two = {2,2}", "y = Reshape(x, two)")
    assert_equal_outputs(fixed, fixed, batches=(1,))
    with pytest.raises(
        AssertionError, match=r"the reference does not run \(regime normal, batch 3, seed 0\)"
    ):
        assert_equal_outputs(fixed, fixed)


# --- feeds, validity, digests ----------------------------------------------------------------------------------------
def test_made_feeds_are_of_the_kinds_they_claim_and_the_same_every_time() -> None:
    model = parse_model(
        net(
            "(float[N,3,H] x, int64[N] i, uint8[2,2] u, bool[2] b) => (float[N,3,H] y)", "", "y = Identity(x)"
        )
    )
    feeds = {regime: made_feeds(model, regime, seed=5, batch=2) for regime in REGIMES}
    assert {name: (a.dtype.name, a.shape) for name, a in feeds["normal"].items()} == {
        "x": ("float32", (2, 3, 32)),
        "i": ("int64", (2,)),
        "u": ("uint8", (2, 2)),
        "b": ("bool", (2,)),
    }
    assert np.abs(feeds["normal"]["x"]).max() < 6
    assert np.abs(feeds["large"]["x"]).max() > 100
    assert not any(a.any() for a in feeds["zeros"].values())
    assert np.count_nonzero(feeds["one-hot"]["x"], axis=(1, 2)).tolist() == [1, 1]
    assert set(np.unique(feeds["large"]["i"])) <= {0, 1}, "it may be an index"
    assert feeds["large"]["u"].max() == 255
    again = made_feeds(model, "normal", seed=5, batch=2)
    assert all(np.array_equal(again[name], a) for name, a in feeds["normal"].items())
    assert not np.array_equal(made_feeds(model, seed=6, batch=2)["x"], feeds["normal"]["x"])
    assert made_feeds(model, shapes={"x": (1, 3, 7)})["x"].shape == (1, 3, 7)


def test_an_invalid_model_is_refused_with_the_reason() -> None:
    assert_valid(parse_model(NET))
    with pytest.raises(AssertionError, match=r"the model is not valid: .*Gemm"):
        assert_valid(broken())
    with pytest.raises(AssertionError, match="inputs or outputs are declared otherwise"):
        assert_valid(parse_model(NET), like=parse_model(NET.replace("float[N,4] y", "float[M,4] y")))
    with pytest.raises(AssertionError, match="the opset is another"):
        assert_valid(parse_model(NET), like=parse_model(NET.replace(": 17", ": 16")))


def broken() -> Model:
    model = parse_model(NET)
    model.graph.constants["b"].values = np.zeros((4, 6), np.float32)
    return model


def test_a_fingerprint_sees_every_change_and_not_the_order_of_tensors() -> None:
    mark = fingerprint(parse_model(NET))
    model = parse_model(NET)
    model.graph.constants = dict(reversed(model.graph.constants.items()))
    assert fingerprint(model) == mark
    assert fingerprint(changed("q", lambda w: np.add.at(w, 0, np.spacing(w[0])))) != mark
    renamed, doc = parse_model(NET), parse_model(NET)
    renamed.graph.nodes[0].name = "other"
    doc.doc_string = "words"
    assert mark not in (fingerprint(renamed), fingerprint(doc))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("r = Relu(h)", "r = Tanh(h)", "the nodes should be"),
        ("pads=[1,1,1,1]", "pads=[1,1,1,1], group=1", "Conv 'h': "),
        ("(f, b, q)", "(f, b)", "Gemm 'y' has 3 inputs"),
        ("g = GlobalAveragePool(r)", "g = GlobalAveragePool(h)", "GlobalAveragePool 'g': input 0 is another"),
        ("float[5,3,3,3] a", "float[5,3,5,5] a", "'a' is"),
        ("float[N,5,6,6] r", "float[N,5,6,6] h", "the outputs should be"),
    ],
)
def test_two_graphs_are_told_apart(old: str, new: str, reason: str) -> None:
    assert_same_graph(NET, parse_model(NET))
    with pytest.raises(AssertionError, match=reason):
        assert_same_graph(NET.replace(old, new), parse_model(NET))


def test_two_graphs_that_differ_in_inner_names_or_unwritten_values_alone_are_the_same() -> None:
    renamed = NET.replace("h = ", "conv = ").replace("Relu(h)", "Relu(conv)")
    assert_same_graph(renamed, parse_model(NET, seed=9))
    with pytest.raises(AssertionError, match="stored tensor 'q'"):
        assert_same_graph(parse_model(NET), parse_model(NET, {"q": np.zeros(4, np.float32)}))
