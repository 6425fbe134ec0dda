"""Independent tasks on several processes."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")
# Fewer tasks than this are done before new processes would have imported what they need.
_FEW = 8


def _ignore_interrupts() -> None:
    """Leave Ctrl-C to the parent: it ends the pool, and the terminal shows no traceback of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


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
        function: Of a module's top level, as processes need it.
        tasks: What it is called with.
        workers: How many processes; new ones (``spawn``), since a fork would copy the locks of PyTorch's threads.
        report: Called in this process.
    """
    if workers <= 1 or len(tasks) <= _FEW:
        for done, task in enumerate(tasks, start=1):
            report(done, function(task))
        return
    count = min(workers, len(tasks))
    with ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=_ignore_interrupts) as pool:
        try:
            futures = [pool.submit(function, task) for task in tasks]
            for done, future in enumerate(as_completed(futures), start=1):
                report(done, future.result())
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
