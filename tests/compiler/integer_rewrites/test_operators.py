from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.analysis.signs import is_nonnegative
from onnxcomp.api import optimize
from onnxcomp.compiler.integer_rewrites.operators import ALL_FORMS, integer_forms
from onnxcomp.compiler.passbase import PassLog
from onnxcomp.ir.parse import parse_model
from tests.support.integer_forms import becomes, ops, rewritten, stays
from tests.support.sources import ROOT
from tests.support.text import net

IMAGE = "(float[N,3,6,5] x) => (float[a,b,c,d] y)"
TABLE = "(float[N,4] x) => (float[a,b] y)"
BORDER = "int64[8] p = {0,0,1,0,0,0,2,1}"
MODELS = ROOT.parent / "shared" / "models"
IF = (
    "If(c) <then_branch = t () => (float[e,f,g,h] t1) {{ t1 = Relu({0}) }}, "
    "else_branch = u () => (float[e,f,g,h] u1) {{ u1 = Neg({0}) }}>"
)
CAPTURED = "(float[N,3,6,5] x, bool c) => (float[a,b,c,d] y, float[e,f,g,h] z)"


# --- pads ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("weights", "pad", "why"),
    [
        (f"{BORDER}, float one = {{1}}", "Pad(r, p, one)", "it does more than add a known number"),
        (BORDER, 'Pad<mode="reflect">(r, p)', "it does more than add a known number"),
        ("int64[8] p = {0,0,-1,0,0,0,0,0}", "Pad(r, p)", "it does more than add a known number"),
        ("int64[8] p = {1,0,1,0,0,0,0,0}", "Pad(r, p)", "it pads the batch or the channels"),
    ],
)
def test_a_pad_that_no_convolution_can_do_stays(weights: str, pad: str, why: str) -> None:
    stays(net(IMAGE, f"{weights}, float[2,3,3,3] w", f"r = Relu(x)  h = {pad}  y = Conv(h, w)"), f"h: {why}")


def test_a_pad_that_somebody_else_needs_stays() -> None:
    weights = f"{BORDER}, float[2,3,3,3] w"
    two = "(float[N,3,6,5] x) => (float[a,b,c,d] y, float[e,f,g,h] h)"
    stays(net(two, weights, "h = Pad(x, p)  y = Conv(h, w)"), "h: its result is needed elsewhere too")
    three = two.replace(" h)", " z)")
    stays(net(three, weights, "h = Pad(x, p)  y = Conv(h, w)  z = Neg(h)"), "h: Neg 'z' behind it cannot pad")
    body = f"h = Pad(x, p)  y = Conv(h, w)  z = {IF.format('h')}"
    stays(net(CAPTURED, weights, body), "h: its result is needed elsewhere too")


def test_a_pad_or_reader_that_is_left_alone_keeps_the_pad() -> None:
    text = net(IMAGE, f"{BORDER}, float[2,3,3,3] w", "[pad] h = Pad(x, p)  [conv] y = Conv(h, w)")
    stays(text, left=("pad",))
    stays(text, "pad: Conv 'conv' behind it is left alone", left=("conv",))


def test_a_pad_in_front_of_padding_by_size_stays() -> None:
    body = 'h = Pad(x, p)  y = Conv<auto_pad="SAME_UPPER">(h, w)'
    stays(net(IMAGE, f"{BORDER}, float[2,3,3,3] w", body), "h: Conv 'y' works out its padding")


def test_a_pad_in_front_of_a_maximum_of_what_may_be_negative_stays() -> None:
    stays(
        net(IMAGE, BORDER, "h = Pad(x, p)  y = MaxPool<kernel_shape=[3,3]>(h)"),
        "h: MaxPool 'y' pads with less",
    )


@pytest.mark.parametrize("more", ["dilations=[2,1]", "ceil_mode=1"])
def test_a_pad_in_front_of_an_unusual_maximum_stays(more: str) -> None:
    body = f"r = Relu(x)  h = Pad(r, p)  y = MaxPool<kernel_shape=[3,3], {more}>(h)"
    stays(net(IMAGE, BORDER, body), "h: MaxPool 'y' rounds up")


def test_a_maximum_of_nothing_but_zeros_keeps_its_pad() -> None:
    body = "r = Relu(x)  h = Pad(r, p)  y = MaxPool<kernel_shape=[2,2]>(h)"
    stays(net(IMAGE, BORDER, body), "h: it pads by more than the kernel")


