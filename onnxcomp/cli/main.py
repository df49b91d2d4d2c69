"""The command line: options in, one call, results out. What is done stands in the rooms below."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxcomp.cli.bench import bench
from onnxcomp.cli.group import Commands, common_options
from onnxcomp.cli.options import (
    FILE,
    calibration_options,
    data_options,
    exclude_option,
    json_option,
    merge_config,
    output_option,
    read_table,
    seed_option,
    set_shape_option,
    trust_options,
)
from onnxcomp.cli.sensitivity import sensitivity
from onnxcomp.cli.targets import check, targets

__all__ = ["cli", "main"]


def _version(context: click.Context, _: click.Parameter, value: bool) -> None:
    if not value or context.resilient_parsing:
        return
    from onnxcomp.compiler.run.report import versions

    found = versions()
    others = ", ".join(f"{name} {found[name]}" for name in ("onnx", "onnxruntime", "python"))
    click.echo(f"onnxcomp {found['onnxcomp']} ({others})")
    context.exit()


@click.group(
    "onnxcomp",
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_version,
    help="Show the versions of onnxcomp, onnx and onnxruntime.",
)
def cli() -> None:
    """Make trained ONNX networks smaller and faster, without a training framework."""


def main() -> None:
    """Run the command line and exit with its code."""
    cli.main()


# --- optimize --------------------------------------------------------------------------------------------------------
@cli.command(
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
@click.option(
    "--passes", metavar="TEXT", help="Passes in order, such as 'fold-batchnorm,prune-filters{macs=0.5}'."
)
@click.option("--preset", metavar="NAME", help="A pipeline by name; without passes or preset: exact.")
@click.option(
    "--target",
    metavar="NAME",
    default="ort-cpu",
    help="What OUT is made for; see `targets`. Default: ort-cpu.",
)
@calibration_options
@click.option("--evaluation", metavar="DATA", help="Data that judges the result, with labels for top1.")
@click.option(
    "--metric",
    type=click.Choice(["top1", "agreement", "mse", "sqnr"]),
    help="What the result is judged by; default: top1 with labels, else agreement, else sqnr.",
)
@click.option(
    "--max-drop", metavar="X", type=float, help="Points of top1 or agreement that may be lost; else exit 4."
)
@click.option(
    "--min-sqnr", metavar="DB", type=float, help="Decibels the worst output must reach; else exit 4."
)
@click.option(
    "--require-smaller/--no-require-smaller", default=False, help="Exit 4 unless OUT is smaller than IN."
)
@click.option(
    "--require-speedup",
    metavar="X",
    type=float,
    help="Times as fast as IN that OUT must be, at batch 1 on one thread; else exit 4.",
)
@exclude_option
@set_shape_option("Fix the sizes of an input, in OUT too")
@output_option
@click.option("--opset", metavar="N", type=int, help="Opset version of OUT.")
@click.option("--ir-version", metavar="N", type=int, help="IR version of OUT.")
@click.option("--config", metavar="FILE", type=FILE, help="TOML file with these options; see `config init`.")
@seed_option("Of every random choice.")
@click.option("--report", metavar="R.json", multiple=True, help="Write everything about the run as JSON.")
@click.option(
    "--ranges",
    metavar="F.json",
    type=FILE,
    help="Ranges of values for insert-qdq, or the report of an earlier run that has them; others are observed.",
)
@click.option(
    "--timings",
    metavar="F.json",
    type=FILE,
    help="Replay the latencies in the report of an earlier run; others are measured (with --strict: exit 2).",
)
@data_options
@trust_options
@click.option("--allow-noop", is_flag=True, help="Where nothing changed, write a copy instead of exit 3.")
@click.option(
    "--strict",
    is_flag=True,
    help="Stop at the first pass that fails verification, or timing that is missing.",
)
@click.option("--dry-run", is_flag=True, help="Check everything, show what would run, write nothing.")
@click.option("--force", is_flag=True, help="Replace existing output files.")
@click.option("-v", "--verbose", is_flag=True, help="Tell every change and every skip.")
@common_options
@click.pass_context
def optimize(
    context: click.Context,
    /,
    model: Path,
    out: Path,
    config: Path | None,
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

    request = _request(model, out, merge_config(context, config, options))
    with Teller(quiet=quiet, verbose=verbose) as teller:
        teller.stage(f"loading {model.name}")
        prepared = prepare(request)
        outcome = None if dry_run else run(prepared, teller)
    if outcome is None:
        show_plan(prepared, measure(prepared, prepared.original))
        return
    show_report(outcome.report, [str(path) for path in outcome.written])
    if outcome.verdict is not None:
        raise outcome.verdict


def _request(model: Path, out: Path, options: dict[str, Any]) -> Any:
    """Return the Request that the options write, the pipeline parsed before any file is read."""
    from onnxcomp.compiler.run.request import Request
    from onnxcomp.compiler.spec import Pipeline
    from onnxcomp.errors import UsageError
    from onnxcomp.presets import DEFAULT, preset

    passes, name = options.pop("passes"), options.pop("preset")
    if passes is not None and name is not None:
        raise UsageError("--passes and --preset are both given; keep one")
    text = passes if passes is not None else preset(name or DEFAULT).pipeline
    table = options.pop("preprocess")
    return Request(
        pipeline=Pipeline.parse(text),
        source=model,
        output=out,
        preprocess=read_table(table) if table is None or isinstance(table, str) else table,
        set_shape=dict(options.pop("set_shape")),
        reports=tuple(Path(name) for name in options.pop("report")),
        decision=options.pop("output"),
        **options,
    )


# --- looking at models -----------------------------------------------------------------------------------------------
@cli.command(
    examples=(
        "onnxcomp inspect model.onnx",
        "onnxcomp inspect model.onnx --set-shape input=1,3,320,320 --json",
    ),
)
@click.argument("model", metavar="IN", type=FILE)
@json_option
@click.option("--all", "every_node", is_flag=True, help="List the nodes that cost nothing, too.")
@set_shape_option("Sizes of an input to measure at")
@trust_options
@common_options
def inspect(
    model: Path, as_json: bool, every_node: bool, set_shape: Any, quiet: bool, **options: Any
) -> None:
    """Show what is in IN: the cost of every node, the channel groups and what blocks each."""
    from onnxcomp.cli.progress import Teller
    from onnxcomp.cli.view import show_inspection
    from onnxcomp.compiler.commands.inspection import inspect_model
    from onnxcomp.compiler.run.prepare import prepare
    from onnxcomp.compiler.run.report import to_json
    from onnxcomp.compiler.run.request import Request

    with Teller(quiet=quiet or as_json) as teller:
        teller.stage(f"loading {model.name}")
        found = inspect_model(prepare(Request(source=model, set_shape=dict(set_shape), **options)))
    if as_json:
        click.echo(to_json(found), nl=False)
    else:
        show_inspection(found, every_node=every_node)


@cli.command(
    examples=(
        "onnxcomp compare model.onnx small.onnx --data evaluation.npz",
        "onnxcomp compare model.onnx small.onnx --data random:16 --json",
    ),
)
@click.argument("first", metavar="A", type=FILE)
@click.argument("second", metavar="B", type=FILE)
@click.option(
    "--data", metavar="DATA", required=True, help=".npz, folder or glob, module:function, or random[:N]."
)
@output_option
@json_option
@seed_option("Of random data.")
@data_options
@trust_options
@common_options
def compare(
    first: Path,
    second: Path,
    data: str,
    output: str | None,
    preprocess: str | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Show how B differs from A on data: per output max abs, SQNR and cosine; agreement; accuracy with labels."""
    from onnxcomp.cli.progress import Teller
    from onnxcomp.cli.view import show_contrast
    from onnxcomp.compiler.commands.compare import contrast
    from onnxcomp.compiler.run.report import to_json
    from onnxcomp.compiler.run.request import Request

    request = Request(
        source=first, evaluation=data, preprocess=read_table(preprocess), decision=output, **options
    )
    with Teller(quiet=quiet or as_json) as teller:
        found = contrast(request, second, teller)
    if as_json:
        click.echo(to_json(found), nl=False)
    else:
        show_contrast(found)


