"""In which order the repair walk visits nodes: as they run, but the lighter of two that are added first."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.analysis.linear import linear_node
from onnxcomp.compiler.repair.neighbourhood import visiting_order
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from tests.support.pruning import NETS, zoo
from tests.support.text import net

WEIGHTS = "float[4,4,1,1] s, float[4,4,1,1] t, float[8,4,3,3] a, float[4,8,3,3] b, float[8,4,1,1] u, float[4,8,1,1] v"
BRANCH = "i = Conv<pads=[1,1,1,1]>(h, a) j = Relu(i) k = Conv<pads=[1,1,1,1]>(j, b)"


def residual(body: str) -> Model:
    signature = "(float[N,4,6,6] x) => (float[N,4,6,6] y)"
    return parse_model(net(signature, WEIGHTS, f"h = Conv(x, s) {body}"))


def linear_names(model: Model) -> list[str]:
    """Names of the nodes that can be refitted, in the order they run in."""
    return [node.name for node in model.graph.nodes if linear_node(node) is not None]


def visited(model: Model, without: str = "") -> str:
    """The order of all linear nodes, each by the value it makes; `without` are those that are not refitted."""
    made = {node.name: node.outputs[0].name for node in model.graph.nodes}
    names = [name for name in linear_names(model) if made[name] not in without]
    return " ".join(made[name] for name in visiting_order(model, reversed(names)))


# --- where the order changes -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("add", ["Add(k, r)", "Add(r, k)"])
def test_the_lighter_of_two_added_nodes_comes_just_before_the_other(add: str) -> None:
    assert visited(residual(f"{BRANCH} r = Conv(h, t) y = {add}")) == "h i r k"


def test_where_the_lighter_comes_first_already_it_stays_where_it_is() -> None:
    assert visited(residual(f"r = Conv(h, t) {BRANCH} y = Add(k, r)")) == "h r i k"


def test_a_shortcut_whose_makers_come_before_the_branch_ends_goes_before_it() -> None:
    before = "e = Conv(h, u) f = Relu(e)"
    assert visited(residual(f"{before} {BRANCH} r = Conv(f, v) y = Add(k, r)")) == "h e i r k"


# --- where it does not -----------------------------------------------------------------------------------------------
def test_a_shortcut_that_needs_a_node_behind_the_branch_waits() -> None:
    """`e` runs after `k`: solved before `e` has been, `r` would be fitted to an input that is not there yet."""
    behind = "e = Conv(h, u) f = Relu(e) r = Conv(f, v)"
    model = residual(f"{BRANCH} {behind} y = Add(k, r)")
    assert visited(model) == "h i k e r"
    assert visited(model, without="e") == "h i r k", "what is not refitted is there from the start"


def test_a_node_that_reads_the_other_comes_after_it() -> None:
    assert visited(residual(f"{BRANCH} r = Conv(k, t) y = Add(k, r)")) == "h i k r"


@pytest.mark.parametrize(
    "end",
    [
        "r = Conv(h, t) m = Relu(r) y = Add(k, m)",
        "r = Conv(h, t) y = Mul(k, r)",
        "r = Conv(h, t) y = Concat<axis=1>(k, r)",
        "r = Conv(h, t) y = Sub(k, r)",
    ],
)
def test_only_what_is_added_directly_changes_places(end: str) -> None:
    assert visited(residual(f"{BRANCH} {end}")) == "h i k r"


def test_a_sum_of_which_one_side_is_not_refitted_changes_nothing() -> None:
    model = residual(f"{BRANCH} r = Conv(h, t) y = Add(k, r)")
    assert visited(model, without="k") == "h i r"
    assert visited(model, without="r") == "h i k"


# --- whole networks --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NETS)
def test_every_node_is_visited_once_and_nothing_before_what_it_is_made_from(name: str) -> None:
    model = zoo(name)
    names = linear_names(model)
    order = visiting_order(model, names)
    assert sorted(order) == sorted(names)
    upstream = {v.name: {v.name} for v in model.graph.inputs}
    makers: dict[str, set[str]] = {}
    for node in model.graph.nodes:
        before = set().union(*(upstream.get(v.name, set()) for v in node.inputs))
        makers[node.name] = before
        upstream.update({v.name: before | {node.name} for v in node.outputs})
    place = {node: number for number, node in enumerate(order)}
    for here in order:
        assert all(place[other] < place[here] for other in makers[here] & set(order))


def test_without_sums_of_linear_nodes_the_order_is_that_of_the_run() -> None:
    model = zoo("digits_mlp")
    names = linear_names(model)
    assert visiting_order(model, np.random.default_rng(0).permutation(names).tolist()) == names
