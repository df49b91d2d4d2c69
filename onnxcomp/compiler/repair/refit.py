"""Closed-form refits: weights from second moments of inputs and wanted outputs, side by side.

- On the walk: `refit`, ridge regression on the compressed network's own inputs, and `matched`, which scales outputs only.
- In one shot: `refit_once`, from the original's statistics (sites that lost inputs), and `refit_readers`, the same for a
  trial that zeroes the channels of one group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxcomp.analysis.channels import ChannelGroup
from onnxcomp.analysis.linear import Linear, LinearNode, linear_node
from onnxcomp.compiler.repair.columns import NEIGHBOURS
from onnxcomp.ir.model import Model
from onnxcomp.numerics.arrays import Array, Array64, Mask
from onnxcomp.numerics.moments import Moments, ridge

__all__ = [
    "Rows",
    "Site",
    "Solution",
    "Visit",
    "refit",
    "refit_once",
    "refit_readers",
    "ridge_strength",
    "too_wide",
]


Rows: TypeAlias = NDArray[np.int64]
"""Positions along an axis, ascending."""

RIDGE = 1e-3
"""Ridge strength of a refit in one shot, as a share of the mean variance of a layer's inputs."""

RIDGE_FLOOR = 1e-4
"""The least ridge strength: covariances of dead channels are singular."""

WIDEST = 4700
"""Wider inputs are not refitted, and are selected by their channels alone: memory grows with the square (4608: 170 MB)."""

ROUNDING = 1e-12
"""Share of an output's square below which its variance is that of rounding."""

ENOUGH = 8
"""So many independent samples per input are enough for the least ridge."""

STRETCH = 4.0
"""Outputs are scaled by no more than this: what hardly varies any more is not brought back by scaling noise."""


# --- sites, visits and solutions -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Site:
    """A node to visit: its name (the same in both networks) and which of the original's output channels it still makes."""

    name: str
    rows: Rows


@dataclass(frozen=True)
class Visit:
    """What the walk hands a solver: the compressed network's node and the moments of its input and wanted output."""

    site: Site
    node: Linear
    moments: Moments
    independent: float


@dataclass(frozen=True)
class Solution:
    """New weights `[g, o, d]` of a visited node, and its bias `[o]` or None where it has none."""

    matrix: Array64
    bias: Array64 | None


Solver: TypeAlias = Callable[[Visit], Solution | None]
"""Makes the weights of a visited node, or None to leave them."""


def too_wide(node: LinearNode) -> str | None:
    """Return why `node` cannot be refitted, or None: its covariance has the square of its inputs' width."""
    width = node.matrix().shape[2]
    return f"its {width} inputs are more than the {WIDEST} that can be refitted" if width > WIDEST else None


def missed_share(moments: Moments, solution: Solution, centred: bool) -> float:
    """Return the share of the wanted output's variance that `solution` does not explain."""
    H, G = (moments.covariance(), moments.cross()) if centred else moments.second()
    W = solution.matrix
    variance = float((moments.variance_y() if centred else moments.second_y()).sum())
    explained = 2 * float(np.einsum("god,god->", W, G)) - float(
        np.einsum("god,gde,goe->", W, H, W, optimize=True)
    )
    # What never varies but by rounding has nothing to miss.
    varies = variance > ROUNDING * float(moments.second_y().sum())
    return max(0.0, 1.0 - explained / variance) if varies else 0.0


# --- on the walk -----------------------------------------------------------------------------------------------------
def refit(visit: Visit) -> Solution:
    """Return the weights that best make the wanted outputs from the inputs there now: centred ridge regression.

    The ridge draws towards the weights as they are, the more so the fewer independent samples there are per input.
    """
    node, moments = visit.node, visit.moments
    prior = node.matrix()
    strength = ridge_strength(visit)
    if not node.has_bias:
        H, G = moments.second()
        return Solution(ridge(H, G, prior, strength), None)
    matrix = ridge(moments.covariance(), moments.cross(), prior, strength)
    bias = moments.mean_y - np.einsum("god,gd->go", matrix, moments.mean_x)
    return Solution(matrix, bias.reshape(-1))


def ridge_strength(visit: Visit) -> float:
    """Return the ridge strength: inputs per independent sample, within bounds."""
    return min(1.0, max(RIDGE_FLOOR, int(visit.moments.sum_x.shape[1]) / visit.independent))


def matched(visit: Visit) -> Solution | None:
    """Return the weights there are, scaled so that every output has the mean and variance of the wanted one.

    Least squares shrinks variances towards the mean; what a re-estimated BatchNormalization would do about that
    (algorithm: per-channel affine on the output, `a = std_y / std_made`, `b = mean_y - a W mean_x`).
    """
    node, moments = visit.node, visit.moments
    if not node.has_bias:
        return None
    W = node.matrix()
    made = np.einsum("god,gde,goe->go", W, moments.covariance(), W, optimize=True)
    wanted = moments.variance_y()
    usable = (made > 0) & (wanted > 0)
    ratio = np.where(usable, wanted / np.where(usable, made, 1.0), 1.0)
    scale = np.clip(np.sqrt(ratio), 1 / STRETCH, STRETCH)
    W = W * scale[:, :, None]
    bias = moments.mean_y - np.einsum("god,gd->go", W, moments.mean_x)
    return Solution(W, bias.reshape(-1))


