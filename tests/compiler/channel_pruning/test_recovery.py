"""After the cut: which repair is made, when a sweep is reverted, and what matching variances gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from onnxcomp.analysis.linear import linear_node
from onnxcomp.compiler.channel_pruning.ladder import Limits
from onnxcomp.compiler.channel_pruning.problem import Plan, Scene, open_scene
from onnxcomp.compiler.channel_pruning.recovery import Recovery, recover
from onnxcomp.compiler.channel_pruning.uniform_allocation import at_ratio
from onnxcomp.compiler.evaluation import hold_out
from onnxcomp.compiler.evaluation.divergence import Reference
from onnxcomp.compiler.evaluation.outputs import FEW, judge, outputs_on
from onnxcomp.compiler.passbase import Context, PassLog
from onnxcomp.compiler.repair.mode import NO_REPAIR, ONE_SHOT, SEQUENTIAL
from onnxcomp.compiler.repair.refit import Site, Solver, Visit, matched
from onnxcomp.compiler.repair.walk import Walk
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.numerics.moments import Moments
from onnxcomp.testing import fingerprint
from tests.support.pruning import CHAIN, context_for, noise
from tests.support.text import net


def scene_of(model: Model, count: int = 80) -> Scene:
    context = context_for(model, noise(model, count, seed=2))
    return open_scene(model, {}, Limits(), "l2", context, PassLog())


def recovered(recovery: Recovery, scene: Scene, plan: Plan) -> tuple[Model, PassLog]:
    cut, log = scene.model.clone(), PassLog()
    plan.cut(cut, scene.groups)
    return recover(recovery, cut, scene, plan, {}, log), log


@pytest.fixture(name="scene")
def _scene() -> Scene:
    return scene_of(parse_model(CHAIN))


def distance(scene: Scene, made: Model) -> float:
    """How far `made` is off on samples that the repair has not seen."""
    context = context_for(scene.model, noise(scene.model, 64, seed=9))
    assert context.calibration is not None
    reference = Reference(outputs_on(scene.model, context.calibration, context))
    return judge(made, reference, context.calibration, context)


# --- modes -----------------------------------------------------------------------------------------------------------
def test_without_repair_the_weights_are_as_they_were(scene: Scene) -> None:
    plan = at_ratio(scene, 0.4)
    made, log = recovered(Recovery(NO_REPAIR), scene, plan)
    bare = scene.model.clone()
    plan.cut(bare, scene.groups)
    assert fingerprint(made) == fingerprint(bare)
    assert log.notes == ["no repair: the weights that read removed channels are as they were"]


def test_either_repair_is_better_than_none() -> None:
    scene = scene_of(parse_model(CHAIN), 500)
    plan = at_ratio(scene, 0.25)
    found = {
        m.name: distance(scene, recovered(Recovery(m), scene, plan)[0])
        for m in (NO_REPAIR, ONE_SHOT, SEQUENTIAL)
    }
    assert len(set(found.values())) == 3
    assert max(found["sequential"], found["one-shot"]) < 0.8 * found["none"]


def test_what_is_left_alone_keeps_its_weights_and_is_told(scene: Scene) -> None:
    plan, log, cut = at_ratio(scene, 0.4), PassLog(), scene.model.clone()
    last = scene.model.graph.nodes[-1]
    plan.cut(cut, scene.groups)
    before = cut.graph.nodes[-1].constant(1)
    made = recover(Recovery(SEQUENTIAL), cut, scene, plan, {last.name: "it is excluded"}, log)
    after = made.graph.nodes[-1].constant(1)
    assert before is not None and after is not None
    np.testing.assert_array_equal(after, before)
    assert [(s.where, s.reason) for s in log.skips] == [(last.name, "not refitted: it is excluded")]


@pytest.mark.parametrize(("count", "told"), [(FEW - 1, True), (FEW, False)])
def test_few_samples_are_told(count: int, told: bool) -> None:
    scene = scene_of(parse_model(CHAIN), count)
    _, log = recovered(Recovery(SEQUENTIAL), scene, at_ratio(scene, 0.4))
    few = [note for note in log.notes if "calibration samples are few" in note]
    assert bool(few) is told
    assert all(note.startswith(f"{count} ") for note in few)


# --- sweeps ----------------------------------------------------------------------------------------------------------
class Judged:
    """Stands in for the judge: returns the given distances in turn, and remembers what it was shown."""

    def __init__(self, distances: Sequence[float]) -> None:
        self.distances = list(distances)
        self.shown: list[str] = []

    def __call__(self, model: Model, reference: Reference, samples: object, context: Context) -> float:
        self.shown.append(fingerprint(model))
        return self.distances[len(self.shown) - 1]


@pytest.mark.parametrize(
    ("distances", "best", "notes"),
    [
        ([1.0, 0.9, 0.8], 2, 0),
        ([1.0, 0.9, 0.95], 1, 1),
        ([1.0, 1.0], 0, 1),
        ([1.0, float("nan")], 0, 1),
        ([1.0, float("inf")], 0, 1),
    ],
)
def test_sweeps_go_on_while_the_held_back_samples_gain_and_the_last_is_reverted(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, distances: list[float], best: int, notes: int
) -> None:
    judged = Judged(distances)
    monkeypatch.setattr(hold_out, "judge", judged)
    made, log = recovered(Recovery(SEQUENTIAL, joint=1, sweeps=3), scene, at_ratio(scene, 0.4))
    assert len(judged.shown) == len(distances)
    assert len(set(judged.shown)) == len(distances), "every sweep changes something"
    assert fingerprint(made) == judged.shown[best]
    assert sum(note.endswith("; reverted") for note in log.notes) == notes
    assert sum(note.startswith("sweep ") and "held-back" in note for note in log.notes) == len(distances) - 1


def test_sweeps_are_judged_on_samples_that_the_refit_does_not_see(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    visit = Walk.visit

    def spy(self: Walk, sites: Sequence[Site], solve: Solver, what: str) -> list[tuple[Site, float]]:
        seen.append(len(self.context.samples))
        return visit(self, sites, solve, what)

    monkeypatch.setattr(Walk, "visit", spy)
    made, _ = recovered(Recovery(SEQUENTIAL, sweeps=2), scene, at_ratio(scene, 0.4))
    assert seen == [70, 70]
    plain, _ = recovered(Recovery(SEQUENTIAL), scene, at_ratio(scene, 0.4))
    assert seen == [70, 70, 80]
    assert fingerprint(made) != fingerprint(plain)


# --- variances -------------------------------------------------------------------------------------------------------
def visit_of(text: str, transform: Callable[[np.ndarray], np.ndarray]) -> tuple[Visit, np.ndarray]:
    """The first node of `text`, on correlated inputs, wanted to make `transform` of what it makes."""
    model = parse_model(text)
    node = linear_node(model.graph.nodes[0])
    assert node is not None
    rng = np.random.default_rng(0)
    d = node.matrix().shape[2]
    x = (rng.standard_normal((node.group, d, d)) @ rng.standard_normal((node.group, d, 4000)) + 1).astype(
        np.float32
    )
    made = node.matrix() @ x + node.bias().reshape(node.group, -1, 1)
    wanted = transform(made)
    moments = Moments()
    moments.add(x, wanted.astype(np.float32))
    return Visit(Site(node.node.name, np.arange(made.shape[0] * made.shape[1])), node, moments, 4000.0), x


GEMM = net("(float[N,5] x) => (float[N,4] y)", "float[5,4] w, float[4] b", "y = Gemm(x, w, b)")
GROUPED = net(
    "(float[N,4,1,1] x) => (float[N,6,1,1] y)",
    "float[6,2,1,1] w, float[6] b",
    "y = Conv<group=2>(x, w, b)",
)


@pytest.mark.parametrize("text", [GEMM, GROUPED], ids=["gemm", "grouped"])
def test_matched_outputs_have_the_wanted_means_and_variances(text: str) -> None:
    visit, x = visit_of(
        text, lambda made: 3 * made - 2 + np.random.default_rng(1).standard_normal(made.shape)
    )
    solution = matched(visit)
    assert solution is not None and solution.bias is not None
    made = solution.matrix @ x + solution.bias.reshape(len(x), -1, 1)
    moments = visit.moments
    np.testing.assert_allclose(made.mean(2), moments.mean_y, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(made.var(2), moments.variance_y(), rtol=1e-3)
    ratio = solution.matrix / visit.node.matrix()
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :, :1], ratio.shape), rtol=1e-9)


def test_outputs_that_do_not_vary_or_are_not_wanted_to_keep_their_weights() -> None:
    visit, x = visit_of(GEMM, lambda made: np.concatenate([np.full_like(made[:, :1], 7), 2 * made[:, 1:]], 1))
    solution = matched(visit)
    assert solution is not None and solution.bias is not None
    np.testing.assert_allclose(solution.matrix[0, 0], visit.node.matrix()[0, 0])
    made = solution.matrix @ x + solution.bias.reshape(1, -1, 1)
    np.testing.assert_allclose(made.mean(2)[0, 0], 7, rtol=1e-3)


def test_a_node_that_cannot_hold_a_bias_is_not_matched() -> None:
    text = net("(float[N,5] x) => (float[N,4] y)", "float[5,4] w", "y = MatMul(x, w)")
    visit, _ = visit_of(text, lambda made: 2 * made)
    assert matched(visit) is None


@pytest.mark.parametrize(("found", "kept"), [(0.5, True), (1.0, False), (float("nan"), False)])
def test_matched_variances_are_kept_only_where_held_back_samples_gain(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, found: float, kept: bool
) -> None:
    judged = Judged([1.0, found])
    monkeypatch.setattr(hold_out, "judge", judged)
    made, log = recovered(Recovery(SEQUENTIAL, match_variance=True), scene, at_ratio(scene, 0.4))
    assert judged.shown[0] != judged.shown[1]
    assert fingerprint(made) == judged.shown[1 if kept else 0]
    assert [note.rpartition("; ")[2] for note in log.notes if note.startswith("matched variances")] == [
        "applied" if kept else "reverted"
    ]
