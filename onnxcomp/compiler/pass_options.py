"""Options that passes share, each kind with its checks: a budget, what a replacement must save, how layers are refitted."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from onnxcomp.compiler.options import Option, at_least, in_range, option
from onnxcomp.compiler.passbase import Need, Pass
from onnxcomp.errors import UsageError

__all__ = [
    "BUDGETS",
    "Accept",
    "AcceptOptions",
    "BudgetOptions",
    "RepairName",
    "RepairOptions",
    "SharedOptions",
]

Accept: TypeAlias = Literal["macs", "latency", "size"]
"""What a replacement must save to be chosen."""

RepairName: TypeAlias = Literal["sequential", "one-shot", "none"]
"""How the weights behind a change are refitted: layer by layer from the changed network's values, once, or not."""

BUDGETS = ("macs", "params", "latency")
"""Goals that are shares of the whole model which may remain; other goals are rules for each place alone."""


@dataclass(frozen=True)
class SharedOptions(Pass):
    """Base of the mixins: a pass lists its own options first, then those of its mixins in the order of the bases.

    A mixin is an abstract pass. Its `check` and `needs` call those of the next base, and so must those of a pass that uses it.
    """

    wording: ClassVar[Mapping[str, str]] = {}
    """Help of shared options in this pass's own words, by field."""
    behind: ClassVar[Mapping[str, str]] = {}
    """Fields of own options that stand behind a shared one, and behind which."""

    @classmethod
    def options(cls) -> tuple[Option, ...]:
        """Return the options in the order they are printed."""
        found = {o.field: o for o in super().options()}
        mixins = [kind for kind in cls.__mro__ if inspect.isabstract(kind) and dataclasses.is_dataclass(kind)]
        shared = list(dict.fromkeys(f.name for kind in mixins for f in dataclasses.fields(kind)))
        order = [name for name in found if name not in shared] + shared
        for name, before in cls.behind.items():
            order.remove(name)
            order.insert(order.index(before) + 1, name)
        return tuple(
            dataclasses.replace(found[name], help=cls.wording.get(name, found[name].help)) for name in order
        )


@dataclass(frozen=True)
class BudgetOptions(SharedOptions):
    """How far a pass goes: exactly one of its `goals`, which are budgets for the whole model or rules of its own."""

    goals: ClassVar[tuple[str, ...]] = BUDGETS
    """Fields of the options of which one is given, in the order they are printed: `BUDGETS` and what a pass adds."""

    macs: float | None = option(None, "share of the multiply-accumulates that may remain, 0 < macs <= 1")
    params: float | None = option(None, "share of the parameters that may remain, 0 < params <= 1")
    latency: float | None = option(
        None,
        "share of the measured time that may remain (batch 1, one thread, this machine), 0 < latency <= 1",
    )

    @classmethod
    def options(cls) -> tuple[Option, ...]:
        """Return the options in the order they are printed: goals first."""
        found = {o.field: o for o in super().options()}
        return tuple(found[name] for name in dict.fromkeys((*cls.goals, *found)))

    def goal(self) -> tuple[str, float]:
        """Return the field of the goal that is given, and its value.

        Raises:
            UsageError: unless exactly one is given.
        """
        shown = [field.replace("_", "-") for field in self.goals]
        given = [field for field in self.goals if getattr(self, field) is not None]
        if len(given) != 1:
            names = " and ".join(field.replace("_", "-") for field in given)
            said = f"{names} are given" if given else "none of them is given"
            raise UsageError(f"{self.name}: give one of {', '.join(shown[:-1])} and {shown[-1]}; {said}")
        return given[0], getattr(self, given[0])

    def check(self) -> None:
        """Raise UsageError unless exactly one goal is given; a budget is above 0 and at most 1."""
        super().check()
        field, value = self.goal()
        if field in BUDGETS:
            in_range(self.name, field, value, 0, 1)
            if value == 0:
                raise UsageError(f"{self.name}: {field}=0 leaves nothing; give the share that may remain")

    def milder(self) -> tuple[str, ...]:
        """Return the pass with a budget half-way between this one and the whole, where a budget is given."""
        field, value = self.goal()
        if field not in BUDGETS or value >= 1:
            return super().milder()
        half_way = dataclasses.replace(self, **{field: round((1 + value) / 2, 3)})
        return (*super().milder(), str(half_way))

    def may_fall_short(self) -> bool:
        """Return whether a budget is given, which the model may turn out not to reach."""
        return self.goal()[0] in BUDGETS


@dataclass(frozen=True)
class AcceptOptions(BudgetOptions):
    """What a single replacement must save to be chosen, beside the goal."""

    accept: Literal["macs", "latency", "size"] = option(
        "macs",
        "what a replacement must save to be chosen: multiply-accumulates, time (measured beside the layer, on its own "
        "sizes), or bytes",
    )
    min_saving: float = option(0.1, "the share of it that a replacement must save, 0 <= min-saving < 1")

    def check(self) -> None:
        """Raise UsageError where the saving is out of range or contradicts the budget."""
        super().check()
        in_range(self.name, "min-saving", self.min_saving, 0, 1, open_high=True)
        if self.latency is not None and self.accept == "size":
            raise UsageError(
                f"{self.name}: a budget of latency takes what saves time; leave out accept=size, or give params= instead"
            )


@dataclass(frozen=True)
class RepairOptions(SharedOptions):
    """How the layers that a change reaches are refitted from calibration samples, without labels."""

    repair: Literal["sequential", "one-shot", "none"] = option(
        "sequential",
        "refit layer by layer from the changed network's own values, once from the original's, or not at all",
    )
    sweeps: int = option(
        1, "times the network is walked from front to back, as long as the error on held-back samples falls"
    )

    @property
    def refits(self) -> bool:
        """Whether weights are refitted to samples."""
        return self.repair != "none"

    def check(self) -> None:
        """Raise UsageError where sweeps are out of range or contradict the mode."""
        super().check()
        at_least(self.name, "sweeps", self.sweeps, 1)
        self.check_sequential("sweeps", asked=self.sweeps > 1)

    def check_sequential(self, name: str, *, asked: bool) -> None:
        """Raise UsageError where the option `name`, if `asked` for, has no walk to work on."""
        if asked and self.repair != "sequential":
            raise UsageError(f"{self.name}: {name} needs repair=sequential, not {self.repair}")

    def milder(self) -> tuple[str, ...]:
        """Return the pass with the best refit first, where another one was asked for."""
        best = () if self.repair == "sequential" else (str(dataclasses.replace(self, repair="sequential")),)
        return (*best, *super().milder())

    def needs(self) -> frozenset[Need]:
        """Return `shapes` always, and `calibration` where weights are refitted."""
        own: frozenset[Need] = frozenset({"shapes", "calibration"} if self.refits else {"shapes"})
        return super().needs() | own

    def without_samples(self) -> str:
        """Return what would have to change for nothing to be measured on samples."""
        return "repair=none"
