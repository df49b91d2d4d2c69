"""The plans that hold estimates against the clock; no time is judged."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.analysis.channels import channel_groups
from onnxcomp.ir.parse import parse_model
from tests.support.text import net
from tools.bench.latency_model import Row, main, plans

NET = parse_model(
    net(
        "(float[N,3,8,8] x) => (float[N,5,8,8] y)",
        "float[32,3,1,1] a, float[32,32,1,1] b, float[48,32,1,1] c, float[5,48,1,1] d",
        "h = Conv(x, a)  i = Conv(h, b)  j = Add(h, i)  k = Conv(j, c)  y = Conv(k, d)",
    )
)


def test_every_plan_can_be_cut_and_keeps_multiples_of_its_alignment() -> None:
    groups = channel_groups(NET)
    seen = list(plans(groups))
    assert len({name for name, _ in seen}) == len(seen) == 3 * (6 + 3)
    for name, keep in seen:
        groups.take(NET.clone(), keep)
        align = int(name.rpartition(" ")[2])
        assert all(int(mask.sum()) % align == 0 for mask in keep.values())
        assert all(group != "y" for group in keep)
    inner = dict(seen)["50%, align 1"]
    assert {name: int(mask.sum()) for name, mask in inner.items()} == {"k": 24}
    every = dict(seen)["50% all, align 1"]
    assert {name: int(mask.sum()) for name, mask in every.items()} == {"h": 16, "k": 24}


def test_plans_are_the_same_in_every_run() -> None:
    first, again = (dict(plans(channel_groups(NET))) for _ in range(2))
    assert first.keys() == again.keys()
    assert all(
        np.array_equal(mask, again[name][g]) for name, keep in first.items() for g, mask in keep.items()
    )


def test_an_estimate_that_is_too_high_has_a_positive_error() -> None:
    assert Row("net", "plan", 0.66, 0.6).error == pytest.approx(0.1)


def test_an_unknown_network_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--rows", "resnet21"])
    assert "rows are resnet20, resnet56, vgg9" in capsys.readouterr().err
