"""The report tells what onnxruntime computes in integers, and names what it does not."""

from __future__ import annotations

from onnxcomp.compiler.passbase import Context, PassLog
from onnxcomp.compiler.quantization.fusion_report import tell_fusion
from onnxcomp.compiler.target.files import load_target
from tests.support.quantizing import SMALL, filled, quantized


def told(target: str, **options: object) -> PassLog:
    model = filled(SMALL)
    result = quantized(model, **options)  # type: ignore[arg-type]
    log = PassLog()
    log.change("graph", "quantized")
    tell_fusion(result.model, Context(original=model, target=load_target(target)), log)
    return log


def test_a_network_all_in_integers_is_counted() -> None:
    log = told("ort-cpu", edges="integers")
    assert any("none of these between integers" in note for note in log.notes)
    details = log.changes[-1].details
    assert details["fused"] >= 4 and details["unfused"] == [] and details["islands"] == []


def test_what_stays_float_is_named_with_its_reason() -> None:
    log = told("ort-cpu", activations="uint16", edges="integers")
    assert {skip.where for skip in log.skips} >= {"h", "i"}
    assert all("in float" in skip.reason for skip in log.skips)


def test_one_node_is_one_node() -> None:
    note = next(n for n in told("ort-cpu", nodes=("op:Gemm",)).notes if n.startswith("onnxruntime runs"))
    assert note.startswith("onnxruntime runs 1 node in integers")


def test_nothing_is_said_of_other_runtimes() -> None:
    log = told("tensorrt", edges="integers")
    assert len(log.changes) == 1 and not log.notes and not log.skips
