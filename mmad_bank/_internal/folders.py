"""The one writer of folders, and what its readers need.

A folder is filled beside its target (see :mod:`mmad_bank._internal.partial`), its files reach the disk, and the two
change places in one step.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from mmad_bank._internal.files import check_not_current
from mmad_bank._internal.partial import (
    NO_LOCKS,
    AnyPath,
    create_partial,
    cut_name,
    former_names,
    is_at,
    lock,
    mode_of,
    moved_away,
    naming,
    remove_abandoned,
    remove_tree,
    sync,
    unlock,
)
from mmad_bank.errors import InputError

_Result = TypeVar("_Result")

_TRIES = 100
_FDCWD, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of renameat2(2)


@contextmanager
def replacing_folder(path: AnyPath) -> Iterator[Path]:
    """Yield the path of a fresh, empty folder beside the target; put it in the target's place when the block ends well.

    A reader (:func:`read_folder`) sees the old folder or the new one, whole. All files reach the disk first. The two
    folders are exchanged in one step where the system can do that (Linux, most file systems); elsewhere by two renames,
    and what a crash between them leaves is mended by the next writer or reader. The old folder is removed afterwards:
    whether it may be is the caller's business, who looks before.

    The folder's mode is the old one's, or what the umask leaves of 0777; the files' is what the block gives them.
    Missing parents are made. A link stays a link.

    Raises:
        InputError: The target is no folder, or the current one, its parent cannot be written, or the disk is full;
            the message names the target.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "numbers"
        >>> for text in ("1 2 3", "4"):
        ...     with replacing_folder(target) as partial:
        ...         _ = (partial / "numbers.txt").write_text(text)
        >>> (target / "numbers.txt").read_text()
        '4'
    """
    target = Path(os.path.realpath(path))
    with naming(path, target):
        target.parent.mkdir(parents=True, exist_ok=True)
        recover_folder(target)
        mode = mode_of(target, stat.S_ISDIR, "a folder")
        check_not_current(path)
        remove_abandoned(target, former_names(target, ""), moved_away(target))
        partial, handle = create_partial(target, folder=True)
    try:
        with naming(path, partial):
            yield partial
            _sync_tree(partial)
            if mode is not None:
                partial.chmod(mode)
            _swap(partial, target)
            sync(target.parent)
    finally:
        remove_tree(partial)  # after an error the new folder, after a swap the old one
        os.close(handle)


def read_folder(path: AnyPath, read: Callable[[], _Result]) -> _Result:
    """Return ``read()``, which reads files of a folder, all of them of one state of the folder.

    A writer (:func:`replacing_folder`) waits until it has ended; and should the folder be replaced all the same (by
    other means, or on a file system without locks), ``read`` is called again.
    """
    target = Path(os.path.realpath(path))
    for _ in range(_TRIES):
        try:
            handle = _open_folder(target)
        except OSError:
            break  # not there, or not for this user: ``read`` says so
        try:
            lock(handle, fcntl.LOCK_SH)
            if not is_at(handle, target):
                continue
            try:
                result = read()
            except Exception:
                if is_at(handle, target):
                    raise
                continue
            if is_at(handle, target):
                return result
        finally:
            unlock(handle)
    return read()


def recover_folder(path: AnyPath) -> None:
    """Bring back a folder that a killed process moved away and did not replace; usually there is nothing to do."""
    target = Path(path)
    if os.path.lexists(target):
        return
    try:
        names = [name for name in os.listdir(target.parent) if moved_away(target).fullmatch(name)]
        for name in sorted(names, key=lambda name: (target.parent / name).stat().st_mtime, reverse=True)[:1]:
            os.rename(target.parent / name, target)
    except OSError:
        return  # somebody else has mended it, or may not be mended by this user: whoever reads will say what is missing


@contextmanager
def working_alone(folder: AnyPath) -> Iterator[None]:
    """Keep a folder of intermediate files, which is made if need be, to this process while the block runs.

    Another one would cut files that this one has mapped. Where the file system has no locks nothing is kept.

    Raises:
        InputError: Another process works in it, or it cannot be made.
    """
    path = Path(folder)
    made = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror or error})") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            os.close(handle)
            raise InputError(f"{folder}: another run works in this folder; wait for its end, or name others") from None
    try:
        yield
    finally:
        if made and path.is_dir() and not os.listdir(path):
            path.rmdir()
        unlock(handle)


def _open_folder(target: Path) -> int:
    try:
        return os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        recover_folder(target)
    return os.open(target, os.O_RDONLY | os.O_DIRECTORY)


def _swap(partial: Path, target: Path) -> None:
    """Let the fresh folder and the target change places: the old one, if there was any, is at ``partial`` then."""
    for _ in range(_TRIES):
        try:
            handle = _open_folder(target)
        except FileNotFoundError:
            if _renamed(partial, target):
                return
            continue
        try:
            lock(handle, fcntl.LOCK_EX)  # its readers end first
            if is_at(handle, target) and (_exchange(partial, target) or _exchange_slowly(partial, target)):
                return
        finally:
            unlock(handle)
    raise OSError(errno.EBUSY, "others replace it all the time", str(target))


def _renamed(source: Path, target: Path) -> bool:
    """Rename; False if the target is there meanwhile."""
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where the system cannot."""
    call = _renameat2()
    if call is None:
        return False
    if call(_FDCWD, os.fsencode(one), _FDCWD, os.fsencode(other), _EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))


@functools.cache
def _renameat2() -> Callable[..., int] | None:
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return None  # not Linux, or an old C library
    call.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    call.restype = ctypes.c_int
    return call


def _exchange_slowly(partial: Path, target: Path) -> bool:
    """Exchange two folders by renames; False if the target came back meanwhile (see :func:`recover_folder`)."""
    away = target.with_name(f".{cut_name(target.name)}.mmad-{secrets.token_hex(4)}.old")
    os.rename(target, away)
    if not _renamed(partial, target):
        remove_tree(away)
        return False
    remove_tree(away)
    return True


def _sync_tree(folder: Path) -> None:
    """Bring all files of a folder to the disk, and the folders' lists of names."""
    for root, _, files in os.walk(folder):
        for file in files:
            path = Path(root, file)
            if path.is_file() and not path.is_symlink():
                sync(path)
        sync(Path(root))
