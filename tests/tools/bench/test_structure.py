"""The benchmark of split-svd and substitute-depthwise runs the whole command, reads its report, and says what was missed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from onnxcomp.compiler.spec import Pipeline
from onnxcomp.runtime.documents import SCHEMA_VERSION
from onnxcomp.runtime.steady import Effort, steady_ratio
from tools.bench import runs, structure, suite
from tools.bench.cases import EXACT, NETWORKS, ZOO, Case, Network, Setting, with_options
from tools.bench.child import Usage
from tools.bench.figures import drop_of
from tools.bench.runs import STRUCTURAL, Result, figures, time_ratio
from tools.bench.structure import CASES, GOALS, NEVER_SLOWER, SUITE, main
from tools.bench.suite import Suite, applied, measure

NAMES = {case.name: case for case in CASES}
MLP = replace(NAMES["digits-mlp"], passes="split-svd{params=0.4 repair=none}")
USAGE = Usage(exit_code=0, seconds=30.0, cpu_seconds=40.0, peak_bytes=5 * 10**8, stderr="")
MADE = Result("a", "", 0, 0, 30.0, 40.0, 5 * 10**8)


def after(words: Sequence[str], option: str) -> str:
    return words[words.index(option) + 1]


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder built like `../shared`, with a digits net in the place of ResNet-20."""
    for folder in ("models", "data"):
        (tmp_path / folder).mkdir()
    shutil.copy(ZOO / "digits_mlp.onnx", tmp_path / "models" / "cifar10_resnet20_bn.onnx")
    for role in ("calibration", "evaluation"):
        shutil.copy(ZOO / f"digits_{role}.npz", tmp_path / "data" / f"cifar10_{role}.npz")
    return tmp_path


# --- the rows --------------------------------------------------------------------------------------------------------
def test_the_rows_ask_for_what_is_to_be_reached() -> None:
    asked = {
        name: {figure.name: figure.target for figure in figures(case, MADE)} for name, case in NAMES.items()
    }
    slow = {name: wanted for name, wanted in asked.items() if name.endswith("-accept")}
    assert {name: wanted for name, wanted in asked.items() if wanted and name not in slow} == {
        "resnet20-depthwise": {"macs_share": 0.45, "drop": 1.6, "seconds": 30},
        "resnet56-depthwise": {"macs_share": 0.45, "drop": 1.5, "seconds": 90},
        "resnet20-split": {"macs_share": 0.5, "drop": 4.5, "seconds": 30},
        "resnet56-split": {"macs_share": 0.5, "drop": 1.8, "seconds": 90},
        "resnet20-pipeline": {"macs_share": 0.35, "drop": 4.0},
        "vgg9-time": {"latency_share": 0.45, "drop": 1.5},
        "vgg9-time-int8": {"latency_share": 0.25, "drop": 1.5},
        "lite0-split": {"macs_share": 0.8, "agreement": 88.0},
        "digits-mlp": {"parameters_share": 0.4, "drop": 0.5},
        "resnet56-time": {"latency_share": 0.75, "drop": 1.5},
    }
    assert set(map(str, slow.values())) == {str({"latency_share": NEVER_SLOWER})}


def test_no_network_may_become_slower() -> None:
    models = {case.network.model for case in CASES if case.name.endswith("-accept")}
    assert models >= {path.stem for path in ZOO.glob("*.onnx")} | {case.network.model for case in CASES}
    for case in CASES:
        assert ("accept=latency" in case.passes) == case.name.endswith("-accept")


def test_every_row_is_a_pipeline_whose_budget_is_what_the_row_asks_for() -> None:
    for case in CASES:
        steps = Pipeline.parse(case.pipeline).passes
        given = [step for step in steps if step.name in STRUCTURAL]
        assert given
        for what in ("macs", "params"):
            asked = getattr(case, what)
            assert asked is None or getattr(given[-1], what) == asked
    assert {*SUITE.memory_rows, *SUITE.speed_rows} <= set(NAMES)
    assert all(NAMES[name].seconds is not None for name in SUITE.speed_rows)


