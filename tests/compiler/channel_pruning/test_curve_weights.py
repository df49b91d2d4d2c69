"""The search for the lean of measured shares, on made networks whose distance is a function of the plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest

from onnxcomp.analysis.blocks import Block
from onnxcomp.compiler.channel_pruning.curve_weights import AS_MEASURED, GROUP, LATE, STREAMS, Lean, find_lean
from onnxcomp.compiler.channel_pruning.problem import Drop, Plan
from onnxcomp.compiler.passbase import PassLog

UNITS = 4096


def plan_of(number: int, *, reached: bool = True) -> Plan:
    """One plan per number: the number in binary is what stays of the only group."""
    return Plan({"g": np.array([number >> bit & 1 for bit in range(24)], bool)}, reached)


def number_of(plan: Plan) -> int:
    return sum(int(kept) << bit for bit, kept in enumerate(plan.keep["g"]))


class Trials:
    """Makes a plan of its own for every lean, and says how far each is from the original."""

    def __init__(
        self, found: Mapping[Lean, float] | Callable[[Lean], float], uniform: float = math.inf
    ) -> None:
        self.found = found if callable(found) else found.__getitem__
        self.uniform = uniform
        self.leans: list[Lean] = []
        self.carried_out: list[Lean | str] = []
        self.log = PassLog()

    def plan_for(self, lean: Lean) -> Plan:
        if lean not in self.leans:
            self.leans.append(lean)
        return plan_of(1 + self.leans.index(lean))

    def distance(self, plan: Plan) -> float:
        number = number_of(plan)
        if number == UNITS:
            self.carried_out.append("uniform")
            return self.uniform
        lean = self.leans[number - 1]
        self.carried_out.append(lean)
        return self.found(lean)

    def find(self, groups: tuple[str, ...] = (), more: int = 0, *, reached: bool = True) -> Lean | None:
        uniform = plan_of(UNITS, reached=reached)
        return find_lean(self.plan_for, uniform, self.distance, self.log, groups, more)


FIRST, SECOND = Lean(LATE[0]), Lean(LATE[1])


def aside(lean: Lean) -> Lean:
    return replace(lean, streams=STREAMS[0])


def far(lean: Lean) -> Lean:
    return replace(lean, streams=STREAMS[1])


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
def test_a_step_is_kept_only_where_the_distance_falls(distances: dict[Lean, float], best: Lean) -> None:
    trials = Trials(distances)
    assert trials.find() == best
    assert trials.carried_out == [*distances, "uniform"], "nothing is carried out beyond what is needed"
    assert len(trials.carried_out) <= 6


@pytest.mark.parametrize("more", [1, 2, 5, 24])
@pytest.mark.parametrize("falls", [True, False])
def test_single_groups_take_at_most_the_plans_they_are_given(more: int, falls: bool) -> None:
    """In the worst case no step but the first ones helps; in the best every one does."""
    groups = tuple("abcdef")

    def found(lean: Lean) -> float:
        steps = len(lean.groups)
        return 10 - lean.late - lean.streams / 100 + (-0.1 if falls else 0.1) * steps

    trials = Trials(found)
    lean = trials.find(groups, more)
    assert lean is not None
    assert (lean.late, lean.streams) == (LATE[1], STREAMS[1])
    wanted = min(more, len(groups) * (1 if falls else 2))
    assert len(trials.carried_out) == 5 + wanted + 1
    assert lean.groups == (tuple((name, GROUP) for name in groups[:wanted]) if falls else ())


def test_a_group_is_tried_both_ways_and_the_next_starts_from_what_was_kept() -> None:
    """The least distance is where `a` counts half and `c` twice as much."""

    def found(lean: Lean) -> float:
        wanted = {"a": 1 / GROUP, "c": GROUP}
        off = sum(abs(math.log(lean.weight(n, 0, stream=False) / wanted.get(n, 1.0))) for n in "abc")
        return 1 + off + lean.late + (lean.streams != 1)

    trials = Trials(found)
    lean = trials.find(("a", "b", "c"), 24)
    assert lean == Lean(groups=(("a", 1 / GROUP), ("c", GROUP)))
    singles = [dict(t.groups) for t in trials.carried_out if isinstance(t, Lean) and t.groups]
    assert singles == [
        {"a": 2.0},
        {"a": 0.5},
        {"a": 0.5, "b": 2.0},
        {"a": 0.5, "b": 0.5},
        {"a": 0.5, "c": 2.0},
    ]


# --- uniform shares --------------------------------------------------------------------------------------------------
STEPS = {AS_MEASURED: 1.0, FIRST: 0.8, SECOND: 0.9, aside(FIRST): 0.9}


@pytest.mark.parametrize(("uniform", "lean"), [(0.79, None), (0.8, FIRST), (0.9, FIRST), (math.nan, FIRST)])
def test_uniform_shares_are_taken_only_where_they_come_nearer(uniform: float, lean: Lean | None) -> None:
    assert Trials(STEPS, uniform).find() == lean


def test_uniform_shares_that_miss_the_budget_are_not_carried_out() -> None:
    trials = Trials(STEPS, uniform=0.0)
    assert trials.find(reached=False) == FIRST
    assert "uniform" not in trials.carried_out
    assert find_lean(trials.plan_for, None, trials.distance, PassLog()) == FIRST


# --- equal plans -----------------------------------------------------------------------------------------------------
def test_equal_plans_are_carried_out_once() -> None:
    """Whatever the lean, all of a group goes: neither steps nor uniform shares change anything."""
    measured: list[Plan] = []

    def distance(plan: Plan) -> float:
        measured.append(plan)
        return 1.0

    same = [plan_of(5) for _ in range(9)]
    log = PassLog()
    assert find_lean(lambda _: same.pop(), plan_of(5), distance, log, ("g",), 4) == AS_MEASURED
    assert len(measured) == 1
    assert log.notes == []


def test_plans_that_drop_other_blocks_are_not_equal() -> None:
    measured: list[Plan] = []

    def plan_for(lean: Lean) -> Plan:
        name = "early" if lean == AS_MEASURED else "late"
        block = Block(name, "b", "s", ("n",), ("g",))
        return replace(plan_of(5), drops=(Drop(block, np.zeros((1, 1)), 1),))

    def distance(plan: Plan) -> float:
        measured.append(plan)
        return float(plan.drops[0].block.name == "early")

    assert find_lean(plan_for, None, distance, PassLog()) == FIRST
    assert [p.drops[0].block.name for p in measured] == ["early", "late"]


# --- what is told ----------------------------------------------------------------------------------------------------
def test_the_note_tells_every_distance_and_what_was_taken() -> None:
    trials = Trials(STEPS, 0.85)
    trials.find()
    (note,) = trials.log.notes
    assert note == (
        "shares by 5 quick repairs, distance of the outputs: as measured 1; late layers spared by 2 0.8; "
        "uniform 0.85; taken: late layers spared by 2"
    )


def test_the_note_says_where_uniform_shares_were_taken() -> None:
    trials = Trials(STEPS, 0.5)
    trials.find()
    assert trials.log.notes[0].endswith("; uniform 0.5; taken: uniform")


# --- weights ---------------------------------------------------------------------------------------------------------
def test_a_lean_weighs_depth_streams_and_groups_independently() -> None:
    lean = Lean(2.0, 4.0).times("a", 2.0).times("b", 0.5).times("a", 2.0)
    assert AS_MEASURED.weight("a", 0.7, stream=True) == 1
    assert lean.weight("c", 0.0, stream=False) == 1
    assert lean.weight("c", 1.0, stream=False) == pytest.approx(math.e**2)
    assert lean.weight("c", 0.0, stream=True) == 4
    assert lean.weight("a", 0.5, stream=True) == pytest.approx(4 * math.e * 4)
    assert lean.weight("b", 0.0, stream=False) == 0.5
    assert str(lean) == "late layers spared by 2, streams by 4, 2 groups weighed"
    assert str(AS_MEASURED.times("a", 2.0).times("a", 0.5)) == "as measured"
