"""What a run leaves on the disk: one whole file, or the files that were there before."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxcomp
from onnxcomp.compiler.commands import optimize as driver
from onnxcomp.errors import (
    BudgetError,
    ModelError,
    NothingChanged,
    UsageError,
    VerificationError,
)
from onnxcomp.ir.files import save
from tests.support.fakes import (
    FallShort,
    Raiser,
    Scale,
    names_in,
    write_classifier,
    write_data,
)

EXACT = "fold-constants,fold-batchnorm,remove-dead"

pytestmark = pytest.mark.usefixtures("no_child_process")


def test_where_nothing_changed_nothing_is_written(tmp_path: Path) -> None:
    source = write_classifier(tmp_path)
    with pytest.raises(NothingChanged, match="--allow-noop") as caught:
        onnxcomp.optimize(
            source, "fold-batchnorm", output=tmp_path / "out.onnx", reports=[tmp_path / "r.json"]
        )
    assert caught.value.exit_code == 3
    assert names_in(tmp_path) == {"model.onnx", "r.json"}
    assert json.loads((tmp_path / "r.json").read_text())["status"] == "unchanged"


def test_where_nothing_changed_a_copy_can_be_had(tmp_path: Path) -> None:
    source = write_classifier(tmp_path)
    result = onnxcomp.optimize(source, "fold-batchnorm", output=tmp_path / "out.onnx", allow_noop=True)
    assert (tmp_path / "out.onnx").read_bytes() == source.read_bytes()
    assert result.report.status == "unchanged"


def test_what_was_converted_is_written_as_it_was_verified(tmp_path: Path) -> None:
    source = tmp_path / "old.onnx"
    add = onnx.helper.make_node("Add", ["x", "w"], ["y"], axis=1, broadcast=1)
    graph = onnx.helper.make_graph(
        [add],
        "g",
        [
            onnx.helper.make_tensor_value_info(name, 1, shape)
            for name, shape in {"x": [2, 3], "w": [3]}.items()
        ],
        [onnx.helper.make_tensor_value_info("y", 1, [2, 3])],
    )
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 6)], ir_version=3), source
    )
    result = onnxcomp.optimize(source, "remove-dead", output=tmp_path / "out.onnx", allow_noop=True)
    assert result.report.status == "unchanged"
    assert onnx.load(tmp_path / "out.onnx").opset_import[0].version >= 13


def test_a_second_run_replaces_what_the_first_left_in_the_metadata(tmp_path: Path) -> None:
    proto = onnx.load(write_classifier(tmp_path))
    onnx.helper.set_model_props(proto, {"author": "somebody", "onnxcomp.calibration": "random"})
    onnx.save(proto, tmp_path / "model.onnx")
    onnxcomp.optimize(tmp_path / "model.onnx", [Scale()], output=tmp_path / "one.onnx")
    onnxcomp.optimize(tmp_path / "one.onnx", [Scale(by=2.0)], output=tmp_path / "two.onnx")
    metadata = onnxcomp.load(tmp_path / "two.onnx").metadata
    assert metadata == {
        "author": "somebody",
        "onnxcomp.pipeline": "scale{by=2.0}",
        "onnxcomp.version": onnxcomp.__version__,
        "onnxcomp.input_sha256": hashlib.sha256((tmp_path / "one.onnx").read_bytes()).hexdigest(),
    }


def test_a_final_file_that_is_not_what_was_verified_is_never_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_classifier(tmp_path)
    (tmp_path / "out.onnx").write_bytes(b"the old one")

    def forgetful(model: Any, path: Path) -> list[Path]:
        model = model.clone()
        model.graph.set_constant(model.graph.nodes[0], 1, np.zeros((6, 3, 3, 3), np.float32))
        return save(model, path)

    monkeypatch.setattr(driver, "save", forgetful)
    with pytest.raises(VerificationError, match="the final file fails verification, so nothing was written"):
        onnxcomp.optimize(
            source, [Scale()], output=tmp_path / "out.onnx", force=True, reports=[tmp_path / "r.json"]
        )
    assert names_in(tmp_path) == {"model.onnx", "out.onnx", "r.json"}
    assert (tmp_path / "out.onnx").read_bytes() == b"the old one"
    assert json.loads((tmp_path / "r.json").read_text())["status"] == "broken"


@pytest.mark.parametrize("broken", ["save", "publish", "replacing"])
def test_a_full_disk_leaves_nothing_behind(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_classifier(tmp_path)

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(driver, broken, full)
    with pytest.raises(OSError, match="No space left"):
        onnxcomp.optimize(source, [Scale()], output=tmp_path / "out.onnx", reports=[tmp_path / "r.json"])
    assert names_in(tmp_path) == {"model.onnx"}


def test_a_message_about_the_disk_names_the_output_and_not_where_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(model: Any, path: Path) -> list[Path]:
        raise UsageError(f"cannot write {str(path)!r}: No space left on device")

    monkeypatch.setattr(driver, "save", full)
    with pytest.raises(UsageError, match=f"^cannot write '{tmp_path / 'out.onnx'}': No space left"):
        onnxcomp.optimize(write_classifier(tmp_path), [Scale()], output=tmp_path / "out.onnx")
    assert names_in(tmp_path) == {"model.onnx"}


def test_an_interrupt_in_a_pass_leaves_nothing_behind(tmp_path: Path) -> None:
    source = write_classifier(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        onnxcomp.optimize(source, [Scale(), Raiser("interrupt")], output=tmp_path / "out.onnx")
    assert names_in(tmp_path) == {"model.onnx"}


def test_large_models_keep_their_weights_beside_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limits are lowered, so that a small model goes the way of one above 2 GB."""
    source, data = write_classifier(tmp_path), write_data(tmp_path)
    monkeypatch.setattr(driver, "save", lambda model, path: save(model, path, external_threshold=1000))
    onnxcomp.optimize(source, "remove-dead", output=tmp_path / "large.onnx", evaluation=str(data))
    assert names_in(tmp_path) == {"model.onnx", "data.npz", "large.onnx", "large.onnx.data"}
    for module in ("conditions", "loading"):
        monkeypatch.setattr(f"onnxcomp.compiler.run.{module}.PIECE_LIMIT", 1000)
    result = onnxcomp.optimize(
        tmp_path / "large.onnx",
        [Scale(by=1.5)],
        output=tmp_path / "out.onnx",
        evaluation=str(data),
        max_drop=100,
    )
    assert result.report.metric == "agreement"
    assert result.report.input is not None
    assert list(result.report.input.external) == ["large.onnx.data"]
    assert result.report.comparison is not None
    assert result.report.comparison.samples == 12
    with pytest.raises(BudgetError):
        onnxcomp.optimize(
            tmp_path / "large.onnx", [FallShort()], output=tmp_path / "more.onnx", evaluation=str(data)
        )
    assert {"more.best.onnx", "more.best.onnx.data"} <= names_in(tmp_path)
    assert not [name for name in names_in(tmp_path) if name.startswith(".")]
    best = onnxcomp.load(tmp_path / "more.best.onnx")
    assert len(best.sources) == 2


