"""Damaged files give an error of ours or a model, and never anything else."""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.errors import OnnxcompError
from onnxcomp.ir import to_proto
from onnxcomp.ir.files import from_bytes, load
from onnxcomp.ir.text import dump
from tests.ir.helpers import ROOT, parsed, rich_proto, small_model
from tests.ir.test_convert import labelled

CONSTANT = parsed(
    "g (float[2] x) => (float[2] y) { c = Constant<value = float[2] {1.0, 2.0}>()\n y = Add(x, c) }"
)
SEEDS = [p.SerializeToString() for p in (rich_proto(), to_proto(small_model(4)), CONSTANT)]

EDITS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "set", "cut", "insert", "copy", "end"]),
        st.floats(0, 1, exclude_max=True),
        st.binary(min_size=1, max_size=12),
    ),
    min_size=1,
    max_size=4,
)


def damage(data: bytes, edits: list[tuple[str, float, bytes]]) -> bytes:
    """Return `data` after `edits`: what to do, where (as a share of the length), and bytes to do it with."""
    for kind, share, new in edits:
        at = int(share * len(data))
        match kind:
            case "flip":
                data = data[:at] + bytes([data[at] ^ 1 << new[0] % 8] if data else []) + data[at + 1 :]
            case "set":
                data = data[:at] + new[:1] + data[at + 1 :]
            case "cut":
                data = data[:at] + data[at + len(new) :]
            case "insert":
                data = data[:at] + new + data[at:]
            case "copy":
                data = data[:at] + data[int(share / 2 * len(data)) :][: 5 * len(new)] + data[at:]
            case _:
                data = data[: at + len(new)]
    return data


@settings(max_examples=400, deadline=None, database=None)
@given(st.sampled_from(SEEDS), EDITS)
def test_damaged_bytes_are_refused_or_read(seed: bytes, edits: list[tuple[str, float, bytes]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "m.onnx")
        path.write_bytes(damage(seed, edits))
        try:
            model = load(path, convert=False)
        except OnnxcompError as problem:
            assert "\n" not in str(problem)
        else:
            assert dump(model.clone()) == dump(model)
            to_proto(model).SerializeToString()


@settings(max_examples=100, deadline=None, database=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    try:
        from_bytes(data)
    except OnnxcompError as problem:
        assert "\n" not in str(problem)
    else:
        raise AssertionError("no model is that short")


def convert_damaged_models(count: int) -> None:
    """Load `count` damaged models of an old opset, in this process; called in one that may crash."""
    rng = random.Random(0)
    kinds = ["flip", "set", "cut", "insert", "copy", "end"]
    for _ in range(count):
        edits = [(rng.choice(kinds), rng.random(), rng.randbytes(rng.randint(1, 6))) for _ in range(2)]
        try:
            from_bytes(damage(labelled().SerializeToString(), edits))
        except OnnxcompError as problem:
            assert "\n" not in str(problem)


def test_damaged_models_of_old_opsets_are_refused_or_converted() -> None:
    """onnx's converter itself may crash (which is what the sandbox is for), but no other exception may come out."""
    script = "from tests.ir.test_fuzz import convert_damaged_models; convert_damaged_models(300)"
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False, cwd=ROOT)
    assert child.returncode <= 0, child.stderr.decode()
