"""What an exact selection costs on so many workers: time, memory and network, before anything is bought or started.

The model has four parts, each with measured constants (:class:`Pace`):

- A shard's work is proportional to its rows. Per row it grows with the number n of vectors selected as n^b: every row
  meets the centres that may be near it, and the most of them it never meets (b is about 0.5 where the textbook loop has
  1).
- The coordinator's work does not depend on the rows. It grows as n^c, and is not shared.
- Rows in scratch files are read once per request, as far as memory does not hold them, while others meet the centres.
- A round trip takes a latency, and a block of picks two of them and the bytes of its pool. Hundreds of blocks make even
  a large bank, so that is seconds.
"""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmad_bank._internal.checks import check_index
from mmad_bank._internal.decoding import decoding
from mmad_bank._internal.files import write_text
from mmad_bank.bank.projection import SparseProjection
from mmad_bank.errors import FormatError, InputError
from mmad_bank.ops import system_info
from mmad_bank.ops.k_center_shards import IN_MEMORY, ON_DISK, KCenterCoordinator, KCenterShard

_SAMPLE_BYTES, _SAMPLE_ROWS = 512 << 20, 1 << 20  # at most, that a pace is measured on
_SAMPLE_PICKS = 1 << 15  # at most, from them: with more, measuring takes minutes
_LEAST_SAMPLE = 50_000  # rows, where there are so many: of fewer, times are too short to measure
_LEAST_ROWS_PER_PICK = 16  # with fewer, the selection runs out of rows, and gets cheaper than one of many
_DIRECTIONS = 64  # that features of networks mostly lie near
_COARSE_FROM, _COARSE_DIMS = 192, 64  # see csrc/cpu/screen.cpp
_BOUNDS = 24  # bytes of a rounded row's bounds
_STATE = 16  # of a row's value, and of what it has seen
_PART, _NUMBER = 1 << 20, 8  # rows that are brought up to date together, and bytes of the number of one
_PROCESS = 350 << 20  # Python with PyTorch, measured
_POOL = 2048  # rows of a pool, at most
_CANDIDATE = 16  # bytes
_MOST = 1e15  # of a number that a saved pace holds

ROUND_TRIP = 0.001
"""Seconds of a call of a Ray actor and its answer, on one machine; networks of data centres add a tenth."""


