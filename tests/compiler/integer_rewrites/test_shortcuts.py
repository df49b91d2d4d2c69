from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from tests.support.integer_forms import becomes, ops, rewritten, stays
from tests.support.text import net

IMAGE = "(float[N,3,6,5] x) => (float[a,b,c,d] y)"
FAR = 2**63 - 1


def bounds(*rows: tuple[int, int, int, int], tag: str = "") -> str:
    """Return the stored bounds of a Slice, `(start, end, axis, step)` for each axis it names."""
    columns = zip("beas", zip(*rows, strict=True), strict=True)
    return ", ".join(f"int64[{len(c)}] {n}{tag} = {{{','.join(map(str, c))}}}" for n, c in columns)


def pads(*amounts: int) -> str:
    """Return the stored amounts of a Pad."""
    return f"int64[{len(amounts)}] p = {{{','.join(map(str, amounts))}}}"


EVERY_OTHER = bounds((0, FAR, 2, 2), (0, FAR, 3, 2))
CHANNELS = pads(0, 1, 0, 0, 0, 2, 0, 0)
SLICE = "h = Slice(x, b, e, a, s)"


def taken(model: Model) -> tuple[list[int], list[int]]:
    """Return which channels the only convolution takes (-1 for zeros), and its strides."""
    (conv,) = (n for n in model.graph.nodes if n.op == "Conv")
    kernel = conv.inputs[1].values.reshape(conv.inputs[1].shape[:2])
    assert set(np.unique(kernel)) <= {0, 1}
    assert kernel.sum(axis=1).max() <= 1
    return [int(row.argmax()) if row.any() else -1 for row in kernel], conv.attrs["strides"]


# --- what may not change ---------------------------------------------------------------------------------------------
def test_slices_alone_stay() -> None:
    stays(net(IMAGE, EVERY_OTHER, "y = Slice(x, b, e, a, s)"))


def test_a_pad_with_another_number_stays() -> None:
    weights = f"{EVERY_OTHER}, {CHANNELS}, float one = {{1}}"
    stays(
        net(IMAGE, weights, f"{SLICE}  y = Pad(h, p, one)"), "y: it fills new channels with something other"
    )


def test_a_pad_that_mirrors_channels_stays() -> None:
    stays(
        net(IMAGE, f"{EVERY_OTHER}, {CHANNELS}", f'{SLICE}  y = Pad<mode="reflect">(h, p)'),
        "y: it fills new channels with something other",
    )


def test_a_pad_of_channels_and_space_stays() -> None:
    stays(net(IMAGE, pads(0, 1, 1, 0, 0, 2, 0, 0), "y = Pad(x, p)"), "y: it does more than add channels")


def test_a_pad_whose_amounts_are_computed_stays() -> None:
    stays(net("(float[N,3,6,5] x, int64[8] p) => (float[a,b,c,d] y)", "", "y = Pad(x, p)"))


def test_a_pad_of_an_unknown_number_of_channels_stays() -> None:
    signature = "(float[N,C,6,5] x) => (float[a,b,c,d] y)"
    stays(net(signature, CHANNELS, "y = Pad(x, p)"), "y: 'x' is not known to be an image of so many channels")


def test_a_pad_of_doubles_or_of_a_matrix_stays() -> None:
    stays(net("(double[N,3,6,5] x) => (double[a,b,c,d] y)", CHANNELS, "y = Pad(x, p)"))
    stays(net("(float[N,3] x) => (float[a,b] y)", pads(0, 1, 0, 2), "y = Pad(x, p)"))


def test_a_pad_that_is_left_alone_stays() -> None:
    text = net(IMAGE, f"{EVERY_OTHER}, {CHANNELS}", f"{SLICE}  [last] y = Pad(h, p)")
    stays(text, left=("last",))


