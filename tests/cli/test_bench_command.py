"""The command `bench` and the call behind it: wiring, table, JSON, every wrong call in one line; no time is judged."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import onnxcomp
from onnxcomp.cli.main import cli
from onnxcomp.compiler.commands import bench as benchmark
from onnxcomp.compiler.commands.bench import BenchReport
from onnxcomp.errors import ModelError, UsageError
from onnxcomp.ir.files import save
from onnxcomp.ir.parse import parse_model
from onnxcomp.runtime.session import Session, SessionError
from onnxcomp.runtime.start import Start
from tests.support.quantized import Quantized
from tests.support.text import net

QUICK = "--rounds 2 --repeats 1 --warmup 0"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder with models of the same inputs and of others, without child processes."""
    monkeypatch.setattr(benchmark, "start_fresh", lambda *_, **__: Start(0.012, 34_000_000))
    write("a.onnx", "(float[N,3,H,W] x) => (float[N,3,H,W] y)", "y = Relu(x)")
    write("b.onnx", "(float[N,3,H,W] x) => (float[N,3,H,W] y)", "h = Relu(x)  y = Sqrt(h)")
    write("fixed.onnx", "(float[2,3,8,8] x) => (float[2,3,8,8] y)", "y = Relu(x)")
    write("other.onnx", "(float[N,3,H,W] z) => (float[N,3,H,W] y)", "y = Relu(z)")
    write("double.onnx", "(double[N,3,H,W] x) => (double[N,3,H,W] y)", "y = Relu(x)")
    write("ids.onnx", "(int64[N,T] ids) => (float[N,T] y)", "c = Cast<to=1>(ids)  y = Relu(c)")


def write(name: str, signature: str, body: str) -> None:
    save(parse_model(net(signature, "", body)), name)


def run(words: str, code: int = 0) -> Result:
    """Run `onnxcomp bench` with `words` in this process and expect the exit code."""
    result = CliRunner().invoke(cli, ["bench", *shlex.split(words)])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def test_an_operator_that_is_unknown_asks_for_its_library() -> None:
    save(
        parse_model("""<ir_version: 8, opset_import: ["" : 17, "my.own" : 1]>
    net (float[N, 4] x) => (float[N, 4] y) { y = my.own.Magic (x) }"""),
        "foreign.onnx",
    )
    assert "operators of my.own: is a --custom-op-lib missing?" in run("foreign.onnx", 2).stderr


def document(words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(f"{words} --json").stdout)
    return found


def test_the_table_has_a_row_per_model_and_batch_size() -> None:
    lines = [line.split() for line in run(f"a.onnx b.onnx --batch 1,8 {QUICK}").stdout.splitlines()]
    assert lines[0][:5] == ["2", "runs", "each", "on", "1"]
    rows = [line for line in lines[4:] if line]
    assert [row[0] for row in rows] == ["a.onnx", "8", "b.onnx", "8"]
    size = Path("a.onnx").stat().st_size
    assert rows[0][1:3] == [str(size), "1"]
    assert rows[0][6] == "1"
    assert float(rows[2][6]) > 0
    assert rows[0][7:] == ["34.00", "MB", "12.0"]
    assert len(rows[1]) == 5


def test_json_says_all_of_it_under_a_schema_version() -> None:
    found = document(f"a.onnx b.onnx --batch 2,1,2 {QUICK} --set-shape x=1,3,5,6 --seed 3")
    assert found["schema_version"] == 2
    assert [(m["name"], m["file"]["path"]) for m in found["models"]] == [
        ("a.onnx", "a.onnx"),
        ("b.onnx", "b.onnx"),
    ]
    assert [(m["start_seconds"], m["peak_bytes"], m["fusion"]) for m in found["models"]] == [
        (0.012, 34_000_000, None)
    ] * 2
    order = [(entry["name"], entry["batch"], entry["runs"]) for entry in found["latencies"]]
    assert order == [("a.onnx", 2, 2), ("b.onnx", 2, 2), ("a.onnx", 1, 2), ("b.onnx", 1, 2)]
    assert found["input_shapes"] == {"2": {"x": [2, 3, 5, 6]}, "1": {"x": [1, 3, 5, 6]}}
    assert (found["threads"], found["rounds"], found["repeats"], found["warmup"], found["seed"]) == (
        1,
        2,
        1,
        0,
        3,
    )
    assert "onnxruntime" in found["versions"]
    keys = {"minimum", "median", "p95", "ratio_paired"}
    assert keys <= found["latencies"][0].keys()


