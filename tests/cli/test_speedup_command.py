"""`optimize --require-speedup`: judged by a clock that is made, recorded, replayed; no time is judged."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import onnxcomp
from onnxcomp.cli.main import cli
from onnxcomp.compiler.run import conditions as judge
from onnxcomp.errors import BudgetError
from onnxcomp.ir.parse import parse_model
from onnxcomp.runtime.session import Session
from onnxcomp.runtime.steady import Ratio
from tests.support.fakes import write_classifier
from tests.support.text import net


class Clock:
    """Says that the result takes `share` of the original's time; remembers what it was shown, and may be stopped."""

    def __init__(self) -> None:
        self.share = 0.5
        self.seen: list[tuple[Any, Any, Any]] = []

    def ratio(self, reference: Any, candidate: Any, feed: Any) -> Ratio:
        assert self.share, "nothing is to be timed"
        self.seen.append((reference, candidate, feed))
        return Ratio(self.share, 1.0, self.share, 0.0, True)


@pytest.fixture(name="clock", autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Work in a folder with a model, without a child process, by a made clock."""
    clock = Clock()
    monkeypatch.setattr(judge, "steady_ratio", clock.ratio)
    write_classifier(tmp_path)
    return clock


def run(words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, shlex.split(f"optimize model.onnx --passes remove-dead {words}"))
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def report(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(name).read_text())
    return found


def test_a_result_that_is_fast_enough_is_written_and_the_condition_reported(clock: Clock) -> None:
    out = run("-o out.onnx --require-speedup 2 --report run.json").stdout
    assert "--require-speedup 2: 2 times as fast, met" in out
    (condition,) = report("run.json")["conditions"]
    assert condition == {
        "name": "require-speedup",
        "limit": 2.0,
        "value": 2.0,
        "unit": "times as fast",
        "met": True,
    }
    ((key, value),) = report("run.json")["timings"].items()
    assert key.startswith("speed of ")
    assert value == 2.0
    assert Path("out.onnx").exists()


def test_one_sample_runs_on_one_thread_in_both_models(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[dict[str, Any]] = []

    def session(source: Any, **options: Any) -> Session:
        opened.append(options)
        return Session(source, **options)

    monkeypatch.setattr(judge, "Session", session)
    run("-o out.onnx --require-speedup 1 --threads 2")
    assert [o["threads"] for o in opened[-2:]] == [1, 1]
    assert all(o.get("optimize", True) for o in opened[-2:])
    ((reference, candidate, feed),) = clock.seen
    assert reference is not candidate
    assert {name: array.shape for name, array in feed.items()} == {"image": (1, 3, 4, 4)}


def test_a_result_that_is_too_slow_is_kept_aside_with_exit_code_4(clock: Clock) -> None:
    clock.share = 0.8
    result = run("-o out.onnx --require-speedup 1.5", 4)
    assert "not reached: --require-speedup 1.5: 1.25 times as fast, not met" in result.stderr
    assert not Path("out.onnx").exists()
    assert Path("out.best.onnx").exists()


def test_what_an_earlier_run_measured_is_replayed_and_not_measured(clock: Clock) -> None:
    clock.share = 0.6
    run("-o first.onnx --require-speedup 1.5 --report first.json")
    clock.share = 0.0
    run("-o second.onnx --require-speedup 1.5 --timings first.json --strict --report second.json")
    assert report("second.json")["conditions"] == report("first.json")["conditions"]
    assert report("second.json")["conditions"][0]["value"] == 1.66667
    assert Path("second.onnx").read_bytes() == Path("first.onnx").read_bytes()
    run("-o third.onnx --require-speedup 1.7 --timings first.json --strict", 4)


def test_a_timing_of_another_result_is_measured_and_told_or_refused(clock: Clock) -> None:
    Path("other.json").write_text('{"schema_version": 1, "timings": {"speed of a over b": 9}}')
    told = run("-o out.onnx --require-speedup 2 --timings other.json").output
    assert "one timing was missing from --timings and measured now" in told
    assert len(clock.seen) == 1
    refused = run("-o strict.onnx --require-speedup 2 --timings other.json --strict", 2).stderr
    assert "--timings lacks 'speed of " in refused
    assert not Path("strict.onnx").exists()
    assert not Path("strict.best.onnx").exists()


def test_a_result_that_is_the_original_is_as_fast_as_it_and_takes_no_time(clock: Clock) -> None:
    run("-o small.onnx --require-speedup 1")
    Path("small.onnx").replace("model.onnx")
    clock.share = 0.0
    out = run("-o same.onnx --require-speedup 1 --allow-noop").stdout
    assert "--require-speedup 1: 1 times as fast, met" in out


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf"])
def test_what_is_no_speed_is_refused(value: str) -> None:
    assert "give a number above 0, such as 1.2" in run(f"-o out.onnx --require-speedup {value}", 2).stderr


def test_a_model_that_does_not_run_here_is_refused_before_any_pass() -> None:
    body = "i = Identity(x)  r = Reshape(i, s)  y = Relu(r)"
    text = net("(float[N,3,H,W] x) => (float[A] y)", "int64[1] s = {7}", body)
    write_classifier(Path(), text=text, name="odd.onnx")
    Path("odd.onnx").replace("model.onnx")
    result = run("-o out.onnx --require-speedup 1.5", 2)
    assert (
        "a bound cannot be judged, because the model does not run here; leave out the bound" in result.stderr
    )


def test_a_dry_run_shows_the_bound_and_the_config_can_hold_it(clock: Clock) -> None:
    assert "1.5" in run("-o out.onnx --require-speedup 1.5 --dry-run").stdout
    Path("c.toml").write_text("require-speedup = 3\n")
    assert "--require-speedup 3: 2 times as fast, not met" in run("-o out.onnx --config c.toml", 4).stderr


def test_python_calls_judge_models_in_memory() -> None:
    model = parse_model(net("(float[N,4] x) => (float[N,4] y)", "", "a = Identity(x)  y = Relu(a)"))
    found = onnxcomp.optimize(model, "remove-dead", require_speedup=1.9)
    assert [(c.name, c.value, c.met) for c in found.report.conditions] == [("require-speedup", 2.0, True)]
    with pytest.raises(BudgetError, match="--require-speedup 3: 2 times as fast, not met"):
        onnxcomp.optimize(model, "remove-dead", require_speedup=3)
