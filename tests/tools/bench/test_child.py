"""What a command took is measured from outside, whoever starts it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from tools.bench.child import run_measured

MEGABYTE = 2**20


def python(code: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code]


def test_exit_code_and_words_are_those_of_the_command(tmp_path: Path) -> None:
    usage = run_measured(
        python("import sys; print('out'); print('err', file=sys.stderr); sys.exit(4)"), tmp_path
    )
    assert (usage.exit_code, usage.stderr) == (4, "err\n")
    assert usage.seconds > 0


def test_a_command_that_a_signal_ends_has_a_negative_exit_code(tmp_path: Path) -> None:
    assert run_measured(python("import os; os.kill(os.getpid(), 9)"), tmp_path).exit_code == -9


def test_the_command_runs_in_the_folder(tmp_path: Path) -> None:
    run_measured(python("open('here', 'w').close()"), tmp_path)
    assert (tmp_path / "here").exists()


def test_the_peak_is_that_of_the_command_and_not_of_the_process_that_asks(tmp_path: Path) -> None:
    ballast = np.ones(300 * MEGABYTE // 8)
    assert run_measured(python("pass"), tmp_path).peak_bytes < 100 * MEGABYTE
    assert ballast.sum() == ballast.size


def test_the_peak_is_kept_after_memory_is_given_back_and_holds_for_processes_below(tmp_path: Path) -> None:
    grow = "x = bytearray(200 * 2**20); del x"
    below = f"import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', {grow!r}], check=True)"
    for code in (grow, below):
        assert 200 * MEGABYTE < run_measured(python(code), tmp_path).peak_bytes < 300 * MEGABYTE


def test_a_command_that_does_not_exist_is_an_error_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"no-such-program cannot be run: .*No such file"):
        run_measured(["no-such-program"], tmp_path)
