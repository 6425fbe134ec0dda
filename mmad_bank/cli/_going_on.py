"""Commands that can be stopped: one line says what they go on with, and the last line that they can."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmad_bank._internal.kept import Describe, listening
from mmad_bank._internal.progress import announce
from mmad_bank.cli import _signals


@contextmanager
def going_on() -> Iterator[None]:
    """Say on standard error what an earlier run of the same command has left, in a line for each folder.

    When Ctrl-C or SIGTERM ends the block, the command's last line says that it goes on, and with what; where nothing is
    kept, nothing is said.
    """
    told: dict[Path, Describe] = {}

    def hear(folder: Path, describe: Describe) -> None:
        found = "" if folder in told else describe()  # a folder may be opened again
        told[folder] = describe
        if found:
            announce(f"going on: {folder} holds {found}", always=True)

    with listening(hear):
        try:
            yield
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) or _signals.received():
                kept = [f"{folder} holds {words}" for folder, words in _described(told)]
                if kept:
                    _signals.note(error, f"the same command goes on from here: {'; '.join(kept)}")
            raise


def _described(told: dict[Path, Describe]) -> Iterator[tuple[Path, str]]:
    for folder, describe in told.items():
        words = describe()
        if words:
            yield folder, words
