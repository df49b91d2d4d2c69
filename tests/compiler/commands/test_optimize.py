"""A whole run: what is kept, what is rolled back, what is reported."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxcomp
from onnxcomp.compiler.passbase import Pass
from onnxcomp.errors import (
    BudgetError,
    DataError,
    PassError,
    PreconditionError,
    UsageError,
    VerificationError,
)
from onnxcomp.runtime.session import Session
from tests.support.fakes import (
    Breaker,
    FallShort,
    Grow,
    Needy,
    Nudge,
    Raiser,
    Scale,
    classifier,
    names_in,
    write_classifier,
    write_data,
)

EXACT = "fold-constants,fold-batchnorm,remove-dead"

pytestmark = pytest.mark.usefixtures("no_child_process")


def test_a_run_writes_a_smaller_model_that_computes_the_same(tmp_path: Path) -> None:
    source = write_classifier(tmp_path)
    result = onnxcomp.optimize(source, output=tmp_path / "small.onnx")
    assert names_in(tmp_path) == {"model.onnx", "small.onnx"}
    feeds = {"image": np.ones((2, 3, 4, 4), np.float32)}
    before, after = (Session(str(tmp_path / n)).run(feeds)["scores"] for n in ("model.onnx", "small.onnx"))
    np.testing.assert_allclose(before, after, rtol=1e-5)
    report = result.report
    assert report.status == "done"
    assert [r.status for r in report.runs] == ["unchanged", "unchanged", "changed"]
    assert (report.before.nodes, report.after.nodes) == (5, 4)
    assert report.before.macs == 6 * 16 * 27 + 96 * 5
    assert report.output is not None
    assert report.output.sha256 == hashlib.sha256((tmp_path / "small.onnx").read_bytes()).hexdigest()
    assert report.output.bytes == (tmp_path / "small.onnx").stat().st_size
    assert report.nodes["same"] is None


def test_the_model_of_the_caller_is_never_edited() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> net (float[N, 2] x) => (float[N, 2] y) { a = Identity (x)  y = Relu (a) }'
    )
    before = proto.SerializeToString(deterministic=True)
    onnxcomp.optimize(proto, EXACT)
    assert proto.SerializeToString(deterministic=True) == before
    model = classifier()
    onnxcomp.optimize(model, [Scale()])
    assert [n.op for n in model.graph.nodes] == ["Conv", "Identity", "Relu", "Flatten", "MatMul"]


@pytest.mark.parametrize("step", [Breaker("name"), Breaker("nan"), Breaker("runtime"), Nudge()])
def test_a_pass_that_breaks_the_model_is_rolled_back_and_the_run_goes_on(step: Pass) -> None:
    result = onnxcomp.optimize(classifier(), [step, *onnxcomp.Pipeline.parse("remove-dead").passes])
    first, second = result.report.runs
    assert (first.status, second.status) == ("rolled-back", "changed")
    assert first.reason
    assert first.changes == ()
    assert first.after == first.before
    assert [n.op for n in result.model.graph.nodes] == ["Conv", "Relu", "Flatten", "MatMul"]
    assert result.report.comparison is not None
    assert result.report.comparison.agreement == 100.0


def test_a_pass_that_fails_its_own_verification_is_recorded_as_failed() -> None:
    result = onnxcomp.optimize(classifier(), [Raiser("verification"), Scale()])
    assert [r.status for r in result.report.runs] == ["failed", "changed"]
    assert result.report.runs[0].reason == "the made-up check failed"


@pytest.mark.parametrize("step", [Breaker("name"), Raiser("verification")])
def test_strict_stops_at_the_first_pass_that_does_not_verify(step: Pass, tmp_path: Path) -> None:
    source = write_classifier(tmp_path)
    with pytest.raises(VerificationError, match=f"^{step.name}: .*; stopped because of --strict$"):
        onnxcomp.optimize(source, [step, Scale()], output=tmp_path / "out.onnx", strict=True)
    assert names_in(tmp_path) == {"model.onnx"}


def test_skips_and_changes_are_in_the_report() -> None:
    run = onnxcomp.optimize(classifier(), [Scale(by=2.0)]).report.runs[0]
    assert run.spec == "scale{by=2.0}"
    assert [(c.where, c.what) for c in run.changes] == [("conv", "times 2.0")]
    assert [(s.where, s.reason) for s in run.skips] == [("head", "one weight is enough")]


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        ("precondition", PreconditionError, "raise: this model has no wings"),
        ("data", DataError, "sample 3 holds NaN"),
    ],
)
def test_what_a_pass_refuses_on_purpose_ends_the_run(
    what: Any, error: type[Exception], message: str, tmp_path: Path
) -> None:
    source = write_classifier(tmp_path)
    with pytest.raises(error, match=message):
        onnxcomp.optimize(source, [Raiser(what)], output=tmp_path / "out.onnx")
    assert names_in(tmp_path) == {"model.onnx"}


@pytest.mark.parametrize(("what", "reason"), [("crash", "of all things"), ("nonsense", "returned NoneType")])
def test_an_unforeseen_failure_leaves_a_reproducer_beside_the_output(
    what: Any, reason: str, tmp_path: Path
) -> None:
    source = write_classifier(tmp_path)
    for count in ("out.crash", "out.crash-2"):
        with pytest.raises(PassError, match=reason) as caught:
            onnxcomp.optimize(source, [Scale(by=3.0), Raiser(what)], output=tmp_path / "out.onnx")
        assert caught.value.exit_code == 70
        assert count in str(caught.value)
        assert names_in(tmp_path / count) == {"model.onnx", "pipeline.txt", "versions.txt", "traceback.txt"}
    assert "out.onnx" not in names_in(tmp_path)
    folder = tmp_path / "out.crash"
    assert str(Raiser(what)) in (folder / "pipeline.txt").read_text().splitlines()
    assert "onnxruntime " in (folder / "versions.txt").read_text()
    assert "Traceback" in (folder / "traceback.txt").read_text()
    weight = onnxcomp.load(folder / "model.onnx").graph.constants["first"].values
    np.testing.assert_array_equal(weight, classifier().graph.constants["first"].values * np.float32(3.0))


def test_a_pass_that_falls_short_of_its_budget_keeps_the_best_model(tmp_path: Path) -> None:
    source = write_classifier(tmp_path)
    with pytest.raises(BudgetError, match="nothing more may go; the best model reached is") as caught:
        onnxcomp.optimize(source, [FallShort()], output=tmp_path / "out.onnx", reports=[tmp_path / "r.json"])
    assert names_in(tmp_path) == {"model.onnx", "out.best.onnx", "r.json"}
    written = json.loads((tmp_path / "r.json").read_text())
    assert written["status"] == "budget-not-met"
    assert written["runs"][0]["shortfall"].startswith("macs=0.5 cannot be reached")
    assert written["output"]["path"].endswith("out.best.onnx")
    result = caught.value.result
    assert isinstance(result, onnxcomp.api.Optimized)
    assert result.report.status == "budget-not-met"


def test_a_budget_that_nothing_was_done_for_leaves_a_copy_as_the_best_model(tmp_path: Path) -> None:
    source = write_classifier(tmp_path)
    with pytest.raises(BudgetError):
        onnxcomp.optimize(source, [FallShort(change=False)], output=tmp_path / "out.onnx")
    assert (tmp_path / "out.best.onnx").read_bytes() == source.read_bytes()


@pytest.mark.parametrize(
    ("options", "met"),
    [
        ({"max_drop": 100.0}, True),
        ({"max_drop": 0.0}, False),
        ({"min_sqnr": -20.0}, True),
        ({"min_sqnr": 60.0}, False),
        ({"max_drop": 100.0, "min_sqnr": 60.0}, False),
    ],
)
def test_bounds_on_the_distance_are_kept_or_the_run_ends_with_4(
    options: dict[str, Any], met: bool, tmp_path: Path
) -> None:
    source, data = write_classifier(tmp_path), write_data(tmp_path, samples=40)
    call = {"evaluation": str(data), "output": tmp_path / "out.onnx", **options}
    if met:
        report = onnxcomp.optimize(source, [Scale(by=-1.0)], **call).report
        assert all(c.met for c in report.conditions)
        assert "out.onnx" in names_in(tmp_path)
        return
    with pytest.raises(BudgetError, match="not met"):
        onnxcomp.optimize(source, [Scale(by=-1.0)], **call)
    assert "out.onnx" not in names_in(tmp_path)
    assert "out.best.onnx" in names_in(tmp_path)


def test_max_drop_counts_points_of_top1_where_there_are_labels(tmp_path: Path) -> None:
    data = write_data(tmp_path, samples=40, labels=True)
    report = onnxcomp.optimize(classifier(), [Scale(by=-1.0)], evaluation=str(data), max_drop=100).report
    assert report.metric == "top1"
    assert report.comparison is not None
    before, after = report.comparison.accuracy_before, report.comparison.accuracy_after
    assert before is not None
    assert after is not None
    assert report.conditions[0].value == pytest.approx(before - after)
    report = onnxcomp.optimize(
        classifier(), [Scale(by=-1.0)], evaluation=str(data), max_drop=100, metric="agreement"
    ).report
    assert report.comparison is not None
    assert report.comparison.agreement is not None
    assert report.conditions[0].value == pytest.approx(100 - report.comparison.agreement)


def test_without_evaluation_data_a_part_of_the_calibration_data_is_held_back(tmp_path: Path) -> None:
    data = write_data(tmp_path, samples=40)
    report = onnxcomp.optimize(classifier(), [Scale(), Needy()], calibration=str(data), max_drop=100).report
    assert [(d.role, d.samples) for d in report.data] == [("calibration", 32), ("held-back", 8)]
    assert report.compared_on == "held-back"
    assert report.comparison is not None
    assert report.comparison.samples == 8
    assert report.runs[1].notes[0].startswith("got 32 samples, real")


def test_a_file_that_must_be_smaller_and_is_not_is_kept_aside(tmp_path: Path) -> None:
    source = write_classifier(tmp_path)
    with pytest.raises(BudgetError, match="--require-smaller"):
        onnxcomp.optimize(source, [Grow()], output=tmp_path / "out.onnx", require_smaller=True)
    assert "out.best.onnx" in names_in(tmp_path)
    report = onnxcomp.optimize(source, [Grow()], output=tmp_path / "out.onnx").report
    assert report.output is not None
    assert report.input is not None
    assert report.output.bytes > report.input.bytes


def test_noise_in_place_of_data_is_stamped_into_file_and_report(tmp_path: Path) -> None:
    source = write_classifier(tmp_path)
    result = onnxcomp.optimize(
        source, [Needy(), Scale()], calibration="random:8", output=tmp_path / "out.onnx"
    )
    assert onnxcomp.load(tmp_path / "out.onnx").metadata["onnxcomp.calibration"] == "random"
    assert [(d.mode, d.source) for d in result.report.data] == [("random", "random:8")]
    assert "got 8 samples, random, {'image': (1, 3, 4, 4)}" in result.report.runs[0].notes


def test_a_model_that_does_not_run_here_is_checked_in_structure_only(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "my.own" : 1]>
    net (float[N, 4] x) => (float[N, 4] y) { a = Identity (x)  b = my.own.Magic <power = 3> (a)  y = Relu (b) }"""
    source = write_classifier(tmp_path, text=text)
    result = onnxcomp.optimize(source, "remove-dead", output=tmp_path / "out.onnx")
    assert result.report.verification == "structural"
    assert result.report.comparison is None
    assert any("my.own: is a --custom-op-lib missing?" in n for n in result.report.notes)
    kept = onnx.load(tmp_path / "out.onnx").graph.node
    assert [n.op_type for n in kept] == ["Magic", "Relu"]
    with pytest.raises(UsageError, match="a bound cannot be judged"):
        onnxcomp.optimize(source, "remove-dead", evaluation=str(_rows(tmp_path)), min_sqnr=1.0)


