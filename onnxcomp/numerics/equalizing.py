"""Scales of channels between layers, so that one grid fits a whole weight.

Where nothing but a positively homogeneous function stands between two layers, a channel may be made `f` times as large by
the first and read `f` times as small by the second: the network computes the same. With one scale for a whole weight a
channel of small weights keeps few digits, so the factors are chosen such that both layers see a channel equally large.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, minimize

__all__ = ["Between", "Layer", "balanced", "fill_powers", "quietest"]

Array64: TypeAlias = NDArray[np.float64]
Mask: TypeAlias = NDArray[np.bool_]

ROUNDS = 200
"""Rounds over all pairs of layers at most; chains of three settle in a dozen."""

SETTLED = 1e-4
"""Change of the logarithm of any factor in a round below which the factors have settled."""

STEPS = 150
"""Steps of the search for the least noise."""

SHARPNESS = 40.0
"""How closely a smooth maximum follows the largest: by the logarithm of how many are as large, divided by this."""

UNITS = 2.0 ** (np.arange(24) / 24)
"""Numbers tried for all channels alike: those from one power of two to the next."""

FILLED = 6
"""Rounds over all pairs in search of these numbers."""

WIDEST = 2.0**12
"""Factors stay between this and its inverse: channels that hardly exist would ask for more."""


@dataclass(frozen=True)
class Layer:
    """What a layer weighs.

    `sizes` `[g, o, c]` are the largest magnitudes of its weights from channel `c` to output `o` of a block; `reads` and
    `makes` are the numbers of the :class:`Between` in front and behind, None where there is none.
    `power` `[g, c]` is the variance that the weights of a channel multiply, summed over them, `gain` `[g, o]` what squared
    errors of an output do to the outputs of the network; `levels` are the steps of the grid to each side.
    """

    sizes: Array64
    reads: int | None = None
    makes: int | None = None
    power: Array64 | None = None
    gain: Array64 | None = None
    levels: int = 127


@dataclass(frozen=True)
class Between:
    """The channels between two layers.

    There are `count`; `most` `[count]` are the largest factors they may have, and those `held` `[count]` all keep the factor
    1. Both may be left out. `tops` `[count]` are the largest values, `gain` `[count]` what squared errors of them do to the
    outputs of the network, `levels` the steps of their grid from zero to the largest.
    """

    count: int
    most: Array64 | None = None
    held: Mask | None = None
    tops: Array64 | None = None
    gain: Array64 | None = None
    levels: int = 255


@dataclass
class _State:
    layers: Sequence[Layer]
    between: Sequence[Between]
    factors: list[Array64] = field(default_factory=list)

    def scaled(self, layer: Layer) -> Array64:
        """Return the sizes `[g, o, c]` of a layer's weights with the factors as they are now."""
        sizes = layer.sizes
        if layer.reads is not None:
            sizes = sizes / self.factors[layer.reads].reshape(len(sizes), 1, -1)
        if layer.makes is not None:
            sizes = sizes * self.factors[layer.makes].reshape(len(sizes), -1, 1)
        return sizes


def balanced(layers: Sequence[Layer], between: Sequence[Between]) -> list[Array64]:
    """Return for each of `between` the factors `[count]` by which its channels are to be made larger.

    Each is made by one of `layers` and read by one. Pairs of layers are balanced in turn, until nothing moves: in the end
    each channel is as large, in its largest weight, where it is made as where it is read, up to a factor that is the same
    for all channels, and as far as `most` and `held` allow. Channels without weights keep the factor 1.
    """
    state = _State(layers, between, [np.ones(b.count) for b in between])
    made = {layer.makes: layer for layer in layers if layer.makes is not None}
    read = {layer.reads: layer for layer in layers if layer.reads is not None}
    for _ in range(ROUNDS):
        moved = 0.0
        for number, limits in enumerate(between):
            before = state.factors[number]
            large = state.scaled(made[number]).max(2).reshape(-1)
            small = state.scaled(read[number]).max(1).reshape(-1)
            wanted = before * _balance(large, small)
            state.factors[number] = _limited(wanted, limits)
            moved = max(moved, float(np.abs(np.log(state.factors[number] / before)).max(initial=0.0)))
        if moved < SETTLED:
            break
    return state.factors


def _balance(made: Array64, read: Array64) -> Array64:
    """Return the factors with which `made * factor == read / factor`, 1 where one of them is zero."""
    usable = (made > 0) & (read > 0)
    return np.sqrt(np.divide(read, made, out=np.ones_like(made), where=usable))


