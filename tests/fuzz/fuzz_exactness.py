"""Hold random searches and selections against float64, with values of all magnitudes.

A search counts as one query against one bank: its k neighbours must be those of float64 distances computed from
differences. A selection counts as one call of k_center_greedy: every pick must be the textbook's. Two distances count
as equal (a float64 tie) where their squares differ by at most 1e-12 of themselves, which is how far two orders of
summation may be apart; rows that are equal bit for bit must come in rising order. Everything else is a mismatch: the
program prints it, with the seed that makes it again, and exits with 1.

    python tests/fuzz/fuzz_exactness.py --searches 1000000 --selections 10000
    python tests/fuzz/fuzz_exactness.py --isa avx2 --seed 7 --seconds 60
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

TIE = 1e-12  # of the squared distances
LARGEST_NORM = 3e17  # of a row, as drawn: banks may lie within 1e18 of their centre
KINDS = (
    "normal", "rows of all scales", "values of all scales", "few values", "offset", "mixture", "sparse", "constant",
)  # fmt: skip


class Instance(NamedTuple):
    """One draw: what is searched, and how."""

    kind: str
    bank: np.ndarray
    queries: np.ndarray
    k: int
    precision: str
    threads: int


def scales(rng: np.random.Generator, shape: tuple[int, ...] = ()) -> np.ndarray:
    """Powers of ten from the smallest subnormal numbers to the longest rows."""
    return 10.0 ** rng.uniform(-45, 17.4, shape)


def draw_rows(rng: np.random.Generator, n: int, dim: int, kind: str, scale: float, offset: np.ndarray) -> np.ndarray:
    """Return (n, dim) float32 rows, none longer than the core takes."""
    rows = rng.normal(size=(n, dim)) * scale
    if kind == "rows of all scales":
        rows = rng.normal(size=(n, dim)) * scales(rng, (n, 1))
    elif kind == "values of all scales":
        rows = rng.choice([-1.0, 1.0], (n, dim)) * scales(rng, (n, dim))
    elif kind == "few values":
        rows = rng.integers(-1, 2, (n, dim)) * scale
    elif kind == "offset":
        rows = offset + rows
    elif kind == "mixture":
        rows *= rng.choice([1.0, 1e-20, 1e-7, 0.0], (n, 1))
    elif kind == "sparse":
        rows *= rng.random((n, dim)) < 0.1
    elif kind == "constant":
        rows = np.full((n, dim), scale) * (1.0 + (rng.random((n, 1)) < 0.05) * 1e-6)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    rows *= LARGEST_NORM / np.maximum(norms, LARGEST_NORM)
    rows = rows.astype(np.float32)
    for _ in range(int(rng.integers(0, 4))):  # copies
        rows[rng.integers(n, size=max(1, n // 8))] = rows[rng.integers(n)]
    if rng.random() < 0.2:
        rows[rng.integers(n)] = 0.0
    return rows


def draw(rng: np.random.Generator, precisions: tuple[str, ...]) -> Instance:
    kind = str(rng.choice(KINDS))
    wide = rng.random() < 0.03
    size = int(rng.integers(1, 60 if wide else rng.choice([8, 40, 300])))
    dim = int(rng.integers(193, 400)) if wide else int(rng.choice([1, 2, 3, 7, 16, 31, 32, 33, 40]))
    count = int(rng.integers(1, 12 if wide else 100))
    scale = float(scales(rng))
    offset = rng.normal(size=dim) * min(scale * 10.0 ** rng.uniform(-2, 8), 1e17)
    bank = draw_rows(rng, size, dim, kind, scale, offset)
    other = kind if rng.random() < 0.8 else str(rng.choice(KINDS))
    near = scale if rng.random() < 0.7 else float(scales(rng))
    queries = draw_rows(rng, count, dim, other, near, offset)
    same = rng.random(count) < rng.choice([0.0, 0.3])
    queries[same] = bank[rng.integers(size, size=int(same.sum()))]
    k = int(rng.choice([1, min(3, size), size, rng.integers(1, size + 1)]))
    return Instance(kind, bank, queries, k, str(rng.choice(precisions)), int(rng.choice([1, 1, 1, 2, 3])))


def groups_of_copies(rows: np.ndarray) -> np.ndarray:
    """Number of each row's value: equal for rows that are equal bit for bit (but for the sign of zero)."""
    _, numbers = np.unique(rows + np.float32(0), axis=0, return_inverse=True)
    return numbers.reshape(-1)


