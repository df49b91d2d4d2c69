"""Tables of embeddings as integers: Gather picks rows of int8, and each picked row is scaled back.

A DequantizeLinear in front of the Gather would turn the whole table into floats at every run. Behind it only the rows that
were picked are, and every row can have a scale of its own.
"""

from __future__ import annotations

from collections.abc import Container

import numpy as np

from onnxcomp.compiler.passbase import PassLog
from onnxcomp.compiler.target.facts import Target
from onnxcomp.ir.graph import Constant, Node, Variable
from onnxcomp.ir.model import Model
from onnxcomp.numerics.affine import Grid, channel_affine

__all__ = ["LEAST", "store_tables", "tables"]


LEAST = 1024
"""Elements that a table must have to be worth the three nodes behind it."""

LEAST_WIDTH = 16
"""Elements that a row must have: its scale takes the room of four."""

FLOAT = 1
"""The number of float32 among the types of ONNX."""


def tables(model: Model, target: Target, left_alone: Container[str]) -> list[Node]:
    """Return the Gathers of `model` that pick rows of a table of float32 stored for them alone.

    Those whose names are in `left_alone` are not among them, and none is where `target` does not move integers by Gather.
    """
    return [
        node
        for node in model.graph.nodes
        if node.is_op("Gather")
        and target.role(node) == "same-scale"
        and node.name not in left_alone
        and _is_table(model, node)
    ]


def _is_table(model: Model, node: Node) -> bool:
    table = node.input(0)
    if not isinstance(table, Constant) or isinstance(node.input(1), Constant):
        return False
    values = table.values
    plain = values.ndim == 2 and values.dtype == np.float32 and int(node.attrs.get("axis", 0)) in (0, -2)
    large = plain and values.size >= LEAST and values.shape[1] >= LEAST_WIDTH
    private = model.graph.sole_use(table) is node and table.name not in model.graph.captured()
    return large and private and bool(np.isfinite(values).all())


def store_tables(model: Model, found: list[Node], grid: Grid, log: PassLog) -> None:
    """Store the table of each node of `found` on `grid`, each row on a scale of its own; edits `model` in place."""
    graph = model.graph
    for node in found:
        table, indices, picked = node.inputs[0], node.inputs[1], node.output
        assert isinstance(table, Constant), f"{node.name} reads no table"
        values = table.values
        affine = channel_affine(np.abs(values).max(1).astype(np.float64), grid)
        rounded = affine.quantize(values)
        integers = graph.add_constant(f"{table.name}__q", rounded)
        scales = graph.add_constant(f"{table.name}__scales", affine.scale.reshape(-1, 1))
        graph.set_input(node, 0, integers)
        graph.constants.pop(table.name, None)
        made = {
            kind: Variable(graph.fresh_name(f"{picked.name}__{kind}"), np.dtype(dtype))
            for kind, dtype in (("q", grid.dtype), ("cast", "float32"), ("scale", "float32"))
        }
        node.outputs[list(node.outputs).index(picked)] = made["q"]
        behind = [
            Node("Cast", graph.fresh_name(f"{node.name}__cast"), {"to": FLOAT}, [made["q"]], [made["cast"]]),
            Node(
                "Gather",
                graph.fresh_name(f"{node.name}__scales"),
                {"axis": 0},
                [scales, indices],
                [made["scale"]],
            ),
            Node(
                "Mul",
                graph.fresh_name(f"{node.name}__scale"),
                {},
                [made["cast"], made["scale"]],
                [picked],
            ),
        ]
        place = graph.nodes.index(node) + 1
        graph.nodes[place:place] = behind
        power = float(np.square(values.astype(np.float64)).mean())
        error = float(np.square(affine.dequantize(rounded) - values.astype(np.float64)).mean())
        log.change(
            node.name,
            f"a table of {len(values)} rows in integers, each with a scale",
            op="Gather",
            weight=grid.dtype,
            missed=round(error / max(power, 1e-300), 6),
        )
