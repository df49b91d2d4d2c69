"""Count the lines of code of passes: what stands in a file without blank lines, comments and docstrings.

    python -m tools.pass_size [FILE ...]

Without files the examples of docs/writing-passes.md are counted, against what they promise at most.
"""

from __future__ import annotations

import argparse
import ast
import io
import sys
import tokenize
from collections.abc import Sequence
from pathlib import Path

__all__ = ["PROMISED", "code_lines", "main"]

ROOT = Path(__file__).resolve().parent.parent

PROMISED = {
    "tests/plugin/package/src/sign_passes/__init__.py": 30,
    "tests/plugin/package/src/sign_passes/sparsify.py": 80,
}
"""The examples, with the lines that such a pass takes at most."""

_EMPTY = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


def code_lines(text: str) -> int:
    """Return how many lines of the Python source `text` hold code."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _EMPTY:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the lines of code of each file; return 1 where an example has more than it promises."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path)
    files = parser.parse_args(arguments).files
    if files:
        for path in files:
            print(f"{code_lines(path.read_text(encoding='utf-8')):5} {path}")
        return 0
    over = False
    for name, most in PROMISED.items():
        count = code_lines((ROOT / name).read_text(encoding="utf-8"))
        over = over or count > most
        print(f"{count:5} of {most} {name}")
    return int(over)


if __name__ == "__main__":
    sys.exit(main())
