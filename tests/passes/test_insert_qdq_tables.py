"""A network of words comes out of insert-qdq with its table in integers and nothing to tell of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import onnxcomp
from onnxcomp.ir.files import save
from onnxcomp.ir.parse import parse_model
from tests.support.text import net

TEXT = net(
    "(int64[N,6] words) => (float[N,6,64] y)",
    "float[200,32] t, float[32,64] w, float[64] k",
    "e = Gather(t, words) h = MatMul(e, w) y = Add(h, k)",
)


@pytest.fixture
def words(tmp_path: Path) -> tuple[Path, Path]:
    save(parse_model(TEXT), tmp_path / "words.onnx")
    np.savez(tmp_path / "data.npz", words=np.random.default_rng(1).integers(0, 200, (16, 6)))
    return tmp_path / "words.onnx", tmp_path / "data.npz"


def test_table_and_weight_are_stored_in_integers_and_nothing_is_left_to_tell(
    words: tuple[Path, Path],
) -> None:
    model, data = words
    done = onnxcomp.optimize(
        model, "insert-qdq", calibration=str(data), evaluation=str(data), threads=1, require_smaller=False
    )
    (run,) = done.report.runs
    assert not run.skips
    assert [v.values.dtype for v in done.model.graph.constants.values() if v.values.size > 1024] == [
        np.int8
    ] * 2
    assert done.report.comparison is not None and (done.report.comparison.sqnr_db or 0) > 30


def test_an_excluded_table_stays_float_and_says_so(words: tuple[Path, Path]) -> None:
    model, data = words
    done = onnxcomp.optimize(
        model, "insert-qdq", calibration=str(data), threads=1, require_smaller=False, exclude=["op:Gather"]
    )
    (run,) = done.report.runs
    assert [skip.reason for skip in run.skips] == ["it stays float: it is excluded"]
