"""The first look at a file is taken by a child process: what it finds, and what becomes of it when it dies."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxcomp.errors import ModelError, UsageError
from onnxcomp.ir.convert import settle_opset
from onnxcomp.ir.files import save
from onnxcomp.runtime import probe_child, sandbox
from onnxcomp.runtime.sandbox import Probe, probe
from tests.ir.helpers import external_proto, parsed, rich_proto, small_model, weight, write


def test_a_sound_model_is_checked_loaded_and_run(tmp_path: Path) -> None:
    path = write(parsed("g (float[N,3,H,W] x) => (float[N,3,H,W] y) { y = Relu(x) }"), tmp_path / "m.onnx")
    before = path.read_bytes()
    assert probe(path) == Probe(
        checker=None,
        runtime_loads=True,
        runs=True,
        reason="",
        input_shapes={"x": (1, 3, 64, 64)},
        sizes={"N": 1, "H": 64, "W": 64},
        opset=17,
        converted_to=None,
        conversion_error=None,
        notes=(),
    )
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_sizes_are_tried_until_the_model_runs(tmp_path: Path) -> None:
    proto = parsed("g (float[N,3,H,W] x) => (float[] y) { f = Flatten(x)\n y = MatMul(f, f) }")
    proto.graph.node[1].input[1] = "w"
    proto.graph.initializer.append(numpy_helper.from_array(weight(3 * 32 * 32, 2), "w"))
    found = probe(write(proto, tmp_path / "m.onnx"))
    assert found.input_shapes == {"x": (1, 3, 32, 32)}
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight(3 * 40 * 40, 2), "w"))
    path = write(proto, tmp_path / "m.onnx")
    found = probe(path)
    assert (found.runtime_loads, found.runs, found.input_shapes) == (True, False, {})
    assert "MatMul" in found.reason
    assert probe(path, input_shapes={"x": (2, 3, 40, 40)}).input_shapes == {"x": (2, 3, 40, 40)}


def test_a_model_with_unknown_operators_is_no_error(tmp_path: Path) -> None:
    found = probe(write(rich_proto(), tmp_path / "m.onnx"))
    assert (found.checker, found.runtime_loads, found.runs) == (None, False, False)
    assert "Custom" in found.reason


def test_a_model_that_checker_and_runtime_refuse_is_an_error(tmp_path: Path) -> None:
    path = write(parsed("g (float[2] x) => (float[2] y) { y = NoSuchOperator(x) }"), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"not a valid model: .*checker.*NoSuchOperator.*onnxruntime: "):
        probe(path)


def test_what_loading_refuses_is_refused_in_the_same_words(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(60))
    path = write(external_proto("w.bin"), tmp_path / "m.onnx")
    with pytest.raises(
        ModelError, match=r"the external data of 'w' ends at byte 64 of 'w\.bin', which has 60"
    ):
        probe(path)
    with pytest.raises(ModelError, match="there is no file"):
        probe(tmp_path / "missing.onnx")


def test_links_are_followed_with_leave_only(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "blob").write_bytes(weight(16).tobytes())
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "w.bin").symlink_to(tmp_path / "store" / "blob")
    path = write(external_proto("w.bin"), tmp_path / "model" / "m.onnx")
    with pytest.raises(ModelError, match="--allow-links"):
        probe(path)
    assert probe(path, allow_links=True).runs


def test_a_model_with_external_data_runs(tmp_path: Path) -> None:
    main, _ = save(small_model(), tmp_path / "m.onnx", external_threshold=0)
    assert probe(main).runs


def old_model(op: str) -> ModelProto:
    proto = parsed(f"g (float[2,1,4] x) => (float[] y) {{ y = {op}(x) }}", 11)
    proto.graph.value_info.clear()
    return proto


def test_a_conversion_is_verified(tmp_path: Path) -> None:
    found = probe(write(old_model("Softmax<axis = 1>"), tmp_path / "m.onnx"))
    assert (found.opset, found.converted_to) == (11, 13)
    assert found.conversion_error is not None
    assert found.conversion_error < 1e-6
    assert found.notes == ("converted from opset 11 to opset 13",)


def test_a_random_model_has_no_conversion_error(tmp_path: Path) -> None:
    proto = old_model("RandomNormalLike")
    found = probe(write(proto, tmp_path / "m.onnx"))
    assert (found.runs, found.converted_to, found.conversion_error) == (True, 13, None)


def request(path: Path, **fields: object) -> dict[str, Any]:
    base = {
        "path": str(path),
        "name": str(path),
        "allow_links": False,
        "custom_op_libs": [],
        "input_shapes": {},
    }
    return {**base, "seed": 0, "seconds": 60.0, **fields}


def test_a_conversion_that_changes_the_outputs_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(old_model("Relu"), tmp_path / "m.onnx")

    def wrong(model: Any) -> Any:
        converted = settle_opset(model)
        converted.graph.nodes[0].op = "Neg"
        return converted

    monkeypatch.setattr("onnxcomp.runtime.probe_child.settle_opset", wrong)
    with pytest.raises(ModelError, match="conversion from opset 11 to 13 changes the outputs"):
        probe_child._look(request(path))


def test_distances_see_what_differs() -> None:
    one = {"y": np.array([1.0, -4.0], np.float32)}
    assert probe_child._distance(one, one) == 0
    assert probe_child._distance(one, {"y": np.array([1.0, -3.0], np.float32)}) == 0.25
    assert probe_child._distance(one, {"y": np.array([1.0, np.nan], np.float32)}) > 1
    assert probe_child._distance(one, {"y": np.zeros(3, np.float32)}) == np.inf
    nan = {"y": np.array([np.nan, np.inf, 2.0], np.float32)}
    assert probe_child._distance(nan, nan) == 0
    assert probe_child._distance(nan, {"y": np.array([np.nan, -np.inf, 2.0], np.float32)}) == np.inf
    text = {"y": np.array(["a"], object)}
    assert probe_child._distance(text, text) == 0
    assert probe_child._distance(text, {"y": np.array(["b"], object)}) == np.inf


def test_a_file_that_crashes_native_code_is_an_error(tmp_path: Path) -> None:
    """onnx 1.23 ends in a segmentation fault on this one; a release that does not will have to refuse it."""
    proto = parsed(
        "g (float[2,3] x) => (float[2] y) { d = ReduceSum<axes = [1], keepdims = 0>(x)\n y = Softmax(d) }", 10
    )
    proto.graph.input[0].CopyFrom(helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, None))
    with pytest.raises(ModelError) as caught:
        probe(write(proto, tmp_path / "m.onnx"))
    assert "\n" not in str(caught.value)


def impostor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> Path:
    """Make `probe` start a child that does `body` instead of its work."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "impostor.py").write_text(body)
    monkeypatch.setattr(sandbox, "_CHILD", "impostor")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "code")])
    return write(small_proto(), tmp_path / "m.onnx")


