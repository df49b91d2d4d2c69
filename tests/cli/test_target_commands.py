"""The commands `targets` and `check`, and `optimize --target`."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import onnxcomp
from onnxcomp import passes
from onnxcomp.cli import check as cli_check
from onnxcomp.cli.main import cli
from onnxcomp.compiler.passbase import Context, Pass, PassLog, PassResult
from onnxcomp.compiler.target.files import target_names
from onnxcomp.errors import UsageError
from onnxcomp.ir import Model
from onnxcomp.ir.files import load, save
from tests.compiler.target.test_lint import RIGHT, quantized
from tests.support.fakes import classifier, write_classifier


@dataclass(frozen=True)
class Quantizer(Pass):
    """Notes the target it is given."""

    name = "quantizer"
    exact = True
    stage = "quantization"

    def run(self, model: Model, context: Context) -> PassResult:
        log = PassLog()
        log.note(f"made for {context.target.name}")
        return log.result(model)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder with a float and a quantized model, no child process per model."""
    monkeypatch.setitem(passes.BUILTIN, "quantizer", f"{__name__}:Quantizer")
    write_classifier(tmp_path)
    save(quantized(RIGHT["tensorrt"]), tmp_path / "signed.onnx")


def run(words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, shlex.split(words))
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def document(words: str, code: int = 0) -> dict[str, Any]:
    result = run(f"{words} --json", code)
    found: dict[str, Any] = json.loads(result.stdout)
    assert found["schema_version"] == 2
    return found


# --- targets ---------------------------------------------------------------------------------------------------------
def test_targets_lists_all_of_them_with_how_much_of_each_was_tried() -> None:
    lines = run("targets").stdout.splitlines()
    rows = {line.split()[0]: line for line in lines if line.strip()}
    assert set(target_names()) <= set(rows)
    assert "int8 per channel / uint8" in rows["ort-cpu"]
    assert "powers of two" in rows["pow2"]
    assert "its own quantizer" in rows["hailo"]
    assert " 0 of 15 " in rows["tensorrt"]
    listed = document("targets")["targets"]
    assert [t["name"] for t in listed] == list(target_names())


def test_a_target_is_shown_fact_by_fact_and_what_nobody_tried_is_called_so() -> None:
    shown = run("targets st-edge-ai").stdout
    opset = next(line for line in shown.splitlines() if line.split()[:1] == ["opset"])
    assert "must" in opset
    assert "opset: 13 to 20" in opset
    assert "unverified" in opset
    assert "supported ONNX operators" in opset
    assert "no external data" in shown
    assert "onnxruntime 1.31.1" in run("targets ort-cpu").stdout


@pytest.mark.parametrize("name", target_names())
def test_every_target_is_one_document_with_sources(name: str) -> None:
    found = document(f"targets {name}")
    assert found["name"] == name
    for fact in found["facts"]:
        assert {"table", "values", "source", "verified_on", "hard"} == set(fact)
        assert fact["source"]
        assert fact["values"]


def test_an_unknown_target_is_told_the_nearest_by_every_command() -> None:
    for words in (
        "targets opnvino",
        "check model.onnx --target opnvino",
        "optimize model.onnx -o o.onnx --target opnvino",
    ):
        assert run(words, 2).stderr == "onnxcomp: unknown target 'opnvino'; did you mean 'openvino'?\n"


# --- check -----------------------------------------------------------------------------------------------------------
def test_a_file_that_suits_exits_0_and_says_so() -> None:
    assert run("check signed.onnx --target tensorrt").stdout == (
        "signed.onnx suits tensorrt, as far as the rules say\n"
    )
    found = document("check signed.onnx --target tensorrt")
    assert (found["clean"], found["findings"], found["target"]) == (True, [], "tensorrt")


def test_advice_alone_exits_0() -> None:
    shown = run("check model.onnx --target ort-cpu").stdout
    assert "run insert-qdq with --target ort-cpu" in shown
    assert shown.endswith("model.onnx suits ort-cpu, as far as the rules say, 1 piece of advice\n")


def test_a_violated_fact_exits_1_with_node_fact_and_cure() -> None:
    shown = run("check model.onnx --target qnn", 1).stdout
    row = next(line for line in shown.splitlines() if line.split()[:1] == ["image"])
    assert row.split()[1:3] == ["must", "shapes"]
    assert row.endswith("use --set-shape image=1,3,4,4")
    assert shown.endswith("model.onnx does not suit qnn: 1 violation\n")
    found = document("check model.onnx --target qnn", 1)
    assert found["clean"] is False
    assert found["findings"][0] == {
        "table": "shapes",
        "where": "image",
        "what": "the input is [N, 3, 4, 4], wanted is a static shape",
        "advice": "use --set-shape image=1,3,4,4",
        "hard": True,
    }


