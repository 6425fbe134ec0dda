"""What workers cost beside one process: the bagel-size job over two workers of one thread, and in one process of two.

Run as a program it is one measured build: one JSON argument in, one JSON line out.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from common import Column, Options, Table, working_folder
from inputs import BAGEL_IMAGES, write_wide_dump

from mmad_bank.bank import MemoryBank, open_dump
from mmad_bank.distributed.building import selecting_over
from mmad_bank.distributed.cluster import connect
from parts.bagel import PROJECTION_DIM, RATIO
from parts.process import reading_seconds, run_fresh, watching

MOST_OVERHEAD = 0.10

COLUMNS = [
    Column("what", ""),
    Column("seconds", "seconds", ".1f"),
    Column("select", "select", ".1f", detail=True),
    Column("ratio", "× one process", ".3f"),
    Column("gib", "peak GiB, resident, of a worker", ".2f"),
    Column("share", "× one process's", ".2f"),
    Column("up", "MB up", ".1f"),
    Column("down", "MB down", ".1f"),
    Column("trips", "round trips", ".0f", detail=True),
    Column("verdict", ""),
]


def run(options: Options, limits: Mapping[str, float]) -> list[Table]:
    """Build the bank in one process and over workers, in turn, each time in fresh processes."""
    n_images, rounds = (3 if options.quick else BAGEL_IMAGES), (1 if options.quick else options.rounds)
    workers = options.threads
    with working_folder(options.workdir, "overhead") as folder:
        dump = folder / f"dump-v1-{n_images}.npy"
        if not dump.exists():
            write_wide_dump(dump, n_images)
        runs: dict[str, list[dict[str, Any]]] = {"one": [], "many": []}
        for number in range(rounds):
            for kind in ("one", "many") if number % 2 == 0 else ("many", "one"):
                reading_seconds(dump)
                job = {"dump": str(dump), "threads": workers, "workers": workers if kind == "many" else 0}
                runs[kind].append(run_fresh("overhead", job))
        if not (options.keep and options.workdir is not None):
            dump.unlink()
    ratios = [many["seconds"] / one["seconds"] for one, many in zip(runs["one"], runs["many"], strict=True)]
    one, many = (_medians(runs[kind]) for kind in ("one", "many"))
    ratio, share = statistics.median(ratios), many["gib"] / one["gib"]
    same = len({run["picks"] for kind in runs.values() for run in kind}) == 1
    rows = [
        {"what": f"one process, {workers} threads", **one},
        {"what": f"{workers} workers of one thread", **many, "ratio": ratio, "share": share,
         "verdict": ("yes" if ratio <= 1 + MOST_OVERHEAD else "NO") + f": less than {MOST_OVERHEAD:.0%} more"},
    ]  # fmt: skip
    shape = runs["one"][0]["shape"]
    table = Table(f"{shape[0]} × {shape[1]} float32 on disk → {shape[2]} vectors", COLUMNS, rows, headline=True)
    table.notes = [
        f"MemoryBank.build and distributed.build with ratio={RATIO} and projection_dim={PROJECTION_DIM}, each in fresh"
        f" processes, {rounds} times in turn: medians, and the median of the rounds' ratios. Ray is started before the"
        " clock is.",
        f"The banks are {'the same' if same else 'NOT THE SAME'}, row for row.",
        "Resident memory is the kernel's high-water mark, the libraries with it. The program that asks the workers"
        " holds the bank and no rows.",
    ]
    return [table]


def _medians(runs: list[dict[str, Any]]) -> dict[str, Any]:
    numbers = {name: [run[name] for run in runs] for name, value in runs[0].items() if isinstance(value, float)}
    return {name: statistics.median(values) for name, values in numbers.items()}


# ---------------------------------------------------------------------------------------------------------------------
# The measured process


def measure(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Build a bank; return seconds, memory, and what went over the wire."""
    path, workers = Path(arguments["dump"]), arguments["workers"]
    torch.set_num_threads(arguments["threads"])
    reached: dict[str, float] = {}

    def note(stage: str, done: int, total: int) -> None:
        reached.setdefault(stage, time.perf_counter())
        reached["last"] = time.perf_counter()

    settings: dict[str, Any] = {"projection_dim": PROJECTION_DIM, "progress": note}
    if not workers:
        with watching() as memory:
            begin = time.perf_counter()
            bank = MemoryBank.build(path, RATIO, **settings)
            taken = time.perf_counter() - begin
        more: dict[str, Any] = {"gib": memory.resident / 2**30}
    else:
        with connect(None, workers), selecting_over(workers) as selector:
            begin = time.perf_counter()
            bank = MemoryBank.build(path, RATIO, selector=selector, **settings)
            taken = time.perf_counter() - begin
        work = selector.work
        assert work is not None
        more = {
            "gib": max(one.peak for one in work.memory) / 2**30, "up": work.traffic.up / 1e6,
            "down": work.traffic.down / 1e6, "trips": float(work.traffic.round_trips),
        }  # fmt: skip
    select = reached["last"] - reached["Selecting the coreset"]
    return {
        "seconds": taken, "select": select, **more, "shape": [len(open_dump(path)), bank.dim, len(bank)],
        "picks": hash(tuple(bank.source_rows.tolist())),
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