def small_proto() -> ModelProto:
    return parsed("g (float[2] x) => (float[2] y) { y = Relu(x) }")


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGKILL"])
def test_a_child_that_dies_is_an_error_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = impostor(tmp_path, monkeypatch, f"import os, signal\nos.kill(os.getpid(), signal.{name})\n")
    with pytest.raises(ModelError, match="memory" if name == "SIGKILL" else f"crashed on .*{name}") as caught:
        probe(path)
    assert "\n" not in str(caught.value)


def test_a_child_that_takes_too_long_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = impostor(tmp_path, monkeypatch, "import time\ntime.sleep(60)\n")
    start = time.monotonic()
    with pytest.raises(ModelError, match=r"took more than 0\.5 s"):
        probe(path, timeout=0.5)
    assert time.monotonic() - start < 30


def test_a_bug_in_the_child_is_no_error_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = impostor(tmp_path, monkeypatch, "raise RuntimeError('ours')\n")
    with pytest.raises(RuntimeError, match="ours"):
        probe(path)


def test_the_child_may_not_write_and_its_memory_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = f"""
import json, resource
from onnxcomp.runtime import probe_child
probe_child._limit_process(10.0)
limits = {{name: resource.getrlimit(getattr(resource, name))[0] for name in
          ("RLIMIT_DATA", "RLIMIT_CPU", "RLIMIT_CORE", "RLIMIT_FSIZE")}}
try:
    open({str(tmp_path / "written")!r}, "w").write("x" * 100000)
except OSError as problem:
    limits["problem"] = str(problem)
raise SystemExit(json.dumps(limits))
"""
    path = impostor(tmp_path, monkeypatch, body)
    with pytest.raises(RuntimeError) as caught:
        probe(path)
    limits = json.loads(str(caught.value).split(": ", 1)[1])
    assert limits["RLIMIT_FSIZE"] == limits["RLIMIT_CORE"] == 0
    assert 2**32 < limits["RLIMIT_DATA"] < 2**50
    assert 10 < limits["RLIMIT_CPU"] < 10**5
    assert "large" in limits["problem"]
    assert (tmp_path / "written").stat().st_size == 0


def test_an_empty_input_of_impossible_size_is_no_crash(tmp_path: Path) -> None:
    proto = parsed("g (float[1] x) => (float[1] y) { y = Relu(x) }")
    for info in (proto.graph.input[0], proto.graph.output[0]):
        info.CopyFrom(helper.make_tensor_value_info(info.name, 1, [0, 2**62, 4]))
    found = probe(write(proto, tmp_path / "m.onnx"))
    assert not found.runs
    assert "too large to be made up" in found.reason


def test_what_the_child_trips_over_is_an_error_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def trips(request: dict[str, Any]) -> None:
        raise ValueError("array is too big " + "n" * 300)

    monkeypatch.setattr(probe_child, "_look", trips)
    found = probe_child.look({"name": "m.onnx"})
    assert found["kind"] == "ModelError"
    assert "'m.onnx'" in found["error"] and "array is too big" in found["error"]
    assert len(found["error"]) < 300


@pytest.mark.skipif(not hasattr(signal, "SIGXCPU"), reason="the system has no limits on memory")
def test_a_model_that_unfolds_beyond_all_memory_is_refused(tmp_path: Path) -> None:
    proto = parsed("g (float[1] x) => (float[] y) { c = ConstantOfShape(x)\n y = Add(c, x) }")
    proto.graph.node[0].input[0] = "shape"
    proto.graph.initializer.append(numpy_helper.from_array(np.array([2**20, 2**20], np.int64), "shape"))
    assert proto.ByteSize() < 300
    with pytest.raises(ModelError, match="needs more memory than this machine has"):
        probe(write(proto, tmp_path / "m.onnx"))


def test_modules_beside_the_model_are_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("json", "onnx", "numpy"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('hijacked')\n")
    path = write(small_proto(), tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)
    assert probe(path.name).runs


def test_a_library_that_is_none_is_an_error_of_the_call(tmp_path: Path) -> None:
    library = tmp_path / "ops.so"
    library.write_bytes(b"no library")
    with pytest.raises(UsageError, match=r"custom operator library '.*ops\.so' cannot be loaded"):
        probe(write(small_proto(), tmp_path / "m.onnx"), custom_op_libs=[str(library)])


def test_nothing_is_written_by_a_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(small_proto(), tmp_path / "m.onnx")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    probe(os.path.relpath(path))
    assert not list((tmp_path / "here").iterdir())
    assert sorted(tmp_path.iterdir()) == [tmp_path / "here", path]
