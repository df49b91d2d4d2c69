"""The benchmark runs every candidate on the same samples, judges all alike, and says what was missed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcomp.runtime.documents import SCHEMA_VERSION
from tools.bench import peers, quantize, quantize_runs
from tools.bench.cases import NETWORKS, ZOO, Case, Network, Setting
from tools.bench.child import Usage
from tools.bench.peers import plain_seconds, samples_of
from tools.bench.peers import quantize as quantize_with
from tools.bench.quantize_cases import CASES
from tools.bench.quantize_runs import (
    PASSES,
    CandidateResult,
    Memory,
    Row,
    calibration_cost,
    details_of,
    measure,
    measure_memory,
)
from tools.bench.runs import figures

NAMES = {case.name: case for case in CASES}
MLP = NAMES["mlp"]
USAGE = Usage(exit_code=0, seconds=3.0, cpu_seconds=4.0, peak_bytes=2 * 10**8, stderr="")
OURS = CandidateResult("mlp", "", 0, 0, 3.0, 4.0, 2 * 10**8)
REPORT = {
    "runs": [
        {"name": "fold-batchnorm", "notes": ["not this"], "changes": []},
        {
            "name": "insert-qdq",
            "notes": ["one"],
            "changes": [
                {"where": "a", "what": "b", "details": {}},
                {"where": "c", "what": "d", "details": {"calibration_seconds": 1.5, "inference_seconds": 1}},
            ],
        },
    ]
}


def after(words: Sequence[str], option: str) -> str:
    return words[words.index(option) + 1]


def writer(seen: list[list[str]]) -> Callable[[Sequence[str], Path], Usage]:
    """Return what stands in for a process: it writes the network back as it was, and our report."""

    def run(command: Sequence[str], folder: Path) -> Usage:
        words = list(command)
        seen.append(words)
        ours = words[2] == "onnxcomp"
        if "-o" in words:
            shutil.copy(words[words.index("-o") - 1] if ours else words[4], after(words, "-o"))
        if ours:
            Path(after(words, "--report")).write_text(json.dumps(REPORT))
        return USAGE

    return run


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    seen: list[list[str]] = []
    monkeypatch.setattr(quantize_runs, "run_measured", writer(seen))
    return seen


def test_every_candidate_gets_the_same_file_and_samples_and_is_judged_alike(
    runs: list[list[str]], tmp_path: Path
) -> None:
    row = measure(replace(MLP, samples=24), Setting(tmp_path, threads=1, timed="none"), tmp_path)
    assert [result.candidate for result in row.results] == ["ours", "percentile", "minmax"]
    assert [words[3] for words in runs] == ["optimize", "percentile", "minmax"]
    assert {after(words, "--calibration") for words in runs} == {str(ZOO / "digits_calibration.npz")}
    assert {after(words, "--samples") for words in runs} == {"24"}
    for result in row.results:
        assert result.agreement == 100 and result.accuracy == result.accuracy_before
        assert result.sqnr_db == float("inf"), "what came back is the network itself"
        assert result.bytes == row.bytes_before and result.latency_share is None
    ours = row.results[0]
    assert (ours.calibration_seconds, ours.inference_seconds, ours.notes) == (1.5, 1, ("one",))
    assert row.met and row.figures == ()


def test_what_was_written_is_timed_beside_the_original(runs: list[list[str]], tmp_path: Path) -> None:
    row = measure(MLP, Setting(tmp_path, threads=1, timed="all"), tmp_path, ("minmax",))
    share = row.results[0].latency_share
    assert share is not None and 0.3 < share < 3, "it is the same network"


def test_a_run_that_fails_is_a_result_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = replace(USAGE, exit_code=2, stderr="onnxcomp: unknown pass\n")
    monkeypatch.setattr(quantize_runs, "run_measured", lambda *_: failed)
    row = measure(NAMES["resnet8"], Setting(shared(tmp_path, "resnet8")), tmp_path, ("ours",))
    assert [result.failure for result in row.results] == ["exit 2: onnxcomp: unknown pass"]
    assert not row.met


def shared(folder: Path, name: str) -> Path:
    """Make `folder` one like `../shared` that holds a small network in the place of that of the row `name`."""
    (folder / "models").mkdir()
    shutil.copy(ZOO / "digits_mlp.onnx", folder / "models" / f"{NETWORKS[name].model}.onnx")
    return folder


def test_networks_that_take_raw_pixels_get_them_from_every_candidate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables: list[Any] = []

    def run(command: Sequence[str], folder: Path) -> Usage:
        tables.append(json.loads(Path(after(list(command), "--preprocess")).read_text()))
        return replace(USAGE, exit_code=1)

    monkeypatch.setattr(quantize_runs, "run_measured", run)
    setting = Setting(shared(tmp_path, "resnet8"))
    calibration_cost(NAMES["resnet8"], setting, tmp_path, measure(NAMES["resnet8"], setting, tmp_path))
    assert tables == [NETWORKS["resnet8"].preprocess] * 4


def test_a_row_without_data_has_no_peers_and_no_samples(runs: list[list[str]], tmp_path: Path) -> None:
    row = measure(
        replace(MLP, drop=0.5, calibration="none"), Setting(tmp_path, threads=1, timed="none"), tmp_path
    )
    assert [words[3] for words in runs] == ["optimize"]
    assert after(runs[0], "--calibration") == "none" and "--samples" not in runs[0]
    assert [(f.name, f.target, f.reached, f.met) for f in row.figures] == [("drop", 0.5, 0, True)]


def test_given_options_win_over_those_of_the_row() -> None:
    assert Setting(Path()).applied(MLP, PASSES).pipeline.endswith("remove-dead,insert-qdq")
    case = replace(MLP, passes="insert-qdq{granularity=per-tensor rounding=gptq}")
    found = Setting(Path(), options={"rounding": "nearest"}).applied(case, PASSES)
    assert found.pipeline.endswith("insert-qdq{granularity=per-tensor rounding=nearest}")
    bare = Setting(Path(), options={"rounding": "nearest"}).applied(MLP, PASSES)
    assert bare.pipeline.endswith("insert-qdq{rounding=nearest}")


def test_the_rows_ask_for_what_is_to_be_reached() -> None:
    wanted = {
        name: asked
        for name, case in NAMES.items()
        if (asked := {f.name: f.target for f in figures(case, OURS)})
    }
    assert wanted == {
        "resnet20": {"agreement": 99.4, "sqnr_db": 31.2, "bytes": 308_000, "latency_share": 0.6},
        "resnet56": {"agreement": 99.5, "sqnr_db": 30.5, "bytes": 960_000, "latency_share": 0.56},
        "lite0": {"agreement": 99.3, "sqnr_db": 20.5, "latency_share": 0.3},
        "vgg9": {"agreement": 99.5, "sqnr_db": 36.0, "bytes": 1_185_000, "latency_share": 0.39},
        "lite0-per-tensor": {"agreement": 96.0},
        "resnet56-free": {"drop": 0.5},
        "lite0-free": {"drop": 2.0},
    }
    assert {case.samples for case in CASES if case.network.data == "cifar10"} == {300}
    assert {case.samples for case in CASES if case.network.data == "imagenet"} == {100}


def test_latency_is_not_asked_for_where_it_is_not_measured_and_what_was_not_measured_is_missed() -> None:
    names = {f.name for f in figures(NAMES["resnet20"], OURS, timed=False)}
    assert names == {"agreement", "sqnr_db", "bytes"}
    assert not any(f.met for f in figures(NAMES["resnet20"], OURS))


def test_all_shipped_networks_are_rows() -> None:
    assert {case.network.model for case in CASES if case.network.shipped} == {
        path.stem for path in ZOO.glob("*.onnx")
    }


def test_seconds_that_the_report_does_not_hold_are_not_known() -> None:
    assert details_of({"runs": [{"name": "insert-qdq", "notes": [], "changes": []}]}) == {"notes": ()}


def test_the_cost_is_that_of_the_samples_of_the_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: Sequence[str], folder: Path) -> Usage:
        assert peers.main(list(command)[3:]) == 0
        return USAGE

    monkeypatch.setattr(quantize_runs, "run_measured", run)
    results = (
        replace(OURS, calibration_seconds=1.5),
        replace(OURS, candidate="percentile", seconds=12.0),
    )
    row = Row("mlp", "", 24, 1, results, ())
    cost = calibration_cost(MLP, Setting(tmp_path, samples=24, threads=1), tmp_path, row)
    assert cost.plain is not None and 0 < cost.plain < 1
    assert (cost.calibration, cost.command, cost.percentile) == (1.5, 3.0, 12.0)


def test_memory_is_measured_with_fewer_and_more_samples_repeated_where_there_are_not_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []

    def run(command: Sequence[str], folder: Path) -> Usage:
        words = list(command)
        if "optimize" in words:
            data = Path(after(words, "--calibration"))
            with np.load(data, allow_pickle=False) as archive:
                images, table = archive["image"], archive["preprocess"]
            assert table.ndim == 0
            asked.append((after(words, "--samples"), len(images)))
            np.testing.assert_array_equal(images[-1], images[(len(images) - 1) % 512])
        return USAGE

    monkeypatch.setattr(quantize_runs, "run_measured", run)
    found = measure_memory(MLP, Setting(tmp_path), tmp_path, (100, 700))
    assert asked == [("100", 512), ("700", 700)]
    assert (found.interpreter, found.peaks) == (USAGE.peak_bytes, dict.fromkeys((100, 700), USAGE.peak_bytes))


@pytest.mark.parametrize(
    ("peaks", "met"),
    [
        ({100: 300, 400: 310}, True),
        ({100: 300, 400: 340}, False),
        ({100: 590, 400: 600}, False),
    ],
)
def test_memory_is_bounded_above_the_interpreter_and_does_not_grow(peaks: dict[int, int], met: bool) -> None:
    million = {count: peak * 10**6 for count, peak in peaks.items()}
    assert Memory("a", 150 * 10**6, million).met is met
    assert not Memory("a", 150 * 10**6, million, "exit 1: it said nothing").met


@pytest.mark.parametrize("method", peers.METHODS)
def test_the_peer_quantizes_to_unsigned_activations_and_signed_weights(method: str, tmp_path: Path) -> None:
    model, written = ZOO / "digits_mlp.onnx", tmp_path / "int8.onnx"
    samples = samples_of(model, ZOO / "digits_calibration.npz", 16)
    quantize_with(method, model, written, samples)
    stored = {tensor.name: tensor for tensor in onnx.load(written).graph.initializer}
    kinds = {
        stored[node.input[2]].data_type
        for node in onnx.load(written).graph.node
        if node.op_type == "QuantizeLinear"
    }
    weights = [t for t in stored.values() if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 2]
    assert kinds == {onnx.TensorProto.UINT8} and len(weights) == 3


def test_plain_inference_runs_every_sample_in_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    class Counting:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def run(self, feeds: dict[str, Any]) -> None:
            sizes.append(len(feeds["image"]))

    monkeypatch.setattr(peers, "Session", Counting)
    model = ZOO / "digits_mlp.onnx"
    plain_seconds(model, samples_of(model, ZOO / "digits_calibration.npz", 20), 8)
    assert sizes == [8, 8, 4]


def test_table_and_document_show_every_candidate_and_what_was_missed(
    runs: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = replace(MLP, sqnr_db=20.0, bytes=10)
    monkeypatch.setattr(
        quantize,
        "CASES",
        (strict, Case("gone", Network("digits_gone", "digits", shipped=True), "insert-qdq")),
    )
    file = tmp_path / "figures.json"
    words = [
        "--samples",
        "8",
        "--no-latency",
        "--threads",
        "1",
        "--json",
        str(file),
        "--keep",
        str(tmp_path / "k"),
    ]
    assert quantize.main(words) == 1
    shown = capsys.readouterr().out
    assert "inf (>= 20)" in shown and "mlp: bytes 204,397 misses <= 10" in shown
    assert "gone: left out, as " in shown
    document = json.loads(file.read_text())
    assert [one["candidate"] for one in document["rows"][0]["results"]] == ["ours", "percentile", "minmax"]
    assert document["schema_version"] == SCHEMA_VERSION and document["machine"]["versions"]["onnxruntime"]
    assert document["rows"][0]["results"][0]["sqnr_db"] is None, "JSON knows no infinity"
    assert (tmp_path / "k" / "mlp.ours.onnx").exists()
    assert quantize.main(["--rows", "mlp", "--memory"]) == 0
    assert "peak memory of the whole command" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rows", "resnet21"], "there is no row 'resnet21'; rows are resnet20, "),
        (["--rows", "vgg9"], "cifar10_vgg9_bn.onnx does not exist; say with --shared"),
        (["--candidates", "nncf"], "there is no candidate 'nncf'; candidates are ours, percentile, minmax"),
        (["--options", "rounding"], "'rounding' is not NAME=VALUE"),
    ],
)
def test_a_wrong_call_ends_before_anything_runs(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        quantize.main(["--shared", str(tmp_path), *words])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
