"""The user's `--exclude` patterns, matched once on the loaded graph."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase

from onnxcomp.errors import UsageError, nearest
from onnxcomp.ir.graph import Node
from onnxcomp.ir.model import Model

__all__ = ["check_pattern", "excluded_nodes", "matching_nodes"]


def excluded_nodes(model: Model, patterns: Iterable[str]) -> frozenset[str]:
    """Return the names of the nodes of `model` that the user excludes; see `matching_nodes`."""
    return matching_nodes(model, patterns, "--exclude")


def matching_nodes(model: Model, patterns: Iterable[str], option: str) -> frozenset[str]:
    """Return the names of the nodes of `model` that any of `patterns` matches; `option` names the option that held them.

    A pattern is a node's name as it is, a glob over whole names (`*`, `?`, `[abc]`), `re:` and a regular expression
    searched in names, or `op:` and an operator (`op:Softmax`, `op:com.microsoft.Gelu`). A node without a name in the
    file goes by the name of its first output.

    Raises:
        UsageError: for a pattern that matches nothing, with the nearest names; for a malformed expression.
    """
    found: set[str] = set()
    for pattern in patterns:
        matches = _matcher(pattern, option)
        names = {node.name for node in model.graph.nodes if matches(node)}
        if not names:
            raise UsageError(f"{option} '{pattern}' matches no node{_nearest(model, pattern)}")
        found |= names
    return frozenset(found)


def check_pattern(pattern: str) -> None:
    """Raise UsageError for a pattern that can match nothing in any model: empty, or a malformed expression."""
    _matcher(pattern)


def _matcher(pattern: str, option: str = "--exclude") -> Callable[[Node], bool]:
    kind, colon, rest = pattern.partition(":")
    if not pattern or (colon and kind in ("re", "op") and not rest):
        raise UsageError(
            f"{option} '{pattern}' is empty; give a node's name, a glob, re:EXPRESSION or op:OPERATOR"
        )
    if kind == "op" and colon:
        return lambda node: rest in (node.op, f"{node.domain}.{node.op}")
    if kind == "re" and colon:
        try:
            expression = re.compile(rest)
        except re.error as problem:
            raise UsageError(f"{option} '{pattern}' is no regular expression: {problem}") from problem
        return lambda node: expression.search(node.name) is not None
    # Names such as `conv[1]` are common, and as globs would match something else.
    return lambda node: node.name == pattern or fnmatchcase(node.name, pattern)


def _nearest(model: Model, pattern: str) -> str:
    kind, colon, rest = pattern.partition(":")
    by_op = bool(colon) and kind == "op"
    known = list(dict.fromkeys(node.op if by_op else node.name for node in model.graph.nodes))
    word = re.sub(r"[*?^$\[\]]", "", rest if colon and kind in ("re", "op") else pattern)
    near = nearest(word, known) or _near_parts(word, known) or known[:3]
    if not near:
        return "; the graph has no nodes"
    return "; near: " + ", ".join(f"op:{n}" if by_op else n for n in near)


def _near_parts(word: str, names: list[str]) -> list[str]:
    """Return names of which a part (between slashes and dots) looks like a part of `word`."""
    parts = {part for name in names for part in re.split(r"[/.]", name) if part}
    wanted = [near for part in re.split(r"[/.]", word) if part for near in nearest(part, parts, 1)]
    return [name for name in names if any(part in re.split(r"[/.]", name) for part in wanted)][:3]
