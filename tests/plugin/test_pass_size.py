"""The passes that docs/writing-passes.md shows: they run on every shipped network, and take as few lines as it says."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxcomp.analysis.linear import linear_node
from onnxcomp.errors import UsageError
from onnxcomp.testing import assert_valid
from tests.support.pruning import ZOO, context_for, noise, zoo
from tools.pass_size import PROMISED, code_lines, main

SOURCE = Path(__file__).parent / "package" / "src"
NETS = sorted(path.stem for path in ZOO.glob("digits_*.onnx"))


@pytest.fixture(autouse=True)
def _on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SOURCE))
    for name in [name for name in sys.modules if name.startswith("sign_passes")]:
        monkeypatch.delitem(sys.modules, name)


def step(module: str, name: str, **given: Any) -> Any:
    made = getattr(import_module(module), name)(**given)
    made.check()
    return made


def test_lines_of_code_are_those_without_blanks_comments_and_docstrings() -> None:
    text = '"""Doc\n\nof two."""\n\n# why\nx = (\n    1,\n)\n\n\ndef f():\n    """Doc."""\n    return """a\nb"""  # so\n'
    assert code_lines(text) == 6


def test_the_examples_keep_what_is_promised(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert capsys.readouterr().out.count("of") == len(PROMISED)
    assert set(PROMISED.values()) == {30, 80}


@pytest.mark.parametrize("name", NETS)
def test_the_exact_example_runs_on_every_shipped_network(name: str) -> None:
    model = zoo(name)
    result = step("sign_passes", "CancelNegations").run(model.clone(), context_for(model, noise(model, 8)))
    assert_valid(result.model, like=model)
    assert result.changed == bool(result.changes)


@pytest.mark.parametrize("name", NETS)
def test_the_lossy_example_keeps_its_budget_on_every_shipped_network(name: str) -> None:
    model = zoo(name)
    sparsify = step("sign_passes.sparsify", "Sparsify", nonzero=0.4)
    result = sparsify.run(model.clone(), context_for(model, noise(model, 8)))
    assert_valid(result.model, like=model)
    places = {change.where for change in result.changes}
    weights = [
        linear.matrix()
        for node in result.model.graph.nodes
        if node.name in places and (linear := linear_node(node)) is not None
    ]
    assert weights
    kept = sum(np.count_nonzero(W) for W in weights) / sum(W.size for W in weights)
    assert kept <= 0.4 + 1e-3


def test_refitting_on_the_walk_is_nearer_than_zeros_alone() -> None:
    model = zoo("digits_mlp")
    context = context_for(model, noise(model, 64))
    feeds = next(context.samples.batches(64))
    wanted = context.session(model).run(feeds)["logits"]
    errors = []
    for repair in ("sequential", "none"):
        sparsify = step("sign_passes.sparsify", "Sparsify", nonzero=0.4, repair=repair)
        made = sparsify.run(model.clone(), context).model
        errors.append(float(((context.session(made).run(feeds)["logits"] - wanted) ** 2).sum()))
    assert errors[0] < errors[1]


def test_a_share_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="nonzero=0"):
        step("sign_passes.sparsify", "Sparsify", nonzero=0.0)
