"""Files that are whole or not there: written under another name beside the target, then renamed."""

from __future__ import annotations

import glob
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the target's folder; rename it to the target when the block ends without an error.

    A reader sees the old file or the new one, never a part, and after an error or Ctrl-C the old file is still there
    and the temporary one is gone. The data reach the disk before the name does. The temporary name keeps the target's
    suffix, by which some writers choose a format.

    Raises:
        OSError: The folder is missing or cannot be written, or the disk is full.
    """
    target = Path(path)
    _remove_abandoned(target)
    handle, name = tempfile.mkstemp(prefix=f".{target.stem}.", suffix=f".partial{target.suffix}", dir=target.parent)
    partial = Path(name)
    _lock(handle)  # until this process closes it or dies
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        # mkstemp makes files private; give the result the mode that open() would have given it.
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o666 & ~umask)
        partial.replace(target)
        _sync_folder(target.parent)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None and error.strerror is not None:
            error.filename = str(target)  # a full disk does not say which file it was
        raise
    finally:
        os.close(handle)


def _lock(handle: int) -> bool:
    """Take a file's lock if nobody holds it."""
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _remove_abandoned(target: Path) -> None:
    """Remove what a killed process left beside ``target``: partial files that nobody has locked."""
    for partial in target.parent.glob(f".{glob.escape(target.stem)}.*.partial{glob.escape(target.suffix)}"):
        try:
            handle = os.open(partial, os.O_RDWR)
        except OSError:
            continue
        try:
            if _lock(handle):
                partial.unlink(missing_ok=True)
        finally:
            os.close(handle)


def _sync_folder(folder: Path) -> None:
    """Make the new name last a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def cache_dir() -> Path:
    """Return the folder for files that can be made again: ``MMAD_BANK_CACHE``, else the user's cache folder's own."""
    own = os.environ.get("MMAD_BANK_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "mmad-bank"
