"""Workers as Ray actors: asked together, watched, and made anew where one dies."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any

import numpy as np

from mmad_bank.distributed.selection import Arguments, CatchUp, Traffic
from mmad_bank.distributed.workers import WorkerProcess
from mmad_bank.errors import WorkersError

_DEATHS = 3  # of one worker without an answer
_LARGE = 64 << 10  # bytes of an array that is stored once for all who are sent it


def _here() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return None


class RayCrew:
    """One actor per share. As a context manager it ends them, whatever happens.

    Args:
        ray: The module, which has joined a cluster.
        shares: The shares, each stored in Ray's object store as it comes: files' descriptions, or rows.
        arguments: Further arguments of :class:`~mmad_bank.distributed.workers.Worker`.
        threads: Number of threads of a worker, and of CPUs that it takes of the cluster.
        device: Where its rows meet the centres; with ``"cuda"`` it takes a GPU of the cluster.
    """

    def __init__(
        self, ray: Any, shares: Iterable[Any], arguments: Arguments = (), threads: int = 1, device: str = "cpu"
    ) -> None:
        self._ray, self._arguments = ray, arguments
        self._named = {"threads": threads, "device": device, "home": _here()}
        gpus = 1 if device == "cuda" else 0
        self._actor_class = ray.remote(num_cpus=threads, num_gpus=gpus, max_restarts=0)(WorkerProcess)
        errors = ray.exceptions
        self._deaths = (errors.RayActorError, errors.OutOfMemoryError, errors.ObjectLostError)
        self._shares: list[Any] = []
        self._actors: list[Any] = []
        self.traffic = Traffic()
        self.replaced = 0
        try:
            for share in shares:
                self._shares.append(ray.put(share))
                self._actors.append(self._actor(self._shares[-1]))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> RayCrew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all actors and let go of the shares."""
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors, self._shares = [], []

    def ask(self, method: str, calls: Sequence[Arguments | None], catch_up: CatchUp) -> list[Any]:
        """Call a method of all workers at once; a worker that dies meanwhile is made anew and asked again.

        Raises:
            WorkersError: A worker died again and again.
        """
        stored: dict[int, Any] = {}
        answers: list[Any] = [None] * len(calls)
        waiting = {
            number: [self._call(number, method, arguments, stored)]
            for number, arguments in enumerate(calls)
            if arguments is not None
        }
        deaths: Counter[int] = Counter()
        while waiting:
            lost = []
            for number, promised in waiting.items():
                try:
                    answers[number] = self._ray.get(promised)[-1]
                except self._deaths as error:
                    deaths[number] += 1
                    if deaths[number] >= _DEATHS:
                        reason = str(error).strip().splitlines()[0]
                        raise WorkersError(
                            f"worker {number} died {_DEATHS} times without an answer: {reason}"
                        ) from None
                    lost.append(number)
                except self._ray.exceptions.RayTaskError as error:
                    raise error.cause from None
            waiting = {number: self._again(number, method, calls[number], stored, catch_up()) for number in lost}
        self.traffic.round_trips += 1
        self.traffic.down += Traffic.size(calls)
        self.traffic.up += Traffic.size(answers)
        return answers

    def _again(
        self, number: int, method: str, arguments: Arguments | None, stored: dict[int, Any], so_far: Arguments
    ) -> list[Any]:
        """Make a worker anew, have it catch up, and ask it again."""
        assert arguments is not None
        self._ray.kill(self._actors[number])  # it may be out of reach only
        self._actors[number] = self._actor(self._shares[number])
        self.replaced += 1
        self.traffic.down += Traffic.size(so_far) + Traffic.size(arguments)
        caught_up = self._call(number, "catch_up", so_far, stored)
        return [caught_up, self._call(number, method, arguments, stored)]

    def _actor(self, share: Any) -> Any:
        return self._actor_class.remote(share, *self._arguments, **self._named)

    def _call(self, number: int, method: str, arguments: Arguments, stored: dict[int, Any]) -> Any:
        """Call a method; large arrays that several workers are sent are stored once."""
        sent = []
        for value in arguments:
            if isinstance(value, np.ndarray) and value.nbytes > _LARGE:
                if id(value) not in stored:
                    stored[id(value)] = self._ray.put(value)
                sent.append(stored[id(value)])
            else:
                sent.append(value)
        return getattr(self._actors[number], method).remote(*sent)
