"""Hold estimates of latency against the clock: networks cut by many plans, estimated, really cut, and measured.

    python -m tools.bench latency-model [--rows NAME,...] [--within SHARE] [--shared FOLDER] [--json FILE]

Plans cut every group to the same share, or groups to random shares, to multiples of 1, 8 and 16 channels. The first channels
stay, whatever they are worth: only their number decides about time. Let nothing heavy run beside it.
Exit code 1 where an estimate is off by more than `--within` (5 %).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

import onnxcomp
from onnxcomp.analysis.channels import ChannelGroup, ChannelGroups, channel_groups
from onnxcomp.analysis.cutaxes import Keep, Mask
from onnxcomp.compiler.channel_pruning.ladder import tiers
from onnxcomp.compiler.cost.latency import LatencyPrice, measured_ratio
from onnxcomp.compiler.passbase import Context
from onnxcomp.ir.model import Model
from onnxcomp.runtime.observe import observe_shapes
from tools.bench import options as common
from tools.bench.cases import EXACT, NETWORKS
from tools.bench.document import write_document

__all__ = ["ROWS", "Row", "check", "plans"]

ROWS = ("resnet20", "resnet56", "vgg9")
"""The networks that are measured."""


@dataclass(frozen=True)
class Row:
    """One plan of one network: the estimated and the measured share of its time that is left."""

    network: str
    plan: str
    estimated: float
    measured: float

    @property
    def error(self) -> float:
        """By how much the estimate is off, as a share of what was measured."""
        return self.estimated / self.measured - 1


def plans(groups: ChannelGroups) -> Iterator[tuple[str, dict[str, Mask]]]:
    """Yield named plans: uniform shares of the inner channels or of all, and random ones."""
    for align in (1, 8, 16):
        for share in (0.75, 0.5, 0.25):
            for streams in (False, True):
                chosen = [g for g in groups if not g.blocked and (streams or not g.coupled)]
                if streams and not any(g.coupled for g in chosen):
                    continue
                keep = {g.name: _mask(g, share, align) for g in chosen}
                yield f"{share:.0%}{' all' if streams else ''}, align {align}", _cutting(keep)
        rng = np.random.default_rng(align)
        for number in range(3):
            keep = {g.name: _mask(g, rng.uniform(0.2, 1.0), align) for g in groups if not g.blocked}
            yield f"random {number + 1}, align {align}", _cutting(keep)


def _mask(group: ChannelGroup, share: float, align: int) -> Mask:
    """Return the units to keep: the share of each tier, rounded to the nearest multiple of `align`."""
    mask = ~group.free
    for units in tiers(group):
        count = max(align, round(share * len(units) / align) * align)
        mask[units[:count]] = True
    return mask


def _cutting(keep: Keep) -> dict[str, Mask]:
    return {name: mask for name, mask in keep.items() if not mask.all()}


def check(network: str, model: Model, console: Console) -> tuple[list[Row], dict[str, float]]:
    """Return a row for each plan of `model`, and figures of the estimator: timings made, seconds they took, ms a call."""
    shapes_in = {v.name: (1, *(int(s) for s in (v.shape or ())[1:])) for v in model.graph.inputs}
    shapes = observe_shapes(model, {n: np.zeros(s, np.float32) for n, s in shapes_in.items()})
    groups = channel_groups(model, shapes)
    context = Context(model, input_shapes=shapes_in, threads=1)
    start = time.perf_counter()
    price = LatencyPrice(model, groups, shapes, context)
    chosen = list(plans(groups))
    estimates = [price.of(keep) / price.whole for _, keep in chosen]
    spent, made = time.perf_counter() - start, len(context.timings.used)
    start = time.perf_counter()
    for _, keep in chosen:
        price.of(keep)
    call = 1000 * (time.perf_counter() - start) / len(chosen)
    rows = []
    for (name, keep), estimated in zip(chosen, estimates, strict=True):
        cut = model.clone()
        groups.take(cut, keep)
        rows.append(Row(network, name, estimated, measured_ratio(model, cut, context)))
        console.print(f"[dim]{network}, {name}: {rows[-1].estimated:.3f} {rows[-1].measured:.3f}[/dim]")
    return rows, {
        "milliseconds": price.whole,
        "timings": made,
        "seconds": spent,
        "milliseconds_per_call": call,
    }


def _table(rows: Sequence[Row]) -> Table:
    table = Table("network", "plan", "estimated", "measured", "error")
    for row in rows:
        table.add_row(
            row.network, row.plan, f"{row.estimated:.3f}", f"{row.measured:.3f}", f"{row.error:+.1%}"
        )
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the networks asked for, print the table, and return the exit code."""
    parser = common.new_parser("latency-model", __doc__)
    common.add_rows(parser, ROWS)
    parser.add_argument(
        "--within",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="by which an estimate may be off (default 0.05)",
    )
    common.add_shared(parser)
    common.add_json(parser)
    given = parser.parse_args(arguments)
    files = {
        name: NETWORKS[name].model_path(given.shared)
        for name in common.chosen_names(parser, given.rows, ROWS)
    }
    for path in files.values():
        if not path.exists():
            parser.error(f"{path} {common.ABSENT}")
    progress, rows, facts = Console(stderr=True), list[Row](), dict[str, dict[str, float]]()
    for name, path in files.items():
        model = onnxcomp.optimize(path, EXACT).model
        found, facts[name] = check(name, model, progress)
        rows += found
    console = common.console()
    console.print(_table(rows))
    for name, figures in facts.items():
        shown = ", ".join(f"{figure:.3g} {what.replace('_', ' ')}" for what, figure in figures.items())
        console.print(f"{name}: {shown}")
    errors = np.abs([row.error for row in rows])
    console.print(f"error: median {np.median(errors):.1%}, worst {errors.max():.1%}")
    if given.json is not None:
        write_document(
            given.json,
            "latency-model",
            {"rows": [{**asdict(r), "error": r.error} for r in rows], "facts": facts},
        )
    return int(bool(errors.max() > given.within))
