"""Which passes there are: ours by a table of strings, those of installed packages by entry point.

A pass is imported when its name is resolved and not before, so that the command line starts fast and a broken plug-in
stops nobody else. Third parties declare, in their pyproject.toml,

    [project.entry-points."onnxcomp.passes"]
    my-pass = "package.module:MyPass"
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from onnxcomp.compiler.options import supported
from onnxcomp.compiler.passbase import STAGES, Pass
from onnxcomp.errors import UsageError, hint

__all__ = ["GROUP", "Entry", "Offer", "Registry", "offered"]

GROUP = "onnxcomp.passes"
"""The entry-point group in which other packages offer passes."""


@dataclass(frozen=True)
class Offer:
    """What packages can offer: the `noun` of messages, the entry-point `group`, and what makes a class none of it.

    `flaw` gets the name that an object is offered under, and the object; it returns the reason, or "" for a good one.
    """

    noun: str
    group: str
    flaw: Callable[[str, object], str]


def _pass_flaw(name: str, kind: object) -> str:
    return _flaw(name, kind)


PASSES = Offer("pass", GROUP, _pass_flaw)


@dataclass(frozen=True)
class Entry:
    """One class on offer: its `name`, where it is (`module:Class`), which package (`owner`) brings it and what it is."""

    name: str
    target: str
    owner: str
    offer: Offer = PASSES

    def load(self) -> type[Any]:
        """Return the class, importing its module.

        Raises:
            UsageError: where the plug-in is broken; the message names the package and the reason.
        """
        try:
            kind = _imported(self.target)
            reason = self.offer.flaw(self.name, kind)
        except (Exception, SystemExit) as problem:  # noqa: BLE001 - a plug-in may fail in any way on import
            reason = f"{type(problem).__name__}: {' '.join(str(problem).split())}"
        if not reason:
            return typing.cast("type[Any]", kind)
        raise UsageError(
            f"{self.offer.noun} '{self.name}' of {self.owner} is broken: {reason}; update or uninstall the package"
        )


class Registry:
    """All classes of one kind by name, passes by default; two of one name are both refused, naming their owners."""

    def __init__(self, entries: Iterable[Entry], offer: Offer = PASSES) -> None:
        self._offer = offer
        self._entries: dict[str, list[Entry]] = {}
        for entry in entries:
            known = self._entries.setdefault(entry.name, [])
            if entry not in known:
                known.append(entry)

    @classmethod
    def installed(cls) -> Registry:
        """Return our own passes and those of installed packages; imports none of them."""
        builtin: dict[str, str] = importlib.import_module("onnxcomp.passes").BUILTIN
        return cls(offered(builtin, PASSES))

    def names(self) -> tuple[str, ...]:
        """Return all names, ours first."""
        return tuple(self._entries)

    def entries(self) -> tuple[Entry, ...]:
        """Return every entry, those with a name twice included."""
        return tuple(e for entries in self._entries.values() for e in entries)

    def resolve(self, name: str) -> type[Any]:
        """Return the class called `name`, importing its module.

        Raises:
            UsageError: for an unknown name (with the nearest), a name of two owners, a broken plug-in.
        """
        entries = self._entries.get(name, [])
        if not entries:
            raise UsageError(f"unknown {self._offer.noun} '{name}'{hint(name, self._entries)}")
        if len(entries) > 1:
            owners = " and ".join(e.owner for e in entries)
            raise UsageError(f"{self._offer.noun} '{name}' is offered by {owners}; uninstall one of them")
        return entries[0].load()


def offered(builtin: Mapping[str, str], offer: Offer) -> list[Entry]:
    """Return the entries of the table `builtin` and of the entry points of installed packages; imports none of them."""
    ours = [Entry(name, target, "onnxcomp", offer) for name, target in builtin.items()]
    theirs = [Entry(e.name, e.value, _owner(e), offer) for e in entry_points(group=offer.group)]
    return [*ours, *sorted(theirs, key=lambda e: (e.name, e.owner))]


def _owner(point: EntryPoint) -> str:
    if point.dist is None:
        return point.value.partition(":")[0]
    return f"{point.dist.name} {point.dist.version}"


def _imported(target: str) -> object:
    module, _, attribute = target.partition(":")
    found: object = importlib.import_module(module.strip())
    for part in attribute.strip().split("."):
        found = getattr(found, part)
    return found


def _flaw(name: str, kind: object) -> str:
    """Return what makes `kind` no pass called `name`, or "" where nothing does."""
    if not (isinstance(kind, type) and issubclass(kind, Pass)):
        return "it is not a subclass of onnxcomp.Pass"
    if inspect.isabstract(kind):
        return "it has no run method"
    if "__dataclass_params__" not in vars(kind) or not vars(kind)["__dataclass_params__"].frozen:
        return "it is not a @dataclass(frozen=True)"
    if getattr(kind, "name", None) != name:
        return f"its class calls itself {getattr(kind, 'name', None)!r}"
    if kind.stage not in ("cleanup", *STAGES):
        return f"its stage {kind.stage!r} is none of cleanup, {', '.join(STAGES)}"
    for option in kind.options():
        if not supported(option.annotation):
            return f"its option '{option.name}' has a type that no option can have"
        if option.default is dataclasses.MISSING:
            return f"its option '{option.name}' has no default"
    return ""