def test_a_concatenation_of_two_images_or_with_other_numbers_stays() -> None:
    stays(net(IMAGE, "float[1,2,6,5] k", "h = Relu(x)  y = Concat<axis=1>(x, h)"))
    stays(net("(float[1,3,6,5] x) => (float[a,b,c,d] y)", "float[1,2,6,5] k", "y = Concat<axis=1>(x, k)"))
    zeros = "float[1,3,2,5] k = {" + ",".join("0" * 30) + "}"
    stays(net("(float[1,3,6,5] x) => (float[a,b,c,d] y)", zeros, "y = Concat<axis=2>(x, k)"))


def test_a_concatenation_with_nothing_stays() -> None:
    body = "n = Slice(x, b, b, a)  k = Shape(n)  f = ConstantOfShape(k)  y = Concat<axis=1>(x, f)"
    stays(net(IMAGE, "int64[1] b = {0}, int64[1] a = {1}", body))


# --- what becomes a convolution --------------------------------------------------------------------------------------
def test_a_strided_slice_and_a_pad_of_channels_become_one_convolution() -> None:
    text = net(IMAGE, f"{EVERY_OTHER}, {CHANNELS}", f"[cut] {SLICE}  [fill] y = Pad(h, p)")
    model, log = becomes(text, "Conv")
    assert taken(model) == ([-1, 0, 1, 2, -1, -1], [2, 2])
    assert list(model.graph.constants) == ["fill.weight"]
    assert model.aliases == {"cut": "fill"}
    assert [(c.where, c.what) for c in log.changes] == [
        (
            "fill",
            "became a 1x1 convolution with stride 2x2 that copies 3 channels and adds 3 of zeros",
        )
    ]


def test_several_slices_multiply_their_steps_and_may_choose_channels() -> None:
    rows = [bounds((0, FAR, 2, 2), tag="0"), bounds((-5, 9, 3, 3), (1, -1, 1, 1), tag="1"), CHANNELS]
    body = "h = Slice(x, b0, e0, a0, s0)  k = Slice(h, b1, e1, a1, s1)  y = Pad(k, p)"
    model, _ = becomes(net(IMAGE, ", ".join(rows), body), "Conv")
    assert taken(model) == ([-1, 1, -1, -1], [2, 3])
    rows = [bounds((0, FAR, 2, 2), tag="0"), bounds((0, 4, 2, 3), tag="1"), CHANNELS]
    model, _ = becomes(net(IMAGE.replace("6,5", "10,5"), ", ".join(rows), body), "Conv")
    assert taken(model)[1] == [6, 1]


def test_a_slice_behind_the_pad_goes_with_it() -> None:
    body = "h = Pad(x, p)  [last] y = Slice(h, b, e, a, s)"
    model, log = becomes(net(IMAGE, f"{EVERY_OTHER}, {CHANNELS}", body), "Conv")
    assert taken(model) == ([-1, 0, 1, 2, -1, -1], [2, 2])
    assert [c.where for c in log.changes] == ["last"]


@pytest.mark.parametrize("rows", [[(1, FAR, 2, 2)], [(0, 3, 2, 2)], [(0, FAR, 0, 2)], [(-1, -9, 2, -1)]])
def test_a_slice_of_other_positions_stays_in_front_of_the_convolution(
    rows: list[tuple[int, int, int, int]],
) -> None:
    model, _ = becomes(net(IMAGE, f"{bounds(*rows)}, {CHANNELS}", f"{SLICE}  y = Pad(h, p)"), "Slice", "Conv")
    assert taken(model)[1] == [1, 1]


def test_a_slice_whose_result_is_read_twice_stays_in_front_of_the_convolution() -> None:
    signature = "(float[N,3,6,5] x) => (float[a,b,c,d] y, float[a,f,c,d] h)"
    becomes(net(signature, f"{EVERY_OTHER}, {CHANNELS}", f"{SLICE}  y = Pad(h, p)"), "Slice", "Conv")
    body = f"{SLICE}  y = Pad(h, p)  k = Relu(h)"
    becomes(net(signature.replace(" h)", " k)"), f"{EVERY_OTHER}, {CHANNELS}", body), "Slice", "Conv", "Relu")


