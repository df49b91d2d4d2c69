"""Several cuts in a row are one cut of the first network: the same tensors, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxcomp.analysis.channels import ChannelGroups, channel_groups
from onnxcomp.compiler.channel_pruning.lineage import Lineage
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.testing import assert_valid
from tests.support.graphs import Plan, build, plans
from tests.support.pruning import NETS, noise, outputs, zoo
from tests.support.structures import EVERY_BLOCK
from tests.support.text import net

Mask = NDArray[np.bool_]


def random_cut(groups: ChannelGroups, rng: np.random.Generator, share: float) -> dict[str, Mask]:
    """About `share` of the free units of every group go, in random places; every span keeps two, where it has two.

    With one channel left in each block of grouped filters, channels are not tied any more.
    """
    keep = {}
    for group in groups:
        mask = ~(group.free & (rng.random(group.units) < share))
        for span in group.spans:
            if mask[span].sum() < 2:
                mask[span[:2]] = True
        if not mask.all():
            keep[group.name] = mask
    return keep


def stepwise(model: Model, seed: int, cuts: int, share: float = 0.3) -> tuple[Model, Lineage]:
    """The model after `cuts` random cuts, each of what the last one left, and what was recorded of them."""
    rng = np.random.default_rng(seed)
    lineage, left = Lineage(channel_groups(model)), model.clone()
    for _ in range(cuts):
        groups = channel_groups(left)
        keep = random_cut(groups, rng, share)
        lineage.record(groups, keep)
        groups.take(left, keep)
    return left, lineage


def at_once(model: Model, lineage: Lineage) -> Model:
    left = model.clone()
    lineage.groups.take(left, lineage.keep)
    return left


def stored(model: Model) -> dict[str, tuple[tuple[int, ...], bytes]]:
    return {name: (c.values.shape, c.values.tobytes()) for name, c in model.graph.constants.items()}


def check(model: Model, seed: int, cuts: int, share: float = 0.3) -> bool:
    """Hold the composed cut against the stepwise one; return whether anything was cut in two of the steps."""
    left, lineage = stepwise(model, seed, cuts, share)
    whole = at_once(model, lineage)
    assert stored(whole) == stored(left)
    assert [(n.op, n.name, n.attrs) for n in whole.graph.nodes] == [
        (n.op, n.name, n.attrs) for n in left.graph.nodes
    ]
    feeds = noise(model, 4, seed=1)
    np.testing.assert_array_equal(outputs(whole, feeds), outputs(left, feeds))
    return bool(lineage.keep)


@given(plans(6), st.integers(0, 99), st.integers(2, 3))
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_cuts_in_a_row_are_one_cut_of_the_first_network(plan: Plan, seed: int, cuts: int) -> None:
    assume(check(build(plan), seed, cuts))


@given(plans(6, tuple(EVERY_BLOCK)), st.integers(0, 99))
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_cuts_of_networks_of_every_structure_add_up(plan: Plan, seed: int) -> None:
    assume(check(build(plan, EVERY_BLOCK), seed, 2))


@pytest.mark.parametrize("name", [*NETS, "digits_shufflenet", "digits_densenet", "digits_lstm", "digits_vit"])
def test_cuts_of_the_shipped_nets_add_up(name: str) -> None:
    assert check(zoo(name), 0, 3)


def test_a_unit_that_a_cut_has_untied_goes_when_all_that_is_left_of_it_goes() -> None:
    """Four pairs of channels read in two groups: with one pair left, each of the two can go without the other."""
    model = parse_model(
        net(
            "(float[N,3,4,4] x) => (float[N,2,4,4] y)",
            "float[8,3,1,1] a, float[6,4,1,1] b, float[2,6,1,1] c",
            "h = Conv(x, a) i = Conv<group=2>(h, b) y = Conv(i, c)",
        )
    )
    left, lineage = model.clone(), Lineage(channel_groups(model))
    pairs = next(g for g in lineage.groups if g.producers[0] == model.graph.nodes[0].name)
    assert pairs.units == 4
    first = {pairs.name: np.array([True, False, False, False])}
    lineage.record(lineage.groups, first)
    lineage.groups.take(left, first)
    groups = channel_groups(left)
    free = next(g for g in groups if g.producers[0] == model.graph.nodes[0].name)
    assert free.units == 2
    lineage.record(groups, {free.name: np.array([True, False])})
    np.testing.assert_array_equal(lineage.keep[pairs.name], first[pairs.name])
    assert_valid(at_once(model, lineage))


def test_nothing_recorded_is_nothing_cut() -> None:
    lineage = Lineage(channel_groups(zoo("digits_mlp")))
    assert lineage.keep == {}
    lineage.record(lineage.groups, {})
    assert lineage.keep == {}


def test_units_are_numbered_as_in_the_first_network_whatever_has_gone() -> None:
    model = parse_model(
        net(
            "(float[N,3] x) => (float[N,2] y)",
            "float[3,6] a, float[6,2] b",
            "h = MatMul(x, a) r = Relu(h) y = MatMul(r, b)",
        )
    )
    (name,) = (g.name for g in channel_groups(model) if g.blocked is None)
    left, lineage = model.clone(), Lineage(channel_groups(model))
    for keep in ([1, 0, 1, 1, 0, 1], [0, 1, 1, 1], [1, 0, 1]):
        groups = channel_groups(left)
        masks = {name: np.array(keep, bool)}
        lineage.record(groups, masks)
        groups.take(left, masks)
    np.testing.assert_array_equal(np.flatnonzero(lineage.keep[name]), [2, 5])
    np.testing.assert_array_equal(
        left.graph.constants["a"].values, model.graph.constants["a"].values[:, [2, 5]]
    )
