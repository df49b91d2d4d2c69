"""onnxruntime records its use unless it is told not to before it is imported; ours tells it, and users may say otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.sources import ROOT

SWITCH = "ORT_DISABLE_TELEMETRY"


def run(*words: str, home: Path, **given: str) -> str:
    """Run python with a home and a folder for temporary files of its own; return what it prints."""
    folders = {"HOME": str(home / "home"), "TMPDIR": str(home / "tmp")}
    for folder in folders.values():
        Path(folder).mkdir()
    dropped = {SWITCH, "XDG_CACHE_HOME"}
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    done = subprocess.run(
        [sys.executable, *words],
        env={**kept, "PYTHONPATH": str(ROOT), **folders, **given},
        cwd=home,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_a_run_of_the_whole_command_leaves_no_record_of_its_use(tmp_path: Path) -> None:
    net, data = (str(ROOT / "models" / name) for name in ("digits_mlp.onnx", "digits_calibration.npz"))
    words = f"-m onnxcomp optimize {net} -o small.onnx --passes prune-filters{{macs=0.5}} --samples 16"
    run(*words.split(), "--calibration", data, home=tmp_path)
    assert (tmp_path / "small.onnx").exists()
    assert [path for name in ("home", "tmp") for path in (tmp_path / name).rglob("*")] == []


@pytest.mark.parametrize("first", ["onnxcomp.runtime.session", "onnxcomp.api", "tools.bench.peers"])
def test_the_switch_is_set_before_onnxruntime_is_imported(tmp_path: Path, first: str) -> None:
    code = (
        "import builtins, os\n"
        "kept, seen = builtins.__import__, []\n"
        "def watch(name, *rest, **more):\n"
        "    if name.split('.')[0] == 'onnxruntime':\n"
        f"        seen.append(os.environ.get('{SWITCH}'))\n"
        "    return kept(name, *rest, **more)\n"
        "builtins.__import__ = watch\n"
        f"import {first}\n"
        "print(set(seen))\n"
    )
    assert run("-c", code, home=tmp_path) == "{'1'}\n"


@pytest.mark.parametrize("value", ["0", "1", ""])
def test_what_the_user_says_stays(tmp_path: Path, value: str) -> None:
    code = (
        "import os, onnxcomp.runtime\n"
        "from onnxcomp.runtime.sandbox import child_environment\n"
        f"print([found['{SWITCH}'] for found in (os.environ, child_environment())])\n"
    )
    assert run("-c", code, home=tmp_path, **{SWITCH: value}) == f"{[value] * 2}\n"


def test_the_tests_themselves_run_with_it() -> None:
    assert SWITCH in os.environ