def _rows(folder: Path) -> Path:
    np.savez(folder / "rows.npz", x=np.ones((4, 4), np.float32))
    return folder / "rows.npz"


def test_sizes_can_be_fixed_in_the_file(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    net (float[N, 3, H, W] image, float[N, 1] bias) => (float[N, 2, H, W] y)
    <float[2, 3, 1, 1] w> { y = Conv (image, w) }"""
    source = write_classifier(tmp_path, text=text.replace(", float[N, 1] bias", ""))
    result = onnxcomp.optimize(
        source, "remove-dead", output=tmp_path / "out.onnx", set_shape={"image": [None, 3, 8, 6]}
    )
    info = onnx.load(tmp_path / "out.onnx").graph
    assert [d.dim_value or d.dim_param for d in info.input[0].type.tensor_type.shape.dim] == ["N", 3, 8, 6]
    assert result.report.before.macs == 2 * 3 * 8 * 6
    assert any("[N, 3, H, W] -> [N, 3, 8, 6]" in note for note in result.report.notes)


def test_opset_and_ir_version_can_be_chosen(tmp_path: Path) -> None:
    source = write_classifier(tmp_path)
    onnxcomp.optimize(source, [Scale()], output=tmp_path / "out.onnx", opset=18, ir_version=9)
    proto = onnx.load(tmp_path / "out.onnx")
    assert proto.opset_import[0].version == 18
    assert proto.ir_version == 9
    for options, message in (
        ({"opset": 12}, "--opset 12 is not between 13 and"),
        ({"opset": 999}, "--opset 999 is not between 13 and"),
        ({"ir_version": 3}, "--ir-version 3 is not between 4"),
        ({"ir_version": 99}, "--ir-version 99 is not between 4"),
    ):
        with pytest.raises(UsageError, match=message):
            onnxcomp.optimize(source, [Scale()], **options)  # type: ignore[arg-type]
