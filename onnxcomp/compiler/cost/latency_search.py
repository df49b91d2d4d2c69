"""The guard of a budget of time: plans are made for estimates, and what counts is the clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["CLOSE", "TRIES", "meet_latency"]

PlanT = TypeVar("PlanT")

CLOSE = 0.02
"""How far below the budget a measured ratio may stay before another plan is tried."""

TRIES = 6
"""Plans that are cut and measured at most."""

_WIDEST = 0.5
"""The most by which one step changes the target, as a share of it: far from the data a straight line leads astray."""


@dataclass(frozen=True)
class _Try(Generic[PlanT]):
    target: float
    plan: PlanT
    measured: float


def meet_latency(
    plan_for: Callable[[float], PlanT], measure: Callable[[PlanT], float], wanted: float
) -> tuple[PlanT, float, list[str]]:
    """Return the plan whose measured ratio is at most `wanted` and nearest below, that ratio, and a note of each try.

    `plan_for` makes a plan for an estimated ratio, as good as it can where it cannot reach it; `measure` really cuts by a
    plan and returns the time of the result as a share of the original's. The estimated target is searched for by secant
    steps, kept between the nearest tries on both sides; the search ends within `CLOSE` below `wanted`, after `TRIES`,
    or when a new target brings no new measurement. Where no plan gets there, the fastest is returned and its ratio is above
    `wanted`.
    """
    tries: list[_Try[PlanT]] = []
    target = wanted
    for _ in range(TRIES):
        plan = plan_for(target)
        tries.append(_Try(target, plan, measure(plan)))
        if wanted * (1 - CLOSE) <= tries[-1].measured <= wanted:
            break
        target = _next(tries, wanted)
        if any(abs(target - t.target) < 1e-4 * wanted for t in tries):
            break
    notes = [f"latency estimated {t.target:.3f}, measured {t.measured:.3f}" for t in tries]
    within = [t for t in tries if t.measured <= wanted]
    best = max(within, key=lambda t: t.measured) if within else min(tries, key=lambda t: t.measured)
    return best.plan, best.measured, notes


def _next(tries: list[_Try[PlanT]], wanted: float) -> float:
    """Return the estimated ratio to plan for next, aiming at the middle of what is close enough."""
    aim = wanted * (1 - CLOSE / 2)
    last = tries[-1]
    slow = [t for t in tries if t.measured > wanted]
    fast = [t for t in tries if t.measured <= wanted]
    guess = last.target * aim / last.measured
    if slow and fast:
        # The nearest on both sides; their targets enclose the answer unless measurements contradict each other.
        above, below = min(slow, key=lambda t: t.measured), max(fast, key=lambda t: t.measured)
        low, high = sorted((below.target, above.target))
        rise = above.measured - below.measured
        guess = below.target + (above.target - below.target) * (aim - below.measured) / rise
        margin = 0.1 * (high - low)
        return min(max(guess, low + margin), high - margin)
    if len(tries) > 1:
        before = tries[-2]
        rise = last.measured - before.measured
        run = last.target - before.target
        if rise * run > 0:
            guess = last.target + run * (aim - last.measured) / rise
    return min(max(guess, last.target * (1 - _WIDEST)), last.target * (1 + _WIDEST))
