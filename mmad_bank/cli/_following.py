"""The work of follow: looks into the folder, takes files, saves the bank, and stops."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mmad_bank._internal.files import state_of
from mmad_bank._internal.terminal import say
from mmad_bank.cli import _signals
from mmad_bank.cli._dumps import Reading
from mmad_bank.cli._labels import say_defective
from mmad_bank.errors import InputError

if TYPE_CHECKING:
    from mmad_bank.bank import StreamingBank

Show = Callable[[str | None, str | None], None]
"""Shows what is going on, if anything, and prints a line above it, if any."""

_FILES = "files"


class Times(NamedTuple):
    """Times in seconds, see the options of follow."""

    poll: float
    patience: float
    save_every: float
    until_idle: float | None


class Following:
    """A bank that follows a folder.

    Args:
        stream: The bank.
        path: Its file.
        folder: The folder.
        reading: Way in which files are read.
        times: Times.
        show: What a terminal shows.

    Attributes:
        files: Number of files that were taken.
    """

    def __init__(
        self, stream: StreamingBank, path: Path, folder: Path, reading: Reading, times: Times, show: Show
    ) -> None:
        from mmad_bank.bank.dumps.watching import FolderWatch

        self.stream, self.path, self.reading, self.times, self._show = stream, path, reading, times, show
        self.files = 0
        self._watch = FolderWatch(folder, taken_before(stream, path), patience=times.patience)
        self._saved_rows, self._saved_at = stream.rows_seen, time.monotonic()
        self._saved = _state(path)

    @property
    def left_out(self) -> dict[str, str]:
        """Reasons why files were left out, by path."""
        return {str(self._watch.folder / name): why for name, why in self._watch.left_out.items()}

    def run(self) -> None:
        """Follow until the folder is idle, or until a signal comes; the bank is saved then."""
        try:
            while not self._is_idle():
                for path in self._watch.look():
                    self._take(path)
                    self._save(self.times.save_every)
                self._name_left_out()
                self._save(self.times.save_every)
                self._tell()
                time.sleep(self.times.poll)
            self._name_left_out(now=True)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and len(self.stream):
                _signals.note(error, f"{self.path} is saved with {self.stream.rows_seen:,} rows seen")
            raise
        finally:
            self._save()

    def _is_idle(self) -> bool:
        limit = self.times.until_idle
        if limit is None or not self._watch.is_settled:
            return False
        return time.monotonic() - self._watch.changed >= limit

    def _take(self, path: Path) -> None:
        """Take a file, or note why that cannot be done."""
        try:
            dump = self.reading.open([path], self.stream.dim)
            with self._watch.taking(path):
                self.stream.update(dump, note={_FILES: self._watch.taken})
        except InputError as error:
            words = str(error)
            self._watch.refuse(path, words if str(path) in words else f"{path}: {words}")
            return
        self.files += 1
        say_defective(dump.sources)
        self._tell(path)

    def _name_left_out(self, *, now: bool = False) -> None:
        for reason in self._watch.give_up(now=now):
            self._show(None, f"left out: {reason}")

    def _save(self, after: float = 0.0) -> None:
        """Save the bank if it has changed, and some time has passed since the last time."""
        if after and not self.stream.has_bank:  # values that vary, to standardize by, may still come
            return
        found = _state(self.path)
        changed = self.stream.rows_seen != self._saved_rows or (len(self.stream) > 0 and found is None)
        if changed and time.monotonic() - self._saved_at >= after:
            self._check_own(found)
            self.stream.save(self.path)
            self._saved_rows, self._saved_at = self.stream.rows_seen, time.monotonic()
            self._saved = _state(self.path)

    def _check_own(self, found: tuple[int, ...] | None) -> None:
        """Refuse to write over what another program has made of the file, for instance a calibration.

        Raises:
            InputError: It is not the file that was loaded or saved here last.
        """
        if found not in (None, self._saved):
            raise InputError(
                f"BANK: expected {self.path} as it was saved last, found it changed by another program, and left it so;"
                " start follow again to go on with it"
            )

    def _tell(self, path: Path | None = None) -> None:
        stream = self.stream
        if not len(stream):
            self._show("waiting for files", None)
            return
        doing = f"took {path.name}" if path is not None else "waiting for files"
        self._show(f"{stream.rows_seen:,} rows seen, {len(stream):,} vectors; {doing}", None)


def _state(path: Path) -> tuple[int, ...] | None:
    """Return what tells a file and its contents apart; None if there is none."""
    try:
        return state_of(path)
    except OSError:
        return None


def taken_before(stream: StreamingBank, path: Path) -> dict[str, tuple[int, int]]:
    """Return which files a bank has taken.

    Raises:
        InputError: The note in its file is another program's.
    """
    files = stream.note.get(_FILES, {})
    try:
        return {str(name): (int(size), int(changed)) for name, (size, changed) in files.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{path}: expected the files that were taken in its note, found something else") from error


@contextmanager
def status_line(wanted: bool) -> Iterator[Show]:
    """Show what is going on in one line on standard error, with lines above it; without it, the lines alone."""
    if not wanted:
        yield lambda doing, line: None if line is None else say(line)
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from mmad_bank._internal.terminal import printable

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("waiting for files", total=None)

        def show(doing: str | None, line: str | None) -> None:
            if line is not None:
                bar.stop()
                say(line)
                bar.start()
            if doing is not None:
                bar.update(task, description=printable(doing))

        yield show
