"""Estimates of latency, with a made machine in place of the clock: what it takes is a law that the tests know."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest

import onnxcomp
from onnxcomp.analysis.channels import channel_groups
from onnxcomp.analysis.cost import node_macs
from onnxcomp.compiler.cost.kernel_graphs import ConvKind, Maker
from onnxcomp.compiler.cost.kernel_times import KernelClock, KernelTimes, clock
from onnxcomp.compiler.cost.latency import LatencyPrice, measured_ratio, structure
from onnxcomp.compiler.passbase import Context, Pass, PassLog, PassResult
from onnxcomp.errors import UsageError
from onnxcomp.ir.graph import Constant
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.runtime.observe import observe_shapes
from onnxcomp.runtime.session import SessionError
from onnxcomp.runtime.timings import Timings
from tests.support.text import net

Shapes = Mapping[str, tuple[int, ...]]
Mask = np.ndarray[tuple[int], np.dtype[np.bool_]]

CHAIN = parse_model(
    net(
        "(float[N,3,8,8] x) => (float[N,10] y)",
        "float[32,3,3,3] a, float[48,32,3,3] b, float[32,48,1,1] c, float[10,32] d",
        "h = Conv<pads=[1,1,1,1]>(x, a)  i = Relu(h)  j = Conv<pads=[1,1,1,1], strides=[2,2]>(i, b)  k = Relu(j) "
        "l = Conv(k, c)  m = Relu(l)  p = GlobalAveragePool(m)  f = Flatten(p)  y = Gemm<transB=1>(f, d)",
    )
)
RESIDUAL = parse_model(
    net(
        "(float[N,3,8,8] x) => (float[N,32,1,1] y)",
        "float[32,3,3,3] a, float[32,32,3,3] b, float[32,32,3,3] c, float[32,32,1,1] d",
        "s = Conv<pads=[1,1,1,1]>(x, a)  r = Relu(s)  h = Conv<pads=[1,1,1,1]>(r, b)  i = Relu(h) "
        "j = Conv<pads=[1,1,1,1]>(i, c)  k = Add(j, r)  l = Relu(k)  p = GlobalAveragePool(l)  y = Conv(p, d)",
    )
)
DEPTHWISE = parse_model(
    net(
        "(float[N,3,8,8] x) => (float[N,5,8,8] y)",
        "float[32,3,1,1] a, float[32,1,3,3] b, float[5,32,1,1] c",
        "h = Conv(x, a)  i = Conv<group=32, pads=[1,1,1,1]>(h, b)  j = HardSwish(i)  y = Conv(j, c)",
    )
)

PER_MAC = 1e-6
PER_ELEMENT = 1e-5
START = 0.01


def law(model: Model, shapes: Shapes) -> float:
    """Return what the made machine takes for `model`: by multiply-accumulates in blocks of 16 where it can."""
    sizes = {v.name: tuple(shapes.get(v.name) or v.shape or ()) for v in model.graph.inputs}
    feeds = {v.name: np.zeros(sizes[v.name], v.dtype) for v in model.graph.inputs}
    known = observe_shapes(model, feeds)
    spent = START
    for node in model.graph.nodes:
        elements = max(math.prod(known[v.name]) for v in (node.inputs[0], node.output))
        if node.op == "Conv":
            made, read = node.inputs[1].values.shape[:2]
            blocks = _up(made) / made * (_up(read) / read if read >= 16 else 1)
            plain = read >= 16 and read % 4
            spent += PER_MAC * node_macs(node, known) * (3 if plain else blocks)
        elif node.op in ("Gemm", "MatMul"):
            spent += PER_MAC * node_macs(node, known)
        elif node.op in ("Neg", "HardSwish", "GlobalAveragePool"):
            spent += PER_ELEMENT * elements
    return spent


def _up(count: int) -> int:
    return -(-count // 16) * 16


class Machine:
    """Times models by `law`, and remembers how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.speed = 1.0

    def __call__(self, models: Sequence[Model], shapes: Shapes, seconds: float) -> list[float]:
        self.asked += 1
        return [self.speed * law(model, shapes) for model in models]


def broken(models: Sequence[Model], shapes: Shapes, seconds: float) -> list[float]:
    raise AssertionError("nothing is to be timed")


def context(model: Model, timings: Timings | None = None) -> Context:
    shapes = {v.name: (1, *(int(s) for s in (v.shape or ())[1:])) for v in model.graph.inputs}
    return Context(model, input_shapes=shapes, timings=timings or Timings())


