"""Several memory banks under one roof, one for each kind of feature."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmad_bank import scoring
from mmad_bank._checks import ArrayLike
from mmad_bank._files import replacing
from mmad_bank.bank.memory_bank import MemoryBank, Scores, VectorsOn
from mmad_bank.errors import FormatError, InputError
from mmad_bank.ops.knn import Precision

_MANIFEST = "banks.json"
_FORMAT = "mmad-multibank"
_VERSION = 1


class MultiBank(Mapping[str, MemoryBank]):
    """Named memory banks that are searched and scored together; fusing their scores is a method's business.

    Reads like a dictionary: ``banks["rgb"]``, ``len(banks)``, ``for name in banks``.

    Args:
        banks: name to bank. Names are letters, digits, ``_`` and ``-``: they become file names.

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
            if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
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
        return f"MultiBank({self._banks!r})"

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
        """Write each bank to a file in ``folder`` and then ``banks.json``, which names them.

        New bank files do not take the names of the old ones, and the old ones go when ``banks.json`` has been replaced:
        a crash at any time leaves the old set or the new one.

        Raises:
            InputError: The folder cannot be made or written.
        """
        target = Path(folder)
        manifest = target / _MANIFEST
        try:
            target.mkdir(parents=True, exist_ok=True)
            old = set(_read_manifest(target).values()) if manifest.exists() else set()
            files = {name: _unused_name(name, target) for name in self}
            for name, bank in self.items():
                bank.save(target / files[name])
            with replacing(manifest) as partial:
                content = {"format": _FORMAT, "version": _VERSION, "banks": files}
                partial.write_text(json.dumps(content, indent=2) + "\n")
            for file in old:
                (target / file).unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: cannot be written ({error.strerror})") from error

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        device: torch.device | str = "cpu",
        *,
        precision: Precision = "auto",
        vectors_on: VectorsOn = "device",
    ) -> MultiBank:
        """Load the banks that :meth:`save` wrote, memory-mapped, see :meth:`MemoryBank.load`."""
        target = Path(folder)
        if not (target / _MANIFEST).is_file():
            raise InputError(f"{folder}: expected a folder with {_MANIFEST}, found none")
        return cls(
            {
                name: MemoryBank.load(target / file, device, precision=precision, vectors_on=vectors_on)
                for name, file in _read_manifest(target).items()
            }
        )


def _unused_name(name: str, folder: Path) -> str:
    number = 1
    while (folder / f"{name}-{number}.safetensors").exists():
        number += 1
    return f"{name}-{number}.safetensors"


def _read_manifest(folder: Path) -> dict[str, str]:
    """Return the file of each bank; names that lead out of the folder are refused."""
    path = folder / _MANIFEST
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        if content["format"] != _FORMAT:
            raise FormatError(f"{path}: foreign, expected the format '{_FORMAT}', found {content['format']!r}")
        if int(content["version"]) > _VERSION:
            raise FormatError(f"{path}: newer, version {content['version']}; this mmad-bank reads up to {_VERSION}")
        files = dict(content["banks"])
    except FormatError:
        raise
    except (ValueError, TypeError, KeyError) as error:
        raise FormatError(f"{path}: truncated or altered, it cannot be read") from error
    for file in files.values():
        if not isinstance(file, str) or not re.fullmatch(r"[A-Za-z0-9_-]+\.safetensors", file):
            raise FormatError(f"{path}: altered, expected bank files in the same folder, found {file!r}")
    return files
