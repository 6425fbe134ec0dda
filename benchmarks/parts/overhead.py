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
from parts.process import anonymous_bytes, reading_seconds, run_fresh, watching

MOST_OVERHEAD = 0.10

COLUMNS = [
    Column("what", ""),
    Column("seconds", "seconds", ".1f"),
    Column("start", "of which workers start", ".1f"),
    Column("work", "work", ".1f"),
    Column("read", "read + project", ".1f", detail=True),
    Column("select", "select", ".1f", detail=True),
    Column("ratio", "work, × one process", ".3f"),
    Column("gib", "GiB of rows and centres", ".2f"),
    Column("share", "× one process's", ".2f"),
    Column("moved", "MB moved", ".1f"),
    Column("formula", "by the formula", ".1f"),
    Column("trips", "round trips", ".0f", detail=True),
    Column("verdict", f"less than {MOST_OVERHEAD:.0%} more work"),
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
    ratios = [many["work"] / one["work"] for one, many in zip(runs["one"], runs["many"], strict=True)]
    one, many = (_medians(runs[kind]) for kind in ("one", "many"))
    ratio = statistics.median(ratios)
    same = len({run["picks"] for kind in runs.values() for run in kind}) == 1
    rows = [
        {"what": f"one process, {workers} threads", **one},
        {"what": f"{workers} workers of one thread", **many, "ratio": ratio, "share": many["gib"] / one["gib"],
         "verdict": "yes" if ratio <= 1 + MOST_OVERHEAD else "NO"},
    ]  # fmt: skip
    shape = runs["one"][0]["shape"]
    table = Table(f"{shape[0]} × {shape[1]} float32 on disk → {shape[2]} vectors", COLUMNS, rows, headline=True)
    table.notes = [
        f"MemoryBank.build with ratio={RATIO} and projection_dim={PROJECTION_DIM}, by itself and over workers, each in"
        f" fresh processes, {rounds} times in turn: medians, and the median of the rounds' ratios"
        f" ({min(ratios):.3f} to {max(ratios):.3f}). Ray runs before the clock does; that its workers import PyTorch is"
        " the start.",
        f"The banks are {'the same' if same else 'NOT THE SAME'}, row for row.",
        "Memory is anonymous, above what the process held before it had rows: of the one process the highest of samples"
        " 50 ms apart, of the workers the largest when the work was done. The program that asks them holds no rows.",
        "Moved: by the selection alone, between all workers and the program; the formula is that of"
        " docs/how-to/many-machines.md.",
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
    reached: dict[str, tuple[float, float]] = {}  # the first and the last report of every stage

    def note(stage: str, done: int, total: int) -> None:
        now = time.perf_counter()
        reached[stage] = (reached.get(stage, (now, now))[0], now)

    def build(selector: Any = None) -> tuple[float, MemoryBank, float]:
        begin = time.perf_counter()
        bank = MemoryBank.build(path, RATIO, projection_dim=PROJECTION_DIM, progress=note, selector=selector)
        return begin, bank, time.perf_counter()

    if not workers:
        before = anonymous_bytes()
        with watching() as memory:
            begin, bank, end = build()
        more: dict[str, Any] = {"start": 0.0, "gib": (memory.anonymous - before) / 2**30}
    else:
        with connect(None, workers), selecting_over(workers) as selector:
            begin, bank, end = build(selector)
        work = selector.work
        assert work is not None
        held = [now.own - start.own for now, start in zip(work.memory, work.at_start, strict=True)]
        moved, formula = work.selection, work.formula
        more = {
            "start": reached["Starting workers"][1] - begin, "gib": max(held) / 2**30,
            "moved": (moved.up + moved.down) / 1e6, "formula": (formula.up + formula.down) / 1e6,
            "trips": float(moved.round_trips),
        }  # fmt: skip
    read, selected = reached["Reading features"][1], reached["Selecting the coreset"][1]
    return {
        "seconds": end - begin, "work": end - begin - more["start"], "read": read - begin - more["start"],
        "select": selected - read, **more, "shape": [len(open_dump(path)), bank.dim, len(bank)],
        "picks": hash(tuple(bank.source_rows.tolist())),
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
