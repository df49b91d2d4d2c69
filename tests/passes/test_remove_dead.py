from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.compiler.passbase import Context
from onnxcomp.ir.parse import parse_model
from onnxcomp.passes.remove_dead import RemoveDead
from onnxcomp.testing import check_pass
from tests.support.text import net

CLEAN = RemoveDead()
IMAGE = "(float[N,3,4,5] x) => (float[a,b,c,d] y)"
TABLE = "(float[N,3] x) => (float[a,b] y)"


def unchanged(text: str, *skips: str) -> None:
    """Assert that nothing goes from `text`, and what is said about it."""
    check_pass(CLEAN, text, changed=False, skips=skips)


# --- what may not change ---------------------------------------------------------------------------------------------
def test_a_graph_in_which_everything_is_needed_stays() -> None:
    unchanged(net(TABLE, "float[3,2] w", "h = MatMul(x, w)  y = Relu(h)"))


def test_an_unused_graph_input_stays() -> None:
    unchanged(net("(float[N,3] x, float[N] unused) => (float[N,3] y)", "", "y = Relu(x)"))


def test_an_identity_between_input_and_output_stays() -> None:
    unchanged(net(TABLE, "", "y = Identity(x)"), "y: its result bears a name that must stay")


def test_an_identity_that_gives_one_value_two_output_names_stays() -> None:
    text = net("(float[N,3] x) => (float[N,3] y, float[N,3] z)", "", "y = Relu(x)  z = Identity(y)")
    unchanged(text, "z: its result bears a name that must stay")


def test_an_identity_of_a_constant_that_is_an_output_stays() -> None:
    unchanged(
        net("(float[N] x) => (float[N] y, float[2] z)", "float[2] w", "y = Relu(x)  z = Identity(w)"), "z: "
    )


def test_a_dropout_in_training_stays() -> None:
    text = net(TABLE, "float r = {0.5}, bool t = {1}", "h = Dropout(x, r, t)  y = Relu(h)")
    model = parse_model(text)
    assert not CLEAN.run(model.clone(), Context(original=model)).changed


def test_a_dropout_whose_training_mode_is_not_known_stays() -> None:
    text = net(
        "(float[N,3] x, bool t) => (float[N,3] y)", "float r = {0}", "h = Dropout(x, r, t)  y = Relu(h)"
    )
    unchanged(text)


def test_a_dropout_whose_mask_is_read_stays() -> None:
    text = net("(float[N,3] x) => (float[N,3] y, bool[N,3] m)", "", "h, m = Dropout(x)  y = Relu(h)")
    unchanged(text)


@pytest.mark.parametrize(
    ("weights", "node"),
    [
        ("", "Transpose<perm=[0,1,3,2]>(x)"),
        ("", "Transpose(x)"),
        ("", "Cast<to=11>(x)"),
        ("int64[4] s = {0, 3, 5, 4}", "Reshape(x, s)"),
        ("int64[4] s = {-1, 3, 2, 10}", "Reshape(x, s)"),
        ("", "Flatten(x)"),
        ("int64[8] p = {0,0,1,0,0,0,0,0}", "Pad(x, p)"),
        ("int64[1] b = {1}, int64[1] e = {9}, int64[1] a = {2}", "Slice(x, b, e, a)"),
        ("int64[1] b = {0}, int64[1] e = {3}, int64[1] a = {2}", "Slice(x, b, e, a)"),
        ("int64[1] b = {-2}, int64[1] e = {9}, int64[1] a = {2}", "Slice(x, b, e, a)"),
        ("int64[1] b = {0}, int64[1] e = {9}, int64[1] a = {2}, int64[1] s = {2}", "Slice(x, b, e, a, s)"),
        ("int64[5] s = {1,1,1,1,1}", "Expand(x, s)"),
        ("int64[4] s = {1,1,2,1}", "Tile(x, s)"),
        ("float[1,1,1,1,1] one = {1}", "Mul(x, one)"),
        ("float[2] one = {1, 2}, float[5] k = {1,1,1,1,0}", "Mul(x, k)"),
        ("float zero = {0}", "Sub(zero, x)"),
        ("float one = {1}", "Div(one, x)"),
        ("float low = {-1}", "Clip(x, low)"),
    ],
)
def test_what_changes_something_stays(weights: str, node: str) -> None:
    signature = f"(float[N,3,4,5] x) => ({'double' if 'Cast' in node else 'float'}[a,b,c,d] y)"
    model = parse_model(net(signature, weights, f"h = {node}  y = Neg(h)"))
    result = CLEAN.run(model.clone(), Context(original=model))
    assert len(result.model.graph.nodes) == 2
    assert result.model.graph.nodes[0].op == node.split("(")[0].split("<")[0]


