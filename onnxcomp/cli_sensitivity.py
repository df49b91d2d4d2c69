"""The command `sensitivity`: options in, one call, a table or JSON out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxcomp.cli_group import Command, common_options
from onnxcomp.cli_options import (
    FILE,
    calibration_options,
    data_options,
    exclude_option,
    json_option,
    output_option,
    read_table,
    seed_option,
    set_shape_option,
    trust_options,
)

if TYPE_CHECKING:
    from onnxcomp.compiler.sensitivity import Effect, Sensitivity

__all__ = ["sensitivity"]

ROOMY = 110
"""Columns from which on exact numbers fit beside the shares."""

NAMED = 3
"""Places that the summary names at either end."""


def levels(text: str) -> tuple[float, ...]:
    """Return the shares of a text such as `0.25,0.5`, ascending, each once.

    Raises:
        BadParameter: where `text` is not of that form.
    """
    try:
        return tuple(sorted({float(word) for word in str(text).split(",")}))
    except ValueError:
        raise click.BadParameter(f"'{text}' is no list of shares removed, such as 0.25,0.5,0.75") from None


@click.command(
    cls=Command,
    examples=(
        "onnxcomp sensitivity model.onnx --calibration calibration.npz",
        "onnxcomp sensitivity model.onnx --calibration calibration.npz --samples 128 --levels 0.5 --json",
        "onnxcomp sensitivity model.onnx --calibration calibration.npz --criterion l1 --sort harm --cache none",
    ),
)
@click.argument("model", metavar="IN", type=FILE)
@calibration_options
@click.option("--passes", metavar="TEXT", help="Passes to run before measuring; default: the preset exact.")
@click.option(
    "--levels",
    "shares",
    metavar="SHARES",
    type=levels,
    default="0.25,0.5,0.75",
    show_default=True,
    help="Shares of a group's channels to remove.",
)
@click.option(
    "--criterion",
    metavar="NAME",
    default="obs",
    show_default=True,
    help="Which channels go first, as in prune-filters.",
)
@click.option(
    "--sort",
    "order",
    type=click.Choice(["network", "harm"]),
    default="network",
    show_default=True,
    help="Order of rows: as in the network, or most harm per MAC saved first.",
)
@exclude_option
@set_shape_option("Sizes of an input to measure at")
@output_option
@seed_option("Of every random choice.")
@click.option(
    "--cache",
    metavar="FOLDER|none",
    help="Where results are kept; default: $XDG_CACHE_HOME/onnxcomp or ~/.cache/onnxcomp.",
)
@json_option
@data_options
@trust_options
@click.option("--force", is_flag=True, help="Measure anew, whatever the cache holds.")
@common_options
def sensitivity(
    model: Path,
    shares: tuple[float, ...],
    criterion: str,
    order: str,
    cache: str | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Show what cutting each channel group of IN alone does to the output, and what it saves.

    Each group loses the channels that the criterion names first, up to each level; what reads it is refitted once, and
    the output is compared with that of the whole network. Channels of a residual stream that only later stages have are
    a tier of their own. The result is kept by the digest of model, data and options, so that the same call is answered
    at once.
    """
    from onnxcomp.cli_progress import Teller
    from onnxcomp.compiler.report import to_json
    from onnxcomp.compiler.sensitivity import measure_sensitivity
    from onnxcomp.compiler.techniques import PruneChannels

    technique = PruneChannels(shares, criterion)
    request = _request(model, options)
    with Teller(quiet=quiet or as_json) as teller:
        teller.stage(f"loading {model.name}")
        found = measure_sensitivity(request, [technique], teller, cache=cache)
    if order == "harm":
        found = found.by_harm()
    if as_json:
        click.echo(to_json(found), nl=False)
    else:
        show_sensitivity(found)


