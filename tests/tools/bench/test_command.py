"""One command starts every benchmark and lists them all."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

from tests.support.sources import ROOT
from tools.bench.__main__ import BENCHMARKS, main, summary


def test_the_help_lists_every_benchmark_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out.splitlines()
    for name in BENCHMARKS:
        (line,) = (line for line in shown if line.split()[:1] == [name])
        assert line.endswith(summary(name)) and len(summary(name)) > 20


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_explains_its_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert "usage: " in capsys.readouterr().out
    assert callable(import_module(f"tools.bench.{BENCHMARKS[name]}").main)


@pytest.mark.parametrize("words", [[], ["prun"], ["--rows", "resnet20"]])
def test_a_benchmark_that_is_not_there_is_refused_with_those_that_are(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith("tools.bench: error: ") and "benchmarks are prune, quantize, " in said


def test_the_command_is_a_module_that_runs_alone() -> None:
    words = [sys.executable, "-m", "tools.bench", "latency-model", "--help"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "--shared" in done.stdout
