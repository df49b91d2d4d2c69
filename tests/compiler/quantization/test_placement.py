"""Which nodes are computed in integers, which values are stored in them, and which share a scale."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings

from onnxcomp.analysis.linear import linear_node
from onnxcomp.compiler.quantization.placement import CALL, PER_ELEMENT, Placement, absorbed_by, place
from onnxcomp.compiler.target.facts import Target
from onnxcomp.compiler.target.files import load_target
from onnxcomp.ir.graph import Node
from onnxcomp.ir.model import Model
from onnxcomp.ir.ops import LINEAR
from onnxcomp.ir.parse import parse_model
from onnxcomp.runtime.observe import observe_shapes
from tests.support.graphs import build, plans
from tests.support.text import net

CPU = load_target("ort-cpu")
IN = "(float[N,4,8,8] x)"
W = "float[4,4,3,3] a, float[4,4,3,3] b, float[4,4,3,3] c"
PAD = "<pads=[1,1,1,1]>"


def model_of(
    body: str, weights: str = W, signature: str = f"{IN} => (float[N,4,8,8] y)", opset: int = 17
) -> Model:
    return parse_model(net(signature, weights, body, opset))


def shapes_of(model: Model) -> dict[str, tuple[int, ...]]:
    feeds = {
        v.name: np.zeros([s if isinstance(s, int) else 1 for s in v.shape or ()], v.dtype or np.float32)
        for v in model.graph.inputs
    }
    return observe_shapes(model, feeds)


def placed(
    body: str | Model, target: Target = CPU, kept: Callable[[Node], str | None] = lambda node: None
) -> Placement:
    model = body if isinstance(body, Model) else model_of(body)
    return place(model, target, shapes_of(model), kept)


def conv(out: str, source: str, weight: str = "a") -> str:
    return f"{out} = Conv{PAD}({source}, {weight}) "


def float_ops(model: Model, found: Placement) -> list[str]:
    return [node.op for node in model.graph.nodes if node.name not in found.nodes]


@pytest.mark.parametrize(
    ("body", "weights"),
    [
        ("r = Relu(h) ", ""),
        ("r = Clip(h, lo, hi) ", ", float lo = {0.0}, float hi = {6.0}"),
        ("r = Clip(h, lo) ", ", float lo = {-1.0}"),
    ],
)
def test_an_activation_melts_into_the_convolution_and_only_its_output_is_stored(
    body: str, weights: str
) -> None:
    model = model_of(conv("h", "x") + body + conv("y", "r", "b"), W + weights)
    found = placed(model)
    assert not float_ops(model, found)
    assert list(found.values) == ["x", "r", "y"]


@pytest.mark.parametrize(
    ("body", "weights"),
    [
        ("r = Clip(h, lo) ", ", float lo = {0.5}"),
        ("r = Clip(h, lo, hi) ", ", float lo = {-2.0}, float hi = {-1.0}"),
        ("r = Relu(h) s = Sigmoid(h) t = Mul(s, r) ", ""),
    ],
)
def test_an_activation_that_cannot_melt_does_not(body: str, weights: str) -> None:
    model = model_of(conv("h", "x") + body + conv("y", "r", "b"), W + weights)
    node = next(n for n in model.graph.nodes if n.op == "Conv")
    assert absorbed_by(model, node, CPU) is None
    assert "h" in placed(model).values


def test_both_sides_of_a_residual_addition_and_its_sum_are_stored() -> None:
    found = placed(conv("h", "x") + conv("i", "h", "b") + "s = Add(i, h) r = Relu(s) " + conv("y", "r", "c"))
    assert set(found.values) == {"x", "h", "i", "r", "y"}
    assert len(found.nodes) == 5


def test_all_sides_of_a_concatenation_and_its_result_are_stored() -> None:
    model = model_of(
        conv("h", "x") + conv("i", "x", "b") + "s = Concat<axis=1>(h, i) y = Conv(s, w)",
        W + ", float[4,8,1,1] w",
    )
    assert set(placed(model).values) == {"x", "h", "i", "s", "y"}


@pytest.mark.parametrize(
    "move",
    [
        "m = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(h) ",
        "t = Transpose<perm=[0,1,3,2]>(h) m = Transpose<perm=[0,1,3,2]>(t) ",
        "t = Reshape(h, sizes) m = Reshape(t, back) ",
    ],
)
def test_what_is_only_moved_keeps_the_scale_of_its_origin_through_the_chain(move: str) -> None:
    weights = W + ", int64[2] sizes = {-1, 64}, int64[4] back = {-1, 4, 8, 8}"
    found = placed(model_of(conv("h", "x") + move + conv("y", "m", "b"), weights))
    roots = {found.values[name] for name in found.values if name in ("h", "t", "m")}
    assert len(roots) == 1
    assert {"h", "m"} <= found.values.keys()
    assert found.values["x"] != found.values["h"] != found.values["y"]
    assert set(found.sources[roots.pop()]) >= {"h", "m"}


def test_the_last_gemm_needs_no_pair_and_a_convolution_does() -> None:
    gemm = model_of(
        conv("h", "x") + "f = Flatten(h) y = Gemm(f, w)",
        W + ", float[256,5] w",
        f"{IN} => (float[N,5] y)",
    )
    assert "y" not in placed(gemm).values
    assert "y" in placed(conv("y", "x")).values
    assert "y" in placed(gemm, replace(CPU, outputs_quantized=True)).values


@pytest.mark.parametrize(
    ("op", "opset", "weights"),
    [
        ("m = HardSwish(h) ", 17, ""),
        ("m = LayerNormalization<axis=-1>(h, g) ", 17, ", float[8] g"),
        ("m = ConvTranspose<pads=[1,1,1,1]>(h, c) ", 17, ""),
        ('m = Resize<mode="linear">(h, , s) ', 17, ", float[4] s = {1.0, 1.0, 1.0, 1.0}"),
    ],
)
def test_what_the_target_computes_in_float_stays_float_between_integers(
    op: str, opset: int, weights: str
) -> None:
    model = model_of(conv("h", "x") + op + conv("y", "m", "b"), W + weights, opset=opset)
    found = placed(model)
    assert float_ops(model, found) == [op.split()[2].split("<")[0].split("(")[0]]
    assert {"h", "m"} <= found.values.keys()
    assert found.values["h"] != found.values["m"]


def test_a_lone_elementwise_operator_between_floats_stays_float() -> None:
    model = model_of("e = Exp(x) f = Exp(e) s = Add(e, f) y = Exp(s)")
    found = placed(model)
    assert not found.nodes
    assert not found.values


def test_an_addition_between_convolutions_pays() -> None:
    model = model_of(conv("h", "x") + conv("i", "x", "b") + "s = Add(h, i) " + conv("y", "s", "c"))
    assert not float_ops(model, placed(model))


def test_uniform_constants_are_stored_and_others_keep_their_node_float() -> None:
    def model(operand: str) -> Model:
        return model_of(conv("h", "x") + "s = Mul(h, k) " + conv("y", "s", "b"), W + ", " + operand)

    uniform = placed(model("float k = {0.5}"))
    name = next(n for n, _ in uniform.constants)
    assert uniform.constants == ((name, 1),)
    assert name in uniform.nodes
    several = model("float[4,1,1] k = {0.5, 1.0, 2.0, 3.0}")
    assert float_ops(several, placed(several)) == ["Mul"]
    assert not placed(several).constants


def test_a_value_that_a_branch_captures_stays_known_in_float() -> None:
    model = model_of(
        conv("h", "x")
        + "y = If <then_branch = t () => (float[N,4,8,8] p) { p = Exp(h) }, "
        + "else_branch = e () => (float[N,4,8,8] q) { q = Neg(h) }> (cond)",
        W,
        "(float[N,4,8,8] x, bool cond) => (float[N,4,8,8] y)",
    )
    found = placed(model)
    assert set(found.values) == {"x", "h"}
    assert "cond" not in found.values


def test_integer_values_are_never_stored_and_their_operators_left_alone() -> None:
    model = parse_model(
        net(
            "(float[N,4,8,8] x, int64[N,2] i) => (float[N,4,8,8] y, int64[N,2] j)",
            W,
            conv("y", "x") + "k = Add(i, i) j = Mul(k, i)",
        )
    )
    found = placed(model)
    assert set(found.values) == {"x", "y"}
    assert float_ops(model, found) == ["Add", "Mul"]


def test_a_value_with_several_readers_is_stored_once_for_all_who_compute_in_integers() -> None:
    model = model_of(conv("h", "x") + "e = Exp(h) " + conv("i", "h", "b") + "y = Add(e, i)")
    found = placed(model)
    assert "h" in found.values
    assert "Exp" in float_ops(model, found)


def test_what_the_user_keeps_stays_float_with_its_reason() -> None:
    model = model_of(conv("h", "x") + conv("i", "h", "b") + conv("y", "i", "c"))
    middle = model.graph.nodes[1]
    found = placed(model, kept=lambda node: "it is excluded" if node is middle else None)
    assert middle.name not in found.nodes
    assert found.reasons[middle.name] == "it is excluded"
    assert [site.node for site in found.weights] == [model.graph.nodes[i].name for i in (0, 2)]


def test_an_excluded_activation_does_not_melt() -> None:
    model = model_of(conv("h", "x") + "r = Relu(h) " + conv("y", "r", "b"))
    relu = next(n for n in model.graph.nodes if n.op == "Relu")
    found = placed(model, kept=lambda node: "no" if node is relu else None)
    assert relu.name not in found.nodes
    assert {"h", "r"} <= found.values.keys()


def test_weights_are_named_with_the_axis_of_their_output_channels() -> None:
    model = model_of(
        conv("h", "x") + "f = Flatten(h) y = MatMul(f, w)", W + ", float[256,5] w", f"{IN} => (float[N,5] y)"
    )
    assert [(s.index, s.axis, s.count) for s in placed(model).weights] == [(1, 0, 4), (1, 1, 5)]


def cost(model: Model, chosen: set[str], shapes: Mapping[str, tuple[int, ...]]) -> float:
    """Return the microseconds that conversions take when the nodes `chosen` compute in integers."""
    total = 0.0
    for value in [*model.graph.inputs, *(v for n in model.graph.nodes for v in n.outputs)]:
        maker = value.producer
        readers = {n.name in chosen for n, _ in model.graph.uses(value)}
        if model.graph.is_output(value):
            readers.add(False)
        made = maker is not None and maker.name in chosen
        price = CALL + PER_ELEMENT * float(np.prod(shapes[value.name]))
        free = maker is not None and maker.op in LINEAR and maker not in CPU.output_pair
        if (not made and True in readers) or (made and False in readers and not free):
            total += price
    return total


@settings(max_examples=60, deadline=None)
@given(plans(most=7, blocks=("conv", "activation", "residual", "concat", "pool", "stored-operand")))
def test_no_other_choice_of_nodes_converts_less(plan: object) -> None:
    model = build(plan)  # type: ignore[arg-type]
    shapes = shapes_of(model)
    found = place(model, CPU, shapes, lambda node: None)
    melted = {
        follower.name: node.name
        for node in model.graph.nodes
        if (follower := absorbed_by(model, node, CPU)) is not None and CPU.role(node) != "unknown"
    }
    free, fixed = [], set()
    for node in model.graph.nodes:
        role = CPU.role(node)
        if node.name in melted or role not in ("quantize", "same-scale"):
            continue
        if linear_node(node) is not None:
            fixed.add(node.name)
        elif not any(node.constant(i) is not None and node.op in ("Add", "Mul") for i in range(2)):
            free.append(node.name)
    if len(free) > 9 or "MatMul" in {n.op for n in model.graph.nodes if linear_node(n) is None}:
        return
    ours = cost(model, set(found.nodes), shapes)
    for choice in product((False, True), repeat=len(free)):
        chosen = fixed | {name for name, taken in zip(free, choice, strict=True) if taken}
        chosen |= {name for name, head in melted.items() if head in chosen}
        assert ours <= cost(model, chosen, shapes) + 0.5 * CALL
