"""What Python code calls: `optimize`, `sensitivity` and `bench`, the same runs that the command line starts."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from onnxcomp.compiler.channel_pruning.technique import PruneChannels
from onnxcomp.compiler.commands.bench import BenchPlan, BenchReport, bench_files
from onnxcomp.compiler.commands.optimize import run
from onnxcomp.compiler.commands.sensitivity import Sensitivity, measure_sensitivity
from onnxcomp.compiler.evaluation.technique_registry import make_technique
from onnxcomp.compiler.passbase import Pass
from onnxcomp.compiler.run.pipeline import Listener
from onnxcomp.compiler.run.prepare import prepare
from onnxcomp.compiler.run.report import Report
from onnxcomp.compiler.run.request import Metric, Request
from onnxcomp.compiler.run.run_options import MODEL_OPTIONS, Kind, keywords, run_option
from onnxcomp.compiler.spec import Pipeline
from onnxcomp.compiler.target.files import DEFAULT_TARGET
from onnxcomp.errors import UsageError, hint
from onnxcomp.ir.files import adopt, save
from onnxcomp.ir.model import Model
from onnxcomp.ir.proto import to_proto
from onnxcomp.ir.temporary import prefix
from onnxcomp.presets import pipeline_of
from onnxcomp.runtime.bench import Turns

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from onnxcomp.ir.proto import ModelProto
    from onnxcomp.runtime.data.preprocess import Preprocess
    from onnxcomp.runtime.data.samples import SampleSource

__all__ = ["ModelOptions", "Optimized", "Options", "bench", "optimize", "sensitivity"]


@dataclass(frozen=True)
class Optimized:
    """The `model` that a run reached, its `report`, and the files `written`."""

    model: Model
    report: Report
    written: tuple[Path, ...]

    def to_proto(self) -> ModelProto:
        """Return the model as a new ModelProto."""
        return to_proto(self.model)

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Write the model to `path`; an existing file is replaced only with `force`.

        Raises:
            UsageError: where `path` cannot be written.
        """
        save(self.model, Path(path), force=force)


class ModelOptions(TypedDict, total=False):
    """The options that say how a model and samples are read, and what of the model is left alone.

    Each means what the option of its name means on the command line; `decision` is `--output NAME`, `custom_op_libs` is
    `--custom-op-lib`.
    """

    preprocess: Preprocess | Literal["none"] | None
    samples: int | None
    exclude: Sequence[str]
    set_shape: Mapping[str, Sequence[int | None]]
    decision: str | None
    seed: int
    threads: int
    custom_op_libs: Sequence[str]
    allow_code: bool
    allow_links: bool
    force: bool


class Options(ModelOptions, total=False):
    """The options of `optimize`. Each means what the option of its name means on the command line.

    `calibration` and `evaluation` take a dict of arrays, an iterable of feeds or a function that returns one, too;
    `reports` is `--report`.
    """

    calibration: SampleSource | None
    evaluation: SampleSource | None
    target: str
    metric: Metric | None
    max_drop: float | None
    min_sqnr: float | None
    require_smaller: bool
    require_speedup: float | None
    opset: int | None
    ir_version: int | None
    reports: Sequence[str | os.PathLike[str]]
    ranges: str | os.PathLike[str] | None
    timings: str | os.PathLike[str] | None
    allow_noop: bool
    accept_ruin: bool
    strict: bool


