"""The benchmark runs the whole command, reads its report, and says what was missed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tools import bench_prune
from tools.bench_prune import CASES, RAW, Case, Figure, Result, Setting, figures, measure, pipeline, spread
from tools.child_usage import Usage

ZOO = Path(__file__).parents[2] / "models"
MLP = Case("mlp-50", "digits_mlp", 0.5, {"criterion": "l1", "repair": "none"}, accuracy=10.0, seconds=1e6)
USAGE = Usage(exit_code=0, seconds=30.0, cpu_seconds=40.0, peak_bytes=5 * 10**8, stderr="")


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder built like `../shared`, with a digits net in the place of ResNet-20."""
    for folder in ("models", "data"):
        (tmp_path / folder).mkdir()
    for name in ("digits_mlp", "cifar10_resnet20_bn"):
        shutil.copy(ZOO / "digits_mlp.onnx", tmp_path / "models" / f"{name}.onnx")
    for role in ("calibration", "evaluation"):
        shutil.copy(ZOO / f"digits_{role}.npz", tmp_path / "data" / f"cifar10_{role}.npz")
    return tmp_path


def test_a_row_is_the_whole_command_and_its_report(shared: Path) -> None:
    result = measure(MLP, Setting(shared, samples=32, threads=1), seed=5)
    assert result.failure is None
    assert result.pipeline.endswith("prune-filters{macs=0.5 criterion=l1 repair=none}")
    assert (result.case, result.seed, result.samples, result.exit_code) == ("mlp-50", 5, 32, 0)
    assert result.accuracy_before is not None and result.accuracy_before > 97
    assert result.accuracy is not None and result.agreement is not None and result.sqnr_db is not None
    assert result.macs_share is not None and 0.49 < result.macs_share <= 0.5
    assert result.parameters_share is not None and 0.4 < result.parameters_share < 0.6
    assert set(result.pass_seconds or {}) == {
        "fold-constants",
        "fold-batchnorm",
        "remove-dead",
        "prune-filters",
    }
    assert result.peak_bytes > 5 * 10**7
    assert {f.name: f.reached for f in result.figures} == {
        "macs_share": result.macs_share,
        "peak_bytes": result.peak_bytes,
        "accuracy": result.accuracy,
        "seconds": result.seconds,
    }


def test_a_run_that_fails_is_a_row_with_its_reason(shared: Path) -> None:
    result = measure(replace(MLP, options={"criterion": "l3"}), Setting(shared, samples=8))
    assert result.exit_code == 2
    assert result.failure is not None and result.failure.startswith("exit 2: ") and "l3" in result.failure
    assert not result.met
    assert result.accuracy is None


def test_networks_that_take_raw_pixels_are_fed_raw_pixels(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def run(command: Any, folder: Path) -> Usage:
        words = list(command)
        seen.append(json.loads(Path(words[words.index("--preprocess") + 1]).read_text()))
        return replace(USAGE, exit_code=2)

    monkeypatch.setattr(bench_prune, "run_measured", run)
    measure(next(case for case in CASES if case.name == "resnet8-75"), Setting(shared))
    assert seen == [RAW]


def test_a_row_without_data_gives_none(shared: Path) -> None:
    result = measure(
        replace(MLP, options={"joint": "0"}, calibration="none"), Setting(shared, samples=8, threads=1)
    )
    assert result.failure is None
    assert result.samples == 256, "as many as are made, whatever the other rows are given"


def test_given_options_win_over_those_of_the_row_and_move_its_target() -> None:
    setting = Setting(Path(), options={"repair": "one-shot", "align": "8", "macs": "0.4"})
    assert pipeline(MLP, setting).endswith("{macs=0.4 criterion=l1 repair=one-shot align=8}")
    (share, *_) = figures(MLP, setting, USAGE, {"macs_share": 0.45})
    assert (share.target, share.met) == (0.4, False)


def test_figures_are_met_on_their_side_of_the_target_and_missed_where_nothing_was_measured() -> None:
    assert Figure("a", ">=", 1, 1).met and Figure("a", "<=", 1, 1).met
    assert not Figure("a", ">=", 1, 0.9).met and not Figure("a", "<=", 1, 1.1).met
    assert not Figure("a", ">=", 1, None).met


def test_the_rows_ask_for_what_is_to_be_reached() -> None:
    targets = {case.name: (case.macs, case.accuracy, case.seconds) for case in CASES}
    assert targets == {
        "resnet20-50-control": (0.5, None, None),
        "resnet20-50": (0.5, 82.5, 40),
        "resnet20-75": (0.75, 89.8, 40),
        "resnet56-50": (0.5, 90.3, 120),
        "resnet56-50-free": (0.5, 75.0, None),
        "resnet8-75": (0.75, 83.0, None),
        "vgg9-50": (0.5, None, None),
    }


def test_the_spread_is_over_the_seeds_of_a_row() -> None:
    rows = [
        Result(case, "", seed, 0, 1.0, 1.0, 1, accuracy=accuracy)
        for case, seed, accuracy in (("a", 0, 80.0), ("a", 1, 84.0), ("b", 0, 50.0), ("a", 2, None))
    ]
    assert spread(rows) == {
        "a": {"runs": 2, "mean": 82, "least": 80, "most": 84, "deviation": pytest.approx(8**0.5)}
    }


def test_table_and_document_show_targets_beside_what_was_reached(
    shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = shared / "figures.json"
    wanted = ["--rows", "resnet20-50-control", "--shared", str(shared), "--json", str(file)]
    assert bench_prune.main([*wanted, "--samples", "16", "--repeat-with-seed", "0,1"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("resnet20-50-control") == 3, "two runs and their spread"
    assert "<= 1000" in shown
    document = json.loads(file.read_text())
    assert document["schema_version"] == 1 and document["machine"]["versions"]["onnxruntime"]
    assert [(row["seed"], row["met"]) for row in document["rows"]] == [(0, True), (1, True)]
    assert document["rows"][0]["figures"][0]["target"] == 0.5
    assert document["spread"]["resnet20-50-control"]["runs"] == 2


def test_memory_runs_with_once_and_twice_the_samples(
    shared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[int] = []

    def made(case: Case, setting: Setting, seed: int) -> Result:
        asked.append(setting.samples)
        held = min(setting.samples, 24)
        return Result(case.name, "", seed, 0, 1.0, 1.0, 2 * 10**8 + 10**6 * setting.samples, samples=held)

    monkeypatch.setattr(bench_prune, "measure", made)
    wanted = ["--memory", "--shared", str(shared)]
    assert bench_prune.main([*wanted, "--samples", "10"]) == 0
    assert asked == [10, 20]
    assert "twice the samples / once: 1.048" in capsys.readouterr().out
    assert bench_prune.main([*wanted, "--samples", "12"]) == 0
    capsys.readouterr()
    assert bench_prune.main([*wanted, "--samples", "16"]) == 1
    assert "not measured" in capsys.readouterr().out, "the data does not hold twice as many"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rows", "resnet21"], "there is no row 'resnet21'; rows are resnet20-50-control, "),
        (["--rows", "vgg9-50"], "cifar10_vgg9_bn.onnx does not exist; say with --shared"),
        (["--options", "align"], "'align' is not NAME=VALUE"),
        (["--memory", "--repeat-with-seed", "0,1"], "--memory runs with one seed"),
    ],
)
def test_a_wrong_call_ends_before_anything_runs(
    shared: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        bench_prune.main(["--shared", str(shared), *words])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