cli.add_command(bench)
cli.add_command(sensitivity)
cli.add_command(check)
cli.add_command(targets)


@cli.command(
    "print",
    examples=(
        "onnxcomp print model.onnx",
        "diff <(onnxcomp print model.onnx) <(onnxcomp print small.onnx)",
    ),
)
@click.argument("model", metavar="IN", type=FILE)
@click.option("--allow-links", is_flag=True, help="Follow links to external data (model-hub caches).")
@common_options
def print_(model: Path, allow_links: bool, quiet: bool) -> None:
    """Print IN as text: the same model gives the same text, weights by digest."""
    from onnxcomp.cli.progress import Teller
    from onnxcomp.compiler.run.loading import load_checked
    from onnxcomp.ir.text import dump

    with Teller(quiet=quiet) as teller:
        loaded, _ = load_checked(model, allow_links=allow_links)
        for note in loaded.notes:
            teller.note(note)
    click.echo(dump(loaded), nl=False)


# --- looking at onnxcomp ---------------------------------------------------------------------------------------------
@cli.command(
    examples=(
        "onnxcomp passes",
        "onnxcomp passes prune-filters",
    ),
)
@click.argument("name", required=False)
@json_option
@common_options
def passes(name: str | None, as_json: bool, quiet: bool) -> None:
    """List the passes, or show the options of the pass NAME. Broken plug-ins are listed as broken."""
    from onnxcomp.cli.view import show_pass, show_passes
    from onnxcomp.compiler.commands.catalogue import describe, list_passes
    from onnxcomp.compiler.run.report import to_json

    if name is None:
        listed = list_passes()
        click.echo(to_json({"passes": listed}), nl=False) if as_json else show_passes(listed)
    else:
        described = describe(name)
        click.echo(to_json(described), nl=False) if as_json else show_pass(described)


