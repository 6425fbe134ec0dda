"""Much work of one kind, done a piece at a time by processes that are made ready once: Ray Data's pool of actors."""

from __future__ import annotations

import inspect
import logging
import os
import pickle
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from mmad_bank._internal.checks import check_index
from mmad_bank.distributed.cluster import connect, import_ray, machines, take_share, working_on
from mmad_bank.errors import InputError, MmadBankError

Item = TypeVar("Item")
Result = TypeVar("Result")
_MOST = 10_000
_TRIES = 3  # times that a piece is given out again whose process has died in it
_TASKS = 1000  # that Ray Data keeps account of; of more pieces a task has several


def in_order(
    make: Callable[[], Callable[[Item], Result]], items: Sequence[Item], *, workers: int, address: str | None = None
) -> Generator[Result, None, None]:
    """Yield what a function returns for each item, in their order, as several processes compute it.

    Only a few results are in memory at a time: where they are taken more slowly than made, the processes wait. One that
    dies is replaced, and what it was at is done again.

    Args:
        make: What makes the function; called in each process, once. It is pickled, so that what is large, a bank or a
            model, is named by its path.
        items: What the function takes; each is pickled by itself.
        workers: Number of processes. A cluster with room for fewer starts with these.
        address: Address of a Ray cluster; default: the Ray that this process has joined, or one of its own.

    Raises:
        MmadBankError: What the function raises for an item, when its turn comes; or what ``make`` raises.
        InputError: No cluster answers, or a process died with the same item again and again.
        MissingExtraError: Ray is not installed.
    """
    check_index(workers, "workers", 1, _MOST, "as many as a cluster may have")
    import_ray()
    if not items:
        return
    with connect(address, workers) as ray, working_on(ray), _quiet() as data:
        places, room = machines(ray)
        at_once = min(workers, room, len(items))
        sent = [pickle.dumps(item) for item in items]
        results = data.from_items(sent, override_num_blocks=min(len(sent), _TASKS)).map_batches(
            Worker,
            batch_size=1,
            fn_constructor_args=(make, os.getcwd(), -(-at_once // places)),
            compute=data.ActorPoolStrategy(min_size=at_once, max_size=max(at_once, min(workers, len(items)))),
            num_cpus=1,
            **_tries(data),
        )
        for row in results.iter_rows():
            value, error = pickle.loads(row["result"])
            if error is not None:
                raise error
            yield value


def _tries(data: Any) -> dict[str, int]:
    """Return arguments that end the work where a piece kills one process after the other; Ray Data would go on."""
    takes = inspect.signature(data.Dataset.map_batches).parameters
    return {"max_restarts": -1, "max_task_retries": _TRIES} if "ray_remote_args" in takes else {}


class Worker:
    """A process of the pool.

    Args:
        make: What makes the function that it calls with each item.
        folder: Folder that relative paths start from: the one in which the work was asked for.
        processes: Number of them on one machine.
    """

    def __init__(self, make: Callable[[], Callable[[Any], Any]], folder: str, processes: int) -> None:
        take_share(processes)
        self._folder = folder
        self._make: Callable[[], Callable[[Any], Any]] | None = make
        self._do: Callable[[Any], Any] | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return a row for an item: the pickled result, or the error that stands for it."""
        import numpy as np

        column = np.empty(len(batch["item"]), dtype=object)
        for place, item in enumerate(batch["item"]):
            column[place] = pickle.dumps(self._done(item))
        return {"result": column}

    def _done(self, item: bytes) -> tuple[Any, MmadBankError | None]:
        try:
            if self._do is None:  # here, so that an error is this item's and ends the work as such
                assert self._make is not None
                _enter(self._folder)
                self._do, self._make = self._make(), None
            return self._do(pickle.loads(item)), None
        except MmadBankError as error:
            return None, error


def _enter(folder: str) -> None:
    try:
        os.chdir(folder)
    except OSError as error:
        raise InputError(
            f"{folder}: expected a folder that all processes see at this path, found none ({error.strerror})"
        ) from error


@contextmanager
def _quiet() -> Iterator[Any]:
    """Yield the module ``ray.data``, which keeps the order of rows and says nothing of its own."""
    import ray.data

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # copying it reads settings that nobody has set
        context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    log = logging.getLogger("ray.data")
    level = log.level
    log.setLevel(logging.CRITICAL)  # errors are raised, and Ray would write their tracebacks as well
    try:
        with ray.data.DataContext.current(context), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")  # some versions have no other way
            yield ray.data
    finally:
        log.setLevel(level)


__all__ = ["in_order"]
