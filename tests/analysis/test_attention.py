"""Attention in the ways in which it is written: heads and their channels go, equal to the masked reference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from onnxcomp.analysis.channels import channel_groups, default_shapes
from onnxcomp.analysis.labels import HEADS
from onnxcomp.ir.parse import parse_model
from onnxcomp.testing import check_cut
from tests.support.attention_graphs import AttentionPlan, attention, attention_plans
from tests.support.channels import free, hold, left, stays, stored, units
from tests.support.text import net

PLAIN = AttentionPlan(heads=3, keys=3, width=4, depth=5)


def with_extras(*extras: str, plan: AttentionPlan = PLAIN) -> AttentionPlan:
    """A plan with these extras."""
    return replace(plan, extras=frozenset(extras))


# --- what goes together ------------------------------------------------------------------------------------------------
def test_positions_of_queries_and_keys_go_together_and_those_of_values_with_the_output_projection() -> None:
    cut = hold(attention(PLAIN))
    assert free(cut.groups) == {"stem": 6, "q0": 4, "q0:heads": 3, "v0": 5, "out": 6}
    assert cut.groups["q0"].producers == ("q0", "k0")
    assert cut.groups["q0"].consumers == ()
    assert cut.groups["v0"].producers == ("v0",)
    assert cut.groups["v0"].consumers == ("out",)
    assert units(cut.groups["q0"], "q0.1", 1) == [0, 1, 2, 3] * 3
    assert units(cut.groups["v0"], "out.1", 0) == [0, 1, 2, 3, 4] * 3


def test_a_head_goes_from_all_three_projections_and_the_output() -> None:
    cut = hold(attention(PLAIN))
    heads = cut.groups["q0:heads"]
    assert heads.view == HEADS
    assert heads.producers == ("q0", "k0", "v0")
    assert heads.consumers == ("out",)
    assert units(heads, "k0.1", 1) == np.repeat([0, 1, 2], 4).tolist()
    assert units(heads, "out.1", 0) == np.repeat([0, 1, 2], 5).tolist()


def test_heads_and_positions_can_go_at_once() -> None:
    model = attention(PLAIN)
    keep = {
        "q0": np.array([True, False, True, True]),
        "v0": np.array([False, True, True, False, True]),
        "q0:heads": np.array([True, False, True]),
    }
    cut = check_cut(model, keep)
    assert stored(cut, "q0.1") == (6, 2 * 3)
    assert stored(cut, "v0.1") == (6, 2 * 3)
    assert stored(cut, "out.1") == (2 * 3, 6)
    kept = np.ix_(range(6), [0, 2, 3, 8, 10, 11])
    np.testing.assert_array_equal(
        cut.pruned.graph.constants["q0.1"].values, model.graph.constants["q0.1"].values[kept]
    )


def test_the_scale_stays_as_it_is_when_positions_go() -> None:
    cut = check_cut(attention(with_extras("scale")), {"q0": np.array([True, False, False, True])})
    assert cut.pruned.graph.constants["scaled.1"].values == np.float32(0.5)


def test_a_scale_that_is_computed_from_the_size_of_a_head_stays_as_it_was() -> None:
    text = net(
        "(float[N,5,8] x) => (float[N,5,8] y)",
        "float[8,8] a, float[8,8] b, float[8,8] o, float one = {1.0}, int64[4] heads = {0,-1,2,4}, int64[3] back = {0,0,8},"
        " int64[1] last = {-1}, int64[1] end = {9223372036854775807}",
        "q0 = MatMul(x, a) k0 = MatMul(x, b) q1 = Reshape(q0, heads) k1 = Reshape(k0, heads)"
        " q = Transpose<perm=[0,2,1,3]>(q1) k = Transpose<perm=[0,2,3,1]>(k1) v = Transpose<perm=[0,2,1,3]>(k1)"
        " sh = Shape(q) d = Slice(sh, last, end) f = Cast<to=1>(d) rt = Sqrt(f) scale = Div(one, rt) qs = Mul(q, scale)"
        " s = MatMul(qs, k) u = Softmax(s) c = MatMul(u, v) t = Transpose<perm=[0,2,1,3]>(c) e = Reshape(t, back)"
        " y = MatMul(e, o)",
    )
    cut = hold(text)
    assert free(cut.groups) == {"q0": 4, "q0:heads": 2}
    assert cut.pruned.graph.constants["f.0"].values.tolist() == [4]


def test_a_product_fused_by_reshape_loses_the_same_positions_of_queries_keys_and_values() -> None:
    cut = hold(attention(AttentionPlan(heads=2, form="reshape", extras=frozenset({"bias"}))))
    assert free(cut.groups) == {"stem": 6, "qkv.product": 4, "qkv.product:heads": 2, "out": 6}
    assert units(cut.groups["qkv.product"], "qkv.0", 0) == [0, 1, 2, 3] * 6
    assert units(cut.groups["qkv.product:heads"], "qkv.product.1", 1) == [0, 0, 0, 0, 1, 1, 1, 1] * 3
    heads, width = left(cut, "qkv.product:heads"), left(cut, "qkv.product")
    assert cut.pruned.graph.constants["wide.1"].values.tolist() == [0, 0, 3, heads, width]


def test_a_product_fused_by_split_is_cut_unevenly() -> None:
    cut = hold(attention(replace(PLAIN, form="split")))
    assert free(cut.groups) == {"stem": 6, "qkv": 4 + 5, "qkv:heads": 3, "out": 6}
    model = attention(replace(PLAIN, form="split"))
    group = channel_groups(model)["qkv"]
    values = units(group, "out.1", 0)[:5]
    keep = {"qkv": ~np.isin(np.arange(9), values[:2])}
    assert check_cut(model, keep).pruned.graph.constants["parts.1"].values.tolist() == [12, 12, 9]


def test_a_vit_block_with_layer_norm_and_residual_keeps_its_stream_and_loses_heads() -> None:
    text = net(
        "(float[N,5,8] x) => (float[N,5,8] y)",
        "float[8,24] a, float[24] ab, float[8,8] o, float[8] ob, float[8,16] f, float[16] fb, float[16,8] g,"
        " float[8] n1, float[8] n1b, float[8] n2, float scale = {0.5}, int64[5] heads = {0,-1,3,2,4}, int64[3] back = {0,0,8},"
        " int64 zero = {0}, int64 one = {1}, int64 two = {2}",
        "l = LayerNormalization(x, n1, n1b) p = MatMul(l, a) q0 = Add(p, ab) r = Reshape(q0, heads)"
        " t = Transpose<perm=[2,0,3,1,4]>(r) q = Gather(t, zero) k = Gather(t, one) v = Gather(t, two)"
        " kt = Transpose<perm=[0,1,3,2]>(k) s = MatMul(q, kt) ss = Mul(s, scale) w = Softmax(ss) c = MatMul(w, v)"
        " d = Transpose<perm=[0,2,1,3]>(c) e = Reshape(d, back) i = MatMul(e, o) ib = Add(i, ob) j = Add(ib, x)"
        " m = LayerNormalization(j, n2) h = MatMul(m, f) hb = Add(h, fb) u = Gelu(hb) y0 = MatMul(u, g) y = Add(y0, j)",
        20,
    )
    cut = hold(text)
    assert free(cut.groups) == {"p": 4, "p:heads": 2, "h": 16}
    assert "graph input" in stays(text)["i"]


# --- grouped queries -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("repeat", ["expand", "tile", "gather", "concat", "broadcast"])
@pytest.mark.parametrize("form", ["separate", "split"])
def test_heads_that_share_keys_and_values_go_with_them(repeat: str, form: str) -> None:
    cut = hold(attention(AttentionPlan(4, 2, 3, 5, form, repeat, frozenset({"scale", "mask"}))))
    heads = next(g for g in cut.groups if g.view == HEADS)
    assert (heads.units, heads.blocked) == (2, None)
    flat = [g for g in cut.groups if g.view != HEADS and set(g.producers) & {"qkv", "q0", "v0"}]
    assert sum(g.units for g in flat) == 3 + 5
    assert not any(g.blocked for g in flat)
    assert units(heads, "out.1", 0) == np.repeat([0, 1], 10).tolist()


def test_heads_that_all_read_one_set_of_keys_go_without_it() -> None:
    cut = hold(attention(AttentionPlan(4, 1, 3, 5, "separate", "broadcast")))
    heads = cut.groups["q0:heads"]
    assert (heads.units, heads.blocked) == (4, None)
    assert heads.producers == ("q0",)
    kept = left(cut, "q0:heads")
    assert stored(cut, "q0.1") == (left(cut, "stem"), kept * left(cut, "q0"))
    assert stored(cut, "k0.1") == (left(cut, "stem"), left(cut, "q0"))


def test_one_set_of_keys_that_is_copied_for_all_heads_holds_the_heads_and_not_the_positions() -> None:
    model = attention(AttentionPlan(4, 1, 3, 5, "separate", "expand"))
    cut = hold(model)
    assert free(cut.groups).keys() >= {"q0", "v0"}
    assert "multiplies it with a value that is the same for all of them" in str(
        cut.groups["q0:heads"].blocked
    )


# --- what stands in between ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("form", ["separate", "split", "reshape", "einsum"])
@pytest.mark.parametrize(
    "extra", ["scale", "bias", "mask", "fill", "head-bias", "rotary", "residual", "gate"]
)
def test_heads_and_positions_go_whatever_stands_in_between(extra: str, form: str) -> None:
    plan = AttentionPlan(3, 3, 4, 4, form, extras=frozenset({extra}))
    cut = hold(attention(plan), 2)
    assert any(g.view == HEADS and not g.blocked for g in cut.groups)
    makers = {"separate": {"q0", "k0"}, "einsum": {"q", "k"}}.get(form, {"qkv"})
    made = [
        {name.partition(".")[0] for name in g.producers}
        for g in cut.groups
        if g.view != HEADS and not g.blocked
    ]
    assert makers in made


def test_rotary_tables_are_cut_with_the_positions_and_halves_stay_apart() -> None:
    model = attention(with_extras("rotary"))
    cut = check_cut(model, {"q0": np.array([False, True])})
    assert units(cut.groups["q0"], "q0.1", 1) == [0, 1, 0, 1] * 3
    assert stored(cut, "q.cos.1") == (5, 2)
    heads = check_cut(model, {"q0:heads": np.array([False, True, True])})
    assert stored(heads, "q.cos.1") == (5, 4), "every head reads the whole table"


def test_a_bias_of_every_head_goes_with_its_head() -> None:
    cut = check_cut(attention(with_extras("head-bias")), {"q0:heads": np.array([True, False, True])})
    assert stored(cut, "biased.1") == (1, 2, 5, 5)


def test_normalised_queries_keep_their_positions_and_lose_heads() -> None:
    model = attention(with_extras("query-norm"))
    assert "LayerNormalization 'qnorm' normalises over the channels" in stays(model)["q0"]
    assert free(hold(model).groups).keys() >= {"q0:heads", "v0"}


def test_a_softmax_over_the_heads_holds_them_and_one_over_tokens_does_not() -> None:
    body = (
        "q0 = MatMul(x, a) k0 = MatMul(x, b) q1 = Reshape(q0, heads) k1 = Reshape(k0, heads)"
        " q = Transpose<perm=[0,2,1,3]>(q1) k = Transpose<perm=[0,2,3,1]>(k1) s = MatMul(q, k)"
        " [soft] w = {} c = MatMul(w, q) d = Transpose<perm=[0,2,1,3]>(c) e = Reshape(d, back) y = MatMul(e, o)"
    )
    weights = "float[8,8] a, float[8,8] b, float[8,4] o, int64[4] heads = {0,0,2,4}, int64[3] back = {0,0,8}"
    signature = "(float[N,5,8] x) => (float[N,5,4] y)"
    for op in ("Softmax<axis=1>(s)", "LogSoftmax<axis=1>(s)"):
        reasons = stays(net(signature, weights, body.format(op)))
        assert reasons["q0:heads"] == f"{op.split('<')[0]} 'soft' mixes the channels"
    assert free(hold(net(signature, weights, body.format("Softmax<axis=-2>(s)"))).groups) == {
        "q0": 4,
        "q0:heads": 2,
    }


def test_weights_that_mix_heads_read_them_like_channels() -> None:
    text = net(
        "(float[N,5,8] x) => (float[N,5,4] y)",
        "float[8,8] a, float[8,8] b, float[8,12] v, float[2,3] mix, float[12,4] o, int64[4] heads = {0,0,2,4},"
        " int64[4] more = {0,0,3,4}, int64[3] back = {0,0,12}",
        "q0 = MatMul(x, a) k0 = MatMul(x, b) v0 = MatMul(x, v) q1 = Reshape(q0, heads) k1 = Reshape(k0, heads)"
        " v1 = Reshape(v0, more) q = Transpose<perm=[0,2,1,3]>(q1) k = Transpose<perm=[0,2,3,1]>(k1)"
        " w = Transpose<perm=[0,2,1,3]>(v1) s = MatMul(q, k) st = Transpose<perm=[0,2,3,1]>(s) m = MatMul(st, mix)"
        " mt = Transpose<perm=[0,3,1,2]>(m) u = Softmax(mt) c = MatMul(u, w) d = Transpose<perm=[0,2,1,3]>(c)"
        " e = Reshape(d, back) y = MatMul(e, o)",
    )
    cut = hold(text)
    assert cut.groups["q0:heads"].consumers == ("m",)
    assert set(cut.groups["v0:heads"].producers) == {"v0", "m"}
    assert (cut.groups["q0:heads"].units, cut.groups["v0:heads"].units) == (2, 3)


# --- what must stay --------------------------------------------------------------------------------------------------------
def test_keys_that_are_fed_hold_the_queries() -> None:
    text = net(
        "(float[N,5,8] x, float[N,2,7,4] past) => (float[N,2,5,7] y)",
        "float[8,8] a, int64[4] heads = {0,0,2,4}",
        "q0 = MatMul(x, a) q1 = Reshape(q0, heads) q = Transpose<perm=[0,2,1,3]>(q1)"
        " k = Transpose<perm=[0,1,3,2]>(past) s = MatMul(q, k) y = Softmax(s)",
    )
    assert stays(text) == {"q0": "it meets a graph input", "q0:heads": "it meets a graph input"}


def test_scores_that_are_a_graph_output_hold_the_heads_and_not_the_positions() -> None:
    model = attention(PLAIN)
    scores = next(n for n in model.graph.nodes if n.name == "weights").output
    scores.dtype, scores.shape = np.dtype(np.float32), ("N", 3, 5, 5)
    model.graph.outputs.append(scores)
    cut = hold(model)
    assert cut.groups["q0:heads"].blocked == "it reaches the graph output 'weights'"
    assert free(cut.groups).keys() >= {"q0", "v0"}


def test_a_value_multiplied_with_itself_holds_its_channels_on_both_axes() -> None:
    text = net(
        "(float[N,5,8] x) => (float[N,3] y)",
        "float[8,6] a, float[36,3] o, int64[2] flat = {0,36}",
        "h = MatMul(x, a) t = Transpose<perm=[0,2,1]>(h) g = MatMul(t, h) f = Reshape(g, flat) y = MatMul(f, o)",
    )
    assert stays(text)["h"] == "MatMul 'g' reads channels that lie along another axis"


def test_an_attention_operator_blocks_by_its_name() -> None:
    text = net(
        "(float[N,2,5,4] x) => (float[N,2,5,4] y)",
        "float[4,4] a, float[4,4] o",
        "h = MatMul(x, a) c = Attention(h, h, h) y = MatMul(c, o)",
        23,
    )
    assert stays(text)["h"].startswith("it passes through Attention 'c'")


@pytest.mark.parametrize("op", ["Attention", "MultiHeadAttention"])
def test_a_fused_attention_of_another_domain_blocks_by_its_name(op: str) -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]> net (float[N,5,4] x) => (float[N,5,4] y)'
        " <float[4,12] a, float[4,4] o, float[12] b>"
        f" {{ h = MatMul(x, a) c = com.microsoft.{op}<num_heads=2>(h, a, b) y = MatMul(c, o) }}"
    )
    model = parse_model(text)
    groups = channel_groups(model, {**default_shapes(model), "c": (1, 5, 4)})
    assert str(groups["h"].blocked).startswith(f"it passes through com.microsoft.{op} 'c'")


# --- products outside attention ------------------------------------------------------------------------------------------
def test_an_mlp_over_tokens_loses_its_neurons() -> None:
    text = net(
        "(float[N,5,8] x) => (float[N,5,8] y)",
        "float[8,6] a, float[5,7] f, float[7,5] g, float[6,8] o",
        "h = MatMul(x, a) t = Transpose<perm=[0,2,1]>(h) u = MatMul(t, f) r = Relu(u) v = MatMul(r, g)"
        " s = Add(v, t) w = Transpose<perm=[0,2,1]>(s) y = MatMul(w, o)",
    )
    assert free(hold(text).groups) == {"h:heads": 6, "u": 7}


def test_weights_of_every_head_are_cut_along_heads_and_positions() -> None:
    text = net(
        "(float[N,5,8] x) => (float[N,5,4] y)",
        "float[8,12] a, float[3,4,2] w, float[6,4] o, int64[4] heads = {0,0,3,4}, int64[3] back = {0,0,6}",
        "h = MatMul(x, a) r = Reshape(h, heads) t = Transpose<perm=[0,2,1,3]>(r) u = MatMul(t, w)"
        " v = Transpose<perm=[0,2,1,3]>(u) e = Reshape(v, back) y = MatMul(e, o)",
    )
    cut = hold(text)
    assert free(cut.groups) == {"h": 4, "h:heads": 3, "u": 2}
    assert stored(cut, "w") == (left(cut, "h:heads"), left(cut, "h"), left(cut, "u"))


def test_a_gate_over_channels_in_a_product_ties_them() -> None:
    """Channels as rows of both operands: each is multiplied with its own."""
    text = net(
        "(float[N,3,8,8] x) => (float[N,4,8,8] y)",
        "float[6,3,1,1] a, float[6,3,1,1] b, float[4,6,1,1] c",
        "h = Conv(x, a) i = Conv(x, b) m = MatMul(h, i) y = Conv(m, c)",
    )
    cut = hold(text)
    assert free(cut.groups) == {"h": 6}
    assert cut.groups["h"].producers == ("h", "i")


# --- many ----------------------------------------------------------------------------------------------------------------
def test_random_plans_are_of_all_kinds_and_few_hold_everything() -> None:
    cuts = [
        channel_groups(attention(replace(PLAIN, form=form, depth=4)))
        for form in ("separate", "split", "einsum")
    ]
    assert all({g.view for g in groups if not g.blocked} == {0, 1} for groups in cuts)


QUIET = settings(derandomize=True, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
"""As many examples as the profile says: see tests/conftest.py."""


def hold_random(plan: AttentionPlan, seed: int) -> None:
    """Cut the block of `plan` at random; reject what proves nothing."""
    model = attention(plan)
    assume(any(not group.blocked for group in channel_groups(model)))
    try:
        hold(model, 1 + seed % 2, batches=(2,), regimes=("normal",))
    except AssertionError as problem:
        assume("the masks change no output" not in str(problem))
        raise


@given(attention_plans(), st.integers(0, 1))
@QUIET
def test_a_random_block_of_attention_cut_at_random_equals_its_masked_self(
    plan: AttentionPlan, seed: int
) -> None:
    hold_random(plan, seed)


@pytest.mark.slow
@given(attention_plans(), st.integers(0, 1))
@QUIET
def test_many_random_blocks_of_attention_cut_at_random_equal_their_masked_selves(
    plan: AttentionPlan, seed: int
) -> None:
    hold_random(plan, seed)