def test_given_options_reach_the_passes_that_change_shapes_and_a_goal_replaces_the_goal() -> None:
    text = "fold-batchnorm,split-svd{macs=0.5 sweeps=1},substitute-depthwise,split-svd-more{a=1},insert-qdq"
    for goals in ((), GOALS):
        assert with_options(text, {}, STRUCTURAL, goals) == text
        assert with_options(text, {"sweeps": "2"}, STRUCTURAL, goals) == (
            "fold-batchnorm,split-svd{macs=0.5 sweeps=2},substitute-depthwise{sweeps=2},split-svd-more{a=1},insert-qdq"
        )
    one = with_options("split-svd{macs=0.5 method=cp}", {"energy": "0.9"}, STRUCTURAL, GOALS)
    assert one == "split-svd{method=cp energy=0.9}"
    for goal in GOALS:
        text = f"split-svd{{{goal}=1}}"
        assert with_options(text, {"macs": "0.4"}, STRUCTURAL, GOALS) == "split-svd{macs=0.4}"


def test_given_passes_stand_in_the_place_of_those_of_the_row() -> None:
    setting = Setting(Path(), passes="split-svd{macs=0.35}", options={"sweeps": "3"})
    assert applied(SUITE, MLP, setting).pipeline == f"{EXACT},split-svd{{macs=0.35 sweeps=3}}"


# --- a run -----------------------------------------------------------------------------------------------------------
def test_a_row_is_the_whole_command_and_its_report(tmp_path: Path) -> None:
    result = measure(SUITE, MLP, Setting(tmp_path, samples=32, threads=1), seed=5)
    assert result.failure is None
    assert result.pipeline == f"{EXACT},split-svd{{params=0.4 repair=none}}"
    assert (result.case, result.seed, result.exit_code, result.latency_share) == ("digits-mlp", 5, 0, None)
    assert result.accuracy_before is not None and result.accuracy_before > 97
    assert result.accuracy is not None and result.agreement is not None and result.sqnr_db is not None
    assert result.parameters_share is not None and 0.3 < result.parameters_share <= 0.4
    assert result.macs_share is not None and 0.3 < result.macs_share < 0.5
    assert result.bytes_before == (ZOO / "digits_mlp.onnx").stat().st_size
    assert result.bytes is not None and result.bytes < 0.5 * result.bytes_before
    assert sum(result.forms.values()) >= 1 and result.left is not None
    assert sum(result.forms.values()) + result.left == 3, "every layer is replaced or a skip"
    assert set(result.pass_seconds or {}) == {*EXACT.split(","), "split-svd"}
    assert {f.name: f.reached for f in result.figures} == {
        "parameters_share": result.parameters_share,
        "drop": drop_of(result.accuracy_before, result.accuracy),
    }


def test_a_run_that_fails_is_a_row_with_its_reason(tmp_path: Path) -> None:
    result = measure(
        SUITE, replace(MLP, passes="split-svd{params=0.4 metod=cp}"), Setting(tmp_path, samples=8)
    )
    assert result.exit_code == 2 and not result.met
    assert result.failure is not None and result.failure.startswith("exit 2: ") and "metod" in result.failure
    assert result.accuracy is None and result.bytes is None


def test_what_an_earlier_run_left_is_not_read_for_one_that_failed(tmp_path: Path) -> None:
    setting = Setting(tmp_path, samples=8, threads=1, folder=tmp_path)
    assert measure(SUITE, MLP, setting).failure is None and (tmp_path / "digits-mlp.json").exists()
    assert measure(SUITE, MLP, setting).failure is None, "it is written over"
    failed = measure(SUITE, replace(MLP, passes="split-svd{params=0.4 metod=cp}"), setting)
    assert failed.exit_code == 2 and failed.accuracy is None and failed.bytes is None


