"""The search for the weights of the sensitivity curves, on made networks whose distance is a function of the plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest

from onnxcomp.analysis.blocks import Block
from onnxcomp.compiler.channel_pruning.curve_weights import (
    AS_MEASURED,
    DEPTH,
    GROUP,
    RESIDUAL,
    CurveWeights,
    search_weights,
)
from onnxcomp.compiler.channel_pruning.problem import Drop, Plan
from onnxcomp.compiler.passbase import PassLog

UNITS = 4096


def plan_of(number: int, *, reached: bool = True) -> Plan:
    """One plan per number: the number in binary is what stays of the only group."""
    return Plan({"g": np.array([number >> bit & 1 for bit in range(24)], bool)}, reached)


def number_of(plan: Plan) -> int:
    return sum(int(kept) << bit for bit, kept in enumerate(plan.keep["g"]))


class Trials:
    """Makes a plan of its own for every weights, and says how far each is from the original."""

    def __init__(
        self, found: Mapping[CurveWeights, float] | Callable[[CurveWeights], float], uniform: float = math.inf
    ) -> None:
        self.found = found if callable(found) else found.__getitem__
        self.uniform = uniform
        self.weightings: list[CurveWeights] = []
        self.tried: list[CurveWeights | str] = []
        self.log = PassLog()

    def plan_for(self, weights: CurveWeights) -> Plan:
        if weights not in self.weightings:
            self.weightings.append(weights)
        return plan_of(1 + self.weightings.index(weights))

    def distance(self, plan: Plan) -> float:
        number = number_of(plan)
        if number == UNITS:
            self.tried.append("uniform")
            return self.uniform
        weights = self.weightings[number - 1]
        self.tried.append(weights)
        return self.found(weights)

    def find(
        self, groups: tuple[str, ...] = (), more: int = 0, *, reached: bool = True
    ) -> CurveWeights | None:
        uniform = plan_of(UNITS, reached=reached)
        return search_weights(self.plan_for, uniform, self.distance, self.log, groups, more)


FIRST, SECOND = CurveWeights(DEPTH[0]), CurveWeights(DEPTH[1])


def aside(weights: CurveWeights) -> CurveWeights:
    return replace(weights, residual=RESIDUAL[0])


def far(weights: CurveWeights) -> CurveWeights:
    return replace(weights, residual=RESIDUAL[1])


# --- steps -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("distances", "best"),
    [
        ({AS_MEASURED: 1.0, FIRST: 1.1, aside(AS_MEASURED): 1.2}, AS_MEASURED),
        ({AS_MEASURED: 1.0, FIRST: 1.0, aside(AS_MEASURED): 1.0}, AS_MEASURED),
        ({AS_MEASURED: 1.0, FIRST: 1.1, aside(AS_MEASURED): 0.9, far(AS_MEASURED): 0.9}, aside(AS_MEASURED)),
        ({AS_MEASURED: 1.0, FIRST: 0.8, SECOND: 0.9, aside(FIRST): 0.9}, FIRST),
        ({AS_MEASURED: 1.0, FIRST: 0.8, SECOND: 0.9, aside(FIRST): 0.7, far(FIRST): 0.6}, far(FIRST)),
        ({AS_MEASURED: 1.0, FIRST: 0.8, SECOND: 0.7, aside(SECOND): 0.9}, SECOND),
        ({AS_MEASURED: 1.0, FIRST: 0.8, SECOND: 0.7, aside(SECOND): 0.6, far(SECOND): 0.7}, aside(SECOND)),
        ({AS_MEASURED: 1.0, FIRST: math.nan, aside(AS_MEASURED): math.nan}, AS_MEASURED),
    ],
)
def test_a_step_is_kept_only_where_the_distance_falls(
    distances: dict[CurveWeights, float], best: CurveWeights
) -> None:
    trials = Trials(distances)
    assert trials.find() == best
    assert trials.tried == [*distances, "uniform"], "nothing is carried out beyond what is needed"
    assert len(trials.tried) <= 6


@pytest.mark.parametrize("more", [1, 2, 5, 24])
@pytest.mark.parametrize("falls", [True, False])
def test_single_groups_take_at_most_the_plans_they_are_given(more: int, falls: bool) -> None:
    """In the worst case no step but the first ones helps; in the best every one does."""
    groups = tuple("abcdef")

    def found(weights: CurveWeights) -> float:
        steps = len(weights.groups)
        return 10 - weights.depth - weights.residual / 100 + (-0.1 if falls else 0.1) * steps

    trials = Trials(found)
    weights = trials.find(groups, more)
    assert weights is not None
    assert (weights.depth, weights.residual) == (DEPTH[1], RESIDUAL[1])
    wanted = min(more, len(groups) * (1 if falls else 2))
    assert len(trials.tried) == 5 + wanted + 1
    assert weights.groups == (tuple((name, GROUP) for name in groups[:wanted]) if falls else ())


def test_a_group_is_tried_both_ways_and_the_next_starts_from_what_was_kept() -> None:
    """The least distance is where `a` counts half and `c` twice as much."""

    def found(weights: CurveWeights) -> float:
        wanted = {"a": 1 / GROUP, "c": GROUP}
        off = sum(abs(math.log(weights.weight(n, 0, residual=False) / wanted.get(n, 1.0))) for n in "abc")
        return 1 + off + weights.depth + (weights.residual != 1)

    trials = Trials(found)
    weights = trials.find(("a", "b", "c"), 24)
    assert weights == CurveWeights(groups=(("a", 1 / GROUP), ("c", GROUP)))
    singles = [dict(t.groups) for t in trials.tried if isinstance(t, CurveWeights) and t.groups]
    assert singles == [
        {"a": 2.0},
        {"a": 0.5},
        {"a": 0.5, "b": 2.0},
        {"a": 0.5, "b": 0.5},
        {"a": 0.5, "c": 2.0},
    ]


# --- uniform shares --------------------------------------------------------------------------------------------------
STEPS = {AS_MEASURED: 1.0, FIRST: 0.8, SECOND: 0.9, aside(FIRST): 0.9}


@pytest.mark.parametrize(
    ("uniform", "weights"), [(0.79, None), (0.8, FIRST), (0.9, FIRST), (math.nan, FIRST)]
)
def test_uniform_shares_are_taken_only_where_they_come_nearer(
    uniform: float, weights: CurveWeights | None
) -> None:
    assert Trials(STEPS, uniform).find() == weights


def test_uniform_shares_that_miss_the_budget_are_not_tried() -> None:
    trials = Trials(STEPS, uniform=0.0)
    assert trials.find(reached=False) == FIRST
    assert "uniform" not in trials.tried
    assert search_weights(trials.plan_for, None, trials.distance, PassLog()) == FIRST


# --- equal plans -----------------------------------------------------------------------------------------------------
def test_equal_plans_are_tried_once() -> None:
    """Whatever the weights, all of a group goes: neither steps nor uniform shares change anything."""
    measured: list[Plan] = []

    def distance(plan: Plan) -> float:
        measured.append(plan)
        return 1.0

    same = [plan_of(5) for _ in range(9)]
    log = PassLog()
    assert search_weights(lambda _: same.pop(), plan_of(5), distance, log, ("g",), 4) == AS_MEASURED
    assert len(measured) == 1
    assert log.notes == []


def test_plans_that_drop_other_blocks_are_not_equal() -> None:
    measured: list[Plan] = []

    def plan_for(weights: CurveWeights) -> Plan:
        name = "early" if weights == AS_MEASURED else "late"
        block = Block(name, "b", "s", ("n",), ("g",))
        return replace(plan_of(5), drops=(Drop(block, np.zeros((1, 1)), 1),))

    def distance(plan: Plan) -> float:
        measured.append(plan)
        return float(plan.drops[0].block.name == "early")

    assert search_weights(plan_for, None, distance, PassLog()) == FIRST
    assert [p.drops[0].block.name for p in measured] == ["early", "late"]


# --- what is reported ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("uniform", "words"),
    [
        (0.85, "1 as measured, 0.8 with weighted curves (depth 2; chosen), 0.85 uniform"),
        (0.5, "1 as measured, 0.8 with weighted curves (depth 2), 0.5 uniform (chosen)"),
    ],
)
def test_the_note_has_every_divergence_and_what_was_chosen(uniform: float, words: str) -> None:
    trials = Trials(STEPS, uniform)
    trials.find()
    assert trials.log.notes == [f"allocation search: 5 trial refits; divergence {words}"]


def test_the_note_says_where_curves_were_best_as_measured() -> None:
    trials = Trials({AS_MEASURED: 1.0, FIRST: 1.1, aside(AS_MEASURED): 1.2})
    trials.find(reached=False)
    assert trials.log.notes[0].endswith("; divergence 1 as measured (chosen)")


# --- weights ---------------------------------------------------------------------------------------------------------
def test_weights_weigh_depth_streams_and_groups_independently() -> None:
    weights = CurveWeights(2.0, 4.0).times("a", 2.0).times("b", 0.5).times("a", 2.0)
    assert AS_MEASURED.weight("a", 0.7, residual=True) == 1
    assert weights.weight("c", 0.0, residual=False) == 1
    assert weights.weight("c", 1.0, residual=False) == pytest.approx(math.e**2)
    assert weights.weight("c", 0.0, residual=True) == 4
    assert weights.weight("a", 0.5, residual=True) == pytest.approx(4 * math.e * 4)
    assert weights.weight("b", 0.0, residual=False) == 0.5
    assert str(weights) == "depth 2, residual 4, 2 groups"
    assert str(AS_MEASURED.times("a", 2.0).times("a", 0.5)) == "as measured"
