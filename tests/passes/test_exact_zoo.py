"""The exact passes on real architectures: the onnx package's light zoo, the models shipped here, and shared ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import ModelProto, version_converter

from onnxcomp.compiler.passbase import Context
from onnxcomp.ir import from_proto, to_proto
from onnxcomp.ir.segment import model_bytes
from onnxcomp.passes.fold_constants import FoldConstants
from onnxcomp.testing import assert_valid
from tools.bench.simplify import EXACT, simplified, zoo
from tools.light_zoo import light_paths, networks_in, random_feeds, relative_error, run_as_written

BEST_PEER = {
    "light_bvlc_alexnet": 22,
    "light_densenet121": 491,
    "light_inception_v1": 142,
    "light_inception_v2": 164,
    "light_resnet50": 123,
    "light_shufflenet": 154,
    "light_squeezenet": 67,
    "light_vgg19": 44,
    "light_zfnet512": 22,
    "cifar10_resnet20_bn": 54,
    "cifar10_resnet56_bn": 144,
    "cifar10_vgg9_bn": 20,
    "efficientnet_lite0_bn": 94,
    "mlperftiny_resnet8_cifar10": 22,
    "digits_mlp": 6,
    "digits_mobilenet": 65,
    "digits_resnet": 37,
    "digits_vgg": 18,
    "digits_densenet": 86,
    "digits_shufflenet": 71,
    "digits_unet": 30,
}
"""Nodes that the better of onnxslim 0.1.98 and onnxsim 0.8.1 leaves; `tools/bench/simplify.py` measures them anew."""

LARGE = {"light_bvlc_alexnet", "light_resnet50", "light_vgg19", "light_zfnet512"}
"""Models of hundreds of megabytes."""

SHARED = Path(__file__).parent / "../../../shared/models"


def _parameters() -> list[object]:
    return [
        pytest.param(name, load, id=name, marks=[pytest.mark.slow] if name in LARGE else [])
        for name, load in zoo().items()
    ]


@pytest.mark.parametrize(("name", "load"), _parameters())
def test_a_real_network_becomes_small_and_computes_the_same(
    name: str, load: Callable[[], ModelProto]
) -> None:
    proto = load()
    onnx.helper.set_model_props(proto, {"author": "somebody", "onnxcomp.kept": "yes"})
    result = simplified(proto)
    feeds = random_feeds(proto, seed=1)
    expected = run_as_written(proto, feeds)
    assert all(values.std() > 1e-5 for values in expected.values()), "constant outputs would prove nothing"
    assert relative_error(expected, run_as_written(result, feeds)) <= 1e-4
    assert list(result.graph.output) == list(proto.graph.output)
    weights = {t.name for t in proto.graph.initializer}
    assert list(result.graph.input) == [i for i in proto.graph.input if i.name not in weights]
    assert list(result.metadata_props) == list(proto.metadata_props)
    assert len(result.graph.node) <= 1.05 * BEST_PEER.get(name, len(proto.graph.node))


@pytest.mark.parametrize("name", ["light_squeezenet", "light_densenet121", "digits_mobilenet"])
def test_a_simplified_network_is_simple(name: str) -> None:
    original = from_proto(zoo()[name]())
    model = original
    for _ in range(2):
        for step in EXACT:
            result = step.run(model.clone(), Context(original=original, threads=1))
            again = step.run(result.model.clone(), Context(original=original, threads=1))
            assert not again.changed
            model = result.model
    assert_valid(model, like=original)


def test_the_shared_models_are_all_measured() -> None:
    if not SHARED.is_dir():
        pytest.skip("the shared models are not here")
    assert {p.stem for p in networks_in(SHARED)} <= zoo().keys()


@pytest.mark.parametrize("path", light_paths(), ids=lambda p: p.stem)
def test_a_file_of_fills_does_not_explode(path: Path) -> None:
    proto = onnx.load(path)
    proto.ir_version = 8
    original = from_proto(version_converter.convert_version(proto, 17))
    result = FoldConstants().run(original.clone(), Context(original=original, threads=1))
    grown = len(model_bytes(result.model)) - len(model_bytes(original))
    assert grown <= 1 << 20
    assert any("max-growth" in skip.reason for skip in result.skips)


def test_a_file_of_fills_is_evaluated_where_the_user_allows_it() -> None:
    proto = onnx.load(light_paths()[0].with_name("light_squeezenet.onnx"))
    proto.ir_version = 8
    original = from_proto(version_converter.convert_version(proto, 17))
    result = FoldConstants(max_growth=100 << 20).run(original.clone(), Context(original=original, threads=1))
    assert not [n for n in result.model.graph.nodes if n.op == "ConstantOfShape"]
    assert not result.skips
    feeds = random_feeds(to_proto(original))
    before, after = (run_as_written(to_proto(m), feeds) for m in (original, result.model))
    assert relative_error(before, after) == 0
