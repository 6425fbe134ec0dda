"""Files and folders on the way to their place: fresh names beside the target, their locks, and what is left of them.

What a killed process left behind has our name and no lock: the next writer in the same folder removes it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mmad_bank.errors import InputError, MmadBankError

AnyPath = str | os.PathLike[str]

_OURS = re.compile(r"\..*\.mmad-[0-9a-f]{8}\.partial(\.[^.]*)?", re.DOTALL)
_WAIT = 30.0  # seconds that a writer waits for the readers of the folder that it replaces
_POLL = 0.005  # seconds
_TRIES = 100  # fresh names until the place is taken for one where none can be made
_LONGEST_SUFFIX = 24  # bytes; what is longer is no suffix that says a format
_MARK = len(".mmad-01234567.partial")
_FULL = (errno.ENOSPC, errno.EDQUOT)
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EINVAL)  # some network file systems


def is_partial(path: AnyPath, target: AnyPath) -> bool:
    """Tell whether a path is what a writer of the target makes on the way, and leaves behind if it is killed."""
    name, whole = os.path.basename(path), Path(target)
    return any(pattern.fullmatch(name) for pattern in (_OURS, former_names(whole, suffix_of(whole))))


# What goes wrong, in words.


@contextmanager
def naming(path: AnyPath, partial: Path) -> Iterator[None]:
    """Let errors of writing name the user's path, not the fresh one, and say that the disk is full if it is."""
    shown = os.fspath(path)
    try:
        yield
    except OSError as error:
        if not _concerns(error, partial):
            raise
        name = str(_filename(error) or partial)
        name = name.replace(str(partial), shown, 1) if name.startswith(str(partial)) else shown
        raise InputError(f"{name}: cannot be written ({_reason(error, partial)})") from error
    except MmadBankError as error:
        error.args = tuple(x.replace(str(partial), shown) if isinstance(x, str) else x for x in error.args)
        raise
    except RuntimeError as error:  # PyTorch's word for what goes wrong with a file
        if not _is_full(partial):
            raise
        raise InputError(f"{shown}: cannot be written (the disk is full)") from error


def _filename(error: OSError) -> str | None:
    return os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes, os.PathLike)) else None


def _concerns(error: OSError, partial: Path) -> bool:
    """Whether an error is about what is written (or does not say), not about another file that the block used."""
    name = _filename(error)
    if name is None or name.startswith(str(partial)):
        return True
    # What this module itself touches: the folder, its parents, and fresh names in it.
    return name in (str(parent) for parent in partial.parents) or bool(_OURS.fullmatch(os.path.basename(name)))


def _reason(error: OSError, partial: Path) -> str:
    if error.errno in _FULL or (error.errno is None and _is_full(partial)):
        return f"the disk is full: {os.strerror(error.errno or errno.ENOSPC)}"
    if error.errno == errno.ENOENT and not partial.parent.is_dir():
        return f"its folder {partial.parent} does not exist"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{error.strerror}: its folder {partial.parent} is not writable"
    if error.errno in (errno.EBUSY, errno.EXDEV):
        return f"{error.strerror}: a mount point cannot be replaced; choose a place within it"
    return error.strerror or str(error)


def _is_full(partial: Path) -> bool:
    """Whether nothing more can be written: some writers report a short write without its cause."""
    try:
        with tempfile.TemporaryFile(dir=partial if partial.is_dir() else partial.parent) as file:
            file.write(bytes(1 << 16))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno in _FULL
    return False


def mode_of(target: Path, is_kind: Callable[[int], bool], kind: str) -> int | None:
    """Return the permissions of what is to be replaced, None if there is nothing; refuse what is of another kind."""
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return None
    if not is_kind(mode):
        found = "a folder" if stat.S_ISDIR(mode) else "a file" if stat.S_ISREG(mode) else "a device or pipe"
        raise InputError(f"{target}: expected {kind} to write, found {found}")
    return stat.S_IMODE(mode)


# Fresh names, their locks, and what killed processes left.


