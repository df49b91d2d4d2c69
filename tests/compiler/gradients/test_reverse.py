"""Reverse mode: the derivative by the input is that of finite differences, for every operator that has a rule."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.compiler.gradients.reverse import PREFIX, Adjoint, adjoint
from onnxcomp.compiler.gradients.rules import RULES
from onnxcomp.ir.graph import Array
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.runtime.observe import observe_shapes
from onnxcomp.runtime.session import Session
from tests.support.text import net

IMAGE = "(float[N,4,6,6] x) => (float[N,A,B,C] y)"
VECTOR = "(float[N,6] x) => (float[N,A] y)"

PADS = "int64[8] p = {0,1,0,0,0,2,0,0}"

CASES = {
    "a convolution": (IMAGE, "float[5,4,3,3] w, float[5] b", "y = Conv <pads = [1,1,1,1]> (x, w, b)"),
    "a dilated convolution": (
        IMAGE,
        "float[5,4,3,3] w",
        "y = Conv <pads = [1,2,0,1], dilations = [1,2]> (x, w)",
    ),
    "a strided convolution": (
        IMAGE,
        "float[5,4,3,3] w",
        "y = Conv <pads = [1,1,1,1], strides = [2,2]> (x, w)",
    ),
    "a convolution in groups": (
        IMAGE,
        "float[6,2,3,3] w",
        "y = Conv <group = 2, pads = [1,1,1,1]> (x, w)",
    ),
    "a depthwise convolution": (
        IMAGE,
        "float[4,1,3,3] w",
        'y = Conv <group = 4, auto_pad = "SAME_UPPER", strides = [2,2]> (x, w)',
    ),
    "more padding than the kernel reaches": (
        IMAGE,
        "float[5,4,1,1] w",
        "y = Conv <pads = [1,1,1,1]> (x, w)",
    ),
    "a transposed convolution": (
        IMAGE,
        "float[4,3,3,3] w, float[6] b",
        "y = ConvTranspose <group = 2, strides = [2,2], pads = [1,0,1,1], output_padding = [1,0]> (x, w, b)",
    ),
    "nearest neighbours": (
        IMAGE,
        "float[4] s = {1,1,2,1}",
        'y = Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"> (x, , s)',
    ),
    "nearest neighbours by half pixels": (IMAGE, "float[4] s = {1,1,2,2}", "y = Resize (x, , s)"),
    "a normalization": (
        IMAGE,
        "float[4] s = {1,2,-1,0.5}, float[4] b, float[4] m, float[4] v = {1,4,0.25,2}",
        "y = BatchNormalization(x, s, b, m, v)",
    ),
    "a relu": (IMAGE, "float c = {0.1}", "r = Relu(x) y = Add(r, c)"),
    "a clip": (IMAGE, "float l = {-0.5}, float h = {0.6}", "y = Clip(x, l, h)"),
    "a clip without an upper bound": (IMAGE, "float l = {-0.5}", "y = Clip(x, l)"),
    "leaky relus": (
        IMAGE,
        "float[4,1,1] s = {0.2,0.5,-0.3,1}",
        "l = LeakyRelu <alpha = 0.3> (x) p = PRelu(x, s) y = Add(l, p)",
    ),
    "a sigmoid linear unit": (IMAGE, "", "s = Sigmoid(x) y = Mul(x, s)"),
    "a hyperbolic tangent": (IMAGE, "", "y = Tanh(x)"),
    "hard sigmoids": (
        IMAGE,
        "float c = {4}",
        "z = Mul(x, c) s = HardSigmoid <alpha = 0.2> (z) w = HardSwish(z) y = Add(s, w)",
    ),
    "a difference and a quotient": (
        IMAGE,
        "float[4,1,1] d = {1,2,3,-4}",
        "q = Div(x, d) r = Relu(x) y = Sub(q, r)",
    ),
    "a gate over channels": (
        IMAGE,
        "float[4,4,1,1] w",
        "g = GlobalAveragePool(x) c = Conv(g, w) s = Sigmoid(c) y = Mul(s, x)",
    ),
    "means over axes": (
        "(float[N,4,6,6] x) => (float[N,4] y)",
        "",
        "y = ReduceMean <axes = [2,3], keepdims = 0> (x)",
    ),
    "an average pool": (
        IMAGE,
        "",
        "y = AveragePool <kernel_shape = [3,3], strides = [2,2], pads = [1,1,1,1], count_include_pad = 1> (x)",
    ),
    "a maximum pool": (IMAGE, "", "y = MaxPool <kernel_shape = [2,2], strides = [2,2]> (x)"),
    "an option-A shortcut": (
        IMAGE,
        "int64[2] s = {0,1}, int64[2] e = {9223372036854775807,6}, int64[2] a = {2,3}, int64[2] t = {2,3}, "
        + PADS,
        "c = Slice(x, s, e, a, t) y = Pad(c, p)",
    ),
    "a slice backwards": (
        IMAGE,
        "int64[1] s = {-1}, int64[1] e = {-9223372036854775807}, int64[1] a = {1}, int64[1] t = {-1}",
        "y = Slice(x, s, e, a, t)",
    ),
    "a value joined to itself": (IMAGE, "", "r = Relu(x) y = Concat <axis = 1> (x, r, x)"),
    "halves, one of them unread": (
        IMAGE,
        "int64[2] s = {1,3}",
        "a, b = Split <axis = 1> (x, s) y = Relu(b)",
    ),
    "movement": (
        IMAGE,
        "int64[4] s = {0,6,12,2}, int64[1] a = {4}",
        "t = Transpose <perm = [0,2,3,1]> (x) u = Unsqueeze(t, a) q = Squeeze(u, a) r = Reshape(q, s) y = Relu(r)",
    ),
    "what does nothing": (IMAGE, "", "i = Identity(x) d = Dropout(i) y = Relu(d)"),
    "a transposition of all axes": ("(float[2,4,6] x) => (float[6,4,2] y)", "", "y = Transpose(x)"),
    "dense layers": (
        VECTOR,
        "float[6,5] a, float[5] p, float[4,5] b, float[4,3] c",
        "g = Gemm(x, a, p) r = Relu(g) h = Gemm <transB = 1, alpha = 0.5> (r, b) y = MatMul(h, c)",
    ),
    "attention": (
        "(float[2,5,6] x) => (float[2,5,6] y)",
        "float[6,6] q, bool[1,1,5] m = {1,0,1,1,1}, float low = {-3.4e38}",
        "a = MatMul(x, q) t = Transpose <perm = [0,2,1]> (x) s = MatMul(a, t) w = Where(m, s, low) p = Softmax(w) y = MatMul(p, x)",
    ),
    "a choice between values": (
        IMAGE,
        "bool[1,1,6,6] m = {" + ",".join("1001" * 9) + "}, float[4,1,1] c",
        "s = GlobalAveragePool(x) n = Where(m, x, s) y = Where(m, c, n)",
    ),
    "a normalization of rows": (
        "(float[2,3,6] x) => (float[2,3,6] y)",
        "float[6] g = {1,2,-1,0.5,3,1}, float[6] b",
        "y = LayerNormalization <epsilon = 0.1> (x, g, b)",
    ),
    "gaussian error units, written out and whole": (
        IMAGE,
        "float r = {1.4142135}, float one = {1}",
        "d = Div(x, r) e = Erf(d) f = Add(e, one) g = Mul(x, f) w = Gelu(x) y = Add(g, w)",
    ),
    "a flattened image": (
        "(float[N,4,6,6] x) => (float[N,3] y)",
        "float[144,3] w",
        "r = Relu(x) f = Flatten(r) y = Gemm(f, w)",
    ),
}


def run_back(model: Model, sites: list[str], count: int = 2) -> tuple[Adjoint, Session, Array]:
    """The adjoint of `model` at `sites`, ready to run, and samples for it."""
    (value,) = model.graph.inputs
    one = np.zeros([s if isinstance(s, int) else 1 for s in value.shape], np.float32)
    found = adjoint(model, "x", sites, observe_shapes(model, {"x": one}))
    fixed = isinstance(value.shape[0], int)
    shape = one.shape if fixed else (count, *one.shape[1:])
    x = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    return found, Session(found.model, threads=1), x


def pulls(session: Session, found: Adjoint, x: Array, seed: int = 1) -> dict[str, Array]:
    """A random offset and slope per channel of every site."""
    rng = np.random.default_rng(seed)
    zero = {name: np.zeros(1, np.float32) for name in session.inputs if name.startswith(PREFIX)}
    sizes = {}
    for number, _ in enumerate(found.sites):
        sums = session.run({"x": x, **zero}, [f"{PREFIX}sum.{number}"])
        sizes[number] = len(sums[f"{PREFIX}sum.{number}"])
    return {
        f"{PREFIX}{kind}.{number}": rng.standard_normal(size).astype(np.float32)
        for number, size in sizes.items()
        for kind in ("offset", "slope")
    }


def loss(session: Session, weights: dict[str, Array], count: int, x: Array) -> float:
    found = session.run({"x": x, **weights})
    total = 0.0
    for k in range(count):
        total += float(weights[f"{PREFIX}offset.{k}"].astype(float) @ found[f"{PREFIX}sum.{k}"])
        total += float(weights[f"{PREFIX}slope.{k}"].astype(float) @ found[f"{PREFIX}squares.{k}"]) / 2
    return total


@pytest.mark.parametrize("case", CASES)
def test_the_derivative_is_that_of_finite_differences(case: str) -> None:
    signature, weights, body = CASES[case]
    model = parse_model(net(signature, weights, body, 20 if "Gelu" in body else 17))
    found, session, x = run_back(model, ["y"])
    assert found.sites == ("y",)
    assert found.stopped == ()
    given = pulls(session, found, x)
    gradient = session.run({"x": x, **given})[f"{PREFIX}gradient"]
    assert gradient.shape == x.shape
    rng = np.random.default_rng(0)
    step = 1e-3
    for _ in range(4):
        # One element at a time: along a long direction some element always crosses a kink.
        at = tuple(rng.integers(0, size) for size in x.shape)
        up, down = x.copy(), x.copy()
        up[at] += step
        down[at] -= step
        slope = (loss(session, given, 1, up) - loss(session, given, 1, down)) / float(up[at] - down[at])
        assert gradient[at] == pytest.approx(slope, rel=0.02, abs=0.03)


def test_every_rule_is_tried() -> None:
    tried = {
        node.op
        for signature, weights, body in CASES.values()
        for node in parse_model(net(signature, weights, body, 20)).graph.nodes
    }
    assert set(RULES) <= tried


def test_inner_values_are_pulled_together() -> None:
    body = "a = Conv <pads = [1,1,1,1]> (x, w) r = Relu(a) b = Conv <pads = [1,1,1,1]> (r, w) y = Add(b, x)"
    model = parse_model(net(IMAGE, "float[4,4,3,3] w", body))
    before = [node.name for node in model.graph.nodes]
    found, session, x = run_back(model, ["a", "b", "y"])
    assert [node.name for node in model.graph.nodes] == before
    given = pulls(session, found, x)
    whole = session.run({"x": x, **given})[f"{PREFIX}gradient"]
    parts = []
    for number in range(3):
        alone = {name: a if name.endswith(f".{number}") else 0 * a for name, a in given.items()}
        parts.append(session.run({"x": x, **alone})[f"{PREFIX}gradient"])
    assert all(np.abs(part).max() > 0.1 for part in parts)
    np.testing.assert_allclose(sum(parts), whole, rtol=1e-3, atol=1e-3)


def test_an_operator_without_a_rule_lets_nothing_through_and_is_named() -> None:
    body = "a = Conv(x, w) e = Sinh(a) y = Conv(e, w)"
    model = parse_model(net(IMAGE, "float[4,4,1,1] w", body))
    found, session, x = run_back(model, ["a", "y"])
    assert found.stopped == (next(n.name for n in model.graph.nodes if n.op == "Sinh"),)
    given = pulls(session, found, x)
    whole = session.run({"x": x, **given})[f"{PREFIX}gradient"]
    given = {name: 0 * a if name.endswith(".1") else a for name, a in given.items()}
    np.testing.assert_array_equal(session.run({"x": x, **given})[f"{PREFIX}gradient"], whole)


def test_a_resizing_that_is_no_copying_stops_the_derivative() -> None:
    for attributes in (
        'mode = "linear"',
        'nearest_mode = "floor"',
        'coordinate_transformation_mode = "align_corners"',
        'nearest_mode = "ceil"',
    ):
        body = f"y = Resize <{attributes}> (x, , s)"
        model = parse_model(net(IMAGE, "float[4] s = {1,1,2,2}", body))
        assert run_back(model, ["y"])[0].stopped == (model.graph.nodes[0].name,)


def test_values_that_the_input_does_not_reach_are_no_sites() -> None:
    body = "c = Relu(k) a = Relu(x) y = Add(a, c)"
    model = parse_model(net(IMAGE, "float[1,4,1,1] k", body))
    found, session, x = run_back(model, ["c", "y"])
    assert found.sites == ("y",)
    assert f"{PREFIX}sum.0" in session.outputs and f"{PREFIX}sum.1" not in session.outputs
    sums = session.run({"x": x, **pulls(session, found, x)})[f"{PREFIX}sum.0"]
    want = Session(model, threads=1).run({"x": x})["y"].sum((0, 2, 3))
    np.testing.assert_allclose(sums, want, rtol=1e-4)
