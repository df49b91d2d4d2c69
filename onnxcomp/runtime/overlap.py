"""Work on several batches at once, with results in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["in_order", "share", "workers"]

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST = 4
"""Workers at most: every one holds a batch, and memory shall not grow with the number of cores."""


def workers(threads: int) -> int:
    """Return how many batches to work on at once where the user allows `threads` (0: all cores)."""
    return max(1, min(threads or _cores(), MOST))


def share(threads: int) -> int:
    """Return how many threads each of the `workers` may use, so that all together use no more than `threads`."""
    return max(1, (threads or _cores()) // workers(threads))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(
    work: Callable[[Item], Result], items: Iterable[Item], count: int
) -> Generator[Result, None, None]:
    """Yield `work(item)` for every item, in their order, while up to `count` threads work on the items after it.

    `items` is advanced by the caller's thread alone, and at most `count + 1` items and results are held at a time. What
    `work` raises is raised here at its place in the order, what `items` raises at once; then, and where the caller stops
    early, work that has begun is waited for and no other begins. With one worker all happens in the caller's thread.

    numpy, BLAS and onnxruntime release the interpreter's lock while they compute, which is what makes this worth it.
    """
    if count <= 1:
        yield from map(work, items)
        return
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(count, thread_name_prefix="onnxcomp") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                del item
                if len(waiting) > count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
