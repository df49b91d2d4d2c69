"""Everything onnxcomp raises on purpose.

    OnnxcompError                70   base; never raised itself
    ├── UsageError                2   the call is wrong: option, pass, pattern, path
    ├── ModelError                2   the model file is wrong: unreadable, cyclic, unsafe
    ├── DataError                 2   the sample data is wrong: name, dtype, shape, NaN
    ├── NothingChanged            3   the pipeline left the model as it was
    ├── BudgetError               4   a budget or a bound was not met
    └── PassError                70   a pass failed; a bug of ours or of a plug-in
        ├── PreconditionError     2   a pass was asked for something it cannot do
        └── VerificationError     1   the model a pass made is broken

The number is the exit code of the command line. One message is one line that ends in what to do, where that is known.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import ClassVar

__all__ = [
    "BudgetError",
    "DataError",
    "ModelError",
    "NothingChanged",
    "OnnxcompError",
    "PassError",
    "PreconditionError",
    "UsageError",
    "VerificationError",
    "hint",
    "memory_wanted",
    "nearest",
    "shortened",
]

_LONGEST_NAME = 200
_LONG = re.compile(rf"'[^'\n]{{{_LONGEST_NAME + 1},}}'|\S{{{_LONGEST_NAME + 1},}}")
_WANTED = re.compile(r"[Uu]nable to allocate ([\d.]+ \w+)")


class OnnxcompError(Exception):
    """Base of every error that onnxcomp raises on purpose; `exit_code` is what the command line returns.

    `result` is what `onnxcomp.optimize` had reached when a run ended without being done, None elsewhere.
    """

    exit_code: ClassVar[int] = 70
    result: object = None

    def __init__(self, message: str = "") -> None:
        super().__init__(shortened(message))


class UsageError(OnnxcompError):
    """The call is wrong: an unknown pass, option or pattern, a path that cannot be used."""

    exit_code = 2


class ModelError(OnnxcompError):
    """The model is unreadable, malformed, unsafe or beyond what onnxcomp converts."""

    exit_code = 2


class DataError(OnnxcompError):
    """Sample data does not fit the model: wrong name, dtype, shape, NaN, Inf or nothing at all."""

    exit_code = 2


class NothingChanged(OnnxcompError):  # noqa: N818 - an outcome, not a fault
    """No pass changed the model, so no output was written."""

    exit_code = 3


class BudgetError(OnnxcompError):
    """A budget (`macs`, `params`) or a bound (`--max-drop`, `--require-speedup`, ...) was not met."""

    exit_code = 4


class PassError(OnnxcompError):
    """A pass failed in a way it did not foresee."""

    exit_code = 70


class PreconditionError(PassError):
    """A pass was asked for something it cannot do on this model, with this data."""

    exit_code = 2


class VerificationError(PassError):
    """The model a pass made is broken, or an exact pass changed the numbers."""

    exit_code = 1


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


def shortened(text: str) -> str:
    """Return `text` with every name in it of more than 200 characters cut in the middle: files may hold any name."""
    return _LONG.sub(lambda found: f"{found[0][:130]}...{found[0][-60:]}", text)


def memory_wanted(problem: MemoryError) -> str:
    """Return what `problem` says of the memory that was not to be had: how much, where that is known."""
    found = _WANTED.search(str(problem))
    return f"{found[1]} of memory at once, more than there is" if found else "more memory than there is"