def _request(model: Path, options: dict[str, Any]) -> Any:
    from onnxcomp.compiler.request import Request
    from onnxcomp.compiler.spec import Pipeline
    from onnxcomp.presets import DEFAULT, preset

    passes = options.pop("passes")
    return Request(
        pipeline=Pipeline.parse(preset(DEFAULT).pipeline if passes is None else passes),
        source=model,
        preprocess=read_table(options.pop("preprocess")),
        set_shape=dict(options.pop("set_shape")),
        decision=options.pop("output"),
        **options,
    )


# --- results ---------------------------------------------------------------------------------------------------------
def show_sensitivity(result: Sensitivity) -> None:
    """Print a row per place and level, the most and the least sensitive places, and what cannot be compressed."""
    from onnxcomp.cli_view import amount, count_text, say, show_table

    name = result.file.path if result.file is not None else "the model"
    cost = result.cost
    say((name, "bold"), f" after {result.pipeline or 'no pass'}")
    say(f"  {count_text(cost.nodes, 'node')}, {cost.parameters:,} parameters, {amount(cost.macs)} MACs")
    if result.effects:
        where = f"{count_text(result.samples, 'sample')} of {result.data.source}"
        say(f"  judged on {where}: {_MEASURES.get(result.measure, '')}")
    for note in result.notes:
        say(("  note: ", "cyan"), note)
    if result.effects:
        _show_effects(result)
        _show_ranking(result)
    else:
        say("no channel group can be cut")
    if result.blocked:
        rows = [(skip.where, skip.reason) for skip in result.blocked]
        show_table(("channel group", "why channels stay"), rows, title="left alone")


_MEASURES: dict[str | None, str] = {
    "divergence": "KL divergence of class scores, softened to their own spread",
    "error": "squared error as a share of the outputs' variance",
    "differing": "share of outputs that differ",
    "mixed": "KL divergence of softened class scores, plus squared error as a share of other outputs' variance",
}


def _show_effects(result: Sensitivity) -> None:
    from onnxcomp.cli_view import show_table, to_terminal

    roomy = to_terminal().width >= ROOMY
    agreement = result.decision is not None
    distance = _distance_name(result)
    rows = []
    for effect in result.effects:
        row = [effect.place, f"{effect.removed} of {effect.units}", _distance(effect)]
        if agreement:
            row.append("" if effect.agreement is None else f"{effect.agreement:.1f} %")
        if roomy:
            row += [f"{effect.macs:,}", _percent(effect.macs_share)]
            row += [f"{effect.parameters:,}", _percent(effect.parameters_share)]
        else:
            row += [_percent(effect.macs_share), _percent(effect.parameters_share)]
        rows.append(row)
    middle = [distance, "agree"] if agreement else [distance]
    saved = ["MACs saved", "share", "params saved", "of all"] if roomy else ["MACs", "params"]
    columns = ["channel group", "removed", *middle, *saved]
    title = f"{len(rows)} cuts, each alone" + ("" if roomy else "; MACs and parameters are shares saved")
    show_table(columns, rows, right=columns[1:], title=title)


def _show_ranking(result: Sensitivity) -> None:
    from onnxcomp.cli_view import say

    ranking = result.ranking()
    name = _distance_name(result)

    def words(effects: tuple[Effect, ...]) -> str:
        return ", ".join(f"{e.place} ({e.removed} of {e.units}: {name} {_distance(e)})" for e in effects)

    say(("most sensitive  ", "bold"), words(ranking[:NAMED]))
    if len(ranking) > NAMED:
        say(("least sensitive ", "bold"), words(ranking[: NAMED - 1 : -1][:NAMED]))


def _distance_name(result: Sensitivity) -> str:
    return {"divergence": "KL", "mixed": "distance", "differing": "differing"}.get(
        result.measure or "", "error"
    )


def _distance(effect: Effect) -> str:
    """Return the distance with four decimals, or one figure where these would be zeros."""
    if effect.distance is None:
        return "not finite"
    return f"{effect.distance:.4f}" if abs(effect.distance) >= 0.001 else f"{effect.distance:.0e}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
