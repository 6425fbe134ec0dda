"""What all parts of the GPU benchmark share: sizes, features, device time, and the report that a part fills in."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import Column, Table
from torch import Tensor

from mmad_bank._internal.files import replacing

Work = Callable[[], object]
AHEAD = 2_000_000  # cycles that the device is kept busy while the host queues what is timed: about a millisecond
SPARE_S = 3.0  # a part ends by itself so long before it would be killed


@dataclass(frozen=True)
class Sizes:
    """Sizes that the parts compute; the defaults are those of the targets."""

    knn: tuple[tuple[int, int, int, int], ...] = (  # queries, bank, dim, k
        (16 * 784, 19129, 768, 1),
        (784, 19129, 768, 1),
        (3136, 76518, 1152, 1),
        (16 * 784, 19129, 768, 9),
        (16 * 784, 19129, 768, 32),
    )
    selection: tuple[int, int, int] = (191_296, 768, 19_130)  # rows, dim, picks
    bagel: tuple[int, int, int] = (765_184, 1152, 76_518)
    images: int = 16  # of 28 x 28 patches
    clouds: tuple[int, int, int, int, int] = (16, 20_000, 1024, 128, 1152)  # clouds, points, groups, group size, dim
    searches: int = 10_000
    repeated: tuple[int, int, int] = (784, 2000, 256)  # queries, bank, dim of these
    loop_picks: int = 100  # of the field's loop that are timed; every pick costs the same, so the rest is extrapolated
    checked_picks: int = 2000  # held against the float64 loop, number for number
    square: int = 8192  # side of the product that shows the ceiling
    copied: int = 1 << 30  # values of the copy that shows the memory's
    small: bool = False  # tiny networks, banks and checks


QUICK = Sizes(
    knn=((784, 2000, 256, 1), (784, 2000, 256, 64)),
    selection=(20_000, 128, 2000),
    bagel=(30_000, 128, 3000),
    images=2,
    clouds=(2, 4000, 128, 128, 1152),
    searches=500,
    square=1024,
    copied=1 << 24,
    small=True,
)


class Report:
    """Tables and targets of a part: every row is printed and written at once, so that a part that is killed leaves it.

    Args:
        sizes: Sizes to compute.
        rounds: Timed rounds of alternating contestants.
        device: Device to measure.
        path: File that is written after every row; none for tests.
        seconds: Seconds until the part is killed.
        without: Checks that hung: what they checked is left out.
    """

    def __init__(
        self, sizes: Sizes, rounds: int = 9, *, device: str = "cuda", path: Path | None = None,
        seconds: float | None = None, without: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.sizes, self.rounds, self.device, self.without = sizes, rounds, device, tuple(without)
        self.tables: list[Table] = []
        self.targets: list[dict[str, Any]] = []
        self._path = path
        self._end = time.monotonic() + (seconds - SPARE_S if seconds is not None else 1e9)

    def left(self) -> float:
        """Return the seconds that are left to the part."""
        return self._end - time.monotonic()

    def table(self, title: str, columns: list[Column], *notes: str, headline: bool = False) -> Table:
        """Begin a table."""
        made = Table(title, columns, notes=list(notes), headline=headline)
        self.tables.append(made)
        return made

    def row(self, table: Table, **values: Any) -> None:
        """Add a row to a table; print and write it."""
        table.rows.append(values)
        print(row_words(table, values), flush=True)
        self._write()

    def target(
        self, what: str, wanted: str, measured: str | None, met: bool | None, *, estimate: str | None = None
    ) -> None:
        """Note a line of the table of targets; ``met`` is None for what could not be measured.

        ``estimate`` is what a desk check had expected before any device was there.
        """
        verdict = "not measured" if met is None else "yes" if met else "NO"
        row = {"what": what, "wanted": wanted, "estimate": estimate, "measured": measured or "–", "met": verdict}
        self.targets.append(row)
        print(target_words(row), flush=True)
        self._write()

    def _write(self) -> None:
        if self._path is None:
            return
        content = {"tables": [table.to_json() for table in self.tables], "targets": self.targets}
        with replacing(self._path) as partial:
            partial.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")


def row_words(table: Table, row: Mapping[str, Any], first: int = 0) -> str:
    """Return a row in one line, numbers with their headings; columns before ``first`` are left out."""
    words = []
    for column in table.columns[first:]:
        cell = column.cell(row)
        if row.get(column.key) is not None:
            words.append(f"{cell} {column.heading}" if column.format else cell)
    return " | ".join(words)


def target_words(row: Mapping[str, Any]) -> str:
    """Return a target in one line."""
    estimate = f", estimated {row['estimate']}" if row.get("estimate") else ""
    return f"target met: {row['met']} | {row['what']} | wanted {row['wanted']}{estimate} | {row['measured']}"


TARGET_COLUMNS = [
    Column("what", "what"), Column("wanted", "target"), Column("estimate", "estimated before"),
    Column("measured", "measured"), Column("met", "met"),
]  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Timing


def device_ms(work: Work, inner: int = 2) -> float:
    """Return the device's time of a call: it is kept busy while the host queues, so that no gap is timed."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(AHEAD)
    begin.record()
    for _ in range(inner):
        work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / inner


