"""In which order places are spared: the most harm taken away per saving given up comes first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnxcomp.compiler.mixed_precision.sites import Place

__all__ = ["Harmed", "Step", "spare_nodes", "spare_values"]


@dataclass(frozen=True)
class Harmed:
    """A place and the harm that it alone does; `measured` is False where that is only expected."""

    place: Place
    harm: float
    measured: bool


@dataclass(frozen=True)
class Step:
    """One step of a ladder: all that is `spared` so far, and the harm of what is not, `before` the first step and `left`."""

    spared: frozenset[str]
    before: float
    left: float


def spare_nodes(harmed: Sequence[Harmed], price: Mapping[str, float]) -> list[Step]:
    """Return a ladder of nodes to keep in float; each step holds those before it.

    A place does no harm once all of its nodes are spared. Every step spares what one more place takes, the place chosen
    by all the harm that this ends, per `price` (what integers save at a node) that it costs. Harm is taken to add up.
    """
    open_places = [h for h in harmed if h.place.nodes and h.harm > 0]
    users: dict[str, list[int]] = {}
    for index, each in enumerate(open_places):
        for name in each.place.nodes:
            users.setdefault(name, []).append(index)
    whole = left = sum(h.harm for h in harmed)
    spared: set[str] = set()
    ended: set[int] = set()
    steps: list[Step] = []
    while len(ended) < len(open_places):
        rates: list[tuple[float, int, set[str], set[int]]] = []
        for index, each in enumerate(open_places):
            if index in ended:
                continue
            added = set(each.place.nodes) - spared
            near = {i for name in added for i in users[name]} - ended
            closed = {i for i in near if set(open_places[i].place.nodes) <= spared | added}
            gain = sum(open_places[i].harm for i in closed)
            rates.append((gain / max(1e-12, sum(price.get(n, 0.0) for n in added)), -index, added, closed))
        _, _, added, closed = max(rates, key=lambda rate: rate[:2])
        spared |= added
        ended |= closed
        left -= sum(open_places[i].harm for i in closed)
        steps.append(Step(frozenset(spared), whole, max(0.0, left)))
    return steps


def spare_values(harmed: Sequence[Harmed], price: Mapping[str, float]) -> list[Step]:
    """Return a ladder of scales to store in 16 bits, which ends their harm: most harm per `price` first."""
    whole = left = sum(h.harm for h in harmed)
    values = [h for h in harmed if h.place.kind == "value"]
    spared: set[str] = set()
    steps: list[Step] = []
    for each in sorted(values, key=lambda h: (-h.harm / max(1e-12, price[h.place.name]), h.place.name)):
        spared.add(each.place.name)
        left -= each.harm
        steps.append(Step(frozenset(spared), whole, max(0.0, left)))
    return steps
