"""Everything that needs a GPU, in one command: tests, sanitizer, timings against named peers, and the table of targets.

    python benchmarks/gpu.py [PART ...] [--quick] [--json benchmarks/results]

Parts: tests, sanitizer, knn, k_center, host_memory, score, points, growth. Timings are medians of CUDA events, the
contestants taking turns; every target is a ratio (or a bound) of this run. What could not run, because a tool or a peer
is missing, is listed as such; a part that fails is a target that was missed, and the others go on.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from common import ROOT, Column, Table, add_part, print_table, result, versions_table, write_result
from torch import Tensor

from mmad_bank import MemoryBank, scoring
from mmad_bank.ops import _cuda
from mmad_bank.ops._cuda import device as device_module
from mmad_bank.ops._cuda import operand
from mmad_bank.ops._torch.k_center_greedy import select as select_by_torch

DEVICE = "cuda"
PARTS = ("tests", "sanitizer", "knn", "k_center", "host_memory", "score", "points", "growth")
LOOP_PICKS = 300  # of the textbook loop that are timed; every pick costs the same, so the rest is extrapolated
CHECKED_PICKS = 2000  # held against the float64 loop


@dataclass(frozen=True)
class Sizes:
    """Sizes that the parts compute; the defaults are those of the targets."""

    knn: tuple[tuple[int, int, int, int], ...] = (  # queries, bank, dim, k
        (16 * 784, 19129, 768, 1),
        (16 * 784, 19129, 768, 9),
        (16 * 784, 19129, 768, 64),
        (784, 19129, 768, 1),
        (3136, 76518, 1152, 1),
    )
    selection: tuple[int, int, int] = (191_296, 768, 19_130)  # rows, dim, picks
    bagel: tuple[int, int, int] = (765_184, 1152, 76_518)
    images: int = 16  # of 28 x 28 patches
    clouds: tuple[int, int, int, int, int] = (16, 20_000, 1024, 128, 1152)  # clouds, points, groups, group size, dim
    searches: int = 10_000
    repeated: tuple[int, int, int] = (784, 2000, 256)  # queries, bank, dim of these
    loop_picks: int = LOOP_PICKS


QUICK = Sizes(
    knn=((784, 2000, 256, 1), (784, 2000, 256, 64)),
    selection=(20_000, 128, 2000),
    bagel=(30_000, 128, 3000),
    images=2,
    clouds=(2, 4000, 128, 128, 1152),
    searches=500,
)


@dataclass
class Run:
    """State of a run that the parts fill in."""

    sizes: Sizes
    rounds: int
    tables: dict[str, list[Table]] = field(default_factory=dict)
    targets: list[dict[str, Any]] = field(default_factory=list)

    def target(self, what: str, wanted: str, measured: str, met: bool | None) -> None:
        """Note a line of the table of targets; ``met`` is None for what could not be measured."""
        verdict = "not measured" if met is None else "yes" if met else "NO"
        self.targets.append({"what": what, "wanted": wanted, "measured": measured, "met": verdict})


# ---------------------------------------------------------------------------------------------------------------------
# Timing


def event_ms(work: Callable[[], object]) -> float:
    """Return the device time of one call."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def wall_ms(work: Callable[[], object]) -> float:
    """Return the time of a call that waits for the device itself."""
    torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - begin)


