"""The text of pipelines: what it means, that it comes back, and what is said about every mistake."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcomp.compiler.options import in_range, option, supported
from onnxcomp.compiler.passbase import Context, Pass, PassLog, PassResult
from onnxcomp.compiler.spec import Pipeline
from onnxcomp.errors import UsageError
from onnxcomp.ir import Model


@dataclass(frozen=True)
class Every(Pass):
    """Has an option of every type."""

    name = "every"
    share: float = option(0.5, "a number")
    count: int = option(1, "a whole number")
    loud: bool = option(False, "a truth value")
    text: str = option("plain", "a text")
    norm: Literal["l1", "l2"] = option("l1", "a choice")
    block: Literal[1, 8, 16] = option(1, "a choice of numbers")
    limit: float | None = option(None, "perhaps a number")
    label: str | None = option("on", "perhaps a text")
    width: int | Literal["auto"] = option("auto", "a number or a word")
    names: tuple[str, ...] = option((), "texts")
    window: tuple[int, int] = option((3, 3), "two numbers")

    def check(self) -> None:
        in_range(self.name, "share", self.share, 0, 1)

    def run(self, model: Model, context: Context) -> PassResult:
        return PassLog().result(model)


@dataclass(frozen=True)
class Bare(Pass):
    """Has no options, and belongs behind the others."""

    name = "bare"
    stage = "quantization"

    def run(self, model: Model, context: Context) -> PassResult:
        return PassLog().result(model)


@dataclass(frozen=True)
class Sweep(Pass):
    """Fits anywhere before coding."""

    name = "sweep"
    stage = "cleanup"

    def run(self, model: Model, context: Context) -> PassResult:
        return PassLog().result(model)


@dataclass(frozen=True)
class Pack(Pass):
    """Belongs at the end."""

    name = "pack"
    stage = "coding"

    def run(self, model: Model, context: Context) -> PassResult:
        return PassLog().result(model)


class Known:
    """Resolves the passes of this file."""

    def resolve(self, name: str) -> type[Pass]:
        known: dict[str, type[Pass]] = {k.name: k for k in (Every, Bare, Sweep, Pack)}
        if name not in known:
            raise UsageError(f"unknown pass '{name}'")
        return known[name]


def parse(text: str) -> Pipeline:
    return Pipeline.parse(text, Known())


def test_options_get_the_types_of_their_fields() -> None:
    text = (
        'every{share=1e-1 count=-3 loud=true text="a b" norm=l2 block=8 limit=2 width=7 names=a,b window=1,2}'
    )
    step = parse(text).passes[0]
    assert step == Every(0.1, -3, True, "a b", "l2", 8, 2.0, "on", 7, ("a", "b"), (1, 2))
    assert isinstance(step, Every)
    assert isinstance(step.limit, float)
    assert isinstance(step.block, int)


def test_blanks_and_line_breaks_between_words_mean_nothing() -> None:
    assert parse(" every { share = 0.25\n count=2 } ,\n\tbare ") == parse("every{share=0.25 count=2},bare")


def test_empty_braces_are_as_good_as_none() -> None:
    assert parse("every{}") == parse("every")


def test_none_is_none_and_quoted_none_is_a_text() -> None:
    assert parse("every{label=none}").passes[0] == Every(label=None)
    assert parse('every{label="none"}').passes[0] == Every(label="none")
    assert parse(str(parse('every{label="None"}'))).passes[0] == Every(label="None")


def test_a_list_can_be_empty_and_the_next_option_is_not_swallowed() -> None:
    assert parse("every{names= count=2}").passes[0] == Every(names=(), count=2)


def test_only_what_differs_from_the_default_is_printed() -> None:
    assert str(parse("every{share=0.5 count=2 label=none}")) == "every{count=2 label=none}"


def test_the_same_pass_may_come_twice() -> None:
    assert str(parse("sweep,every,sweep")) == "sweep,every,sweep"


def test_cleanup_fits_anywhere_before_coding() -> None:
    assert str(parse("sweep,every,sweep,bare,sweep,pack")) == "sweep,every,sweep,bare,sweep,pack"


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
PASSES = st.one_of(
    st.builds(
        Every,
        share=st.floats(0, 1),
        count=st.integers(),
        loud=st.booleans(),
        text=TEXTS,
        norm=st.sampled_from(["l1", "l2"]),
        block=st.sampled_from([1, 8, 16]),
        limit=st.none() | st.floats(allow_nan=False),
        label=st.none() | TEXTS,
        width=st.just("auto") | st.integers(),
        names=st.lists(TEXTS, max_size=3).map(tuple),
        window=st.tuples(st.integers(), st.integers()),
    ),
    st.builds(Sweep),
)


@given(st.lists(PASSES, min_size=1, max_size=4))
def test_the_text_of_a_pipeline_parses_to_the_same_pipeline(passes: list[Pass]) -> None:
    pipeline = Pipeline(tuple(passes))
    assert parse(str(pipeline)) == pipeline
    assert str(parse(str(pipeline))) == str(pipeline)


@given(st.text(alphabet='ab{}=," \\\n', max_size=20))
def test_any_text_parses_or_is_refused_in_words(text: str) -> None:
    try:
        parse(text)
    except UsageError as problem:
        assert "^" in str(problem)


ORDER = "the order is structure, numbers, quantization, coding: move it forward"
MISTAKES = [
    ("", "the name of a pass is missing here; `onnxcomp passes` lists them", 0, 1),
    ("bare,", "the name of a pass is missing here; `onnxcomp passes` lists them", 5, 1),
    ("every,,bare", "the name of a pass is missing here; `onnxcomp passes` lists them", 6, 1),
    ("evry", "unknown pass 'evry'", 0, 4),
    ("every bare", "a comma is needed between passes, not 'bare'", 6, 4),
    ("every}", "a comma is needed between passes, not '}'", 5, 1),
    ("every{share=1", "the brace opened here is never closed; add a }", 5, 1),
    ('every{text="a', "the quotation mark opened here is never closed", 11, 2),
    ("every{shar=1}", "every: unknown option 'shar'; did you mean 'share'?", 6, 4),
    ("bare{x=1}", "bare: unknown option 'x'; it has none", 5, 1),
    ("every{share=1 share=0}", "every: option 'share' is given twice; keep one", 14, 5),
    ("every{share=1,count=2}", "options are separated by spaces, not commas", 13, 1),
    ("every{share=1, count=2}", "options are separated by spaces, not commas", 13, 1),
    ("every{,share=1}", "options are separated by spaces, not commas", 6, 1),
    ("every{=1}", "the name of an option is missing before '='", 6, 1),
    ("every{share}", "every: option 'share' needs a value: share=number", 6, 5),
    ("every{share=}", "every: option 'share' needs a value: share=number", 6, 5),
    ("every{names=a,}", "every: a value is missing after the comma", 13, 1),
    ("every{share=half}", "every: option 'share' takes a number, not 'half'", 12, 4),
    ("every{share=nan}", "every: option 'share' takes a number, not 'nan'", 12, 3),
    ("every{share=1,2}", "every: option 'share' takes a number, not '1,2'; it takes one value", 12, 3),
    ("every{count=1.5}", "every: option 'count' takes a whole number, not '1.5'", 12, 3),
    ("every{loud=yes}", "every: option 'loud' takes true | false, not 'yes'", 11, 3),
    ("every{norm=L1}", "every: option 'norm' takes l1 | l2, not 'L1'; did you mean 'l1'?", 11, 2),
    ("every{block=7}", "every: option 'block' takes 1 | 8 | 16, not '7'", 12, 1),
    ("every{limit=low}", "every: option 'limit' takes a number, not 'low'", 12, 3),
    (
        "every{window=1}",
        "every: option 'window' takes a list of whole number, not '1'; it needs 2 values",
        13,
        1,
    ),
    ("every{share=2}", "every: share=2 is out of range; 0 <= share <= 1", 0, 5),
    (
        "bare,every",
        f"'every' (structure) cannot run after 'bare' (quantization); {ORDER}",
        5,
        5,
    ),
    (
        "pack,sweep",
        f"'sweep' (cleanup) cannot run after 'pack' (coding); {ORDER}",
        5,
        5,
    ),
]


@pytest.mark.parametrize(("text", "message", "start", "width"), MISTAKES)
def test_every_mistake_is_named_with_its_place(text: str, message: str, start: int, width: int) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert str(caught.value) == f"{message}\n  {text}\n  {' ' * start}{'^' * width}"


def test_only_the_line_of_the_mistake_is_shown() -> None:
    with pytest.raises(UsageError) as caught:
        parse("sweep,\nevery{shar=1},\nbare")
    assert str(caught.value).endswith("\n  every{shar=1},\n        ^^^^")


def test_a_pipeline_made_of_passes_is_held_to_the_same_order() -> None:
    with pytest.raises(UsageError, match="cannot run after 'bare'"):
        Pipeline((Bare(), Every()))
    with pytest.raises(UsageError, match="names no pass"):
        Pipeline(())


def test_infinite_numbers_come_back() -> None:
    assert parse(str(Pipeline((Every(limit=math.inf),)))).passes[0] == Every(limit=math.inf)


@pytest.mark.parametrize(
    "annotation", [dict, list[int], bytes, tuple[tuple[int, ...], ...], type(None), int | bytes]
)
def test_types_without_a_text_are_not_supported(annotation: object) -> None:
    assert not supported(annotation)


def test_a_note_is_told_once() -> None:
    log = PassLog()
    for text in ("a", "b", "a"):
        log.note(text)
    assert log.notes == ["a", "b"]