def create_partial(target: Path, *, folder: bool = False) -> tuple[Path, int]:
    """Make a fresh file or folder beside the target and take its lock; return its path and the lock's handle."""
    suffix = "" if folder else suffix_of(target)
    stem = cut_name(target.name.removesuffix(suffix), len(os.fsencode(suffix)))
    for left in reversed(range(_TRIES)):
        partial = target.with_name(f".{stem}.mmad-{secrets.token_hex(4)}.partial{suffix}")
        try:
            if folder:
                partial.mkdir()
                handle = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
            else:
                handle = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            continue
        except FileNotFoundError:
            if left == 0 or not target.parent.is_dir():
                raise
            continue  # another writer took it for abandoned before it was locked
        lock(handle, fcntl.LOCK_EX)
        if is_at(handle, partial):
            return partial, handle
        os.close(handle)
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(target))


def suffix_of(target: Path) -> str:
    return target.suffix if len(os.fsencode(target.suffix)) <= _LONGEST_SUFFIX else ""


def cut_name(name: str, more: int = 0) -> str:
    """Shorten a name, if need be, so that the fresh name is no longer than file systems allow (255 bytes)."""
    data, room = os.fsencode(name), 255 - 1 - _MARK - more
    if len(data) <= room:
        return name
    digest = hashlib.blake2b(data, digest_size=4).hexdigest()
    return f"{os.fsdecode(data[: room - 9])}-{digest}"


def former_names(target: Path, suffix: str) -> re.Pattern[str]:
    """What versions before 0.2 called their fresh names: the target's own, without our mark."""
    stem = re.escape(target.name.removesuffix(suffix))
    return re.compile(rf"\.{stem}\.[0-9a-z_]{{8}}\.partial{re.escape(suffix)}", re.DOTALL)


def moved_away(target: Path) -> re.Pattern[str]:
    """Names of an old folder between two renames."""
    return re.compile(rf"\.{re.escape(cut_name(target.name))}\.(mmad-)?[0-9a-z_]{{8}}\.old", re.DOTALL)


_LISTED: dict[str, float] = {}
"""When each folder may be listed again: one of very many files is not listed again for each of them."""


def remove_abandoned(target: Path, *more: re.Pattern[str]) -> None:
    """Remove what killed processes left in the target's folder: our names that nobody has locked."""
    folder, begin = target.parent, time.monotonic()
    if begin < _LISTED.get(str(folder), 0.0):
        return
    try:
        names = os.listdir(folder)
    except OSError:
        return  # a folder that may be written but not listed
    end = time.monotonic()
    _LISTED[str(folder)] = end + 20 * (end - begin)
    for name in names:
        if any(pattern.fullmatch(name) for pattern in (_OURS, *more)):
            _remove_abandoned(folder / name)


def _remove_abandoned(partial: Path) -> None:
    """Remove a file or folder unless somebody holds its lock."""
    try:
        folder = partial.is_dir()
        handle = os.open(partial, (os.O_RDONLY | os.O_DIRECTORY if folder else os.O_RDWR) | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_at(handle, partial):
            remove_tree(partial) if folder else partial.unlink(missing_ok=True)
    except OSError:
        pass  # in use, or no locks here
    finally:
        os.close(handle)


def remove_tree(folder: Path) -> None:
    """Remove a folder with all that is in it, as far as that is possible."""
    shutil.rmtree(folder, ignore_errors=True)


def lock(handle: int, kind: int) -> None:
    """Take a lock, or go without one after ``_WAIT`` seconds and where the file system has none."""
    end = time.monotonic() + _WAIT
    while True:
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in NO_LOCKS or time.monotonic() > end:
                return
            time.sleep(_POLL)
        else:
            return


def unlock(handle: int) -> None:
    """Give a lock back: closing alone would leave it to processes that were forked meanwhile."""
    try:
        fcntl.flock(handle, fcntl.LOCK_UN)
    except OSError:
        pass
    finally:
        os.close(handle)


def is_at(handle: int, path: Path) -> bool:
    """Whether a path still leads to what was opened."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except OSError:
        return False


def sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # a file system that has no such thing
            raise
    finally:
        os.close(handle)
