"""Linear nodes of every kind, and chains in their place."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnxcomp.analysis.channels import default_shapes
from onnxcomp.analysis.linear import LinearNode, linear_node
from onnxcomp.compiler.factorization.chain import Chain, Layout, possible
from onnxcomp.ir.edits import drop_orphans
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.numerics.forms import FORMS, Form
from tests.support.text import net

__all__ = ["NODES", "chained", "combinations", "dense", "form_at", "linear_of", "made", "named", "spatial_of"]

LAYOUTS: tuple[Layout, ...] = ("plain", "concat", "sum")

NODES = {
    "conv": ("N,4,6,6", "Conv<pads=[1,1,1,1]>(x, w, q)", "float[5,4,3,3] w, float[5] q"),
    "conv-strided": (
        "N,4,7,5",
        "Conv<strides=[2,1], dilations=[1,2], pads=[0,2,1,1]>(x, w, q)",
        "float[3,4,2,3] w, float[3] q",
    ),
    "conv-same-upper": ("N,4,6,5", 'Conv<auto_pad="SAME_UPPER", strides=[2,2]>(x, w)', "float[5,4,3,2] w"),
    "conv-same-lower": ("N,4,6,5", 'Conv<auto_pad="SAME_LOWER", strides=[2,2]>(x, w)', "float[5,4,3,2] w"),
    "conv-valid": ("N,4,6,6", 'Conv<auto_pad="VALID", kernel_shape=[3,3]>(x, w)', "float[5,4,3,3] w"),
    "conv-pointwise": ("N,4,6,6", "Conv<strides=[2,2]>(x, w, q)", "float[5,4,1,1] w, float[5] q"),
    "conv-one-axis": ("N,4,6,6", "Conv<pads=[1,0,1,0]>(x, w)", "float[5,4,3,1] w"),
    "conv-grouped": ("N,4,6,6", "Conv<group=2, pads=[0,1,0,1]>(x, w, q)", "float[6,2,3,3] w, float[6] q"),
    "conv-depthwise": ("N,4,6,6", "Conv<group=4>(x, w, q)", "float[8,1,3,3] w, float[8] q"),
    "conv-one-output": ("N,4,6,6", "Conv(x, w, q)", "float[1,4,3,3] w, float[1] q"),
    "conv-one-channel": ("N,1,6,6", "Conv(x, w, q)", "float[5,1,3,3] w, float[5] q"),
    "conv-1d": ("N,4,9", "Conv<strides=[2], pads=[2,1]>(x, w, q)", "float[5,4,3] w, float[5] q"),
    "conv-3d": (
        "N,2,4,5,3",
        "Conv<pads=[1,0,0,0,1,1], strides=[1,2,1]>(x, w, q)",
        "float[5,2,2,3,2] w, float[5] q",
    ),
    "spread": ("N,4,5,5", "ConvTranspose(x, w, q)", "float[4,5,3,3] w, float[5] q"),
    "spread-strided": (
        "N,4,5,4",
        "ConvTranspose<strides=[2,3], pads=[1,0,1,2], output_padding=[1,2]>(x, w, q)",
        "float[4,5,3,4] w, float[5] q",
    ),
    "spread-dilated": ("N,4,5,4", "ConvTranspose<strides=[2,1], dilations=[1,2]>(x, w)", "float[4,3,2,3] w"),
    "spread-same-upper": (
        "N,4,5,4",
        'ConvTranspose<strides=[2,2], auto_pad="SAME_UPPER">(x, w, q)',
        "float[4,5,3,3] w, float[5] q",
    ),
    "spread-same-lower": (
        "N,4,5,4",
        'ConvTranspose<strides=[2,2], auto_pad="SAME_LOWER">(x, w, q)',
        "float[4,5,3,3] w, float[5] q",
    ),
    "spread-to-shape": (
        "N,4,5,4",
        "ConvTranspose<strides=[2,2], output_shape=[10,8]>(x, w, q)",
        "float[4,5,3,3] w, float[5] q",
    ),
    "spread-pointwise": ("N,4,5,4", "ConvTranspose<strides=[2,2]>(x, w, q)", "float[4,5,1,1] w, float[5] q"),
    "spread-1d": ("N,4,6", "ConvTranspose<strides=[2]>(x, w, q)", "float[4,5,4] w, float[5] q"),
    "spread-3d": ("N,2,3,2,3", "ConvTranspose<strides=[1,2,1]>(x, w)", "float[2,3,2,3,2] w"),
    "gemm": ("N,6", "Gemm(x, w, q)", "float[6,5] w, float[5] q"),
    "gemm-transposed": ("N,6", "Gemm<transB=1>(x, w, q)", "float[5,6] w, float[1,5] q"),
    "gemm-scaled": ("N,6", "Gemm<alpha=0.5, beta=3.0>(x, w, q)", "float[6,5] w, float[5] q"),
    "gemm-scaled-transposed": (
        "N,6",
        "Gemm<alpha=-2.0, beta=0.25, transB=1>(x, w, q)",
        "float[5,6] w, float[5] q",
    ),
    "gemm-scalar-bias": ("N,6", "Gemm<beta=2.0>(x, w, q)", "float[6,5] w, float[1] q"),
    "gemm-no-bias": ("N,6", "Gemm<alpha=2.0>(x, w)", "float[6,5] w"),
    "matmul-vector": ("6", "MatMul(x, w)", "float[6,5] w"),
    "matmul": ("N,6", "MatMul(x, w)", "float[6,5] w"),
    "matmul-heads": ("N,2,3,6", "MatMul(x, w)", "float[6,5] w"),
    "matmul-left-vector": ("6", "MatMul(w, x)", "float[5,6] w"),
    "matmul-left": ("N,6,7", "MatMul(w, x)", "float[5,6] w"),
    "matmul-left-deep": ("N,2,6,7", "MatMul(w, x)", "float[5,6] w"),
}


def made(shape: str, call: str, stored: str) -> Model:
    vector = "," not in shape
    out = "5" if vector else ",".join(f"d{axis}" for axis in range(len(shape.split(","))))
    model = parse_model(net(f"(float[{shape}] x) => (float[{out}] y)", stored, f"y = {call}"))
    model.graph.nodes[0].name = "layer"
    return model


def named(name: str) -> Model:
    return made(*NODES[name])


def linear_of(model: Model, name: str = "layer") -> LinearNode:
    node = linear_node(next(node for node in model.graph.nodes if node.name == name))
    assert node is not None
    return node


def form_at(node: LinearNode, name: str, ranks: tuple[int, ...] | None = None) -> Form:
    """The form for the weights of `node`; full where no ranks are given."""
    kernel = node.weight_array().shape[2:] if node.spatial else ()
    _, o, d = node.matrix().shape
    channels = d // int(np.prod(kernel, dtype=int))
    some = ranks or FORMS[name](o, channels, kernel, (1, 1)[: 1 + (name == "tucker")]).full()
    return FORMS[name](o, channels, kernel, some)


def spatial_of(model: Model, node: LinearNode) -> tuple[int, ...]:
    return default_shapes(model)[node.input][2:] if node.spatial else ()


def chained(
    model: Model, name: str, layout: Layout, ranks: tuple[int, ...] | None = None, where: str = "layer"
) -> tuple[Model, Chain]:
    """`model` with a chain at the starts of its form, and without what nothing reads any more."""
    edited, node = model.clone(), linear_of(model, where)
    form = form_at(node, name, ranks)
    blocks = [form.start(W, np.eye(form.width)) for W in node.matrix()]
    chain = Chain.build(edited, node, form, layout, blocks, spatial_of(model, node))
    drop_orphans(edited, set())
    return edited, chain


def combinations(node: LinearNode) -> Iterator[tuple[str, Layout]]:
    for name in FORMS:
        for layout in LAYOUTS:
            if possible(name, node, layout) is None:
                yield name, layout


def dense(model: Model, chain: Chain) -> Model:
    """`model` with the product of the chain's factors, and its bias, in the one node."""
    edited = model.clone()
    node = linear_of(edited, chain.template.node.name)
    node.install(edited, chain.matrix(), chain.bias() if node.has_bias else None, "test")
    return edited
