"""What a network computes piece by piece, with its values on disk, is what it computes whole."""

from __future__ import annotations

import errno
import tempfile
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxcomp.errors import UsageError
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.ir.segment import segment_bytes, with_outputs
from onnxcomp.runtime import capture
from onnxcomp.runtime.capture import Frontier, Spool, batch_size, stream_values
from onnxcomp.runtime.data.samples import open_samples
from onnxcomp.runtime.inputs import input_specs
from onnxcomp.runtime.session import Session
from tests.support.graphs import Plan, build, plans
from tests.support.text import net

Array = NDArray[Any]

BRANCHES = net(
    "(float[N,3,4,4] x) => (float[N,6,4,4] y, float[N,6,2,2] z)",
    "float[6,3,1,1] a, float[6,6,1,1] b, float[6,6,1,1] c",
    "h = Conv(x, a) r = Relu(h) p = Conv(r, b) q = Conv(r, c) s = Add(p, h) y = Add(s, q)"
    " z = MaxPool<kernel_shape=[2,2], strides=[2,2]>(s)",
)


def images(count: int, seed: int = 0, size: int = 4) -> Array:
    return np.random.default_rng(seed).standard_normal((count, 3, size, size)).astype(np.float32)


def made_values(model: Model) -> list[str]:
    return [v.name for node in model.graph.nodes for v in node.outputs if v.name]


def whole(model: Model, x: Array, names: Sequence[str]) -> dict[str, Array]:
    """All values from one run of the whole model."""
    (name,) = (v.name for v in model.graph.inputs)
    return Session(with_outputs(model, names), optimize=False, threads=1).run({name: x}, names)


def frontier(model: Model, spool: Spool, x: Array, batch: int) -> Frontier:
    (name,) = (v.name for v in model.graph.inputs)
    parts = [x[start : start + batch] for start in range(0, len(x), batch)]
    for part in parts:
        spool.write(name, part)
    return Frontier(model, spool, len(parts), threads=1)


def gathered(walker: Frontier, wanted: Sequence[str]) -> dict[str, Array]:
    """The wanted values of all samples, batches put together."""
    batches = list(walker.advance(wanted))
    assert all(list(b) == list(dict.fromkeys(wanted)) for b in batches)
    return {name: np.concatenate([b[name] for b in batches]) for name in wanted}


class Count:
    """Counts the nodes of the segments that are built."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ran: list[str] = []

        def counting(model: Model, nodes: Sequence[Any], *rest: Any) -> bytes:
            self.ran += [node.name for node in nodes]
            return segment_bytes(model, nodes, *rest)

        monkeypatch.setattr(capture, "segment_bytes", counting)


@given(plans(6), st.randoms(use_true_random=False), st.integers(1, 5))
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
def test_values_of_a_random_network_are_those_of_the_whole_in_any_order_that_the_graph_allows(
    plan: Plan, random: Any, batch: int
) -> None:
    """Steps want random values; in the order of steps, none is wanted that follows from a later step's."""
    model = build(plan)
    names = made_values(model)
    chosen = sorted(random.sample(range(len(names)), random.randint(1, len(names))))
    steps: list[list[str]] = []
    for place in chosen:
        if not steps or random.random() < 0.6:
            steps.append([])
        steps[-1].append(names[place])
    x = images(5, size=8)
    truth = whole(model, x, names)
    with Spool() as spool, pytest.MonkeyPatch.context() as patch:
        count = Count(patch)
        walker = frontier(model, spool, x, batch)
        for step in steps:
            random.shuffle(step)
            for name, value in gathered(walker, step).items():
                np.testing.assert_allclose(value, truth[name], rtol=1e-4, atol=1e-5, err_msg=name)
        assert len(count.ran) == len(set(count.ran)), "a node ran twice"
        list(walker.advance([]))
        assert not walker.pending([]), "nothing is wanted"
        makers = {v.name: n for n in model.graph.nodes for v in n.outputs}
        still = [n for n in model.graph.nodes if n.name not in count.ran]
        read = {v.name for n in still for v in n.inputs}
        assert set(spool.names) <= read, "something is kept that nobody will read"
        assert all(name in makers or name == "image" for name in spool.names)


def test_only_what_is_needed_runs_and_each_node_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = parse_model(BRANCHES), images(3)
    truth = whole(model, x, made_values(model))
    count = Count(monkeypatch)
    with Spool() as spool:
        walker = frontier(model, spool, x, 2)
        seen = []
        for wanted in (["r"], ["p", "h"], ["z"], ["y"]):
            count.ran.clear()
            for name, value in gathered(walker, wanted).items():
                np.testing.assert_allclose(value, truth[name], rtol=1e-5, atol=1e-6)
            seen.append(
                [model.graph.nodes[i].output.name for i in range(7) if model.graph.nodes[i].name in count.ran]
            )
        assert seen == [["h", "r"], ["p"], ["s", "z"], ["q", "y"]]


