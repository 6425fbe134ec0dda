"""The CUDA kernels behind the ops: PyTorch owns the memory and the stream, the native core does the work.

Tensors are checked by the callers (float32, contiguous, finite, one device). Nothing here waits for the device except
:func:`k_center_greedy`, which reads its progress once a block of picks.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmad_bank import _core
from mmad_bank.errors import InputError
from mmad_bank.ops import _knn_torch, _points_torch
from mmad_bank.ops._devices import free_memory
from mmad_bank.ops._host_rows import page_locked

MAX_NEIGHBORS = 256  # of knn: a pass over the bank finds 32, and the next one looks through those found before
MAX_INTERPOLATION = 32  # neighbours of interpolate_features: one lane of a warp each
MAX_GROUP = 128  # of knn_group
MAX_DIM = 16384  # the error bounds are derived for rows up to this long
_CENTER_SAMPLE = 4096  # rows that the common centre is estimated from
_native: Any = getattr(_core, "cuda", None)


def available(device: torch.device | str) -> bool:
    """Return whether the kernels were compiled, this device can run them, and the driver is new enough."""
    device = torch.device(device)
    if _native is None or device.type != "cuda" or not torch.cuda.is_available():
        return False
    return _runs_on(_with_index(device).index)


@functools.cache
def _runs_on(number: int) -> bool:
    if _native.device_count() <= number:  # 0 where the driver is older than the toolkit of the build
        return False
    return covers(_core.cuda_archs, torch.cuda.get_device_capability(number))


def _with_index(device: torch.device) -> torch.device:
    """Return ``cuda`` as the current device's full name, as tensors have it."""
    return torch.device("cuda", torch.cuda.current_device()) if device == torch.device("cuda") else device


def covers(archs: str, capability: tuple[int, int]) -> bool:
    """Return whether a build for ``archs`` ("80;90a") has code for a compute capability.

    Machine code runs on its own major version from its minor version on, that of "90a" on 9.0 alone. The lowest plain
    architecture is in the build as PTX too, which newer devices compile.
    """
    own = 10 * capability[0] + capability[1]
    plain = [int(arch) for arch in archs.split(";") if arch.isdigit()]
    exact = [int(arch.rstrip("af")) for arch in archs.split(";") if arch and not arch.isdigit()]
    return own in exact or (bool(plain) and min(plain) <= own)


def _on(device: torch.device) -> tuple[int, int]:
    """Return the number of the device and its current stream, as the native core takes them."""
    stream = torch.cuda.current_stream(device)
    return stream.device.index, stream.cuda_stream


def _current(device: torch.device) -> contextlib.AbstractContextManager[object]:
    return torch.cuda.device(device)


def _workspace(n_bytes: int, device: torch.device) -> Tensor:
    return torch.empty(max(1, n_bytes), dtype=torch.uint8, device=device)


def _aligned(rows: Tensor) -> Tensor:
    """Return rows that the kernels can read 16 bytes at a time; a view into the middle of a storage is copied."""
    rows = rows.contiguous()
    return rows if rows.data_ptr() % 16 == 0 else rows.clone()


