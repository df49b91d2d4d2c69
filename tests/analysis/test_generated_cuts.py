"""Random networks of all known structures lose random channels and equal their masked selves."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st

from onnxcomp.analysis.channels import channel_groups, default_shapes
from onnxcomp.analysis.cost import model_cost
from onnxcomp.analysis.cutcost import CutCost
from onnxcomp.testing import assert_valid, check_cut
from tests.support.graphs import BLOCKS, TAILS, Plan, build, plans
from tests.support.structures import EVERY_BLOCK, STRUCTURES

OVER_CHANNELS = {("layer-norm", 3), ("layer-norm", 6), ("other-norms", 4), ("arg-max", 5)}
"""Blocks whose number makes them work over the channels, which must then stay."""

QUIET = settings(derandomize=True, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
"""As many examples as the profile says: see tests/conftest.py."""


def hold(plan: Plan, seed: int) -> None:
    """Cut the network of `plan` at random and hold it against the masked one; reject plans that prove nothing.

    What it costs then must be what was foretold before it was cut.
    """
    model = build(plan, EVERY_BLOCK)
    assert_valid(model)
    assume(any(group.blocked is None for group in channel_groups(model)))
    try:
        cut = check_cut(model, seed, batches=(2,), regimes=("normal", "one-hot"))
    except AssertionError as problem:
        # A network can be deaf to its inner channels (behind a Clip, say): then there is nothing to compare.
        assume("the masks change no output" not in str(problem))
        raise
    foretold = CutCost(model, cut.groups, default_shapes(model)).count(cut.keep)
    after = model_cost(cut.pruned, default_shapes(cut.pruned))
    assert foretold == (after.parameters, after.macs)
    event(f"free groups: {min(5, sum(g.blocked is None for g in cut.groups))}")


@given(plans(), st.integers(0, 99))
@QUIET
def test_a_random_network_cut_at_random_equals_its_masked_self(plan: Plan, seed: int) -> None:
    hold(plan, seed)


@pytest.mark.slow
@given(plans(14), st.integers(0, 9999))
@QUIET
def test_many_larger_random_networks_cut_at_random_equal_their_masked_selves(plan: Plan, seed: int) -> None:
    hold(plan, seed)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("tail", TAILS)
def test_every_block_can_be_cut_before_every_tail(block: str, tail: str) -> None:
    """No block and no tail takes its neighbours' channels away from pruning: something of each stays free."""
    for number in range(2):
        model = build(Plan(((block, number, 1), ("activation", 3, 1), ("conv", 5, 1)), tail, number))
        cut = check_cut(model, number, batches=(2,), regimes=("normal",))
        assert sum(group.blocked is None for group in cut.groups) >= 2


# --- all structures --------------------------------------------------------------------------------------------------
@given(plans(6, tuple(EVERY_BLOCK)), st.integers(0, 99))
@QUIET
def test_a_random_network_of_every_structure_cut_at_random_equals_its_masked_self(
    plan: Plan, seed: int
) -> None:
    hold(plan, seed)


@pytest.mark.slow
@given(plans(12, tuple(EVERY_BLOCK)), st.integers(0, 9999))
@QUIET
def test_many_larger_random_networks_of_every_structure_equal_their_masked_selves(
    plan: Plan, seed: int
) -> None:
    hold(plan, seed)


@pytest.mark.parametrize("block", STRUCTURES)
def test_every_structure_can_be_cut_before_every_tail(block: str) -> None:
    """A structure lets the channels before it go, and those behind it, whatever the network ends in."""
    for number, tail in enumerate(TAILS, 1):
        model = build(
            Plan(((block, number, 1), ("activation", 3, 1), ("conv", 5, 1)), tail, number), EVERY_BLOCK
        )
        cut = check_cut(model, number, batches=(2,), regimes=("normal",))
        assert sum(group.blocked is None for group in cut.groups) >= 2 - ((block, number) in OVER_CHANNELS)
