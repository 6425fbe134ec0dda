"""Parts of the greedy selection: against the field's loop, checked by float64, at bagel's size, from host memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from common import Column, Table
from torch import Tensor

from gpu_parts import measuring
from gpu_parts.measuring import Report, Work, features_like_a_network, wall_ms
from gpu_parts.search import run_host_search
from gpu_parts.smoke import wished
from mmad_bank.ops import _cuda
from mmad_bank.ops._cuda import device as device_module
from mmad_bank.ops._cuda import operand
from mmad_bank.ops._torch.k_center_greedy import select as select_by_torch

_REPEATS = 3
_BLOCK = 64  # picks that are checked at a time
_CLOSE = 1e-9  # of a squared distance: what the products of the check may round


def textbook_half_loop(features: Tensor, picks: int) -> None:
    """Run the loop of the field's published code, in float16 as it does on a GPU."""
    rows = features.half()
    nearest = torch.full((len(rows),), torch.inf, dtype=torch.float16, device=rows.device)
    last = torch.zeros((), dtype=torch.int64, device=rows.device)
    for _ in range(picks):
        distances = torch.linalg.norm(rows - rows[last], dim=1)
        nearest = torch.minimum(nearest, distances)
        last = nearest.argmax()


def picks_not_farthest(features: Tensor, picks: Tensor) -> int:
    """Count picks that were not the row farthest from those before them, by float64 products of all rows and picks."""
    wide = features.double()
    norms = wide.square().sum(1)
    nearest = torch.full_like(norms, torch.inf)
    wrong = 0
    for block in picks.split(_BLOCK):
        squares = norms[:, None] + norms[block] - 2 * (wide @ wide[block].T)
        before = torch.cat([nearest[:, None], squares], dim=1).cummin(dim=1).values
        largest = before[:, :-1].max(dim=0).values  # over all rows, before each of the block's picks
        reached = before[block, torch.arange(len(block), device=block.device)]
        close = reached >= largest - _CLOSE * norms.max()
        wrong += int((~close).sum())
        nearest = before[:, -1]
    return wrong


def run_k_center(report: Report) -> None:
    """Time the selection against the float16 loop, run the bagel size, and hold the picks against float64."""
    columns = [Column("size", "size"), Column("name", "contestant"), Column("seconds", "s", ".3f")]
    table = report.table("Greedy k-center", columns, headline=True)
    count, dim, n_select = report.sizes.selection
    features = features_like_a_network(count, dim, device=report.device)
    size = f"{count} x {dim} -> {n_select}"
    blocks: list[int] = []

    def select() -> Tensor:
        blocks.clear()
        return _cuda.k_center_greedy(features, None, n_select, 0, -1.0, blocks.append)[0]

    picks = select()
    ours = _seconds(select)
    table.notes.append(f"{len(blocks)} blocks of picks")
    report.row(table, size=size, name="mmad-bank", seconds=ours)
    _against_loop(report, table, size, features, ours)
    _run_bagel(report, table)
    _check_picks(report, size, features, picks)
    _by_each_product(report, table, size, select, picks)
    measuring.profile_kernels(report, measuring.kernel_table(report), size, select)


def _seconds(work: Work) -> float:
    return statistics.median(wall_ms(work) for _ in range(_REPEATS)) / 1000


def _against_loop(report: Report, table: Table, size: str, features: Tensor, ours: float) -> None:
    timed, n_select = report.sizes.loop_picks, report.sizes.selection[2]
    textbook_half_loop(features, 5)
    loop = wall_ms(lambda: textbook_half_loop(features, timed)) / 1000 / timed * n_select
    table.notes.append(f"the float16 loop's time is extrapolated from {timed} picks")
    report.row(table, size=size, name="float16 textbook loop", seconds=loop)
    ratio = loop / ours
    report.target(f"k-center {size}", ">= 30 times the float16 loop", f"{ratio:.1f} times", ratio >= 30)


def _by_each_product(report: Report, table: Table, size: str, select: Callable[[], Tensor], picks: Tensor) -> None:
    for name, wish, check in (("mma.sync", "0", "k_center"), ("wgmma", "1", "k_center_wgmma")):
        if check in report.without:
            continue
        with wished(wish):
            found, seconds = select(), _seconds(select)
        report.row(table, size=size, name=f"mmad-bank, {name}", seconds=seconds)
        same = torch.equal(found, picks)
        report.target(f"k-center {size}, {name}: the same picks", "all", "yes" if same else "no", same)


def _check_picks(report: Report, size: str, features: Tensor, picks: Tensor) -> None:
    checked = min(report.sizes.checked_picks, len(picks))
    exact = select_by_torch(features, None, checked, 0, -1.0, None)[0]
    same = int((exact == picks[:checked]).sum())
    report.target(f"k-center {size}: picks of the float64 loop", f"all of {checked}", str(same), same == checked)
    wrong = picks_not_farthest(features, picks)
    what = f"k-center {size}: every pick the farthest row by float64 products"
    report.target(what, f"all of {len(picks)}", str(len(picks) - wrong), wrong == 0)


def _run_bagel(report: Report, table: Table) -> None:
    count, dim, n_select = report.sizes.bagel
    features = features_like_a_network(count, dim, device=report.device)
    elapsed = wall_ms(lambda: _cuda.k_center_greedy(features, None, n_select, 0, -1.0, None)) / 1000
    size = f"{count} x {dim} -> {n_select}"
    report.row(table, size=size, name="mmad-bank", seconds=elapsed)
    report.target(f"k-center {size}, no projection", "< 10 s", f"{elapsed:.2f} s", elapsed < 10)


def run_host_memory(report: Report) -> None:
    """Search with the vectors in host memory, and select from dumps of which half or nothing fits on the device."""
    run_host_search(report)
    count, dim, n_select = report.sizes.selection
    features = features_like_a_network(count, dim, device=report.device)
    expected = _cuda.k_center_greedy(features, None, n_select, 0, -1.0, None)[0]
    host = features.cpu()
    del features
    columns = [
        Column("name", "rows and their 16-bit copy"),
        Column("seconds", "s", ".3f"),
        Column("blocks", "blocks", "d"),
    ]
    title = f"Greedy k-center from host memory, {count} x {dim} -> {n_select}"
    table = report.table(title, columns, "page-locking and the rounding of the rows are in the times")
    tiles = device_module.native.tiles(count)
    names = {tiles: "copy on the device", tiles // 2: "half of the copy streamed", 0: "all of the copy streamed"}
    original = operand.resident_tiles
    for resident, name in names.items():
        blocks: list[int] = []
        operand.resident_tiles = lambda *_, kept=resident: kept
        try:
            begin = time.perf_counter()
            found = _cuda.k_center_greedy(host, None, n_select, 0, -1.0, blocks.append, device=report.device)[0]
            seconds = time.perf_counter() - begin
        finally:
            operand.resident_tiles = original
        report.row(table, name=name, seconds=seconds, blocks=len(blocks))
        same = torch.equal(found, expected)
        report.target(f"k-center from host memory, {name}: the same rows", "all", "yes" if same else "no", same)
