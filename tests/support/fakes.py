"""Passes that go wrong in every way there is, and models to try them on."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from onnxcomp.compiler.options import option
from onnxcomp.compiler.passbase import Context, Need, Pass, PassLog, PassResult
from onnxcomp.errors import DataError, PreconditionError, VerificationError
from onnxcomp.ir import Model, Variable
from onnxcomp.ir.files import save
from onnxcomp.ir.parse import parse_model

CLASSIFIER = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 3, 4, 4] image) => (float[N, 5] scores)
<float[6, 3, 3, 3] first, float[96, 5] head> {
    conv = Conv <pads = [1, 1, 1, 1]> (image, first)
    same = Identity (conv)
    act = Relu (same)
    flat = Flatten (act)
    scores = MatMul (flat, head)
}"""
"""A small classifier with one node that `remove-dead` removes."""


def classifier() -> Model:
    """A fresh model of CLASSIFIER."""
    return parse_model(CLASSIFIER)


def write_classifier(folder: Path, name: str = "model.onnx", text: str = CLASSIFIER) -> Path:
    """Write the model of `text` into `folder` and return its path."""
    path = folder / name
    save(parse_model(text), path)
    return path


def write_data(folder: Path, name: str = "data.npz", samples: int = 12, *, labels: bool = False) -> Path:
    """Write samples for CLASSIFIER into `folder` and return the path."""
    rng = np.random.default_rng(7)
    image = rng.standard_normal((samples, 3, 4, 4)).astype(np.float32)
    if labels:
        np.savez(folder / name, image=image, labels=rng.integers(0, 5, samples))
    else:
        np.savez(folder / name, image=image)
    return folder / name


def names_in(folder: Path) -> set[str]:
    """Return the names of everything in `folder`."""
    return {path.name for path in folder.iterdir()}


def scale(model: Model, log: PassLog, by: float) -> None:
    """Multiply the first weight of `model` by `by`."""
    node = next(n for n in model.graph.nodes if n.is_op("Conv", "MatMul") and n.constant(1) is not None)
    weight = node.constant(1)
    assert weight is not None
    model.graph.set_constant(node, 1, (weight * np.float32(by)).astype(np.float32))
    log.change(node.name, f"times {by}")


@dataclass(frozen=True)
class Scale(Pass):
    """Multiply the first weight."""

    name = "scale"
    by: float = option(0.5, "the factor")

    def run(self, model: Model, context: Context) -> PassResult:
        log = PassLog()
        scale(model, log, self.by)
        log.skip("head", "one weight is enough")
        return log.result(model)


@dataclass(frozen=True)
class Nudge(Pass):
    """Claim to be exact, and change a weight a little."""

    name = "claim-exact"
    exact = True
    by: float = option(1.01, "the factor")

    def run(self, model: Model, context: Context) -> PassResult:
        log = PassLog()
        scale(model, log, self.by)
        return log.result(model)


@dataclass(frozen=True)
class Breaker(Pass):
    """Break the model in one way."""

    name = "break"
    way: Literal[
        "name", "output", "input", "nan", "shape", "twins", "runtime", "dtype", "order", "batch", "reader"
    ] = option("output", "how")

    def run(self, model: Model, context: Context) -> PassResult:
        log = PassLog()
        graph = model.graph
        match self.way:
            case "name":
                graph.outputs[0].name = "renamed"
            case "output":
                graph.outputs.append(graph.nodes[0].output)
            case "input":
                model.graph.inputs[0].name = "picture"
                model.io_protos.clear()
            case "nan":
                graph.set_constant(graph.nodes[0], 1, np.full((6, 3, 3, 3), np.nan, np.float32))
            case "shape":
                graph.set_constant(graph.nodes[-1], 1, np.zeros((96, 4), np.float32))
            case "twins":
                graph.nodes[1].output.name = graph.nodes[0].output.name
            case "runtime":
                graph.nodes[1].op = "NoSuchOperator"
                graph.nodes[1].domain = "elsewhere"
                model.opset_imports["elsewhere"] = 1
            case "dtype":
                graph.set_constant(graph.nodes[0], 1, np.zeros((6, 3, 3, 3), np.float64))
            case "order":
                graph.nodes.reverse()
            case "batch":
                node = next(n for n in graph.nodes if n.is_op("Flatten"))
                node.op, node.attrs = "Reshape", {}
                graph.set_input(node, 1, graph.add_constant("shape", np.array([1, 96], np.int64)))
            case "reader":
                graph.nodes[-1].inputs[0] = Variable("nowhere", np.dtype(np.float32))
        log.change("graph", "broken")
        return log.result(model)


