"""Fuzz the command line: call it on mutated models, data files and pipelines, and print every promise it breaks.

    python -m tools.fuzz [--minutes M | --cases N] [--seed S] [--keep FOLDER] [--only KIND]

Every case has a seed of its own, printed with what went wrong: `--seed S --cases 1` repeats it. Inputs that broke a promise
are kept in a folder each, with the command. Exit code 1 where any promise was broken.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from onnxcomp.cli.main import cli
from onnxcomp.numerics.arrays import Array
from tools.fuzz.mutations import PIPELINES, mutate_arrays, mutate_bytes, mutate_model, mutate_pipeline
from tools.fuzz.networks import networks
from tools.fuzz.promises import Ended, broken_promises

__all__ = ["fuzz", "main", "run_case"]

SECONDS = 120.0
"""A call on one of these small networks that takes longer hangs."""

MEMORY = 6 * 2**30
"""Address space of a call, in bytes: what wants more must say so and end."""

KINDS = ("model", "bytes", "data", "pipeline")


def main(arguments: list[str] | None = None) -> int:
    """Run the tool and return its exit code."""
    parser = argparse.ArgumentParser(
        "python -m tools.fuzz", description=__doc__.split("\n")[0] if __doc__ else ""
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="how long to go on (default 10)")
    parser.add_argument("--cases", type=int, help="how many cases instead")
    parser.add_argument("--seed", type=int, default=0, help="of the first case; each next one has the next")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"), help="where findings are kept")
    parser.add_argument("--only", choices=KINDS, help="mutate nothing else")
    given = parser.parse_args(arguments)
    found, done = fuzz(given.seed, given.minutes * 60, given.cases, given.keep, given.only)
    print(f"{done} cases, {found} broke a promise")
    return 1 if found else 0


def fuzz(
    seed: int, seconds: float, cases: int | None, keep: Path, only: str | None = None
) -> tuple[int, int]:
    """Run cases from `seed` on, for `seconds` or as many as `cases`; return how many broke a promise, and how many ran."""
    start, found, done = time.monotonic(), 0, 0
    while (done < cases) if cases is not None else (time.monotonic() - start < seconds):
        broken = run_case(seed + done, keep, only)
        if broken:
            found += 1
            print(f"seed {seed + done}: {'; '.join(broken)}", flush=True)
        done += 1
    return found, done


def run_case(seed: int, keep: Path | None = None, only: str | None = None) -> list[str]:
    """Run the case of `seed` in a folder of its own, and return the promises it broke."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name)
        words = _prepare(folder, rng, only or rng.choice(KINDS))
        before = {p.name for p in folder.iterdir()}
        ended = _call(words, folder)
        files = {p.name for p in folder.iterdir()} - before
        broken = broken_promises(Ended(words, *ended, files), folder, seconds=SECONDS)
        if broken and keep is not None:
            (keep / str(seed)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(folder, keep / str(seed), dirs_exist_ok=True)
            text = "\n".join([" ".join(words), *broken, ended[1][-4000:]])
            (keep / str(seed) / "finding.txt").write_text(
                text + "\n", encoding="utf-8", errors="backslashreplace"
            )
    return broken


def _prepare(folder: Path, rng: random.Random, kind: str) -> tuple[str, ...]:
    """Write the inputs of a case and return its command line."""
    model, arrays = rng.choice(networks())()
    pipeline = rng.choice(PIPELINES)
    if kind == "model":
        for _ in range(rng.randint(1, 3)):
            mutate_model(model, rng)
    data = model.SerializeToString()
    (folder / "in.onnx").write_bytes(mutate_bytes(data, rng) if kind == "bytes" else data)
    if kind == "data":
        mutate_arrays(arrays, rng)
    if kind == "pipeline":
        pipeline = mutate_pipeline(pipeline, rng)
    _write_samples(folder / "data.npz", arrays, rng, broken=kind == "data")
    command = (
        "optimize"
        if kind == "pipeline"
        else rng.choice(("optimize",) * 5 + ("inspect", "compare", "check", "print"))
    )
    samples = rng.choice(("data.npz", "data.npz", "random:8"))
    match command:
        case "optimize":
            return (
                *("optimize", "in.onnx", "-o", "out.onnx", "--passes", pipeline, "--calibration", samples),
                *rng.choice(
                    ((), ("--allow-noop",), ("--max-drop", "5"), ("--report", "r.json"), ("--strict",))
                ),
            )
        case "compare":
            return ("compare", "in.onnx", "in.onnx", "--data", samples)
        case "check":
            return ("check", "in.onnx", "--target", "openvino")
    return (command, "in.onnx")


def _write_samples(path: Path, arrays: dict[str, Array], rng: random.Random, *, broken: bool) -> None:
    np.savez(path, allow_pickle=True, **arrays)
    if broken and rng.random() < 0.3:
        path.write_bytes(mutate_bytes(path.read_bytes(), rng))


def _call(words: tuple[str, ...], folder: Path) -> tuple[int, str, float]:
    """Return exit code, stderr and seconds of the command line called with `words` in a forked process."""
    start = time.monotonic()
    log = folder.with_name(folder.name + ".err")
    child = os.fork()
    if child == 0:
        _become_the_call(words, folder, log)
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() - start > 1.5 * SECONDS:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    log.unlink(missing_ok=True)
    return os.waitstatus_to_exitcode(status), text, time.monotonic() - start


def _become_the_call(words: tuple[str, ...], folder: Path, log: Path) -> None:
    """Run the command line in this process, which ends with it."""
    code = 70
    try:
        os.chdir(folder)
        os.environ["TMPDIR"] = str(folder)
        tempfile.tempdir = None
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        with log.open("wb") as errors, Path(os.devnull).open("wb") as nothing:
            os.dup2(errors.fileno(), 2)
            os.dup2(nothing.fileno(), 1)
        cli.main(list(words))
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    raise SystemExit(main())
