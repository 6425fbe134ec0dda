"""The one writer of files: what it writes is whole or not there.

It writes under another name beside the target (see :mod:`mmad_bank._internal.partial`), brings the data to the disk,
and gives them the target's name in one step. :mod:`mmad_bank._internal.folders` writes folders likewise.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmad_bank._internal.partial import (
    AnyPath,
    create_partial,
    former_names,
    mode_of,
    naming,
    remove_abandoned,
    suffix_of,
    sync,
)
from mmad_bank.errors import InputError


@contextmanager
def replacing(path: AnyPath) -> Iterator[Path]:
    """Yield the path of a fresh, empty file in the target's folder; give it the target's name when the block ends well.

    A reader sees the old file or the new one, never a part, and after an error or Ctrl-C the old file is still there
    and the fresh one is gone. The data reach the disk before the name does. The fresh name keeps the target's suffix,
    by which some writers choose a format. The block writes into the file that it is given: a writer that puts another
    file in its place would lose the lock that tells other processes that the file is in use.

    The mode is the old file's, or what the umask leaves of 0666. A link stays a link: the file that it leads to is
    replaced.

    Raises:
        InputError: The folder is missing or cannot be written, or the disk is full; the message names the target.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "numbers.txt"
        >>> with replacing(target) as partial:
        ...     _ = partial.write_text("1 2 3")
        >>> target.read_text()
        '1 2 3'
    """
    target = Path(os.path.realpath(path))
    with naming(path, target):
        mode = mode_of(target, stat.S_ISREG, "a file")
        remove_abandoned(target, former_names(target, suffix_of(target)))
        partial, handle = create_partial(target)
    try:
        with naming(path, partial):
            yield partial
            sync(partial)
            if mode is not None:
                partial.chmod(mode)
            partial.replace(target)
            sync(target.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)


def write_text(path: AnyPath, text: str) -> None:
    """Write a UTF-8 text file, whole or not at all, as :func:`replacing` does.

    Names of files whose bytes are no UTF-8 are escaped, as they are on a terminal.
    """
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def check_not_current(path: AnyPath) -> None:
    """Refuse to replace the folder that the process works in, or one above it: its relative paths would lead nowhere.

    Raises:
        InputError: It is one of these.
    """
    target, current = Path(os.path.realpath(path)), Path(os.path.realpath("."))
    if target == current or target in current.parents:
        which = "the current folder" if target == current else "above the current folder"
        raise InputError(f"{path}: cannot be replaced as a whole, as it is {which}; expected a new folder below it")


def real_path(path: AnyPath) -> Path:
    """Return a path with all links followed, as far as they lead anywhere.

    A link that leads to itself stays as it is: ``Path.resolve`` raises an error for it, and whoever opens the file has
    a better one.
    """
    return Path(os.path.realpath(path))


def named_after(path: AnyPath, ending: str) -> Path:
    """Return the path of a folder beside another that is called like it, with an ending: ``model.fit`` of ``model``.

    Raises:
        InputError: The path is the root of the file system, which nothing lies beside.

    Example:
        >>> str(named_after("data/model", ".fit"))
        'data/model.fit'
    """
    whole = Path(path)
    if whole.name in ("", ".."):
        whole = Path(os.path.realpath(path))
    if not whole.name:
        raise InputError(f"{path}: expected a place in a folder, found the root of the file system")
    return whole.with_name(f"{whole.name}{ending}")


def changed(path: AnyPath) -> int:
    """Tell when a file was changed, put in its place, or given other permissions, in nanoseconds since 1970.

    Raises:
        OSError: There is none.
    """
    found = os.stat(path)
    return max(found.st_mtime_ns, found.st_ctime_ns)  # a copy or a file moved there may keep the time of its content


def state_of(path: AnyPath) -> tuple[int, int, int, int]:
    """Return what is another when a file has been replaced or written to.

    Raises:
        OSError: There is none.
    """
    found = os.stat(path)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def reserve(path: AnyPath, size: int) -> None:
    """Take the disk space of a file that will be written through a mapping.

    A mapping of a sparse file ends the process by a signal when the disk is full; a file whose space is reserved
    cannot.

    Raises:
        InputError: The disk is full.
    """
    with naming(path, Path(path)):
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if size > 0 and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(handle, 0, size)
        finally:
            os.close(handle)


def cache_dir() -> Path:
    """Return the folder for files that can be made again: ``MMAD_BANK_CACHE``, else the user's cache folder's own."""
    own = os.environ.get("MMAD_BANK_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "mmad-bank"
