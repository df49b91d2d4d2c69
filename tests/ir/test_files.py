"""Model files: everything unsound is refused in one line, and nothing is written by reading."""

from __future__ import annotations

import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from onnx import ModelProto, helper, numpy_helper

from onnxcomp.errors import ModelError
from onnxcomp.ir import Model
from onnxcomp.ir.convert import NEWEST_OPSET
from onnxcomp.ir.files import adopt, check_finite, from_bytes, load, save, sha256_of
from onnxcomp.ir.graph import Node, Variable
from tests.ir.helpers import external_proto, parsed, rich_proto, small_model, weight, write

SOUND = parsed("g (float[2] x) => (float[2] y) <float[2] w = {1.0, 2.0}> { y = Add(x, w) }")


def nested_protobuf(depth: int) -> bytes:
    """Return a model whose graph holds a graph in an attribute of its node, and so on."""
    data = b""
    for _ in range(depth):
        for number in (6, 5, 1):
            size, head = len(data), bytearray([number << 3 | 2])
            while size >= 128:
                head.append(size & 127 | 128)
                size >>= 7
            data = bytes(head) + bytes([size]) + data
    return b"\x3a" + bytes([len(data) & 127 | 128, len(data) >> 7 & 127 | 128, len(data) >> 14]) + data


BAD_BYTES = {
    "empty": (b"", "is empty"),
    "text": (b"not a model\n", "text file"),
    "random": (np.random.default_rng(0).bytes(4096), "not an ONNX model"),
    "truncated": (SOUND.SerializeToString()[:-7], "not an ONNX model"),
    "nested": (nested_protobuf(5000), "not an ONNX model"),
    "huge varint": (b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "not an ONNX model"),
    "length beyond the end": (b"\x3a\xff\xff\xff\xff\x07abc", "not an ONNX model"),
    "zip": (b"PK\x03\x04rest", "zip archive"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "tflite": (b"\x1c\x00\x00\x00TFL3rest", "TensorFlow Lite"),
    "no graph": (ModelProto(ir_version=8, producer_name="p").SerializeToString(), "holds no graph"),
}


@pytest.mark.parametrize("case", BAD_BYTES)
def test_files_that_are_no_models_are_refused_in_one_line(case: str, tmp_path: Path) -> None:
    data, reason = BAD_BYTES[case]
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=reason) as of_file:
        load(path)
    with pytest.raises(ModelError, match=reason) as of_bytes:
        from_bytes(data)
    for caught in (of_file, of_bytes):
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400


def changed(**fields: object) -> ModelProto:
    proto = ModelProto()
    proto.CopyFrom(SOUND)
    for name, value in fields.items():
        if value is None:
            proto.ClearField(name)
        else:
            setattr(proto, name, value)
    return proto


def opset(version: int) -> ModelProto:
    proto = changed(opset_import=None)
    proto.opset_import.append(helper.make_opsetid("", version))
    return proto


def bad_text() -> ModelProto:
    data = changed(producer_name="PLACEHOLDER").SerializeToString().replace(b"PLACEHOLDER", b"\xff" * 11)
    proto: ModelProto = ModelProto.FromString(data)
    return proto


def no_nodes() -> ModelProto:
    proto = changed()
    del proto.graph.node[:]
    proto.graph.output[0].name = "w"
    return proto


UNSOUND = {
    "no ir_version": (changed(ir_version=None), "no ir_version"),
    "ir_version 0": (changed(ir_version=0), "no ir_version"),
    "ir_version of the future": (changed(ir_version=99), "IR version 99"),
    "no opset_import": (changed(opset_import=None), "names no version of the standard operators"),
    "opset 0": (opset(0), "needs opset 0"),
    "opset of the future": (opset(NEWEST_OPSET + 1), f"needs opset {NEWEST_OPSET + 1}"),
    "bytes for text": (bad_text(), "onnx.ModelProto.producer_name holds bytes that are not text"),
    "no nodes": (no_nodes(), "graph without nodes"),
    "nothing but constants": (
        parsed("g (float[2] x) => (float[2] y) { y = Constant<value_floats = [1.0, 2.0]>() }"),
        "graph without nodes",
    ),
}


@pytest.mark.parametrize("case", UNSOUND)
def test_models_that_are_not_sound_are_refused_in_one_line(case: str, tmp_path: Path) -> None:
    proto, reason = UNSOUND[case]
    path = write(proto, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=reason) as of_file:
        load(path)
    with pytest.raises(ModelError, match=reason) as of_proto:
        adopt(proto)
    assert "\n" not in str(of_file.value) + str(of_proto.value)


