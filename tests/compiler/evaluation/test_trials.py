"""Trials: running only what a change changes gives what the whole changed model gives."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import onnxcomp
from onnxcomp.compiler.channel_pruning.ladder import Limits
from onnxcomp.compiler.channel_pruning.problem import Scene, open_scene
from onnxcomp.compiler.channel_pruning.sensitivity_curves import CutAlone
from onnxcomp.compiler.evaluation.divergence import Reference
from onnxcomp.compiler.evaluation.trials import BATCH, Judging, Trial, first_change, run_trials
from onnxcomp.compiler.passbase import Context, PassLog
from onnxcomp.ir.graph import Array
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.runtime.session import Session
from tests.support.pruning import context_for, zoo, zoo_context
from tests.support.text import net

TWO_HEADS = net(
    "(float[N,6] x) => (float[N,3] first, float[N,4] second)",
    "float[6,8] a, float[8,3] b, float[8,4] c",
    "h = MatMul(x, a) r = Relu(h) first = MatMul(r, b) second = MatMul(r, c)",
)


def _scene(model: Model, context: Context) -> Scene:
    return open_scene(model, {}, Limits(), "obs", context, PassLog())


def _alone(scene: Scene) -> Iterator[CutAlone]:
    depths = {name: [len(x.order) for x in ladders] for name, ladders in scene.blank().items()}
    for ladders, moments in scene.ordered_waves(depths):
        for ladder in ladders:
            yield CutAlone(scene.model, scene.groups, ladder, moments)


def _outputs(model: Model, context: Context) -> list[dict[str, Array]]:
    """Return what the whole of `model` gives, batch by batch."""
    assert context.calibration is not None
    session = Session(model, threads=1)
    return [dict(session.run(feed)) for feed in context.calibration.batches(BATCH)]


@pytest.mark.parametrize("name", ["digits_vit", "digits_lstm", "digits_shufflenet"])
def test_a_trial_gives_what_the_whole_changed_model_gives(name: str) -> None:
    """Attention multiplies two computed values: its trials put nodes in between, before the first weight that changes."""
    model = onnxcomp.optimize(zoo(name)).model
    context = zoo_context(model, 64)
    trials = [alone.trial(len(alone.ladder.order) // 3) for alone in _alone(_scene(model, context))]
    verdicts, _ = run_trials(model, trials, None, context, "")
    reference = Reference(_outputs(model, context))
    wanted = [reference.judge(_outputs(trial.build(), context)) for trial in trials]
    assert len(verdicts) > 1
    np.testing.assert_allclose([v.damage for v in verdicts], [d for d, _ in wanted], rtol=1e-3, atol=1e-6)
    assert [v.agreement for v in verdicts] == pytest.approx([a for _, a in wanted], abs=1 / 64)


def test_verdicts_come_in_the_order_of_the_trials_whatever_changes_first() -> None:
    model = zoo("digits_mlp")
    context = zoo_context(model, 32)
    trials = [alone.trial(len(alone.ladder.order)) for alone in _alone(_scene(model, context))]
    forth, _ = run_trials(model, trials, None, context, "")
    back, _ = run_trials(model, trials[::-1], None, context, "")
    assert forth == back[::-1]
    assert forth[0] != forth[1]


def test_a_change_of_nothing_does_nothing() -> None:
    model = zoo("digits_mlp")
    (verdict,), _ = run_trials(
        model, [Trial(None, model.clone)], None, zoo_context(model, 32), "", Judging(samples=16)
    )
    assert (verdict.damage, verdict.agreement) == (0.0, 1.0)


def test_agreement_is_about_the_output_asked_for() -> None:
    model = parse_model(TWO_HEADS)
    changed = model.clone()
    head = next(node for node in changed.graph.nodes if node.outputs[0].name == "second")
    weight = head.constant(1)
    assert weight is not None
    changed.graph.set_constant(head, 1, -weight)
    first = first_change(model, changed)
    assert first == head.name
    trial = Trial(first, lambda: changed)
    told = []
    for decision in (None, "first", "second"):
        (verdict,), _ = run_trials(model, [trial], None, context_for(model), "", Judging(decision=decision))
        told.append(verdict.agreement)
    assert told[0] == told[1] == 1.0
    assert told[2] is not None and told[2] < 0.5


def test_the_first_change_is_where_a_weight_or_a_value_differs() -> None:
    model = onnxcomp.optimize(zoo("digits_vit")).model
    assert first_change(model, model.clone()) is None
    scene = _scene(model, zoo_context(model, 16))
    group = next(g for g in scene.open if g.name.endswith("qkv/MatMul"))
    masked = model.clone()
    scene.groups.mask(masked, {group.name: np.arange(group.units) > 0})
    found = first_change(model, masked)
    assert found is not None
    order = [node.name for node in model.graph.nodes]
    assert 0 < order.index(found) < order.index(group.consumers[0]), (
        "queries meet keys before values are projected"
    )
