"""Model files side by side: how long they take, how much memory, how soon they are ready, what of them runs on integers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from onnxcomp.compiler.commands.compare import sizes_fixed_by
from onnxcomp.compiler.run.loading import file_facts, load_checked
from onnxcomp.compiler.run.pipeline import Listener
from onnxcomp.compiler.run.report import FileFacts, versions
from onnxcomp.compiler.run.request import Request
from onnxcomp.errors import ModelError, UsageError
from onnxcomp.ir.fixing import fix_input_shapes
from onnxcomp.ir.graph import Array
from onnxcomp.ir.model import Model
from onnxcomp.runtime.bench import Latency, Turns, batch_feeds, measure_latency
from onnxcomp.runtime.fusion import Fusion, fusion_of, is_quantized
from onnxcomp.runtime.inputs import PIECE_LIMIT, Shapes, runnable_shapes
from onnxcomp.runtime.session import Session, SessionError, missing_library
from onnxcomp.runtime.start import Start, start_fresh

__all__ = ["BenchPlan", "BenchReport", "BenchedModel", "bench_files"]

_STARTS = 3
"""Fresh processes per file, whose median is the start-up time."""


@dataclass(frozen=True)
class BenchPlan:
    """What to measure: `batches` are sizes, one that the models fix or 1 if empty; `turns` how often each model runs.

    With `fresh`, start-up time and peak memory are taken in processes of their own.
    """

    batches: tuple[int, ...] = ()
    turns: Turns = field(default_factory=Turns)
    fresh: bool = True


@dataclass(frozen=True)
class BenchedModel:
    """One file.

    `name` is what its latencies are listed under. `start_seconds` is the
    time from loading to the first result in a fresh process, `peak_bytes` the memory of one that runs the largest batch
    once, beyond what onnxruntime itself takes; None where that was not measured. `fusion` is what onnxruntime makes of
    a quantized model, None for others.
    """

    name: str
    file: FileFacts
    start_seconds: float | None
    peak_bytes: int | None
    fusion: Fusion | None


@dataclass(frozen=True)
class BenchReport:
    """What was measured: one entry of `latencies` per model and batch size, ratios to the first model."""

    models: tuple[BenchedModel, ...]
    latencies: tuple[Latency, ...]
    threads: int
    rounds: int
    repeats: int
    warmup: int
    seed: int
    input_shapes: Mapping[int, Shapes]
    notes: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=lambda: versions())


@dataclass(frozen=True)
class _Candidate:
    """A loaded file: `source` is what onnxruntime is given, the path wherever it takes that."""

    name: str
    path: Path
    model: Model
    shapes: Shapes
    source: Model | str
    session: Session


def bench_files(
    paths: Mapping[str, Path], request: Request, plan: BenchPlan, listener: Listener
) -> BenchReport:
    """Return what the model files at `paths`, by name, take on the same noise, as `plan` says, ratios to the first.

    Of `request`, what says how files are trusted and run counts: threads, seed, sizes, links, libraries.

    Raises:
        UsageError, ModelError: where there is nothing to measure, a file cannot be used, inputs differ, or sizes are
            missing or contradict the models.
        SessionError: where a model does not load or run, naming it.
    """
    _check(list(paths.values()), request, plan)
    candidates = _candidates(paths, request, listener)
    feeds, used = _feeds(candidates, request, plan)
    listener.stage(f"measuring {len(candidates)} models" if len(candidates) > 1 else "measuring")
    made = measure_latency(
        {c.name: c.session for c in candidates},
        feeds,
        plan.turns,
        threads=request.threads,
    )
    notes: list[str] = []
    models = tuple(_benched(c, feeds, request, plan, notes, listener) for c in candidates)
    for note in notes:
        listener.note(note)
    return BenchReport(
        models,
        made.latencies,
        request.threads,
        plan.turns.rounds,
        plan.turns.repeats,
        plan.turns.warmup,
        request.seed,
        used,
        tuple(notes),
    )


def _check(paths: Sequence[Path], request: Request, plan: BenchPlan) -> None:
    if not paths:
        raise UsageError("there is nothing to measure; give one model or more")
    for name, value, least in (
        ("rounds", plan.turns.rounds, 1),
        ("repeats", plan.turns.repeats, 1),
        ("warmup", plan.turns.warmup, 0),
        ("threads", request.threads, 0),
        ("seed", request.seed, 0),
        *(("batch", batch, 1) for batch in plan.batches),
    ):
        if value < least:
            raise UsageError(f"--{name} {value}: give {least} or more")
    for path in paths:
        if not path.is_file():
            kind = "is a folder" if path.is_dir() else "does not exist"
            raise UsageError(f"the model {path} {kind}; give the path of an .onnx file")
    for library in request.custom_op_libs:
        if not Path(library).is_file():
            raise UsageError(f"--custom-op-lib {library} does not exist")


def _candidates(paths: Mapping[str, Path], request: Request, listener: Listener) -> list[_Candidate]:
    found: list[_Candidate] = []
    for name, path in paths.items():
        listener.stage(f"loading {path.name}")
        model, shapes = load_checked(
            path,
            allow_links=request.allow_links,
            custom_op_libs=request.custom_op_libs,
            sizes=request.set_shape if not found else None,
        )
        if found:
            _check_inputs(model, found[0])
        source, session = _open(name, path, model, request)
        found.append(_Candidate(name, path, model, shapes, source, session))
    return found


def _check_inputs(model: Model, first: _Candidate) -> None:
    sizes_fixed_by(model, first.model)
    for value in model.graph.inputs:
        its = next(v for v in first.model.graph.inputs if v.name == value.name)
        if value.dtype != its.dtype:
            raise ModelError(
                f"input '{value.name}' is {its.dtype} in one model and {value.dtype} in the other; "
                "only models with the same inputs can be compared"
            )


def _open(name: str, path: Path, model: Model, request: Request) -> tuple[Model | str, Session]:
    """Return a session over the file, or over what was made of it: onnxruntime follows no links to external data."""
    open_session = partial(Session, threads=request.threads, custom_op_libs=request.custom_op_libs)
    try:
        return str(path), open_session(str(path))
    except SessionError as problem:
        if model.weight_bytes > PIECE_LIMIT:
            raise SessionError(f"{name}: {problem}") from problem
    try:
        return model, open_session(model)
    except SessionError as problem:
        raise SessionError(f"{name}: {problem}{missing_library(model)}") from problem


def _feeds(
    candidates: Sequence[_Candidate], request: Request, plan: BenchPlan
) -> tuple[dict[int, dict[str, Array]], dict[int, Shapes]]:
    """Return one feed per batch size that fits all candidates, and its shapes."""
    first = candidates[0]
    model = first.model.clone()
    for other in candidates[1:]:
        fix_input_shapes(model, sizes_fixed_by(other.model, model))
    known = first.shapes or runnable_shapes(model, first.session, {}, request.seed) or {}
    sizes = _sizes(model, known, request.set_shape)
    batches = plan.batches or (_only_batch(model, request.set_shape),)
    feeds = batch_feeds(model, tuple(dict.fromkeys(batches)), sizes, request.seed)
    return feeds, {batch: {n: a.shape for n, a in feed.items()} for batch, feed in feeds.items()}


def _only_batch(model: Model, given: Mapping[str, tuple[int | None, ...]]) -> int:
    """Return the batch size where none was asked for: the one given with the sizes, or the one that is fixed, else 1."""
    for value in model.graph.inputs:
        for sizes in (given.get(value.name), value.shape):
            if sizes and isinstance(sizes[0], int):
                return sizes[0]
    return 1


def _sizes(model: Model, known: Shapes, given: Mapping[str, tuple[int | None, ...]]) -> Shapes:
    """Return the sizes `given` by the user, filled up with those declared and those that the model is `known` to run at.

    An input whose sizes are not all known then is left out.
    """
    # Names of no input stay, for the message about them.
    found = {name: tuple(s or 1 for s in sizes) for name, sizes in given.items()}
    for value in model.graph.inputs:
        wanted, ran, declared = given.get(value.name, ()), known.get(value.name, ()), value.shape or ()
        rank = len(wanted) or len(declared) or len(ran)
        choices = [(_at(wanted, axis), _at(declared, axis), _at(ran, axis)) for axis in range(rank)]
        sizes = [next((s for s in choice if isinstance(s, int)), None) for choice in choices]
        # The first axis is mostly the batch, whose size is not taken from here.
        sizes[:1] = [s or 1 for s in sizes[:1]]
        found.pop(value.name, None)
        if sizes and None not in sizes:
            found[value.name] = tuple(s for s in sizes if s is not None)
    return found


def _at(sizes: Sequence[int | str | None], axis: int) -> int | str | None:
    return sizes[axis] if axis < len(sizes) else None


def _benched(
    candidate: _Candidate,
    feeds: Mapping[int, Mapping[str, Array]],
    request: Request,
    plan: BenchPlan,
    notes: list[str],
    listener: Listener,
) -> BenchedModel:
    fusion = None
    if is_quantized(candidate.model):
        fusion = fusion_of(candidate.model, custom_op_libs=request.custom_op_libs)
    started, peak = None, None
    if plan.fresh and isinstance(candidate.source, str):
        listener.stage(f"starting {candidate.path.name} afresh")
        started, peak = _fresh(candidate.path, feeds, request)
    elif plan.fresh:
        notes.append(
            f"{candidate.name}: onnxruntime does not load the file by its path, so start-up time and memory are not known"
        )
    facts = file_facts(candidate.path, allow_links=request.allow_links)
    return BenchedModel(candidate.name, facts, started, peak, fusion)


def _fresh(
    path: Path, feeds: Mapping[int, Mapping[str, Array]], request: Request
) -> tuple[float, int | None]:
    """Return the seconds to the first result of the smallest batch, and the bytes that the largest takes."""

    def start(batch: int, processes: int) -> Start:
        return start_fresh(
            path,
            feeds[batch],
            threads=request.threads,
            custom_op_libs=request.custom_op_libs,
            processes=processes,
        )

    small = start(min(feeds), _STARTS)
    return small.seconds, (start(max(feeds), 1) if len(feeds) > 1 else small).peak_bytes
