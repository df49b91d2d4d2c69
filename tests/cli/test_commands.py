"""The commands: wiring, exit codes, what goes to stdout and what to stderr, and that no traceback is ever seen."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result

import onnxcomp
from onnxcomp import passes
from onnxcomp.cli.group import Command, clean
from onnxcomp.cli.main import cli
from tests.support.fakes import FAKES, write_classifier, write_data

ROOT = Path(onnxcomp.__file__).parents[1]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder with a model and data, the fakes among the passes, no child process per model."""
    for name, target in FAKES.items():
        monkeypatch.setitem(passes.BUILTIN, name, target)
    write_classifier(tmp_path)
    write_data(tmp_path, samples=40)
    write_data(tmp_path, "labelled.npz", samples=40, labels=True)


def run(words: str, code: int = 0) -> Result:
    """Run `onnxcomp` with `words` in this process and expect the exit code."""
    result = CliRunner().invoke(cli, shlex.split(words))
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def files() -> set[str]:
    return {p.name for p in Path().iterdir()} - {"model.onnx", "data.npz", "labelled.npz"}


# --- optimize --------------------------------------------------------------------------------------------------------
def test_optimize_runs_the_exact_preset_and_prints_a_row_per_pass() -> None:
    result = run("optimize model.onnx -o small.onnx")
    lines = [line.split() for line in result.stdout.splitlines() if line.split()]
    table = {line[0]: line for line in lines}
    assert table["remove-dead"][1:3] == ["changed", "4"]
    assert table["input"][1] == "5"
    assert table["of"][-2:] == ["100.0", "%"]
    assert "agreement 100.00 %" in result.stdout
    assert result.stdout.splitlines()[-2] == "wrote small.onnx"
    assert result.stdout.splitlines()[-1].startswith("kept: ")
    assert "[3/3] remove-dead: changed" in result.stderr
    assert files() == {"small.onnx"}


def test_optimize_tells_accuracy_where_there_are_labels() -> None:
    out = run("optimize model.onnx -o small.onnx --evaluation labelled.npz").stdout
    assert "on 40 samples of evaluation data labelled.npz: top1" in out
    assert "(drop 0.00)" in out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (
            "--passes 'raise{what=verification}' --strict",
            1,
            "raise: the made-up check failed; stopped because",
        ),
        ("--passes remove-ded", 2, "did you mean 'remove-dead'?"),
        ("--passes remove-dead --preset exact", 2, "--passes and --preset are both given; keep one"),
        ("--preset exat", 2, "unknown preset 'exat'; did you mean 'exact'?"),
        ("--passes needy", 2, "needy needs samples; give --calibration"),
        ("--passes needy --calibration none", 2, "needy has no data-free mode"),
        ("--passes 'raise{what=memory}'", 2, "raise takes 256. PiB of memory"),
        ("--exclude 'cnv*'", 2, "--exclude 'cnv*' matches no node; near: conv"),
        ("--max-drop 1", 2, "--max-drop needs samples to judge on"),
        ("--custom-op-lib no.so", 2, "--custom-op-lib no.so does not exist"),
        ("--calibration here:feeds", 2, "here:feeds: runs Python code; say --allow-code"),
        ("--report r.txt", 2, "end the name in .json"),
        ("--set-shape image=1,3,4", 2, "it has 4 axes"),
        ("--output score", 2, "--output 'score' is no output; known: scores"),
        ("--config none.toml", 2, "none.toml: No such file or directory"),
        ("--preprocess none.toml", 2, "none.toml: No such file or directory"),
        ("--passes fold-batchnorm", 3, "no pass changed the model, so nothing was written"),
        ("--passes scale --evaluation data.npz --min-sqnr 60", 4, "--min-sqnr 60: "),
        (
            "--passes 'scale{by=-1.0}' --evaluation labelled.npz --max-drop 0 --metric agreement",
            4,
            "--max-drop 0: ",
        ),
        ("--passes grow --require-smaller", 4, "--require-smaller"),
        ("--passes fall-short", 4, "fall-short: macs=0.5 cannot be reached"),
        (
            "--passes raise",
            70,
            "raise failed unexpectedly, please report it: ZeroDivisionError: of all things",
        ),
        ("--passes 'raise{what=interrupt}'", 130, "interrupted; nothing was written"),
    ],
)
def test_every_way_to_end_has_its_exit_code_and_one_clear_line(words: str, code: int, message: str) -> None:
    result = run(f"optimize model.onnx -o out.onnx -q {words}", code)
    assert message in result.stderr
    assert result.stderr.lstrip().startswith("onnxcomp: ")
    assert "out.onnx" not in files()
    assert files() == {4: {"out.best.onnx"}, 70: {"out.crash"}}.get(code, set())