def test_the_cure_that_check_names_cures() -> None:
    run("optimize model.onnx -o fixed.onnx --target qnn --set-shape image=1,3,4,4 -q")
    assert document("check fixed.onnx --target qnn")["clean"]


def test_many_places_of_a_kind_are_cut_short_unless_all_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    every = run("check signed.onnx --target rknn --all", 1).stdout
    assert run("check signed.onnx --target rknn", 1).stdout == every
    monkeypatch.setattr(cli_check, "SHOWN", 2)
    some = run("check signed.onnx --target rknn", 1).stdout
    assert "4 more places of the same kinds; --all lists them" in some
    assert len(every.splitlines()) == len(some.splitlines()) + 3
    assert run("check signed.onnx --target rknn --all", 1).stdout == every


def test_check_wants_a_target_and_a_model() -> None:
    assert "Missing option '--target'" in run("check model.onnx", 2).stderr
    assert "gone.onnx" in run("check gone.onnx --target qnn", 2).stderr


# --- optimize --target -----------------------------------------------------------------------------------------------
def test_passes_are_given_the_target_and_the_report_names_it() -> None:
    words = "optimize model.onnx -o o.onnx --passes remove-dead,quantizer --report r.json -v"
    run(f"{words} --target tensorrt")
    report = json.loads(Path("r.json").read_text())
    assert report["target"] == "tensorrt"
    assert report["runs"][1]["notes"] == ["made for tensorrt"]
    run(f"{words} --force")
    report = json.loads(Path("r.json").read_text())
    assert (report["target"], report["runs"][1]["notes"]) == ("ort-cpu", ["made for ort-cpu"])


def test_the_config_names_a_target_and_the_option_wins() -> None:
    Path("c.toml").write_text('passes = "remove-dead,quantizer"\ntarget = "qnn"\n')
    words = "optimize model.onnx -o o.onnx --config c.toml --report r.json --force -q"
    run(words)
    assert json.loads(Path("r.json").read_text())["target"] == "qnn"
    run(f"{words} --target pow2")
    assert json.loads(Path("r.json").read_text())["target"] == "pow2"


def test_quantizing_for_a_target_that_quantizes_by_itself_is_refused_before_work_starts() -> None:
    stderr = run("optimize gone.onnx -o o.onnx --passes remove-dead,quantizer --target ncnn", 2).stderr
    assert "own quantizer" in stderr
    stderr = run("optimize model.onnx -o o.onnx --passes remove-dead,quantizer --target ncnn", 2).stderr
    assert stderr == (
        "onnxcomp: target ncnn has its own quantizer and wants a clean float file; leave out quantizer\n"
    )
    assert not Path("o.onnx").exists()
    run("optimize model.onnx -o o.onnx --passes remove-dead --target ncnn")


def test_a_result_that_violates_a_fact_says_so_in_notes() -> None:
    model = classifier()
    model.opset_imports[""] = 21
    model.ir_version = 10
    save(model, Path("new.onnx"))
    result = run("optimize new.onnx -o o.onnx --target st-edge-ai --report r.json")
    notes = json.loads(Path("r.json").read_text())["notes"]
    assert "target st-edge-ai wants opset <= 20, the file has 21; use --opset 20" in notes
    assert "target st-edge-ai wants an IR version <= 9, the file has 10; use --ir-version 9" in notes
    assert any(n.startswith("target st-edge-ai: image: the input is [N, 3, 4, 4]") for n in notes)
    assert "use --opset 20" in result.stderr
    run(
        "optimize new.onnx -o p.onnx --target st-edge-ai --opset 20 --ir-version 9 --set-shape image=1,3,4,4 --report q.json"
    )
    assert not [n for n in json.loads(Path("q.json").read_text())["notes"] if n.startswith("target ")]
    assert load(Path("p.onnx")).opset == 20


def test_python_takes_a_target_too() -> None:
    step = Quantizer()
    result = onnxcomp.optimize(classifier(), [step], target="pow2")
    assert result.report.target == "pow2"
    with pytest.raises(UsageError, match="unknown target 'pow'"):
        onnxcomp.optimize(classifier(), "remove-dead", target="pow")
