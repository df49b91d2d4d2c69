"""--calibration none: the command makes its samples from the model, and says so."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import onnx
from click.testing import CliRunner, Result

from onnxcomp.cli.main import cli
from tests.support.pruning import ZOO

JUDGED = f"--evaluation {shlex.quote(str(ZOO / 'digits_evaluation.npz'))}"
EXACT = "fold-constants,fold-batchnorm,remove-dead"


def prune(net: str, options: str, rest: str) -> Result:
    """Prune a shipped net into out.onnx without data."""
    words = (
        f"optimize {shlex.quote(str(ZOO / net))} -o out.onnx --passes '{EXACT},prune-filters{{{options}}}'"
    )
    result = CliRunner().invoke(cli, shlex.split(f"{words} --threads 1 --calibration none {rest}"))
    assert result.exit_code == 0, result.output
    return result


def test_without_data_made_images_keep_what_a_bare_cut_loses() -> None:
    """No sample is given: the file and the report say how samples were made, and nothing poses as accuracy on data."""
    result = prune("digits_resnet.onnx", "macs=0.5 scope=uniform joint=1", f"{JUDGED} --report run.json")
    found = json.loads(Path("run.json").read_text())
    prune(
        "digits_resnet.onnx",
        "macs=0.5 scope=uniform criterion=l1 repair=none",
        f"{JUDGED} --force --accept-ruin --report bare.json",
    )
    bare = json.loads(Path("bare.json").read_text())
    assert bare["comparison"]["accuracy_after"] < 50 and bare["notes"] == []
    assert found["comparison"]["accuracy_after"] > 95
    assert found["compared_on"] == "evaluation"
    (note,) = found["notes"]
    assert note.startswith("data-free: 256 synthetic samples, images of ")
    assert note in result.stderr
    made = next(d for d in found["data"] if d["role"] == "calibration")
    assert (made["mode"], made["source"], made["samples"]) == ("none", "data made from the model", 256)


def test_a_file_made_without_data_says_so_and_is_compared_on_made_samples() -> None:
    said = prune("digits_mlp.onnx", "macs=0.5 scope=uniform", "").stdout
    assert "on 256 samples of data made from the model: agreement" in said
    assert "top1" not in said
    kept = {p.key: p.value for p in onnx.load("out.onnx").metadata_props}
    assert kept["onnxcomp.calibration"] == "none"
    assert "the model has no BatchNormalization" in kept["onnxcomp.calibration_samples"]
    before = Path("out.onnx").read_bytes()
    prune("digits_mlp.onnx", "macs=0.5 scope=uniform", "--force")
    assert Path("out.onnx").read_bytes() == before