def sample_rows(dim: int) -> int:
    """Return how many rows of a length tell enough of a machine's pace."""
    return max(1000, min(_SAMPLE_ROWS, _SAMPLE_BYTES // (4 * dim)))


@dataclass(frozen=True)
class Pace:
    """What a selection takes on a machine, per row and per vector selected.

    Attributes:
        machine: Name of the processor or device.
        dim: Length of the rows that it was measured with.
        threads: Threads of a worker.
        rows: Rows that it was measured on.
        picks: Vectors selected there.
        prepare: Seconds per row before the first pick.
        meet: Seconds per row for ``picks`` vectors.
        meet_exponent: b of meet ∝ n^b.
        choose: Seconds of the coordinator for ``picks`` vectors.
        choose_exponent: c of choose ∝ n^c.
        requests: Rises that were asked for.
        blocks: Blocks of picks.
        blocks_exponent: Of both by the number of picks.
    """

    machine: str
    dim: int
    threads: int
    rows: int
    picks: int
    prepare: float
    meet: float
    meet_exponent: float
    choose: float
    choose_exponent: float
    requests: int
    blocks: int
    blocks_exponent: float

    def save(self, path: Path) -> None:
        """Write it to a JSON file, for plans that are made elsewhere."""
        write_text(path, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Pace:
        """Read what :meth:`save` has written.

        Raises:
            InputError: No such file.
            FormatError: It is something else.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: cannot be read ({error})") from None
        with decoding(path, "it does not hold a pace that plan has saved", error=FormatError):
            content = json.loads(text)
            values = {field.name: content[field.name] for field in fields(cls)}
            for field in fields(cls):
                value: Any = values[field.name]
                most = 1 if field.name.endswith("_exponent") else _MOST
                if type(value).__name__ != field.type or not (field.type == "str" or 0 < value <= most):
                    raise ValueError(f"{field.name} is {value!r}")
            return cls(**values)


@dataclass(frozen=True)
class Plan:
    """What a selection is expected to cost.

    Attributes:
        rows: Rows to select from.
        dim: Their length in the space that is selected in.
        size: Vectors to select.
        workers: Number of workers.
        threads: Threads of each.
        read: Seconds to read a worker's rows.
        prepare: Seconds to round them.
        meet: Seconds in which they meet the centres.
        reread: Seconds in which scratch files are read again and again, at the same time.
        choose: Seconds of the coordinator, while the workers wait.
        network: Seconds that bytes and round trips take.
        memory: Bytes that a worker holds at most.
        scratch: Bytes of its scratch files.
        coordinator_memory: Bytes that the program holds that started the work.
        up: Bytes that a worker sends.
        down: Bytes that are sent to it.
        blocks: Blocks of picks.
    """

    rows: int
    dim: int
    size: int
    workers: int
    threads: int
    read: float
    prepare: float
    meet: float
    reread: float
    choose: float
    network: float
    memory: int
    scratch: int
    coordinator_memory: int
    up: int
    down: int
    blocks: int

    @property
    def seconds(self) -> float:
        """Seconds in all."""
        return self.read + self.prepare + max(self.meet, self.reread) + self.choose + self.network


def measure_pace(
    dim: int,
    size: int,
    *,
    threads: int | None = None,
    features: Tensor | None = None,
    n_rows: int | None = None,
    projected_from: int | None = None,
    on_disk: bool = False,
    machine: str | None = None,
) -> Pace:
    """Measure what a selection takes on this machine, in some seconds.

    Args:
        dim: Length of the rows, in the space that is selected in.
        size: Number of vectors that will be selected. Where the sample is too small for that many, fewer are, and the
            exponents of the growth so far tell the rest.
        threads: Threads of a worker; default: PyTorch's.
        features: (N, dim) float32 sample of the rows; default: synthetic ones that lie near 64 directions, as features
            of networks do, which 512 MiB hold.
        n_rows: Number of rows to select from: not many more synthetic ones are made. Default: unknown.
        projected_from: Length of the rows before a random projection to ``dim``, whose time is part of ``prepare``
            then. Default: there is no projection.
        on_disk: Whether the rows will be in scratch files: then fewer rises are asked for.
        machine: Name for it; default: the processor's.

    Raises:
        InputError: A length or a size below 1, or too few features.
    """
    check_index(dim, "dim", 1, 1 << 20, "the lengths that there are")
    check_index(size, "size", 1, 1 << 40, "the sizes that there are")
    rows = _sample(dim, n_rows) if features is None else features.contiguous()
    if rows.ndim != 2 or rows.shape[1] != dim or len(rows) < 1000:
        raise InputError(f"features: expected at least 1000 rows of length {dim}, found {tuple(rows.shape)}")
    count = max(2, min(size, len(rows) // _LEAST_ROWS_PER_PICK, _SAMPLE_PICKS))
    threads = torch.get_num_threads() if threads is None else threads
    run = _Run.of(rows, count, threads, on_disk)
    prepare = run.prepare / len(rows) + (0.0 if projected_from is None else _projecting(projected_from, dim, threads))
    meet, choose, blocks = run.meet[-1], run.choose[-1], run.blocks[-1]
    return Pace(
        machine or _processor(), dim, threads, len(rows), count, prepare, meet / len(rows),
        run.exponent(run.meet, 0.2, 1.0), choose, run.exponent(run.choose, 0.5, 1.0), run.requests, blocks,
        run.exponent(run.blocks, 0.1, 1.0),
    )  # fmt: skip


def plan(
    pace: Pace,
    n_rows: int,
    size: int,
    workers: int,
    *,
    machines: int | None = None,
    scratch: bool = False,
    row_bytes: int | None = None,
    cache: int = 0,
    disk_rate: float = 1e9,
    bandwidth: float = 1.25e9,
    round_trip: float = ROUND_TRIP,
) -> Plan:
    """Predict what a selection costs.

    Args:
        pace: Measured on a machine like those of the workers, with rows of the same length and as many threads.
        n_rows: Rows to select from.
        size: Vectors to select.
        workers: Number of shards.
        machines: Number of machines that they are on, each of which is sent a centre once; default: one each.
        scratch: Whether the rows and their rounded copies are in scratch files, not in memory.
        row_bytes: Bytes of a row on disk; default: as float32.
        cache: Bytes of memory that the system has for a worker's scratch files. They are read in one direction: where
            they are larger, nothing of them is left there when they are read again.
        disk_rate: Bytes that a worker reads or writes in a second.
        bandwidth: Bytes in a second between the coordinator and all machines together.
        round_trip: Seconds of a request and its answer.

    Raises:
        InputError: A number out of range.

    Example:
        >>> pace = Pace("a machine", 64, 2, 100_000, 10_000, 2e-7, 4e-6, 0.5, 0.2, 0.8, 90, 20, 0.4)
        >>> one, eight = (plan(pace, 10**8, 10_000, workers) for workers in (1, 8))
        >>> round(one.meet), round(eight.meet), one.choose == eight.choose
        (400, 50, True)
    """
    check_index(n_rows, "n_rows", 1, 1 << 50, "the numbers of rows that there are")
    check_index(size, "size", 1, n_rows, "the number of rows")
    check_index(workers, "workers", 1, 1 << 20, "the numbers of workers that there are")
    own = math.ceil(n_rows / workers)
    growth = size / pace.picks
    scale = growth**pace.blocks_exponent
    blocks, requests = math.ceil(pace.blocks * scale), math.ceil(pace.requests * scale)
    up, own_down, centers = _traffic(pace.dim, size, blocks, requests, workers)
    moved = workers * (up + own_down) + min(machines or workers, workers) * centers
    memory, files = _memory(own, pace.dim, size, workers, scratch)
    read = (own * (4 * pace.dim if row_bytes is None else row_bytes) + files) / disk_rate
    reread = requests * files / disk_rate if files > cache else 0.0
    return Plan(
        n_rows, pace.dim, size, workers, pace.threads, read, own * pace.prepare,
        own * pace.meet * growth**pace.meet_exponent, reread, pace.choose * growth**pace.choose_exponent,
        (requests + blocks) * round_trip + moved / bandwidth,
        memory, files, 4 * pace.dim * size + _PROCESS, up, own_down + centers, blocks,
    )  # fmt: skip


def enough(pace: Pace, n_rows: int, size: int, seconds: float, *, most: int = 1 << 16, **settings: Any) -> Plan | None:
    """Return the plan with the fewest workers that take at most ``seconds``; None if no number does.

    Args:
        pace: As for :func:`plan`.
        n_rows: As for :func:`plan`.
        size: As for :func:`plan`.
        seconds: Time to be done in.
        most: Largest number of workers to look at.
        settings: Other arguments of :func:`plan`.

    Example:
        >>> pace = Pace("a machine", 64, 2, 100_000, 10_000, 2e-7, 4e-6, 0.5, 0.2, 0.8, 90, 20, 0.4)
        >>> enough(pace, 10**8, 10_000, 60.0).workers
        8
    """
    workers = 1
    while workers <= most:
        found = plan(pace, n_rows, size, workers, **settings)
        if found.seconds <= seconds:
            return found
        # Files that memory may hold one day are not counted: more workers may then read them once.
        reread = 0.0 if settings.get("cache") else found.reread
        shared = found.read + found.prepare + max(found.meet, reread)
        rest = seconds - found.choose - found.network
        # No fewer workers than those that share the rest evenly can do; the network's part grows with them.
        per_row = shared / math.ceil(n_rows / workers)
        workers = max(workers + 1, math.ceil(n_rows * per_row / rest * (1 - 1e-9))) if rest > 0 else most + 1
    return None


def _traffic(dim: int, size: int, blocks: int, requests: int, workers: int) -> tuple[int, int, int]:
    """Return the bytes that a worker sends, those that it gets alone, and those of the centres, which all get."""
    pool = min(_POOL, max(size, 1))
    up = blocks * pool * 4 * dim // workers + requests * pool * _CANDIDATE
    return up, blocks * pool * _CANDIDATE // workers, size * (4 * dim + 8)


def _memory(own: int, dim: int, size: int, workers: int, scratch: bool) -> tuple[int, int]:
    """Return the bytes that a worker holds in memory at most, and those in scratch files."""
    depth = math.ceil(dim / 32) * 32
    is_coarse = dim >= _COARSE_FROM
    rounded = own * (2 * depth + (2 * _COARSE_DIMS if is_coarse else 0))
    bounds = _BOUNDS * (2 if is_coarse else 1)
    state = own * (bounds + _STATE) + min(own, _PART) * _NUMBER
    centers = size * (2 * depth + (2 * _COARSE_DIMS if is_coarse else 0) + bounds + 8)
    foreign = size * (workers - 1) // workers * 4 * dim
    making = own * (4 * _COARSE_DIMS + 4) if is_coarse else 0  # the coarse copy, from coordinates in float32
    resident = state + max(making, centers + foreign) + _PROCESS
    on_disk = own * 4 * dim + rounded
    return (resident, on_disk) if scratch else (resident + on_disk, 0)


@dataclass
class _Run:
    """A selection over one shard, with times after every block."""

    prepare: float
    requests: int
    picks: list[int]
    meet: list[float]
    choose: list[float]
    blocks: list[int]

    @classmethod
    def of(cls, rows: Tensor, count: int, threads: int, on_disk: bool) -> _Run:
        clock = time.perf_counter
        begin = clock()
        shard = KCenterShard(rows, n_centers=count, threads=threads)
        settings = ON_DISK if on_disk else IN_MEMORY
        coordinator = KCenterCoordinator(len(rows), count, threads=threads, **settings)
        run = cls(clock() - begin, 0, [], [], [], [])
        shard.meet(rows[:1], own=torch.tensor([0]))
        meet = choose = 0.0
        while coordinator.covering_radius is None:
            begin = clock()
            found = shard.rise(coordinator.bar, coordinator.wanted)
            risen = clock()
            coordinator.offer(found)
            stands, known = coordinator.join(), len(coordinator.rows)
            if stands and not coordinator.complete:
                coordinator.pick(rows[coordinator.pool])
            picked = clock()
            new = coordinator.rows_from(known)
            if len(new):
                shard.meet(rows[new], own=new)
                shard.settle(coordinator.pool, coordinator.values)
            meet, choose = meet + (risen - begin) + (clock() - picked), choose + (picked - risen)
            run.requests += 1
            if len(new):
                run.picks.append(len(coordinator.rows))
                run.meet.append(meet)
                run.choose.append(choose)
                run.blocks.append(len(run.picks))
        return run

    def exponent(self, values: Sequence[float], low: float, high: float) -> float:
        """Return the exponent of growth by the number of picks over the last decade, within bounds that make sense."""
        picks, grown = np.asarray(self.picks, float), np.asarray(values, float)
        late = (picks >= picks[-1] / 10) & (grown > 0)
        if late.sum() < 2 or picks[late].min() == picks[-1]:
            return (low + high) / 2
        slope = np.polyfit(np.log(picks[late]), np.log(grown[late]), 1)[0]
        return float(np.clip(slope, low, high))


def _projecting(dim_in: int, dim_out: int, threads: int) -> float:
    """Return the seconds that the projection of a row takes."""
    rows, projection = torch.rand(8192, dim_in), SparseProjection(dim_in, dim_out, seed=0)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    projection(rows[:512])
    begin = time.perf_counter()
    projection(rows)
    taken = time.perf_counter() - begin
    torch.set_num_threads(before)
    return taken / len(rows)


def _sample(dim: int, most: int | None = None) -> Tensor:
    """Return rows that lie near some directions, as features of networks do."""
    rng = np.random.default_rng(0)
    n_rows = sample_rows(dim)
    n_rows = n_rows if most is None else min(n_rows, max(_LEAST_SAMPLE, most))
    directions = rng.standard_normal((min(_DIRECTIONS, max(1, dim // 4)), dim), dtype=np.float32)
    rows = torch.empty(n_rows, dim)
    for block in rows.split(8192):
        inner = rng.standard_normal((len(block), len(directions)), dtype=np.float32)
        block[:] = torch.from_numpy(inner @ directions + 0.3 * rng.standard_normal(block.shape, dtype=np.float32))
    return rows


def _processor() -> str:
    cpu = system_info()["cpu"]
    return f"{platform.machine()} processor with {cpu['in use']}"
