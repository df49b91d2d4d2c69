"""Untrusted model files: the first look at each is taken by a process of its own.

Checker, shape inference, opset conversion and onnxruntime are native code that malformed files have crashed before; no
`except` catches that. The child may only read: it cannot write files, and its memory and time are bounded.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxcomp
from onnxcomp.errors import ModelError, OnnxcompError, UsageError

__all__ = ["Probe", "child_environment", "package_folder", "probe", "run_child"]

_CHILD = "onnxcomp.runtime.probe_child"

_ERRORS: dict[str, type[OnnxcompError]] = {"ModelError": ModelError, "UsageError": UsageError}


@dataclass(frozen=True)
class Probe:
    """What the child found out about a model file that is sound enough to be worked on.

    Attributes:
        checker: the ONNX checker's objection in one line, None where it has none.
        runtime_loads: whether onnxruntime loads it.
        runs: whether it also ran, on noise of `input_shapes`.
        reason: why it does not load or run, "" where it does both.
        input_shapes: the sizes of all inputs that it ran with; empty where it did not run.
        sizes: what that makes of every symbolic axis, by its name.
        opset: version of the standard operators in the file, 0 where it uses none.
        converted_to: the version it is converted to when it is loaded, None where it is not.
        conversion_error: largest difference between the outputs before and after that, relative to the largest output;
            None where nothing was converted, or where original and converted model could not both be run.
        notes: what loading had to mend.
    """

    checker: str | None
    runtime_loads: bool
    runs: bool
    reason: str
    input_shapes: dict[str, tuple[int, ...]]
    sizes: dict[str, int]
    opset: int
    converted_to: int | None
    conversion_error: float | None
    notes: tuple[str, ...]


def probe(
    path: str | Path,
    *,
    allow_links: bool = False,
    custom_op_libs: Sequence[str] = (),
    timeout: float = 300.0,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    seed: int = 0,
) -> Probe:
    """Return what a child process found out about the model file `path`: it loads, checks, converts and runs it once.

    `input_shapes` fixes sizes that the file leaves open; others are tried. `timeout` is in seconds.

    Raises:
        ModelError: for what is no sound model, for one that checker and onnxruntime both refuse, for a conversion that changes the outputs, and where the child crashed
            or ran out of time or memory.
        UsageError: where a custom operator library cannot be loaded.
    """
    request = {
        "path": str(Path(path).absolute()),
        "name": str(path),
        "allow_links": allow_links,
        "custom_op_libs": [str(Path(library).absolute()) for library in custom_op_libs],
        "input_shapes": {name: list(shape) for name, shape in (input_shapes or {}).items()},
        "seed": seed,
        "seconds": timeout,
    }
    try:
        child = run_child(_CHILD, request, timeout)
    except subprocess.TimeoutExpired as problem:
        raise ModelError(f"checking {str(path)!r} took more than {timeout:g} s and was stopped") from problem
    return _result(child, str(path), timeout)


def run_child(module: str, request: Mapping[str, Any], timeout: float) -> subprocess.CompletedProcess[bytes]:
    """Return how a fresh process that runs `module`, with `request` as JSON on its standard input, ended.

    Raises:
        TimeoutExpired: where it took more than `timeout` seconds; it is stopped then.
    """
    return subprocess.run(
        [sys.executable, "-m", module],
        input=json.dumps(request).encode(),
        capture_output=True,
        timeout=timeout,
        env=child_environment(),
        cwd=package_folder(),
        check=False,
    )


def package_folder() -> Path:
    """Return the folder that holds the package: `-m` looks for modules in the current one first."""
    return Path(onnxcomp.__file__).absolute().parent.parent


def child_environment() -> dict[str, str]:
    """Return the environment of a child process that finds the same modules as this one."""
    paths = [str(Path(entry or ".").absolute()) for entry in sys.path]
    dropped = {"PYTHONFAULTHANDLER", "PYTHONSTARTUP", "PYTHONINSPECT"}
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return kept | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONIOENCODING": "utf-8"}


def _result(child: subprocess.CompletedProcess[bytes], path: str, timeout: float) -> Probe:
    if child.returncode < 0:
        raise ModelError(_why_killed(-child.returncode, path, timeout))
    try:
        found = json.loads(child.stdout)
    except ValueError as problem:
        tail = child.stderr.decode(errors="replace").strip().rsplit("\n", 1)[-1]
        raise RuntimeError(f"the probe of {path!r} ended with code {child.returncode}: {tail}") from problem
    if "error" in found:
        raise _ERRORS[found["kind"]](found["error"])
    return _probe(found)


def _probe(found: dict[str, Any]) -> Probe:
    shapes = {name: tuple(shape) for name, shape in found.pop("input_shapes").items()}
    return Probe(**found | {"input_shapes": shapes, "notes": tuple(found["notes"])})


def _why_killed(number: int, path: str, timeout: float) -> str:
    if number == getattr(signal, "SIGXCPU", None):
        return f"checking {path!r} took more than {timeout:g} s and was stopped"
    if number == getattr(signal, "SIGKILL", None):
        return f"checking {path!r} was killed by the system, most likely for want of memory"
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    return f"onnx or onnxruntime crashed on {path!r} ({name}); the file is damaged or made to do so"
