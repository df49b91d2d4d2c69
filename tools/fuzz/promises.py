"""What every call promises, whatever it is given: a known exit code, one clear line, nothing half-written, nothing left."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import onnxruntime

__all__ = ["Ended", "broken_promises"]

CODES = {0, 1, 2, 3, 4}
"""Exit codes of a call that went as documented; 70 is a bug, and a signal a crash that nobody caught."""

LINE = 900
"""Longest sensible last line of an error message, in characters."""


@dataclass(frozen=True)
class Ended:
    """How a call ended: exit code (negative for a signal), what it printed, how long it took, the files it left."""

    words: tuple[str, ...]
    code: int
    stderr: str
    seconds: float
    files: Collection[str]


def broken_promises(ended: Ended, folder: Path, *, seconds: float) -> list[str]:
    """Return every promise that a call in `folder` broke, as a sentence; `seconds` is the longest it may take."""
    found = []
    if ended.code not in CODES:
        found.append(f"exit code {ended.code}")
    if "Traceback" in ended.stderr:
        found.append("a traceback on stderr")
    if ended.seconds > seconds:
        found.append(f"took {ended.seconds:.0f} s")
    lines = ended.stderr.strip().splitlines()
    if ended.code == 2:
        said = [line for line in lines if line.startswith(("onnxcomp: ", "Error: ", "Usage: "))]
        if not said:
            found.append("an error without a line that says so")
        elif max(map(len, said)) > LINE:
            found.append("an endless line")
    written = {name for name in ended.files if name.startswith("out")}
    if ended.words[0] == "optimize":
        allowed = {0: {"out.onnx", "out.onnx.data"}, 4: {"out.best.onnx", "out.best.onnx.data"}}.get(
            ended.code, set()
        )
        if written - allowed:
            found.append(f"exit code {ended.code} and {sorted(written - allowed)} written")
        if ended.code == 0 and "out.onnx" not in written:
            found.append("exit code 0 and nothing written")
    hidden = [name for name in ended.files if name.startswith(".onnxcomp")]
    if hidden:
        found.append(f"{hidden} left behind")
    for name in sorted(written):
        if name.endswith(".onnx") and (problem := _refused(folder / name)):
            found.append(f"{name} was written and onnxruntime refuses it: {problem}")
    return found


def _refused(path: Path) -> str:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as problem:  # noqa: BLE001 - whatever it raises, the file does not load
        return " ".join(str(problem).split())[:200]
    return ""
