"""Chains in the place of nodes: what they compute, what they cost and what they leave alone, for every kind of node."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxcomp.analysis.channels import default_shapes
from onnxcomp.analysis.cost import node_macs
from onnxcomp.compiler.factorization.chain import Chain, Layout, lay_out, possible
from onnxcomp.ir.graph import Node
from onnxcomp.ir.parse import parse_model
from onnxcomp.testing import assert_equal_outputs, assert_valid, fingerprint
from tests.support.chains import (
    NODES,
    chained,
    combinations,
    dense,
    form_at,
    linear_of,
    made,
    named,
    spatial_of,
)
from tests.support.text import net

Array = NDArray[Any]

BIASED = [name for name in NODES if not name.startswith("matmul")]
ALL = [(node, *how) for node in NODES for how in combinations(linear_of(named(node)))]


@pytest.mark.parametrize(("node", "name", "layout"), ALL)
def test_at_the_full_rank_nothing_changes(node: str, name: str, layout: Layout) -> None:
    model = named(node)
    mark = fingerprint(model)
    edited, _ = chained(model, name, layout)
    assert fingerprint(model) == mark
    assert_valid(edited, like=model)
    assert_equal_outputs(model, edited)


@pytest.mark.parametrize(("node", "name", "layout"), ALL)
def test_a_chain_of_low_rank_is_the_dense_node_with_its_product_and_bias(
    node: str, name: str, layout: Layout
) -> None:
    model = named(node)
    edited, chain = chained(model, name, layout, (1, 1) if name == "tucker" else (1,))
    assert_equal_outputs(dense(model, chain), edited)
    rng = np.random.default_rng(1)
    blocks = [tuple(rng.standard_normal(shape) for shape in chain.form.shapes()) for _ in range(chain.group)]
    bias = rng.standard_normal(len(chain.bias())) if chain.has_bias else None
    before = fingerprint(model)
    chain.install_factors(edited, blocks, bias)
    assert fingerprint(model) == before, "arrays are shared with the model that was there before"
    np.testing.assert_allclose(chain.matrix(), [chain.form.expand(block) for block in blocks])
    if bias is not None:
        np.testing.assert_allclose(chain.bias(), bias, rtol=1e-6)
    assert_valid(edited, like=model)
    assert_equal_outputs(dense(model, chain), edited)


@pytest.mark.parametrize(("node", "name", "layout"), ALL)
def test_links_foretell_macs_and_elements(node: str, name: str, layout: Layout) -> None:
    model = named(node)
    for ranks in [(2, 1) if name == "tucker" else (2,), None]:
        linear = linear_of(model)
        form, spatial = form_at(linear, name, ranks), spatial_of(model, linear)
        links = lay_out(linear, form, layout, spatial)
        edited, chain = chained(model, name, layout, ranks)
        shapes = default_shapes(edited)
        rows = 1 if linear.spatial else np.prod(shapes[chain.output]) // form.outputs
        found = [node_macs(each, shapes) for each in chain.nodes]
        assert found == [link.macs * rows for link in links]
        stored = [each.constant(linear.weight) for each in chain.nodes]
        assert [a.size for a in stored if a is not None] == [link.elements for link in links]
        assert sum(link.elements for link in links) == form.elements() * linear.group
        assert [a.shape for a in stored if a is not None][-1].count(0) == 0


@pytest.mark.parametrize("node", BIASED)
def test_the_bias_stays_until_another_is_installed(node: str) -> None:
    model = named(node)
    edited, chain = chained(model, "channel", "plain")
    wanted = linear_of(model).bias()
    np.testing.assert_allclose(chain.bias(), wanted)
    chain.install_factors(edited, chain.blocks, None)
    np.testing.assert_allclose(chain.bias(), wanted)
    chain.install(edited, chain.matrix(), wanted + 1, "test")
    np.testing.assert_allclose(chain.bias(), wanted + 1, rtol=1e-6)
    assert_equal_outputs(dense(model, chain), edited)


@pytest.mark.parametrize("dtype", ["float16", "double"])
@pytest.mark.parametrize("node", ["conv", "spread", "gemm-scaled", "matmul"])
def test_weights_keep_the_width_of_their_floats(node: str, dtype: str) -> None:
    shape, call, stored = NODES[node]
    out = ",".join(f"d{axis}" for axis in range(len(shape.split(","))))
    text = net(f"({dtype}[{shape}] x) => ({dtype}[{out}] y)", stored.replace("float", dtype), f"y = {call}")
    model = parse_model(text)
    model.graph.nodes[0].name = "layer"
    weight = linear_of(model).weight_array()
    for name, layout in combinations(linear_of(model)):
        edited, chain = chained(model, name, layout)
        assert {c.values.dtype for c in edited.graph.constants.values()} == {weight.dtype}
        chain.install_factors(edited, chain.blocks, chain.bias() if chain.has_bias else None)
        assert {c.values.dtype for c in edited.graph.constants.values()} == {weight.dtype}
        # onnxruntime has no convolution of float64.
        if dtype == "float16" or not chain.template.spatial:
            assert_equal_outputs(model, edited)


BRANCHED = [("channel", "plain"), ("depthwise", "plain"), ("depthwise", "concat"), ("depthwise", "sum")]


@pytest.mark.parametrize(("name", "layout"), [*BRANCHED, ("pointwise", "sum")])
def test_neighbours_that_share_input_weight_and_bias_stay_what_they_are(name: str, layout: Layout) -> None:
    """Both read `x` and hold `w` and `q`; one result is an output itself, the input is read a third time."""
    model = parse_model(
        net(
            "(float[N,4,6,6] x) => (float[N,4,6,6] y, float[N,4,6,6] z)",
            "float[4,4,3,3] w, float[4] q",
            "y = Conv<pads=[1,1,1,1]>(x, w, q) v = Conv<pads=[1,1,1,1]>(x, w, q) u = Mul(v, x) z = Add(u, y)",
        )
    )
    model.graph.nodes[0].name, model.graph.nodes[1].name = "layer", "other"
    edited, chain = chained(model, name, layout)
    assert_valid(edited, like=model)
    assert_equal_outputs(model, edited)
    other = next(node for node in edited.graph.nodes if node.name == "other")
    wanted = linear_of(model, "other")
    rng = np.random.default_rng(0)
    blocks = [tuple(rng.standard_normal(shape) for shape in chain.form.shapes())]
    chain.install_factors(edited, blocks, rng.standard_normal(4))
    for index, array in ((1, wanted.weight_array()), (2, wanted.bias())):
        found = other.constant(index)
        assert found is not None
        np.testing.assert_allclose(found, array)
    assert_equal_outputs(dense(model, chain), edited)


@pytest.mark.parametrize(("name", "layout"), [*BRANCHED, ("pointwise", "sum"), ("tucker", "plain")])
def test_the_last_node_takes_name_output_and_papers_of_the_old(name: str, layout: Layout) -> None:
    model = named("conv")
    old = model.graph.nodes[0]
    old.doc_string, old.metadata = "what it is for", {"key": "value"}
    edited, chain = chained(model, name, layout)
    assert (chain.node.name, chain.output, chain.input) == ("layer", "y", "x")
    assert (chain.node.doc_string, chain.node.metadata) == ("what it is for", {"key": "value"})
    assert chain.node is edited.graph.nodes[-1]
    names = [node.name for node in edited.graph.nodes]
    assert len(set(names)) == len(names)


def test_names_that_are_taken_are_left_to_their_owners() -> None:
    model = parse_model(
        net(
            "(float[N,4,6,6] x) => (float[N,5,4,4] y)",
            "float[5,4,3,3] w, float[5,5,1,1] v",
            "a = Conv(x, w) y = Conv(a, v)",
        )
    )
    first, second = model.graph.nodes
    first.name, second.name = "layer", "layer.conv"
    second.inputs[1].name = "layer.0.weight"
    model.graph.constants["layer.0.weight"] = model.graph.constants.pop("v")
    edited, _ = chained(model, "tucker", "plain")
    assert_valid(edited, like=model)
    assert_equal_outputs(model, edited)
    assert [node for node in edited.graph.nodes if node.name == "layer.conv"] == edited.graph.nodes[-1:]


def test_a_chain_after_a_chain_is_built_in_the_same_graph() -> None:
    model = parse_model(
        net(
            "(float[N,4,6,6] x) => (float[N,5,4,4] y)",
            "float[5,4,3,3] w, float[5,5,3,3] v",
            "a = Conv(x, w) b = Relu(a) y = Conv<pads=[1,1,1,1]>(b, v)",
        )
    )
    model.graph.nodes[0].name, model.graph.nodes[2].name = "one", "two"
    edited = model.clone()
    for where, name, layout in (("two", "depthwise", "concat"), ("one", "depthwise", "sum")):
        node = linear_of(model, where)
        form = form_at(node, name)
        blocks = [form.start(W, np.eye(form.width)) for W in node.matrix()]
        Chain.build(edited, node, form, layout, blocks, spatial_of(model, node))  # type: ignore[arg-type]
    assert_valid(edited, like=model)
    assert_equal_outputs(model, edited)


@pytest.mark.parametrize(("name", "layout"), BRANCHED)
def test_a_chain_within_a_clone_edits_the_clone_alone(name: str, layout: Layout) -> None:
    model = named("conv")
    edited, chain = chained(model, name, layout)
    clone = edited.clone()
    mine = chain.within({node.name: node for node in clone.graph.nodes})
    mark = fingerprint(edited)
    zero = tuple(np.zeros(shape) for shape in chain.form.shapes())
    mine.install_factors(clone, [zero], np.ones(5))
    assert fingerprint(edited) == mark
    assert not mine.matrix().any()
    assert chain.matrix().any()
    assert_equal_outputs(dense(model, mine), clone)
    assert_equal_outputs(model, edited)


@pytest.mark.parametrize(
    "node", ["conv-strided", "conv-grouped", "spread-strided", "gemm", "matmul-left-deep"]
)
def test_a_chain_reads_and_makes_the_columns_of_the_dense_node(node: str) -> None:
    model = named(node)
    linear = linear_of(model)
    _, chain = chained(model, "channel", "plain")
    shapes = default_shapes(model)
    rng = np.random.default_rng(0)
    x, y = (
        rng.standard_normal((2, *shapes[v][1:])).astype(np.float32) for v in (linear.input, linear.output)
    )
    some, rows = np.arange(1), np.array([0, 2])
    assert chain.positions(x) == linear.positions(x)
    assert (chain.group, chain.has_bias) == (linear.group, linear.has_bias)
    np.testing.assert_array_equal(chain.columns_in(x, some), linear.columns_in(x, some))
    np.testing.assert_array_equal(chain.columns_out(y, some), linear.columns_out(y, some))
    np.testing.assert_array_equal(chain.pick_out(y, rows), linear.pick_out(y, rows))


def test_factors_are_stored_at_one_size() -> None:
    """Half precision loses what is small beside what is large."""
    edited, chain = chained(named("conv"), "tucker", "plain")
    A, K, B = chain.blocks[0]
    chain.install_factors(edited, [(A * 1e6, K * 1e-3, B * 1e-3)], None)
    norms = [float(np.linalg.norm(c)) for node in chain.nodes if (c := node.constant(1)) is not None]
    np.testing.assert_allclose(norms, norms[0], rtol=1e-4)
    assert_equal_outputs(named("conv"), edited)


@pytest.mark.parametrize(
    ("node", "name", "layout", "reason"),
    [
        ("gemm", "tucker", "plain", "a matrix product has no kernel that tucker could split"),
        ("matmul-left", "depthwise", "sum", "a matrix product has no kernel"),
        ("conv-pointwise", "cp", "plain", "its kernel of one tap leaves cp nothing to split"),
        ("conv-pointwise", "vertical", "plain", "its kernel of one tap"),
        ("spread-pointwise", "depthwise", "plain", "its kernel of one tap"),
        ("conv-1d", "vertical", "plain", "its kernel has no two axes that vertical could split"),
        ("conv-3d", "horizontal", "plain", "its kernel has no two axes"),
        ("conv-one-axis", "vertical", "plain", "its kernel has no two axes"),
        ("spread-to-shape", "vertical", "plain", "its output_shape belongs to both axes at once"),
        ("conv-depthwise", "depthwise", "plain", "it is depthwise already"),
        ("conv-depthwise", "pointwise", "sum", "it is depthwise already"),
        ("conv-grouped", "depthwise", "concat", "the results of its blocks would have to be joined apart"),
        ("conv", "channel", "concat", "channel has no branches to lay out as concat"),
        ("gemm", "channel", "sum", "channel has no branches to lay out as sum"),
        ("conv", "pointwise", "concat", "the branches of pointwise are added up, not joined"),
    ],
)
def test_what_cannot_stand_in_says_why(node: str, name: str, layout: Layout, reason: str) -> None:
    found = possible(name, linear_of(named(node)), layout)
    assert found is not None
    assert found.startswith(reason)


@pytest.mark.parametrize(
    ("node", "count"),
    [
        ("conv", 11),
        ("conv-grouped", 10),
        ("conv-1d", 9),
        ("conv-pointwise", 1),
        ("spread-to-shape", 9),
        ("gemm", 1),
    ],
)
def test_as_many_ways_as_there_are_stand_open(node: str, count: int) -> None:
    assert len(list(combinations(linear_of(named(node))))) == count


@st.composite
def windows(draw: st.DrawFn) -> tuple[str, str, str]:
    """A Conv or ConvTranspose with one to three axes and any window that fits its input."""
    axes = draw(st.sampled_from([1, 2, 2, 2, 3]))

    def some(low: int, high: int, count: int = axes) -> list[int]:
        return [draw(st.integers(low, high)) for _ in range(count)]

    turned = draw(st.booleans())
    kernel, strides, dilations = some(1, 3), some(1, 3), some(1, 2)
    group = 1 if turned else draw(st.sampled_from([1, 1, 2, 3]))
    per_in, per_out = some(1, 3, 1)[0], some(1, 4, 1)[0]
    attrs = [f"strides={strides}", f"dilations={dilations}", f"group={group}"]
    auto = draw(st.sampled_from(["", "", "", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    # onnxruntime refuses SAME where a kernel is dilated, or strides outrun that of a ConvTranspose.
    same = max(dilations) == 1 and not (turned and any(s > r for s, r in zip(strides, reach, strict=True)))
    if auto and (same or auto == "VALID"):
        attrs.append(f'auto_pad="{auto}"')
    elif draw(st.booleans()):
        attrs.append(f"pads={[draw(st.integers(0, min(2, r - 1))) for r in reach * 2]}")
        if turned and draw(st.booleans()):
            attrs.append(f"output_padding={[draw(st.integers(0, s - 1)) for s in strides]}")
    sizes = [r + draw(st.integers(0, 3)) for r in reach]
    o, c = per_out * group, per_in * group
    weight = [c, o, *kernel] if turned else [o, per_in, *kernel]
    bias = draw(st.booleans())
    stored = f"float[{','.join(map(str, weight))}] w" + (f", float[{o}] q" if bias else "")
    op = "ConvTranspose" if turned else "Conv"
    call = f"{op}<{', '.join(attrs)}>(x, w{', q' if bias else ''})"
    return f"N,{c},{','.join(map(str, sizes))}", call, stored


@settings(max_examples=40, deadline=None)
@given(windows(), st.data())
def test_any_window_in_any_form_and_layout_computes_what_it_did(
    what: tuple[str, str, str], data: st.DataObject
) -> None:
    model = made(*what)
    ways = list(combinations(linear_of(model)))
    assume(ways)
    name, layout = data.draw(st.sampled_from(ways))
    edited, chain = chained(model, name, layout)
    assert_equal_outputs(model, edited, batches=(2,), regimes=("normal",))
    shapes = default_shapes(edited)
    assert [node_macs(node, shapes) for node in chain.nodes] == [link.macs for link in chain.links]
    low, chain = chained(model, name, layout, (1, 1) if name == "tucker" else (1,))
    assert_equal_outputs(dense(model, chain), low, batches=(2,), regimes=("normal",))


def test_a_node_that_reads_from_a_chain_reads_its_output() -> None:
    model = parse_model(
        net(
            "(float[N,4,6,6] x) => (float[N,5,4,4] y)",
            "float[5,4,3,3] w",
            "a = Conv(x, w) b = Relu(a) y = Add(a, b)",
        )
    )
    model.graph.nodes[0].name = "layer"
    edited, chain = chained(model, "depthwise", "sum")
    readers: list[Node] = chain.node.output.consumers
    assert [node.op for node in readers] == ["Relu", "Add"]
    assert_equal_outputs(model, edited)
