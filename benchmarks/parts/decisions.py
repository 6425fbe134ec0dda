"""Decisions over several banks or branches on synthetic data sets: the papers' own beside scores on one scale.

Each method is fitted once for a category of a seed's data set; its decisions differ in prediction alone. The table
says beside each how its best part does, which a decision should not fall behind.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from typing import Any

import torch
from common import Column, Table, chosen

from mmad_bank.evaluation import FUSED
from mmad_bank.fusion.calibrated import POWER, power_mean
from mmad_bank.metrics import auroc
from parts.accuracy import DECISIONS, by_category, means, measured

_COLUMNS = [
    Column("method", "decision"),
    Column("image_auroc", "I-AUROC", ".3f"),
    Column("best_part", "best part", ""),
    Column("best_image_auroc", "its I-AUROC", ".3f"),
    Column("pixel_auroc", "P-AUROC", ".3f"),
    Column("aupro", "AUPRO@30", ".3f"),
    Column("best_aupro", "best part's", ".3f"),
]
EXPONENTS = (1, 2, 4, 8, 16, 32, 64)
_METRICS = ("image_auroc", "pixel_auroc", "aupro")


def check(arguments: argparse.Namespace) -> None:
    """Refuse arguments that this part cannot take.

    Raises:
        InputError: There is one.
    """
    chosen(DECISIONS, arguments.methods)


def run(arguments: argparse.Namespace, limits: Mapping[str, float]) -> list[Table]:
    """Fit and evaluate every method on every category of every seed's data set, by every decision."""
    del limits
    names = chosen(DECISIONS, arguments.methods)
    rows, title = measured(arguments, names, "decisions")
    title = f"{title}, bundled extractors"
    summary = Table(f"Decisions, {title}", _COLUMNS, [_summary(name, rows) for name in names], headline=True)
    summary.notes.append("The best part is the one with the highest mean; nobody knows it before. Means over all.")
    return [summary, means(title, rows), by_category(title, rows), _exponents(title, rows)]


def _exponents(title: str, rows: list[dict[str, Any]]) -> Table:
    """Make the table of what calibrated decisions give with other exponents of the power mean."""
    columns = [Column("method", "decision"), *(Column(str(power), f"exponent {power}", ".3f") for power in EXPONENTS)]
    table = Table(f"I-AUROC by the exponent of the power mean, {title}", columns)
    for name in dict.fromkeys(row["method"] for row in rows if "ratios" in row):
        own = [row for row in rows if row["method"] == name and "ratios" in row]
        found = {str(power): statistics.fmean(_with_exponent(row, power) for row in own) for power in EXPONENTS}
        table.rows.append({"method": name, **found})
    table.notes.append(f"Means over all. A calibrated decision has the exponent {POWER}.")
    return table


def _with_exponent(row: Mapping[str, Any], power: int) -> float:
    """Return the I-AUROC of a category's images, whose ratios are put together with an exponent."""
    return auroc(torch.tensor(row["labels"]), power_mean(torch.tensor(row["ratios"]), power))


def _summary(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the row of a decision: its means, and those of the part that is best on average."""
    by_result: dict[str, dict[str, float]] = {}
    for result in dict.fromkeys(row["result"] for row in rows if row["method"] == name):
        own = [row for row in rows if (row["method"], row["result"]) == (name, result)]
        by_result[result] = {metric: statistics.fmean(row[metric] for row in own) for metric in _METRICS}
    parts = {result: own for result, own in by_result.items() if result != FUSED}
    best = max(parts, key=lambda result: parts[result]["image_auroc"])
    return {
        "method": name, **by_result[FUSED], "best_part": best, "best_image_auroc": parts[best]["image_auroc"],
        "best_aupro": max(own["aupro"] for own in parts.values()),
    }  # fmt: skip