def test_a_budget_that_is_not_met_is_a_failure_with_the_figures_of_the_best_there_was(tmp_path: Path) -> None:
    case = replace(MLP, passes="split-svd{params=0.0001 repair=none}", latency=2.0)
    result = measure(SUITE, case, Setting(tmp_path, samples=8, threads=1))
    assert result.exit_code == 4 and result.failure is not None and not result.met
    assert result.parameters_share is not None and 0.0001 < result.parameters_share < 0.4
    assert result.bytes is not None and result.latency_share is not None, (
        "it is judged and timed all the same"
    )


def test_a_row_is_fed_with_its_own_data_and_one_without_gets_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    tables: list[Any] = []

    def run(command: Sequence[str], folder: Path) -> Usage:
        words = list(command)
        seen.append(words)
        if "--preprocess" in words:
            tables.append(json.loads(Path(after(words, "--preprocess")).read_text()))
        return replace(USAGE, exit_code=1)

    monkeypatch.setattr(runs, "run_measured", run)
    for name in ("lite0-split", "resnet20-split-free", "resnet8-accept"):
        measure(SUITE, NAMES[name], Setting(tmp_path))
    data = tmp_path / "data"
    assert [after(words, "--calibration") for words in seen] == [
        str(data / "imagenet_calibration.npz"),
        "none",
        str(data / "cifar10_calibration.npz"),
    ]
    assert [after(words, "--evaluation") for words in seen] == [
        str(data / f"{name}_evaluation.npz") for name in ("imagenet", "cifar10", "cifar10")
    ]
    assert ["--samples" in words and after(words, "--samples") for words in seen] == ["128", False, "512"]
    assert tables == [NETWORKS["resnet8"].preprocess]


def test_only_rows_about_time_are_timed_unless_all_or_none_are_wanted() -> None:
    untimed, timed = NAMES["resnet20-split"], NAMES["resnet56-time"]
    assert [Setting(Path()).times(case) for case in (untimed, timed)] == [False, True]
    assert [Setting(Path(), timed="all").times(case) for case in (untimed, timed)] == [True, True]
    assert [Setting(Path(), timed="none").times(case) for case in (untimed, timed)] == [False, False]
    names = {figure.name for figure in figures(timed, MADE, timed=False)}
    assert names == {"drop"}, "what is not timed is not judged"


def test_time_is_beside_the_folded_original(monkeypatch: pytest.MonkeyPatch) -> None:
    # As much as a factor of two takes.
    quick = partial(steady_ratio, effort=Effort(0.1, 0.2, 2.0))
    monkeypatch.setattr("tools.bench.runs.steady_ratio", quick)
    net, mlp = ZOO / "digits_resnet.onnx", ZOO / "digits_mlp.onnx"
    assert 0.5 < time_ratio(net, net, folded=True) < 2
    assert time_ratio(net, mlp, folded=True) < 0.5


def test_points_that_were_lost_are_not_more_because_floats_are_not_decimal() -> None:
    assert 91.9 - 90.3 > 1.6
    result = replace(MADE, accuracy_before=91.9, accuracy=90.3)
    assert drop_of(91.9, 90.3) == 1.6 and drop_of(None, 90.3) is None
    met = {f.name: f.met for f in figures(NAMES["resnet20-depthwise"], result)}
    assert met == {"macs_share": False, "drop": True, "seconds": True}


