"""The program of a fresh process that loads one model and runs it once; it imports onnxruntime and numpy, no more.

It reads a JSON request on stdin and prints what that took as JSON: seconds, and bytes of memory beyond what the imports
take, null where the system does not say.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

__all__ = ["main"]


def main() -> None:
    """Do what the request on stdin asks for."""
    request: dict[str, Any] = json.load(sys.stdin)
    try:
        found = _start(request)
    except Exception as problem:  # noqa: BLE001 - onnxruntime raises half a dozen unrelated types
        found = {"error": " ".join(str(problem).split())[:300]}
    json.dump(found, sys.stdout)


def _start(request: dict[str, Any]) -> dict[str, Any]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = request["threads"]
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    for library in request["custom_op_libs"]:
        options.register_custom_ops_library(library)
    before = _peak()
    feeds = {}
    with np.load(request["feeds"], allow_pickle=False) as stored:
        for name, key in request["inputs"].items():
            # Text has no form of its own in such a file.
            feeds[name] = stored[key].astype(object) if stored[key].dtype.kind == "U" else stored[key]
    start = time.perf_counter()
    session = ort.InferenceSession(request["path"], options, providers=["CPUExecutionProvider"])
    session.run(None, feeds)
    seconds = time.perf_counter() - start
    after = _peak()
    return {"seconds": seconds, "peak_bytes": None if before is None or after is None else after - before}


def _peak() -> int | None:
    """Return the largest resident size of this process so far, in bytes.

    What getrusage says on Linux begins with the size of the process that started this one, which may be larger.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return _peak_by_usage()
    found = next((line for line in lines if line.startswith("VmHWM:")), None)
    return int(found.split()[1]) * 1024 if found is not None else _peak_by_usage()


def _peak_by_usage() -> int | None:
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts in bytes, others in KiB.
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main()
