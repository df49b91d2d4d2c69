"""Hold-out: part of the calibration samples decides whether what was fitted to the rest is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

from onnxcomp.compiler.evaluation.divergence import Reference
from onnxcomp.compiler.evaluation.outputs import judge, outputs_on
from onnxcomp.compiler.passbase import Context, PassLog
from onnxcomp.ir.model import Model

__all__ = ["HELD_BACK", "Fitted", "HoldOut"]

HELD_BACK = 0.125
"""Share of the calibration samples that is held back."""


@dataclass(frozen=True)
class Fitted:
    """A model with fitted weights, and the relative error of each fitted node on the samples it was fitted to, by name."""

    model: Model
    errors: dict[str, float]


State = TypeVar("State", bound=Fitted)
"""What a sweep goes on from: a fitted model, and whatever else the fit needs."""


class HoldOut:
    """Judges candidates by their divergence from `teacher` on samples held back, and remembers the least.

    `context` has the rest of the samples, which weights are fitted to. `divergence` is that of the best model so far, None
    before any was judged.
    """

    def __init__(self, teacher: Model, context: Context, log: PassLog) -> None:
        fitted, self._held = context.samples.split(HELD_BACK, context.seed)
        self.context = replace(context, calibration=fitted)
        self.divergence: float | None = None
        self._judging, self._log = context, log
        self._reference = Reference(outputs_on(teacher, self._held, context))

    def measured(self, model: Model) -> float:
        """Return the divergence of `model` on the samples held back."""
        return judge(model, self._reference, self._held, self._judging)

    def start(self, model: Model) -> None:
        """Let `model` be the best so far, whatever its divergence."""
        self.divergence = self.measured(model)

    def gains(self, model: Model, what: str) -> bool:
        """Return whether `model` is nearer to the teacher than the best so far, which it then is itself.

        The log notes the divergences and, in the name of `what`, whether it is applied or reverted.
        """
        before, found = self.divergence, self.measured(model)
        gained = found < (float("inf") if before is None else before)
        change = f"{found:.4g}" if before is None else f"{before:.4g} -> {found:.4g}"
        if before is not None or not gained:
            self._log.note(
                f"{what}: divergence on held-back samples {change}; {'applied' if gained else 'reverted'}"
            )
        if gained:
            self.divergence = found
        return gained

    def sweep(self, state: State, again: Callable[[State], State], numbers: Iterable[int]) -> State:
        """Return the last state that gained, after one call of `again` a number, as long as each gains."""
        for number in numbers:
            trial = again(state)
            if not self.gains(trial.model, f"sweep {number}"):
                break
            state = trial
        return state
