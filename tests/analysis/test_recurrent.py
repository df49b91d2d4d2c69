"""LSTM, GRU and RNN lose hidden units, equal to the masked reference, and keep states that the graph shows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings

from onnxcomp.analysis.channels import channel_groups
from onnxcomp.ir.parse import parse_model
from onnxcomp.testing import check_cut
from tests.support.attention_graphs import GATES, RecurrentPlan, recurrent, recurrent_plans
from tests.support.channels import axes, free, hold, left, stays, stored, units
from tests.support.text import net

SIGNATURE = "(float[7,1,5] x) => (float[7,1,3] y)"


@pytest.mark.parametrize("op", sorted(GATES))
def test_a_hidden_unit_goes_from_every_gate_from_the_recurrence_and_downstream(op: str) -> None:
    model = recurrent(RecurrentPlan(((op, 5, frozenset({"bias"})),)))
    cut = hold(model)
    name, gates = f"{op.lower()}0", GATES[op]
    group = cut.groups[name]
    assert (group.units, group.blocked) == (5, None)
    assert axes(group) == {(f"{name}.1", 1), (f"{name}.2", 1), (f"{name}.2", 2), (f"{name}.3", 1), ("y.1", 0)}
    assert group.consumers == (name, "y")
    assert units(group, f"{name}.1", 1) == list(range(5)) * gates
    assert units(group, f"{name}.3", 1) == list(range(5)) * 2 * gates
    kept = left(cut, name)
    assert stored(cut, f"{name}.2") == (1, gates * kept, kept)
    assert next(n for n in cut.pruned.graph.nodes if n.name == name).attrs["hidden_size"] == kept


@pytest.mark.parametrize("op", sorted(GATES))
def test_the_layer_before_loses_what_the_input_weight_reads(op: str) -> None:
    cut = hold(recurrent(RecurrentPlan(((op, 4, frozenset()),))))
    name = f"{op.lower()}0"
    assert cut.groups["stem"].consumers == (name,)
    assert stored(cut, f"{name}.1")[2] == left(cut, "stem")


@pytest.mark.parametrize("op", sorted(GATES))
def test_both_directions_lose_the_same_units_and_their_reader_both_halves(op: str) -> None:
    cut = hold(recurrent(RecurrentPlan(((op, 4, frozenset({"both", "bias", "state"})),))))
    name = f"{op.lower()}0"
    assert units(cut.groups[name], "y.1", 0) == [0, 1, 2, 3] * 2
    assert stored(cut, f"{name}.2")[0] == 2
    assert stored(cut, f"{name}.5") == (2, 1, left(cut, name))


def test_peepholes_and_initial_states_go_with_their_units() -> None:
    cut = hold(recurrent(RecurrentPlan((("LSTM", 5, frozenset({"peephole", "state"})),))))
    kept = left(cut, "lstm0")
    assert stored(cut, "lstm0.5") == stored(cut, "lstm0.6") == (1, 1, kept)
    assert stored(cut, "lstm0.7") == (1, 3 * kept)


@pytest.mark.parametrize("reset", [frozenset({"reset"}), frozenset[str]()])
def test_a_gru_is_cut_whatever_comes_first_reset_or_product(reset: frozenset[str]) -> None:
    assert "gru0" in free(hold(recurrent(RecurrentPlan((("GRU", 5, reset | {"bias"}),)))).groups)


def test_the_last_states_carry_their_units_to_their_readers() -> None:
    text = net(
        "(float[7,1,5] x) => (float[1,1,3] y)",
        "float[1,16,5] w, float[1,16,4] r, float[4,3] o, float[4,3] p",
        ", h, c = LSTM<hidden_size=4>(x, w, r) i = MatMul(h, o) j = MatMul(c, p) y = Add(i, j)",
    )
    cut = hold(text)
    (group,) = (g for g in cut.groups if not g.blocked)
    assert group.consumers[1:] == ("i", "j")


def test_chained_layers_are_cut_one_by_one() -> None:
    plan = RecurrentPlan(
        (("LSTM", 5, frozenset({"both"})), ("GRU", 4, frozenset({"tanh"})), ("RNN", 3, frozenset({"last"})))
    )
    cut = hold(recurrent(plan))
    assert free(cut.groups) == {"stem": 6, "lstm0": 5, "gru1": 4, "rnn2": 3}
    assert cut.groups["lstm0"].consumers == ("lstm0", "gru1")


def test_a_residual_sum_over_a_layer_ties_its_units_to_the_stream() -> None:
    cut = hold(recurrent(RecurrentPlan((("GRU", 6, frozenset({"skip"})),))))
    assert free(cut.groups) == {"stem": 6}
    assert cut.groups["stem"].producers == ("stem", "gru0")
    assert cut.groups["stem"].coupled


def test_a_zero_state_of_computed_batch_size_is_made_narrower() -> None:
    text = net(
        "(float[7,N,5] x) => (float[7,N,3] y)",
        "float[1,16,5] w, float[1,16,4] r, float[4,3] o, int64[1] one = {1}, int64[1] wide = {4}",
        "s = Shape<start=1,end=2>(x) t = Concat<axis=0>(one, s, wide) z = ConstantOfShape(t)"
        " h = LSTM<hidden_size=4>(x, w, r, , , z, z) k = Squeeze(h, one) y = MatMul(k, o)",
    )
    cut = hold(text)
    assert stored(cut, "wide") == (1,)
    assert cut.pruned.graph.constants["wide"].values.tolist() == [left(cut, "h")]


# --- what must stay --------------------------------------------------------------------------------------------------------
def test_a_state_that_is_fed_holds_its_units() -> None:
    text = net(
        "(float[7,1,5] x, float[1,1,4] start) => (float[7,1,3] y)",
        "float[5,6] a, float[1,12,6] w, float[1,12,4] r, float[4,3] o, int64[1] one = {1}",
        "i = MatMul(x, a) [cell] h = GRU<hidden_size=4>(i, w, r, , , start) k = Squeeze(h, one) y = MatMul(k, o)",
    )
    assert stays(text)["cell"] == "the graph input 'start' is a state of GRU 'cell'"
    assert free(hold(text).groups) == {"i": 6}


def test_a_state_that_is_given_out_holds_its_units() -> None:
    text = net(
        "(float[7,1,5] x) => (float[7,1,3] y, float[1,1,4] end)",
        "float[5,6] a, float[1,12,6] w, float[1,12,4] r, float[4,3] o, int64[1] one = {1}",
        "i = MatMul(x, a) [cell] h, end = GRU<hidden_size=4>(i, w, r) k = Squeeze(h, one) y = MatMul(k, o)",
    )
    assert stays(text)["cell"] == "it reaches the graph output 'end'"
    assert free(hold(text).groups) == {"i": 6}


def test_computed_weights_block_the_input() -> None:
    text = net(
        SIGNATURE,
        "float[5,6] a, float[1,12,6] w, float[1,12,4] r, float[4,3] o, int64[1] one = {1}",
        "i = MatMul(x, a) v = Relu(r) [cell] h = GRU<hidden_size=4>(i, w, v) k = Squeeze(h, one) y = MatMul(k, o)",
    )
    assert stays(text)["i"] == "GRU 'cell' has a computed weight"


def test_a_hidden_size_that_contradicts_the_weights_blocks() -> None:
    text = net(
        SIGNATURE,
        "float[5,6] a, float[1,12,6] w, float[1,12,4] r, float[4,3] o, int64[1] one = {1}",
        "i = MatMul(x, a) [cell] h = GRU<hidden_size=4>(i, w, r) k = Squeeze(h, one) y = MatMul(k, o)",
    )
    shapes = {
        "x": (7, 1, 5),
        "i": (7, 1, 6),
        "h": (7, 1, 1, 4),
        "a": (5, 6),
        "w": (1, 12, 6),
        "r": (1, 12, 4),
    }
    model = parse_model(text)
    # A file that says so is refused when it is read.
    next(n for n in model.graph.nodes if n.op == "GRU").attrs["hidden_size"] = 5
    groups = channel_groups(model, shapes)
    assert groups["i"].blocked == "GRU 'cell' has a hidden size that is not that of its weights"


def test_weights_that_two_layers_share_are_cut_once_for_both() -> None:
    text = net(
        SIGNATURE,
        "float[5,4] a, float[1,12,4] w, float[1,12,4] r, float[4,3] o, int64[1] one = {1}",
        "i = MatMul(x, a) h = GRU<hidden_size=4>(i, w, r) k = Squeeze(h, one) g = GRU<hidden_size=4>(k, w, r)"
        " l = Squeeze(g, one) y = MatMul(l, o)",
    )
    cut = hold(text)
    assert free(cut.groups) == {"i": 4}, (
        "what the weight makes is what it reads, and what the layer before makes"
    )


# --- many ----------------------------------------------------------------------------------------------------------------
def test_a_mask_of_one_unit_is_the_unit_that_goes() -> None:
    model = recurrent(RecurrentPlan((("LSTM", 3, frozenset({"bias"})),)))
    cut = check_cut(model, {"lstm0": np.array([True, False, True])})
    rows = [0, 2, 3, 5, 6, 8, 9, 11]
    before, after = (m.graph.constants["lstm0.1"].values for m in (model, cut.pruned))
    np.testing.assert_array_equal(after, before[:, rows])


QUIET = settings(derandomize=True, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
"""As many examples as the profile says: see tests/conftest.py."""


def hold_random(plan: RecurrentPlan) -> None:
    """Cut the chain of `plan` at random; reject what proves nothing."""
    try:
        hold(recurrent(plan), 1, regimes=("normal",))
    except AssertionError as problem:
        assume("the masks change no output" not in str(problem))
        raise


@given(recurrent_plans())
@QUIET
def test_a_random_recurrent_chain_cut_at_random_equals_its_masked_self(plan: RecurrentPlan) -> None:
    hold_random(plan)


@pytest.mark.slow
@given(recurrent_plans())
@QUIET
def test_many_random_recurrent_chains_cut_at_random_equal_their_masked_selves(plan: RecurrentPlan) -> None:
    hold_random(plan)
