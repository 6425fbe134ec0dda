"""How well the regions of PatchCore's maps match defects, by how far they reach from their peaks.

Without ``--data`` the pictures are those of painted.py beside this file, which settings are chosen on; with it, any
folder in the layout of MVTec AD. A region exists if its peak is above the threshold of peaks, whatever its extent: the
rules differ in which pixels belong to it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from common import Column, Table, working_folder

from mmad_bank._internal.shares import percent
from mmad_bank.data import open_dataset
from mmad_bank.errors import InputError
from mmad_bank.methods import PatchCore, Prediction
from mmad_bank.methods.verdicts import EXTENT, Extent, ModelCalibration
from parts.bundled import categories_in, painted_pictures

SHARES = (0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 1e-4)
"""Shares of the normal pixels that are above the level which bounds a region."""
HEIGHTS = (0.3, 0.4, 0.5, 0.6)
"""Parts of the height of a region's peak that bound it as well."""
RULES = (*(Extent(one, 0.0) for one in SHARES), Extent(None, 0.0),
         *(Extent(one, height) for one in (0.01, 0.001, 1e-4) for height in HEIGHTS))  # fmt: skip
SECOND = 0.2
"""A false-alarm rate beside the smallest that is promised: at it weak regions count as well."""
_COLUMNS = [
    Column("rule", "a region's pixels are above"),
    Column("iou", "IoU", ".3f"),
    Column("precision", "precision of the area", ".3f"),
    Column("recall", "recall of the area", ".3f"),
    Column("area", "area / defect's", ".2f"),
    Column("hit", "defects hit", ".3f"),
    Column("shown", "defective images with regions", ".3f"),
    Column("per_defective", "regions on them", ".2f"),
    Column("per_good", "regions per good image", ".3f"),
    Column("good_shown", "good images with regions", ".3f"),
]
_FITTING = ("iou", "precision", "recall", "area", "per_defective")
"""Figures of the defective images that have regions."""
_NOTES = (
    "IoU, precision, recall and the number of regions are means over the defective images with regions, a defect's"
    " pixels against those of all regions; area is the median of the ratio. A defect is hit if a region touches it.",
    "Half of the height: of the way from the median of the normal pixels to the region's own peak.",
)


def check(arguments: argparse.Namespace) -> None:
    """Refuse a data set that nothing can be measured on.

    Raises:
        InputError: There is no such category, or no test split with good and defective pictures.
    """
    if arguments.data is None:
        return
    for category in categories_in(arguments.data, arguments.only) or [""]:
        test = open_dataset(arguments.data, category, "test") if category else None
        if test is None or not test.labeled or set(map(bool, test.labels)) != {False, True}:
            raise InputError(f"--data: expected categories with good and defective test pictures in {arguments.data}")


def run(arguments: argparse.Namespace, limits: Mapping[str, float]) -> list[Table]:
    """Fit PatchCore on every category of every seed, and compare the regions of all rules with the masks."""
    del limits
    rows: list[dict[str, Any]] = []
    with working_folder(arguments.workdir, "regions") as folder:
        for seed in range(1 if arguments.quick or arguments.data is not None else arguments.seeds):
            data = arguments.data or painted_pictures(folder, seed, quick=arguments.quick)
            for category in categories_in(data, arguments.only):
                rows += _measured(data, category, seed)
                print(f"  seed {seed}, {category}", file=sys.stderr, flush=True)
    if not rows:
        raise InputError(f"--only: expected categories of the data, found {arguments.only}")
    where = "painted pictures" if arguments.data is None else arguments.data.resolve().name
    return [*(_by_rule(where, rate, rows) for rate in ("smallest", "second")), _by_category(where, rows)]


def _measured(data: Path, category: str, seed: int) -> Iterator[dict[str, Any]]:
    """Yield the figures of each test picture by rule, at the smallest promised rate and at a larger one."""
    model = PatchCore(**PatchCore.bundled_arguments(), seed=seed).fit(open_dataset(data, category, "train"))
    calibration = model.calibration_
    if calibration is None:
        raise InputError(f"{category}: expected several training pictures, to calibrate on, found one")
    smallest = calibration.own.smallest_rate
    rates = {"smallest": smallest, "second": max(SECOND, smallest)}
    test = open_dataset(data, category, "test")
    for number in range(len(test)):
        prediction = model.predict(test[number])
        if prediction.sample.label and prediction.original.mask is None:
            continue
        for name, rate in rates.items():
            known = {"category": category, "seed": seed, "rate": name, "promised": rate}
            yield from ({**known, "rule": words(rule), **_fit(prediction, calibration, rate, rule)} for rule in RULES)


