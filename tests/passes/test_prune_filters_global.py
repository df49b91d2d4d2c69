"""prune-filters with shares by measured effect: budgets hold, damage is less, and what is asked for is done."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from onnxcomp.analysis.blocks import residual_blocks
from onnxcomp.analysis.channels import channel_groups, default_shapes
from onnxcomp.analysis.cost import model_cost
from onnxcomp.analysis.linear import linear_node
from onnxcomp.cli.main import cli
from onnxcomp.compiler.channel_pruning import schedule as rounds
from onnxcomp.compiler.evaluation.divergence import Reference
from onnxcomp.compiler.passbase import PassResult
from onnxcomp.errors import UsageError
from onnxcomp.ir.graph import Array
from onnxcomp.ir.model import Model
from onnxcomp.passes.fold_batchnorm import FoldBatchnorm
from onnxcomp.passes.prune_filters import PruneFilters
from onnxcomp.runtime.data.samples import open_samples
from onnxcomp.runtime.inputs import input_specs
from onnxcomp.runtime.session import Session
from onnxcomp.testing import assert_valid, fingerprint
from tests.support.pruning import ZOO, kept, share, zoo, zoo_context

SAMPLES = 64
QUICK = ("digits_mlp", "digits_lstm", "digits_vgg")
"""Nets with classes whose budgets can be met to the unit, and whose few groups are measured quickly."""

MANY_GROUPS = ("digits_resnet", "digits_mobilenet", "digits_shufflenet")


@pytest.fixture(autouse=True)
def _few_plans(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lean shares by a handful of plans, not by single groups too, unless a test takes its time."""
    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setattr(rounds, "MORE_MOST", 0)


def pruned(model: Model, step: PruneFilters, samples: int = SAMPLES, **given: object) -> PassResult:
    step.check()
    result = step.run(model.clone(), zoo_context(model, samples, **given))
    assert_valid(result.model, like=model)
    return result


def outputs_of(model: Model) -> dict[str, Array]:
    samples = open_samples(str(ZOO / "digits_evaluation.npz"), input_specs(model))
    session = Session(model, threads=1)
    batches = [session.run(feed) for feed in samples.batches(150)]
    return {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}


def distance(model: Model, other: Model) -> float:
    """How far the outputs of `other` are from those of `model` on held-out images."""
    return Reference([outputs_of(model)]).distance([outputs_of(other)])


# --- budgets ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("what", ["macs", "params"])
@pytest.mark.parametrize(
    ("name", "scope"),
    [
        *[(name, "global") for name in QUICK],
        *[pytest.param(name, "global", marks=pytest.mark.slow) for name in MANY_GROUPS],
        *[(name, "uniform") for name in (*QUICK, *MANY_GROUPS)],
    ],
)
def test_a_budget_is_held_and_hardly_undercut(name: str, scope: str, what: str) -> None:
    model = zoo(name)
    step = PruneFilters(**{what: 0.5}, scope=scope, criterion="l2", repair="none")  # type: ignore[arg-type]
    result = pruned(model, step)
    assert result.shortfall is None
    assert 0.49 <= share(model, result.model, what) <= 0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits_densenet", "digits_unet", "digits_vit"])
@pytest.mark.parametrize("what", ["macs", "params"])
def test_a_budget_holds_with_many_groups_and_with_coarse_ones(name: str, what: str) -> None:
    model = zoo(name)
    result = pruned(model, PruneFilters(**{what: 0.5}, criterion="l2", repair="none"))  # type: ignore[arg-type]
    counts = []
    for each in (model, result.model):
        # Sizes computed in the graph are known from a run only.
        counted = model_cost(each, zoo_context(each, 4).shapes(each))
        counts.append(counted.macs if what == "macs" else counted.parameters)
    assert result.shortfall is None
    assert counts[0] and counts[1]
    assert 0.49 <= counts[1] / counts[0] <= 0.5


@pytest.mark.parametrize("name", ["digits_vgg", pytest.param("digits_mobilenet", marks=pytest.mark.slow)])
def test_shares_by_effect_do_less_damage_than_equal_ones(name: str) -> None:
    """On held-out images, where layers differ in what they can spare."""
    model = zoo(name)
    made = {
        "global": pruned(model, PruneFilters(macs=0.25, joint=0), 128),
        "uniform": pruned(model, PruneFilters(macs=0.25, scope="uniform", joint=0), 128),
    }
    assert all(0.24 <= share(model, r.model) <= 0.25 for r in made.values())
    found = {scope: distance(model, r.model) for scope, r in made.items()}
    assert found["global"] < 0.9 * found["uniform"]
    ratios = {scope: [after / before for before, after in kept(r).values()] for scope, r in made.items()}
    assert np.ptp(ratios["global"]) > 2 * np.ptp(ratios["uniform"]), "shares differ from group to group"


# --- whole residual blocks -------------------------------------------------------------------------------------------
def test_blocks_that_matter_least_go_whole_and_are_told() -> None:
    """Two branches of the residual net are made faint, one beside an identity and one beside a convolved shortcut."""
    plain = zoo("digits_resnet")
    model = FoldBatchnorm().run(plain, zoo_context(plain, 4)).model
    blocks = residual_blocks(model, channel_groups(model, default_shapes(model)))
    faint = {blocks[1].name: blocks[1], blocks[4].name: blocks[4]}
    for block in faint.values():
        last = linear_node(next(n for n in model.graph.nodes if n.name == block.nodes[-1]))
        assert last is not None
        model.graph.set_constant(last.node, 1, last.weight_array() * np.float32(0.01))
    made = {
        layers: pruned(model, PruneFilters(macs=0.3, layers=layers, criterion="l2", repair="none"), 32)
        for layers in (True, False)
    }
    for result in made.values():
        assert result.shortfall is None
        assert 0.29 <= share(model, result.model) <= 0.3
    gone = {c.where: c.details["nodes"] for c in made[True].changes if c.what == "residual block removed"}
    assert gone == {name: list(block.nodes) for name, block in faint.items()}
    left = {node.name for node in made[True].model.graph.nodes}
    for block in blocks:
        assert left.isdisjoint(block.nodes) if block.name in faint else left.issuperset(block.nodes)
        if block.name in faint:
            assert not {c.where for c in made[True].changes} & set(block.groups), "it is told once"
    assert not [c for c in made[False].changes if "removed" in c.what]
    assert distance(model, made[True].model) < distance(model, made[False].model)


