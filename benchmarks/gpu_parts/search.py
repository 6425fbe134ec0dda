"""Parts of the exact search: the device's ceilings, times against peers, host memory, the way to the score, growth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from common import Column, Table
from torch import Tensor

from gpu_parts import measuring
from gpu_parts.measuring import Report, Work, features_like_a_network, last_words
from gpu_parts.smoke import wished
from mmad_bank import MemoryBank, scoring
from mmad_bank.ops import _cuda

PADDED = "torch.matmul bf16, columns padded to 64"
DEFAULT, BY_MMA, BY_WGMMA = "graph replay", "mma.sync, graph replay", "wgmma, graph replay"
CDIST, FAISS, CUVS = "torch.cdist + topk", "faiss GpuIndexFlatL2", "cuVS brute force, as called"
CALLED = "as called"
ESTIMATES = {BY_MMA: "38–50 %", BY_WGMMA: "63–75 %"}
"""Shares of the product's rate, as a desk check of the kernels had expected them."""


def run_ceilings(report: Report) -> None:
    """Measure what the device can do: a large bfloat16 product, and a copy."""
    columns = [Column("what", "what"), Column("value", "", ".1f"), Column("unit", "unit")]
    table = report.table("Ceilings of the device", columns)
    side, device = report.sizes.square, report.device
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    ms = measuring.alternate_ms({"": lambda: torch.mm(a, b, out=out)}, report.rounds)[""]
    report.row(table, what=f"matrix product, bfloat16, {side}³", value=2 * side**3 / ms / 1e9, unit="TFLOP/s")
    x = torch.empty(report.sizes.copied, device=device)
    y = torch.empty_like(x)
    ms = measuring.alternate_ms({"": lambda: y.copy_(x)}, report.rounds)[""]
    report.row(table, what="copy, read and written", value=8 * x.numel() / ms / 1e9, unit="TB/s")


# ---------------------------------------------------------------------------------------------------------------------
# Exact k-NN


@dataclass(frozen=True)
class Shape:
    """A search: what is searched, and how many multiplications and additions that takes."""

    bank: Tensor
    queries: Tensor
    k: int

    def __str__(self) -> str:
        return f"{len(self.queries)} x {len(self.bank)} x {self.bank.shape[1]}, k = {self.k}"

    @property
    def flops(self) -> float:
        return 2.0 * len(self.queries) * self.bank.numel()


def run_knn(report: Report) -> None:
    """Time the search by each product against the product alone, FAISS, cuVS, and cdist with topk."""
    columns = [Column("shape", "queries x bank x dim, k"), Column("name", "contestant")]
    columns += [Column("ms", "ms", ".3f"), Column("tflops", "TFLOP/s", ".0f"), Column("ratio", "times ours", ".2f")]
    table = report.table(
        "Exact k-NN", [*columns, Column("note", "note")],
        "Device times, medians of alternating rounds; 'as called': what a caller waits, from idle to idle device.",
        headline=True,
    )  # fmt: skip
    kernels = []
    for n_queries, n_bank, dim, k in report.sizes.knn:
        bank = features_like_a_network(n_bank, dim, device=report.device)
        shape = Shape(bank, features_like_a_network(n_queries, dim, seed=1, device=report.device), k)
        _time_search(report, table, shape)
        if k == 1:
            kernels.append(shape)
    by_kernel = measuring.kernel_table(report)
    for shape in kernels:
        index = _cuda.CudaIndex(shape.bank)
        for name, wish in _products(report).items():
            with wished(wish):
                measuring.profile_kernels(
                    report, by_kernel, f"{shape}, {name}", lambda s=shape, i=index: i.search(s.queries, s.k), 5
                )


def _products(report: Report) -> dict[str, str]:
    """Return the products to ask for, without those whose check hung."""
    wishes = {"mma.sync": ("0", "knn"), "wgmma": ("1", "wgmma")}
    return {name: wish for name, (wish, check) in wishes.items() if check not in report.without}


