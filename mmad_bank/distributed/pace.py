"""The pace of a machine: what a selection takes there per row and per vector, measured in some seconds."""

from __future__ import annotations

import json
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
LEAST_SAMPLE = 1000
"""Rows that a pace can be measured on."""
_MADE = 50_000  # rows at least, where there are so many: of fewer, times are too short to measure
_LEAST_ROWS_PER_PICK = 16  # with fewer, the selection runs out of rows, and gets cheaper than one of many
_DIRECTIONS = 64  # that features of networks mostly lie near
_SPARSE = 512  # one row of so many: all are read then, see csrc/cpu/k_center_shard.cpp
_MOST_THREADS = 1 << 16
_MOST = 1e15  # of a number that a saved pace holds


def sample_rows(dim: int) -> int:
    """Return how many rows of a length tell enough of a machine's pace."""
    return max(LEAST_SAMPLE, min(_SAMPLE_ROWS, _SAMPLE_BYTES // (4 * dim)))


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
        passes: How often these would have read the rows from a disk.
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
    passes: int
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
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
        except UnicodeDecodeError as error:
            raise FormatError(f"{path}: it does not hold a pace that plan has saved ({error})") from None
        with decoding(path, "it does not hold a pace that plan has saved", error=FormatError):
            content = json.loads(text)
            values = {field.name: content[field.name] for field in fields(cls)}
            for field in fields(cls):
                value: Any = values[field.name]
                most = 1 if field.name.endswith("_exponent") else _MOST
                if type(value).__name__ != field.type or not (field.type == "str" or 0 < value <= most):
                    raise ValueError(f"{field.name} is {value!r}")
            return cls(**values)


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
            of networks do, a million or as many as 512 MiB hold.
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
    if n_rows is not None:
        check_index(n_rows, "n_rows", 1, 1 << 50, "the numbers of rows that there are")
    if projected_from is not None:
        check_index(projected_from, "projected_from", 1, 1 << 20, "the lengths that there are")
    if threads is not None:
        check_index(threads, "threads", 1, _MOST_THREADS, "threads of a worker")
    rows = _sample(dim, n_rows) if features is None else features.contiguous()
    if rows.ndim != 2 or rows.shape[1] != dim or len(rows) < LEAST_SAMPLE:
        raise InputError(f"features: expected at least {LEAST_SAMPLE} rows of length {dim}, found {tuple(rows.shape)}")
    count = max(2, min(size, len(rows) // _LEAST_ROWS_PER_PICK, _SAMPLE_PICKS))
    threads = torch.get_num_threads() if threads is None else threads
    run = _Run.of(rows, count, threads, on_disk)
    prepare = run.prepare / len(rows) + (0.0 if projected_from is None else _projecting(projected_from, dim, threads))
    meet, choose, blocks = run.meet[-1], run.choose[-1], run.blocks[-1]
    return Pace(
        machine or _processor(), dim, threads, len(rows), count, prepare, meet / len(rows),
        run.exponent(run.meet, 0.2, 1.0), choose, run.exponent(run.choose, 0.5, 1.0), run.requests, run.passes, blocks,
        run.exponent(run.blocks, 0.1, 1.0),
    )  # fmt: skip


@dataclass
class _Run:
    """A selection over one shard, with times after every block."""

    prepare: float
    requests: int
    passes: int
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
        run = cls(clock() - begin, 0, 0, [], [], [], [])
        shard.meet(rows[:1], own=torch.tensor([0]))
        meet = choose = 0.0
        while coordinator.covering_radius is None:
            begin, updates = clock(), shard.updates
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
            run.passes += _SPARSE * (shard.updates - updates) >= len(rows)
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
    n_rows = n_rows if most is None else min(n_rows, max(_MADE, most))
    directions = rng.standard_normal((min(_DIRECTIONS, max(1, dim // 4)), dim), dtype=np.float32)
    rows = torch.empty(n_rows, dim)
    for block in rows.split(8192):
        inner = rng.standard_normal((len(block), len(directions)), dtype=np.float32)
        block[:] = torch.from_numpy(inner @ directions + 0.3 * rng.standard_normal(block.shape, dtype=np.float32))
    return rows


def _processor() -> str:
    cpu = system_info()["cpu"]
    return f"{platform.machine()} processor with {cpu['in use']}"
