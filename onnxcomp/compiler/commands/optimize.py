"""A whole run: passes, comparison, conditions, and an output file that is there whole or not at all.

The new file is written into a folder of its own beside the output, verified and compared there, and only then moved to
its place, so that a file of the output's name is always one that passed.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from onnxcomp import __version__
from onnxcomp.compiler.run.conditions import compare_with_original, judge
from onnxcomp.compiler.run.loading import file_facts
from onnxcomp.compiler.run.pipeline import Listener, Passed, run_passes
from onnxcomp.compiler.run.prepare import Prepared
from onnxcomp.compiler.run.report import Condition, FileFacts, Report, RunStatus, to_json
from onnxcomp.compiler.run.verdict import Evidence, Verdict, verdict_on
from onnxcomp.compiler.target.files import load_target
from onnxcomp.compiler.target.lint import hard_notes
from onnxcomp.errors import (
    BudgetError,
    NothingChanged,
    OnnxcompError,
    PreconditionError,
    UsageError,
    VerificationError,
)
from onnxcomp.ir.atomic import check_output, publish, replacing
from onnxcomp.ir.check import serialized_bytes
from onnxcomp.ir.convert import minimum_ir_version
from onnxcomp.ir.files import save
from onnxcomp.ir.model import Model
from onnxcomp.ir.randomness import without_seeds
from onnxcomp.ir.temporary import prefix, remove_leftovers
from onnxcomp.runtime.compare import Comparison
from onnxcomp.runtime.session import SessionError

__all__ = ["Outcome", "run"]

_PREFIX = "onnxcomp."


@dataclass(frozen=True)
class Outcome:
    """How a run ended: the `model` it reached, the `report`, the files `written`.

    `verdict` is the error that says why the run is not simply done (nothing changed, a bound missed, a broken file),
    None where it is.
    """

    model: Model
    report: Report
    written: tuple[Path, ...]
    error: OnnxcompError | None


@dataclass(frozen=True)
class _Ending:
    """What the end of a run found out, in the order in which it is found out."""

    comparison: Comparison | None = None
    compared_on: str | None = None
    conditions: tuple[Condition, ...] = ()
    output: FileFacts | None = None
    written: tuple[Path, ...] = ()
    status: RunStatus = "done"
    error: OnnxcompError | None = None
    verdict: Verdict | None = None


def run(prepared: Prepared, listener: Listener | None = None) -> Outcome:
    """Run the pipeline of `prepared`, judge the result, write output and reports.

    Raises:
        PassError, UsageError, ModelError, DataError: where a pass or the disk refuses; nothing is left behind but, for
            an unforeseen failure, a reproducer.
    """
    listener = listener or Listener()
    start = time.perf_counter()
    remove_leftovers(prepared.request.output.parent if prepared.request.output else None)
    for note in (*prepared.loaded.notes, *prepared.verifier.notes):
        listener.note(note)
    passed = run_passes(prepared, listener)
    shortfalls = tuple(f"{r.name}: {r.shortfall}" for r in passed.runs if r.shortfall)
    changed = passed.changed or bool(prepared.loaded.settled)
    model = _stamped(prepared, passed) if changed else prepared.original
    model = without_seeds(model, prepared.original)
    objections = hard_notes(model, load_target(prepared.request.target))
    for note in objections:
        listener.note(note)
    if not changed and not shortfalls and not prepared.request.allow_noop:
        message = "no pass changed the model, so nothing was written; --allow-noop writes a copy"
        ending = _Ending(status="unchanged", error=NothingChanged(message))
    else:
        ending = _finish(prepared, passed, model, changed, shortfalls, listener)
    for note in prepared.timings.notes:
        listener.note(note)
    try:
        report = _report(prepared, passed, model, ending, objections, time.perf_counter() - start)
        for path in prepared.request.reports:
            with replacing(path) as (stream,):
                stream.write(to_json(report).encode("utf-8", "backslashreplace"))
    except BaseException:
        for path in ending.written:
            path.unlink(missing_ok=True)
        raise
    return Outcome(model, report, (*ending.written, *prepared.request.reports), ending.error)


def _finish(
    prepared: Prepared,
    passed: Passed,
    model: Model,
    changed: bool,
    shortfalls: tuple[str, ...],
    listener: Listener,
) -> _Ending:
    """Write the file aside, verify, compare and judge it, and move it to where it belongs."""
    target = prepared.request.output
    if target is None:
        return _judged(prepared, passed, model, serialized_bytes(model), changed, shortfalls, listener)
    with _folder_beside(target) as folder:
        listener.stage(f"writing {target.name}")
        staged = _write(prepared, model, folder / target.name, changed)
        try:
            prepared.verifier.verify_file(staged[0], passed.outputs)
            facts = file_facts(staged[0], allow_links=False)
            ending = _judged(prepared, passed, str(staged[0]), facts.bytes, changed, shortfalls, listener)
        except (VerificationError, SessionError) as problem:
            message = f"the final file fails verification, so nothing was written: {problem}"
            return _Ending(status="broken", error=VerificationError(message))
        if ending.status == "budget-not-met":
            best = prepared.request.best_effort
            assert best is not None  # because there is an output
            if len(staged) > 1:
                # External data is referred to by the name of the file it belongs to.
                (folder / "best").mkdir()
                staged = _write(prepared, model, folder / "best" / best.name, changed)
            target = best
        places = _places(prepared, staged, target)
        publish(list(reversed(list(zip(staged, places, strict=True)))))
    ending = replace(ending, output=replace(facts, path=str(target)), written=tuple(places))
    if ending.status == "budget-not-met":
        ending = replace(ending, error=BudgetError(f"{ending.error}; the best model reached is {target}"))
    return ending


def _judged(
    prepared: Prepared,
    passed: Passed,
    result: Model | str,
    size: int,
    changed: bool,
    shortfalls: tuple[str, ...],
    listener: Listener,
) -> _Ending:
    made = passed.made.samples if passed.made is not None else None
    comparison, compared_on = compare_with_original(prepared, result, listener, made)
    conditions = judge(prepared, comparison, size, passed.model, result, listener)
    verdict = _verdict(prepared, passed, size, comparison, compared_on)
    missed = [*(str(c) for c in conditions if not c.met), *shortfalls]
    request = prepared.request
    # Who set a bound on the loss, and sees it met, has said what is acceptable.
    accepted = request.accept_ruin or (request.judged and all(c.met for c in conditions))
    if verdict.quality == "ruined" and changed and not accepted:
        missed.append(f"the result is ruined: {verdict.reason}{_remedies(prepared)}")
    status: RunStatus = "done" if changed else "unchanged"
    ending = _Ending(comparison, compared_on, conditions, status=status, verdict=verdict)
    if not missed:
        return ending
    return replace(ending, status="budget-not-met", error=BudgetError(f"not reached: {'; '.join(missed)}"))


def _verdict(
    prepared: Prepared, passed: Passed, size: int, comparison: Comparison | None, compared_on: str | None
) -> Verdict:
    """Return the verdict on the result, whose file has `size` bytes."""
    given = prepared.loaded.facts.bytes if prepared.loaded.facts is not None else passed.before.bytes
    made = (passed.made.facts,) if passed.made is not None else ()
    facts = next((f for f in (*prepared.data.facts, *made) if f.role == compared_on), None)
    if facts is None:
        evidence = Evidence("noise", noise=True)
    else:
        evidence = Evidence(f"{facts.role} data {facts.source}", noise=facts.mode != "real")
    before, after = replace(passed.before, bytes=given), replace(passed.after, bytes=size)
    return verdict_on(before, after, comparison, evidence, ran=prepared.verifier.runs)


def _remedies(prepared: Prepared) -> str:
    """Return the options that are most likely to cure too great a loss, as the end of a sentence."""
    lossy = [step for step in prepared.request.passes if not step.exact]
    texts = [f"`{text}`" for step in reversed(lossy) for text in step.milder()][:2]
    samples = prepared.request.calibration
    if isinstance(samples, str) and (samples == "none" or samples.startswith("random")):
        texts.insert(0, "real samples for --calibration")
    texts.append("--exclude NODE for what `onnxcomp sensitivity` puts first")
    return f"; try {', or '.join(texts[:3])} (--accept-ruin writes it all the same)"


# --- files -----------------------------------------------------------------------------------------------------------
@contextmanager
def _folder_beside(path: Path) -> Iterator[Path]:
    """Make a folder in the folder of `path`, where renaming is atomic; it is gone when the block ends."""
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{prefix()}", dir=path.parent))
    except OSError as problem:
        raise UsageError(f"cannot write into {path.parent}: {problem.strerror or problem}") from problem
    try:
        yield folder
    except UsageError as problem:
        # The user knows the output by its own place.
        raise UsageError(str(problem).replace(str(folder), str(path.parent))) from problem
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write(prepared: Prepared, model: Model, path: Path, changed: bool) -> list[Path]:
    """Write `model` to `path`, or a copy of the input file where nothing changed, and return the files written.

    A file of an old opset is not copied: what was verified is the model it was converted to.
    """
    source, facts = prepared.request.source, prepared.loaded.facts
    converted = model.converted_from is not None
    if changed or converted or source is None or facts is None or facts.external:
        return save(model, path)
    with source.open("rb") as given, replacing(path) as (stream,):
        shutil.copyfileobj(given, stream)
    return [path]


def _places(prepared: Prepared, staged: list[Path], target: Path) -> list[Path]:
    """Return where the files `staged` go: the first to `target`, the others beside it under their own names."""
    places = [target, *(target.with_name(path.name) for path in staged[1:])]
    for place in places:
        check_output(place, force=prepared.request.force, sources=prepared.original.sources)
    return places


def _stamped(prepared: Prepared, passed: Passed) -> Model:
    """Return the model with what made it in its metadata; what an earlier run left there is replaced."""
    model, wanted = passed.model, prepared.request.ir_version
    if wanted is not None and minimum_ir_version(model) > wanted:
        raise PreconditionError(
            f"--ir-version {wanted} is too old for the result, which needs {minimum_ir_version(model)}"
        )
    model = model.clone()
    kept = {key: text for key, text in model.metadata.items() if not key.startswith(_PREFIX)}
    made = {"pipeline": str(prepared.request.pipeline), "version": __version__}
    if prepared.loaded.facts is not None:
        made["input_sha256"] = prepared.loaded.facts.sha256
    if prepared.data.mode != "real":
        made["calibration"] = prepared.data.mode
    if passed.made is not None:
        made["calibration_samples"] = passed.made.note
    model.metadata = {**kept, **{_PREFIX + key: text for key, text in made.items()}}
    return model


def _report(
    prepared: Prepared,
    passed: Passed,
    model: Model,
    ending: _Ending,
    objections: tuple[str, ...],
    seconds: float,
) -> Report:
    request = prepared.request
    return Report(
        pipeline=str(request.pipeline),
        target=request.target,
        status=ending.status,
        seed=request.seed,
        threads=request.threads,
        seconds=round(seconds, 3),
        before=passed.before,
        after=passed.after,
        runs=passed.runs,
        input=prepared.loaded.facts,
        output=ending.output,
        metric=prepared.metric,
        comparison=ending.comparison,
        compared_on=ending.compared_on,
        conditions=ending.conditions,
        verdict=ending.verdict,
        data=(*prepared.data.facts, *((passed.made.facts,) if passed.made else ())),
        excluded=tuple(sorted(prepared.excluded)),
        input_shapes=prepared.data.shapes,
        verification="full" if prepared.verifier.runs else "structural",
        notes=(
            *prepared.loaded.notes,
            *prepared.verifier.notes,
            *prepared.timings.notes,
            *((passed.made.note,) if passed.made else ()),
            *objections,
        ),
        timings=dict(prepared.timings.used),
        nodes={old: new or None for old, new in model.aliases.items()},
    )
