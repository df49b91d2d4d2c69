"""What is saved is whole or not there at all, and says what the model said."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

from onnxcomp.errors import UsageError
from onnxcomp.ir import to_proto
from onnxcomp.ir.files import adopt, load, save
from onnxcomp.ir.text import dump
from tests.ir.helpers import ROOT, external_proto, model_of, parsed, rich_proto, small_model, weight, write

SOUND = parsed("g (float[2] x) => (float[2] y) <float[2] w = {1.0, 2.0}> { y = Add(x, w) }")


def test_a_saved_model_loads_as_the_same_model(tmp_path: Path) -> None:
    model = adopt(rich_proto())
    assert save(model, tmp_path / "m.onnx") == [tmp_path / "m.onnx"]
    assert dump(load(tmp_path / "m.onnx")) == dump(model)
    assert list(tmp_path.iterdir()) == [tmp_path / "m.onnx"]


def test_equal_models_give_equal_bytes(tmp_path: Path) -> None:
    save(small_model(), tmp_path / "a.onnx")
    save(small_model().clone(), tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_a_large_model_keeps_its_weights_in_a_second_file(tmp_path: Path) -> None:
    model = small_model()
    files = save(model, tmp_path / "m.onnx", external_threshold=4096)
    assert files == [tmp_path / "m.onnx", tmp_path / "m.onnx.data"]
    assert sorted(tmp_path.iterdir()) == files
    assert files[0].stat().st_size < 2048
    back = load(files[0])
    assert dump(back) == dump(model)
    assert back.sources == tuple(files)


def test_external_tensors_are_aligned_and_say_a_relative_path(tmp_path: Path) -> None:
    model = model_of("g (float[N] x) => (float[N] y) { y = Relu(x) }")
    for name, size in {"a": 257, "b": 20000, "c": 300, "tiny": 3, "d": 40000}.items():
        model.graph.add_constant(name, weight(size))
    model.graph.add_constant("half", weight(700).astype(ml_dtypes.bfloat16))
    model.graph.add_constant("nibbles", np.ones(4001, ml_dtypes.int4))
    model.graph.add_constant("strings", np.array([b"x" * 2000], object))
    main, data = save(model, tmp_path / "m.onnx", external_threshold=0)
    proto = ModelProto.FromString(main.read_bytes())
    end = 0
    places = {t.name: {e.key: e.value for e in t.external_data} for t in proto.graph.initializer}
    assert {name for name, place in places.items() if not place} == {"tiny", "strings"}
    for place in filter(None, places.values()):
        offset, length = int(place["offset"]), int(place["length"])
        assert place["location"] == "m.onnx.data"
        assert offset % (4096 if length >= 65536 else 64) == 0
        assert 0 <= offset - end < 65536
        end = offset + length
    assert data.stat().st_size == end
    assert dump(load(main)) == dump(model)


def test_a_transposed_view_is_not_taken_for_what_it_views(tmp_path: Path) -> None:
    model = small_model()
    square = weight(40, 40)
    for name, values in {"t": square.T, "s": square, "u": square[::-1], "v": square.reshape(-1)}.items():
        model.graph.add_constant(name, values)
    assert dump(load(save(model, tmp_path / "m.onnx", external_threshold=0)[0])) == dump(model)


def test_weights_inside_subgraphs_move_out_as_well(tmp_path: Path) -> None:
    proto = rich_proto()
    then = next(a for a in proto.graph.node[1].attribute if a.name == "then_branch").g
    then.initializer.append(numpy_helper.from_array(weight(2000), "inner"))
    model = adopt(proto)
    before = dump(model)
    main, data = save(model, tmp_path / "m.onnx", external_threshold=5000)
    assert main.stat().st_size < 4000
    assert data.stat().st_size >= 8000
    assert dump(load(main)) == before
    assert dump(model) == before


def test_the_threshold_counts_the_whole_file(tmp_path: Path) -> None:
    model = small_model()
    whole = len(to_proto(model).SerializeToString())
    assert len(save(model, tmp_path / "a.onnx", external_threshold=whole + 512)) == 1
    assert len(save(model, tmp_path / "b.onnx", external_threshold=whole - 512)) == 2


def test_the_ir_version_is_the_inputs_unless_what_is_held_needs_more(tmp_path: Path) -> None:
    model = small_model()
    assert load(save(model, tmp_path / "a.onnx")[0]).ir_version == 8
    model.graph.add_constant("four", np.ones(3, ml_dtypes.int4))
    assert load(save(model, tmp_path / "b.onnx")[0]).ir_version == 10
    assert model.ir_version == 8


def test_an_existing_output_is_kept_unless_forced(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"precious")
    with pytest.raises(UsageError, match="already exists; choose another output, or --force"):
        save(small_model(), path)
    assert path.read_bytes() == b"precious"
    save(small_model(), path, force=True)
    assert load(path).graph.nodes


def test_an_existing_data_file_is_kept_unless_forced(tmp_path: Path) -> None:
    data = tmp_path / "m.onnx.data"
    data.write_bytes(b"precious")
    with pytest.raises(UsageError, match=r"m\.onnx\.data' already exists"):
        save(small_model(), tmp_path / "m.onnx", external_threshold=0)
    assert list(tmp_path.iterdir()) == [data]
    assert len(save(small_model(), tmp_path / "m.onnx", external_threshold=0, force=True)) == 2
    assert load(tmp_path / "m.onnx").graph.nodes


@pytest.mark.parametrize("kind", ["same", "symlink", "hard link", "other spelling"])
def test_the_input_is_never_replaced_even_if_forced(tmp_path: Path, kind: str) -> None:
    path = write(SOUND, tmp_path / "in.onnx")
    output = tmp_path / "out.onnx"
    if kind == "same":
        output = path
    elif kind == "symlink":
        output.symlink_to(path)
    elif kind == "hard link":
        output.hardlink_to(path)
    else:
        output = tmp_path / "." / ".." / tmp_path.name / "in.onnx"
    before = path.read_bytes()
    with pytest.raises(UsageError, match="the model is read from it"):
        save(load(path), output, force=True)
    assert path.read_bytes() == before


def test_the_inputs_data_file_is_never_replaced_even_if_forced(tmp_path: Path) -> None:
    (tmp_path / "out.onnx.data").write_bytes(weight(16).tobytes())
    model = load(write(external_proto("out.onnx.data"), tmp_path / "in.onnx"))
    with pytest.raises(UsageError, match="the model is read from it"):
        save(model.clone(), tmp_path / "out.onnx", external_threshold=0, force=True)
    assert not (tmp_path / "out.onnx").exists()
    assert (tmp_path / "out.onnx.data").read_bytes() == weight(16).tobytes()


def test_places_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, reason in {
        tmp_path / "missing" / "m.onnx": "there is no folder",
        tmp_path / "file" / "m.onnx": "there is no folder",
        tmp_path: "it is a folder",
        Path("/dev/null"): "not an ordinary file",
        tmp_path / ("n" * 5000): "[Nn]ame too long",
        tmp_path / "nul\0": "zero byte",
    }.items():
        with pytest.raises(UsageError, match=reason):
            save(small_model(), path, force=True)
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_folder_without_leave_to_write_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UsageError, match="is not writable"):
        save(small_model(), tmp_path / "m.onnx")


def failing(error: BaseException, after: int) -> Callable[..., None]:
    calls = [0]

    def fail(*_: object) -> None:
        calls[0] += 1
        if calls[0] > after:
            raise error

    return fail


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize("existing", [True, False])
def test_a_failure_before_the_files_are_on_the_disk_leaves_everything_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, after: int, existing: bool
) -> None:
    path = tmp_path / "m.onnx"
    if existing:
        save(small_model(8), path, external_threshold=0)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    monkeypatch.setattr(os, "fsync", failing(error, after))
    with pytest.raises((UsageError, KeyboardInterrupt)) as caught:
        save(small_model(), path, external_threshold=0, force=True)
    if isinstance(error, OSError):
        assert str(caught.value).endswith("No space left on device; nothing was written")
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
@pytest.mark.parametrize("failing_call", [0, 1])
@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize("hard_links", [True, False])
def test_a_failure_between_two_renames_takes_the_first_one_back(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    failing_call: int,
    existing: bool,
    hard_links: bool,
) -> None:
    path = tmp_path / "m.onnx"
    if existing:
        save(small_model(32), path, external_threshold=0)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    replace = Path.replace
    calls = [0]

    def fail(self: Path, target: Path) -> Path:
        if self.suffix == ".tmp":
            calls[0] += 1
            if calls[0] > failing_call:
                raise error
        return replace(self, target)

    def no_links(self: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "replace", fail)
    if not hard_links:
        monkeypatch.setattr(Path, "hardlink_to", no_links)
    with pytest.raises((UsageError, KeyboardInterrupt)):
        save(small_model(), path, external_threshold=0, force=True)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.skipif(sys.platform == "win32", reason="the system has no limits on file sizes")
def test_a_disk_that_fills_up_while_writing_leaves_nothing(tmp_path: Path) -> None:
    script = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from onnxcomp.errors import UsageError
from onnxcomp.ir.files import save
from tests.ir.helpers import small_model
resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))
for threshold in (0, 2**30):
    try:
        save(small_model(), sys.argv[1], external_threshold=threshold)
    except UsageError as problem:
        assert "nothing was written" in str(problem), problem
    else:
        raise SystemExit("it fitted")
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "m.onnx")], check=True, cwd=ROOT)
    assert not list(tmp_path.iterdir())


def test_saved_files_have_the_permissions_that_others_have(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    for file in save(small_model(), tmp_path / "m.onnx", external_threshold=0):
        assert file.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_nothing_is_written_to_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    save(small_model(), "../there/m.onnx", external_threshold=0)
    load("../there/m.onnx")
    assert not list((tmp_path / "here").iterdir())


def test_a_name_that_cannot_be_referred_to_is_refused_for_external_data(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot name external data"):
        save(small_model(), tmp_path / "c:m.onnx", external_threshold=0)
    assert not list(tmp_path.iterdir())
