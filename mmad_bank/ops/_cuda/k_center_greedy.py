"""Greedy k-center selection on the GPU, of rows there or in host memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmad_bank._internal.checks import check_index
from mmad_bank.errors import InputError
from mmad_bank.ops import _dispatch
from mmad_bank.ops._cuda import device as gpu
from mmad_bank.ops._cuda import operand as operands
from mmad_bank.ops._cuda.checks import check_rows
from mmad_bank.ops._cuda.host_rows import page_locked
from mmad_bank.ops._cuda.operand import Operand, check_dim, robust_center


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
        resident = _resident_tiles(rows, where, n_earlier, n_select, pool, memory)
        streamed, streamed_lock = _streamed_values(rows, resident, where)
        operand = Operand(rows, center, int8=False, resident=resident, streamed=streamed)
        picks = torch.empty(n_select, dtype=torch.int64, device=where)
        radii = torch.empty(n_select, dtype=torch.float64, device=where)
        n_bytes = gpu.native.k_center_workspace(number, operand.native, n_earlier, n_select, pool)
        workspace = gpu.workspace(n_bytes, where)
        count, covering = gpu.native.k_center_greedy(
            number, stream, operand.native, rows.data_ptr(), 0 if earlier is None else earlier.data_ptr(), n_earlier,
            center.data_ptr(), n_select, start, radius, pool, workspace.data_ptr(), picks.data_ptr(), radii.data_ptr(),
            report,
        )  # fmt: skip
        del lock, streamed_lock  # the device has finished
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


def _resident_tiles(
    rows: Tensor, where: torch.device, n_earlier: int, n_select: int, pool: int, memory: int | None
) -> int:
    count, dim = rows.shape
    number, _ = gpu.stream_of(where)

    def needed(resident: int) -> int:
        operand = gpu.native.Operand(0, count, dim, False, resident, 0)
        workspace = gpu.native.k_center_workspace(number, operand, n_earlier, n_select, pool)
        return gpu.native.operand_bytes(count, dim, False, resident) + workspace + 16 * n_select

    free = _dispatch.free_memory(where) if memory is None else memory
    return operands.resident_tiles(gpu.native.tiles(count), gpu.native.tile_bytes(dim, False), needed, free)


def _streamed_values(rows: Tensor, resident: int, where: torch.device) -> tuple[Tensor | None, object]:
    """Return page-locked room for the tiles that are not resident, and what must be kept."""
    missing = gpu.native.tiles(len(rows)) - resident
    if missing == 0:
        return None, None
    values = torch.empty(missing * gpu.native.tile_bytes(rows.shape[1], False), dtype=torch.uint8)
    return page_locked(values, where, gpu.native)
