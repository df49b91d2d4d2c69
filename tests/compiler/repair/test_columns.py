"""Columns that are kept, read again or gathered by several threads are the same columns; forgiven targets are best."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from onnxcomp.analysis.channels import default_shapes
from onnxcomp.analysis.linear import linear_node
from onnxcomp.compiler.repair import columns as gathering
from onnxcomp.compiler.repair import walk as repair
from onnxcomp.compiler.repair.columns import Columns, collect_moments, forgiven
from onnxcomp.compiler.repair.refit import refit
from onnxcomp.compiler.repair.walk import Walk, WalkSettings
from onnxcomp.ir.model import Model
from onnxcomp.runtime import capture
from onnxcomp.testing import fingerprint
from tests.support.pruning import context_for, noise
from tests.support.repairing import cut, redundant


@pytest.fixture(autouse=True)
def _small_batches_of_few_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve batches, and positions that are drawn."""
    monkeypatch.setattr(repair, "batch_size", lambda shapes, names: 5)
    monkeypatch.setattr(gathering, "batch_size", lambda shapes, names: 5)
    monkeypatch.setattr(gathering.sample_positions, "__defaults__", (9,))


def walked(original: Model, *, threads: int, joint: int = 0) -> str:
    left, sites = cut(original, {"h": [0, 1, 2], "i": [1, 2, 5]})
    context = dataclasses.replace(context_for(original, noise(original, 60)), threads=threads)
    Walk(original, left, context, WalkSettings(joint=joint)).visit(sites, refit, "look")
    return fingerprint(left)


def test_columns_kept_in_memory_give_what_reading_them_again_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    original = redundant("Relu")
    read: list[int] = []
    again = capture.Frontier.again

    def counting(self: capture.Frontier, wanted: list[str], start: int = 0) -> object:
        read.append(start)
        return again(self, wanted, start)

    monkeypatch.setattr(capture.Frontier, "again", counting)
    marks = {}
    for room in (0, 60_000, 1 << 30):
        read.clear()
        monkeypatch.setattr(gathering, "KEPT_BYTES", room)
        marks[room] = walked(original, threads=1), set(read)
    assert len({mark for mark, _ in marks.values()}) == 1
    assert marks[0][1] == {0}
    assert any(0 < start < 12 for start in marks[60_000][1]), "some batches fit and some do not"
    assert marks[1 << 30][1] == {12}


@pytest.mark.parametrize("joint", [0, 2])
def test_several_threads_give_the_bytes_that_one_gives(joint: int) -> None:
    original = redundant("Relu")
    marks = {walked(original, threads=threads, joint=joint) for threads in (1, 2, 3, 2)}
    assert len(marks) == 1


def test_statistics_gathered_by_several_threads_are_those_of_one() -> None:
    model = redundant("Relu")
    nodes = [n for node in model.graph.nodes if (n := linear_node(node)) is not None]
    wide = {nodes[0].node.name: 3}
    found = []
    for threads in (1, 3):
        context = dataclasses.replace(context_for(model, noise(model, 60)), threads=threads)
        found.append(collect_moments(model, nodes, context, default_shapes(model), "look", channelwise=wide))
    for name, moments in found[0].items():
        np.testing.assert_array_equal(moments.sum_xx, found[1][name].sum_xx)
        assert moments.count == found[1][name].count > 0


@pytest.mark.parametrize("bounds", [(0.0, np.inf), (0.0, 1.0), (-np.inf, 1.0)])
def test_forgiven_targets_are_the_nearest_of_all_that_the_activation_cannot_tell_apart(
    bounds: tuple[float, float],
) -> None:
    rng = np.random.default_rng(0)
    x, y, added = (rng.standard_normal((2, rows, 50)).astype(np.float32) for rows in (4, 3, 3))
    matrix, bias = rng.standard_normal((2, 3, 4)), rng.standard_normal(6)
    copies = [a.copy() for a in (x, y, added)]
    found = forgiven(Columns(x, y, added), matrix, bias, bounds)
    made = matrix @ x + bias.reshape(2, 3, 1) + added
    goal = y + added
    cuts = np.clip(goal, *bounds)
    np.testing.assert_allclose(np.clip(found + added, *bounds), cuts, atol=1e-5)
    inside = (goal > bounds[0]) & (goal < bounds[1])
    np.testing.assert_allclose(found[inside], y[inside], atol=1e-6)
    low, high = goal <= bounds[0], goal >= bounds[1]
    np.testing.assert_allclose((found + added)[low], np.minimum(made, bounds[0])[low], atol=1e-5)
    np.testing.assert_allclose((found + added)[high], np.maximum(made, bounds[1])[high], atol=1e-5)
    for array, copy in zip((x, y, added), copies, strict=True):
        np.testing.assert_array_equal(array, copy)
