"""Sessions of onnxruntime over models and pieces of models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnxruntime as ort

from onnxcomp.errors import ModelError, UsageError
from onnxcomp.ir.model import Model
from onnxcomp.ir.segment import model_bytes
from onnxcomp.numerics.arrays import Array

__all__ = ["Session", "SessionError", "missing_library"]


class SessionError(ModelError):
    """onnxruntime refused to load or to run a model; the message is its own first line."""


class Session:
    """A model loaded in onnxruntime on the CPU.

    `source` is a Model, serialized bytes or a path. With `optimize=False` the graph runs exactly as written, which is
    what equality is judged on. With `arena=False` memory is given back after every run: for sessions that live beside
    others, where the clock does not matter to the last tenth. `threads=0` means all cores. Threads never spin when idle: several sessions live in one
    process here, and spinning distorts both time and results of measurements. The optimised graph is written to
    `optimized_to`, its larger weights to a file `<name>.data` beside it.
    """

    def __init__(
        self,
        source: Model | bytes | str,
        *,
        optimize: bool = True,
        arena: bool = True,
        threads: int = 0,
        custom_op_libs: Sequence[str] = (),
        optimized_to: Path | None = None,
    ) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = arena
        options.enable_mem_pattern = arena
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if not optimize:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if optimized_to is not None:
            options.optimized_model_filepath = str(optimized_to)
            beside = f"{optimized_to.name}.data"
            options.add_session_config_entry(
                "session.optimized_model_external_initializers_file_name", beside
            )
            options.add_session_config_entry(
                "session.optimized_model_external_initializers_min_size_in_bytes", "4096"
            )
        for library in custom_op_libs:
            try:
                options.register_custom_ops_library(library)
            except Exception as problem:  # see below
                raise UsageError(
                    f"the custom operator library {library!r} cannot be loaded: {_first_line(problem)}"
                ) from problem
        data = model_bytes(source) if isinstance(source, Model) else source
        try:
            self._session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as problem:  # onnxruntime raises half a dozen unrelated types
            raise SessionError(_first_line(problem)) from problem
        self.inputs: dict[str, tuple[str, tuple[int | str | None, ...]]] = {
            i.name: (i.type, tuple(i.shape)) for i in self._session.get_inputs()
        }
        self.outputs: tuple[str, ...] = tuple(o.name for o in self._session.get_outputs())

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Return the wanted outputs by name (all by default); optional outputs that are absent come as empty arrays.

        Raises:
            SessionError: onnxruntime's own reason, in one line.
        """
        names = list(self.outputs if outputs is None else outputs)
        if not names:
            # To onnxruntime an empty list means all outputs.
            return {}
        try:
            values = self._session.run(names, dict(feeds))
        except Exception as problem:  # see above
            raise SessionError(_first_line(problem)) from problem
        return dict(zip(names, values, strict=True))


def missing_library(model: Model) -> str:
    """Return what to append to onnxruntime's refusal of `model` where it holds operators that a library may define."""
    foreign = sorted({str(node.domain) for node in model.graph.nodes if not node.standard})
    return f"; it uses operators of {', '.join(foreign)}: is a --custom-op-lib missing?" if foreign else ""


def _first_line(problem: Exception) -> str:
    text = " ".join(str(problem).split())
    return text if len(text) <= 300 else text[:297] + "..."
