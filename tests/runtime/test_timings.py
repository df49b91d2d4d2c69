"""Timings are measured once, rounded before anybody sees them, and replayed from a file or a report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from onnxcomp.errors import UsageError
from onnxcomp.runtime.timings import Timings, read_timings


def never() -> float:
    raise AssertionError("nothing is to be measured")


def counted(*values: float) -> tuple[list[float], Callable[[], float]]:
    """Return a list of what was measured, and a measurement that gives `values` in turn."""
    rest, taken = list(values), list[float]()

    def measure() -> float:
        taken.append(rest.pop(0))
        return taken[-1]

    return taken, measure


def test_a_key_is_measured_when_it_is_first_asked_for_and_never_again() -> None:
    timings = Timings()
    taken, measure = counted(1.5, 9.0)
    assert [timings.get("a", measure), timings.get("a", measure)] == [1.5, 1.5]
    assert taken == [1.5]
    assert not timings.replayed
    assert timings.notes == ()


def test_what_a_run_uses_is_what_its_file_holds_to_the_last_digit(tmp_path: Path) -> None:
    timings = Timings()
    used = timings.get("third", lambda: 1 / 3)
    timings.save(tmp_path / "t.json")
    assert used == 0.333333
    assert read_timings(tmp_path / "t.json") == {"third": used}


def test_a_replay_measures_nothing_and_uses_only_what_it_is_asked_for() -> None:
    timings = Timings({"a": 2.0, "b": 3.0})
    assert timings.replayed
    assert timings.get("b", never) == 3.0
    assert timings.used == {"b": 3.0}
    assert timings.notes == ()


def test_what_a_replay_lacks_is_measured_and_told() -> None:
    timings = Timings({"a": 2.0})
    assert timings.get("conv 3->4", lambda: 7.0) == 7.0
    assert timings.used == {"conv 3->4": 7.0}
    (note,) = timings.notes
    assert note.startswith("one timing was missing from --timings and measured now")
    assert note.endswith(": conv 3->4")


def test_many_missing_timings_make_one_note() -> None:
    timings = Timings({"a": 2.0})
    for number in range(5):
        timings.get(f"k{number}", lambda: 1.0)
    (note,) = timings.notes
    assert note.startswith("5 timings were missing")
    assert note.endswith(": k0; k1; k2, ...")


def test_a_strict_replay_refuses_what_it_lacks() -> None:
    timings = Timings({"a": 2.0}, strict=True)
    assert timings.get("a", never) == 2.0
    with pytest.raises(UsageError, match=r"--timings lacks 'b'; leave out --strict"):
        timings.get("b", never)
    assert timings.used == {"a": 2.0}


def test_strict_without_a_file_measures() -> None:
    assert Timings(strict=True).get("b", lambda: 4.0) == 4.0


def test_a_clock_that_gives_no_number_is_an_error_and_not_a_timing() -> None:
    timings = Timings()
    with pytest.raises(UsageError, match="'b' cannot be timed"):
        timings.get("b", lambda: float("nan"))
    assert timings.used == {}


def test_the_report_of_a_run_is_a_file_of_timings(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"schema_version": 1, "pipeline": "x", "timings": {"a": 2, "b": 0.5}}))
    assert read_timings(path) == {"a": 2.0, "b": 0.5}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("no json", "is no JSON"),
        ("[1]", "it is no report"),
        ('{"timings": {"a": 1}}', "it is no report"),
        ('{"schema_version": 99, "timings": {"a": 1}}', "schema version 99 is not known here"),
        ('{"schema_version": 1}', "holds no timings"),
        ('{"schema_version": 1, "timings": {}}', "holds no timings"),
        ('{"schema_version": 1, "timings": {"a": "1"}}', "'a' is '1', no number"),
        ('{"schema_version": 1, "timings": {"a": true}}', "'a' is True, no number"),
        ('{"schema_version": 1, "timings": {"a": NaN}}', "'a' is nan, no number"),
    ],
)
def test_what_holds_no_timings_is_refused_with_what_to_give(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "t.json"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_timings(path)
    assert reason in str(caught.value)
    assert "give the report of an" in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.json: No such file.*give a readable file"):
        read_timings(tmp_path / "none.json")
