"""The target openvino in OpenVINO: what its file says of operators, types and versions is tried on the CPU plug-in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from onnxcomp.compiler.target.files import load_target
from onnxcomp.ir.model import Model
from onnxcomp.ir.proto import to_proto
from onnxcomp.runtime.session import Session
from tests.compiler.target.test_files import FLOAT, MOVED, QUANTIZED
from tests.compiler.target.test_lint import RIGHT, Style, node, quantized
from tests.support.quantized import Quantized

openvino: Any = pytest.importorskip("openvino", reason="OpenVINO is not installed")

if "INT8" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
    pytest.skip("this processor computes nothing in integers", allow_module_level=True)

EXTRA = {
    "ReduceMean": FLOAT["ReduceMean"],
    "Gelu": FLOAT["Gelu"],
    "HardSwish": FLOAT["HardSwish"],
}
"""What OpenVINO computes in integers beside what onnxruntime does."""
COMPUTED = {**QUANTIZED, **EXTRA}
LEFT = {"Softmax": QUANTIZED["Softmax"], **{op: p for op, p in FLOAT.items() if op not in EXTRA}}
LATER = {"Gelu": 20, "Split": 18}
"""Operators whose pattern needs a later opset than 17."""
SMALL = ("u8", "i8")


def compiled(model: Model) -> Any:
    core = openvino.Core()
    network = core.read_model(to_proto(model).SerializeToString())
    return core.compile_model(network, "CPU", {"INFERENCE_NUM_THREADS": 1})


def layers(network: Any) -> Iterator[tuple[str, set[str], str]]:
    """Yield kind, names in the file and precision of what the CPU runs."""
    for layer in network.get_runtime_model().get_ordered_ops():
        facts = layer.get_rt_info()
        kind, names, precision = (
            str(facts[key].astype(str)) for key in ("layerType", "originalLayersNames", "runtimePrecision")
        )
        if kind not in ("Const", "Input", "Output"):
            yield kind, set(names.split(",")), precision


def floats(operator: str, pair: bool = True) -> list[str]:
    """Return the kinds of layers that run in float behind the first convolution, conversions at the end aside."""
    graph = Quantized()
    made = {**COMPUTED, **MOVED, **LEFT}[operator](graph, graph.start())
    model = graph.model(graph.pair(made) if pair else made, opset=LATER.get(operator, 17))
    kinds = [(kind, precision) for kind, _, precision in layers(compiled(model))]
    start = next(i for i, (kind, _) in enumerate(kinds) if kind == "Convolution")
    return [kind for kind, precision in kinds[start:] if precision not in SMALL and kind != "Reorder"]


def test_the_operators_that_are_tried_here_are_those_of_the_file() -> None:
    found = load_target("openvino")
    assert set(str(found.quantize).split()) == set(COMPUTED) - {"Softmax"}
    assert set(str(found.same_scale).split()) == set(MOVED)
    assert set(str(found.keep_float).split()) == set(LEFT)


@pytest.mark.parametrize("operator", sorted({*COMPUTED, *MOVED} - {"Softmax"}))
def test_openvino_runs_in_integers_what_its_target_says(operator: str) -> None:
    assert floats(operator) == []


@pytest.mark.parametrize("operator", sorted(LEFT))
def test_openvino_leaves_in_float_what_its_target_says(operator: str) -> None:
    assert floats(operator) != []


@pytest.mark.parametrize("operator", ["Conv", "Gemm", "Add", "GlobalAveragePool"])
def test_openvino_needs_no_pair_behind_an_operator(operator: str) -> None:
    assert operator not in load_target("openvino").output_pair
    assert floats(operator, pair=False) == []


@pytest.mark.parametrize("target", sorted(set(RIGHT) - {"st-mp2"}))
def test_files_right_for_others_run_on_integers_and_agree_with_onnxruntime_within_a_step(target: str) -> None:
    model = quantized(RIGHT[target])
    network = compiled(model)
    found = {name: precision for _, names, precision in layers(network) for name in names}
    assert {found["one"], found["two"], found["pool"]} <= set(SMALL)
    x = np.random.default_rng(0).normal(size=(1, 8, 16, 16)).astype(np.float32)
    (wanted,) = Session(model, threads=1).run({"x": x}).values()
    given = network({"x": x})[0]
    assert np.abs(given - wanted).max() <= 1.001 * RIGHT[target].scale
    assert np.mean(given != wanted) < 0.05


def test_unsigned_weights_do_not_compile_and_the_target_takes_none() -> None:
    assert "uint8" not in load_target("openvino").weights.accepts
    with pytest.raises(RuntimeError, match="No suitable implementations"):
        compiled(quantized(RIGHT["st-mp2"]))


def test_versions_load_up_to_the_limits_of_the_file_and_foreign_domains_do_not() -> None:
    found = load_target("openvino")
    for opset in found.opset:
        model = quantized(Style())
        model.opset_imports[""] = opset
        assert compiled(model)
    model = quantized(Style())
    model.ir_version = found.ir_max
    assert compiled(model)
    node(model, "pool").domain = "com.example"
    with pytest.raises(RuntimeError, match="unsupported operations"):
        compiled(model)
