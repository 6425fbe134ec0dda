"""The one writer of files and the one writer of folders: what they write is whole or not there.

Both write under another name beside the target, bring the data to the disk, and give them the target's name in one
step. Each holds a lock on what it writes. What a killed process left behind has our name and no lock: the next writer
in the same folder removes it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
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
from typing import TypeVar

from mmad_bank.errors import InputError, MmadBankError

AnyPath = str | os.PathLike[str]
_Result = TypeVar("_Result")

_OURS = re.compile(r"\..*\.mmad-[0-9a-f]{8}\.partial(\.[^.]*)?", re.DOTALL)
_WAIT = 30.0  # seconds that a writer waits for the readers of the folder that it replaces
_POLL = 0.005  # seconds
_TRIES = 100
_LONGEST_SUFFIX = 24  # bytes; what is longer is no suffix that says a format
_MARK = len(".mmad-01234567.partial")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EINVAL)  # some network file systems
_FDCWD, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of renameat2(2)


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
    with _naming(path, target):
        mode = _mode_of(target, stat.S_ISREG, "a file")
        _collect(target, _former(target, _suffix(target)))
        partial, handle = _create(target)
    try:
        with _naming(path, partial):
            yield partial
            _sync(partial)
            if mode is not None:
                partial.chmod(mode)
            partial.replace(target)
            _sync(target.parent)
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
    with _naming(path, target):
        target.parent.mkdir(parents=True, exist_ok=True)
        recover_folder(target)
        mode = _mode_of(target, stat.S_ISDIR, "a folder")
        check_not_current(path)
        _collect(target, _former(target, ""), _moved_away(target))
        partial, handle = _create(target, folder=True)
    try:
        with _naming(path, partial):
            yield partial
            _sync_tree(partial)
            if mode is not None:
                partial.chmod(mode)
            _swap(partial, target)
            _sync(target.parent)
    finally:
        _remove_tree(partial)  # after an error the new folder, after a swap the old one
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
            _lock(handle, fcntl.LOCK_SH)
            if not _is_at(handle, target):
                continue
            try:
                result = read()
            except Exception:
                if _is_at(handle, target):
                    raise
                continue
            if _is_at(handle, target):
                return result
        finally:
            _unlock(handle)
    return read()


def recover_folder(path: AnyPath) -> None:
    """Bring back a folder that a killed process moved away and did not replace; usually there is nothing to do."""
    target = Path(path)
    if os.path.lexists(target):
        return
    try:
        names = [name for name in os.listdir(target.parent) if _moved_away(target).fullmatch(name)]
        for name in sorted(names, key=lambda name: (target.parent / name).stat().st_mtime, reverse=True)[:1]:
            os.rename(target.parent / name, target)
    except OSError:
        return  # somebody else has mended it, or may not be mended by this user: whoever reads will say what is missing


def is_partial(path: AnyPath, target: AnyPath) -> bool:
    """Tell whether a path is what a writer of the target makes on the way, and leaves behind if it is killed."""
    name, whole = os.path.basename(path), Path(target)
    return any(pattern.fullmatch(name) for pattern in (_OURS, _former(whole, _suffix(whole))))


def check_not_current(path: AnyPath) -> None:
    """Refuse to replace the folder that the process works in, or one above it: its relative paths would lead nowhere.

    Raises:
        InputError: It is one of these.
    """
    target, current = Path(os.path.realpath(path)), Path(os.path.realpath("."))
    if target == current or target in current.parents:
        which = "the current folder" if target == current else "above the current folder"
        raise InputError(f"{path}: cannot be replaced as a whole, as it is {which}; expected a new folder below it")


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
        if error.errno not in _NO_LOCKS:
            os.close(handle)
            raise InputError(f"{folder}: another run works in this folder; wait for its end, or name others") from None
    try:
        yield
    finally:
        if made and path.is_dir() and not os.listdir(path):
            path.rmdir()
        _unlock(handle)


def changed(path: AnyPath) -> int:
    """Tell when a file was changed, put in its place, or given other permissions, in nanoseconds since 1970.

    Raises:
        OSError: There is none.
    """
    found = os.stat(path)
    return max(found.st_mtime_ns, found.st_ctime_ns)  # a copy or a file moved there may keep the time of its content


def reserve(path: AnyPath, size: int) -> None:
    """Take the disk space of a file that will be written through a mapping.

    A mapping of a sparse file ends the process by a signal when the disk is full; a file whose space is reserved
    cannot.

    Raises:
        InputError: The disk is full.
    """
    with _naming(path, Path(path)):
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


# What goes wrong, in words.


@contextmanager
def _naming(path: AnyPath, partial: Path) -> Iterator[None]:
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


def _mode_of(target: Path, is_kind: Callable[[int], bool], kind: str) -> int | None:
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


def _create(target: Path, *, folder: bool = False) -> tuple[Path, int]:
    """Make a fresh file or folder beside the target and take its lock; return its path and the lock's handle."""
    suffix = "" if folder else _suffix(target)
    stem = _cut(target.name.removesuffix(suffix), len(os.fsencode(suffix)))
    while True:
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
            if not target.parent.is_dir():
                raise
            continue  # another writer took the folder for abandoned before it was locked
        _lock(handle, fcntl.LOCK_EX)
        if _is_at(handle, partial):
            return partial, handle
        os.close(handle)


