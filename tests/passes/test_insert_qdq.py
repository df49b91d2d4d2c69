"""The pass insert-qdq: what must not change, how accurate and how fused its results are, and what each option does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxcomp.compiler.passbase import PassResult
from onnxcomp.errors import DataError, PreconditionError, UsageError
from onnxcomp.ir.graph import Array
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.ir.proto import to_proto
from onnxcomp.passes.insert_qdq import InsertQdq
from onnxcomp.runtime.fusion import fusion_of
from onnxcomp.runtime.session import Session
from tests.support.pruning import context_for, noise, zoo_context
from tests.support.quantizing import SMALL, filled, folded, quantized, sqnr
from tests.support.text import net


def dtypes(model: Model, op: str) -> set[str]:
    """Return the types of the zero points that nodes `op` read."""
    return {str(n.constant(2).dtype) for n in model.graph.nodes if n.op == op and n.constant(2) is not None}  # type: ignore[union-attr]


def scales(model: Model) -> list[Array]:
    return [
        np.atleast_1d(found)
        for n in model.graph.nodes
        if n.op in ("QuantizeLinear", "DequantizeLinear") and (found := n.constant(1)) is not None
    ]


def told_ranges(result: PassResult) -> dict[str, list[float]]:
    found = next(c for c in result.changes if "ranges" in c.details)
    return dict(found.details["ranges"])


def weight_scales(model: Model) -> list[Array]:
    """Return the scales of the stored weights; biases are int32."""
    return [
        np.atleast_1d(found)
        for n in model.graph.nodes
        if n.op == "DequantizeLinear"
        and (stored := n.constant(0)) is not None
        and stored.dtype == np.int8
        and (found := n.constant(1)) is not None
    ]


# --- nothing may change ------------------------------------------------------------------------------------------------
def test_a_quantized_model_is_left_as_it_is_and_said_so() -> None:
    once = quantized(filled(SMALL)).model
    again = quantized(once, noise(once))
    assert not again.changed
    assert again.notes == ("the model holds QuantizeLinear or DequantizeLinear already and is left as it is",)
    assert to_proto(again.model).SerializeToString() == to_proto(once).SerializeToString()


def test_a_network_without_linear_nodes_is_left_as_it_is() -> None:
    model = parse_model(net("(float[N,4] x) => (float[N,4] y)", "", "a = Exp(x) b = Add(a, x) y = Relu(b)"))
    found = quantized(model)
    assert not found.changed
    assert to_proto(found.model).SerializeToString() == to_proto(model).SerializeToString()


def test_where_everything_is_excluded_nothing_changes_and_every_node_is_named() -> None:
    model = filled(SMALL)
    names = frozenset(node.name for node in model.graph.nodes)
    context = context_for(model, excluded=names)
    found = InsertQdq().run(model.clone(), context)
    assert not found.changed
    assert to_proto(found.model).SerializeToString() == to_proto(model).SerializeToString()
    linear = {n.name for n in model.graph.nodes if n.op in ("Conv", "Gemm")}
    assert {skip.where for skip in found.skips} == linear
    assert all("it is excluded" in skip.reason for skip in found.skips)


# --- options --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["uint8", "int8", "int8-symmetric", "uint16", "int16", "int16-symmetric"])
def test_activations_have_the_type_that_is_asked_for(kind: str) -> None:
    model = filled(SMALL)
    found = quantized(model, activations=kind)
    assert dtypes(found.model, "QuantizeLinear") == {kind.removesuffix("-symmetric")}
    zeros = [n.constant(2) for n in found.model.graph.nodes if n.op == "QuantizeLinear"]
    if kind.endswith("symmetric"):
        assert not any(np.any(zero) for zero in zeros if zero is not None)
    assert sqnr(model, found.model, noise(model)) > (45 if "16" in kind else 25)
    if "16" in kind:
        assert found.model.opset >= 21
        assert "raised from opset 17 to 21, where integers of 16 bits begin" in found.notes
    else:
        assert found.model.opset == 17


def test_an_old_model_is_raised_for_integers_of_16_bits() -> None:
    model = filled(SMALL.replace('"" : 17', '"" : 13'))
    found = quantized(model, activations="int16")
    assert found.model.opset == 21
    assert "raised from opset 13 to 21, where integers of 16 bits begin" in found.notes
    assert quantized(model).model.opset == 13


def test_granularity_is_one_scale_for_each_output_channel_or_for_each_weight() -> None:
    model = filled(SMALL)
    wide = quantized(model, granularity="per-channel").model
    assert sorted(map(len, weight_scales(wide))) == [5, 8, 8]
    whole = quantized(model, granularity="per-tensor").model
    assert [len(scale) for scale in weight_scales(whole)] == [1, 1, 1]


def test_scales_are_powers_of_two_where_asked_for() -> None:
    model = filled(SMALL)
    found = quantized(model, scale="pow2", bias="int32").model
    for scale in scales(found):
        assert (np.frexp(scale)[0] == 0.5).all()
    assert sqnr(model, found, noise(model)) > 20
    assert not all((np.frexp(s)[0] == 0.5).all() for s in scales(quantized(model, scale="float").model))


def biases(model: Model) -> dict[str, tuple[Array, Array, float]]:
    """Return for each node with an int32 bias its scale, that of its weight and that of its input."""
    found = {}
    for node in model.graph.nodes:
        if node.op not in ("Conv", "Gemm"):
            continue
        makers = [v.producer for v in node.inputs]
        if len(makers) < 3 or makers[2] is None or any(m is None for m in makers):
            continue
        data, weight, bias = (m.constant(1) for m in makers if m is not None)
        assert data is not None
        assert weight is not None
        assert bias is not None
        stored = makers[2].constant(0)
        assert stored is not None
        assert stored.dtype == np.int32
        found[node.name] = (bias, weight, float(data))
    return found


def test_stored_biases_lie_on_the_grid_of_their_products() -> None:
    model = filled(SMALL)
    result = quantized(model, bias="int32")
    found = biases(result.model)
    assert len(found) == 3
    for bias, weight, data in found.values():
        np.testing.assert_allclose(bias, weight * data, rtol=1e-6)
    # A Gemm that gives floats runs in integers only with an integer bias.
    assert list(biases(quantized(model, bias="float").model)) == ["y"]
    assert sqnr(model, result.model, noise(model)) > 25


def test_a_huge_bias_does_not_overflow() -> None:
    model = filled(SMALL)
    conv = next(n for n in model.graph.nodes if n.op == "Conv")
    bias = np.array(conv.constant(2))
    bias[3] = -3e5
    model.graph.set_constant(conv, 2, bias)
    weight = np.array(conv.constant(1))
    weight[3] *= 1e-6
    model.graph.set_constant(conv, 1, weight)
    result = quantized(model, bias="int32")
    assert sqnr(model, result.model, noise(model)) > 20
    for node in result.model.graph.nodes:
        stored = node.constant(0) if node.op == "DequantizeLinear" else None
        if stored is not None and stored.dtype == np.int32:
            assert np.abs(stored.astype(np.int64)).max() <= 2**30


def test_only_the_nodes_that_are_named_become_integers() -> None:
    model = filled(SMALL)
    convs = [n.name for n in model.graph.nodes if n.op == "Conv"]
    one = quantized(model, nodes=(convs[1],))
    assert len(weight_scales(one.model)) == 1
    assert {s.where for s in one.skips} >= {convs[0]}
    typed = quantized(model, op_types=("Gemm",))
    assert len(weight_scales(typed.model)) == 1
    assert any("it is not among op-types" in s.reason for s in typed.skips)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nodes": ("op:Covn",)}, "nodes 'op:Covn' matches no node; near: op:Conv"),
        ({"op_types": ("Gem",)}, "op:Gem"),
    ],
)
def test_patterns_that_match_nothing_are_refused_with_the_nearest(options: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        quantized(filled(SMALL), **options)


@pytest.mark.parametrize("observer", ["output", "mse", "minmax", "percentile", "entropy", "moving-average"])
def test_every_observer_gives_a_network_that_works(observer: str) -> None:
    model = filled(SMALL)
    found = quantized(model, observer=observer)
    assert sqnr(model, found.model, noise(model)) > 20


def test_minmax_cuts_nothing_off_and_percentiles_do() -> None:
    model = filled(SMALL)
    feeds = noise(model)
    feeds["x"][0, 0, 0, 0] = 100
    wide = told_ranges(quantized(model, feeds, observer="minmax"))["x"]
    assert wide[1] == pytest.approx(100, rel=1e-2)
    found = told_ranges(quantized(model, feeds, observer="percentile", percentile=99.9))["x"]
    assert found[1] < 10


def test_rounding_with_errors_propagated_is_closer_than_to_the_nearest() -> None:
    model = folded("digits_resnet")
    feeds = next(iter(zoo_context(model, 48).calibration.batches(48)))  # type: ignore[union-attr]
    good, plain = (
        sqnr(model, quantized(model, rounding=r, activations="int16").model, feeds)
        for r in ("gptq", "nearest")
    )
    assert good > plain


# --- the file -------------------------------------------------------------------------------------------------------
def test_weights_are_there_once_as_int8_and_no_float_copy_stays() -> None:
    model = folded("digits_resnet")
    result = quantized(model)
    found = result.model
    kept = {s.where for s in result.skips}
    sizes = {n.constant(1).size for n in model.graph.nodes if n.op == "Conv" and n.name not in kept}  # type: ignore[union-attr]
    floats = [c for c in found.graph.constants.values() if c.values.dtype == np.float32 and c.values.ndim > 1]
    assert not [c for c in floats if c.values.size in sizes and c.values.ndim == 4]
    integers = [
        c.name for c in found.graph.constants.values() if c.values.dtype == np.int8 and c.values.ndim == 4
    ]
    assert len(integers) == len(set(integers)) >= 5


def test_a_weight_of_two_nodes_is_right_for_both() -> None:
    text = net(
        "(float[N,4,6,6] x) => (float[N,4,6,6] y)",
        "float[4,4,3,3] a, float[4] p, float[4] q",
        "h = Conv<pads=[1,1,1,1]>(x, a, p) r = Relu(h) y = Conv<pads=[1,1,1,1]>(r, a, q)",
    )
    model = filled(text)
    found = quantized(model)
    assert sqnr(model, found.model, noise(model)) > 25
    assert "a" not in found.model.graph.constants


def test_a_convolution_at_a_graph_output_gives_what_came_back_from_storage() -> None:
    model = filled(
        net("(float[N,3,8,8] x) => (float[N,4,8,8] y)", "float[4,3,3,3] a", "y = Conv<pads=[1,1,1,1]>(x, a)")
    )
    found = quantized(model, edges="integers").model
    assert found.graph.outputs[0].producer is not None
    assert found.graph.outputs[0].producer.op == "DequantizeLinear"
    assert not fusion_of(found).unfused


def test_an_output_that_is_read_inside_too_is_quantized_once() -> None:
    model = filled(
        net(
            "(float[N,4,8,8] x) => (float[N,4,8,8] h, float[N,4,8,8] y)",
            "float[4,4,3,3] a, float[4,4,3,3] b",
            "h = Conv<pads=[1,1,1,1]>(x, a) y = Conv<pads=[1,1,1,1]>(h, b)",
        )
    )
    found = quantized(model, edges="integers").model
    assert sum(n.op == "QuantizeLinear" for n in found.graph.nodes) == 3


def test_two_runs_write_the_same_bytes_whatever_the_batch_size_of_a_loaded_machine() -> None:
    model = folded("digits_mobilenet")
    first, second = (to_proto(quantized(model, fresh=f).model).SerializeToString() for f in (False, True))
    assert first == second


def test_ranges_and_weights_do_not_hang_on_the_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    model = folded("digits_resnet")
    whole = quantized(model)
    for place in ("runtime.ranges", "compiler.gradients.value_sensitivity"):
        monkeypatch.setattr(f"onnxcomp.{place}.BATCH_BYTES", 1)
    single = quantized(model, fresh=True)
    one, two = (told_ranges(r) for r in (whole, single))
    assert one.keys() == two.keys()
    for name, ends in one.items():
        # Other batches take other kernels, whose sums differ in the last digits.
        assert two[name] == pytest.approx(ends, rel=1e-4, abs=1e-4), name
    assert whole.model.graph.constants.keys() == single.model.graph.constants.keys()


# --- bad and odd input ------------------------------------------------------------------------------------------------
def test_values_that_become_infinite_are_named_with_the_sample() -> None:
    model = filled(SMALL)
    feeds = noise(model, 12)
    feeds["x"][7] = 3e38
    with pytest.raises(DataError, match="becomes NaN or infinite on calibration sample 7; remove the sample"):
        quantized(model, feeds)


@pytest.mark.parametrize("observer", ["output", "mse", "minmax", "entropy", "percentile", "moving-average"])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_samples_give_a_network_that_works(observer: str, value: float) -> None:
    model = filled(SMALL)
    feeds = {"x": np.full((6, 3, 8, 8), value, np.float32)}
    found = quantized(model, feeds, observer=observer)
    assert all(np.isfinite(s).all() and (s > 0).all() for s in scales(found.model))
    result = Session(found.model, threads=1).run(feeds)["y"]
    np.testing.assert_allclose(result, Session(model, threads=1).run(feeds)["y"], atol=0.1)


def test_weights_of_zero_stay_zero() -> None:
    model = parse_model(SMALL)
    for node in list(model.graph.nodes):
        if node.op in ("Conv", "Gemm"):
            for index in (1, 2):
                old = node.constant(index)
                assert old is not None
                model.graph.set_constant(node, index, np.zeros_like(old))
    found = quantized(model)
    assert not Session(found.model, threads=1).run(noise(model))["y"].any()


def test_custom_operators_stay_and_what_is_around_them_is_quantized() -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]> '
        "net (float[N,4,8,8] x) => (float[N,4,8,8] y) <float[4,4,3,3] a, float[4,4,3,3] b> "
        "{ h = Conv<pads=[1,1,1,1]>(x, a) g = com.microsoft.Gelu(h) y = Conv<pads=[1,1,1,1]>(g, b) }"
    )
    model = filled(text)
    found = quantized(model, edges="integers")
    assert [n.op for n in found.model.graph.nodes if n.domain] == ["Gelu"]
    # Nobody knows the type of what such an operator makes, and what reads it is named.
    assert len(weight_scales(found.model)) + len(found.skips) == 2
    assert found.changed
    assert sqnr(model, found.model, noise(model)) > 20


def test_branches_keep_what_they_capture() -> None:
    model = filled(
        net(
            "(float[N,4,8,8] x) => (float[N,4,8,8] y)",
            "float[4,4,3,3] a, float zero = {0.0}",
            "h = Conv<pads=[1,1,1,1]>(x, a) m = ReduceMax<keepdims=0>(h) c = Greater(m, zero)"
            " y = If<then_branch = t () => (float[N,4,8,8] p) { p = Exp(h) },"
            " else_branch = e () => (float[N,4,8,8] q) { q = Neg(h) }>(c)",
        )
    )
    found = quantized(model, edges="integers")
    assert found.changed
    assert sqnr(model, found.model, noise(model)) > 20


def test_free_sizes_stay_free() -> None:
    text = net(
        "(float[N,3,H,W] x) => (float[N,4,H,W] y)",
        "float[4,3,3,3] a, float[4,4,3,3] b",
        "h = Conv<pads=[1,1,1,1]>(x, a) r = Relu(h) y = Conv<pads=[1,1,1,1]>(r, b)",
    )
    model = filled(text)
    feeds = {"x": np.random.default_rng(0).standard_normal((16, 3, 10, 12)).astype(np.float32)}
    found = quantized(model, feeds).model
    other = {"x": np.random.default_rng(1).standard_normal((5, 3, 7, 9)).astype(np.float32)}
    assert sqnr(model, found, other) > 20
    assert found.graph.inputs[0].shape == ("N", 3, "H", "W")


def test_what_a_target_does_not_take_is_refused_with_what_to_do() -> None:
    with pytest.raises(PreconditionError, match=r"leave out activations=uint16$"):
        quantized(filled(SMALL), target="tensorrt", activations="uint16")


def test_few_samples_choose_ranges_by_the_values_alone_and_it_is_said() -> None:
    model = filled(SMALL)
    few = quantized(model, noise(model, 16))
    assert any("fewer than the 24" in note for note in few.notes)
    plain = quantized(model, noise(model, 16), observer="mse")
    assert told_ranges(few) == told_ranges(plain)
    assert not any("fewer than" in note for note in quantized(model, noise(model, 24)).notes)


def test_a_weight_that_two_nodes_share_is_stored_for_each_and_it_is_said() -> None:
    text = net(
        "(float[N,6] x) => (float[N,6] y)", "float[6,6] a", "h = MatMul(x, a) r = Relu(h) y = MatMul(r, a)"
    )
    model = filled(text)
    first, second = (n for n in model.graph.nodes if n.op == "MatMul")
    weight = np.random.default_rng(0).standard_normal((6, 6)).astype(np.float32)
    model.graph.set_input(second, 1, model.graph.set_constant(first, 1, weight))
    result = quantized(model, edges="integers")
    assert any("weights that several nodes share (a" in note for note in result.notes)
    assert len(weight_scales(result.model)) == 2
    assert sqnr(model, result.model, noise(model, 16)) > 25
