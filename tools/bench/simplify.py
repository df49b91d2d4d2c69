"""Count the nodes that the exact passes leave, beside onnxslim and onnxsim, and measure what they do to the outputs.

    python -m tools.bench simplify [--rows NAME,...] [--json FILE] [MODEL.onnx]...

Without models: the light zoo of the onnx package with random weights, the models of this repository, and those of
`../shared/models` where they exist. A peer that is not installed leaves its column empty. Constant nodes are not counted:
some tools keep weights in them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import onnx
from onnx import ModelProto

from onnxcomp.compiler.passbase import Context, Pass
from onnxcomp.ir import from_proto, to_proto
from onnxcomp.passes.fold_batchnorm import FoldBatchnorm
from onnxcomp.passes.fold_constants import FoldConstants
from onnxcomp.passes.remove_dead import RemoveDead
from tools.bench import options as common
from tools.bench.cases import ROOT, ZOO
from tools.bench.document import write_document
from tools.light_zoo import (
    light_model,
    light_paths,
    networks_in,
    random_feeds,
    relative_error,
    run_as_written,
)

__all__ = ["EXACT", "Row", "measure", "simplified", "zoo"]

EXACT: tuple[Pass, ...] = (FoldConstants(), FoldBatchnorm(), RemoveDead())
"""The preset `exact`."""


@dataclass(frozen=True)
class Row:
    """Node counts of one model, and the largest error of ours relative to the largest output."""

    model: str
    before: int
    ours: int
    onnxslim: int | None
    onnxsim: int | None
    error: float

    @property
    def ratio(self) -> float | None:
        """Our nodes to those of the better peer; None without peers."""
        peers = [n for n in (self.onnxslim, self.onnxsim) if n is not None]
        return self.ours / min(peers) if peers else None


def zoo() -> dict[str, Callable[[], ModelProto]]:
    """Return the models to measure by name, each to be loaded when it is needed."""
    files = [
        *sorted(ZOO.glob("**/*.onnx")),
        *networks_in(ROOT / "../shared/models"),
    ]
    loaders: dict[str, Callable[[], ModelProto]] = {p.stem: _light(p) for p in light_paths()}
    return loaders | {p.stem: _file(p) for p in files}


def _light(path: Path) -> Callable[[], ModelProto]:
    return lambda: light_model(path)


def _file(path: Path) -> Callable[[], ModelProto]:
    return lambda: onnx.load(path)


def simplified(proto: ModelProto) -> ModelProto:
    """Return `proto` after the exact passes."""
    original = from_proto(proto)
    model = original
    for one in EXACT:
        model = one.run(model.clone(), Context(original=original, threads=1)).model
    return to_proto(model)


def measure(name: str, proto: ModelProto) -> Row:
    """Return the row of one model."""
    feeds = random_feeds(proto)
    ours = simplified(proto)
    error = relative_error(run_as_written(proto, feeds), run_as_written(ours, feeds))
    return Row(name, _nodes(proto), _nodes(ours), _peer("onnxslim", proto), _peer("onnxsim", proto), error)


def _nodes(proto: ModelProto) -> int:
    return sum(node.op_type != "Constant" for node in proto.graph.node)


def _peer(name: str, proto: ModelProto) -> int | None:
    if find_spec(name) is None:
        return None
    copy = ModelProto()
    copy.CopyFrom(proto)
    peer = import_module(name)
    result = peer.slim(copy) if name == "onnxslim" else peer.simplify(copy, check_n=0)[0]
    return _nodes(result)


def _table(rows: Sequence[Row]) -> str:
    lines = [
        f"{'model':32} {'before':>7} {'ours':>6} {'onnxslim':>9} {'onnxsim':>8} {'ratio':>6} {'error':>9}"
    ]
    for row in rows:
        slim, sim = ("" if n is None else str(n) for n in (row.onnxslim, row.onnxsim))
        ratio = "" if row.ratio is None else f"{row.ratio:.3f}"
        lines.append(
            f"{row.model:32} {row.before:7} {row.ours:6} {slim:>9} {sim:>8} {ratio:>6} {row.error:9.1e}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and write the JSON document; return 1 where a model misses the figures to reach."""
    parser = common.new_parser("simplify", __doc__)
    parser.add_argument("models", nargs="*", type=Path, help="files to measure instead of the zoo")
    known = zoo()
    common.add_rows(parser, known)
    common.add_json(parser)
    options = parser.parse_args(arguments)
    loaders = {p.stem: _file(p) for p in options.models} or known
    rows: list[Row] = []
    for name in common.chosen_names(parser, options.rows, list(loaders)):
        print(name, file=sys.stderr)
        rows.append(measure(name, loaders[name]()))
    print(_table(rows))
    if options.json is not None:
        write_document(options.json, "simplify", {"rows": [asdict(r) | {"ratio": r.ratio} for r in rows]})
    return int(any(row.error > 1e-4 or (row.ratio or 0) > 1.05 for row in rows))
