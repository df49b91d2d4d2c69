"""Digest what is written for every shipped network, so that a change of the code can be shown to change no byte.

    python -m tools.bench bytes [--rows NAME,...] [--tree FOLDER] [--samples N] [--json FILE] [--against FILE]

Every row is a network of `models/` under one pipeline, run by `python -m onnxcomp optimize` with seed 0 and on one thread.
What is digested is the whole file but for the metadata and the producer's version, which name the version of onnxcomp. With
`--tree` it is the onnxcomp of another working tree that runs; `--against` takes what an earlier call wrote with `--json`,
names what differs and gives exit code 1 where anything does: what is computed, or only names, order or what no node reads.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, numpy_helper

from tools.bench import options as common
from tools.bench.cases import EXACT, ROOT, ZOO
from tools.bench.child import run_measured
from tools.bench.document import write_document

__all__ = ["PIPELINES", "FileDigest", "differences", "digest_of", "digest_row", "main"]

PIPELINES = {
    "exact": ("--preset", "exact"),
    "int8": ("--preset", "int8"),
    "prune": ("--passes", f"{EXACT},prune-filters{{macs=0.5}}"),
}
"""What every network is run through, by the name that stands behind that of the network."""

SHOWN = 8
"""How many of the names that differ are printed; the document holds all of them."""


@dataclass(frozen=True)
class FileDigest:
    """One file that was written.

    Attributes:
        row: the network and the pipeline.
        whole: the digest of everything but metadata and the producer's version.
        unnamed: the digest of nodes, attributes and stored values where every name is a number in order of appearance.
        nodes: by its name the digest of each node, the names that it reads and gives included.
        stored: by its name the digest of each initializer.
        rest: by what it is the digest of the rest: inputs and outputs, the order of initializers, what is said of values.
        failure: why there is no file.
    """

    row: str
    whole: str | None = None
    unnamed: str | None = None
    nodes: Mapping[str, str] = field(default_factory=dict)
    stored: Mapping[str, str] = field(default_factory=dict)
    rest: Mapping[str, str] = field(default_factory=dict)
    failure: str | None = None


def digest_of(row: str, proto: ModelProto) -> FileDigest:
    """Return the digests of `proto`, which is left as it is."""
    bare = ModelProto()
    bare.CopyFrom(proto)
    del bare.metadata_props[:]
    bare.producer_version = ""
    graph = bare.graph
    stored = {tensor.name: _array_digest(numpy_helper.to_array(tensor)) for tensor in graph.initializer}
    nodes = {
        f"{number}: {node.name or node.op_type}": _digest(node.SerializeToString(deterministic=True))
        for number, node in enumerate(graph.node)
    }
    whole = _digest(bare.SerializeToString(deterministic=True))
    return FileDigest(row, whole, _unnamed(bare, stored), nodes, stored, _rest(bare))


def _rest(proto: ModelProto) -> dict[str, str]:
    """Return the digests of what is neither a node nor a stored value."""
    graph = proto.graph
    parts = {
        "inputs": graph.input,
        "outputs": graph.output,
        "types of inner values": graph.value_info,
        "operator sets": proto.opset_import,
        "functions": proto.functions,
    }
    found = {
        what: _digest(b"".join(one.SerializeToString(deterministic=True) + b"/" for one in many))
        for what, many in parts.items()
    }
    return {
        **found,
        "order of initializers": _digest(json.dumps([t.name for t in graph.initializer]).encode()),
    }


def _unnamed(proto: ModelProto, stored: Mapping[str, str]) -> str:
    """Return the digest of `proto` without names: its nodes in their order, and what they read of stored values."""
    numbers: dict[str, str] = {"": ""}

    def number(name: str) -> str:
        return numbers.setdefault(name, str(len(numbers)))

    parts: list[object] = [[number(info.name) for info in (*proto.graph.input, *proto.graph.output)]]
    for node in proto.graph.node:
        attributes = sorted(a.SerializeToString(deterministic=True).hex() for a in node.attribute)
        reads = [(number(name), stored.get(name)) for name in node.input]
        parts.append([node.domain, node.op_type, attributes, reads, [number(name) for name in node.output]])
    return _digest(json.dumps(parts).encode())


def _array_digest(array: np.ndarray[Any, Any]) -> str:
    head = f"{array.dtype} {array.shape} ".encode()
    return _digest(head + np.ascontiguousarray(array).tobytes())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def digest_row(row: str, tree: Path, samples: int | None = None) -> FileDigest:
    """Run the onnxcomp of `tree` on `row` and return the digest of what it writes, or why it wrote nothing.

    Raises:
        OSError: where python cannot be started.
    """
    network, _, pipeline = row.rpartition("/")
    with tempfile.TemporaryDirectory(prefix="bench-bytes-") as folder:
        output = Path(folder) / "out.onnx"
        command = (
            *(sys.executable, "-m", "onnxcomp", "optimize", "-q", "--allow-noop"),
            *(str(ZOO / f"{network}.onnx"), "-o", str(output), *PIPELINES[pipeline]),
            *("--seed", "0", "--threads", "1"),
            *("--calibration", str(ZOO / "digits_calibration.npz")),
            *(() if samples is None else ("--samples", str(samples))),
        )
        # Modules are looked for in the folder that a command runs in first.
        usage = run_measured(command, tree)
        if usage.exit_code:
            said = usage.stderr.strip().splitlines() or ["it said nothing"]
            return FileDigest(row, failure=f"exit {usage.exit_code}: {said[-1]}")
        return digest_of(row, onnx.load(output))


# --- what differs ----------------------------------------------------------------------------------------------------
def differences(before: Sequence[FileDigest], after: Sequence[FileDigest]) -> dict[str, list[str]]:
    """Return by row what differs between two calls, in lines; rows that are in one of them only are left out."""
    found: dict[str, list[str]] = {}
    earlier = {one.row: one for one in before}
    for one in after:
        other = earlier.get(one.row)
        if other is not None and (one.whole, one.failure) != (other.whole, other.failure):
            found[one.row] = _difference(other, one)
    return found


def _difference(before: FileDigest, after: FileDigest) -> list[str]:
    if before.failure or after.failure:
        return [f"{before.failure or 'written'} before, {after.failure or 'written'} now"]
    same = before.unnamed == after.unnamed
    lines = ["what is computed is the same" if same else "what is computed differs"]
    for what in ("nodes", "stored", "rest"):
        old, new = getattr(before, what), getattr(after, what)
        for title, names in (
            ("gone", [name for name in old if name not in new]),
            ("new", [name for name in new if name not in old]),
            ("changed", [name for name in new if name in old and old[name] != new[name]]),
        ):
            if names:
                more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
                lines.append(f"{what}, {title}: {', '.join(names[:SHOWN])}{more}")
    return lines if len(lines) > 1 else [f"{lines[0]}: fields of the file beside the graph"]


# --- the command line ------------------------------------------------------------------------------------------------
def main(arguments: Sequence[str] | None = None) -> int:
    """Digest the rows, print and compare them; return 1 where one fails or differs."""
    rows = [f"{path.stem}/{p}" for path in sorted(ZOO.glob("digits_*.onnx")) for p in PIPELINES]
    parser = common.new_parser("bytes", __doc__)
    common.add_rows(parser, rows)
    parser.add_argument("--tree", type=Path, default=ROOT, metavar="FOLDER", help="whose onnxcomp runs")
    common.add_samples(parser, "all")
    common.add_json(parser)
    parser.add_argument("--against", type=Path, metavar="FILE", help="compare with what --json wrote earlier")
    options = parser.parse_args(arguments)
    wanted = common.chosen_names(parser, options.rows, rows)
    if not (options.tree / "onnxcomp" / "__init__.py").exists():
        parser.error(f"{options.tree} holds no onnxcomp; give the folder of a working tree")
    before = None if options.against is None else _read(parser, options.against, options.samples)
    found: list[FileDigest] = []
    for name in wanted:
        found.append(digest_row(name, options.tree.resolve(), options.samples))
        print(f"{name:28} {found[-1].failure or found[-1].whole}", flush=True)
    differ = {} if before is None else differences(before, found)
    for name, lines in differ.items():
        print("\n    ".join([f"{name} differs: {lines[0]}", *lines[1:]]))
    if before is not None:
        print(f"{len(found) - len(differ)} of {len(found)} files are the same")
    if options.json is not None:
        records = [asdict(one) for one in found]
        write_document(options.json, "bytes", {"samples": options.samples, "files": records})
    return int(bool(differ) or any(one.failure is not None for one in found))


def _read(parser: argparse.ArgumentParser, path: Path, samples: int | None) -> list[FileDigest]:
    """Return the digests that the document at `path` holds; ends the program where it is none for as many samples."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        found = [FileDigest(**one) for one in document["files"]]
    except (OSError, ValueError, KeyError, TypeError):
        parser.error(f"{path} is not what `bytes --json` writes")
    if document.get("samples") != samples:
        parser.error(f"{path} was made with --samples {document.get('samples')}; give the same number")
    return found