def _suffix(target: Path) -> str:
    return target.suffix if len(os.fsencode(target.suffix)) <= _LONGEST_SUFFIX else ""


def _cut(name: str, more: int = 0) -> str:
    """Shorten a name, if need be, so that the fresh name is no longer than file systems allow (255 bytes)."""
    data, room = os.fsencode(name), 255 - 1 - _MARK - more
    if len(data) <= room:
        return name
    digest = hashlib.blake2b(data, digest_size=4).hexdigest()
    return f"{os.fsdecode(data[: room - 9])}-{digest}"


def _former(target: Path, suffix: str) -> re.Pattern[str]:
    """What versions before 0.2 called their fresh names: the target's own, without our mark."""
    stem = re.escape(target.name.removesuffix(suffix))
    return re.compile(rf"\.{stem}\.[0-9a-z_]{{8}}\.partial{re.escape(suffix)}", re.DOTALL)


def _moved_away(target: Path) -> re.Pattern[str]:
    """Names of an old folder between two renames."""
    return re.compile(rf"\.{re.escape(_cut(target.name))}\.(mmad-)?[0-9a-z_]{{8}}\.old", re.DOTALL)


_LISTED: dict[str, float] = {}
"""By folder, when it may be listed again: one of very many files is not listed again for each of them."""


def _collect(target: Path, *more: re.Pattern[str]) -> None:
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
        if _is_at(handle, partial):
            _remove_tree(partial) if folder else partial.unlink(missing_ok=True)
    except OSError:
        pass  # in use, or no locks here
    finally:
        os.close(handle)


def _remove_tree(folder: Path) -> None:
    """Remove a folder with all that is in it, as far as that is possible."""
    shutil.rmtree(folder, ignore_errors=True)


def _lock(handle: int, kind: int) -> None:
    """Take a lock, or go without one after ``_WAIT`` seconds and where the file system has none."""
    end = time.monotonic() + _WAIT
    while True:
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS or time.monotonic() > end:
                return
            time.sleep(_POLL)
        else:
            return


def _unlock(handle: int) -> None:
    """Give a lock back: closing alone would leave it to processes that were forked meanwhile."""
    try:
        fcntl.flock(handle, fcntl.LOCK_UN)
    except OSError:
        pass
    finally:
        os.close(handle)


def _is_at(handle: int, path: Path) -> bool:
    """Whether a path still leads to what was opened."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except OSError:
        return False


# Folders.


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
            _lock(handle, fcntl.LOCK_EX)  # its readers end first
            if _is_at(handle, target) and (_exchange(partial, target) or _exchange_slowly(partial, target)):
                return
        finally:
            _unlock(handle)
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
    away = target.with_name(f".{_cut(target.name)}.mmad-{secrets.token_hex(4)}.old")
    os.rename(target, away)
    if not _renamed(partial, target):
        _remove_tree(away)
        return False
    _remove_tree(away)
    return True


def _sync_tree(folder: Path) -> None:
    """Bring all files of a folder to the disk, and the folders' lists of names."""
    for root, _, files in os.walk(folder):
        for file in files:
            path = Path(root, file)
            if path.is_file() and not path.is_symlink():
                _sync(path)
        _sync(Path(root))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # a file system that has no such thing
            raise
    finally:
        os.close(handle)
