"""How a selection over workers grows with the rows and the vectors selected, and what `mmad-bank plan` says before.

Run as a program it is one measured build: one JSON argument in, one JSON line out.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Column, Options, Table, working_folder

from mmad_bank.bank import MemoryBank
from mmad_bank.distributed import planning
from mmad_bank.distributed.building import selecting_over
from mmad_bank.distributed.cluster import connect
from mmad_bank.distributed.pace import measure_pace, sample_rows
from parts.process import available_bytes, drop_from_cache, reading_seconds, run_fresh
from parts.scaling import fit

DIM, DIRECTIONS, NOISE = 64, 16, 0.3
MOST_OFF = 0.20
_BLOCK = 1 << 20  # rows that are drawn at once
_SAMPLE_ROWS, _RUNS = sample_rows(DIM), 64
_TRIPS = 200  # round trips that are timed
_HELD = 1 << 29  # bytes that the program and Ray hold, for each worker

COLUMNS = [
    Column("rows", "rows", ",.0f"),
    Column("size", "vectors", ",.0f"),
    Column("where", "rows are in"),
    Column("seconds", "seconds", ".1f"),
    Column("planned", "planned", ".1f"),
    Column("ratio", "planned / measured", ".2f"),
    Column("own", "GiB of its own, a worker", ".2f"),
    Column("planned_gib", "planned", ".2f"),
    Column("up", "MB up", ".1f"),
    Column("down", "MB down", ".1f"),
    Column("trips", "round trips", ".0f"),
    Column("disk", "disk, GB/s", ".1f"),
    Column("direct", "past the cache, GB/s", ".1f"),
]
EXPONENTS = [
    Column("grows", "grows with"),
    Column("held", "held fixed"),
    Column("range", "range"),
    Column("exponent", "exponent", ".2f"),
    Column("error", "± standard error", ".2f"),
]


def run(options: Options, limits: Mapping[str, float]) -> list[Table]:
    """Measure a pace, plan, select, and compare."""
    jobs = _jobs(options)
    with working_folder(options.workdir, "growth") as folder:
        rows = []
        for n_rows, size, on_disk in jobs:
            path = folder / f"rows-v1-{n_rows}.npy"
            if not path.exists():
                _write(path, n_rows)
            rows.append(_measure(path, n_rows, size, options.threads, folder if on_disk else None))
            if not (options.keep and options.workdir is not None) and n_rows not in {
                job[0] for job in jobs[len(rows) :]
            }:
                path.unlink()
    off = math.exp(max(abs(math.log(row["ratio"])) for row in rows)) - 1
    trips = [row["round_trip"] for row in rows]
    verdict = "within" if off <= MOST_OFF else "NOT within"
    title = f"Selection from N × {DIM} float32 on disk over {options.threads} workers of one thread"
    table = Table(title, COLUMNS, rows, headline=True)
    table.notes = [
        f"Rows: seed 0, {DIRECTIONS} directions and {NOISE} of noise. Each selection in fresh processes, once, without"
        " the start of Ray and of the workers. Where the rows are in scratch files, these and their rounded copies are"
        " mapped, and 'of its own' is what the system cannot take back.",
        f"Planned: by a pace that is measured on {_SAMPLE_ROWS:,} of the rows (or all) before each, by the memory that"
        f" was free, by the disk's rates, at which {options.threads} threads had read the whole dump before, through"
        " the system's cache and past it, and by the time of a round trip of workers without work"
        f" ({1e3 * min(trips):.1f} to {1e3 * max(trips):.1f} ms). Furthest off: {off:.0%} ({verdict} {MOST_OFF:.0%}).",
    ]
    exponents = Table("How it grows", EXPONENTS, list(_exponents(rows)))
    exponents.notes = ["Exponent: b of seconds = a · size^b, by least squares of the logarithms over the range."]
    return [table, exponents]


def _jobs(options: Options) -> list[tuple[int, int, bool]]:
    """Return (rows, vectors, whether the rows are in scratch files)."""
    if options.quick:
        return [(20_000, 200, False), (40_000, 200, False), (40_000, 400, True)]
    jobs = [(n, 10_000, False) for n in (300_000, 1_000_000, 3_000_000, 10_000_000)]
    jobs += [(3_000_000, size, False) for size in (1000, 3000, 30_000)]
    jobs += [(10_000_000, 10_000, True)]
    return jobs + ([(100_000_000, 10_000, True)] if options.full else [])


def _write(path: Path, n_rows: int) -> None:
    """Write rows that lie near some directions."""
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((DIRECTIONS, DIM), dtype=np.float32)
    unfinished = path.with_suffix(".part")
    with unfinished.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (n_rows, DIM)}
        np.lib.format.write_array_header_1_0(file, header)
        for first in range(0, n_rows, _BLOCK):
            count = min(_BLOCK, n_rows - first)
            inner = rng.standard_normal((count, DIRECTIONS), dtype=np.float32)
            (inner @ directions + NOISE * rng.standard_normal((count, DIM), dtype=np.float32)).tofile(file)
    unfinished.rename(path)


def _measure(path: Path, n_rows: int, size: int, workers: int, scratch: Path | None) -> dict[str, Any]:
    on_disk = scratch is not None
    pace = measure_pace(DIM, size, threads=1, features=_sample(path, n_rows), on_disk=on_disk)
    drop_from_cache(path)
    rate = path.stat().st_size / reading_seconds(path, workers)  # all of it: a cache may have the first gigabyte
    direct = path.stat().st_size / reading_seconds(path, workers, direct=True)
    settings: dict[str, Any] = {"scratch": on_disk, "disk_rate": rate / workers, "scratch_rate": direct / workers}
    free = available_bytes() // workers - planning.plan(pace, n_rows, size, workers, **settings).memory - _HELD
    drop_from_cache(path)
    job = {"dump": str(path), "size": size, "workers": workers, "scratch": None if scratch is None else str(scratch)}
    found = run_fresh("growth", job)
    settings |= {"cache": max(0, free), "round_trip": found["round_trip"]}
    planned = planning.plan(pace, n_rows, size, workers, **settings)
    return {
        "rows": n_rows, "size": size, "where": "scratch files" if on_disk else "memory", **found,
        "planned": planned.seconds, "ratio": planned.seconds / found["seconds"],
        "planned_gib": planned.memory / 2**30, "disk": rate / 1e9, "direct": direct / 1e9,
    }  # fmt: skip


def _sample(path: Path, n_rows: int) -> torch.Tensor:
    """Return rows from all over a dump, in runs."""
    wanted = min(n_rows, _SAMPLE_ROWS)
    runs = (
        np.load(path, mmap_mode="r")[: n_rows // wanted * wanted].reshape(_RUNS, -1, DIM) if n_rows > wanted else None
    )
    if runs is None:
        return torch.from_numpy(np.load(path))
    return torch.from_numpy(np.concatenate([run[: wanted // _RUNS] for run in runs]))


def _exponents(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    inside = [row for row in rows if row["where"] == "memory"]
    for grows, fixed in (("rows", "size"), ("size", "rows")):
        for value in sorted({row[fixed] for row in inside}):
            line = [row for row in inside if row[fixed] == value]
            if len(line) < 2:
                continue
            fitted = fit([{"x": row[grows], "median": row["seconds"]} for row in line])
            words = {"rows": "rows", "size": "vectors selected"}
            yield {
                "grows": words[grows], "held": f"{value:,} {words[fixed]}",
                "range": f"{min(row[grows] for row in line):,} to {max(row[grows] for row in line):,}",
                "exponent": fitted["exponent"], "error": fitted.get("stderr"),
            }  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# The measured process


def _time_round_trips(ray: Any, workers: int) -> float:
    """Return the median seconds in which all workers have been asked for nothing, and have answered."""
    actor, taken = ray.remote(num_cpus=1)(Idle), []
    actors = [actor.remote() for _ in range(workers)]
    for _ in range(_TRIPS + 1):
        begin = time.perf_counter()
        ray.get([one.answer.remote() for one in actors])
        taken.append(time.perf_counter() - begin)
    for one in actors:
        ray.kill(one)
    return statistics.median(taken[1:])


class Idle:
    """A worker without work."""

    def answer(self) -> None:
        """Do nothing."""


def measure(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Build a bank; return seconds, memory, and what went over the wire."""
    workers, started = arguments["workers"], []
    torch.set_num_threads(1)

    def note(stage: str, done: int, total: int) -> None:
        if stage == "Starting workers":
            started.append(time.perf_counter() - begin)

    with connect(None, workers) as ray, selecting_over(workers, scratch=arguments["scratch"]) as selector:
        round_trip, begin = _time_round_trips(ray, workers), time.perf_counter()
        bank = MemoryBank.build(arguments["dump"], size=arguments["size"], selector=selector, progress=note)
        taken = time.perf_counter() - begin - started[0]
    work = selector.work
    assert work is not None
    if len(bank.source_rows.unique()) != arguments["size"]:
        raise RuntimeError("the bank holds a row twice, or another number of rows than was asked for")
    return {
        "seconds": taken, "own": max(one.own for one in work.memory) / 2**30, "up": work.traffic.up / 1e6,
        "round_trip": round_trip, "down": work.traffic.down / 1e6, "trips": work.traffic.round_trips,
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
