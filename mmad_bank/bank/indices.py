"""What a bank is searched with: this project's exact search, or any FAISS index."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmad_bank import ops
from mmad_bank._checks import ArrayLike, as_features, check_finite, check_index
from mmad_bank.bank._pages import MappedPages
from mmad_bank.errors import FormatError, InputError, MissingExtraError
from mmad_bank.ops.knn import Precision

_BLOCK_ROWS = 16384


class ExactIndex:
    """Exact search (:class:`mmad_bank.ops.SearchIndex`); its resident copy is made at the first search.

    ``device`` is where to search, and where queries and results are; the vectors are there or in host memory, or, if
    they are ``mapped``, in a file. Then making the copy leaves nothing of them in memory. What a search touches of them
    stays for the next one, but with ``"int8"``, which is chosen where memory is short.
    """

    def __init__(
        self,
        vectors: Tensor,
        precision: Precision = "auto",
        device: torch.device | str | None = None,
        *,
        mapped: bool = False,
    ) -> None:
        self._vectors = vectors
        self._pages = MappedPages(vectors) if mapped else None
        self._precision = precision
        self._device = vectors.device if device is None else device
        self._search: ops.SearchIndex | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the resident copy; 0 before the first search."""
        return self._search.nbytes if self._search is not None else 0

    @property
    def _index(self) -> ops.SearchIndex:
        if self._search is None:
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


class FaissIndex:
    """A FAISS index over the bank's vectors, Euclidean, on the GPU where faiss-gpu finds one and can use it.

    Distances are FAISS's own: approximate where the index is (product quantisers). Where it finds fewer than k
    vectors (an inverted file whose probed lists are short) exact search completes the answer.
    ``faiss_index`` is the FAISS object, for settings such as ``nprobe``.

    Raises:
        MissingExtraError: FAISS is not installed.
        InputError: FAISS does not know the factory string, or cannot train it on this few vectors.
    """

    def __init__(self, vectors: Tensor, factory: str) -> None:
        faiss = _faiss()
        self._vectors = vectors
        try:
            index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_L2)
        except RuntimeError as error:
            dim = vectors.shape[1]
            raise InputError(
                f"index: expected 'exact' or a FAISS factory string for {dim} dimensions, found {factory!r}"
            ) from error
        rows = _to_numpy(vectors)
        try:
            index.train(rows)
            index.add(rows)
        except RuntimeError as error:
            raise InputError(
                f"index: FAISS cannot build {factory!r} on {len(rows)} vectors ({_reason(error)})"
            ) from error
        self.faiss_index = _to_gpu(faiss, index)

    @classmethod
    def deserialize(cls, vectors: Tensor, data: Tensor) -> FaissIndex:
        """Restore an index from :meth:`serialize`; FAISS parses the bytes (see :meth:`MemoryBank.load` on trust)."""
        faiss = _faiss()
        try:
            index = faiss.deserialize_index(data.numpy())
        except RuntimeError as error:
            raise FormatError(f"faiss_index: altered or from another FAISS version ({_reason(error)})") from error
        if (index.d, index.ntotal) != (vectors.shape[1], vectors.shape[0]) or index.metric_type != faiss.METRIC_L2:
            raise FormatError(
                f"faiss_index: altered, expected {vectors.shape[0]} x {vectors.shape[1]} Euclidean vectors,"
                f" found {index.ntotal} x {index.d}"
            )
        restored = cls.__new__(cls)
        restored._vectors = vectors
        restored.faiss_index = _to_gpu(faiss, index)
        return restored

    def serialize(self) -> Tensor:
        """Return the index as uint8 bytes."""
        faiss = _faiss()
        index = self.faiss_index
        if hasattr(faiss, "GpuIndex") and isinstance(index, faiss.GpuIndex):
            index = faiss.index_gpu_to_cpu(index)
        return torch.from_numpy(faiss.serialize_index(index))

    @property
    def nbytes(self) -> int:
        """Bytes of the index, as FAISS would write it."""
        return self.serialize().nbytes

    def add(self, vectors: Tensor, all_vectors: Tensor) -> None:
        """Append vectors; ``all_vectors`` are the bank's with the new ones at the end."""
        self.faiss_index.add(_to_numpy(vectors))
        self._vectors = all_vectors

    def search(self, queries: ArrayLike, k: int) -> tuple[Tensor, Tensor]:
        """Return distances float32 (Q, k) and rows int64 (Q, k), nearest first."""
        rows = as_features(queries, "queries")
        dim = self._vectors.shape[1]
        if rows.shape[1] != dim:
            raise InputError(f"queries: expected {dim} columns as in the bank, found {rows.shape[1]}")
        check_index(k, "k", 1, len(self._vectors), "the number of vectors in the bank")
        check_finite(rows, "queries")
        _faiss()
        squared, found = self.faiss_index.search(_to_numpy(rows), k)
        distances = torch.from_numpy(squared).clamp_(min=0).sqrt_().to(rows.device)
        indices = torch.from_numpy(found).to(rows.device)
        short = (indices < 0).any(1)
        if bool(short.any()):
            exact = exact_search(rows[short].to(self._vectors.device), self._vectors, k)
            distances[short], indices[short] = exact[0].to(rows.device), exact[1].to(rows.device)
        return distances, indices

    def gather(self, rows: Tensor) -> Tensor:
        """Return vectors by number: int64 (...) -> (..., D) on the device of ``rows``."""
        return self._vectors[rows.to(self._vectors.device)].to(rows.device)

    def neighbors(self, rows: Tensor, k: int) -> Tensor:
        """Return the k exact nearest vectors of the bank's own ``rows``: int64 (Q, k)."""
        own = self._vectors[rows.to(self._vectors.device)]
        return exact_search(own, self._vectors, k)[1].to(rows.device)


def exact_search(queries: Tensor, vectors: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Search a few queries exactly without any resident copy: distances from differences, a block of rows at a time."""
    distances = queries.new_empty(len(queries), 0)
    indices = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for first in range(0, len(vectors), _BLOCK_ROWS):
        block = vectors[first : first + _BLOCK_ROWS]
        found = torch.cdist(queries, block, compute_mode="donot_use_mm_for_euclid_dist")
        rows = torch.arange(first, first + len(block), device=queries.device).expand(len(queries), -1)
        # Earlier rows come first and the sort is stable, so equal distances go to the lowest row.
        order = torch.cat([distances, found], 1).sort(dim=1, stable=True)
        distances = order.values[:, :k]
        indices = torch.cat([indices, rows], 1).gather(1, order.indices[:, :k])
    return distances, indices


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise MissingExtraError("faiss", "faiss", "a FAISS index") from error
    # FAISS brings an OpenMP runtime of its own: keep it to the threads that PyTorch was given.
    faiss.omp_set_num_threads(torch.get_num_threads())
    return faiss


def _to_gpu(faiss: Any, index: Any) -> Any:
    """Move an index to the first GPU, unless there is none or FAISS has no GPU version of it."""
    if not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() == 0:
        return index
    try:
        return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
    except RuntimeError:
        return index


def _to_numpy(rows: Tensor) -> np.ndarray:
    return rows.detach().cpu().contiguous().numpy()


def _reason(error: Exception) -> str:
    """Return the text of a FAISS message, written 'Error in FUNCTION at FILE:LINE: Error: CONDITION failed: TEXT'."""
    text = re.sub(r"^.*?\.\w+:\d+: ", "", " ".join(str(error).split()))
    return text.rsplit("failed: ", 1)[-1][:200]
