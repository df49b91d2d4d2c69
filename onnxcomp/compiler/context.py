"""The context of a pass: samples, sizes, target and runtime settings that the driver gives it, and what all passes ask of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict

import numpy as np

from onnxcomp.errors import PreconditionError
from onnxcomp.numerics.arrays import Shapes
from onnxcomp.runtime.timings import Timings

if TYPE_CHECKING:
    from onnxcomp.compiler.target.facts import Target
    from onnxcomp.ir.model import Model
    from onnxcomp.runtime.data.samples import Samples
    from onnxcomp.runtime.session import Session

__all__ = ["Context", "Progress", "RuntimeSettings"]

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with (what is being done, steps done, steps in all)."""

REMEMBERED = 8
"""Models whose shapes are remembered: those of one pass, and the pipeline's input."""


class RuntimeSettings(TypedDict):
    """What every session of onnxruntime in a run is opened with; `**context.runtime` hands them on."""

    threads: int
    custom_op_libs: tuple[str, ...]


def _default_target() -> Target:
    # Passes are listed without a target, and without what reading one needs.
    from onnxcomp.compiler.target.files import DEFAULT_TARGET, load_target

    return load_target(DEFAULT_TARGET)


@dataclass(frozen=True)
class Context:
    """What the driver gives a pass to work with; `dataclasses.replace` makes another one.

    Attributes:
        original: the model the pipeline received; budgets are shares of it. Read only.
        damaged: whether a pass before this one was not exact: what is repaired is then repaired towards `original`, as far
            as its values still have the same meaning.
        calibration: samples, or None where none were given (`data_mode` says whether on purpose); see `samples`.
        data_mode: `real` for the user's samples, `random` for noise, `none` for the data-free mode, in which a pass that
            needs calibration works with samples made from `original`.
        input_shapes: concrete shapes of all graph inputs for one batch (first axis of samples = 1 where it is free).
        excluded: names of nodes (as the loaded file had them) that the user wants left alone.
        seed: every random choice derives from it.
        threads: for onnxruntime; 0 = all cores.
        custom_op_libs: shared libraries onnxruntime must load first.
        timings: what is measured by the clock, recorded or replayed.
        ranges: the lowest and the highest number of values, by name, that quantization takes as they are.
        target: what the result is made for.
        progress: where long work reports its steps.
    """

    original: Model
    damaged: bool = False
    calibration: Samples | None = None
    data_mode: Literal["real", "random", "none"] = "real"
    input_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    excluded: frozenset[str] = frozenset()
    seed: int = 0
    threads: int = 0
    custom_op_libs: tuple[str, ...] = ()
    timings: Timings = field(default_factory=Timings)
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    target: Target = field(default_factory=_default_target)
    progress: Progress = lambda what, done, total: None
    _shapes: dict[object, Shapes] = field(default_factory=dict, repr=False, compare=False)

    @property
    def samples(self) -> Samples:
        """The calibration samples.

        Raises:
            PreconditionError: where there are none; `Pass.needs` makes the driver ask for them before a pass runs.
        """
        if self.calibration is None:
            raise PreconditionError("calibration samples are needed and none were given; give --calibration")
        return self.calibration

    @property
    def runtime(self) -> RuntimeSettings:
        """Threads and libraries, as keyword arguments of everything that opens sessions."""
        return {"threads": self.threads, "custom_op_libs": self.custom_op_libs}

    def session(self, model: Model | bytes, **how: Any) -> Session:
        """Return a session of onnxruntime over `model` with the settings of the run; `how` goes to `Session`.

        Raises:
            SessionError: where onnxruntime refuses the model.
        """
        # Reading a model needs onnxruntime, listing passes does not.
        from onnxcomp.runtime.session import Session

        return Session(model, **{**self.runtime, **how})

    def shapes(self, model: Model) -> dict[str, tuple[int, ...]]:
        """Return the shapes of all values of `model` for one sample, by name.

        They are observed once for a model as it is now, however often they are asked for: an edit in between that could
        change a shape (nodes, attributes, names, stored tensors) is noticed.
        """
        from onnxcomp.ir.shapes import shape_key
        from onnxcomp.runtime.observe import observe_shapes

        key = (shape_key(model), tuple(sorted(self.input_shapes.items())))
        if key not in self._shapes:
            types = {v.name: np.dtype(v.dtype) for v in model.graph.inputs}
            feeds = {name: np.zeros(shape, types[name]) for name, shape in self.input_shapes.items()}
            sample = next(self.calibration.batches(1)) if self.calibration is not None else {}
            # Shapes may depend on values; where the sizes are the same, a real sample is the better guide.
            if {name: array.shape for name, array in sample.items()} == dict(self.input_shapes):
                feeds = dict(sample)
            while len(self._shapes) >= REMEMBERED:
                self._shapes.pop(next(iter(self._shapes)))
            self._shapes[key] = observe_shapes(model, feeds, **self.runtime)
        return dict(self._shapes[key])

    def left_alone(self, model: Model) -> dict[str, str]:
        """Return the nodes of `model` whose numbers an approximate pass leaves alone, by name, each with the reason.

        Those are the nodes that the user excluded, and those behind a selection of rows by the data: statistics of such rows
        do not add up over samples, and the rows of two networks that are almost equal do not belong together.
        """
        # Listing passes needs no analysis.
        from onnxcomp.analysis.selection import REASON, behind_selection, selected_values

        selected = selected_values(model, self.shapes)
        found = {}
        for node in model.graph.nodes:
            if self.is_excluded(model, node.name):
                found[node.name] = "it is excluded"
            elif behind_selection(node, selected):
                found[node.name] = REASON
        return found

    def is_excluded(self, model: Model, name: str) -> bool:
        """Return whether node `name` of `model` is, or came by folding from, a node the user excluded."""
        if name in self.excluded:
            return True
        return any(now == name and before in self.excluded for before, now in model.aliases.items())
