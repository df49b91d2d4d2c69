"""MatMul and Einsum: contractions of two values, of which one may be stored, written with a letter per axis.

A stored operand is cut like any weight. Of two computed ones, the contracted axis unites the labels of both (queries and
keys lose the same positions), and axes that both carry into the output tie them to it (heads). What lies on a free axis
goes on to the output (positions of values). Where labels differ along several axes, each way of removing them is one view
(decision 7): `inner` letters, the contracted or last ones, belong to `DIMS`, the `outer` ones to `HEADS`. No constant
such as the scale 1/sqrt(d) of attention is touched when positions go: the function must stay the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxcomp.analysis.flow import Blocked, Flow, Rule, Weight
from onnxcomp.analysis.labels import DIMS, HEADS, Ids, Labels, Role, compact
from onnxcomp.ir.graph import Constant, Node

__all__ = ["CONTRACTIONS", "einsum_terms", "matmul_terms"]

_GREEK = 0x3B1
"""Letters of the axes that an ellipsis, or the stacking of MatMul, stands for: counted from the last one."""


# --- letters ---------------------------------------------------------------------------------------------------------
def matmul_terms(first: int, second: int) -> tuple[tuple[str, str], str]:
    """Return the letters of both operands of a MatMul, which have that many axes, and of its output.

    >>> matmul_terms(2, 1)
    (('mk', 'k'), 'm')
    """
    stacked = [_stack(max(0, ndim - 2)) for ndim in (first, second)]
    left = stacked[0] + ("mk" if first > 1 else "k")
    right = stacked[1] + ("kn" if second > 1 else "k")
    return (left, right), max(stacked, key=len) + "m" * (first > 1) + "n" * (second > 1)


def einsum_terms(equation: str, ndims: Sequence[int]) -> tuple[tuple[str, ...], str] | None:
    """Return the letters of every operand of an Einsum and of its output, or None where a term repeats a letter.

    Axes that an ellipsis stands for get letters of their own, aligned at the last one; without an arrow the output has
    the letters that occur once, in alphabetical order (numpy's rules).

    >>> einsum_terms("ij, jk", [2, 2])
    (('ij', 'jk'), 'ik')
    """
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    hidden = [ndim - len(term.replace("...", "")) for term, ndim in zip(terms, ndims, strict=True)]
    if not arrow:
        letters = inputs.replace(",", "").replace("...", "")
        once = "".join(sorted(letter for letter in set(letters) if letters.count(letter) == 1))
        output = ("..." if "..." in inputs else "") + once
    spelled = tuple(term.replace("...", _stack(n)) for term, n in zip(terms, hidden, strict=True))
    output = output.replace("...", _stack(max(hidden)))
    if any(len(set(term)) < len(term) for term in (*spelled, output)):
        return None
    return spelled, output


def _stack(count: int) -> str:
    return "".join(chr(_GREEK + place) for place in reversed(range(count)))


@dataclass(frozen=True)
class _Term:
    """An operand: its input index, the letters of its axes, and its labels or the stored tensor."""

    index: int
    letters: str
    shape: tuple[int, ...]
    labels: Labels | None
    stored: Weight | None

    def size(self, letter: str) -> int:
        return self.shape[self.letters.index(letter)] if letter in self.letters else 1

    @property
    def varying(self) -> str:
        """The letters along which labels differ."""
        return "".join(self.letters[a] for a in self.labels.axes) if self.labels else ""

    @property
    def ids(self) -> Ids:
        assert self.labels is not None
        return self.labels.ids

    def axes(self, letters: str) -> list[int]:
        return [self.letters.index(letter) for letter in letters if letter in self.letters]


@dataclass(frozen=True)
class _Product:
    """One contraction: the node, its operands, the letters of its output and their sizes."""

    flow: Flow
    node: Node
    terms: tuple[_Term, ...]
    out: str
    shape: tuple[int, ...]

    def has(self, term: _Term, letter: str) -> bool:
        """Return whether `term` has an axis of its own there, rather than one value that is repeated along it."""
        return letter in term.letters and term.size(letter) == max(t.size(letter) for t in self.terms)

    def along(self, ids: Ids, letters: str, target: str) -> Ids:
        """Return `ids` of axes `letters` with the axes `target`, of size 1 where they have none; others have size 1."""
        order = [letters.index(x) for x in letters if x not in target] + [
            letters.index(x) for x in target if x in letters
        ]
        sizes = [ids.shape[letters.index(x)] if x in letters else 1 for x in target]
        return ids.transpose(order).reshape(sizes)

    def grid(self, letters: str) -> Ids:
        """Return new labels, one for every combination of positions along `letters`, with the axes of the output."""
        sizes = [size if letter in letters else 1 for letter, size in zip(self.out, self.shape, strict=True)]
        return self.flow.map.fresh(int(np.prod(sizes))).reshape(sizes)

    def made(self, ids: Ids) -> list[Labels]:
        """Return the labels of the output."""
        return [Labels(compact(ids), self.shape)]

    def says(self, what: str) -> str:
        return f"{self.node.op} {self.node.name!r} {what}"


# --- one computed operand ----------------------------------------------------------------------------------------------
def _weighted(p: _Product, data: _Term, weight: _Term | None) -> list[Labels]:
    """Return the labels of the output of a computed operand and a stored one (or none)."""
    m = p.flow.map
    passing = "".join(x for x in p.out if x in data.varying)
    made = _stored_axes(p, data, weight) if weight is not None else {}
    if not made:
        if set(passing) == set(data.varying):
            return p.made(p.along(data.ids, data.letters, p.out))
        ids = p.grid(passing)
        if passing:
            full = Labels(p.along(ids, p.out, data.letters), data.shape)
            m.defer(data.ids, full, set(data.axes(passing)), own=False)
        return p.made(ids)
    # Of several axes that a weight makes, the last one holds positions, the one before it heads.
    inner = max(made, key=p.out.index)
    others = "".join(sorted(made.keys() - {inner}, key=p.out.index))
    if not passing and not others:
        return p.made(p.along(made[inner], inner, p.out))
    outer = passing or others[-1]
    for letter in others if passing else others[:-1]:
        m.rest(made[letter], None, p.says("makes channels along several axes"))
    ids = p.grid(outer + inner)
    flat = m.flatten(ids, [p.out.index(x) for x in outer], DIMS)
    m.tie(flat, p.along(made[inner], inner, p.out), view=DIMS)
    m.rest(made[inner], HEADS, p.says("makes channels along several axes"))
    lines = m.flatten(ids, [p.out.index(inner)], HEADS)
    if passing:
        inside = [a for a in data.labels.axes if data.letters[a] not in passing] if data.labels else []
        m.tie(lines, p.along(m.flatten(data.ids, inside, HEADS), data.letters, p.out), view=HEADS)
        m.flatten(data.ids, data.axes(passing), DIMS)
        if not inside:
            m.rest(data.ids, DIMS, p.says("reads channels that lie along another axis"))
    else:
        m.tie(lines, p.along(made[outer], outer, p.out), view=HEADS)
        m.rest(made[outer], DIMS, p.says("makes channels along several axes"))
    return p.made(ids)


def _stored_axes(p: _Product, data: _Term, weight: _Term) -> dict[str, Ids]:
    """Tie the axes that a stored operand shares with the computed one; return the labels of those that it makes."""
    m, made = p.flow.map, {}
    assert weight.stored is not None
    new = [x for x in weight.letters if x in p.out and not p.has(data, x)]
    # Axes of size 1 beside others are the stacking's, and hold no channels.
    new = [x for x in new if weight.size(x) > 1] or new[-1:]
    for axis, letter in enumerate(weight.letters):
        if not p.has(data, letter):
            if letter in new:
                made[letter] = p.flow.use(p.node, weight.stored, axis, None, "produces")
            continue
        if not p.has(weight, letter):
            continue
        role: Role = "follows" if letter in p.out else "consumes"
        if data.varying in ("", letter):
            ids = np.broadcast_to(data.ids.reshape(-1), (data.size(letter),))
            p.flow.use(p.node, weight.stored, axis, ids, role)
            continue
        ids = p.flow.use(p.node, weight.stored, axis, None, role)
        if letter in data.varying:
            whole = Labels(p.along(ids, letter, data.letters), data.shape)
            m.defer(data.ids, whole, set(data.axes(letter)), own=False)
        else:
            m.rest(ids, None, p.says("reads channels that lie along another axis"))
    return made


# --- two computed operands -----------------------------------------------------------------------------------------------
def _both_computed(p: _Product) -> list[Labels]:
    """Return the labels of the output of two computed operands."""
    m = p.flow.map
    varying = {x for term in p.terms for x in term.varying if p.has(term, x)}
    contracted = [x for x in p.terms[0].letters if x not in p.out and x in varying]
    passing = [x for x in p.out if x in varying]
    inner = contracted[-1:] or passing[-1:]
    outer = [x for x in passing if x not in inner]
    if contracted[:-1]:
        raise Blocked(p.says("contracts several axes that hold channels"))
    if not inner:
        return [m.uniform(p.shape, None)]
    position = inner[0]
    ids = p.grid("".join({*outer, *inner} & set(p.out)))
    views = (DIMS, HEADS) if outer else (None, None)
    _tie_inner(p, position, ids, views[0])
    if outer:
        _tie_outer(p, outer, position, ids)
    if contracted:
        m.products.extend((p.node, term.index) for term in p.terms)
    return p.made(ids)


def _tie_inner(p: _Product, letter: str, ids: Ids, view: int | None) -> None:
    """Tie what lies at one position along `letter` in the operands and the output, whatever lies along other letters."""
    m = p.flow.map
    line = m.fresh(max(term.size(letter) for term in p.terms))
    for term in p.terms:
        flat = m.flatten(term.ids, term.axes(term.varying.replace(letter, "")), view)
        if p.has(term, letter):
            m.tie(flat, p.along(line, letter, term.letters), view=view)
            if letter not in term.varying:
                m.hint(line, p.says("multiplies it with a value that is the same for all of them"))
        elif term.varying:
            m.rest(term.ids, view, p.says("reads channels that lie along another axis"))
    flat = m.flatten(
        ids, [p.out.index(x) for x in p.out if x != letter and ids.shape[p.out.index(x)] > 1], view
    )
    if letter in p.out:
        m.tie(flat, p.along(line, letter, p.out), view=view)


def _tie_outer(p: _Product, letters: Sequence[str], inner: str, ids: Ids) -> None:
    """Tie what lies at one place along `letters` (one head) in the operands and the output, whatever its positions."""
    m = p.flow.map
    heads = p.grid("".join(letters))
    m.tie(m.flatten(ids, [p.out.index(inner)] if inner in p.out else [], HEADS), heads, view=HEADS)
    for term in p.terms:
        shared = [x for x in letters if p.has(term, x)]
        inside = "".join(x for x in term.varying if x not in letters)
        flat = m.flatten(term.ids, term.axes(inside), HEADS)
        if shared:
            m.tie(heads, p.along(flat, term.letters, p.out), view=HEADS)
            if not set(shared) & set(term.varying):
                m.hint(heads, p.says("multiplies it with a value that is the same for all of them"))
        elif term.varying:
            # One set of keys that all heads read stays while heads go.
            m.rest(term.ids, HEADS, p.says("reads channels that lie along another axis"))


# --- the operators -----------------------------------------------------------------------------------------------------
def _matmul(flow: Flow, node: Node) -> list[Labels]:
    ndims = [len(_shape_of(flow, node, index)) for index in range(2)]
    terms, out = matmul_terms(*ndims)
    return _contract(flow, node, terms, out)


def _einsum(flow: Flow, node: Node) -> list[Labels]:
    equation = str(node.attrs["equation"])
    if len(node.inputs) > 2:
        raise Blocked(f"Einsum {node.name!r} has more than two operands")
    found = einsum_terms(equation, [len(_shape_of(flow, node, i)) for i in range(len(node.inputs))])
    if found is None:
        raise Blocked(f"Einsum {node.name!r} takes a diagonal ({equation!r})")
    return _contract(flow, node, *found)


def _contract(flow: Flow, node: Node, letters: Sequence[str], out: str) -> list[Labels]:
    terms = []
    for index, (value, axes) in enumerate(zip(node.inputs, letters, strict=True)):
        stored = flow.behind(value)
        labels = None if stored is not None else flow.labels(value)
        terms.append(_Term(index, axes, _shape_of(flow, node, index), labels, stored))
    p = _Product(flow, node, tuple(terms), out, flow.shape(node))
    computed = [term for term in terms if term.stored is None]
    if not computed:
        raise Blocked(p.says("has no computed operand; fold it first"))
    terms = [_summed(p, term) for term in terms]
    p = _Product(flow, node, tuple(terms), out, p.shape)
    computed = [term for term in terms if term.stored is None]
    if len(computed) == 2:
        return _both_computed(p)
    return _weighted(p, computed[0], next((t for t in terms if t.stored is not None), None))


def _summed(p: _Product, term: _Term) -> _Term:
    """Return `term` without labels along letters that are summed in it alone: what lies there goes together."""
    if term.labels is None:
        return term
    others = [other for other in p.terms if other is not term]
    alone = [x for x in term.varying if x not in p.out and not any(p.has(t, x) for t in others)]
    if alone and set(alone) == set(term.varying):
        raise Blocked(p.says("sums over the channel axis"))
    ids = p.flow.map.flatten(term.ids, term.axes("".join(alone)))
    return _Term(term.index, term.letters, term.shape, Labels(ids, term.shape), None)


def _shape_of(flow: Flow, node: Node, index: int) -> tuple[int, ...]:
    value = node.inputs[index]
    return value.values.shape if isinstance(value, Constant) else flow.shapes[value.name]


CONTRACTIONS: dict[str, Rule] = {"MatMul": _matmul, "Einsum": _einsum}
"""The rules by operator."""
