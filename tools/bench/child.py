"""Wall time and peak memory of a command, measured from outside.

What the kernel calls the peak of a process begins with that of the process it was started from, so a command started by a
large program seems at least as large. Therefore a bare interpreter stands between: this file, which imports the standard
library only, run as a program.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Usage", "run_measured"]


@dataclass(frozen=True)
class Usage:
    """What a command took.

    `peak_bytes` is the largest resident size of the command or of any process it started and waited for (of one of them,
    not of all together); `cpu_seconds` is of all of them. `stderr` is what it said.
    """

    exit_code: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    stderr: str


def run_measured(command: Sequence[str], folder: Path) -> Usage:
    """Run `command` in `folder`, without its standard output, and return what it took.

    Raises:
        OSError: where the command cannot be started.
    """
    launcher = [sys.executable, "-I", "-S", str(Path(__file__).resolve()), *command]
    done = subprocess.run(launcher, cwd=folder, capture_output=True, check=False)
    said = done.stderr.decode("utf-8", "replace")
    if done.returncode:
        raise OSError(f"{command[0]} cannot be run: {said.strip().splitlines()[-1] if said.strip() else '?'}")
    return Usage(**json.loads(done.stdout), stderr=said)


def _launch(command: Sequence[str]) -> dict[str, float]:
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "exit_code": process.returncode,
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * unit,
    }


if __name__ == "__main__":
    json.dump(_launch(sys.argv[1:]), sys.stdout)
