"""A folder whose feature files are still being written."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from mmad_bank.bank.dumps.files import dumps_in

State = tuple[int, int]
"""Size in bytes, and time of the last change in nanoseconds since 1970."""


@dataclass
class _Waiting:
    state: State
    since: float
    reason: str | None = None


class FolderWatch:
    """Feature files of a folder and the folders in it, told one by one when they seem to be whole.

    A file is told when it has not changed between two looks. Whoever cannot read it says so by :meth:`refuse`: it is
    told again when it has changed, and left out when it has not for some time. A file that changes after
    it was taken is a new one.

    Args:
        folder: The folder.
        taken: Names in the folder and states of files that were taken before, as :attr:`taken` told them.
        patience: Seconds after which a file that cannot be read and does not change is left out.
        clock: Function that returns the time in seconds.

    Attributes:
        taken: States of the files that were taken, by name; one dictionary throughout. Files that are gone are
            forgotten, unless the folder has no file at all: it may be a network's that is away.
        left_out: Reasons why files were left out, by name.
        changed: When something last changed, by the clock.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> watch = FolderWatch(folder)
        >>> _ = (folder / "a.npy").write_bytes(b"...")
        >>> watch.look(), watch.look() == [folder / "a.npy"]
        ([], True)
    """

    def __init__(
        self,
        folder: Path,
        taken: Mapping[str, State] | None = None,
        *,
        patience: float = 30.0,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.folder, self.patience, self._clock = folder, patience, clock
        self.taken = {name: (int(size), int(changed)) for name, (size, changed) in (taken or {}).items()}
        self.left_out: dict[str, str] = {}
        self.changed = clock()
        self._waiting: dict[str, _Waiting] = {}

    def look(self) -> list[Path]:
        """Return files that are new and have not changed since the last look, by their names."""
        found = self._states()
        for name in [name for name in self.taken if name not in found] if found else []:
            del self.taken[name]
        self._waiting = {name: one for name, one in self._waiting.items() if name in found}
        self.left_out = {name: why for name, why in self.left_out.items() if name in found}
        ready = []
        for name, state in found.items():
            one = self._waiting.get(name)
            if one is not None and one.state == state:
                ready += [self.folder / name] if one.reason is None else []
            elif self.taken.get(name) != state:
                self._waiting[name] = _Waiting(state, self._clock())
                self.left_out.pop(name, None)
                self.changed = self._clock()
        return ready

    @contextmanager
    def taking(self, path: Path) -> Iterator[None]:
        """Count a file that was told as taken from the beginning of the block on, unless the block fails."""
        name = self._name(path)
        one = self._waiting.pop(name)
        before = self.taken.get(name)
        self.taken[name] = one.state
        try:
            yield
        except BaseException:
            self._waiting[name] = one
            if before is None:
                del self.taken[name]
            else:
                self.taken[name] = before
            raise
        self.changed = self._clock()

    def refuse(self, path: Path, reason: str) -> None:
        """Say why a file that was told cannot be used as it is."""
        self._waiting[self._name(path)].reason = reason

    def give_up(self, *, now: bool = False) -> list[str]:
        """Leave out the files that could not be read and have not changed for long, or all of these now.

        Returns:
            The reasons, for the files that were not left out before.
        """
        reasons = []
        for name, one in self._waiting.items():
            late = now or self._clock() - one.since >= self.patience
            if one.reason is not None and late and name not in self.left_out:
                self.left_out[name] = one.reason
                reasons.append(one.reason)
        return reasons

    @property
    def is_settled(self) -> bool:
        """Whether every file has been taken or could not be read, as it is now."""
        return all(one.reason is not None for one in self._waiting.values())

    def _name(self, path: Path) -> str:
        return os.fsencode(path.relative_to(self.folder)).decode("utf-8", "surrogateescape")

    def _states(self) -> dict[str, State]:
        found = {}
        for path in dumps_in(self.folder):
            try:
                status = path.stat()
            except OSError:
                continue  # it was removed or renamed meanwhile
            found[self._name(path)] = (status.st_size, status.st_mtime_ns)
        return found
