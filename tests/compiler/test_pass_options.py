"""Options that passes share: their order, their words, and what is refused whoever uses them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest

from onnxcomp.compiler.cost.budget import CountedBudget, TimeBudget, budget_of
from onnxcomp.compiler.options import option
from onnxcomp.compiler.pass_options import BUDGETS, AcceptOptions, BudgetOptions, RepairOptions
from onnxcomp.compiler.passbase import Context, PassLog, PassResult
from onnxcomp.errors import UsageError
from onnxcomp.ir.model import Model


@dataclass(frozen=True)
class Thin(AcceptOptions, RepairOptions):
    """Make a model thinner."""

    name = "thin"
    goals = ("ratio", *BUDGETS)
    behind: ClassVar[Mapping[str, str]] = {"steps": "repair"}
    wording: ClassVar[Mapping[str, str]] = {"sweeps": "how often"}

    steps: int = option(4, "steps")
    ratio: float | None = option(None, "share removed")
    way: Literal["a", "b"] = option("a", "way")

    def run(self, model: Model, context: Context) -> PassResult:
        return PassLog().result(model)


@dataclass(frozen=True)
class Plain(RepairOptions):
    """Refit a model."""

    name = "plain"

    def run(self, model: Model, context: Context) -> PassResult:
        return PassLog().result(model)


def test_goals_come_first_then_own_options_then_shared_ones_with_own_ones_behind_them() -> None:
    assert [o.name for o in Thin.options()] == [
        *("ratio", "macs", "params", "latency"),
        *("way", "accept", "min-saving", "repair", "steps", "sweeps"),
    ]
    assert str(Thin(macs=0.5, sweeps=2, steps=1)) == "thin{macs=0.5 steps=1 sweeps=2}"


def test_a_pass_says_shared_options_in_its_own_words() -> None:
    helps = {o.field: o.help for o in Thin.options()}
    assert helps["sweeps"] == "how often"
    assert helps["macs"] == {o.field: o.help for o in BudgetOptions.options()}["macs"]
    assert {o.field: o.help for o in Plain.options()}["sweeps"] != "how often"


@pytest.mark.parametrize("given", [{}, {"macs": 0.5, "ratio": 0.5}])
def test_exactly_one_goal_is_asked_for_by_name(given: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="thin: give one of ratio, macs, params and latency"):
        Thin(**given).check()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("step", "noun"),
    [
        (Thin(macs=0.0), "macs=0"),
        (Thin(params=1.5), "params=1.5"),
        (Thin(macs=0.5, min_saving=1.0), "min-saving=1"),
        (Thin(latency=0.5, accept="size"), "accept=size"),
        (Thin(macs=0.5, sweeps=0), "sweeps=0"),
        (Thin(macs=0.5, sweeps=2, repair="one-shot"), "repair=sequential"),
        (Plain(sweeps=2, repair="none"), "repair=sequential"),
    ],
)
def test_what_is_out_of_range_or_contradicts_is_refused(step: Thin | Plain, noun: str) -> None:
    with pytest.raises(UsageError, match=noun):
        step.check()


def test_what_is_needed_follows_from_how_weights_are_refitted() -> None:
    assert Plain().needs() == {"shapes", "calibration"}
    assert Plain(repair="none").needs() == {"shapes"}
    assert Plain().without_samples() == "repair=none"


def test_a_budget_may_fall_short_and_a_rule_may_not() -> None:
    assert budget_of(Thin(macs=0.5)) == CountedBudget("macs", 0.5)
    assert budget_of(Thin(params=0.4)) == CountedBudget("params", 0.4)
    assert budget_of(Thin(latency=0.3)) == TimeBudget(0.3)
    assert budget_of(Thin(ratio=0.5)) is None
    assert Thin(macs=0.5).may_fall_short()
    assert not Thin(ratio=0.5).may_fall_short()
