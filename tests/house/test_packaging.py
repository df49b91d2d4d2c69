"""What pyproject.toml says is what is there."""

from __future__ import annotations

import inspect
import sys
from importlib import import_module
from typing import Any

import onnxcomp
from tests.support.sources import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGING = PROJECT["tool"]["setuptools"]


def test_every_folder_of_the_package_is_listed_for_installation() -> None:
    inner = [p.parent for p in sorted((ROOT / "onnxcomp").rglob("__init__.py"))]
    named = {".".join(folder.relative_to(ROOT).parts) for folder in inner}
    assert named | {"onnxcomp.passes"} == set(PACKAGING["packages"])
    for folder in {p.parent for p in (ROOT / "onnxcomp").rglob("*.py")}:
        assert (folder / "__init__.py").is_file(), f"{folder} would not be installed"


def test_the_passes_have_no_inner_folders_that_nobody_lists() -> None:
    assert [p for p in (ROOT / "passes").rglob("*.py") if p.parent != ROOT / "passes"] == []


def test_the_passes_at_the_top_are_the_passes_in_the_package() -> None:
    link = ROOT / "onnxcomp" / "passes"
    assert link.is_symlink()
    assert link.readlink().as_posix() == "../passes"
    assert PACKAGING["package-dir"]["onnxcomp.passes"] == "passes"


def test_the_marker_of_a_typed_package_is_shipped() -> None:
    assert (ROOT / "onnxcomp" / "py.typed").is_file()
    assert "py.typed" in PACKAGING["package-data"]["onnxcomp"]


def test_every_file_of_data_in_the_package_is_shipped() -> None:
    inner = ROOT / "onnxcomp"
    shipped = {path for pattern in PACKAGING["package-data"]["onnxcomp"] for path in inner.glob(pattern)}
    data = {p for p in inner.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")}
    assert {p for p in data if (inner / "passes") not in p.parents} == shipped
    assert {p.parent.name for p in shipped} == {"onnxcomp", "targets_data"}


def test_the_version_is_the_same_everywhere() -> None:
    version = PROJECT["project"]["version"]
    assert version == onnxcomp.__version__
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_console_script_is_there() -> None:
    module, _, name = PROJECT["project"]["scripts"]["onnxcomp"].partition(":")
    assert callable(getattr(import_module(module), name))


def test_the_public_names_are_these() -> None:
    names = [
        "Pass",
        "Pipeline",
        "__version__",
        "bench",
        "channel_groups",
        "load",
        "optimize",
        "save",
        "sensitivity",
    ]
    assert sorted(onnxcomp.__all__) == names
    assert {
        name for name in names if name != "__version__" and not inspect.getdoc(getattr(onnxcomp, name))
    } == set()
