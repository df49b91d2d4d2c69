"""The project's own source, as the house tests read it."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("onnxcomp", "passes", "tools", "tests", "models")


@dataclass(frozen=True)
class Source:
    """A Python file: its `path` from the root, the `module` it is imported as, its syntax tree: `given`, or read when needed."""

    path: Path
    module: str
    given: ast.Module | None = None

    @cached_property
    def tree(self) -> ast.Module:
        return self.given or ast.parse((ROOT / self.path).read_text(encoding="utf-8"))

    @cached_property
    def nodes(self) -> tuple[ast.AST, ...]:
        return tuple(ast.walk(self.tree))

    @property
    def lines(self) -> int:
        return len((ROOT / self.path).read_text(encoding="utf-8").splitlines())


@dataclass(frozen=True)
class Import:
    """A module that a file imports. `late`: when a function runs; `typing`: for type checkers only."""

    module: str
    names: tuple[str, ...]
    line: int
    late: bool
    typing: bool


def sources(*folders: str) -> list[Source]:
    """Return the Python files in `folders` (all of the project by default), each once: the link to passes/ is not followed."""
    found = []
    for folder in folders or FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).parts
            if parts[:2] != ("onnxcomp", "passes"):
                found.append(_source(path))
    return found


@cache
def _source(path: Path) -> Source:
    relative = path.relative_to(ROOT)
    parts = relative.with_suffix("").parts
    if parts[0] == "passes":
        parts = ("onnxcomp", *parts)
    if parts[-1] == "__init__":
        parts = parts[:-1]
    return Source(relative, ".".join(parts))


@cache
def imports(source: Source) -> tuple[Import, ...]:
    """Return what `source` imports, wherever in the file it does so."""
    package = source.module if source.path.name == "__init__.py" else source.module.rpartition(".")[0]
    return tuple(_imports(source.tree, package, late=False, typing=False))


def _imports(node: ast.AST, package: str, *, late: bool, typing: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, (), child.lineno, late, typing)
        elif isinstance(child, ast.ImportFrom):
            names = tuple(alias.name for alias in child.names)
            yield Import(_absolute(child, package), names, child.lineno, late, typing)
        else:
            inside = late or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            checked = typing or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test))
            yield from _imports(child, package, late=inside, typing=checked)


def _absolute(statement: ast.ImportFrom, package: str) -> str:
    if not statement.level:
        return statement.module or ""
    base = package.split(".")[: len(package.split(".")) - statement.level + 1]
    return ".".join([*base, *filter(None, [statement.module])])


def functions(source: Source) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield every function and method of `source`, inner ones too."""
    for node in source.nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def public_names(source: Source) -> list[str]:
    """Return the `__all__` of `source`; empty where it has none."""
    for statement in source.tree.body:
        if isinstance(statement, ast.Assign) and "__all__" in _targets(statement):
            names: list[str] = ast.literal_eval(statement.value)
            return names
    return []


def documented_names(source: Source) -> dict[str, str]:
    """Return the docstring of everything that the top level of `source` defines, "" where there is none.

    That of a constant is the text that stands below it.
    """
    found: dict[str, str] = {}
    body = source.tree.body
    for statement, below in zip(body, [*body[1:], None], strict=True):
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found[statement.name] = ast.get_docstring(statement) or ""
        for name in _targets(statement):
            found[name] = _text(below)
    return found


def _targets(statement: ast.stmt) -> list[str]:
    given = statement.targets if isinstance(statement, ast.Assign) else []
    given = [statement.target] if isinstance(statement, ast.AnnAssign) else given
    return [name.id for target in given for name in ast.walk(target) if isinstance(name, ast.Name)]


def _text(statement: ast.stmt | None) -> str:
    value = statement.value if isinstance(statement, ast.Expr) else None
    return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else ""


@cache
def tracked_texts() -> dict[Path, str]:
    """Return the text files that git tracks, by their path from the root; skip the test outside a checkout."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("only a git checkout knows which files are tracked")
    found = {}
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if path.is_symlink() or not path.is_file():
            continue
        data = path.read_bytes()
        if b"\0" not in data:
            found[Path(name)] = data.decode("utf-8", "replace")
    return found
