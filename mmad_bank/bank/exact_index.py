"""This project's exact search as the index of a bank."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from mmad_bank import ops
from mmad_bank._internal.checks import ArrayLike
from mmad_bank._internal.locks import ForkedOpen
from mmad_bank.bank._pages import MappedPages
from mmad_bank.errors import FormatError, InputError
from mmad_bank.ops.knn import Precision


class ExactIndex:
    """Exact search (:class:`mmad_bank.ops.SearchIndex`); its resident copy is made at the first search.

    ``device`` is where to search, and where queries and results are; the vectors are there or in host memory, or, if
    they are ``mapped``, in a file. Then making the copy leaves nothing of them in memory. What a search touches of them
    stays for the next one, but with ``"int8"``, which is chosen where memory is short. ``file`` is what they were
    loaded from, for messages.
    """

    def __init__(
        self,
        vectors: Tensor,
        precision: Precision = "auto",
        device: torch.device | str | None = None,
        *,
        mapped: bool = False,
        file: str | None = None,
    ) -> None:
        self._vectors = vectors
        self._pages = MappedPages(vectors) if mapped else None
        self._file = file
        self._precision = precision
        self._device = vectors.device if device is None else device
        self._search: ops.SearchIndex | None = None
        self._making = ForkedOpen()

    @property
    def nbytes(self) -> int:
        """Bytes of the resident copy; 0 before the first search."""
        return self._search.nbytes if self._search is not None else 0

    @property
    def _index(self) -> ops.SearchIndex:
        if self._search is None:
            with self._making:  # threads that search first at the same time make one copy, not several
                if self._search is None:
                    with naming_file(self._file):
                        self._search = ops.SearchIndex(self._vectors, precision=self._precision, device=self._device)
                    if self._pages is not None:
                        self._pages.release()
        return self._search

    def search(self, queries: ArrayLike, k: int) -> tuple[Tensor, Tensor]:
        """Return distances float32 (Q, k) and rows int64 (Q, k), nearest first."""
        found = self._index.search(queries, k)
        if self._pages is not None and self._precision == "int8":
            self._pages.release()
        return found

    def gather(self, rows: Tensor) -> Tensor:
        """Return vectors by number: int64 (...) -> (..., D)."""
        return self._index.gather(rows)

    def neighbors(self, rows: Tensor, k: int) -> Tensor:
        """Return the k exact nearest vectors of the bank's own ``rows``: int64 (Q, k)."""
        return self.search(self.gather(rows), k)[1]


@contextmanager
def naming_file(file: str | None) -> Iterator[None]:
    """Name the file that a bank was loaded from in errors about its rows or its index."""
    try:
        yield
    except InputError as error:
        if file is None or not str(error).startswith(("bank: ", "index: ")):
            raise
        raise FormatError(f"{file}: altered, {error}") from error
