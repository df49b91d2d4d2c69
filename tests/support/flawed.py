"""Passes that their registry must refuse, each for one reason."""

from __future__ import annotations

from dataclasses import dataclass, field

from onnxcomp.compiler.options import option
from onnxcomp.compiler.passbase import Context, Pass, PassResult
from onnxcomp.ir import Model


class NoPass:
    name = "flawed"


@dataclass(frozen=True)
class Unfinished(Pass):
    name = "flawed"


@dataclass(frozen=True)
class Whole(Pass):
    """Do nothing."""

    name = "flawed"

    def run(self, model: Model, context: Context) -> PassResult:
        return PassResult(model, False)


class NotADataclass(Whole):
    """Inherits one, and is none."""


@dataclass(frozen=True)
class OtherName(Whole):
    name = "another"


@dataclass(frozen=True)
class OtherStage(Whole):
    stage = "someday"  # type: ignore[assignment]


@dataclass(frozen=True)
class NoDefault(Whole):
    size: int = field(kw_only=True)


@dataclass(frozen=True)
class StrangeType(Whole):
    sizes: dict[str, int] = option(None, "no text writes this")  # noqa: RUF009


@dataclass(frozen=True)
class UnknownType(Whole):
    sizes: Nowhere = option(None, "nobody knows this name")  # type: ignore[name-defined] # noqa: F821, RUF009
