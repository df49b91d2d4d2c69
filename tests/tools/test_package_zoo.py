"""Inputs made for real networks are what their kind asks for, the same for a seed; what is absent is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, numpy_helper

import onnxcomp
from onnxcomp.errors import UsageError
from tools.bench import quantize_zoo as quantize_package_zoo
from tools.bench.child import Usage
from tools.bench.quantize_zoo import peer_entry, quantize_entry
from tools.package_inputs import RATE, file_bytes, pages, scenes, sound, text_lines, tokens, windows
from tools.package_zoo import ENTRIES, Entry, with_float_weights, write_samples

ZOO = Path(__file__).parents[2] / "models"


@pytest.mark.parametrize("make", [pages, text_lines, scenes])
def test_images_lie_between_zero_and_one_and_differ_from_one_another(make: object) -> None:
    assert callable(make)
    images = make(3, 48, 96, 5)
    assert (images.shape, images.dtype) == ((3, 3, 48, 96), np.float32)
    assert images.min() >= 0 and images.max() <= 1 and images.std() > 0.05
    assert not np.array_equal(images[0], images[1])
    np.testing.assert_array_equal(images[:2], make(2, 48, 96, 5))
    assert not np.array_equal(images[0], make(1, 48, 96, 6)[0])


def test_text_is_dark_on_light() -> None:
    image = text_lines(1, 48, 320, 0)[0].mean(0)
    paper = np.median(image)
    assert 0.02 < (image < paper - 0.2).mean() < 0.5


def test_sound_has_loud_and_silent_stretches() -> None:
    wave = sound(4.0, 1)
    loudness = np.sqrt((wave.reshape(-1, RATE // 20) ** 2).mean(1))
    assert wave.shape == (4 * RATE,) and wave.dtype == np.float32 and np.abs(wave).max() <= 1
    assert loudness.max() > 20 * loudness.min() > 0


def test_windows_overlap_by_their_context_and_begin_with_silence() -> None:
    cut = list(windows(np.arange(1, 11, dtype=np.float32), 4, 2))
    np.testing.assert_array_equal(np.concatenate(cut), [[0, 0, 1, 2, 3, 4], [3, 4, 5, 6, 7, 8]])


def test_files_are_bytes_and_a_mark_where_they_are_too_short() -> None:
    rows = file_bytes(12, 0, size=4096)
    assert rows.shape == (12, 8192) and rows.dtype == np.dtype(np.int32)
    assert rows.min() >= 0 and rows.max() == 256
    heads, tails = rows[:, :4096] == 256, rows[:, 4096:] == 256
    assert 0 < heads.any(1).sum() < 12
    np.testing.assert_array_equal(heads, tails[:, ::-1])


def test_sentences_begin_and_end_and_are_filled_up() -> None:
    made = tokens(6, 32, 0, vocabulary=2000)
    ids, mask = made["input_ids"], made["attention_mask"]
    assert (ids[:, 0] == 101).all() and ids.max() < 2000 and (ids[mask == 1] > 0).all()
    assert (ids[mask == 0] == 0).all() and len(set(mask.sum(1))) > 2
    assert (ids[np.arange(6), mask.sum(1) - 1] == 102).all()


def packed_network() -> onnx.ModelProto:
    """Return a network with one weight stored as int8 behind Cast and Mul, read by MatMul."""
    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        net (float[N, 4] x) => (float[N, 3] y, float[N, 4] z)
        { f = Cast<to = 1>(q)  w = Mul(f, s)  y = MatMul(x, w)  i = Cast<to = 7>(x)  z = Cast<to = 1>(i) }""")
    rng = np.random.default_rng(0)
    for name, array in (
        ("q", rng.integers(-127, 128, (4, 3), np.int8)),
        ("s", rng.uniform(0.01, 0.1, (1, 3)).astype(np.float32)),
    ):
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return proto


def test_packed_weights_become_the_floats_that_they_stand_for() -> None:
    packed = packed_network()
    plain = with_float_weights(packed)
    assert [node.op_type for node in plain.graph.node] == ["MatMul", "Cast", "Cast"]
    assert [(t.name, t.data_type) for t in plain.graph.initializer] == [("w", TensorProto.FLOAT)]
    assert len(packed.graph.node) == 5, "the caller's is left as it is"
    feed = {"x": np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32)}
    first, second = (
        ort.InferenceSession(p.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feed)
        for p in (packed, plain)
    )
    np.testing.assert_array_equal(first[1], second[1])
    np.testing.assert_allclose(first[0], second[0], rtol=1e-6)


