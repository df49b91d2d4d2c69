"""prune-filters by every criterion: budgets hold, useless channels go first, and what could not be judged is said."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import onnxcomp
from onnxcomp.analysis.channels import channel_groups, default_shapes
from onnxcomp.compiler.channel_pruning.criteria import MEASURED, SCORED, score_groups
from onnxcomp.compiler.spec import Pipeline
from onnxcomp.errors import UsageError
from onnxcomp.ir.graph import Array
from onnxcomp.ir.parse import parse_model
from onnxcomp.passes.prune_filters import PruneFilters
from onnxcomp.testing import assert_equal_outputs, fingerprint
from tests.support.graphs import Plan, build, plans
from tests.support.pruning import ZOO, accuracy, context_for, kept, noise, outputs, prune, share, zoo
from tests.support.text import net

NETS = ("digits_resnet", "digits_mobilenet")


def step(criterion: str, **options: object) -> PruneFilters:
    given = {"macs": 0.5, "repair": "none", "scope": "uniform", **options}
    return PruneFilters(criterion=criterion, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("criterion", SCORED)
def test_budgets_hold_and_nothing_is_left_to_chance(name: str, criterion: str) -> None:
    model = zoo(name)
    result = prune(model, step(criterion))
    assert result.shortfall is None
    assert 0.49 <= share(model, result.model) <= 0.5
    again = prune(model, step(criterion), seed=7)
    assert fingerprint(again.model) == fingerprint(result.model)


@pytest.mark.parametrize("criterion", SCORED)
def test_repaired_networks_still_classify(criterion: str) -> None:
    model = zoo("digits_resnet")
    assert accuracy(prune(model, step(criterion, repair="sequential", joint=0)).model) > 95


def test_the_criteria_choose_differently() -> None:
    model = zoo("digits_resnet")
    made = {c: fingerprint(prune(model, step(c)).model) for c in ("l1", "l2", *SCORED)}
    assert len(set(made.values())) == len(made)


@pytest.mark.parametrize("criterion", [*SCORED, "obs", "l1", "l2", "random"])
def test_only_what_looks_at_activations_needs_samples(criterion: str) -> None:
    measures = criterion in (*MEASURED, "obs")
    assert ("calibration" in step(criterion).needs()) == measures
    assert "calibration" in step(criterion, repair="sequential").needs()
    assert "calibration" in step(criterion, repair="one-shot").needs()


@pytest.mark.parametrize("criterion", MEASURED)
def test_without_samples_the_run_is_refused_before_it_begins(criterion: str) -> None:
    with pytest.raises(UsageError, match=r"prune-filters.*calibration"):
        onnxcomp.optimize(ZOO / "digits_resnet.onnx", str(step(criterion)))


@pytest.mark.parametrize("criterion", SCORED)
def test_the_text_of_a_criterion_gives_it_back(criterion: str) -> None:
    text = f"prune-filters{{macs=0.5 criterion={criterion}}}"
    assert str(Pipeline.parse(text)) == text


@given(plans(6), st.sampled_from(SCORED))
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
def test_every_channel_of_random_networks_gets_a_score(plan: Plan, criterion: str) -> None:
    model = build(plan)
    groups = channel_groups(model)
    chosen = [group for group in groups if not group.blocked]
    found = score_groups(model, groups, chosen, criterion, context_for(model), default_shapes(model))
    assert {group.name: (group.units,) for group in chosen} == {n: s.shape for n, s in found.scores.items()}
    assert all(np.isfinite(scores).all() and scores.min() >= 0 for scores in found.scores.values())


# --- what goes first -------------------------------------------------------------------------------------------------
def with_useless_channels() -> tuple[str, dict[str, Array]]:
    """A net whose channels 1, 4, 6 and 7 never pass the Relu, have scale 0 and equal, small filters."""
    rng = np.random.default_rng(3)
    a = rng.standard_normal((8, 3, 3, 3)).astype(np.float32)
    g, s = (np.full(8, value, np.float32) for value in (1.0, 0.5))
    a[[1, 4, 6, 7]] = 0.01
    g[[1, 4, 6, 7]], s[[1, 4, 6, 7]] = 0.0, -1.0
    text = net(
        "(float[N,3,8,8] x) => (float[N,5,6,6] y)",
        "float[8,3,3,3] a, float[8] g, float[8] s, float[8] m, float[8] v, float[5,8,1,1] b, float[5] q",
        "h = Conv(x, a) n = BatchNormalization(h, g, s, m, v) r = Relu(n) y = Conv(r, b, q)",
    )
    return text, {"a": a, "g": g, "s": s}


@pytest.mark.parametrize("criterion", [*SCORED, "obs", "l1", "l2"])
def test_useless_channels_go_first_and_nothing_is_lost(criterion: str) -> None:
    text, weights = with_useless_channels()
    model = parse_model(text, weights)
    result = prune(model, step(criterion, macs=None, ratio=0.5))
    assert list(kept(result).values()) == [(8, 4)]
    assert_equal_outputs(model, result.model, tolerance=1e-5)


@pytest.mark.parametrize("criterion", ["bn-scale", "apoz", "entropy"])
def test_the_fold_of_normalizations_changes_neither_scales_nor_activations(criterion: str) -> None:
    """Scales are found in the network as it came. (Filters do change in the fold, and the norms of readers with them.)"""
    feeds = noise(zoo("digits_resnet"), 4)
    plain, folded = (
        outputs(
            onnxcomp.optimize(
                ZOO / "digits_resnet.onnx",
                f"{before}prune-filters{{ratio=0.4 scope=uniform criterion={criterion} repair=none}}",
                calibration=ZOO / "digits_calibration.npz",
                samples=64,
                threads=1,
                accept_ruin=True,
            ).model,
            feeds,
        )
        for before in ("", "fold-batchnorm,")
    )
    np.testing.assert_allclose(folded, plain, atol=1e-3 * float(np.abs(plain).max()))


# --- what is said ----------------------------------------------------------------------------------------------------
def test_where_a_criterion_has_no_meaning_the_report_says_so() -> None:
    model = zoo("digits_mobilenet")
    reduced = [f"/block{number}/squeeze_excite/reduce/Conv" for number in range(1, 6)]
    assert prune(model, step("hrank")).notes[0] == (
        f"criterion=hrank: l2 norms of filters decide for {', '.join(reduced)}: its channels are no feature maps"
    )
    assert not [n for n in prune(model, step("entropy")).notes if n.startswith("criterion=")]


def test_nothing_is_said_of_groups_that_stay_whole() -> None:
    """Residual streams come last: at three quarters of the MACs none is touched, and none is judged."""
    model = zoo("digits_mobilenet")
    streams = {g.name for g in channel_groups(model) if g.coupled}
    result = prune(model, step("apoz", macs=0.75))
    cut = set(kept(result))
    assert not any(name in note for name in streams - cut for note in result.notes)
