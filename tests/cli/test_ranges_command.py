"""`--ranges`: ranges of values that are known are taken and not observed."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from onnxcomp.cli.main import cli
from onnxcomp.ir.files import load
from tests.support.pruning import ZOO

NET = shlex.quote(str(ZOO / "digits_mlp.onnx"))
CONVOLUTIONS = shlex.quote(str(ZOO / "digits_resnet.onnx"))
DATA = shlex.quote(str(ZOO / "digits_calibration.npz"))


def optimize(out: str, rest: str = "", options: str = "", code: int = 0, net: str = NET) -> str:
    steps = f"fold-batchnorm,insert-qdq{{rounding=nearest bias-correction=false {options}}}"
    words = (
        f"optimize {net} -o {out}.onnx --passes '{steps}' --calibration {DATA} --samples 24 --threads 1 "
        f"--report {out}.json {rest}"
    )
    result = CliRunner().invoke(cli, shlex.split(words))
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


def ranges(name: str) -> dict[str, list[float]]:
    document = json.loads(Path(f"{name}.json").read_text())
    changes = [change for run in document["runs"] for change in run["changes"]]
    found: dict[str, list[float]] = next(
        change["details"]["ranges"] for change in changes if "ranges" in change["details"]
    )
    return found


def write(document: Any, name: str = "given.json") -> None:
    Path(name).write_text(json.dumps(document))


@pytest.mark.parametrize("options", ["", "activations=int8-symmetric", "activations=int8", "scale=pow2"])
def test_a_run_that_takes_the_ranges_of_another_observes_nothing_and_writes_the_same_bytes(
    options: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimize("first", "--calibration random:9", f"edges=integers {options}", net=CONVOLUTIONS)

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("nothing is to be observed")

    monkeypatch.setattr("onnxcomp.compiler.quantization.quantizer.observe_values", refuse)
    monkeypatch.setattr("onnxcomp.compiler.quantization.quantizer.value_sensitivity", refuse)
    optimize("second", "--ranges first.json", f"edges=integers {options}", net=CONVOLUTIONS)
    assert ranges("second") == ranges("first")
    first, second = (load(Path(f"{name}.onnx")) for name in ("first", "second"))
    assert first.graph.constants.keys() == second.graph.constants.keys()
    for name, constant in first.graph.constants.items():
        assert (constant.values == second.graph.constants[name].values).all(), name


def test_one_given_range_is_taken_and_the_others_are_observed() -> None:
    # With effects on the outputs, streams of additions that share a scale would follow.
    optimize("first", options="observer=mse", net=CONVOLUTIONS)
    before = ranges("first")
    name = list(before)[3]
    write({"schema_version": 1, "ranges": {name: [0, 300]}})
    optimize("second", "--ranges given.json", "observer=mse", net=CONVOLUTIONS)
    after = ranges("second")
    assert after[name] == pytest.approx([0, 300], rel=1e-6)
    for key, ends in before.items():
        # The network is run for other values now, which moves the last digits.
        assert key == name or after[key] == pytest.approx(ends, rel=1e-5, abs=1e-5), key


def test_a_config_file_names_ranges_from_its_own_folder() -> None:
    optimize("first")
    Path("inner").mkdir()
    Path("inner/c.toml").write_text('ranges = "../first.json"\n')
    optimize("second", "--config inner/c.toml")
    assert ranges("second") == ranges("first")


def test_a_name_that_no_value_bears_is_refused_with_the_nearest() -> None:
    optimize("first")
    name = next(name for name in ranges("first") if len(name) > 6)
    write({"schema_version": 1, "ranges": {name + "x": [0, 1]}})
    assert f"no value is called '{name}x'" in optimize("second", "--ranges given.json", code=2)
    assert f"did you mean '{name}'?" in optimize("second", "--ranges given.json", code=2)
    assert not Path("second.onnx").exists()


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"schema_version": 1, "ranges": {}}, "holds no ranges; give the report"),
        ({"schema_version": 1, "runs": [{"changes": [{"details": {}}]}]}, "holds no ranges; give the report"),
        ({"schema_version": 7, "ranges": {"a": [0, 1]}}, "schema version 7 is not known here"),
        ([1], "it is no report"),
        ({"schema_version": 1, "ranges": {"a": [0]}}, "'a' is [0]; give two finite numbers [LOW, HIGH]"),
        ({"schema_version": 1, "ranges": {"a": [0, True]}}, "give two finite numbers"),
        ({"schema_version": 1, "ranges": {"a": [0, float("inf")]}}, "give two finite numbers"),
        ({"schema_version": 1, "ranges": {"a": [2, 1]}}, "'a' reaches down from 2 to 1; swap them"),
    ],
)
def test_files_that_hold_no_ranges_are_refused(document: Any, message: str) -> None:
    write(document)
    assert message in optimize("out", "--ranges given.json", code=2)


def test_ranges_without_a_pass_that_takes_them_are_refused() -> None:
    write({"schema_version": 1, "ranges": {"a": [0, 1]}})
    result = CliRunner().invoke(
        cli, shlex.split(f"optimize {NET} -o out.onnx --passes remove-dead --ranges given.json")
    )
    assert result.exit_code == 2, result.output
    assert "--ranges is for insert-qdq; add it to the passes, or leave --ranges out" in result.output


def test_files_that_cannot_be_read_are_refused_and_none_is_written_over() -> None:
    assert "none.json: No such file or directory; give a readable file" in optimize(
        "out", "--ranges none.json", code=2
    )
    Path("bad.json").write_text("{")
    assert "bad.json is no JSON; give the report" in optimize("out", "--ranges bad.json", code=2)
    write({"schema_version": 1, "ranges": {"a": [0, 1]}}, "out.json")
    assert "read from it" in optimize("out", "--ranges out.json --force", code=2)