def installed(name: str = "net", file: str = "light/light_squeezenet.onnx", package: str = "onnx") -> Entry:
    return Entry(name, package, "1.0", file, lambda *_: {}, "")


def test_a_file_is_found_in_an_installed_package_without_importing_it() -> None:
    assert installed().shipped().name == "light_squeezenet.onnx"


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (installed(package="no-such-package"), "no-such-package is not installed; pip install --no-deps"),
        (installed(file="gone.onnx"), r"onnx [\d.]+ holds no gone.onnx; 1.0 does"),
    ],
)
def test_what_is_not_there_is_said(entry: Entry, reason: str) -> None:
    with pytest.raises(LookupError, match=reason):
        entry.shipped()


def test_the_extra_installs_what_the_entries_name() -> None:
    project = (ZOO.parent / "pyproject.toml").read_text(encoding="utf-8")
    for package, version in {(entry.package, entry.version) for entry in ENTRIES}:
        assert f"{package}=={version}" in project


class Digits(Entry):
    """A shipped network in the place of one in a package."""

    def shipped(self) -> Path:
        return ZOO / self.file


DIGITS = Digits(
    *("digits", "onnxcomp", "", "digits_mobilenet.onnx"),
    lambda model, count, seed: {
        "image": np.random.default_rng(seed).standard_normal((count, 1, 8, 8)).astype(np.float32)
    },
    "",
)


def test_calibration_and_evaluation_are_other_samples(tmp_path: Path) -> None:
    files = write_samples(DIGITS, Path(), tmp_path, 5, 3)
    first, second = (np.load(path)["image"] for path in files)
    assert (len(first), len(second)) == (5, 3)
    assert not np.array_equal(first[:3], second)


def test_an_outcome_tells_what_the_run_did(tmp_path: Path) -> None:
    outcome = quantize_entry(DIGITS, tmp_path, "fold-batchnorm", counts=(4, 4))
    assert outcome.failure is None
    kinds = [node.op_type for node in onnx.load(DIGITS.shipped()).graph.node]
    assert outcome.nodes == sum(kind != "Constant" for kind in kinds)
    assert outcome.sqnr_db is not None and outcome.sqnr_db > 90
    assert outcome.bytes_share is not None and 0.8 < outcome.bytes_share < 1
    assert (outcome.quantized, outcome.fused, outcome.unfused) == (0, 0, 0)
    assert outcome.floats is not None and outcome.floats > 10
    assert outcome.latency_share is not None and 0.2 < outcome.latency_share < 2


def test_the_peer_is_judged_alike(tmp_path: Path) -> None:
    outcome = peer_entry(DIGITS, tmp_path, counts=(8, 4), latency=False)
    assert outcome.failure is None and outcome.name == "digits, onnxruntime"
    assert outcome.sqnr_db is not None and 5 < outcome.sqnr_db < 60
    assert outcome.fused is not None and outcome.fused > 10
    assert outcome.quantized is not None and outcome.quantized > 50


def test_a_peer_that_fails_is_an_outcome_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = Usage(1, 1.0, 1.0, 1, "Traceback\nValueError: no histogram\n")
    monkeypatch.setattr(quantize_package_zoo, "run_measured", lambda *_: said)
    assert peer_entry(DIGITS, tmp_path, counts=(4, 4)).failure == "exit 1: ValueError: no histogram"


def test_a_run_that_fails_is_an_outcome_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise UsageError("it is refused; do something else")

    monkeypatch.setattr(onnxcomp, "optimize", refuse)
    outcome = quantize_entry(DIGITS, tmp_path, "fold-batchnorm", counts=(4, 4))
    assert outcome.failure == "UsageError: it is refused; do something else"


def test_networks_that_are_not_there_are_left_out_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        quantize_package_zoo, "ENTRIES", (DIGITS, installed("gone", package="no-such-package"))
    )
    words = ["--passes", "fold-batchnorm", "--no-latency", "--samples", "4", "--evaluation", "4"]
    assert quantize_package_zoo.main(words) == 0
    shown = capsys.readouterr().out
    assert "digits" in shown and "gone: left out, no-such-package is not installed" in shown


def test_a_wrong_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        quantize_package_zoo.main(["--rows", "resnet"])
    assert "there is no network 'resnet'; networks are ocr-detector, " in capsys.readouterr().err