def test_a_file_against_itself_is_two_candidates() -> None:
    assert [m["name"] for m in document(f"a.onnx a.onnx {QUICK} --no-memory")["models"]] == [
        "a.onnx",
        "a.onnx (2)",
    ]


def test_what_one_model_fixes_is_what_all_are_run_at() -> None:
    found = document(f"a.onnx fixed.onnx {QUICK} --no-memory")
    assert found["input_shapes"] == {"2": {"x": [2, 3, 8, 8]}}
    assert document(f"fixed.onnx a.onnx {QUICK} --no-memory")["input_shapes"] == found["input_shapes"]


def test_free_sizes_are_those_at_which_the_model_runs_and_the_batch_can_come_with_the_sizes() -> None:
    assert document(f"a.onnx {QUICK} --no-memory")["input_shapes"] == {"1": {"x": [1, 3, 64, 64]}}
    sized = document(f"a.onnx {QUICK} --no-memory --set-shape x=4,3,*,5")
    assert sized["input_shapes"] == {"4": {"x": [4, 3, 64, 5]}}


def test_integer_inputs_get_values_that_run() -> None:
    assert document(f"ids.onnx {QUICK} --batch 3")["input_shapes"] == {"3": {"ids": [3, 64]}}


def test_no_memory_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "start_fresh", lambda *_, **__: pytest.fail("nothing is to be started"))
    result = run(f"a.onnx {QUICK} --no-memory")
    assert "memory" not in result.stdout
    assert document(f"a.onnx {QUICK} --no-memory")["models"][0]["start_seconds"] is None


def test_memory_is_that_of_the_largest_batch_and_the_start_that_of_the_smallest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[tuple[int, int]] = []

    def start(path: Path, feeds: dict[str, Any], *, processes: int, **_: Any) -> Start:
        calls.append((len(feeds["x"]), processes))
        return Start(0.001 * len(feeds["x"]), 1000 * len(feeds["x"]))

    monkeypatch.setattr(benchmark, "start_fresh", start)
    model = document(f"a.onnx {QUICK} --batch 4,1,2")["models"][0]
    assert (model["start_seconds"], model["peak_bytes"]) == (0.001, 4000)
    assert calls == [(1, 3), (4, 1)]


def test_a_quantized_model_tells_what_runs_on_integers_and_what_stayed_float() -> None:
    graph = Quantized()
    padded = graph.node("Pad", "pad", graph.start(), graph.store("pads", np.array([0, 0, 1, 1, 0, 0, 1, 1])))
    save(graph.model(graph.pair(graph.conv("second", graph.pair(padded)))), "int8.onnx")
    text = run(f"int8.onnx {QUICK} --no-memory").stdout
    assert "2/1/0" in text
    assert (
        "int8.onnx: unfused Pad pad between integer nodes: onnxruntime has no integer kernel for Pad" in text
    )
    fusion = document(f"int8.onnx {QUICK} --no-memory")["models"][0]["fusion"]
    assert [node["name"] for node in fusion["fused"]] == ["first", "second"]
    assert fusion["unfused"] == fusion["islands"]
    assert fusion["unfused"][0]["reason"] == "onnxruntime has no integer kernel for Pad"