def _robust_center(rows: Tensor, device: torch.device) -> Tensor:
    """Mean of the middle half of a sample in every coordinate: a few rows of huge norm do not move it.

    Any centre gives the same answers; one near the rows keeps their norms, and with them the error bounds, small.
    """
    step = max(1, len(rows) // _CENTER_SAMPLE)
    sample = rows[::step].to(device).sort(dim=0).values
    quarter = len(sample) // 4
    return sample[quarter : len(sample) - quarter].mean(0).contiguous()


class _Operand:
    """Rows in the form that the matrix units read, in one buffer on the device.

    ``resident`` is the number of tiles of 128 rows whose values are in it (all by default); those of the others are
    written to ``streamed``, page-locked host memory.
    """

    def __init__(
        self, rows: Tensor, center: Tensor, *, int8: bool, resident: int = -1, streamed: Tensor | None = None
    ) -> None:
        count, dim = rows.shape
        self.buffer = _workspace(_native.operand_bytes(count, dim, int8, resident), center.device)
        elsewhere = 0 if streamed is None else streamed.data_ptr()
        self.native = _native.Operand(self.buffer.data_ptr(), count, dim, int8, resident, elsewhere)
        device, stream = _on(center.device)
        _native.prepare(device, stream, self.native, rows.data_ptr(), count, dim, center.data_ptr(), 0)


def _readable(rows: Tensor, device: torch.device) -> tuple[Tensor, object]:
    """Return rows that kernels on ``device`` can read, on it or in page-locked host memory, and what must be kept."""
    if rows.device == device and device.type == "cuda":
        return _aligned(rows), None
    if rows.device.type != "cpu":
        raise InputError(f"features: expected a tensor on {device} or in host memory, found {rows.device}")
    return page_locked(_aligned(rows), device, _native)


def _check_dim(rows: Tensor) -> None:
    if rows.shape[1] > MAX_DIM:
        raise InputError(f"features: expected at most {MAX_DIM} columns on a CUDA device, found {rows.shape[1]}")


class CudaIndex:
    """A bank ready for exact search on the GPU.

    Args:
        vectors: (M, D) float32, on the device; or in host memory, which is page-locked then, where the kernels read the
            few rows that have to be decided in float64.
        precision: ``"half"`` and ``"auto"`` keep a bfloat16 copy on the device, ``"int8"`` one of half that size. The
            answers are the same.
        device: where to search, for vectors in host memory.
    """

    def __init__(self, vectors: Tensor, precision: str = "auto", *, device: torch.device | str | None = None) -> None:
        _check_dim(vectors)
        self.device = vectors.device if device is None else _with_index(torch.device(device))
        with _current(self.device):
            self.vectors, self._lock = _readable(vectors, self.device)
            self.center = _robust_center(self.vectors, self.device)
            self._operand = _Operand(self.vectors, self.center, int8=precision == "int8")
        self._wide: _knn_torch.TorchIndex | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the resident search copy."""
        return self._operand.buffer.nbytes + self.center.nbytes

    def gather(self, rows: Tensor) -> Tensor:
        """Return vectors by number, int64 (...) -> (..., D) on the device; the host does not wait."""
        if self.vectors.device.type == "cuda":
            return self.vectors[rows]
        numbers = rows.contiguous()
        output = torch.empty(*rows.shape, self.vectors.shape[1], dtype=torch.float32, device=self.device)
        if output.numel() == 0:
            return output
        with _current(self.device):
            device, stream = _on(self.device)
            _native.gather_rows(
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
        if k > MAX_NEIGHBORS:
            if self._wide is None:
                self._wide = _knn_torch.TorchIndex(self.vectors.to(self.device))
            return self._wide.search(queries, k)
        queries = _aligned(queries)
        distances = torch.empty(len(queries), k, dtype=torch.float32, device=self.device)
        indices = torch.empty(len(queries), k, dtype=torch.int64, device=self.device)
        if len(queries) == 0:
            return distances, indices
        with _current(self.device):
            device, stream = _on(self.device)
            bank = self._operand.native
            workspace = _workspace(_native.knn_workspace(device, len(queries), bank, k), self.device)
            _native.knn(
                device, stream, queries.data_ptr(), len(queries), bank, self.vectors.data_ptr(), self.center.data_ptr(),
                k, workspace.data_ptr(), distances.data_ptr(), indices.data_ptr(),
            )  # fmt: skip
        return distances, indices


def search_many(indices: Sequence[CudaIndex], queries: Sequence[Tensor], k: int) -> list[tuple[Tensor, Tensor]]:
    """Search several banks, each with its own queries, in one sequence of launches."""
    return [index.search(rows, k) for index, rows in zip(indices, queries, strict=True)]


def resident_tiles(tiles: int, tile_bytes: int, needed: Callable[[int], int], memory: int) -> int:
    """Return how many of a dump's tiles may stay on the device; the others are streamed.

    Args:
        tiles: of the whole dump.
        tile_bytes: of one of them.
        needed: resident tiles -> bytes of everything the selection keeps on the device.
        memory: bytes there.

    Raises:
        InputError: Not even what belongs to the rows themselves (norms, bounds, candidates) fits.
    """
    if needed(tiles) <= memory:
        return tiles
    spare = memory - needed(0)
    if spare < 0:
        raise InputError(f"features: the selection needs {needed(0)} bytes on the device, found {memory} free")
    return min(tiles - 1, spare // tile_bytes)


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
    """Select greedily; arguments and results as :func:`mmad_bank.ops._k_center_torch.select`.

    With ``device``, ``rows`` may be in host memory: the device then keeps a bfloat16 copy, half their size, and reads
    the originals where float64 decides. Of the copy, what does not fit in ``memory`` bytes (by default: what is free)
    stays in host memory too, and is streamed through the device once a block of picks. ``pool`` is the number of rows
    that a block works on (0 chooses). None of these changes the selection.
    """
    _check_dim(rows)
    where = rows.device if device is None else _with_index(torch.device(device))
    with _current(where):
        rows, lock = _readable(rows, where)
        center = _robust_center(rows, where)
        earlier = None if centers is None else _aligned(centers.to(where))
        n_earlier = 0 if earlier is None else len(earlier)
        number, stream = _on(where)
        resident = _resident_tiles(rows, where, n_earlier, n_select, pool, memory)
        streamed, streamed_lock = _streamed_values(rows, resident, where)
        operand = _Operand(rows, center, int8=False, resident=resident, streamed=streamed)
        picks = torch.empty(n_select, dtype=torch.int64, device=where)
        radii = torch.empty(n_select, dtype=torch.float64, device=where)
        workspace = _workspace(_native.k_center_workspace(number, operand.native, n_earlier, n_select, pool), where)
        count, covering = _native.k_center_greedy(
            number, stream, operand.native, rows.data_ptr(), 0 if earlier is None else earlier.data_ptr(), n_earlier,
            center.data_ptr(), n_select, start, radius, pool, workspace.data_ptr(), picks.data_ptr(), radii.data_ptr(),
            report,
        )  # fmt: skip
        del lock, streamed_lock  # the device has finished
    return picks[:count], radii[:count].float(), covering


def _resident_tiles(
    rows: Tensor, where: torch.device, n_earlier: int, n_select: int, pool: int, memory: int | None
) -> int:
    count, dim = rows.shape
    number, _ = _on(where)

    def needed(resident: int) -> int:
        operand = _native.Operand(0, count, dim, False, resident, 0)
        workspace = _native.k_center_workspace(number, operand, n_earlier, n_select, pool)
        return _native.operand_bytes(count, dim, False, resident) + workspace + 16 * n_select

    free = free_memory(where) if memory is None else memory
    return resident_tiles(_native.tiles(count), _native.tile_bytes(dim, False), needed, free)


def _streamed_values(rows: Tensor, resident: int, where: torch.device) -> tuple[Tensor | None, object]:
    """Return page-locked room for the tiles that are not resident, and what must be kept."""
    missing = _native.tiles(len(rows)) - resident
    if missing == 0:
        return None, None
    values = torch.empty(missing * _native.tile_bytes(rows.shape[1], False), dtype=torch.uint8)
    return page_locked(values, where, _native)


def farthest_point_sample(
    rows: Tensor, first_rows: np.ndarray, sizes: np.ndarray, n_select: int, start: int, floor: float
) -> Tensor:
    """Sample clouds packed as (T, 3) rows, cloud b from ``first_rows[b]`` on: int64 (B, n_select)."""
    layout = torch.from_numpy(np.stack([first_rows, sizes]).astype(np.int64)).to(rows.device)
    return _sample(rows, layout, int(sizes.max()), n_select, start, floor)


def sample_batch(points: Tensor, n_select: int, start: int) -> Tensor:
    """Sample clouds of one size, (B, N, 3) -> int64 (B, n_select); can be captured in a CUDA graph."""
    n_clouds, size, _ = points.shape
    first_rows = torch.arange(n_clouds, device=points.device) * size
    layout = torch.stack([first_rows, torch.full_like(first_rows, size)])
    return _sample(points.reshape(-1, 3), layout, size, n_select, start, -1.0)


def _sample(rows: Tensor, layout: Tensor, largest: int, n_select: int, start: int, floor: float) -> Tensor:
    """``layout`` holds the first rows and the sizes of the clouds, int64 (2, B)."""
    rows = rows.contiguous()
    n_clouds = layout.shape[1]
    picks = torch.empty(n_clouds, n_select, dtype=torch.int64, device=rows.device)
    with _current(rows.device):
        device, stream = _on(rows.device)
        workspace = _workspace(_native.farthest_point_workspace(len(rows)), rows.device)
        _native.farthest_point_sample(
            device, stream, rows.data_ptr(), len(rows), layout[0].data_ptr(), layout[1].data_ptr(), n_clouds, largest,
            n_select, start, floor, workspace.data_ptr(), picks.data_ptr(),
        )  # fmt: skip
    return picks


def knn_group(points: Tensor, centers: Tensor, k: int) -> Tensor:
    """Nearest points of each centre: (N, 3), (G, 3) -> int64 (G, k)."""
    if k > MAX_GROUP:
        return _points_torch.knn_group(points, centers, k)
    points, centers = points.contiguous(), centers.contiguous()
    indices = torch.empty(len(centers), k, dtype=torch.int64, device=points.device)
    if len(centers) == 0:
        return indices
    with _current(points.device):
        device, stream = _on(points.device)
        _native.knn_group(
            device, stream, points.data_ptr(), len(points), centers.data_ptr(), len(centers), k, indices.data_ptr()
        )
    return indices


def interpolate_features(points: Tensor, centers: Tensor, features: Tensor, k: int, power: float, eps: float) -> Tensor:
    """Spread features to points: (N, 3), (G, 3), (G, D) -> float32 (N, D)."""
    if k > MAX_INTERPOLATION:
        return _points_torch.interpolate_features(points, centers, features, k, power, eps, dense=True)
    points, centers, features = points.contiguous(), centers.contiguous(), features.contiguous()
    output = torch.empty(len(points), features.shape[1], dtype=torch.float32, device=points.device)
    if len(points) == 0:
        return output
    with _current(points.device):
        device, stream = _on(points.device)
        _native.interpolate_features(
            device, stream, points.data_ptr(), len(points), centers.data_ptr(), len(centers), features.data_ptr(),
            features.shape[1], k, power, eps, output.data_ptr(),
        )  # fmt: skip
    return output