def wrong_search(bank: np.ndarray, query: np.ndarray, distances: np.ndarray, found: np.ndarray) -> str:
    """Say what is wrong with one query's neighbours, or return an empty string."""
    k = len(found)
    if len(set(found.tolist())) != k or found.min() < 0 or found.max() >= len(bank):
        return f"rows {found.tolist()}"
    squared = np.square(bank.astype(np.float64) - query.astype(np.float64)).sum(1)
    mine = squared[found]
    right = np.sort(squared)[:k]
    if not np.all(np.abs(mine - right) <= TIE * right):
        return f"squared distances {mine.tolist()}, expected {right.tolist()}"
    if not np.allclose(distances, np.sqrt(mine).astype(np.float32), rtol=2e-7, atol=1.5e-45):
        return f"distances {distances.tolist()}, expected {np.sqrt(mine).tolist()}"
    numbers = groups_of_copies(bank)
    for number in np.unique(numbers[found]):
        copies = found[numbers[found] == number]
        if not np.array_equal(copies, np.flatnonzero(numbers == number)[: len(copies)]):
            return f"copies in the order {copies.tolist()}"
    return ""


def wrong_selection(rows: np.ndarray, picks: np.ndarray, start: int) -> str:
    """Follow the picks and say where the textbook's loop would not have made one."""
    wide = rows.astype(np.float64)
    numbers = groups_of_copies(rows)
    nearest = np.full(len(rows), np.inf)
    if picks[0] != start:
        return f"starts with row {picks[0]}, expected {start}"
    for i, pick in enumerate(picks.tolist()):
        if nearest[pick] < 0:
            return f"row {pick} twice"
        largest = nearest.max()
        if i > 0 and not (nearest[pick] == largest or nearest[pick] >= largest * (1 - TIE)):
            return f"pick {i} is row {pick} at squared distance {nearest[pick]}, the largest is {largest}"
        lower = np.flatnonzero((numbers[:pick] == numbers[pick]) & (nearest[:pick] >= 0))
        if i > 0 and len(lower):
            return f"pick {i} is row {pick}, its copy {lower[0]} comes first"
        nearest = np.minimum(nearest, np.square(wide - wide[pick]).sum(1))
        nearest[picks[: i + 1]] = -1.0
    return ""


Search = Callable[[np.ndarray, np.ndarray, int, str], tuple[np.ndarray, np.ndarray]]
Select = Callable[[np.ndarray, int, int], np.ndarray]


def engines() -> dict[str, tuple[Search, Select]]:
    """Return the implementations that a host without a GPU can run."""
    import torch

    from mmad_bank import ops
    from mmad_bank.ops._torch.k_center_greedy import select as select_by_torch
    from mmad_bank.ops._torch.knn import TorchIndex

    def native_search(queries: np.ndarray, bank: np.ndarray, k: int, precision: str) -> tuple[np.ndarray, np.ndarray]:
        distances, found = ops.knn(queries, bank, k, precision=precision)  # type: ignore[arg-type]
        return distances.numpy(), found.numpy()

    def torch_search(queries: np.ndarray, bank: np.ndarray, k: int, precision: str) -> tuple[np.ndarray, np.ndarray]:
        distances, found = TorchIndex(torch.from_numpy(bank)).search(torch.from_numpy(queries), k)
        return distances.numpy(), found.numpy()

    def native_select(rows: np.ndarray, count: int, start: int) -> np.ndarray:
        return ops.k_center_greedy(rows, count, start=start).numpy()

    def torch_select(rows: np.ndarray, count: int, start: int) -> np.ndarray:
        return select_by_torch(torch.from_numpy(rows), None, count, start, -1.0, None)[0].numpy()

    return {"native": (native_search, native_select), "torch": (torch_search, torch_select)}


