"""What an exact selection costs on so many workers: time, memory and network, before anything is bought or started.

The model has four parts, each with measured constants (:class:`Pace`):

- A shard's work is proportional to its rows. Per row it grows with the number n of vectors selected as n^b: every row
  meets the centres that may be near it, and the most of them it never meets (b is about 0.5 where the textbook loop has
  1).
- The coordinator's work does not depend on the rows. It grows as n^c, and is not shared.
- Rows in scratch files are read again to be rounded, and once per pass, as far as memory does not hold them. Rows are
  read while others meet the centres, so a pass takes the longer of the two: early ones wait for the disk, late ones for
  the arithmetic. After the share x of the passes x^(1/c) of the vectors are there, where passes grow as n^c.
- A round trip takes a latency, and a block of picks two of them and the bytes of its pool. Hundreds of blocks make even
  a large bank, so that is seconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from mmad_bank._internal.checks import check_index, check_number
from mmad_bank._internal.machine import PROCESS_BYTES
from mmad_bank.distributed.pace import Pace

_COARSE_FROM, _COARSE_DIMS = 192, 64  # see csrc/cpu/screen.cpp
_BOUNDS = 24  # bytes of a rounded row's bounds
_STATE = 16  # of a row's value, and of what it has seen
_PART, _NUMBER = 1 << 20, 8  # rows that are brought up to date together, and bytes of the number of one
_READ_AHEAD = 2 * (32 << 20)  # bytes of rows from scratch files that are in hand, or are read meanwhile
_POOL = 2048  # rows of a pool, at most
_STEPS = 4096  # that the passes of a selection are looked at in, at most
_CANDIDATE = 16  # bytes

ROUND_TRIP = 0.001
"""Seconds of a call of a Ray actor and its answer, on one machine; networks of data centres add a tenth."""


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
        reread: Seconds in which scratch files are read again and again, beyond those in which rows meet the centres.
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
        return self.read + self.prepare + self.meet + self.reread + self.choose + self.network


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
    scratch_rate: float | None = None,
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
        cache: Bytes of memory that the system has for a worker's scratch files: as many are not read again.
        disk_rate: Bytes that a worker reads or writes in a second.
        scratch_rate: Bytes that it reads in a second of scratch files that memory does not hold, past the system's
            cache. Default: ``disk_rate``; fast disks give more.
        bandwidth: Bytes in a second between the coordinator and all machines together.
        round_trip: Seconds of a request and its answer.

    Raises:
        InputError: A number out of range.

    Example:
        >>> pace = Pace("a machine", 64, 2, 100_000, 10_000, 2e-7, 4e-6, 0.5, 0.2, 0.8, 90, 60, 20, 0.4)
        >>> one, eight = (plan(pace, 10**8, 10_000, workers) for workers in (1, 8))
        >>> round(one.meet), round(eight.meet), one.choose == eight.choose
        (400, 50, True)
    """
    check_index(n_rows, "n_rows", 1, 1 << 50, "the numbers of rows that there are")
    check_index(size, "size", 1, n_rows, "the number of rows")
    check_index(workers, "workers", 1, 1 << 20, "the numbers of workers that there are")
    if machines is not None:
        check_index(machines, "machines", 1, 1 << 20, "the numbers of machines that there are")
    if row_bytes is not None:
        check_index(row_bytes, "row_bytes", 1, 1 << 40, "the lengths of rows that there are")
    check_index(cache, "cache", 0, 1 << 62, "the memories that there are")
    scratch_rate = disk_rate if scratch_rate is None else scratch_rate
    for name, value in (("disk_rate", disk_rate), ("scratch_rate", scratch_rate), ("bandwidth", bandwidth)):
        check_number(value, name, above=0)
    check_number(round_trip, "round_trip", least=0)
    own = math.ceil(n_rows / workers)
    growth = size / pace.picks
    scale = growth**pace.blocks_exponent
    blocks, requests, passes = (math.ceil(each * scale) for each in (pace.blocks, pace.requests, pace.passes))
    up, own_down, centers = _traffic(pace.dim, size, blocks, requests, workers)
    moved = workers * (up + own_down) + min(machines or workers, workers) * centers
    memory, files = _memory(own, pace.dim, size, workers, scratch)
    read = (own * (4 * pace.dim if row_bytes is None else row_bytes) + files) / disk_rate
    rows = 4 * own * pace.dim if scratch else 0
    written = rows if rows > cache else 0  # and read again, to be rounded
    meet = own * pace.meet * growth**pace.meet_exponent
    reading = passes * max(0, files - cache) / scratch_rate
    reread = written / disk_rate + _waiting(reading, meet, passes, pace.meet_exponent / pace.blocks_exponent)
    return Plan(
        n_rows, pace.dim, size, workers, pace.threads, read, own * pace.prepare,
        meet, reread, pace.choose * growth**pace.choose_exponent,
        (requests + blocks) * round_trip + moved / bandwidth,
        memory, files, 4 * pace.dim * size + PROCESS_BYTES, up, own_down + centers, blocks,
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
        >>> pace = Pace("a machine", 64, 2, 100_000, 10_000, 2e-7, 4e-6, 0.5, 0.2, 0.8, 90, 60, 20, 0.4)
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
        shared = found.read + found.prepare + found.meet + reread
        rest = seconds - found.choose - found.network
        # No fewer workers than those that share the rest evenly can do; the network's part grows with them.
        per_row = shared / math.ceil(n_rows / workers)
        workers = max(workers + 1, math.ceil(n_rows * per_row / rest * (1 - 1e-9))) if rest > 0 else most + 1
    return None


def _waiting(reading: float, meet: float, passes: int, exponent: float) -> float:
    """Return the seconds in which passes wait for a disk, where the work of the first x of them grows as x^exponent."""
    steps = min(passes, _STEPS)  # of millions of passes, many at a time are alike
    shares = [(number / steps) ** exponent for number in range(steps + 1)]
    works = [meet * (later - earlier) for earlier, later in pairwise(shares)]
    return sum(max(0.0, reading / steps - work) for work in works)


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
    others = size if scratch else size * (workers - 1) // workers
    foreign = others * 4 * dim + (_READ_AHEAD if scratch else 0)
    making = own * (4 * _COARSE_DIMS + 4) if is_coarse else 0  # the coarse copy, from coordinates in float32
    resident = state + max(making, centers + foreign) + PROCESS_BYTES
    on_disk = own * 4 * dim + rounded
    return (resident, on_disk) if scratch else (resident + on_disk, 0)
