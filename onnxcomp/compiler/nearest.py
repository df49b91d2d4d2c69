"""What to say of a word that nobody knows: the nearest ones that exist."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["hint", "nearest"]


def nearest(word: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Return up to `count` of the words in `known` that look like `word`, the nearest first."""
    words = list(dict.fromkeys(known))
    by_case = {w.casefold(): w for w in reversed(words)}
    found = [by_case[w] for w in get_close_matches(word.casefold(), by_case, n=count, cutoff=0.5)]
    holding = [w for w in words if word and word.casefold() in w.casefold() and w not in found]
    return (found + holding)[:count]


def hint(word: str, known: Iterable[str], *, plural: str = "known") -> str:
    """Return `"; did you mean 'x'?"` where something looks like `word`, else `"; known: a, b"`, else nothing."""
    words = list(dict.fromkeys(known))
    near = nearest(word, words, 1)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; {plural}: {', '.join(words)}" if words else ""