class Tally:
    """What was done, and what was wrong."""

    def __init__(self) -> None:
        self.done: Counter[str] = Counter()
        self.mismatches = 0

    def report(self, words: str) -> None:
        self.mismatches += 1
        if self.mismatches <= 20:
            print(f"MISMATCH {words}", flush=True)


def run_search(rng: np.random.Generator, search: Search, seed: str, tally: Tally) -> None:
    import torch

    case = draw(rng, ("auto", "float32", "half", "int8"))
    torch.set_num_threads(case.threads)
    distances, found = search(case.queries, case.bank, case.k, case.precision)
    tally.done["searches"] += len(case.queries)
    # All queries at once: most answers are exactly NumPy's, and only the others are looked at one by one.
    gaps = case.queries[:, None].astype(np.float64) - case.bank[None].astype(np.float64)
    expected = np.square(gaps, out=gaps).sum(-1)
    order = np.argsort(expected, axis=1, kind="stable")[:, : case.k]
    right = np.sqrt(np.take_along_axis(expected, order, 1)).astype(np.float32)
    for q in np.flatnonzero((order != found).any(1) | (right != distances).any(1)):
        words = wrong_search(case.bank, case.queries[q], distances[q], found[q])
        if words:
            tally.report(f"search {seed}, {case.kind}, {case.precision}, query {q}: {words[:400]}")


def run_selection(rng: np.random.Generator, select: Select, seed: str, tally: Tally) -> None:
    import torch

    case = draw(rng, ("auto",))
    torch.set_num_threads(case.threads)
    count, start = int(rng.integers(1, len(case.bank) + 1)), int(rng.integers(len(case.bank)))
    picks = select(case.bank, count, start)
    tally.done["selections"] += 1
    words = wrong_selection(case.bank, picks, start) if len(picks) == count else f"{len(picks)} picks of {count}"
    if words:
        tally.report(f"selection {seed}, {case.kind}: {words[:400]}")


def run(searches: int, selections: int, seconds: float, seed: int, engine: str) -> Tally:
    """Do so many searches and selections, or as many as the time allows."""
    search, select = engines()[engine]
    tally = Tally()
    end = time.monotonic() + seconds
    number = 0
    while time.monotonic() < end and (tally.done["searches"] < searches or tally.done["selections"] < selections):
        number += 1
        rng = np.random.default_rng([seed, number])
        share = tally.done["searches"] * max(selections, 1) <= tally.done["selections"] * max(searches, 1)
        wanted = tally.done["searches"] < searches and (share or tally.done["selections"] >= selections)
        (run_search if wanted else run_selection)(rng, search if wanted else select, f"[{seed}, {number}]", tally)  # type: ignore[arg-type]
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searches", type=int, default=20000, help="queries to search, per instruction set and engine")
    parser.add_argument("--selections", type=int, default=200, help="selections, per instruction set and engine")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="time limit of each instruction set")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--isa", help="one instruction set (generic, avx2, avx512, amx); default: all that run here")
    parser.add_argument("--engine", choices=("native", "torch"), default="native", help="torch: the PyTorch fallback")
    given = parser.parse_args()
    if given.isa is None and given.engine == "native":
        from mmad_bank.ops import system_info

        again = [sys.executable, *sys.argv, "--isa"]
        codes = [subprocess.run([*again, isa], check=False).returncode for isa in system_info()["cpu"]["can run"]]
        return int(any(codes))
    if given.isa:
        os.environ["MMAD_BANK_ISA"] = given.isa
    began = time.monotonic()
    tally = run(given.searches, given.selections, given.seconds, given.seed, given.engine)
    done = ", ".join(f"{tally.done[what]} {what}" for what in ("searches", "selections"))
    took = time.monotonic() - began
    print(f"{given.isa or given.engine}: {done}, {tally.mismatches} mismatches, {took:.0f} s", flush=True)
    return 1 if tally.mismatches else 0


if __name__ == "__main__":
    sys.exit(main())
