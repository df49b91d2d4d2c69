"""What onnxruntime makes of a quantized model on this machine: which nodes run on integers, which stayed float, and why.

onnxruntime reads QuantizeLinear and DequantizeLinear around an operator as the wish that it runs on integers, and grants it
where it has the kernel and all is as that kernel wants it. What it made is read from the graph it optimised, by following
types from there; the reasons are read from the model.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnxcomp.ir.files import save
from onnxcomp.ir.model import Model
from onnxcomp.ir.ops import ABSORBED, LAYOUT, LINEAR, UNCOUNTED
from onnxcomp.ir.skim import SkimNode, SkimValue, skim, skim_bytes
from onnxcomp.ir.temporary import prefix
from onnxcomp.runtime.inputs import PIECE_LIMIT
from onnxcomp.runtime.session import Session
from onnxcomp.runtime.unfused import is_float, is_narrow, why_unfused

__all__ = ["Fusion", "KernelNode", "fusion_of", "is_quantized", "optimized_nodes"]


@dataclass(frozen=True)
class KernelNode:
    """A node of the model as onnxruntime runs it.

    `name` and `op` are those in the model, `kernel` is what runs for it, several joined by `+`; `reason` says why it stayed
    float, "" where it did not or where that cannot be told. A node that onnxruntime `added` stands for none of the model:
    its name is `added by onnxruntime (KERNEL)`, as the one that onnxruntime made up says nothing to anybody.
    """

    name: str
    op: str
    kernel: str
    reason: str = ""
    added: bool = False


@dataclass(frozen=True)
class Fusion:
    """The nodes that onnxruntime runs, after its own optimisations, subgraphs included.

    Attributes:
        fused: nodes that run on integers.
        unfused: float nodes that were meant to run on integers: with a DequantizeLinear right before and a QuantizeLinear
            right behind, or with a dequantized weight.
        floats: all other nodes that compute on floats.
        islands: those of `unfused` and `floats` between integer nodes: something before and something behind runs on
            integers, so that values are converted there and back.
        quantize: QuantizeLinear nodes that are left.
        dequantize: DequantizeLinear nodes that are left, those of weights included.
        layout: nodes added that only bring values into another layout.
    """

    fused: tuple[KernelNode, ...]
    unfused: tuple[KernelNode, ...]
    floats: tuple[KernelNode, ...]
    islands: tuple[KernelNode, ...]
    quantize: int
    dequantize: int
    layout: int

    def __str__(self) -> str:
        counts = f"{len(self.fused)} fused, {len(self.unfused)} unfused, {len(self.floats)} float"
        return f"{counts}; {len(self.islands)} float between integer nodes"


def fusion_of(model: Model, *, custom_op_libs: Sequence[str] = ()) -> Fusion:
    """Return what onnxruntime makes of `model`, which is only read; nothing is run.

    Raises:
        SessionError: where onnxruntime cannot load the model.
    """
    made = optimized_nodes(model, custom_op_libs=custom_op_libs)
    return _Sorter(skim(model), made).fusion()


def is_quantized(model: Model) -> bool:
    """Return whether something in `model` converts to or works on quantized numbers, subgraphs included."""
    return any(_converts(node) or _on_integers(node) for node in skim(model))


def optimized_nodes(model: Model, *, custom_op_libs: Sequence[str] = ()) -> list[SkimNode]:
    """Return the nodes of the graph that onnxruntime optimises `model` to, for the CPU of this machine.

    Raises:
        SessionError: where onnxruntime cannot load the model.
    """
    with tempfile.TemporaryDirectory(prefix=prefix()) as folder:
        target = Path(folder) / "optimized.onnx"
        source: Model | str = model
        if model.weight_bytes > PIECE_LIMIT:
            source = str(save(model, Path(folder) / "model.onnx")[0])
        Session(source, threads=1, custom_op_libs=custom_op_libs, optimized_to=target)
        return skim_bytes(target.read_bytes())


@dataclass
class _Group:
    """The optimised nodes that stand for one node of the model; `origin` is that node, None for one that was added."""

    origin: SkimNode | None
    nodes: list[SkimNode]
    integer: bool

    @property
    def kernel(self) -> str:
        return "+".join(f"{n.domain}.{n.op}" if n.domain else n.op for n in self.nodes)

    def reads(self) -> Iterable[SkimValue]:
        """Yield what the group reads from outside."""
        inside = {value for node in self.nodes for value in node.outputs}
        yield from (v for node in self.nodes for v in node.inputs if v is not None and v not in inside)


class _Sorter:
    def __init__(self, source: list[SkimNode], made: list[SkimNode]) -> None:
        self._made = made
        self._by_name: dict[str, SkimNode] = {}
        self._by_output: dict[str, SkimNode] = {}
        for node in source:
            self._by_name.setdefault(node.name, node)
            for value in node.outputs:
                self._by_output.setdefault(value.name, node)
        self._origins: dict[SkimNode, SkimNode | None] = {}

    def fusion(self) -> Fusion:
        groups = self._groups()
        between = self._between()
        fused: list[KernelNode] = []
        unfused: list[KernelNode] = []
        floats: list[KernelNode] = []
        islands: list[KernelNode] = []
        for group in groups:
            if group.integer:
                fused.append(_entry(group))
                continue
            meant = self._was_meant(group)
            reason = why_unfused(group.origin) if meant and group.origin is not None else ""
            entry = _entry(group, reason)
            (unfused if meant else floats).append(entry)
            if any(node in between for node in group.nodes):
                islands.append(entry)
        return Fusion(
            tuple(fused),
            tuple(unfused),
            tuple(floats),
            tuple(islands),
            quantize=sum(_quantizes(n) for n in self._made),
            dequantize=sum(n.op == "DequantizeLinear" for n in self._made),
            layout=sum(self._is_layout(n) for n in self._made),
        )

    def _groups(self) -> list[_Group]:
        """Return the nodes that compute, those of one origin together."""
        groups: dict[object, _Group] = {}
        for node in self._made:
            integer = _on_integers(node)
            if self._is_layout(node) or not (integer or _on_floats(node)):
                continue
            origin = self._origin(node)
            key = (origin or node, integer)
            groups.setdefault(key, _Group(origin, [], integer)).nodes.append(node)
        return list(groups.values())

    def _is_layout(self, node: SkimNode) -> bool:
        return node.op in LAYOUT and self._named(node) is None

    def _origin(self, node: SkimNode) -> SkimNode | None:
        """Return the node of the model that `node` stands for: of its name, of its outputs, or that of its reader."""
        if node not in self._origins:
            found = self._named(node) or self._making(node)
            if found is None and _INLINED.fullmatch(node.name):
                readers = dict.fromkeys(r for value in node.outputs for r in value.readers)
                found = next((o for r in readers if not _converts(r) and (o := self._origin(r))), None)
            self._origins[node] = _before_absorbed(found, node)
        return self._origins[node]

    def _named(self, node: SkimNode) -> SkimNode | None:
        for name in _earlier_names(node.name):
            found = self._by_name.get(name)
            # onnxruntime makes up names for what it adds, which a node of the model may have borne, too.
            if found is not None and (node.op not in LAYOUT or found.op == node.op):
                return found
        return None

    def _making(self, node: SkimNode) -> SkimNode | None:
        """Return the node of the model that computes an output of `node`, before any conversion."""
        made = [
            *node.outputs,
            *(v for o in node.outputs for r in o.readers if r.op in LAYOUT for v in r.outputs),
        ]
        for name in [*(n for v in made for n in _earlier_names(v.name)), *_earlier_names(node.name)]:
            found = self._by_output.get(name)
            while found is not None and _converts(found):
                before = found.input(0)
                found = before.producer if before is not None else None
            if found is not None:
                return found
        return None

    def _was_meant(self, group: _Group) -> bool:
        """Return whether the float `group` was meant to run on integers."""
        makers = [self._maker(value) for value in group.reads()]
        sources = [node for node in makers if node is not None and node.op == "DequantizeLinear"]
        if any(value.stored for node in sources if (value := node.input(0)) is not None):
            return True
        made = [value for node in group.nodes for value in node.outputs]
        return bool(sources) and any(_quantizes(r) for value in made for r in self._readers(value))

    def _maker(self, value: SkimValue) -> SkimNode | None:
        """Return the node that makes `value`, before any change of layout."""
        node = value.producer
        while node is not None and self._is_layout(node):
            before = node.input(0)
            node = before.producer if before is not None else None
        return node

    def _readers(self, value: SkimValue) -> Iterable[SkimNode]:
        """Yield the nodes that read `value`, behind any change of layout."""
        for node in value.readers:
            if self._is_layout(node):
                yield from self._readers(node.outputs[0])
            else:
                yield node

    def _between(self) -> set[SkimNode]:
        """Return the nodes that have integer nodes both among what they hang on and among what hangs on them."""
        behind = _reached(
            self._made, lambda node: [v.producer for v in _carried([*node.inputs, *node.inner])]
        )
        before = _reached(
            self._made[::-1], lambda node: [r for v in _carried(node.outputs) for r in v.readers]
        )
        return behind & before


def _entry(group: _Group, reason: str = "") -> KernelNode:
    shown = group.origin
    if shown is None:
        return KernelNode(
            f"added by onnxruntime ({group.kernel})", group.nodes[0].op, group.kernel, reason, added=True
        )
    fallback = next((v.name for v in shown.outputs if v.name), shown.op)
    return KernelNode(shown.name or fallback, shown.op, group.kernel, reason)


def _before_absorbed(found: SkimNode | None, kernel: SkimNode) -> SkimNode | None:
    """Return the product whose activation, normalisation or sum `found` is, where `kernel` is one that absorbs these."""
    if not kernel.op.endswith(tuple(LINEAR)):
        return found
    waiting, seen = [found], set[SkimNode]()
    while waiting:
        node = waiting.pop(0)
        if node is None or node in seen:
            continue
        if node.op in LINEAR:
            return node
        seen.add(node)
        if node.op in ABSORBED:
            waiting += [v.producer for v in node.inputs if v is not None]
    return found


def _carried(values: Iterable[SkimValue | None]) -> list[SkimValue]:
    """Return those of `values` that carry data, not sizes or truth values."""
    return [v for v in values if v is not None and (v.dtype is None or v.dtype.name not in ("int64", "bool"))]


def _reached(
    order: Sequence[SkimNode], neighbours: Callable[[SkimNode], Iterable[SkimNode | None]]
) -> set[SkimNode]:
    """Return the nodes of `order` that have an integer node among their `neighbours`, theirs, and so on."""
    found: set[SkimNode] = set()
    for node in order:
        if any(n is not None and (n in found or _hands_on_integers(n)) for n in neighbours(node)):
            found.add(node)
    return found


_INLINED = re.compile(r"(_inlfunc.*)?")
"""Names of nodes that onnxruntime made of a function."""

_SUFFIX = re.compile(r"(_token_\d+|_nchwc(_\d+)?|/duplicated(_\d+)?|/\w*Fusion\w*/?)$")
"""What onnxruntime appends to the name of a node that it moved to another layout, copied or fused."""


def _earlier_names(name: str) -> Iterable[str]:
    """Yield `name`, and what it was before onnxruntime appended to it."""
    while name:
        yield name
        shorter = _SUFFIX.sub("", name)
        if shorter == name:
            return
        name = shorter


def _quantizes(node: SkimNode) -> bool:
    return node.op in ("QuantizeLinear", "DynamicQuantizeLinear")


def _converts(node: SkimNode) -> bool:
    return _quantizes(node) or node.op == "DequantizeLinear"


def _on_integers(node: SkimNode) -> bool:
    return _computes(node) and any(v is not None and is_narrow(v.dtype) for v in node.inputs)


def _hands_on_integers(node: SkimNode) -> bool:
    """Return whether quantized activations go into or come out of `node`; stored weights alone convert nothing."""
    return _computes(node) and any(
        v is not None and is_narrow(v.dtype) and not v.stored for v in [*node.inputs, *node.outputs]
    )


def _computes(node: SkimNode) -> bool:
    """Return whether `node` does more than convert numbers, ask for sizes or hold subgraphs."""
    return not (_converts(node) or node.inner or node.op in UNCOUNTED)


def _on_floats(node: SkimNode) -> bool:
    if not _computes(node):
        return False
    return any(v is not None and is_float(v.dtype) for v in [*node.inputs, *node.outputs])