def _limited(factors: Array64, limits: Between) -> Array64:
    """Return `factors` in the unit in which those of the channels held are 1, within the limits.

    One factor for all channels changes nothing for a grid with one scale, so that the unit is free where none is held: then
    it is small enough for all the limits.
    """
    held = limits.held if limits.held is not None else np.zeros(len(factors), np.bool_)
    anchor = factors[held] if held.any() else factors
    found = np.clip(factors / np.exp(np.log(anchor).mean()), 1 / WIDEST, WIDEST)
    if limits.most is not None:
        found = (
            np.minimum(found, limits.most) if held.any() else found * min(1.0, (limits.most / found).min())
        )
    return np.asarray(np.where(held, 1.0, found), np.float64)


def quietest(layers: Sequence[Layer], between: Sequence[Between]) -> list[Array64]:
    """Return the factors, as `balanced` does, with which rounding disturbs the outputs of the network least.

    `power` and `gain` of all `layers` and `tops` and `gain` of all `between` are known. A step of a grid is as long as the
    largest it holds says, and every error of rounding has a twelfth of its square as variance.
    """
    program = _Program(layers, between)
    start = np.zeros(program.ends[-1])
    low, high = np.full(len(start), -np.log(WIDEST)), np.full(len(start), np.log(WIDEST))
    for number, limits in enumerate(between):
        part = slice(program.ends[number], program.ends[number + 1])
        if limits.most is not None:
            high[part] = np.minimum(high[part], np.log(np.maximum(limits.most, 1.0)))
        if limits.held is not None:
            low[part] = np.where(limits.held, 0.0, low[part])
            high[part] = np.where(limits.held, 0.0, high[part])
    found = minimize(
        program,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=Bounds(low, high),
        options={"maxiter": STEPS, "maxcor": 20},
    )
    return [np.exp(found.x[a:b]) for a, b in zip(program.ends, program.ends[1:], strict=False)]


def fill_powers(
    layers: Sequence[Layer], between: Sequence[Between], factors: Sequence[Array64]
) -> list[float]:
    """Return for each of `between` the number by which all its `factors` are to be multiplied where steps are powers of two.

    A step that is rounded up to the next power leaves a part of the grid unused. One number for all channels moves where values
    and the weights on both sides lie between two powers; the one of least noise is taken, pair after pair, and again, until
    none changes.
    """
    state = _State(layers, between, [factor.copy() for factor in factors])
    made = {layer.makes: layer for layer in layers if layer.makes is not None}
    read = {layer.reads: layer for layer in layers if layer.reads is not None}
    found = [1.0] * len(between)
    for _ in range(FILLED):
        before = list(found)
        for number, limits in enumerate(between):
            noises = []
            for unit in UNITS:
                state.factors[number] = factors[number] * unit
                noises.append(
                    _stepped(state, made[number])
                    + _stepped(state, read[number])
                    + _stored(state, number, limits)
                )
            found[number] = float(UNITS[int(np.argmin(noises))])
            state.factors[number] = factors[number] * found[number]
        if found == before:
            break
    return found


def _stepped(state: _State, layer: Layer) -> float:
    """Return the noise of rounding a layer's weights to steps that are powers of two, but for a twelfth."""
    assert layer.power is not None and layer.gain is not None
    power, gain = layer.power, layer.gain
    if layer.reads is not None:
        power = power * np.square(state.factors[layer.reads].reshape(power.shape))
    if layer.makes is not None:
        gain = gain / np.square(state.factors[layer.makes].reshape(gain.shape))
    return _square_step(float(state.scaled(layer).max()), layer.levels) * float(
        (power.sum(1) * gain.sum(1)).sum()
    )


def _stored(state: _State, number: int, limits: Between) -> float:
    """Return the noise of storing values with a step that is a power of two, but for a twelfth."""
    assert limits.tops is not None and limits.gain is not None
    factor = state.factors[number]
    step = _square_step(float((limits.tops * factor).max()), limits.levels)
    return step * float((limits.gain / np.square(factor)).sum())


def _square_step(largest: float, levels: int) -> float:
    return float(4.0 ** np.ceil(np.log2(largest / levels))) if largest > 0 else 0.0


