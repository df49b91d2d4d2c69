"""Mixed precision: bounds hold with little spared, more is spared for harder ones, and what cannot hold is said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from onnxcomp.compiler.mixed_precision.precision_search import keep_on
from onnxcomp.compiler.passbase import Context, PassLog, PassResult
from onnxcomp.compiler.quantization.formats import formats
from onnxcomp.compiler.quantization.plan import Settings
from onnxcomp.compiler.quantization.quantizer import plan, replan
from onnxcomp.compiler.target.files import load_target
from onnxcomp.errors import PreconditionError
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.ir.proto import to_proto
from onnxcomp.ir.text import dump
from onnxcomp.passes.insert_qdq import InsertQdq
from onnxcomp.runtime.compare import compare_models
from onnxcomp.runtime.data.samples import open_samples
from onnxcomp.runtime.inputs import input_specs
from onnxcomp.runtime.session import Session
from onnxcomp.testing import assert_valid
from tests.support.harmful import BAD, READER, planted
from tests.support.pruning import ZOO, context_for, noise, zoo_context
from tests.support.runs import run_once
from tests.support.text import net

PER_TENSOR: Mapping[str, Any] = {"granularity": "per-tensor", "equalize": "false", "precision": "mixed"}
COUNT = 256

TAIL = net(
    "(float[N, 8] x) => (float[N, 6] y)",
    "float[8, 8] a, float[8, 6] b, float[6, 6] c",
    "h = MatMul(x, a) r = Relu(h) i = MatMul(r, b) y = MatMul(i, c)",
)


def run(
    model: Model,
    target: str = "ort-cpu",
    excluded: tuple[str, ...] = (),
    *,
    fresh: bool = False,
    **options: Any,
) -> PassResult:
    """Run the pass on calibration images of the shipped net, of which a part is held back; `fresh` as in `run_once`."""
    step = InsertQdq(**options)
    step.check()

    def context() -> Context:
        return zoo_context(model, COUNT, target=load_target(target), excluded=frozenset(excluded))

    result = run_once(step, model, context, (target, excluded), fresh=fresh)
    # Integers of 16 bits need a newer opset.
    assert_valid(result.model, like=model if target == "ort-cpu" else None)
    assert result.changed == bool(result.changes)
    return result


def choices(result: PassResult) -> dict[str, str]:
    """Return what each node became."""
    (rows,) = (c.details["choices"] for c in result.changes if "choices" in c.details)
    return {row["node"]: row["choice"] for row in rows}


def spared(result: PassResult) -> set[str]:
    return {name for name, choice in choices(result).items() if choice != "int8"}


def decibels(result: PassResult, model: Model) -> float:
    """Return the SQNR on images that neither calibrated nor judged."""
    samples = open_samples(str(ZOO / "digits_evaluation.npz"), input_specs(model))
    found = compare_models(Session(model, threads=1), Session(result.model, threads=1), samples.batches(50))
    assert found.sqnr_db is not None
    return found.sqnr_db


def test_a_bound_is_met_by_sparing_the_planted_layers_alone() -> None:
    model = planted()
    result = run(model, **PER_TENSOR, min_sqnr=30.0)
    assert result.shortfall is None
    assert spared(result) - {"/pool2/MaxPool"} == {BAD, READER}
    assert decibels(result, model) > 30
    weights = {v.name for n in result.model.graph.nodes if n.name in spared(result) for v in n.inputs[1:2]}
    assert all(result.model.graph.constants[name].values.dtype == np.float32 for name in weights)
    (note,) = (n for n in result.notes if "held back" in n)
    assert "min-sqnr=30: " in note
    assert "without 2 nodes in float: min-sqnr=30: " in note


def test_nothing_is_spared_where_the_bound_holds_anyway() -> None:
    result = run(planted(1.0), precision="mixed", min_sqnr=25.0)
    assert spared(result) == set()
    assert result.shortfall is None
    (tried,) = (c.details["tried"] for c in result.changes if "tried" in c.details)
    assert list(tried) == ["0"]


def test_harder_bounds_spare_more_and_reach_more() -> None:
    model = planted()
    results = [run(model, **PER_TENSOR, min_sqnr=bound) for bound in (30.0, 44.0, 52.0)]
    first, second, third = (spared(result) for result in results)
    assert first <= second <= third
    assert first != third
    reached = [decibels(result, model) for result in results]
    assert reached == sorted(reached)
    assert reached[-1] > 50


def test_the_table_gives_each_nodes_harm_and_what_integers_save() -> None:
    model = planted()
    (rows,) = (
        c.details["choices"]
        for c in run(model, **PER_TENSOR, min_sqnr=30.0).changes
        if "choices" in c.details
    )
    by_name = {row["node"]: row for row in rows}
    assert max(rows, key=lambda row: row["sensitivity"])["node"] == BAD
    node = next(node for node in model.graph.nodes if node.name == READER)
    stored = node.constant(1)
    assert stored is not None
    assert by_name[READER]["bits_saved"] == 24 * stored.size
    assert by_name[READER]["macs"] == stored.size * 4 * 4
    assert "/pool1/MaxPool" not in by_name
    assert not [name for name in by_name if "Relu" in name]


def test_the_same_call_gives_the_same_bytes() -> None:
    first, second = (run(planted(), **PER_TENSOR, min_sqnr=44.0, fresh=fresh) for fresh in (False, True))
    texts = [to_proto(result.model).SerializeToString(deterministic=True) for result in (first, second)]
    assert texts[0] == texts[1]
    assert choices(first) == choices(second)
    assert first.notes == second.notes


def test_agreement_and_drop_hold_with_confidence() -> None:
    model = planted()
    result = run(model, **PER_TENSOR, agreement=97.0, max_drop=3.0)
    assert result.shortfall is None
    assert {BAD, READER} <= spared(result)
    (note,) = (n for n in result.notes if "held back" in n)
    assert "agreement=97: 100.00 %, at least 98." in note
    assert "max-drop=3: 0.00 points of agreement, at most 1." in note


def test_samples_with_labels_tell_what_accuracy_is_lost() -> None:
    model = planted()
    samples = open_samples(str(ZOO / "digits_evaluation.npz"), input_specs(model), limit=COUNT)
    context = replace(zoo_context(model, COUNT), calibration=samples)
    result = InsertQdq(**PER_TENSOR, max_drop=3.0).run(model.clone(), context)
    (note,) = (n for n in result.notes if "held back" in n)
    assert "max-drop=3: 0.00 points of accuracy, at most 0.99 at 90% confidence" in note


def test_what_the_user_leaves_out_stays_out() -> None:
    excluded = run(planted(), excluded=("/stage1/stage1.3/Conv",), **PER_TENSOR, min_sqnr=30.0)
    assert "/stage1/stage1.3/Conv" not in choices(excluded)
    assert {BAD, READER} <= spared(excluded)
    only = run(planted(), **PER_TENSOR, min_sqnr=30.0, nodes=("re:stage[23]",))
    assert all("stage1" not in name for name in choices(only))
    assert {BAD, READER} <= spared(only)
    typed = run(planted(), **PER_TENSOR, min_sqnr=30.0, op_types=("Gemm",))
    assert set(choices(typed)) <= {"/hidden/Gemm", "/logits/Gemm"}
    assert spared(typed) == set()


def test_values_go_into_16_bits_where_the_target_takes_them() -> None:
    """With weights of one scale per channel the planted value does the harm, and its scale alone becomes wide."""
    model = planted(300.0)
    plain = run(model, "qnn", rounding="gptq")
    bound = decibels(plain, model) + 4
    result = run(model, "qnn", precision="mixed", min_sqnr=bound)
    assert result.shortfall is None
    assert result.model.opset >= 21
    wide = {name for name, choice in choices(result).items() if choice == "16-bit"}
    assert READER in wide
    assert "float" not in choices(result).values()
    zeros = {n.inputs[2].name for n in result.model.graph.nodes if n.op == "QuantizeLinear"}
    kinds = {result.model.graph.constants[name].values.dtype for name in zeros}
    assert kinds == {np.dtype(np.uint8), np.dtype(np.uint16)}
    assert decibels(result, model) > bound - 1


def test_16_bits_cannot_mend_a_weight_and_that_is_said() -> None:
    result = run(planted(), "qnn", **PER_TENSOR, min_sqnr=40.0)
    assert result.shortfall is not None
    assert "weights stay in 8 bits, keep=float may do more" in result.shortfall
    mended = run(planted(), "qnn", **PER_TENSOR, min_sqnr=40.0, keep="float")
    assert mended.shortfall is None
    assert {BAD, READER} <= spared(mended)


def test_what_harmful_nodes_become_is_up_to_the_target() -> None:
    for name, wanted in (("ort-cpu", "float"), ("openvino", "float"), ("qnn", "16-bit")):
        target = load_target(name)
        assert keep_on(target, "auto", formats(target, {})) == wanted
    target = load_target("ort-cpu")
    with pytest.raises(
        PreconditionError, match="ort-cpu takes activations of type uint8 or int8, not uint16"
    ):
        keep_on(target, "16-bit", formats(target, {}))


def test_a_bound_that_floats_miss_too_falls_short_and_says_why() -> None:
    """What passes before have done to the network is no fault of integers."""
    model = planted(1.0)
    context = zoo_context(model, COUNT)
    worse = model.clone()
    node = next(node for node in worse.graph.nodes if node.name == BAD)
    weight = node.constant(1)
    assert weight is not None
    worse.graph.set_constant(node, 1, (weight * np.float32(0.5)), "halved")
    result = InsertQdq(precision="mixed", min_sqnr=40.0).run(worse.clone(), context)
    assert result.shortfall is not None
    assert "min-sqnr=40 does not hold with everything in float either" in result.shortfall
    assert spared(result) == set()


def test_a_bound_that_only_floats_hold_leaves_the_model_as_it_was() -> None:
    model = parse_model(TAIL)
    context = context_for(model, noise(model, 200))
    result = InsertQdq(precision="mixed", min_sqnr=140.0).run(model.clone(), context)
    assert not result.changed
    assert result.shortfall is None
    assert dump(result.model) == dump(model)
    assert result.notes[-1] == "min-sqnr=140 holds only where everything stays in float"


def test_planning_anew_keeps_the_way_in_which_ranges_were_chosen() -> None:
    """Where ranges of least error of the values themselves were found to be better, they stay."""
    model = parse_model(TAIL)
    context, log, settings = context_for(model, noise(model, 200)), PassLog(), Settings()
    found = plan(model, formats(context.target, {}), settings, context, log)
    assert found is not None
    assert any("by the error of the values alone" in note for note in log.notes)
    again = replan(found, settings, context)
    assert again.chosen.ranges == found.chosen.ranges
    assert again.chosen.costs == found.chosen.costs
    assert again.chosen.costs
