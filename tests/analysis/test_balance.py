"""Companions: sets of classes that take equally many positions of every block, as small as can be found."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxcomp.analysis.balance import companions
from tests.support.channels import IMAGE, free, hold, stored, units
from tests.support.text import net


def rows(*lines: str) -> NDArray[np.int64]:
    return np.array([[int(c) for c in line] for line in lines], np.int64)


@pytest.mark.parametrize(
    ("blocks", "sets"),
    [
        (rows("012", "345", "678"), [[0, 3, 6], [1, 4, 7], [2, 5, 8]]),
        (rows("0123", "0123"), []),
        (rows("0011", "2233"), [[0, 2], [1, 3]]),
        (rows("0012", "3312"), [[0, 3]]),
        (rows("001122", "334455"), [[0, 3], [1, 4], [2, 5]]),
        (rows("000123", "456777"), [[0, 7], [1, 4], [2, 5], [3, 6]]),
        (rows("001", "122"), [[0, 2]]),
    ],
)
def test_classes_find_companions_of_their_own_size(blocks: NDArray[np.int64], sets: list[list[int]]) -> None:
    assert sorted(sorted(s.tolist()) for s in companions(blocks)) == sets


@given(st.integers(1, 5), st.integers(1, 12), st.integers(1, 40), st.integers(0, 999))
@settings(max_examples=200, deadline=None, derandomize=True, database=None)
def test_united_classes_are_as_often_in_every_block(group: int, each: int, many: int, seed: int) -> None:
    blocks = np.random.default_rng(seed).integers(0, many, (group, each))
    sets = companions(blocks)
    taken = [c for s in sets for c in s.tolist()]
    assert len(taken) == len(set(taken))
    for united in sets:
        counts = np.isin(blocks, united).sum(axis=1)
        assert (counts == counts[0]).all()
    for single in set(np.unique(blocks).tolist()) - set(taken):
        counts = (blocks == single).sum(axis=1)
        assert (counts == counts[0]).all()


def test_filters_behind_which_a_residual_stream_ties_others_are_not_tied_by_position() -> None:
    """Blocks of three whose channels a stream has tied crosswise: equal positions would tie them all together."""
    cut = hold(
        net(
            IMAGE,
            "float[6,3,3,3] a, float[6,3,1,1] b, float[4,6,1,1] c, int64[6] order = {1,0,2,5,4,3}",
            "h = Conv<pads=[1,1,1,1]>(x, a) i = Conv<group=2>(h, b) g = Gather<axis=1>(i, order) s = Add(i, g) y = Conv(s, c)",
        )
    )
    assert free(cut.groups) == {"h": 3, "i": 2}
    assert units(cut.groups["i"], "b", 0) == [0, 0, 1, 0, 1, 0]
    assert stored(cut, "b")[0] in (2, 4), "either pair of companions"
