"""What every exact pass promises, on random networks: equal outputs, a valid model, nothing more on a second run."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxcomp.compiler.passbase import Context, Pass
from onnxcomp.ir.model import Model
from onnxcomp.passes.fold_batchnorm import FoldBatchnorm
from onnxcomp.passes.fold_constants import FoldConstants
from onnxcomp.passes.remove_dead import RemoveDead
from onnxcomp.testing import assert_equal_outputs, assert_valid, check_pass, fingerprint
from tests.support.exact_networks import networks

PASSES: tuple[Pass, ...] = (FoldConstants(), FoldBatchnorm(), RemoveDead())

quick = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@pytest.mark.parametrize("step", PASSES, ids=lambda p: p.name)
@given(model=networks())
@quick
def test_every_exact_pass_keeps_its_promises(step: Pass, model: Model) -> None:
    changed = step.run(model.clone(), Context(original=model)).changed
    check_pass(step, model, changed=changed)


@given(model=networks(most=12), order=st.permutations(PASSES))
@quick
def test_exact_passes_in_any_order_give_equal_outputs(model: Model, order: list[Pass]) -> None:
    result = model
    for step in order:
        result = step.run(result.clone(), Context(original=model)).model
    assert_valid(result, like=model)
    assert_equal_outputs(model, result)
    assert len(result.graph.nodes) <= len(model.graph.nodes)


@given(model=networks())
@quick
def test_the_same_input_gives_the_same_bytes(model: Model) -> None:
    def run() -> str:
        result = model
        for step in PASSES:
            result = step.run(result.clone(), Context(original=model)).model
        return fingerprint(result)

    assert run() == run()


@given(model=networks())
@quick
def test_names_of_nodes_lead_to_what_is_there(model: Model) -> None:
    result = model
    for step in PASSES:
        result = step.run(result.clone(), Context(original=model)).model
    now = {node.name for node in result.graph.nodes}
    for node in model.graph.nodes:
        successor = result.aliases.get(node.name, node.name)
        assert successor == "" or successor in now
