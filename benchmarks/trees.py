"""Whether a change made the engine slower: two checkouts of this repository, timed against each other.

    python benchmarks/trees.py OLD NEW [--rounds 15] [--only "query|build"] [--json PATH]

OLD and NEW are folders with a built core (``pip install -e . --no-deps`` or ``python setup.py build_ext --inplace`` in
each). Both run at the same time, each in a process of its own that waits while the other is timed; every round times
both, in turn. Printed are the medians, and the median of the rounds' ratios: above 1 the new one is slower. Only what
both have is asked of them: ``mmad_bank.ops``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from common import Table

_PAUSE = 0.05  # seconds before a timing, for the clock of a processor that was busy


def main() -> None:
    """Time both trees and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", default="", metavar="PATTERN", help="regular expression of the cases to time")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.threads)
        return
    from common import describe_machine, machine_table, print_table, refuse, versions, versions_table  # not in the old

    for tree in (arguments.old, arguments.new):
        if not any((tree / "mmad_bank").glob("_core*.so")):
            refuse(f"{tree}: expected a checkout with a built core, found no mmad_bank/_core*.so")
    rows = compare(arguments.old, arguments.new, arguments.rounds, arguments.threads, arguments.only)
    for table in (machine_table(describe_machine(arguments.threads), {}), versions_table(versions()), _table(rows)):
        print_table(table)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def compare(old: Path, new: Path, rounds: int, threads: int, pattern: str = "") -> list[dict[str, Any]]:
    """Return a row per case: medians in seconds, and the median ratio of new to old."""
    servers = [_start(tree, threads) for tree in (old, new)]
    before, after = (json.loads(_read(server)) for server in servers)
    rows = []
    for name in filter(re.compile(pattern).search, [name for name in after if name in before]):
        times: list[list[float]] = [[], []]
        for round_ in range(rounds + 1):  # the first one warms up
            for place in (0, 1) if round_ % 2 else (1, 0):
                seconds = _ask(servers[place], name)
                times[place] += [seconds] if round_ else []
        ratios = [there / here for here, there in zip(*times, strict=True)]
        rows.append({
            "case": name, "old": statistics.median(times[0]), "new": statistics.median(times[1]),
            "ratio": statistics.median(ratios), "low": sorted(ratios)[len(ratios) // 4],
            "high": sorted(ratios)[-1 - len(ratios) // 4],
        })  # fmt: skip
    for server in servers:
        server.terminate()
    return rows


def _table(rows: list[dict[str, Any]]) -> Table:
    from common import Column, Table

    return Table(
        "New against old",
        [
            Column("case", "case"), Column("old", "old ms", ".2f"), Column("new", "new ms", ".2f"),
            Column("ratio", "new / old", ".3f"), Column("low", "lower quartile", ".3f"),
            Column("high", "upper quartile", ".3f"),
        ],
        [{**row, "old": 1000 * row["old"], "new": 1000 * row["new"]} for row in rows],
    )  # fmt: skip


def _start(tree: Path, threads: int) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(tree.resolve())}
    command = [sys.executable, __file__, str(tree), str(tree), "--serve", "--threads", str(threads)]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _read(server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    line = server.stdout.readline()
    if not line:
        sys.exit("error: a process that is timed ended early; its message is above")
    return line


def _ask(server: subprocess.Popen[str], name: str) -> float:
    assert server.stdin is not None
    time.sleep(_PAUSE)
    server.stdin.write(json.dumps(name) + "\n")
    server.stdin.flush()
    return float(_read(server))


def serve(threads: int) -> None:
    """Make the cases, name them, and run the one that is asked for, timed."""
    cases = _cases(threads)
    print(json.dumps(list(cases)), flush=True)
    for line in sys.stdin:
        begin = time.perf_counter()
        cases[json.loads(line)]()
        print(time.perf_counter() - begin, flush=True)


def _cases(threads: int) -> dict[str, Callable[[], object]]:
    """Return what is timed: searches of one image and of few queries, selections, and making an index ready."""
    import numpy as np
    import torch

    from mmad_bank import ops

    torch.set_num_threads(threads)
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(64, 768)).astype(np.float32)

    def features(n: int) -> torch.Tensor:
        """Return rows (n, 768) that lie near 64 dimensions, as networks' features do."""
        inner, noise = rng.normal(size=(n, 64)).astype(np.float32), rng.normal(size=(n, 768)).astype(np.float32)
        return torch.from_numpy(inner @ directions + 0.3 * noise)

    bank, image, rows = features(19_129), features(784), features(20_000)
    narrow = rows @ torch.from_numpy(rng.normal(size=(768, 128)).astype(np.float32))
    indices = {kind: ops.SearchIndex(bank, precision=kind) for kind in ("auto", "float32", "half", "int8")}
    small = ops.SearchIndex(torch.from_numpy(rng.normal(size=(200, 64)).astype(np.float32)))
    few = torch.from_numpy(rng.normal(size=(16, 64)).astype(np.float32))
    cases: dict[str, Callable[[], object]] = {}
    for kind, index in indices.items():
        cases[f"search, 784 queries, {kind}"] = lambda index=index: index.search(image, 1)
        cases[f"search, 1 query, {kind}, 20 times"] = lambda index=index: [
            index.search(image[i : i + 1], 1) for i in range(20)
        ]
    cases["search, 784 queries, 5 neighbors"] = lambda: indices["auto"].search(image, 5)
    cases["search, 16 queries of a bank of 200, 200 times"] = lambda: [small.search(few, 1) for _ in range(200)]
    cases["build an index"] = lambda: ops.SearchIndex(bank).search(image[:1], 1)
    cases["select 1,000 of 20,000 rows of 768"] = lambda: ops.k_center_greedy(rows, 1000)
    many = features(62_720)[:, :272].contiguous()
    cases["select 6,272 of 62,720 rows of 272"] = lambda: ops.k_center_greedy(many, 6272)
    cases["select 2,000 of 20,000 rows of 128"] = lambda: ops.k_center_greedy(narrow, 2000)
    return cases


if __name__ == "__main__":
    main()
