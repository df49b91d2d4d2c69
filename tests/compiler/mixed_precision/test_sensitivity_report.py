"""What does the harm: expected without running anything, ranked, told with the line that cures it."""

from __future__ import annotations

import shlex

import numpy as np
import pytest

import onnxcomp
from onnxcomp.compiler.evaluation.divergence import Reference
from onnxcomp.compiler.evaluation.trials import Judging, run_trials
from onnxcomp.compiler.mixed_precision.sensitivity_report import exclude_words, tell_harm
from onnxcomp.compiler.mixed_precision.site_trials import place_trial
from onnxcomp.compiler.mixed_precision.sites import Place, places
from onnxcomp.compiler.passbase import Context, PassLog
from onnxcomp.compiler.quantization.formats import formats
from onnxcomp.compiler.quantization.plan import QuantizationPlan, Settings
from onnxcomp.compiler.quantization.quantizer import plan
from onnxcomp.compiler.run.report import PassRun
from onnxcomp.compiler.target.files import load_target
from onnxcomp.ir.model import Model
from onnxcomp.runtime.session import Session
from tests.support.harmful import BAD, READER, detector, planted
from tests.support.pruning import ZOO, context_for, noise, zoo_context

CALIBRATION, EVALUATION = str(ZOO / "digits_calibration.npz"), str(ZOO / "digits_evaluation.npz")


def planned(model: Model, context: Context, granularity: str = "auto") -> QuantizationPlan:
    wanted = formats(context.target, {"granularity": granularity})
    found = plan(model.clone(), wanted, Settings(), context, PassLog())
    assert found is not None
    return found


def error_of(found: QuantizationPlan, place: Place, context: Context) -> float:
    """Return the share of the outputs' energy that the network with `place` alone in integers really disturbs."""
    samples = context.calibration
    assert samples is not None
    (feed,) = samples.batches(len(samples))
    before, after = (
        Session(m, threads=1).run(feed) for m in (found.model, place_trial(found, place).build())
    )
    gap = np.square(after["logits"] - before["logits"]).sum() / np.square(before["logits"]).sum()
    return float(gap)


@pytest.mark.parametrize("granularity", ["per-channel", "per-tensor"])
def test_what_is_expected_of_a_place_is_what_it_does_alone(granularity: str) -> None:
    """Within a factor of ten, where planting makes one of ten thousand."""
    model = planted(1.0)
    context = zoo_context(model)
    found = planned(model, context, granularity)
    known = places(found, context.target)
    compared = [(p, p.expected) for p in known if p.expected is not None]
    assert len(compared) >= 12
    ratios = [error_of(found, p, context) / expected for p, expected in compared]
    assert 0.5 < float(np.median(ratios)) < 2
    assert all(0.1 < ratio < 10 for ratio in ratios), ratios


def test_a_place_names_all_nodes_that_would_have_to_stay_float() -> None:
    model = planted(1.0)
    context = zoo_context(model)
    named = {p.name: p for p in places(planned(model, context), context.target)}
    stored = named["/stage2/stage2.2/Relu_output_0"]
    assert stored.nodes == (BAD, READER)
    assert named[BAD].kind == "weight"
    assert named[BAD].nodes == (BAD,)
    # A Gemm is computed in integers whatever becomes of its output, so only the reader stores it.
    assert named["/relu/Relu_output_0"].nodes == ("/logits/Gemm",)


def test_a_planted_layer_is_ranked_first_and_its_line_restores_the_network() -> None:
    """users.md 2: nobody has to find out by hand which layer it is."""

    def run(factor: float, *exclude: str) -> tuple[float, PassRun]:
        report = onnxcomp.optimize(
            planted(factor),
            "insert-qdq{granularity=per-tensor equalize=false}",
            calibration=CALIBRATION,
            evaluation=EVALUATION,
            samples=128,
            threads=1,
            exclude=exclude,
            accept_ruin=True,
        ).report
        assert report.comparison is not None
        assert report.comparison.sqnr_db is not None
        return report.comparison.sqnr_db, report.runs[-1]

    healthy, _ = run(1.0)
    ruined, told = run(1000.0)
    assert ruined < 10
    (ranking,) = (c.details["ranking"] for c in told.changes if "ranking" in c.details)
    assert ranking[0]["nodes"] == [BAD]
    measured = [row["distance"] for row in ranking if "distance" in row]
    assert len(measured) >= 8
    assert measured == sorted(measured, reverse=True)
    (note,) = (n for n in told.notes if "--exclude" in n)
    words = shlex.split(note.split("in float: ")[1])
    assert words[0::2] == ["--exclude"] * (len(words) // 2)
    cured, told = run(1000.0, *words[1::2])
    assert cured > max(35, healthy - 1)
    assert not [n for n in told.notes if "--exclude" in n]


def test_a_healthy_network_is_ranked_but_nothing_is_told() -> None:
    model = planted(1.0)
    context, log = zoo_context(model), PassLog()
    tell_harm(planned(model, context), context, log)
    assert log.notes == []
    assert len(log.changes) == 1


def test_a_concat_of_boxes_and_scores_is_named_with_its_line() -> None:
    model = detector()
    context, log = context_for(model, noise(model, 32)), PassLog()
    tell_harm(planned(model, context), context, log)
    (note,) = (n for n in log.notes if n.startswith("all:") and "'far'" in n)
    assert "'scores' to 0." in note
    assert note.endswith("--exclude all --exclude found")


def test_inputs_of_a_concat_that_reach_as_far_are_not_named() -> None:
    model = detector()
    far = next(node for node in model.graph.nodes if node.name == "far")
    model.graph.set_constant(far, 1, np.array(1, np.float32), "near")
    context, log = context_for(model, noise(model, 32)), PassLog()
    tell_harm(planned(model, context), context, log)
    assert not [n for n in log.notes if n.startswith("all:")]


def test_nodes_are_excluded_by_the_names_in_the_file() -> None:
    model = planted(1.0)
    context = zoo_context(model)
    model.aliases["old name"] = "new name"
    given = context.original.graph.nodes[0]
    given.name = "old name"
    assert exclude_words(model, context, ["new name", "made by a pass"]) == "--exclude 'old name'"


def test_distances_measured_alone_are_those_of_the_whole_network_run() -> None:
    """The shortcut of running from the first changed node on gives what running everything gives."""
    model = planted()
    context = zoo_context(model, 48)
    found = planned(model, context, "per-tensor")
    known = places(found, load_target("ort-cpu"))
    verdicts, _ = run_trials(
        found.model, [place_trial(found, p) for p in known], None, context, "", Judging(48)
    )
    samples = context.calibration
    assert samples is not None
    feeds = list(samples.batches(48))
    reference = Reference([Session(found.model, threads=1).run(f) for f in feeds])
    for place, verdict in zip(known, verdicts, strict=True):
        session = Session(place_trial(found, place).build(), threads=1)
        wanted = reference.distance([session.run(f) for f in feeds])
        assert verdict.damage == pytest.approx(wanted, rel=1e-3, abs=1e-7), place
