"""Where channels show: behind activations, behind BatchNormalizations, and at what their readers read."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.analysis.channels import channel_groups
from onnxcomp.analysis.places import Place, Places, earlier_gamma
from onnxcomp.compiler.passbase import Context
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.passes.fold_batchnorm import FoldBatchnorm
from tests.support.text import net

STREAM = net(
    "(float[N,3,4,4] x) => (float[N,5,4,4] y)",
    "float[4,3,1,1] a, float[4,4,1,1] b, float[4,4,1,1] c, float[5,4,1,1] d, float[4] g, float[4] s, float[4] m, float[4] v",
    "h = Conv(x, a) n = BatchNormalization(h, g, s, m, v) r = Relu(n) i = Conv(r, b) k = Sigmoid(i) j = Conv(k, c)"
    " t = Add(r, j) y = Conv(t, d)",
)


def places(model: Model, producer: str) -> Places:
    groups = channel_groups(model)
    return Places(model, groups, next(g for g in groups if producer in g.producers))


def activation(model: Model, producer: str) -> str | None:
    place = places(model, producer).activation(producer)
    return None if place is None else place.value


def single(body: str, weights: str = "", out: str = "float[N,5,4,4] y") -> Model:
    """A net of a convolution `h` with 4 filters, `body`, and what reads the value `z`."""
    given = ", ".join(filter(None, ["float[4,3,1,1] a, float[5,4,1,1] d", weights]))
    return parse_model(net(f"(float[N,3,4,4] x) => ({out})", given, f"h = Conv(x, a) {body}"))


# --- activations -----------------------------------------------------------------------------------------------------
def test_the_nearest_activation_is_taken_behind_a_normalization_an_addition_or_none() -> None:
    model = parse_model(STREAM)
    assert activation(model, "h") == "r"
    assert activation(model, "i") == "k"
    assert activation(model, "j") is None, "the addition is read by a convolution"


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("z = MaxPool<kernel_shape=[1,1]>(h) r = Relu(z) y = Conv(r, d)", "r"),
        ("r = Relu(h) z = MaxPool<kernel_shape=[1,1]>(r) y = Conv(z, d)", "r"),
        ("s = Sigmoid(h) z = Mul(h, s) y = Conv(z, d)", "z"),
        ("s = Sigmoid(h) z = Mul(s, h) y = Conv(z, d)", "z"),
        ("z = HardSwish(h) y = Conv(z, d)", "z"),
        ("s = Abs(h) z = Sqrt(s) y = Conv(z, d)", None),
    ],
)
def test_an_activation_is_found_wherever_the_channels_still_are(body: str, wanted: str | None) -> None:
    assert activation(single(body), "h") == wanted


def test_an_activation_made_of_three_nodes_ends_where_it_is_multiplied_with_what_it_was_made_of() -> None:
    model = single(
        "p = Add(h, three) q = Clip(p, low, high) m = Mul(h, q) z = Div(m, high) y = Conv(z, d)",
        "float three = {3}, float low = {0}, float high = {6}",
    )
    assert activation(model, "h") == "m"


def test_a_gate_of_other_channels_is_an_activation_of_its_own() -> None:
    """Squeeze and excite: the gate multiplies the value of another producer."""
    model = single(
        "r = Relu(h) p = GlobalAveragePool(r) g = Conv(p, e) s = Sigmoid(g) z = Mul(r, s) y = Conv(z, d)",
        "float[4,4,1,1] e",
    )
    assert activation(model, "h") == "r"
    assert activation(model, "g") == "s"


def test_the_last_state_of_a_recurrent_node_is_followed_like_its_output() -> None:
    text = net(
        "(float[N,5,3] x) => (float[1,N,6] y)",
        "float[1,32,3] w, float[1,32,8] r, float[8,6] b",
        "t = Transpose<perm=[1,0,2]>(x) all, last = LSTM<hidden_size=8>(t, w, r) k = Relu(last) y = MatMul(k, b)",
    )
    place = places(parse_model(text), "all").activation("all")
    assert place is not None
    assert (place.value, place.axis, len(place.units)) == ("k", 2, 8)


def test_a_search_ends_at_activations_and_where_channels_are_contracted() -> None:
    model = single("t = Tanh(h) r = Relu(t) y = Conv(r, d)")
    assert activation(model, "h") == "t"
    model = single("i = Conv(h, e) r = Relu(i) y = Conv(r, d)", "float[4,4,1,1] e")
    assert activation(model, "h") is None


# --- positions -------------------------------------------------------------------------------------------------------
def test_positions_name_their_units_and_those_of_other_groups_none() -> None:
    model = parse_model(
        net(
            "(float[N,3,4,4] x) => (float[N,5] y)",
            "float[2,3,4,4] a, float[3,3,4,4] b, float[5,5] c",
            "h = Conv(x, a) i = Conv(x, b) j = Concat<axis=1>(h, i) r = Relu(j) f = Flatten(r) y = Gemm(f, c)",
        )
    )
    assert [g.units for g in channel_groups(model) if not g.blocked] == [2, 3]
    for producer, units in (("h", [0, 1, -1, -1, -1]), ("i", [-1, -1, 0, 1, 2])):
        place = places(model, producer).activation(producer)
        assert place is not None
        assert (place.value, place.axis, place.units.tolist()) == ("r", 1, units)


def test_behind_a_flatten_a_unit_has_several_positions() -> None:
    model = parse_model(
        net(
            "(float[N,3,1,2] x) => (float[N,5] y)",
            "float[3,3,1,1] a, float[6,5] b",
            "h = Conv(x, a) f = Flatten(h) y = Gemm(f, b)",
        )
    )
    place = places(model, "h").reads("y")
    assert isinstance(place, Place)
    assert (place.value, place.axis, place.units.tolist()) == ("f", 1, [0, 0, 1, 1, 2, 2])


def test_channels_of_a_matrix_product_lie_along_the_last_axis() -> None:
    model = parse_model(
        net(
            "(float[N,7,3] x) => (float[N,7,5] y)",
            "float[3,4] a, float[4,5] b",
            "h = MatMul(x, a) r = Relu(h) y = MatMul(r, b)",
        )
    )
    place = places(model, "h").activation("h")
    assert place is not None
    assert (place.axis, place.units.tolist()) == (2, [0, 1, 2, 3])


def test_values_without_channels_of_the_group_are_no_places() -> None:
    found = places(parse_model(STREAM), "i")
    assert found.of("x") is None
    assert found.of("r") is None
    assert found.of("nothing") is None
    place = found.output("i")
    assert place is not None and place.value == "i"


# --- BatchNormalization ----------------------------------------------------------------------------------------------
def test_the_scale_is_that_of_the_normalization_behind_the_producer() -> None:
    model = parse_model(STREAM, {"g": np.array([4, 3, 2, 1], np.float32)})
    found = places(model, "h").gamma("h")
    assert found is not None
    assert (found[0].tolist(), found[1].tolist()) == ([4, 3, 2, 1], [0, 1, 2, 3])
    assert places(model, "i").gamma("i") is None
    assert places(model, "j").gamma("j") is None


def test_a_normalization_behind_the_addition_is_found_but_none_behind_an_activation() -> None:
    weights = "float[4] g, float[4] s, float[4] m, float[4] v, float[4,4,1,1] e"
    model = single("t = Add(h, h) n = BatchNormalization(t, g, s, m, v) r = Relu(n) y = Conv(r, d)", weights)
    assert places(model, "h").gamma("h") is not None
    model = single("r = Relu(h) n = BatchNormalization(r, g, s, m, v) z = Relu(n) y = Conv(z, d)", weights)
    assert places(model, "h").gamma("h") is None


def test_a_scale_is_followed_through_the_fold_by_names() -> None:
    original = parse_model(STREAM, {"g": np.array([4, 3, 2, 1], np.float32)})
    folded = FoldBatchnorm().run(original.clone(), Context(original)).model
    assert not [n for n in folded.graph.nodes if n.op == "BatchNormalization"]
    assert places(folded, "h").gamma("h") is None
    found = earlier_gamma(original, folded, "h")
    assert found is not None and found.tolist() == [4, 3, 2, 1]
    assert earlier_gamma(original, folded, "i") is None
    folded.rename_node("h", "other")
    assert earlier_gamma(original, folded, "h") is None
    assert earlier_gamma(original, folded, "other") is found


def test_constants_may_stand_between_producer_and_normalization_and_nothing_else() -> None:
    weights = "float[4] g = {1,2,3,4}, float[4] s, float[4] m, float[4] v, float[1,4,1,1] k"
    tail = "n = BatchNormalization(t, g, s, m, v) r = Relu(n) y = Conv(r, d)"
    model = single(f"u = Mul(h, k) t = Add(u, k) {tail}", weights)
    found = earlier_gamma(model, model, "h")
    assert found is not None and found.tolist() == [1, 2, 3, 4]
    for between in ("t = Relu(h)", "t = Mul(h, h)"):
        model = single(f"{between} {tail}", weights)
        assert earlier_gamma(model, model, "h") is None
