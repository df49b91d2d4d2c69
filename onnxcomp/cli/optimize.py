"""The command `optimize`: a run of a pipeline over one model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxcomp.cli.group import Command, common_options
from onnxcomp.cli.options import FILE, merge_config, run_options

__all__ = ["optimize"]


@click.command(
    cls=Command,
    examples=(
        "onnxcomp optimize model.onnx -o small.onnx",
        "onnxcomp optimize model.onnx -o small.onnx --evaluation evaluation.npz --report run.json",
        "onnxcomp optimize model.onnx -o int8.onnx --preset int8 --calibration calibration.npz",
        (
            "onnxcomp optimize model.onnx -o small.onnx --calibration calibration.npz --max-drop 2 \\\n"
            "      --passes 'fold-constants,fold-batchnorm,remove-dead,prune-filters{macs=0.5}'"
        ),
    ),
)
@click.argument("model", metavar="IN", type=FILE)
@click.option("-o", "--out", metavar="OUT", type=FILE, required=True, help="The file to write.")
@run_options()
@common_options
@click.pass_context
def optimize(
    context: click.Context,
    /,
    model: Path,
    out: Path,
    dry_run: bool,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Run passes over IN, verify each of them, and write OUT.

    The exit code is 0 when done, 1 if the result fails verification, 2 for a wrong call or bad input, 3 if nothing
    changed (nothing is written), 4 if a condition was not met (the best model is kept as OUT.best.onnx).
    """
    from onnxcomp.cli.progress import Teller
    from onnxcomp.cli.view import show_plan, show_report
    from onnxcomp.compiler.commands.optimize import run
    from onnxcomp.compiler.run.pipeline import measure
    from onnxcomp.compiler.run.prepare import prepare
    from onnxcomp.compiler.run.request import Request
    from onnxcomp.presets import pipeline_of

    merged = merge_config(context, options)
    # The pipeline is read before any file is.
    pipeline = pipeline_of(merged.pop("passes"), merged.pop("preset"))
    request = Request(pipeline, model, out, **merged)
    with Teller(quiet=quiet, verbose=verbose) as teller:
        teller.stage(f"loading {model.name}")
        prepared = prepare(request)
        outcome = None if dry_run else run(prepared, teller)
    if outcome is None:
        show_plan(prepared, measure(prepared, prepared.original))
        return
    show_report(outcome.report, [str(path) for path in outcome.written])
    if outcome.error is not None:
        raise outcome.error
