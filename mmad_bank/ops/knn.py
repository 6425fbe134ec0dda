"""Exact k-nearest-neighbour search with certified low-precision products."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from mmad_bank import _core
from mmad_bank._internal.arrays import array_of
from mmad_bank._internal.checks import ArrayLike, as_features, check_choice, check_finite, check_index, naming_bad_rows
from mmad_bank._internal.sending import sent_by_value
from mmad_bank.errors import InputError
from mmad_bank.ops._dispatch import cuda_kernels, resolve_device, thread_count
from mmad_bank.ops._torch.knn import TorchIndex

Precision = Literal["auto", "float32", "half", "int8"]


@sent_by_value
class SearchIndex:
    """A bank of vectors made ready for exact search: the resident copy that the matrix units multiply.

    Args:
        vectors: (M, D) float tensor or array; kept by reference (a memory-mapped array stays on disk) and read only
            for the few candidates that the low-precision product cannot tell apart. They must stay as they are: what is
            changed in place after this is not found, and a storage that was resized is refused.
        precision: ``"float32"``, ``"half"`` (16 bits per value), ``"int8"`` or ``"auto"``. On the CPU, ``"auto"`` is
            what a sample of the vectors says is the fastest, bytes or the units' own 16-bit format (float32 where there
            is none), and ``"auto"`` and ``"int8"`` have a coarse level in front where the sample says that it pays: 64
            to 256 bytes more per vector. On other devices ``"auto"`` is 16 bits. The answers are the same for all of
            them; memory and speed differ.
        device: Where to search; default: where the vectors are. With vectors in host memory and a CUDA device, the
            device holds the 16-bit or int8 copy alone, a half or a quarter of the vectors' size, and fetches the few
            vectors that it needs in full from the host's memory, which is page-locked for that (in place, where the
            system allows it). ``"float32"``, vectors of more than 16 384 values, and devices that the compiled kernels
            do not run on take a float32 copy to the device instead.

    An index can be pickled and deep-copied: it is prepared anew from its vectors. It can be used in a forked child
    process too, where PyTorch and the core then work with one thread.

    Raises:
        InputError: Vectors that are not a finite, non-empty 2-D floating-point array; a precision or a device that is
            not there.

    Example:
        >>> import torch
        >>> index = SearchIndex(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
        >>> index.search(torch.tensor([[3.0, 3.0]]))
        (tensor([[1.]]), tensor([[1]]))
        >>> index.gather(torch.tensor([[1, 0]])).shape
        torch.Size([1, 2, 2])
    """

    def __init__(
        self, vectors: ArrayLike, *, precision: Precision = "auto", device: torch.device | str | None = None
    ) -> None:
        self.vectors = as_features(vectors, "bank")
        self.precision = check_precision(precision)
        self.device = self.vectors.device if device is None else resolve_device(device)
        self._engine = _make_engine(self.vectors, self.precision, self.device)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the vectors alone: who loads or copies an index prepares it anew."""
        return _restore, (self.vectors, self.precision, self.device)

    def __deepcopy__(self, memo: dict[int, Any]) -> SearchIndex:
        return _restore(deepcopy(self.vectors, memo), self.precision, self.device)

    def __len__(self) -> int:
        return self.vectors.shape[0]

    @property
    def dim(self) -> int:
        """Number of values per vector."""
        return self.vectors.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of the resident search copy (``vectors`` themselves not counted)."""
        return self._engine.nbytes

    def search(self, queries: ArrayLike, k: int = 1) -> tuple[Tensor, Tensor]:
        """Return distances float32 (Q, k) and indices int64 (Q, k), nearest first; equal distances by lowest index.

        The queries must be on :attr:`device`, where the results are too. On a CUDA device the search is queued on the
        current stream and nobody waits: up to 256 neighbours in the native kernels, beyond that in PyTorch with a
        float32 copy of the bank. A query that is not finite has distances that are not.
        """
        rows = as_features(queries, "queries")
        if rows.shape[1] != self.dim:
            raise InputError(f"queries: expected {self.dim} columns as in the bank, found {rows.shape[1]}")
        check_index(k, "k", 1, len(self), "the number of vectors in the bank")
        if rows.device != self.device:
            raise InputError(f"queries: expected a tensor on {self.device} as the bank is, found {rows.device}")
        return self._engine.search(rows, k)

    def gather(self, rows: Tensor) -> Tensor:
        """Return vectors by number: int64 (...) on :attr:`device` -> float32 (..., D) there."""
        if rows.dtype != torch.int64 or rows.device != self.device:
            raise InputError(f"rows: expected int64 on {self.device}, found {rows.dtype} on {rows.device}")
        return self._engine.gather(rows)


def _restore(vectors: Tensor, precision: Precision, device: torch.device) -> SearchIndex:
    return SearchIndex(vectors, precision=precision, device=device)


def knn(queries: ArrayLike, bank: ArrayLike, k: int = 1, *, precision: Precision = "auto") -> tuple[Tensor, Tensor]:
    """Find the k nearest bank vectors of each query, exactly.

    Args:
        queries: (Q, D).
        bank: (M, D).
        k: Number of neighbours per query, 1 to M.
        precision: Precision of the screening product, see :class:`SearchIndex`; it never changes the answer. Here
            ``"auto"`` is ``"half"``.

    Returns:
        Euclidean distances float32 (Q, k) and bank rows int64 (Q, k), nearest first, ties to the lowest row.
    """
    # Measuring what would be fastest takes longer than one search.
    return SearchIndex(bank, precision="half" if precision == "auto" else precision).search(queries, k)


def check_precision(precision: str, name: str = "precision") -> Precision:
    """Return ``precision``, or say which there are."""
    check_choice(precision, get_args(Precision), name)
    return precision  # type: ignore[return-value]


class _Engine(Protocol):
    """What a device's implementation of the search offers."""

    @property
    def nbytes(self) -> int: ...

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]: ...

    def gather(self, rows: Tensor) -> Tensor: ...