@pytest.mark.parametrize(
    "words",
    [
        "optimize",
        "optimize model.onnx",
        "optimize model.onnx -o out.onnx --pases x",
        "optimize model.onnx -o out.onnx --samples 0",
        "optimize model.onnx -o out.onnx --seed -1",
        "optimize model.onnx -o out.onnx --metric f1",
        "optimize model.onnx -o out.onnx --set-shape image",
        "optimize model.onnx -o out.onnx --set-shape image=1,x",
        "compare model.onnx model.onnx",
        "nonsense",
    ],
)
def test_a_command_line_that_does_not_parse_ends_with_2_and_says_how_it_is_called(words: str) -> None:
    assert "Usage: onnxcomp" in run(words, 2).stderr


def test_the_report_is_one_document_with_everything_about_the_run() -> None:
    run(
        "optimize model.onnx -o out.onnx --passes 'remove-dead,break,scale' --calibration data.npz --samples 30 "
        "--evaluation labelled.npz --exclude op:Flatten --report a.json --report b.json --seed 3 --max-drop 100"
    )
    document = json.loads(Path("a.json").read_text())
    assert Path("a.json").read_text() == Path("b.json").read_text()
    assert document["schema_version"] == 2
    assert document["pipeline"] == "remove-dead,break,scale"
    assert [r["status"] for r in document["runs"]] == ["changed", "rolled-back", "changed"]
    assert document["runs"][0]["before"].keys() == {"nodes", "parameters", "bytes", "macs"}
    assert [(d["role"], d["samples"], d["labelled"]) for d in document["data"]] == [
        ("calibration", 30, False),
        ("evaluation", 40, True),
    ]
    assert document["excluded"] == ["flat"]
    assert document["nodes"] == {"same": None}
    assert document["metric"] == "top1"
    assert document["conditions"][0]["met"] is True
    assert document["input_shapes"] == {"image": [1, 3, 4, 4]}
    assert {"onnxcomp", "onnx", "onnxruntime", "numpy", "python"} == document["versions"].keys()
    assert document["seed"] == 3


def test_verbose_tells_every_change_and_skip_and_quiet_nothing() -> None:
    told = run("optimize model.onnx -o a.onnx --passes scale -v").stderr
    assert "    conv: times 0.5" in told
    assert "    head: skipped, one weight is enough" in told
    assert (
        "1 skipped (head: one weight is enough)" in run("optimize model.onnx -o b.onnx --passes scale").stderr
    )
    quiet = run("optimize model.onnx -o c.onnx --passes scale -q")
    assert quiet.stderr == ""
    assert "wrote c.onnx" in quiet.stdout


def test_a_dry_run_shows_the_plan_and_writes_nothing() -> None:
    out = run(
        "optimize model.onnx -o out.onnx --passes 'remove-dead,needy' --calibration data.npz "
        "--evaluation labelled.npz --max-drop 2 --exclude conv --report r.json --dry-run"
    ).stdout
    for words in ("remove-dead", "needy", "40 samples of data.npz", "top1 on output scores", "--max-drop"):
        assert words in out
    assert "would write   out.onnx, r.json" in out
    assert files() == set()
    run("optimize model.onnx -o out.onnx --passes needy --dry-run", 2)


