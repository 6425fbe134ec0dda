"""One kernel against float64 references, in a process of its own; workspaces are poisoned before every call.

    python benchmarks/gpu_parts/smoke.py CASE [full]

A line for each check; the exit status is the number of those that were wrong. Without ``full`` the sizes are tiny, as
the sanitizers need them.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from mmad_bank.ops import _cuda
from mmad_bank.ops._cuda import device as device_module
from mmad_bank.ops._cuda import operand
from mmad_bank.ops._torch.farthest_point_sample import farthest_point_sample as fps_by_torch
from mmad_bank.ops._torch.interpolate_features import interpolate_features as interpolate_by_torch
from mmad_bank.ops._torch.k_center_greedy import select as select_by_torch
from mmad_bank.ops._torch.knn_group import knn_group as group_by_torch

Pair = tuple[str, Tensor, Tensor]
WISH = "MMAD_BANK_WGMMA"
_SMALL = 1 << 20  # values: references of less are taken on the CPU, where all rows are summed in one order


class Checks:
    """Checks of kernels on a device; counts what was wrong."""

    def __init__(self, *, full: bool = False, device: str = "cuda") -> None:
        self.full, self.device, self.wrong = full, device, 0
        self._began = time.perf_counter()

    def compare(self, label: str, *pairs: Pair, rtol: float = 0.0) -> None:
        """Hold what was found against what was expected, value by value; without ``rtol``, bit by bit."""
        for name, found, expected in ((name, one.cpu(), other.cpu()) for name, one, other in pairs):
            if found.shape == expected.shape and _equal(found, expected, rtol):
                continue
            self.wrong += 1
            print(f"WRONG {label}, {name}: {_difference(found, expected)}", flush=True)
            return
        print(f"ok {label}  ({time.perf_counter() - self._began:.2f} s)", flush=True)

    # Inputs.

    def random(self, *shape: int, seed: int = 0) -> Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(self.device)

    def manifold(self, count: int, dim: int, seed: int = 0) -> Tensor:
        """Rows near a 24-dimensional set, as features of a network are."""
        rows = torch.tanh(self.random(count, 24, seed=seed) @ self.random(24, dim, seed=99))
        return rows + 0.05 * self.random(count, dim, seed=seed + 1)

    # Search.

    def search(
        self, label: str, queries: Tensor, bank: Tensor, k: int, precision: str = "half", *, every: int = 1,
        host: bool = False,
    ) -> _cuda.CudaIndex:  # fmt: skip
        index = _cuda.CudaIndex(bank.cpu() if host else bank, precision, device=self.device)
        distances, rows = index.search(queries, k)
        expected = brute_force(queries[::every], bank, k)
        words = f"{label} {len(queries)} x {len(bank)} x {bank.shape[1]}, k = {k}"
        pairs = ("rows", rows[::every], expected[1]), ("distances", distances[::every], expected[0])
        self.compare(words, *pairs)
        return index

    def knn(self, precision: str = "half") -> None:
        for q, m, d, k in [(5, 7, 8, 1), (150, 400, 40, 3), (70, 300, 200, 1), (50, 333, 33, 9), (20, 600, 60, 32)]:
            self.search(precision, self.random(q, d), self.random(m, d, seed=1), k, precision)
        for k in (1, 9, 32) if self.full else ():
            queries, bank = self.manifold(784, 768, seed=5), self.manifold(19129, 768)
            self.search(precision, queries, bank, k, precision, every=14)
        if self.full and precision == "half":
            self.search(precision, self.manifold(3136, 1152, seed=5), self.manifold(76518, 1152), 1, every=200)

    def hard(self) -> None:
        """What float64 has to decide, row by row."""
        two = torch.cat([self.random(200, 16, seed=1), self.random(200, 16, seed=2) + 3e3])
        far = self.random(300, 16, seed=1)
        far[3] *= 1e20
        zeros, eye = torch.zeros(300, 150, device=self.device), torch.eye(150, device=self.device)
        self.search("duplicates", self.random(50, 33), self.random(50, 33).repeat(10, 1), 8)
        self.search("clusters", self.random(20, 16), two, 4)
        self.search("zeros", zeros[:4, :5], zeros[:, :5].contiguous(), 3)
        self.search("overflow", self.random(20, 16) * 1e19, self.random(300, 16, seed=1) * 1e19, 4)
        self.search("outlier", self.random(20, 16), far, 4)
        self.search("equal", zeros[:3], eye, 7)
        queries = self.random(5, 6)
        queries[2, 3] = float("nan")
        distances, rows = _cuda.CudaIndex(self.random(300, 6, seed=1)).search(queries, 40)
        yes = torch.tensor([True])
        inside = ((rows >= 0) & (rows < 300)).all()[None]
        self.compare("NaN query", ("NaN", distances[2].isnan().all()[None], yes), ("rows inside", inside, yes))

    def long(self) -> None:
        for k in (33, 100, 256) if self.full else (33, 70):
            self.search("passes", self.random(20, 24), self.random(300, 24, seed=1), k)

    def graph(self) -> None:
        for wish in ("0", "1"):
            bank, queries = self.random(3000, 96), self.random(200, 96, seed=1)
            index = _cuda.CudaIndex(bank)
            graph = torch.cuda.CUDAGraph()
            with wished(wish):
                index.search(queries, 3)
                with torch.cuda.graph(graph):
                    _, rows = index.search(queries, 3)
            queries.copy_(self.random(200, 96, seed=2))
            rows.fill_(-1)
            graph.replay()
            self.compare(f"replay, wgmma = {wish}", ("rows", rows, brute_force(queries, bank, 3)[1]))

    def host(self) -> None:
        for dim in (3, 8, 130):
            bank = self.random(900, dim, seed=1)
            index = self.search("host vectors", self.random(30, dim), bank, 4, host=True)
            numbers = torch.randint(0, 900, (5, 4), generator=torch.Generator().manual_seed(0)).to(self.device)
            self.compare(f"gather {dim}", ("rows", index.gather(numbers), bank[numbers]))

    # Selection.

    def select(
        self, label: str, rows: Tensor, n_select: int, start: int = 3, earlier: Tensor | None = None,
        radius: float = -1.0, *, pool: int = 0, host: bool = False,
    ) -> None:  # fmt: skip
        given = rows.cpu() if host else rows
        picks, radii, _ = _cuda.k_center_greedy(
            given, earlier, n_select, start, radius, None, device=self.device, pool=pool
        )
        there = rows.cpu() if rows.numel() < _SMALL else rows
        centers = None if earlier is None else earlier.to(there.device)
        expected = select_by_torch(there, centers, n_select, start, radius, None)
        words = f"{label} {len(rows)} x {rows.shape[1]} -> {n_select}"
        self.compare(words, ("picks", picks, expected[0]))
        self.compare(f"{words}, radii", ("radii", radii, expected[1]), rtol=1e-6)

    def k_center(self) -> None:
        self.select("random", self.random(300, 16), 60)
        self.select("pool of 9", self.random(200, 33), 50, pool=9)
        self.select("all", self.random(100, 5), 100)
        self.select("duplicates", self.random(10, 8).repeat(8, 1), 80)
        self.select("equal", torch.eye(90, device=self.device), 90)
        if self.full:
            self.select("manifold", self.manifold(40000, 256), 1500)
            self.select("wide", self.manifold(60000, 768), 700)

    def extend(self) -> None:
        rows = torch.cat([self.random(180, 12), self.random(20, 12, seed=1)])
        earlier = self.random(150, 12, seed=1)
        for radius, n_select in ((-1.0, 25), (3.0, 200), (0.0, 200), (1e9, 200)):
            self.select(f"extend, radius {radius:g}", rows, n_select, 0, earlier, radius, pool=30)

    def streamed(self) -> None:
        original, count = operand.resident_tiles, 30000 if self.full else 1200
        rows = self.manifold(count, 64) if self.full else self.random(count, 8)
        try:
            for kept in (0, 5, count // 256):
                operand.resident_tiles = lambda *_, kept=kept: kept
                n_select, pool = (300, 0) if self.full else (25, 60)
                self.select(f"{kept} tiles on the device", rows, n_select, pool=pool, host=True)
        finally:
            operand.resident_tiles = original

    # Point clouds.

    def farthest(self) -> None:
        axis = torch.arange(6.0) * 0.1
        grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3).to(self.device)
        batch = [self.random(20000 if self.full else 200, 3, seed=s) for s in range(16 if self.full else 3)]
        cases = {
            "8 per thread": ([self.random(300, 3), self.random(1000, 3, seed=1)], 40),
            "24": ([self.random(5000, 3)], 12),
            "40": ([self.random(13000, 3)], 6),
            "beyond": ([self.random(21000, 3), self.random(60, 3)], 5),
            "ties": ([grid], 216 if self.full else 60),
            "batch": (batch, 128 if self.full else 9),
        }
        for name, (clouds, n) in cases.items():
            sizes = np.array([len(cloud) for cloud in clouds])
            found = _cuda.farthest_point_sample(torch.cat(clouds), np.cumsum(sizes) - sizes, sizes, n, 3, -1.0)
            everything = [torch.ones(1, len(cloud), dtype=torch.bool, device=self.device) for cloud in clouds]
            expected = [fps_by_torch(c[None], e, n, 3) for c, e in zip(clouds, everything, strict=True)]
            self.compare(f"farthest points, {name}", ("picks", found, torch.cat(expected)))

    def group(self) -> None:
        for n, groups, k in [(1500, 12, 128), (1200, 9, 1), (100, 9, 100), *([(20000, 1024, 128)] * self.full)]:
            points, centers = self.random(n, 3), self.random(groups, 3, seed=1)
            found = _cuda.knn_group(points, centers, k)
            self.compare(f"groups {n}, {groups} x {k}", ("rows", found, group_by_torch(points, centers, k)))
        clouds, centers = self.random(3, 700, 3), self.random(3, 8, 3, seed=1)
        expected = [group_by_torch(points, around, 32) for points, around in zip(clouds, centers, strict=True)]
        self.compare("groups of a batch", ("rows", _cuda.knn_group(clouds, centers, 32), torch.stack(expected)))

    def interpolate(self) -> None:
        for n, groups, d, k in [
            (50, 40, 70, 3),
            (50, 40, 128, 32),
            (9, 7, 7, 7),
            *([(20000, 1024, 1152, 3)] * self.full),
        ]:
            points, centers = self.random(n, 3), self.random(groups, 3, seed=1)
            features = self.random(groups, d, seed=2)
            found = _cuda.interpolate_features(points, centers, features, k, 2.0, 1e-8)
            expected = interpolate_by_torch(points, centers, features, k, 2.0, 1e-8, dense=False)
            self.compare(f"interpolation {n}, {groups} x {d}, k = {k}", ("values", found, expected), rtol=1e-4)
        batch = self.random(2, 60, 3), self.random(2, 9, 3, seed=1), self.random(2, 9, 20, seed=2)
        found = _cuda.interpolate_features(*batch, 3, 2.0, 1e-8)
        each = [interpolate_by_torch(*one, 3, 2.0, 1e-8, dense=False) for one in zip(*batch, strict=True)]
        self.compare("interpolation of a batch", ("values", found, torch.stack(each)), rtol=1e-4)


def brute_force(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """float64 differences, a block of the bank at a time; ties to the lowest row."""
    bank = bank.cpu() if bank.numel() < _SMALL else bank
    distances, rows = [], []
    for query in queries.to(bank.device):
        squared = torch.cat([(part.double() - query.double()).square_().sum(1) for part in bank.split(1 << 15)])
        order = torch.sort(squared, stable=True)
        distances.append(order.values[:k].sqrt().float())
        rows.append(order.indices[:k])
    return torch.stack(distances), torch.stack(rows)


def _equal(found: Tensor, expected: Tensor, rtol: float) -> bool:
    return torch.allclose(found, expected, rtol=rtol, atol=1e-6) if rtol else torch.equal(found, expected)


def _difference(found: Tensor, expected: Tensor) -> str:
    if found.shape != expected.shape:
        return f"shape {tuple(found.shape)} for {tuple(expected.shape)}"
    gap = (found.double() - expected.double()).abs()
    apart = ~(gap <= 0)  # NaN too
    at = tuple(int(i) for i in apart.nonzero()[0])
    return (
        f"{int(apart.sum())} of {apart.numel()} differ, first at {list(at)}: {found[at]} for {expected[at]},"
        f" largest gap {float(gap.max()):.3g}"
    )


def _by(wish: str, check: Callable[[Checks], None]) -> Callable[[Checks], None]:
    """Let a check ask for a product: "0" for mma.sync, "1" for sm_90a's wgmma."""

    def run_so(checks: Checks) -> None:
        with wished(wish):
            check(checks)

    return run_so


