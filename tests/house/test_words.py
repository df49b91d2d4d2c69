"""What stands in no file: unfinished work, this or that machine, the shop where packages come from."""

from __future__ import annotations

import re

import pytest

from tests.support.sources import tracked_texts

UNFINISHED = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK)\b")
MACHINE = re.compile(r"(?<![\w.*/-])/(root|work|home|Users|mnt)/\w|[A-Z]:\\\\?Users")
REGISTRY = re.compile(
    r"\b(pypi|pythonhosted|testpypi|npmjs|crates\.io|conda-forge|anaconda\.org|rubygems|hugging"
    r"face\.co)\b",
    re.IGNORECASE,
)


@pytest.mark.parametrize(
    "pattern", [UNFINISHED, MACHINE, REGISTRY], ids=["unfinished", "machine", "registry"]
)
def test_no_tracked_file_says_it(pattern: re.Pattern[str]) -> None:
    found = [
        f"{path}:{number}: {line.strip()[:80]}"
        for path, text in tracked_texts().items()
        if path.name not in ("LICENSE", "test_words.py")
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("pattern", "line"),
    [
        (UNFINISHED, "x = 1  # TODO: later"),
        (MACHINE, "see /home/me/net.onnx"),
        (MACHINE, "'/root/w'"),
        (REGISTRY, "pip install -i https://pypi.org/simple"),
    ],
)
def test_such_a_line_would_be_noticed(pattern: re.Pattern[str], line: str) -> None:
    assert pattern.search(line)


def test_files_end_in_one_newline_and_lines_in_no_space() -> None:
    bad = []
    for path, text in tracked_texts().items():
        if text and (not text.endswith("\n") or text.endswith("\n\n")):
            bad.append(f"{path}: end")
        bad += [
            f"{path}:{n}" for n, line in enumerate(text.split("\n"), 1) if line.endswith((" ", "\t", "\r"))
        ]
    assert bad == []
