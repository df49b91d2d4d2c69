"""Trained networks lose random channels of all groups at once and equal their masked selves."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

import onnxcomp
from onnxcomp.analysis.channels import channel_groups
from onnxcomp.analysis.cost import model_cost
from onnxcomp.ir.model import Model
from onnxcomp.ir.proto import from_proto
from onnxcomp.testing import check_cut, random_keep
from tools.light_zoo import networks_in

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "models").glob("*.onnx"))
SHARED = networks_in(ROOT / "../shared/models")
FREE_GROUPS = {
    "digits_mlp": 2,
    "digits_mobilenet": 14,
    "digits_resnet": 9,
    "digits_vgg": 7,
    "digits_densenet": 27,
    "digits_shufflenet": 10,
    "digits_unet": 9,
    "digits_lstm": 2,
    "digits_vit": 2,
    "cifar10_resnet20_bn": 10,
    "cifar10_resnet56_bn": 28,
    "cifar10_vgg9_bn": 7,
    "efficientnet_lite0_bn": 24,
    "mlperftiny_resnet8_cifar10": 6,
}


def load(path: Path) -> Model:
    return from_proto(onnx.load(path))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_shipped_net_cut_at_random_equals_its_masked_self(path: Path, seed: int) -> None:
    model = load(path)
    cut = check_cut(model, seed)
    assert sum(g.blocked is None for g in cut.groups) == FREE_GROUPS[path.stem]
    assert model_cost(cut.pruned, None).parameters < 0.75 * model_cost(model, None).parameters


@pytest.mark.parametrize(("net", "free"), [("digits_unet", 12), ("digits_vit", 6)])
def test_a_net_whose_sizes_are_folded_can_be_cut_further(net: str, free: int) -> None:
    model = onnxcomp.optimize(ROOT / f"models/{net}.onnx", threads=1).model
    cut = check_cut(model)
    assert sum(g.blocked is None for g in cut.groups) == free > FREE_GROUPS[net]


@pytest.mark.skipif(not SHARED, reason="the measured models are not beside the repository")
@pytest.mark.parametrize("path", SHARED, ids=lambda p: p.stem)
def test_a_measured_net_cut_at_random_equals_its_masked_self(path: Path) -> None:
    large = "efficientnet" in path.stem
    cut = check_cut(
        load(path),
        0,
        batches=(1,) if large else (1, 3),
        regimes=("normal",) if large else ("normal", "large", "one-hot"),
    )
    assert sum(g.blocked is None for g in cut.groups) == FREE_GROUPS[path.stem]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_each_group_of_a_shipped_net_can_be_cut_alone(path: Path) -> None:
    model = load(path)
    for name, keep in random_keep(channel_groups(model), seed=2).items():
        check_cut(model, {name: keep}, batches=(1,), regimes=("normal",))