def test_every_reader_takes_the_padding_over() -> None:
    body = (
        "r = Clip(x, low)  [pad] h = Pad(r, p)  y = Conv<pads=[1,0,0,1]>(h, w)  k = MaxPool<kernel_shape=[3,3]>(h)"
        "  m = AveragePool<kernel_shape=[3,3]>(h)"
    )
    three = "(float[N,3,6,5] x) => (float[a,b,c,d] y, float[a,b,f,g] k, float[a,b,i,j] m)"
    weights = f"{BORDER}, float[2,3,3,3] w, float low = {{0}}"
    model, log = becomes(net(three, weights, body), "Clip", "Conv", "MaxPool", "AveragePool")
    found = [node.attrs["pads"] for node in model.graph.nodes[1:]]
    assert found == [[2, 0, 2, 2], [1, 0, 2, 1], [1, 0, 2, 1]]
    assert model.aliases == {"pad": "y"}
    assert [c.what for c in log.changes] == ["Pad became padding of Conv 'y', MaxPool 'k', AveragePool 'm'"]


def test_two_pads_in_a_row_both_go_and_sizes_may_be_unknown() -> None:
    body = "h = Pad(x, p)  k = Pad(h, q)  y = Conv(k, w)"
    weights = f"{BORDER}, int64[8] q = {{0,0,0,0,0,0,0,1}}, float[2,3,3,3] w"
    model, _ = becomes(net("(float[N,3,H,W] x) => (float[a,b,c,d] y)", weights, body), "Conv")
    assert model.graph.nodes[0].attrs["pads"] == [1, 0, 2, 2]
    assert list(model.graph.constants) == ["w"]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_pad_in_front_of_any_window_computes_the_same_afterwards(data: st.DataObject) -> None:
    def numbers(low: int, high: int, count: int) -> str:
        return ",".join(str(data.draw(st.integers(low, high))) for _ in range(count))

    op = data.draw(st.sampled_from(["Conv", "AveragePool", "MaxPool"]))
    attributes = [
        f"kernel_shape=[{numbers(2, 4, 2)}]",
        f"strides=[{numbers(1, 3, 2)}]",
        f"pads=[{numbers(0, 1, 4)}]",
    ]
    if op != "Conv":
        attributes.append(f"ceil_mode={numbers(0, 1, 1)}")
    if op == "AveragePool":
        attributes.append(f"count_include_pad={numbers(0, 1, 1)}")
    weights = f"int64[8] p = {{0,0,{numbers(0, 3, 2)},0,0,{numbers(0, 3, 2)}}}"
    if op == "Conv":
        kernel = numbers(2, 4, 2)
        attributes[0] = f"kernel_shape=[{kernel}]"
        weights += f", float[2,3,{kernel}] w"
    first = data.draw(st.sampled_from(["Relu(x)", "Neg(x)", "Sigmoid(x)"]))
    reads = "h, w" if op == "Conv" else "h"
    text = net(IMAGE, weights, f"r = {first}  h = Pad(r, p)  y = {op}<{', '.join(attributes)}>({reads})")
    after, log = rewritten(parse_model(text))
    assert ("Pad" in ops(after)) == (not log.changes) == bool(log.skips)
    if op == "Conv":
        assert log.changes


# --- means -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("axes", ["2", "1,2,3", "0,2,3", "-1"])
def test_a_mean_over_other_axes_stays(axes: str) -> None:
    stays(net("(float[N,3,6,5] x) => (float[a,b,c,d] y)", "", f"y = ReduceMean<axes=[{axes}]>(x)"))


def test_a_mean_of_everything_of_doubles_or_over_computed_axes_stays() -> None:
    stays(net(IMAGE, "", "y = ReduceMean(x)"))
    stays(net("(double[N,3,6,5] x) => (double[a,b,c,d] y)", "", "y = ReduceMean<axes=[2,3]>(x)"))
    stays(net("(float[N,3,6,5] x, int64[2] i) => (float[a,b,c,d] y)", "", "y = ReduceMean(x, i)", opset=18))


def test_a_mean_that_is_left_alone_stays() -> None:
    stays(net(IMAGE, "", "[mean] y = ReduceMean<axes=[2,3]>(x)"), left=("mean",))


@pytest.mark.parametrize(
    ("sizes", "axes"), [("3,H,W", "[2,3]"), ("3,6,5", "[-1,2]"), ("3,6", "[2]"), ("3,4,3,2", "[3,2,4]")]
)
def test_a_mean_over_space_becomes_a_pooling(sizes: str, axes: str) -> None:
    rank = sizes.count(",") + 2
    signature = f"(float[N,{sizes}] x) => (float[{','.join('abcde'[:rank])}] y)"
    model, log = becomes(net(signature, "", f"y = ReduceMean<axes={axes}>(x)"), "GlobalAveragePool")
    assert [c.where for c in log.changes] == ["y"]
    assert model.graph.nodes[0].attrs == {}


