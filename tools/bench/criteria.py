"""Compare the criteria of prune-filters: accuracy against remaining MACs, with repair and without, as table and picture.

    python -m tools.bench criteria [--quick] [--rows CRITERION,...] [--shares X,...] [--draw-only]
                                     [--samples N] [--threads N] [--shared FOLDER] [--folder FOLDER]

Every cell is one call of `onnxcomp.optimize`, judged on all evaluation images. The folder (`docs`) gets `criteria.json`,
`criteria.png` and the section on criteria of `results.md`. Cells that the JSON file already holds are not run again, so
that a comparison can be interrupted and resumed; delete the file to begin anew. The networks and the data are those of
`../shared` or `--shared`; `--quick` runs a few cells on a shipped net. The picture needs the extra `report`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import onnxcomp
from onnxcomp.api import Optimized
from onnxcomp.errors import BudgetError
from onnxcomp.runtime.data.preprocess import Preprocess
from tools.bench import options as common
from tools.bench.cases import EXACT, NETWORKS, ROOT, Network
from tools.bench.criteria_picture import AccuracyCurve, Panel, draw
from tools.bench.document import write_document

__all__ = [
    "CRITERIA",
    "NETS",
    "REPAIRS",
    "SHARES",
    "Cell",
    "CellResult",
    "Comparison",
    "main",
    "measure",
    "panels",
    "pipeline",
    "renewed",
    "section",
]

CRITERIA = ("obs", "activation", "hrank", "entropy", "apoz", "bn-scale", "fpgm", "l2", "l1", "random")
"""All criteria of prune-filters, as tables list them."""

SHARES = (0.8, 0.65, 0.5, 0.35)
"""Shares of the multiply-accumulates that remain."""

REPAIRS = {"with repair": "repair=sequential joint=0", "without repair": "repair=none"}
"""Pass options by the name of the panel. The joint (Gauss-Newton) refinement, which is the same for every criterion, is left
out: it takes most of the time."""

_SECTION = re.compile(r"<!-- criteria -->\n.*?<!-- end criteria -->\n", re.DOTALL)


NETS = {"ResNet-20": NETWORKS["resnet20"], "ResNet-8": NETWORKS["resnet8"]}
"""What is compared on, by the names that the tables have."""

QUICK = {"digits ResNet": NETWORKS["digits_resnet"]}
"""What `--quick` runs on."""


@dataclass(frozen=True)
class Cell:
    """One point of one curve: which net is cut by which criterion to which share of its MACs, and repaired how."""

    net: str
    criterion: str
    macs: float
    repair: str
    samples: int
    seed: int = 0


@dataclass(frozen=True)
class CellResult:
    """The result of a cell: accuracies in percent on `images`, and notes where the criterion had to fall back."""

    cell: Cell
    pipeline: str
    accuracy_before: float
    accuracy: float
    macs_share: float
    images: int
    seconds: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """What is to be run: nets, criteria, shares of MACs, and how many calibration samples on how many threads."""

    nets: Mapping[str, Network]
    criteria: Sequence[str] = CRITERIA
    shares: Sequence[float] = SHARES
    samples: int = 512
    threads: int = 1

    def cells(self) -> Iterator[tuple[Network, Cell]]:
        """Yield all cells, the quick ones of every net first."""
        for repair in sorted(REPAIRS, key=lambda name: REPAIRS[name] != "repair=none"):
            for name, net in self.nets.items():
                for macs in self.shares:
                    for criterion in self.criteria:
                        yield net, Cell(name, criterion, macs, repair, self.samples)


def pipeline(cell: Cell) -> str:
    """Return the text of the pipeline that `cell` runs."""
    options = f"macs={cell.macs:g} scope=uniform criterion={cell.criterion} {REPAIRS[cell.repair]}"
    return f"{EXACT},prune-filters{{{options}}}"


def measure(net: Network, cell: Cell, shared: Path, threads: int) -> CellResult:
    """Run one cell as users do and return the result."""
    start = time.monotonic()
    calibration, evaluation = (net.data_path(shared, role) for role in ("calibration", "evaluation"))
    table = None if net.preprocess is None else Preprocess.from_json(json.dumps(net.preprocess), "its table")
    try:
        result = onnxcomp.optimize(
            net.model_path(shared),
            pipeline(cell),
            calibration=calibration,
            evaluation=evaluation,
            preprocess=table,
            samples=cell.samples,
            seed=cell.seed,
            threads=threads,
        )
    except BudgetError as missed:
        # What was reached is as good a point as any: it is drawn where its MACs are.
        result = cast("Optimized", missed.result)
    report = result.report
    found = report.comparison
    assert found is not None and found.accuracy_before is not None and found.accuracy_after is not None
    assert report.before.macs and report.after.macs
    return CellResult(
        cell=cell,
        pipeline=pipeline(cell),
        accuracy_before=found.accuracy_before,
        accuracy=found.accuracy_after,
        macs_share=report.after.macs / report.before.macs,
        images=next(d.samples for d in report.data if d.role == "evaluation"),
        seconds=round(time.monotonic() - start, 1),
        notes=tuple(note for note in report.runs[-1].notes if note.startswith("criterion=")),
    )


# --- the JSON document -----------------------------------------------------------------------------------------------
def load(path: Path) -> dict[Cell, CellResult]:
    """Return the outcomes that the JSON document at `path` holds, by cell; none where there is no such file."""
    if not path.exists():
        return {}
    rows = json.loads(path.read_text(encoding="utf-8"))["cells"]
    found = (CellResult(**{**row, "cell": Cell(**row["cell"]), "notes": tuple(row["notes"])}) for row in rows)
    return {outcome.cell: outcome for outcome in found}


def store(path: Path, outcomes: Mapping[Cell, CellResult]) -> None:
    """Write the outcomes to the JSON document at `path`, whole or not at all."""
    aside = path.with_suffix(".part")
    write_document(aside, "criteria", {"cells": [asdict(outcome) for outcome in outcomes.values()]})
    aside.replace(path)


# --- what is shown ---------------------------------------------------------------------------------------------------
def panels(outcomes: Sequence[CellResult]) -> list[Panel]:
    """Return what the picture shows: a panel per net and kind of repair, a curve per criterion."""
    found = []
    for net in dict.fromkeys(o.cell.net for o in outcomes):
        for repair in REPAIRS:
            here = [o for o in outcomes if (o.cell.net, o.cell.repair) == (net, repair)]
            curves = [
                AccuracyCurve(criterion, tuple(sorted((o.macs_share, o.accuracy) for o in points)))
                for criterion in CRITERIA
                if (points := [o for o in here if o.cell.criterion == criterion])
            ]
            if curves:
                found.append(Panel(f"{net}, {repair}", here[0].accuracy_before, tuple(curves)))
    return found


def section(outcomes: Sequence[CellResult]) -> str:
    """Return the section of the page: how it was measured, the picture, and a table per net and kind of repair."""
    samples = sorted({o.cell.samples for o in outcomes})
    images = sorted({o.images for o in outcomes})
    how = (
        f"Top-1 accuracy on all {_words(images)} evaluation images against the share of multiply-accumulates that "
        f"remains, with `scope=uniform`, {_words(samples)} calibration images and seed 0. Repair is "
        f"`{REPAIRS['with repair']}`: the joint refinement, which every criterion gets alike, is left out because it takes "
        "most of the time. The best of a column is in bold. Made by `python -m tools.bench criteria`; the figures are in "
        "[criteria.json](criteria.json)."
    )
    picture = "![accuracy against remaining MACs, one line per criterion](criteria.png)"
    lines = ["<!-- criteria -->", "## Criteria of prune-filters", "", how, "", picture, ""]
    shares = sorted({o.cell.macs for o in outcomes}, reverse=True)
    for net in dict.fromkeys(o.cell.net for o in outcomes):
        for repair in REPAIRS:
            lines += _table([o for o in outcomes if (o.cell.net, o.cell.repair) == (net, repair)], shares)
    notes = sorted({(o.cell.net, note) for o in outcomes for note in o.notes})
    if notes:
        lines += ["Where a criterion had no meaning:", ""]
        lines += [f"- {net}: {note}." for net, note in notes] + [""]
    return "\n".join([*lines, "<!-- end criteria -->", ""])


def _table(outcomes: Sequence[CellResult], shares: Sequence[float]) -> list[str]:
    if not outcomes:
        return []
    first = outcomes[0]
    by_place = {(o.cell.criterion, o.cell.macs): o.accuracy for o in outcomes}
    best = {share: max((a for (_, s), a in by_place.items() if s == share), default=0.0) for share in shares}
    head = [f"{first.cell.net}, {first.cell.repair}", *(f"{share:.0%} of MACs" for share in shares)]
    rows = [
        [f"`{c}`", *(_figure(by_place.get((c, share)), best[share]) for share in shares)]
        for c in CRITERIA
        if any((c, share) in by_place for share in shares)
    ]
    waiting = " A dash is a cell that has not been run." if len(by_place) < len(rows) * len(shares) else ""
    lines = [head, ["---", *("---:" for _ in shares)], *rows]
    return [
        *("| " + " | ".join(line) + " |" for line in lines),
        "",
        f"The network as given: {first.accuracy_before:.2f} %.{waiting}",
        "",
    ]


def _figure(accuracy: float | None, best: float) -> str:
    if accuracy is None:
        return "-"
    return f"**{accuracy:.2f}**" if accuracy == best else f"{accuracy:.2f}"


def _words(numbers: Sequence[int]) -> str:
    return " or ".join(f"{number:,}" for number in numbers)


def renewed(page: str, text: str) -> str:
    """Return `page` with its section on criteria replaced by `text`, which goes to the end where there is none yet."""
    if _SECTION.search(page):
        return _SECTION.sub(lambda _: text, page)
    return f"{page or '# Results'}\n\n{text}" if not page.endswith("\n") else f"{page}\n{text}"


def publish(folder: Path, outcomes: Sequence[CellResult]) -> None:
    """Write the picture and the section of the page into `folder`."""
    draw(panels(outcomes), folder / "criteria.png")
    page = folder / "results.md"
    before = page.read_text(encoding="utf-8") if page.exists() else ""
    page.write_text(renewed(before, section(outcomes)), encoding="utf-8")


# --- the command line ------------------------------------------------------------------------------------------------
def _parser() -> argparse.ArgumentParser:
    parser = common.new_parser("criteria", __doc__)
    parser.add_argument("--quick", action="store_true", help="few cells on a shipped net")
    common.add_rows(parser, CRITERIA)
    parser.add_argument("--shares", type=_numbers, metavar="X,...", help="shares of MACs that remain")
    common.add_samples(parser, "512, 64 with --quick")
    common.add_threads(parser, 1)
    common.add_shared(parser)
    parser.add_argument(
        "--folder",
        type=Path,
        help="what is written goes here (default docs, with --quick a temporary folder)",
    )
    parser.add_argument("--draw-only", action="store_true", help="run nothing, draw what the JSON file holds")
    return parser


def _numbers(text: str) -> tuple[float, ...]:
    numbers = tuple(float(word) for word in text.split(","))
    if not all(0 < number <= 1 for number in numbers):
        raise argparse.ArgumentTypeError(f"'{text}' are not shares between 0 and 1")
    return numbers


def _comparison(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Comparison:
    """Return what is to be run; ends the program where a file is not there."""
    criteria = common.chosen_names(parser, options.rows, CRITERIA)
    nets = QUICK if options.quick else NETS
    roles = ("calibration", "evaluation")
    for net in nets.values():
        files = [net.model_path(options.shared), *(net.data_path(options.shared, role) for role in roles)]
        for path in files:
            if not path.exists():
                parser.error(f"{path} {common.ABSENT}")
    shares = options.shares or ((0.7, 0.4) if options.quick else SHARES)
    samples = options.samples or (64 if options.quick else 512)
    return Comparison(nets, criteria, shares, samples, options.threads)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cells that are missing and publish all of them; return the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    comparison = _comparison(parser, options)
    folder: Path = options.folder or (
        Path(tempfile.mkdtemp(prefix="criteria-")) if options.quick else ROOT / "docs"
    )
    folder.mkdir(parents=True, exist_ok=True)
    outcomes = load(folder / "criteria.json")
    todo = [(net, cell) for net, cell in comparison.cells() if cell not in outcomes]
    for place, (net, cell) in enumerate([] if options.draw_only else todo, 1):
        outcome = outcomes[cell] = measure(net, cell, options.shared, comparison.threads)
        store(folder / "criteria.json", outcomes)
        print(
            f"{place}/{len(todo)} {cell.net} {cell.criterion} {cell.macs:g} {cell.repair}: "
            f"{outcome.accuracy:.2f} % at {outcome.macs_share:.1%}, {outcome.seconds:.0f} s",
            file=sys.stderr,
            flush=True,
        )
    if not outcomes:
        parser.error(f"{folder / 'criteria.json'} holds nothing to draw; leave --draw-only out")
    publish(folder, list(outcomes.values()))
    print(folder / "results.md")
    return 0
