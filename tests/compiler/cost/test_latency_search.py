"""The guard of a latency budget, on made machines whose measurements are functions of the estimate."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcomp.compiler.cost.latency_search import CLOSE, TRIES, meet_latency


class Machine:
    """Plans are the estimates they were made for; `law` says what the clock makes of one."""

    def __init__(self, law: Callable[[float], float]) -> None:
        self.law = law
        self.targets: list[float] = []

    def plan(self, target: float) -> float:
        self.targets.append(target)
        return target

    def meet(self, wanted: float) -> tuple[float, float, list[str]]:
        return meet_latency(self.plan, self.law, wanted)


def test_a_right_estimate_is_taken_at_once() -> None:
    machine = Machine(lambda estimate: 0.995 * estimate)
    plan, measured, notes = machine.meet(0.6)
    assert [plan, measured] == pytest.approx([0.6, 0.597])
    assert notes == ["latency estimated 0.600, measured 0.597"]


@given(
    wanted=st.floats(0.2, 0.95),
    scale=st.floats(0.8, 1.25),
    constant=st.floats(-0.1, 0.1),
    bend=st.floats(-0.15, 0.15),
)
def test_smooth_errors_of_the_estimate_are_mended(
    wanted: float, scale: float, constant: float, bend: float
) -> None:
    machine = Machine(lambda x: max(0.01, x * (scale + bend * (x - wanted)) + constant * wanted))
    plan, measured, notes = machine.meet(wanted)
    assert wanted * (1 - CLOSE) <= measured <= wanted
    assert measured == machine.law(plan)
    assert len(notes) == len(machine.targets) <= TRIES


def test_where_time_moves_in_steps_the_nearest_below_is_taken() -> None:
    machine = Machine(lambda estimate: 0.1 * round(10 * estimate - 0.2))
    plan, measured, _ = machine.meet(0.55)
    assert measured == pytest.approx(0.5)
    assert machine.law(plan) == measured
    assert len(machine.targets) <= TRIES


def test_what_cannot_be_reached_ends_with_the_fastest() -> None:
    machine = Machine(lambda estimate: max(estimate, 0.7))
    _, measured, notes = machine.meet(0.5)
    assert measured == pytest.approx(0.7)
    assert 1 < len(notes) <= TRIES


def test_a_plan_above_the_budget_is_never_taken_while_one_below_is_known() -> None:
    machine = Machine(lambda estimate: 0.61 if estimate > 0.55 else 0.3)
    _, measured, _ = machine.meet(0.6)
    assert measured == 0.3
    assert len(machine.targets) == TRIES


def test_noise_that_contradicts_itself_ends_nonetheless() -> None:
    noise = iter([0.7, 0.75, 0.65, 0.8, 0.4, 0.9])
    plan, measured, _ = meet_latency(lambda target: target, lambda _: next(noise), 0.6)
    assert measured == 0.4
    assert 0 < plan < 1