def test_a_broadcast_that_enlarges_stays() -> None:
    unchanged(
        net("(float[N,1] x) => (float[N,4] y)", "float[4] one = {1,1,1,1}", "h = Mul(x, one)  y = Relu(h)")
    )


def test_a_reshape_of_a_symbolic_axis_to_a_number_stays() -> None:
    text = net("(float[N,6] x) => (float[2,3] y)", "int64[2] s = {1, 6}", "h = Reshape(x, s)  y = Relu(h)")
    model = parse_model(text)
    assert not CLEAN.run(model.clone(), Context(original=model)).changed


def test_a_transpose_that_others_read_is_not_joined_with_the_next() -> None:
    text = net(
        "(float[N,3,4] x) => (float[a,b,c] y, float[d,e,f] z)",
        "",
        "h = Transpose<perm=[1,0,2]>(x)  y = Transpose<perm=[0,2,1]>(h)  z = Relu(h)",
    )
    unchanged(text)


def test_a_transpose_of_equal_sizes_stays() -> None:
    unchanged(net("(float[3,3] x) => (float[3,3] y)", "", "h = Transpose<perm=[1,0]>(x)  y = Relu(h)"))


def test_an_axis_that_comes_where_another_goes_stays() -> None:
    weights = "int64[1] a = {0}, int64[1] b = {2}"
    unchanged(net("(float[N,1] x) => (float[1,N] y)", weights, "h = Unsqueeze(x, a)  y = Squeeze(h, b)"))


def test_slices_of_the_same_axis_are_not_joined() -> None:
    weights = "int64[1] one = {1}, int64[1] three = {3}, int64[1] five = {5}"
    unchanged(
        net("(float[9] x) => (float[a] y)", weights, "h = Slice(x, one, five)  y = Slice(h, one, three)")
    )


def test_a_cast_that_loses_something_is_not_skipped() -> None:
    unchanged(net(TABLE, "", "h = Cast<to=7>(x)  y = Cast<to=1>(h)"))


def test_a_reshape_whose_zero_copies_an_axis_of_the_reshape_before_it_is_not_joined() -> None:
    weights = "int64[2] flat = {-1, 4}, int64[3] s = {0, 2, 2}"
    text = net("(float[N,M,4] x) => (float[a,b,c] y)", weights, "h = Reshape(x, flat)  y = Reshape(h, s)")
    unchanged(text)


@pytest.mark.parametrize(
    ("op", "first", "second"),
    [
        ("RandomNormalLike", "(x)", "(x)"),
        ("QuantizeLinear", "(x, s, z)", "(x, s, z)"),
        ("Softmax", "<axis=0>(x)", "<axis=1>(x)"),
        ("Sub", "(x, k)", "(k, x)"),
    ],
)
def test_nodes_that_may_differ_are_both_computed(op: str, first: str, second: str) -> None:
    kind = "int8" if op == "QuantizeLinear" else "float"
    text = net(
        f"(float[N,3] x) => ({kind}[N,3] y, {kind}[N,3] w)",
        "float s = {0.5}, int8 z = {0}, float k = {2}",
        f"y = {op}{first}  w = {op}{second}",
    )
    model = parse_model(text)
    result = CLEAN.run(model.clone(), Context(original=model))
    assert [n.op for n in result.model.graph.nodes] == [op, op]
    assert not result.skips