# --- in one shot, from the original ----------------------------------------------------------------------------------
def refit_once(
    original: Model,
    cut: Model,
    sites: list[Site],
    kept: Mapping[tuple[str, int], Rows],
    moments: Mapping[str, Moments],
    strength: float,
) -> int:
    """Refit the nodes that lost inputs from the original network's statistics alone; return how many.

    With `S` the columns that stay, `W' = W H[:,S] (H[S,S] + lam)^-1` and `b' = b + W m - W' m_S` (algorithm: the block
    update of optimal brain surgeon; one shot, nothing is re-measured). Edits `cut` in place.
    """
    before = {node.name: node for node in original.graph.nodes}
    after = {node.name: node for node in cut.graph.nodes}
    done = 0
    for site in sites:
        was, now = linear_node(before[site.name]), linear_node(after[site.name])
        assert was is not None and now is not None, site.name
        columns = kept.get((was.node.inputs[was.weight].name, was.in_axis))
        if columns is None or site.name not in moments:
            continue
        taps = was.matrix().shape[2] // was.weight_array().shape[was.in_axis]
        S = (columns[:, None] * taps + np.arange(taps)).reshape(-1)
        H, mean, W = moments[site.name].covariance(), moments[site.name].mean_x, was.matrix()
        if not was.has_bias:
            H = H + mean[:, :, None] * mean[:, None, :]
        W, bias = _rows(W, site.rows), was.bias()[site.rows]
        W_new = ridge(H[:, S[:, None], S], W @ H[:, :, S], W[:, :, S], strength)
        shift = np.einsum("god,gd->go", W, mean) - np.einsum("god,gd->go", W_new, mean[:, S])
        now.install(cut, W_new, bias + shift.reshape(-1) if was.has_bias else None, "refit")
        done += 1
    return done


def _rows(W: NDArray[np.float64], rows: Rows) -> NDArray[np.float64]:
    """Return the rows of `W` `[g, o, d]` that stay; blocks lose equally many."""
    flat = W.reshape(-1, W.shape[2])
    groups = rows // W.shape[1]
    per_group = len(rows) // len(np.unique(groups))
    return flat[rows].reshape(-1, per_group, W.shape[2])


def refit_readers(
    model: Model, masked: Model, group: ChannelGroup, keep: Mask, moments: Mapping[str, Moments]
) -> None:
    """Refit the readers of `group` in `masked` from the statistics of the whole inputs, in place.

    With S the columns that stay, `W' = W H[:,S] (H[S,S] + lam)^-1`, zeros elsewhere, and `b' = b + (W - W') m`.
    """
    after = {node.name: node for node in masked.graph.nodes}
    for node in model.graph.nodes:
        if node.name not in group.consumers or node.name not in moments:
            continue
        was, now = linear_node(node), linear_node(after[node.name])
        columns = reader_columns(group, was) if was is not None else None
        if was is None or now is None or columns is None:
            continue
        stats = moments[node.name]
        if stats.sum_xx.shape[1] != was.matrix().shape[2]:
            continue
        stays = (columns < 0) | keep[columns]
        W = _solved(was, stats, stays)
        shift = np.einsum("god,gd->go", was.matrix() - W, stats.mean_x).reshape(-1)
        now.install(masked, W, was.bias() + shift if was.has_bias else None, "trial")


def _solved(node: LinearNode, stats: Moments, stays: Array) -> Array64:
    W, H = node.matrix(), stats.covariance()
    if not node.has_bias:
        H = H + stats.mean_x[:, :, None] * stats.mean_x[:, None, :]
    new = np.zeros_like(W)
    S = np.flatnonzero(stays)
    if len(S):
        strength = readers_ridge(node, stats)
        new[:, :, S] = ridge(H[:, S[:, None], S], W @ H[:, :, S], W[:, :, S], strength)
    return new


def readers_ridge(node: LinearNode, stats: Moments) -> float:
    """Return the ridge strength of a trial's refit, as a share of the mean variance of the inputs.

    As in the walk, with few independent samples for the inputs a refit must stay close to the weights as they were, or it
    would overfit to the samples.
    """
    independent = stats.count / (NEIGHBOURS if node.spatial else 1)
    share = node.matrix().shape[2] / max(1.0, independent)
    return RIDGE if share * ENOUGH < 1 else min(1.0, max(RIDGE, share))


def reader_columns(group: ChannelGroup, node: LinearNode) -> NDArray[np.int64] | None:
    """Return the unit of every column `[d]` of a reader's blocks, -1 for columns of other groups."""
    member = next((m for m in group.members if m.node == node.node.name and m.role == "consumes"), None)
    if member is None:
        return None
    return np.repeat(member.units, node.matrix().shape[2] // len(member.units))
