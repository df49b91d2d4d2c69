"""Where the tests of the command line work."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_child_process: None) -> None:
    """Work in an empty folder, without a child process per model."""
    monkeypatch.chdir(tmp_path)
