"""What a fresh process tells of loading and running a model once; no time is judged."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxcomp.ir.files import save
from onnxcomp.ir.parse import parse_model
from onnxcomp.runtime import start
from onnxcomp.runtime.session import SessionError
from onnxcomp.runtime.start import start_fresh
from tests.support.text import net

FEED = {"x": np.ones((2, 3), np.float32)}


@pytest.fixture(name="relu")
def _relu(tmp_path: Path) -> Path:
    return save(parse_model(net("(float[N,3] x) => (float[N,3] y)", "", "y = Relu(x)")), tmp_path / "m.onnx")[
        0
    ]


def test_memory_counts_what_the_model_takes_and_not_what_onnxruntime_takes(
    tmp_path: Path, relu: Path
) -> None:
    text = net(
        "(float[N,2048] x) => (float[N,2048] y)",
        "float[2048,2048] a, float[2048,2048] b",
        "h = MatMul(x, a)  y = MatMul(h, b)",
    )
    large = save(parse_model(text), tmp_path / "large.onnx")[0]
    small = start_fresh(relu, FEED)
    found = start_fresh(large, {"x": np.ones((1, 2048), np.float32)})
    assert small.peak_bytes is not None and found.peak_bytes is not None
    assert small.seconds > 0
    assert small.peak_bytes < 2**25 < found.peak_bytes


def test_text_integers_and_names_that_numpy_keeps_for_itself_are_fed(tmp_path: Path) -> None:
    text = net(
        "(string[N] file, int64[N] arr_0) => (string[N] y, int64[N] z)",
        "",
        "y = Identity(file)  z = Abs(arr_0)",
    )
    path = save(parse_model(text), tmp_path / "m.onnx")[0]
    feeds = {"file": np.array(["a", "b"], object), "arr_0": np.array([1, 2])}
    assert start_fresh(path, feeds).seconds > 0


def test_a_model_that_does_not_run_is_named_with_the_reason(relu: Path, tmp_path: Path) -> None:
    with pytest.raises(SessionError, match=r"m\.onnx: it does not run in a process of its own: .*x"):
        start_fresh(relu, {"x": np.ones((2, 4), np.float32)})
    with pytest.raises(SessionError, match=r"none\.onnx: it does not run"):
        start_fresh(tmp_path / "none.onnx", FEED)


def test_a_process_that_dies_or_never_ends_is_told_in_one_line(
    relu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: Any, **__: Any) -> Any:
        return subprocess.CompletedProcess([], -11, b"", b"first\nlast words\n")

    def never_end(*_: Any, timeout: float, **__: Any) -> Any:
        raise subprocess.TimeoutExpired([], timeout)

    monkeypatch.setattr("subprocess.run", die)
    with pytest.raises(SessionError, match=r"^\S*m\.onnx: its first run ended with code -11: last words$"):
        start_fresh(relu, FEED)
    monkeypatch.setattr("subprocess.run", never_end)
    with pytest.raises(SessionError, match=r"its first run took more than 3 s and was stopped$"):
        start_fresh(relu, FEED, timeout=3)


def test_several_processes_give_their_median(relu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = iter([start.Start(3.0, 50), start.Start(1.0, 70), start.Start(2.0, 60)])
    monkeypatch.setattr("onnxcomp.runtime.start._run", lambda *_: next(made))
    assert start_fresh(relu, FEED, processes=3) == start.Start(2.0, 60)


def test_a_system_that_does_not_tell_memory_leaves_it_open(
    relu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxcomp.runtime.start._run", lambda *_: start.Start(1.0, None))
    assert start_fresh(relu, FEED).peak_bytes is None
