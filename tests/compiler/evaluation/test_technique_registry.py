"""Which sensitivity techniques there are, and that a bad one is named and harms no other."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import pytest

from onnxcomp.compiler.evaluation.technique import Candidate, Technique
from onnxcomp.compiler.evaluation.technique_registry import (
    BUILTIN,
    TECHNIQUES,
    make_technique,
    technique_registry,
)
from onnxcomp.compiler.passbase import Context, PassLog
from onnxcomp.compiler.registry import Entry, Registry, offered
from onnxcomp.errors import UsageError
from onnxcomp.ir.model import Model

HERE = "tests.compiler.evaluation.test_technique_registry"


@dataclass(frozen=True)
class Nothing(Technique):
    """A technique that compresses nothing."""

    name: ClassVar[str] = "nothing"
    share: float = 0.5

    def candidates(self, model: Model, context: Context, log: PassLog) -> Iterator[Sequence[Candidate]]:
        """Yield no candidates."""
        yield []


@dataclass(frozen=True)
class Unfinished(Technique):
    """A technique without candidates."""

    name: ClassVar[str] = "unfinished"


def registry(kind: str, name: str = "mine") -> Registry:
    entries = [*offered(BUILTIN, TECHNIQUES), Entry(name, f"{HERE}:{kind}", "parts 1.2", TECHNIQUES)]
    return Registry(entries, TECHNIQUES)


def test_every_built_in_technique_can_be_made_without_options() -> None:
    assert {"prune", "quantize"} <= set(technique_registry().names())
    for name in BUILTIN:
        assert isinstance(make_technique(name, {}), Technique)


def test_a_technique_of_another_package_is_made_with_its_options() -> None:
    assert make_technique("mine", {"share": 0.25, "levels": None}, registry("Nothing")) == Nothing(0.25)


def test_an_option_of_another_technique_is_refused() -> None:
    with pytest.raises(UsageError, match="--criterion is no option of --technique quantize"):
        make_technique("quantize", {"criterion": "l1"})


def test_two_techniques_of_one_name_are_both_refused_naming_their_owners() -> None:
    with pytest.raises(UsageError, match=r"technique 'prune' is offered by onnxcomp and parts 1\.2"):
        make_technique("prune", {}, registry("Nothing", "prune"))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("Unfinished", "no candidates method"), ("HERE", "not a subclass"), ("Missing", "AttributeError")],
)
def test_a_broken_technique_is_named_with_package_and_reason_and_stops_no_other(
    kind: str, reason: str
) -> None:
    found = registry(kind)
    with pytest.raises(UsageError, match=rf"technique 'mine' of parts 1\.2 is broken: .*{reason}"):
        found.resolve("mine")
    assert issubclass(found.resolve("prune"), Technique)


def test_an_unknown_technique_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="unknown technique 'prun'; did you mean 'prune'"):
        make_technique("prun", {})


def test_no_technique_is_imported_before_it_is_resolved() -> None:
    script = (
        "import sys\n"
        "from onnxcomp.compiler.evaluation.technique_registry import technique_registry\n"
        "technique_registry().names()\n"
        "print([m for m in sys.modules if m.endswith('.technique') or m in ('onnx', 'onnxruntime')])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