def test_two_outputs_that_compute_the_same_keep_their_names() -> None:
    text = net("(float[N] x) => (float[N] y, float[N] z)", "", "y = Relu(x)  z = Relu(x)")
    unchanged(text, "z: it computes what 'y' does, but both results bear names")


def test_constants_of_equal_numbers_but_other_type_or_shape_are_two() -> None:
    text = net(
        "(float[2] x, int64[2] i) => (float[1,2] y, int64[2] j)",
        "float[2] one = {3, 3}, float[1,2] two = {3, 3}, int64[2] three = {3, 3}",
        "h = Add(x, one)  y = Mul(h, two)  j = Add(i, three)",
    )
    unchanged(text)


def test_equal_nodes_with_subgraphs_are_both_kept() -> None:
    branches = """then_branch = yes () => (float[2] a) { a = Relu(x) },
                  else_branch = no () => (float[2] b) { b = Neg(x) }"""
    text = net(
        "(float[2] x, bool c) => (float[2] y)",
        "",
        f"p = If(c) <{branches}>  q = If(c) <{branches}>  y = Add(p, q)",
    )
    unchanged(text)


def test_custom_operators_are_never_joined_and_go_only_when_dead() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "my" : 1]> net (float[N] x) => (float[N] y)
        { p = my.Twice(x)  q = my.Twice(x)  r = my.Twice(p)  y = Add(p, q) }"""
    model = parse_model(text)
    result = CLEAN.run(model.clone(), Context(original=model))
    assert [n.name for n in result.model.graph.nodes] == ["p", "q", "y"]


@pytest.mark.parametrize(
    "body",
    [
        "[keep] h = Identity(x)  y = Relu(h)",
        "[keep] h = Exp(x)  y = Relu(x)",
        "[keep] h = Exp(x)  g = Exp(x)  y = Add(h, g)",
        "h = Exp(x)  [keep] g = Exp(x)  y = Add(h, g)",
        "[keep] h = Transpose<perm=[1,0]>(x)  y = Transpose<perm=[1,0]>(h)",
        "h = Transpose<perm=[1,0]>(x)  [keep] y = Transpose<perm=[1,0]>(h)",
    ],
)
def test_excluded_nodes_stay(body: str) -> None:
    text = net(TABLE, "", body)
    context = Context(original=parse_model(text), excluded=frozenset({"keep"}))
    check_pass(CLEAN, text, changed=False, skips=["excluded by the user"], context=context)


def test_what_an_excluded_node_reads_stays_too() -> None:
    text = net(TABLE, "float[3] w", "h = Mul(x, w)  [keep] g = Exp(h)  y = Relu(x)")
    context = Context(original=parse_model(text), excluded=frozenset({"keep"}))
    check_pass(CLEAN, text, changed=False, skips=["keep: "], context=context)


# --- unused ----------------------------------------------------------------------------------------------------------
def test_nodes_and_constants_that_nothing_needs_go() -> None:
    text = net(TABLE, "float[3] w, float[3] u", "h = Mul(x, w)  g = Exp(h)  y = Relu(x)")
    result = check_pass(CLEAN, text, changed=True, removed=["Mul", "Exp"])
    assert not result.model.graph.constants
    assert result.model.aliases == {"h": "", "g": ""}


def test_what_only_a_subgraph_reads_stays() -> None:
    text = net(
        "(float[3] x, bool c) => (float[3] y)",
        "float[3] w",
        """h = Exp(x)  dead = Neg(h)
           y = If(c) < then_branch = yes () => (float[3] p) { p = Mul(h, w) },
                       else_branch = no () => (float[3] q) { q = Neg(h) }>""",
    )
    result = check_pass(CLEAN, text, changed=True, removed=["Neg"])
    assert "w" in result.model.graph.constants


def test_constants_that_are_graph_outputs_stay() -> None:
    text = net(
        "(float[N] x) => (float[N] y, float[2] w)", "float[2] w = {1, 2}, float[2] u = {1, 2}", "y = Relu(x)"
    )
    result = check_pass(CLEAN, text, changed=True, removed=[])
    assert list(result.model.graph.constants) == ["w"]


# --- no-ops ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("weights", "node"),
    [
        ("", "Identity(x)"),
        ("", "Dropout(x)"),
        ("float r = {0.5}, bool t = {0}", "Dropout(x, r, t)"),
        ("", "Cast<to=1>(x)"),
        ("", "Transpose<perm=[0,1,2,3]>(x)"),
        ("int64[4] s = {0, 3, -1, 5}", "Reshape(x, s)"),
        ("int64[4] s = {-1, 3, 4, 5}", "Reshape(x, s)"),
        ("int64[8] p = {0,0,0,0,0,0,0,0}", 'Pad<mode="reflect">(x, p)'),
        ("int64[1] b = {0}, int64[1] e = {4}, int64[1] a = {2}", "Slice(x, b, e, a)"),
        ("int64[1] b = {-4}, int64[1] e = {100}, int64[1] a = {-2}", "Slice(x, b, e, a)"),
        ("int64[1] b = {0}, int64[1] e = {9223372036854775807}", "Slice(x, b, e)"),
        ("int64[4] s = {1,3,1,5}", "Expand(x, s)"),
        ("int64[1] s = {1}", "Expand(x, s)"),
        ("int64[4] s = {1,1,1,1}", "Tile(x, s)"),
        ("", "Concat<axis=1>(x)"),
        ("", "Sum(x)"),
        ("", "Max(x)"),
        ("", "Clip(x)"),
        ("float one = {1}", "Mul(x, one)"),
        ("float one = {1}", "Mul(one, x)"),
        ("float[3,1,1] one = {1,1,1}", "Div(x, one)"),
        ("float zero = {0}", "Add(zero, x)"),
        ("float[1,1] zero = {0}", "Sub(x, zero)"),
        ("float one = {1}", "Pow(x, one)"),
    ],
)
def test_a_no_op_goes(weights: str, node: str) -> None:
    op = node.split("(")[0].split("<")[0]
    result = check_pass(
        CLEAN, net(IMAGE, weights, f"[it] h = {node}  y = Relu(h)"), changed=True, removed=[op]
    )
    assert result.model.aliases == {"it": ""}
    assert not result.model.graph.constants


def test_a_transpose_that_moves_only_axes_of_size_one_goes() -> None:
    text = net("(float[1,1,5] x) => (float[1,1,5] y)", "", "h = Transpose<perm=[1,0,2]>(x)  y = Relu(h)")
    check_pass(CLEAN, text, changed=True, removed=["Transpose"])


def test_a_flatten_of_a_matrix_goes() -> None:
    check_pass(CLEAN, net(TABLE, "", "h = Flatten(x)  y = Relu(h)"), changed=True, removed=["Flatten"])


def test_a_no_op_that_names_an_output_hands_its_name_on() -> None:
    text = net(TABLE, "", "h = Relu(x)  [last] y = Identity(h)")
    result = check_pass(CLEAN, text, changed=True, removed=["Identity"])
    assert [v.name for v in result.model.graph.outputs] == ["y"]


def test_a_no_op_that_a_subgraph_reads_hands_its_name_on() -> None:
    text = net(
        "(float[3] x, bool c) => (float[3] y)",
        "",
        """h = Exp(x)  i = Identity(h)
           y = If(c) < then_branch = yes () => (float[3] p) { p = Abs(i) },
                       else_branch = no () => (float[3] q) { q = Neg(i) }>""",
    )
    check_pass(CLEAN, text, changed=True, removed=["Identity"])


def test_a_declared_type_goes_along_with_the_name() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "my" : 1]> net (float[2] x, bool c) => (float[2] y)
        <float[2] h> {
            h = my.Twice(x)  i = Identity(h)
            y = If(c) < then_branch = yes () => (float[2] p) { p = Abs(i) },
                        else_branch = no () => (float[2] q) { q = Neg(i) }> }"""
    model = parse_model(text)
    result = CLEAN.run(model.clone(), Context(original=model))
    assert result.model.graph.nodes[0].output.name == "i"
    assert list(result.model.declared) == ["i"]
    assert result.model.declared["i"].name == "i"
    assert list(model.declared) == ["h"]
    assert model.declared["h"].name == "h"


