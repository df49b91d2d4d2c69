"""What a cut will cost, foretold for random masks of all groups, is what the cut model costs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.analysis.channels import ChannelGroups, channel_groups, default_shapes
from onnxcomp.analysis.cost import model_cost
from onnxcomp.analysis.cutcost import CutCost
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.ir.proto import from_proto
from onnxcomp.testing import random_keep
from tests.support.text import net
from tools.light_zoo import networks_in

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "models").glob("*.onnx"))
SHARED = networks_in(ROOT / "../shared/models")


class Subject:
    """A model with its groups, read once."""

    def __init__(self, model: Model) -> None:
        self.model = model
        shapes = default_shapes(model)
        self.groups: ChannelGroups = channel_groups(model, shapes)
        self.foretell = CutCost(model, self.groups, shapes)

    def check(self, seed: int, share: float) -> None:
        """Cut at random, some groups not at all, and compare."""
        keep = random_keep(self.groups, seed, share)
        rng = np.random.default_rng(seed)
        chosen = {name: mask for name, mask in keep.items() if rng.random() < 0.8}
        left = self.model.clone()
        self.groups.take(left, chosen)
        after = model_cost(left, default_shapes(left))
        assert self.foretell.count(chosen) == (after.parameters, after.macs)


SUBJECTS = {path.stem: Subject(from_proto(onnx.load(path))) for path in SHIPPED}


@given(st.sampled_from(sorted(SUBJECTS)), st.integers(0, 2**16), st.floats(0.05, 0.95))
@settings(max_examples=45, deadline=None, derandomize=True, database=None)
def test_the_cost_of_a_random_cut_of_a_shipped_net_is_foretold(name: str, seed: int, share: float) -> None:
    SUBJECTS[name].check(seed, share)


@pytest.mark.slow
@pytest.mark.skipif(not SHARED, reason="the measured models are not beside the repository")
@pytest.mark.parametrize("path", SHARED, ids=lambda p: p.stem)
def test_the_cost_of_a_random_cut_of_a_measured_net_is_foretold(path: Path) -> None:
    subject = Subject(from_proto(onnx.load(path)))
    for seed in range(3):
        subject.check(seed, 0.3 + 0.2 * seed)


@pytest.mark.parametrize("name", sorted(SUBJECTS))
def test_a_cut_of_nothing_costs_what_the_model_costs(name: str) -> None:
    subject = SUBJECTS[name]
    whole = model_cost(subject.model, default_shapes(subject.model))
    assert subject.foretell.count({}) == (whole.parameters, whole.macs)
    every = {g.name: np.ones(g.units, bool) for g in subject.groups}
    assert subject.foretell.count(every) == (whole.parameters, whole.macs)


@pytest.mark.parametrize(
    ("stored", "body"),
    [
        # A weight that two convolutions share is one parameter tensor and twice the work.
        ("float[3,3,3,3] w, float[6,3,1,1] a, float[4,6,1,1] b", "i = Conv<pads=[1,1,1,1]>(x, w) j = Conv<pads=[1,1,1,1]>(i, w) h = Conv(j, a) y = Conv(h, b)"),
        ("float[6,3,1,1] a, float[6,3,3,3] c, float[4,9,1,1] b", "h = Conv(x, a) i = Conv<group=2, pads=[1,1,1,1]>(h, c) g = Concat<axis=1>(i, x) y = Conv(g, b)"),
        ("float[6,3,1,1] a, float[12,1,3,3] c, float[4,12,1,1] b", "h = Conv(x, a) i = Conv<group=6, pads=[1,1,1,1]>(h, c) y = Conv(i, b)"),
        ("float[6,3,1,1] a, float[4,12,1,1] b", "h = Conv(x, a) g = Concat<axis=1>(h, h) y = Conv(g, b)"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("seed", range(4))
def test_shared_grouped_and_repeated_channels_are_counted_as_often_as_they_stand(
    stored: str, body: str, seed: int
) -> None:
    model = parse_model(net("(float[N,3,6,6] x) => (float[N,4,6,6] y)", stored, body))
    subject = Subject(model)
    keep = random_keep(subject.groups, seed)
    assert keep
    left = model.clone()
    subject.groups.take(left, keep)
    after = model_cost(left, default_shapes(left))
    assert subject.foretell.count(keep) == (after.parameters, after.macs)


def test_work_between_computed_operands_is_the_same_whatever_is_cut() -> None:
    """Scores of attention: the product of two values has no weight of its own, and its sizes stay."""
    model = parse_model(
        net(
            "(float[N,6,8] x) => (float[N,6,6] y)",
            "float[8,12] a, float[12,8] b",
            "h = MatMul(x, a) r = Relu(h) i = MatMul(r, b) t = Transpose<perm=[0,2,1]>(x) y = MatMul(i, t)",
        )
    )
    subject = Subject(model)
    free = {g.name: g.units for g in subject.groups if not g.blocked}
    assert free == {model.graph.nodes[0].name: 12}
    subject.check(0, 0.5)
    parameters, macs = subject.foretell.count({next(iter(free)): np.arange(12) < 3})
    assert (parameters, macs) == (2 * 3 * 8, 6 * (2 * 3 * 8) + 6 * 8 * 6)
