"""What tests of insert-qdq share: networks, runs of the pass, distances."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from onnxcomp.compiler.passbase import Context, PassResult
from onnxcomp.compiler.target.files import load_target
from onnxcomp.ir.graph import Array
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.ir.proto import to_proto
from onnxcomp.passes.fold_batchnorm import FoldBatchnorm
from onnxcomp.passes.insert_qdq import InsertQdq
from onnxcomp.runtime.session import Session
from onnxcomp.testing import assert_valid
from tests.support.pruning import context_for, zoo, zoo_context
from tests.support.runs import run_once
from tests.support.text import net

__all__ = ["SMALL", "filled", "folded", "quantized", "sqnr"]


def sqnr(before: Model, after: Model, feeds: Mapping[str, Array]) -> float:
    """Return the SQNR of the worst output in dB."""
    one, two = (Session(m, threads=1).run(feeds) for m in (before, after))
    return min(
        float(10 * np.log10(np.square(a).sum() / max(np.square(a - b).sum(), 1e-30)))
        for a, b in zip(one.values(), two.values(), strict=True)
    )


@cache
def folded(name: str) -> Model:
    """Return a shipped net with its normalizations folded."""
    model = zoo(name)
    return FoldBatchnorm().run(model, zoo_context(model, 8)).model


def quantized(
    model: Model,
    feeds: Mapping[str, Array] | None = None,
    target: str = "ort-cpu",
    *,
    fresh: bool = False,
    **options: Any,
) -> PassResult:
    """Run the pass on `model`, on digits for shipped nets and on `feeds` or noise for others; `fresh` as in `run_once`."""
    step = InsertQdq(**options)
    step.check()
    shipped = feeds is None and model.graph.outputs[0].name == "logits"

    def context() -> Context:
        aim = load_target(target)
        return zoo_context(model, 48, target=aim) if shipped else context_for(model, feeds, target=aim)

    before = to_proto(model).SerializeToString()
    samples = tuple((name, values.tobytes()) for name, values in (feeds or {}).items())
    result = run_once(step, model, context, (target, samples), fresh=fresh)
    assert to_proto(model).SerializeToString() == before
    assert_valid(result.model, like=model if result.model.opset == model.opset else None)
    assert result.changed == bool(result.changes)
    return result


SMALL = net(
    "(float[N,3,8,8] x) => (float[N,5] y)",
    "float[8,3,3,3] a, float[8] p, float[8,8,3,3] b, float[8] q, float[512,5] c, float[5] d",
    "h = Conv<pads=[1,1,1,1]>(x, a, p) r = Relu(h) i = Conv<pads=[1,1,1,1]>(r, b, q) s = Add(i, r) t = Relu(s)"
    " f = Flatten(t) y = Gemm(f, c, d)",
)


def filled(text: str, seed: int = 0) -> Model:
    """Return the model of `text` with random float weights."""
    model = parse_model(text)
    rng = np.random.default_rng(seed)
    for name, constant in list(model.graph.constants.items()):
        values = constant.values
        if values.dtype == np.float32 and values.ndim and not values.any():
            reader, index = next(iter(model.graph.uses(constant)))
            spread = 1 / np.sqrt(max(1, values[0].size))
            model.graph.set_constant(
                reader, index, (rng.standard_normal(values.shape) * spread).astype(np.float32)
            )
            assert name
    return model
