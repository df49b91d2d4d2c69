"""Turns text that names sample data (path, glob, `module:function`, `random:N`) into a source of samples."""

from __future__ import annotations

import glob
import importlib
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from onnxcomp.errors import DataError, UsageError
from onnxcomp.runtime.data.fitting import Fitter
from onnxcomp.runtime.data.images import IMAGE_SUFFIXES, ImageSource
from onnxcomp.runtime.data.made_feeds import FeedSource
from onnxcomp.runtime.data.npz import NpzTable
from onnxcomp.runtime.data.preprocess import did_you_mean
from onnxcomp.runtime.data.sources import RandomSource, Source, TableSource

__all__ = ["open_path"]

_RANDOM = re.compile(r"random(?::(.*))?")
_CODE = re.compile(r"([A-Za-z_][\w.]*):([A-Za-z_]\w*)")


def open_path(text: str, fitter: Fitter, *, allow_code: bool, seed: int) -> tuple[str, Source]:
    """Return how reports call the samples that `text` names, and the samples.

    `random` and `random:N` come first; then a path that exists; then a glob; then `module:function`.

    Raises:
        UsageError: if nothing of that name exists, or code may not be run.
        DataError: if the data does not fit.
    """
    if match := _RANDOM.fullmatch(text):
        random = RandomSource(_random_count(match[1], text), fitter, seed)
        return random.where, random
    try:
        found = _existing(text)
    except (OSError, ValueError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else problem
        raise UsageError(f"{text[:200]}: cannot be looked into ({reason}); mend the path") from problem
    if isinstance(found, Path):
        return text, _open_file(found, fitter)
    if found is not None:
        return text, _open_files(text, found, fitter)
    if match := _CODE.fullmatch(text):
        if not allow_code:
            raise UsageError(f"{text}: runs Python code; say --allow-code if you trust it")
        return text, FeedSource(_function(text, match[1], match[2]), text, fitter)
    hint = did_you_mean(Path(text).name, _siblings(text)) or (
        "; give an .npz, a directory or glob of .npz or images, module:function, or random[:N]"
    )
    raise UsageError(f"{text or 'empty path'}: no such file or directory{hint}")


def _existing(text: str) -> Path | list[Path] | None:
    """Return the file that `text` names, the files of the directory or glob, or None where nothing is there.

    Raises:
        UsageError: if a glob matches nothing.
    """
    path = Path(text)
    if not text:
        return None
    if path.is_dir():
        return sorted(f for f in path.iterdir() if f.is_file() and not f.name.startswith("."))
    if path.exists():
        return path
    if any(sign in text for sign in "*?["):
        # Path.glob takes no absolute pattern.
        files = sorted(f for f in map(Path, glob.glob(text, recursive=True)) if f.is_file())  # noqa: PTH207
        if not files:
            raise UsageError(f"{text}: matches no file; mend the pattern")
        return files
    return None


def _siblings(text: str) -> list[str]:
    """Return the names in the folder of the path `text`, as far as they can be seen."""
    try:
        return [file.name for file in Path(text).parent.iterdir()]
    except OSError:
        return []


def _random_count(number: str | None, text: str) -> int | None:
    if number is None:
        return None
    if not number.isascii() or not number.isdigit() or len(number) > 9 or int(number) == 0:
        raise UsageError(f"{text}: N in random:N is a whole number of samples, 1 or more; give random:64")
    return int(number)


def _open_file(path: Path, fitter: Fitter) -> Source:
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return ImageSource(str(path), [path], fitter)
    if not path.is_file():
        raise DataError(f"{path}: neither a file nor a directory; give an .npz or a directory")
    return TableSource([NpzTable(path)], fitter)


def _open_files(text: str, files: Sequence[Path], fitter: Fitter) -> Source:
    shards = [f for f in files if f.suffix.lower() == ".npz"]
    images = [f for f in files if f.suffix.lower() in IMAGE_SUFFIXES]
    if shards and images:
        raise DataError(
            f"{text}: both .npz files ({shards[0].name}) and images ({images[0].name}); "
            "choose with a glob like '*.npz'"
        )
    if shards:
        return TableSource([NpzTable(f) for f in shards], fitter)
    if images:
        return ImageSource(text, images, fitter)
    found = (
        f"only files such as {files[0].name}"
        if files
        else "no files (folders inside are searched by a glob '**/*.png')"
    )
    raise DataError(f"{text}: {found}; .npz files or images are needed")


def _function(text: str, module_name: str, name: str) -> Callable[[], Iterable[object]]:
    """Return the function, importing its module with the working directory on the path as `python -m` has it.

    Raises:
        UsageError: if there is no such module or function.
        DataError: if the module raises while it is imported.
    """
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as problem:
        if problem.name is not None and f"{module_name}.".startswith(f"{problem.name}."):
            raise UsageError(
                f"{text}: no module '{problem.name}' here; run in its folder or install it"
            ) from problem
        raise DataError(f"{text}: the module needs '{problem.name}', which is not installed") from problem
    except Exception as problem:  # a module may raise anything while it is imported
        reason = " ".join(str(problem).split())[:200]
        raise DataError(
            f"{text}: importing it raised {type(problem).__name__} ({reason}); mend the module"
        ) from problem
    finally:
        sys.path.remove(here)
    function = getattr(module, name, None)
    if function is None:
        raise UsageError(f"{text}: module '{module_name}' has no '{name}'{did_you_mean(name, vars(module))}")
    if not callable(function):
        raise UsageError(
            f"{text}: '{name}' is {type(function).__name__}, not a function; name one that yields dicts"
        )
    found: Callable[[], Iterable[object]] = function
    return found
