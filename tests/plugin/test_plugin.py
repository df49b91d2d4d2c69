"""A real package of somebody else: installed, found by entry point, listed, configured, run, verified."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import onnxcomp
from tests.support.fakes import write_classifier

PACKAGE = Path(__file__).parent / "package"
NEGATIONS = """<ir_version: 8, opset_import: ["" : 17]> net (float[N, 4] x) => (float[N, 4] y)
{ a = Neg (x)  b = Neg (a)  c = Relu (b)  d = Neg (c)  e = Neg (d)  y = Relu (e) }"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which pip has installed the package."""
    if find_spec("pip") is None:
        pytest.skip("installing a package needs pip")
    folder = tmp_path_factory.mktemp("plugin")
    source = shutil.copytree(PACKAGE, folder / "source")
    words = f"-m pip install --quiet --no-deps --no-index --target {folder / 'site'}"
    subprocess.run([sys.executable, *words.split(), str(source)], check=True, capture_output=True)
    return folder / "site"


def command(installed: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command line with the package on the path."""
    path = os.pathsep.join([str(installed), str(Path(onnxcomp.__file__).parents[1])])
    return subprocess.run(
        [sys.executable, "-m", "onnxcomp", *words],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_its_passes_are_listed_with_their_package_and_a_broken_one_as_broken(installed: Path) -> None:
    done = command(installed, "passes", "--json")
    assert done.returncode == 0, done.stderr
    listed = {p["name"]: p for p in json.loads(done.stdout)["passes"]}
    ours = listed["cancel-negations"]
    assert (ours["owner"], ours["exact"], ours["broken"]) == ("sign-passes 0.3", True, None)
    assert ours["summary"] == "Remove two negations in a row."
    assert ours["options"][0]["default"] == "100"
    assert "No module named 'sign_passes.missing'" in listed["broken-pass"]["broken"]
    assert listed["remove-dead"]["broken"] is None


def test_its_pass_runs_in_a_pipeline_with_ours(installed: Path, tmp_path: Path) -> None:
    source = write_classifier(tmp_path, text=NEGATIONS)
    out, report = tmp_path / "out.onnx", tmp_path / "run.json"
    text = "cancel-negations{most=1},remove-dead"
    done = command(installed, "optimize", source, "-o", out, "--passes", text, "--report", report)
    assert done.returncode == 0, done.stderr
    assert [n.op for n in onnxcomp.load(out).graph.nodes] == ["Relu", "Neg", "Neg", "Relu"]
    runs = json.loads(report.read_text())["runs"]
    assert [r["status"] for r in runs] == ["changed", "changed"]
    assert runs[0]["changes"][0]["what"].startswith("cancels out with")
    assert onnxcomp.load(out).metadata["onnxcomp.pipeline"] == text


def test_a_broken_one_is_refused_by_the_name_of_its_package(installed: Path, tmp_path: Path) -> None:
    source = write_classifier(tmp_path)
    done = command(installed, "optimize", source, "-o", tmp_path / "out.onnx", "--passes", "broken-pass")
    assert done.returncode == 2
    assert done.stderr.startswith(
        "onnxcomp: pass 'broken-pass' of sign-passes 0.3 is broken: ModuleNotFoundError"
    )


def test_without_the_package_its_pass_is_unknown() -> None:
    with pytest.raises(onnxcomp.errors.UsageError, match="unknown pass 'cancel-negations'"):
        onnxcomp.Pipeline.parse("cancel-negations")
