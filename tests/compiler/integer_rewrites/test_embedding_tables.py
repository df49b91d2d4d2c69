"""Tables of embeddings are stored as integers, row by row."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.compiler.integer_rewrites.embedding_tables import store_tables, tables
from onnxcomp.compiler.passbase import PassLog
from onnxcomp.compiler.target.files import load_target
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.numerics.affine import Grid
from onnxcomp.runtime.session import Session
from tests.support.text import net

CPU = load_target("ort-cpu")
GRID = Grid("int8", symmetric=True, narrow=True)


def model_of(body: str = "y = Gather(t, i)", rows: int = 64, width: int = 32) -> Model:
    text = net(
        "(int64[A,B] i) => (float[A,B,32] y)", f"float[{rows},{width}] t, int64[2] few = {{1, 2}}", body
    )
    model = parse_model(text)
    rng = np.random.default_rng(3)
    sizes = 10.0 ** rng.uniform(-3, 2, (rows, 1))
    model.graph.constants["t"].values = (rng.normal(size=(rows, width)) * sizes).astype(np.float32)
    for node in model.graph.nodes:
        node.name = node.output.name
    return model


def test_rows_of_very_different_size_are_each_kept_to_half_a_step() -> None:
    model = model_of()
    table = model.graph.constants["t"].values
    log = PassLog()
    store_tables(model, tables(model, CPU, ()), GRID, log)
    picked = np.array([[0, 5, 63], [7, 7, -1]])
    (y,) = Session(model).run({"i": picked}).values()
    limits = np.abs(table).max(1)[picked][..., None] / 127
    assert y.shape == (2, 3, 32)
    assert (np.abs(y - table[picked]) <= limits * 0.5001).all()
    assert [(change.where, change.details["weight"]) for change in log.changes] == [("y", "int8")]


def test_no_float_copy_of_the_table_stays() -> None:
    model = model_of()
    before = model.weight_bytes
    store_tables(model, tables(model, CPU, ()), GRID, PassLog())
    assert model.weight_bytes <= before / 4 + 64 * 4 + 16


@pytest.mark.parametrize(
    "body",
    [
        "y = Gather<axis = 1>(t, i)",
        "y = Gather(t, few)",
        "g = Gather(t, i) s = Transpose(t) y = MatMul(g, s)",
    ],
)
def test_columns_constant_rows_and_tables_with_other_readers_stay(body: str) -> None:
    assert not tables(model_of(body), CPU, ())


def test_small_tables_and_those_left_alone_stay() -> None:
    assert not tables(model_of(rows=8), CPU, ())
    assert not tables(model_of(), CPU, {"y"})
    assert tables(model_of(), CPU, ())
