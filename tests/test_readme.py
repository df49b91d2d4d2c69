"""Every block of code in the documents does what it says."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from onnxcomp.cli.config_file import read_config
from onnxcomp.cli.main import cli
from tests.support.sources import ROOT
from tools.update_docs import renew_commands, run_command

PAGES = ("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "docs/passes.md", "docs/targets.md")

SET_UP = re.compile(r"python3 -m venv |pip install |python -m |ruff |mypy|\.ci/run|cd |git ")
"""Lines that prepare a machine or check the project: what `.ci/run` does, and so what runs these tests."""

VARYING = re.compile(
    r"^(\[\d/\d\] [\w-]+: \w+|    note:|compared on [^:]+:| (?:prune-filters|output|of the input) ).*"
    r"(?:\n    note:.*)*",
    re.MULTILINE,
)
"""Lines that end in times, or in figures that depend on the processor: measured shares are not the same everywhere."""


def texts() -> Iterator[tuple[str, str]]:
    """Yield every page by name."""
    for page in PAGES:
        yield page, (ROOT / page).read_text(encoding="utf-8")


def blocks(language: str) -> list[tuple[str, str]]:
    """Return the code blocks of `language`, each with its page and place."""
    found = []
    for page, text in texts():
        bodies = re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
        found += [(f"{page}-{place}", body) for place, body in enumerate(bodies, 1)]
    return found


def commands(body: str) -> list[str]:
    """Return the commands of a shell block that use onnxcomp, continued lines as one."""
    joined = body.replace("\\\n", " ").splitlines()
    return [line for line in joined if line.strip() and not SET_UP.match(line)]


def copy_models(folder: Path) -> None:
    """Put the shipped networks and their data into `folder`."""
    left_out = shutil.ignore_patterns("*.py", "__pycache__")
    shutil.copytree(ROOT / "models", folder / "models", ignore=left_out)


def named(found: list[tuple[str, str]]) -> list[object]:
    """Return the blocks as parameters of a test."""
    return [pytest.param(body, id=name) for name, body in found]


SHOWN = "README.md-1"
"""The block of shell whose command stands in a console block, too, which runs it."""

SHELL = [(name, body) for name, body in blocks("sh") if commands(body) and name != SHOWN]


def test_no_block_is_in_a_language_that_nobody_runs() -> None:
    for page, text in texts():
        fences = re.findall(r"^```(.*)$", text, re.MULTILINE)
        assert len(fences) % 2 == 0, page
        assert set(fences[::2]) <= {"sh", "python", "console", "toml", "text"}, page


def test_the_readme_opens_with_two_commands_one_of_which_does_the_main_job() -> None:
    (_, job), (_, tests) = blocks("sh")[:2]
    assert "pip install ." in job
    assert commands(job)[0].startswith("onnxcomp optimize models/")
    assert commands(tests) == []
    assert "python -m pytest" in tests


def test_the_command_that_does_the_main_job_is_the_one_whose_output_is_shown() -> None:
    (job,) = commands(dict(blocks("sh"))[SHOWN])
    shown, _, _ = dict(blocks("console"))[SHOWN].removeprefix("$ ").replace("\\\n", " ").partition("\n")
    assert sorted(shlex.split(job)) == sorted([*shlex.split(shown), "--report", "run.json"])
    assert "--report run.json" in (ROOT / ".ci/run").read_text(encoding="utf-8")


def test_the_checks_install_and_test_as_the_readme_says() -> None:
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert (ROOT / ".ci/run").stat().st_mode & 0o111
    (_, job), (_, tests) = blocks("sh")[:2]
    assert "pip install ." in job and " pip install . " in script
    assert "pip install -e '.[test]'" in tests and " pip install -e '.[test," in script
    assert "python -m pytest" in tests and " python -m pytest -q " in script
    passes = re.search(r"--passes '(.+)'", job)
    assert passes is not None and passes[0] in script


@pytest.mark.parametrize("body", named(SHELL))
def test_the_commands_of_a_shell_block_run(
    body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process: what a shell makes of a command is seen where its output is shown."""
    copy_models(tmp_path)
    monkeypatch.chdir(tmp_path)
    for command in commands(body):
        name, *words = shlex.split(command, comments=True)
        assert name == "onnxcomp"
        done = CliRunner().invoke(cli, words)
        assert done.exit_code == 0, f"{command}: {done.output}"
        assert done.output


@pytest.mark.parametrize("body", named(blocks("console")))
def test_a_command_prints_what_the_page_shows(body: str, tmp_path: Path) -> None:
    shown = f"```console\n{body}```"
    printed = renew_commands(shown, lambda command: run_command(command, tmp_path))
    assert VARYING.sub(r"\1", printed) == VARYING.sub(r"\1", shown), "run python -m tools.update_docs"


def programs() -> Iterator[object]:
    """Yield the blocks of Python with the smallest net in place of the one whose output is shown, that one among the slow."""
    for name, code in blocks("python"):
        small = code.replace("models/digits_resnet.onnx", "models/digits_mlp.onnx")
        yield pytest.param(small, id=name)
        if small != code:
            yield pytest.param(code, id=f"{name}-as-written", marks=pytest.mark.slow)


@pytest.mark.parametrize("code", list(programs()))
def test_python_runs(code: str, tmp_path: Path) -> None:
    copy_models(tmp_path)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("table", named(blocks("toml")))
def test_a_config_file_is_read(table: str, tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(table, encoding="utf-8")
    assert read_config(path)["preprocess"] is not None


def test_links_lead_to_files_and_headings_that_exist() -> None:
    for page, text in texts():
        for target, heading in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", text):
            path = (ROOT / page).parent / target if target else ROOT / page
            assert path.exists(), f"{page}: {target}"
            if heading:
                headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
                slugs = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
                assert heading in slugs, f"{page}: {target}#{heading}"
