"""Renew the parts of the documents that the code knows: the tables of passes and options, and what commands print.

    python -m tools.update_docs [--check] [--no-commands]

Tables stand between `<!-- generated: ... -->` and `<!-- end -->`. What a command prints stands in a `console` block, below
a line that begins with `$ onnxcomp`; it is run in a temporary folder that holds `models/`. With `--check` nothing is
written, and the exit code is 1 where something is not up to date.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from onnxcomp.compiler.commands.catalogue import PassFacts, describe
from onnxcomp.passes import BUILTIN
from onnxcomp.targets import TARGETS

__all__ = ["PAGES", "main", "renew_commands", "renew_tables", "run_command"]

ROOT = Path(__file__).resolve().parent.parent

PAGES = ("README.md", "docs/passes.md", "docs/targets.md")
"""The documents that hold generated parts."""

_TABLE = re.compile(r"(<!-- generated: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)
_COMMAND = re.compile(r"(```console\n\$ (onnxcomp (?:[^\n]*\\\n)*[^\n]*)\n)(.*?)(```)", re.DOTALL)
_PROGRESS = re.compile(r" \d+/\d+$")


def renew_tables(text: str) -> str:
    """Return the document `text` with all tables of passes and options as the code has them now."""
    return _TABLE.sub(lambda m: f"{m[1]}{_generated(m[2])}\n{m[3]}", text)


def renew_commands(text: str, run: Callable[[str], str]) -> str:
    """Return the document `text` with what `run` returns for each command in place of what is printed there."""
    return _COMMAND.sub(lambda m: f"{m[1]}{run(m[2])}{m[4]}", text)


def run_command(command: str, folder: Path) -> str:
    """Return what the shell command `command`, run in `folder`, prints on both channels; it must succeed."""
    shim = folder / ".bin" / "onnxcomp"
    if not shim.exists():
        shim.parent.mkdir()
        shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m onnxcomp "$@"\n', encoding="utf-8")
        shim.chmod(0o755)
        shutil.copytree(
            ROOT / "models", folder / "models", ignore=shutil.ignore_patterns("*.py", "__pycache__")
        )
    path = os.pathsep.join([str(shim.parent), os.environ.get("PATH", "")])
    found = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        ["bash", "-euc", command],
        cwd=folder,
        env={
            **os.environ,
            "PATH": path,
            "PYTHONPATH": os.pathsep.join(found),
            "PYTHONUNBUFFERED": "1",
            "XDG_CACHE_HOME": str(folder / ".cache"),
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{command} ended with {done.returncode}: {done.stdout}")
    # Tables are padded to their widest row; how often a run reports its progress depends on the machine.
    lines = [line.rstrip() for line in done.stdout.strip("\n").splitlines()]
    return "".join(f"{line}\n" for line in lines if not _PROGRESS.search(line))


def _generated(wanted: str) -> str:
    kind, _, name = wanted.partition(" ")
    if kind == "targets":
        return _targets()
    return _pass(describe(name)) if kind == "pass" else _passes()


def _passes() -> str:
    rows = [
        (f"[`{facts.name}`](docs/passes.md#{facts.name})", _kind(facts), facts.summary)
        for facts in map(describe, sorted(BUILTIN))
    ]
    return _table(("pass", "outputs", "what it does"), rows)


def _targets() -> str:
    rows = [
        (f"`{t.name}`", t.family, t.summary, f"{sum(bool(f.verified_on) for f in t.facts)} of {len(t.facts)}")
        for t in TARGETS.values()
    ]
    return _table(("target", "family", "what it is", "facts tried here"), rows)


def _kind(facts: PassFacts) -> str:
    return "equal" if facts.exact else "approximate"


def _pass(facts: PassFacts) -> str:
    needs = ", ".join(f"`{need}`" for need in facts.needs) or "nothing"
    head = f"{facts.doc}\n\nOutputs: {_kind(facts)}. Stage: `{facts.stage}`. Needs by default: {needs}."
    if not facts.options:
        return f"{head} No options."
    rows = [
        (f"`{o.name}`", o.kind.replace("|", "\\|"), "-" if o.default is None else f"`{o.default}`", o.help)
        for o in facts.options
    ]
    return f"{head}\n\n{_table(('option', 'type', 'default', 'meaning'), rows)}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Renew all pages, or with `--check` only say which are not up to date; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 where a page is old")
    parser.add_argument("--no-commands", action="store_true", help="renew the tables only")
    options = parser.parse_args(arguments)
    old = []
    with tempfile.TemporaryDirectory() as folder:
        for page in PAGES:
            path = ROOT / page
            before = path.read_text(encoding="utf-8")
            after = renew_tables(before)
            if not options.no_commands:
                after = renew_commands(after, lambda command: run_command(command, Path(folder)))
            if after != before:
                old.append(page)
                if not options.check:
                    path.write_text(after, encoding="utf-8")
    for page in old:
        print(f"{page} {'is not up to date' if options.check else 'renewed'}")
    return int(options.check and bool(old))


if __name__ == "__main__":
    sys.exit(main())