def wall_ms(work: Work) -> float:
    """Return the time of a call, from an idle device to an idle device: what a caller waits."""
    torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - begin)


def alternate_ms(
    contestants: Mapping[str, Work], rounds: int, clock: Callable[[Work], float] = device_ms
) -> dict[str, float]:
    """Return the median of every contestant, run in turn after two warm-up rounds."""
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    for round_ in range(rounds + 2):
        for name, work in contestants.items():
            elapsed = clock(work)
            if round_ >= 2:
                samples[name].append(elapsed)
    return {name: statistics.median(values) for name, values in samples.items()}


def captured(work: Work) -> Work:
    """Return the replay of a call that is captured in a CUDA graph."""
    work()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()

    def replay(held: Work = work) -> None:  # the graph reads what the call reads, but does not keep it alive
        graph.replay()

    return replay


def profile_kernels(report: Report, table: Table, name: str, work: Work, most: int = 8) -> None:
    """Add what each kernel of a call takes, by CUPTI; a profiler that cannot be used is a row that says so."""
    try:
        from torch.profiler import ProfilerActivity, profile

        work()
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as profiled:
            work()
            torch.cuda.synchronize()
        found = [(event.self_device_time_total, event.count, event.key) for event in profiled.key_averages()]
    except Exception as error:
        report.row(table, work=name, kernel=f"the profiler failed: {last_words(error)}")
        return
    for us, count, key in sorted(found, reverse=True)[:most]:
        short = key.replace("mmad::cuda::(anonymous namespace)::", "").replace("mmad::cuda::", "")
        report.row(table, work=name, kernel=short[:100], us=us, launches=count)


def kernel_table(report: Report) -> Table:
    """Begin a table for :func:`profile_kernels`."""
    columns = [Column("work", "work"), Column("kernel", "kernel"), Column("us", "µs", ".1f")]
    return report.table("Time by kernel", [*columns, Column("launches", "launches", "d")])


def last_words(error: BaseException) -> str:
    """Return an error in one short line."""
    line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {line}"[:160]


# ---------------------------------------------------------------------------------------------------------------------
# Features


def features_like_a_network(count: int, dim: int, seed: int = 0, *, device: str) -> Tensor:
    """Rows near a 24-dimensional set: neighbors at all scales, as features of a network have them."""
    generator = torch.Generator(device).manual_seed(seed)
    shared = torch.Generator(device).manual_seed(99)
    basis = torch.randn(24, dim, generator=shared, device=device)
    latent = torch.randn(count, 24, generator=generator, device=device)
    rows = torch.tanh(latent @ basis)
    return rows.add_(torch.randn(count, dim, generator=generator, device=device), alpha=0.05)
