"""Normalisations: per channel they are cut along, in groups whole groups go, over the channels nothing may go."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.analysis.channels import channel_groups
from onnxcomp.ir.parse import parse_model
from onnxcomp.testing import assert_equal_outputs, check_cut
from tests.support.channels import IMAGE, axes, free, hold, left, stays, stored
from tests.support.text import net

HEAD = "h = Conv<pads=[1,1,1,1]>(x, a)"
REGIMES = ("normal", "large")


def test_instance_normalization_is_cut_in_scale_and_bias() -> None:
    cut = hold(
        net(
            IMAGE,
            "float[6,3,3,3] a, float[6] s, float[6] b, float[4,6,1,1] c",
            f"{HEAD} n = InstanceNormalization(h, s, b) r = Relu(n) y = Conv(r, c)",
        ),
        regimes=REGIMES,
    )
    assert axes(cut.groups["h"]) == {("a", 0), ("s", 0), ("b", 0), ("c", 1)}


def test_group_normalization_loses_whole_groups() -> None:
    cut = hold(
        net(
            IMAGE,
            "float[6,3,3,3] a, float[6] s, float[6] b, float[4,6,1,1] c",
            f"{HEAD} n = GroupNormalization<num_groups=3>(h, s, b) r = Relu(n) y = Conv(r, c)",
            21,
        ),
        regimes=REGIMES,
    )
    assert free(cut.groups) == {"h": 3}
    (node,) = (n for n in cut.pruned.graph.nodes if n.op == "GroupNormalization")
    assert node.attrs["num_groups"] == left(cut, "h")
    assert stored(cut, "s") == (2 * left(cut, "h"),)


def test_group_normalization_with_a_scale_per_group_loses_whole_groups() -> None:
    """Opset 18 had one scale per group. The checker calls it deprecated; runtimes run it."""
    original = parse_model(
        net(
            IMAGE,
            "float[6,3,3,3] a, float[3] s, float[3] b, float[4,6,1,1] c",
            f"{HEAD} n = GroupNormalization<num_groups=3>(h, s, b) r = Relu(n) y = Conv(r, c)",
            18,
        )
    )
    groups = channel_groups(original)
    assert free(groups) == {"h": 3}
    keep = {"h": np.array([True, False, True])}
    pruned, masked = original.clone(), original.clone()
    groups.take(pruned, keep)
    groups.mask(masked, keep)
    assert (
        pruned.graph.constants["s"].values.tolist() == original.graph.constants["s"].values[[0, 2]].tolist()
    )
    assert assert_equal_outputs(masked, pruned) < 1e-5


def test_group_normalization_of_one_group_keeps_its_channels() -> None:
    text = net(
        IMAGE,
        "float[6,3,3,3] a, float[6] s, float[6] b, float[4,6,1,1] c",
        f"{HEAD} n = GroupNormalization<num_groups=1>(h, s, b) y = Conv(n, c)",
        21,
    )
    assert stays(text)["h"] == "its 6 channels can only go all together"


def test_group_normalization_of_one_channel_each_loses_single_channels() -> None:
    cut = hold(
        net(
            IMAGE,
            "float[6,3,3,3] a, float[6] s, float[6] b, float[4,6,1,1] c",
            f"{HEAD} n = GroupNormalization<num_groups=6>(h, s, b) y = Conv(n, c)",
            21,
        ),
        regimes=REGIMES,
    )
    assert free(cut.groups) == {"h": 6}


@pytest.mark.parametrize("target", ["back", "size"])
def test_a_group_normalization_in_parts_loses_whole_groups(target: str) -> None:
    """What torch writes below opset 18: Reshape, InstanceNormalization with ones, Reshape, scale and shift."""
    cut = hold(
        net(
            IMAGE,
            "float[6,3,3,3] a, float[3] one = {1.0,1.0,1.0}, float[3] zero = {0.0,0.0,0.0}, float[6,1,1] s, float[6,1,1] b,"
            " float[4,6,1,1] c, int64[3] split = {0,3,-1}, int64[4] back = {0,6,8,8}",
            f"{HEAD} r = Reshape(h, split) n = InstanceNormalization(r, one, zero) size = Shape(h) m = Reshape(n, {target})"
            " t = Mul(m, s) u = Add(t, b) y = Conv(u, c)",
        ),
        regimes=REGIMES,
    )
    assert free(cut.groups) == {"h": 3}
    assert stored(cut, "one") == (left(cut, "h"),)
    assert stored(cut, "s") == (2 * left(cut, "h"), 1, 1)


def test_a_group_normalization_of_means_and_squares_loses_whole_groups() -> None:
    cut = hold(
        net(
            IMAGE,
            "float[6,3,3,3] a, float[4,6,1,1] c, int64[5] split = {0,3,2,8,8}, int64[4] back = {0,6,8,8}, float e = {0.1}",
            f"{HEAD} r = Reshape(h, split) m = ReduceMean<axes=[2,3,4]>(r) d = Sub(r, m) q = Mul(d, d)"
            " v = ReduceMean<axes=[2,3,4]>(q) w = Add(v, e) o = Sqrt(w) n = Div(d, o) z = Reshape(n, back) y = Conv(z, c)",
        ),
        regimes=REGIMES,
    )
    assert free(cut.groups) == {"h": 3}


@pytest.mark.parametrize(
    ("node", "more", "opset", "reason"),
    [
        ("LayerNormalization<axis=1>(h, s)", ", float[6,8,8] s", 17, "LayerNormalization 'n' normalises over the channels"),
        ("LayerNormalization<axis=-3>(h, s, s)", ", float[6,8,8] s", 17, "LayerNormalization 'n' normalises over the channels"),
        ("RMSNormalization<axis=1>(h, s)", ", float[6,8,8] s", 23, "RMSNormalization 'n' normalises over the channels"),
        ("MeanVarianceNormalization<axes=[1]>(h)", "", 17, "MeanVarianceNormalization 'n' normalises over the channels"),
        ("LpNormalization<axis=1, p=2>(h)", "", 17, "LpNormalization 'n' mixes the channels"),
        ("LRN<size=3>(h)", "", 17, "LRN 'n' mixes neighbouring channels"),
    ],
)  # fmt: skip
def test_a_normalisation_over_the_channels_blocks_them(node: str, more: str, opset: int, reason: str) -> None:
    text = net(IMAGE, f"float[6,3,3,3] a, float[4,6,1,1] c{more}", f"{HEAD} n = {node} y = Conv(n, c)", opset)
    assert stays(text)["h"] == reason


def test_a_layer_normalization_in_parts_blocks_at_its_mean() -> None:
    """Mean, difference, square, mean, root: removing a channel would change what all others are divided by."""
    text = net(
        "(float[N,5,6] x) => (float[N,5,4] y)",
        "float[6,8] a, float[8,4] b, float two = {2.0}, float e = {0.00001}",
        "[first] h = MatMul(x, a) [mean] m = ReduceMean<axes=[-1]>(h) d = Sub(h, m) p = Pow(d, two)"
        " v = ReduceMean<axes=[-1]>(p) w = Add(v, e) s = Sqrt(w) n = Div(d, s) y = MatMul(n, b)",
    )
    assert stays(text)["first"] == "ReduceMean 'mean' reduces over the channel axis"


def test_layer_normalization_before_which_the_channels_lie_lets_them_through() -> None:
    cut = hold(
        net(
            IMAGE,
            "float[6,3,3,3] a, float[8] s, float[8] b, float[4,6,1,1] c",
            f"{HEAD} n, m, v = LayerNormalization(h, s, b) y = Conv(n, c)",
        ),
        regimes=REGIMES,
    )
    assert free(cut.groups) == {"h": 6}
    assert stored(cut, "s") == (8,)


def test_mean_variance_normalization_over_space_lets_channels_through() -> None:
    cut = hold(
        net(
            IMAGE,
            "float[6,3,3,3] a, float[4,6,1,1] c",
            f"{HEAD} n = MeanVarianceNormalization<axes=[0,2,3]>(h) y = Conv(n, c)",
        ),
        regimes=REGIMES,
    )
    assert free(cut.groups) == {"h": 6}


def test_the_scale_of_a_layer_normalization_holds_what_else_reads_it() -> None:
    text = net(
        "(float[N,3,6,6] x) => (float[N,4,6,6] y)",
        "float[6,3,3,3] a, float[6] s, float[4,6,1,1] c",
        "h = Conv<pads=[1,1,1,1]>(x, a, s) n = LayerNormalization(h, s) y = Conv(n, c)",
    )
    assert stays(text)["h"] == "LayerNormalization 'n' reads it"


def test_removing_one_channel_of_a_norm_group_would_be_noticed() -> None:
    """The oracle itself: a group that lost one of its two channels is divided by something else."""
    text = net(
        IMAGE,
        "float[6,3,3,3] a, float[6] s, float[6] b, float[4,6,1,1] c",
        f"{HEAD} n = GroupNormalization<num_groups=3>(h, s, b) y = Conv(n, c)",
        21,
    )
    model = parse_model(text)
    alike = parse_model(text.replace("num_groups=3", "num_groups=6"))
    keep = np.array([True, False, True, False, True, False])
    cut = check_cut(alike, {"h": keep}, regimes=("normal",))
    for node in cut.pruned.graph.nodes:
        if node.op == "GroupNormalization":
            node.attrs["num_groups"] = 3
    with pytest.raises(AssertionError, match="differs by"):
        assert_equal_outputs(model, cut.pruned, regimes=("normal",))
