"""docs/report.md explains every field of the JSON documents, and none that is not there; docs/stability.md every exit code."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
from click.testing import CliRunner

from onnxcomp import errors
from onnxcomp.analysis.cost import Cost
from onnxcomp.cli import group
from onnxcomp.cli.main import cli
from onnxcomp.compiler.commands.bench import BenchedModel, BenchReport
from onnxcomp.compiler.commands.catalogue import OptionFacts, PassFacts
from onnxcomp.compiler.commands.compare import Contrast
from onnxcomp.compiler.commands.inspection import GroupFacts, Inspection, NodeFacts, ValueFacts
from onnxcomp.compiler.commands.sensitivity import Effect, Sensitivity
from onnxcomp.compiler.passbase import Change, Skip
from onnxcomp.compiler.run.report import Condition, DataFacts, FileFacts, PassRun, Report, to_json
from onnxcomp.compiler.run.verdict import Verdict
from onnxcomp.compiler.target.facts import Fact, Note
from onnxcomp.compiler.target.lint import Finding
from onnxcomp.presets import Preset
from onnxcomp.runtime.bench import Latency
from onnxcomp.runtime.compare import Comparison, OutputDifference
from onnxcomp.runtime.documents import SCHEMA_VERSION
from onnxcomp.runtime.fusion import Fusion, KernelNode
from tests.support.fakes import write_classifier
from tests.support.sources import ROOT

PAGE = (ROOT / "docs/report.md").read_text(encoding="utf-8")

RECORDS = (
    *(
        Report,
        PassRun,
        Change,
        Skip,
        Cost,
        FileFacts,
        DataFacts,
        Condition,
        Verdict,
        Comparison,
        OutputDifference,
    ),
    *(Inspection, ValueFacts, NodeFacts, GroupFacts, Contrast, BenchReport, BenchedModel, Latency),
    *(Fusion, KernelNode, Sensitivity, Effect, Finding, PassFacts, OptionFacts, Preset, Fact, Note),
)

DOCUMENTS = {"Check": "check model.onnx --target ort-cpu --json", "Target": "targets ort-cpu --json"}
"""Headings of documents that are put together without a record, and a call that writes one."""

PUT_IN = {"Comparison": set(json.loads(to_json(Comparison(0, ())))) - {"schema_version"}}
"""Fields as they are written, where there are more than the record has."""


def documented(heading: str) -> list[str]:
    """Return the names in the first column of the table under `heading`."""
    section = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert section, f"docs/report.md has no section {heading}"
    cells = re.findall(r"^\| (`.*?) \|", section[1], re.MULTILINE)
    return [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_every_field_of_a_record_is_explained_and_every_explained_field_is_there(record: type) -> None:
    names = documented(record.__name__)
    assert len(names) == len(set(names))
    assert set(names) == PUT_IN.get(record.__name__, {f.name for f in fields(record)})


@pytest.mark.parametrize("heading", DOCUMENTS)
def test_documents_without_a_record_are_explained_as_they_are_written(
    heading: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_classifier(tmp_path)
    document = json.loads(CliRunner().invoke(cli, DOCUMENTS[heading].split()).stdout)
    assert set(documented(heading)) == set(document) - {"schema_version"}


def test_the_page_has_no_section_of_a_record_that_is_not_written() -> None:
    headings = re.findall(r"^## (\w+)$", PAGE, re.MULTILINE)
    assert set(headings) == {record.__name__ for record in RECORDS} | set(DOCUMENTS)


def test_the_page_names_the_version_of_the_documents() -> None:
    assert f"It is {SCHEMA_VERSION}." in PAGE


def test_every_exit_code_is_listed_as_public() -> None:
    page = (ROOT / "docs/stability.md").read_text(encoding="utf-8")
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
    raised = {k.exit_code for k in vars(errors).values() if hasattr(k, "exit_code")}
    assert listed == {0, *raised, group.USAGE, group.BUG, group.INTERRUPTED, group.CLOSED_PIPE}
