"""Mixed precision: as little as possible stays in float, or goes into 16 bits, so that bounds on the outputs hold.

Each place (values with one scale, a weight) is measured alone: what storing nothing but it does to the outputs, as a
Kullback-Leibler divergence or a squared error (Cai 2020, "ZeroQ: a novel zero shot quantization framework", which found
that such single effects add up; Dong 2019, "HAWQ: Hessian aware quantization of neural networks with mixed-precision",
ranks layers by curvature instead). The places of most harm per saving are spared first. How many is decided by really
quantizing the network and judging it on samples that were held back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from onnxcomp.analysis.cost import node_macs
from onnxcomp.analysis.linear import linear_node
from onnxcomp.compiler.evaluation.bounds import Bounds, Judge, Reached
from onnxcomp.compiler.evaluation.divergence import RUINED
from onnxcomp.compiler.evaluation.trials import JUDGES, Judging, run_trials
from onnxcomp.compiler.mixed_precision.fallback_order import Harmed, Step, spare_nodes, spare_values
from onnxcomp.compiler.mixed_precision.site_trials import place_trial
from onnxcomp.compiler.mixed_precision.sites import melted, places
from onnxcomp.compiler.passbase import Context, PassLog
from onnxcomp.compiler.quantization.formats import WIDE, WIDE_OPSET, Formats
from onnxcomp.compiler.quantization.placement import CALL, PER_ELEMENT, PER_MAC
from onnxcomp.compiler.quantization.plan import QuantizationPlan, Settings
from onnxcomp.compiler.quantization.quantizer import apply_plan, plan, replan
from onnxcomp.compiler.target.facts import Target
from onnxcomp.errors import PreconditionError
from onnxcomp.ir.convert import convert_opset
from onnxcomp.ir.model import Model

__all__ = ["Keep", "keep_on", "measured_harm", "quantize_mixed", "savings"]

Keep: TypeAlias = Literal["float", "16-bit"]
"""What harmful places become."""
Wanted: TypeAlias = Literal["auto", "float", "16-bit"]

NEGLIGIBLE = 1e-3
"""Places expected to do less than this share of all harm are not measured: their expected harm stands."""

TRIED_MACS = 5e11
"""Multiply-accumulates that measuring may take: about a minute."""

FEWEST = 32
"""Samples on which single places are measured at least."""

TRIES = 12
"""Times that the network is quantized at most to find how much must be spared."""


def keep_on(target: Target, wanted: Wanted, formats: Formats) -> Keep:
    """Return what harmful nodes become on `target`.

    Raises:
        PreconditionError: where the target does not take the 16-bit type that is like the activations'.
    """
    wide = WIDE[formats.activations.dtype]
    if wanted == "16-bit" and wide not in target.activations.accepts:
        raise PreconditionError(
            f"{target.name} takes activations of type {' or '.join(target.activations.accepts)}, not {wide}; "
            "use keep=float"
        )
    if wanted != "auto":
        return wanted
    return "16-bit" if wide in target.activations.accepts else "float"


def quantize_mixed(
    model: Model,
    formats: Formats,
    wanted: Wanted,
    bounds: Bounds,
    settings: Settings,
    context: Context,
    log: PassLog,
) -> Model:
    """Return `model` in integers with as little spared as `bounds` ask for, and tell what was done and reached.

    A part of the calibration samples is held back and judges; `log.shortfall` says why a bound does not hold.

    Raises:
        PreconditionError: where no samples could confirm a bound.
    """
    keep = keep_on(context.target, wanted, formats)
    judge = Judge(bounds, context)
    untouched = model.clone()
    if keep == "16-bit" and model.opset < WIDE_OPSET:
        log.note(f"raised from opset {model.opset} to {WIDE_OPSET}, where integers of 16 bits begin")
        model = convert_opset(model, WIDE_OPSET)
    context = replace(context, calibration=judge.rest)
    found = plan(model, formats, settings, context, log)
    floats = judge.reached(untouched)
    held_by_floats = all(each.met for each in floats)
    if found is None:
        if not held_by_floats:
            log.shortfall = _not_even_float(bounds, floats)
        return model if log.changes else untouched
    harmed = measured_harm(found, settings, context)
    saved = savings(found)
    if keep == "float":
        steps = spare_nodes(harmed, {name: saving.share for name, saving in saved.items()})
    else:
        steps = spare_values(harmed, _widths(found))
    search = _Search(found, keep, steps, settings, context, judge)
    best = search.least() if held_by_floats else search.at(0)
    if not best.model_changed and held_by_floats:
        log.note(f"{bounds} holds only where everything stays in float")
        # Forms that were rewritten for integers are told by now, and compute the same.
        return found.model if log.changes else untouched
    log.changes += best.log.changes
    log.skips += [skip for skip in best.log.skips if skip not in log.skips]
    log.notes += [note for note in best.log.notes if note not in log.notes]
    _tell(search, best, harmed, saved, bounds, floats, log)
    return best.model


def _not_even_float(bounds: Bounds, floats: Sequence[Reached]) -> str:
    reached = "; ".join(each.text for each in floats)
    return (
        f"{bounds} does not hold with everything in float either ({reached}): passes before have used it up"
    )


# --- what each place does alone, and what it saves -----------------------------------------------------------------
def measured_harm(found: QuantizationPlan, settings: Settings, context: Context) -> list[Harmed]:
    """Return the places of a plan with what each alone does to the outputs, in the order of the graph.

    Harm is the distance of `divergence.Reference`. What is expected to hardly matter is not measured.
    """
    known = places(found, context.target, corrected=settings.correct)
    total = sum(p.expected or 0.0 for p in known)
    asked = [p for p in known if p.nodes and (p.expected is None or p.expected >= NEGLIGIBLE * total)]
    whole = sum(node_macs(node, found.shapes) for node in found.model.graph.nodes)
    samples = int(TRIED_MACS / max(1.0, whole * len(asked) / 2))
    judging = Judging(min(JUDGES, max(FEWEST, samples)))
    trials = [place_trial(found, place) for place in asked]
    verdicts, _ = run_trials(found.model, trials, None, context, "measuring places alone", judging)
    harm = {(p.kind, p.name): min(RUINED, max(0.0, v.damage)) for p, v in zip(asked, verdicts, strict=True)}
    # What was not measured is put on the scale of what was.
    expected = sum(p.expected for p in asked if p.expected)
    scale = sum(harm[p.kind, p.name] for p in asked if p.expected) / expected if expected else 0.0
    return [
        Harmed(p, harm.get((p.kind, p.name), scale * (p.expected or 0.0)), (p.kind, p.name) in harm)
        for p in known
    ]


@dataclass(frozen=True)
class Saving:
    """What computing a node in integers saves: `bits` of its weight, `macs` that take integers, and both as a `share`."""

    bits: int
    macs: int
    share: float


def savings(found: QuantizationPlan) -> dict[str, Saving]:
    """Return what each node in integers saves; `share` is the mean of its shares of all bits and of all time saved."""
    nodes = [node for node in found.model.graph.nodes if node.name in set(found.placement.nodes)]
    weighted = {site.node for site in found.placement.weights}
    bits: dict[str, int] = {}
    times: dict[str, float] = {}
    macs: dict[str, int] = {}
    for node in nodes:
        linear = linear_node(node) if node.name in weighted else None
        bits[node.name] = 0 if linear is None else 24 * int(linear.weight_array().size)
        macs[node.name] = node_macs(node, found.shapes)
        elements = math.prod(found.shapes.get(node.outputs[0].name, (1,)))
        times[node.name] = CALL + PER_MAC * macs[node.name] + PER_ELEMENT * elements
    all_bits, all_time = max(1, sum(bits.values())), sum(times.values())
    return {
        name: Saving(bits[name], macs[name], (bits[name] / all_bits + times[name] / all_time) / 2)
        for name in bits
    }


def _widths(found: QuantizationPlan) -> dict[str, float]:
    """Return what storing each scale's values in 16 bits costs: the share of all that is stored and of what reads it."""
    known = found.model.graph.values()
    inside = set(found.placement.nodes)
    cost: dict[str, float] = {}
    for root, members in found.placement.sources.items():
        elements = sum(math.prod(found.shapes.get(name, (1,))) for name in members)
        readers = {n for name in members for n in known[name].consumers if n.name in inside}
        work = sum(node_macs(node, found.shapes) for node in readers)
        cost[root] = CALL + PER_ELEMENT * elements + PER_MAC * work
    total = sum(cost.values())
    return {root: value / total for root, value in cost.items()}