# --- pairs -----------------------------------------------------------------------------------------------------------
def test_transposes_in_a_row_are_one() -> None:
    text = net(IMAGE, "", "h = Transpose<perm=[0,2,3,1]>(x)  y = Transpose<perm=[2,0,3,1]>(h)")
    result = check_pass(CLEAN, text, changed=True, removed=["Transpose"])
    assert result.model.graph.nodes[0].attrs["perm"] == [3, 0, 1, 2]
    assert result.model.aliases == {"h": "y"}


def test_transposes_that_undo_each_other_go() -> None:
    text = net(IMAGE, "", "h = Transpose<perm=[0,2,3,1]>(x)  g = Transpose<perm=[0,3,1,2]>(h)  y = Relu(g)")
    check_pass(CLEAN, text, changed=True, removed=["Transpose", "Transpose"])


@pytest.mark.parametrize(
    ("weights", "first", "target"),
    [
        ("int64[2] t = {-1, 6}, int64[3] s = {0, 2, -1}", "Reshape(x, t)", None),
        ("int64[3] s = {-1, 3, 20}", "Flatten(x)", [-1, 3, 20]),
        ("int64[3] s = {0, 3, 20}", "Flatten(x)", [0, 3, 20]),
        ("int64[1] t = {1}, int64[2] s = {0, -1}", "Unsqueeze(x, t)", [0, -1]),
        ("int64[1] t = {1}, int64[3] s = {0, 0, -1}", "Unsqueeze(x, t)", [0, 1, -1]),
        ("int64[3] t = {0, 3, 20}, int64[4] s = {0, 0, 4, 5}", "Reshape(x, t)", [0, 3, 4, 5]),
    ],
)
def test_a_reshape_needs_no_reshape_before_it(weights: str, first: str, target: list[int] | None) -> None:
    rank = 3 if target is None else len(target)
    signature = f"(float[N,3,4,5] x) => (float[{','.join('abcd'[:rank])}] y)"
    text = net(signature, weights, f"h = {first}  y = Reshape(h, s)")
    if target is None:
        unchanged(text)
        return
    result = check_pass(CLEAN, text, changed=True, removed=[first.split("(")[0]])
    assert result.model.graph.nodes[-1].inputs[1].values.tolist() == target


