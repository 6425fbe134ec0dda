"""Exact search on the GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from mmad_bank.errors import InputError
from mmad_bank.ops._cuda import device as gpu
from mmad_bank.ops._cuda.checks import check_rows, check_search
from mmad_bank.ops._cuda.operand import Operand, check_dim, robust_center
from mmad_bank.ops._torch.knn import TorchIndex


class CudaIndex:
    """A bank ready for exact search on the GPU.

    Args:
        vectors: (M, D) float32, on the device; or in host memory, which is page-locked then, where the kernels read the
            few rows that have to be decided in float64. They are kept by reference and must stay as they are.
        precision: ``"half"`` and ``"auto"`` keep a bfloat16 copy on the device, ``"int8"`` one of half that size. The
            answers are the same.
        device: Where to search, for vectors in host memory.

    It is made on the current stream, and can be searched on any: the first search on another one waits, there, until it
    is made, and its memory is not handed out anew before all these searches are done. A CUDA graph that holds a search
    does not keep the index alive.
    """

    def __init__(self, vectors: Tensor, precision: str = "auto", *, device: torch.device | str | None = None) -> None:
        check_rows(vectors, "bank")
        check_dim(vectors)
        self.device = vectors.device if device is None else gpu.with_index(torch.device(device))
        with gpu.current(self.device):
            self.vectors, self._lock = gpu.readable(vectors, self.device)
            self.center = robust_center(self.vectors, self.device)
            self._operand = Operand(self.vectors, self.center, int8=precision == "int8")
            self._use = gpu.StreamUse((self.vectors, self.center, self._operand.buffer), self.device)
        self._wide: tuple[TorchIndex, gpu.StreamUse] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the resident search copy."""
        return self._operand.buffer.nbytes + self.center.nbytes

    def gather(self, rows: Tensor) -> Tensor:
        """Return vectors by number, int64 (...) -> (..., D) on the device; the host does not wait.

        A number that is none of a row's gives NaN.
        """
        if rows.dtype != torch.int64 or rows.device != self.device:
            raise InputError(f"rows: expected int64 on {self.device}, found {rows.dtype} on {rows.device}")
        numbers = rows.contiguous()
        output = torch.empty(*rows.shape, self.vectors.shape[1], dtype=torch.float32, device=self.device)
        if output.numel() == 0:
            return output
        with gpu.current(self.device):
            self._use.join()
            device, stream = gpu.stream_of(self.device)
            gpu.native.gather_rows(
                device, stream, self.vectors.data_ptr(), *self.vectors.shape, numbers.data_ptr(), numbers.numel(),
                output.data_ptr(),
            )  # fmt: skip
        return output

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return distances float32 (Q, k) and rows int64 (Q, k), nearest first, ties to the lowest row.

        Queued on the current stream; can be captured in a CUDA graph (up to MAX_NEIGHBORS neighbours). More neighbours
        than that are found by PyTorch, with a float32 copy of the bank on the device. A query that holds NaN has NaN
        distances to arbitrary rows.
        """
        check_search(queries, self.vectors, k, self.device)
        if k > gpu.MAX_NEIGHBORS:
            return self._search_wide(queries, k)
        queries = gpu.aligned(queries)
        distances = torch.empty(len(queries), k, dtype=torch.float32, device=self.device)
        indices = torch.empty(len(queries), k, dtype=torch.int64, device=self.device)
        if len(queries) == 0:
            return distances, indices
        with gpu.current(self.device):
            self._use.join()
            device, stream = gpu.stream_of(self.device)
            bank = self._operand.native
            workspace = gpu.workspace(gpu.native.knn_workspace(device, len(queries), bank, k), self.device)
            gpu.native.knn(
                device, stream, queries.data_ptr(), len(queries), bank, self.vectors.data_ptr(), self.center.data_ptr(),
                k, workspace.data_ptr(), distances.data_ptr(), indices.data_ptr(),
            )  # fmt: skip
        return distances, indices

    def _search_wide(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        with gpu.current(self.device):
            if self._wide is None:
                self._use.join()
                index = TorchIndex(self.vectors.to(self.device))
                lasting = (index.vectors, index.center, index.rows, index.squared)
                self._wide = index, gpu.StreamUse(lasting, self.device)
            index, use = self._wide
            use.join()
            return index.search(queries, k)
