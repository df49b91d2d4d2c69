"""What repair works towards: the model the pipeline received, where a pass before has done damage already.

Were every pass repaired towards the model it was given, the damage of each would be taken for the truth by the next.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from onnxcomp.compiler.cost.budget import shapes_of
from onnxcomp.compiler.passbase import Context
from onnxcomp.ir.model import Model

__all__ = ["teacher_of"]


def teacher_of(
    model: Model, nodes: Collection[str], context: Context, shapes: Mapping[str, tuple[int, ...]]
) -> Model:
    """Return the model that repairing the `nodes` of `model` works towards: the pipeline's, or `model` itself.

    The pipeline's serves where something has been lost before, it has the outputs of all `nodes`, and no value that both
    have differs in its shape (`shapes` are those of `model`): a pass that removed channels leaves others that mean
    something else.
    """
    if not context.damaged:
        return model
    known = context.original.graph.values()
    if any(node.output.name not in known for node in model.graph.nodes if node.name in nodes):
        return model
    theirs = shapes_of(context.original, context)
    same = all(theirs[name] == shape for name, shape in shapes.items() if name in theirs)
    return context.original if same else model