def test_a_slice_that_is_left_alone_or_whose_result_a_subgraph_reads_stays() -> None:
    text = net(IMAGE, f"{EVERY_OTHER}, {CHANNELS}", f"[cut] {SLICE}  y = Pad(h, p)")
    becomes(text, "Slice", "Conv", left=("cut",))
    signature = "(float[N,3,6,5] x, bool c) => (float[a,b,c,d] y, float[e,f,g,h] z)"
    branches = (
        "then_branch = t () => (float[e,f,g,h] t1) { t1 = Relu(h) }, "
        "else_branch = u () => (float[e,f,g,h] u1) { u1 = Neg(h) }"
    )
    body = f"{SLICE}  y = Pad(h, p)  z = If(c) <{branches}>"
    becomes(net(signature, f"{EVERY_OTHER}, {CHANNELS}", body), "Slice", "Conv", "If")


def test_sizes_of_space_may_be_unknown_where_a_slice_runs_to_the_end() -> None:
    signature = "(float[N,3,H,W] x) => (float[a,b,c,d] y)"
    text = net(signature, f"{EVERY_OTHER}, {CHANNELS}", f"{SLICE}  y = Pad(h, p)")
    becomes(text, "Conv")
    short = bounds((0, 2, 2, 2), (0, FAR, 3, 2))
    becomes(net(signature, f"{short}, {CHANNELS}", f"{SLICE}  y = Pad(h, p)"), "Slice", "Conv")


@pytest.mark.parametrize(
    ("sizes", "amounts"), [("3,7", (0, 2, 0, 0, 0, 0)), ("2,3,4,5", (0, 0, 0, 0, 0, 0, 2, 0, 0, 0))]
)
def test_sequences_and_volumes_of_channels_are_images_too(sizes: str, amounts: tuple[int, ...]) -> None:
    rank = len(amounts) // 2
    signature = f"(float[N,{sizes}] x) => (float[{','.join('abcde'[:rank])}] y)"
    weights = f"{bounds((0, FAR, 2, rank - 1))}, {pads(*amounts)}"
    pooled = f"m = MaxPool<kernel_shape=[{','.join('1' * (rank - 2))}]>(x)  r = Relu(m)"
    body = f"{pooled}  h = Slice(r, b, e, a, s)  y = Pad(h, p)"
    becomes(net(signature, weights, body), "MaxPool", "Relu", "Conv")


def test_positions_that_are_added_to_a_sequence_of_vectors_stay() -> None:
    sequence = "(float[N,5,8] x) => (float[a,b,c] y)"
    stays(net(sequence, pads(0, 1, 0, 0, 1, 0), "r = Relu(x)  y = Pad(r, p)"))
    stays(net(sequence, "float z = {0}", "r = Mul(x, z)  y = Concat<axis=1>(x, r)"))
    image = "(float[N,6,5,3] x) => (float[a,b,c,d] y)"
    body = "t = Transpose<perm=[0,2,3,1]>(x)  r = Relu(t)  y = Pad(r, p)"
    stays(net(image, pads(0, 1, 0, 0, 0, 1, 0, 0), body))


def test_a_pad_behind_a_pooling_becomes_a_convolution_and_the_pooling_stays() -> None:
    body = "h = AveragePool<kernel_shape=[1,1], strides=[2,2]>(x)  y = Pad(h, p)"
    model, _ = becomes(net(IMAGE, CHANNELS, body), "AveragePool", "Conv")
    assert taken(model) == ([-1, 0, 1, 2, -1, -1], [1, 1])


