"""Work in threads, results in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
# Numpy and Arrow leave Python's lock while they work, but not all the time: more threads would wait for it.
MOST_THREADS = 4


def in_order(
    work: Callable[[_Item], _Result], items: Iterable[_Item], threads: int | None = None
) -> Generator[_Result, None, None]:
    """`map(work, items)`, some items ahead of the caller.

    Args:
        work: Called in threads, several calls at once; it must not change what other calls read.
        items: Drawn in the caller's thread, at most `threads + 2` of them before the caller takes the first result.
        threads: Number of threads. Defaults to the processor's cores, at most 4.

    Yields:
        The results, in the order of the items. An error of `work` comes up in the place of its result. When the
        generator is closed or breaks off, what has not begun is cancelled, and what has is waited for.

    Example:
        >>> list(in_order(len, ["a", "bb", "ccc"], threads=2))
        [1, 2, 3]

    Source: our design.
    """
    threads = threads or min(os.cpu_count() or 1, MOST_THREADS)
    waiting: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(max_workers=threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > threads + 1:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
