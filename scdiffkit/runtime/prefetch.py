"""Prefetch the items of an iterator in another thread."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def prefetch(items: Iterator[T], n: int = 1) -> Generator[T]:
    """Yield the items unchanged, while another thread prepares the next n."""
    done = object()
    with ThreadPoolExecutor(1) as worker:
        futures = [worker.submit(next, items, done) for _ in range(n)]
        try:
            while (item := futures.pop(0).result()) is not done:
                futures.append(worker.submit(next, items, done))
                yield item  # type: ignore[misc]
        finally:
            for future in futures:
                future.cancel()