def optimize(
    model: str | os.PathLike[str] | Model | ModelProto,
    passes: str | Pipeline | Sequence[Pass] | None = None,
    *,
    output: str | os.PathLike[str] | None = None,
    listener: Listener | None = None,
    **options: Unpack[Options],
) -> Optimized:
    """Run passes over `model` and return the result; the given model is never edited.

    `passes` is pipeline text, a Pipeline or passes; without any the preset `exact` runs. With `output` the result is
    written there. The `options` are those of the command line: `calibration`, `evaluation`, `preprocess`, `samples`,
    `target`, `metric`, `max_drop`, `min_sqnr`, `require_smaller`, `require_speedup`, `exclude`, `set_shape`,
    `decision`, `opset`, `ir_version`, `reports`, `ranges`, `timings`, `seed`, `threads`, `custom_op_libs`, `allow_code`,
    `allow_links`, `allow_noop`, `accept_ruin`, `strict`, `force`; see `Options`.

    >>> import onnx.parser, onnxcomp
    >>> net = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["" : 17]>
    ... net (float[N, 4] x) => (float[N, 4] y) { a = Identity(x)  y = Relu(a) }''')
    >>> result = onnxcomp.optimize(net, "remove-dead")
    >>> [node.op for node in result.model.graph.nodes], result.report.status
    (['Relu'], 'done')

    Raises:
        UsageError, ModelError, DataError: the call, the model or the data is wrong.
        BudgetError: a condition was not met; its `result` is the Optimized that was reached.
        NothingChanged: `output` was given, nothing changed, and not `allow_noop`; `result` likewise.
        VerificationError: the final model fails verification.
        PassError: a pass failed unforeseen.
    """
    given, source = _model(model)
    request = Request(
        _pipeline(passes),
        source,
        Path(output) if output is not None else None,
        **_settings(options, "optimize", keywords()),
    )
    if output is None:
        # Nothing is written, so a model that stays as it is is a result like any other.
        request = replace(request, allow_noop=True)
    outcome = run(prepare(request, given), listener)
    result = Optimized(outcome.model, outcome.report, outcome.written)
    if outcome.error is not None:
        outcome.error.result = result
        raise outcome.error
    return result


def sensitivity(
    model: str | os.PathLike[str] | Model | ModelProto,
    calibration: SampleSource,
    *,
    passes: str | Pipeline | Sequence[Pass] | None = None,
    technique: str = "prune",
    target: str = DEFAULT_TARGET,
    levels: Sequence[float] = PruneChannels.levels,
    criterion: str = PruneChannels.criterion,
    cache: str | os.PathLike[str] | None = None,
    listener: Listener | None = None,
    **options: Unpack[ModelOptions],
) -> Sensitivity:
    """Return what compressing each place of `model` alone does to its outputs, and what it saves.

    `passes` run before, by default the preset `exact`. `technique="prune"` removes of every channel group the shares
    `levels`, the channels that `criterion` names first, and what reads it is refitted once; `quantize` computes each node
    alone in integers, as `insert-qdq` would for `target`. `cache` is the folder of kept results, None for the
    user's, `none` for none; `force` measures anew. The other `options` are those of the command line, see
    `ModelOptions`.

    >>> import numpy as np, onnx.parser, onnxcomp
    >>> net = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["" : 17]>
    ... net (float[N, 2] x) => (float[N, 2] y) <float[2, 3] a = {1, 0, 2, 0, 1, 2}, float[3, 2] b = {1, 2, 3, 4, 5, 6}>
    ... { h = MatMul(x, a)  r = Relu(h)  y = MatMul(r, b) }''')
    >>> found = onnxcomp.sensitivity(net, {"x": np.eye(2, dtype=np.float32)}, levels=[0.3], cache="none")
    >>> [(e.site, e.removed, e.units, e.macs, e.parameters) for e in found.effects]
    [('h', 1, 3, 4, 4)]

    Raises:
        UsageError, ModelError, DataError: the call, the model or the data is wrong.
        PassError: a pass failed unforeseen.
    """
    given, source = _model(model)
    settings = _settings(options, "sensitivity", MODEL_OPTIONS)
    request = Request(_pipeline(passes), source, calibration=calibration, target=target, **settings)
    fields: dict[str, dict[str, Any]] = {
        "prune": {"levels": tuple(sorted({float(level) for level in levels})), "criterion": criterion},
        "quantize": {"target": target},
    }
    chosen = make_technique(technique, fields.get(technique, {}))
    return measure_sensitivity(request, [chosen], listener, model=given, cache=cache)


