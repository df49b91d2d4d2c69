from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxcomp.ir.parse import parse_model
from onnxcomp.ir.proto import to_proto
from tests.support.text import net
from tools.bench import simplify as bench_simplify
from tools.light_zoo import light_model, light_paths, random_feeds, relative_error, run_as_written

SHUFFLENET = next(p for p in light_paths() if p.stem == "light_shufflenet")


def test_a_light_model_has_random_weights_of_sane_size() -> None:
    proto = light_model(SHUFFLENET, seed=3)
    tensors = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    assert not [n for n in proto.graph.node if n.op_type == "ConstantOfShape"]
    for node in proto.graph.node:
        if node.op_type == "BatchNormalization":
            assert tensors[node.input[4]].min() > 0, "a variance is positive"
        if node.op_type == "Conv":
            weight = tensors[node.input[1]]
            assert 0.3 < weight.std() * np.sqrt(weight[0].size) < 2
    (output,) = run_as_written(proto, random_feeds(proto)).values()
    assert np.isfinite(output).all()
    assert output.std() > 1e-5 and output.max() < 0.5, "neither constant nor saturated"


def test_random_weights_depend_on_the_seed_alone() -> None:
    one, two, other = (light_model(SHUFFLENET, seed).SerializeToString() for seed in (1, 1, 2))
    assert one == two
    assert one != other


def test_an_error_is_relative_to_the_largest_output() -> None:
    reference = {"a": np.array([1.0, -4.0]), "b": np.array([0.5])}
    assert relative_error(reference, reference) == 0
    assert relative_error(reference, {"a": np.array([2.0, -4.0]), "b": np.array([0.5])}) == 0.25
    assert relative_error(reference, {"a": np.array([1.0, -4.0]), "b": np.array([0.0])}) == 1


def test_the_benchmark_runs_without_peers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_simplify, "find_spec", lambda name: None)
    text = net("(float[N,3] x) => (float[N,3] y)", "", "h = Identity(x)  y = Relu(h)")
    path = tmp_path / "small.onnx"
    onnx.save(to_proto(parse_model(text)), path)
    assert bench_simplify.main([str(path), "--json", str(tmp_path / "rows.json")]) == 0
    (row,) = json.loads((tmp_path / "rows.json").read_text())["rows"]
    capsys.readouterr()
    assert (row["model"], row["before"], row["ours"], row["onnxslim"], row["ratio"]) == (
        "small",
        2,
        1,
        None,
        None,
    )
    assert bench_simplify.main([str(path)]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["small", "2", "1", "0.0e+00"]
