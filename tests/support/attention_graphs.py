"""Random small attention blocks and recurrent chains: a plan, drawn by hypothesis, is built into a model.

The blocks are written in the ways in which exporters write them: projections apart or fused, heads by Reshape and
Transpose or by Einsum, keys and values of grouped queries repeated by Expand, Tile, Gather or broadcasting.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from onnxcomp.ir.graph import Array, Graph, Node, Value, Variable
from onnxcomp.ir.model import Model

__all__ = ["AttentionPlan", "RecurrentPlan", "attention", "attention_plans", "recurrent", "recurrent_plans"]

TOKENS, WIDTH = 5, 6
"""How many tokens a sample has, and how wide the stream is."""


@dataclass(frozen=True)
class AttentionPlan:
    """One block of attention over a stream `[N, TOKENS, WIDTH]`.

    Attributes:
        heads: heads of the queries.
        keys: heads of keys and values; divides `heads`.
        width: channels of a head of queries and keys.
        depth: channels of a head of values; equal to `width` where projections are fused by Reshape.
        form: `separate`, `split` (one product, then Split), `reshape` (one product, then Reshape to five axes and Gather),
            or `einsum` (weights with an axis of heads).
        repeat: how grouped keys reach the heads: `expand`, `tile`, `gather`, `concat` or `broadcast`.
        extras: names of what stands in between, see `_score` and `_query`.
        seed: of the weights.
    """

    heads: int = 2
    keys: int = 2
    width: int = 4
    depth: int = 4
    form: str = "separate"
    repeat: str = "expand"
    extras: frozenset[str] = frozenset()
    seed: int = 0


EXTRAS = (
    "scale",
    "bias",
    "mask",
    "head-bias",
    "rotary",
    "query-norm",
    "layer-norm",
    "residual",
    "gate",
    "fill",
)


class Builder:
    """A network under construction over one graph input `x`."""

    def __init__(self, seed: int, shape: tuple[int | str, ...]) -> None:
        self.rng = np.random.default_rng(seed)
        self.graph = Graph("net", opset=18)
        self.x = Variable("x", np.dtype(np.float32), shape)
        self.graph.inputs.append(self.x)

    def weight(self, *shape: int) -> Array:
        """Return random values, scaled by the size of the first axis."""
        values: Array = (self.rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)
        return values

    def node(
        self, op: str, name: str, *operands: Value | Array | None, count: int = 1, **attrs: Any
    ) -> Variable:
        """Add a node, arrays becoming stored tensors, and return its first output."""
        inputs: list[Value] = []
        for place, operand in enumerate(operands):
            if operand is None:
                inputs.append(Variable(""))
            elif isinstance(operand, np.ndarray):
                inputs.append(self.graph.add_constant(f"{name}.{place}", operand))
            else:
                inputs.append(operand)
        outputs = [Variable(f"{name}:{index}" if index else name) for index in range(count)]
        self.graph.nodes.append(Node(op, name, attrs, inputs, outputs))
        return outputs[0]

    def outputs(self) -> list[Variable]:
        """Return the outputs of the node added last."""
        return list(self.graph.nodes[-1].outputs)

    def finish(self, value: Variable, shape: tuple[int | str, ...]) -> Model:
        """Make `value` the graph output and return the model."""
        value.dtype, value.shape = np.dtype(np.float32), shape
        self.graph.outputs.append(value)
        return Model(self.graph)


def ints(*values: int) -> Array:
    """Return a tensor of sizes or indices."""
    return np.array(values, np.int64)


# --- attention -------------------------------------------------------------------------------------------------------
def attention(plan: AttentionPlan) -> Model:
    """Return a block of attention between two products: the stream is made by one weight and read by another."""
    b = Builder(plan.seed, ("N", TOKENS, WIDTH))
    stream = b.node("MatMul", "stem", b.x, b.weight(WIDTH, WIDTH))
    read: Value = stream
    if "layer-norm" in plan.extras:
        read = b.node("LayerNormalization", "norm", stream, b.weight(WIDTH) + 1, axis=-1)
    q, k, v = _projected(b, plan, read)
    if "rotary" in plan.extras and plan.width % 2 == 0:
        q, k = _rotated(b, "q", q, plan.width), _rotated(b, "k", k, plan.width)
    if "query-norm" in plan.extras:
        q = b.node("LayerNormalization", "qnorm", q, b.weight(plan.width) + 1, axis=-1)
    if "scale" in plan.extras:
        q = b.node("Mul", "scaled", q, np.array(plan.width**-0.5, np.float32))
    context = _context(b, plan, q, k, v)
    if "gate" in plan.extras:
        context = b.node("Mul", "gated", context, b.weight(plan.heads, 1, 1))
    made = _joined(b, plan, context)
    if "residual" in plan.extras:
        made = b.node("Add", "sum", made, stream)
    ends = b.node("MatMul", "y", made, b.weight(WIDTH, 3))
    return b.finish(ends, ("N", TOKENS, 3))


def _projected(b: Builder, plan: AttentionPlan, read: Value) -> tuple[Variable, Variable, Variable]:
    """Return queries `[N, heads, TOKENS, width]`, keys and values (of `keys` heads)."""
    sizes = {"q": (plan.heads, plan.width), "k": (plan.keys, plan.width), "v": (plan.keys, plan.depth)}
    if plan.form == "einsum":
        made = [
            b.node("Einsum", n, read, b.weight(WIDTH, *size), equation="btc,chd->bhtd")
            for n, size in sizes.items()
        ]
        return made[0], made[1], made[2]
    if plan.form == "reshape":
        flat = _linear(b, plan, "qkv", read, 3 * plan.heads * plan.width)
        wide = b.node("Reshape", "wide", flat, ints(0, 0, 3, plan.heads, plan.width))
        turned = b.node("Transpose", "turned", wide, perm=[2, 0, 3, 1, 4])
        made = [b.node("Gather", n, turned, np.array(i, np.int64), axis=0) for i, n in enumerate("qkv")]
        return made[0], made[1], made[2]
    if plan.form == "split":
        wide_sizes = [heads * width for heads, width in sizes.values()]
        flat = _linear(b, plan, "qkv", read, sum(wide_sizes))
        b.node("Split", "parts", flat, ints(*wide_sizes), count=3, axis=-1)
        flats = b.outputs()
    else:
        flats = [_linear(b, plan, f"{n}0", read, heads * width) for n, (heads, width) in sizes.items()]
    made = []
    for flat, (n, (heads, width)) in zip(flats, sizes.items(), strict=True):
        apart = b.node(
            "Reshape", f"{n}1", flat, ints(0, TOKENS, heads, -1 if b.rng.random() < 0.5 else width)
        )
        made.append(b.node("Transpose", n, apart, perm=[0, 2, 1, 3]))
    return made[0], made[1], made[2]


def _linear(b: Builder, plan: AttentionPlan, name: str, read: Value, width: int) -> Variable:
    if "bias" not in plan.extras:
        return b.node("MatMul", name, read, b.weight(WIDTH, width))
    product = b.node("MatMul", f"{name}.product", read, b.weight(WIDTH, width))
    return b.node("Add", name, b.weight(width), product)


def _rotated(b: Builder, name: str, x: Variable, width: int) -> Variable:
    """Return `x * cos + rotate_half(x) * sin`, with tables `[TOKENS, width]`."""
    half = width // 2
    low = b.node("Slice", f"{name}.low", x, ints(0), ints(half), ints(3))
    high = b.node("Slice", f"{name}.high", x, ints(half), ints(2**31), ints(3))
    turned = b.node("Concat", f"{name}.half", b.node("Neg", f"{name}.neg", high), low, axis=-1)
    angles = b.rng.uniform(0, 3, (TOKENS, half)).astype(np.float32)
    cos, sin = (np.concatenate([f(angles)] * 2, 1) for f in (np.cos, np.sin))
    kept = b.node("Mul", f"{name}.cos", x, cos)
    return b.node("Add", f"{name}.rotated", kept, b.node("Mul", f"{name}.sin", turned, sin))


def _repeated(b: Builder, plan: AttentionPlan, name: str, x: Variable, width: int) -> Variable:
    """Return keys or values of every head of the queries, each of `heads / keys` neighbours reading the same ones."""
    times = plan.heads // plan.keys
    if times == 1 or (plan.keys == 1 and plan.repeat == "broadcast"):
        return x
    if plan.repeat == "gather":
        return b.node("Gather", f"{name}.all", x, np.repeat(np.arange(plan.keys), times), axis=1)
    if plan.repeat == "concat" and plan.keys == 1:
        return b.node("Concat", f"{name}.all", *[x] * times, axis=1)
    apart = b.node("Unsqueeze", f"{name}.apart", x, ints(2))
    if plan.repeat == "broadcast":
        return apart
    if plan.repeat == "tile":
        wide = b.node("Tile", f"{name}.wide", apart, ints(1, 1, times, 1, 1))
    elif plan.repeat == "concat":
        wide = b.node("Concat", f"{name}.wide", *[apart] * times, axis=2)
    else:
        wide = b.node("Expand", f"{name}.wide", apart, ints(1, plan.keys, times, TOKENS, width))
    return b.node("Reshape", f"{name}.all", wide, ints(0, plan.heads, TOKENS, width))


def _context(b: Builder, plan: AttentionPlan, q: Variable, k: Variable, v: Variable) -> Variable:
    """Return what the heads say, `[N, heads, TOKENS, depth]`."""
    k, v = _repeated(b, plan, "k", k, plan.width), _repeated(b, plan, "v", v, plan.depth)
    grouped = plan.repeat == "broadcast" and 1 < plan.keys < plan.heads
    times = plan.heads // plan.keys
    if grouped:
        q = b.node("Reshape", "q.apart", q, ints(0, plan.keys, times, TOKENS, plan.width))
    if plan.form == "einsum" and not grouped and not (plan.keys == 1 < plan.heads):
        scores = b.node("Einsum", "scores", q, k, equation="bhtd,bhsd->bhts")
        weights = _score(b, plan, scores, grouped)
        return b.node("Einsum", "context", weights, v, equation="bhts,bhsd->bhtd")
    order = [0, 1, 2, 4, 3] if grouped else [0, 1, 3, 2]
    scores = b.node("MatMul", "scores", q, b.node("Transpose", "k.turned", k, perm=order))
    context = b.node("MatMul", "context", _score(b, plan, scores, grouped), v)
    if grouped:
        context = b.node("Reshape", "context.flat", context, ints(0, plan.heads, TOKENS, plan.depth))
    return context


def _score(b: Builder, plan: AttentionPlan, scores: Variable, grouped: bool) -> Variable:
    """Return the weights of the tokens, with the extras that scores are given."""
    if "mask" in plan.extras:
        scores = b.node("Add", "masked", scores, np.triu(np.full((TOKENS, TOKENS), -1e4, np.float32), 1))
    if "fill" in plan.extras:
        seen = np.tri(TOKENS, dtype=np.bool_)[None, None]
        scores = b.node("Where", "filled", seen, scores, np.array(-1e4, np.float32))
    if "head-bias" in plan.extras and not grouped:
        scores = b.node("Add", "biased", scores, b.weight(1, plan.heads, TOKENS, TOKENS))
    return b.node("Softmax", "weights", scores, axis=-1)


def _joined(b: Builder, plan: AttentionPlan, context: Variable) -> Variable:
    if plan.form == "einsum":
        return b.node(
            "Einsum", "out", context, b.weight(plan.heads, plan.depth, WIDTH), equation="bhtd,hdc->btc"
        )
    turned = b.node("Transpose", "joined", context, perm=[0, 2, 1, 3])
    flat = b.node("Reshape", "flat", turned, ints(0, TOKENS, plan.heads * plan.depth))
    return b.node("MatMul", "out", flat, b.weight(plan.heads * plan.depth, WIDTH))


def attention_plans() -> st.SearchStrategy[AttentionPlan]:
    """Return a strategy of plans that can be built."""

    def settle(plan: AttentionPlan) -> AttentionPlan:
        fused = plan.form == "reshape"
        divisors = [n for n in range(1, plan.heads + 1) if plan.heads % n == 0]
        keys = plan.heads if fused else divisors[plan.keys % len(divisors)]
        return replace(plan, keys=keys, depth=plan.width if fused else plan.depth)

    return st.builds(
        AttentionPlan,
        heads=st.sampled_from([1, 2, 3, 4, 4, 6]),
        keys=st.integers(0, 3),
        width=st.sampled_from([1, 2, 3, 4, 4, 5]),
        depth=st.integers(1, 5),
        form=st.sampled_from(["separate", "split", "reshape", "einsum"]),
        repeat=st.sampled_from(["expand", "tile", "gather", "concat", "broadcast"]),
        extras=st.frozensets(st.sampled_from(EXTRAS), max_size=5),
        seed=st.integers(0, 2**16),
    ).map(settle)


# --- recurrence ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class RecurrentPlan:
    """A chain of recurrent nodes over a sequence `[TOKENS, N, WIDTH]`: `(op, hidden size, options)` of each, and a seed.

    Options: `both` directions, `bias`, `peephole` (LSTM), `reset` (GRU: the other order of reset and product), `state` (a
    stored initial one), `last` (only the last state goes on, which ends the chain), `tanh` behind it, `skip` (the sum with
    what it reads, where that is as wide).
    """

    layers: tuple[tuple[str, int, frozenset[str]], ...]
    seed: int = 0


OPTIONS = ("both", "bias", "peephole", "reset", "state", "last", "tanh", "skip")
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def recurrent(plan: RecurrentPlan) -> Model:
    """Return the chain of `plan` between two products."""
    b = Builder(plan.seed, (TOKENS, 1, WIDTH))
    value, width = b.node("MatMul", "stem", b.x, b.weight(WIDTH, WIDTH)), WIDTH
    shape: tuple[int, ...] = (TOKENS, 1)
    for number, (op, hidden, options) in enumerate(plan.layers):
        value, width = _layer(b, f"{op.lower()}{number}", op, hidden, options, value, width)
        if "last" in options:
            shape = (1,)
            break
    made = b.node("MatMul", "y", value, b.weight(width, 3))
    return b.finish(made, (*shape, 3))


def _layer(
    b: Builder, name: str, op: str, hidden: int, options: frozenset[str], value: Variable, width: int
) -> tuple[Variable, int]:
    gates, ways = GATES[op], 2 if "both" in options else 1
    w, r = b.weight(ways, gates * hidden, width), b.weight(ways, gates * hidden, hidden)
    bias = b.weight(ways, 2 * gates * hidden) if "bias" in options else None
    state = b.weight(ways, 1, hidden) if "state" in options else None
    more: list[Array | None] = [None, state]
    if op == "LSTM":
        more += [state, b.weight(ways, 3 * hidden) if "peephole" in options else None]
    attrs: dict[str, Any] = {"hidden_size": hidden, "direction": "bidirectional" if ways == 2 else "forward"}
    if op == "GRU":
        attrs["linear_before_reset"] = int("reset" in options)
    made = b.node(op, name, value, w, r, bias, *more, count=2, **attrs)
    out = hidden * ways
    if "last" in options:
        turned = b.node("Transpose", f"{name}.turned", b.outputs()[1], perm=[1, 0, 2])
        return b.node("Reshape", f"{name}.last", turned, ints(1, out)), out
    turned = b.node("Transpose", f"{name}.turned", made, perm=[0, 2, 1, 3])
    made = b.node("Reshape", f"{name}.flat", turned, ints(0, 0, out))
    if "tanh" in options:
        made = b.node("Tanh", f"{name}.tanh", made)
    if "skip" in options and width == out:
        made = b.node("Add", f"{name}.sum", made, value)
    return made, out


def recurrent_plans() -> st.SearchStrategy[RecurrentPlan]:
    """Return a strategy of chains of up to three layers."""
    options = st.frozensets(st.sampled_from(OPTIONS), max_size=4)
    layer = st.tuples(st.sampled_from(sorted(GATES)), st.integers(2, 6), options)
    return st.builds(RecurrentPlan, st.lists(layer, min_size=1, max_size=3).map(tuple), st.integers(0, 2**16))