class _NativeIndex:
    """The C++ search of CPU tensors."""

    def __init__(self, vectors: Tensor, precision: Precision) -> None:
        self._vectors = vectors
        self._address = vectors.data_ptr()
        with naming_bad_rows("bank"):
            self._index = _core.KnnIndex(array_of(vectors), precision, thread_count())

    @property
    def nbytes(self) -> int:
        return self._index.nbytes

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        self._check_memory()
        with naming_bad_rows("queries"):
            distances, indices = self._index.search(array_of(queries), k, thread_count())
        return torch.from_numpy(distances), torch.from_numpy(indices)

    def gather(self, rows: Tensor) -> Tensor:
        self._check_memory()
        return self._vectors[rows]

    def _check_memory(self) -> None:
        """Refuse to read what is not there any more: the storage is the caller's, who may have resized it."""
        vectors = self._vectors
        end = (vectors.storage_offset() + vectors.numel()) * vectors.element_size()
        if vectors.data_ptr() != self._address or vectors.untyped_storage().nbytes() < end:
            raise InputError("bank: expected the vectors that the index was made of, found their storage resized")


def _make_engine(vectors: Tensor, precision: Precision, device: torch.device) -> _Engine:
    if device.type == "cpu" and vectors.device.type == "cpu":
        return _NativeIndex(vectors, precision)
    if vectors.device.type not in ("cpu", device.type):
        raise InputError(f"bank: expected a tensor on {device} or in host memory, found {vectors.device}")
    check_finite(vectors, "bank")
    cuda = cuda_kernels(device)
    if cuda is not None and precision != "float32" and vectors.shape[1] <= cuda.MAX_DIM:
        return cuda.CudaIndex(vectors, precision, device=device)
    return TorchIndex(vectors.to(device))


__all__ = ["Precision", "SearchIndex", "knn"]