@dataclass(frozen=True)
class Raiser(Pass):
    """End in an exception."""

    name = "raise"
    what: Literal["crash", "precondition", "data", "verification", "interrupt", "memory", "nonsense"] = (
        option("crash", "which")
    )

    def run(self, model: Model, context: Context) -> PassResult:
        match self.what:
            case "crash":
                raise ZeroDivisionError("of all things")
            case "precondition":
                raise PreconditionError("this model has no wings; give one that has")
            case "data":
                raise DataError("sample 3 holds NaN; mend it")
            case "verification":
                raise VerificationError("the made-up check failed")
            case "memory":
                raise MemoryError("Unable to allocate 256. PiB for an array with shape (288230376151711744,)")
            case "interrupt":
                raise KeyboardInterrupt
            case "nonsense":
                return None  # type: ignore[return-value]


@dataclass(frozen=True)
class FallShort(Pass):
    """Do something, but not enough."""

    name = "fall-short"
    change: bool = option(True, "whether to change anything")

    def run(self, model: Model, context: Context) -> PassResult:
        log = PassLog()
        if self.change:
            scale(model, log, 0.999)
        log.shortfall = "macs=0.5 cannot be reached, 0.9 remain; nothing more may go"
        return log.result(model)


@dataclass(frozen=True)
class Grow(Pass):
    """Make the file larger."""

    name = "grow"
    size: int = option(100_000, "elements added")

    def run(self, model: Model, context: Context) -> PassResult:
        log = PassLog()
        model.graph.add_constant("ballast", np.ones(self.size, np.float32))
        log.change("graph", "ballast added")
        return log.result(model)


@dataclass(frozen=True)
class Needy(Pass):
    """Need something, and note what came."""

    name = "needy"
    what: Literal["calibration", "labels", "shapes"] = option("calibration", "the need")

    def needs(self) -> frozenset[Need]:
        return frozenset({self.what})

    def run(self, model: Model, context: Context) -> PassResult:
        log = PassLog()
        count = len(context.calibration) if context.calibration is not None else 0
        log.note(f"got {count} samples, {context.data_mode}, {dict(context.input_shapes)}")
        return log.result(model)


@dataclass(frozen=True)
class Stall(Pass):
    """Take long and say so."""

    name = "stall"
    seconds: float = option(60.0, "how long")

    def run(self, model: Model, context: Context) -> PassResult:
        for step in range(100):
            context.progress("stalling", step, 100)
            time.sleep(self.seconds / 100)
        return PassLog().result(model)


@dataclass(frozen=True)
class Die(Pass):
    """Die of a signal, as native code does that divides by zero or aborts."""

    name = "die"
    of: str = option("SIGFPE", "name of the signal")

    def run(self, model: Model, context: Context) -> PassResult:
        os.kill(os.getpid(), signal.Signals[self.of])
        time.sleep(60)
        return PassLog().result(model)


@dataclass(frozen=True)
class Last(Pass):
    """A pass that belongs behind quantization."""

    name = "last"
    stage = "coding"

    def run(self, model: Model, context: Context) -> PassResult:
        return PassLog().result(model)


FAKES = {
    kind.name: f"tests.support.fakes:{kind.__name__}"
    for kind in (Scale, Nudge, Breaker, Raiser, FallShort, Grow, Needy, Stall, Die, Last)
}
"""What `onnxcomp.passes.BUILTIN` must hold for the command line to know these passes."""
