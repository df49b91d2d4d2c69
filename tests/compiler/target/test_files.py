"""Targets as data: every file loads, says where its facts come from, and the schema lets nothing else through."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files

import numpy as np
import onnx.defs
import pytest

from onnxcomp.compiler.target.facts import OperatorSet, Target
from onnxcomp.compiler.target.files import (
    DEFAULT_TARGET,
    check_target_name,
    load_target,
    parse_target,
    target_names,
)
from onnxcomp.errors import UsageError
from onnxcomp.ir.graph import Node
from onnxcomp.runtime.fusion import fusion_of
from onnxcomp.targets import TARGETS, target
from tests.support.quantized import Quantized

OPERATORS = {schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain}
NEEDED = {
    "openvino", "tensorrt", "qnn", "pow2", "amd-npu", "st-edge-ai", "st-mp2", "litert", "ncnn", "rknn", "esp-dl", "hailo",
}  # fmt: skip
SETS = (
    "quantize",
    "same_scale",
    "keep_float",
    "absorbs",
    "all_inputs",
    "output_pair",
    "one_scale",
    "pair_in_front",
    "float_in_front",
    "several_inputs",
    "refuses",
)


def text_of(name: str) -> str:
    return (files("onnxcomp") / "targets_data" / f"{name}.toml").read_text(encoding="utf-8")


def test_the_default_comes_first_and_all_that_were_promised_are_there() -> None:
    assert target_names()[0] == DEFAULT_TARGET == "ort-cpu"
    assert set(target_names()) >= NEEDED
    assert list(TARGETS) == list(target_names())
    assert target("qnn") is load_target("qnn")


@pytest.mark.parametrize("name", target_names())
def test_every_file_loads_and_each_of_its_facts_has_a_source(name: str) -> None:
    found = load_target(name)
    assert found.name == name
    assert [f.table for f in found.facts if len(f.source.split()) < 2] == []
    assert [n.text for n in found.notes if not n.source] == []
    assert found.opset[0] >= 13, "older files are converted on load"
    assert found.align == 1


@pytest.mark.parametrize("name", target_names())
def test_the_operators_of_every_file_exist(name: str) -> None:
    for field in SETS:
        operators: OperatorSet = getattr(load_target(name), field)
        assert {*operators.names, *operators.conditions} <= OPERATORS, field


@pytest.mark.parametrize("name", target_names())
def test_a_target_that_wants_a_zero_point_of_zero_has_formats_that_can_keep_it(name: str) -> None:
    found = load_target(name)
    if found.zero_point == "0":
        assert found.weights.symmetric
        assert found.activations.symmetric
        assert found.activations.dtype.startswith("int")
    if found.family == "qdq":
        assert found.quantize
        assert set(str(found.output_pair).split()) <= set(str(found.quantize).split())


def test_the_default_is_what_onnxruntime_runs_fast() -> None:
    found = load_target("ort-cpu")
    assert (found.weights.dtype, found.weights.low, found.weights.high) == ("int8", -127, 127)
    assert found.weights.narrow
    assert found.weights.symmetric
    assert found.weights.per_channel
    assert (found.activations.dtype, found.activations.symmetric) == ("uint8", False)
    assert found.activations.full == (0, 255)
    assert not found.activations.narrow
    reduced = load_target("ort-cpu-avx2")
    assert (reduced.weights.low, reduced.weights.high) == (-64, 64)
    assert str(reduced.quantize) == str(found.quantize)


def test_an_unknown_name_is_told_the_nearest() -> None:
    for ask in (load_target, check_target_name, target):
        with pytest.raises(UsageError, match=r"^unknown target 'tensor-rt'; did you mean 'tensorrt'\?$"):
            ask("tensor-rt")


# --- operators -------------------------------------------------------------------------------------------------------
def test_an_operator_may_depend_on_an_attribute_and_on_what_the_standard_implies() -> None:
    found = load_target("ort-cpu")
    assert found.role(Node("Resize", attrs={"mode": "nearest"})) == "same-scale"
    assert found.role(Node("Resize")) == "same-scale"
    assert found.role(Node("Resize", attrs={"mode": "linear"})) == "keep-float"
    assert found.role(Node("Resize", attrs={"mode": "cubic"})) == "unknown"
    assert found.role(Node("Conv")) == "quantize"
    assert found.role(Node("Conv", domain="com.example")) == "unknown"
    assert "Conv" in found.quantize
    assert "Resize" not in found.same_scale
    assert 3 not in found.quantize


Pattern = Callable[[Quantized, str], str]
POOL = {"kernel_shape": [2, 2]}


def _ints(g: Quantized, *values: int) -> str:
    return g.store(f"ints{len(g.stored)}", np.array(values))


QUANTIZED: dict[str, Pattern] = {
    "Conv": lambda g, v: g.conv("it", v),
    "Gemm": lambda g, v: g.node("Gemm", "it", _flat(g, v), g.weight("w", 2048, 4, axis=1)),
    "MatMul": lambda g, v: g.node("MatMul", "it", _flat(g, v), g.weight("w", 2048, 4, axis=1)),
    "Add": lambda g, v: g.node("Add", "it", v, v),
    "Mul": lambda g, v: g.node("Mul", "it", v, v),
    "Concat": lambda g, v: g.node("Concat", "it", v, v, axis=1),
    "AveragePool": lambda g, v: g.node("AveragePool", "it", v, **POOL),
    "GlobalAveragePool": lambda g, v: g.node("GlobalAveragePool", "it", v),
    "Sigmoid": lambda g, v: g.node("Sigmoid", "it", v),
    "LeakyRelu": lambda g, v: g.node("LeakyRelu", "it", v),
    "Softmax": lambda g, v: g.node("Softmax", "it", v),
}
MOVED: dict[str, Pattern] = {
    "MaxPool": lambda g, v: g.node("MaxPool", "it", v, **POOL),
    "Reshape": lambda g, v: g.node("Reshape", "it", v, _ints(g, 8, -1)),
    "Transpose": lambda g, v: g.node("Transpose", "it", v, perm=[1, 0, 2, 3]),
    "Flatten": lambda g, v: g.node("Flatten", "it", v),
    "Squeeze": lambda g, v: g.node("Squeeze", "it", v, _ints(g, 0)),
    "Unsqueeze": lambda g, v: g.node("Unsqueeze", "it", v, _ints(g, 0)),
    "Slice": lambda g, v: g.node("Slice", "it", v, _ints(g, 0), _ints(g, 4), _ints(g, 1)),
    "Gather": lambda g, v: g.node("Gather", "it", v, _ints(g, 1, 2), axis=1),
    "Split": lambda g, v: g.node("Split", "it", v, num_outputs=1, axis=1),
    "Resize{mode=nearest}": lambda g, v: _resize(g, v, "nearest"),
}
FLOAT: dict[str, Pattern] = {
    "Gelu": lambda g, v: g.node("Gelu", "it", v),
    "LayerNormalization": lambda g, v: g.node(
        "LayerNormalization", "it", v, g.store("s", np.ones(16, np.float32))
    ),
    "HardSwish": lambda g, v: g.node("HardSwish", "it", v),
    "HardSigmoid": lambda g, v: g.node("HardSigmoid", "it", v),
    "Pad": lambda g, v: g.node("Pad", "it", v, _ints(g, 0, 0, 1, 1, 0, 0, 1, 1)),
    "ReduceMean": lambda g, v: g.node("ReduceMean", "it", v, _ints(g, 2, 3)),
    "ConvTranspose": lambda g, v: g.node("ConvTranspose", "it", v, g.weight("w", 8, 8, 3, 3, axis=1)),
    "Resize{mode=linear}": lambda g, v: _resize(g, v, "linear"),
}


def _flat(g: Quantized, value: str) -> str:
    return g.pair(g.node("Flatten", "flat", value))


def _resize(g: Quantized, value: str, mode: str) -> str:
    return g.node("Resize", "it", value, "", g.store("by", np.array([1, 1, 2, 2], np.float32)), mode=mode)


def fuses(pattern: Pattern, *, pair: bool = True) -> bool:
    """Return whether onnxruntime computes the node `it` of `pattern` in integers, with a pair behind it or without."""
    graph = Quantized()
    made = pattern(graph, graph.start())
    found = fusion_of(graph.model(graph.pair(made) if pair else made))
    return "it" in [n.name for n in found.fused]


def test_the_operators_that_onnxruntime_is_said_to_compute_or_move_in_integers_are_tried_here() -> None:
    found = load_target("ort-cpu")
    assert set(str(found.quantize).split()) == set(QUANTIZED)
    assert set(str(found.same_scale).split()) == set(MOVED)
    assert set(str(found.keep_float).split()) == set(FLOAT)


@pytest.mark.parametrize("operator", [*QUANTIZED, *MOVED])
def test_onnxruntime_computes_in_integers_what_its_target_says(operator: str) -> None:
    assert fuses({**QUANTIZED, **MOVED}[operator])


@pytest.mark.parametrize("operator", FLOAT)
def test_onnxruntime_leaves_in_float_what_its_target_says(operator: str) -> None:
    assert not fuses(FLOAT[operator])


@pytest.mark.parametrize("operator", QUANTIZED)
def test_onnxruntime_needs_a_pair_behind_exactly_the_operators_that_its_target_names(operator: str) -> None:
    needs = operator in load_target("ort-cpu").output_pair
    assert fuses(QUANTIZED[operator], pair=False) is not needs


# --- the schema ------------------------------------------------------------------------------------------------------
def spoiled(old: str, new: str, name: str = "tensorrt") -> str:
    text = text_of(name)
    assert old in text
    return text.replace(old, new, 1)


WRONG = {
    "no TOML": ("name = ", "name ", "not TOML"),
    "unknown table": ("[bias]", "[biases]", r"unknown table 'biases'; did you mean 'bias'\?"),
    "unknown top key": ("summary = ", "sumary = ", "summary: text is needed, this is None"),
    "missing table": ("[scale]", "[align]", "not TOML"),
    "unknown key": ("zero_point = ", "zeropoint = ", r"\[zero-point\] unknown key 'zeropoint'; did you mean 'zero_point'\?"),
    "unknown value": ('scale = "float"', 'scale = "flaot"', r"\[scale\] scale: unknown value 'flaot'; did you mean 'float'\?"),
    "unknown dtype": ('dtype = "int8"', 'dtype = "int7"', r"\[weights\] dtype: unknown value 'int7'"),
    "no source": ('source = "NVIDIA', 'source = "" # "NVIDIA', r"\[family\] source: text is needed"),
    "no date": ('verified_on = ""', "verified_on = 3", r"verified_on: text is needed, empty where nobody has tried it"),
    "hardness": ("hard = true", 'hard = "yes"', "hard: true or false is needed"),
    "too wide": ("range = [-127, 127]", "range = [-129, 127]", r"range \[-129, 127\] does not fit into int8"),
    "upside down": ("opset = [13, 22]", "opset = [22, 13]", "22 is above 13; the least comes first"),
    "no pair": ("opset = [13, 22]", "opset = 13", "two whole numbers"),
    "count": ("align = 1", "align = 0", "a whole number of 1 or more"),
    "no list": ("absorbs = [", 'absorbs = "Relu" #', "a list of texts is needed"),
    "no operator": ('absorbs = ["Relu"', 'absorbs = ["Re lu"', "'Re lu' is no operator; write Name"),
    "attribute": ("Resize{mode=nearest}", "Resize{antialias=1}", "is no operator"),
    "two roles": ('keep_float = ["Softmax"', 'keep_float = ["Conv"', "Conv stands in quantize and in keep_float; keep one"),
    "itself": ('accepts = ["int8"]', 'accepts = ["uint8"]', "accepts does not name int8 itself"),
    "note": ("[[notes]]\ntext", "[[notes]]\nwords", "a note has the keys text, source and verified_on"),
    "notes": ("[[notes]]", "[notes]", "notes are tables|not TOML"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_file_that_breaks_the_schema_is_refused_in_one_line(case: str) -> None:
    old, new, message = WRONG[case]
    with pytest.raises(UsageError, match=message) as caught:
        parse_target(spoiled(old, new), "target x")
    assert str(caught.value).startswith("target x: ")
    assert "\n" not in str(caught.value)


def test_a_table_may_be_left_out_only_where_the_toolchain_quantizes_by_itself() -> None:
    text = text_of("tensorrt")
    start, end = text.index("[bias]"), text.index("[scale]")
    with pytest.raises(UsageError, match=r"\[bias\] is missing; write the table with bias and a source"):
        parse_target(text[:start] + text[end:])
    silent: Target = load_target("ncnn")
    assert silent.fact("bias") is None
    assert not silent.is_hard("bias")
    assert not silent.quantize
    assert str(silent.quantize) == ""
