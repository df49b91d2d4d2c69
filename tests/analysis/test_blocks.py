"""Residual blocks that can go whole: which branches are found, which are not, and what is left when one goes."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.analysis.blocks import Block, drop_block, residual_blocks
from onnxcomp.analysis.channels import channel_groups, default_shapes
from onnxcomp.analysis.linear import linear_node
from onnxcomp.ir.graph import Variable
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.passes.fold_batchnorm import FoldBatchnorm
from onnxcomp.testing import assert_valid
from tests.support.pruning import context_for, noise, outputs, zoo
from tests.support.text import net


def blocks_of(model: Model, *excluded: str) -> list[Block]:
    return residual_blocks(model, channel_groups(model, default_shapes(model)), excluded)


def folded_resnet() -> Model:
    model = zoo("digits_resnet")
    return FoldBatchnorm().run(model, context_for(model)).model


# --- the shipped residual net ----------------------------------------------------------------------------------------
def test_identity_and_convolved_shortcuts_of_the_resnet_are_found_in_order() -> None:
    model = folded_resnet()
    found = blocks_of(model)
    names = [f"/stage{stage}_block{block}" for stage in (1, 2, 3) for block in (1, 2)]
    assert [b.name for b in found] == [f"{name}/Add" for name in names]
    for name, block in zip(names, found, strict=True):
        assert block.nodes == (f"{name}/conv1/Conv", f"{name}/relu1/Relu", f"{name}/conv2/Conv")
        assert block.groups == (f"{name}/conv1/Conv",)
    convolved = [b.name for b in found if "/shortcut/" in b.stays]
    assert convolved == ["/stage2_block1/Add", "/stage3_block1/Add"]


def test_a_block_of_which_a_node_is_excluded_stays() -> None:
    model = folded_resnet()
    every = blocks_of(model)
    for node in every[1].nodes:
        assert blocks_of(model, node) == [b for b in every if b != every[1]]
    assert blocks_of(model, model.graph.nodes[0].name) == every


# --- which branches are blocks ---------------------------------------------------------------------------------------
SIGNATURE = "(float[N,4,6,6] x) => (float[N,4,6,6] y)"
WEIGHTS = "float[4,4,1,1] s, float[8,4,3,3] a, float[8] p, float[4,8,3,3] b, float[4] q"
BRANCH = "i = Conv<pads=[1,1,1,1]>(h, a, p) j = Relu(i) k = Conv<pads=[1,1,1,1]>(j, b, q)"


def residual(
    body: str, signature: str = SIGNATURE, extra: str = "", *, stem: str = "h = Conv(x, s)"
) -> Model:
    return parse_model(net(signature, WEIGHTS + extra, f"{stem} {body}"))


@pytest.mark.parametrize("add", ["Add(k, h)", "Add(h, k)"])
def test_a_branch_is_found_on_either_side_of_the_addition(add: str) -> None:
    (block,) = blocks_of(residual(f"{BRANCH} y = {add}"))
    assert (block.branch, block.stays, len(block.nodes)) == ("k", "h", 3)


NO_BLOCK = {
    "an output of the graph reads the branch": (
        f"{BRANCH} y = Add(k, h) z = Identity(k)",
        SIGNATURE.replace(" y)", " y, float[N,4,6,6] z)"),
    ),
    "another node reads the middle of the branch and the sum": (
        f"{BRANCH} m = Add(k, h) n = ReduceMean<axes=[1], keepdims=1>(j) y = Mul(m, n)",
        SIGNATURE,
    ),
    "the branch comes from another graph input": (
        "i = Conv<pads=[1,1,1,1]>(w, a, p) j = Relu(i) k = Conv<pads=[1,1,1,1]>(j, b, q) y = Add(k, h)",
        SIGNATURE.replace("x)", "x, float[N,4,6,6] w)", 1),
    ),
    "the branch has no channels of its own": (
        "k = Conv<pads=[1,1,1,1]>(h, c) y = Add(k, h)",
        SIGNATURE,
    ),
    "the branch is broadcast over what it is added to": (
        "g = GlobalAveragePool(h) i = Conv(g, d) j = Relu(i) k = Conv(j, e) y = Add(k, h)",
        SIGNATURE,
    ),
    "the sum is one with a constant": ("y = Add(h, f)", SIGNATURE),
}
MORE = ", float[4,4,3,3] c, float[8,4,1,1] d, float[4,8,1,1] e, float[4,6,6] f"


@pytest.mark.parametrize("case", NO_BLOCK)
def test_it_is_no_block_where(case: str) -> None:
    body, signature = NO_BLOCK[case]
    assert blocks_of(residual(body, signature, MORE)) == []


def test_of_two_branches_that_meet_the_one_with_more_nodes_is_the_block() -> None:
    model = residual(f"r = Conv(h, t) {BRANCH} y = Add(r, k)", extra=", float[4,4,1,1] t")
    (block,) = blocks_of(model)
    assert (block.branch, block.stays) == ("k", "r")


# --- what is left ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("number", [1, 2])
def test_a_branch_that_is_constant_can_go_without_a_trace(number: int) -> None:
    """One block beside an identity and one beside a shortcut with a convolution of its own."""
    model = folded_resnet()
    block = blocks_of(model)[number]
    last = next(n for n in model.graph.nodes if n.name == block.nodes[-1])
    linear = linear_node(last)
    assert linear is not None
    bias = np.random.default_rng(3).standard_normal((linear.weight_array().shape[0],)).astype(np.float32)
    model.graph.set_constant(last, 1, np.zeros_like(linear.weight_array()))
    model.graph.set_constant(last, 2, bias)
    left = model.clone()
    drop_block(left, block, bias.reshape(1, -1, 1, 1))
    assert_valid(left, like=model)
    assert {n.name for n in model.graph.nodes} - {n.name for n in left.graph.nodes} == set(block.nodes)
    feeds = noise(model, 8)
    np.testing.assert_allclose(outputs(left, feeds), outputs(model, feeds), rtol=1e-5, atol=1e-5)
    assert np.abs(outputs(left, feeds)).max() > 1e-3


def test_what_the_mean_is_added_to_and_other_blocks_stay_as_they_were() -> None:
    model = folded_resnet()
    every = blocks_of(model)
    left = model.clone()
    drop_block(left, every[2], np.zeros((1, 1, 1, 1), np.float32))
    assert blocks_of(left) == [b for b in every if b.name != every[2].name]
    adder = next(n for n in left.graph.nodes if n.name == every[2].name)
    assert [v.name for v in adder.inputs if isinstance(v, Variable)] == [every[2].stays]
