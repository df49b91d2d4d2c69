"""What is public is explained, and the pages that list passes list all of them."""

from __future__ import annotations

import ast
import re

import pytest

from onnxcomp.compiler.commands.catalogue import describe
from onnxcomp.passes import BUILTIN
from tests.support.sources import ROOT, documented_names, public_names, sources
from tools.update_docs import PAGES, renew_tables

OURS = sources("onnxcomp", "passes", "tools")


def test_every_module_says_what_it_is_for() -> None:
    assert [str(s.path) for s in OURS if not ast.get_docstring(s.tree)] == []


def test_every_module_says_what_is_public() -> None:
    without = {str(s.path) for s in OURS if not public_names(s)}
    assert {path for path in without if not path.endswith(("__init__.py", "__main__.py"))} == set()


def test_every_public_name_is_explained() -> None:
    bare = []
    for source in OURS:
        explained = documented_names(source)
        bare += [f"{source.path}: {n}" for n in public_names(source) if n in explained and not explained[n]]
    assert bare == []


@pytest.mark.parametrize("name", sorted(BUILTIN))
def test_every_pass_and_every_option_is_explained_where_it_is_written(name: str) -> None:
    facts = describe(name)
    assert facts.summary.endswith("."), "the first line of a docstring is a sentence"
    assert [option.name for option in facts.options if len(option.help.split()) < 3] == []


@pytest.mark.parametrize("name", sorted(BUILTIN))
def test_every_pass_has_its_section(name: str) -> None:
    text = (ROOT / "docs/passes.md").read_text(encoding="utf-8")
    section = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    assert section is not None
    assert f"<!-- generated: pass {name} -->" in section[1]
    for option in describe(name).options:
        assert f"| `{option.name}` |" in section[1]


@pytest.mark.parametrize("page", PAGES)
def test_the_tables_of_the_pages_are_up_to_date(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert "<!-- generated: " in text
    assert renew_tables(text) == text, "run python -m tools.update_docs"


def test_a_changed_table_would_be_noticed() -> None:
    text = "before\n<!-- generated: pass remove-dead -->\nold\n<!-- end -->\nafter"
    renewed = renew_tables(text)
    assert "old" not in renewed
    assert renewed.startswith("before\n") and renewed.endswith("\n<!-- end -->\nafter")
    assert "Remove what does nothing" in renewed


def test_decisions_are_numbered_and_say_what_was_refused() -> None:
    pages = sorted((ROOT / "docs/decisions").glob("*.md"))
    assert [int(p.name[:3]) for p in pages] == list(range(1, len(pages) + 1))
    for page in pages:
        headings = re.findall(r"^## (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert headings == ["Context", "Decision", "Refused", "What would reopen it"], page.name
