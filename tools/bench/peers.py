"""Run what is compared with insert-qdq, each in a process of its own: onnxruntime's quantizer, and plain inference.

    python -m tools.bench.peers percentile|minmax|plain MODEL --calibration FILE --samples N [-o OUT] [--preprocess FILE]
                                   [--batch N] [--threads N] [--result FILE]

`percentile` (99.999) and `minmax` are `quantize_static` of onnxruntime after its own `quant_pre_process`, with its fast
choice for x86: QDQ, uint8 activations, int8 weights per channel. `plain` runs the samples through one session and says how
long that took, without loading. The samples are those that onnxcomp reads, preprocessed alike.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnxruntime
from numpy.typing import NDArray

from onnxcomp.ir.files import load
from onnxcomp.runtime.data.samples import Preprocess, Samples, open_samples
from onnxcomp.runtime.inputs import input_specs
from onnxcomp.runtime.session import Session

__all__ = ["METHODS", "PERCENTILE", "main", "plain_seconds", "quantize", "samples_of"]

METHODS = ("percentile", "minmax")
"""Ways in which onnxruntime's quantizer chooses ranges."""

PERCENTILE = 99.999
"""Share of the values (%) that a range is to hold: its default."""

Feed = dict[str, NDArray[Any]]


class Reader:
    """The samples as onnxruntime's quantizer asks for them: one feed after the other, None at the end."""

    def __init__(self, samples: Samples, batch: int) -> None:
        self._samples = samples
        self._batch = batch
        self._feeds: Iterator[Feed] = samples.batches(batch)

    def get_next(self) -> Feed | None:
        """Return the next feed, or None."""
        return next(self._feeds, None)

    def rewind(self) -> None:
        """Begin again."""
        self._feeds = self._samples.batches(self._batch)


def samples_of(model: Path, data: Path, count: int | None, preprocess: Path | None = None) -> Samples:
    """Return the first `count` samples in `data` that fit the network at `model`.

    Raises:
        UsageError, DataError: where they do not.
    """
    text = None if preprocess is None else preprocess.read_text(encoding="utf-8")
    table = None if text is None else Preprocess.from_json(text, str(preprocess))
    return open_samples(str(data), input_specs(load(model)), preprocess=table, limit=count)


def quantize(method: str, model: Path, output: Path, samples: Samples, batch: int = 1) -> None:
    """Write `model`, quantized by onnxruntime with ranges found by `method` on `samples`, to `output`."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    methods = {"percentile": CalibrationMethod.Percentile, "minmax": CalibrationMethod.MinMax}
    with tempfile.TemporaryDirectory(prefix="quantize-peers-") as folder:
        prepared = Path(folder) / "prepared.onnx"
        # Symbolic shape inference needs another package and fails on real networks; nothing here depends on it.
        quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(output),
            Reader(samples, batch),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            calibrate_method=methods[method],
            extra_options={"CalibPercentile": PERCENTILE} if method == "percentile" else {},
        )


def plain_seconds(model: Path, samples: Samples, batch: int, threads: int = 0) -> float:
    """Return the seconds that one session over `model` takes for all `samples`, in batches, reading them included."""
    session = Session(str(model), threads=threads)
    start = time.perf_counter()
    for feeds in samples.batches(batch):
        session.run(feeds)
    return time.perf_counter() - start


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what `arguments` say; return 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=(*METHODS, "plain"))
    parser.add_argument("model", type=Path)
    parser.add_argument("-o", "--output", type=Path, help="the quantized file")
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--samples", type=int)
    parser.add_argument("--preprocess", type=Path)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--result", type=Path, help="write the seconds of plain inference here, as JSON")
    given = parser.parse_args(arguments)
    onnxruntime.set_default_logger_severity(4)
    samples = samples_of(given.model, given.calibration, given.samples, given.preprocess)
    if given.what == "plain":
        seconds = plain_seconds(given.model, samples, given.batch, given.threads)
        document = json.dumps({"inference_seconds": seconds, "samples": len(samples)})
        if given.result is None:
            print(document)
        else:
            given.result.write_text(document, encoding="utf-8")
        return 0
    if given.output is None:
        parser.error("give -o for the quantized file")
    quantize(given.what, given.model, given.output, samples, given.batch)
    return 0


if __name__ == "__main__":
    sys.exit(main())
