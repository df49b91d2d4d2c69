"""The test harness for authors of passes: hold a pass, or a cut, against what it promises.

    from onnxcomp.testing import check_pass

    def test_an_identity_goes() -> None:
        check_pass(RemoveDead(), '''<ir_version: 8, opset_import: ["" : 17]>
            net (float[N,2] x) => (float[N,2] y) { h = Identity(x)  y = Relu(h) }''',
            changed=True, removed=["Identity"])

Models are given as ONNX text (stored tensors without values get random ones, see `onnxcomp.ir.parse`), as ModelProto or
as Model. Outputs are compared in onnxruntime with its optimizations disabled. Every failure is an AssertionError
that says where the two sides part.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcomp.analysis.channels import ChannelGroups, channel_groups, default_shapes
from onnxcomp.analysis.cost import model_cost
from onnxcomp.compiler.passbase import Context, Pass, PassResult
from onnxcomp.compiler.spec import Pipeline
from onnxcomp.errors import ModelError
from onnxcomp.ir.check import check_model, check_names, interface
from onnxcomp.ir.graph import Node
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import ModelLike, as_model, valueless
from onnxcomp.ir.proto import to_proto, write_node
from onnxcomp.ir.shapes import infer_types
from onnxcomp.numerics.arrays import Array, Mask, Shapes
from onnxcomp.runtime.regimes import REGIMES, concrete_shape, made_feeds
from onnxcomp.runtime.session import Session, SessionError

__all__ = [
    "CUT_TOLERANCE",
    "REGIMES",
    "TOLERANCES",
    "Cut",
    "assert_cut_equals_masked",
    "assert_equal_outputs",
    "assert_same_graph",
    "assert_valid",
    "check_cut",
    "check_pass",
    "fingerprint",
    "made_feeds",
    "random_keep",
]


TOLERANCES = {"float64": 1e-10, "float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
"""Largest difference by dtype, relative to the largest magnitude of the output; other dtypes must agree exactly."""

CUT_TOLERANCE = 1e-5
"""The same for a cut against its mask: both add the same products, in another order."""

_TINY = 1e-6
"""Magnitude below which an output counts as this large: rounding around zero has no scale of its own."""


# --- outputs ---------------------------------------------------------------------------------------------------------
def assert_equal_outputs(
    reference: ModelLike,
    candidate: ModelLike,
    *,
    tolerance: float | None = None,
    regimes: Sequence[str] = REGIMES,
    batches: Sequence[int] = (1, 3),
    seeds: Iterable[int] = (0,),
    shapes: Shapes | None = None,
) -> float:
    """Assert that two models compute the same, and return the largest difference relative to an output's scale.

    Every regime, batch size (where the first axis of an input is free) and seed is run, without optimizations. Names,
    dtypes and shapes of outputs must be equal; floats must agree to `tolerance` (default: `TOLERANCES`) times the
    largest magnitude of that output in the reference, everything else exactly; what is not finite must be so in both.

    Raises:
        AssertionError: naming output, regime, batch and seed.
    """
    before, after = as_model(reference), as_model(candidate)
    old, new = _session(before), _session(after)
    assert old.outputs == new.outputs, f"outputs were {old.outputs} and are {new.outputs}"
    worst = 0.0
    for feed, where in _feeds(before, regimes, batches, seeds, shapes):
        wanted, got = _run(old, feed, "the reference", where), _run(new, feed, "the candidate", where)
        for name, value in wanted.items():
            worst = max(worst, _gap(value, got[name], tolerance, f"output {name!r}, {where}"))
    return worst


def _session(model: Model) -> Session:
    try:
        return Session(model, optimize=False, threads=1)
    except SessionError as problem:
        raise AssertionError(f"onnxruntime does not load the model: {problem}") from problem


def _run(session: Session, feed: Mapping[str, Array], who: str, where: str) -> dict[str, Array]:
    try:
        return session.run(feed)
    except SessionError as problem:
        raise AssertionError(f"{who} does not run ({where}): {problem}") from problem


def _feeds(
    model: Model,
    regimes: Sequence[str],
    batches: Sequence[int],
    seeds: Iterable[int],
    shapes: Shapes | None,
) -> Iterator[tuple[dict[str, Array], str]]:
    free = [v for v in model.graph.inputs if v.name not in (shapes or {})]
    sizes = batches if any(v.shape and not isinstance(v.shape[0], int) for v in free) else (1,)
    for seed in seeds:
        for regime in regimes:
            for batch in sizes:
                feed = made_feeds(model, regime, seed=seed, batch=batch, shapes=shapes)
                yield feed, f"regime {regime}, batch {batch}, seed {seed}"


def _gap(wanted: Any, got: Any, tolerance: float | None, where: str) -> float:
    """Return the difference of two arrays relative to the scale of the first; fail where it is beyond tolerance."""
    a, b = np.asarray(wanted), np.asarray(got)
    assert (a.dtype, a.shape) == (b.dtype, b.shape), (
        f"{where}: {a.dtype}{a.shape} has become {b.dtype}{b.shape}"
    )
    allowed = TOLERANCES.get(a.dtype.name)
    if allowed is None:
        assert np.array_equal(a, b), f"{where}: {np.count_nonzero(a != b)} of {a.size} values differ"
        return 0.0
    x, y = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(x)
    assert np.array_equal(x[~finite], y[~finite], equal_nan=True), f"{where}: differs where it is not finite"
    assert np.isfinite(y[finite]).all(), f"{where}: has become NaN or Inf"
    scale = max(float(np.abs(x[finite]).max(initial=0.0)), _TINY)
    gap = float(np.abs(x[finite] - y[finite]).max(initial=0.0)) / scale
    limit = allowed if tolerance is None else tolerance
    assert gap <= limit, (
        f"{where}: differs by {gap:.3g} of its largest value {scale:.3g}; allowed is {limit:g}"
    )
    return gap


# --- models ----------------------------------------------------------------------------------------------------------
def assert_valid(model: Model, like: Model | None = None) -> None:
    """Assert that `model` is sound: names, the ONNX checker in full, strict shape inference, onnxruntime loads it.

    With `like`, the graph's inputs and outputs must be declared as there, and the opset must be the same.
    """
    try:
        check_names(model)
        check_model(model)
    except ModelError as problem:
        raise AssertionError(f"the model is not valid: {problem}") from problem
    _session(model)
    if like is not None:
        assert interface(model) == interface(like), "the graph's inputs or outputs are declared otherwise"
        assert model.opset_imports == like.opset_imports, "the opset is another"


def fingerprint(model: Model) -> str:
    """Return a digest of everything that `model` writes to a file; the order of stored tensors does not count."""
    proto = to_proto(model)
    tensors = sorted(t.SerializeToString() for t in proto.graph.initializer)
    del proto.graph.initializer[:]
    return hashlib.sha256(b"".join([proto.SerializeToString(deterministic=True), *tensors])).hexdigest()


def assert_same_graph(expected: ModelLike, actual: Model) -> None:
    """Assert that two graphs are the same but for the names of nodes and inner values.

    Nodes are compared in order, stored tensors by dtype, shape and (to `TOLERANCES`) values. A stored tensor that an
    expected ONNX text leaves without values stands for any values of that shape.
    """
    any_values = set(valueless(expected)) if isinstance(expected, str) else set()
    wanted = as_model(expected)
    ours, theirs = ([n.op for n in m.graph.nodes] for m in (wanted, actual))
    assert ours == theirs, f"the nodes should be {' '.join(ours)} and are {' '.join(theirs)}"
    names = {v.name: v.name for v in wanted.graph.inputs}
    for mine, other in zip(wanted.graph.nodes, actual.graph.nodes, strict=True):
        where = f"{other.op} {other.name!r}"
        assert len(mine.inputs) == len(other.inputs), f"{where} has {len(other.inputs)} inputs"
        assert len(mine.outputs) == len(other.outputs), f"{where} has {len(other.outputs)} outputs"
        assert _attributes(mine) == _attributes(other), (
            f"{where}: {_attributes(other)}, not {_attributes(mine)}"
        )
        for index, value in enumerate(mine.inputs):
            array, found = mine.constant(index), other.constant(index)
            if array is None or found is None:
                assert (array is None) == (found is None), f"{where}: input {index} is (not) a constant"
                assert names.get(value.name, "") == other.inputs[index].name, (
                    f"{where}: input {index} is another"
                )
            elif value.name in any_values:
                assert (array.dtype, array.shape) == (found.dtype, found.shape), (
                    f"{where}: {value.name!r} is {found.shape}"
                )
            else:
                _gap(array, found, None, f"{where}: stored tensor {value.name!r}")
        names.update((a.name, b.name) for a, b in zip(mine.outputs, other.outputs, strict=True))
    ends = [names.get(v.name, v.name) for v in wanted.graph.outputs]
    assert ends == [v.name for v in actual.graph.outputs], f"the outputs should be {ends}"


def _attributes(node: Node) -> list[str]:
    proto = write_node(node)
    return [proto.domain, *sorted(" ".join(str(a).split()) for a in proto.attribute)]


# --- passes ----------------------------------------------------------------------------------------------------------
def check_pass(
    step: Pass | str,
    before: ModelLike,
    after: ModelLike | None = None,
    *,
    changed: bool,
    skips: Sequence[str] | None = None,
    added: Sequence[str] | None = None,
    removed: Sequence[str] | None = None,
    context: Context | None = None,
    batches: Sequence[int] = (1, 3),
    shapes: Shapes | None = None,
) -> PassResult:
    """Run one pass (an instance, or its text) on `before`, assert all that a pass promises, and return its result.

    Always: the options are consistent, `before` is left as it was, the result is valid with the same inputs and
    outputs, `changed` is true if and only if the model differs, and it runs. A pass that claims to be exact must give
    equal outputs and change nothing when run again.

    Args:
        step: the pass.
        before: the model it gets (a clone of).
        after: the graph that must come out, if given (see `assert_same_graph`).
        changed: whether anything may change.
        skips: if given, one text per skip of the result, in order, that occurs in `where: reason`.
        added: if given, the op types (repeated where several) that the result has more of.
        removed: if given, the op types that the result has fewer of.
        context: what the pass works with; by default no calibration data.
        batches: batch sizes at which outputs are compared.
        shapes: concrete shapes of inputs with free axes.
    """
    task = _single(step)
    task.check()
    model = as_model(before)
    assert_valid(model)
    mark = fingerprint(model)
    if context is None:
        sizes = {v.name: concrete_shape(v, 1, shapes) for v in model.graph.inputs}
        context = Context(model.clone(), data_mode="none", input_shapes=sizes)
    result = task.run(model.clone(), context)
    assert fingerprint(model) == mark, f"{task.name} writes into the arrays of the model it was given"
    assert result.changed == changed, f"{task.name} says changed={result.changed}; changes: {result.changes}"
    differs = fingerprint(result.model) != mark
    assert differs == changed, (
        f"{task.name} says changed={changed}, and the model {'differs' if differs else 'does not differ'}"
    )
    assert_valid(result.model, like=model)
    _check_counts(model, result.model, added, removed)
    if skips is not None:
        _check_skips(result, skips)
    if after is not None:
        assert_same_graph(after, result.model)
    if task.exact:
        assert_equal_outputs(model, result.model, batches=batches, shapes=shapes)
        again = task.run(result.model.clone(), context)
        assert not again.changed, f"{task.name} is exact, and finds more when run again: {again.changes}"
    else:
        _assert_runs(model, result.model, batches, shapes)
    return result


def _single(step: Pass | str) -> Pass:
    if isinstance(step, Pass):
        return step
    passes = Pipeline.parse(step).passes
    assert len(passes) == 1, f"check_pass takes one pass, not {len(passes)}"
    return passes[0]


def _check_counts(
    before: Model, after: Model, added: Sequence[str] | None, removed: Sequence[str] | None
) -> None:
    old, new = (Counter(n.op for n in m.graph.nodes) for m in (before, after))
    for wanted, found, word in ((added, new - old, "added"), (removed, old - new, "removed")):
        if wanted is not None:
            assert Counter(wanted) == found, f"nodes {word}: {dict(found)}, not {dict(Counter(wanted))}"


def _check_skips(result: PassResult, wanted: Sequence[str]) -> None:
    found = [f"{s.where}: {s.reason}" for s in result.skips]
    matches = len(found) == len(wanted) and all(w in f for w, f in zip(wanted, found, strict=True))
    assert matches, f"skips are {found}, not {list(wanted)}"


def _assert_runs(before: Model, after: Model, batches: Sequence[int], shapes: Shapes | None) -> None:
    old, new = _session(before), _session(after)
    for feed, where in _feeds(before, REGIMES[:1], batches, (0,), shapes):
        wanted, got = _run(old, feed, "the input", where), _run(new, feed, "the result", where)
        for name, value in wanted.items():
            assert got[name].shape == value.shape, f"output {name!r} is {got[name].shape}, not {value.shape}"
            finite = value.dtype.kind != "f" or bool(np.isfinite(got[name][np.isfinite(value)]).all())
            assert finite, f"output {name!r} has become NaN or Inf ({where})"


# --- cuts ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Cut:
    """One application of the oracle: what was kept, and the two models that must agree."""

    groups: ChannelGroups
    keep: Mapping[str, Mask]
    pruned: Model
    masked: Model


def random_keep(groups: ChannelGroups, seed: int = 0, share: float = 0.5) -> dict[str, Mask]:
    """Return a random mask for every group that is not blocked: about `share` of its free units stay, never all."""
    rng = np.random.default_rng(seed)
    keep: dict[str, Mask] = {}
    for group in groups:
        if group.blocked:
            continue
        mask: Mask = ~group.free | (rng.random(group.units) < share)
        if mask.all():
            mask[rng.choice(np.flatnonzero(group.free))] = False
        for span in group.spans:
            if not mask[span].any():
                mask[rng.choice(span)] = True
        keep[group.name] = mask
    return keep


def check_cut(
    model: ModelLike,
    keep: Mapping[str, Mask] | int = 0,
    *,
    shapes: Shapes | None = None,
    excluded: Mapping[str, str] | None = None,
    tolerance: float = CUT_TOLERANCE,
    batches: Sequence[int] = (1, 3),
    regimes: Sequence[str] = REGIMES,
) -> Cut:
    """Cut channels out of `model` and assert that this equals zeroing them where they are consumed; return both.

    `keep` holds the mask of each channel group to cut, or is the seed of random masks for all groups at once. `shapes`
    are concrete shapes of inputs with free axes. Beyond `assert_cut_equals_masked`: every axis of every member has
    lost exactly what its group lost, and every value has the shape that was foretold.
    """
    original = as_model(model)
    mark = fingerprint(original)
    inferred = None if shapes is None else _static_types(original, shapes)
    groups = channel_groups(original, inferred, excluded=excluded)
    masks = random_keep(groups, keep) if isinstance(keep, int) else keep
    pruned, masked = original.clone(), original.clone()
    groups.take(pruned, masks)
    groups.mask(masked, masks)
    assert fingerprint(original) == mark, "the cut writes into the arrays of the model it was given"
    _check_sizes(original, pruned, groups, masks, shapes)
    assert_cut_equals_masked(
        original, pruned, masked, tolerance=tolerance, batches=batches, regimes=regimes, shapes=shapes
    )
    return Cut(groups, masks, pruned, masked)


def assert_cut_equals_masked(
    original: Model,
    pruned: Model,
    masked: Model,
    *,
    tolerance: float = CUT_TOLERANCE,
    batches: Sequence[int] = (1, 3),
    regimes: Sequence[str] = REGIMES,
    shapes: Shapes | None = None,
) -> None:
    """Assert that `pruned` computes what `masked` does, is valid, and is smaller than `original` in every part.

    Also that the masks are visible: were the masked model equal to the original, nothing would be proved.
    """
    assert_valid(pruned, like=original)
    assert_equal_outputs(masked, pruned, tolerance=tolerance, batches=batches, regimes=regimes, shapes=shapes)
    before, after = original.graph.constants, pruned.graph.constants
    for name, constant in after.items():
        if name not in before:
            assert constant.values.dtype.kind == "i", f"a new stored tensor {name!r} is no shape constant"
            continue
        old, new = before[name].values.shape, constant.values.shape
        shrinks = len(old) == len(new) and all(a >= b for a, b in zip(old, new, strict=True))
        assert shrinks, f"stored tensor {name!r} was {old} and is {new}"
    small, large = model_cost(pruned, None), model_cost(original, None)
    assert small.parameters < large.parameters, "nothing became smaller"
    try:
        assert_equal_outputs(original, masked, tolerance=tolerance, batches=batches[:1], shapes=shapes)
    except AssertionError:
        return
    raise AssertionError("the masks change no output, so that the comparison proves nothing")


def _static_types(model: Model, shapes: Shapes) -> dict[str, tuple[int, ...]]:
    types = infer_types(model, dict(shapes))
    return {name: kind.static for name, kind in types.items() if kind.static is not None}


def _check_sizes(
    original: Model, pruned: Model, groups: ChannelGroups, keep: Mapping[str, Mask], shapes: Shapes | None
) -> None:
    stays: dict[tuple[str, int], Mask] = {}
    for group in groups:
        for member in group.members if group.name in keep else ():
            here = (member.units < 0) | np.asarray(keep[group.name], bool)[member.units]
            key = (member.name, member.axis)
            stays[key] = stays.get(key, np.ones_like(here)) & here
    lost = {key: int((~mask).sum()) for key, mask in stays.items()}
    for (name, axis), count in lost.items():
        was, now = (m.graph.constants[name].values.shape[axis] for m in (original, pruned))
        assert now == was - count, (
            f"axis {axis} of {name!r} has {now} positions; {was} less {count} should be left"
        )
    foretold = groups.shapes_after(keep)
    found = default_shapes(pruned) if shapes is None else _static_types(pruned, shapes)
    for name, shape in foretold.items():
        assert found.get(name, shape) == shape, f"value {name!r} is {found[name]}, not {shape}"
