"""The last line of `optimize` is the verdict; a ruined result is exit code 4."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from onnxcomp import passes
from onnxcomp.cli.main import cli
from tests.support.fakes import FAKES, write_classifier, write_data


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, target in FAKES.items():
        monkeypatch.setitem(passes.BUILTIN, name, target)
    write_classifier(tmp_path)
    write_data(tmp_path, samples=40)


def run(words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, shlex.split(words))
    assert result.exit_code == code, result.output
    return result


def files() -> set[str]:
    return {p.name for p in Path().iterdir()} - {"model.onnx", "data.npz"}


def test_a_ruined_result_is_exit_4_with_cures_and_the_verdict_in_the_last_line() -> None:
    words = "optimize model.onnx -o out.onnx --passes scale{by=-1} --calibration data.npz"
    result = run(words, 4)
    assert result.stdout.splitlines()[-1].startswith("ruined: ")
    assert "--accept-ruin" in result.stderr
    assert files() == {"out.best.onnx"}
    accepted = run(f"{words} --accept-ruin --force")
    assert accepted.stdout.splitlines()[-1].startswith("ruined: ")
    assert "out.onnx" in files()


def test_who_set_a_bound_that_holds_has_said_what_is_acceptable() -> None:
    run("optimize model.onnx -o out.onnx --passes scale{by=-1} --calibration data.npz --min-sqnr -20")


def test_noise_condemns_nothing_and_the_last_line_says_that_it_was_noise() -> None:
    result = run("optimize model.onnx -o out.onnx --passes scale{by=-1} --calibration random:8")
    assert result.stdout.splitlines()[-1].startswith("unjudged: ")