def test_a_budget_is_held_where_blocks_may_go_but_need_not() -> None:
    model = zoo("digits_resnet")
    result = pruned(model, PruneFilters(macs=0.3, layers=True, joint=0))
    assert result.shortfall is None
    assert 0.29 <= share(model, result.model) <= 0.3


# --- rounds ----------------------------------------------------------------------------------------------------------
def test_several_rounds_meet_the_same_budget_with_one_cut_of_the_original() -> None:
    model = zoo("digits_mlp")
    result = pruned(model, PruneFilters(macs=0.3, iterations=3, joint=0))
    assert result.shortfall is None
    assert 0.29 <= share(model, result.model) <= 0.3
    for change in result.changes:
        before = {n.name: n for n in model.graph.nodes}[change.where].constant(1)
        after = {n.name: n for n in result.model.graph.nodes}[change.where].constant(1)
        assert before is not None and after is not None
        assert change.details["before"] in before.shape
        assert change.details["after"] in after.shape
    # The first layer is never refitted: its rows are still the original's.
    first = model.graph.constants[model.graph.nodes[1].inputs[1].name].values
    left = result.model.graph.constants[result.model.graph.nodes[1].inputs[1].name].values
    assert {row.tobytes() for row in left} < {row.tobytes() for row in first}


# --- what is left alone, and the same again --------------------------------------------------------------------------
def test_excluded_nodes_are_not_touched() -> None:
    model = zoo("digits_vgg")
    spared = [n for n in model.graph.nodes if n.is_op("Conv")][2:4]
    step = PruneFilters(macs=0.5, criterion="l2", repair="sequential", joint=0)
    result = pruned(model, step, excluded=frozenset(n.name for n in spared))
    after = {n.name: n for n in result.model.graph.nodes}
    for node in spared:
        for index in (1, 2):
            old, new = node.constant(index), after[node.name].constant(index)
            assert (None if old is None else old.tobytes()) == (None if new is None else new.tobytes())
    assert 0.49 <= share(model, result.model) <= 0.5


@pytest.mark.parametrize(
    "step",
    [
        PruneFilters(macs=0.5, joint=1),
        PruneFilters(params=0.5, iterations=2, criterion="l1", sweeps=2, match_variance=True, joint=1),
    ],
    ids=str,
)
def test_the_same_seed_gives_the_same_bytes(step: PruneFilters) -> None:
    model = zoo("digits_vgg" if step.macs else "digits_mlp")
    assert len({fingerprint(pruned(model, step, 32, seed=4).model) for _ in range(2)}) == 1


# --- what is refused -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("step", "message"),
    [
        (
            PruneFilters(ratio=0.5, iterations=2),
            "prune-filters: iterations=2 approach a budget; give macs",
        ),
        (
            PruneFilters(macs=0.5, sweeps=2, repair="one-shot"),
            "prune-filters: sweeps needs repair=sequential, not one-shot",
        ),
        (
            PruneFilters(macs=0.5, match_variance=True, repair="one-shot"),
            "prune-filters: match-variance needs repair=sequential, not one-shot",
        ),
        (
            PruneFilters(macs=0.5, match_variance=True, repair="none"),
            "prune-filters: match-variance needs repair=sequential, not none",
        ),
        (
            PruneFilters(macs=0.5, max_ratio=0.4, iterations=3),
            "prune-filters: max-ratio=0.4 is a share of the network as it came",
        ),
        (
            PruneFilters(macs=0.5, iterations=0),
            "prune-filters: iterations=0 is out of range; it is at least 1",
        ),
        (
            PruneFilters(macs=0.5, layers=True, scope="uniform"),
            "prune-filters: layers=true needs a budget and scope=global, which weighs blocks",
        ),
        (
            PruneFilters(ratio=0.5, layers=True),
            "prune-filters: layers=true needs a budget and scope=global, which weighs blocks",
        ),
        (PruneFilters(macs=0.5, sweeps=0), "prune-filters: sweeps=0 is out of range; it is at least 1"),
    ],
    ids=str,
)
def test_options_that_cannot_go_together_are_refused(step: PruneFilters, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        step.check()
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("options", "way_out"),
    [
        ("macs=0.5", "with scope=uniform criterion=l2 repair=none it needs none"),
        ("macs=0.5 criterion=l2 repair=none", "with scope=uniform it needs none"),
        ("ratio=0.5 criterion=l1", "with repair=none it needs none"),
        ("ratio=0.5", "with criterion=l2 repair=none it needs none"),
    ],
)
@pytest.mark.usefixtures("no_child_process")
def test_without_samples_the_way_out_is_named(options: str, way_out: str, tmp_path: Path) -> None:
    words = f"optimize {shlex.quote(str(ZOO / 'digits_mlp.onnx'))} -o {shlex.quote(str(tmp_path / 'o.onnx'))}"
    result = CliRunner().invoke(cli, shlex.split(f"{words} --passes 'prune-filters{{{options}}}' -q"))
    assert result.exit_code == 2
    assert "prune-filters needs samples; give --calibration" in result.stderr
    assert way_out in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
