"""What can be said of passes without running them."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

from onnxcomp.compiler.options import format_option
from onnxcomp.compiler.passbase import Pass
from onnxcomp.compiler.registry import Entry, Registry
from onnxcomp.errors import UsageError

__all__ = ["OptionFacts", "PassFacts", "describe", "list_passes"]


@dataclass(frozen=True)
class OptionFacts:
    """One option of a pass: its `kind` in words, its default as text (None where there is none), its help."""

    name: str
    kind: str
    default: str | None
    help: str


@dataclass(frozen=True)
class PassFacts:
    """One pass on offer; `broken` says why it cannot be used, and then nothing else is known."""

    name: str
    owner: str
    exact: bool | None = None
    stage: str | None = None
    summary: str = ""
    doc: str = ""
    needs: tuple[str, ...] = ()
    options: tuple[OptionFacts, ...] = ()
    broken: str | None = None


def list_passes(registry: Registry | None = None) -> tuple[PassFacts, ...]:
    """Return every pass on offer, those that cannot be used with the reason."""
    registry = registry or Registry.installed()
    return tuple(_facts(registry, entry) for entry in registry.entries())


def describe(name: str, registry: Registry | None = None) -> PassFacts:
    """Return everything about the pass `name`.

    Raises:
        UsageError: for an unknown name, or a pass that cannot be used.
    """
    registry = registry or Registry.installed()
    kind = registry.resolve(name)
    return _described(next(e for e in registry.entries() if e.name == name), kind)


def _facts(registry: Registry, entry: Entry) -> PassFacts:
    try:
        return _described(entry, registry.resolve(entry.name))
    except UsageError as problem:
        return PassFacts(entry.name, entry.owner, broken=str(problem))


def _described(entry: Entry, kind: type[Pass]) -> PassFacts:
    doc = inspect.getdoc(kind) or ""
    options = tuple(
        OptionFacts(o.name, o.kind, None if o.default is None else format_option(o.default), o.help)
        for o in kind.options()
    )
    return PassFacts(
        name=entry.name,
        owner=entry.owner,
        exact=kind.exact,
        stage=kind.stage,
        summary=doc.split("\n", 1)[0],
        doc=doc,
        needs=tuple(sorted(kind().needs())),
        options=options,
    )
