"""What the runtime on this machine really computes in integers, told in the report."""

from __future__ import annotations

from onnxcomp.compiler.passbase import Context, PassLog
from onnxcomp.ir.model import Model
from onnxcomp.runtime.fusion import KernelNode, fusion_of
from onnxcomp.runtime.inputs import PIECE_LIMIT
from onnxcomp.runtime.session import SessionError

__all__ = ["tell_fusion"]

RUNTIME = "ort-cpu"
"""Targets of this name, and those that begin with it, are onnxruntime on this kind of machine."""


def tell_fusion(model: Model, context: Context, log: PassLog) -> None:
    """Record how many nodes of a quantized `model` onnxruntime computes in integers, and name those that it does not.

    Says nothing where the model is made for another runtime, is too large to be loaded once more, or does not load: the
    last is for the verification to tell.
    """
    if not context.target.name.startswith(RUNTIME) or model.weight_bytes > PIECE_LIMIT:
        return
    try:
        found = fusion_of(model, custom_op_libs=context.custom_op_libs)
    except SessionError:
        return
    fused, floats = len(found.fused), len(found.unfused) + len(found.floats)
    log.change(
        "onnxruntime",
        f"{fused} node{'' if fused == 1 else 's'} in integers, {floats} in float, "
        f"{len(found.islands)} of these between integers",
        fused=fused,
        unfused=[_entry(node) for node in found.unfused],
        floats=[_entry(node) for node in found.floats],
        islands=[_entry(node) for node in found.islands],
        quantize=found.quantize,
        dequantize=found.dequantize,
    )
    for node in found.unfused:
        what = f"a {node.op} that it added" if node.added else node.op
        log.skip(
            "onnxruntime" if node.added else node.name,
            f"onnxruntime computes {what} in float" + (f": {node.reason}" if node.reason else ""),
        )
    log.note(
        f"onnxruntime runs {fused} node{'' if fused == 1 else 's'} in integers and {floats} in float; "
        f"{len(found.islands) or 'none'} of these between integers"
    )


def _entry(node: KernelNode) -> dict[str, str]:
    return {"name": node.name, "op": node.op, "reason": node.reason}
