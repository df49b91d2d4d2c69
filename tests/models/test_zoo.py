"""The shipped zoo is what its README says."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxcomp.analysis.cost import model_cost
from onnxcomp.ir import from_proto
from onnxcomp.runtime.observe import observe_shapes

Array = NDArray[Any]

ZOO = Path(__file__).parents[2] / "models"
POST_NORM = ("digits_resnet", "digits_mobilenet", "digits_vgg", "digits_shufflenet", "digits_unet")
"""Nets with BatchNormalization behind their convolutions; in the DenseNet it stands before them."""

NETS = (*POST_NORM, "digits_densenet", "digits_mlp", "digits_lstm", "digits_vit")
ONE_MEGABYTE = 1_000_000
INNER_CHANNELS = {
    "digits_resnet": (r"block\d\.norm1\.(weight|bias)", 12),
    "digits_mobilenet": (r"depthwise\.norm\.(weight|bias)", 10),
    "digits_vgg": (r"stage\d\.1\.(weight|bias)|hidden\.(weight|bias)", 8),
    "digits_densenet": (r"layers\.\d\.norm2\.(weight|bias)", 24),
    "digits_shufflenet": (r"depthwise\.norm\.(weight|bias)", 12),
    "digits_unet": (r"(encode\d|middle|decode\d)\.0\.norm\.(weight|bias)", 10),
    "digits_mlp": (r"layer[12]\.(weight|bias)", 4),
}
"""What makes inner channels: a pattern of initializer names, and how many it must find."""

INNER_NODES = {
    "digits_lstm": (r"LSTM", 2),
    "digits_vit": (r"(attention/project|narrow)/MatMul", 4),
}
"""Nets whose inner channels are found at nodes instead: LSTM by its hidden units, MatMul by what it reads."""


def load(net: str) -> onnx.ModelProto:
    return onnx.load(ZOO / f"{net}.onnx")


def samples(name: str) -> tuple[NDArray[np.float32], dict[str, Any]]:
    with np.load(ZOO / name, allow_pickle=False) as archive:
        arrays = dict(archive)
    table = json.loads(str(arrays["preprocess"]))
    mean, std = (np.array(table[key], np.float32) for key in ("mean", "std"))
    scaled = (arrays["image"].astype(np.float32) * np.float32(table["scale"]) - mean) / std
    return scaled.transpose(0, 3, 1, 2), arrays


def outputs(model: onnx.ModelProto, images: NDArray[np.float32]) -> NDArray[np.float32]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": images})[0])


def regions(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return 0 outside, 1 on the stroke, 2 in a hole, by flooding images `[n, 8, 8, 1]` from outside; `[n, 8, 8]`."""
    stroke = images[..., 0] > 5
    blank = np.pad(~stroke, ((0, 0), (1, 1), (1, 1)), constant_values=True)
    wet = np.zeros_like(blank)
    wet[:, 0, 0] = True
    for _ in range(100):
        for axis in (1, 2):
            for way in (-1, 1):
                wet |= np.roll(wet, way, axis) & blank
    return np.where(stroke, 1, np.where(wet[:, 1:-1, 1:-1], 0, 2))


def quality(net: str, model: onnx.ModelProto) -> float:
    """Return the accuracy of a classifier; of the segmentation, the mean over regions of intersection over union."""
    images, arrays = samples("digits_evaluation.npz")
    said = outputs(model, images).argmax(1)
    if net != "digits_unet":
        return float((said == arrays["labels"]).mean())
    right = regions(arrays["image"])
    both = [(said == region, right == region) for region in range(3)]
    return float(np.mean([(one & other).sum() / (one | other).sum() for one, other in both]))