def test_many_nodes_that_stayed_float_are_counted_after_the_first() -> None:
    graph = Quantized()
    value = graph.start()
    for number in range(30):
        value = graph.pair(graph.node("Tanh", f"tanh{number}", value))
    save(graph.model(value), "int8.onnx")
    lines = run(f"int8.onnx {QUICK} --no-memory").stdout.splitlines()
    assert sum("unfused Tanh" in line for line in lines) == 20
    assert lines[-1].strip() == "int8.onnx: and 10 more; --json names all"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "Missing argument"),
        ("none.onnx", "the model none.onnx does not exist"),
        (".", "the model . is a folder"),
        ("a.onnx --batch 1,x", "'1,x' is no list of batch sizes, such as 1,8"),
        ("a.onnx --batch 0", "'0' is no list of batch sizes"),
        ("a.onnx --rounds 0", "--rounds"),
        ("a.onnx --threads -1", "--threads"),
        ("a.onnx --set-shape x", "'x' is not NAME=SIZES"),
        ("a.onnx --set-shape z=1,2", "the model has no input 'z'; its inputs are x"),
        ("a.onnx --set-shape x=1,3,4", "input 'x' has 4 axes; 3 sizes are given"),
        ("a.onnx --set-shape x=1,4,8,8", "axis 1 of input 'x' is 3; it cannot be set to 4"),
        ("fixed.onnx --batch 3", "the model fixes its batch size at 2; 3 cannot be measured, give 2"),
        (
            "fixed.onnx --set-shape x=3,3,8,8",
            "the model fixes its batch size at 2; 3 cannot be measured, give 2",
        ),
        ("a.onnx other.onnx", "the models have different inputs: x and z"),
        ("a.onnx double.onnx", "input 'x' is float32 in one model and float64 in the other"),
        ("a.onnx fixed.onnx --set-shape x=2,3,9,9", "axis 2 of input 'x' is 8; it cannot be set to 9"),
        ("a.onnx --custom-op-lib no.so", "--custom-op-lib no.so does not exist"),
    ],
)
def test_every_wrong_call_is_one_line_and_exit_code_2(words: str, message: str) -> None:
    result = run(f"{words} --no-memory", 2)
    assert message in result.stderr
    assert result.stdout == ""
    assert len(result.stderr.strip().splitlines()) <= (1 if "onnxcomp: " in result.stderr else 5)


def test_a_file_that_is_no_model_is_refused() -> None:
    Path("text.onnx").write_text("hello")
    assert "not an ONNX model" in run("a.onnx text.onnx", 2).stderr


def test_a_model_that_does_not_run_is_named() -> None:
    body = "r = Reshape(x, s)  y = Relu(r)"
    save(parse_model(net("(float[N,3,H,W] x) => (float[A] y)", "int64[1] s = {7}", body)), "bad.onnx")
    result = run(f"a.onnx bad.onnx {QUICK} --no-memory", 2)
    assert result.stderr.splitlines()[-1].startswith("onnxcomp: bad.onnx: ")


def test_python_calls_get_records_and_models_in_memory_have_names() -> None:
    model = parse_model(net("(float[N,3,H,W] x) => (float[N,3,H,W] y)", "", "y = Relu(x)"))
    found = onnxcomp.bench("a.onnx", model, batches=[2], rounds=1, repeats=2, set_shape={"x": [1, 3, 4, 4]})
    assert isinstance(found, BenchReport)
    assert [(m.name, m.file.path) for m in found.models] == [("a.onnx", "a.onnx"), ("model 2", "model 2")]
    assert found.models[1].peak_bytes == 34_000_000
    assert found.input_shapes == {2: {"x": (2, 3, 4, 4)}}


def test_python_calls_are_refused_as_commands_are() -> None:
    with pytest.raises(UsageError, match="there is nothing to measure; give one model or more"):
        onnxcomp.bench()
    with pytest.raises(UsageError, match="--rounds 0: give 1 or more"):
        onnxcomp.bench("a.onnx", rounds=0)
    with pytest.raises(UsageError, match="--batch 0: give 1 or more"):
        onnxcomp.bench("a.onnx", batches=[0])
    with pytest.raises(ModelError, match="different inputs"):
        onnxcomp.bench("a.onnx", "other.onnx", memory=False)
    with pytest.raises(UsageError, match="a model is a path, a Model or a ModelProto, not int"):
        onnxcomp.bench(3)  # type: ignore[arg-type]


def test_a_file_that_only_loads_from_memory_is_measured_without_start_up_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = Session

    def session(source: Any, **options: Any) -> Any:
        if isinstance(source, str):
            raise SessionError("the external data is a link")
        return real(source, **options)

    monkeypatch.setattr(benchmark, "Session", session)
    found = onnxcomp.bench("a.onnx", rounds=1, repeats=1)
    assert (found.models[0].start_seconds, found.models[0].peak_bytes) == (None, None)
    assert "onnxruntime does not load the file by its path" in found.notes[0]
