"""sensitivity from the command line: what it prints, what it keeps, and every way to end."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import numpy_helper

from onnxcomp import passes
from onnxcomp.cli.main import cli
from onnxcomp.compiler.commands import sensitivity
from onnxcomp.compiler.commands.sensitivity import Sensitivity
from tests.support.fakes import FAKES, write_classifier, write_data
from tests.support.pruning import ZOO

CLASSIFIER = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 3, 4, 4] image) => (float[N, 5] scores) <float[6, 3, 3, 3] first, float[96, 5] head> {
    conv = Conv <pads = [1, 1, 1, 1]> (image, first)
    act = Relu (conv)
    flat = Flatten (act)
    scores = MatMul (flat, head)
}"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder with a model and data, the fakes among the passes, no child process per model."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    for name, target in FAKES.items():
        monkeypatch.setitem(passes.BUILTIN, name, target)
    write_classifier(tmp_path)
    write_data(tmp_path, samples=40)


def run(words: str, code: int = 0) -> Result:
    """Run `onnxcomp sensitivity` with `words` in this process and expect the exit code."""
    result = CliRunner().invoke(cli, ["sensitivity", *shlex.split(words)])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def document(words: str) -> Any:
    result = run(f"{words} --json")
    assert result.stderr == ""
    return json.loads(result.stdout)


def kept() -> list[Path]:
    return sorted(Path("xdg/onnxcomp").glob("*"))


# --- what is shown ---------------------------------------------------------------------------------------------------
def test_a_row_per_level_tells_damage_agreement_and_savings() -> None:
    out = run("model.onnx --calibration data.npz --levels 0.5,0.34 -q").stdout
    rows = [line.split() for line in out.splitlines() if line.strip().startswith("conv ")]
    assert [row[1:4] for row in rows] == [["2", "of", "6"], ["3", "of", "6"]]
    # A channel is 27 weights of the convolution, at 16 places, and 16 rows of the head.
    assert [row[7] for row in rows] == ["1,024", "1,536"]
    assert [row[10] for row in rows] == ["214", "321"]
    assert all(row[6] == "%" and row[9] == "%" for row in rows)
    assert (
        "judged on 40 samples of data.npz: KL divergence of class scores, softened to their own spread" in out
    )
    assert "most sensitive  conv (" in out
    assert "5 channels stay: it reaches the graph output 'scores'" in out


def test_a_narrow_terminal_gets_shares_only(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = run("model.onnx --calibration data.npz --levels 0.5 -q").stdout
    monkeypatch.setattr("onnxcomp.cli.view._WIDE", 80)
    narrow = run("model.onnx --calibration data.npz --levels 0.5 -q").stdout
    assert "MACs saved" in wide and "1,536" in wide
    assert "1,536" not in narrow and "33.33 %" not in narrow
    assert "MACs and parameters are shares saved" in narrow
    assert max(map(len, narrow.split("most sensitive")[0].splitlines()[4:])) <= 80


def test_json_is_one_document_with_every_figure() -> None:
    found = document("model.onnx --calibration data.npz --levels 0.5 --samples 30 --seed 3 --threads 1")
    assert found["schema_version"] == 2
    assert (found["measure"], found["decision"], found["samples"], found["seed"]) == (
        "divergence",
        "scores",
        30,
        3,
    )
    assert found["techniques"] == {"prune-filters": {"levels": [0.5], "criterion": "obs"}}
    assert found["file"]["path"] == "model.onnx" and found["data"]["samples"] == 30
    (effect,) = found["effects"]
    assert (effect["site"], effect["tier"], effect["removed"], effect["units"]) == ("conv", None, 3, 6)
    assert effect["distance"] > 0 and 0 <= effect["agreement"] <= 100
    assert effect["macs"] / found["cost"]["macs"] == effect["macs_share"] == 0.5
    assert effect["parameters"] / found["cost"]["parameters"] == effect["parameters_share"] == 0.5
    assert found["blocked"] == [
        {"where": "scores", "reason": "5 channels stay: it reaches the graph output 'scores'"}
    ]


def test_outputs_that_are_no_class_scores_are_judged_by_their_error() -> None:
    words = (
        f"{ZOO / 'digits_unet.onnx'} --calibration {ZOO / 'digits_calibration.npz'} --samples 16 --threads 1"
    )
    found = document(f"{words} --levels 0.5")
    assert (found["measure"], found["decision"]) == ("error", None)
    assert all(e["agreement"] is None and e["distance"] < 1 for e in found["effects"])
    out = run(f"{words} --levels 0.5 -q").stdout
    assert "squared error as a share of the outputs' variance" in out
    assert "agree" not in out and "KL" not in out


def test_rows_can_be_sorted_by_sensitivity_per_mac() -> None:
    words = f"{ZOO / 'digits_mlp.onnx'} --calibration {ZOO / 'digits_calibration.npz'} --samples 64"
    plain, sorted_ = document(words), document(f"{words} --sort sensitivity")
    assert [e["site"] for e in plain["effects"]] == ["/layer1/Gemm"] * 3 + ["/layer2/Gemm"] * 3
    sensitivity = [e["distance"] / e["macs_share"] for e in sorted_["effects"]]
    assert sensitivity == sorted(sensitivity, reverse=True)
    assert document(f"{words} --sort harm")["effects"] == sorted_["effects"], (
        "the former word, for one version"
    )
    assert sorted_["cached"] and not plain["cached"], "the order is no part of what is kept"


def test_batchnorm_is_folded_before_unless_other_passes_are_asked_for() -> None:
    words = f"{ZOO / 'digits_resnet.onnx'} --calibration {ZOO / 'digits_calibration.npz'} --samples 8 --levels 0.5"
    folded, given = document(f"{words} --threads 1"), document(f"{words} --threads 1 --passes remove-dead")
    assert "fold-batchnorm" in folded["pipeline"] and given["pipeline"] == "remove-dead"
    assert folded["cost"]["nodes"] < given["cost"]["nodes"]


def test_what_is_excluded_is_among_what_is_left_alone() -> None:
    found = document("model.onnx --calibration data.npz --exclude op:Conv")
    assert found["effects"] == [] and found["measure"] is None
    assert {"where": "conv", "reason": "6 channels stay: it is excluded"} in found["blocked"]
    assert "no channel group can be cut" in run("model.onnx --calibration data.npz --exclude op:Conv").stdout


def test_sizes_can_be_set_where_the_data_leaves_them_open() -> None:
    write_classifier(Path(), "free.onnx", CLASSIFIER.replace("[N, 3, 4, 4] image", "[N, 3, H, W] image"))
    found = document("free.onnx --calibration random:8 --set-shape image=1,3,4,4 --levels 0.5")
    assert found["effects"][0]["macs"] == 1536
    assert "measured on noise: what real samples would show may be another thing" in found["notes"]


def test_without_data_samples_are_made_and_that_is_said() -> None:
    words = f"{ZOO / 'digits_mlp.onnx'} --calibration none --levels 0.5 --threads 1"
    found = document(words)
    assert found["data"]["mode"] == "none"
    assert any("synthetic samples" in note for note in found["notes"])
    assert len(found["effects"]) == 2
    assert document(words)["cached"]


def test_a_pass_that_fails_or_falls_short_is_noted() -> None:
    found = document("model.onnx --calibration data.npz --passes break,fall-short --levels 0.5")
    assert any(note.startswith("break rolled-back: ") for note in found["notes"])
    assert any(note.startswith("fall-short: macs=0.5 cannot be reached") for note in found["notes"])


# --- the cache -------------------------------------------------------------------------------------------------------
def test_a_second_run_prints_the_same_from_the_cache_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    first = run("model.onnx --calibration data.npz")
    assert "[3/3] remove-dead" in first.stderr

    def no(*_: object) -> Sensitivity:
        raise AssertionError("it was measured again")

    monkeypatch.setattr(sensitivity, "_measured", no)
    second = run("model.onnx --calibration data.npz")
    assert second.stdout == first.stdout
    (file,) = kept()
    assert second.stderr == f"note: kept from an earlier run in {file.absolute()}; --force measures anew\n"
    assert run("model.onnx --calibration data.npz -q").stderr == ""
    assert json.loads(run("model.onnx --calibration data.npz --json").stdout)["cached"] is True


def test_what_is_kept_is_found_under_another_name_of_the_same_files() -> None:
    before = document("model.onnx --calibration data.npz")
    Path("model.onnx").rename("moved.onnx")
    Path("data.npz").rename("images.npz")
    after = document("moved.onnx --calibration images.npz")
    assert (
        after["cached"] and after["file"]["path"] == "moved.onnx" and after["data"]["source"] == "images.npz"
    )
    assert after["effects"] == before["effects"]


@pytest.mark.parametrize(
    "change",
    [
        "--samples 39",
        "--levels 0.5",
        "--criterion l1",
        "--seed 1",
        "--threads 1",
        "--passes fold-constants",
        "--exclude conv",
        "--set-shape image=2,3,4,4",
        "--force",
        "--cache none",
        "--cache elsewhere",
    ],
)
def test_another_option_is_measured_anew(change: str) -> None:
    assert not document("model.onnx --calibration data.npz")["cached"]
    assert not document(f"model.onnx --calibration data.npz {change}")["cached"]
    assert document("model.onnx --calibration data.npz")["cached"]


def test_another_weight_another_sample_and_another_version_are_measured_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = "model.onnx --calibration data.npz"
    assert not document(words)["cached"]
    proto = onnx.load("model.onnx")
    weight = proto.graph.initializer[0]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 2, weight.name))
    onnx.save(proto, "model.onnx")
    assert not document(words)["cached"]
    image = dict(np.load("data.npz"))["image"]
    image[-1, 0, 0, 0] += 1
    np.savez("data.npz", image=image)
    assert not document(words)["cached"]
    monkeypatch.setattr(sensitivity, "versions", lambda: {"onnxcomp": "next"})
    assert not document(words)["cached"]
    assert len(kept()) == 4


@pytest.mark.parametrize("content", ["", "{", "[]", '{"key": 1}', "\0\xff"])
def test_a_damaged_file_is_ignored_with_a_note_and_replaced(content: str) -> None:
    first = run("model.onnx --calibration data.npz")
    (file,) = kept()
    file.write_bytes(content.encode("latin-1"))
    again = run("model.onnx --calibration data.npz")
    assert f"note: the cached result {file.absolute()} is damaged and was ignored" in again.stderr
    assert again.stdout == first.stdout
    assert document("model.onnx --calibration data.npz")["cached"]


def test_a_figure_changed_in_the_cache_is_noticed() -> None:
    run("model.onnx --calibration data.npz")
    (file,) = kept()
    inside = json.loads(file.read_text())
    inside["document"]["effects"][0]["macs"] += 1
    file.write_text(json.dumps(inside))
    assert "is damaged and was ignored" in run("model.onnx --calibration data.npz").stderr


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_cache_that_cannot_be_written_is_no_error(place: str) -> None:
    Path("file").write_text("in the way")
    result = run(f"model.onnx --calibration data.npz --cache {place}")
    assert "conv" in result.stdout
    assert f"note: the result is not kept in {place}: " in result.stderr
    assert Path("file").read_text() == "in the way"


def test_a_folder_that_only_reads_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("onnxcomp.compiler.commands.result_cache.replacing", refuse)
    result = run("model.onnx --calibration data.npz --cache kept")
    assert "note: the result is not kept in kept: Permission denied" in result.stderr


def test_without_a_cache_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name for path in Path().iterdir()}
    run("model.onnx --calibration data.npz --cache none")
    assert {path.name for path in Path().iterdir()} == before


def test_passes_of_other_packages_are_measured_every_time() -> None:
    """A fake stands in for them: it is no module of ours, so its results may change without our knowing."""
    for _ in range(2):
        assert not document("model.onnx --calibration data.npz --passes scale")["cached"]
    assert kept() == []


# --- ways to end -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("none.onnx --calibration data.npz", 2, "the model none.onnx is missing"),
        ("data.npz --calibration data.npz", 2, "data.npz"),
        ("model.onnx", 2, "sensitivity is measured on samples; give --calibration"),
        ("model.onnx --calibration none.npz", 2, "none.npz"),
        ("model.onnx --calibration here:feeds", 2, "here:feeds: runs Python code; say --allow-code"),
        ("model.onnx --calibration data.npz --levels 0,0.5", 2, "--levels: 0 is no share removed"),
        ("model.onnx --calibration data.npz --levels 1", 2, "--levels: 1 is no share removed"),
        ("model.onnx --calibration data.npz --levels nan", 2, "--levels: nan is no share removed"),
        (
            "model.onnx --calibration data.npz --criterion obb",
            2,
            "unknown criterion 'obb'; did you mean 'obs'?",
        ),
        ("model.onnx --calibration data.npz --passes remove-ded", 2, "did you mean 'remove-dead'?"),
        (
            "model.onnx --calibration data.npz --exclude 'cnv*'",
            2,
            "--exclude 'cnv*' matches no node; near: conv",
        ),
        (
            "model.onnx --calibration data.npz --output score",
            2,
            "--output 'score' is no output; known: scores",
        ),
        ("model.onnx --calibration data.npz --set-shape image=1,3,4", 2, "it has 4 axes"),
        (
            "model.onnx --calibration data.npz --preprocess none.toml",
            2,
            "none.toml: No such file or directory",
        ),
        (
            "model.onnx --calibration data.npz --custom-op-lib no.so",
            2,
            "--custom-op-lib no.so does not exist",
        ),
        (
            "model.onnx --calibration data.npz --passes raise",
            70,
            "raise failed unexpectedly, please report it",
        ),
        ("model.onnx --calibration data.npz --passes 'raise{what=interrupt}'", 130, "interrupted"),
    ],
)
def test_every_way_to_end_has_its_exit_code_and_one_clear_line(words: str, code: int, message: str) -> None:
    before = {path.name for path in Path().iterdir()}
    result = run(f"{words} -q", code)
    first, *rest = result.stderr.strip().splitlines()
    assert first.startswith("onnxcomp: ") and message in first
    assert all(line.startswith("  ") for line in rest), "only the text that a caret points at may follow"
    assert result.stdout == ""
    assert {path.name for path in Path().iterdir()} == before


@pytest.mark.parametrize(
    "words",
    ["", "model.onnx --levels a,b", "model.onnx --levels ''", "model.onnx --samples 0", "--sort size"],
)
def test_a_command_line_that_does_not_parse_says_how_it_is_called(words: str) -> None:
    assert "Usage: onnxcomp" in run(words, 2).stderr


def test_a_model_that_does_not_run_is_refused() -> None:
    text = CLASSIFIER.replace('"" : 17', '"" : 17, "my" : 1').replace("Relu", "my.Relu")
    write_classifier(Path(), "foreign.onnx", text)
    assert "foreign.onnx cannot be run: " in run("foreign.onnx --calibration data.npz -q", 2).stderr


def test_weights_and_outputs_that_are_no_numbers_are_refused() -> None:
    proto = onnx.load("model.onnx")
    weight = proto.graph.initializer[0]
    values = numpy_helper.to_array(weight).copy()
    values.reshape(-1)[0] = np.nan
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(proto, "nan.onnx")
    message = run("nan.onnx --calibration data.npz -q", 2).stderr
    assert message.startswith("onnxcomp: ") and ("NaN" in message or "not finite" in message)


def test_a_network_without_anything_to_cut_is_not_said_to_be_judged() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    net (float[N, 3, 4, 4] image) => (float[N, 5, 2, 2] y) <float[5, 3, 3, 3] w> {y = Conv (image, w)}"""
    write_classifier(Path(), "one.onnx", text)
    said = run("one.onnx --calibration data.npz --passes remove-dead").stdout
    assert "  1 node, 135 parameters" in said
    assert "no channel group can be cut" in said
    assert "judged on" not in said
