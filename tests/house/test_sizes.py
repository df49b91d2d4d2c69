"""Ceilings: what does not fit on a few screens is two things."""

from __future__ import annotations

from tests.support.sources import functions, sources

FILE_LINES = 450
FUNCTION_LINES = 70


def test_no_file_is_longer_than_the_ceiling() -> None:
    assert {str(s.path): s.lines for s in sources() if s.lines > FILE_LINES} == {}


def test_no_function_is_longer_than_the_ceiling() -> None:
    long = {
        f"{source.path}: {function.name}": lines
        for source in sources()
        for function in functions(source)
        if (lines := (function.end_lineno or 0) - function.lineno + 1) > FUNCTION_LINES
    }
    assert long == {}


def test_there_is_no_room_for_leftovers() -> None:
    words = {"utils", "util", "helpers", "misc", "common"}
    assert [str(s.path) for s in sources("onnxcomp", "passes", "tools") if s.path.stem in words] == []
