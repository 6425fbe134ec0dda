"""Exactness: the selection against the textbook loop in float64, for several starts, row orders and settings."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from common import Column, Options, Table

from mmad_bank import _core
from mmad_bank.synthetic.textures import texture_features

COLUMNS = [
    Column("order", "rows in order"),
    Column("start", "start", "d"),
    Column("precision", "precision"),
    Column("pool", "pool", "d"),
    Column("threads", "threads", "d"),
    Column("result", "against the float64 loop"),
    Column("seconds", "seconds", ".2f"),
    Column("loop_s", "loop's seconds", ".1f"),
]


@dataclass(frozen=True)
class Setting:
    """Settings that must not change a selection. A pool of 0 is the one that the selection chooses itself."""

    precision: str
    pool: int
    threads: int


def settings(threads: int) -> list[Setting]:
    """Return the settings to compare; those that name the same run come once."""
    found = [
        Setting("auto", 0, threads),
        Setting("auto", 0, 1),
        Setting("auto", 64, threads),
        Setting("auto", 1000, threads),
        Setting("float32", 0, threads),
    ]
    return list(dict.fromkeys(found))


def run(options: Options, limits: Mapping[str, float]) -> list[Table]:
    """Compare 2000 picks of 62 720 × 656 real features: three starts in two random orders of the rows."""
    n_images, n_select = (2, 150) if options.quick else (80, 2000)
    features = texture_features(n_images)
    rows = len(features)
    starts = (0, rows // 3, rows - 1)
    table = Table(f"Exactness: the first {n_select} picks of {rows} × {features.shape[1]}", COLUMNS)
    for seed in (1, 2):
        shuffled = features[np.random.default_rng(seed).permutation(rows)]
        begin = time.perf_counter()
        truths = textbook(shuffled, n_select, starts)
        loop_s = (time.perf_counter() - begin) / len(starts)
        for start, truth in zip(starts, truths, strict=True):
            case = {"order": f"random, seed {seed}", "start": start, "loop_s": loop_s}
            table.rows += [case | _compare(shuffled, truth, setting) for setting in settings(options.threads)]
    same = sum(row["first_difference"] is None for row in table.rows)
    table.notes = [
        f"{same} of {len(table.rows)} selections are identical to the loop's.",
        "The loop is float64 throughout, with distances from differences, not from a product; its starts run in"
        " lockstep, so that one pass over the rows serves all, and its time is a start's share.",
    ]
    return [table, _summary(table, n_select)]


def _summary(table: Table, n_select: int) -> Table:
    """Count the identical selections by precision, for those who want one line."""
    columns = [
        Column("precision", "precision"),
        Column("runs", "runs", "d"),
        Column("identical", "identical to float64", "d"),
    ]
    summary = Table(f"{table.title}, by precision", columns, headline=True)
    summary.notes = list(table.notes)
    for precision in dict.fromkeys(row["precision"] for row in table.rows):
        rows = [row for row in table.rows if row["precision"] == precision]
        same = sum(row["first_difference"] is None for row in rows)
        summary.rows.append({"precision": precision, "runs": len(rows), "identical": same})
    return summary


def _compare(features: np.ndarray, truth: np.ndarray, setting: Setting) -> dict[str, Any]:
    begin = time.perf_counter()
    picks = _core.k_center_greedy(
        features, features[:0], len(truth), int(truth[0]), -1.0, setting.pool, setting.precision, setting.threads, None
    )[0]
    seconds = time.perf_counter() - begin
    differing = np.flatnonzero(picks != truth)
    first = int(differing[0]) if len(differing) else None
    result = "identical" if first is None else f"differs first at pick {first}"
    return {**vars(setting), "result": result, "first_difference": first, "seconds": seconds}


def textbook(features: np.ndarray, n_select: int, starts: Sequence[int]) -> np.ndarray:
    """Run the textbook loop (Gonzalez 1985) in float64 from several starts at once: int64 (starts, n_select).

    Ties go to the lowest row, and no row comes twice.
    """
    x = torch.from_numpy(features).double()
    each = torch.arange(len(starts))
    nearest = torch.full((len(starts), len(x)), torch.inf, dtype=torch.float64)
    picks = torch.empty(len(starts), n_select, dtype=torch.int64)
    picks[:, 0] = torch.tensor(starts)
    for i in range(1, n_select):
        latest = picks[:, i - 1]
        distances = torch.cdist(x[latest], x, compute_mode="donot_use_mm_for_euclid_dist")
        torch.minimum(nearest, distances, out=nearest)
        nearest[each, latest] = -1.0
        largest = nearest.amax(dim=1, keepdim=True)
        picks[:, i] = (nearest == largest).int().argmax(dim=1)
    return picks.numpy()
