"""Samples made from the model itself: what they match, what they fit, and what they are refused for."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxcomp.compiler.passbase import Context
from onnxcomp.compiler.run.synthetic_samples import Made, check_makeable, make_samples
from onnxcomp.errors import UsageError
from onnxcomp.ir.graph import Array
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.ir.proto import from_proto
from onnxcomp.ir.segment import with_outputs
from onnxcomp.passes.fold_batchnorm import FoldBatchnorm
from onnxcomp.runtime.inputs import Shapes, noise
from onnxcomp.runtime.session import Session
from tests.support.pruning import zoo
from tests.support.text import net


def made_for(model: Model, shapes: Shapes, **given: Any) -> Made:
    return make_samples(model, Context(model, data_mode="none", input_shapes=shapes, threads=1, **given))


def arrays(made: Made) -> dict[str, Array]:
    batches = list(made.samples.batches(64))
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def misfit(model: Model, feeds: dict[str, Array]) -> float:
    """How far the means before BatchNormalization are off: root mean square, in deviations."""
    nodes = [n for n in model.graph.nodes if n.op == "BatchNormalization"]
    names = [n.inputs[0].name for n in nodes]
    found = Session(with_outputs(model, names), threads=1).run(feeds, names)
    off = []
    for node in nodes:
        mean, variance = node.constant(3), node.constant(4)
        assert mean is not None and variance is not None
        value = found[node.inputs[0].name]
        seen = value.mean(tuple(a for a in range(value.ndim) if a != 1))
        off.append(np.mean((seen - mean) ** 2 / (variance + 1e-3 * np.median(variance))))
    return float(np.sqrt(np.mean(off)))


def test_made_images_meet_the_statistics_that_noise_misses() -> None:
    model = zoo("digits_resnet")
    steps: list[tuple[str, int, int]] = []
    made = made_for(model, {"image": (1, 1, 8, 8)}, progress=lambda *step: steps.append(step))
    feeds = arrays(made)
    assert feeds["image"].shape == (256, 1, 8, 8)
    assert misfit(model, feeds) < 0.1
    plain = noise(model, {"image": (256, 1, 8, 8)}, 0)
    assert misfit(model, plain) > 3 * misfit(model, feeds)
    assert made.note.startswith("data-free: 256 synthetic samples, images of ")
    assert "fitted to 15 BatchNormalization statistics: means are off by " in made.note
    assert steps[-1] == ("making synthetic samples", 40, 40)
    facts = made.facts
    assert (facts.role, facts.mode, facts.samples, facts.labelled) == ("calibration", "none", 256, False)
    assert facts.sha256 == made.samples.digest()


def test_without_batchnormalization_images_are_as_drawn_and_the_note_says_so() -> None:
    resnet = zoo("digits_resnet")
    folded = FoldBatchnorm().run(resnet.clone(), Context(resnet)).model
    made = made_for(folded, {"image": (1, 1, 8, 8)})
    assert "the model has no BatchNormalization that would show what it was trained on" in made.note
    images = arrays(made)["image"]
    assert abs(float(images.mean())) < 0.01 and float(images.std()) == pytest.approx(1, abs=0.01)


CONV = "c = Conv <pads = [1,1,1,1]> (x, w) b = BatchNormalization(c, s, o, m, v) y = Relu(b)"
PIXELS = "float[8,3,3,3] w, float[8] s, float[8] o, float[8] m, float[8] v"


def raw_pixels(signature: str, body: str) -> Model:
    """A network whose normalization remembers pixels of mean 120 and deviation 60, equal in all colours."""
    rng = np.random.default_rng(0)
    weight = np.abs(rng.standard_normal((8, 3, 3, 3))).astype(np.float32)
    sums = weight.sum((1, 2, 3))
    stored: dict[str, Array] = {"w": weight, "m": 120 * sums, "v": (60 * sums) ** 2}
    return parse_model(net(signature, PIXELS, body), stored)


def test_the_seed_decides_the_samples() -> None:
    model = raw_pixels("(float[N,3,8,8] x) => (float[N,8,8,8] y)", CONV)
    first, again, other = (
        made_for(model, {"x": (1, 3, 8, 8)}, seed=seed).samples.digest() for seed in (0, 0, 1)
    )
    assert first == again != other


def test_the_range_of_pixels_is_read_off_the_first_convolution() -> None:
    model = raw_pixels("(float[N,3,16,16] x) => (float[N,8,16,16] y)", CONV)
    images = arrays(made_for(model, {"x": (1, 3, 16, 16)}))["x"]
    assert images.mean() == pytest.approx(120, abs=20)
    # A kernel averages, so that pixels vary more than what the normalization remembers.
    assert 60 < images.std() < 120


def test_the_usual_ranges_are_tried_where_no_convolution_reads_the_input() -> None:
    # A scaling before the first convolution hides the range from it.
    model = raw_pixels(
        "(float[N,3,16,16] x) => (float[N,8,16,16] y)", "z = Neg(x) t = Neg(z) " + CONV.replace("(x,", "(t,")
    )
    made = made_for(model, {"x": (1, 3, 16, 16)})
    images = arrays(made)["x"]
    assert images.mean() == pytest.approx(120, abs=20)
    assert "not beyond" in made.note


def test_channels_may_stand_last() -> None:
    model = raw_pixels(
        "(float[N,16,16,3] x) => (float[N,8,16,16] y)",
        "t = Transpose <perm = [0,3,1,2]> (x) " + CONV.replace("(x,", "(t,"),
    )
    images = arrays(made_for(model, {"x": (1, 16, 16, 3)}))["x"]
    assert images.shape == (256, 16, 16, 3)
    assert images.mean() == pytest.approx(120, abs=20)
    # Neighbours along the height look alike, as they do in an image.
    steps = np.diff(images, axis=1).std() / images.std()
    assert steps < 0.8


def test_a_fixed_batch_is_filled() -> None:
    body = "b = BatchNormalization(x, s, o, m, v) y = Relu(b)"
    model = parse_model(
        net(
            "(float[7,3,8,8] x) => (float[7,3,8,8] y)",
            "float[3] s, float[3] o, float[3] m = {0.2,-0.3,0.1}, float[3] v = {1.5,1,0.6}",
            body,
        )
    )
    made = made_for(model, {"x": (7, 3, 8, 8)})
    assert len(made.samples) == 259
    images = arrays(made)["x"]
    np.testing.assert_allclose(images.mean((0, 2, 3)), [0.2, -0.3, 0.1], atol=0.05)
    np.testing.assert_allclose(images.var((0, 2, 3)), [1.5, 1, 0.6], rtol=0.15)


def test_vectors_are_noise_that_is_fitted_too() -> None:
    model = parse_model(
        net(
            "(float[N,6] x) => (float[N,4] y)",
            "float[6,4] w, float[4] s, float[4] o, float[4] m = {1,-1,0,2}, float[4] v = {1,2,1,0.5}",
            "g = Gemm(x, w) b = BatchNormalization(g, s, o, m, v) y = Relu(b)",
        )
    )
    made = made_for(model, {"x": (1, 6)})
    assert "normally distributed noise, fitted to 1 BatchNormalization" in made.note
    assert misfit(model, arrays(made)) < 0.3


def test_inputs_beside_the_image_are_noise() -> None:
    model = parse_model(
        net(
            "(float[N,2] side, float[N,3,8,8] x) => (float[N,5] y)",
            "float[3,3] w, float[5,5] v",
            "p = GlobalAveragePool(x) f = Flatten(p) g = Gemm(f, w) c = Concat <axis = 1> (side, g) y = Gemm(c, v)",
        )
    )
    made = made_for(model, {"side": (1, 2), "x": (1, 3, 8, 8)})
    feeds = arrays(made)
    assert feeds["side"].shape == (256, 2) and feeds["x"].shape == (256, 3, 8, 8)
    assert "images of " in made.note


def test_feeds_without_a_common_axis_of_samples_are_whole() -> None:
    model = parse_model(net("(float[4] a, float[2,4] b) => (float[2,4] y)", "float k", "y = Add(a, b)"))
    made = made_for(model, {"a": (4,), "b": (2, 4)})
    feed = next(made.samples.batches(1))
    assert feed["a"].shape == (4,) and feed["b"].shape == (2, 4)
    assert "noise" in made.note


def test_a_normalization_that_the_input_does_not_reach_is_of_no_use() -> None:
    model = parse_model(
        net(
            "(float[N,6] x) => (float[N,6] y)",
            "float[1,6] k, float[6] s, float[6] o, float[6] m, float[6] v = {1,2,1,0.5,1,1}",
            "t = Exp(k) b = BatchNormalization(t, s, o, m, v) y = Add(x, b)",
        )
    )
    assert made_for(model, {"x": (1, 6)}).note.endswith("no BatchNormalization depends on this input")


def test_half_precision_is_drawn_and_not_fitted() -> None:
    model = parse_model(
        net(
            "(float16[N,3,8,8] x) => (float16[N,3,8,8] y)",
            "float16[3] s, float16[3] o, float16[3] m, float16[3] v = {1,1,1}",
            "y = BatchNormalization(x, s, o, m, v)",
        )
    )
    made = made_for(model, {"x": (1, 3, 8, 8)})
    assert arrays(made)["x"].dtype == np.float16
    assert "not float32" in made.note


@pytest.mark.parametrize("kind", ["int64", "bool", "string", "uint8"])
def test_numbers_that_are_no_measurements_are_refused_by_name(kind: str) -> None:
    text = net(f"({kind}[N,4] ids) => ({kind}[N,4] y)", "", "y = Identity(ids)")
    with pytest.raises(
        UsageError, match=r"--calibration none: input 'ids' takes .*give --calibration samples"
    ):
        check_makeable(from_proto(onnx.parser.parse_model(text.replace("<>", ""))))
