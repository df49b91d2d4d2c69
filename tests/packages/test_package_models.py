"""Real networks from packages come through the exact passes and through quantization: detector, OCR, BERT, voice, bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto

import onnxcomp
from onnxcomp.api import Optimized
from tools.bench.peers import samples_of
from tools.bench.quantize_zoo import QUANTIZE
from tools.package_inputs import file_bytes, pages, scenes, text_lines, tokens
from tools.package_zoo import ENTRIES, Entry, write_samples

pytestmark = pytest.mark.slow

Array = NDArray[Any]

NETS = {entry.name: entry for entry in ENTRIES}

OTHER_SIZES: dict[str, dict[str, Array]] = {
    "ocr-detector": {"x": pages(2, 224, 416, 9) * 4 - 2},
    "ocr-recogniser": {"x": text_lines(3, 48, 200, 9) * 2 - 1},
    "ocr-turn": {"x": text_lines(3, 48, 256, 9) * 2 - 1},
    "yolov8n": {"images": scenes(2, 256, 384, 9)},
    "file-type": {"bytes": file_bytes(5, 9)},
    "minilm": tokens(2, 23, 9),
    "minilm-int8-weights": tokens(2, 23, 9),
}
"""Feeds of batches and sizes that no sample has."""

SAMPLES = {"voice-lstm-if": (32, 16)}
"""Samples to calibrate and to judge, where 16 and 8 are too few: they do not show all states that this network comes to."""

FLOORS = {
    "ocr-detector": 12.0,
    "ocr-recogniser": 10.0,
    "ocr-turn": 22.0,
    "yolov8n": 15.0,
    "voice-lstm": 12.0,
    "voice-lstm-if": 14.0,
    "file-type": 20.0,
    "minilm": 14.0,
    "minilm-int8-weights": 14.0,
}
"""The SQNR in dB that a quantized network keeps at least, on inputs like those it was calibrated on."""


@dataclass(frozen=True)
class Ready:
    """A network, samples to calibrate and to judge it, and a folder for what is made of it."""

    entry: Entry
    model: Path
    calibration: Path
    evaluation: Path
    folder: Path

    def run(self, passes: str | None) -> Optimized:
        """Run `passes`, write the result, and return what came of it."""
        return onnxcomp.optimize(
            self.model,
            passes,
            output=self.output,
            calibration=str(self.calibration),
            evaluation=str(self.evaluation),
            threads=1,
            allow_noop=True,
            require_smaller=False,
            force=True,
        )

    @property
    def output(self) -> Path:
        return self.folder / "out.onnx"


@pytest.fixture(params=NETS)
def ready(request: pytest.FixtureRequest, tmp_path: Path) -> Ready:
    entry = NETS[request.param]
    try:
        model = entry.model_path(tmp_path)
    except LookupError as reason:
        pytest.skip(str(reason))
    samples = SAMPLES.get(entry.name, (16, 8))
    return Ready(entry, model, *write_samples(entry, model, tmp_path, *samples), tmp_path)


def outputs(path: Path, feed: dict[str, Array]) -> list[Array]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, feed)]


def sqnr(reference: Array, value: Array) -> float:
    noise = float(np.square(reference.astype(np.float64) - value).sum())
    signal = float(np.square(reference.astype(np.float64)).sum())
    return 10 * float(np.log10(signal / noise)) if noise else float("inf")


def branches(graph: GraphProto) -> Iterator[bytes]:
    """Yield the subgraphs of `graph` as they are stored."""
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield attribute.g.SerializeToString(deterministic=True)


def faces(proto: ModelProto) -> list[str]:
    """Return the declared inputs and outputs; initializers that are inputs, too, are none."""
    stored = {tensor.name for tensor in proto.graph.initializer}
    declared = [value for value in proto.graph.input if value.name not in stored]
    return [str(value) for value in (*declared, *proto.graph.output)]


def check_kept(ready: Ready) -> None:
    """Assert that what was written has the declared sizes, free ones included, and the same subgraphs."""
    before, after = onnx.load(ready.model), onnx.load(ready.output)
    assert faces(after) == faces(before)
    assert list(branches(after.graph)) == list(branches(before.graph))


def test_the_exact_preset_leaves_the_same_network(ready: Ready) -> None:
    done = ready.run(None)
    assert done.report.status == "done" and done.report.verification == "full"
    assert [run.status for run in done.report.runs if run.status not in ("changed", "unchanged")] == []
    comparison = done.report.comparison
    assert comparison is not None and (comparison.sqnr_db or 0) > 100
    assert done.report.after.nodes <= done.report.before.nodes
    check_kept(ready)
    assert not [node.name for node in onnx.load(ready.output).graph.node if node.op_type == "Constant"]


def test_the_exact_preset_keeps_free_sizes_free(ready: Ready) -> None:
    feed = OTHER_SIZES.get(ready.entry.name)
    if feed is None:
        pytest.skip("takes windows of one size, one at a time")
    ready.run(None)
    for before, after in zip(outputs(ready.model, feed), outputs(ready.output, feed), strict=True):
        assert before.shape == after.shape
        assert sqnr(before, after) > 100


def test_it_quantizes_verifies_and_runs_and_says_why_the_rest_stays_float(
    ready: Ready, record_property: Any
) -> None:
    done = ready.run(QUANTIZE)
    (run,) = (run for run in done.report.runs if run.name == "insert-qdq")
    assert run.status in ("changed", "unchanged"), run.reason
    assert run.status == "changed" or run.skips, "what stays as it is stays so for a reason"
    assert all(skip.where and skip.reason for skip in run.skips)
    check_kept(ready)
    comparison = done.report.comparison
    assert comparison is not None and comparison.sqnr_db is not None
    record_property("sqnr_db", comparison.sqnr_db)
    assert comparison.sqnr_db > FLOORS.get(ready.entry.name, 0.0)
    feed = next(samples_of(ready.model, ready.evaluation, 1).batches(1))
    assert all(np.isfinite(value).all() for value in outputs(ready.output, feed))


def test_quantized_networks_take_the_sizes_that_the_original_takes(ready: Ready) -> None:
    feed = OTHER_SIZES.get(ready.entry.name)
    if feed is None:
        pytest.skip("takes windows of one size, one at a time")
    ready.run(QUANTIZE)
    for before, after in zip(outputs(ready.model, feed), outputs(ready.output, feed), strict=True):
        assert before.shape == after.shape
        # Sizes that no range was found on, and few samples: what counts is that it is the same network still.
        assert sqnr(before, after) > (5.0 if ready.entry.name in FLOORS else 0.0)


def test_calibration_takes_pages_of_several_sizes(tmp_path: Path) -> None:
    entry = NETS["ocr-detector"]
    try:
        model = entry.model_path(tmp_path)
    except LookupError as reason:
        pytest.skip(str(reason))
    _, evaluation = write_samples(entry, model, tmp_path, 1, 4)
    shards = tmp_path / "shards"
    shards.mkdir()
    for height, width in ((320, 320), (224, 416)):
        np.savez(shards / f"{height}.npz", x=pages(6, height, width, 3) * 4 - 2)
    done = Ready(entry, model, shards, evaluation, tmp_path).run(QUANTIZE)
    assert {d.role: d.samples for d in done.report.data}["calibration"] == 12
    comparison = done.report.comparison
    assert comparison is not None and (comparison.sqnr_db or 0) > FLOORS.get(entry.name, 0.0) - 6