class _Program:
    """The logarithm of the noise at the outputs, and its gradient, by the logarithms of all factors."""

    def __init__(self, layers: Sequence[Layer], between: Sequence[Between]) -> None:
        self.layers, self.between = layers, between
        self.ends = np.cumsum([0, *(b.count for b in between)])
        with np.errstate(divide="ignore"):
            self.sizes = [np.log(_folded(layer)) for layer in layers]
            self.tops = [np.log(b.tops) if b.tops is not None else np.zeros(b.count) for b in between]

    def __call__(self, point: Array64) -> tuple[float, Array64]:
        parts = [point[a:b] for a, b in zip(self.ends, self.ends[1:], strict=False)]
        noises: list[float] = []
        slopes: list[list[tuple[int, Array64]]] = []
        for layer, sizes in zip(self.layers, self.sizes, strict=True):
            self._layer(layer, sizes, parts, noises, slopes)
        for number, limits in enumerate(self.between):
            assert limits.gain is not None
            step, share = _soft_max(self.tops[number] + parts[number])
            seen, felt = _soft_sum(limits.gain, -2 * parts[number])
            noises.append(2 * step - 2 * np.log(limits.levels) + seen)
            slopes.append([(number, 2 * share - 2 * felt)])
        whole, weights = _soft_sum(np.ones(len(noises)), np.array(noises))
        gradient = np.zeros(len(point))
        for weight, slope in zip(weights, slopes, strict=True):
            for number, part in slope:
                gradient[self.ends[number] : self.ends[number + 1]] += weight * part
        return whole, gradient

    def _layer(
        self,
        layer: Layer,
        sizes: Array64,
        parts: Sequence[Array64],
        noises: list[float],
        slopes: list[list[tuple[int, Array64]]],
    ) -> None:
        """Append the logarithm of a layer's noise and its slopes."""
        assert layer.power is not None and layer.gain is not None
        groups = len(sizes)
        incoming = (
            np.zeros(layer.power.shape) if layer.reads is None else parts[layer.reads].reshape(groups, -1)
        )
        outgoing = (
            np.zeros(layer.gain.shape) if layer.makes is None else parts[layer.makes].reshape(groups, -1)
        )
        if layer.reads is not None:
            sizes = sizes - incoming[:, None, :]
        if layer.makes is not None:
            sizes = sizes + outgoing[:, :, None]
        step, share = _soft_max(sizes)
        power, weights = _soft_sums(layer.power, 2 * incoming)
        gain, felt = _soft_sums(layer.gain, -2 * outgoing)
        noise, blocks = _soft_sum(np.ones(groups), power + gain)
        noises.append(2 * step - 2 * np.log(layer.levels) + noise)
        found: list[tuple[int, Array64]] = []
        if layer.reads is not None:
            found.append((layer.reads, (2 * blocks[:, None] * weights - 2 * share.sum(1)).reshape(-1)))
        if layer.makes is not None:
            found.append((layer.makes, (2 * share.sum(2) - 2 * blocks[:, None] * felt).reshape(-1)))
        slopes.append(found)


def _folded(layer: Layer) -> Array64:
    """Return the sizes of a layer's weights, the largest alone along axes on which there are no factors."""
    sizes = layer.sizes if layer.reads is not None else layer.sizes.max(2, keepdims=True)
    return sizes if layer.makes is not None else sizes.max(1, keepdims=True)


def _soft_max(logs: Array64) -> tuple[float, Array64]:
    """Return a smooth maximum of `logs`, any shape, and its derivative by each of them."""
    top = logs.max()
    if not np.isfinite(top):
        return 0.0, np.zeros(logs.shape)
    heights = np.exp(SHARPNESS * (logs - top))
    total = heights.sum()
    return float(top + np.log(total) / SHARPNESS), heights / total


def _soft_sum(weights: Array64, logs: Array64) -> tuple[float, Array64]:
    """Return `log(sum(weights * exp(logs)))` and its derivative by `logs`, all `[n]`."""
    total, shares = _soft_sums(weights[None], logs[None])
    return float(total[0]), shares[0]


def _soft_sums(weights: Array64, logs: Array64) -> tuple[Array64, Array64]:
    """Return `log(sum(weights * exp(logs)))` `[g]` of rows `[g, n]` and its derivative by `logs`."""
    top = logs.max(1, keepdims=True)
    heights = weights * np.exp(logs - top) + 1e-300
    total = heights.sum(1, keepdims=True)
    return (np.log(total) + top)[:, 0], heights / total
