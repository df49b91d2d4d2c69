"""What `optimize --passes insert-qdq` refuses, with its exit code and the line that says what to do."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from onnxcomp.cli.main import cli
from tests.support.pruning import ZOO

NET = shlex.quote(str(ZOO / "digits_mlp.onnx"))
DATA = shlex.quote(str(ZOO / "digits_calibration.npz"))


def run(
    options: str = "", rest: str = f"--calibration {DATA} --samples 24", code: int = 0, net: str = NET
) -> str:
    step = f"insert-qdq{{{options}}}" if options else "insert-qdq"
    result = CliRunner().invoke(
        cli, shlex.split(f"optimize {net} -o out.onnx --passes '{step}' --threads 1 {rest}")
    )
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    if code == 2:
        assert not Path("out.onnx").exists()
    return " ".join(result.output.split())


def test_a_file_is_quantized_and_its_report_says_how() -> None:
    run(rest=f"--calibration {DATA} --samples 24 --report r.json")
    report: dict[str, Any] = json.loads(Path("r.json").read_text())
    changes = report["runs"][-1]["changes"]
    details = next(c["details"] for c in changes if "ranges" in c["details"])
    assert details["ranges"]
    assert details["calibration_seconds"] >= 0
    assert report["comparison"]["sqnr_db"] > 25
    assert report["after"]["bytes"] < 0.5 * report["before"]["bytes"]


def test_without_data_nothing_is_started() -> None:
    said = run(rest="", code=2)
    assert "insert-qdq needs samples; give --calibration" in said
    assert "random for noise, or none to have them made" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("observer=mes", "did you mean 'mse'?"),
        ("obsever=mse", "did you mean 'observer'?"),
        ("percentile=20", "percentile=20 is out of range"),
        ("activations=uint4", "activations"),
        ("nodes=op:Gem", "nodes 'op:Gem' matches no node; near: op:Gemm"),
        ("op-types=Convolution", "matches no node"),
        ("nodes=re:(", "is no regular expression"),
    ],
)
def test_wrong_options_are_refused_in_one_line(options: str, message: str) -> None:
    assert message in run(options, code=2)


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("tensorrt", "activations=uint8", "leave out activations=uint8"),
        ("tensorrt", "activations=int8", "takes no zero point but 0; use activations=int8-symmetric"),
        ("pow2", "scale=float", "takes no scales but powers of two; leave out scale=float"),
        ("ncnn", "", "has its own quantizer and wants a clean float file; leave out insert-qdq"),
        ("nowhere", "", "nowhere"),
    ],
)
def test_what_a_target_refuses_is_refused(target: str, options: str, message: str) -> None:
    assert message in run(options, f"--calibration {DATA} --target {target}", code=2)


def test_a_quantized_file_is_left_alone_with_exit_code_3() -> None:
    run()
    Path("out.onnx").rename("once.onnx")
    said = run(net="once.onnx", code=3)
    assert "no pass changed the model" in said
    assert not Path("out.onnx").exists()


def test_pairs_of_onnxruntimes_own_domain_are_pairs_too() -> None:
    run()
    proto = onnx.load("out.onnx")
    for node in proto.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            node.domain = "com.microsoft"
    proto.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    onnx.save(proto, "once.onnx")
    Path("out.onnx").unlink()
    assert "holds QuantizeLinear or DequantizeLinear already" in run(net="once.onnx", code=3)


def test_where_an_operator_is_unknown_the_library_that_is_missing_is_asked_for() -> None:
    proto = onnx.load(shlex.split(NET)[0])
    next(node for node in proto.graph.node if node.op_type == "Relu").domain = "my.own"
    proto.opset_import.append(onnx.helper.make_opsetid("my.own", 1))
    onnx.save(proto, "foreign.onnx")
    said = run(rest=f"--calibration {DATA} --samples 24 -q", net="foreign.onnx", code=3)
    assert "insert-qdq failed: " in said
    assert "it uses operators of my.own: is a --custom-op-lib missing?" in said
    assert not Path("out.onnx").exists()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_samples_that_hold_no_numbers_are_named_with_file_and_place(bad: float) -> None:
    images = np.load(ZOO / "digits_calibration.npz")
    name = next(k for k in images.files if k not in ("labels", "preprocess"))
    spoiled = images[name][:8].astype(np.float32).transpose(0, 3, 1, 2).copy()
    spoiled[5].flat[0] = bad
    np.savez("bad.npz", **{name: spoiled})
    said = run(rest="--calibration bad.npz", code=2)
    assert "bad.npz" in said
    assert "sample 5" in said


def test_excluding_everything_changes_nothing() -> None:
    assert "no pass changed the model" in run(rest=f"--calibration {DATA} --samples 8 --exclude '*'", code=3)


def test_noise_is_accepted_where_it_is_asked_for_and_told() -> None:
    run(rest="--calibration random:16 --report r.json")
    report = json.loads(Path("r.json").read_text())
    assert any("random" in json.dumps(fact) for fact in report["data"]) or "random" in json.dumps(
        report["notes"]
    )