def _time_search(report: Report, table: Table, shape: Shape) -> None:
    made, missing = _prepared(_contestants(report, shape))
    times = measuring.alternate_ms(made, report.rounds)
    half = _cuda.CudaIndex(shape.bank)
    ours = times.get(DEFAULT)

    def row(name: str, ms: float | None, note: str | None = None) -> None:
        rate, ratio = (shape.flops / ms / 1e9, ours and ms / ours) if ms else (None, None)
        report.row(table, shape=str(shape), name=name, ms=ms, tflops=rate, ratio=ratio, note=note)

    for name, ms in times.items():
        row(name, ms)
    for name, why in missing.items():
        row(name, None, why)
    called, absent = _prepared({CUVS: lambda: _by_cuvs(shape)})  # on a stream of its own: CUDA events would not see it
    called[CALLED] = lambda: half.search(shape.queries, shape.k)
    called |= {f"{name}, {CALLED}": _by(half, shape, wish) for name, wish in _products(report).items()}
    called[f"{CDIST}, {CALLED}"] = _by_cdist(shape)
    called_times = measuring.alternate_ms(called, report.rounds, measuring.wall_ms)
    for name, ms in called_times.items():
        row(name, ms)
    for name, why in absent.items():
        row(name, None, why)
    if shape.k == 1:
        _share_targets(report, shape, times)
        _peer_target(report, shape, FAISS, times, DEFAULT, missing)
        _peer_target(report, shape, CDIST, times, DEFAULT, missing)
        _peer_target(report, shape, CUVS, called_times, CALLED, absent)


def _prepared(factories: dict[str, Callable[[], Work]]) -> tuple[dict[str, Work], dict[str, str]]:
    """Make the contestants and call each once; those that cannot be used are returned with the reason."""
    made: dict[str, Work] = {}
    missing: dict[str, str] = {}
    for name, factory in factories.items():
        try:
            made[name] = factory()
            made[name]()
        except ImportError as error:
            missing[name] = f"not installed ({error.name or 'import failed'})"
        except Exception as error:
            made.pop(name, None)
            missing[name] = last_words(error)
    return made, missing


def _contestants(report: Report, shape: Shape) -> dict[str, Callable[[], Work]]:
    half = _cuda.CudaIndex(shape.bank)

    def replay(wish: str | None) -> Work:
        return measuring.captured(_by(half, shape, wish))

    factories: dict[str, Callable[[], Work]] = {DEFAULT: lambda: replay(None)}
    for name, wish in _products(report).items():
        factories[f"{name}, graph replay"] = lambda wish=wish: replay(wish)
    if "int8" not in report.without:
        int8 = _cuda.CudaIndex(shape.bank, "int8")
        factories["int8, graph replay"] = lambda: measuring.captured(_by(int8, shape, None))
    width = len(shape.bank)
    return factories | {
        "torch.matmul bf16": lambda: _by_matmul(shape, width),
        PADDED: lambda: _by_matmul(shape, _padded(width)),
        CDIST: lambda: _by_cdist(shape),
        FAISS: lambda: _by_faiss(shape),
    }


def _by(index: _cuda.CudaIndex, shape: Shape, wish: str | None) -> Work:
    def search() -> object:
        with wished(wish):
            return index.search(shape.queries, shape.k)

    return search


