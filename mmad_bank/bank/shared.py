"""A bank that goes to other processes by the name of its file."""

from __future__ import annotations

import os
from typing import Any
from weakref import WeakValueDictionary

from mmad_bank._internal.files import state_of
from mmad_bank._internal.locks import ForkedOpen
from mmad_bank.bank.memory_bank import MemoryBank
from mmad_bank.errors import InputError

_LOADED: WeakValueDictionary[tuple[Any, ...], MemoryBank] = WeakValueDictionary()
_LOADING = ForkedOpen()


class SharedBank:
    """A bank file for many processes: what is pickled is its path, and each process maps the file at the first use.

    A :class:`MemoryBank` takes its vectors along when it is pickled, so that every worker has a copy. Of a shared bank
    all processes have the same pages of the file in memory; only the search copy is each one's own (the smallest is
    that of ``bank_precision="int8"``). Within a process, shared banks of one file and with the same arguments are one
    bank.

    The file must stay where it is. A process that opens it after it was replaced gets the new one.

    Args:
        path: The file that :meth:`MemoryBank.save` has written.
        arguments: Keyword arguments of :meth:`MemoryBank.load`; vectors are mapped, whatever their size, unless
            ``mapped`` says otherwise.

    Raises:
        InputError: There is no such file.

    Example:
        >>> import pathlib, pickle, tempfile, torch
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "line.bank"
        >>> MemoryBank(torch.rand(5000, 64)).save(path)
        >>> shared = SharedBank(path, bank_precision="int8")
        >>> len(pickle.dumps(shared)) < 1000, len(shared.bank)
        (True, 5000)
        >>> pickle.loads(pickle.dumps(shared)).bank is shared.bank
        True
    """

    def __init__(self, path: str | os.PathLike[str], **arguments: Any) -> None:
        self.path = os.path.abspath(path)
        self.arguments = {"mapped": True, **arguments}
        self._bank: MemoryBank | None = None
        if not os.path.isfile(self.path):
            raise InputError(f"{path}: no such bank file")

    def __repr__(self) -> str:
        return f"SharedBank({self.path!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_bank": None}

    @property
    def bank(self) -> MemoryBank:
        """The bank, loaded at the first use in a process.

        Raises:
            InputError: The file is gone or cannot be read.
            FormatError: It is no bank file, truncated or altered.
        """
        bank = self._bank
        if bank is None:
            with _LOADING:  # threads that need it first at the same time load it once
                bank = self._bank = self._bank or self._loaded()
        return bank

    def _loaded(self) -> MemoryBank:
        try:
            file = state_of(self.path)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error.strerror or error})") from error
        key = (self.path, file, *sorted((name, str(value)) for name, value in self.arguments.items()))
        bank = _LOADED.get(key)
        if bank is None:
            bank = _LOADED[key] = MemoryBank.load(self.path, **self.arguments)
        return bank
