"""What is reported on stderr while a run goes on: bars on a terminal, plain lines elsewhere, nothing when quiet."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from onnxcomp.cli.group import clean
from onnxcomp.cli.supervise import note_stage
from onnxcomp.compiler.passbase import Pass
from onnxcomp.compiler.run.pipeline import Listener
from onnxcomp.compiler.run.report import PassRun

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Teller"]

_PERIOD = 5.0
"""Seconds between two lines about the same work where there is no terminal."""

_STYLES = {"changed": "green", "unchanged": "dim", "rolled-back": "bold yellow", "failed": "bold red"}


class Teller(Listener):
    """Reports on stderr how a run goes on; use it as a context, so that Ctrl-C leaves the terminal as it was.

    With `verbose` every change and every skip is reported, otherwise their number.
    """

    def __init__(self, *, quiet: bool = False, verbose: bool = False) -> None:
        self._quiet = quiet
        self._verbose = verbose
        self._console = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._prefix = ""
        self._told = time.monotonic()
        if self._console.is_terminal and not quiet:
            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=30),
                TextColumn("{task.fields[steps]}"),
                TimeElapsedColumn(),
                console=self._console,
                transient=True,
            )

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def note(self, text: str) -> None:
        """Report something that the user should know."""
        self._say(Text.assemble(("note: ", "cyan"), clean(text)))

    def stage(self, text: str) -> None:
        """Report that something other than a pass begins."""
        self._prefix = ""
        note_stage(text)
        self._show(clean(text), 0, 0)

    def progress(self, what: str, done: int, total: int) -> None:
        """Report how far long work has come."""
        self._show(f"{self._prefix}{clean(what)}", done, total)

    def pass_started(self, step: Pass, number: int, total: int) -> None:
        """Report that a pass begins."""
        self._prefix = f"[{number}/{total}] {step.name}: "
        self._told = time.monotonic()
        note_stage(f"{step.name} was running")
        self._show(self._prefix.rstrip(": "), 0, 0)

    def pass_finished(self, run: PassRun) -> None:
        """Report the result of a pass."""
        prefix, self._prefix = self._prefix, ""
        line = Text.assemble((prefix, "bold"), (run.status, _STYLES[run.status]), clean(_summary(run)))
        self._say(line)
        for text in (*run.notes, *([run.shortfall] if run.shortfall else [])):
            self._say(Text.assemble(("    note: ", "cyan"), clean(text)))
        if self._verbose:
            for change in run.changes:
                self._say(Text(clean(f"    {change.where}: {change.what}")))
            for skip in run.skips:
                self._say(Text(clean(f"    {skip.where}: skipped, {skip.reason}"), style="dim"))

    def _say(self, text: Text) -> None:
        if not self._quiet:
            (self._bar.console if self._bar is not None else self._console).print(text)

    def _show(self, what: str, done: int, total: int) -> None:
        if self._quiet:
            return
        steps = f"{done}/{total}" if total else ""
        if self._bar is None:
            if total and time.monotonic() - self._told >= _PERIOD:
                self._told = time.monotonic()
                self._say(Text(f"{what} {steps}"))
            return
        if not self._bar.tasks:
            self._bar.add_task(what, total=total or None, steps=steps)
        self._bar.update(
            self._bar.tasks[0].id, description=what, completed=done, total=total or None, steps=steps
        )


def _summary(run: PassRun) -> str:
    """Return what became of a pass in a few words."""
    parts = []
    if run.reason:
        parts.append(run.reason)
    if run.changes:
        parts.append(f"{len(run.changes)} change{'s' if len(run.changes) > 1 else ''}")
    if run.skips:
        parts.append(f"{len(run.skips)} skipped ({run.skips[0].where}: {run.skips[0].reason})")
    return f" in {run.seconds:.1f} s" + (": " + ", ".join(parts) if parts else "")
