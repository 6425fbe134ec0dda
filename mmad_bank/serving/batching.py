"""Requests that come within a few milliseconds are computed together.

All of this runs on the event loop's thread; only the computing itself goes to others. A model has one batch in work at
a time, so that what comes meanwhile makes the next one. Requests of one key (pictures with one number of patches, one
rule) go together; the oldest decides the key, so that nobody waits for ever.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

from mmad_bank.serving.models import Answer, Work

Compute = Callable[[str, Sequence[Work]], "list[Answer | Exception]"]
"""Function from a model's name and works of one key to an answer, or an error, of each."""


@dataclass(eq=False)
class _Waiting:
    work: Work
    answer: asyncio.Future[Answer]
    came: float = field(default_factory=time.perf_counter)


@dataclass(eq=False)
class _Line:
    """The requests that wait for a model."""

    waiting: deque[_Waiting] = field(default_factory=deque)
    expected: int = 0  # requests that have been begun to be read, and will be waiting soon, or are
    busy: bool = False
    timer: asyncio.TimerHandle | None = None


class Batcher:
    """Lines of requests, one for each model.

    Args:
        compute: Function that computes a batch, in another thread.
        max_batch: Largest number of images that are computed together; a request with more goes alone.
        delay: Seconds that a request waits at most for others.
        concurrency: Number of batches, of different models, that are computed at the same time.
        waited: Function that is told how long each request has waited, in seconds.
    """

    def __init__(
        self, compute: Compute, max_batch: int, delay: float, concurrency: int,
        waited: Callable[[float], None] | None = None,
    ) -> None:  # fmt: skip
        self._compute = compute
        self._max_batch, self._delay, self._concurrency = max_batch, delay, concurrency
        self._waited = waited or (lambda _: None)
        self._lines: dict[str, _Line] = {}
        self._ready: deque[str] = deque()  # models whose next batch waits for a thread
        self._working = 0
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="mmad-bank-compute")
        self._tasks: set[asyncio.Task[None]] = set()

    def expect(self, name: str) -> None:
        """Say that a request for a model has come, and will be submitted when it has been read."""
        self._lines.setdefault(name, _Line()).expected += 1

    def forget(self, name: str) -> None:
        """Say that an expected request has been answered, or will not be submitted."""
        line = self._lines[name]
        line.expected -= 1
        if not line.expected and not line.waiting and not line.busy:
            del self._lines[name]
        elif line.waiting:
            self._look(name)

    async def submit(self, name: str, work: Work) -> Answer:
        """Compute a request, with others if some come.

        Raises:
            Exception: What computing it has raised.
        """
        line = self._lines.setdefault(name, _Line())
        one = _Waiting(work, asyncio.get_running_loop().create_future())
        line.waiting.append(one)
        self._look(name)
        return await one.answer

    @property
    def depth(self) -> int:
        """Number of requests that wait."""
        return sum(len(line.waiting) for line in self._lines.values())

    def close(self) -> None:
        """Let the threads end."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _look(self, name: str) -> None:
        """Start a model's next batch if it is time to."""
        line = self._lines[name]
        if line.busy or not line.waiting:
            return
        if line.timer is not None:
            line.timer.cancel()
            line.timer = None
        left = line.waiting[0].came + self._delay - time.perf_counter()
        full = sum(one.work.size for one in line.waiting) >= self._max_batch
        alone = len(line.waiting) >= line.expected  # nobody else is on the way
        if left > 0 and not full and not alone:
            line.timer = asyncio.get_running_loop().call_later(left, self._look, name)
            return
        line.busy = True
        self._ready.append(name)
        self._start()

    def _start(self) -> None:
        while self._ready and self._working < self._concurrency:
            self._working += 1
            task = asyncio.get_running_loop().create_task(self._work(self._ready.popleft()))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _work(self, name: str) -> None:
        line = self._lines[name]
        try:
            batch = self._next_batch(line)
            if batch:
                await self._answer(name, batch)
        finally:
            self._working -= 1
            line.busy = False
            if line.waiting:
                self._look(name)
            elif not line.expected:
                self._lines.pop(name, None)
            self._start()

    def _next_batch(self, line: _Line) -> list[_Waiting]:
        """Take the oldest request from the line and those that go with it; who has gone away is left out."""
        batch: list[_Waiting] = []
        left: deque[_Waiting] = deque()
        size = 0
        for one in line.waiting:
            if one.answer.done():
                continue
            fits = not batch or (one.work.key == batch[0].work.key and size + one.work.size <= self._max_batch)
            if fits:
                batch.append(one)
                size += one.work.size
            else:
                left.append(one)
        line.waiting = left
        return batch

    async def _answer(self, name: str, batch: list[_Waiting]) -> None:
        now = time.perf_counter()
        for one in batch:
            self._waited(now - one.came)
        works = [one.work for one in batch]
        found: Sequence[Answer | Exception]
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._threads, self._compute, name, works)
        except Exception as error:  # not of one request: the model could not be loaded, for instance
            found = [error] * len(batch)
        for one, answer in zip(batch, found, strict=True):
            with suppress(asyncio.InvalidStateError):  # it was given up meanwhile
                if isinstance(answer, Exception):
                    one.answer.set_exception(answer)
                else:
                    one.answer.set_result(answer)
