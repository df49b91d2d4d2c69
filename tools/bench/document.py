"""What the benchmarks write: one JSON document that says on which machine and with which versions."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from onnxcomp.compiler.run.report import to_json

__all__ = ["machine_facts", "write_document"]

_PACKAGES = ("onnxcomp", "onnx", "onnxruntime", "numpy", "scipy", "onnxsim")


def machine_facts() -> dict[str, object]:
    """Return processor, cores, load and versions: what a figure depends on beside the code."""
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {name: found for name in _PACKAGES if (found := _version(name)) is not None},
    }


def write_document(path: Path, kind: str, content: Mapping[str, object]) -> None:
    """Write `content` to `path` as one JSON document with `schema_version`, `benchmark` and `machine` on top.

    Numbers that are not finite become null, as in the reports of runs.
    """
    document = {"benchmark": kind, "machine": machine_facts(), **content}
    path.write_text(to_json(document), encoding="utf-8")


def _processor() -> str:
    facts = Path("/proc/cpuinfo")
    if facts.exists():
        for line in facts.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    if name == "onnxcomp":
        from onnxcomp import __version__

        return __version__
    try:
        return version(name)
    except PackageNotFoundError:
        return None