def price(model: Model, machine: Callable[..., list[float]], timings: Timings | None = None) -> LatencyPrice:
    given = context(model, timings)
    feeds = {name: np.zeros(shape, np.float32) for name, shape in given.input_shapes.items()}
    shapes = observe_shapes(model, feeds)
    return LatencyPrice(model, channel_groups(model, shapes), shapes, given, machine)


def keep_first(model: Model, counts: Mapping[str, int]) -> dict[str, Mask]:
    return {g.name: np.arange(g.units) < counts[g.name] for g in channel_groups(model) if g.name in counts}


def cut(model: Model, keep: Mapping[str, Mask]) -> Model:
    made = model.clone()
    channel_groups(model).take(made, keep)
    return made


PLANS: list[tuple[Model, dict[str, int]]] = [
    (CHAIN, {"h": 16}),
    (CHAIN, {"j": 16, "l": 16}),
    (CHAIN, {"h": 16, "j": 32, "l": 16}),
    (CHAIN, {"h": 17, "j": 20, "l": 27}),
    (CHAIN, {"h": 8, "j": 4, "l": 12}),
    (RESIDUAL, {"h": 16}),
    (RESIDUAL, {"s": 16, "h": 16}),
    (RESIDUAL, {"s": 16}),
]


@pytest.mark.parametrize(("model", "counts"), PLANS)
def test_the_estimate_of_a_cut_is_what_the_machine_takes_for_it(model: Model, counts: dict[str, int]) -> None:
    found = price(model, Machine())
    keep = keep_first(model, counts)
    assert len(keep) == len(counts)
    real = law(cut(model, keep), context(model).input_shapes)
    assert found.of(keep) == pytest.approx(real, rel=0.02)
    assert real < 0.95 * found.full


@pytest.mark.parametrize("model", [CHAIN, RESIDUAL, DEPTHWISE])
def test_without_a_cut_the_estimate_is_what_was_measured(model: Model) -> None:
    found = price(model, Machine())
    assert found.full == pytest.approx(law(model, context(model).input_shapes), rel=1e-5)
    assert found.of({}) == pytest.approx(found.full)
    assert found.whole == found.full


def test_the_whole_is_the_model_that_the_pipeline_received() -> None:
    small = cut(CHAIN, keep_first(CHAIN, {"h": 16}))
    given = context(CHAIN)
    feeds = {"x": np.zeros((1, 3, 8, 8), np.float32)}
    shapes = observe_shapes(small, feeds)
    found = LatencyPrice(small, channel_groups(small, shapes), shapes, given, Machine())
    assert found.whole == pytest.approx(law(CHAIN, given.input_shapes), rel=1e-5)
    assert found.full == pytest.approx(law(small, given.input_shapes), rel=1e-5)


def test_a_later_round_on_a_slower_machine_keeps_the_pace_of_the_first() -> None:
    machine, timings = Machine(), Timings()
    price(CHAIN, machine, timings)
    machine.speed = 1.5
    small = cut(CHAIN, keep_first(CHAIN, {"h": 16}))
    given = context(CHAIN, timings)
    shapes = observe_shapes(small, {"x": np.zeros((1, 3, 8, 8), np.float32)})
    found = LatencyPrice(small, channel_groups(small, shapes), shapes, given, machine)
    assert found.full == pytest.approx(law(small, given.input_shapes), rel=1e-4)
    keep = {g.name: np.arange(g.units) < 16 for g in channel_groups(small) if g.name == "j"}
    real = law(cut(small, keep), given.input_shapes)
    assert found.of(keep) == pytest.approx(real, rel=0.02)


def test_depthwise_convolutions_follow_their_one_count() -> None:
    found = price(DEPTHWISE, Machine())
    keep = keep_first(DEPTHWISE, {"h": 16})
    real = law(cut(DEPTHWISE, keep), context(DEPTHWISE).input_shapes)
    assert found.of(keep) == pytest.approx(real, rel=0.05)


def test_counts_move_time_in_steps_of_the_block() -> None:
    found = price(CHAIN, Machine())
    for few, many in ((20, 24), (24, 32), (36, 48)):
        name = "h" if many <= 32 else "j"
        assert found.of(keep_first(CHAIN, {name: few})) == pytest.approx(
            found.of(keep_first(CHAIN, {name: many}))
        )
    assert found.of(keep_first(CHAIN, {"h": 16})) < found.of(keep_first(CHAIN, {"h": 20}))