def test_the_same_call_gives_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    source, data = write_classifier(tmp_path), write_data(tmp_path, samples=32)
    text = f"{EXACT},prune-filters{{ratio=0.34}}"
    options = ["--passes", text, "--calibration", str(data)]
    found = set()
    for number in range(2):
        out = tmp_path / f"{number}.onnx"
        subprocess.run(
            [sys.executable, "-m", *f"onnxcomp optimize {source} -o {out} --threads 1 -q".split(), *options],
            env={**os.environ, "PYTHONHASHSEED": str(number + 1)},
            check=True,
            capture_output=True,
        )
        found.add(out.read_bytes())
    assert len(found) == 1


def test_files_that_are_no_models_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(ModelError, match="not an ONNX model"):
        onnxcomp.optimize(tmp_path / "text.onnx", output=tmp_path / "out.onnx")
    assert names_in(tmp_path) == {"text.onnx"}


def test_what_lies_beside_the_output_is_named_after_it(tmp_path: Path) -> None:
    source = write_classifier(tmp_path)
    for name, best in (("net.v1.onnx", "net.v1.best.onnx"), ("net.v2", "net.v2.best.onnx")):
        with pytest.raises(BudgetError):
            onnxcomp.optimize(source, [FallShort()], output=tmp_path / name)
        assert (tmp_path / best).exists()