def alternate_ms(contestants: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median of every contestant, run in turn after two warm-up rounds."""
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    for round_ in range(rounds + 2):
        for name, work in contestants.items():
            elapsed = event_ms(work)
            if round_ >= 2:
                samples[name].append(elapsed)
    return {name: statistics.median(values) for name, values in samples.items()}


def features_like_a_network(count: int, dim: int, seed: int = 0) -> Tensor:
    """Rows near a 24-dimensional set: neighbors at all scales, as features of a network have them."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    shared = torch.Generator(DEVICE).manual_seed(99)
    basis = torch.randn(24, dim, generator=shared, device=DEVICE)
    latent = torch.randn(count, 24, generator=generator, device=DEVICE)
    rows = torch.tanh(latent @ basis)
    return rows.add_(torch.randn(count, dim, generator=generator, device=DEVICE), alpha=0.05)


# ---------------------------------------------------------------------------------------------------------------------
# Tests and the sanitizer


def run_tests(run: Run) -> None:
    """Run every test that is marked for a GPU."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-rs", "-q", "tests"]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    print(done.stdout[-4000:], done.stderr[-2000:])
    last = [line for line in done.stdout.splitlines() if line.strip()][-1:] or ["no output"]
    run.target("tests marked gpu", "all pass", last[0].strip("= "), done.returncode == 0)


def run_sanitizer(run: Run) -> None:
    """Run the small kernel tests under memcheck, racecheck and synccheck."""
    tool = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    chosen = "tiny or odd or duplicates or several or ties or largest or earlier or interpolation or streamed or gather"
    chosen = f"gpu and ({chosen} or two)"
    for check in ("memcheck", "racecheck", "synccheck"):
        if tool is None:
            run.target(f"compute-sanitizer {check}", "no errors", "compute-sanitizer was not found", None)
            continue
        command = [tool, "--tool", check, "--error-exitcode", "86", "--target-processes", "all", sys.executable]
        command += ["-m", "pytest", "-q", "-x", "-m", "gpu", "-k", chosen, "tests/ops/test_cuda_kernels.py"]
        environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, env=environment)
        print(done.stdout[-3000:])
        summary = [line.strip("= ") for line in done.stdout.splitlines() if "SUMMARY" in line][-1:] or ["no summary"]
        run.target(f"compute-sanitizer {check}", "no errors", summary[0], done.returncode == 0)


# ---------------------------------------------------------------------------------------------------------------------
# Search


def faiss_flat(bank: Tensor) -> Callable[[Tensor, int], object] | None:
    """Return FAISS's exact search on the GPU, or None without faiss-gpu."""
    try:
        import faiss
        import faiss.contrib.torch_utils

        resources = faiss.StandardGpuResources()
        index = faiss.GpuIndexFlatL2(resources, bank.shape[1])
    except (ImportError, AttributeError):
        return None
    index.add(bank)
    return index.search


def captured(index: _cuda.CudaIndex, queries: Tensor, k: int) -> Callable[[], None]:
    """Return the replay of a search captured in a CUDA graph."""
    index.search(queries, k)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        index.search(queries, k)
    return graph.replay


def with_wgmma(search: Callable[[], object]) -> Callable[[], object]:
    """Return a search that asks for the sm_90a product (devices without it ignore the wish)."""

    def wished() -> object:
        os.environ["MMAD_BANK_WGMMA"] = "1"
        try:
            return search()
        finally:
            del os.environ["MMAD_BANK_WGMMA"]

    return wished


def run_knn(run: Run) -> None:
    """Time the search against the product alone, FAISS, and cdist with topk."""
    columns = [Column("shape", "queries x bank x dim, k"), Column("name", "contestant")]
    columns += [Column("ms", "ms", ".3f"), Column("tflops", "TFLOP/s", ".0f"), Column("ratio", "times ours", ".2f")]
    table = Table("Exact k-NN", columns)
    for n_queries, n_bank, dim, k in run.sizes.knn:
        bank = features_like_a_network(n_bank, dim)
        queries = features_like_a_network(n_queries, dim, seed=1)
        times = alternate_ms(_knn_contestants(bank, queries, k), run.rounds)
        shape = f"{n_queries} x {n_bank} x {dim}, k = {k}"
        ours = times["mmad-bank half"]
        for name, ms in times.items():
            flops = 2.0 * n_queries * n_bank * dim / ms / 1e9
            table.rows.append({"shape": shape, "name": name, "ms": ms, "tflops": flops, "ratio": ms / ours})
        if k > 32:  # a pass over the bank finds 32: no target is set for more
            continue
        share = times["torch.matmul bfloat16"] / ours
        run.target(f"k-NN {shape}: share of the bf16 matmul's rate", ">= 50 % (aim 80 %)", f"{share:.0%}", share >= 0.5)
        for peer in ("faiss GpuIndexFlatL2", "torch.cdist + topk"):
            ratio = times[peer] / ours if peer in times else None
            measured = "not installed" if ratio is None else f"{ratio:.1f} times"
            met = None if ratio is None else ratio >= 5
            run.target(f"k-NN {shape}: against {peer}", ">= 5 times faster", measured, met)
    run.tables["knn"] = [table]


def _knn_contestants(bank: Tensor, queries: Tensor, k: int) -> dict[str, Callable[[], object]]:
    half, int8 = _cuda.CudaIndex(bank), _cuda.CudaIndex(bank, "int8")
    bank16, queries16 = bank.bfloat16(), queries.bfloat16()
    product = torch.empty(len(queries), len(bank), dtype=torch.bfloat16, device=DEVICE)
    contestants: dict[str, Callable[[], object]] = {
        "mmad-bank half": lambda: half.search(queries, k),
        "mmad-bank half, graph replay": captured(half, queries, k),
        "mmad-bank half, wgmma": with_wgmma(lambda: half.search(queries, k)),
        "mmad-bank int8": lambda: int8.search(queries, k),
        "torch.matmul bfloat16": lambda: torch.matmul(queries16, bank16.T, out=product),
        "torch.cdist + topk": lambda: torch.cdist(queries, bank).topk(k, largest=False),
    }
    faiss_search = faiss_flat(bank)
    if faiss_search is not None:
        contestants["faiss GpuIndexFlatL2"] = lambda: faiss_search(queries, k)
    return contestants


# ---------------------------------------------------------------------------------------------------------------------
# Selection


def textbook_half_loop(features: Tensor, picks: int) -> None:
    """Run the loop of the field's published code, in float16 as it does on a GPU."""
    rows = features.half()
    nearest = torch.full((len(rows),), torch.inf, dtype=torch.float16, device=rows.device)
    last = torch.zeros((), dtype=torch.int64, device=rows.device)
    for _ in range(picks):
        distances = torch.linalg.norm(rows - rows[last], dim=1)
        nearest = torch.minimum(nearest, distances)
        last = nearest.argmax()


def run_k_center(run: Run) -> None:
    """Time the selection against the float16 loop, check it against the float64 one, and run the bagel size."""
    columns = [Column("size", "size"), Column("name", "contestant"), Column("seconds", "s", ".3f")]
    table = Table("Greedy k-center", columns)
    _run_selection(run, table)
    torch.cuda.empty_cache()
    _run_bagel(run, table)
    run.tables["k_center"] = [table]


def _run_selection(run: Run, table: Table) -> None:
    count, dim, n_select = run.sizes.selection
    features = features_like_a_network(count, dim)
    reports: list[int] = []

    def select() -> Tensor:
        reports.clear()
        return _cuda.k_center_greedy(features, None, n_select, 0, -1.0, reports.append)[0]

    picks = select()
    ours = statistics.median(wall_ms(select) for _ in range(3))
    textbook_half_loop(features, 20)
    picked = run.sizes.loop_picks
    loop = wall_ms(lambda: textbook_half_loop(features, picked)) / picked * n_select
    size = f"{count} x {dim} -> {n_select}"
    table.notes.append(f"the loop's time is extrapolated from {picked} picks; {len(reports)} blocks of picks")
    table.rows += [
        {"size": size, "name": "mmad-bank", "seconds": ours / 1000},
        {"size": size, "name": "float16 textbook loop", "seconds": loop / 1000},
    ]
    ratio = loop / ours
    run.target(f"k-center {size}", ">= 30 times the float16 loop", f"{ratio:.1f} times", ratio >= 30)
    checked = min(CHECKED_PICKS, n_select)
    exact = select_by_torch(features, None, checked, 0, -1.0, None)[0]
    same = int((exact == picks[:checked]).sum())
    run.target(f"k-center {size}: picks of the float64 loop", f"all of {checked}", str(same), same == checked)


def _run_bagel(run: Run, table: Table) -> None:
    count, dim, n_select = run.sizes.bagel
    features = features_like_a_network(count, dim)
    elapsed = wall_ms(lambda: _cuda.k_center_greedy(features, None, n_select, 0, -1.0, None)) / 1000
    size = f"{count} x {dim} -> {n_select}"
    table.rows.append({"size": size, "name": "mmad-bank", "seconds": elapsed})
    run.target(f"k-center {size}, no projection", "< 10 s", f"{elapsed:.2f} s", elapsed < 10)


# ---------------------------------------------------------------------------------------------------------------------
# Host memory, and the way to the score


def run_host_memory(run: Run) -> None:
    """Search with the vectors in host memory, and select from dumps of which half or nothing fits on the device."""
    n_queries, n_bank, dim, k = run.sizes.knn[0]
    bank, queries = features_like_a_network(n_bank, dim), features_like_a_network(n_queries, dim, seed=1)
    here, there = _cuda.CudaIndex(bank), _cuda.CudaIndex(bank.cpu(), device=DEVICE)
    contestants: dict[str, Callable[[], object]] = {
        "vectors on the device": lambda: here.search(queries, k),
        "vectors in host memory": lambda: there.search(queries, k),
    }
    times = alternate_ms(contestants, run.rounds)
    search = Table(
        f"Search, {n_queries} x {n_bank} x {dim}, k = {k}", [Column("name", "bank"), Column("ms", "ms", ".3f")]
    )
    search.rows = [{"name": name, "ms": ms} for name, ms in times.items()]
    same = torch.equal(here.search(queries, k)[1], there.search(queries, k)[1])
    run.target("search, vectors in host memory: the same rows", "all", "yes" if same else "no", same)
    run.tables["host_memory"] = [search, _streamed_selections(run)]


def _streamed_selections(run: Run) -> Table:
    count, dim, n_select = run.sizes.selection
    features = features_like_a_network(count, dim)
    expected = _cuda.k_center_greedy(features, None, n_select, 0, -1.0, None)[0]
    host = features.cpu()
    del features
    columns = [Column("name", "rows and their 16-bit copy"), Column("seconds", "s", ".3f"), Column("blocks", "blocks")]
    table = Table(f"Greedy k-center from host memory, {count} x {dim} -> {n_select}", columns)
    tiles = device_module.native.tiles(count)
    original = operand.resident_tiles
    names = {tiles: "copy on the device", tiles // 2: "half of the copy streamed", 0: "all of the copy streamed"}
    for resident, name in names.items():
        blocks: list[int] = []
        operand.resident_tiles = lambda *_, kept=resident: kept
        try:
            begin = time.perf_counter()
            found = _cuda.k_center_greedy(host, None, n_select, 0, -1.0, blocks.append, device=DEVICE)[0]
            seconds = time.perf_counter() - begin
        finally:
            operand.resident_tiles = original
        table.rows.append({"name": name, "seconds": seconds, "blocks": len(blocks)})
        same = torch.equal(found, expected)
        run.target(f"k-center from host memory, {name}: the same rows", "all", "yes" if same else "no", same)
    table.notes.append("page-locking and the rounding of the rows are in the times")
    return table


def run_score(run: Run) -> None:
    """Score images on the device, from patches to the map, against the CPU's answers."""
    n_bank, dim = run.sizes.knn[0][1:3]
    shape = run.sizes.images, 784, dim
    host = MemoryBank(features_like_a_network(n_bank, dim).cpu())
    patches = features_like_a_network(shape[0] * 784, dim, seed=1).view(shape)

    def score(bank: MemoryBank, rows: Tensor) -> tuple[Tensor, Tensor]:
        scores = bank.score(rows)
        return scores.image, scoring.anomaly_map(scores.patch, (28, 28), (224, 224))

    expected = score(host, patches.cpu())
    table = Table(f"Patches to map, {shape[0]} images, bank {n_bank} x {dim}", [Column("name", "bank")])
    table.columns.append(Column("ms", "ms per image", ".3f"))
    for vectors_on in ("device", "host"):
        bank = host.to(DEVICE, vectors_on=vectors_on)  # type: ignore[arg-type]
        found = score(bank, patches)
        worst = max(float((a.cpu() - b).abs().max()) for a, b in zip(found, expected, strict=True))
        run.target(
            f"score and map, vectors on the {vectors_on}: as on the CPU", "<= 1e-4", f"{worst:.1e}", worst <= 1e-4
        )
        times = alternate_ms({vectors_on: lambda bank=bank: score(bank, patches)}, run.rounds)
        table.rows.append({"name": f"vectors on the {vectors_on}", "ms": times[vectors_on] / shape[0]})
    run.tables["score"] = [table]


# ---------------------------------------------------------------------------------------------------------------------
# Point clouds, and memory


def run_points(run: Run) -> None:
    """Time sampling, grouping and interpolation of a batch of clouds."""
    n_clouds, size, groups, group_size, dim = run.sizes.clouds
    clouds = torch.randn(n_clouds, size, 3, device=DEVICE)
    features = torch.randn(groups, dim, device=DEVICE)
    picks = _cuda.sample_batch(clouds, groups, 0)
    centers = clouds.gather(1, picks[..., None].expand(-1, -1, 3))

    def group() -> None:
        for cloud, around in zip(clouds, centers, strict=True):
            _cuda.knn_group(cloud, around, group_size)

    def interpolate() -> None:
        for cloud, around in zip(clouds, centers, strict=True):
            _cuda.interpolate_features(cloud, around, features, 3, 2.0, 1e-8)

    steps: dict[str, Callable[[], object]] = {
        f"farthest point sampling, {groups} of {size}": lambda: _cuda.sample_batch(clouds, groups, 0),
        f"grouping, {groups} x {group_size}": group,
        f"interpolation, {size} points, {dim} features": interpolate,
    }
    times = alternate_ms(steps, run.rounds)
    table = Table(f"Point clouds, batch {n_clouds}", [Column("name", "step"), Column("ms", "ms per cloud", ".3f")])
    table.rows = [{"name": name, "ms": ms / n_clouds} for name, ms in times.items()]
    total = sum(times.values()) / n_clouds
    run.target("sampling + grouping + interpolation", "< 1 ms per cloud", f"{total:.3f} ms", total < 1)
    run.tables["points"] = [table]


def run_growth(run: Run) -> None:
    """Search many times and see whether memory grows."""
    n_searches = run.sizes.searches
    n_queries, n_bank, dim = run.sizes.repeated
    index = _cuda.CudaIndex(features_like_a_network(n_bank, dim))
    queries = features_like_a_network(n_queries, dim, seed=1)
    for _ in range(min(50, n_searches)):
        index.search(queries, 1)
    torch.cuda.synchronize()
    before = torch.cuda.mem_get_info()[0], torch.cuda.memory_reserved()
    for _ in range(n_searches):
        index.search(queries, 1)
    torch.cuda.synchronize()
    free, reserved = torch.cuda.mem_get_info()[0], torch.cuda.memory_reserved()
    grown = max(before[0] - free, reserved - before[1])
    run.target(f"growth in {n_searches} searches", "none", f"{grown} bytes", grown <= 0)


# ---------------------------------------------------------------------------------------------------------------------


def main() -> int:
    """Run the chosen parts, print the tables and the targets, and write the result file."""
    arguments = _arguments()
    if not _cuda.available("cuda"):
        print("gpu.py: found no CUDA device that this build's kernels run on (mmad-bank info --system says more)")
        return 1
    run = Run(QUICK if arguments.quick else Sizes(), arguments.rounds)
    chosen = [name for name in PARTS if name in (arguments.parts or PARTS)]
    settings = {"quick": arguments.quick, "rounds": run.rounds, "parts": chosen}
    values = result("gpu", settings, torch.get_num_threads(), {})
    print_table(versions_table(values["versions"]))
    for name in chosen:
        run_part(run, name)
        if arguments.json is not None:  # after every part: what a later one does costs nothing that was measured
            add_part(values, name, run.tables.get(name, []))
            write_result(values, arguments.json)
    targets = targets_table(run)
    print_table(targets)
    if arguments.json is not None:
        add_part(values, "targets", [targets])
        print(f"written: {write_result(values, arguments.json)}")
    return 0 if all(row["met"] != "NO" for row in run.targets) else 2


def run_part(run: Run, name: str) -> None:
    """Run one part and print its tables; an error becomes a target that was missed."""
    try:
        globals()[f"run_{name}"](run)
    except Exception as error:
        traceback.print_exc()
        run.target(f"part {name}", "runs", f"{type(error).__name__}: {error}"[:100], False)
    for table in run.tables.get(name, []):
        print_table(table)


def targets_table(run: Run) -> Table:
    """Return the targets that were looked at, and whether they were met."""
    columns = [Column("what", "what"), Column("wanted", "target"), Column("measured", "measured"), Column("met", "met")]
    return Table(f"Targets on {torch.cuda.get_device_name()}", columns, run.targets)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART", help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run? The times mean nothing")
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds of the alternating contestants")
    parser.add_argument("--json", type=Path, default=None, help="result file, or a folder to name one in")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
