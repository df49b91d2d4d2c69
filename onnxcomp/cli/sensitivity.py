"""The command `sensitivity`: options in, one call, a table or JSON out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxcomp.cli.group import Command, common_options
from onnxcomp.cli.options import FILE, MEASURED_SIZES, changed, json_option, run_options

if TYPE_CHECKING:
    from onnxcomp.compiler.commands.sensitivity import Effect, Sensitivity

__all__ = ["sensitivity"]

ROOMY = 110
"""Columns from which on exact numbers fit beside the shares."""

NAMED = 3
"""Places that the summary names at either end."""


FORMER_ORDER = "harm"
"""What `--sort sensitivity` was called, accepted for one version."""


def levels(text: str) -> tuple[float, ...]:
    """Return the shares of a text such as `0.25,0.5`, ascending, each once.

    Raises:
        BadParameter: where `text` is not of that form.
    """
    try:
        return tuple(sorted({float(word) for word in str(text).split(",")}))
    except ValueError:
        raise click.BadParameter(f"'{text}' is no list of shares removed, such as 0.25,0.5,0.75") from None


class TechniqueName(click.Choice[str]):
    """One of the techniques that the registry has, which is read when the option is."""

    def __init__(self) -> None:
        from onnxcomp.compiler.evaluation.technique_registry import technique_registry

        super().__init__(technique_registry().names())


@click.command(
    cls=Command,
    examples=(
        "onnxcomp sensitivity model.onnx --calibration calibration.npz",
        "onnxcomp sensitivity model.onnx --calibration calibration.npz --samples 128 --levels 0.5 --json",
        "onnxcomp sensitivity model.onnx --calibration calibration.npz --technique quantize --sort sensitivity",
        "onnxcomp sensitivity model.onnx --calibration calibration.npz --criterion l1 --sort sensitivity --cache none",
    ),
)
@click.argument("model", metavar="IN", type=FILE)
@run_options(
    "calibration",
    "samples",
    changed("passes", help="Passes to run before measuring; default: the preset exact."),
)
@click.option(
    "--technique",
    type=TechniqueName(),
    default="prune",
    show_default=True,
    help="What is done to each place: channels removed, or a node computed in integers.",
)
@run_options(
    changed(
        "target",
        help="With --technique quantize: what decides on integers and how they are stored. Default: ort-cpu.",
        default=None,
    )
)
@click.option(
    "--levels",
    "shares",
    metavar="SHARES",
    type=levels,
    help="Shares of a group's channels to remove.  [default: 0.25,0.5,0.75]",
)
@click.option(
    "--criterion",
    metavar="NAME",
    help="Which channels go first, as in prune-filters.  [default: obs]",
)
@click.option(
    "--sort",
    "order",
    type=click.Choice(["network", "sensitivity", FORMER_ORDER]),
    metavar="[network|sensitivity]",
    default="network",
    show_default=True,
    help="Order of rows: as in the network, or most sensitive per MAC saved first.",
)
@run_options("exclude", MEASURED_SIZES, "decision", "seed")
@click.option(
    "--cache",
    metavar="FOLDER|none",
    help="Where results are kept; default: $XDG_CACHE_HOME/onnxcomp or ~/.cache/onnxcomp.",
)
@json_option
@run_options(
    "preprocess",
    "allow_code",
    "custom_op_libs",
    "allow_links",
    "threads",
    changed("force", help="Measure anew, whatever the cache holds."),
)
@common_options
def sensitivity(
    model: Path,
    technique: str,
    target: str | None,
    shares: tuple[float, ...] | None,
    criterion: str | None,
    order: str,
    cache: str | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Show what compressing each place of IN alone does to the output, and what it saves.

    With --technique prune each channel group loses the channels that the criterion names first, up to each level; what reads it is refitted once, and
    the output is compared with that of the whole network. Channels of a residual stream that only later stages have are
    a tier of their own. With --technique quantize each node that insert-qdq would compute in integers is so computed alone:
    what it reads and its weight are stored in integers. The result is kept by the digest of model, data and options, so that the same call is answered
    at once.
    """
    from onnxcomp.cli.progress import Teller
    from onnxcomp.compiler.commands.sensitivity import measure_sensitivity
    from onnxcomp.compiler.evaluation.technique_registry import make_technique
    from onnxcomp.compiler.run.report import to_json
    from onnxcomp.compiler.run.request import Request
    from onnxcomp.presets import pipeline_of

    chosen = make_technique(technique, {"levels": shares, "criterion": criterion, "target": target})
    if target is not None:
        options["target"] = target
    request = Request(pipeline_of(options.pop("passes")), model, **options)
    with Teller(quiet=quiet or as_json) as teller:
        teller.stage(f"loading {model.name}")
        found = measure_sensitivity(request, [chosen], teller, cache=cache)
        if order == FORMER_ORDER:
            teller.note(
                f"--sort {FORMER_ORDER} is now --sort sensitivity; the next version refuses the old word"
            )
    if order in ("sensitivity", FORMER_ORDER):
        found = found.by_sensitivity()
    if as_json:
        click.echo(to_json(found), nl=False)
    else:
        show_sensitivity(found)


# --- results ---------------------------------------------------------------------------------------------------------
def show_sensitivity(result: Sensitivity) -> None:
    """Print a row per place and level, the most and the least sensitive places, and what cannot be compressed."""
    from onnxcomp.cli.view import amount, count_text, say, show_table

    name, words = result.file.path if result.file is not None else "the model", _words(result)
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
        say(words.nothing)
    if result.blocked:
        rows = [(skip.where, skip.reason) for skip in result.blocked]
        show_table((words.place, words.why), rows, title="left alone")


@dataclass(frozen=True)
class _Words:
    """What tables call the places and figures of a technique."""

    place: str
    removed: str
    rows: str
    macs: str
    parameters: str
    shares: str
    nothing: str
    why: str


_CUTS = _Words(
    "channel group",
    "removed",
    "cuts, each alone",
    "MACs saved",
    "params saved",
    "; MACs and parameters are shares saved",
    "no channel group can be cut",
    "why channels stay",
)
_INTEGERS = _Words(
    "node",
    "bits less",
    "nodes, each alone in integers",
    "MACs in integers",
    "params in integers",
    "; MACs and parameters are shares in integers",
    "no node can be computed in integers",
    "why it stays float",
)


def _words(result: Sensitivity) -> _Words:
    return _INTEGERS if "insert-qdq" in result.techniques else _CUTS


_MEASURES: dict[str | None, str] = {
    "divergence": "KL divergence of class scores, softened to their own spread",
    "error": "squared error as a share of the outputs' variance",
    "differing": "share of outputs that differ",
    "mixed": "KL divergence of softened class scores, plus squared error as a share of other outputs' variance",
}


def _show_effects(result: Sensitivity) -> None:
    from onnxcomp.cli.view import show_table, to_terminal

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
    words = _words(result)
    saved = [words.macs, "share", words.parameters, "of all"] if roomy else ["MACs", "params"]
    columns = [words.place, words.removed, *middle, *saved]
    title = f"{len(rows)} {words.rows}" + ("" if roomy else words.shares)
    show_table(columns, rows, right=columns[1:], title=title)


def _show_ranking(result: Sensitivity) -> None:
    from onnxcomp.cli.view import say

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