def test_values_go_when_their_last_reader_has_run_and_at_the_end_none_is_left() -> None:
    model, x = parse_model(BRANCHES), images(3)
    with Spool() as spool:
        walker = frontier(model, spool, x, 2)
        held = []
        for wanted in (["r"], ["p"], ["q"], ["z"], ["y"], []):
            list(walker.advance(wanted))
            held.append(set(spool.names))
        assert held == [
            {"x", "h", "r"},
            {"h", "r", "p"},
            {"h", "r", "p", "q"},
            {"h", "p", "q", "s", "z"},
            {"q", "s", "y"},
            set(),
        ]


def test_what_was_wanted_can_be_wanted_again_and_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = parse_model(BRANCHES), images(3)
    with Spool() as spool:
        walker = frontier(model, spool, x, 2)
        first = gathered(walker, ["y", "z", "x"])
        count = Count(monkeypatch)
        again = gathered(walker, ["z", "y"])
        once_more = [dict(feed) for feed in walker.again(["y", "z"])]
        assert count.ran == []
    for name in ("y", "z"):
        np.testing.assert_array_equal(again[name], first[name])
        np.testing.assert_array_equal(np.concatenate([b[name] for b in once_more]), first[name])
    np.testing.assert_array_equal(first["x"], x)


def test_a_value_that_was_passed_unasked_is_refused_by_name() -> None:
    model, x = parse_model(BRANCHES), images(2)
    with Spool() as spool:
        walker = frontier(model, spool, x, 2)
        list(walker.advance(["y"]))
        with pytest.raises(ValueError, match="'q' has been passed"):
            list(walker.advance(["q"]))


def test_pending_names_the_nodes_between_here_and_there() -> None:
    model, x = parse_model(BRANCHES), images(2)
    with Spool() as spool:
        walker = frontier(model, spool, x, 2)
        assert [n.output.name for n in walker.pending(["p"])] == ["h", "r", "p"]
        list(walker.advance(["r"]))
        assert [n.output.name for n in walker.pending(["s", "q"])] == ["p", "q", "s"]
        assert walker.pending(["x", "r"]) == []