def _padded(width: int) -> int:
    return -(-width // 64) * 64


def _by_matmul(shape: Shape, width: int) -> Work:
    """Return the product of all queries and vectors; zero vectors fill the bank up to ``width``."""
    bank = torch.zeros(width, shape.bank.shape[1], dtype=torch.bfloat16, device=shape.bank.device)
    bank[: len(shape.bank)] = shape.bank
    queries = shape.queries.bfloat16()
    out = torch.empty(len(queries), width, dtype=torch.bfloat16, device=bank.device)
    return lambda: torch.mm(queries, bank.T, out=out)


def _by_cdist(shape: Shape) -> Work:
    return lambda: torch.cdist(shape.queries, shape.bank).topk(shape.k, largest=False)


def _by_faiss(shape: Shape) -> Work:
    import faiss

    if not hasattr(faiss, "StandardGpuResources"):
        raise ImportError("this FAISS has no GPU", name="faiss-gpu")
    import faiss.contrib.torch_utils

    index = faiss.GpuIndexFlatL2(faiss.StandardGpuResources(), shape.bank.shape[1])
    index.add(shape.bank)
    return lambda: index.search(shape.queries, shape.k)


def _by_cuvs(shape: Shape) -> Work:
    from cuvs.neighbors import brute_force

    index = brute_force.build(shape.bank, metric="sqeuclidean")
    return lambda: brute_force.search(index, shape.queries, shape.k)


def _share_targets(report: Report, shape: Shape, times: dict[str, float]) -> None:
    ideal = times[PADDED] * len(shape.bank) / _padded(len(shape.bank)) if PADDED in times else None
    for name in (DEFAULT, BY_MMA, BY_WGMMA):
        if name in times and ideal is not None:
            share = ideal / times[name]
            what = f"k-NN {shape}: share of the padded bf16 matmul's rate, {name}"
            report.target(what, ">= 60 % (aim 80 %)", f"{share:.0%}", share >= 0.6, estimate=ESTIMATES.get(name))


def _peer_target(
    report: Report, shape: Shape, peer: str, times: dict[str, float], ours: str, missing: dict[str, str]
) -> None:
    ratio = times[peer] / times[ours] if peer in times and ours in times else None
    measured, met = (missing.get(peer), None) if ratio is None else (f"{ratio:.1f} times", ratio >= 5)
    report.target(f"k-NN {shape}: against {peer}", ">= 5 times faster", measured, met)


# ---------------------------------------------------------------------------------------------------------------------
# The way to the score, host memory, growth


def run_score(report: Report) -> None:
    """Score images on the device, from patches to the map, against the CPU's answers."""
    n_bank, dim = report.sizes.knn[0][1:3]
    shape = report.sizes.images, 784, dim
    host = MemoryBank(features_like_a_network(n_bank, dim, device=report.device).cpu())
    patches = features_like_a_network(shape[0] * 784, dim, seed=1, device=report.device).view(shape)

    def score(bank: MemoryBank, rows: Tensor) -> tuple[Tensor, Tensor]:
        scores = bank.score(rows)
        return scores.image, scoring.anomaly_map(scores.patch, (28, 28), (224, 224))

    columns = [Column("name", "bank"), Column("ms", "ms per image", ".3f")]
    table = report.table(f"Patches to map, {shape[0]} images, bank {n_bank} x {dim}", columns)
    expected = score(host, patches.cpu())
    for vectors_on in ("device", "host"):
        bank = host.to(report.device, vectors_on=vectors_on)  # type: ignore[arg-type]
        found = score(bank, patches)
        worst = max(float((a.cpu() - b).abs().max()) for a, b in zip(found, expected, strict=True))
        what = f"score and map, vectors on the {vectors_on}: as on the CPU"
        report.target(what, "<= 1e-4", f"{worst:.1e}", worst <= 1e-4)
        work: dict[str, Work] = {"": lambda bank=bank: score(bank, patches)}
        ms = measuring.alternate_ms(work, report.rounds, measuring.wall_ms)[""]
        report.row(table, name=f"vectors on the {vectors_on}", ms=ms / shape[0])


def run_host_search(report: Report) -> None:
    """Search with the vectors in host memory."""
    n_queries, n_bank, dim, k = report.sizes.knn[0]
    bank = features_like_a_network(n_bank, dim, device=report.device)
    queries = features_like_a_network(n_queries, dim, seed=1, device=report.device)
    here, there = _cuda.CudaIndex(bank), _cuda.CudaIndex(bank.cpu(), device=report.device)
    contestants: dict[str, Work] = {
        "vectors on the device": lambda: here.search(queries, k),
        "vectors in host memory": lambda: there.search(queries, k),
    }
    title = f"Search, {n_queries} x {n_bank} x {dim}, k = {k}"
    table = report.table(title, [Column("name", "bank"), Column("ms", "ms", ".3f")])
    for name, ms in measuring.alternate_ms(contestants, report.rounds).items():
        report.row(table, name=name, ms=ms)
    same = torch.equal(here.search(queries, k)[1], there.search(queries, k)[1])
    report.target("search, vectors in host memory: the same rows", "all", "yes" if same else "no", same)


def run_growth(report: Report) -> None:
    """Search many times and see whether memory grows."""
    n_searches = report.sizes.searches
    n_queries, n_bank, dim = report.sizes.repeated
    index = _cuda.CudaIndex(features_like_a_network(n_bank, dim, device=report.device))
    queries = features_like_a_network(n_queries, dim, seed=1, device=report.device)
    for _ in range(min(50, n_searches)):
        index.search(queries, 1)
    torch.cuda.synchronize()
    before = torch.cuda.mem_get_info()[0], torch.cuda.memory_reserved()
    for _ in range(n_searches):
        index.search(queries, 1)
    torch.cuda.synchronize()
    free, reserved = torch.cuda.mem_get_info()[0], torch.cuda.memory_reserved()
    grown = max(before[0] - free, reserved - before[1])
    report.target(f"growth in {n_searches} searches", "none", f"{grown} bytes", grown <= 0)
