"""Requests that wait a few milliseconds for each other and are decoded together."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from ilrec_trl import Recommendation, Recommender


class Overloaded(Exception):
    """As many requests wait as may."""


@dataclass
class Query:
    """What is asked for one user, checked before."""

    history: list[str]
    top_k: int
    exclude: list[str] = field(default_factory=list)
    allow: list[str] | None = None


@dataclass
class _Waiting:
    query: Query
    arrived: float
    answer: asyncio.Future[list[Recommendation]]


class MicroBatcher:
    """
    Decodes what arrives within `wait_ms` in one batch, on one thread, so that the event loop stays free. The beams are
    as many for every query, whatever it asks and whatever it shares a batch with, so that it gets the list that it
    would get alone (scores differ by the rounding of padded batches, about 1e-6).

    Args:
        recommender ([`Recommender`]): Its `num_beams` is the most items that a query can ask for.
        max_batch (`int`): Queries decoded at once.
        wait_ms (`float`): How long the first query of a batch waits for others; 0 decodes what is there.
        max_waiting (`int`): Queries that may wait or be decoded; more are refused.
    """

    def __init__(self, recommender: Recommender, *, max_batch: int, wait_ms: float, max_waiting: int) -> None:
        self.recommender = recommender
        self.max_batch = max_batch
        self.wait = wait_ms / 1000
        self.max_waiting = max_waiting
        self.waiting = 0
        self.batches = 0
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="decoding")
        self._task = asyncio.create_task(self._run())

    async def ask(self, queries: list[Query]) -> list[list[Recommendation]]:
        """Lists for some queries. Raises `Overloaded` where they would be more than may wait."""
        if self.waiting + len(queries) > self.max_waiting:
            raise Overloaded
        loop = asyncio.get_running_loop()
        entries = [_Waiting(query, loop.time(), loop.create_future()) for query in queries]
        self.waiting += len(entries)
        try:
            for entry in entries:
                self._queue.put_nowait(entry)
            return list(await asyncio.gather(*(entry.answer for entry in entries)))
        finally:
            # Also where the caller's time is up: what was not yet begun is then not begun at all.
            self.waiting -= len(entries)
            for entry in entries:
                entry.answer.cancel()

    async def close(self) -> None:
        """Finish what waits, then stop."""
        while not self._queue.empty() or self.waiting:
            await asyncio.sleep(0.01)
        self._task.cancel()
        self._thread.shutdown()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._queue.get()]
            left = batch[0].arrived + self.wait - loop.time()
            if left > 0 and self._queue.qsize() + 1 < self.max_batch:
                await asyncio.sleep(left)
            while len(batch) < self.max_batch and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            # An allow-list is for the queries that have one; the others are decoded without.
            for has_list in (False, True):
                group = [entry for entry in batch if (entry.query.allow is not None) == has_list]
                await self._decode([entry for entry in group if not entry.answer.done()])

    async def _decode(self, entries: list[_Waiting]) -> None:
        if not entries:
            return
        self.batches += 1
        loop = asyncio.get_running_loop()
        try:
            lists = await loop.run_in_executor(self._thread, self._recommend, [entry.query for entry in entries])
        except Exception as error:
            if len(entries) > 1:  # so that a failure is only its own query's
                for entry in entries:
                    await self._decode([entry])
            elif not entries[0].answer.done():
                entries[0].answer.set_exception(error)
            return
        for entry, ranked in zip(entries, lists, strict=True):
            if not entry.answer.done():
                entry.answer.set_result(ranked)

    def _recommend(self, queries: list[Query]) -> list[list[Recommendation]]:
        allow = [query.allow for query in queries if query.allow is not None]
        lists = self.recommender.recommend(
            [query.history for query in queries],
            top_k=max(query.top_k for query in queries),
            exclude=[query.exclude for query in queries],
            allow=allow or None,
            batch_size=len(queries),
        )
        return [ranked[: query.top_k] for query, ranked in zip(queries, lists, strict=True)]
