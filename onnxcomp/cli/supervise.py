"""The supervisor: a command that runs a model does so in a child process, so that a native crash ends in one line.

onnxruntime may abort, or divide by zero, on a model or on data that it has not run on before; no `except` catches that. The
parent forks before anything heavy is imported, which costs a millisecond, passes signals on, waits, and says what the
child died of and during which stage. What the child left in temporary files is removed.
"""

from __future__ import annotations

import mmap
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

__all__ = ["Terminated", "main", "note_folder", "note_stage", "supervised"]

MODEL_COMMANDS = frozenset({"bench", "check", "compare", "inspect", "optimize", "sensitivity"})
"""Commands that load or run a model somebody else made."""

BAD_INPUT, INTERRUPTED = 2, 130

HANDLED = ("SIGINT", "SIGTERM", "SIGHUP")
"""Signals that end a run cleanly."""

AGAIN_SECONDS = 0.5
"""A signal that follows another within this time is the same wish (sent to the process and to its group): it would disturb
the cleaning up."""

SIZE = 8192
"""Bytes of the board on which the child notes what it is doing."""

_PR_SET_PDEATHSIG = 1


class Terminated(KeyboardInterrupt):
    """The process was asked to end by a signal other than Ctrl-C; `exit_code` is what a shell reports for it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class _Board:
    """Two lines of text in memory that parent and child share: the stage of the run, the folder of its output."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, SIZE)
        self._lines = ["", ""]

    def write(self, line: int, text: str) -> None:
        """Replace a line, shortened to what fits."""
        self._lines[line] = text.replace("\0", "")[: SIZE // 10]
        data = "\0".join(self._lines).encode("utf-8", "surrogateescape")[: SIZE - 1]
        self._memory[: len(data) + 1] = data + b"\n"

    def read(self) -> list[str]:
        """Return both lines."""
        data = bytes(self._memory).split(b"\n", 1)[0]
        found = data.decode("utf-8", "replace").strip("\0").split("\0")
        return [*found, "", ""][:2]


_board: _Board | None = None


def note_stage(text: str) -> None:
    """Say what the run is doing now, for the message of a crash; nothing without a supervisor."""
    if _board is not None:
        _board.write(0, " ".join(text.split()))


def note_folder(folder: Path) -> None:
    """Say where temporary files of this process may stand beside the output; nothing without a supervisor."""
    if _board is not None:
        _board.write(1, str(folder.absolute()))


def supervised(arguments: Sequence[str]) -> bool:
    """Return whether the command line `arguments` runs a model, on a system where a child can be watched."""
    if not (hasattr(os, "fork") and hasattr(signal, "sigwaitinfo")):
        return False
    command = next((word for word in arguments if not word.startswith("-")), None)
    return command in MODEL_COMMANDS and not {"-h", "--help"} & set(arguments)


def main() -> NoReturn:
    """Run the command line and exit with its code; see `onnxcomp.cli.main`."""
    if supervised(sys.argv[1:]) and sys.gettrace() is None:
        _in_a_child()
    else:
        _install_handlers()
    _run()


def _run() -> NoReturn:
    try:
        from onnxcomp.cli.main import main as run
    except KeyboardInterrupt as problem:
        # The interrupt may come while libraries are imported, before there is a command line to handle it.
        sys.stderr.write("onnxcomp: interrupted; nothing was written\n")
        sys.exit(getattr(problem, "exit_code", INTERRUPTED))
    run()
    sys.exit(0)


def _in_a_child() -> None:
    """Fork; return in the child, and exit with the child's code in the parent."""
    global _board
    board = _Board()
    numbers = [getattr(signal, name) for name in HANDLED]
    waited = {*numbers, signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, waited)
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    child = os.fork()
    if child:
        sys.exit(_watch(child, waited, board))
    _board = board
    _die_with(parent)
    _install_handlers()
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _install_handlers() -> None:
    """End cleanly on SIGTERM and SIGHUP as on Ctrl-C; a second signal shortly after the first changes nothing."""
    import time

    last = -AGAIN_SECONDS

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < AGAIN_SECONDS:
            return
        last = now
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)

    for name in HANDLED:
        number = getattr(signal, name, None)
        # Who starts us in the background, or under nohup, has these ignored and wants them so.
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handle)


def _die_with(parent: int) -> None:
    """Ask the system to terminate this process when its parent ends, however that ends (Linux; elsewhere nothing)."""
    if sys.platform != "linux":
        return
    import ctypes

    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def _watch(child: int, waited: set[signal.Signals], board: _Board) -> int:
    """Wait for the child, pass on signals that were meant for it, and return the exit code."""
    while True:
        got = signal.sigwaitinfo(waited)
        if got.si_signo != signal.SIGCHLD:
            # What the terminal sends goes to the whole group; what another process sends comes to us alone.
            if got.si_code <= 0:
                with suppress(ProcessLookupError):
                    os.kill(child, got.si_signo)
            continue
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else _died(child, -code, board)


def _died(child: int, number: int, board: _Board) -> int:
    """Clean up after a child that a signal ended, say so in a line, and return the exit code."""
    stage, folder = board.read()
    _sweep(child, folder)
    if number in {getattr(signal, name) for name in HANDLED}:
        sys.stderr.write("onnxcomp: interrupted; nothing was written\n")
        return 128 + number
    while_what = f" while {stage}" if stage else ""
    if number == signal.SIGKILL:
        reason = f"was killed by the system{while_what}, most likely for want of memory: give fewer --samples"
    else:
        reason = (
            f"a native library (onnx or onnxruntime) crashed{while_what} ({_name(number)}): the model or the data asks for "
            "what it cannot do; try another onnxruntime, fewer passes, or --exclude"
        )
    printable = "".join(c if c.isprintable() else "?" for c in f"onnxcomp: {reason}; nothing was written")
    sys.stderr.write(f"{printable}\n")
    return BAD_INPUT


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _sweep(child: int, folder: str) -> None:
    from onnxcomp.ir.temporary import remove_leftovers

    remove_leftovers(Path(folder) if folder else None, process=child)
