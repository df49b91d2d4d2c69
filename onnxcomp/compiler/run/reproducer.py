"""What is left behind when a pass fails in a way nobody foresaw: everything needed to see it fail again."""

from __future__ import annotations

import shutil
import traceback
from pathlib import Path

from onnxcomp.compiler.passbase import Pass
from onnxcomp.compiler.run.report import versions
from onnxcomp.compiler.run.request import Request
from onnxcomp.errors import OnnxcompError
from onnxcomp.ir.files import save
from onnxcomp.ir.model import Model

__all__ = ["write_reproducer"]


def write_reproducer(request: Request, model: Model, step: Pass, problem: BaseException) -> Path | None:
    """Write a folder beside the output of `request` and return it; None where there is no output or no room.

    It holds `model.onnx` as `step` received it, `pipeline.txt`, `versions.txt` and `traceback.txt`.
    """
    if request.output is None:
        return None
    folder = _fresh(request.beside(".crash"))
    try:
        folder.mkdir()
        (folder / "pipeline.txt").write_text(_pipeline_text(request, step), encoding="utf-8")
        (folder / "versions.txt").write_text(
            "".join(f"{name} {version}\n" for name, version in versions().items()), encoding="utf-8"
        )
        (folder / "traceback.txt").write_text(
            "".join(traceback.format_exception(problem)), encoding="utf-8", errors="backslashreplace"
        )
        save(model, folder / "model.onnx")
    except (OSError, OnnxcompError):
        # The failure itself is what the user must hear of, not that it could not be recorded.
        shutil.rmtree(folder, ignore_errors=True)
        return None
    return folder


def _fresh(folder: Path) -> Path:
    name, count = folder, 1
    while name.exists():
        count += 1
        name = folder.with_name(f"{folder.name}-{count}")
    return name


def _pipeline_text(request: Request, step: Pass) -> str:
    return (
        f"# the pass that failed on model.onnx\n{step}\n"
        f"# the pipeline it was part of\n{request.pipeline}\n"
        f"# calibration, seed, threads\n{request.calibration}\n{request.seed}\n{request.threads}\n"
    )
