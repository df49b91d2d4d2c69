"""prune-filters on every structure: selected on statistics, cut, refitted where there is a refit, and told where not."""

from __future__ import annotations

import pytest

from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.passes.prune_filters import PruneFilters
from tests.support.graphs import Plan, build
from tests.support.pruning import cost, noise, outputs, prune
from tests.support.structures import EVERY_BLOCK, STRUCTURES
from tests.support.text import net

NOT_REFITTED = {
    "deconv-depthwise": "not refitted: it is a transposed convolution in groups",
    "quantized": "not refitted: its weight is quantized, and a refit would leave the grid of the quantization",
    "wrapped": "fold constants first",
    "shared-weight": "is shared, and a refit would make a copy of it",
}
"""Structures of which one node stays as it was cut, and what is said of it."""

DECODER = net(
    "(float[N,3,8,8] x) => (float[N,4,16,16] y)",
    "float[8,3,3,3] a, float[8] p, float[12,8,3,3] b, float[12] q, float[12,8,2,2] t, float[8] u, float[8,8,2,2] v,"
    " float[8] w, float[4,8,3,3] c, float[4] d",
    "h = Conv<pads=[1,1,1,1]>(x, a, p) r = Relu(h) i = Conv<pads=[1,1,1,1], strides=[2,2]>(r, b, q) s = Relu(i)"
    " j = ConvTranspose<strides=[2,2]>(s, t, u) m = Relu(j) o = ConvTranspose<strides=[2,2]>(m, v, w) g = Relu(o)"
    " y = Conv<pads=[1,1,1,1]>(g, c, d)",
)


def with_structure(block: str, number: int) -> Model:
    around = ("conv", 5, 1), ("activation", 0, 1), (block, number, 1), ("activation", 0, 1), ("conv", 5, 1)
    return build(Plan(tuple(around), "pool", number), EVERY_BLOCK)


@pytest.mark.parametrize("block", STRUCTURES)
def test_every_structure_is_pruned_and_repaired_and_what_is_not_refitted_is_told(block: str) -> None:
    model = with_structure(block, 1)
    result = prune(model, PruneFilters(ratio=0.4, scope="uniform"))
    assert cost(result.model).parameters < cost(model).parameters
    told = [skip.reason for skip in result.skips if "not refitted" in skip.reason]
    expected = NOT_REFITTED.get(block)
    assert all(expected in reason for reason in told) if expected else told == []
    assert bool(told) == bool(expected)


def test_a_decoder_is_selected_and_refitted_through_its_transposed_convolutions() -> None:
    model = parse_model(DECODER)
    feeds = noise(model, 48, seed=5)
    wanted = outputs(model, feeds)

    def missed(**options: object) -> float:
        step = PruneFilters(macs=0.5, scope="uniform", **options)  # type: ignore[arg-type]
        result = prune(model, step)
        assert not [skip for skip in result.skips if "not refitted" in skip.reason]
        return float(((outputs(result.model, feeds) - wanted) ** 2).mean() / wanted.var())

    bare, repaired = missed(criterion="l2", repair="none"), missed(criterion="l2")
    selected = missed(criterion="obs", repair="one-shot")
    assert repaired < 0.4 * bare
    assert selected < 0.1 * bare
