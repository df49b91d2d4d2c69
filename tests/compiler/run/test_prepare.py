"""What is refused before the first pass runs, and what is found out about sizes, data and metrics."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxcomp
from onnxcomp.compiler.run.prepare import Prepared, prepare
from onnxcomp.compiler.run.request import Request
from onnxcomp.compiler.spec import Pipeline
from onnxcomp.errors import DataError, UsageError
from onnxcomp.ir.parse import parse_model
from tests.support.fakes import Needy, Scale, classifier, write_classifier, write_data

HEAD = '<ir_version: 8, opset_import: ["" : 17]> net '


def ready(model: Any = None, *steps: Any, **settings: Any) -> Prepared:
    pipeline = Pipeline(tuple(steps) or (Scale(),))
    return prepare(Request(pipeline=pipeline, **settings), model or classifier())


def refused(message: str, model: Any = None, *steps: Any, **settings: Any) -> None:
    with pytest.raises((UsageError, DataError), match=re.escape(message)):
        ready(model, *steps, **settings)


def test_a_need_that_is_not_met_is_refused_before_any_file_is_read(tmp_path: Path) -> None:
    refused("needy needs samples; give --calibration", None, Needy())
    refused("needy has no data-free mode", None, Needy(), calibration="none")
    data = write_data(tmp_path)
    refused("needy needs labels; add an int64 array 'labels'", None, Needy("labels"), calibration=str(data))
    assert (
        ready(None, Needy("labels"), calibration=str(write_data(tmp_path, labels=True))).data.mode == "real"
    )


def test_samples_that_cannot_be_made_are_refused_before_the_first_pass() -> None:
    @dataclass(frozen=True)
    class Content(Needy):
        data_free = True

    assert ready(None, Content(), calibration="none").data.calibration is None
    ids = parse_model(HEAD + "(int64[N,4] ids) => (int64[N,4] y) { y = Identity(ids) }")
    refused("--calibration none: input 'ids' takes int64 [N, 4]", ids, Content(), calibration="none")


def test_the_data_free_mode_can_be_spelled_out_where_nothing_needs_data() -> None:
    prepared = ready(calibration="none")
    assert prepared.data.mode == "none"
    assert prepared.context(lambda *_: None).calibration is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 4}, "--samples limits calibration data; give --calibration too"),
        ({"samples": 4, "calibration": "none"}, "--calibration none has none; give one of them"),
        ({"samples": 0, "calibration": "random"}, "--samples 0: give 1 or more"),
        ({"seed": -1}, "--seed -1: give 0 or more"),
        ({"threads": -1}, "--threads -1: give 0 or more"),
        ({"max_drop": -1.0}, "--max-drop -1 is not between 0 and 100"),
        ({"max_drop": float("nan")}, "--max-drop nan is not between 0 and 100"),
        ({"min_sqnr": float("nan")}, "--min-sqnr is not a number"),
        ({"max_drop": 1.0}, "--max-drop needs samples to judge on"),
        ({"min_sqnr": 1.0, "calibration": "none"}, "--min-sqnr needs samples to judge on"),
        ({"max_drop": 1.0, "metric": "sqnr", "evaluation": "random"}, "not sqnr; use --min-sqnr"),
        ({"metric": "top1"}, "--metric top1 needs --evaluation with labels"),
        ({"metric": "top1", "evaluation": "random"}, "--metric top1 needs labels"),
        ({"require_smaller": True}, "only of a model that is read from a file"),
        ({"require_speedup": 0.0}, "--require-speedup 0: give a number above 0, such as 1.2"),
        ({"require_speedup": float("nan")}, "--require-speedup nan: give a number above 0"),
        ({"require_speedup": float("inf")}, "--require-speedup inf: give a number above 0"),
        ({"exclude": ("nothing*",)}, "--exclude 'nothing*' matches no node"),
        ({"exclude": ("re:(",)}, "no regular expression"),
        ({"decision": "score"}, "--output 'score' is no output; known: scores"),
        ({"custom_op_libs": ("missing.so",)}, "--custom-op-lib missing.so does not exist"),
        ({"set_shape": {"picture": (1,)}}, "--set-shape names 'picture', which is no input; inputs: image"),
        ({"calibration": "random:x"}, "random:x"),
        ({"calibration": "missing.npz"}, "missing.npz: no such file"),
    ],
)
def test_a_wrong_call_is_refused_in_one_line(settings: dict[str, Any], message: str) -> None:
    refused(message, **settings)


def test_outputs_are_looked_at_before_anything_is_done(tmp_path: Path) -> None:
    source = write_classifier(tmp_path)
    (tmp_path / "there.onnx").write_text("x")
    (tmp_path / "free.best.onnx").write_text("x")
    (tmp_path / "link.onnx").hardlink_to(source)
    base: dict[str, Any] = {"source": source}
    for settings, message in (
        ({"output": source, "force": True}, "the model is read from it"),
        ({"output": tmp_path / "link.onnx", "force": True}, "the model is read from it"),
        ({"output": tmp_path / "there.onnx"}, "already exists"),
        ({"output": tmp_path}, "it is a folder"),
        ({"output": tmp_path / "no" / "out.onnx"}, "there is no folder"),
        ({"output": tmp_path / "free.onnx", "require_smaller": True}, "free.best.onnx' already exists"),
        ({"output": tmp_path / "free.onnx", "require_speedup": 2.0}, "free.best.onnx' already exists"),
        ({"output": tmp_path / "a.json", "reports": (tmp_path / "a.json",)}, "is given for two outputs"),
        ({"reports": (tmp_path / "r.html",)}, "end the name in .json"),
        ({"reports": (tmp_path / "no" / "r.json",)}, "there is no folder"),
    ):
        with pytest.raises(UsageError, match=re.escape(message)):
            prepare(Request(pipeline=Pipeline((Scale(),)), **base, **settings))
    for path, message in ((tmp_path / "none.onnx", "is missing"), (tmp_path, "is a folder")):
        with pytest.raises(UsageError, match=message):
            prepare(Request(pipeline=Pipeline((Scale(),)), source=path))


def test_sizes_come_from_the_calibration_data() -> None:
    model = parse_model(HEAD + "(float[N, 3, H, W] x) => (float[N, 3, H, W] y) { y = Relu (x) }")
    calibration = {"x": np.ones((6, 3, 10, 12), np.float32)}
    evaluation = {"x": np.ones((4, 3, 20, 20), np.float32)}
    assert ready(model, calibration=calibration, evaluation=evaluation).data.shapes == {"x": (1, 3, 10, 12)}
    assert ready(model, evaluation=evaluation).data.shapes == {"x": (1, 3, 20, 20)}


def test_without_data_the_first_size_at_which_the_model_runs_is_taken() -> None:
    relu = parse_model(HEAD + "(float[N, 3, H, W] x) => (float[N, 3, H, W] y) { y = Relu (x) }")
    assert ready(relu).data.shapes == {"x": (1, 3, 64, 64)}
    text = "(float[N, 2, S] x) => (float[N, 512] y) <int64[2] shape = {-1, 512}> { y = Reshape (x, shape) }"
    assert ready(parse_model(HEAD + text)).data.shapes == {"x": (1, 2, 256)}


def test_a_model_that_runs_at_none_of_the_usual_sizes_is_checked_in_structure_only() -> None:
    text = "(float[7, S] x) => (float[7, 7] y) <int64[2] shape = {7, 7}> { y = Reshape (x, shape) }"
    model = parse_model(HEAD + text)
    prepared = ready(model)
    assert (prepared.data.shapes, prepared.data.feeds, prepared.outputs) == ({}, (), None)
    refused("needs to know the sizes of the inputs; give --set-shape x=", model, Needy("shapes"))
    refused("give --set-shape x=7,SIZE", model, calibration="random")
    assert ready(model, set_shape={"x": (7, 7)}).data.shapes == {"x": (7, 7)}


def test_models_are_verified_on_one_sample_and_on_several() -> None:
    prepared = ready(calibration={"image": np.ones((6, 3, 4, 4), np.float32)})
    assert [f["image"].shape[0] for f in prepared.data.feeds] == [2, 1]
    assert prepared.data.batch > 1
    assert [f["image"].shape[0] for f in ready().data.feeds] == [2, 1]


def test_a_model_that_takes_one_sample_at_a_time_gets_one_at_a_time() -> None:
    text = "(float[N, 4] x) => (float[1, 4] y) <int64[2] shape = {1, 4}> { y = Reshape (x, shape) }"
    model = parse_model(HEAD + text)
    prepared = ready(model, evaluation={"x": np.ones((5, 4), np.float32)})
    assert prepared.data.batch == 1
    result = onnxcomp.optimize(model, "remove-dead", evaluation={"x": np.ones((5, 4), np.float32)})
    assert result.report.comparison is not None
    assert result.report.comparison.samples == 5


def test_data_that_the_model_does_not_run_on_is_named() -> None:
    text = "(float[N, S] x) => (float[N, 4] y) <float[3, 4] w> { y = MatMul (x, w) }"
    refused(
        "python: onnxruntime cannot run the model on the first sample",
        parse_model(HEAD + text),
        calibration={"x": np.ones((5, 4), np.float32)},
    )


def test_a_bad_sample_at_the_end_is_found_before_any_pass_runs() -> None:
    image = np.ones((6, 3, 4, 4), np.float32)
    image[5, 0, 0, 0] = np.nan
    refused("python: sample 5 of input 'image' holds NaN", calibration={"image": image})


def test_labels_beyond_the_classes_are_refused() -> None:
    data = {"image": np.ones((2, 3, 4, 4), np.float32), "labels": np.array([0, 5])}
    refused("the labels run from 0 to 5, output 'scores' has 5 classes", evaluation=data)


def test_the_metric_is_the_best_that_the_data_allows() -> None:
    image = np.ones((4, 3, 4, 4), np.float32)
    labelled = {"image": image, "labels": np.array([0, 1, 2, 3])}
    assert ready(evaluation=labelled).metric == "top1"
    assert ready(evaluation={"image": image}).metric == "agreement"
    assert ready().metric == "agreement"
    relu = parse_model(HEAD + "(float[N, 3, 4, 4] image) => (float[N, 3, 4, 4] y) { y = Relu (image) }")
    assert ready(relu).metric == "sqnr"
    refused(
        "--max-drop needs an output of shape [N, C >= 2]", relu, evaluation={"image": image}, max_drop=1.0
    )
    refused("--metric agreement needs an output of shape [N, C >= 2]", relu, metric="agreement")


def test_only_the_first_calibration_samples_are_used_and_all_that_judge(tmp_path: Path) -> None:
    data = str(write_data(tmp_path, samples=12))
    prepared = ready(calibration=data, evaluation=data, samples=5)
    assert [(f.role, f.samples) for f in prepared.data.facts] == [("calibration", 5), ("evaluation", 12)]
    assert all(f.sha256 and f.mode == "real" for f in prepared.data.facts)


def test_the_api_names_the_option_that_was_meant() -> None:
    with pytest.raises(UsageError, match="optimize has no option 'max_dropp'; did you mean 'max_drop'"):
        onnxcomp.optimize(classifier(), "remove-dead", max_dropp=1)  # type: ignore[call-arg]
    with pytest.raises(UsageError, match="a model is a path, a Model or a ModelProto, not int"):
        onnxcomp.optimize(3)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="a pipeline is text or passes, not str"):
        onnxcomp.optimize(classifier(), ["remove-dead"])  # type: ignore[list-item]


def test_a_model_that_does_not_run_here_takes_its_sizes_from_the_data() -> None:
    text = '<ir_version: 8, opset_import: ["" : 17, "my.own" : 1]> net '
    text += "(float[N, 3, H, W] x) => (float[N, 3, H, W] y) { a = my.own.Magic (x)  y = Relu (a) }"
    model = parse_model(text)
    assert ready(model).data.shapes == {}
    assert ready(model, calibration={"x": np.ones((2, 3, 6, 7), np.float32)}).data.shapes == {
        "x": (1, 3, 6, 7)
    }
