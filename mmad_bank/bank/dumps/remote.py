"""Files behind addresses (``s3://``, ``https://``, ``github://``), read by fsspec in whichever process needs them.

A process copies such a file once, to a file without a name, which is gone with the process.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import urlsplit

from mmad_bank._internal.checks import ArrayLike
from mmad_bank._internal.decoding import decoding
from mmad_bank._internal.extras import import_extra
from mmad_bank.bank.dumps.files import SUFFIXES, read_contents
from mmad_bank.bank.dumps.stored import FILES_OPEN, Contents, Stored
from mmad_bank.errors import InputError

_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):/(/?)(.*)", re.DOTALL)  # one letter is a drive of Windows
_OPEN_FILES = Path("/proc/self/fd")


def address_of(path: str | os.PathLike[str]) -> str | None:
    """Return the address that a path is; None if it is a path. ``Path`` makes one slash of two.

    Example:
        >>> address_of("s3://bucket/a.npy"), address_of(Path("s3://bucket/a.npy")), address_of("a.npy")
        ('s3://bucket/a.npy', 's3://bucket/a.npy', None)
        >>> address_of(Path("file:///data/a.npy"))
        'file:///data/a.npy'
    """
    text = os.fspath(path)
    found = _ADDRESS.fullmatch(text)
    if found is None or found[2]:
        return None if found is None else text
    return f"{found[1]}://{'/' if found[1] in ('file', 'local') else ''}{found[3]}"


def read_address(address: str) -> Contents:
    """Look into a file behind an address.

    Raises:
        InputError: It cannot be had, is damaged, or of another format.
        MissingExtraError: fsspec is not installed.
    """
    suffix = _name(address).suffix
    if suffix.lower() not in SUFFIXES:
        raise InputError(f"{address}: expected a {', '.join(SUFFIXES)} file, found {suffix!r}")
    copy = _copy(address)
    contents, digest = copy.contents, copy.digest

    def open_array(key: str) -> Stored:
        array = _copy(address).open(key)
        name = address if len(contents.entries) == 1 else f"{address}, {key}"
        return Stored(name, array.shape, partial(_values, address, digest, key))

    return Contents(address, contents.entries, open_array, contents.names, contents.kind)


def _name(address: str) -> PurePosixPath:
    text = urlsplit(address)._replace(query="", fragment="").geturl() if address.startswith("http") else address
    return PurePosixPath(text)


def _values(address: str, digest: bytes, key: str, first: int, count: int) -> ArrayLike:
    copy = _copy(address)  # held while it is read
    if copy.digest != digest:
        raise InputError(f"{address}: expected the file as it was when it was opened, found one with other content")
    return copy.open(key).values(first, count)


class _Copy:
    """A file's copy on this machine, and what it holds; another process makes its own."""

    def __init__(self, address: str) -> None:
        fsspec = import_extra("fsspec", "fsspec", f"reading {address}", "ray")
        self._address, suffix = address, _name(address).suffix
        if _OPEN_FILES.is_dir():
            self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (it is there as long as the copy)
            self._path = _OPEN_FILES / str(self._file.fileno())
        else:
            self._file = tempfile.NamedTemporaryFile(suffix=suffix)  # noqa: SIM115
            self._path = Path(self._file.name)
        with decoding(address, "cannot be fetched"):
            system, place = fsspec.core.url_to_fs(address)
            system.get_file(place, str(self._path))
            self.digest = _digest(self._path)
        with self._naming():
            self.contents = read_contents(self._path, suffix.lower())
        self._arrays: dict[str, Stored] = {}

    def open(self, key: str) -> Stored:
        """Open an array."""
        if key not in self._arrays:
            with self._naming():
                self._arrays[key] = self.contents.open(key)
        return self._arrays[key]

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Name the address in errors about its copy."""
        try:
            yield
        except InputError as error:
            raise InputError(str(error).replace(str(self._path), self._address)) from error


def _digest(path: Path) -> bytes:
    found = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.digest()


_copy = lru_cache(maxsize=FILES_OPEN)(_Copy)
