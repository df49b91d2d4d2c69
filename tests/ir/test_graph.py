"""Named edits keep producers, consumers, outputs and captures right."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from onnxcomp.errors import ModelError
from onnxcomp.ir import Constant, Model, Node, Variable, from_proto, to_proto
from onnxcomp.ir.text import dump
from tests.ir.helpers import branch, model_of, parsed, rich_proto, small_model


def node(model: Model, name: str) -> Node:
    return next(n for n in model.graph.nodes if n.name == name or n.output.name == name)


CHAIN = "g (float[2] x) => (float[2] y) { a = Relu(x)\n b = Neg(a)\n y = Add(a, b) }"


def test_values_are_equal_only_to_themselves() -> None:
    assert Variable("a") != Variable("a")
    assert Constant("a", np.zeros(1)) != Constant("a", np.zeros(1))
    assert Node("Relu", "n") != Node("Relu", "n")
    assert len({Variable("a"), Variable("a")}) == 2


def test_uses_name_every_input_that_reads_a_value() -> None:
    model = model_of("g (float[2] x) => (float[2] y) { a = Relu(x)\n y = Add(a, a) }")
    a = node(model, "a").output
    assert [(n.op, i) for n, i in model.graph.uses(a)] == [("Add", 0), ("Add", 1)]
    assert a.consumers == [node(model, "y")]
    assert a.producer is node(model, "a")
    assert model.graph.sole_use(a) is None


def test_a_graph_output_has_no_sole_use() -> None:
    model = model_of("g (float[2] x) => (float[2] a, float[2] y) { a = Relu(x)\n y = Neg(a) }")
    assert model.graph.sole_use(node(model, "a").output) is None
    assert model.graph.sole_use(model.graph.inputs[0]) is node(model, "a")


def test_a_captured_value_has_no_sole_use() -> None:
    model = from_proto(rich_proto())
    assert model.graph.sole_use(node(model, "conv").output) is None


def test_replace_all_uses_rewires_every_reader() -> None:
    model = model_of(CHAIN)
    a, x = node(model, "a").output, model.graph.inputs[0]
    assert model.graph.replace_all_uses(a, x)
    assert node(model, "b").inputs[0] is x
    assert node(model, "y").inputs[0] is x
    assert not a.consumers


def test_replacing_a_graph_output_keeps_its_name_type_and_place() -> None:
    model = model_of("g (float[2] x) => (float[2] y) { a = Relu(x)\n y = Neg(a) }")
    old, new = node(model, "y").output, node(model, "a").output
    assert model.graph.replace_all_uses(old, new)
    assert model.graph.outputs == [new]
    assert (new.name, new.dtype, new.shape) == ("y", np.float32, (2,))
    assert old.name not in ("y", "a")
    model.graph.remove_nodes([old.producer] if old.producer else [])
    assert [n.op for n in model.graph.nodes] == ["Relu"]


def test_a_graph_output_is_not_replaced_by_an_input_or_another_output() -> None:
    model = model_of("g (float[2] x) => (float[2] y, float[2] z) { y = Relu(x)\n z = Identity(y) }")
    before = dump(model)
    y, z = node(model, "y").output, node(model, "z").output
    assert not model.graph.replace_all_uses(y, model.graph.inputs[0])
    assert not model.graph.replace_all_uses(z, y)
    assert dump(model) == before


def test_a_graph_input_that_is_an_output_keeps_its_name() -> None:
    model = model_of("g (float[2] x) => (float[2] x, float[2] y) { a = Relu(x)\n y = Neg(a) }")
    assert not model.graph.replace_all_uses(model.graph.inputs[0], node(model, "a").output)
    assert model.graph.inputs[0].name == "x"


def test_a_stored_tensor_that_is_an_output_hands_its_name_over() -> None:
    model = model_of(
        "g (float[2] x) => (float[2] c, float[2] y) <float[2] c = {1.0, 2.0}> { a = Relu(x)\n y = Neg(a) }"
    )
    assert model.graph.replace_all_uses(model.graph.constants["c"], node(model, "a").output)
    assert all(name == constant.name for name, constant in model.graph.constants.items())
    assert [o.name for o in model.graph.outputs] == ["c", "y"]
    assert "c" not in model.graph.constants


def test_a_captured_value_keeps_its_name_when_it_is_replaced() -> None:
    model = from_proto(rich_proto())
    graph = model.graph
    conv = node(model, "conv")
    copy = Node("Relu", "after", {}, [conv.output], [Variable("r")])
    graph.insert(copy, node(model, "choice"))
    assert graph.replace_all_uses(conv.output, copy.output)
    assert copy.output.name == "c"
    assert "c" in graph.captured()


def test_nodes_in_use_are_not_removed() -> None:
    model = model_of(CHAIN)
    before = dump(model)
    with pytest.raises(ValueError, match="a is still in use"):
        model.graph.remove_nodes([node(model, "a")])
    with pytest.raises(ValueError, match="y is still in use"):
        model.graph.remove_nodes([node(model, "y")])
    assert dump(model) == before


def test_a_node_whose_output_only_a_subgraph_reads_is_not_removed() -> None:
    model = from_proto(rich_proto())
    with pytest.raises(ValueError, match="c is still in use"):
        model.graph.remove_nodes([node(model, "conv")])


def test_a_chain_is_removed_together() -> None:
    model = model_of("g (float[2] x) => (float[2] y) { a = Relu(x)\n b = Neg(a)\n y = Neg(x) }")
    model.graph.remove_nodes([node(model, "a"), node(model, "b")])
    assert [n.output.name for n in model.graph.nodes] == ["y"]
    assert model.graph.inputs[0].consumers == [node(model, "y")]


def test_a_constant_of_its_own_keeps_name_and_labels() -> None:
    model = from_proto(rich_proto())
    conv = node(model, "conv")
    new = model.graph.set_constant(conv, 1, np.zeros((2, 3, 3, 3), np.float32))
    assert (new.name, new.doc_string, new.metadata) == ("w", "a weight", {"origin": "layer1"})
    assert model.graph.constants["w"] is new
    assert conv.constant(1) is new.values


def test_a_shared_constant_is_copied_before_it_changes() -> None:
    model = model_of(
        "g (float[2] x) => (float[2] y) <float[2] w = {1.0, 2.0}> { a = Add(x, w)\n y = Mul(a, w) }"
    )
    old = model.graph.constants["w"]
    new = model.graph.set_constant(node(model, "a"), 1, np.zeros(2, np.float32), "pass")
    assert new.name == "w__pass"
    assert node(model, "y").inputs[1] is old
    assert model.graph.constants["w"] is old


def test_an_optional_input_is_filled_in_past_omitted_ones() -> None:
    model = model_of("g (float[2] x) => (float[2] y) { y = Clip(x) }")
    clip, graph = node(model, "y"), model.graph
    graph.set_input(clip, 2, graph.add_constant("max", np.array(6, np.float32)))
    assert clip.input(1) is None
    assert clip.constant(2) == 6
    graph.drop_trailing_inputs(clip, 1)
    assert [v.name for v in clip.inputs] == ["x"]


def test_new_names_avoid_values_nodes_and_inner_scopes() -> None:
    model = from_proto(rich_proto())
    names = [model.graph.fresh_name(base) for base in ("w", "conv", "t", "free")]
    assert names == ["w_2", "conv_2", "t_2", "free"]


def test_a_sorted_graph_is_left_as_it_is() -> None:
    model = model_of(CHAIN)
    order = list(model.graph.nodes)
    assert not model.graph.sort()
    assert model.graph.nodes == order


def test_unsorted_nodes_are_sorted_with_a_note_and_move_no_more_than_needed() -> None:
    proto = parsed(
        "g (float[2] x) => (float[2] y) { y = Add(a, q)\n p = Relu(x)\n q = Neg(x)\n a = Relu(x) }"
    )
    model = from_proto(proto)
    assert [n.output.name for n in model.graph.nodes] == ["p", "q", "a", "y"]
    assert any("sorted" in note for note in model.notes)


def test_what_a_subgraph_reads_is_sorted_before_it() -> None:
    proto = rich_proto()
    conv = proto.graph.node.pop(0)
    proto.graph.node.append(conv)
    assert [n.name for n in from_proto(proto).graph.nodes] == ["conv", "choice", "custom", "call"]


def test_a_cycle_is_refused_by_the_names_of_its_nodes_alone() -> None:
    proto = parsed(
        "g (float[2] x) => (float[2] y) { [before] y = Neg(b)\n [one] a = Add(x, b)\n [two] b = Relu(a) }"
    )
    with pytest.raises(ModelError, match=r"cycle through 'one' and 'two'|cycle through 'two' and 'one'"):
        from_proto(proto)


def test_a_node_that_reads_itself_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match="cycle through 'self'"):
        model_of("g (float[2] x) => (float[2] y) { [self] y = Add(x, y) }")


def test_a_clone_shares_arrays_and_nothing_else() -> None:
    model = small_model()
    before = dump(model)
    twin = model.clone()
    assert dump(twin) == before
    for name, constant in twin.graph.constants.items():
        assert constant.values is not None
        assert np.shares_memory(constant.values, model.graph.constants[name].values)
    node(twin, "y").attrs["new"] = 1
    twin.graph.set_constant(node(twin, "y"), 1, np.zeros(64, np.float32))
    twin.graph.inputs[0].name = "renamed"
    twin.metadata["key"] = "value"
    twin.opset_imports[""] = 18
    twin.notes.append("a note")
    assert dump(model) == before
    assert not model.notes


def test_lists_in_attributes_are_not_shared_with_a_clone() -> None:
    model = from_proto(rich_proto())
    twin = model.clone()
    node(twin, "conv").attrs["pads"][0] = 9
    assert node(model, "conv").attrs["pads"] == [1, 1, 1, 1]


def test_stored_arrays_cannot_be_written() -> None:
    model = small_model()
    with pytest.raises(ValueError, match="read-only"):
        model.graph.constants["w"].values[0] = 0
    shape = model_of("g (int64[1] s) => (float[2] y) { y = ConstantOfShape<value = float[1] {1.0}>(s) }")
    with pytest.raises(ValueError, match="read-only"):
        shape.graph.nodes[0].attrs["value"][0] = 0


def test_a_clone_of_a_subgraph_node_is_written_byte_for_byte() -> None:
    model = from_proto(rich_proto())
    assert to_proto(model.clone()).SerializeToString() == to_proto(model).SerializeToString()


def test_inner_values_defined_out_of_order_are_not_taken_for_captures() -> None:
    proto = rich_proto()
    inner = branch("then", "Relu", "late", "t")
    inner.node.append(helper.make_node("Neg", ["c"], ["late"]))
    next(a for a in proto.graph.node[1].attribute if a.name == "then_branch").g.CopyFrom(inner)
    choice = node(from_proto(proto), "choice")
    assert set(choice.captures) == {"c"}
