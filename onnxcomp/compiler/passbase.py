"""What a pass is: options, needs, results, and the context it runs in."""

from __future__ import annotations

import dataclasses
import typing
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from onnxcomp.compiler.context import Context, Progress
from onnxcomp.compiler.options import Option, format_option, option
from onnxcomp.errors import shortened

if TYPE_CHECKING:
    from onnxcomp.ir.model import Model

__all__ = [
    "STAGES",
    "Change",
    "Context",
    "Need",
    "Option",
    "Pass",
    "PassLog",
    "PassResult",
    "Progress",
    "Skip",
    "option",
]

Need: TypeAlias = Literal["calibration", "labels", "shapes"]
"""What a pass may need of the driver: samples, their labels, concrete shapes of the graph inputs."""


@dataclass(frozen=True)
class Change:
    """One thing a pass did: `where` names a node or value, `what` is a sentence, `details` are figures."""

    where: str
    what: str
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Skip:
    """One place a pass declined, always with a reason a user can act on."""

    where: str
    reason: str


@dataclass(frozen=True)
class PassResult:
    """What a pass returns. `shortfall` says in a sentence why a budget of the pass was not reached (exit code 4)."""

    model: Model
    changed: bool
    changes: tuple[Change, ...] = ()
    skips: tuple[Skip, ...] = ()
    notes: tuple[str, ...] = ()
    shortfall: str | None = None


class PassLog:
    """Collects changes, skips and notes while a pass runs; `result` makes the PassResult."""

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.skips: list[Skip] = []
        self.notes: list[str] = []
        self.shortfall: str | None = None

    def change(self, where: str, what: str, **details: Any) -> None:
        """Record something done."""
        self.changes.append(Change(where, what, details))

    def skip(self, where: str, reason: str) -> None:
        """Record a place declined, once per place and reason."""
        skip = Skip(where, shortened(reason))
        if skip not in self.skips:
            self.skips.append(skip)

    def note(self, text: str) -> None:
        """Record something the user should know, once."""
        text = shortened(text)
        if text not in self.notes:
            self.notes.append(text)

    def result(self, model: Model) -> PassResult:
        """Return the PassResult: changed if and only if a change was recorded."""
        return PassResult(
            model,
            bool(self.changes),
            tuple(self.changes),
            tuple(self.skips),
            tuple(self.notes),
            self.shortfall,
        )


@dataclass(frozen=True)
class Pass(ABC):
    """Base of every pass: a frozen dataclass whose fields are its options.

    Contract: `run` gets a clone it may edit (arrays are shared: never write into one), and returns a PassResult whose
    `changed` is true if and only if the model differs. The model is valid before and after; the driver verifies it.

    >>> from dataclasses import dataclass
    >>> from onnxcomp.compiler.passbase import Pass, PassLog, option
    >>> @dataclass(frozen=True)
    ... class Rename(Pass):
    ...     '''Give the graph another name.'''
    ...     name = "rename"
    ...     exact = True
    ...     to: str = option("net", "the new name")
    ...     def run(self, model, context):
    ...         log = PassLog()
    ...         if model.graph.name != self.to:
    ...             log.change("graph", f"{model.graph.name} -> {self.to}")
    ...             model.graph.name = self.to
    ...         return log.result(model)
    >>> str(Rename(to="small"))
    'rename{to=small}'
    """

    name: ClassVar[str]
    exact: ClassVar[bool] = False
    stage: ClassVar[Literal["cleanup", "structure", "numbers", "quantization", "coding"]] = "structure"
    """Order of kinds: structure before numbers before quantization before coding; cleanup anywhere before coding."""
    data_free: ClassVar[bool] = False
    """Whether samples made from the model itself (`run/synthetic_samples.py`) may stand in for the user's under `--calibration none`."""

    def needs(self) -> frozenset[Need]:
        """Return what the driver must supply for these options."""
        return frozenset()

    def check(self) -> None:
        """Raise UsageError where options contradict each other or are out of range; called before any file is read."""
        return

    def may_fall_short(self) -> bool:
        """Return whether `run` may end with a shortfall, so that the best effort needs a place to go."""
        return False

    def milder(self) -> tuple[str, ...]:
        """Return this pass as text with options that lose less, the most promising first, for who ends with too great a loss."""
        return ()

    def without_samples(self) -> str | None:
        """Return the options, as text, that would spare these needs their samples; None where none would."""
        return None

    @abstractmethod
    def run(self, model: Model, context: Context) -> PassResult:
        """Transform `model` (in place or not) and say what was done."""

    @classmethod
    def options(cls) -> tuple[Option, ...]:
        """Return the options in the order they are printed."""
        hints = typing.get_type_hints(cls)
        return tuple(
            Option(f.name.replace("_", "-"), f.name, hints[f.name], f.default, f.metadata.get("help", ""))
            for f in dataclasses.fields(cls)
        )

    def __str__(self) -> str:
        words = []
        for opt in self.options():
            value = getattr(self, opt.field)
            if value != opt.default:
                words.append(f"{opt.name}={format_option(value)}")
        return self.name + ("{" + " ".join(words) + "}" if words else "")


STAGES = ("structure", "numbers", "quantization", "coding")
"""The order in which kinds of passes make sense: each would undo or forbid the work of the later ones."""
