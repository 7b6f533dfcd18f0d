"""Work that threads do ahead of whoever takes its results."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int, waiting: int
) -> Iterator[Result]:
    """Map a function over items by threads, in order, in memory that does not grow with their number.

    An error is raised where its result would be taken; then, or when no more results are taken, no further call begins.

    Args:
        function: Called in threads.
        items: Taken in the caller's thread.
        workers: Number of threads.
        waiting: Calls that are begun, at most, ahead of the result that is taken.
    """
    calls: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="ahead")
    try:
        for item in items:
            calls.append(pool.submit(function, item))
            if len(calls) > waiting:
                yield calls.popleft().result()
        while calls:
            yield calls.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
