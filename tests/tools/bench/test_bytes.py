"""Digests hold for contents and names, not for the version; what differs is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

from onnxcomp.runtime.documents import SCHEMA_VERSION
from tools.bench.bytes import PIPELINES, FileDigest, differences, digest_of, main


def network(weight: float = 1.0, name: str = "w", node: str = "first") -> ModelProto:
    proto = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 17]>
        net (float[N, 2] x) => (float[N, 2] y) {{ h = MatMul(x, {name})  y = Relu(h) }}""")
    proto.graph.initializer.append(numpy_helper.from_array(np.full((2, 2), weight, np.float32), name))
    proto.graph.node[0].name = node
    return proto


def test_metadata_and_the_version_of_the_producer_are_no_contents() -> None:
    stamped = network()
    stamped.metadata_props.add(key="onnxcomp.version", value="9.9")
    stamped.producer_version = "9.9"
    assert digest_of("a", stamped) == digest_of("a", network())
    assert stamped.producer_version == "9.9", "the caller's is left as it is"


def test_a_value_that_differs_is_named() -> None:
    found = differences([digest_of("a", network())], [digest_of("a", network(2.0))])
    assert found == {"a": ["what is computed differs", "stored, changed: w"]}


@pytest.mark.parametrize("other", [network(name="v"), network(node="second")])
def test_names_alone_are_no_computation(other: ModelProto) -> None:
    lines = differences([digest_of("a", network())], [digest_of("a", other)])["a"]
    assert lines[0] == "what is computed is the same" and len(lines) > 1


def test_stored_values_that_nothing_reads_and_their_order_are_no_computation() -> None:
    more, turned = network(), network()
    for proto in (more, turned):
        proto.graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.float32), "unread"))
    lines = differences([digest_of("a", more)], [digest_of("a", network())])["a"]
    assert lines == [
        "what is computed is the same",
        "stored, gone: unread",
        "rest, changed: order of initializers",
    ]
    tensors = list(turned.graph.initializer)[::-1]
    del turned.graph.initializer[:]
    turned.graph.initializer.extend(tensors)
    lines = differences([digest_of("a", more)], [digest_of("a", turned)])["a"]
    assert lines == ["what is computed is the same", "rest, changed: order of initializers"]


def test_an_attribute_and_a_shape_are_contents() -> None:
    first, second = network(), network()
    second.graph.node[1].op_type = "Sigmoid"
    assert (
        differences([digest_of("a", first)], [digest_of("a", second)])["a"][0] == "what is computed differs"
    )
    second = network()
    second.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "M"
    assert differences([digest_of("a", first)], [digest_of("a", second)])["a"] == [
        "what is computed is the same",
        "rest, changed: inputs",
    ]


def test_a_row_that_fails_now_differs_and_one_that_is_new_does_not() -> None:
    before = [digest_of("a", network())]
    after = [FileDigest("a", failure="exit 2: no"), digest_of("b", network())]
    assert differences(before, after) == {"a": ["written before, exit 2: no now"]}


def test_a_call_is_held_against_an_earlier_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, words = tmp_path / "before.json", ["--rows", "digits_mlp/exact"]
    assert main([*words, "--json", str(file)]) == 0
    assert main([*words, "--against", str(file)]) == 0
    assert "1 of 1 files are the same" in capsys.readouterr().out
    document = json.loads(file.read_text())
    assert document["benchmark"] == "bytes" and document["schema_version"] == SCHEMA_VERSION
    (kept,) = document["files"]
    kept["whole"], kept["unnamed"] = "0", "0"
    kept["stored"][next(iter(kept["stored"]))] = "0"
    file.write_text(json.dumps(document))
    assert main([*words, "--against", str(file)]) == 1
    shown = capsys.readouterr().out
    assert "digits_mlp/exact differs: what is computed differs" in shown and "stored, changed: " in shown


def test_every_pipeline_is_spelled_out() -> None:
    assert list(PIPELINES) == ["exact", "int8", "prune"]
    assert "prune-filters{macs=0.5}" in PIPELINES["prune"][1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rows", "digits_mlp/int4"], "there is no row 'digits_mlp/int4'; rows are digits_"),
        (["--tree", "nowhere"], "nowhere holds no onnxcomp"),
        (["--against", "nowhere.json"], "nowhere.json is not what `bytes --json` writes"),
    ],
)
def test_a_wrong_call_ends_before_anything_runs(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
