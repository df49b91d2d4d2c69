"""Fixed seeds for random operators, and getting rid of them again."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.ir.randomness import random_nodes, with_seeds, without_seeds
from onnxcomp.runtime.session import Session
from tests.support.text import net

X = {"x": np.full((8, 6), 0.5, np.float32)}
BODIES = {
    "RandomNormalLike": "z = RandomNormalLike(x) y = Add(x, z)",
    "RandomNormal": "z = RandomNormal <shape=[8,6]> () y = Add(x, z)",
    "RandomUniform": "z = RandomUniform <shape=[8,6]> () y = Add(x, z)",
    "RandomUniformLike": "z = RandomUniformLike(x) y = Add(x, z)",
    "Bernoulli": "y = Bernoulli(x)",
    "Multinomial": "z = Multinomial <sample_size=6> (x) y = Cast <to=1> (z)",
    "Dropout": "y = Dropout(x, half, on)",
}


def model(body: str) -> Model:
    found = parse_model(net("(float[N,6] x) => (float[N,6] y)", "float half = {0.5}, bool on = {1}", body))
    for node in found.graph.nodes:
        node.name = node.outputs[0].name
    return found


@pytest.mark.parametrize("op", BODIES)
def test_two_sessions_with_seeds_draw_the_same_numbers_and_the_seeds_can_be_taken_away(op: str) -> None:
    plain = model(BODIES[op])
    (node,) = random_nodes(plain)
    assert node.op == op
    seeded = with_seeds(plain)
    one, two = (Session(seeded.clone(), threads=1).run(X)["y"] for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert "seed" not in node.attrs
    (again,) = random_nodes(without_seeds(seeded, seeded))
    assert "seed" not in again.attrs


def test_nodes_draw_different_numbers_and_a_seed_of_the_user_stays() -> None:
    plain = model("a = RandomNormalLike(x) b = RandomNormalLike(x) y = Sub(a, b)")
    assert np.abs(Session(with_seeds(plain), threads=1).run(X)["y"]).min() > 0
    own = model("z = RandomNormalLike <seed = 7.0> (x) y = Add(x, z)")
    assert with_seeds(own) is own
    assert random_nodes(without_seeds(own, own))[0].attrs["seed"] == 7.0


@pytest.mark.parametrize("body", ["y = Dropout(x)", "y = Dropout(x, half)", "y = Dropout(x, half, off)"])
def test_dropout_outside_of_training_draws_nothing(body: str) -> None:
    text = net("(float[N,6] x) => (float[N,6] y)", "float half = {0.5}, bool off = {0}", body)
    assert random_nodes(parse_model(text)) == []
