"""The verdict on a run: what was gained, what was lost, and in one word whether the result is still the same network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from onnxcomp.analysis.cost import Cost
from onnxcomp.runtime.compare import Comparison

__all__ = ["Evidence", "Quality", "Verdict", "verdict_on"]

Quality: TypeAlias = Literal["kept", "noticeable", "ruined", "unjudged", "unverified"]
"""`kept`, `noticeable`, `ruined`: how much of the outputs is left; `unjudged`: there was only noise to compare on;
`unverified`: the result has never been run."""

RUINED_AGREEMENT, NOTICEABLE_AGREEMENT = 80.0, 98.0
"""Percent of samples on which the largest class score is the original's."""

RUINED_DB, NOTICEABLE_DB = 10.0, 20.0
"""Signal to noise of the worst float output: at 10 dB a tenth of its energy is noise."""

RUINED_POINTS, NOTICEABLE_POINTS = 20.0, 1.0
"""Percentage points of accuracy lost, where there are labels."""


@dataclass(frozen=True)
class Evidence:
    """What a verdict rests on: `source` in words, `noise` where no real sample was there."""

    source: str
    noise: bool = False


@dataclass(frozen=True)
class Verdict:
    """The verdict: `quality` in a word, what was `gained` and `lost` in a few, and the `reason` of the word."""

    quality: Quality
    gained: str
    lost: str
    reason: str

    def __str__(self) -> str:
        words = [self.gained, *([self.lost] if self.lost else []), *([self.reason] if self.reason else [])]
        return f"{self.quality}: {'; '.join(words)}"


def verdict_on(
    before: Cost, after: Cost, comparison: Comparison | None, evidence: Evidence | None, *, ran: bool
) -> Verdict:
    """Return the verdict on a result that costs `after` where the original costs `before`.

    Class scores are judged by agreement (by accuracy where there are labels), anything else by SQNR. `ran` says whether the
    result has been run at all; `evidence` what `comparison` was made on.
    """
    gained = _gained(before, after)
    if not ran or comparison is None:
        return Verdict(
            "unverified",
            gained,
            "",
            "the result was never run and may compute anything; give --set-shape for the sizes that are open, or samples",
        )
    lost = f"{_lost(comparison)} on {comparison.samples} samples"
    if evidence is not None:
        lost += f" of {evidence.source}"
    if comparison.unjudged:
        return Verdict("unjudged", gained, lost, "; ".join(comparison.notes) or "no output holds numbers")
    quality, reason = _judged(comparison)
    if evidence is not None and evidence.noise and quality != "kept" and _finite(comparison):
        return Verdict(
            "unjudged",
            gained,
            lost,
            "noise says little about a trained network; give --evaluation to be sure",
        )
    return Verdict(quality, gained, lost, reason)


def _gained(before: Cost, after: Cost) -> str:
    parts = []
    for name, was, now in (
        ("bytes", before.bytes, after.bytes),
        ("MACs", before.macs, after.macs),
        ("parameters", before.parameters, after.parameters),
    ):
        if was and now is not None and now != was:
            parts.append(f"{100 * now / was:.1f} % of the {name}")
    return ", ".join(parts) if parts else "nothing smaller"


def _lost(comparison: Comparison) -> str:
    parts = []
    if comparison.accuracy_before is not None and comparison.accuracy_after is not None:
        drop = comparison.accuracy_before - comparison.accuracy_after
        parts.append(f"{drop:.2f} points of accuracy lost")
    if comparison.agreement is not None:
        parts.append(f"agreement {comparison.agreement:.2f} %")
    if not _finite(comparison):
        parts.append("outputs not finite")
    elif comparison.sqnr_db is not None:
        parts.append(
            "outputs equal" if math.isinf(comparison.sqnr_db) else f"SQNR {comparison.sqnr_db:.1f} dB"
        )
    return ", ".join(parts) if parts else "outputs without numbers"


def _finite(comparison: Comparison) -> bool:
    return all(output.finite for output in comparison.outputs)


def _judged(comparison: Comparison) -> tuple[Quality, str]:
    """Return the quality and its reason; the most telling measure decides."""
    if not _finite(comparison):
        return "ruined", "outputs are NaN or infinite where the original's are numbers"
    decibels = math.inf if comparison.sqnr_db is None else comparison.sqnr_db
    if comparison.accuracy_before is not None and comparison.accuracy_after is not None:
        drop = comparison.accuracy_before - comparison.accuracy_after
        return _word(drop, NOTICEABLE_POINTS, RUINED_POINTS, f"{drop:.1f} points of accuracy are lost")
    if comparison.agreement is not None and (
        comparison.sqnr_db is None  # whole numbers alone
        or decibels < NOTICEABLE_DB
        or comparison.agreement >= RUINED_AGREEMENT
    ):
        differ = 100 - comparison.agreement
        text = f"{differ:.1f} % of the samples get another class"
        return _word(differ, 100 - NOTICEABLE_AGREEMENT, 100 - RUINED_AGREEMENT, text)
    # No class scores, or a vector whose largest element means nothing: it would change at far less error.
    return _word(-decibels, -NOTICEABLE_DB, -RUINED_DB, f"{decibels:.1f} dB between outputs and error")


def _word(value: float, noticeable: float, ruined: float, reason: str) -> tuple[Quality, str]:
    if value > ruined:
        return "ruined", reason
    return ("noticeable", reason) if value > noticeable else ("kept", "")