def test_an_existing_output_is_replaced_only_by_force() -> None:
    Path("out.onnx").write_text("old")
    assert "already exists" in run("optimize model.onnx -o out.onnx", 2).stderr
    assert Path("out.onnx").read_text() == "old"
    run("optimize model.onnx -o out.onnx --force")
    assert [n.op for n in onnxcomp.load("out.onnx").graph.nodes] == ["Conv", "Relu", "Flatten", "MatMul"]


def test_a_copy_is_written_on_request_where_nothing_changed() -> None:
    run("optimize model.onnx -o out.onnx --passes fold-batchnorm --allow-noop")
    assert Path("out.onnx").read_bytes() == Path("model.onnx").read_bytes()


def test_a_file_that_grew_is_told_loudly() -> None:
    assert "the file grew by" in run("optimize model.onnx -o out.onnx --passes grow").stdout


def test_preprocessing_can_be_given_in_a_file_or_switched_off() -> None:
    images = np.random.default_rng(0).integers(0, 255, (4, 4, 4, 3), dtype=np.uint8)
    np.savez("images.npz", image=images)
    call = "optimize model.onnx -o out.onnx --force -q --evaluation images.npz"
    assert "stored as uint8 without preprocessing" in run(call, 2).stderr
    Path("p.toml").write_text('[preprocess]\nlayout = "NHWC->NCHW"\nscale = 0.01\n')
    run(f"{call} --preprocess p.toml")
    Path("p.json").write_text('{"layout": "NHWC->NCHW", "scale": 0.01}')
    run(f"{call} --preprocess p.json")
    Path("p.toml").write_text('layout = "NHWC->NCHW"\nscal = 0.01\n')
    assert "did you mean 'scale'?" in run(f"{call} --preprocess p.toml", 2).stderr
    assert "without preprocessing" in run(f"{call} --preprocess none", 2).stderr


# --- the other commands ----------------------------------------------------------------------------------------------
def test_inspect_shows_nodes_costs_and_channel_groups() -> None:
    out = run("inspect model.onnx").stdout
    assert "input  image: float32 [N, 3, 4, 4], measured at [1, 3, 4, 4]" in out
    assert "nodes with cost (2 of 5)" in out
    assert "can be cut" in out
    assert "it reaches the graph output 'scores'" in out
    assert "nodes\n" in run("inspect model.onnx --all").stdout


def test_inspect_as_json_is_one_document_and_nothing_else() -> None:
    result = run("inspect model.onnx --json")
    document = json.loads(result.stdout)
    assert document["schema_version"] == 2
    assert result.stderr == ""
    conv = document["nodes"][0]
    assert (conv["op"], conv["macs"], conv["parameters"], conv["shape"]) == ("Conv", 2592, 162, [1, 6, 4, 4])
    groups = {g["name"]: g for g in document["groups"]}
    assert (groups["conv"]["units"], groups["conv"]["blocked"]) == (6, None)
    assert groups["conv"]["consumers"] == ["scores"]
    assert "scores" in groups["scores"]["blocked"]
    assert document["cost"]["macs"] == sum(n["macs"] for n in document["nodes"])
    assert document["cost"]["parameters"] == sum(n["parameters"] for n in document["nodes"])


