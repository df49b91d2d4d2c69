"""The fuzzer: it repeats itself by seed, notices broken promises, and finds none in a short run."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from tests.support.sources import ROOT
from tools.fuzz.mutations import PIPELINES, mutate_arrays, mutate_bytes, mutate_model, mutate_pipeline
from tools.fuzz.networks import networks
from tools.fuzz.promises import Ended, broken_promises

SECONDS = [10.0, pytest.param(60.0, marks=pytest.mark.slow)]
"""A case takes less than half a second."""


@pytest.mark.parametrize("make", networks(), ids=lambda made: made.args[0])
def test_the_networks_that_are_mutated_are_sound(make: object) -> None:
    model, arrays = make()  # type: ignore[operator]
    onnx.checker.check_model(model, full_check=True)
    assert arrays


def test_the_same_seed_makes_the_same_mutation() -> None:
    for seed in range(60):
        texts = set()
        for _ in range(2):
            rng = random.Random(seed)
            model, arrays = networks()[seed % len(networks())]()
            words = [mutate_model(model, rng), mutate_arrays(arrays, rng), mutate_pipeline(PIPELINES[0], rng)]
            texts.add((*words, mutate_bytes(model.SerializeToString(deterministic=True), rng)))
        assert len(texts) == 1


def ended(
    code: int, stderr: str = "onnxcomp: no\n", seconds: float = 1.0, files: tuple[str, ...] = ()
) -> Ended:
    return Ended(("optimize", "in.onnx"), code, stderr, seconds, files)


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (ended(70), "exit code 70"),
        (ended(-8), "exit code -8"),
        (ended(2, "Traceback (most recent call last):\nonnxcomp: x"), "traceback"),
        (ended(2, ""), "without a line"),
        (ended(2, "onnxcomp: " + "x" * 1000), "endless"),
        (ended(3, seconds=11), "took"),
        (ended(0), "nothing written"),
        (ended(2, files=("out.onnx",)), "written"),
        (ended(3, files=(".onnxcomp-1-2.tmp",)), "left behind"),
    ],
)
def test_a_broken_promise_is_noticed(call: Ended, what: str, tmp_path: Path) -> None:
    for name in call.files:
        (tmp_path / name).write_bytes(b"no model")
    assert any(what in text for text in broken_promises(call, tmp_path, seconds=10))


def test_kept_promises_are_no_finding(tmp_path: Path) -> None:
    assert broken_promises(ended(2), tmp_path, seconds=10) == []
    assert broken_promises(ended(3), tmp_path, seconds=10) == []


def fuzz(*words: str) -> str:
    """Return what `python -m tools.fuzz` prints: it forks, which a process with threads had better not."""
    call = [sys.executable, "-m", "tools.fuzz", *words]
    done = subprocess.run(call, capture_output=True, text=True, check=False, cwd=ROOT)
    return done.stdout + done.stderr


@pytest.mark.parametrize("seconds", SECONDS)
def test_a_short_run_finds_nothing(seconds: float, tmp_path: Path) -> None:
    said = fuzz("--minutes", str(seconds / 60), "--keep", str(tmp_path / "kept"))
    assert said.strip().endswith("cases, 0 broke a promise"), said
    assert int(said.split()[0]) >= 5


def test_a_case_can_be_repeated_alone() -> None:
    words = ("--cases", "1", "--seed", "3", "--only", "pipeline")
    assert fuzz(*words) == fuzz(*words) == "1 cases, 0 broke a promise\n"