def readme_row(net: str) -> re.Match[str]:
    row = re.search(
        rf"^\| `{net}\.onnx` \|.*\| ([\d,]+) \| ([\d,]+) \| ([\d.]+) %( mean IoU)? \|$",
        (ZOO / "README.md").read_text(),
        re.MULTILINE,
    )
    assert row
    return row


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
    output = ("regions", ["batch", 3, 8, 8]) if net == "digits_unet" else ("logits", ["batch", 10])
    assert [(v.name, shape_of(v)) for v in model.graph.output] == [output]
    assert model.doc_string
    assert {"dataset", "licence"} <= {p.key for p in model.metadata_props}
    names = [node.name for node in model.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("net", NETS)
def test_readme_gives_the_size_and_the_work(net: str) -> None:
    row = readme_row(net)
    assert int(row[1].replace(",", "")) == (ZOO / f"{net}.onnx").stat().st_size
    model = from_proto(load(net))
    shapes = observe_shapes(model, {"image": np.zeros((1, 1, 8, 8), np.float32)})
    assert int(row[2].replace(",", "")) == model_cost(model, shapes).macs


@pytest.mark.parametrize("net", NETS)
def test_nodes_share_no_weights(net: str) -> None:
    model = load(net)
    stored = {i.name for i in model.graph.initializer}
    read = [name for node in model.graph.node for name in node.input if name in stored]
    assert sorted(read) == sorted(stored)


@pytest.mark.parametrize("net", POST_NORM)
def test_every_convolution_outside_a_gate_is_followed_by_its_own_batchnorm(net: str) -> None:
    nodes = load(net).graph.node
    normalised = {node.input[0] for node in nodes if node.op_type == "BatchNormalization"}
    convolutions = [n for n in nodes if n.op_type in {"Conv", "ConvTranspose"}]
    bare = [n.name for n in convolutions if n.output[0] not in normalised]
    assert normalised
    assert all("/squeeze_excite/" in name or name == "/regions/Conv" for name in bare)


def test_first_nets_hold_the_structures_that_they_are_shipped_for() -> None:
    names = ("digits_resnet", "digits_mobilenet", "digits_mlp")
    resnet, mobilenet, mlp = (load(net).graph.node for net in names)
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


def test_vgg_pools_by_maximum_and_flattens_more_than_one_pixel_into_its_gemm() -> None:
    model = load("digits_vgg")
    ops = [node.op_type for node in model.graph.node]
    assert (ops.count("Conv"), ops.count("MaxPool"), ops.count("Flatten"), ops.count("Gemm")) == (6, 2, 1, 2)
    shapes = {i.name: list(i.dims) for i in model.graph.initializer}
    assert shapes["hidden.weight"][1] == 4 * shapes["stage3.3.weight"][0]
    assert all(len(node.input) == 3 for node in model.graph.node if node.op_type == "Conv")


def test_densenet_normalises_concatenations_that_grow() -> None:
    nodes = load("digits_densenet").graph.node
    makers = {node.output[0]: node for node in nodes}
    normalised = [makers[n.input[0]] for n in nodes if n.op_type == "BatchNormalization"]
    joined = [len(maker.input) for maker in normalised if maker.op_type == "Concat"]
    assert {1, 2, 3, 4} < set(joined)
    before = {makers[n.input[0]].op_type for n in nodes if n.op_type == "Conv" and n.input[0] in makers}
    assert before == {"Relu"}


def test_shufflenet_splits_and_shuffles_its_channels() -> None:
    nodes = load("digits_shufflenet").graph.node
    makers = {node.output[0]: node for node in nodes}
    assert [n.op_type for n in nodes].count("Split") == 4
    shuffles = [n for n in nodes if n.op_type == "Transpose"]
    for transpose in shuffles:
        reshape = makers[transpose.input[0]]
        readers = [n.op_type for n in nodes if transpose.output[0] in n.input]
        assert (makers[reshape.input[0]].op_type, reshape.op_type, readers) == (
            "Concat",
            "Reshape",
            ["Reshape"],
        )
    assert len(shuffles) == 6


def test_unet_steps_up_in_two_ways_and_reads_what_it_had_before() -> None:
    nodes = load("digits_unet").graph.node
    makers = {node.output[0]: node for node in nodes}
    ops = [node.op_type for node in nodes]
    assert (ops.count("ConvTranspose"), ops.count("Resize")) == (1, 1)
    joins = [n.input for n in nodes if n.op_type == "Concat" and makers[n.input[0]].op_type != "Constant"]
    assert [(makers[up].name, makers[before].name) for up, before in joins] == [
        ("/up2_relu/Relu", "/encode2/encode2.1/act/Relu"),
        ("/up1_narrow/act/Relu", "/encode1/encode1.1/act/Relu"),
    ]


def test_lstm_reads_both_ways_and_then_forward_from_states_of_zero() -> None:
    model = load("digits_lstm")
    lstms = [node for node in model.graph.node if node.op_type == "LSTM"]
    shapes = {i.name: list(i.dims) for i in model.graph.initializer}
    assert [shapes[node.input[2]] for node in lstms] == [[2, 192, 48], [1, 256, 64]]
    makers = {node.output[0]: node.op_type for node in model.graph.node}
    assert {makers[name] for node in lstms for name in node.input[5:7]} == {"ConstantOfShape"}


def test_vit_makes_queries_keys_and_values_by_one_matmul() -> None:
    model = load("digits_vit")
    shapes = {i.name: list(i.dims) for i in model.graph.initializer}
    ops = [node.op_type for node in model.graph.node]
    assert (ops.count("LayerNormalization"), ops.count("Softmax"), ops.count("Erf")) == (5, 2, 2)
    fused = [shapes[n.input[1]] for n in model.graph.node if n.name.endswith("/qkv/MatMul")]
    assert fused == [[64, 192], [64, 192]]


@pytest.mark.parametrize("net", NETS)
def test_batch_axis_is_dynamic(net: str) -> None:
    images, _ = samples("digits_calibration.npz")
    model = load(net)
    whole = outputs(model, images[:7])
    apart = np.concatenate([outputs(model, images[:1]), outputs(model, images[1:7])])
    np.testing.assert_allclose(apart, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("net", NETS)
def test_quality_is_high_and_is_the_one_in_the_readme(net: str) -> None:
    row = readme_row(net)
    assert bool(row[4]) == (net == "digits_unet")
    measured = quality(net, load(net))
    assert measured >= 0.97
    # Half of one image in 450, and the rounding of the table.
    assert measured * 100 == pytest.approx(float(row[3]), abs=0.16)


def test_zeros_have_holes_and_ones_have_none() -> None:
    _, arrays = samples("digits_evaluation.npz")
    holes = (regions(arrays["image"]) == 2).any((1, 2))
    assert holes[arrays["labels"] == 0].all()
    assert not holes[arrays["labels"] == 1].any()


def inner_channels(net: str, model: onnx.ModelProto) -> dict[str, Callable[[Array], Array]]:
    """Return the initializers that make inner channels, or read them, and how to see an array with them in front."""
    pattern, expected = INNER_CHANNELS.get(net, ("$^", 0))
    views: dict[str, Callable[[Array], Array]] = {
        i.name: lambda array: array for i in model.graph.initializer if re.search(f"({pattern})$", i.name)
    }
    assert len(views) == expected
    pattern, expected = INNER_NODES.get(net, ("$^", 0))
    nodes = [node for node in model.graph.node if re.search(f"/{pattern}$", node.name)]
    assert len(nodes) == expected
    for node in nodes:
        if node.op_type == "LSTM":
            hidden = next(a.i for a in node.attribute if a.name == "hidden_size")
            # Rows of all gates in turn: a unit with zero rows keeps a state of zero, and says zero.
            views |= {name: partial(units_in_front, hidden=hidden) for name in node.input[1:4]}
        else:
            views[node.input[1]] = lambda array: array
    return views


def units_in_front(array: Array, hidden: int) -> Array:
    """Return a view of `[directions, gates * hidden, ...]` as `[hidden, directions, gates, ...]`."""
    return np.moveaxis(array.reshape(len(array), -1, hidden, *array.shape[2:]), 2, 0)


def silence_half(net: str, model: onnx.ModelProto) -> None:
    """Zero a random half of the inner channels in `model`."""
    views = inner_channels(net, model)
    for initializer in model.graph.initializer:
        if initializer.name in views:
            array = numpy_helper.to_array(initializer).copy()
            channels = views[initializer.name](array)
            # Seeded by the length alone, so that weight and bias lose the same channels.
            channels[np.random.default_rng(0).permutation(len(channels))[: len(channels) // 2]] = 0
            initializer.CopyFrom(numpy_helper.from_array(array, initializer.name))


@pytest.mark.parametrize("net", NETS)
def test_silencing_half_of_the_inner_channels_costs_quality(net: str) -> None:
    model = load(net)
    silence_half(net, model)
    assert quality(net, model) < quality(net, load(net)) - 0.1


@pytest.mark.parametrize("net", [*POST_NORM, "digits_densenet"])
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
