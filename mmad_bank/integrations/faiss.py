"""An index with the methods of ``faiss.IndexFlatL2`` that searches with :class:`mmad_bank.ops.SearchIndex`.

FAISS need not be installed. Files go both ways: :func:`read_index` reads what ``faiss.write_index`` writes, and
:func:`write_index` writes what ``faiss.read_index`` reads, for flat indices of Euclidean distances.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmad_bank import ops
from mmad_bank._internal.checks import check_finite, check_index
from mmad_bank._internal.locks import ForkedOpen
from mmad_bank._internal.sending import sent_by_value
from mmad_bank.errors import InputError
from mmad_bank.integrations._flat_file import read_flat, write_flat
from mmad_bank.integrations._rows import check_rows
from mmad_bank.ops.knn import Precision, check_precision

METRIC_L2 = 1
"""FAISS's number of the Euclidean metric."""
_NOTHING = float(np.finfo(np.float32).max)  # the distance of a neighbor that is not there, as FAISS fills it in
_QUERIES, _ROWS = 256, 4096  # of a range search whose distances are in memory at a time


@sent_by_value
class IndexFlatL2:
    """Exact search by squared Euclidean distance, in the shape of ``faiss.IndexFlatL2``.

    Methods take arrays or tensors of numbers and give NumPy arrays, as FAISS does. Rows are numbered in the order in
    which they were added. Distances differ from FAISS's in the last bits: FAISS rounds in float32 on the way, here
    only the result is rounded. Bad arguments raise :class:`~mmad_bank.errors.InputError`, not FAISS's assertions; and
    vectors must be finite. Threads may search one index at the same time, and add to it.

    In memory are the vectors in float32, as in FAISS, and a smaller copy that the search looks through first; it is
    made at the first search after :meth:`add`.

    Args:
        d: Length of a vector.
        bank_precision: Precision of that copy, see ``precision`` of :class:`mmad_bank.ops.SearchIndex`; answers do not
            depend on it.
        device: Where to search; results are in host memory in any case.

    Attributes:
        d: Length of a vector.
        is_trained: Always true: there is nothing to train.
        metric_type: Always 1, FAISS's ``METRIC_L2``.
        code_size: Bytes of a vector.

    Example:
        >>> index = IndexFlatL2(2)
        >>> index.add(np.array([[0.0, 0.0], [3.0, 4.0]], np.float32))
        >>> distances, labels = index.search(np.array([[3.0, 0.0]], np.float32), 3)
        >>> labels.tolist(), distances[0, :2].tolist()
        ([[0, 1, -1]], [9.0, 16.0])
    """

    is_trained = True
    metric_type = METRIC_L2
    metric_arg = 0.0

    def __init__(self, d: int = 0, *, bank_precision: Precision = "auto", device: torch.device | str = "cpu") -> None:
        self.d = check_index(d, "d", 0, 2**31 - 1, "the length of a vector")
        self.verbose = False
        self.bank_precision = check_precision(bank_precision, "bank_precision")
        self.device = ops.resolve_device(device)
        self._blocks: tuple[Tensor, ...] = ()  # as they were added, until they are needed in one piece
        self._index: ops.SearchIndex | None = None  # of all vectors, once they are searched
        self._lock = ForkedOpen()

    @property
    def ntotal(self) -> int:
        """Number of vectors."""
        return sum(len(block) for block in self._blocks)

    @property
    def _rows(self) -> Tensor:
        """All vectors, (N, d) float32 in host memory."""
        blocks = self._blocks
        if len(blocks) != 1:
            with self._lock:
                blocks = self._blocks
                empty = torch.empty(0, self.d, dtype=torch.float32, device="cpu")
                self._blocks = blocks = (torch.cat([empty, *blocks]),)
        return blocks[0]

    @property
    def code_size(self) -> int:
        """Bytes of a vector."""
        return 4 * self.d

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_index": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = ForkedOpen()

    def train(self, x: Any) -> None:
        """Do nothing, as FAISS's flat index does."""
        _rows_of(x, self.d, "x")

    def add(self, x: Any) -> None:
        """Append vectors (n, d).

        Raises:
            InputError: They have another shape, or are not finite.
        """
        rows = _rows_of(x, self.d, "x")
        check_finite(rows, "x")
        with self._lock:
            self._take(*self._blocks, rows)

    def reset(self) -> None:
        """Remove all vectors."""
        with self._lock:
            self._take()

    def remove_ids(self, x: Any) -> int:
        """Remove vectors by their numbers (n,); those behind them move up. Returns how many there were."""
        with self._lock:
            keep = ~np.isin(np.arange(self.ntotal), np.asarray(x, np.int64))
            self._take(self._rows[torch.from_numpy(keep)])
        return int((~keep).sum())

    def _take(self, *blocks: Tensor) -> None:
        self.__dict__.update(_blocks=blocks, _index=None)  # in one step: a process may be forked meanwhile

    def search(
        self,
        x: Any,
        k: int,
        *,
        params: None = None,
        D: np.ndarray | None = None,
        I: np.ndarray | None = None,  # noqa: E741
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the k nearest vectors of each query.

        Args:
            x: (n, d) queries.
            k: Number of neighbors, at least 1.
            params: FAISS's parameters of a search; there are none here.
            D: float32 (n, k) to write the distances into.
            I: int64 (n, k) to write the numbers into.

        Returns:
            Squared distances float32 (n, k) and numbers int64 (n, k), nearest first, equal distances by lowest number.
            Where there are fewer than k vectors, or a query is not finite, the number is -1 and the distance the
            largest float32.
        """
        del params
        queries = _rows_of(x, self.d, "x")
        shape = (len(queries), check_index(k, "k", 1, 2**31 - 1, "the number of neighbors"))
        distances = _given(D, "D", np.float32, shape, _NOTHING)
        labels = _given(I, "I", np.int64, shape, -1)
        rows, index = self._searched()
        found = min(k, len(rows))
        if index is not None and len(queries):
            finite = torch.isfinite(queries).all(1, keepdim=True)
            near, numbers = index.search(torch.where(finite, queries, 0.0).to(self.device), found)
            squared = near.square().cpu().numpy()
            real = np.isfinite(squared) & finite.numpy()
            distances[:, :found] = np.where(real, squared, _NOTHING)
            labels[:, :found] = np.where(real, numbers.cpu().numpy(), -1)
        return distances, labels

    def _searched(self) -> tuple[Tensor, ops.SearchIndex | None]:
        """Return the vectors and what searches them; None where there are none."""
        with self._lock:
            if self._index is None and self.ntotal and self.d:
                self._index = ops.SearchIndex(
                    self._rows.to(self.device), precision=self.bank_precision, device=self.device
                )
            return self._rows, self._index

    def assign(self, x: Any, k: int, labels: np.ndarray | None = None) -> np.ndarray:
        """Return the numbers int64 (n, k) alone, as :meth:`search` finds them."""
        return self.search(x, k, I=labels)[1]

    def search_and_reconstruct(self, x: Any, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return what :meth:`search` does, and the vectors float32 (n, k, d); NaN where there is none."""
        distances, labels = self.search(x, k)
        vectors = np.full((*labels.shape, self.d), np.nan, np.float32)
        vectors[labels >= 0] = self.reconstruct_batch(labels[labels >= 0])
        return distances, labels, vectors

    def range_search(self, x: Any, thresh: float, *, params: None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Find all vectors whose squared distance is below a threshold, by distances in float64.

        Args:
            x: (n, d) queries.
            thresh: Squared distance.
            params: As for :meth:`search`.

        Returns:
            Limits uint64 (n + 1,), squared distances float32 (m,) and numbers int64 (m,): those of query i stand from
            ``limits[i]`` to ``limits[i + 1]``, in ascending numbers.
        """
        del params
        queries, rows = _rows_of(x, self.d, "x").double(), self._rows
        counts, squared, numbers = [], [], []
        for some in queries.split(_QUERIES) if len(queries) else ():
            found = [_below(some, block.double(), thresh) for block in rows.split(_ROWS)]
            query = torch.cat([one[0] for one in found])
            order = torch.argsort(query, stable=True)  # rows stay in ascending order
            counts.append(torch.bincount(query, minlength=len(some)))
            numbers.append(torch.cat([one[1] + _ROWS * i for i, one in enumerate(found)])[order])
            squared.append(torch.cat([one[2] for one in found])[order])
        limits = np.zeros(len(queries) + 1, np.uint64)
        limits[1:] = np.cumsum([count for block in counts for count in block.tolist()])
        return limits, _joined(squared).astype(np.float32), _joined(numbers).astype(np.int64)

    def reconstruct(self, key: int, x: np.ndarray | None = None) -> np.ndarray:
        """Return a vector float32 (d,) by its number.

        Args:
            key: The number.
            x: float32 (d,) to write it into.
        """
        rows = self._rows
        number = check_index(key, "key", 0, len(rows) - 1, "the numbers of the vectors")
        return _into(x, rows[number].numpy())

    def reconstruct_n(self, n0: int = 0, ni: int = -1, x: np.ndarray | None = None) -> np.ndarray:
        """Return vectors float32 (ni, d) in a row.

        Args:
            n0: Number of the first one.
            ni: How many; -1 for all from there on.
            x: float32 (ni, d) to write them into.
        """
        rows = self._rows
        first = check_index(n0, "n0", 0, len(rows), "the numbers of the vectors")
        count = len(rows) - first if ni == -1 else check_index(ni, "ni", 0, len(rows) - first, "as many as there are")
        return _into(x, rows[first : first + count].numpy())

    def reconstruct_batch(self, key: Any, x: np.ndarray | None = None) -> np.ndarray:
        """Return vectors float32 (n, d) by their numbers (n,).

        Args:
            key: The numbers.
            x: float32 (n, d) to write them into.
        """
        rows, numbers = self._rows, np.asarray(key, np.int64)
        if numbers.ndim != 1 or (len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(rows)):
            raise InputError(f"key: expected numbers (n,) from 0 to {len(rows) - 1}, found others")
        return _into(x, rows.numpy()[numbers])


def read_index(path: str | os.PathLike[str]) -> IndexFlatL2:
    """Read a flat index of Euclidean distances that ``faiss.write_index`` or :func:`write_index` has written.

    No code of the file is run, whoever wrote it.

    Raises:
        InputError: There is no such file, or it cannot be read.
        FormatError: It holds another kind of index, is truncated or altered, or has vectors that no search takes.
    """
    vectors = read_flat(path)
    check_rows(torch.from_numpy(vectors), path)
    index = IndexFlatL2(vectors.shape[1])
    if len(vectors):
        index.add(vectors)
    return index


def write_index(index: IndexFlatL2, path: str | os.PathLike[str]) -> None:
    """Write an index as ``faiss.write_index`` does; ``faiss.read_index`` and :func:`read_index` read it.

    Raises:
        InputError: The file cannot be written.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "flat.faiss"
        >>> index = IndexFlatL2(3)
        >>> index.add(np.eye(3))
        >>> write_index(index, path)
        >>> read_index(path).ntotal
        3
    """
    write_flat(index.reconstruct_n(), path)


def _rows_of(value: Any, dim: int, name: str) -> Tensor:
    """Return numbers (n, dim), n may be 0, as a float32 tensor in host memory that shares nothing with the caller's."""
    if isinstance(value, Tensor):
        rows = value.detach().cpu().to(torch.float32)
    else:
        array = np.asarray(value)
        if array.dtype.kind not in "fiub":
            raise InputError(f"{name}: expected numbers, found NumPy dtype {array.dtype}")
        rows = torch.from_numpy(np.array(array, np.float32, order="C"))
    if rows.ndim != 2 or rows.shape[1] != dim:
        raise InputError(f"{name}: expected shape (n, {dim}), found {tuple(rows.shape)}")
    return rows.contiguous()


def _given(out: np.ndarray | None, name: str, dtype: type, shape: tuple[int, int], fill: float) -> np.ndarray:
    """Return an array to write results into, filled: the caller's if there is one and it fits."""
    if out is None:
        return np.full(shape, fill, dtype)
    if not isinstance(out, np.ndarray) or out.dtype != dtype or out.shape != shape:
        found = f"{out.dtype} {out.shape}" if isinstance(out, np.ndarray) else type(out).__name__
        raise InputError(f"{name}: expected {np.dtype(dtype)} {shape}, found {found}")
    if not out.flags.writeable:
        raise InputError(f"{name}: expected an array to write into, found one that is read-only")
    out[...] = fill
    return out


def _into(out: np.ndarray | None, values: np.ndarray) -> np.ndarray:
    """Return a copy of values, in the caller's array if there is one."""
    if out is None:
        return values.copy()
    if not isinstance(out, np.ndarray) or out.dtype != np.float32 or out.shape != values.shape:
        raise InputError(f"x: expected an array float32 {values.shape}, found another")
    out[...] = values
    return out


def _below(queries: Tensor, rows: Tensor, limit: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the pairs whose squared distance is below a limit: numbers of queries, of rows, squared distances."""
    squared = (queries.square().sum(1, keepdim=True) + rows.square().sum(1) - 2 * queries @ rows.T).clamp_(min=0)
    query, row = torch.nonzero(squared < limit, as_tuple=True)
    return query, row, squared[query, row]


def _joined(parts: list[Tensor]) -> np.ndarray:
    return np.concatenate([np.empty(0), *(part.numpy() for part in parts)])