# --- how much must be spared ---------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Tried:
    """The network quantized with the first `steps` of a ladder spared, and what it reaches."""

    steps: int
    plan: QuantizationPlan
    model: Model
    log: PassLog
    reached: tuple[Reached, ...]

    @property
    def met(self) -> bool:
        return all(each.met for each in self.reached)

    @property
    def ratio(self) -> float:
        return min(each.ratio for each in self.reached)

    @property
    def model_changed(self) -> bool:
        return bool(self.plan.placement.nodes)


class _Search:
    """Finds the least of a ladder's steps at which the bounds hold; every step spares what those before do, and more."""

    def __init__(
        self,
        found: QuantizationPlan,
        keep: Keep,
        steps: Sequence[Step],
        settings: Settings,
        context: Context,
        judge: Judge,
    ) -> None:
        self.found, self.keep, self.steps = found, keep, steps
        self.tried: dict[int, _Tried] = {}
        self.judge, self.context, self._settings = judge, context, settings

    def at(self, number: int) -> _Tried:
        """Return the network with the first `number` steps spared, quantized and judged once."""
        if number not in self.tried:
            self.context.progress("precision=mixed: networks tried", len(self.tried), TRIES)
            self.tried[number] = self._try(number)
        return self.tried[number]

    def _try(self, number: int) -> _Tried:
        spared = self.spared(number)
        if self.keep == "float":
            planned = replan(
                self.found,
                self._settings,
                self.context,
                kept=_reasons(self.found, spared, self.context.target),
            )
        else:
            formats = replace(self.found.formats, wide=spared)
            planned = replan(self.found, self._settings, self.context, formats=formats)
        log = PassLog()
        model = planned.model
        if planned.placement.nodes:
            model = apply_plan(planned, self._settings, self.context, log)
        return _Tried(number, planned, model, log, tuple(self.judge.reached(model)))

    def spared(self, number: int) -> frozenset[str]:
        """Return the nodes or scales that the first `number` steps spare."""
        return self.steps[number - 1].spared if number else frozenset()

    def least(self) -> _Tried:
        """Return the network with the fewest steps spared at which the bounds hold, else that with all of them spared."""
        low, high = 0, len(self.steps)
        if self.at(0).met:
            return self.at(0)
        guess = self._guess(self.at(0).ratio)
        stride = 1
        while high - low > 1 and len(self.tried) < TRIES:
            middle = min(max(guess, low + 1), high - 1)
            if self.at(middle).met:
                high, guess = middle, middle - stride
            else:
                low, guess = middle, middle + stride
            stride *= 2
            if low > 0 and high in self.tried:
                guess = (low + high) // 2
        return self.at(high)

    def _guess(self, ratio: float) -> int:
        """Return the step after which the harm measured place by place would have shrunk to `ratio` of what it was."""
        whole = self.steps[0].before if self.steps else 0.0
        return next((n for n, s in enumerate(self.steps, 1) if s.left <= ratio * whole), len(self.steps))


