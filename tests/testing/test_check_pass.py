"""The harness for passes: an honest pass goes through, and each way of breaking a promise is caught."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from onnxcomp.compiler.options import option
from onnxcomp.compiler.passbase import Context, Pass, PassLog, PassResult
from onnxcomp.errors import UsageError
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.testing import check_pass
from tests.support.text import net

BEFORE = net(
    "(float[N,3] x) => (float[N,4] y)",
    "float[3,4] a, float[4] q",
    "h = Identity(x) g = Gemm(h, a, q) y = Relu(g)",
)
AFTER = net("(float[N,3] x) => (float[N,4] y)", "float[3,4] a, float[4] q", "g = Gemm(x, a, q) y = Relu(g)")


@dataclass(frozen=True)
class DropIdentity(Pass):
    """Remove Identity nodes; skips those that feed a graph output."""

    name = "drop-identity"
    exact = True

    most: int = option(10, "how many to remove")

    def check(self) -> None:
        """Refuse a negative number."""
        if self.most < 0:
            raise UsageError("drop-identity: most is negative")

    def run(self, model: Model, context: Context) -> PassResult:
        """Remove them."""
        log = PassLog()
        for node in [n for n in model.graph.nodes if n.is_op("Identity")][: self.most]:
            if model.graph.is_output(node.output):
                log.skip(node.name, "its output leaves the graph")
                continue
            model.graph.replace_all_uses(node.output, node.inputs[0])
            model.graph.remove_nodes([node])
            log.change(node.name, "removed")
        return log.result(model)


@dataclass(frozen=True)
class Liar(Pass):
    """Do what a test wants done, and say what it wants said."""

    name = "liar"

    edit: Callable[[Model], object] = lambda model: None
    says: bool = True

    def run(self, model: Model, context: Context) -> PassResult:
        """Do it."""
        self.edit(model)
        return PassResult(model, self.says)


class ExactLiar(Liar):
    """The same, claiming equal outputs."""

    exact = True


def add_to_bias(amount: float) -> Callable[[Model], None]:
    def edit(model: Model) -> None:
        gemm = next(n for n in model.graph.nodes if n.op == "Gemm")
        model.graph.set_constant(gemm, 2, np.asarray(gemm.constant(2)) + np.float32(amount))

    return edit


# --- an honest pass --------------------------------------------------------------------------------------------------
def test_nothing_may_change_where_there_is_nothing_to_do() -> None:
    result = check_pass(DropIdentity(), AFTER, AFTER, changed=False, skips=(), added=(), removed=())
    assert result.changes == ()


def test_an_honest_pass_goes_through() -> None:
    result = check_pass(DropIdentity(), BEFORE, AFTER, changed=True, skips=(), added=(), removed=["Identity"])
    assert [c.where for c in result.changes] == ["h"]


def test_models_may_be_given_as_objects_too() -> None:
    model = parse_model(BEFORE)
    check_pass(DropIdentity(), model, parse_model(AFTER), changed=True)
    assert [n.op for n in model.graph.nodes] == ["Identity", "Gemm", "Relu"]


def test_skips_are_expected_by_part_of_their_text() -> None:
    kept = net("(float[N,3] x) => (float[N,3] y)", "", "y = Identity(x)")
    check_pass(DropIdentity(), kept, kept, changed=False, skips=["y: its output leaves"])
    for wanted in ((), ["y: another reason"], ["y", "z"]):
        with pytest.raises(AssertionError, match="skips are"):
            check_pass(DropIdentity(), kept, changed=False, skips=wanted)


# --- broken promises -------------------------------------------------------------------------------------------------
def test_another_outcome_than_expected_fails() -> None:
    with pytest.raises(AssertionError, match="says changed=True"):
        check_pass(DropIdentity(), BEFORE, changed=False)
    with pytest.raises(AssertionError, match="the nodes should be"):
        check_pass(DropIdentity(), BEFORE, BEFORE, changed=True)
    with pytest.raises(AssertionError, match=r"nodes removed: {'Identity': 1}, not {}"):
        check_pass(DropIdentity(), BEFORE, changed=True, removed=[])
    with pytest.raises(AssertionError, match=r"nodes added: {}, not {'Gemm': 1}"):
        check_pass(DropIdentity(), BEFORE, changed=True, added=["Gemm"])


def test_inconsistent_options_are_refused_before_the_pass_runs() -> None:
    with pytest.raises(UsageError, match="most is negative"):
        check_pass(DropIdentity(most=-1), BEFORE, changed=True)


def test_a_pass_that_says_changed_and_changed_nothing_fails() -> None:
    with pytest.raises(AssertionError, match="says changed=True, and the model does not differ"):
        check_pass(Liar(), BEFORE, changed=True)


def test_a_pass_that_changes_one_weight_and_says_nothing_fails() -> None:
    with pytest.raises(AssertionError, match="says changed=False, and the model differs"):
        check_pass(Liar(add_to_bias(1e-6), says=False), BEFORE, changed=False)


def test_a_pass_that_changes_only_metadata_has_changed_the_model() -> None:
    def edit(model: Model) -> None:
        model.metadata["key"] = "value"

    check_pass(Liar(edit), BEFORE, changed=True)
    with pytest.raises(AssertionError, match="says changed=False, and the model differs"):
        check_pass(Liar(edit, says=False), BEFORE, changed=False)


def test_a_pass_that_writes_into_a_shared_array_fails() -> None:
    owned = np.ones(4, np.float32)

    def edit(model: Model) -> None:
        owned[0] = 2

    model = parse_model(BEFORE)
    model.graph.constants["q"].values = owned.view()
    with pytest.raises(AssertionError, match="liar writes into the arrays of the model it was given"):
        check_pass(Liar(edit), model, changed=True)


def test_a_lossy_edit_in_an_exact_pass_fails() -> None:
    check_pass(Liar(add_to_bias(0.01)), BEFORE, changed=True)
    with pytest.raises(AssertionError, match="output 'y', regime normal, batch 1, seed 0: differs by"):
        check_pass(ExactLiar(add_to_bias(0.01)), BEFORE, changed=True)


def test_an_exact_pass_that_finds_more_the_second_time_fails() -> None:
    twice = BEFORE.replace("h = Identity(x)", "i = Identity(x) h = Identity(i)")
    check_pass(DropIdentity(), twice, AFTER, changed=True)
    with pytest.raises(AssertionError, match="finds more when run again"):
        check_pass(DropIdentity(most=1), twice, changed=True)


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda m: m.graph.nodes.reverse(), "before it is computed"),
        (
            lambda m: setattr(m.graph.outputs[0], "name", "z"),
            "inputs or outputs are declared otherwise|not valid",
        ),
        (lambda m: setattr(m.graph.nodes[-1], "op", "Reluu"), "the ONNX checker refuses the model"),
        (lambda m: m.opset_imports.update({"": 18}), "the opset is another"),
        (lambda m: setattr(m.graph.nodes[1], "attrs", {"transB": 1}), "not valid"),
    ],
)
def test_a_broken_model_fails_whatever_the_pass_says(edit: Callable[[Model], object], reason: str) -> None:
    with pytest.raises(AssertionError, match=reason):
        check_pass(Liar(edit), BEFORE, changed=True)


def test_outputs_that_become_nan_fail_even_in_a_lossy_pass() -> None:
    with pytest.raises(AssertionError, match="output 'y' has become NaN or Inf"):
        check_pass(Liar(add_to_bias(float("nan"))), BEFORE.replace("y = Relu(g)", "y = Neg(g)"), changed=True)


def test_a_pass_may_be_given_as_text_but_only_one() -> None:
    check_pass("remove-dead", BEFORE, AFTER, changed=True, removed=["Identity"])
    with pytest.raises(AssertionError, match="takes one pass, not 2"):
        check_pass("fold-constants,remove-dead", BEFORE, changed=True)
    with pytest.raises(UsageError, match="unknown pass 'no-such-pass'"):
        check_pass("no-such-pass", BEFORE, changed=False)
