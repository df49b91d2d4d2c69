"""The benchmark times what it says it times: the original, the folded, the pruned and the peer's network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import onnxcomp
from onnxcomp.analysis.cost import model_cost
from onnxcomp.ir.model import Model
from onnxcomp.runtime.bench import Benchmark, Latency
from tools.bench import latency as bench_latency
from tools.bench.latency import TARGET, Row, Timing, candidates, peer

ZOO = Path(__file__).parents[3] / "models"


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder built like `../shared`, with digits nets in the place of the ResNets."""
    for folder in ("models", "data"):
        (tmp_path / folder).mkdir()
    for digits, cifar in (
        ("digits_mlp", "cifar10_resnet20_bn"),
        ("digits_resnet", "cifar10_resnet56_bn"),
    ):
        shutil.copy(ZOO / f"{digits}.onnx", tmp_path / "models" / f"{cifar}.onnx")
    for role in ("calibration", "evaluation"):
        shutil.copy(ZOO / f"digits_{role}.npz", tmp_path / "data" / f"cifar10_{role}.npz")
    return tmp_path


@pytest.fixture
def no_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_latency, "find_spec", lambda name: None)


def latency(name: str, batch: int, ratio: float) -> Latency:
    return Latency(name, batch, 1, 1.0, 1.0, 1.0, None, ratio, 1.0, 1.0, None)


def row(*latencies: Latency) -> Row:
    return Row("net", (), Benchmark(latencies, 1, 1, 1, 1), ())


@pytest.mark.usefixtures("no_peer")
def test_pruned_candidates_keep_half_of_the_macs_and_multiples_of_align(shared: Path) -> None:
    plan = Timing(shared, align=(1, 8), samples=8, quick=True, threads=1)
    found, notes = candidates(shared / "models" / "cifar10_resnet56_bn.onnx", plan)
    assert [one.name for one in found] == ["original", "folded", "align=1", "align=8"]
    assert notes == ["onnxsim: not installed"]
    original, folded, *pruned = found
    assert original.cost.macs is not None
    assert folded.cost.macs == original.cost.macs
    assert "BatchNormalization" in {node.op for node in original.model.graph.nodes}
    assert "BatchNormalization" not in {node.op for node in folded.model.graph.nodes}
    for one in pruned:
        assert one.cost.macs is not None and one.cost.macs <= 0.5 * original.cost.macs
        assert one.accuracy is not None
    widths = _widths(pruned[1].model)
    assert len(widths) > 10
    assert all(width % 8 == 0 for width in widths)
    assert not all(width % 8 == 0 for width in _widths(pruned[0].model))


def _widths(model: Model) -> list[int]:
    """Return the number of filters of every convolution."""
    weights = model.graph.constants
    return [len(weights[node.inputs[1].name].values) for node in model.graph.nodes if node.op == "Conv"]


@pytest.mark.usefixtures("no_peer")
def test_a_budget_that_align_puts_out_of_reach_is_measured_as_far_as_it_goes(shared: Path) -> None:
    plan = Timing(shared, align=(64,), samples=8, quick=True, threads=1)
    found, notes = candidates(shared / "models" / "cifar10_resnet56_bn.onnx", plan)
    assert found[-1].name == "align=64"
    assert notes[0].startswith("align=64: macs=0.5 cannot be reached")


def test_the_peer_removes_channels_of_a_folded_network(shared: Path) -> None:
    pytest.importorskip("onnxsim", reason="the peer onnxsim is not installed")
    folded = onnxcomp.optimize(shared / "models" / "cifar10_resnet20_bn.onnx", threads=1).model
    before = model_cost(folded, None)
    after = model_cost(peer(folded), None)
    assert after.parameters < 0.7 * before.parameters
    assert model_cost(folded, None) == before, "the given model is as it was"


def test_the_target_holds_for_the_pruned_network_at_every_batch_size() -> None:
    fast, slow = TARGET - 0.01, TARGET + 0.01
    assert row(latency("align=1", 1, fast), latency("align=1", 32, fast), latency("folded", 1, slow)).met
    assert row(latency("align=1", 1, fast), latency("align=1", 32, slow)).met is False
    assert row(latency("align=8", 1, fast)).met is None


@pytest.mark.usefixtures("no_peer")
def test_table_and_document_hold_every_candidate_at_every_batch_size(
    shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = shared / "latency.json"
    words = "--rows resnet20 --align 1,16 --batches 1,4 --samples 16 --quick --rounds 2 --repeats 2 --shared"
    code = bench_latency.main([*words.split(), str(shared), "--json", str(file)])
    shown = capsys.readouterr().out
    assert "resnet20: latency, one thread" in shown
    assert shown.count("align=16") == 2
    assert "onnxsim: not installed" in shown
    document = json.loads(file.read_text())
    (found,) = document["rows"]
    assert document["quick"] is True
    assert code == int(not found["met"])
    assert [(one["name"], one["batch"], one["runs"]) for one in found["latencies"]] == [
        (name, batch, 4) for batch in (1, 4) for name in ("original", "folded", "align=1", "align=16")
    ]
    assert found["candidates"][0]["macs_share"] == 1
    assert 0.4 < found["candidates"][2]["macs_share"] <= 0.5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rows", "vgg9"], "there is no row 'vgg9'; rows are resnet20, resnet56"),
        (["--shared", "nowhere"], "cifar10_resnet20_bn.onnx does not exist; say with --shared"),
    ],
)
def test_a_wrong_call_ends_before_anything_runs(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        bench_latency.main(words)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
