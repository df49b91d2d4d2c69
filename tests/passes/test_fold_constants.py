from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.compiler.passbase import Context
from onnxcomp.errors import UsageError
from onnxcomp.ir.parse import parse_model
from onnxcomp.passes.fold_constants import FoldConstants
from onnxcomp.runtime.session import Session
from onnxcomp.testing import check_pass
from tests.support.text import net


# --- what may not change ---------------------------------------------------------------------------------------------
def test_a_graph_without_constant_nodes_stays() -> None:
    text = net("(float[N,3] x) => (float[N,2] y)", "float[3,2] w", "y = MatMul(x, w)")
    check_pass(FoldConstants(), text, changed=False, skips=[])


def test_nothing_is_evaluated_through_a_dequantize_linear() -> None:
    text = net(
        "(float[N,2] x) => (float[N,2] y)",
        "int8[2,2] q = {1, 2, 3, 4}, float s = {0.5}, int8 z = {0}",
        "w = DequantizeLinear(q, s, z)  t = Transpose<perm=[1,0]>(w)  y = MatMul(x, t)",
    )
    check_pass(
        FoldConstants(), text, changed=False, skips=["DequantizeLinear is how a quantized model stores"]
    )


def test_a_quantize_linear_of_constants_stays_with_its_partner() -> None:
    text = net(
        "(float[N,2] x) => (float[N,2] y)",
        "float[2,2] v = {1, 2, 3, 4}, float s = {0.5}, int8 z = {0}",
        "q = QuantizeLinear(v, s, z)  w = DequantizeLinear(q, s, z)  y = MatMul(x, w)",
    )
    check_pass(FoldConstants(), text, changed=False, skips=["QuantizeLinear is how a quantized model stores"])


@pytest.mark.parametrize(
    "body",
    [
        "r = RandomNormal<shape=[1,2]>()",
        "r = RandomUniformLike<dtype=1>(c)",
        "r = Bernoulli(half)",
    ],
)
def test_what_differs_from_run_to_run_is_never_stored(body: str) -> None:
    text = net(
        "(float[N,2] x) => (float[N,2] y)",
        "float[1,2] c = {1, 2}, float[1,2] half = {0.5, 0.5}, float zero = {0}",
        f"{body}  n = Mul(r, zero)  y = Add(x, n)",
    )
    check_pass(FoldConstants(), text, changed=False, skips=["may give another result at every run"])


def test_a_dropout_in_training_is_never_stored() -> None:
    text = net(
        "(float[N,2] x) => (float[N,2] y)",
        "float[1,2] c = {1, 2}, float ratio = {0.5}, bool training = {1}, float zero = {0}",
        "r = Dropout(c, ratio, training)  n = Mul(r, zero)  y = Add(x, n)",
    )
    check_pass(FoldConstants(), text, changed=False, skips=["Dropout may give another result"])


def test_a_result_that_is_a_graph_output_stays_computed() -> None:
    text = net("(float[N] x) => (float[N] y, float[2] c)", "float[2] w = {1, 2}", "y = Relu(x)  c = Neg(w)")
    check_pass(FoldConstants(), text, changed=False, skips=["c: its result is a graph output"])


def test_an_if_on_a_constant_keeps_its_subgraphs() -> None:
    text = net(
        "(float[N] x) => (float[N] y)",
        "bool cond = {1}, float[1] w = {2}",
        """b = If(cond) <
             then_branch = yes () => (float[1] p) { p = Identity(w) },
             else_branch = no () => (float[1] q) { q = Neg(w) }>
           y = Mul(x, b)""",
    )
    check_pass(FoldConstants(), text, changed=False, skips=["the subgraphs of If are left untouched"])


