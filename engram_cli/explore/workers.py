"""Runs the work of requests in a few threads: how much waits, and for how long, is limited."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class Busy(Exception):
    """Too many requests wait already."""


class Workers:
    """Threads for the work of requests.

    `most`: requests that run or wait at a time; `seconds`: how long one may take. Work cannot be
    interrupted: what takes longer holds its thread, and counts, until it has ended.
    """

    def __init__(self, threads: int = 2, most: int = 8, seconds: float = 30.0) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="explore")
        self._most, self._seconds, self._held = most, seconds, 0

    async def run(self, work: Callable[[], T]) -> T:
        """Return what `work` returns. Raises Busy, TimeoutError, and what `work` raises."""
        if self._held >= self._most:
            raise Busy
        self._held += 1
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._pool, work)
        future.add_done_callback(self._release)
        return await asyncio.wait_for(asyncio.shield(future), self._seconds)

    def close(self) -> None:
        """Start no more work, and wait for none."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _release(self, future: asyncio.Future[T]) -> None:
        self._held -= 1
        if not future.cancelled():
            future.exception()  # seen, even where the request has given up