def test_a_malformed_tensor_in_an_attribute_is_refused() -> None:
    proto = parsed("g (float[2] x) => (float[2] y) { y = my.dom.Op<v = float[2] {1.0, 2.0}>(x) }")
    proto.graph.node[0].attribute[0].t.dims[0] = 3
    with pytest.raises(ModelError, match="float_data"):
        adopt(proto)


def test_a_malformed_tensor_in_a_subgraph_is_refused_by_name() -> None:
    proto = rich_proto()
    then = next(a for a in proto.graph.node[1].attribute if a.name == "then_branch").g
    then.initializer.append(numpy_helper.from_array(weight(2), "inner"))
    then.initializer[0].dims[0] = 3
    with pytest.raises(ModelError, match="tensor 'inner'"):
        adopt(proto)


def test_paths_that_are_no_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no file"):
        load(tmp_path / "missing.onnx")
    with pytest.raises(ModelError, match="is a folder"):
        load(tmp_path)
    with pytest.raises(ModelError, match="cannot be read"):
        load(tmp_path / "nul\0.onnx")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no FIFOs")
def test_a_fifo_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="not an ordinary file"):
        load(tmp_path / "m.onnx")


def test_control_characters_of_a_path_do_not_reach_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[31mb.onnx"
    path.write_bytes(b"text")
    with pytest.raises(ModelError) as caught:
        load(path)
    assert "\x1b" not in str(caught.value)


def test_a_model_of_custom_operators_alone_needs_no_standard_opset() -> None:
    proto = parsed("g (float[2] x) => (float[2] y) { y = my.dom.Op(x) }")
    del proto.opset_import[0]
    assert adopt(proto).opset_imports == {"my.dom": 1}


def test_loading_leaves_file_and_proto_as_they_are(tmp_path: Path) -> None:
    proto = rich_proto()
    path = write(proto, tmp_path / "m.onnx")
    before, stamp = path.read_bytes(), path.stat().st_mtime_ns
    load(path)
    adopt(proto)
    assert path.read_bytes() == before
    assert path.stat().st_mtime_ns == stamp
    assert proto.SerializeToString() == before
    assert sorted(tmp_path.iterdir()) == [path]


def test_digests_bind_the_model_and_its_weights(tmp_path: Path) -> None:
    main, data = save(small_model(), tmp_path / "m.onnx", external_threshold=0)
    first = sha256_of(main)
    assert list(first.external) == ["m.onnx.data"]
    assert first.bytes == main.stat().st_size + data.stat().st_size
    changed_data = bytearray(data.read_bytes())
    changed_data[100] ^= 1
    data.write_bytes(changed_data)
    second = sha256_of(main)
    assert second.sha256 == first.sha256
    assert second.external != first.external
    data.unlink()
    with pytest.raises(ModelError, match="there is no file"):
        sha256_of(main)


def test_digests_are_not_taken_of_files_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(weight(16).tobytes())
    (tmp_path / "model").mkdir()
    with pytest.raises(ModelError, match="outside the model's folder"):
        sha256_of(write(external_proto("../secret.bin"), tmp_path / "model" / "m.onnx"))


@pytest.mark.parametrize(
    "dtype", [np.float32, np.float16, np.float64, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn]
)
def test_weights_that_are_no_numbers_are_named(dtype: type) -> None:
    def model(value: float) -> Model:
        made = small_model()
        made.graph.add_constant("bad", np.array([1.0, value], dtype))
        return made

    check_finite(model(2.0))
    with pytest.raises(ModelError, match="initializer 'bad' holds NaN"):
        check_finite(model(np.nan))


def test_infinite_weights_are_named_and_load_all_the_same(tmp_path: Path) -> None:
    model = small_model()
    model.graph.add_constant("mask", np.array([0.0, -np.inf], np.float32))
    bad = model.graph.add_constant("bad", np.full((64, 2), -np.inf, np.float32))
    model.graph.nodes.append(Node("MatMul", "read", {}, [model.graph.inputs[0], bad], [Variable("read")]))
    model.graph.add_constant("four", np.ones(3, ml_dtypes.int4))
    model.graph.add_constant("text", np.array([b"nan"], object))
    back = load(save(model, tmp_path / "m.onnx")[0])
    with pytest.raises(ModelError, match="initializer 'bad' holds Inf"):
        check_finite(back)
