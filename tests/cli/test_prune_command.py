"""prune-filters from the command line, over a shipped net and its data."""

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

from onnxcomp.cli.main import cli
from onnxcomp.runtime.session import SessionError
from tests.support.pruning import ZOO

DATA = f"--calibration {shlex.quote(str(ZOO / 'digits_calibration.npz'))} --samples 128"
JUDGED = f"--evaluation {shlex.quote(str(ZOO / 'digits_evaluation.npz'))}"
PIPELINE = "fold-constants,fold-batchnorm,remove-dead,prune-filters"
NET = shlex.quote(str(ZOO / "digits_resnet.onnx"))


def run(words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, shlex.split(words))
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def optimize(options: str, rest: str = "", code: int = 0, data: str = DATA) -> Result:
    """Prune the residual net into out.onnx on one thread."""
    step = f"{PIPELINE}{{{options}}}"
    return run(f"optimize {NET} -o out.onnx --passes '{step}' --threads 1 {data} {rest}", code)


def files() -> set[str]:
    return {path.name for path in Path().iterdir()}


def report() -> Any:
    return json.loads(Path("run.json").read_text())


@pytest.mark.parametrize("scope", ["uniform", pytest.param("global", marks=pytest.mark.slow)])
def test_half_of_the_work_goes_and_the_accuracy_stays(scope: str) -> None:
    result = optimize(f"macs=0.5 scope={scope}", f"{JUDGED} --report run.json --max-drop 2")
    assert files() == {"out.onnx", "run.json"}
    found = report()
    assert found["status"] == "done"
    assert 0.49 * found["before"]["macs"] <= found["after"]["macs"] <= 0.5 * found["before"]["macs"]
    assert found["after"]["parameters"] < found["before"]["parameters"]
    assert Path("out.onnx").stat().st_size < (ZOO / "digits_resnet.onnx").stat().st_size
    (last,) = (r for r in found["runs"] if r["name"] == "prune-filters")
    assert last["status"] == "changed"
    assert last["shortfall"] is None
    assert all("channels" in change["what"] for change in last["changes"])
    assert any("nodes refitted in order; largest relative errors:" in note for note in last["notes"])
    assert "top1" in result.stdout
    made = onnx.load("out.onnx")
    onnx.checker.check_model(made, full_check=True)
    assert {p.key: p.value for p in made.metadata_props}["onnxcomp.pipeline"].startswith("fold-constants")


def test_two_runs_write_the_same_bytes() -> None:
    written = []
    for _ in range(2):
        optimize("macs=0.6 scope=uniform joint=1", "--force --seed 5")
        written.append(Path("out.onnx").read_bytes())
    assert written[0] == written[1]


def test_a_budget_beyond_reach_ends_with_4_and_keeps_the_best_effort() -> None:
    result = optimize("macs=0.5 max-ratio=0.1", "--report run.json", 4)
    assert files() == {"out.best.onnx", "run.json"}
    assert "prune-filters: macs=0.5 cannot be reached; 0." in result.stderr
    assert "the best model reached is out.best.onnx" in result.stderr
    found = report()
    assert found["status"] == "budget-not-met"
    assert found["after"]["macs"] < found["before"]["macs"]
    onnx.checker.check_model(onnx.load("out.best.onnx"), full_check=True)


def test_a_drop_beyond_the_bound_ends_with_4_and_keeps_the_best_effort() -> None:
    result = optimize("macs=0.5 scope=uniform criterion=l1 repair=none", f"{JUDGED} --max-drop 1", 4)
    assert files() == {"out.best.onnx"}
    assert "--max-drop 1: " in result.stderr


def test_a_dry_run_writes_nothing() -> None:
    result = optimize("macs=0.5", "--dry-run")
    assert files() == set()
    assert "prune-filters" in result.output


@pytest.mark.parametrize(
    ("options", "data", "code", "message"),
    [
        ("macs=0.5", "", 2, "prune-filters needs samples; give --calibration"),
        ("", DATA, 2, "prune-filters: give one of ratio, macs, params and latency; none of them is given"),
        ("macs=0.5 ratio=0.5", DATA, 2, "ratio and macs"),
        ("macs=1.5", DATA, 2, "macs=1.5 is out of range; 0 <= macs <= 1"),
        ("marcs=0.5", DATA, 2, "did you mean 'macs'?"),
        ("macs=0.5 criterion=obb", DATA, 2, "obs"),
        ("macs=0.5", f"{DATA} --exclude 'op:Convv'", 2, "--exclude 'op:Convv' matches no node"),
    ],
)
def test_wrong_words_end_with_one_clear_line(options: str, data: str, code: int, message: str) -> None:
    result = optimize(options, "-q", code, data)
    assert message in result.stderr
    assert files() == set()


def test_a_ratio_of_nothing_changes_nothing() -> None:
    words = f"optimize {NET} -o out.onnx --passes 'prune-filters{{ratio=0.0}}' {DATA} -q"
    assert "no pass changed the model" in run(words, 3).stderr
    assert files() == set()


def test_norms_without_repair_need_no_samples() -> None:
    options = "params=0.5 scope=uniform criterion=l2 repair=none"
    optimize(options, "--report run.json", data="--calibration none")
    found = report()
    assert found["after"]["parameters"] <= 0.5 * found["before"]["parameters"]


def test_excluded_nodes_come_out_as_they_went_in() -> None:
    name = "/stage2_block1/conv1/Conv"
    step = "prune-filters{ratio=0.5}"
    run(f"optimize {NET} -o out.onnx --passes '{step}' --threads 1 {DATA} --exclude '{name}'")
    arrays = []
    for path in (ZOO / "digits_resnet.onnx", Path("out.onnx")):
        proto = onnx.load(path)
        (node,) = (n for n in proto.graph.node if n.name == name)
        stored = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
        arrays.append(stored[node.input[1]])
    np.testing.assert_array_equal(arrays[0], arrays[1])


def test_a_weight_that_is_no_number_is_named() -> None:
    proto = onnx.load(ZOO / "digits_resnet.onnx")
    first = proto.graph.initializer[0]
    spoilt = numpy_helper.to_array(first).copy()
    spoilt.reshape(-1)[0] = np.nan
    first.CopyFrom(numpy_helper.from_array(spoilt, first.name))
    onnx.save(proto, "bad.onnx")
    result = run(f"optimize bad.onnx -o out.onnx --passes 'prune-filters{{macs=0.5}}' {DATA} -q", 2)
    assert f"the initializer '{first.name}' holds NaN" in result.stderr
    assert files() == {"bad.onnx"}


def test_not_even_force_writes_over_what_the_run_reads() -> None:
    data = Path("mine.npz")
    data.write_bytes((ZOO / "digits_calibration.npz").read_bytes())
    before = data.read_bytes()
    words = f"optimize {NET} -o mine.npz --passes 'prune-filters{{macs=0.5}}' --calibration mine.npz --force"
    assert "mine.npz" in run(words, 2).output
    assert data.read_bytes() == before


def test_a_budget_whose_pass_failed_is_not_met(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise SessionError("it does not run")

    monkeypatch.setattr("onnxcomp.passes.prune_filters.PruneFilters.run", fail)
    assert "so its budget is not met: it does not run" in optimize("macs=0.5", code=4).output
    assert not Path("out.onnx").exists()
