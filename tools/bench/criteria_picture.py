"""Pictures of accuracy against remaining MACs: a panel per network, a labelled line per criterion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["AccuracyCurve", "Panel", "draw", "spread_apart"]

COLOURS = {
    "obs": "#000000",
    "activation": "#1f77b4",
    "hrank": "#2ca02c",
    "entropy": "#17becf",
    "apoz": "#9467bd",
    "bn-scale": "#d62728",
    "fpgm": "#ff7f0e",
    "l2": "#8c564b",
    "l1": "#e377c2",
    "random": "#8a8a8a",
}
"""One colour per criterion, the same in every panel."""

MARKERS = dict(zip(COLOURS, "osD^vPX<>x", strict=True))
"""Told apart without colours too."""


@dataclass(frozen=True)
class AccuracyCurve:
    """The points (share of MACs, accuracy in percent) of one criterion."""

    criterion: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Panel:
    """The curves of one network and one kind of repair, and the accuracy before anything was cut."""

    title: str
    original: float
    curves: tuple[AccuracyCurve, ...]


def spread_apart(wanted: Sequence[float], gap: float) -> list[float]:
    """Return positions as near to `wanted` as can be, in the same order, that are `gap` apart at least.

    Positions that would overlap are moved together as one block about their mean.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    blocks: list[list[float]] = []
    for index in order:
        blocks.append([wanted[index]])
        while len(blocks) > 1 and _bottom(blocks[-1], gap) - _top(blocks[-2], gap) < gap:
            last = blocks.pop()
            blocks[-1] += last
    placed = [_bottom(block, gap) + gap * step for block in blocks for step in range(len(block))]
    found = [0.0] * len(wanted)
    for index, position in zip(order, placed, strict=True):
        found[index] = position
    return found


def _bottom(block: Sequence[float], gap: float) -> float:
    return sum(block) / len(block) - gap * (len(block) - 1) / 2


def _top(block: Sequence[float], gap: float) -> float:
    return sum(block) / len(block) + gap * (len(block) - 1) / 2


def draw(panels: Sequence[Panel], path: Path) -> None:
    """Draw `panels`, two in a row, into the PNG file `path`.

    Raises:
        SystemExit: where matplotlib is not installed.
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError as problem:
        raise SystemExit("pictures need matplotlib: pip install 'onnxcomp[report]'") from problem
    rows = -(-len(panels) // 2)
    figure, axes = pyplot.subplots(rows, min(2, len(panels)), figsize=(13, 5.2 * rows), squeeze=False)
    for place, panel in zip(axes.flat, panels, strict=False):
        _draw_panel(place, panel)
    for place in list(axes.flat)[len(panels) :]:
        place.set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def _draw_panel(axes: Any, panel: Panel) -> None:
    least = min(share for curve in panel.curves for share, _ in curve.points)
    lows = [accuracy for curve in panel.curves for _, accuracy in curve.points]
    span = panel.original - min(lows) + 8
    ends = [min(curve.points) for curve in panel.curves]
    labels = spread_apart([accuracy for _, accuracy in ends], span / 24)
    axes.set_xlim(1.01, least - 0.02 * (1 - least))
    axes.set_ylim(min(*lows, *labels) - span / 40, max(panel.original, *labels) + span / 40)
    for curve, (share, accuracy), label in zip(panel.curves, ends, labels, strict=True):
        colour, strong = COLOURS[curve.criterion], curve.criterion == "obs"
        line = sorted([*curve.points, (1.0, panel.original)], reverse=True)
        axes.plot(
            [x for x, _ in line],
            [y for _, y in line],
            color=colour,
            marker=MARKERS[curve.criterion],
            linewidth=2.6 if strong else 1.5,
            linestyle="--" if curve.criterion == "random" else "-",
            markersize=5,
            zorder=3 if strong else 2,
        )
        axes.annotate(
            curve.criterion,
            (share, accuracy),
            (1.07, label),
            textcoords=axes.get_yaxis_transform(),
            color=colour,
            fontsize=10,
            fontweight="bold" if strong else "normal",
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.7,
                "alpha": 0.7,
                "shrinkA": 2,
                "shrinkB": 3,
                "relpos": (0.0, 0.5),
            },
        )
    axes.axhline(panel.original, color="#bbbbbb", linewidth=0.8, linestyle=":", zorder=1)
    axes.set_title(panel.title, fontsize=12)
    axes.set_xlabel("multiply-accumulates that remain", fontsize=10)
    axes.set_ylabel("top-1 accuracy, %", fontsize=10)
    axes.set_xticks([1.0, *(share for share, _ in max((c.points for c in panel.curves), key=len))])
    axes.set_yticks(
        [tick for tick in axes.get_yticks() if 0 <= tick <= 100 and _inside(tick, axes.get_ylim())]
    )
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.grid(color="#eeeeee")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _inside(tick: float, limits: tuple[float, float]) -> bool:
    return limits[0] <= tick <= limits[1]
