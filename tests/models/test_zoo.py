"""The shipped zoo is what its README says."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

ZOO = Path(__file__).parents[2] / "models"
NETS = ("digits_resnet", "digits_mobilenet", "digits_mlp")
CNNS = NETS[:2]
ONE_MEGABYTE = 1_000_000
INNER_CHANNELS = {
    "digits_resnet": r"block\d\.norm1\.(weight|bias)",
    "digits_mobilenet": r"depthwise\.norm\.(weight|bias)",
    "digits_mlp": r"layer[12]\.(weight|bias)",
}


def load(net: str) -> onnx.ModelProto:
    return onnx.load(ZOO / f"{net}.onnx")


def samples(name: str) -> tuple[NDArray[np.float32], dict[str, Any]]:
    with np.load(ZOO / name, allow_pickle=False) as archive:
        arrays = dict(archive)
    table = json.loads(str(arrays["preprocess"]))
    mean, std = (np.array(table[key], np.float32) for key in ("mean", "std"))
    scaled = (arrays["image"].astype(np.float32) * np.float32(table["scale"]) - mean) / std
    return scaled.transpose(0, 3, 1, 2), arrays


def logits(model: onnx.ModelProto, images: NDArray[np.float32]) -> NDArray[np.float32]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], {"image": images})[0])


def accuracy(model: onnx.ModelProto) -> float:
    images, arrays = samples("digits_evaluation.npz")
    return float((logits(model, images).argmax(1) == arrays["labels"]).mean())


def shape_of(value: onnx.ValueInfoProto) -> list[int | str]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def test_checksums_cover_every_data_file_and_match() -> None:
    lines = (ZOO / "SHA256SUMS").read_text().splitlines()
    recorded = {name: digest for digest, name in (line.split("  ") for line in lines)}
    shipped = {p.name for pattern in ("*.onnx", "*.npz") for p in ZOO.glob(pattern)}
    assert set(recorded) == shipped
    assert recorded == {name: hashlib.sha256((ZOO / name).read_bytes()).hexdigest() for name in shipped}


@pytest.mark.parametrize("net", NETS)
def test_net_is_small_and_passes_the_full_check(net: str) -> None:
    assert (ZOO / f"{net}.onnx").stat().st_size < ONE_MEGABYTE
    onnx.checker.check_model(load(net), full_check=True)


@pytest.mark.parametrize("net", NETS)
def test_net_declares_the_agreed_interface_and_metadata(net: str) -> None:
    model = load(net)
    assert (model.ir_version, [(o.domain, o.version) for o in model.opset_import]) == (8, [("", 17)])
    assert [(v.name, shape_of(v)) for v in model.graph.input] == [("image", ["batch", 1, 8, 8])]
    assert [(v.name, shape_of(v)) for v in model.graph.output] == [("logits", ["batch", 10])]
    assert model.doc_string
    assert {"dataset", "licence"} <= {p.key for p in model.metadata_props}
    names = [node.name for node in model.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("net", CNNS)
def test_every_convolution_outside_a_gate_is_followed_by_its_own_batchnorm(net: str) -> None:
    nodes = load(net).graph.node
    normalised = {node.input[0] for node in nodes if node.op_type == "BatchNormalization"}
    bare = [n.name for n in nodes if n.op_type == "Conv" and n.output[0] not in normalised]
    assert normalised
    assert all("/squeeze_excite/" in name for name in bare)


def test_nets_hold_the_structures_that_they_are_shipped_for() -> None:
    resnet, mobilenet, mlp = (load(net).graph.node for net in NETS)
    additions = [node.input for node in resnet if node.op_type == "Add"]
    projected = [names for names in additions if any("/shortcut/" in name for name in names)]
    assert 0 < len(projected) < len(additions)
    ops = {node.op_type for node in mobilenet}
    assert {"Clip", "GlobalAveragePool", "HardSigmoid", "Mul", "Add"} <= ops
    groups = [
        a.i for node in mobilenet if node.op_type == "Conv" for a in node.attribute if a.name == "group"
    ]
    assert max(groups) > 1
    assert [node.op_type for node in mlp].count("Gemm") == 3


@pytest.mark.parametrize("net", NETS)
def test_batch_axis_is_dynamic(net: str) -> None:
    images, _ = samples("digits_calibration.npz")
    model = load(net)
    whole = logits(model, images[:7])
    apart = np.concatenate([logits(model, images[:1]), logits(model, images[1:7])])
    np.testing.assert_allclose(apart, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("net", NETS)
def test_accuracy_is_high_and_is_the_one_in_the_readme(net: str) -> None:
    row = re.search(rf"`{net}\.onnx` \|.*\| ([\d.]+) % \|$", (ZOO / "README.md").read_text(), re.MULTILINE)
    assert row
    measured = accuracy(load(net))
    assert measured >= 0.97
    # Half of one image in 450, and the rounding of the table.
    assert measured * 100 == pytest.approx(float(row[1]), abs=0.16)


@pytest.mark.parametrize("net", NETS)
def test_silencing_half_of_the_inner_channels_costs_accuracy(net: str) -> None:
    model = load(net)
    silenced = 0
    for initializer in model.graph.initializer:
        if re.search(INNER_CHANNELS[net] + "$", initializer.name):
            array = numpy_helper.to_array(initializer).copy()
            # Seeded by the length alone, so that weight and bias lose the same channels.
            array[np.random.default_rng(0).permutation(len(array))[: len(array) // 2]] = 0
            initializer.CopyFrom(numpy_helper.from_array(array, initializer.name))
            silenced += 1
    assert silenced >= 4
    assert accuracy(model) < accuracy(load(net)) - 0.1


@pytest.mark.parametrize("net", CNNS)
def test_no_channel_is_dead(net: str) -> None:
    model = load(net)
    arrays = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            scale = np.abs(arrays[node.input[1]])
            assert scale.min() > 0.01 * scale.max(), node.name


def test_calibration_and_evaluation_share_preprocessing_but_no_image() -> None:
    _, calibration = samples("digits_calibration.npz")
    _, evaluation = samples("digits_evaluation.npz")
    assert set(calibration) == {"image", "preprocess"}
    assert set(evaluation) == {"image", "labels", "preprocess"}
    assert str(calibration["preprocess"]) == str(evaluation["preprocess"])
    assert evaluation["labels"].dtype == np.int64
    assert np.bincount(evaluation["labels"]).min() >= 40
    seen, held_out = ({x.tobytes() for x in arrays["image"]} for arrays in (calibration, evaluation))
    assert (len(seen), len(held_out)) == (512, 450)
    assert not seen & held_out
