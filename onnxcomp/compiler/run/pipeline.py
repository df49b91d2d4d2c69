"""One pass after the other: run on a clone, verify, record, keep or roll back."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from onnxcomp.analysis.cost import Cost, model_cost
from onnxcomp.compiler.passbase import Context, Pass, PassResult
from onnxcomp.compiler.run.prepare import Prepared
from onnxcomp.compiler.run.report import PassRun
from onnxcomp.compiler.run.reproducer import write_reproducer
from onnxcomp.compiler.run.synthetic_samples import Made, make_samples
from onnxcomp.compiler.run.verify import Outputs
from onnxcomp.errors import OnnxcompError, PassError, PreconditionError, VerificationError, memory_wanted
from onnxcomp.ir.check import serialized_bytes
from onnxcomp.ir.model import Model
from onnxcomp.ir.ops import COUNTED
from onnxcomp.numerics.threads import single_threaded_blas
from onnxcomp.runtime.observe import observe_shapes
from onnxcomp.runtime.session import SessionError, missing_library

__all__ = ["Listener", "Passed", "measure", "run_passes"]


class Listener:
    """Hears how a run goes on; does nothing by itself. Override what is of interest."""

    def note(self, text: str) -> None:
        """Hear of something that the user should know."""

    def stage(self, text: str) -> None:
        """Hear that something other than a pass begins."""

    def progress(self, what: str, done: int, total: int) -> None:
        """Hear how far long work has come."""

    def pass_started(self, step: Pass, number: int, total: int) -> None:
        """Hear that pass `number` (from 1) of `total` begins."""

    def pass_finished(self, run: PassRun) -> None:
        """Hear what became of a pass."""


@dataclass(frozen=True)
class Passed:
    """What the passes of a run left: the `model`, what it gives on the verified feeds, a record of each pass.

    `made` are the samples that were made for them, None where there was no need to.
    """

    model: Model
    outputs: Outputs | None
    runs: tuple[PassRun, ...]
    before: Cost
    after: Cost
    made: Made | None = None

    @property
    def changed(self) -> bool:
        """Whether any pass changed the model."""
        return any(run.status == "changed" for run in self.runs)


def measure(prepared: Prepared, model: Model) -> Cost:
    """Return the cost of `model` at the sizes of the run; `bytes` is the size it would have as a file."""
    shapes = None
    if prepared.data.shapes or not model.graph.inputs:
        wanted = {
            v.name
            for node in model.graph.nodes
            if node.is_op(*COUNTED)
            for v in (*node.inputs, *node.outputs)
        }
        shapes = observe_shapes(
            model,
            prepared.data.sample,
            sizes=prepared.data.shapes,
            wanted=wanted,
            threads=prepared.request.threads,
            custom_op_libs=prepared.request.custom_op_libs,
        )
    return replace(model_cost(model, shapes), bytes=serialized_bytes(model))


def run_passes(prepared: Prepared, listener: Listener) -> Passed:
    """Run the pipeline of `prepared` and return what is left of its model.

    A pass whose result does not verify is rolled back and recorded, and the next one goes on from the model before it.

    Raises:
        PassError: a pass failed unforeseen; a reproducer lies beside the output.
        VerificationError: with `strict`, at the first pass that does not verify.
        OnnxcompError: what a pass refuses on purpose: its preconditions, the data.
    """
    model, outputs = prepared.original, prepared.outputs
    before = cost = measure(prepared, model)
    context = prepared.context(listener.progress)
    steps = prepared.request.passes
    runs: list[PassRun] = []
    made: Made | None = None
    for number, step in enumerate(steps, 1):
        listener.pass_started(step, number, len(steps))
        start = time.perf_counter()
        if context.data_mode == "none" and made is None and "calibration" in step.needs():
            with single_threaded_blas():
                made = make_samples(prepared.original, context)
            context = replace(context, calibration=made.samples)
            listener.note(made.note)
        run, result, given = _attempt(prepared, step, model, outputs, cost, context)
        if run.status == "changed" and result is not None:
            model, outputs = result.model, given
            cost = measure(prepared, model)
            context = replace(context, damaged=context.damaged or not step.exact)
        run = replace(run, after=cost, seconds=round(time.perf_counter() - start, 3))
        runs.append(run)
        listener.pass_finished(run)
        if prepared.request.strict and run.status in ("failed", "rolled-back"):
            raise VerificationError(f"{step.name}: {run.reason}; stopped because of --strict")
    return Passed(model, outputs, tuple(runs), before, cost, made)


def _attempt(
    prepared: Prepared, step: Pass, model: Model, outputs: Outputs | None, cost: Cost, context: Context
) -> tuple[PassRun, PassResult | None, Outputs | None]:
    """Return the record of one pass, its result, and what the new model gives on the verified feeds."""
    run = PassRun(str(step), step.name, step.exact, "unchanged", 0.0, cost, cost)
    try:
        with single_threaded_blas():
            result = step.run(model.clone(), context)
        if not isinstance(result, PassResult):
            raise TypeError(f"run returned {type(result).__name__}, not a PassResult")
    except (SessionError, VerificationError) as problem:
        # The pass built something that does not run: as bad as a result that does not verify, and no worse.
        advice = missing_library(model) if isinstance(problem, SessionError) and outputs is None else ""
        return _missed(step, replace(run, status="failed", reason=f"{problem}{advice}")), None, None
    except OnnxcompError as problem:
        if type(problem) is PassError:
            raise _crash(prepared, step, model, problem) from problem
        raise _named(step, problem) from problem
    except MemoryError as problem:
        raise PreconditionError(
            f"{step.name} takes {memory_wanted(problem)}; give fewer samples, smaller sizes (--set-shape) or a "
            "machine with more"
        ) from problem
    except (Exception, SystemExit) as problem:
        raise _crash(prepared, step, model, problem) from problem
    run = replace(run, skips=result.skips, notes=result.notes, shortfall=result.shortfall)
    if not result.changed:
        return run, None, None
    try:
        given = prepared.verifier.verify(result.model, outputs, exact=step.exact)
    except VerificationError as problem:
        return _missed(step, replace(run, status="rolled-back", reason=str(problem))), None, None
    return replace(run, status="changed", changes=result.changes), result, given


def _missed(step: Pass, run: PassRun) -> PassRun:
    """Return the record of a pass that came to nothing; where it was given a budget, that is not met."""
    if not step.may_fall_short():
        return run
    return replace(
        run, shortfall=f"the pass was {run.status.replace('-', ' ')}, so its budget is not met: {run.reason}"
    )


def _named(step: Pass, problem: OnnxcompError) -> OnnxcompError:
    """Return `problem` with the name of the pass in front, where it is the pass that refuses."""
    if isinstance(problem, PreconditionError) and step.name not in str(problem):
        return type(problem)(f"{step.name}: {problem}")
    return problem


def _crash(prepared: Prepared, step: Pass, model: Model, problem: BaseException) -> PassError:
    folder = write_reproducer(prepared.request, model, step, problem)
    reason = " ".join(f"{type(problem).__name__}: {problem}".split())
    where = f"; to reproduce it: {folder}" if folder is not None else ""
    return PassError(f"{step.name} failed unexpectedly, please report it: {reason}{where}")