def test_a_load_that_slows_the_machine_for_a_while_cancels() -> None:
    machine = Machine()
    quiet = price(CHAIN, machine)
    loaded = Machine()
    found = price(CHAIN, loaded)
    loaded.speed = 1.7
    keep = keep_first(CHAIN, {"h": 16, "j": 16})
    assert found.of(keep) == pytest.approx(quiet.of(keep), rel=1e-4)


def test_nothing_is_timed_twice() -> None:
    machine = Machine()
    found = price(RESIDUAL, machine)
    keep = keep_first(RESIDUAL, {"s": 16, "h": 20})
    once = found.of(keep)
    asked = machine.asked
    assert asked > 0
    assert found.of(keep) == once
    assert machine.asked == asked


def test_the_same_timings_give_the_same_estimates_without_a_clock() -> None:
    timings = Timings()
    first = price(RESIDUAL, Machine(), timings)
    keeps = [keep_first(RESIDUAL, {"s": s, "h": h}) for s, h in ((16, 16), (20, 7), (32, 25))]
    said = [first.of(keep) for keep in keeps]
    again = price(RESIDUAL, broken, Timings(timings.used, strict=True))
    assert [again.of(keep) for keep in keeps] == said


def test_operators_of_one_signature_share_their_times() -> None:
    timings = Timings()
    price(RESIDUAL, Machine(), timings)
    assert (
        len([key for key in timings.used if key.startswith("conv 3x3 at 8x8") and key.endswith("32->32")])
        == 1
    )


def test_a_slow_operator_that_the_tables_do_not_know_stays_whatever_is_cut() -> None:
    class Odd(Machine):
        def __call__(self, models: Sequence[Model], shapes: Shapes, seconds: float) -> list[float]:
            odd = [5.0 if any(n.op == "GlobalAveragePool" for n in m.graph.nodes) else 0.0 for m in models]
            return [a + b for a, b in zip(super().__call__(models, shapes, seconds), odd, strict=True)]

    found = price(CHAIN, Odd())
    assert found.full > 5
    assert found.of(keep_first(CHAIN, {"h": 16, "j": 4, "l": 4})) > 4.8


# --- tables ----------------------------------------------------------------------------------------------------------
KIND = ConvKind((8, 8), (3, 3), (("pads", (1, 1, 1, 1)),), False)


def table(machine: Callable[..., list[float]]) -> KernelTimes:
    maker, given = Maker(CHAIN), context(CHAIN)
    return KernelTimes(given, maker, KernelClock(given, maker, machine, law(maker.reference(), {})))


@pytest.mark.parametrize(
    ("read", "made"),
    [(1, 16), (8, 16), (15, 32), (16, 1), (32, 48), (60, 64), (64, 80), (200, 130), (256, 256)],
)
def test_tables_of_few_points_agree_with_the_machine_everywhere(read: int, made: int) -> None:
    blocks = _up(made) * (_up(read) if read >= 16 else read)
    assert table(Machine()).conv(KIND, read, made) == pytest.approx(PER_MAC * 64 * 9 * blocks, rel=1e-3)


def test_no_channels_take_no_time() -> None:
    times = table(broken)
    assert times.conv(KIND, 0, 16) == times.conv(KIND, 16, 0) == 0.0


@pytest.mark.parametrize(
    ("read", "kernel"), [(3, "single"), (15, "single"), (16, "blocks"), (20, "blocks"), (21, "plain")]
)
def test_the_kernel_follows_from_the_channels_that_are_read(read: int, kernel: str) -> None:
    times = table(Machine())
    assert times.block == 16
    assert times.kernel(KIND, read) == kernel
    depthwise = replace(KIND, depthwise=True)
    assert times.kernel(depthwise, read) == ("blocks" if read == 16 else "plain")


def test_a_node_that_cannot_be_timed_alone_counts_as_no_time_and_is_named_with_the_reason() -> None:
    def refusing(models: Sequence[Model], shapes: Shapes, seconds: float) -> list[float]:
        raise SessionError("no kernel")

    node = CHAIN.graph.nodes[-1]
    shapes = {v.name: (1, 32) for v in node.inputs}
    times = table(refusing)
    assert times.node(node, {}, "without sizes") == 0.0
    assert "unknown sizes" in times.untimed.pop(node.name)
    assert times.node(node, shapes, "refused") == 0.0
    assert "no kernel" in times.untimed[node.name]
    timed = table(Machine())
    assert timed.node(node, shapes, "timed") > 0
    assert timed.untimed == {}


