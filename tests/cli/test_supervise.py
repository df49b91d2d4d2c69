"""A command that runs a model survives what no `except` catches: native crashes, signals, the death of its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import onnxcomp
from onnxcomp.cli import supervise
from onnxcomp.ir import temporary
from tests.support.fakes import write_classifier

ROOT = Path(onnxcomp.__file__).parents[1]

SCRIPT = """
import signal, sys
sys.argv[0] = "onnxcomp"
# A shell that starts tests in the background has them ignore the interrupt, and so do all their children.
signal.signal(signal.SIGINT, signal.default_int_handler)
import onnxcomp.cli.supervise as supervise
run = supervise._run
def with_fakes():
    from onnxcomp.passes import BUILTIN
    from tests.support.fakes import FAKES
    BUILTIN.update(FAKES)
    run()
supervise._run = with_fakes
supervise.main()
"""


@pytest.fixture(autouse=True)
def _model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_classifier(tmp_path)
    (tmp_path / "tmp").mkdir()


def start(words: str, **settings: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *words.split()],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(Path("tmp").absolute())},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **settings,
    )


def left() -> set[str]:
    return {p.name for p in Path().iterdir()} - {"model.onnx", "tmp"} | {
        p.name for p in Path("tmp").iterdir()
    }


@pytest.mark.parametrize("name", ["SIGFPE", "SIGABRT", "SIGSEGV"])
def test_a_native_crash_is_one_line_that_names_the_stage_and_exit_2(name: str) -> None:
    with start(f"optimize model.onnx -o out.onnx --passes scale,die{{of={name}}}") as child:
        _, errors = child.communicate(timeout=60)
    assert child.returncode == 2
    last = errors.strip().splitlines()[-1]
    assert last.startswith("onnxcomp: a native library")
    assert name in last
    assert "die was running" in last
    assert left() == set()


def test_being_killed_is_put_down_to_memory() -> None:
    with start("optimize model.onnx -o out.onnx --passes die{of=SIGKILL}") as child:
        _, errors = child.communicate(timeout=60)
    assert child.returncode == 2
    assert "memory" in errors.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_signals_end_a_run_cleanly_with_the_code_that_shells_report(
    number: signal.Signals, code: int
) -> None:
    with start("optimize model.onnx -o out.onnx --passes scale,stall --report r.json") as child:
        assert child.stderr is not None
        assert child.stderr.readline().startswith("[1/2] scale: changed")
        time.sleep(0.2)
        child.send_signal(number)
        _, rest = child.communicate(timeout=30)
    assert child.returncode == code
    assert rest.strip().splitlines()[-1] == "onnxcomp: interrupted; nothing was written"
    assert "Traceback" not in rest
    assert left() == set()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of the end of its parent")
def test_the_child_ends_with_its_parent() -> None:
    child = start("optimize model.onnx -o out.onnx --passes scale,stall")
    assert child.stderr is not None
    child.stderr.readline()
    grandchild = int(Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()[0])
    child.kill()
    child.wait()
    for _ in range(100):
        state = Path(f"/proc/{grandchild}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            break
        time.sleep(0.1)
    else:
        pytest.fail("the child lives on")
    child.stderr.close()
    assert child.stdout is not None
    child.stdout.close()
    assert left() == set()


def test_commands_that_run_no_model_and_help_are_not_supervised() -> None:
    assert supervise.supervised(["optimize", "x.onnx"])
    assert supervise.supervised(["--debug", "compare", "a", "b"])
    assert not supervise.supervised(["optimize", "--help"])
    assert not supervise.supervised(["passes"])
    assert not supervise.supervised([])


def test_leftovers_of_ended_processes_go_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    old = time.time() - 2 * temporary.STALE_SECONDS
    names = {
        f".onnxcomp-{gone.pid}-00ff.tmp": old,
        f"tmp/onnxcomp-{gone.pid}-abc": old,
        f".onnxcomp-{gone.pid}-11ff.tmp": time.time(),
        f".onnxcomp-{os.getpid()}-22ff.tmp": old,
        ".onnxcomp-words-33ff.tmp": old,
        "onnxcomp-notes.txt": old,
    }
    for name, age in names.items():
        path = tmp_path / name
        path.mkdir() if name.startswith("tmp") else path.write_text("x")
        os.utime(path, (age, age))
    removed = temporary.remove_leftovers(tmp_path)
    assert {p.name for p in removed} == {f".onnxcomp-{gone.pid}-00ff.tmp", f"onnxcomp-{gone.pid}-abc"}
    assert [p.name for p in temporary.remove_leftovers(tmp_path, process=gone.pid)] == [
        f".onnxcomp-{gone.pid}-11ff.tmp"
    ]