def test_axes_may_be_an_input() -> None:
    text = net(IMAGE, "int64[2] i = {2,3}", "y = ReduceMean(x, i)", opset=18)
    model, _ = becomes(text, "GlobalAveragePool")
    assert model.graph.constants == {}


def test_a_mean_that_drops_its_axes_becomes_a_pooling_and_a_flatten() -> None:
    body = "h = Relu(x)  [mean] y = ReduceMean<axes=[2,3], keepdims=0>(h)  z = Neg(y)"
    signature = "(float[N,3,6,5] x) => (float[a,b] y, float[a,b] z)"
    model, log = becomes(net(signature, "", body), "Relu", "GlobalAveragePool", "Flatten", "Neg")
    assert [n.name for n in model.graph.nodes[1:3]] == ["mean", "mean__flatten"]
    assert [c.where for c in log.changes] == ["mean"]
    inner = "(float[N,3,6,5] x, bool c) => (float[a,b] y, float[e,f] z)"
    body = f"h = ReduceMean<axes=[2,3], keepdims=0>(x)  y = Neg(h)  z = {IF.format('h').replace('e,f,g,h', 'e,f')}"
    becomes(net(inner, "", body), "GlobalAveragePool", "Flatten", "Neg", "If")


@pytest.mark.parametrize(
    ("signature", "attributes"),
    [
        (IMAGE, "kernel_shape=[5,5]"),
        (IMAGE, "kernel_shape=[6,5], pads=[1,0,0,0]"),
        (IMAGE, 'kernel_shape=[6,5], auto_pad="SAME_UPPER"'),
        ("(float[N,3,H,W] x) => (float[a,b,c,d] y)", "kernel_shape=[6,5]"),
    ],
)
def test_an_average_over_less_more_or_an_unknown_part_of_the_map_stays(
    signature: str, attributes: str
) -> None:
    if "H" in signature:
        # What the map is in one run is not what it always is.
        model, log = parse_model(net(signature, "", f"y = AveragePool<{attributes}>(x)")), PassLog()
        integer_forms(model, {"x": (1, 3, 6, 5), "y": (1, 3, 1, 1)}, (), log)
        assert not log.changes
    else:
        stays(net(signature, "", f"y = AveragePool<{attributes}>(x)"))


def test_an_average_over_the_whole_map_becomes_global() -> None:
    body = "y = AveragePool<kernel_shape=[6,5], strides=[6,5], ceil_mode=1>(x)"
    becomes(net(IMAGE, "", body), "GlobalAveragePool")


# --- products --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("signature", "weights", "body"),
    [
        ("(float[N,2,4] x) => (float[a,b,c] y)", "float[4,3] w, float[3] k", "h = MatMul(x, w)  y = Add(h, k)"),
        (TABLE, "float[4,3] w, float[2,1,3] k", "h = MatMul(x, w)  y = Add(h, k)"),
        (TABLE, "float[4,1] w, float[3] k", "h = MatMul(x, w)  y = Add(h, k)"),
        (TABLE, "float[4,3] w, float[3] k", "h = MatMul(x, w)  y = Mul(h, k)"),
        (TABLE, "float[4,3] w", "h = MatMul(x, w)  y = Add(h, h)"),
        ("(float[N,4] x) => (float[a,b] y, float[a,b] h)", "float[4,3] w, float[3] k", "h = MatMul(x, w)  y = Add(h, k)"),
        ("(float[N,4] x, float[4,3] w) => (float[a,b] y)", "float[3] k", "h = MatMul(x, w)  y = Add(h, k)"),
    ],
)  # fmt: skip
def test_what_is_no_product_of_matrices_and_a_bias_stays(signature: str, weights: str, body: str) -> None:
    model = parse_model(net(signature, weights, body))
    log = PassLog()
    shapes = {v.name: tuple(s if isinstance(s, int) else 2 for s in v.shape) for v in model.graph.inputs}
    integer_forms(model, shapes, (), log)
    assert not log.changes


@pytest.mark.parametrize("bias", ["float[3] k", "float[1,3] k", "float k = {0.5}"])
@pytest.mark.parametrize("reads", ["h, k", "k, h"])
def test_a_product_and_its_bias_become_one_gemm(bias: str, reads: str) -> None:
    body = f"[product] h = MatMul(x, w)  [bias] y = Add({reads})"
    model, log = becomes(net(TABLE, f"float[4,3] w, {bias}", body), "Gemm")
    assert model.aliases == {"bias": "product"}
    assert model.graph.nodes[0].inputs[2].shape == (3,)
    assert [c.where for c in log.changes] == ["bias"]


