"""What all doors share: models, batches, counters, limits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mmad_bank._internal.timing import collect_times
from mmad_bank.errors import InputError, MmadBankError
from mmad_bank.serving.batching import Batcher
from mmad_bank.serving.catalog import Catalog, Place
from mmad_bank.serving.logs import Log
from mmad_bank.serving.metrics import Metrics
from mmad_bank.serving.models import Answer, Card, Served, ServedBank, Work, computed
from mmad_bank.serving.problems import Problem, overloaded
from mmad_bank.serving.repository import Repository
from mmad_bank.serving.settings import Settings
from mmad_bank.serving.training import TrainingImages

if TYPE_CHECKING:
    from starlette.requests import Request

_Result = TypeVar("_Result")
_BODIES = 8  # requests may hold as much memory together as so many of the largest bodies


def load_place(place: Place, settings: Settings) -> Served:
    """Load the model that lies at a place.

    Raises:
        MmadBankError: It is damaged, foreign or newer, or needs a package that is not installed.
    """
    if place.is_bank:
        from mmad_bank.bank import MemoryBank

        return ServedBank(MemoryBank.load(place.path, settings.device, trust_index=settings.trust_index))
    from mmad_bank import methods
    from mmad_bank.serving.method_models import ServedMethod

    method = methods.load(place.path, settings.device, trust_index=settings.trust_index)
    if settings.runtime is not None and "runtime" in method.prediction_arguments:
        method = method.with_arguments(runtime=settings.runtime)
    return ServedMethod(method)


async def _gone(request: Request) -> None:
    """Wait until a request's client is not there any more; its body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Admission:
    """A request that was let in, and the memory that it holds.

    Args:
        backend: The service.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._bytes = 0

    def holds(self, nbytes: int) -> None:
        """Say how many bytes the request holds now: a small body may unpack to much.

        Raises:
            Problem: With those of the others, they are too many.
        """
        self._backend.hold(self._bytes, nbytes)
        self._bytes = nbytes

    def end(self) -> None:
        """Say that it holds nothing any more."""
        self.holds(0)


class Backend:
    """The service without HTTP.

    Args:
        settings: Its settings.

    Raises:
        InputError: There are no models where the settings say.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.log = Log(settings.log_format)
        self.repository = Repository(
            Catalog(settings.models), lambda place: load_place(place, settings), settings.budget, self._happened
        )
        self.batcher = Batcher(
            self._compute, settings.max_batch, settings.batch_delay, settings.concurrency,
            lambda seconds: self.metrics.section("waiting", seconds),
        )  # fmt: skip
        self.metrics = Metrics(self.repository.resident, lambda: self.batcher.depth)
        self.training = None if settings.data is None else TrainingImages(Path(settings.data), self._warn)
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="mmad-bank-serve")
        self._admitted = 0
        self._bytes = 0
        self.stopping = False

    def close(self) -> None:
        """Let the threads end."""
        self.batcher.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    # Limits.

    @asynccontextmanager
    async def admitted(self, model: str, length: int) -> AsyncIterator[Admission]:
        """Let a request for scores in.

        Args:
            model: Name of the model.
            length: Bytes of its body, as announced; the largest body where it does not say.

        Raises:
            Problem: There are too many.
        """
        if self._admitted >= self.settings.max_queue:
            raise self._overloaded("queue")
        admission = Admission(self)
        admission.holds(length)
        self._admitted += 1
        self.batcher.expect(model)
        try:
            yield admission
        finally:
            self._admitted -= 1
            admission.end()
            self.batcher.forget(model)

    def hold(self, before: int, now: int) -> None:
        """Count bytes that a request holds instead of those before; if no other holds any, it may have what it needs.

        Raises:
            Problem: With those of the others, they are too many.
        """
        others = self._bytes - before
        if now > before and others and others + now > _BODIES * self.settings.max_body:
            raise self._overloaded("memory")
        self._bytes = others + now

    def _overloaded(self, reason: str) -> Problem:
        self.metrics.rejected(reason)
        return overloaded(f"overloaded: {self._admitted} requests are being served; come again in a second")

    async def in_time(self, awaitable: Any, begin: float) -> Any:
        """Wait for something until the request's time is over.

        Raises:
            Problem: It is.
        """
        left = self.settings.timeout - (time.perf_counter() - begin)
        try:
            return await asyncio.wait_for(awaitable, max(left, 0.0))
        except (asyncio.TimeoutError, TimeoutError):  # two classes before Python 3.11
            self.metrics.rejected("timeout")
            seconds = f"{self.settings.timeout:g}"
            raise overloaded(f"timeout: the request was given up after {seconds} seconds") from None

    async def while_there(self, request: Request, awaitable: Any) -> Any:
        """Wait for something until the request's time is over, or its client has gone away.

        Raises:
            Problem: Either has happened.
        """
        work = asyncio.ensure_future(self.in_time(awaitable, request.state.begin))
        gone = asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                self.metrics.rejected("gone")
                raise Problem(499, "client: went away before the answer")
            return work.result()
        finally:
            work.cancel()
            gone.cancel()

    async def in_thread(self, function: Callable[..., _Result], *arguments: Any) -> _Result:
        """Run what takes longer than a moment beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    # Work.

    async def card(self, name: str) -> Card:
        """Return a model's card; it is loaded if nothing is known of it.

        Raises:
            Problem: There is none, or it cannot be used.
        """
        known = self.repository.known_card(name)
        return await self.in_thread(self.repository.card, name) if known is None else known

    async def submit(self, name: str, work: Work) -> Answer:
        """Compute a request together with others; a service with batches and models of its own has its own way here.

        Raises:
            MmadBankError: As :meth:`score` says of problems.
        """
        return await self.batcher.submit(name, work)

    async def score(self, name: str, work: Work) -> Answer:
        """Compute a request.

        Raises:
            Problem: The model cannot be used, or what was given to it.
        """
        if work.size > self.settings.max_batch:
            raise Problem(
                413, f"inputs: expected up to {self.settings.max_batch} images per request, found {work.size}"
            )
        try:
            answer = await self.submit(name, work)
        except Problem:
            raise
        except InputError as error:
            raise Problem(400, str(error)) from error
        except (MmadBankError, MemoryError) as error:
            raise Problem(500, f"model: {name}: {error or type(error).__name__}") from error
        self.metrics.verdicts(name, answer.verdicts)
        return answer

    def _compute(self, name: str, works: Sequence[Work]) -> list[Answer | Exception]:
        """Compute a batch, in a thread of its own."""
        begin = time.perf_counter()
        with self.repository.lease(name) as model:
            there = time.perf_counter()
            with collect_times() as seconds:
                found = computed(model, works)
            done = time.perf_counter()
        self.metrics.section("loading", there - begin)
        self.metrics.section("computing", done - there)
        self.metrics.sections(seconds)
        self.metrics.batch(sum(work.size for work in works))
        return found

    def _warn(self, model: str, reason: str) -> None:
        self.log.say("no training images", level="warning", model=model, reason=reason)

    def _happened(self, event: str, name: str, seconds: float) -> None:
        self.metrics.model_event(event)
        reason = next((one["reason"] for one in self._of(name)), None) if event == "failed" else None
        level = "error" if event == "failed" else "info"
        self.log.say(f"model {event}", level=level, model=name, seconds=seconds or None, reason=reason)

    def _of(self, name: str) -> list[dict[str, str]]:
        return [one for one in self.repository.index() if one["name"] == name]
