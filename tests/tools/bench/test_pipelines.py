"""Pipelines are run on one network, timed beside it in one run, and marked where nothing beats them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from onnxcomp.compiler.spec import Pipeline
from tools.bench import pipeline_cases, pipelines, runs
from tools.bench.cases import EXACT, ZOO
from tools.bench.child import Usage
from tools.bench.pipeline_cases import FOLDED, SUBJECTS, USUAL, Subject, Try, tries_for
from tools.bench.pipelines import Entry, Trial, best_for, gains, try_all
from tools.bench.runs import Result

MADE = Result("a", "", 0, 0, 30.0, 40.0, 5 * 10**8, accuracy_before=92.0)
MLP = SUBJECTS["digits-mlp"].network
SPLIT = Try("split", "split-svd{params=0.5 repair=none}")
PRUNE = Try("prune", "prune-filters{macs=0.5 criterion=l1 repair=none scope=uniform}")


def trial(*tries: Try, samples: int = 16) -> Trial:
    data = [str(MLP.data_path(Path(), role)) for role in ("calibration", "evaluation")]
    return Trial("mlp", MLP.model_path(Path()), data[0], data[1], tries, samples, threads=1)


# --- the lists -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("subject", SUBJECTS.values(), ids=SUBJECTS)
def test_every_list_holds_pipelines_with_names_of_their_own_and_begins_with_the_exact_passes(
    subject: Subject,
) -> None:
    names = [one.name for one in subject.tries]
    assert len(names) == len(set(names)) and subject.tries[0] == FOLDED
    assert not any("," in name for name in names), "--rows separates names by commas"
    texts = [",".join(filter(None, (EXACT, one.passes))) for one in subject.tries]
    assert len(set(texts)) == len(texts)
    for text in texts:
        assert len(Pipeline.parse(text).passes) == text.count(",") + 1
    assert subject.tries is tries_for(subject.name)


def test_all_lossy_passes_are_tried_on_the_resnet_in_several_orders() -> None:
    texts = [one.passes for one in SUBJECTS["resnet56"].tries]
    firsts = {text.partition("{")[0] for text in texts if text.count("{") == 2}
    assert firsts == {"prune-filters", "split-svd", "substitute-depthwise"}
    assert {
        "prune-filters{macs=0.7},split-svd{macs=0.45}",
        "split-svd{macs=0.7},prune-filters{macs=0.45}",
    } <= set(texts)
    assert sum(text.endswith("insert-qdq") for text in texts) >= 5
    assert tries_for("net") == USUAL


@pytest.mark.parametrize("name", ["resnet20", "vgg9"])
def test_every_pair_of_passes_stands_beside_either_alone_at_the_same_macs(name: str) -> None:
    tries = {one.name: one for one in SUBJECTS[name].tries}
    pairs = [one for one in tries.values() if one.alone]
    assert len(pairs) == 12, "three passes, two of them, both orders, two shares between"
    for pair in pairs:
        first, last = Pipeline.parse(pair.passes).passes
        assert vars(first)["macs"] > vars(last)["macs"] == 0.35
        alone = [Pipeline.parse(tries[other].passes).passes for other in pair.alone]
        assert [[(step.name, vars(step)["macs"]) for step in steps] for steps in alone] == [
            [(first.name, 0.35)],
            [(last.name, 0.35)],
        ]


# --- what is best ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("points", "best"),
    [
        ({"a": (90.0, 1.0), "b": (91.0, 1.0)}, {"b"}),
        ({"a": (90.0, 0.5), "b": (91.0, 1.0)}, {"a", "b"}),
        ({"a": (90.0, 0.5), "b": (90.0, 0.5), "c": (90.0, 0.6)}, {"a", "b"}),
        ({"a": (None, 0.1), "b": (80.0, None), "c": (10.0, 2.0)}, {"c"}),
        ({}, set()),
    ],
)
def test_the_best_are_those_that_nothing_beats(
    points: Mapping[str, tuple[float | None, float | None]], best: set[str]
) -> None:
    assert best_for(points) == best


def test_a_pair_is_held_against_the_better_of_its_passes_that_met_the_same_budget() -> None:
    tries = [
        Try("a"),
        Try("b"),
        Try("c"),
        Try("ab", alone=("a", "b")),
        Try("cb", alone=("c",)),
        Try("x", alone=("a",)),
    ]
    entries = [
        Entry("original", 92.0, 1),
        Entry("a", 80.0, 1, MADE),
        Entry("b", 85.0, 1, MADE),
        Entry("c", 91.0, 1, replace(MADE, failure="exit 4: not reached")),
        Entry("ab", 86.5, 1, MADE),
        Entry("cb", 88.0, 1, MADE),
        Entry("x", None, None, replace(MADE, failure="exit 2: wrong")),
    ]
    assert [(one.name, one.alone, one.points) for one in gains(entries, tries)] == [("ab", "b", 1.5)]


# --- runs ------------------------------------------------------------------------------------------------------------
def test_every_pipeline_is_run_and_timed_beside_the_original(tmp_path: Path) -> None:
    reported: list[str] = []
    broken = Try("broken", "split-svd{params=0.5 rapair=none}")
    entries = try_all(trial(FOLDED, SPLIT, broken), tmp_path, 3, reported.append)
    assert [entry.name for entry in entries] == ["original", "folded", "split", "broken"]
    assert reported[::2] == ["mlp: folded (1 of 3)", "mlp: split (2 of 3)", "mlp: broken (3 of 3)"]
    assert "agreement 100.00, MACs 100.0 %" in reported[1] and "exit 2: " in reported[5]
    original, folded, split, failed = entries
    size = (ZOO / "digits_mlp.onnx").stat().st_size
    assert (original.time, original.minimum, original.bytes, original.result) == (1.0, 1.0, size, None)
    assert original.quality == folded.quality == 100 * 447 / 450
    assert split.bytes is not None and split.bytes < 0.6 * size and "size" in split.best
    assert folded.time is not None and 0.3 < folded.time < 3 and split.time is not None
    assert split.result is not None and split.result.pipeline == f"{EXACT},{SPLIT.passes}"
    assert failed.result is not None and "rapair" in (failed.result.failure or "")
    assert (failed.quality, failed.bytes, failed.time, failed.best) == (None, None, None, ())


def test_where_agreement_counts_the_original_has_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = {
        "before": {"macs": 10, "parameters": 10},
        "after": {"macs": 5, "parameters": 6},
        "comparison": {"accuracy_before": 70.0, "accuracy_after": 71.0, "agreement": 88.0, "sqnr_db": 9.0},
        "data": [],
        "runs": [],
        "input": {"bytes": 100},
        "output": None,
    }

    def run(command: Sequence[str], folder: Path) -> Usage:
        words = list(command)
        Path(words[words.index("--report") + 1]).write_text(json.dumps(document))
        return Usage(0, 1.0, 1.0, 1, "")

    monkeypatch.setattr(runs, "run_measured", run)
    given = trial(SPLIT)
    assert [e.quality for e in try_all(given, tmp_path, 1, lambda _: None)] == [70.0, 71.0]
    assert [e.quality for e in try_all(replace(given, by_agreement=True), tmp_path, 1, lambda _: None)] == [
        100.0,
        88.0,
    ]
    assert SUBJECTS["lite0"].by_agreement and not SUBJECTS["resnet56"].by_agreement


def test_table_and_document_show_all_pipelines_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = Try(
        "prune+split", f"{PRUNE.passes.replace('0.5', '0.7')},split-svd{{macs=0.5 repair=none}}", ("prune",)
    )
    monkeypatch.setattr(pipeline_cases, "USUAL", (FOLDED, PRUNE, pair, SPLIT))
    net = tmp_path / "net.onnx"
    shutil.copy(ZOO / "digits_mlp.onnx", net)
    file, kept = tmp_path / "found.json", tmp_path / "kept"
    words = ["--model", str(net), "--rows", "folded,prune,prune+split", "--passes", SPLIT.passes]
    for role in ("calibration", "evaluation"):
        words += [f"--{role}", str(ZOO / f"digits_{role}.npz")]
    words += ["--samples", "16", "--rounds", "2", "--threads", "1", "--keep", str(kept), "--json", str(file)]
    assert pipelines.main(words) == 0
    shown = capsys.readouterr().out
    assert "net: pipelines behind" in shown and "points beside prune" in shown
    document = json.loads(file.read_text())
    (found,) = document["networks"]
    assert [entry["name"] for entry in found["entries"]] == [
        "original",
        "folded",
        "prune",
        "prune+split",
        SPLIT.passes,
    ]
    assert [gain["name"] for gain in found["gains"]] == ["prune+split"]
    assert document["machine"]["versions"]["onnxruntime"] and document["benchmark"] == "pipelines"
    assert [(kept / f"net.{number}.onnx").exists() for number in range(1, 6)] == [True] * 4 + [False]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "resnet57"], "there is no network 'resnet57'; give a file, or one of resnet56, lite0, "),
        (["--model", "net.onnx"], "net.onnx needs --calibration DATA"),
        ([], "cifar10_resnet56_bn.onnx does not exist; say with --shared"),
        (
            ["--model", "digits-mlp", "--rows", "quantize"],
            "there is no pipeline 'quantize'; pipelines are folded, ",
        ),
        (["--model", "digits-mlp", "--passes", "split-sdv"], "unknown pass 'split-sdv'"),
        (["--model", "digits-mlp", "--evaluation", "no.npz"], "no.npz does not exist"),
        (["--model", "digits-mlp", "--rounds", "0"], "'0' is no number; give 1 or more"),
    ],
)
def test_a_wrong_call_ends_before_anything_runs(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        pipelines.main(["--shared", str(tmp_path), *words])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_file_that_cannot_be_timed_is_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = tmp_path / "net.onnx"
    net.write_bytes(b"no network")
    data = [
        word
        for role in ("calibration", "evaluation")
        for word in (f"--{role}", str(ZOO / f"digits_{role}.npz"))
    ]
    with pytest.raises(SystemExit) as ended:
        pipelines.main(["--model", str(net), *data])
    assert ended.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "net.onnx: " in said and "Traceback" not in said
