"""Prune the architectures of the onnx package's light zoo to a share of their MACs, and hold each against its oracle.

    python -m tools.bench prune-zoo
    python -m tools.bench prune-zoo --rows light_shufflenet --macs 0.4

The weights are random, so that nothing is said of accuracy: what is shown is that the channels of these graphs can go at
all (dense concatenations, inceptions, channel shuffles between grouped convolutions), and that what is left computes
exactly what the original computes with those channels zeroed where they are consumed.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from rich.table import Table

from onnxcomp.analysis.channels import ChannelGroups, channel_groups
from onnxcomp.analysis.cost import model_cost
from onnxcomp.analysis.cutcost import CutCost
from onnxcomp.compiler.passbase import Context
from onnxcomp.compiler.spec import Pipeline
from onnxcomp.ir.model import Model
from onnxcomp.ir.proto import from_proto, to_proto
from onnxcomp.numerics.arrays import Mask
from onnxcomp.runtime.observe import observe_shapes
from onnxcomp.testing import random_keep
from tools.bench import options as common
from tools.light_zoo import light_model, light_paths, random_feeds, relative_error, run_as_written

__all__ = ["MODELS", "ZooPruning", "main", "prune_light"]

MODELS = ("light_densenet121", "light_inception_v2", "light_shufflenet", "light_squeezenet", "light_vgg19")
"""The models that have to reach the budget."""

PIPELINE = "prune-filters{{macs={budget:g} scope=uniform criterion=l2 repair=none}}"
"""What is run: nothing in it needs samples."""

BUDGET = 0.6
"""The share of the MACs that may remain."""

TOLERANCE = 1e-4
"""Largest deviation from the oracle, relative to the largest output: float32 over up to a hundred layers."""

Keep = Mapping[str, Mask]


@dataclass(frozen=True)
class ZooPruning:
    """The result on one model.

    Attributes:
        model: its name.
        macs: the share of the MACs that remains.
        parameters: the share of the parameters that remains.
        removable: the largest share of the MACs that could be removed, every value keeping one channel.
        error: the largest deviation from the oracle, relative to the largest output.
        masked: the same of the oracle from the original; were it nothing, nothing would be shown.
        groups: how many groups of channels there are, and how many of them are cut.
        blocked: why groups stay, with how many groups and channels do.
        shortfall: why the budget was not reached, or None where it was.
    """

    model: str
    macs: float
    parameters: float
    removable: float
    error: float
    masked: float
    groups: tuple[int, int]
    blocked: Mapping[str, tuple[int, int]]
    shortfall: str | None

    def met(self, budget: float) -> bool:
        """Return whether the model is within the `budget` and equals its oracle."""
        equal = self.error <= TOLERANCE and self.masked > 100 * self.error
        return self.shortfall is None and self.macs <= budget and equal


def prune_light(path: Path, budget: float = BUDGET, seed: int = 0) -> ZooPruning:
    """Return the result of pruning the light model at `path`, with random weights, to `budget` of its MACs."""
    model = from_proto(light_model(path, seed))
    feeds = random_feeds(to_proto(model), seed)
    shapes = observe_shapes(model, feeds, threads=1)
    context = Context(
        model.clone(),
        data_mode="none",
        input_shapes={n: a.shape for n, a in feeds.items()},
        seed=seed,
        threads=1,
    )
    (step,) = Pipeline.parse(PIPELINE.format(budget=budget)).passes
    cuts: list[Keep] = []
    take = ChannelGroups.take

    def noted(groups: ChannelGroups, target: Model, keep: Keep) -> None:
        cuts.append(dict(keep))
        take(groups, target, keep)

    # Whatever chooses the channels, this is the door that every cut goes through.
    with mock.patch.object(ChannelGroups, "take", noted):
        result = step.run(model.clone(), context)
    groups = channel_groups(model, shapes)
    keep = cuts[-1] if cuts else {}
    masked = model.clone()
    groups.mask(masked, keep)
    whole, left = (
        model_cost(model, shapes),
        model_cost(result.model, observe_shapes(result.model, feeds, threads=1)),
    )
    least = CutCost(model, groups, shapes).count(random_keep(groups, seed, share=0.0))
    outputs = [run_as_written(to_proto(m), feeds) for m in (model, masked, result.model)]
    return ZooPruning(
        model=path.stem,
        macs=(left.macs or 0) / (whole.macs or 1),
        parameters=left.parameters / whole.parameters,
        removable=1 - least[1] / (whole.macs or 1),
        error=relative_error(outputs[1], outputs[2]),
        masked=relative_error(outputs[0], outputs[1]),
        groups=(len(groups), len(keep)),
        blocked=_blocked(groups),
        shortfall=result.shortfall,
    )


def _blocked(groups: ChannelGroups) -> dict[str, tuple[int, int]]:
    """Return for every reason how many groups and channels stay whole because of it."""
    many: Counter[str] = Counter()
    channels: Counter[str] = Counter()
    for group in groups:
        if group.blocked:
            many[group.blocked] += 1
            channels[group.blocked] += max(len(m.units) for m in group.members if m.role == "produces")
    return {reason: (count, channels[reason]) for reason, count in many.items()}


# --- what is shown ---------------------------------------------------------------------------------------------------
def _table(outcomes: Sequence[ZooPruning], budget: float) -> Table:
    table = Table(title=PIPELINE.format(budget=budget), title_justify="left")
    table.add_column("model")
    for name in (
        "MACs %",
        "parameters %",
        "removable MACs %",
        "error to the oracle",
        "oracle to the original",
    ):
        table.add_column(name, justify="right")
    for name in ("groups", "cut", "met"):
        table.add_column(name, justify="right")
    for outcome in outcomes:
        table.add_row(
            outcome.model,
            *(f"{100 * share:.2f}" for share in (outcome.macs, outcome.parameters, outcome.removable)),
            f"{outcome.error:.2g}",
            f"{outcome.masked:.2g}",
            *(str(count) for count in outcome.groups),
            "yes" if outcome.met(budget) else "no",
        )
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Prune the models and print the results; return 1 where one misses the budget or its oracle."""
    parser = common.new_parser("prune-zoo", __doc__)
    paths = {path.stem: path for path in light_paths()}
    common.add_rows(parser, paths, ", ".join(MODELS))
    parser.add_argument(
        "--macs", type=float, default=BUDGET, metavar="SHARE", help=f"that may remain (default {BUDGET:g})"
    )
    common.add_seed(parser)
    options = parser.parse_args(arguments)
    outcomes = []
    for name in common.chosen_names(parser, options.rows or MODELS, list(paths)):
        print(name, file=sys.stderr)
        outcomes.append(prune_light(paths[name], options.macs, options.seed))
    console = common.console(140)
    console.print(_table(outcomes, options.macs))
    for outcome in outcomes:
        for reason, (count, channels) in outcome.blocked.items():
            said = f"{outcome.model}: {count} group(s) with {channels} channels stay: {reason}"
            console.print(said, markup=False, soft_wrap=True)
        if outcome.shortfall:
            console.print(f"{outcome.model}: {outcome.shortfall}", markup=False, soft_wrap=True)
    return 0 if all(outcome.met(options.macs) for outcome in outcomes) else 1
