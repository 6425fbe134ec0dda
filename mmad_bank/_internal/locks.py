"""Locks that a forked child finds open."""

from __future__ import annotations

import os
import threading
from types import TracebackType
from weakref import WeakSet


class ForkedOpen:
    """A lock for ``with``, which one thread may take several times, and which is open in a forked child.

    A child has a copy of its parent's locks but not of the threads that hold them, and would wait for them for ever.
    So what a lock guards must be whole at every moment: change several values in one step.

    Example:
        >>> lock = ForkedOpen()
        >>> with lock, lock:
        ...     pass
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._in_child = False
        _ALL.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._lock.release()
        except RuntimeError:
            if not self._in_child:  # there, what the thread that forked has taken is open already
                raise

    def open_in_child(self) -> None:
        """Open it: what the thread that forked has taken is nobody's here."""
        self._lock, self._in_child = threading.RLock(), True


_ALL: WeakSet[ForkedOpen] = WeakSet()


def _open_all() -> None:
    for lock in list(_ALL):
        lock.open_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_open_all)