def words(rule: Extent) -> str:
    """Say in words which pixels belong to a region."""
    level = "the threshold of peaks" if rule.share is None else f"what {percent(rule.share)} of normal pixels exceed"
    return level if rule.height == 0 else f"{level}, and {rule.height:.0%} of its peak's height"


def _fit(prediction: Prediction, calibration: ModelCalibration, rate: float, rule: Extent) -> dict[str, Any]:
    """Compare the regions of a map with the defects of its picture."""
    numbers, label = calibration.region_map(prediction.map, rate, extent=rule).numpy(), int(prediction.sample.label > 0)
    known = {"label": label, "regions": int(numbers.max())}
    mask = prediction.original.mask if label else None
    return known if mask is None else {**known, **overlap(mask.numpy() > 0, numbers > 0)}


def overlap(mask: np.ndarray, found: np.ndarray) -> dict[str, float | None]:
    """Return how well regions match a mask, and the share of its defects that one touches.

    Args:
        mask: (H, W) bool, the defects.
        found: (H, W) bool, the regions; without any there is no precision and no area.
    """
    from scipy import ndimage

    defects, n = ndimage.label(mask, np.ones((3, 3)))
    both = int((found & mask).sum())
    hit = len(np.unique(defects[found & mask])) / n if n else None
    if not found.any() or not n:
        return {"hit": hit, "iou": None, "precision": None, "recall": None, "area": None}
    return {
        "hit": hit, "iou": both / int((found | mask).sum()), "precision": both / int(found.sum()),
        "recall": both / int(mask.sum()), "area": int(found.sum()) / int(mask.sum()),
    }  # fmt: skip


def _by_rule(where: str, rate: str, rows: list[dict[str, Any]]) -> Table:
    """Make the table of the rules at one rate."""
    own = [row for row in rows if row["rate"] == rate]
    rates = percent(min(row["promised"] for row in own))
    table = Table(f"Regions by their extent, {where}, at a promised {rates} of good images", _COLUMNS)
    table.headline = rate == "smallest"
    for rule in RULES:
        name = words(rule)
        figures = summary([row for row in own if row["rule"] == name])
        table.rows.append({"rule": name + (" (default)" if rule == EXTENT else ""), **figures})
    n = len({(row["category"], row["seed"]) for row in own})
    table.notes = [f"PatchCore, bundled features, over the pictures of {n} data sets (categories × seeds).", *_NOTES]
    return table


def summary(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """Return the figures of a rule over the pictures."""
    bad, good = ([row for row in rows if row["label"] == label] for label in (1, 0))
    shown = [row for row in bad if row["regions"]]

    def mean(of: list[dict[str, Any]], value: Callable[[dict[str, Any]], float | None]) -> float | None:
        values = [one for row in of if (one := value(row)) is not None]
        return statistics.fmean(values) if values else None

    figures = {name: mean(shown, lambda row, name=name: row[name]) for name in ("iou", "precision", "recall")}
    areas = [row["area"] for row in shown if row["area"] is not None]
    return {
        **figures, "area": statistics.median(areas) if areas else None, "hit": mean(bad, lambda row: row["hit"]),
        "shown": mean(bad, lambda row: bool(row["regions"])), "per_defective": mean(shown, lambda row: row["regions"]),
        "per_good": mean(good, lambda row: row["regions"]), "good_shown": mean(good, lambda row: bool(row["regions"])),
    }  # fmt: skip


def _by_category(where: str, rows: list[dict[str, Any]]) -> Table:
    """Make the table of the default by category."""
    columns = [Column("category", "category"), *_COLUMNS[1:]]
    table = Table(f"Regions by category, {where}, at the smallest promised rate: {words(EXTENT)}", columns)
    own = [row for row in rows if row["rate"] == "smallest" and row["rule"] == words(EXTENT)]
    for category in dict.fromkeys(row["category"] for row in own):
        table.rows.append({"category": category, **summary([row for row in own if row["category"] == category])})
    return table