def test_slices_of_different_axes_are_one() -> None:
    weights = """int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] three = {3}, int64[1] last = {-1},
        int64[1] end = {9223372036854775807}"""
    text = net(
        IMAGE,
        weights,
        "h = Slice(x, one, end, two, two)  g = Slice(h, zero, three, last)  y = Slice(g, zero, two, one)",
    )
    result = check_pass(CLEAN, text, changed=True, removed=["Slice", "Slice"])
    bounds = [result.model.graph.nodes[0].inputs[i].values.tolist() for i in range(1, 5)]
    assert bounds == [[0, 1, 0], [2, 2**63 - 1, 3], [1, 2, 3], [1, 2, 1]]


def test_a_widening_cast_before_a_cast_goes() -> None:
    text = net("(float16[N] x) => (int64[N] y)", "", "h = Cast<to=1>(x)  y = Cast<to=7>(h)")
    check_pass(CLEAN, text, changed=True, removed=["Cast"])


def test_a_cast_there_and_back_goes() -> None:
    text = net("(float[N] x) => (float[N] y)", "", "h = Cast<to=11>(x)  g = Cast<to=1>(h)  y = Relu(g)")
    check_pass(CLEAN, text, changed=True, removed=["Cast", "Cast"])


@pytest.mark.parametrize(
    "body",
    [
        "h = Unsqueeze(x, a)  g = Squeeze(h, a)",
        "r = Unsqueeze(x, a)  h = Squeeze(r, a)  g = Relu(h)",
    ],
)
def test_axes_that_come_and_go_never_were(body: str) -> None:
    text = net(TABLE, "int64[1] a = {1}", f"{body}  y = Relu(g)")
    check_pass(CLEAN, text, changed=True, removed=["Unsqueeze", "Squeeze"])


