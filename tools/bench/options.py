"""Options that several benchmarks have, each declared once, and how their values are read."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from rich.console import Console

from onnxcomp.compiler.spec import Pipeline
from onnxcomp.errors import UsageError
from tools.bench.cases import ROOT, Case, missing_file

__all__ = [
    "ABSENT",
    "add_json",
    "add_options",
    "add_rows",
    "add_samples",
    "add_seed",
    "add_shared",
    "add_threads",
    "check_pipelines",
    "chosen_cases",
    "chosen_names",
    "console",
    "count",
    "new_parser",
    "words",
]

ABSENT = "does not exist; say with --shared where models/ and data/ are"
"""What is said of a file that is not there."""


def new_parser(name: str, text: str | None) -> argparse.ArgumentParser:
    """Return the parser of the benchmark called `name`, whose module says `text` of itself."""
    return argparse.ArgumentParser(
        prog=f"python -m tools.bench {name}", description=(text or "").partition("\n")[0]
    )


def add_rows(parser: argparse.ArgumentParser, known: Iterable[str], usual: str = "all") -> None:
    """Add `--rows`, patterns of names among `known`."""
    parser.add_argument(
        "--rows",
        type=words,
        metavar="NAME,...",
        help=f"rows to run, shell patterns too (default: {usual}), of: {', '.join(known)}",
    )


def add_shared(parser: argparse.ArgumentParser) -> None:
    """Add `--shared`, the folder of networks and data that are not shipped."""
    parser.add_argument("--shared", type=Path, default=ROOT / "../shared", help="folder of models/ and data/")


def add_samples(parser: argparse.ArgumentParser, usual: str, default: int | None = None) -> None:
    """Add `--samples`; `usual` says what the default is."""
    parser.add_argument(
        "--samples", type=count, default=default, metavar="N", help=f"calibration samples (default: {usual})"
    )


def add_threads(parser: argparse.ArgumentParser, default: int = 0) -> None:
    """Add `--threads`."""
    parser.add_argument(
        "--threads",
        type=int,
        default=default,
        metavar="N",
        help=f"of onnxruntime; 0 = all cores (default {default})",
    )


def add_seed(parser: argparse.ArgumentParser, *, many: bool = False) -> None:
    """Add `--seed`: of every random choice, or with `many` a list of seeds with each of which every row runs."""
    if many:
        text = "run every row with each of these seeds (default 0)"
        parser.add_argument("--seed", type=_seeds, default=[0], metavar="0,1,2", help=text)
    else:
        parser.add_argument("--seed", type=int, default=0, metavar="N", help="of every random choice")


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add `--json`."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything as JSON")


def add_options(parser: argparse.ArgumentParser, passes: Sequence[str], example: str) -> None:
    """Add `--options`, those of `passes`."""
    parser.add_argument(
        "--options",
        type=_pairs,
        default={},
        metavar="TEXT",
        help=f"options of {' and '.join(passes)} for every row, which win over its own: '{example}'",
    )


def words(text: str) -> list[str]:
    """Return the words between commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def count(text: str) -> int:
    """Return the number that `text` says, 1 or more."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"'{text}' is no number; give 1 or more")
    return int(text)


def _seeds(text: str) -> list[int]:
    found = words(text)
    if not found or not all(word.isdecimal() for word in found):
        raise argparse.ArgumentTypeError(f"'{text}' are no seeds; give whole numbers, as in 0,1,2")
    return [int(word) for word in found]


def _pairs(text: str) -> dict[str, str]:
    pairs = [word.partition("=") for word in text.split()]
    if not pairs or not all(name and equals and value for name, equals, value in pairs):
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME=VALUE NAME=VALUE")
    return {name: value for name, _, value in pairs}


def chosen_names(
    parser: argparse.ArgumentParser, wanted: Sequence[str] | None, known: Sequence[str], what: str = "row"
) -> list[str]:
    """Return the names among `known` that `wanted` names or matches, all for None; ends the program for one unknown."""
    if wanted is None:
        return list(known)
    found: list[str] = []
    for pattern in wanted:
        matched = [name for name in known if name == pattern or fnmatchcase(name, pattern)]
        if not matched:
            parser.error(f"there is no {what} '{pattern}'; {what}s are {', '.join(known)}")
        found += matched
    return list(dict.fromkeys(found))


def chosen_cases(
    parser: argparse.ArgumentParser,
    wanted: Sequence[str] | None,
    cases: Sequence[Case],
    shared: Path,
    usual: Sequence[str] | None = None,
) -> tuple[list[Case], list[str]]:
    """Return the rows to run, and why others are left out; ends the program where a name is wrong.

    A row that was asked for and has no files ends the program, too; one of those that run by default is left out.
    """
    by_name = {case.name: case for case in cases}
    names = chosen_names(parser, usual if wanted is None else wanted, list(by_name))
    chosen: list[Case] = []
    notes: list[str] = []
    for case in (by_name[name] for name in names):
        missing = missing_file(case, shared)
        if missing is None:
            chosen.append(case)
        elif wanted is not None:
            parser.error(f"{missing} {ABSENT}")
        else:
            notes.append(f"{case.name}: left out, as {missing} does not exist")
    return chosen, notes


def check_pipelines(parser: argparse.ArgumentParser, cases: Iterable[Case]) -> None:
    """End the program where the pipeline of a case is wrong."""
    for case in cases:
        try:
            Pipeline.parse(case.pipeline)
        except UsageError as problem:
            parser.error(f"{case.name}: {str(problem).splitlines()[0]}")


def console(width: int = 240) -> Console:
    """Return where tables are printed; without a terminal, rich would wrap them at 80 columns: there it is `width`."""
    return Console(width=None if sys.stdout.isatty() else width)
