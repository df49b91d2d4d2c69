"""External data: only ordinary files below the model's folder are read, and only as far as they go."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxcomp.errors import ModelError
from onnxcomp.ir.external import why_unsafe
from onnxcomp.ir.files import adopt, load, save
from onnxcomp.ir.text import dump
from tests.ir.helpers import branch, external_proto, parsed, weight, write

WEIGHTS = weight(16)
SECRET = weight(16, seed=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a sound data file, beside one that no model may read."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.bin").write_bytes(SECRET.tobytes())
    (tmp_path / "model" / "sub").mkdir(parents=True)
    (tmp_path / "model" / "w.bin").write_bytes(WEIGHTS.tobytes())
    (tmp_path / "model" / "sub" / "w.bin").write_bytes(WEIGHTS.tobytes())
    return tmp_path / "model"


def read(proto: ModelProto, folder: Path, *, allow_links: bool = False) -> NDArray[np.float32]:
    model = load(write(proto, folder / "m.onnx"), allow_links=allow_links)
    values: NDArray[np.float32] = model.graph.constants["w"].values
    return values


@pytest.mark.parametrize("location", ["w.bin", "./w.bin", "sub/w.bin", "sub//w.bin"])
def test_files_below_the_model_are_read(folder: Path, location: str) -> None:
    assert np.array_equal(read(external_proto(location), folder), WEIGHTS)


def test_offset_and_length_choose_the_bytes(folder: Path) -> None:
    (folder / "long.bin").write_bytes(bytes(3) + WEIGHTS.tobytes() + bytes(5))
    assert np.array_equal(read(external_proto("long.bin", offset=3, length=64), folder), WEIGHTS)
    assert np.array_equal(read(external_proto("long.bin", offset=3), folder), WEIGHTS)


def test_weights_are_mapped_and_not_copied(folder: Path) -> None:
    values = read(external_proto("w.bin"), folder)
    base: object = values
    while isinstance(base, np.ndarray):
        assert not base.flags.owndata
        base = base.base
    assert isinstance(base, memoryview)
    assert isinstance(base.obj, mmap.mmap)
    assert not values.flags.writeable


UNSAFE = {
    "../outside/secret.bin": "outside the model's folder",
    "sub/../../outside/secret.bin": "outside the model's folder",
    "sub/../w.bin": "outside the model's folder",
    "..\\outside\\secret.bin": "outside the model's folder",
    "/etc/hostname": "an absolute path",
    "\\\\server\\share\\w.bin": "an absolute path",
    "C:\\w.bin": "an absolute path",
    "c:w.bin": "an absolute path",
    "w.bin\x00.txt": "control characters",
    "w\n.bin": "control characters",
    "missing.bin": "no file",
    "sub": "is a folder|not an ordinary file",
    "sub/": "is a folder|not an ordinary file",
    "w.bin/w.bin": "cannot be read",
    "": "does not say which",
    "a" * 5000: "[Nn]ame too long",
}


@pytest.mark.parametrize("allow_links", [False, True])
@pytest.mark.parametrize("location", UNSAFE)
def test_other_places_are_refused_whatever_is_allowed(folder: Path, location: str, allow_links: bool) -> None:
    with pytest.raises(ModelError, match=UNSAFE[location]) as caught:
        read(external_proto(location), folder, allow_links=allow_links)
    assert "'w'" in str(caught.value)
    assert "\n" not in str(caught.value)


def file_link(folder: Path) -> str:
    (folder / "link.bin").symlink_to(folder.parent / "outside" / "secret.bin")
    return "link.bin"


def inner_link(folder: Path) -> str:
    (folder / "inner.bin").symlink_to("w.bin")
    return "inner.bin"


def folder_link(folder: Path) -> str:
    (folder / "far").symlink_to(folder.parent / "outside")
    return "far/secret.bin"


def hard_link(folder: Path) -> str:
    (folder / "hard.bin").hardlink_to(folder.parent / "outside" / "secret.bin")
    return "hard.bin"


@pytest.mark.parametrize("make", [file_link, inner_link, folder_link, hard_link])
def test_links_are_read_only_if_they_are_allowed(folder: Path, make: Callable[[Path], str]) -> None:
    location = make(folder)
    with pytest.raises(ModelError, match=r"link; if you trust it, use --allow-links"):
        read(external_proto(location), folder)
    allowed = read(external_proto(location), folder, allow_links=True)
    assert np.array_equal(allowed, WEIGHTS if make is inner_link else SECRET)


def test_a_model_that_is_a_link_itself_needs_no_leave(folder: Path) -> None:
    path = write(external_proto("w.bin"), folder / "m.onnx")
    (folder / "latest.onnx").symlink_to(path)
    assert np.array_equal(load(folder / "latest.onnx").graph.constants["w"].values, WEIGHTS)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no FIFOs")
def test_a_fifo_is_refused_without_waiting(folder: Path) -> None:
    os.mkfifo(folder / "pipe.bin")
    with pytest.raises(ModelError, match="not an ordinary file"):
        read(external_proto("pipe.bin"), folder)


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"offset": -4}, "offset '-4', which is not a whole number"),
        ({"offset": "4.0"}, "offset '4.0'"),
        ({"offset": "1_0"}, "offset '1_0'"),
        ({"offset": "٣"}, "which is not a whole number"),
        ({"offset": ""}, "which is not a whole number"),
        ({"offset": "9" * 5000}, "which is not a whole number"),
        ({"length": -64}, "length '-64'"),
        ({"offset": 1}, "ends at byte 65 of 'w.bin', which has 64"),
        ({"offset": 2**64 - 64}, "which has 64"),
        ({"offset": 2**64}, "which has 64"),
        ({"offset": 2**63, "length": 64}, "which has 64"),
        ({"length": 32}, "needs 64 bytes; its external data has the length 32"),
        ({"length": 2**60}, "has the length"),
        ({"shape": "4"}, "unknown external data key 'shape'"),
        ({"__class__": "x"}, "unknown external data key '__class__'"),
        ({"checksum": "0" * 40}, "does not match its checksum"),
    ],
)
def test_impossible_places_are_refused_by_the_tensors_name(
    folder: Path, entries: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ModelError, match=reason) as caught:
        read(external_proto("w.bin", **entries), folder)
    assert "'w'" in str(caught.value)


def test_a_key_that_comes_twice_is_refused(folder: Path) -> None:
    proto = external_proto("w.bin")
    proto.graph.initializer[0].external_data.add(key="location", value="sub/w.bin")
    with pytest.raises(ModelError, match="two external data entries 'location'"):
        read(proto, folder)


def test_a_file_too_short_for_its_tensor_is_refused(folder: Path) -> None:
    (folder / "w.bin").write_bytes(WEIGHTS.tobytes()[:-1])
    with pytest.raises(ModelError, match="which has 63; the file is cut short"):
        read(external_proto("w.bin"), folder)


def test_a_huge_shape_is_refused_before_memory_is_taken(folder: Path) -> None:
    with pytest.raises(ModelError, match="which has 64"):
        read(external_proto("w.bin", dims=(2**40,)), folder)
    with pytest.raises(ModelError, match="impossible shape"):
        read(external_proto("w.bin", dims=(2**62, 4)), folder)


def test_a_right_checksum_is_accepted(folder: Path) -> None:
    digest = hashlib.sha1(WEIGHTS.tobytes(), usedforsecurity=False).hexdigest()
    assert np.array_equal(read(external_proto("w.bin", checksum=digest.upper()), folder), WEIGHTS)


def test_where_the_file_was_written_is_not_followed(folder: Path) -> None:
    outside = str(folder.parent / "outside")
    assert np.array_equal(read(external_proto("w.bin", basepath=outside), folder), WEIGHTS)


def two_tensors(second_offset: int) -> ModelProto:
    proto = external_proto("w.bin", dims=(8,), length=32)
    twin = TensorProto()
    twin.CopyFrom(proto.graph.initializer[0])
    twin.name = "v"
    twin.external_data.add(key="offset", value=str(second_offset))
    proto.graph.initializer.append(twin)
    return proto


def test_tensors_may_share_all_their_bytes_or_none(folder: Path) -> None:
    assert np.array_equal(read(two_tensors(0), folder), WEIGHTS[:8])
    assert np.array_equal(read(two_tensors(32), folder), WEIGHTS[:8])


def test_tied_weights_stay_one_piece_when_they_are_saved(folder: Path) -> None:
    (folder / "w.bin").write_bytes(weight(4096).tobytes())
    proto = external_proto("w.bin", dims=(4096,))
    twin = TensorProto()
    twin.CopyFrom(proto.graph.initializer[0])
    twin.name = "v"
    proto.graph.initializer.append(twin)
    model = load(write(proto, folder / "m.onnx"))
    main, data = save(model, folder / "out.onnx", external_threshold=0)
    assert data.stat().st_size == 4 * 4096
    assert dump(load(main)) == dump(model)


def test_tensors_that_overlap_in_part_are_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match="'w' and 'v' overlap"):
        read(two_tensors(16), folder)


def test_an_empty_tensor_needs_no_bytes(folder: Path) -> None:
    (folder / "empty.bin").touch()
    assert read(external_proto("empty.bin", dims=(0, 3)), folder).shape == (0, 3)


@pytest.mark.parametrize("name", ["INT4", "BFLOAT16", "FLOAT8E4M3FN", "BOOL", "DOUBLE"])
def test_every_element_type_is_read_from_outside(folder: Path, name: str) -> None:
    inline = helper.make_tensor("w", TensorProto.DataType.Value(name), [5], [1, 0, 1, 1, 0])
    values = numpy_helper.to_array(inline)
    (folder / "t.bin").write_bytes(numpy_helper.from_array(values).raw_data)
    proto = external_proto("t.bin", dims=(5,))
    proto.graph.initializer[0].data_type = inline.data_type
    assert np.array_equal(read(proto, folder), values)


def test_strings_do_not_lie_outside(folder: Path) -> None:
    proto = external_proto("w.bin", dims=(1,))
    proto.graph.initializer[0].data_type = TensorProto.STRING
    with pytest.raises(ModelError, match="'w' keeps strings in another file"):
        read(proto, folder)


def test_external_data_of_subgraphs_is_pulled_in_under_the_same_rules(folder: Path) -> None:
    def nested(location: str) -> ModelProto:
        then = branch("then", "Add", "x", "t")
        then.node[0].input.append("w")
        then.initializer.append(external_proto(location).graph.initializer[0])
        proto = parsed("g (bool b, float[16] x) => (float[16] y) { y = Relu(x) }")
        proto.graph.node[0].CopyFrom(
            helper.make_node(
                "If", ["b"], ["y"], then_branch=then, else_branch=branch("else", "Neg", "x", "e")
            )
        )
        return proto

    model = load(write(nested("w.bin"), folder / "m.onnx"))
    inner = model.graph.nodes[0].attrs["then_branch"].g.initializer[0]
    assert np.array_equal(numpy_helper.to_array(inner), WEIGHTS)
    assert not inner.external_data
    assert model.sources == (folder / "m.onnx", folder / "w.bin")
    with pytest.raises(ModelError, match="outside the model's folder"):
        load(write(nested("../outside/secret.bin"), folder / "m.onnx"))


def test_a_model_in_memory_has_nothing_outside() -> None:
    with pytest.raises(ModelError, match="'w' keeps its data in another file; load the model from its path"):
        adopt(external_proto("w.bin"))


def test_names_of_data_files_are_judged_before_anything_is_opened() -> None:
    assert why_unsafe("small.onnx.data") is None
    assert why_unsafe("a/b.data") is None
    assert why_unsafe("../b.data") is not None