def _reasons(found: QuantizationPlan, spared: frozenset[str], target: Target) -> dict[str, str]:
    """Return the nodes that stay float with the reason; the activation behind one stays with it."""
    reason = "precision=mixed spares it: in integers it does harm"
    followers = [name for head, name in melted(found.model, target).items() if head in spared]
    return dict.fromkeys([*spared, *followers], reason)


# --- telling ---------------------------------------------------------------------------------------------------------
def _tell(
    search: _Search,
    best: _Tried,
    harmed: Sequence[Harmed],
    saved: Mapping[str, Saving],
    bounds: Bounds,
    floats: Sequence[Reached],
    log: PassLog,
) -> None:
    spared = search.spared(best.steps)
    what = _amount(len(spared), search.keep)
    rows = _choices(search, best, harmed, saved)
    bits = sum(row["bits_saved"] for row in rows if row["choice"] == "float")
    log.change(
        "graph",
        f"{what} so that {bounds} holds" if spared else f"{bounds} asks for nothing to be spared",
        choices=rows,
        tried={str(n): [each.text for each in t.reached] for n, t in sorted(search.tried.items())},
    )
    reached = "; ".join(each.text for each in best.reached)
    words = f"judged on {len(search.judge.held)} samples held back: {reached}"
    if best.steps:
        alone = "; ".join(each.text for each in search.at(0).reached)
        share = bits / max(1, sum(row["bits_saved"] for row in rows))
        words += f"; without {what}: {alone}"
        words += f"; they keep {share:.1%} of the bits that integers save" if search.keep == "float" else ""
    log.note(words)
    if not all(each.met for each in floats):
        log.shortfall = _not_even_float(bounds, floats)
    elif not best.met:
        rest = "; weights stay in 8 bits, keep=float may do more" if search.keep == "16-bit" else ""
        log.shortfall = f"{bounds} does not hold with {what}, which is all there is to spare{rest}"


def _amount(count: int, keep: Keep) -> str:
    one, many = ("node", "nodes") if keep == "float" else ("scale", "scales")
    return f"{count} {one if count == 1 else many} {'in float' if keep == 'float' else 'of 16 bits'}"


def _choices(
    search: _Search, best: _Tried, harmed: Sequence[Harmed], saved: Mapping[str, Saving]
) -> list[dict[str, Any]]:
    """Return a row per node that could be in integers: what it is, what it alone does, what integers save."""
    inside = set(best.plan.placement.nodes)
    weights = {h.place.name: h.harm for h in harmed if h.place.kind == "weight"}
    values = {name: h.harm for h in harmed for name in h.place.values}
    wide = best.plan.formats.wide
    roots = best.plan.placement.values
    rows = []
    followers = {
        name for head, name in melted(search.found.model, search.context.target).items() if head in saved
    }
    for node in search.found.model.graph.nodes:
        moves = search.context.target.role(node) == "same-scale"
        if node.name not in saved or node.name in followers or moves:
            continue
        linear = linear_node(node)
        read = [
            v.name
            for i, v in enumerate(node.inputs)
            if v.name in values and (linear is None or i == linear.data)
        ]
        reads_wide = any(roots.get(name) in wide for name in read)
        choice = "float" if node.name not in inside else "16-bit" if reads_wide else "int8"
        harm = weights.get(node.name, 0.0) + sum(values[name] for name in dict.fromkeys(read))
        rows.append(
            {
                "node": node.name,
                "op": node.op,
                "choice": choice,
                "sensitivity": float(f"{harm:.4g}"),
                "weight_sensitivity": float(f"{weights.get(node.name, 0.0):.4g}"),
                "bits_saved": saved[node.name].bits,
                "macs": saved[node.name].macs,
            }
        )
    return rows