def test_zeros_that_are_concatenated_are_channels_of_zeros() -> None:
    signature = "(float[1,3,6,5] x) => (float[a,b,c,d] y)"
    zeros = "float[1,1,3,3] k = {0,0,0,0,0,0,0,0,0}"
    body = f"{SLICE}  y = Concat<axis=-3>(k, h, k)"
    model, _ = becomes(net(signature, f"{EVERY_OTHER}, {zeros}", body), "Conv")
    assert taken(model) == ([-1, 0, 1, 2, -1], [2, 2])


@pytest.mark.parametrize("zeros", ["n = Shape(h)  f = ConstantOfShape(n)", "f = Mul(h, z)", "f = Mul(z, h)"])
def test_zeros_that_are_computed_go_with_what_computes_them_and_nothing_else(zeros: str) -> None:
    body = f"{SLICE}  {zeros}  y = Concat<axis=1>(h, f)  unused = Neg(x)"
    model, _ = becomes(net(IMAGE, f"{EVERY_OTHER}, float z = {{0}}", body), "Conv", "Neg")
    assert taken(model) == ([0, 1, 2, -1, -1, -1], [2, 2])


def test_numbers_of_a_computed_size_stay() -> None:
    fill = "ConstantOfShape<value = float[1] {1}>(n)"
    stays(net(IMAGE, "", f"n = Shape(x)  f = {fill}  y = Concat<axis=1>(x, f)"))
    stays(net(IMAGE, "float z = {1}", "f = Mul(x, z)  y = Concat<axis=1>(x, f)"))


def test_what_computes_zeros_stays_where_it_is_left_alone_or_read_elsewhere() -> None:
    body = "[zero] f = Mul(x, z)  y = Concat<axis=1>(x, f)"
    becomes(net(IMAGE, "float z = {0}", body), "Mul", "Conv", left=("zero",))
    both = "(float[N,3,6,5] x) => (float[a,b,c,d] y, float[a,e,c,d] f)"
    becomes(net(both, "float z = {0}", body), "Mul", "Conv")


@st.composite
def chains(draw: st.DrawFn) -> str:
    """Draw an image behind up to four Slices and Pads of any kind."""
    size = [2, draw(st.integers(1, 4)), draw(st.integers(1, 9)), draw(st.integers(1, 9))]
    signature = f"(float[N,{size[1]},{size[2]},{size[3]}] x) => (float[a,b,c,d] y)"
    weights, body, value = [], [], "x"
    for number in range(draw(st.integers(1, 4))):
        made = f"v{number}"
        if draw(st.booleans()):
            axes = draw(st.lists(st.integers(-3, -1), min_size=1, max_size=3, unique=True))
            rows = []
            for axis in axes:
                start = draw(st.sampled_from([0, 0, 0, 0, 1, -1, -size[axis], -99]))
                end = draw(st.sampled_from([FAR, size[axis], size[axis] - 1, -1, 99]))
                rows.append((start, end, axis, draw(st.sampled_from([1, 2, 2, 3]))))
                size[axis] = len(range(size[axis])[start : end : rows[-1][3]])
            assume(min(size) > 0)
            weights.append(bounds(*rows, tag=str(number)))
            names = ", ".join(f"{n}{number}" for n in "beas")
            body.append(f"{made} = Slice({value}, {names})")
        else:
            ahead, behind = draw(st.integers(0, 2)), draw(st.integers(0, 2))
            beside = draw(st.sampled_from([0, 0, 0, 1]))
            size[1], size[3] = size[1] + ahead + behind, size[3] + beside
            weights.append(f"int64[8] p{number} = {{0,{ahead},0,0,0,{behind},0,{beside}}}")
            body.append(f"{made} = Pad({value}, p{number})")
        value = made
    return net(signature, ", ".join(weights), f"{' '.join(body)} y = Neg({value})")


@settings(max_examples=60, deadline=None)
@given(chains())
def test_any_chain_computes_the_same_afterwards(text: str) -> None:
    once, _ = rewritten(parse_model(text), kinds=["shortcuts"])
    again, log = rewritten(once, kinds=["shortcuts"])
    assert ops(again) == ops(once)
    assert not log.changes