def test_weights_that_change_between_steps_count_for_the_nodes_that_have_not_run() -> None:
    model, x = parse_model(BRANCHES), images(3)
    with Spool() as spool:
        walker = frontier(model, spool, x, 2)
        list(walker.advance(["p"]))
        for place in (2, 3):
            node = model.graph.nodes[place]
            weight = node.constant(1)
            assert weight is not None
            model.graph.set_constant(node, 1, weight * np.float32(3))
        changed = gathered(walker, ["p", "q"])
    old = whole(parse_model(BRANCHES), x, ["p", "q"])
    np.testing.assert_allclose(changed["p"], old["p"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(changed["q"], 3 * old["q"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 100])
def test_the_batch_size_does_not_matter(batch: int) -> None:
    model, x = parse_model(BRANCHES), images(7)
    truth = whole(model, x, ["s", "y", "z"])
    with Spool() as spool:
        walker = frontier(model, spool, x, batch)
        found = {**gathered(walker, ["s"]), **gathered(walker, ["z", "y"])}
    samples = open_samples({"x": x}, input_specs(model))
    streamed = list(stream_values(model, ["s", "z", "x"], samples, batch, threads=1))
    for name in ("s", "y", "z"):
        np.testing.assert_allclose(found[name], truth[name], rtol=1e-5, atol=1e-6)
    for name, wanted in {"s": truth["s"], "z": truth["z"], "x": x}.items():
        np.testing.assert_allclose(np.concatenate([f[name] for f in streamed]), wanted, rtol=1e-5, atol=1e-6)


def test_streaming_tells_how_many_samples_are_done() -> None:
    model = parse_model(BRANCHES)
    samples = open_samples({"x": images(7)}, input_specs(model))
    done: list[int] = []
    list(stream_values(model, ["h"], samples, 3, threads=1, progress=done.append))
    assert done == [3, 6, 7]


def test_values_that_are_no_floats_and_subgraphs_that_look_outside_are_carried() -> None:
    model = parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        net (float[N,3,4,4] x) => (float[a,b,c,d] y) <float zero = {0}, int64[1] one = {1}> {
            shape = Shape(x)
            sum = ReduceSum<keepdims=0>(x)
            positive = Greater(sum, zero)
            h = Relu(x)
            y = If (positive) <
                then_branch = g1 () => (float[a,b,c,d] u) { u = Add(h, zero) },
                else_branch = g2 () => (float[a,b,c,d] v) { v = Neg(h) }
            >
        }"""
    )
    x = images(4)
    truth = [whole(model, part[None], ["shape", "positive", "y"]) for part in x]
    assert len({bool(t["positive"]) for t in truth}) == 2
    with Spool() as spool:
        walker = frontier(model, spool, x, 1)
        batches = list(walker.advance(["shape", "positive"]))
        list(walker.advance(["h"]))
        assert "h" in spool
        ends = list(walker.advance(["y"]))
    for batch, end, wanted in zip(batches, ends, truth, strict=True):
        np.testing.assert_array_equal(batch["shape"], wanted["shape"])
        assert bool(batch["positive"]) == bool(wanted["positive"])
        assert batch["positive"].dtype == bool
        np.testing.assert_array_equal(end["y"], wanted["y"])


# --- the spool -------------------------------------------------------------------------------------------------------
@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int64", "bool", "uint8"])
@pytest.mark.parametrize("shape", [(3, 2, 4), (5,), (), (0, 3)])
def test_a_spool_gives_back_what_was_written(dtype: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    parts = [np.asarray(rng.integers(0, 2, shape)).astype(dtype) for _ in range(3)]
    with Spool() as spool:
        for part in parts:
            spool.write("a", part)
            spool.write("b", part[::-1] if part.ndim else part)
        assert spool.kind("a") == (np.dtype(dtype), len(shape))
        for number in (2, 0, 1):
            found = spool.read("a", number)
            np.testing.assert_array_equal(found, parts[number])
            assert (found.dtype, found.shape) == (np.dtype(dtype), shape)
        if shape:
            np.testing.assert_array_equal(spool.read("b", 1), parts[1][::-1])


def test_values_lie_on_disk_and_are_gone_with_their_value_and_with_the_spool(folder: Path) -> None:
    with Spool() as spool:
        for name in ("a", "b"):
            for _ in range(3):
                spool.write(name, np.zeros(1000, np.float32))
        assert on_disk(folder) == 2 * 3 * 4000
        spool.drop("a")
        spool.drop("never written")
        assert on_disk(folder) == 3 * 4000
        assert ("a" in spool, "b" in spool, spool.names) == (False, True, ["b"])
        spool.write("a", np.ones(10, np.float32))
        np.testing.assert_array_equal(spool.read("a", 0), np.ones(10))
    assert list(folder.iterdir()) == []


def test_nothing_stays_on_disk_when_work_is_interrupted(folder: Path) -> None:
    model, x = parse_model(BRANCHES), images(4)
    with pytest.raises(KeyboardInterrupt), Spool() as spool:
        for number, _ in enumerate(frontier(model, spool, x, 1).advance(["y"])):
            assert on_disk(folder) > 0
            if number == 2:
                raise KeyboardInterrupt
    assert list(folder.iterdir()) == []


def test_memory_does_not_grow_with_the_number_of_batches(folder: Path) -> None:
    part = np.zeros(1 << 18, np.float32)
    tracemalloc.start()
    try:
        with Spool() as spool:
            for _ in range(30):
                spool.write("a", part)
            for number in range(30):
                spool.read("a", number)
            _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * part.nbytes


def test_a_full_disk_is_told_in_one_line_even_where_it_still_takes_a_part(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        """A file on a disk with 100 bytes left."""

        left = 100

        def seek(self, *_: int) -> int:
            return 0

        def write(self, data: memoryview) -> int:
            if not self.left:
                raise OSError(errno.ENOSPC, "No space left on device")
            taken, self.left = min(self.left, len(data)), 0
            return taken

        def close(self) -> None:
            pass

    monkeypatch.setattr(Path, "open", lambda *_, **__: Full())
    with (
        pytest.raises(UsageError, match=r"No space left on device\); point TMPDIR") as caught,
        Spool() as spool,
    ):
        spool.write("a", np.zeros(1000, np.float32))
    assert "\n" not in str(caught.value)
    assert list(folder.iterdir()) == []


# --- how much at once ------------------------------------------------------------------------------------------------
def test_batches_are_as_large_as_their_largest_value_allows() -> None:
    aim = capture.BATCH_BYTES
    assert batch_size({}, ["unknown"]) == 64
    assert batch_size({"a": (1, 10)}, ["a"]) == 64
    assert batch_size({"a": (1, 10)}, ["a"], most=8) == 8
    assert batch_size({"a": (1, aim)}, ["a"]) == 1
    assert batch_size({"a": (1, 0)}, ["a"]) == 64
    for size in (10**4, 10**5, 10**6):
        found = batch_size({"a": (1, size), "b": (1, 10 * size), "c": (1, 10**9)}, ["a", "b"])
        assert found * 10 * size * 4 * 8 <= aim or found == 1


def test_a_piece_that_loads_only_with_its_sizes_is_given_those_that_all_batches_share() -> None:
    model = parse_model(
        net(
            "(float[N,T,16] x) => (float[N,T,8] y)",
            "float[16,16] a, float[16,8] w",
            "b = MatMul(x, a) at = Attention <q_num_heads=2, kv_num_heads=2> (b, b, b) y = MatMul(at, w)",
            opset=23,
        )
    )
    model.ir_version = 11
    feed = {"x": np.random.default_rng(0).standard_normal((6, 10, 16)).astype(np.float32)}
    with Spool() as spool:
        for start in (0, 4):
            spool.write("x", feed["x"][start : start + 4])
        assert spool.sizes("x") == (None, 10, 16)
        frontier = Frontier(model, spool, 2, threads=1)
        for _ in frontier.advance(["b"]):
            pass
        found = np.concatenate([batch["y"] for batch in frontier.advance(["y"])])
    np.testing.assert_allclose(found, Session(model, threads=1).run(feed)["y"], rtol=1e-4, atol=1e-5)
