"""The config file: one schema, unknown keys are errors, the command line wins."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from onnxcomp.cli.config_file import CONFIGURED, TEMPLATE, read_config
from onnxcomp.cli.main import cli
from onnxcomp.errors import UsageError
from onnxcomp.runtime.data.preprocess import Preprocess
from tests.support.fakes import write_classifier, write_data


def config(text: str, path: Path) -> dict[str, Any]:
    path.write_text(text)
    return read_config(path)


def test_every_key_has_its_type(tmp_path: Path) -> None:
    found = config(
        """
        passes = "remove-dead"
        calibration = "c.npz"
        evaluation = "random:8"
        samples = 12
        metric = "agreement"
        max-drop = 2
        min-sqnr = 1.5
        require-smaller = true
        require-speedup = 2
        exclude = ["a", "op:Relu"]
        output = "y"
        seed = 7
        threads = 1
        opset = 18
        ir-version = 9
        report = "run.json"
        timings = "earlier.json"
        allow-noop = true
        strict = false
        [set-shape]
        "my.input" = ["*", 3, 8, 8]
        [preprocess]
        scale = 0.5
        """,
        tmp_path / "c.toml",
    )
    assert found == {
        "passes": "remove-dead",
        "calibration": str(tmp_path / "c.npz"),
        "evaluation": "random:8",
        "samples": 12,
        "metric": "agreement",
        "max_drop": 2.0,
        "min_sqnr": 1.5,
        "require_smaller": True,
        "require_speedup": 2.0,
        "exclude": ("a", "op:Relu"),
        "decision": "y",
        "seed": 7,
        "threads": 1,
        "opset": 18,
        "ir_version": 9,
        "reports": (tmp_path / "run.json",),
        "timings": tmp_path / "earlier.json",
        "allow_noop": True,
        "strict": False,
        "set_shape": {"my.input": (None, 3, 8, 8)},
        "preprocess": Preprocess(scale=0.5),
    }


def test_paths_are_meant_from_the_folder_of_the_file_and_the_rest_is_no_path(tmp_path: Path) -> None:
    for text, meant in (
        ("data/c.npz", str(tmp_path / "data/c.npz")),
        ("/data/c.npz", "/data/c.npz"),
        ("none", "none"),
        ("random", "random"),
        ("random:12", "random:12"),
        ("package.module:function", "package.module:function"),
    ):
        assert config(f'calibration = "{text}"', tmp_path / "c.toml")["calibration"] == meant


MISTAKES = [
    ("max_drop = 1", "unknown key 'max_drop'; did you mean 'max-drop'?"),
    ("allow-code = true", "unknown key 'allow-code'"),
    ("force = true", "unknown key 'force'"),
    ("seed = 1.5", "seed: a whole number is needed, this is 1.5"),
    ("seed = true", "seed: a whole number is needed, this is True"),
    ('max-drop = "1"', "max-drop: a number is needed, this is '1'"),
    ("strict = 1", "strict: true or false is needed, this is 1"),
    ("passes = 3", "passes: text is needed, this is 3"),
    ("exclude = [1]", "exclude: text is needed, this is 1"),
    ("exclude = 1", "exclude: a list of texts is needed, this is 1"),
    ('metric = "topp1"', "metric: unknown metric 'topp1'; did you mean 'top1'?"),
    ("set-shape = 3", "set-shape: a table of lists such as"),
    ("[set-shape]\nx = 3", "set-shape.x: a list of sizes is needed, this is 3"),
    ('[set-shape]\nx = ["N"]', "set-shape.x: a whole number is needed, this is 'N'"),
    ("[preprocess]\nscal = 1", "preprocess: unknown key 'scal'; did you mean 'scale'?"),
    ("preprocess = 3", "preprocess: a table is needed, this is 3"),
    ('passes = "a"\npreset = "exact"', "passes and preset are both given; keep one"),
    ("seed = = 1", "not TOML: "),
    ("a = " + "[" * 2000, "not TOML: "),
]


@pytest.mark.parametrize(("text", "message"), MISTAKES)
def test_every_mistake_names_file_and_key(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        config(text, tmp_path / "c.toml")
    assert str(caught.value).startswith(str(tmp_path / "c.toml"))


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8 text"):
        read_config(tmp_path / "c.toml")
    with pytest.raises(UsageError, match=r"Is a directory|Permission denied"):
        read_config(tmp_path)


def test_the_template_holds_every_key_and_parses_with_all_of_them(tmp_path: Path) -> None:
    assert config(TEMPLATE, tmp_path / "plain.toml") == {"preset": "exact"}
    every = re.sub(r"^# (\[?[\w-]+\]?( =.*)?)$", r"\1", TEMPLATE, flags=re.MULTILINE)
    found = config(every.replace("\npasses = ", "\n# passes = "), tmp_path / "every.toml")
    assert {option.name for option in CONFIGURED.values()} - set(found) == {"passes"}


# --- with the command line -------------------------------------------------------------------------------------------
@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_classifier(tmp_path)
    return tmp_path


def run(words: str, code: int = 0) -> str:
    result = CliRunner().invoke(cli, shlex.split(words))
    assert result.exit_code == code, result.output
    return result.output


def report(words: str = "", code: int = 0) -> dict[str, object]:
    run(f"optimize model.onnx -o out.onnx --force -q --config c/c.toml --report r.json {words}", code)
    document: dict[str, object] = json.loads(Path("r.json").read_text())
    return document


def test_the_config_fills_in_what_the_command_line_leaves_open(here: Path) -> None:
    (here / "c").mkdir()
    write_data(here / "c", samples=20)
    Path("c/c.toml").write_text(
        'passes = "remove-dead"\nseed = 5\nevaluation = "data.npz"\nexclude = ["conv"]\nmin-sqnr = 10\n'
        "[set-shape]\nimage = [1, 3, 4, 4]\n"
    )
    found = report()
    assert (found["pipeline"], found["seed"], found["excluded"]) == ("remove-dead", 5, ["conv"])
    assert found["compared_on"] == "evaluation"
    assert found["conditions"][0]["limit"] == 10.0  # type: ignore[index]
    assert any("-> [1, 3, 4, 4]" in note for note in found["notes"])  # type: ignore[attr-defined]


def test_the_command_line_wins(here: Path) -> None:
    (here / "c").mkdir()
    Path("c/c.toml").write_text(
        'passes = "remove-dead"\nseed = 5\nexclude = ["conv"]\nrequire-smaller = true\nallow-noop = true\n'
    )
    found = report("--preset exact --seed 6 --exclude scores --no-require-smaller")
    assert found["pipeline"] == "fold-constants,fold-batchnorm,remove-dead"
    assert (found["seed"], found["excluded"], found["conditions"]) == (6, ["scores"], [])
    assert report("--passes fold-batchnorm", 4)["status"] == "budget-not-met"


def test_reports_in_the_config_are_written_too(here: Path) -> None:
    Path("c.toml").write_text('report = ["from-config.json"]')
    run("optimize model.onnx -o out.onnx -q --config c.toml")
    assert Path("from-config.json").exists()


def test_preprocessing_of_the_config_gives_way_to_the_option(here: Path) -> None:
    np.savez("images.npz", image=np.zeros((4, 4, 4, 3), np.uint8))
    Path("c.toml").write_text('evaluation = "images.npz"\n[preprocess]\nlayout = "NHWC->NCHW"\n')
    run("optimize model.onnx -o out.onnx -q --config c.toml")
    assert "without preprocessing" in run(
        "optimize model.onnx -o b.onnx -q --config c.toml --preprocess none", 2
    )


def test_config_init_writes_the_template_and_replaces_nothing(here: Path) -> None:
    run("config init")
    assert Path("onnxcomp.toml").read_text() == TEMPLATE
    assert "already exists" in run("config init", 2)
    run("config init --force")
    assert run("config init -") == TEMPLATE
    run("optimize model.onnx -o out.onnx -q --config onnxcomp.toml")