@cli.command(
    examples=(
        "onnxcomp presets",
        "onnxcomp optimize model.onnx -o small.onnx --preset exact",
    ),
)
@json_option
@common_options
def presets(as_json: bool, quiet: bool) -> None:
    """List the presets: pipelines that have a name."""
    from onnxcomp.cli.view import show_table
    from onnxcomp.compiler.run.report import to_json
    from onnxcomp.presets import PRESETS

    if as_json:
        click.echo(to_json({"presets": list(PRESETS.values())}), nl=False)
    else:
        show_table(("preset", "pipeline", ""), [(p.name, p.pipeline, p.summary) for p in PRESETS.values()])


@cli.group()
def config() -> None:
    """Work with config files."""


@config.command(
    examples=(
        "onnxcomp config init",
        "onnxcomp config init - > settings.toml",
    ),
)
@click.argument("path", metavar="FILE", type=FILE, default=Path("onnxcomp.toml"))
@click.option("--force", is_flag=True, help="Replace an existing file.")
@common_options
def init(path: Path, force: bool, quiet: bool) -> None:
    """Write a config file with every key explained; onnxcomp.toml by default, - for stdout."""
    from onnxcomp.cli.config import TEMPLATE
    from onnxcomp.ir.atomic import check_output, replacing

    if str(path) == "-":
        click.echo(TEMPLATE, nl=False)
        return
    check_output(path, force=force)
    with replacing(path) as (stream,):
        stream.write(TEMPLATE.encode())
    if not quiet:
        click.echo(f"wrote {path}", err=True)
