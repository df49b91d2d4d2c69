"""The benchmark runs the whole command, reads its report, and says what was missed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from onnxcomp.compiler.spec import Pipeline
from onnxcomp.runtime.documents import SCHEMA_VERSION
from onnxcomp.runtime.steady import Effort, steady_ratio
from tools.bench import runs, suite
from tools.bench.cases import RAW, ZOO, Case, Network, Setting
from tools.bench.child import Usage
from tools.bench.figures import Figure
from tools.bench.prune import CASES, SUITE, main
from tools.bench.runs import Result, figures, spread, time_ratio
from tools.bench.suite import Suite, applied, measure

CHEAP = "criterion=l1 repair=none scope=uniform"
MLP = Case(
    "mlp-50",
    Network("digits_mlp"),
    f"prune-filters{{macs=0.5 {CHEAP}}}",
    accuracy=10.0,
    seconds=1e6,
    peak_bytes=8 * 10**8,
)
NAMES = {case.name: case for case in CASES}
USAGE = Usage(exit_code=0, seconds=30.0, cpu_seconds=40.0, peak_bytes=5 * 10**8, stderr="")
MADE = Result("a", "", 0, 0, 30.0, 40.0, 5 * 10**8)


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
    result = measure(SUITE, MLP, Setting(shared, samples=32, threads=1), seed=5)
    assert result.failure is None
    assert result.pipeline.endswith("prune-filters{macs=0.5 criterion=l1 repair=none scope=uniform}")
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
    result = measure(
        SUITE, replace(MLP, passes="prune-filters{macs=0.5 criterion=l3}"), Setting(shared, samples=8)
    )
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

    monkeypatch.setattr(runs, "run_measured", run)
    measure(SUITE, NAMES["resnet8-75"], Setting(shared))
    assert seen == [RAW]


def test_a_row_without_data_gives_none(shared: Path) -> None:
    result = measure(
        SUITE,
        replace(MLP, passes="prune-filters{macs=0.5 joint=0 scope=uniform}", calibration="none"),
        Setting(shared, samples=8, threads=1),
    )
    assert result.failure is None
    assert result.samples == 256, "as many as are made, whatever the other rows are given"


def pipeline(case: Case, setting: Setting) -> str:
    return applied(SUITE, case, setting).pipeline


def test_given_options_win_over_those_of_the_row_and_move_its_target() -> None:
    setting = Setting(Path(), options={"repair": "one-shot", "align": "8", "macs": "0.4"})
    assert pipeline(MLP, setting).endswith("{macs=0.4 criterion=l1 repair=one-shot scope=uniform align=8}")
    (share, *_) = figures(applied(SUITE, MLP, setting), replace(MADE, macs_share=0.45))
    assert (share.target, share.met) == (0.4, False)


def test_a_given_budget_stands_in_the_place_of_that_of_the_row() -> None:
    case, macs, latency = NAMES["resnet56-latency"], {"macs": "0.4"}, {"latency": "0.5"}
    assert pipeline(case, Setting(Path())).endswith("prune-filters{latency=0.6}")
    assert pipeline(case, Setting(Path(), options=macs)).endswith("prune-filters{macs=0.4}")
    assert pipeline(MLP, Setting(Path(), options=latency)).endswith(
        "{criterion=l1 repair=none scope=uniform latency=0.5}"
    )
    assert targets(case, Setting(Path(), options=macs))["macs_share"] == 0.4
    moved = targets(MLP, Setting(Path(), options=latency))
    assert moved["latency_share"] == 0.5 and "macs_share" not in moved


def targets(case: Case, setting: Setting) -> dict[str, float]:
    return {figure.name: figure.target for figure in figures(applied(SUITE, case, setting), MADE)}


def test_figures_are_met_on_their_side_of_the_target_and_missed_where_nothing_was_measured() -> None:
    assert Figure("a", ">=", 1, 1).met and Figure("a", "<=", 1, 1).met
    assert not Figure("a", ">=", 1, 0.9).met and not Figure("a", "<=", 1, 1.1).met
    assert not Figure("a", ">=", 1, None).met


def test_the_rows_ask_for_what_is_to_be_reached() -> None:
    rest = {"macs_share", "peak_bytes"}
    wanted = {
        name: {key: value for key, value in targets(case, Setting(Path())).items() if key not in rest}
        for name, case in NAMES.items()
    }
    assert wanted == {
        "resnet20-50-control": {},
        "resnet20-50-uniform": {"accuracy": 82.5, "seconds": 20},
        "resnet20-75": {"accuracy": 89.8},
        "resnet20-50": {"accuracy": 86.5, "seconds": 60},
        "resnet56-50-uniform": {"accuracy": 90.3, "seconds": 70},
        "resnet56-50": {"accuracy": 91.8, "seconds": 240},
        "resnet56-40-layers": {"accuracy": 90.0},
        "resnet56-latency": {"accuracy": 90.5, "latency_share": 0.6},
        "resnet56-50-free": {"accuracy": 75.0},
        "vgg9-50": {"accuracy": 85.5, "latency_share": 0.6},
        "resnet8-50": {"accuracy": 78.0},
        "resnet8-75": {"accuracy": 83.0},
        "lite0-85": {"agreement": 88.0, "seconds": 480},
    }


def test_every_row_bounds_its_memory_and_its_budget() -> None:
    peaks = {name: targets(case, Setting(Path()))["peak_bytes"] for name, case in NAMES.items()}
    assert peaks == dict.fromkeys(NAMES, 8e8) | {"lite0-85": 2e9}
    for case in CASES:
        (step,) = Pipeline.parse(case.passes).passes
        budget = {"macs_share": vars(step)["macs"], "latency_share": vars(step)["latency"]}
        found = targets(case, Setting(Path()))
        asked = {name: share for name, share in budget.items() if share is not None}
        assert len(asked) == 1 and asked.items() <= found.items()


def test_the_file_that_was_written_is_timed_where_a_latency_is_to_be_reached(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[tuple[Path, int]] = []

    def ratio(original: Path, pruned: Path, *, folded: bool) -> float:
        assert not folded
        timed.append((original, pruned.stat().st_size))
        return 0.7

    monkeypatch.setattr(suite, "time_ratio", ratio)
    setting = Setting(shared, samples=8, threads=1)
    result = measure(SUITE, replace(MLP, latency=0.6), setting)
    assert [original for original, _ in timed] == [shared / "models" / "digits_mlp.onnx"]
    assert timed[0][1] < (ZOO / "digits_mlp.onnx").stat().st_size
    assert result.failure is None and result.latency_share == 0.7
    assert [figure.name for figure in result.figures if not figure.met] == ["latency_share"]
    failed = measure(SUITE, replace(MLP, latency=0.6, passes="prune-filters{macs=0.5 criterion=l3}"), setting)
    assert failed.latency_share is None and len(timed) == 1, "nothing was written"


def test_a_file_takes_as_long_as_itself_and_a_smaller_network_less(monkeypatch: pytest.MonkeyPatch) -> None:
    # As much as a factor of two takes.
    monkeypatch.setattr(runs, "steady_ratio", partial(steady_ratio, effort=Effort(0.1, 0.2, 2.0)))
    net, mlp = ZOO / "digits_resnet.onnx", ZOO / "digits_mlp.onnx"
    assert 0.5 < time_ratio(net, net) < 2
    assert time_ratio(net, mlp) < 0.5


def test_a_row_is_fed_with_its_own_data_and_its_own_number_of_samples(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for role in ("calibration", "evaluation"):
        (shared / "data" / f"imagenet_{role}.npz").touch()
    for name in ("efficientnet_lite0_bn", "mlperftiny_resnet8_cifar10"):
        (shared / "models" / f"{name}.onnx").touch()
    seen: list[list[str]] = []

    def run(command: Any, folder: Path) -> Usage:
        seen.append([str(word) for word in command])
        return USAGE

    monkeypatch.setattr(runs, "run_measured", run)
    wanted = ["--shared", str(shared), "--rows", "lite0-85,resnet8-50,resnet20-50"]
    assert main(wanted) == 1
    assert main([*wanted, "--samples", "64"]) == 1

    def given(words: list[str], option: str) -> str:
        return words[words.index(option) + 1]

    data = [Path(given(words, "--calibration")).name for words in seen[:3]]
    judges = [Path(given(words, "--evaluation")).name for words in seen[:3]]
    assert data == ["imagenet_calibration.npz", *["cifar10_calibration.npz"] * 2]
    assert judges == ["imagenet_evaluation.npz", *["cifar10_evaluation.npz"] * 2]
    assert [given(words, "--samples") for words in seen] == ["128", "1024", "512", "64", "64", "64"]


def test_what_is_missed_stands_beside_its_target(
    shared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = applied(SUITE, NAMES["vgg9-50"], Setting(shared))
    made = replace(MADE, case=case.name, accuracy=85.0, latency_share=0.61, macs_share=0.5)
    made = replace(made, figures=figures(case, made))
    (shared / "models" / "cifar10_vgg9_bn.onnx").touch()
    monkeypatch.setattr(suite, "measure", lambda *_: made)
    assert main(["--shared", str(shared), "--rows", "vgg9-50"]) == 1
    shown = capsys.readouterr().out
    assert "85.00 (>= 85.5)" in shown and "61.00 (<= 60)" in shown and "500 (<= 800)" in shown


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
    assert main([*wanted, "--samples", "16", "--seed", "0,1"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("resnet20-50-control") == 3, "two runs and their spread"
    assert "(<= 800)" in shown
    document = json.loads(file.read_text())
    assert document["schema_version"] == SCHEMA_VERSION and document["machine"]["versions"]["onnxruntime"]
    assert [(row["seed"], row["met"]) for row in document["rows"]] == [(0, True), (1, True)]
    assert document["rows"][0]["figures"][0]["target"] == 0.5
    assert document["spread"]["resnet20-50-control"]["runs"] == 2


def test_memory_runs_with_once_and_twice_the_samples(
    shared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[int | None] = []

    def made(suite: Suite, case: Case, setting: Setting, seed: int) -> Result:
        asked.append(setting.samples)
        count = setting.samples or 0
        return replace(MADE, case=case.name, peak_bytes=2 * 10**8 + 10**6 * count, samples=min(count, 24))

    monkeypatch.setattr(suite, "measure", made)
    wanted = ["--memory", "--shared", str(shared)]
    assert main([*wanted, "--samples", "10"]) == 0
    assert asked == [10, 20]
    assert "1.048 (<= 1.1)" in capsys.readouterr().out
    assert main([*wanted, "--samples", "12"]) == 0
    capsys.readouterr()
    assert main([*wanted, "--samples", "16"]) == 1
    assert "- (<= 1.1)" in capsys.readouterr().out, "the data does not hold twice as many"
    main(wanted)
    assert asked[-2:] == [512, 1024]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rows", "resnet21"], "there is no row 'resnet21'; rows are resnet20-50-control, "),
        (["--rows", "vgg9-50"], "cifar10_vgg9_bn.onnx does not exist; say with --shared"),
        (["--rows", "lite0-85"], "efficientnet_lite0_bn.onnx does not exist; say with --shared"),
        (["--options", "align"], "'align' is not NAME=VALUE"),
        (["--rows", "resnet20-50", "--options", "macs=half"], "takes a number, not 'half'"),
        (["--memory", "--seed", "0,1"], "--memory and --speed time no files and run with one seed"),
    ],
)
def test_a_wrong_call_ends_before_anything_runs(
    shared: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--shared", str(shared), *words])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
