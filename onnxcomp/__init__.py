"""onnxcomp: a compiler that makes trained networks in ONNX form smaller and faster.

Everything below is imported when it is first used, so that `import onnxcomp` costs nothing.

>>> import onnxcomp, onnx, tempfile, pathlib
>>> folder = pathlib.Path(tempfile.mkdtemp())
>>> proto = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["" : 17]>
... net (float[N, 4] x) => (float[N, 4] y) { a = Identity(x)  y = Relu(a) }''')
>>> onnx.save(proto, folder / "net.onnx")

Models are loaded, edited by passes, and saved whole or not at all:

>>> model = onnxcomp.load(folder / "net.onnx")
>>> [node.op for node in model.graph.nodes]
['Identity', 'Relu']
>>> result = onnxcomp.optimize(model)
>>> [node.op for node in result.model.graph.nodes]
['Relu']
>>> _ = onnxcomp.save(result.model, folder / "small.onnx")

Passes stand in pipelines, which have a text; channels that can only be cut together stand in groups:

>>> str(onnxcomp.Pipeline.parse("fold-constants, remove-dead"))
'fold-constants,remove-dead'
>>> issubclass(type(onnxcomp.Pipeline.parse("remove-dead").passes[0]), onnxcomp.Pass)
True
>>> [group.name for group in onnxcomp.channel_groups(model)]
[]
>>> callable(onnxcomp.sensitivity), callable(onnxcomp.bench)
(True, True)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxcomp.analysis.channels import channel_groups
    from onnxcomp.api import bench, optimize, sensitivity
    from onnxcomp.compiler.passbase import Pass
    from onnxcomp.compiler.spec import Pipeline
    from onnxcomp.ir.files import load, save

__version__ = "0.1.0"
"""Of the package; stamped into files and reports."""

__all__ = [
    "Pass",
    "Pipeline",
    "__version__",
    "bench",
    "channel_groups",
    "load",
    "optimize",
    "save",
    "sensitivity",
]

_HOMES = {
    "Pass": "onnxcomp.compiler.passbase",
    "Pipeline": "onnxcomp.compiler.spec",
    "bench": "onnxcomp.api",
    "channel_groups": "onnxcomp.analysis.channels",
    "load": "onnxcomp.ir.files",
    "optimize": "onnxcomp.api",
    "save": "onnxcomp.ir.files",
    "sensitivity": "onnxcomp.api",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'onnxcomp' has no attribute '{name}'")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
