"""What insert-qdq makes of whole networks: close to the original, fused whole, and what its target takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxcomp.api import optimize
from onnxcomp.compiler.target.files import load_target
from onnxcomp.compiler.target.lint import check_target
from onnxcomp.runtime.fusion import fusion_of
from tests.support.pruning import zoo_context
from tests.support.quantizing import folded, quantized, sqnr

SHARED = Path(__file__).parents[3] / "shared"
QDQ = ("ort-cpu", "openvino", "tensorrt", "qnn")


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("digits_resnet", 30.0),
        ("digits_vgg", 30.0),
        ("digits_mobilenet", 22.0),
        ("digits_mlp", 30.0),
        ("digits_shufflenet", 25.0),
        ("digits_densenet", 25.0),
    ],
)
def test_shipped_nets_stay_close_to_themselves_and_are_fused_whole(name: str, least: float) -> None:
    model = folded(name)
    found = quantized(model).model
    feeds = next(iter(zoo_context(model, 48).calibration.batches(48)))  # type: ignore[union-attr]
    assert sqnr(model, found, feeds) >= least
    fusion = fusion_of(found)
    assert fusion.fused
    # The last Gemm with a float bias has its weight in integers only.
    last = model.graph.outputs[0].producer
    assert last is not None
    assert not [n for n in fusion.unfused if n.name != last.name and n.op != "HardSigmoid"]
    # Normalizations of what a concatenation grows by cannot be folded, and nothing computes them in integers.
    left = {"HardSigmoid"} if name != "digits_densenet" else {n.op for n in fusion.islands} - {"Conv", "Gemm"}
    assert not [n for n in fusion.islands if n.op not in left]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "data", "least"),
    [
        ("cifar10_resnet20_bn", "cifar10", 31.0),
        ("cifar10_vgg9_bn", "cifar10", 36.0),
        ("efficientnet_lite0_bn", "imagenet", 20.0),
    ],
)
def test_real_networks_are_fused_whole_between_the_first_and_the_last_node(
    name: str, data: str, least: float
) -> None:
    path = SHARED / "models" / f"{name}.onnx"
    if not path.exists():
        pytest.skip("the networks for measurements are not here")
    result = optimize(
        path,
        "fold-constants,fold-batchnorm,remove-dead,insert-qdq",
        calibration=str(SHARED / "data" / f"{data}_calibration.npz"),
        samples=64,
        threads=2,
    )
    fusion = fusion_of(result.model)
    last = result.model.graph.outputs[0].producer
    assert last is not None
    assert [n for n in fusion.unfused if n.name != last.name] == []
    assert not fusion.islands
    assert result.report.comparison is not None
    assert result.report.comparison.sqnr_db is not None
    assert result.report.comparison.sqnr_db >= least


@pytest.mark.parametrize("target", QDQ)
@pytest.mark.parametrize("name", ["digits_resnet", "digits_mlp"])
def test_every_target_takes_what_is_made_for_it(name: str, target: str) -> None:
    model = folded(name)
    found = quantized(model, target=target)
    assert found.changed
    objections = [f for f in check_target(found.model, load_target(target)) if f.hard]
    # What a target says of the file as a whole (sizes, versions) is not this pass's to change.
    assert not [f for f in objections if f.where != "the file" and f.table not in ("shapes", "opset", "ir")]
