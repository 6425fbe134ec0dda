"""Greedy k-center selection on the GPU, of rows there or in host memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmad_bank._internal.checks import check_index
from mmad_bank.errors import InputError
from mmad_bank.ops._cuda import device as gpu
from mmad_bank.ops._cuda.checks import check_rows
from mmad_bank.ops._cuda.operand import check_dim, fitting_operand, robust_center


def k_center_greedy(
    rows: Tensor,
    centers: Tensor | None,
    n_select: int,
    start: int,
    radius: float,
    report: Callable[[int], None] | None,
    *,
    device: torch.device | str | None = None,
    pool: int = 0,
    memory: int | None = None,
) -> tuple[Tensor, Tensor, float]:
    """Select greedily; arguments and results as :func:`mmad_bank.ops._torch.k_center_greedy.select`.

    With ``device``, ``rows`` may be in host memory: the device then keeps a bfloat16 copy, half their size, and reads
    the originals where float64 decides. The part of the copy that does not fit in ``memory`` bytes (by default: what is
    free) stays in host memory too, and is streamed through the device once per block of picks. ``pool`` is the number
    of rows that a block works on (0 chooses). None of these changes the selection.
    """
    _check(rows, centers, n_select, start)
    where = rows.device if device is None else gpu.with_index(torch.device(device))
    with gpu.current(where):
        rows, lock = gpu.readable(rows, where)
        center = robust_center(rows, where)
        earlier = None if centers is None else gpu.aligned(centers.to(where))
        n_earlier = 0 if earlier is None else len(earlier)
        number, stream = gpu.stream_of(where)

        def workspace_bytes(operand: Any) -> int:
            return gpu.native.k_center_workspace(number, operand, n_earlier, n_select, pool)

        operand, streamed = fitting_operand(rows, center, lambda view: workspace_bytes(view) + 16 * n_select, memory)
        picks = torch.empty(n_select, dtype=torch.int64, device=where)
        radii = torch.empty(n_select, dtype=torch.float64, device=where)
        workspace = gpu.workspace(workspace_bytes(operand.native), where)
        count, covering = gpu.native.k_center_greedy(
            number, stream, operand.native, rows.data_ptr(), 0 if earlier is None else earlier.data_ptr(), n_earlier,
            center.data_ptr(), n_select, start, radius, pool, workspace.data_ptr(), picks.data_ptr(), radii.data_ptr(),
            report,
        )  # fmt: skip
        del lock, streamed  # the device has finished
    return picks[:count], radii[:count].float(), covering


def _check(rows: Tensor, centers: Tensor | None, n_select: int, start: int) -> None:
    check_rows(rows, "features")
    check_dim(rows)
    if centers is not None:
        check_rows(centers, "bank")
        if rows.shape[1] != centers.shape[1]:
            raise InputError(f"features: expected {centers.shape[1]} columns as in the bank, found {rows.shape[1]}")
    check_index(n_select, "n_select", 0 if centers is not None else 1, len(rows), "the number of rows")
    check_index(start, "start", 0, len(rows) - 1, "the row numbers")
