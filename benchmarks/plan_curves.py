"""What is enough for a selection: one processor's worker, one node, eight nodes, or one GPU, by the number of rows.

    python benchmarks/plan_curves.py [--dim 768] [--ratio 0.01] [--pace FILE] [--json PATH] [--picture PATH]

Measures this machine's pace, or takes one that ``mmad-bank plan --save-pace`` has written, and plans with it: a worker
of one thread, a node of 32 such workers, eight nodes over 10 Gbit/s. A GPU's line comes from the kept result of one
H100: two selections tell its seconds per pick and per product, and it ends where its memory does. Prints how many rows
each selects the share ``--ratio`` of within a minute, ten minutes and an hour. ``--picture`` draws the curves.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import canvas
import numpy as np
from common import Column, Table, describe_machine, machine_table, print_table, refuse, versions, versions_table

from mmad_bank._internal.files import replacing
from mmad_bank.distributed.pace import Pace, measure_pace
from mmad_bank.distributed.planning import plan
from mmad_bank.errors import MmadBankError

GPU_RESULT = "gpu-h100-*.json"
GPU_JOBS = ((191_296, 19_130, 768), (765_184, 76_518, 1152))
GPU_MEMORY, GPU_ROW_BYTES = 80e9, 170  # of a row beside its 16-bit copy, see ops.k_center_greedy
THREADS, WORKERS_A_NODE, NODES = 1, 32, 8
LIMITS = {"a minute": 60.0, "ten minutes": 600.0, "an hour": 3600.0}
COLORS = ("#8a8f98", "#0b6e75", "#12496b", "#b5651d")
Seconds = Callable[[int], float]


def main() -> None:
    """Plan, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--ratio", type=float, default=0.01)
    parser.add_argument("--pace", type=Path, help="file of `mmad-bank plan --save-pace` (default: measured)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--picture", type=Path, help="PNG or SVG file for the curves")
    arguments = parser.parse_args()
    try:
        pace = Pace.load(arguments.pace) if arguments.pace else measure_pace(arguments.dim, 10**6, threads=THREADS)
    except MmadBankError as error:
        refuse(error)
    lines = _lines(pace, arguments.ratio)
    rows = [_reach(name, seconds, most) for name, (seconds, most) in lines.items()]
    for table in (
        machine_table(describe_machine(THREADS), {}),
        versions_table(versions()),
        _table(rows, pace, arguments),
    ):
        print_table(table)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    if arguments.picture is not None:
        draw(arguments.picture, lines, pace, arguments.ratio)


def _lines(pace: Pace, ratio: float) -> dict[str, tuple[Seconds, float]]:
    """Return, by name, the seconds for so many rows, and the most rows that fit."""

    def over(workers: int, machines: int = 1) -> Seconds:
        return lambda n_rows: plan(pace, n_rows, max(1, round(n_rows * ratio)), workers, machines=machines).seconds

    a_pick, a_product = _gpu_constants()

    def on_gpu(n_rows: int) -> float:
        return ratio * n_rows * (a_pick + a_product * n_rows * pace.dim)

    return {
        "a worker": (over(1), np.inf),
        f"a node, {WORKERS_A_NODE} workers": (over(WORKERS_A_NODE), np.inf),
        f"{NODES} nodes": (over(NODES * WORKERS_A_NODE, NODES), np.inf),
        "an H100": (on_gpu, GPU_MEMORY / (2 * pace.dim + GPU_ROW_BYTES)),
    }


def _gpu_constants() -> tuple[float, float]:
    """Return the seconds of a pick, and of a product of two values, from the kept result's two selections."""
    path = max((Path(__file__).parent / "results").glob(GPU_RESULT))
    found = json.loads(path.read_text(encoding="utf-8"))
    taken = {
        row["size"]: row["seconds"]
        for table in found["parts"]["k_center"]
        for row in table["rows"]
        if row.get("name") == "mmad-bank"
    }
    jobs = [(n, picks, dim, taken[f"{n} x {dim} -> {picks}"]) for n, picks, dim in GPU_JOBS]
    counts = np.array([[picks, float(n) * picks * dim] for n, picks, dim, _ in jobs])
    a_pick, a_product = np.linalg.solve(counts, np.array([seconds for *_, seconds in jobs]))
    return float(a_pick), float(a_product)


def _reach(name: str, seconds: Seconds, most: float) -> dict[str, Any]:
    """Return how many rows are selected from within each limit: by halving."""
    row: dict[str, Any] = {"name": name, "most": None if np.isinf(most) else int(most)}
    for words, limit in LIMITS.items():
        low, high = 100, int(min(most, 1e13))
        while high - low > low // 1000:
            middle = (low + high) // 2
            low, high = (middle, high) if seconds(middle) <= limit else (low, middle)
        row[words] = low
    return row


def _table(rows: list[dict[str, Any]], pace: Pace, arguments: argparse.Namespace) -> Table:
    columns = [Column("name", "")] + [Column(words, f"rows in {words}", ",.0f") for words in LIMITS]
    table = Table(f"Selecting {arguments.ratio:.1%} of rows of {pace.dim}", columns, rows)
    a_pick, a_product = _gpu_constants()
    table.notes = [
        f"Pace: {pace.picks:,} of {pace.rows:,} rows, {pace.threads} threads, {pace.machine}; per row as (vectors"
        f" selected)^{pace.meet_exponent:.2f}. Rows in memory, read at 1 GB/s a worker; 10 Gbit/s between all.",
        f"An H100: {1e6 * a_pick:.2f} µs a pick and {2e-12 / a_product:.0f} TFLOP/s, by two kept selections; reading is"
        f" not counted, and its memory ends it at {rows[-1]['most']:,} rows.",
    ]
    return table


def draw(path: Path, lines: dict[str, tuple[Seconds, float]], pace: Pace, ratio: float) -> None:
    """Draw the seconds over the number of rows."""
    with canvas.styled(), replacing(path) as partial:
        figure = canvas.empty(3.6)
        axes = figure.subplots()
        for color, (name, (seconds, most)) in zip(COLORS, lines.items(), strict=True):
            counts = np.geomspace(1e5, min(most, 1e10), 60)
            axes.plot(counts, [seconds(int(n)) for n in counts], color=color, label=name, linewidth=1.6)
            if not np.isinf(most):
                axes.plot(counts[-1], seconds(int(counts[-1])), "o", color=color, markersize=4)
        for words, limit in LIMITS.items():
            axes.axhline(limit, color="#c9ccd1", linewidth=0.8, zorder=0)
            axes.text(1.1e5, limit * 1.12, words, color="#6b7078", fontsize=8)
        axes.set(xscale="log", yscale="log", xlabel=f"rows of {pace.dim}", ylabel="seconds", ylim=(0.05, 3e5))
        axes.set_title(f"Time to select {ratio:.0%} of the rows, as planned")
        axes.legend(loc="lower right")
        figure.savefig(partial, format=path.suffix[1:], metadata={"Software": None} if path.suffix == ".png" else None)


if __name__ == "__main__":
    sys.exit(main())
