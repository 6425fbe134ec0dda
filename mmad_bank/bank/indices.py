"""What a bank is searched with: this project's exact search, or any FAISS index."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from mmad_bank._internal.checks import ArrayLike
from mmad_bank._internal.progress import doing
from mmad_bank.bank.exact_index import ExactIndex, naming_file
from mmad_bank.bank.faiss_index import FaissIndex
from mmad_bank.bank.recall import Sample, SearchSettings
from mmad_bank.errors import InputError
from mmad_bank.ops.knn import Precision, check_precision


class Index(Protocol):
    """What a bank is searched with, wherever its vectors are: the one thing that scoring needs to know."""

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept in memory for the search."""

    def search(self, queries: ArrayLike, k: int) -> tuple[Tensor, Tensor]:
        """Return distances float32 (Q, k) and rows int64 (Q, k), nearest first."""

    def gather(self, rows: Tensor) -> Tensor:
        """Return vectors by number: int64 (...) -> (..., D) on the device of ``rows``."""

    def neighbors(self, rows: Tensor, k: int) -> Tensor:
        """Return the k exact nearest vectors of the bank's own ``rows``: int64 (Q, k)."""


AS_IT_TAKES = SearchSettings()
"""Settings that search as thoroughly as a measured recall takes."""


def make_index(
    name: str,
    vectors: Tensor,
    bank_precision: Precision,
    device: torch.device,
    *,
    mapped: bool = False,
    file: str | None = None,
    saved: Tensor | None = None,
    settings: SearchSettings = AS_IT_TAKES,
    sample: Tensor | None = None,
) -> Index:
    """Make the index of a bank.

    Args:
        name: ``"exact"`` or a FAISS index_factory string.
        vectors: (M, D) float32.
        bank_precision: Precision of the exact search's resident copy.
        device: Device of the exact search.
        mapped: Whether the vectors are a mapped file.
        file: File that they were loaded from, for messages.
        saved: The bytes of a FAISS index that may be read.
        settings: Settings that a FAISS index searches with; default: those that a sample of queries needs.
        sample: Features to measure the recall of FAISS's search on; default: the bank's own vectors.
    """
    if name == "exact":
        return ExactIndex(vectors, bank_precision, device, mapped=mapped, file=file)
    if saved is not None:
        return FaissIndex.deserialize(vectors, saved).set(settings)
    with doing(f"building the index {name}"), naming_file(file):
        index = FaissIndex(vectors, name).set(settings)
        if settings.recall is None:
            drawn = Sample.draw(vectors, sample)
            if settings == AS_IT_TAKES:
                index.tune(drawn)
            else:
                index.measure(drawn)
    return index


def check_search(index: str, bank_precision: str, settings: SearchSettings = AS_IT_TAKES) -> None:
    """Say what is wrong before the long work, not at the first search."""
    if not isinstance(index, str):
        raise InputError(f"index: expected 'exact' or a FAISS factory string, found {index!r}")
    if index == "exact" and settings.nprobe is not None:
        raise InputError(f"nprobe: expected an index with inverted lists (IVF...), found {index!r}")
    if index == "exact" and settings.ef_search is not None:
        raise InputError(f"ef_search: expected an index with a graph (HNSW), found {index!r}")
    check_precision(bank_precision, "bank_precision")


__all__ = ["AS_IT_TAKES", "ExactIndex", "FaissIndex", "Index", "SearchSettings", "check_search", "make_index"]
