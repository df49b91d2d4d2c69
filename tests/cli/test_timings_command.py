"""A budget of latency from the command line: the clock is made, and what it said is replayed byte for byte."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from onnxcomp.analysis.cost import model_cost
from onnxcomp.cli.main import cli
from onnxcomp.ir.model import Model
from onnxcomp.runtime.observe import observe_shapes
from onnxcomp.runtime.steady import Ratio
from tests.support.pruning import ZOO

NET = shlex.quote(str(ZOO / "digits_resnet.onnx"))
STEPS = "fold-batchnorm,prune-filters{latency=0.7 criterion=l1 scope=uniform repair=none}"


class Clock:
    """Takes a millisecond for 100,000 multiply-accumulates, a little more each time it is asked; may be stopped."""

    def __init__(self) -> None:
        self.drift = 1.0
        self.stopped = False

    def __call__(self, models: Sequence[Model], *_: Any, **__: Any) -> list[float]:
        assert not self.stopped, "nothing is to be timed"
        self.drift *= 1.0001
        return [self.drift * (0.01 + _macs(model) / 1e5) for model in models]

    def ratio(self, reference: Any, candidate: Any, feed: Mapping[str, Any], **_: Any) -> Ratio:
        before, after = self([reference, candidate])
        return Ratio(after / before, before, after, 0.0, True)


def _macs(model: Model) -> int:
    feeds = {
        v.name: np.zeros([s if isinstance(s, int) else 1 for s in v.shape or ()], np.float32)
        for v in model.graph.inputs
    }
    return model_cost(model, observe_shapes(model, feeds)).macs or 0


@pytest.fixture(name="clock")
def _clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Put a made clock into the place of the real one; models that are compared stand for their sessions."""
    made = Clock()
    monkeypatch.setattr("onnxcomp.compiler.cost.latency.clock", made)
    monkeypatch.setattr("onnxcomp.compiler.cost.latency.Session", lambda model, **_: model)
    monkeypatch.setattr("onnxcomp.compiler.cost.latency.steady_ratio", made.ratio)
    return made


def optimize(out: str, rest: str = "", code: int = 0) -> str:
    words = f"optimize {NET} -o {out}.onnx --passes '{STEPS}' --threads 1 --report {out}.json {rest}"
    result = CliRunner().invoke(cli, shlex.split(words))
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.output


def timings(name: str) -> dict[str, float]:
    found: dict[str, float] = json.loads(Path(f"{name}.json").read_text())["timings"]
    return found


def test_a_run_that_replays_the_timings_of_another_writes_the_same_bytes(clock: Clock) -> None:
    optimize("first")
    taken = timings("first")
    assert any(key.startswith("network ") for key in taken)
    ratios = [value for key, value in taken.items() if key.startswith("ratio of ")]
    assert ratios
    assert all(ratio > 0 for ratio in ratios)
    clock.stopped = True
    for name in ("second", "third"):
        optimize(name, "--timings first.json --strict")
        # Some times are only steps on the way to another one.
        assert timings(name).items() <= taken.items()
        assert Path(f"{name}.onnx").read_bytes() == Path("first.onnx").read_bytes()


def test_missing_timings_are_measured_and_told(clock: Clock) -> None:
    optimize("first")
    document = json.loads(Path("first.json").read_text())
    gone = next(key for key in document["timings"] if key.startswith("conv "))
    del document["timings"][gone]
    Path("partial.json").write_text(json.dumps(document))
    assert (
        f"one timing was missing from --timings and measured now, so that another run may differ: {gone}"
        in (optimize("second", "--timings partial.json").replace("\n", " "))
    )
    assert gone in timings("second")
    assert f"--timings lacks '{gone}'; leave out --strict" in optimize(
        "third", "--timings partial.json --strict", code=2
    )
    assert not Path("third.onnx").exists()


def test_a_file_without_timings_is_refused_before_anything_is_done() -> None:
    Path("empty.json").write_text('{"schema_version": 1, "timings": {}}')
    assert "holds no timings; give the report of an earlier run" in optimize(
        "out", "--timings empty.json", code=2
    )
    assert "none.json: No such file or directory; give a readable file" in optimize(
        "out", "--timings none.json", code=2
    )


def test_a_report_is_not_written_over_the_timings_that_are_read() -> None:
    Path("out.json").write_text('{"schema_version": 1, "timings": {"a": 1}}')
    assert "read from it" in optimize("out", "--timings out.json --force", code=2)
    assert json.loads(Path("out.json").read_text())["timings"] == {"a": 1}


def test_a_run_without_a_budget_of_time_has_no_timings() -> None:
    result = CliRunner().invoke(
        cli, shlex.split(f"optimize {NET} -o out.onnx --passes fold-batchnorm --report out.json")
    )
    assert result.exit_code == 0
    assert timings("out") == {}
