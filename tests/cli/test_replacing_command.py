"""split-svd and substitute-depthwise from the command line, over shipped nets and their data."""

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
from onnxcomp.ir.files import save
from onnxcomp.ir.parse import parse_model
from onnxcomp.ir.proto import to_proto
from tests.support.pruning import ZOO
from tests.support.replacing import Clock
from tests.support.text import net

DATA = f"--calibration {shlex.quote(str(ZOO / 'digits_calibration.npz'))} --samples 64"
JUDGED = f"--evaluation {shlex.quote(str(ZOO / 'digits_evaluation.npz'))}"


def shipped(name: str) -> str:
    return shlex.quote(str(ZOO / f"{name}.onnx"))


def optimize(
    steps: str, rest: str = "", code: int = 0, *, model: str = "", data: str = DATA, out: str = "out.onnx"
) -> Result:
    """Run `steps` on one thread and expect `code`."""
    words = f"optimize {model or shipped('digits_mlp')} -o {out} --passes '{steps}' --threads 1 {data} {rest}"
    result = CliRunner().invoke(cli, shlex.split(words))
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def files() -> set[str]:
    return {path.name for path in Path().iterdir()}


def report(name: str = "run.json") -> Any:
    return json.loads(Path(name).read_text())


def arrays(path: Path | str, node: str) -> list[Any]:
    proto = onnx.load(path)
    (found,) = (n for n in proto.graph.node if n.name == node)
    stored = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    return [stored[name] for name in found.input if name in stored]


# --- what comes out --------------------------------------------------------------------------------------------------
def test_a_split_network_has_less_work_and_the_report_says_what_became_of_every_layer() -> None:
    result = optimize("split-svd{macs=0.5}", f"{JUDGED} --report run.json --max-drop 3")
    assert files() == {"out.onnx", "run.json"}
    found = report()
    assert 0.49 * found["before"]["macs"] <= found["after"]["macs"] <= 0.5 * found["before"]["macs"]
    assert Path("out.onnx").stat().st_size < (ZOO / "digits_mlp.onnx").stat().st_size
    (run,) = found["runs"]
    assert run["status"] == "changed"
    told = {c["where"] for c in run["changes"]} | {s["where"] for s in run["skips"]}
    assert told == {"/layer1/Gemm", "/layer2/Gemm", "/layer3/Gemm"}
    for change in run["changes"]:
        details = change["details"]
        assert details["form"] == "channel"
        assert details["macs_after"] < details["macs_before"]
        assert 0 <= details["error"] < 1
        assert len(details["ranks"]) == 1
    assert all("predicted divergence" in s["reason"] for s in run["skips"])
    assert "top1" in result.stdout
    made = onnx.load("out.onnx")
    onnx.checker.check_model(made, full_check=True)
    assert {p.key: p.value for p in made.metadata_props}["onnxcomp.pipeline"] == "split-svd{macs=0.5}"


def test_two_runs_write_the_same_bytes() -> None:
    written = []
    for _ in range(2):
        optimize("split-svd{params=0.4}", "--force --seed 5")
        written.append(Path("out.onnx").read_bytes())
    assert written[0] == written[1]


def test_excluded_nodes_come_out_as_they_went_in() -> None:
    optimize("split-svd{rank=6}", "--exclude '/layer2/*' --report run.json")
    before, after = (arrays(path, "/layer2/Gemm") for path in (ZOO / "digits_mlp.onnx", "out.onnx"))
    for was, now in zip(before, after, strict=True):
        np.testing.assert_array_equal(was, now)
    (run,) = report()["runs"]
    assert {"where": "/layer2/Gemm", "reason": "it is excluded"} in run["skips"]
    assert "/layer1/Gemm" in {c["where"] for c in run["changes"]}


# --- without samples -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("steps", "data", "code", "message"),
    [
        ("split-svd{macs=0.5}", "", 2, "split-svd needs samples; give --calibration"),
        ("substitute-depthwise{macs=0.5}", "", 2, "substitute-depthwise needs samples; give --calibration"),
        ("split-svd", DATA, 2, "none of them is given"),
        ("split-svd{macs=0.5 rank=2}", DATA, 2, "macs and rank are given"),
        ("split-svd{macs=2}", DATA, 2, "macs=2 is out of range; 0 <= macs <= 1"),
        ("split-svd{macs=0}", DATA, 2, "macs=0 leaves nothing"),
        ("split-svd{macs=nan}", DATA, 2, "macs="),
        ("split-svd{rank=0}", DATA, 2, "rank=0 is out of range; it is at least 1"),
        ("split-svd{rank=half}", DATA, 2, "rank"),
        ("split-svd{macs=0.5 method=spacial}", DATA, 2, "spatial"),
        ("split-svd{marcs=0.5}", DATA, 2, "did you mean 'macs'?"),
        ("substitute-depthwise{multiplier=0}", DATA, 2, "multiplier=0 is out of range"),
        ("substitute-depthwise{macs=0.5 order=depth}", DATA, 2, "depthwise"),
        ("split-svd{macs=0.5}", f"{DATA} --exclude 'op:Gem'", 2, "--exclude 'op:Gem' matches no node"),
        ("substitute-depthwise{multiplier=1}", DATA, 3, "no pass changed the model"),
        ("split-svd{rank=400}", DATA, 3, "no pass changed the model"),
    ],
)
def test_wrong_words_end_with_one_clear_line(steps: str, data: str, code: int, message: str) -> None:
    result = optimize(steps, "-q", code, data=data)
    assert message in " ".join(result.stderr.split())
    assert files() == set()


