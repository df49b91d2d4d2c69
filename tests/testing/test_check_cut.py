"""The oracle of every cut: it must fail on a wrong index, on a wrong value and on a proof of nothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxcomp.analysis.channels import ChannelGroups, channel_groups
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.testing import assert_cut_equals_masked, check_cut, random_keep
from tests.support.text import net

NET = net(
    "(float[N,3,6,6] x) => (float[N,4,6,6] y)",
    "float[8,3,3,3] a, float[8] p, float[6,8,3,3] b, float[4,6,1,1] c",
    "h = Conv<pads=[1,1,1,1]>(x, a, p) r = HardSigmoid(h) i = Conv<pads=[1,1,1,1]>(r, b) s = Relu(i) y = Conv(s, c)",
)
KEEP = np.array([True, True, False, True, False, True, False, True])


def three() -> tuple[Model, Model, Model]:
    """The original, cut and masked models, cut and masked by KEEP."""
    original = parse_model(NET)
    groups = channel_groups(original)
    pruned, masked = original.clone(), original.clone()
    groups.take(pruned, {"h": KEEP})
    groups.mask(masked, {"h": KEEP})
    return original, pruned, masked


def edit(model: Model, name: str, change: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> None:
    model.graph.constants[name].values = change(np.array(model.graph.constants[name].values))


def test_a_right_cut_passes() -> None:
    assert_cut_equals_masked(*three())


def test_one_weight_that_changed_a_little_fails() -> None:
    original, pruned, masked = three()
    edit(
        pruned,
        "b",
        lambda w: w * np.where(np.arange(w.size).reshape(w.shape) == 7, 1.01, 1).astype(np.float32),
    )
    with pytest.raises(AssertionError, match="differs by"):
        assert_cut_equals_masked(original, pruned, masked)


@pytest.mark.parametrize("name", ["a", "p"])
def test_two_swapped_filters_fail(name: str) -> None:
    original, pruned, masked = three()
    edit(pruned, name, lambda w: w[[1, 0, 2, 3, 4]])
    with pytest.raises(AssertionError, match="differs by"):
        assert_cut_equals_masked(original, pruned, masked)


def test_two_swapped_input_channels_fail() -> None:
    original, pruned, masked = three()
    edit(pruned, "b", lambda w: w[:, [0, 1, 3, 2, 4]])
    with pytest.raises(AssertionError, match="differs by"):
        assert_cut_equals_masked(original, pruned, masked)


def test_swapping_filters_and_their_input_channels_alike_passes() -> None:
    """The order of channels inside is nobody's business: this is what makes the failures above failures of pairing."""
    original, pruned, masked = three()
    for name, axis in (("a", 0), ("p", 0), ("b", 1)):
        edit(pruned, name, lambda w, axis=axis: w.take([1, 0, 2, 3, 4], axis))  # type: ignore[misc]
    assert_cut_equals_masked(original, pruned, masked)


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_consumer_cut_one_position_off_fails(shift: int) -> None:
    original, pruned, masked = three()
    whole = original.graph.constants["b"].values
    edit(pruned, "b", lambda w: np.compress(np.roll(KEEP, shift), whole, axis=1))
    with pytest.raises(AssertionError, match="differs by"):
        assert_cut_equals_masked(original, pruned, masked)


def test_a_bias_cut_one_position_off_fails() -> None:
    original, pruned, masked = three()
    edit(pruned, "p", lambda w: original.graph.constants["p"].values[np.roll(KEEP, 1)])
    with pytest.raises(AssertionError, match="differs by"):
        assert_cut_equals_masked(original, pruned, masked)


def test_zeroing_the_producer_is_not_the_same_where_the_activation_of_zero_is_not_zero() -> None:
    original, pruned, _ = three()
    zeroed = original.clone()
    for name in ("a", "p"):
        edit(zeroed, name, lambda w: w * KEEP.reshape(-1, *[1] * (w.ndim - 1)).astype(np.float32))
    with pytest.raises(AssertionError, match="differs by"):
        assert_cut_equals_masked(original, pruned, zeroed)


