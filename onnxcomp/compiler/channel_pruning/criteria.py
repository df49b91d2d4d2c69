"""What the criteria of the literature say of channel groups: which weights and values they look at, and the streamed run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.analysis.channels import ChannelGroup, ChannelGroups, Member
from onnxcomp.analysis.places import Place, Places, earlier_gamma
from onnxcomp.compiler.passbase import Context
from onnxcomp.ir.model import Model
from onnxcomp.numerics.arrays import Array64, Mask, Shapes
from onnxcomp.numerics.criteria import (
    MeanRank,
    MeanSquare,
    NonZeros,
    PooledEntropy,
    Statistic,
    distances_to_others,
    mean_per_unit,
    norm_per_unit,
    scaled_sum,
    unit_filters,
)
from onnxcomp.numerics.importance import norms
from onnxcomp.runtime.capture import batch_size, stream_values
from onnxcomp.runtime.data.samples import Samples

__all__ = ["MEASURED", "SCORED", "Scored", "producing_weights", "score_groups"]

Units = NDArray[np.int64]

MEASURED = ("apoz", "activation", "hrank", "entropy")
"""Criteria of this module that look at activations of calibration samples."""

SCORED = ("fpgm", "bn-scale", *MEASURED)
"""Criteria of this module."""

RANK_SAMPLES = 128
"""Samples whose feature maps are decomposed, which costs more than the network: on ResNet-20 the order that 128 images
give correlates by 0.95 to 0.999 with that of 1024 (Spearman)."""

ENTROPY_SAMPLES = 4096
"""Samples whose pooled activations are kept, evenly spread over all: far more than a histogram needs."""

STREAM_BYTES = 64 * 2**20
"""Values that one batch brings at once."""


@dataclass(frozen=True)
class Scored:
    """Scores by group name, and where norms of filters had to do instead.

    Attributes:
        criterion: which one of `SCORED`.
        scores: importance `[units]` by group name.
        fallen_back: by reason the groups, or the producers among several, for which norms decide in whole or in part.
    """

    criterion: str
    scores: dict[str, Array64] = field(default_factory=dict)
    fallen_back: dict[str, list[str]] = field(default_factory=dict)

    def notes(self) -> list[str]:
        """Return a sentence for every reason why norms decided, naming the groups."""
        return [
            f"criterion={self.criterion}: l2 norms of filters decide for {', '.join(names[:5])}"
            f"{f' and {len(names) - 5} more' if len(names) > 5 else ''}: {reason}"
            for reason, names in self.fallen_back.items()
        ]

    def fall_back(self, name: str, reason: str) -> None:
        """Record that norms decide for the group or producer `name`."""
        names = self.fallen_back.setdefault(reason, [])
        if name not in names:
            names.append(name)

    def add(self, model: Model, group: ChannelGroup, parts: Sequence[Array64]) -> Mask:
        """Score `group` by the sum of `parts` and return the mask of units that none of them knows.

        Those get the norm of their filters.
        """
        total, known = scaled_sum(parts, group.units)
        if not known.all():
            total[~known] = norms(producing_weights(model, group), group.units, 2)[~known]
        self.scores[group.name] = total
        return ~known


def producing_weights(model: Model, group: ChannelGroup) -> list[tuple[NDArray[Any], Units]]:
    """Return the weights that make the channels of `group`, output axis first, with the unit of each position there."""
    return [(_weight(model, member), member.units) for member in group.members if member.role == "produces"]


def _weight(model: Model, member: Member) -> NDArray[Any]:
    """Return the stored tensor of `member`, the axis of the group first, as the numbers that quantized ones stand for."""
    constant = model.graph.constants[member.name]
    values = constant.values
    reader = next((node for node in constant.consumers if node.is_op("DequantizeLinear")), None)
    scale = reader.constant(1) if reader is not None else None
    if reader is not None and scale is not None and values.dtype.kind in "iu":
        offset = reader.constant(2)
        layout = [1] * values.ndim
        layout[int(reader.attrs.get("axis", 1)) if scale.size > 1 else 0] = -1
        zero = 0.0 if offset is None else offset.astype(np.float64).reshape(layout)
        values = (values.astype(np.float64) - zero) * scale.astype(np.float64).reshape(layout)
    return np.moveaxis(values, member.axis, 0)


def score_groups(
    model: Model,
    groups: ChannelGroups,
    chosen: Sequence[ChannelGroup],
    criterion: str,
    context: Context,
    shapes: Shapes,
) -> Scored:
    """Return the scores of the `chosen` ones of `groups`, which are those of `model`, by a criterion of `SCORED`.

    Where a group has several producers (a residual stream), their scores are scaled to mean 1 and added. What the
    criteria measure comes from one run over the calibration samples for all groups, in memory that does not grow with
    their number. `shapes` are those of one sample.
    """
    scored = Scored(criterion)
    if criterion == "fpgm":
        for group in chosen:
            scored.add(model, group, _filter_distances(model, group))
    elif criterion == "bn-scale":
        for group in chosen:
            scored.add(model, group, _gammas(scored, model, groups, group, context))
    else:
        _measured(scored, model, groups, chosen, context, shapes)
    return scored


# --- scores from weights ---------------------------------------------------------------------------------------------
def _filter_distances(model: Model, group: ChannelGroup) -> list[Array64]:
    parts = []
    for weight, units in producing_weights(model, group):
        filters, rows = unit_filters(weight, units, group.units)
        part = np.full(group.units, np.nan)
        part[rows] = distances_to_others(filters)
        parts.append(part)
    return parts


def _gammas(
    scored: Scored, model: Model, groups: ChannelGroups, group: ChannelGroup, context: Context
) -> list[Array64]:
    """Return |gamma| of the BatchNormalization behind each producer, and the l2 norms of producers that have none.

    Network slimming: Liu, Li, Shen, Huang, Yan, Zhang 2017, "Learning Efficient Convolutional Networks through Network
    Slimming", section 3, which trains the scales to be sparse first; here they are as they are found.
    """
    places = Places(model, groups, group)
    parts = []
    for member in group.members:
        if member.role != "produces":
            continue
        found = places.gamma(member.node)
        if found is None:
            gamma = earlier_gamma(context.original, model, member.node)
            if gamma is not None and gamma.shape == member.units.shape:
                found = gamma, member.units
            else:
                gone = "channels went since the BatchNormalization was folded"
                scored.fall_back(member.node, "no BatchNormalization follows" if gamma is None else gone)
        if found is not None:
            values, units = found
            parts.append(mean_per_unit(np.abs(values.astype(np.float64)), units, group.units))
        else:
            parts.append(_norms_known(_weight(model, member), member.units, group.units))
    return parts


def _norms_known(weight: NDArray[Any], units: Units, count: int) -> Array64:
    found = norms([(weight, units)], count, 2)
    found[np.setdiff1d(np.arange(count), units)] = np.nan
    return found


# --- scores from activations -----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Look:
    """A place where a group is measured, and for a reader the norms `[units]` of the weights it reads the units with."""

    place: Place
    reader: Array64 | None = None


def _measured(
    scored: Scored,
    model: Model,
    groups: ChannelGroups,
    chosen: Sequence[ChannelGroup],
    context: Context,
    shapes: Shapes,
) -> None:
    look, make, meaning = _KINDS[scored.criterion]
    samples = context.samples
    if scored.criterion == "hrank":
        samples = samples.take(RANK_SAMPLES)
    looks: dict[str, list[_Look]] = {}
    why: dict[str, list[str]] = {}
    for group in chosen:
        looks[group.name], why[group.name] = look(model, Places(model, groups, group), group, shapes)
    wanted = {
        (each.place.value, each.place.axis): make(samples) for found in looks.values() for each in found
    }
    if wanted:
        _stream(model, wanted, samples, context, shapes)
    values = {key: statistic.scores() for key, statistic in wanted.items()}
    for group in chosen:
        parts, reasons = [], why[group.name]
        for each in looks[group.name]:
            found = values[each.place.value, each.place.axis]
            if len(found) != len(each.place.units):
                reasons.append("the size of its values changes from sample to sample")
                continue
            if lacking := meaning(found[each.place.units >= 0]):
                reasons.append(lacking)
                continue
            part = mean_per_unit(found, each.place.units, group.units)
            parts.append(part if each.reader is None else each.reader * np.sqrt(part))
        # A producer that cannot be judged is no loss where the others of its stream can.
        if scored.add(model, group, parts).any():
            for reason in reasons or ["nothing of it can be measured"]:
                scored.fall_back(group.name, reason)


def _stream(
    model: Model,
    wanted: Mapping[tuple[str, int], Statistic],
    samples: Samples,
    context: Context,
    shapes: Shapes,
) -> None:
    """Feed the statistics of `wanted`, by value and axis of channels, from one run over `samples`."""
    names = list(dict.fromkeys(value for value, _ in wanted))
    once = 4 * sum(math.prod(shapes[name]) for name in names)
    size = max(1, min(batch_size(shapes, names), STREAM_BYTES // max(1, once)))
    total = len(samples)
    stream = stream_values(
        model,
        names,
        samples,
        size,
        **context.runtime,
        progress=lambda done: context.progress("scoring channels", done, total),
    )
    for found in stream:
        for (value, axis), statistic in wanted.items():
            array = found[value]
            statistic.add(np.moveaxis(array, axis, 1) if array.ndim > 1 else array[None])


# --- where each criterion looks --------------------------------------------------------------------------------------
_Looks = tuple[list[_Look], list[str]]


def _behind_activations(model: Model, places: Places, group: ChannelGroup, shapes: Shapes) -> _Looks:
    """Return the nearest activation behind each producer, each once."""
    found, why = [], []
    for producer in group.producers:
        place = places.activation(producer)
        if place is None:
            why.append("no activation follows")
        else:
            found.append(place)
    return _each_once(found), why


def _behind_producers(model: Model, places: Places, group: ChannelGroup, shapes: Shapes) -> _Looks:
    """Return the nearest activation behind each producer, each once, or what it makes itself where there is none.

    Samples must lie along the first axis there, as they do in some graph input.
    """
    rows = {1, *(shapes[v.name][0] for v in model.graph.inputs if shapes.get(v.name))}
    found, why = [], []
    for producer in group.producers:
        place = places.activation(producer) or places.output(producer)
        if place is None:
            why.append("its channels lie along several axes")
        elif place.axis == 0 or shapes[place.value][0] not in rows:
            why.append("samples do not lie along the first axis there")
        else:
            found.append(place)
    return _each_once(found), why


def _at_maps(model: Model, places: Places, group: ChannelGroup, shapes: Shapes) -> _Looks:
    """Return what `_behind_producers` does, but only where a channel is a map of two axes or more."""
    looks, why = _behind_producers(model, places, group, shapes)
    maps = [look for look in looks if _is_map(shapes[look.place.value], look.place.axis)]
    if len(maps) < len(looks):
        why.append("its channels are no feature maps")
    return maps, why


def _at_readers(model: Model, places: Places, group: ChannelGroup, shapes: Shapes) -> _Looks:
    """Return what each reader reads, with the norms of its weights."""
    found = []
    why = [] if group.consumers else ["no weights read it"]
    for member in group.members:
        if member.role != "consumes":
            continue
        place = places.reads(member.node)
        if place is None:
            why.append(f"what {member.node} reads cannot be told apart by channels")
            continue
        found.append(_Look(place, norm_per_unit(_weight(model, member), member.units, group.units)))
    return found, why


def _each_once(places: Sequence[Place]) -> list[_Look]:
    return [_Look(place) for place in {(p.value, p.axis): p for p in places}.values()]


def _is_map(shape: tuple[int, ...], axis: int) -> bool:
    sizes = [size for a, size in enumerate(shape) if a not in (0, axis)]
    return len(sizes) >= 2 and min(math.prod(sizes[:-1]), sizes[-1]) > 1


def _any(scores: Array64) -> str | None:
    return None


def _some_zeros(scores: Array64) -> str | None:
    return "its activation is never zero" if (scores == 1).all() else None


_KINDS: dict[
    str,
    tuple[
        Callable[[Model, Places, ChannelGroup, Shapes], _Looks],
        Callable[[Samples], Statistic],
        Callable[[Array64], str | None],
    ],
] = {
    "apoz": (_behind_activations, lambda samples: NonZeros(), _some_zeros),
    "activation": (_at_readers, lambda samples: MeanSquare(), _any),
    "hrank": (_at_maps, lambda samples: MeanRank(), _any),
    "entropy": (
        _behind_producers,
        lambda samples: PooledEntropy(-(-len(samples) // ENTROPY_SAMPLES)),
        _any,
    ),
}
"""By criterion: where it looks, what it collects there, and why its scores would mean nothing, if they do not."""
