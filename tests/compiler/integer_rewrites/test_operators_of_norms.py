"""A normalization that is written out keeps the form in which runtimes recognise it."""

from __future__ import annotations

from onnxcomp.compiler.integer_rewrites.operators import integer_forms
from onnxcomp.compiler.passbase import PassLog
from onnxcomp.ir.parse import parse_model
from tests.support.text import net

SIGNATURE = "(float[N,5,8] x) => (float[N,5,8] y)"


def changes(body: str) -> list[str]:
    log = PassLog()
    integer_forms(parse_model(net(SIGNATURE, "float two = {2}, float tiny = {1e-5}", body)), {}, (), log)
    return [f"{change.where}: {change.what}" for change in log.changes]


def test_means_of_values_and_of_their_squares_stay_as_they_were_exported() -> None:
    for square in ("Pow(c, two)", "Mul(c, c)"):
        assert not changes(
            f"""m = ReduceMean<axes = [-1]>(x)  c = Sub(x, m)  p = {square}  v = ReduceMean<axes = [-1]>(p)
            e = Add(v, tiny)  s = Sqrt(e)  y = Div(c, s)"""
        )


def test_a_mean_that_is_subtracted_from_something_else_is_a_pooling() -> None:
    (change,) = changes("r = Relu(x)  m = ReduceMean<axes = [-1]>(r)  y = Sub(x, m)")
    assert change.endswith("ReduceMean over space became GlobalAveragePool")