def test_a_model_that_is_masked_only_is_no_cut() -> None:
    original, _, masked = three()
    with pytest.raises(AssertionError, match="nothing became smaller"):
        assert_cut_equals_masked(original, masked.clone(), masked)


def test_a_tensor_that_grew_fails() -> None:
    original, pruned, masked = three()
    edit(original, "c", lambda w: w[:, :, :, :0])
    with pytest.raises(AssertionError, match=r"stored tensor 'c' was \(4, 6, 1, 0\) and is \(4, 6, 1, 1\)"):
        assert_cut_equals_masked(original, pruned, masked)


def test_a_new_tensor_that_is_no_shape_constant_fails() -> None:
    original, pruned, masked = three()
    pruned.graph.add_constant("extra", np.zeros(1, np.float32))
    with pytest.raises(AssertionError, match="'extra' is no shape constant"):
        assert_cut_equals_masked(original, pruned, masked)


def test_masks_that_nobody_can_see_prove_nothing() -> None:
    dead = {"b": np.zeros((6, 8, 3, 3), np.float32)}
    with pytest.raises(AssertionError, match="the masks change no output"):
        check_cut(parse_model(NET, dead), {"h": KEEP})


def test_a_cut_that_breaks_the_model_fails() -> None:
    original, pruned, masked = three()
    edit(pruned, "b", lambda w: w[:, 1:])
    with pytest.raises(AssertionError, match="the candidate does not run"):
        assert_cut_equals_masked(original, pruned, masked)


def test_a_cut_that_forgets_a_member_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def forget(self: ChannelGroups, model: Model, keep: dict[str, NDArray[np.bool_]]) -> None:
        for name, axis in (("a", 0), ("b", 1)):
            edit(model, name, lambda w, axis=axis: np.compress(keep["h"], w, axis=axis))  # type: ignore[misc]

    monkeypatch.setattr(ChannelGroups, "take", forget)
    with pytest.raises(AssertionError, match="axis 0 of 'p' has 8 positions; 8 less 3 should be left"):
        check_cut(NET, {"h": KEEP})


def test_a_mask_that_forgets_a_consumer_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ChannelGroups, "mask", lambda self, model, keep: None)
    with pytest.raises(AssertionError, match="differs by"):
        check_cut(NET, {"h": KEEP})


def test_a_cut_in_place_of_the_analysed_model_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = ChannelGroups.take

    def scribble(self: ChannelGroups, model: Model, keep: dict[str, NDArray[np.bool_]]) -> None:
        shared = model.graph.constants["c"].values.base
        assert isinstance(shared, np.ndarray)
        shared.flags.writeable = True
        shared[...] += 1
        taken(self, model, keep)

    monkeypatch.setattr(ChannelGroups, "take", scribble)
    owned = np.ones((4, 6, 1, 1), np.float32)
    model = parse_model(NET)
    model.graph.constants["c"].values = owned[...]
    with pytest.raises(AssertionError, match="the cut writes into the arrays"):
        check_cut(model, {"h": KEEP})


def test_the_report_of_a_cut_holds_both_models_and_the_masks() -> None:
    cut = check_cut(NET, {"h": KEEP})
    assert cut.pruned.graph.constants["a"].values.shape == (5, 3, 3, 3)
    assert not cut.masked.graph.constants["b"].values[:, ~KEEP].any()
    assert cut.masked.graph.constants["b"].values[:, KEEP].all()
    assert cut.keep["h"] is KEEP


def test_random_masks_keep_something_and_remove_something_of_every_free_group() -> None:
    groups = channel_groups(parse_model(NET))
    for seed in range(20):
        for share in (0.0, 0.5, 1.0):
            keep = random_keep(groups, seed, share)
            assert set(keep) == {"h", "i"}, "the last convolution is blocked"
            assert all(0 < mask.sum() < mask.size for mask in keep.values())
    assert not np.array_equal(random_keep(groups, 0)["h"], random_keep(groups, 1)["h"])
    np.testing.assert_array_equal(random_keep(groups, 3)["h"], random_keep(groups, 3)["h"])