def test_the_advice_without_samples_names_what_would_do_without() -> None:
    assert "repair=none" in " ".join(optimize("split-svd{macs=0.5}", "", 2, data="").stderr.split())


@pytest.mark.parametrize("mode", ["none", "random"])
def test_samples_that_are_made_up_are_said_so_in_the_report(mode: str) -> None:
    data = f"--calibration {mode}" + (" --samples 32" if mode == "random" else "")
    optimize("split-svd{macs=0.5}", "--report run.json", data=data)
    found = report()
    assert found["after"]["macs"] <= 0.5 * found["before"]["macs"]
    text = json.dumps(found).lower()
    assert {"none": "made from", "random": "random"}[mode] in text
    stored = {p.key: p.value for p in onnx.load("out.onnx").metadata_props}
    assert any(mode in value for value in stored.values())


def test_weights_alone_need_no_samples_and_the_report_is_loud_about_it() -> None:
    optimize("split-svd{macs=0.5 repair=none}", "--report run.json", data="--calibration none")
    (run,) = report()["runs"]
    assert any(
        note.startswith("no repair: weights were split by singular values alone") for note in run["notes"]
    )


def test_networks_that_read_integers_are_told_what_to_do_without_samples() -> None:
    text = net(
        "(int64[N,6] ids) => (float[N,6,10] y)",
        "float[50,16] e, float[16,10] w",
        "h = Gather(e, ids) y = MatMul(h, w)",
    )
    save(parse_model(text), Path("ids.onnx"))
    said = optimize("split-svd{rank=2}", "", 2, model="ids.onnx", data="--calibration none").stderr
    assert "input 'ids' takes int64 [N, 6], and only samples of floating-point numbers can be made" in said
    assert "give --calibration samples" in said
    optimize("split-svd{rank=2 repair=none}", "", model="ids.onnx", data="--calibration none")


# --- budgets that are not met ----------------------------------------------------------------------------------------
def test_a_budget_beyond_reach_ends_with_4_and_keeps_the_best_effort() -> None:
    result = optimize(
        "substitute-depthwise{macs=0.5 repair=none}",
        "--report run.json",
        4,
        model=shipped("digits_mobilenet"),
    )
    assert files() == {"out.best.onnx", "run.json"}
    assert "substitute-depthwise: macs=0.5 cannot be reached; 0.98" in " ".join(result.stderr.split())
    assert report()["status"] == "budget-not-met"
    onnx.checker.check_model(onnx.load("out.best.onnx"), full_check=True)


def test_a_budget_of_time_beyond_reach_ends_with_4(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("onnxcomp.compiler.factorization.timing.clock", clock)
    monkeypatch.setattr("onnxcomp.compiler.cost.budget.measured_ratio", lambda *_: 0.97)
    result = optimize("split-svd{latency=0.5 repair=none}", "", 4)
    assert files() == {"out.best.onnx"}
    assert "latency=0.5 cannot be reached; 0.97" in " ".join(result.stderr.split())


def test_a_run_that_replays_times_needs_no_clock_and_writes_the_same_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr("onnxcomp.compiler.factorization.timing.clock", clock)
    steps = "split-svd{macs=0.6 accept=latency repair=none}"
    optimize(steps, "--report first.json", out="first.onnx")
    assert any(key.startswith("channel ") for key in report("first.json")["timings"])
    (run,) = report("first.json")["runs"]
    assert all(0 < change["details"]["time"] < 1 for change in run["changes"])
    clock.stopped = True
    optimize(steps, "--timings first.json --strict", out="second.onnx")
    assert Path("first.onnx").read_bytes() == Path("second.onnx").read_bytes()


# --- with others -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "steps",
    [
        "split-svd{macs=0.8 method=channel},prune-filters{macs=0.6 scope=uniform criterion=l1}",
        "prune-filters{macs=0.8 scope=uniform criterion=l1},split-svd{macs=0.6 method=channel}",
        "substitute-depthwise{macs=0.7 order=depthwise},split-svd{macs=0.6 method=channel}",
    ],
)
@pytest.mark.parametrize("name", ["digits_vgg", pytest.param("digits_resnet", marks=pytest.mark.slow)])
def test_pipelines_are_verified_and_their_budgets_are_shares_of_the_file_given(name: str, steps: str) -> None:
    few = DATA.replace("64", "32")
    rest = f"{JUDGED} --report run.json"
    optimize(f"{steps},insert-qdq{{bias-correction=false}}", rest, model=shipped(name), data=few)
    found = report()
    assert [run["status"] for run in found["runs"]] == ["changed"] * 3
    assert 0.58 * found["before"]["macs"] <= found["after"]["macs"] <= 0.6 * found["before"]["macs"]
    made = onnx.load("out.onnx")
    onnx.checker.check_model(made, full_check=True)
    assert "QuantizeLinear" in {node.op_type for node in made.graph.node}


def test_data_beside_the_file_is_read_and_the_result_stands_alone() -> None:
    proto = to_proto(
        parse_model(net("(float[N,40] x) => (float[N,30] y)", "float[40,30] w", "y = MatMul(x, w)"))
    )
    onnx.save(proto, "outside.onnx", save_as_external_data=True, location="outside.data", size_threshold=0)
    rng = np.random.default_rng(0)
    np.savez("data.npz", x=rng.standard_normal((64, 40)).astype(np.float32))
    optimize("split-svd{rank=5}", model="outside.onnx", data="--calibration data.npz --accept-ruin")
    made = onnx.load("out.onnx", load_external_data=False)
    assert [len(node.input) for node in made.graph.node] == [2, 2]
    assert "out.onnx" in files()
    onnx.checker.check_model("out.onnx", full_check=True)
