"""A shard of a selection on the GPU, of rows there or in host memory."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from mmad_bank.errors import InputError
from mmad_bank.ops._cuda import device as gpu
from mmad_bank.ops._cuda.checks import check_rows
from mmad_bank.ops._cuda.operand import check_dim, fitting_operand, robust_center


class CudaShard:
    """The requests of a shard: arguments and results as those of the core's own, in host memory.

    Its kernels run on the stream that was the current one when it was made. Only :meth:`rise` waits for them.
    """

    def __init__(
        self,
        rows: Tensor,
        n_centers: int,
        *,
        device: torch.device | str | None = None,
        memory: int | None = None,
    ) -> None:
        check_rows(rows, "features")
        check_dim(rows)
        self._device = rows.device if device is None else gpu.with_index(torch.device(device))
        on_gpu = self._device.type == "cuda"
        self._stream = torch.cuda.current_stream(self._device) if on_gpu else None
        self._shape = tuple(rows.shape)
        self._room, self._met = max(1, n_centers), 0
        self._queued: list[Tensor] = []  # what the device may still have to read
        with self._current():
            rows, lock = gpu.readable(rows, self._device)
            center = robust_center(rows, self._device)
            number, stream = gpu.stream_of(self._device)

            def workspace_bytes(operand: object) -> int:
                return int(gpu.native.k_center_shard_workspace(number, operand, self._room))

            operand, streamed = fitting_operand(rows, center, workspace_bytes, memory)
            workspace = gpu.workspace(workspace_bytes(operand.native), self._device)
            self._results = gpu.workspace(0, self._device)
            self._native = gpu.native.KCenterShard(
                number, stream, operand.native, rows.data_ptr(), center.data_ptr(), self._room, workspace.data_ptr(),
                (rows, lock, center, operand, streamed, workspace),
            )  # fmt: skip

    def meet(self, centers: Tensor, own: Tensor) -> None:
        """Take in the newest centres, float32 (C, D), and which rows of the shard they are, int64 (C,)."""
        if self._met + len(centers) > self._room:
            raise InputError(
                f"centers: expected at most {self._room} in all (n_centers), found {self._met + len(centers)}"
            )
        self._met += len(centers)
        self._queued += [centers, own]
        with self._current():
            self._native.meet(centers.data_ptr(), len(centers), own.data_ptr())

    def settle(self, squared: Tensor, rows: Tensor) -> None:
        """Take in values float64 (t,) of rows int64 (t,)."""
        self._queued += [squared, rows]
        with self._current():
            self._native.settle(rows.data_ptr(), squared.data_ptr(), len(rows))

    def rise(self, bar: float, at_most: int) -> tuple[Tensor, Tensor, int, float]:
        """Return squared distances, rows, the number of rows at the bar or above, and a bound of those under it."""
        room = max(0, min(at_most, self._shape[0]))
        rows, squared = torch.empty(room, dtype=torch.int64), torch.empty(room, dtype=torch.float64)
        with self._current():
            if len(self._results) < 16 * room:
                self._results = gpu.workspace(16 * room, self._device)
            count, above, below = self._native.rise(
                bar, room, self._results.data_ptr(), rows.data_ptr(), squared.data_ptr()
            )
        self._queued.clear()
        return squared[:count], rows[:count], above, below

    def _current(self) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
