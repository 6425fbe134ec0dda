"""Several memory banks under one roof, one for each kind of feature."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from mmad_bank import scoring
from mmad_bank._internal.checks import ArrayLike
from mmad_bank._internal.file_names import BANKS as MANIFEST
from mmad_bank._internal.folders import read_folder, replacing_folder
from mmad_bank._internal.former import formerly
from mmad_bank._internal.manifest import check_format, read_json
from mmad_bank.bank.memory_bank import MemoryBank, Scores, VectorsOn
from mmad_bank.errors import FormatError, InputError
from mmad_bank.ops.knn import Precision

_FORMAT = "mmad-multibank"
_VERSION = 1
_NAME = r"[A-Za-z0-9_-]+"  # of a bank; it becomes a file's name


class MultiBank(Mapping[str, MemoryBank]):
    """Named memory banks that are searched and scored together; fusing their scores is a method's business.

    Reads like a dictionary: ``banks["rgb"]``, ``len(banks)``, ``for name in banks``.

    Args:
        banks: The banks, by name. Names are letters, digits, ``_`` and ``-``: they become file names.

    Example:
        >>> import torch
        >>> banks = MultiBank({"rgb": MemoryBank(torch.rand(20, 4)), "xyz": MemoryBank(torch.rand(30, 6))})
        >>> scores = banks.score({"rgb": torch.rand(2, 9, 4), "xyz": torch.rand(2, 9, 6)})
        >>> scores["xyz"].patch.shape
        torch.Size([2, 9])
    """

    def __init__(self, banks: Mapping[str, MemoryBank]) -> None:
        if not banks:
            raise InputError("banks: expected at least one bank, found none")
        for name, bank in banks.items():
            if not isinstance(name, str) or not re.fullmatch(_NAME, name):
                raise InputError(f"banks: expected names of letters, digits, '_' and '-', found {name!r}")
            if not isinstance(bank, MemoryBank):
                raise InputError(f"banks: expected a MemoryBank for {name!r}, found {type(bank).__name__}")
        self._banks = dict(banks)

    def __getitem__(self, name: str) -> MemoryBank:
        return self._banks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._banks)

    def __len__(self) -> int:
        return len(self._banks)

    def __repr__(self) -> str:
        banks = "".join(f"\n    {name}: {bank!r}," for name, bank in self.items())
        return f"MultiBank({banks}\n)"

    @property
    def nbytes(self) -> int:
        """Bytes held in memory by all banks."""
        return sum(bank.nbytes for bank in self.values())

    def to(self, device: torch.device | str, *, vectors_on: VectorsOn = "device") -> MultiBank:
        """Return the banks with their exact search on ``device``, see :meth:`MemoryBank.to`."""
        return MultiBank({name: bank.to(device, vectors_on=vectors_on) for name, bank in self.items()})

    def search(self, queries: Mapping[str, ArrayLike], k: int = 1) -> dict[str, tuple[Tensor, Tensor]]:
        """Search every bank with its own queries, see :meth:`MemoryBank.search`."""
        self._check_names(queries, "queries")
        return {name: bank.search(queries[name], k) for name, bank in self.items()}

    def score(
        self,
        patches: Mapping[str, ArrayLike],
        *,
        reweight: scoring.Reweight = "m3dm",
        n_neighbors: int | None = None,
    ) -> dict[str, Scores]:
        """Score every bank's own patches, see :meth:`MemoryBank.score`."""
        self._check_names(patches, "patches")
        return {
            name: bank.score(patches[name], reweight=reweight, n_neighbors=n_neighbors) for name, bank in self.items()
        }

    def _check_names(self, given: Mapping[str, ArrayLike], what: str) -> None:
        if not isinstance(given, Mapping) or set(given) != set(self):
            found = ", ".join(sorted(map(str, given))) if isinstance(given, Mapping) else type(given).__name__
            raise InputError(f"{what}: expected a dictionary with {', '.join(sorted(self))}, found {found or 'none'}")

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write a folder with a file for each bank and ``banks.json``, which names them: the whole set or nothing.

        Banks that are there already are replaced, in one step: a crash at any time leaves the old set or the new one,
        and :meth:`load` in another process gives one of them.

        Raises:
            InputError: The folder holds something else, cannot be made or written, or the disk is full.
        """
        _check_replaceable(Path(folder))
        files = {name: f"{name}.safetensors" for name in self}
        with replacing_folder(folder) as partial:
            for name, bank in self.items():
                bank.save(partial / files[name])
            content = {"format": _FORMAT, "version": _VERSION, "banks": files}
            (partial / MANIFEST).write_text(json.dumps(content, indent=2) + "\n")

    @classmethod
    @formerly(precision="bank_precision")
    def load(
        cls,
        folder: str | os.PathLike[str],
        device: torch.device | str = "cpu",
        *,
        bank_precision: Precision | None = None,
        vectors_on: VectorsOn = "device",
        verify: bool = True,
        rebuild_index: bool | None = None,
        trust_index: bool = False,
        mapped: bool | None = None,
    ) -> MultiBank:
        """Load the banks that :meth:`save` wrote, all of one save; the arguments are those of :meth:`MemoryBank.load`.

        Raises:
            InputError: There is no such folder, or a file is missing.
            FormatError: A file is damaged, foreign or newer.
        """
        target = Path(folder)

        def read() -> MultiBank:
            if not (target / MANIFEST).is_file():
                raise InputError(f"{folder}: expected a folder with {MANIFEST}, found none")
            return cls(
                {
                    name: MemoryBank.load(
                        target / file, device, bank_precision=bank_precision, vectors_on=vectors_on, verify=verify,
                        rebuild_index=rebuild_index, trust_index=trust_index, mapped=mapped,
                    )
                    for name, file in _read_manifest(target).items()
                }
            )  # fmt: skip

        return read_folder(target, read)


def bank_files(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Return the file of each bank that :meth:`MultiBank.save` wrote into a folder, by name.

    Raises:
        InputError: ``banks.json`` cannot be read.
        FormatError: It is damaged, foreign or newer.
    """
    return {name: Path(folder) / file for name, file in _read_manifest(Path(folder)).items()}


def _check_replaceable(target: Path) -> None:
    """Refuse to replace a folder with anything in it that is not of a set of banks."""
    if not target.is_dir():
        return
    listed = set(_read_manifest(target).values()) if (target / MANIFEST).is_file() else set()
    # Bank files that version 0.1 left there when it was killed, NAME-1.safetensors, were listed once.
    others = [name for name in sorted(os.listdir(target)) if name != MANIFEST and name not in listed]
    foreign = [name for name in others if not (listed and re.fullmatch(r"[A-Za-z0-9_-]+-\d+\.safetensors", name))]
    if foreign:
        raise InputError(
            f"{target}: expected a new or empty folder or saved banks to replace, found {foreign[0]} in it"
        )


def _read_manifest(folder: Path) -> dict[str, str]:
    """Return the file of each bank; names that lead out of the folder are refused."""
    path = folder / MANIFEST
    files = check_format(read_json(path), str(path), _FORMAT, _VERSION).texts_by_name("banks")
    if not files:
        raise FormatError(f"{path}: altered, expected at least one bank, found none")
    for name, file in files.items():
        if not re.fullmatch(_NAME, name):
            raise FormatError(f"{path}: altered, expected names of letters, digits, '_' and '-', found {name[:60]!r}")
        if not re.fullmatch(rf"{_NAME}\.safetensors", file):
            raise FormatError(f"{path}: altered, expected bank files in the same folder, found {file[:60]!r}")
    return files
