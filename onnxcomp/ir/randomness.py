"""Random operators: fixed seeds for the time in which two networks are held against each other."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from onnxcomp.ir.graph import Node
from onnxcomp.ir.model import Model
from onnxcomp.ir.ops import NONDETERMINISTIC

__all__ = ["random_nodes", "with_seeds", "without_seeds"]


def random_nodes(model: Model) -> list[Node]:
    """Return the nodes of the main graph of `model` that draw random numbers, in order; Dropout only in training."""
    return [
        node
        for node in model.graph.nodes
        if node.is_op(*NONDETERMINISTIC) and (node.op != "Dropout" or _trains(node))
    ]


def with_seeds(model: Model) -> Model:
    """Return `model` with a seed for every random node that has none, so that sessions of it draw the same numbers.

    A seed follows from the name of its node, which passes keep. Without such nodes this is `model` itself.
    """
    if not any("seed" not in node.attrs for node in random_nodes(model)):
        return model
    model = model.clone()
    for node in random_nodes(model):
        node.attrs.setdefault("seed", _seed(node))
    return model


def without_seeds(model: Model, seeded: Model) -> Model:
    """Return `model` without the seeds that `with_seeds` gave to `seeded`, which it was made of; others stay."""
    given = set(_given(seeded))
    if not given:
        return model
    model = model.clone()
    for node in random_nodes(model):
        if node.attrs.get("seed") in given:
            del node.attrs["seed"]
    return model


def _given(seeded: Model) -> Iterator[float]:
    return (_seed(node) for node in random_nodes(seeded) if node.attrs.get("seed") == _seed(node))


def _seed(node: Node) -> int | float:
    """Return a seed that a float32 holds exactly, of the type that the operator takes."""
    number = zlib.crc32(node.name.encode()) % 2**23
    return number if node.op == "Dropout" else float(number)


def _trains(node: Node) -> bool:
    """Return whether a Dropout drops: what turns it on is input 2, and where that is computed nobody knows."""
    flag = node.constant(2)
    return node.input(2) is not None and (flag is None or bool(flag))
