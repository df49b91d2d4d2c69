"""Heads and positions of attention that are cut in several rounds are still told apart."""

from __future__ import annotations

import numpy as np

from onnxcomp.analysis.channels import channel_groups
from onnxcomp.compiler.channel_pruning.lineage import Lineage
from tests.support.attention_graphs import AttentionPlan, attention


def test_positions_that_go_from_every_head_take_no_head_with_them() -> None:
    model = attention(AttentionPlan(heads=3, keys=3, width=4, depth=5))
    first = channel_groups(model)
    lineage = Lineage(first)
    rounds = (
        {"q0": np.array([True, False, True, True]), "q0:heads": np.array([True, False, True])},
        {"q0": np.array([True, True, False]), "q0:heads": np.array([False, True])},
    )
    left = model.clone()
    for keep in rounds:
        groups = channel_groups(left)
        lineage.record(groups, keep)
        groups.take(left, keep)
    assert {name: mask.tolist() for name, mask in lineage.keep.items()} == {
        "q0": [True, False, True, False],
        "q0:heads": [False, False, True],
    }
    at_once = model.clone()
    first.take(at_once, lineage.keep)
    for name, constant in left.graph.constants.items():
        if name in at_once.graph.constants:
            np.testing.assert_array_equal(constant.values, at_once.graph.constants[name].values)
