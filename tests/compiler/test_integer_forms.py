from __future__ import annotations

from collections.abc import Collection

from onnxcomp.compiler.integer_forms import ALL_FORMS, integer_forms
from onnxcomp.compiler.passbase import PassLog
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.runtime.observe import observe_shapes
from onnxcomp.testing import assert_equal_outputs, assert_valid, fingerprint
from tests.support.text import net

IMAGE = "(float[N,3,6,5] x) => (float[a,b,c,d] y)"


def rewritten(
    model: Model, *left_alone: str, kinds: Collection[str] = ALL_FORMS, tolerance: float = 1e-5
) -> tuple[Model, PassLog]:
    """Rewrite a copy of `model`, prove that it computes the same, and return it with the log."""
    sizes = {v.name: tuple(s if isinstance(s, int) else 2 for s in v.shape or ()) for v in model.graph.inputs}
    shapes = observe_shapes(model, {}, sizes=sizes)
    after, log = model.clone(), PassLog()
    integer_forms(after, shapes, set(left_alone), log, kinds)
    assert_valid(after, model)
    assert_equal_outputs(model, after, tolerance=tolerance)
    assert (fingerprint(after) != fingerprint(model)) == bool(log.changes)
    return after, log


def ops(model: Model) -> list[str]:
    return [node.op for node in model.graph.nodes]


def becomes(text: str, *wanted: str, left: tuple[str, ...] = ()) -> tuple[Model, PassLog]:
    """Assert which operators `text` consists of afterwards."""
    after, log = rewritten(parse_model(text), *left)
    assert ops(after) == list(wanted)
    assert log.changes
    return after, log


def stays(text: str, *skips: str, left: tuple[str, ...] = ()) -> None:
    """Assert that nothing is done to `text`, and how what is said about it begins."""
    _, log = rewritten(parse_model(text), *left)
    assert not log.changes
    said = [f"{skip.where}: {skip.reason}" for skip in log.skips]
    assert len(said) == len(skips)
    assert all(s.startswith(start) for s, start in zip(said, skips, strict=True)), said


def slices(*columns: tuple[int, int, int, int]) -> str:
    """Return the stored bounds of a Slice, `(start, end, axis, step)` for each axis."""
    rows = zip(*columns, strict=True)
    names = ("b", "e", "a", "s")
    return ", ".join(
        f"int64[{len(columns)}] {n} = {{{','.join(map(str, row))}}}"
        for n, row in zip(names, rows, strict=True)
    )


FAR = 2**63 - 1
EVERY_OTHER = slices((0, FAR, 2, 2), (0, FAR, 3, 2))
ADD_CHANNELS = "int64[8] p = {0,1,0,0,0,2,0,0}"


# --- shortcuts -------------------------------------------------------------------------------------------------------
def test_a_strided_slice_and_a_pad_of_channels_become_one_convolution() -> None:
    text = net(IMAGE, f"{EVERY_OTHER}, {ADD_CHANNELS}", "h = Slice(x, b, e, a, s)  y = Pad(h, p)")
    model, log = becomes(text, "Conv")
    conv = model.graph.nodes[0]
    kernel = conv.inputs[1].values
    assert conv.attrs == {"kernel_shape": [1, 1], "strides": [2, 2]}
    assert kernel.shape == (6, 3, 1, 1)
    assert kernel.sum() == 3
    assert set(model.graph.constants) == {conv.inputs[1].name}
    assert [c.where for c in log.changes] == [conv.name]
    assert list(model.aliases.values()) == [conv.name]
