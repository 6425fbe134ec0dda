"""What a stopped run leaves for the next one: whoever keeps something tells, and the program says it to people."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

Describe = Callable[[], str]
"""Words what is kept just now; empty if nothing is."""
Listener = Callable[[Path, Describe], None]

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


def tell(folder: Path, describe: Describe) -> None:
    """Let the listener know, if there is one, that work in a folder can be stopped and goes on there.

    Args:
        folder: Folder in which it lies.
        describe: Words it, now and whenever it is asked again.
    """
    listener = _listener.get()
    if listener is not None:
        listener(folder, describe)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Let a function hear what is told in the block.

    Example:
        >>> with listening(lambda folder, describe: print(f"{folder} holds {describe()}")):
        ...     tell(Path("model.fit"), lambda: "the rgb bank")
        model.fit holds the rgb bank
    """
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
