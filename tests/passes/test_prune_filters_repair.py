"""prune-filters: what it leaves alone, what repair is worth, and that the same run gives the same model."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from onnxcomp.analysis.linear import linear_node
from onnxcomp.ir.graph import Array
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.passes.prune_filters import PruneFilters
from onnxcomp.testing import assert_valid, fingerprint
from tests.support.graphs import Plan, build
from tests.support.pruning import (
    CHAIN,
    accuracy,
    context_for,
    kept,
    noise,
    outputs,
    prune,
    share,
    zoo,
)
from tests.support.text import net


# --- what stays ------------------------------------------------------------------------------------------------------
def weights_of(model: Model) -> dict[str, list[bytes]]:
    """The stored operands of every node, as bytes."""
    found = {}
    for node in model.graph.nodes:
        arrays = [node.constant(index) for index in range(len(node.inputs))]
        found[node.name] = [a.tobytes() for a in arrays if a is not None]
    return found


def test_excluded_nodes_keep_their_bytes_and_their_shapes() -> None:
    model = zoo("digits_resnet")
    convs = [n.name for n in model.graph.nodes if n.is_op("Conv")]
    spared = frozenset(convs[3:6])
    result = prune(model, PruneFilters(macs=0.6, scope="uniform", joint=1), excluded=spared)
    before, after = weights_of(model), weights_of(result.model)
    assert all(after[name] == before[name] for name in spared)
    assert share(model, result.model) <= 0.6
    told = {s.where: s.reason for s in result.skips}
    assert any("it is excluded" in reason for reason in told.values())


def test_shared_weights_stay_shared() -> None:
    text = net(
        "(float[N,4] x) => (float[N,4] y)",
        "float[4,12] a, float[12] p, float[12,4] b, float[4,4] w, float[4] q",
        "h = Gemm(x, a, p) k = Relu(h) i = Gemm(k, b, q) j = Gemm(i, w, q) l = Relu(j) y = Gemm(l, w, q)",
    )
    model = parse_model(text)
    result = prune(model, PruneFilters(ratio=0.5))
    assert list(kept(result)) == ["h"]
    readers = [n for n in result.model.graph.nodes if len(n.inputs) > 1 and n.inputs[1].name == "w"]
    assert len(readers) == 2
    np.testing.assert_array_equal(result.model.graph.constants["w"].values, model.graph.constants["w"].values)
    assert any("its weight 'w' is shared" in s.reason for s in result.skips)


def test_nothing_before_the_first_cut_is_touched() -> None:
    model = zoo("digits_resnet")
    convs = [n.name for n in model.graph.nodes if n.is_op("Conv")]
    result = prune(model, PruneFilters(ratio=0.5), excluded=frozenset(convs[:-3]))
    before, after = weights_of(model), weights_of(result.model)
    assert result.changed
    assert all(after[name] == before[name] for name in convs[:-3])
    assert before != after


# --- what repair is worth --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "floors"),
    [("digits_resnet", (97, 94)), ("digits_mobilenet", (95, 75)), ("digits_mlp", (97, 97))],
)
def test_repair_restores_what_pruning_destroys(name: str, floors: tuple[int, int]) -> None:
    """At 30 % of the MACs: sequential repair, repair in one shot, none."""
    model = zoo(name)
    found = {}
    for repair in ("sequential", "one-shot", "none"):
        result = prune(model, PruneFilters(macs=0.3, scope="uniform", repair=repair))
        assert 0.29 <= share(model, result.model) <= 0.3
        found[repair] = accuracy(result.model)
    assert found["sequential"] >= floors[0]
    assert found["one-shot"] >= floors[1]
    assert found["none"] < found["one-shot"]
    if name != "digits_mlp":
        assert found["none"] < 50, "the nets lean on their channels"


def constants_for_images(model: Model) -> Model:
    """digits_mlp with every fourth hidden neuron constant and heavy."""
    rng = np.random.default_rng(0)
    gemms = [n for n in model.graph.nodes if linear_node(n) is not None]
    for made, read in pairwise(gemms):
        first, second = linear_node(made), linear_node(read)
        assert first is not None and second is not None
        W, b, V = first.matrix(), first.bias(), second.matrix()
        W[:, ::4], b[::4] = 0, 1.0
        V[:, :, ::4] = rng.standard_normal(V[:, :, ::4].shape) * 3
        # What the constants add to the next layer is taken off its bias, so that the net is as good as without them.
        first.install(model, W, b, "test")
        second.install(model, V, second.bias() - V[0, :, ::4].sum(1), "test")
    return model


def test_constant_channels_end_up_in_the_biases_and_cost_no_accuracy() -> None:
    model = constants_for_images(zoo("digits_mlp"))
    whole = accuracy(model)
    repaired = prune(model, PruneFilters(ratio=0.25))
    bare = prune(model, PruneFilters(ratio=0.25, repair="none"))
    assert accuracy(repaired.model) >= whole - 0.5
    assert accuracy(bare.model) < whole - 30


@pytest.mark.parametrize("repair", ["sequential", "one-shot", "none"])
def test_structures_of_all_kinds_are_pruned_and_run(repair: str) -> None:
    """Grouped and depthwise convolutions, squeeze-and-excite, a residual stream, a Gemm behind a Flatten."""
    blocks = (
        ("residual", 5, 1),
        ("grouped", 2, 1),
        ("activation", 0, 1),
        ("depthwise", 0, 1),
        ("squeeze-excite", 2, 1),
    )
    for tail in ("flatten", "pool", "mean", "left-matmul"):
        model = build(Plan((("conv", 11, 1), *blocks, ("conv", 13, 1), ("activation", 0, 1)), tail, 3))
        result = prune(model, PruneFilters(ratio=0.4, repair=repair))  # type: ignore[arg-type]
        assert len(result.changes) >= 4
        feeds = noise(model, 4, seed=3)
        wanted, made = outputs(model, feeds), outputs(result.model, feeds)
        assert np.isfinite(made).all()
        if repair == "sequential":
            plain = prune(model, PruneFilters(ratio=0.4, repair="none"))
            gaps = [float(((v - wanted) ** 2).mean()) for v in (made, outputs(plain.model, feeds))]
            assert gaps[0] < gaps[1]


@pytest.mark.parametrize("repair", ["sequential", "one-shot"])
def test_half_precision_stays_half(repair: str) -> None:
    text = CHAIN.replace("float[", "float16[")
    model = parse_model(text)
    feeds: dict[str, Array] = {"x": noise(parse_model(CHAIN))["x"].astype(np.float16)}
    step = PruneFilters(macs=0.6, scope="uniform", repair=repair)  # type: ignore[arg-type]
    result = step.run(model.clone(), context_for(model, feeds))
    assert_valid(result.model, like=model)
    assert {c.values.dtype.name for c in result.model.graph.constants.values()} == {"float16"}


# --- the same again --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["digits_resnet", "digits_mlp"])
def test_the_same_run_gives_the_same_model(name: str) -> None:
    model = zoo(name)
    marks = {
        fingerprint(prune(model, PruneFilters(macs=0.5, scope="uniform"), seed=3).model) for _ in range(2)
    }
    assert len(marks) == 1


@pytest.mark.slow
def test_processes_with_other_hash_seeds_write_the_same_bytes() -> None:
    code = (
        "from tests.support.pruning import zoo, zoo_context\n"
        "from onnxcomp.passes.prune_filters import PruneFilters\n"
        "from onnxcomp.testing import fingerprint\n"
        "model = zoo('digits_mobilenet')\n"
        "print(fingerprint(PruneFilters(macs=0.5).run(model.clone(), zoo_context(model)).model))"
    )
    marks = set()
    for seed in ("0", "1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": "."},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        )
        marks.add(done.stdout.strip())
    assert len(marks) == 1