def test_a_bias_of_zeros_leaves_the_product_as_it_is() -> None:
    body = "h = MatMul(x, w)  y = Add(h, k)"
    weights = "float[4,3] w, float[3] k = {0, 0, 0}"
    _, log = becomes(net(TABLE, weights, body), "MatMul")
    assert [c.what for c in log.changes] == ["Add of a bias went into MatMul 'h': it adds zeros"]
    stays(net("(float[N,2,4] x) => (float[a,b,c] y)", weights, body))


@pytest.mark.parametrize("name", ["product", "bias"])
def test_a_product_or_bias_that_is_left_alone_stays(name: str) -> None:
    body = "[product] h = MatMul(x, w)  [bias] y = Add(h, k)"
    stays(net(TABLE, "float[4,3] w, float[3] k", body), left=(name,))


# --- clips -----------------------------------------------------------------------------------------------------------
BOUNDS = "float zero = {0}, float one = {1}, float six = {6}, float less = {-1}"


@pytest.mark.parametrize(
    "body",
    [
        "h = Neg(x)  y = Relu(h)",
        "h = Clip(x, less, six)  y = Relu(h)",
        "h = Relu(x)  y = Clip(h, zero, six)",
        "h = Clip(x, zero, six)  y = Clip(h, zero, one)",
        "h = Clip(x, less)  y = Clip(h, zero)",
        "h = Relu(x)  k = Sub(h, one)  y = Relu(k)",
        "h = Relu(x)  k = Add(h, x)  y = Relu(k)",
        "h = Clip(x, six, less)  y = Relu(h)",
        "h = Relu(x)  y = Clip(h, less, six)",
    ],
)
def test_a_clip_that_cuts_something_off_stays(body: str) -> None:
    model = parse_model(net(IMAGE, BOUNDS, body))
    after, _ = rewritten(model)
    # A Relu goes in front of a Clip that cuts as much; the last node stays in each of these.
    assert after.graph.nodes[-1].op == model.graph.nodes[-1].op
    assert after.graph.nodes[-1].output.name == "y"


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("h = Relu(x)  y = Relu(h)", ["Relu"]),
        ("h = Clip(x, zero, six)  y = Relu(h)", ["Clip"]),
        ("h = Relu(x)  y = Clip(h, zero, six)", ["Clip"]),
        ("h = Clip(x, zero, one)  y = Clip(h, less, six)", ["Clip"]),
        ("h = Relu(x)  y = Clip(h, less)", ["Relu"]),
        ("h = Relu(x)  k = Clip(h, less, six)  y = Clip(k, zero, six)", ["Relu", "Clip"]),
        ("h = Relu(x)  k = MaxPool<kernel_shape=[2,2]>(h)  y = Relu(k)", ["Relu", "MaxPool"]),
        ("h = Relu(x)  k = Sigmoid(x)  m = Add(h, k)  y = Relu(m)", ["Relu", "Sigmoid", "Add"]),
        ("h = Clip(x, less, six)  k = Abs(h)  m = Concat<axis=1>(k, k)  y = Relu(m)", ["Clip", "Abs", "Concat"]),
    ],
)  # fmt: skip
def test_a_clip_that_cuts_nothing_off_goes(body: str, wanted: list[str]) -> None:
    becomes(net(IMAGE, BOUNDS, body), *wanted)


def test_a_relu_in_front_of_a_clip_stays_where_somebody_else_reads_it() -> None:
    two = "(float[N,3,6,5] x) => (float[a,b,c,d] y, float[a,b,c,d] h)"
    stays(net(two, BOUNDS, "h = Relu(x)  y = Clip(h, zero, six)"))
    stays(net(two.replace(" h)", " z)"), BOUNDS, "h = Relu(x)  y = Clip(h, zero, six)  z = Neg(h)"))
    stays(net(CAPTURED, BOUNDS, f"h = Relu(x)  y = Clip(h, zero, six)  z = {IF.format('h')}"))


@pytest.mark.parametrize("name", ["first", "second"])
def test_a_clip_that_is_left_alone_stays_and_reads_what_it_read(name: str) -> None:
    stays(net(IMAGE, BOUNDS, "[first] h = Relu(x)  [second] y = Clip(h, zero, six)"), left=(name,))