# --- what is there twice ---------------------------------------------------------------------------------------------
def test_equal_constants_are_stored_once() -> None:
    text = net(TABLE, "float[3] w = {1, 2, 3}, float[3] u = {1, 2, 3}", "h = Mul(x, w)  y = Add(h, u)")
    result = check_pass(CLEAN, text, changed=True, removed=[])
    assert list(result.model.graph.constants) == ["w"]


def test_of_equal_constants_the_captured_one_keeps_its_name() -> None:
    text = net(
        "(float[2] x, bool c) => (float[2] y)",
        "float[2] w = {1, 2}, float[2] u = {1, 2}",
        """h = Mul(x, w)
           y = If(c) < then_branch = yes () => (float[2] p) { p = Mul(h, u) },
                       else_branch = no () => (float[2] q) { q = Neg(h) }>""",
    )
    result = check_pass(CLEAN, text, changed=True, removed=[])
    assert list(result.model.graph.constants) == ["u"]


def test_zeros_of_either_sign_are_two_constants() -> None:
    text = net("(float[2] x) => (float[2] y)", "float[2] w, float[2] u", "h = Div(x, w)  y = Div(h, u)")
    positive, negative = np.zeros(2, np.float32), -np.zeros(2, np.float32)
    model = parse_model(text, {"w": positive, "u": negative})
    assert not CLEAN.run(model.clone(), Context(original=model)).changed


def test_what_is_computed_twice_is_computed_once() -> None:
    text = net(
        TABLE,
        "float[3] w = {1, 2, 3}, float[3] u = {1, 2, 3}",
        "[one] a = Mul(x, w)  [two] b = Mul(x, u)  c = Exp(a)  d = Exp(b)  y = Add(c, d)",
    )
    result = check_pass(CLEAN, text, changed=True, removed=["Mul", "Exp"])
    assert result.model.aliases == {"two": "one", "d": "c"}


def test_a_repetition_that_is_an_output_hands_its_name_on() -> None:
    text = net("(float[N] x) => (float[N] y, float[N] z)", "", "h = Exp(x)  y = Neg(h)  z = Exp(x)")
    check_pass(CLEAN, text, changed=True, removed=["Exp"])


def test_repetitions_of_several_outputs_are_joined_whole_or_not_at_all() -> None:
    split = "<axis=1>(x)"
    text = net(
        "(float[N,4] x) => (float[N,2] y, float[N,2] q)",
        "",
        f"a, b = Split{split}  p, q = Split{split}  s = Add(a, b)  y = Add(s, p)",
    )
    unchanged(text, "its results bear names that must stay")
    inner = text.replace("float[N,2] q)", "float[N,2] z)").replace(
        "y = Add(s, p)", "y = Add(s, p)  z = Neg(q)"
    )
    check_pass(CLEAN, inner, changed=True, removed=["Split"])
