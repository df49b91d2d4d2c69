r"""Pipeline text: `fold-batchnorm,prune-filters{macs=0.5 criterion=obs}` to passes and back.

    pipeline = pass ("," pass)*
    pass     = name [ "{" option* "}" ]
    option   = name "=" value ("," value)*        a list where the option is one
    value    = word | '"' text '"'                \" and \\ inside quotes

Options are separated by spaces. Their types are the annotations of the pass's dataclass fields. Every mistake is a
UsageError that shows the place with a caret and the nearest name, before any file is read.
"""

from __future__ import annotations

import math
import re
import types
import typing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Union

from onnxcomp.compiler.options import Option, is_list
from onnxcomp.compiler.passbase import STAGES, Pass
from onnxcomp.compiler.registry import Registry
from onnxcomp.errors import UsageError, hint, nearest

__all__ = ["Pipeline", "Resolver", "parse"]


class Resolver(Protocol):
    """Anything that turns the name of a pass into its class."""

    def resolve(self, name: str) -> type[Pass]:
        """Return the class of pass `name`, or raise UsageError."""
        ...


@dataclass(frozen=True)
class Pipeline:
    """Passes in the order they run; `str(pipeline)` is text that parses to the same pipeline.

    >>> from onnxcomp.compiler.spec import Pipeline
    >>> pipeline = Pipeline.parse("fold-constants, remove-dead")
    >>> str(pipeline)
    'fold-constants,remove-dead'
    >>> [step.name for step in pipeline.passes]
    ['fold-constants', 'remove-dead']

    Raises:
        UsageError: without passes, or where a pass stands behind one that must come after it.
    """

    passes: tuple[Pass, ...]

    def __post_init__(self) -> None:
        if not self.passes:
            raise UsageError("the pipeline names no pass; `onnxcomp passes` lists them")
        _check_order(self.passes)

    @classmethod
    def parse(cls, text: str, resolver: Resolver | None = None) -> Pipeline:
        """Return the pipeline written as `text`; see `parse`."""
        return parse(text, resolver)

    def __str__(self) -> str:
        return ",".join(map(str, self.passes))


def parse(text: str, resolver: Resolver | None = None) -> Pipeline:
    """Return the pipeline written as `text`, importing the modules of the passes it names and of no others.

    `resolver` knows the passes; by default those of onnxcomp and of installed packages.

    Raises:
        UsageError: for every mistake in `text`, with the line and a caret under the place.
    """
    if resolver is None:
        resolver = Registry.installed()
    return _Parser(text, resolver).pipeline()


def _check_order(passes: Sequence[Pass]) -> None:
    """Raise UsageError at the first pass that must not come after an earlier one."""
    latest: Pass | None = None
    for step in passes:
        if latest is not None and _rank(step) < _rank(latest):
            raise UsageError(
                f"'{step.name}' ({step.stage}) cannot run after '{latest.name}' ({latest.stage}); "
                f"the order is {', '.join(STAGES)}: move it forward"
            )
        if step.stage != "cleanup" and (latest is None or _rank(step) > _rank(latest)):
            latest = step


def _rank(step: Pass) -> int:
    """Return the place of a pass in the order; cleanup fits anywhere before coding."""
    return STAGES.index("quantization" if step.stage == "cleanup" else step.stage)


# --- words -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Token:
    kind: Literal["word", "quoted", "sign", "end"]
    text: str
    start: int
    end: int


_TOKEN = re.compile(r'(?P<word>[^\s{}=,"]+)|"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<sign>[{}=,])', re.DOTALL)


def _tokens(source: str) -> Iterator[_Token]:
    place = 0
    while True:
        while place < len(source) and source[place].isspace():
            place += 1
        if place == len(source):
            yield _Token("end", "", place, place)
            return
        match = _TOKEN.match(source, place)
        if match is None:
            raise _fault(source, place, len(source), "the quotation mark opened here is never closed")
        kind = match.lastgroup
        text = match[kind or 0]
        if kind == "quoted":
            text = re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL)
        yield _Token(kind, text, place, match.end())  # type: ignore[arg-type]
        place = match.end()


def _fault(source: str, start: int, end: int, message: str) -> UsageError:
    """Return the error `message` with the line of `source` it is about and carets under `source[start:end]`."""
    first = source.rfind("\n", 0, start) + 1
    last = source.find("\n", start)
    line = source[first : last if last >= 0 else len(source)]
    width = max(1, min(end, first + len(line)) - start)
    return UsageError(f"{message}\n  {line}\n  {' ' * (start - first)}{'^' * width}")