# --- what is shown ---------------------------------------------------------------------------------------------------
def test_table_and_document_show_targets_beside_what_was_reached_and_what_was_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = (replace(MLP, agreement=101.0), NAMES["resnet56-time"], Case("x", Network("y"), "split-svd"))
    monkeypatch.setattr(structure, "SUITE", replace(SUITE, cases=cases))
    file = tmp_path / "figures.json"
    words = ["--shared", str(tmp_path), "--threads", "1", "--samples", "16", "--json", str(file)]
    words += ["--keep", str(tmp_path / "kept")]
    assert main([*words, "--seed", "0,1"]) == 1
    shown = capsys.readouterr().out
    assert shown.count("│ digits-mlp") == 3, "two runs and their spread"
    assert "(<= 40)" in shown and "(<= 0.5)" in shown and "channel" in shown
    assert "digits-mlp (seed 1): agreement" in shown and "misses >= 101" in shown
    assert "resnet56-time: left out, as " in shown
    assert (tmp_path / "kept" / "digits-mlp.onnx").exists()
    document = json.loads(file.read_text())
    assert document["schema_version"] == SCHEMA_VERSION and document["machine"]["versions"]["onnxruntime"]
    assert [(row["seed"], row["met"]) for row in document["rows"]] == [(0, False), (1, False)]
    assert document["rows"][0]["forms"]["channel"] >= 1
    assert [figure["name"] for figure in document["rows"][0]["figures"]] == [
        "parameters_share",
        "drop",
        "agreement",
    ]
    assert document["spread"]["digits-mlp"]["runs"] == 2


def test_memory_runs_with_fewer_and_more_samples_and_must_not_grow(
    shared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[int | None, str]] = []

    def made(suite: Suite, case: Case, setting: Setting, seed: int) -> Result:
        asked.append((setting.samples, setting.timed))
        count = setting.samples or 0
        figure = figures(case, MADE, timed=False)
        return replace(
            MADE,
            case=case.name,
            samples=min(count, 600),
            peak_bytes=2 * 10**8 + 10**5 * count,
            figures=figure,
        )

    monkeypatch.setattr(suite, "measure", made)
    words = ["--memory", "--shared", str(shared), "--rows", "resnet20-split"]
    file = shared / "memory.json"
    assert main([*words, "--samples", "10", "--json", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "1.015 (<= 1.1)" in shown and "seconds" not in shown, "what a row asks for else is not judged here"
    assert json.loads(file.read_text())["memory"][0]["figure"]["met"] is True
    assert main(words) == 1
    assert "1.180 (<= 1.1)" in capsys.readouterr().out
    assert main([*words, "--samples", "200"]) == 1
    assert "- (<= 1.1)" in capsys.readouterr().out, "the data does not hold four times as many"
    assert asked == [(count, "none") for count in (10, 40, 128, 512, 200, 800)]


def test_speed_shows_what_the_seconds_of_the_command_went_to(
    shared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def made(suite: Suite, case: Case, setting: Setting, seed: int) -> Result:
        parts = {"fold-constants": 0.5, "substitute-depthwise": 4.0, "split-svd": 16.0}
        result = replace(MADE, case=case.name, seconds=31.0, pass_seconds=parts)
        return replace(result, figures=figures(case, result))

    monkeypatch.setattr(suite, "measure", made)
    assert main(["--speed", "--shared", str(shared)]) == 1
    shown = capsys.readouterr().out
    assert "31.0 (<= 30)" in shown and "20.0" in shown and "10.5" in shown
    assert shown.count("│ resnet20-") == 2 and shown.count("resnet56-") == 2, "those are left out here"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rows", "resnet21"], "there is no row 'resnet21'; rows are resnet20-depthwise, "),
        (["--rows", "vgg9-time"], "cifar10_vgg9_bn.onnx does not exist; say with --shared"),
        (["--options", "align"], "'align' is not NAME=VALUE"),
        (["--options", "mac=0.4"], "split-svd: unknown option 'mac'; did you mean 'macs'?"),
        (["--passes", "split-sdv"], "digits-mlp: unknown pass 'split-sdv'"),
        (["--samples", "0"], "'0' is no number; give 1 or more"),
        (["--seed", "one"], "'one' are no seeds"),
        (
            ["--memory", "--seed", "0,1"],
            "--memory and --speed time no files and run with one seed",
        ),
        (["--speed", "--time-all"], "--memory and --speed time no files and run with one seed"),
    ],
)
def test_a_wrong_call_ends_before_anything_runs(
    tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = [] if "--rows" in words else ["--rows", "digits-mlp"]
    with pytest.raises(SystemExit) as ended:
        main(["--shared", str(tmp_path), *usual, *words])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