def test_inspect_measures_at_the_sizes_it_is_given() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> net (float[N, 3, H, W] x) => (float[N, 2, H, W] y)
    <float[2, 3, 1, 1] w> { y = Conv (x, w) }"""
    write_classifier(Path(), "free.onnx", text)
    document = json.loads(run("inspect free.onnx --set-shape x=*,3,5,7 --json").stdout)
    assert document["cost"]["macs"] == 2 * 3 * 5 * 7
    assert document["input_shapes"] == {"x": [1, 3, 5, 7]}


def test_compare_shows_the_distance_of_two_files() -> None:
    run("optimize model.onnx -o half.onnx --passes scale -q")
    out = run("compare model.onnx half.onnx --data labelled.npz").stdout
    assert "scores" in out
    assert "top1" in out
    document = json.loads(run("compare model.onnx half.onnx --data labelled.npz --json").stdout)
    assert document["schema_version"] == 2
    assert document["comparison"]["samples"] == 40
    assert document["comparison"]["outputs"][0]["relative"] == pytest.approx(0.5, rel=1e-5)
    same = json.loads(run("compare model.onnx model.onnx --data random:4 --json").stdout)
    assert same["comparison"]["outputs"][0]["identical"] is True
    assert same["comparison"]["sqnr_db"] is None


def test_compare_runs_both_at_the_sizes_that_one_of_them_fixes() -> None:
    run("optimize model.onnx -o fixed.onnx --set-shape image=1,3,4,4 -q")
    for words in ("model.onnx fixed.onnx", "fixed.onnx model.onnx"):
        document = json.loads(run(f"compare {words} --data data.npz --json").stdout)
        assert document["comparison"]["samples"] == 40
        assert document["comparison"]["agreement"] == 100.0


def test_compare_refuses_models_that_do_not_compare() -> None:
    head = '<ir_version: 8, opset_import: ["" : 17]> net '
    write_classifier(Path(), "other.onnx", head + "(float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }")
    assert "different inputs: image and x" in run("compare model.onnx other.onnx --data data.npz", 2).stderr
    write_classifier(
        Path(), "wide.onnx", head + "(float[N, 3, 5, 5] image) => (float[N, 3, 5, 5] y) { y = Relu (image) }"
    )
    assert "input 'image' has the shape" in run("compare model.onnx wide.onnx --data data.npz", 2).stderr
    assert "does not exist" in run("compare model.onnx none.onnx --data data.npz", 2).stderr


def test_print_gives_the_same_text_for_the_same_model() -> None:
    first = run("print model.onnx").stdout
    assert first == run("print model.onnx").stdout
    assert "Conv" in first


def test_passes_and_presets_are_listed_and_described() -> None:
    out = run("passes").stdout
    for name in ("fold-constants", "prune-filters"):
        assert name in out
    assert "criterion" in run("passes prune-filters").stdout
    assert "did you mean 'prune-filters'?" in run("passes prune-filter", 2).stderr
    described = json.loads(run("passes prune-filters --json").stdout)
    assert described["name"] == "prune-filters"
    assert "exact" in run("presets").stdout
    assert json.loads(run("presets --json").stdout)["presets"][0]["name"] == "exact"


def test_the_version_names_onnx_and_onnxruntime_too() -> None:
    out = run("--version").stdout
    assert out.startswith(f"onnxcomp {onnxcomp.__version__} (onnx ")
    assert "onnxruntime " in out


# --- help ------------------------------------------------------------------------------------------------------------
def commands(group: click.Group = cli, path: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{path}{name} ")
        else:
            yield f"{path}{name}", command


@pytest.mark.parametrize("name", [name for name, _ in commands()])
def test_every_command_has_help_with_examples_and_every_option_has_help(name: str) -> None:
    command = dict(commands())[name]
    assert isinstance(command, Command)
    assert command.examples
    out = run(f"{name} --help").stdout
    assert "Examples:" in out
    for parameter in command.params:
        assert not isinstance(parameter, click.Option) or parameter.help, parameter.name


EXAMPLES = [(name, e) for name, c in commands() if isinstance(c, Command) for e in c.examples]


@pytest.mark.parametrize(("name", "example"), EXAMPLES)
def test_every_example_of_the_help_runs(name: str, example: str) -> None:
    """The files that the examples speak of are there; what they write is not."""
    Path("data.npz").rename("calibration.npz")
    Path("labelled.npz").rename("evaluation.npz")
    write_classifier(Path(), text=(
        '<ir_version: 8, opset_import: ["" : 17]> net (float[N, 3, H, W] input) => (float[N, 5] y) '
        "<float[8, 3, 3, 3] a, float[5, 8, 1, 1] b> { c = Identity (input) h = Conv (c, a) i = Relu (h) "
        "j = Conv (i, b) k = GlobalAveragePool (j) y = Flatten (k) }"
    ), name="new.onnx")  # fmt: skip
    Path("new.onnx").replace("model.onnx")
    rng = np.random.default_rng(0)
    for data in ("calibration.npz", "evaluation.npz"):
        x = rng.standard_normal((64, 3, 32, 32)).astype(np.float32)
        np.savez(data, input=x, labels=rng.integers(0, 5, 64))
    if "small.onnx" in example and not example.startswith("onnxcomp optimize"):
        run("optimize model.onnx -o small.onnx -q")
    plain = example.replace("\\\n", " ")
    if "<(" in plain or " > " in plain:
        plain = plain.replace("onnxcomp", f"{sys.executable} -m onnxcomp")
        done = subprocess.run(
            ["bash", "-c", plain],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            check=False,
        )
        assert done.returncode == (1 if plain.startswith("diff") else 0), done.stderr
        return
    words = shlex.split(plain)
    assert words[0] == "onnxcomp"
    code = 4 if "--max-drop" in words else 0
    result = CliRunner().invoke(cli, words[1:])
    assert result.exit_code in {0, code}, result.output


# --- endings that need a process -------------------------------------------------------------------------------------
def process(*words: str, **settings: Any) -> subprocess.Popen[str]:
    script = (
        "import signal, sys; sys.argv[0] = 'onnxcomp'\n"
        # A shell that starts tests in the background has them ignore the interrupt, and so do all their children.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from onnxcomp.passes import BUILTIN\n"
        "from tests.support.fakes import FAKES\n"
        "BUILTIN.update(FAKES)\n"
        "from onnxcomp.cli.main import main\n"
        "main()\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", script, *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **settings,
    )


def test_ctrl_c_ends_with_130_and_leaves_nothing() -> None:
    words = "optimize model.onnx -o out.onnx --passes scale,stall --report r.json"
    with process(*words.split()) as child:
        assert child.stderr is not None
        assert child.stderr.readline().startswith("[1/2] scale: changed")
        time.sleep(0.2)
        child.send_signal(signal.SIGINT)
        _, rest = child.communicate(timeout=30)
        assert child.returncode == 130
    assert rest.strip().splitlines()[-1] == "onnxcomp: interrupted; nothing was written"
    assert "Traceback" not in rest
    assert files() == set()


def test_a_reader_that_closes_the_pipe_is_not_an_error() -> None:
    with process("print", "model.onnx") as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        assert child.stderr.read() == ""
        assert child.wait(timeout=30) == 141


def test_debug_shows_where_it_happened() -> None:
    result = CliRunner().invoke(cli, shlex.split("optimize model.onnx -o out.onnx --passes raise --debug"))
    assert result.exit_code == 70
    assert "Traceback" in result.stderr
    assert "ZeroDivisionError" in result.stderr
    assert "Traceback" not in run("optimize model.onnx -o out.onnx --passes raise", 70).output


def test_a_bug_of_ours_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: Any) -> None:
        raise RecursionError("too deep")

    monkeypatch.setattr("onnxcomp.compiler.run.prepare.preflight", bug)
    result = run("optimize model.onnx -o out.onnx", 70)
    assert (
        result.stderr
        == "onnxcomp: a bug of onnxcomp, please report it (--debug shows where): RecursionError: too deep\n"
    )


# --- what models say -------------------------------------------------------------------------------------------------
def test_what_a_terminal_would_obey_is_stripped_from_names() -> None:
    assert clean("a\x1b[31mb\x00\u202ec\x9bd\ne") == "a[31mbcd\ne"
    model = onnxcomp.load("model.onnx")
    model.graph.nodes[0].name = "evil\x1b]0;title\x07\u202e[red]"
    onnxcomp.save(model, "evil.onnx")
    result = run("inspect evil.onnx")
    assert "evil]0;title[red]" in result.stdout
    for words in (
        "optimize evil.onnx -o out.onnx -v --passes scale",
        "print evil.onnx",
        "inspect evil.onnx --all",
    ):
        assert not {"\x1b", "\x07", "\u202e"} & set(run(words).output)