# --- grammar ---------------------------------------------------------------------------------------------------------
class _Parser:
    """One walk over the tokens of `source`."""

    def __init__(self, source: str, resolver: Resolver) -> None:
        self.source = source
        self.resolver = resolver
        self.tokens = list(_tokens(source))
        self.place = 0

    @property
    def now(self) -> _Token:
        return self.tokens[self.place]

    def next(self) -> _Token:
        token = self.now
        self.place += token.kind != "end"
        return token

    def sees(self, sign: str) -> bool:
        return self.now.kind == "sign" and self.now.text == sign

    def fault(self, token: _Token, message: str) -> UsageError:
        return _fault(self.source, token.start, token.end, message)

    @contextmanager
    def pointing_at(self, token: _Token) -> Iterator[None]:
        """Give errors that know the reason but not the place a caret."""
        try:
            yield
        except UsageError as problem:
            raise self.fault(token, str(problem)) from problem
        except (TypeError, ValueError) as problem:
            raise self.fault(token, f"{token.text}: {problem}") from problem

    def pipeline(self) -> Pipeline:
        passes: list[Pass] = []
        while True:
            name, step = self.step()
            passes.append(step)
            with self.pointing_at(name):
                _check_order(passes)
            if self.now.kind == "end":
                return Pipeline(tuple(passes))
            if not self.sees(","):
                raise self.fault(self.now, f"a comma is needed between passes, not '{self.now.text}'")
            self.next()

    def step(self) -> tuple[_Token, Pass]:
        name = self.next()
        if name.kind != "word":
            raise self.fault(name, "the name of a pass is missing here; `onnxcomp passes` lists them")
        with self.pointing_at(name):
            kind = self.resolver.resolve(name.text)
        values = self.options(name, kind) if self.sees("{") else {}
        with self.pointing_at(name):
            step = kind(**values)
            step.check()
        return name, step

    def options(self, owner: _Token, kind: type[Pass]) -> dict[str, Any]:
        brace = self.next()
        known = {o.name: o for o in kind.options()}
        values: dict[str, Any] = {}
        while not self.sees("}"):
            key = self.next()
            if key.kind == "end":
                raise self.fault(brace, "the brace opened here is never closed; add a }")
            if key.kind == "sign" and key.text == ",":
                raise self.fault(key, "options are separated by spaces, not commas")
            if key.kind != "word":
                raise self.fault(key, f"the name of an option is missing before '{key.text}'")
            if key.text not in known:
                near = hint(key.text, known) or "; it has none"
                raise self.fault(key, f"{owner.text}: unknown option '{key.text}'{near}")
            option = known[key.text]
            if option.field in values:
                raise self.fault(key, f"{owner.text}: option '{key.text}' is given twice; keep one")
            words = self.values(owner, key, option)
            values[option.field] = self.converted(owner, option, words)
        self.next()
        return values

    def values(self, owner: _Token, key: _Token, option: Option) -> list[_Token]:
        """Return the tokens of the values behind `key`; none where an empty list is written (`key=`)."""
        if not self.sees("="):
            raise self.fault(
                key, f"{owner.text}: option '{key.text}' needs a value: {key.text}={option.kind}"
            )
        self.next()
        words: list[_Token] = []
        while self.now.kind in ("word", "quoted") and not self.starts_option():
            words.append(self.next())
            if not self.sees(","):
                break
            comma = self.next()
            if self.starts_option():
                raise self.fault(comma, "options are separated by spaces, not commas")
            if self.now.kind not in ("word", "quoted"):
                raise self.fault(comma, f"{owner.text}: a value is missing after the comma")
        if not words and not is_list(option.annotation):
            raise self.fault(
                key, f"{owner.text}: option '{key.text}' needs a value: {key.text}={option.kind}"
            )
        return words

    def starts_option(self) -> bool:
        """Return whether the next two tokens are `name =`, the start of another option."""
        after = self.tokens[min(self.place + 1, len(self.tokens) - 1)]
        return self.now.kind == "word" and after.kind == "sign" and after.text == "="

    def converted(self, owner: _Token, option: Option, words: list[_Token]) -> Any:
        try:
            return _convert(option.annotation, words)
        except _Mismatch as problem:
            given = ",".join(w.text for w in words)
            first, last = (words[0], words[-1]) if words else (owner, owner)
            raise _fault(
                self.source,
                first.start,
                last.end,
                f"{owner.text}: option '{option.name}' takes {_article(option.kind)}, not '{given}'{problem}",
            ) from None


# --- types -----------------------------------------------------------------------------------------------------------
class _Mismatch(Exception):  # noqa: N818 - never leaves this module
    """The words do not fit the annotation; the text is a hint to append."""


def _convert(annotation: Any, words: Sequence[_Token]) -> Any:
    """Return the value that `words` write, of the type `annotation`."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        return _convert_union(args, words)
    if origin is tuple:
        if args[-1] is ...:
            return tuple(_convert(args[0], [w]) for w in words)
        if len(args) != len(words):
            raise _Mismatch(f"; it needs {len(args)} values")
        return tuple(_convert(a, [w]) for a, w in zip(args, words, strict=True))
    if len(words) != 1:
        raise _Mismatch("; it takes one value")
    if origin is Literal:
        choices = {str(a): a for a in args}
        if words[0].text not in choices:
            near = nearest(words[0].text, choices, 1) if len(choices) > 1 else []
            raise _Mismatch(f"; did you mean '{near[0]}'?" if near else "")
        return choices[words[0].text]
    return _convert_plain(annotation, words[0])


def _convert_union(args: Sequence[Any], words: Sequence[_Token]) -> Any:
    """Return the value as the first alternative that fits; a bare `none` is None."""
    if type(None) in args and len(words) == 1 and words[0].kind == "word" and words[0].text.lower() == "none":
        return None
    hints: list[str] = []
    for alternative in args:
        if alternative is type(None):
            continue
        try:
            return _convert(alternative, words)
        except _Mismatch as problem:
            hints.append(str(problem))
    raise _Mismatch(hints[0] if len(hints) == 1 else "")


def _convert_plain(annotation: type, word: _Token) -> Any:
    if annotation is str:
        return word.text
    try:
        if annotation is bool:
            return {"true": True, "false": False}[word.text.lower()]
        if annotation is int:
            return int(word.text)
        number = float(word.text)
    except (KeyError, ValueError) as problem:
        raise _Mismatch from problem
    if math.isnan(number):
        # A NaN is unequal to itself: the text of such a pipeline would not parse to the same pipeline.
        raise _Mismatch
    return number


def _article(kind: str) -> str:
    return kind if "|" in kind or kind == "text" else f"a {kind}"
