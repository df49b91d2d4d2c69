"""Everything onnxcomp raises on purpose.

    OnnxcompError                70   base; never raised itself
    ├── UsageError                2   the call is wrong: option, pass, pattern, path
    ├── ModelError                2   the model file is wrong: unreadable, cyclic, unsafe
    ├── DataError                 2   the sample data is wrong: name, dtype, shape, NaN
    ├── NothingChanged            3   the pipeline left the model as it was
    ├── BudgetError               4   a budget or a bound was not met
    └── PassError                70   a pass failed; a bug of ours or of a plug-in
        ├── PreconditionError     2   a pass was asked for something it cannot do
        └── VerificationError     1   the model a pass made is broken

The number is the exit code of the command line. One message is one line that ends in what to do, where that is known.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "BudgetError",
    "DataError",
    "ModelError",
    "NothingChanged",
    "OnnxcompError",
    "PassError",
    "PreconditionError",
    "UsageError",
    "VerificationError",
]


class OnnxcompError(Exception):
    """Base of every error that onnxcomp raises on purpose; `exit_code` is what the command line returns.

    `result` is what `onnxcomp.optimize` had reached when a run ended without being done, None elsewhere.
    """

    exit_code: ClassVar[int] = 70
    result: object = None


class UsageError(OnnxcompError):
    """The call is wrong: an unknown pass, option or pattern, a path that cannot be used."""

    exit_code = 2


class ModelError(OnnxcompError):
    """The model is unreadable, malformed, unsafe or beyond what onnxcomp converts."""

    exit_code = 2


class DataError(OnnxcompError):
    """Sample data does not fit the model: wrong name, dtype, shape, NaN, Inf or nothing at all."""

    exit_code = 2


class NothingChanged(OnnxcompError):  # noqa: N818 - an outcome, not a fault
    """No pass changed the model, so no output was written."""

    exit_code = 3


class BudgetError(OnnxcompError):
    """A budget (`macs`, `params`) or a bound (`--max-drop`, `--require-speedup`, ...) was not met."""

    exit_code = 4


class PassError(OnnxcompError):
    """A pass failed in a way it did not foresee."""

    exit_code = 70


class PreconditionError(PassError):
    """A pass was asked for something it cannot do on this model, with this data."""

    exit_code = 2


class VerificationError(PassError):
    """The model a pass made is broken, or an exact pass changed the numbers."""

    exit_code = 1
