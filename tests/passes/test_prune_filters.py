"""prune-filters: what it refuses, what it cuts, that budgets hold, and that repair is worth having."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from onnxcomp.analysis.channels import channel_groups
from onnxcomp.errors import ModelError, UsageError
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.passes.prune_filters import PruneFilters
from onnxcomp.testing import assert_equal_outputs, check_pass, fingerprint
from tests.support.graphs import Plan, build, plans
from tests.support.pruning import (
    CHAIN,
    NETS,
    context_for,
    kept,
    noise,
    outputs,
    prune,
    share,
    zoo,
    zoo_context,
)
from tests.support.text import net


# --- nothing to do ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("options", ["macs=1.0", "params=1.0", "ratio=0.0"])
def test_nothing_changes_where_nothing_has_to_go(options: str) -> None:
    model = parse_model(CHAIN)
    result = check_pass(f"prune-filters{{{options}}}", model, changed=False, context=context_for(model))
    assert result.shortfall is None


@pytest.mark.parametrize(
    ("body", "stored"),
    [("y = Relu(x)", "float[1] unread"), ("y = Conv<pads=[1,1,1,1]>(x, w)", "float[3,3,3,3] w")],
)
def test_a_model_without_a_group_that_can_be_cut_stays_and_says_so(body: str, stored: str) -> None:
    model = parse_model(net("(float[N,3,8,8] x) => (float[N,3,8,8] y)", stored, body))
    assert prune(model, PruneFilters(ratio=0.5)).shortfall is None
    result = prune(model, PruneFilters(params=0.5, scope="uniform", criterion="l1", repair="none"))
    assert not result.changed
    assert prune(model, PruneFilters(macs=1.0)).shortfall is None, "a budget that is met is met"
    if "Conv" in body:
        assert result.shortfall is not None
        assert result.shortfall.startswith("params=0.5 cannot be reached; 1.0000 is the least")
        assert "it reaches the graph output 'y'" in result.shortfall
        assert [s.reason for s in result.skips] == ["3 channels stay: it reaches the graph output 'y'"]


# --- what is refused -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("step", "message"),
    [
        (PruneFilters(), "give one of ratio, macs, params and latency; none of them is given"),
        (
            PruneFilters(macs=0.5, ratio=0.5),
            "give one of ratio, macs, params and latency; ratio and macs are given",
        ),
        (PruneFilters(macs=0.5, params=0.5), "macs and params are given"),
        (PruneFilters(ratio=1.0), "ratio=1 is out of range; 0 <= ratio < 1"),
        (PruneFilters(ratio=-0.1), "ratio=-0.1 is out of range"),
        (PruneFilters(ratio=float("nan")), "ratio=nan is out of range"),
        (PruneFilters(macs=1.5), "macs=1.5 is out of range; 0 <= macs <= 1"),
        (PruneFilters(macs=0.0), "macs=0 leaves nothing; give the share that may remain"),
        (PruneFilters(params=-1.0), "params=-1 is out of range"),
        (PruneFilters(params=0.0), "params=0 leaves nothing"),
        (PruneFilters(macs=0.5, max_ratio=1.1), "max-ratio=1.1 is out of range; 0 <= max-ratio <= 1"),
        (PruneFilters(macs=0.5, align=0), "align=0 is out of range; it is at least 1"),
        (PruneFilters(macs=0.5, joint=-1), "joint=-1 is out of range; it is at least 0"),
        (PruneFilters(macs=0.5, min_channels=0), "min-channels=0 is out of range; it is at least 1"),
    ],
)
def test_options_that_contradict_or_are_out_of_range_are_refused_by_name(
    step: PruneFilters, message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        step.check()
    assert str(caught.value).startswith("prune-filters: ")
    assert message in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(value: float) -> None:
    model = parse_model(CHAIN, {"q": np.full(24, value, np.float32)})
    with pytest.raises(ModelError, match="'q' holds"):
        PruneFilters(macs=0.5).run(model.clone(), context_for(model))


@pytest.mark.parametrize(
    ("step", "measures"),
    [
        (PruneFilters(macs=0.5), True),
        (PruneFilters(macs=0.5, criterion="l1"), True),
        (PruneFilters(macs=0.5, repair="none"), True),
        (PruneFilters(macs=0.5, criterion="l2", repair="none"), True),
        (PruneFilters(macs=0.5, scope="uniform", criterion="l2", repair="none"), False),
        (PruneFilters(ratio=0.5, criterion="random", repair="none"), False),
    ],
)
def test_samples_are_needed_where_something_is_measured(step: PruneFilters, measures: bool) -> None:
    assert step.needs() == ({"shapes", "calibration"} if measures else {"shapes"})


def test_norms_without_repair_work_without_samples() -> None:
    model = parse_model(CHAIN)
    result = check_pass("prune-filters{ratio=0.5 criterion=l1 repair=none}", model, changed=True)
    assert len(result.changes) == 3


# --- budgets ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("what", ["macs", "params"])
@pytest.mark.parametrize("budget", [0.75, 0.5, 0.25])
def test_a_budget_is_never_exceeded_and_hardly_undercut(name: str, what: str, budget: float) -> None:
    model = zoo(name)
    step = PruneFilters(**{what: budget}, scope="uniform", criterion="l1", repair="none")  # type: ignore[arg-type]
    result = prune(model, step)
    assert result.shortfall is None
    assert budget - 0.01 <= share(model, result.model, what) <= budget


@given(plans(6), st.floats(0.3, 0.95), st.sampled_from(["macs", "params"]), st.integers(0, 9))
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
def test_budgets_hold_on_random_networks_or_are_told_to_be_beyond_reach(
    plan: Plan, budget: float, what: str, seed: int
) -> None:
    budget_holds_or_is_told(plan, "uniform", budget, what, seed)


@given(plans(4), st.floats(0.3, 0.95), st.sampled_from(["macs", "params"]))
@settings(max_examples=10, deadline=None, derandomize=True, database=None)
def test_shares_by_effect_hold_budgets_on_random_networks_too(plan: Plan, budget: float, what: str) -> None:
    budget_holds_or_is_told(plan, "global", budget, what, 0)


def budget_holds_or_is_told(plan: Plan, scope: str, budget: float, what: str, seed: int) -> None:
    model = build(plan)
    step = PruneFilters(**{what: budget}, scope=scope, criterion="random", repair="none")  # type: ignore[arg-type]
    result = prune(model, step, seed=seed)
    found = share(model, result.model, what)
    if result.shortfall is None:
        assert found <= budget + 1e-9
        assert found >= budget - 0.01 or any("more than asked for" in n for n in result.notes)
    else:
        assert found > budget
        assert f"{found:.4f} is the least" in result.shortfall


@given(plans(5), st.sampled_from(["sequential", "one-shot"]))
@settings(max_examples=15, deadline=None, derandomize=True, database=None)
def test_random_networks_survive_elimination_and_repair(plan: Plan, repair: str) -> None:
    model = build(plan)
    result = prune(model, PruneFilters(ratio=0.3, repair=repair))  # type: ignore[arg-type]
    assume(result.changed)
    feeds = noise(model, 4, seed=3)
    made = outputs(result.model, feeds)
    assert np.isfinite(made).all()
    assert made.shape == outputs(model, feeds).shape


def test_a_budget_beyond_reach_is_approached_and_what_blocks_is_named() -> None:
    model = zoo("digits_resnet")
    result = prune(model, PruneFilters(macs=0.0001, scope="uniform", criterion="l1", repair="none"))
    assert result.changed
    assert result.shortfall is not None
    assert "macs=0.0001 cannot be reached; 0.00" in result.shortfall
    assert (
        "/head/Gemm: it reaches the graph output 'logits'" in result.shortfall or "logits" in result.shortfall
    )
    assert all(after == 1 for _, after in kept(result).values())


def test_streams_stay_whole_while_the_inner_channels_can_bear_the_budget() -> None:
    model = zoo("digits_resnet")
    coupled = {g.name for g in channel_groups(model) if g.coupled}
    assert coupled
    light = prune(model, PruneFilters(macs=0.7, scope="uniform", criterion="l1", repair="none"))
    assert not coupled & set(kept(light))
    heavy = prune(model, PruneFilters(macs=0.05, scope="uniform", criterion="l1", repair="none"))
    assert coupled & set(kept(heavy))
    assert heavy.shortfall is None


def test_ratio_is_the_share_removed_from_every_group() -> None:
    model = zoo("digits_resnet")
    open_groups = {g.name: g.units for g in channel_groups(model) if not g.blocked}
    for ratio in (0.25, 0.5):
        result = prune(model, PruneFilters(ratio=ratio, criterion="l2", repair="none"))
        assert kept(result) == {n: (u, u - int(np.ceil(u * ratio))) for n, u in open_groups.items()}
        assert not result.notes or "no repair" in result.notes[0]


@pytest.mark.parametrize("scope", ["uniform", pytest.param("global", marks=pytest.mark.slow)])
@pytest.mark.parametrize("options", [{"ratio": 0.4}, {"macs": 0.4}, {"params": 0.4}])
def test_limits_hold_for_every_group(options: Mapping[str, float], scope: str) -> None:
    model = zoo("digits_resnet")
    cases: list[tuple[dict[str, float], Callable[[int, int], bool]]] = [
        ({"align": 8}, lambda before, after: after % 8 == 0),
        ({"min_channels": 11}, lambda before, after: after >= 11),
        ({"max_ratio": 0.25}, lambda before, after: after >= 0.75 * before),
    ]
    for limits, rule in cases:
        step = PruneFilters(**options, **limits, scope=scope, criterion="l1", repair="none")  # type: ignore[arg-type]
        result = prune(model, step)
        assert result.changes
        for before, after in kept(result).values():
            assert rule(before, after)
        if "ratio" not in options:
            what = next(iter(options))
            found = share(model, result.model, what)
            assert (found <= 0.4) == (result.shortfall is None)
            if result.shortfall is None and found < 0.39:
                assert any(f"{what} fall to {found:.4f}, more than asked for" in n for n in result.notes)


def test_chained_budgets_are_shares_of_the_model_that_the_pipeline_received() -> None:
    model = zoo("digits_resnet")
    context = zoo_context(model)
    first = PruneFilters(macs=0.7, scope="uniform", criterion="l1", repair="none").run(model.clone(), context)
    second = PruneFilters(macs=0.5, scope="uniform", criterion="l1", repair="none").run(
        first.model.clone(), context
    )
    assert 0.69 <= share(model, first.model) <= 0.7
    assert 0.49 <= share(model, second.model) <= 0.5
    third = PruneFilters(macs=0.6, criterion="l1", repair="none").run(second.model.clone(), context)
    assert not third.changed
    assert third.notes == ("the budget macs=0.6 is met without cutting",)


# --- what goes -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NETS)
def test_without_repair_the_result_is_the_original_with_its_readers_masked(name: str) -> None:
    """The oracle: which channels went is read off the weights that made them, all of them different."""
    model = zoo(name)
    result = prune(model, PruneFilters(macs=0.5, scope="uniform", repair="none"))
    groups = channel_groups(model)
    keep = {}
    for change in result.changes:
        member = next(m for m in groups[change.where].members if m.role == "produces")
        mask = np.zeros(groups[change.where].units, bool)
        # Rows are told apart by what no cut of the inputs alters: the vector of the BatchNormalization or the bias.
        vector = next(
            m for m in groups[change.where].members if m.role != "consumes" and _is_vector(model, m.name)
        )
        old = np.ravel(model.graph.constants[vector.name].values)
        new = np.ravel(result.model.graph.constants[vector.name].values)
        assert len(set(old.tolist())) == len(old)
        for position, value in enumerate(old.tolist()):
            if value in new.tolist() and vector.units[position] >= 0:
                mask[vector.units[position]] = True
        assert mask.sum() == change.details["after"], member.name
        keep[change.where] = mask
    masked = model.clone()
    groups.mask(masked, keep)
    assert_equal_outputs(masked, result.model, tolerance=1e-4, regimes=("normal", "one-hot"))


def _is_vector(model: Model, name: str) -> bool:
    array = model.graph.constants[name].values
    return bool(array.ndim == 1 and len(np.unique(array)) == len(array))


def test_chance_depends_on_the_seed_and_on_nothing_else() -> None:
    model = zoo("digits_mlp")
    step = PruneFilters(macs=0.5, scope="uniform", criterion="random", repair="none")
    marks = [fingerprint(prune(model, step, seed=seed).model) for seed in (0, 0, 1, 2)]
    assert marks[0] == marks[1]
    assert len(set(marks)) == 3


def test_the_criteria_choose_differently_within_the_same_budget() -> None:
    model = zoo("digits_resnet")
    results = {
        c: prune(model, PruneFilters(macs=0.5, scope="uniform", criterion=c, repair="none")).model
        for c in ("obs", "l1", "l2", "random")
    }
    assert len({fingerprint(m) for m in results.values()}) == 4
    assert all(0.49 <= share(model, m) <= 0.5 for m in results.values())


def test_dead_and_duplicate_channels_go_first_and_then_nothing_is_lost() -> None:
    """Half of the first layer is dead or said twice; at that ratio the network computes what it did."""
    rng = np.random.default_rng(0)
    a, p = (rng.standard_normal(s).astype(np.float32) / 3 for s in ((16, 3, 3, 3), (16,)))
    p[:4] = -1e3
    a[4:8], p[4:8] = 2 * a[8:12], 2 * p[8:12]
    text = net(
        "(float[N,3,8,8] x) => (float[N,5,6,6] y)",
        "float[16,3,3,3] a, float[16] p, float[5,16,1,1] b, float[5] q",
        "h = Conv(x, a, p) k = Relu(h) y = Conv(k, b, q)",
    )
    model = parse_model(text, {"a": a, "p": p})
    feeds = noise(model, 8, seed=5)
    wanted = outputs(model, feeds)
    gaps = {}
    for criterion in ("obs", "random"):
        result = prune(model, PruneFilters(ratio=0.5, criterion=criterion, joint=0))
        assert list(kept(result).values()) == [(16, 8)]
        gaps[criterion] = float(np.abs(outputs(result.model, feeds) - wanted).max() / np.abs(wanted).max())
    assert gaps["obs"] < 0.02
    assert gaps["random"] > 5 * gaps["obs"]
