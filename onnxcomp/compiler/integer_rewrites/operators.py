"""Nodes that runtimes cannot compute in integers, rewritten into ones they can.

Every rewrite computes what was computed before, up to the rounding of a sum in another order. (Infinities and NaN do not
count: a kernel of zeros and ones spreads them.) The sizes of a value count only where they are the same for every input.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping

from onnxcomp.analysis.affine import Refusal, Step, affine_step
from onnxcomp.analysis.folding import fold_after
from onnxcomp.analysis.padding import merged_pads, zero_pads
from onnxcomp.analysis.signs import clip_bounds, is_nonnegative
from onnxcomp.compiler.integer_rewrites.shortcuts import Desk, shortcut_forms
from onnxcomp.compiler.passbase import PassLog
from onnxcomp.ir.edits import absorb, bypass, drop_orphans, give_padding
from onnxcomp.ir.graph import Node, Value, Variable
from onnxcomp.ir.liveness import unread_constants
from onnxcomp.ir.model import Model
from onnxcomp.ir.ops import CAN_PAD
from onnxcomp.ir.shapes import ValueType, infer_types

__all__ = ["ALL_FORMS", "integer_forms"]

ALL_FORMS = ("clips", "shortcuts", "pads", "means", "products")
"""The kinds of rewrites, in the order in which they are done."""


def integer_forms(
    model: Model,
    shapes: Mapping[str, tuple[int, ...]],
    left_alone: Container[str],
    log: PassLog,
    kinds: Collection[str] = ALL_FORMS,
) -> None:
    """Rewrite nodes that runtimes cannot compute in integers into ones they can, in place; the model computes the same.

    - `clips`: a Relu or Clip that changes nothing, because of what stands before or behind it, goes.
    - `shortcuts`: Slices over space and Pads or Concats that add channels of zeros become a strided 1x1 convolution.
    - `pads`: a Pad of zeros over space becomes padding of the convolutions and poolings that read it.
    - `means`: ReduceMean over space and AveragePool over the whole map become GlobalAveragePool, but no part
      of a normalization, which is known as a whole.
    - `products`: MatMul of matrices and the Add of a constant bias become Gemm.

    `shapes` are those of the values for one feed; they tell the number of axes where inference cannot. Nodes named in
    `left_alone` stay as they are. Every rewrite is a change in `log`; what one would expect and does not happen is a skip.

    Raises:
        ValueError: for a kind that does not exist.
    """
    unknown = [kind for kind in kinds if kind not in ALL_FORMS]
    if unknown:
        raise ValueError(f"there are no forms {unknown[0]!r}; there are {', '.join(ALL_FORMS)}")
    types = infer_types(model)
    for name, shape in shapes.items():
        found = types.get(name, ValueType(None, None))
        if found.shape is None:
            types[name] = ValueType(found.dtype, (None,) * len(shape))
    desk = Desk(model, types, left_alone, log)
    done = len(log.changes)
    unread = {c.name for c in unread_constants(model)}
    for kind, rewrite in zip(ALL_FORMS, (_clips, shortcut_forms, _pads, _means, _products), strict=True):
        if kind in kinds:
            rewrite(desk)
    if len(log.changes) > done:
        drop_orphans(model, unread)
        # Stored tensors that are not graph inputs need IR version 4.
        model.ir_version = max(model.ir_version, 4)


# --- clips -----------------------------------------------------------------------------------------------------------
def _clips(desk: Desk) -> None:
    for node in list(desk.model.graph.nodes):
        if not node.is_op("Relu", "Clip") or node.name in desk.left_alone:
            continue
        if _clips_nothing(node):
            reason = "what it reads is within its bounds already"
        elif node.is_op("Relu") and _clipped_behind(desk, node):
            reason = "every Clip behind it cuts off as much"
        else:
            continue
        if not bypass(desk.model, node.output, node.inputs[0]):
            desk.log.skip(node.name, "its result bears a name that must stay, and so does what it reads")
            continue
        desk.model.graph.remove_nodes([node])
        desk.model.rename_node(node.name, "")
        desk.log.change(node.name, f"{node.op} removed: {reason}")


def _range(value: Value) -> tuple[float, float]:
    """Return bounds that no element of `value` exceeds, as far as Clip and signs tell."""
    node = value.producer
    least = 0.0 if is_nonnegative(value) else float("-inf")
    low, high = clip_bounds(node) if node is not None and node.is_op("Clip") else (None, None)
    if low is not None and high is not None and low <= high:
        return max(low, least), high
    return least, float("inf")


def _clips_nothing(node: Node) -> bool:
    least, most = _range(node.inputs[0])
    low, high = (0.0, float("inf")) if node.is_op("Relu") else clip_bounds(node)
    return low is not None and high is not None and low <= least and most <= high


def _clipped_behind(desk: Desk, node: Node) -> bool:
    """Return whether every reader of a Relu gives the same without it, and nobody else reads it."""
    graph = desk.model.graph
    uses = list(graph.uses(node.output))
    if not uses or graph.is_output(node.output) or node.output.name in graph.captured():
        return False
    for reader, index in uses:
        low = clip_bounds(reader)[0] if reader.is_op("Clip") else None
        if reader.name in desk.left_alone or index != 0 or low is None or low < 0:
            return False
    return True


# --- pads ------------------------------------------------------------------------------------------------------------
def _pads(desk: Desk) -> None:
    # Backwards: of two Pads in a row the second makes way for the first.
    for node in reversed(list(desk.model.graph.nodes)):
        if not node.is_op("Pad") or node.name in desk.left_alone:
            continue
        readers = list(node.output.consumers)
        if not any(reader.is_op(*CAN_PAD) for reader in readers):
            continue
        refusal = _merge_pad(desk, node, readers)
        if refusal is not None:
            desk.log.skip(node.name, refusal.reason)


def _merge_pad(desk: Desk, node: Node, readers: list[Node]) -> Refusal | None:
    """Give the padding of `node` to all its `readers` and remove it; return why that is not possible."""
    graph, source = desk.model.graph, node.inputs[0]
    rank = desk.rank(source)
    pads = zero_pads(node, rank) if rank is not None else None
    if pads is None:
        return Refusal("it does more than add a known number of zeros, and runs in float")
    if graph.is_output(node.output) or node.output.name in graph.captured():
        return Refusal("its result is needed elsewhere too")
    merged: list[tuple[Node, list[int]]] = []
    for reader, index in graph.uses(node.output):
        own = _reader_pads(desk, reader, pads, source) if index == 0 else Refusal("it makes weights")
        if isinstance(own, Refusal):
            return own
        merged.append((reader, own))
    give_padding(graph, node, merged)
    desk.model.rename_node(node.name, readers[0].name)
    names = ", ".join(f"{reader.op} {reader.name!r}" for reader in readers)
    desk.log.change(node.name, f"Pad became padding of {names}")
    return None


def _reader_pads(desk: Desk, reader: Node, pads: list[int], source: Value) -> list[int] | Refusal:
    """Return the `pads` attribute with which `reader` pads `source` itself."""
    if reader.name in desk.left_alone:
        return Refusal(f"{reader.op} {reader.name!r} behind it is left alone")
    if not reader.is_op(*CAN_PAD):
        return Refusal(f"{reader.op} {reader.name!r} behind it cannot pad")
    if not reader.is_op("MaxPool"):
        return merged_pads(reader, pads)
    if not is_nonnegative(source):
        return Refusal(
            f"MaxPool {reader.name!r} pads with less than any number, and what it reads may be negative"
        )
    return _maxpool_pads(reader, pads)


def _maxpool_pads(reader: Node, pads: list[int]) -> list[int] | Refusal:
    """Return the `pads` with which a MaxPool of nothing negative does the padding `pads` by zeros itself.

    It never lets padding win, so that every window has to hold an element that is no padding: then that is no less than
    the zeros were.
    """
    own = merged_pads(reader, pads)
    if isinstance(own, Refusal):
        return own
    kernel = reader.attrs["kernel_shape"] * 2
    plain = not reader.attrs.get("ceil_mode", 0) and set(reader.attrs.get("dilations") or [1]) == {1}
    if not plain or any(v.name for v in reader.outputs[1:]):
        return Refusal(f"MaxPool {reader.name!r} rounds up, is dilated or gives places of its maxima")
    if any(amount >= size for amount, size in zip(own, kernel, strict=True)):
        return Refusal(f"it pads by more than the kernel of MaxPool {reader.name!r}")
    return own


# --- means -----------------------------------------------------------------------------------------------------------
def _means(desk: Desk) -> None:
    for node in list(desk.model.graph.nodes):
        if node.name in desk.left_alone or not node.inputs or not desk.is_float32(node.inputs[0]):
            continue
        if node.is_op("ReduceMean") and _is_over_space(desk, node) and not _normalizes(desk, node):
            _mean_to_pool(desk, node)
        elif node.is_op("AveragePool") and _is_over_whole_map(desk, node):
            node.op, node.attrs = "GlobalAveragePool", {}
            desk.log.change(node.name, "AveragePool over the whole map became GlobalAveragePool")


def _is_over_space(desk: Desk, node: Node) -> bool:
    """Return whether a ReduceMean goes over exactly the axes behind batch and channels."""
    rank = desk.rank(node.inputs[0])
    axes = node.attrs.get("axes") if node.input(1) is None else node.constant(1)
    if rank is None or rank < 3 or axes is None:
        return False
    return sorted(int(axis) % rank for axis in axes) == list(range(2, rank))


def _normalizes(desk: Desk, node: Node) -> bool:
    """Return whether a mean is subtracted from what it is of, or is one of squares.

    Both are parts of a normalization written out, which runtimes recognise as a whole, and only as it was exported.
    """
    source = node.inputs[0]
    maker = source.producer
    if maker is not None and (
        maker.is_op("Pow") or (maker.is_op("Mul") and maker.input(0) is maker.input(1))
    ):
        return True
    return any(n.is_op("Sub") and n.input(0) is source for n, _ in desk.model.graph.uses(node.output))


def _mean_to_pool(desk: Desk, node: Node) -> None:
    graph = desk.model.graph
    if node.attrs.get("keepdims", 1):
        graph.drop_trailing_inputs(node, 1)
        node.op, node.attrs = "GlobalAveragePool", {}
        desk.log.change(node.name, "ReduceMean over space became GlobalAveragePool")
        return
    made = Variable(graph.fresh_name(f"{node.output.name}__pooled"))
    pool = Node("GlobalAveragePool", node.name, {}, [node.inputs[0]], [made])
    pool.doc_string, pool.metadata = node.doc_string, dict(node.metadata)
    # The node that is there keeps the value that others read; its name goes with the work.
    node.name = graph.fresh_name(f"{node.name}__flatten")
    graph.insert(pool, before=node)
    graph.set_input(node, 0, made)
    graph.drop_trailing_inputs(node, 1)
    node.op, node.attrs = "Flatten", {"axis": 1}
    desk.log.change(pool.name, "ReduceMean over space became GlobalAveragePool and Flatten")


def _is_over_whole_map(desk: Desk, node: Node) -> bool:
    """Return whether the only window of an AveragePool is the whole map."""
    kernel = [int(size) for size in node.attrs["kernel_shape"]]
    whole = [desk.size(node.inputs[0], axis) for axis in range(2, 2 + len(kernel))] == kernel
    unpadded = not any(node.attrs.get("pads") or ()) and node.attrs.get("auto_pad", "NOTSET") in (
        "NOTSET",
        "VALID",
    )
    return whole and unpadded and set(node.attrs.get("dilations") or [1]) == {1}


# --- products --------------------------------------------------------------------------------------------------------
def _products(desk: Desk) -> None:
    graph = desk.model.graph
    for node in list(graph.nodes):
        step = affine_step(node) if node.is_op("Add") else None
        if not isinstance(step, Step) or node.name in desk.left_alone:
            continue
        product = step.value.producer
        if product is None or not product.is_op("MatMul") or product.name in desk.left_alone:
            continue
        if graph.sole_use(step.value) is not node or desk.rank(product.inputs[0]) != 2:
            continue
        rewrite = fold_after(product, step, desk.types)
        if isinstance(rewrite, Refusal):
            continue
        for index, values in rewrite.inputs.items():
            graph.set_constant(product, index, values, suffix="integer-forms")
        product.op = rewrite.op
        absorb(graph, product, node)
        desk.model.rename_node(node.name, product.name)
        became = ", which became Gemm" if product.is_op("Gemm") else ": it adds zeros"
        desk.log.change(node.name, f"Add of a bias went into MatMul {product.name!r}{became}")
