"""Independent tasks on several processes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")
# Fewer tasks than this are done before new processes would have imported what they need.
_FEW = 8


def _begin() -> None:
    """Leave Ctrl-C to the parent, which ends the pool, and end with the parent should it be killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Keep SIGINT back; processes that begin meanwhile do so for good, and show no traceback of their own imports."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run_parallel(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    workers: int,
    report: Callable[[int, Result], None],
) -> None:
    """Run a function on every task and report each result with the number done so far, in the order of completion.

    With one worker or few tasks everything runs in this process. An exception ends the run: tasks that have not begun
    are dropped, those that have are finished, so that no file is left half-written.

    Args:
        function: Function at a module's top level, as processes need it.
        tasks: Arguments, one for each call.
        workers: Number of processes; new ones (``spawn``), since a fork would copy the locks of PyTorch's threads.
        report: Called in this process.
    """
    if workers <= 1 or len(tasks) <= _FEW:
        for done, task in enumerate(tasks, start=1):
            report(done, function(task))
        return
    count = min(workers, len(tasks))
    with ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=_begin) as pool:
        try:
            with _interrupts_held():  # the first task starts all processes
                futures = [pool.submit(function, task) for task in tasks]
            for done, future in enumerate(as_completed(futures), start=1):
                report(done, future.result())
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
