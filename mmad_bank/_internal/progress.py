"""What long work shows on a terminal: bars, what it waits for, and a line before a download. In a pipe, nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

from mmad_bank._internal.terminal import printable, say

_PATIENCE = 1.0  # seconds of silence before a terminal is told what is waited for; shorter bars go when they are done

_labels: ContextVar[tuple[str, ...]] = ContextVar("labels", default=())
_waits: list[_Wait] = []
_talking = False


@contextmanager
def within(name: str, number: int = 1, total: int = 1) -> Iterator[None]:
    """Put a name in front of what the bars in the block say: the name of a category, a bank, a method.

    Args:
        name: The name.
        number: Number of this one among them, from 1.
        total: Number of things in all; one alone is not counted.

    Example:
        >>> with within("bagel", 1, 2), within("xyz bank", 3, 3):
        ...     labelled("selecting")
        'bagel (1 of 2): xyz bank (3 of 3): selecting'
    """
    token = _labels.set((*_labels.get(), f"{name} ({number} of {total})" if total > 1 else name))
    try:
        yield
    finally:
        _labels.reset(token)


def labelled(description: str) -> str:
    """Return a description with the names in front that it belongs to."""
    return printable(": ".join((*_labels.get(), description)))


@contextmanager
def progress_bar(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on standard error while the block runs; the function it yields takes the number of units done.

    A block that ends well leaves the bar at its end, as a line that says what took how long; bars of less than a second
    go.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    for wait in _waits:
        wait.hide()
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(labelled(description), total=total, left="left")
        begin = time.monotonic()
        yield lambda done: bar.update(task, completed=done)
        bar.update(task, completed=total)
        bar.columns = bar.columns[:-2]  # nothing is left
        bar.live.transient = time.monotonic() - begin < _PATIENCE
    for wait in _waits:
        wait.begin()


def talk(wanted: bool) -> None:
    """Say whether :func:`doing` and :func:`announce` show anything (the program on a terminal, no library, says so)."""
    global _talking  # noqa: PLW0603
    _talking = wanted


def announce(line: str, *, always: bool = False) -> None:
    """Print a line on standard error, if anybody listens (or always): what is downloaded, before it is."""
    if _talking or always:
        for wait in _waits:
            wait.hide()
        say(line)
        for wait in _waits:
            wait.begin()


@contextmanager
def doing(description: str, *, until_other: bool = False) -> Iterator[None]:
    """Say what is waited for, once the block has been silent for a second: an import, a model that is loaded.

    Bars in the block take its place while they run.

    Args:
        description: What the block does.
        until_other: Whether it does that at its beginning only, until it does something else that is said.
    """
    if not _talking:
        yield
        return
    wait = _Wait(labelled(description), until_other)
    for other in _waits:
        other.hide()
    _waits.append(wait)
    wait.begin()
    try:
        yield
    finally:
        wait.hide()
        _waits.remove(wait)
        for other in _waits[-1:]:
            other.begin()


class _Wait:
    """A line with a moving sign, shown by a thread of its own: the block may be in an import for seconds."""

    def __init__(self, description: str, until_other: bool) -> None:
        self._description, self._until_other, self._begun = description, until_other, False
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._shown: Any = None

    def begin(self) -> None:
        """Show the line in a second."""
        self.hide()
        if self._begun and self._until_other:
            return
        self._begun = True
        self._timer = threading.Timer(_PATIENCE, self._show)
        self._timer.daemon = True
        self._timer.start()

    def hide(self) -> None:
        """Do not show it, or not any more."""
        if self._timer is not None:
            self._timer.cancel()
        with self._lock:
            self._timer = None
            if self._shown is not None:
                self._shown.stop()
                self._shown = None

    def _show(self) -> None:
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
        shown = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        shown.add_task(self._description, total=None)
        with self._lock, suppress(RuntimeError):  # the program may be ending
            if threading.current_thread() is self._timer:  # not hidden meanwhile
                shown.start()
                self._shown = shown