@contextmanager
def wished(product: str | None) -> Iterator[None]:
    """Ask for a product inside the block; None asks for none."""
    if product is None:
        yield
        return
    before = os.environ.get(WISH)
    os.environ[WISH] = product
    try:
        yield
    finally:
        os.environ.pop(WISH)
        if before is not None:
            os.environ[WISH] = before


CASES: dict[str, Callable[[Checks], None]] = {
    "knn": _by("0", Checks.knn), "wgmma": _by("1", Checks.knn), "int8": lambda checks: checks.knn("int8"),
    "hard": Checks.hard, "k_center": _by("0", Checks.k_center), "k_center_wgmma": _by("1", Checks.k_center),
    "streamed": Checks.streamed, "extend": Checks.extend, "farthest": Checks.farthest, "group": Checks.group,
    "interpolate": Checks.interpolate, "host": Checks.host, "long": Checks.long, "graph": Checks.graph,
}  # fmt: skip
"""Checks by name, those first that the sanitizers should reach."""


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill every workspace with bytes that make NaN and wrong rows: what nobody writes is seen."""
    plain = device_module.workspace
    device_module.workspace = lambda n, where: plain(n, where).fill_(255)
    try:
        yield
    finally:
        device_module.workspace = plain


def run(case: str, *, full: bool = False, device: str = "cuda") -> int:
    """Run a case; return how many of its checks were wrong."""
    checks = Checks(full=full, device=device)
    with poisoned():
        CASES[case](checks)
    if device == "cuda":
        torch.cuda.synchronize()
    print(f"{case}: {f'{checks.wrong} WRONG' if checks.wrong else 'all right'}")
    return checks.wrong


if __name__ == "__main__":
    sys.exit(min(80, run(sys.argv[1], full=sys.argv[2:] == ["full"])))