def bench(
    *models: str | os.PathLike[str] | Model | ModelProto,
    batches: Sequence[int] = (),
    rounds: int = 20,
    repeats: int = 5,
    warmup: int = 3,
    memory: bool = True,
    threads: int = 1,
    set_shape: Mapping[str, Sequence[int | None]] | None = None,
    seed: int = 0,
    custom_op_libs: Sequence[str] = (),
    allow_links: bool = False,
    listener: Listener | None = None,
) -> BenchReport:
    """Return how long `models` take on the same noise, in turns, with ratios to the first.

    `batches` are sizes, by default what the models fix, else 1. Without `memory` no start-up time and no peak memory is
    taken, which needs processes of their own. The rest means what the options of `onnxcomp bench` mean. Models in memory
    are named `model 1`, `model 2`, ... by their place.

    >>> import onnx.parser, onnxcomp
    >>> net = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["" : 17]>
    ... net (float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }''')
    >>> found = onnxcomp.bench(net, net, batches=[1, 8], rounds=1, repeats=1, memory=False)
    >>> [(latency.name, latency.batch) for latency in found.latencies]
    [('model 1', 1), ('model 2', 1), ('model 1', 8), ('model 2', 8)]

    Raises:
        UsageError, ModelError: the call or a model is wrong, or the inputs of the models differ.
    """
    plan = BenchPlan(tuple(batches), Turns(rounds, repeats, warmup), fresh=memory)
    sizes = {name: tuple(shape) for name, shape in (set_shape or {}).items()}
    request = Request(
        set_shape=sizes,
        seed=seed,
        threads=threads,
        custom_op_libs=tuple(custom_op_libs),
        allow_links=allow_links,
    )
    with tempfile.TemporaryDirectory(prefix=prefix()) as folder:
        files: dict[str, Path] = {}
        for number, given in enumerate(models, 1):
            held, path = _model(given)
            if held is not None:
                path = save(held, Path(folder) / f"{number}.onnx")[0]
            assert path is not None  # where it is not held in memory
            name = f"model {number}" if held is not None else str(path)
            files[f"{name} ({number})" if name in files else name] = path
        report = bench_files(files, request, plan, listener or Listener())
    # Where a model in memory lay for the measurement says nothing.
    named = (
        m if files[m.name].is_file() else replace(m, file=replace(m.file, path=m.name)) for m in report.models
    )
    return replace(report, models=tuple(named))


def _model(model: Any) -> tuple[Model | None, Path | None]:
    """Return the model in memory, or the path where it is."""
    if isinstance(model, Model):
        return model, None
    if isinstance(model, str | os.PathLike):
        return None, Path(model)
    if hasattr(model, "SerializeToString"):
        return adopt(model), None
    raise UsageError(f"a model is a path, a Model or a ModelProto, not {type(model).__name__}")


def _settings(options: Mapping[str, object], caller: str, known: Collection[str]) -> dict[str, Any]:
    """Return `options`, of which `caller` knows `known`, as fields of a Request: sequences as tuples, paths as Paths.

    Raises:
        UsageError: for an unknown option, with the nearest.
    """
    settings: dict[str, Any] = {}
    for name, value in options.items():
        if name not in known:
            raise UsageError(f"{caller} has no option '{name}'{hint(name, known)}")
        settings[name] = _CONVERSIONS.get(run_option(name).kind, _as_it_is)(value)
    return settings


def _as_it_is(value: Any) -> Any:
    return value


def _several(value: Any) -> tuple[Any, ...]:
    return (value,) if isinstance(value, str | os.PathLike) else tuple(value)


def _file(value: Any) -> Path | None:
    return None if value is None else Path(value)


def _files(value: Any) -> tuple[Path, ...]:
    return tuple(Path(name) for name in _several(value))


def _sizes(value: Any) -> dict[str, tuple[int | None, ...]]:
    return {name: tuple(shape) for name, shape in (value or {}).items()}


_CONVERSIONS: dict[Kind, Callable[[Any], Any]] = {
    "texts": _several,
    "files": _files,
    "file": _file,
    "sizes": _sizes,
}
"""How a keyword's value becomes a field of a Request, by kind; other kinds stay as they are."""


def _pipeline(passes: str | Pipeline | Sequence[Pass] | None) -> Pipeline:
    if isinstance(passes, Pipeline):
        return passes
    if passes is None or isinstance(passes, str):
        return pipeline_of(passes)
    steps = tuple(passes)
    for step in steps:
        if not isinstance(step, Pass):
            raise UsageError(f"a pipeline is text or passes, not {type(step).__name__}")
        step.check()
    return Pipeline(steps)
