"""Files that insert-qdq makes for OpenVINO load there, and give what onnxruntime gives for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxcomp.ir.proto import to_proto
from onnxcomp.runtime.session import Session
from tests.support.pruning import zoo_context
from tests.support.quantizing import folded, quantized

openvino: Any = pytest.importorskip("openvino", reason="OpenVINO is not installed")


@pytest.mark.parametrize("name", ["digits_resnet", "digits_mlp", "digits_mobilenet"])
def test_openvino_loads_the_file_and_decides_as_onnxruntime_does(name: str) -> None:
    model = folded(name)
    found = quantized(model, target="openvino").model
    samples = zoo_context(model, 48).calibration
    assert samples is not None
    feed = next(iter(samples.batches(48)))
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(to_proto(found).SerializeToString()), "CPU")
    (theirs,) = compiled(feed).values()
    (ours,) = Session(found, threads=1).run(feed).values()
    original = Session(model, threads=1).run(feed)["logits"]
    assert (theirs.argmax(1) == ours.argmax(1)).mean() > 0.97
    # Neither is further from the other than both are from the network in float.
    limit = 2 * np.sqrt(np.square(ours - original).mean())
    assert np.sqrt(np.square(theirs - ours).mean()) <= limit
