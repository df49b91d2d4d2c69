"""Einsum by its equation: letters that are contracted, carried along, or free, with a stored operand or two computed ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.analysis.attention import einsum_terms, matmul_terms
from tests.support.channels import free, hold, left, stays, stored
from tests.support.text import net

SEQUENCE = "(float[N,5,8] x) => (float[N,5,3] y)"


def test_a_weight_in_an_einsum_is_cut_like_that_of_a_matmul() -> None:
    cut = hold(
        net(
            SEQUENCE,
            "float[8,6] a, float[7,6] w, float[7,3] o",
            'h = MatMul(x, a) r = Tanh(h) i = Einsum<equation="btc,dc->btd">(r, w) s = Sigmoid(i) y = MatMul(s, o)',
        )
    )
    assert free(cut.groups) == {"h": 6, "i": 7}
    assert stored(cut, "w") == (left(cut, "i"), left(cut, "h"))


def test_a_stored_operand_may_come_first() -> None:
    cut = hold(
        net(
            SEQUENCE,
            "float[8,6] a, float[6,7] w, float[7,3] o",
            'h = MatMul(x, a) i = Einsum<equation="cd, ...c -> ...d">(w, h) y = MatMul(i, o)',
        )
    )
    assert free(cut.groups) == {"h": 6, "i": 7}


def test_a_letter_that_both_carry_into_the_output_goes_from_the_stored_operand_too() -> None:
    cut = hold(
        net(
            SEQUENCE,
            "float[8,6] a, float[6] s, float[6,3] o",
            'h = MatMul(x, a) i = Einsum<equation="btc,c->btc">(h, s) y = MatMul(i, o)',
        )
    )
    assert free(cut.groups) == {"h": 6}
    assert stored(cut, "s") == (left(cut, "h"),)


def test_weights_with_an_axis_of_heads_make_and_read_heads_and_positions() -> None:
    cut = hold(
        net(
            SEQUENCE,
            "float[8,3,4] w, float[3,4,6] v, float[6,3] o",
            'h = Einsum<equation="btc,chd->bhtd">(x, w) r = Tanh(h) i = Einsum<equation="bhtd,hde->bte">(r, v)'
            " y = MatMul(i, o)",
        )
    )
    assert free(cut.groups) == {"h": 4, "h:heads": 3, "i": 6}
    assert stored(cut, "v") == (left(cut, "h:heads"), left(cut, "h"), left(cut, "i"))


def test_one_operand_is_moved_and_summed() -> None:
    cut = hold(
        net(
            "(float[N,3,4,4] x) => (float[N,4,5] y)",
            "float[6,3,1,1] a, float[6,5] o",
            'h = Conv(x, a) m = Einsum<equation="nchw->nwc">(h) y = MatMul(m, o)',
        )
    )
    assert free(cut.groups) == {"h": 6}


def test_an_equation_without_an_arrow_sorts_its_letters() -> None:
    cut = hold(
        net(
            "(float[5,8] x) => (float[5,3] y)",
            "float[8,6] a, float[6,7] w, float[7,3] o",
            'h = MatMul(x, a) i = Einsum<equation="ac,cd">(h, w) y = MatMul(i, o)',
        )
    )
    assert free(cut.groups) == {"h": 6, "i": 7}


def test_two_computed_operands_tie_what_they_contract_and_what_they_carry_along() -> None:
    cut = hold(
        net(
            SEQUENCE,
            "float[8,6] a, float[8,6] b, float[5,3] o",
            'h = MatMul(x, a) i = MatMul(x, b) s = Einsum<equation="btc,bsc->bts">(h, i) y = MatMul(s, o)',
        )
    )
    assert free(cut.groups) == {"h": 6}
    assert cut.groups["h"].producers == ("h", "i")


# --- what must stay --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("node", "reason"),
    [
        ('Einsum<equation="btc->bt">(h)', "Einsum 'odd' sums over the channel axis"),
        ('Einsum<equation="btc,tc,c->bt">(h, two, one)', "Einsum 'odd' has more than two operands"),
        ('Einsum<equation="bcc->bc">(g)', "Einsum 'odd' takes a diagonal ('bcc->bc')"),
        ('Einsum<equation="btc,btc->bt">(h, x)', "it meets a graph input"),
    ],
)
def test_an_equation_that_cannot_be_cut_blocks_with_the_reason(node: str, reason: str) -> None:
    text = net(
        "(float[N,6,6] x) => (float[N,6] y)",
        "float[6,6] a, float[6,6] two, float[6] one",
        f"h = MatMul(x, a) g = Tanh(h) [odd] y = {node}",
    )
    assert stays(text)["h"] == reason


def test_stored_operands_alone_cut_nothing() -> None:
    text = net(
        SEQUENCE,
        "float[8,6] a, float[6,3] o, float[2,6] u, float[2] v",
        'h = MatMul(x, a) s = Einsum<equation="ij,i->j">(u, v) i = Mul(h, s) y = MatMul(i, o)',
    )
    assert stays(text).keys() >= {"y"}


# --- letters -------------------------------------------------------------------------------------------------------------
@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 99))
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_the_letters_of_a_matmul_say_what_numpy_multiplies(first: int, second: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    (left_, right), out = matmul_terms(first, second)
    sizes = {letter: int(rng.integers(1, 4)) for letter in left_ + right}
    a, b = (rng.standard_normal([sizes[x] for x in term]) for term in (left_, right))
    plain = {letter: chr(ord("a") + place) for place, letter in enumerate(sorted(sizes))}
    spelled = "{},{}->{}".format(*("".join(plain[x] for x in term) for term in (left_, right, out)))
    np.testing.assert_allclose(np.einsum(spelled, a, b), np.matmul(a, b), atol=1e-12)


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("ij,jk", [(2, 3), (3, 4)]),
        ("ba,b", [(2, 3), (2,)]),
        ("...ij , ...jk -> ...ik", [(5, 2, 3), (3, 4)]),
        ("i...,...j", [(2, 5), (5, 3)]),
        ("b...c->...b", [(2, 3, 4, 5)]),
    ],
)
def test_the_letters_of_an_einsum_say_what_numpy_sums(equation: str, shapes: list[tuple[int, ...]]) -> None:
    found = einsum_terms(equation, [len(shape) for shape in shapes])
    assert found is not None
    terms, out = found
    arrays = [np.random.default_rng(i).standard_normal(shape) for i, shape in enumerate(shapes)]
    plain = {letter: chr(ord("A") + place) for place, letter in enumerate(sorted(set("".join(terms))))}
    spelled = ",".join("".join(plain[x] for x in t) for t in terms) + "->" + "".join(plain[x] for x in out)
    np.testing.assert_allclose(np.einsum(spelled, *arrays), np.einsum(equation, *arrays), atol=1e-12)


def test_a_letter_twice_in_one_operand_is_a_diagonal() -> None:
    assert einsum_terms("ii->i", [2]) is None