def test_a_custom_operator_on_constants_stays() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "my" : 1]> net (float[N] x) => (float[N] y)
        <float[1] w = {2}> { c = my.Twice(w)  y = Mul(x, c) }"""
    model = parse_model(text)
    result = FoldConstants().run(model.clone(), Context(original=model))
    assert not result.changed
    assert "custom operator" in result.skips[0].reason


def test_an_excluded_node_stays_and_so_does_what_depends_on_it() -> None:
    text = net(
        "(float[N] x) => (float[N] y)",
        "float[1] w = {2}",
        "[first] a = Neg(w)  [second] b = Exp(a)  y = Mul(x, b)",
    )
    context = Context(original=parse_model(text), excluded=frozenset({"first"}))
    check_pass(FoldConstants(), text, changed=False, skips=["first: excluded by the user"], context=context)


def test_a_dead_node_is_left_to_the_pass_that_removes_it() -> None:
    text = net("(float[N] x) => (float[N] y)", "float[1] w = {2}", "a = Neg(w)  y = Relu(x)")
    check_pass(FoldConstants(), text, changed=False, skips=["a: nothing reads its result; remove-dead"])


def test_the_size_of_a_symbolic_axis_is_not_stored() -> None:
    text = net(
        "(float[N,4] x) => (float[a,b] y)",
        "int64[1] zero = {0}, int64[1] rest = {-1}",
        "s = Shape(x)  n = Gather(s, zero)  t = Concat<axis=0>(n, rest)  y = Reshape(x, t)",
    )
    check_pass(FoldConstants(), text, changed=False, skips=[])


# --- evaluation ------------------------------------------------------------------------------------------------------
def test_a_chain_of_constants_becomes_one_constant_of_the_same_name() -> None:
    text = net(
        "(float[N,2] x) => (float[N,3] y)",
        "float[3,2] w, float two = {2}",
        "t = Transpose<perm=[1,0]>(w)  d = Mul(t, two)  y = MatMul(x, d)",
    )
    result = check_pass(FoldConstants(), text, changed=True, removed=["Transpose", "Mul"], skips=[])
    constants = result.model.graph.constants
    assert list(constants) == ["d"], "what the nodes read has no reader left"
    assert np.array_equal(constants["d"].values, 2 * parse_model(text).graph.constants["w"].values.T)
    assert result.model.aliases == {"t": "", "d": ""}


def test_all_islands_are_evaluated_in_one_session(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions: list[Session] = []

    def counted(source: bytes, *, optimize: bool, threads: int) -> Session:
        sessions.append(Session(source, optimize=optimize, threads=threads))
        return sessions[-1]

    monkeypatch.setattr("onnxcomp.passes.fold_constants.Session", counted)
    text = net(
        "(float[N,2] x) => (float[N,2] y)",
        "float[1,2] v, float[2] w",
        "a = Neg(v)  b = Exp(w)  c = Add(x, a)  y = Mul(c, b)",
    )
    model = parse_model(text)
    result = FoldConstants().run(model.clone(), Context(original=model))
    assert [n.op for n in result.model.graph.nodes] == ["Add", "Mul"]
    assert len(sessions) == 1


def test_an_operator_without_a_kernel_stops_nothing_but_itself() -> None:
    # onnxruntime (1.32 and before) has no CPU kernel for Sinh of double.
    text = net(
        "(float[N] x) => (float[N] y)",
        "double[1] h = {2}, float[1] w = {3}",
        """a = Sinh(h)  c = Cast<to=1>(a)  b = Neg(w)  m = Mul(x, c)  y = Mul(m, b)""",
    )
    model = parse_model(text)
    result = FoldConstants().run(model.clone(), Context(original=model))
    assert [n.op for n in result.model.graph.nodes] == ["Sinh", "Cast", "Mul", "Mul"]
    assert result.model.graph.constants["b"].values == -3
    assert [s.where for s in result.skips] == ["c"]
    assert "onnxruntime cannot evaluate it" in result.skips[0].reason


def test_a_value_that_a_subgraph_captures_keeps_its_name_and_its_meaning() -> None:
    text = net(
        "(float[2] x, bool cond) => (float[2] y)",
        "float[2] w = {1, 2}",
        """b = Neg(w)
           y = If(cond) <
             then_branch = yes () => (float[2] p) { p = Mul(x, b) },
             else_branch = no () => (float[2] q) { q = Add(x, b) }>""",
    )
    result = check_pass(FoldConstants(), text, changed=True, removed=["Neg"])
    assert np.array_equal(result.model.graph.constants["b"].values, np.array([-1, -2], np.float32))


def test_a_constant_that_others_read_stays_beside_the_result() -> None:
    text = net(
        "(float[N,2] x) => (float[N,2] y)",
        "float[2,2] w",
        "t = Transpose<perm=[1,0]>(w)  h = MatMul(x, w)  y = MatMul(h, t)",
    )
    result = check_pass(FoldConstants(), text, changed=True, removed=["Transpose"])
    assert set(result.model.graph.constants) == {"w", "t"}


def test_string_constants_are_evaluated_too() -> None:
    text = net(
        "(int64[N] x) => (bool[a] y, int64[N] z)",
        'string[2] s = {"one", "two"}, int64[1] i = {0}, string[1] t = {"one"}',
        "g = Gather(s, i)  e = Identity(g)  y = Equal(e, t)  z = Neg(x)",
        opset=19,
    )
    result = check_pass(FoldConstants(), text, changed=True, removed=["Gather", "Identity"])
    assert list(result.model.graph.constants["e"].values) == [b"one"]


# --- sizes -----------------------------------------------------------------------------------------------------------
def test_the_shape_of_a_static_value_is_a_constant() -> None:
    text = net(
        "(float[2,3] x, float[6] v) => (float[a,b] y)",
        "",
        "s = Shape(x)  y = Reshape(v, s)",
    )
    result = check_pass(FoldConstants(), text, changed=True, removed=["Shape"], skips=[])
    assert result.model.graph.constants["s"].values.tolist() == [2, 3]


def test_known_axes_of_a_partly_symbolic_shape_are_constants() -> None:
    text = net(
        "(float[N,3,8,6] x) => (float[a,b,c,d] y)",
        "int64[1] first = {2}, int64[1] last = {3}, int64[1] zero = {0}, int64[2] twice = {2, 2}, float[4] ones = {1, 1, 1, 1}",
        """s = Shape(x)
           w = Shape<start=-1>(x)
           h = Slice(s, first, last, zero)
           hw = Concat<axis=0>(h, w)
           big = Mul(hw, twice)
           nc = Shape<start=0, end=2>(x)
           sizes = Concat<axis=0>(nc, big)
           y = Resize<mode="nearest">(x, , , sizes)""",
    )
    result = check_pass(
        FoldConstants(), text, changed=True, removed=["Shape", "Shape", "Slice", "Concat", "Mul"]
    )
    assert result.model.graph.constants["big"].values.tolist() == [16, 12]


def test_sizes_are_followed_through_squeeze_cast_and_gather() -> None:
    text = net(
        "(float[N,5] x) => (float[N,5] y)",
        "int64 one = {1}, int64[1] zero = {0}",
        """s = Shape(x)  c = Gather(s, one)  u = Unsqueeze(c, zero)  q = Squeeze(u, zero)
           i = Cast<to=7>(q)  f = Cast<to=1>(i)  y = Div(x, f)""",
    )
    result = check_pass(
        FoldConstants(),
        text,
        changed=True,
        removed=["Shape", "Gather", "Unsqueeze", "Squeeze", "Cast", "Cast"],
    )
    assert result.model.graph.constants["f"].values == 5
    assert [c.where for c in result.changes] == ["i", "f"], "what lies between is not worth a word"


def test_what_only_told_a_shape_goes_with_the_question() -> None:
    text = net(
        "(float[2,3] x, float[6] v) => (float[a,b] y)",
        "",
        "r = Relu(x)  s = Shape(r)  y = Reshape(v, s)",
    )
    check_pass(FoldConstants(), text, changed=True, removed=["Relu", "Shape"])


def test_an_excluded_shape_is_not_stored() -> None:
    text = net("(float[2,3] x, float[6] v) => (float[a,b] y)", "", "[ask] s = Shape(x)  y = Reshape(v, s)")
    context = Context(original=parse_model(text), excluded=frozenset({"ask"}))
    check_pass(FoldConstants(), text, changed=False, context=context)


# --- growth ----------------------------------------------------------------------------------------------------------
FILL = net(
    "(float[N] x) => (float[N] y)",
    "int64[1] n = {1000}",
    "f = ConstantOfShape(n)  s = ReduceSum<keepdims=0>(f)  y = Mul(x, s)",
)


def test_a_large_fill_that_ends_in_a_small_result_is_evaluated() -> None:
    result = check_pass(FoldConstants(), FILL, changed=True, removed=["ConstantOfShape", "ReduceSum"])
    assert result.model.weight_bytes == 4


def fills(*sizes: int) -> str:
    """The text of a model that adds fills of `sizes` elements to its input, one after the other."""
    weights = ", ".join(f"int64[1] n{i} = {{{size}}}" for i, size in enumerate(sizes))
    body = " ".join(
        f"f{i} = ConstantOfShape(n{i}) s{i} = Add(h{i}, f{i}) h{i + 1} = ReduceMax(s{i})"
        for i in range(len(sizes))
    )
    return net("(float[1] x) => (float[1] y)", weights, f"h0 = Neg(x) {body} y = Neg(h{len(sizes)})")


def test_results_that_fit_the_cap_together_are_stored() -> None:
    check_pass(
        "fold-constants{max-growth=8000}", fills(900, 900), changed=True, removed=["ConstantOfShape"] * 2
    )


def test_results_that_do_not_fit_together_stay_all_so_that_a_second_run_cannot_add_more() -> None:
    skips = ["f0: it is one of 2 results", "f1: it is one of 2 results"]
    check_pass("fold-constants{max-growth=4000}", fills(900, 900), changed=False, skips=skips)


def test_one_result_beyond_the_cap_does_not_keep_the_others_out() -> None:
    result = check_pass(
        "fold-constants{max-growth=4000}", fills(900, 900_000), changed=True, removed=["ConstantOfShape"]
    )
    assert "f0" in result.model.graph.constants
    assert "3,600,000 bytes" in result.skips[0].reason


def test_an_island_of_several_results_counts_them_all() -> None:
    text = net(
        "(float[1] x) => (float[1] y)",
        "int64[1] n = {900}, int64[1] m = {500}",
        """f = ConstantOfShape(n)  g = Neg(f)  a = Add(x, f)  b = Add(a, g)
           h = ConstantOfShape(m)  c = Add(x, h)  p = ReduceMax(b)  q = ReduceMax(c)  y = Add(p, q)""",
    )
    result = check_pass("fold-constants{max-growth=4000}", text, changed=True, removed=["ConstantOfShape"])
    assert "h" in result.model.graph.constants
    assert "storing its result would add 7,1" in result.skips[0].reason


def test_results_of_different_rounds_share_the_cap() -> None:
    # The size of g is known only after the nodes before it have been evaluated.
    text = net(
        "(float[1] x) => (float[1] y)",
        "int64[1] n = {900}, int64[1] one = {1}, int64[1] flat = {-1}",
        """f = ConstantOfShape(n)  a = Add(x, f)  b = ReduceMax(a)
           z = NonZero(one)  r = Reshape(z, flat)  s = Add(r, n)  g = ConstantOfShape(s)
           c = Add(b, g)  y = ReduceMax(c)""",
    )
    result = check_pass(
        "fold-constants{max-growth=4000}", text, changed=True, removed=["NonZero", "Reshape", "Add"]
    )
    assert [s.where for s in result.skips] == ["f", "g"]
    assert all("one of 2 results that would add 7," in s.reason for s in result.skips)
    check_pass(
        "fold-constants{max-growth=8000}",
        text,
        changed=True,
        removed=["NonZero", "Reshape", "Add", "ConstantOfShape", "ConstantOfShape"],
    )


def test_many_values_that_are_fine_one_by_one_do_not_fill_the_memory() -> None:
    fill = " ".join(f"f{i} = ConstantOfShape(n)" for i in range(100))
    text = net(
        "(float[1] x) => (float[1] y)",
        "int64[1] n = {250000}",
        f"{fill}  s = Sum({', '.join(f'f{i}' for i in range(100))})  m = ReduceMax(s)  y = Add(x, m)",
    )
    model = parse_model(text)
    result = FoldConstants().run(model.clone(), Context(original=model))
    assert not result.changed
    assert result.skips[0].reason.startswith("evaluating it takes 101,000,004 bytes")


def test_a_constant_that_a_subgraph_needs_too_does_not_make_room() -> None:
    text = net(
        "(float[2] x, bool cond) => (float[a] y)",
        "float[40,1] w",
        """t = Transpose(w)  f = Flatten<axis=0>(t)
           b = If(cond) < then_branch = yes () => (float[40,1] p) { p = Relu(w) },
                          else_branch = no () => (float[40,1] q) { q = Neg(w) }>
           h = MatMul(f, b)  r = Squeeze(h)  y = Add(x, r)""",
    )
    check_pass("fold-constants{max-growth=0}", text, changed=False)
    check_pass("fold-constants{max-growth=1000}", text, changed=True, removed=["Transpose", "Flatten"])


def test_a_cap_of_zero_lets_only_what_makes_the_file_no_larger() -> None:
    check_pass("fold-constants{max-growth=0}", fills(900), changed=False)
    check_pass("fold-constants{max-growth=0}", fills(1), changed=True, removed=["ConstantOfShape"])


@pytest.mark.parametrize(
    ("weights", "bomb"),
    [
        ("int64[2] n = {1000000000, 1000000000}", "f = ConstantOfShape(n)"),
        ("int64[3] n = {4611686018427387904, 4, 16}", "f = ConstantOfShape(n)"),
        ("float z = {0}, float n = {1e12}, float one = {1}", "f = Range(z, n, one)"),
        ("float[1] c = {1}, int64[1] n = {100000000000}", "f = Tile(c, n)"),
        ("float[1] c = {1}, int64[2] n = {1000000, 1000000}", "f = Expand(c, n)"),
    ],
)
def test_a_bomb_is_refused_before_anything_is_allocated(
    weights: str, bomb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*args: object, **kwargs: object) -> None:
        raise AssertionError("nothing may be evaluated")

    monkeypatch.setattr("onnxcomp.passes.fold_constants.Session", forbidden)
    text = net("(float x) => (float y)", weights, f"{bomb}  m = ReduceMax<keepdims=0>(f)  y = Add(x, m)")
    model = parse_model(text)
    result = FoldConstants().run(model.clone(), Context(original=model))
    assert not result.changed
    assert len(result.skips) == 1
    assert result.skips[0].where == "f"
    assert "bytes" in result.skips[0].reason or "size" in result.skips[0].reason


def test_many_small_fills_cannot_explode_a_file() -> None:
    text = fills(*[5000] * 100)
    result = check_pass(FoldConstants(), text, changed=False)
    assert len(result.skips) == 100
    assert "one of 100 results that would add 1,9" in result.skips[0].reason


def test_a_negative_cap_is_an_error_of_the_user() -> None:
    with pytest.raises(UsageError, match="max-growth=-1 is negative"):
        FoldConstants(max_growth=-1).check()
