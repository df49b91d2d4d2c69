"""Mixed precision and sensitivity to integers from the command line: what is refused, what is told, every way to end."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from onnxcomp.cli.main import cli
from onnxcomp.ir.files import save
from tests.support.harmful import BAD, READER, planted
from tests.support.pruning import ZOO

DATA = f"--calibration {ZOO / 'digits_calibration.npz'} --threads 1"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder with a planted model, without a child process per model."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    save(planted(), tmp_path / "model.onnx")


def run(words: str, code: int = 0) -> Result:
    """Run `onnxcomp` with `words` in this process and expect the exit code."""
    result = CliRunner().invoke(cli, shlex.split(words))
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def optimize(options: str, code: int = 0, more: str = "") -> Result:
    passes = f"insert-qdq{{granularity=per-tensor equalize=false {options}}}"
    return run(f"optimize model.onnx -o out.onnx --passes '{passes}' {DATA} --report r.json {more}", code)


def report() -> Any:
    return json.loads(Path("r.json").read_text())["runs"][-1]


def test_a_bound_that_holds_ends_well_and_the_report_has_a_row_for_every_node() -> None:
    optimize("precision=mixed min-sqnr=30", more="--samples 256")
    assert Path("out.onnx").exists()
    (change,) = (c for c in report()["changes"] if "choices" in c["details"])
    rows = {row["node"]: row for row in change["details"]["choices"]}
    assert {BAD, READER} <= {name for name, row in rows.items() if row["choice"] == "float"}
    assert set(rows[BAD]) == {
        "node",
        "op",
        "choice",
        "sensitivity",
        "weight_sensitivity",
        "bits_saved",
        "macs",
    }
    assert change["what"].endswith("nodes in float so that min-sqnr=30 holds")


def test_a_bound_that_does_not_hold_ends_with_4_and_the_best_effort() -> None:
    optimize("precision=mixed min-sqnr=40", 4, "--target qnn --samples 64 --set-shape image=1,1,8,8")
    assert not Path("out.onnx").exists()
    assert Path("out.best.onnx").exists()
    assert "min-sqnr=40 does not hold with" in report()["shortfall"]


def test_a_bound_that_too_few_samples_can_confirm_is_refused_with_how_many_would() -> None:
    out = optimize("precision=mixed agreement=99.9", 2, "--samples 64").output
    assert "agreement=99.9 takes at least 4,604 samples to confirm" in out
    assert not Path("out.onnx").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("precision=mixed", "precision=mixed needs a bound; give min-sqnr, max-drop or agreement"),
        ("agreement=99", "agreement=99 is for precision=mixed"),
        ("keep=float", "keep=float is for precision=mixed"),
        ("precision=mixed max-drop=0", "no number of samples confirms max-drop=0"),
        (
            "precision=mixed min-sqnr=40 keep=16-bit",
            "ort-cpu takes activations of type uint8 or int8, not uint16",
        ),
        ("precision=mixed min-sqnr=30 nodes=nothing", "nodes 'nothing' matches no node"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_line(options: str, said: str) -> None:
    out = optimize(options, 2).output
    assert said in out


def test_sensitivity_to_integers_is_told_in_words_of_its_own() -> None:
    words = f"sensitivity model.onnx {DATA} --samples 48 --technique quantize --cache none"
    out = run(words).stdout
    assert "nodes, each alone in integers" in out
    assert "24 of 32" in out
    assert f"most sensitive  {READER}" in out
    assert "channel group" not in out
    found = json.loads(run(f"{words} --json --exclude '{READER}'").stdout)
    assert READER not in [effect["site"] for effect in found["effects"]]
    assert found["techniques"] == {"insert-qdq": {"target": "ort-cpu"}}
    assert "no node can be computed in integers" in run(f"{words} --exclude '*'").stdout
    assert "ncnn has its own quantizer; name one that reads pairs" in run(f"{words} --target ncnn", 2).stderr


def test_results_for_another_target_are_kept_apart() -> None:
    words = f"sensitivity model.onnx {DATA} --samples 16 --technique quantize --json"
    first = json.loads(run(words).stdout)
    assert not first["cached"]
    assert not json.loads(run(f"{words} --target tensorrt").stdout)["cached"]
    assert json.loads(run(words).stdout)["cached"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--technique quantize --levels 0.5", "--levels is no option of --technique quantize"),
        ("--technique quantize --criterion l1", "--criterion is no option of --technique quantize"),
        ("--target qnn", "--target is no option of --technique prune"),
        ("--technique quantize --target nowhere", "unknown target 'nowhere'"),
    ],
)
def test_options_of_the_other_technique_are_refused(options: str, said: str) -> None:
    assert said in run(f"sensitivity model.onnx {DATA} {options}", 2).output
