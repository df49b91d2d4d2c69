"""Ladders of what is spared: most harm per price first, each step more than the one before."""

from __future__ import annotations

import itertools
import math

from hypothesis import given
from hypothesis import strategies as st

from onnxcomp.compiler.mixed_precision.fallback_order import Harmed, spare_nodes, spare_values
from onnxcomp.compiler.mixed_precision.sites import Place


def weight(node: str, harm: float) -> Harmed:
    return Harmed(Place("weight", node, (), (node,), None), harm, True)


def value(name: str, harm: float, *nodes: str) -> Harmed:
    return Harmed(Place("value", name, (name,), nodes, None), harm, True)


def test_the_node_whose_harm_is_largest_for_its_price_goes_first() -> None:
    steps = spare_nodes(
        [weight("a", 4.0), weight("b", 3.0), weight("c", 1.0)], {"a": 8.0, "b": 1.0, "c": 1.0}
    )
    assert [sorted(step.spared) for step in steps] == [["b"], ["b", "c"], ["a", "b", "c"]]
    assert [step.left for step in steps] == [5.0, 4.0, 0.0]
    assert {step.before for step in steps} == {8.0}


def test_a_value_is_spared_only_with_all_nodes_that_store_it() -> None:
    """The value's harm counts for nothing at `a` alone: at the price of both it is the best there is."""
    harmed = [value("v", 10.0, "a", "b"), weight("a", 0.1), weight("b", 0.1), weight("c", 4.0)]
    steps = spare_nodes(harmed, dict.fromkeys("abc", 1.0))
    assert [sorted(step.spared) for step in steps] == [["a", "b"], ["a", "b", "c"]]
    assert math.isclose(steps[0].left, 4.0)


def test_what_is_spared_already_costs_nothing_more() -> None:
    """After `b` the value asks for `a` alone, so that it comes before the weight of `c`."""
    harmed = [weight("b", 9.0), value("v", 3.0, "a", "b"), weight("c", 2.0)]
    steps = spare_nodes(harmed, dict.fromkeys("abc", 1.0))
    assert [sorted(step.spared) for step in steps] == [["b"], ["a", "b"], ["a", "b", "c"]]


def test_what_does_no_harm_is_never_spared() -> None:
    steps = spare_nodes(
        [weight("a", 0.0), weight("b", 1.0), value("graph output", 2.0)], {"a": 1.0, "b": 1.0}
    )
    assert [sorted(step.spared) for step in steps] == [["b"]]
    assert steps[0].left == 2.0


def test_scales_of_16_bits_go_by_harm_per_price_and_weights_stay() -> None:
    harmed = [value("v", 1.0, "a"), weight("a", 5.0), value("w", 3.0, "b")]
    steps = spare_values(harmed, {"v": 1.0, "w": 2.0})
    assert [sorted(step.spared) for step in steps] == [["w"], ["v", "w"]]
    assert steps[-1].left == 5.0


places = st.lists(
    st.tuples(st.sets(st.sampled_from("abcdef"), min_size=1, max_size=3), st.floats(0, 100)),
    min_size=1,
    max_size=8,
)


@given(places, st.lists(st.floats(0.01, 10), min_size=6, max_size=6))
def test_every_step_spares_more_and_leaves_less(
    found: list[tuple[set[str], float]], prices: list[float]
) -> None:
    harmed = [value(f"v{n}", harm, *sorted(nodes)) for n, (nodes, harm) in enumerate(found)]
    steps = spare_nodes(harmed, dict(zip("abcdef", prices, strict=True)))
    for first, second in itertools.pairwise(steps):
        assert first.spared < second.spared
        assert second.left <= first.left
    for step in steps:
        rest = sum(h.harm for h in harmed if not set(h.place.nodes) <= step.spared)
        assert math.isclose(step.left, rest, rel_tol=1e-9, abs_tol=1e-9)
    if any(h.harm for h in harmed):
        assert steps[-1].left <= 1e-9
