"""Rows in the form that the matrix units read, on the device or streamed through it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmad_bank.errors import InputError
from mmad_bank.ops import _dispatch
from mmad_bank.ops._cuda import device as gpu
from mmad_bank.ops._cuda.host_rows import page_locked

_CENTER_SAMPLE = 256  # rows that the common centre is estimated from, those that csrc/cpu/operand.cpp takes


def robust_center(rows: Tensor, device: torch.device) -> Tensor:
    """Mean of the middle half of a sample in every coordinate: a few rows of huge norm do not move it.

    Any centre gives the same answers; one near the rows keeps their norms, and with them the error bounds, small. It is
    the one of the CPU kernels: the same rows, values that are not finite as zeros, summed in float64.
    """
    taken = min(len(rows), _CENTER_SAMPLE)
    sample = rows[torch.arange(taken, device=rows.device) * len(rows) // taken].to(device)
    ordered = torch.where(sample.isfinite(), sample, 0.0).sort(dim=0).values
    quarter = taken // 4
    return ordered[quarter : taken - quarter].double().mean(0).float().contiguous()


class Operand:
    """Rows in the form that the matrix units read, in one buffer on the device.

    ``resident`` is the number of tiles of 128 rows whose values are in it (all by default); those of the others are
    written to ``streamed``, page-locked host memory.
    """

    def __init__(
        self, rows: Tensor, center: Tensor, *, int8: bool, resident: int = -1, streamed: Tensor | None = None
    ) -> None:
        count, dim = rows.shape
        self.buffer = gpu.workspace(gpu.native.operand_bytes(count, dim, int8, resident), center.device)
        elsewhere = 0 if streamed is None else streamed.data_ptr()
        self.native = gpu.native.Operand(self.buffer.data_ptr(), count, dim, int8, resident, elsewhere)
        device, stream = gpu.stream_of(center.device)
        gpu.native.prepare(device, stream, self.native, rows.data_ptr(), count, dim, center.data_ptr(), 0)


def fitting_operand(
    rows: Tensor, center: Tensor, beside: Callable[[Any], int], memory: int | None
) -> tuple[Operand, object]:
    """Prepare rows to bfloat16, with as many tiles on the device as fit, and the others in page-locked host memory.

    Args:
        rows: Rows that the device can read.
        center: What is subtracted from them, on the device.
        beside: Function from the native operand to the bytes of everything else that the selection keeps there.
        memory: Bytes that are free on the device; None asks it.

    Returns:
        The operand, and what must be kept with it.
    """
    count, dim = rows.shape
    where, tile_bytes, tiles = center.device, gpu.native.tile_bytes(dim, False), gpu.native.tiles(count)

    def needed(resident: int) -> int:
        operand = gpu.native.Operand(0, count, dim, False, resident, 0)
        return gpu.native.operand_bytes(count, dim, False, resident) + beside(operand)

    free = _dispatch.free_memory(where) if memory is None else memory
    resident = resident_tiles(tiles, tile_bytes, needed, free)
    streamed, lock = None, None
    if resident < tiles:
        streamed, lock = page_locked(torch.empty((tiles - resident) * tile_bytes, dtype=torch.uint8), where, gpu.native)
    return Operand(rows, center, int8=False, resident=resident, streamed=streamed), (streamed, lock)


def check_dim(rows: Tensor) -> None:
    if rows.shape[1] > gpu.MAX_DIM:
        raise InputError(f"features: expected at most {gpu.MAX_DIM} columns on a CUDA device, found {rows.shape[1]}")


def resident_tiles(tiles: int, tile_bytes: int, needed: Callable[[int], int], memory: int) -> int:
    """Return how many of a dump's tiles may stay on the device; the others are streamed.

    Args:
        tiles: Number of tiles of the whole dump.
        tile_bytes: Bytes of one tile.
        needed: Function from the number of resident tiles to the bytes of everything that the selection keeps on the
            device.
        memory: Bytes that are free on the device.

    Raises:
        InputError: Not even what belongs to the rows themselves (norms, bounds, candidates) fits.
    """
    if needed(tiles) <= memory:
        return tiles
    spare = memory - needed(0)
    if spare < 0:
        raise InputError(f"features: the selection needs {needed(0)} bytes on the device, found {memory} free")
    return min(tiles - 1, spare // tile_bytes)
