"""How many threads the linear algebra library may use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits

__all__ = ["single_threaded_blas"]


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Keep BLAS to one thread within the block.

    Its idle workers spin, and take the cores from onnxruntime, whose runs alternate with short products here: on two cores
    the whole command took a fifth longer with two BLAS threads than with one, and several times longer on a busy machine.
    """
    with threadpool_limits(limits=1, user_api="blas"):
        yield
