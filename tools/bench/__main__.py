"""Measure with one of the benchmarks of this repository.

    python -m tools.bench NAME [OPTION]...
    python -m tools.bench NAME --help

A benchmark prints its tables, writes everything as JSON where asked to, and ends with exit code 1 where a figure is missed.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

__all__ = ["BENCHMARKS", "main", "summary"]

BENCHMARKS = {
    "prune": "prune",
    "quantize": "quantize",
    "structure": "structure",
    "pipelines": "pipelines",
    "simplify": "simplify",
    "latency": "latency",
    "latency-model": "latency_model",
    "criteria": "criteria",
    "bytes": "bytes",
    "prune-zoo": "prune_zoo",
    "quantize-zoo": "quantize_zoo",
}
"""The modules of this package that hold a benchmark, by its name."""


def summary(name: str) -> str:
    """Return the first line of what the benchmark called `name` says of itself; nothing of it is imported."""
    source = Path(__file__).with_name(f"{BENCHMARKS[name]}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


def _overview() -> str:
    width = max(map(len, BENCHMARKS))
    lines = [f"    {name:{width}}  {summary(name)}" for name in BENCHMARKS]
    return "\n".join([(__doc__ or "").strip(), "", "Benchmarks:", *lines])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark that is named first with the rest of `arguments`; return its exit code, 2 for a name unknown."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or [""]
    if name in ("-h", "--help"):
        print(_overview())
        return 0
    if name not in BENCHMARKS:
        known = f"benchmarks are {', '.join(BENCHMARKS)}"
        said = f"there is no benchmark '{name}'" if name else "give the name of a benchmark"
        print(f"tools.bench: error: {said}; {known}", file=sys.stderr)
        return 2
    code = import_module(f"tools.bench.{BENCHMARKS[name]}").main(rest)
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