def test_a_clip_whose_name_and_whose_source_must_stay_stays() -> None:
    two = "(float[N,3,6,5] x) => (float[a,b,c,d] y, float[a,b,c,d] h)"
    stays(net(two, BOUNDS, "h = Relu(x)  y = Relu(h)"), "y: its result bears a name that must stay")


def test_hard_swish_stays_as_it_is_written() -> None:
    stays(net(IMAGE, "float a = {3}", "h = HardSigmoid(x)  y = Mul(h, x)"))
    body = "h = Add(x, a)  k = Clip(h, zero, six)  m = Mul(x, k)  y = Div(m, six)"
    stays(net(IMAGE, f"{BOUNDS}, float a = {{3}}", body))


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("y = Clip(x, less, one)", False),
        ("y = Clip(x, one, less)", False),
        ("y = Clip(x, zero)", True),
        ("r = Relu(x)  y = Clip(r, less, six)", True),
        ("r = Relu(x)  y = Clip(r, less, less)", False),
        ("r = Relu(x)  y = Mul(r, six)", True),
        ("r = Relu(x)  y = Mul(r, less)", False),
        ("r = Relu(x)  y = Neg(r)", False),
        ("y = Mul(x, x)", False),
    ],
)
def test_a_sign_is_known_only_where_it_is_certain(body: str, wanted: bool) -> None:
    model = parse_model(net(IMAGE, BOUNDS, body))
    assert is_nonnegative(model.graph.outputs[0]) is wanted


# --- choices and whole networks --------------------------------------------------------------------------------------
ALL_OF_THEM = net(
    "(float[N,3,6,5] x) => (float[a,b] y)",
    "int64[8] p = {0,1,0,0,0,0,0,0}, int64[8] q = {0,0,1,1,0,0,1,1}, float[4,4,3,3] w, float[4,2] m, float[2] k",
    """r = Relu(x)  s = Relu(r)  c = Pad(s, p)  h = Pad(c, q)  v = Conv(h, w)
    g = ReduceMean<axes=[2,3], keepdims=0>(v)  d = MatMul(g, m)  y = Add(d, k)""",
)


@pytest.mark.parametrize(
    ("kind", "gone"),
    list(zip(ALL_FORMS, ["Relu", "Pad", "Pad", "ReduceMean", "Add"], strict=True)),
)
def test_each_kind_can_be_asked_for_alone(kind: str, gone: str) -> None:
    model = parse_model(ALL_OF_THEM)
    after, log = rewritten(model, kinds=[kind])
    assert len(log.changes) == 1
    assert ops(model).count(gone) - ops(after).count(gone) == 1
    assert len(rewritten(model)[1].changes) == 5
    assert not rewritten(model, kinds=[])[1].changes


def test_a_kind_that_does_not_exist_is_refused() -> None:
    model = parse_model(ALL_OF_THEM)
    with pytest.raises(ValueError, match="no forms 'pad'; there are clips, shortcuts, pads, means, products"):
        integer_forms(model, {}, (), PassLog(), ["pad"])


def test_observed_ranks_serve_where_inference_finds_none() -> None:
    # The size of what a Reshape to computed sizes gives is open, even how many axes it has.
    signature = "(float[N,30] x, int64[S] s) => (float[a,b,c,d] y)"
    model = parse_model(net(signature, "", "h = Reshape(x, s)  y = ReduceMean<axes=[2,3]>(h)"))
    log = PassLog()
    integer_forms(model.clone(), {}, (), log)
    assert not log.changes
    integer_forms(model, {"h": (2, 3, 5, 2)}, (), log)
    assert ops(model) == ["Reshape", "GlobalAveragePool"]


@pytest.mark.parametrize(
    ("name", "added"),
    [
        ("cifar10_resnet20_bn", {"Conv": 2, "Slice": -4, "Pad": -2}),
        ("cifar10_resnet56_bn", {"Conv": 2, "Slice": -4, "Pad": -2}),
        ("efficientnet_lite0_bn", {"Pad": -17}),
        ("mlperftiny_resnet8_cifar10", {"AveragePool": -1, "GlobalAveragePool": 1}),
    ],
)
def test_trained_networks_lose_what_would_be_float(name: str, added: dict[str, int]) -> None:
    path = MODELS / f"{name}.onnx"
    if not path.exists():
        pytest.skip(f"the shared models are not beside the repository: {path.name}")
    model = optimize(path, "fold-constants").model
    after, log = rewritten(model)
    before, now = Counter(ops(model)), Counter(ops(after))
    assert {op: now[op] - before[op] for op in before | now if now[op] != before[op]} == added
    assert log.skips == []
    again, log = rewritten(after)
    assert ops(again) == ops(after)
    assert not log.changes