def test_what_is_priced_by_time_names_the_nodes_that_were_not_timed() -> None:
    class Refusing(Machine):
        def __call__(self, models: Sequence[Model], shapes: Shapes, seconds: float) -> list[float]:
            if any(n.op == "Gemm" for n in models[0].graph.nodes) and len(models[0].graph.nodes) == 1:
                raise SessionError("no kernel")
            return super().__call__(models, shapes, seconds)

    assert price(CHAIN, Machine()).untimed == {}
    assert set(price(CHAIN, Refusing()).untimed) == {CHAIN.graph.nodes[-1].name}


def test_the_real_clock_times_made_models_of_every_sort() -> None:
    maker = Maker(CHAIN)
    made = [
        maker.conv(KIND, 5, 7, 3),
        maker.conv(KIND, 5, 7, 2, behind=16),
        maker.conv(replace(KIND, depthwise=True), 6, 6, 2),
        maker.moves(100, 2),
        maker.conversions(16, 2048, 2, between=True),
        maker.reference(),
    ]
    assert all(time > 0 for time in clock(made, {}, 0.0))


# --- structure and ratio ---------------------------------------------------------------------------------------------
def test_the_structure_forgets_names_and_weights_and_nothing_that_takes_time() -> None:
    shapes = {"x": (1, 3, 8, 8)}
    other = CHAIN.clone()
    for node in other.graph.nodes:
        node.name = f"other.{node.name}"
        weight = node.inputs[-1]
        if isinstance(weight, Constant):
            other.graph.set_constant(node, len(node.inputs) - 1, weight.values + 1)
    assert structure(other, shapes) == structure(CHAIN, shapes)
    assert structure(CHAIN, {"x": (2, 3, 8, 8)}) != structure(CHAIN, shapes)
    assert structure(cut(CHAIN, keep_first(CHAIN, {"h": 31})), shapes) != structure(CHAIN, shapes)
    strided = CHAIN.clone()
    strided.graph.nodes[2].attrs["strides"] = [1, 1]
    assert structure(strided, shapes) != structure(CHAIN, shapes)


def test_a_model_of_the_same_structure_takes_the_same_time_by_definition() -> None:
    given = context(CHAIN, Timings({}, strict=True))
    assert measured_ratio(CHAIN, CHAIN.clone(), given) == 1.0


def test_a_measured_ratio_is_recorded_and_replayed() -> None:
    small = cut(CHAIN, keep_first(CHAIN, {"h": 16, "j": 8}))
    shapes = context(CHAIN).input_shapes
    key = f"ratio of {structure(small, shapes)} to {structure(CHAIN, shapes)}"
    given = context(CHAIN, Timings({key: 0.625}, strict=True))
    assert measured_ratio(CHAIN, small, given) == 0.625
    with pytest.raises(UsageError, match="--timings lacks 'ratio of"):
        measured_ratio(small, CHAIN, given)


# --- a run -----------------------------------------------------------------------------------------------------------
class CutByTime(Pass):
    """Name the graph after a time, which is never the same twice."""

    name = "cut-by-time"
    clock = count(1)

    def run(self, model: Model, context: Context) -> PassResult:
        """Let the clock choose a name."""
        log = PassLog()
        model.graph.name = f"g{context.timings.get('time', lambda: float(next(self.clock))):g}"
        log.change("graph", "named by the clock")
        return log.result(model)


def test_runs_that_replay_the_same_timings_write_the_same_bytes(tmp_path: Path) -> None:
    first = onnxcomp.optimize(CHAIN, [CutByTime()], output=tmp_path / "a.onnx", reports=[tmp_path / "a.json"])
    other = onnxcomp.optimize(CHAIN, [CutByTime()], output=tmp_path / "b.onnx")
    assert first.report.timings != other.report.timings
    assert (tmp_path / "a.onnx").read_bytes() != (tmp_path / "b.onnx").read_bytes()
    again = onnxcomp.optimize(
        CHAIN, [CutByTime()], output=tmp_path / "c.onnx", timings=tmp_path / "a.json", strict=True
    )
    assert again.report.timings == first.report.timings == {"time": 1.0}
    assert (tmp_path / "c.onnx").read_bytes() == (tmp_path / "a.onnx").read_bytes()
