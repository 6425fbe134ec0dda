"""Whether verdicts keep their promise: false alarms over random splits of normal images, real ones and synthetic ones.

The features of many normal images are extracted once. In every split some of them build a bank, others calibrate it,
and the rest are judged: each that is called bad is a false alarm. With folds the calibrating images join the bank and
are scored by banks without their fold. Images are drawn at random, so they are exchangeable, and a rate that was
promised must hold on average over the splits. A rate below 1/(n + 1) is extrapolated by a fitted tail; nothing is
promised there.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Column, Table, working_folder
from torch import nn

from mmad_bank import MemoryBank
from mmad_bank.calibration import LEAST_FOR_TAIL
from mmad_bank.data import Preprocessing, open_dataset
from mmad_bank.data.names import GOOD
from mmad_bank.data.preprocessing import preprocess
from mmad_bank.features.factory import BUNDLED_RGB, BUNDLED_STAGES, make_rgb_extractor
from mmad_bank.synthetic.dataset import render
from mmad_bank.synthetic.textures import extract, texture_images

RATES, BEYOND = (0.1, 0.05, 0.01), (0.005, 0.001)
"""Rates that 99 images can promise, and rates below that."""
GRID, RATIO, RULE, FOLDS = (14, 14), 0.05, "patchcore", 10
POOL, N_BANK, N_CALIBRATION = 200, 40, 99
QUICK = (24, 6, 9, 3)
"""Images, images of a bank, images that calibrate it, and splits, of a quick run."""
_AT_ONCE = 16
_COLUMNS = [
    Column("source", "normal images"),
    Column("way", "calibrated on"),
    Column("rate", "promised", ".1%"),
    Column("measured", "false alarms", ".2%"),
    Column("error", "± (95 %)", ".2%"),
    Column("within", "within the spread"),
    Column("promise", "promise"),
]
"""Measured is the mean over the splits, and error 1.96 times its standard error."""
_BEYOND = [column for column in _COLUMNS if column.key not in ("within", "promise")]


@dataclass(frozen=True)
class _Job:
    """A split of a source's images.

    Attributes:
        file: File of the features (images, P, D).
        split: Number of the split, the seed of its order.
        bank: Number of images that a bank is built of.
        calibration: Number of images that calibrate it.
    """

    file: Path
    split: int
    bank: int
    calibration: int


def run(arguments: argparse.Namespace, limits: Mapping[str, float]) -> list[Table]:
    """Judge the images of random splits of every source."""
    del limits
    few = arguments.quick
    pool, bank, calibration, splits = QUICK if few else (POOL, N_BANK, N_CALIBRATION, arguments.splits)
    rows: list[dict[str, Any]] = []
    with working_folder(arguments.workdir, "promise") as folder, ProcessPoolExecutor(arguments.workers) as processes:
        for number, (source, features) in enumerate(_sources(pool, arguments.data)):
            print(f"  {source}: {len(features)} images", file=sys.stderr, flush=True)
            np.save(folder / f"{number}.npy", features)
            jobs = [_Job(folder / f"{number}.npy", split, bank, calibration) for split in range(splits)]
            found = list(processes.map(_judged, jobs))
            rows += [row for way in found[0] for row in _rows(source, way, [one[way] for one in found], calibration)]
    words = f"{splits} random splits: {bank} images build a bank, {calibration} calibrate it, the others are judged"
    table = Table(f"False alarms at promised rates, {words}", _COLUMNS, [one for one in rows if not one["beyond"]])
    table.notes.append("± is 1.96 times the standard error of the mean over the splits.")
    table.notes.append(
        "With folds all images but the judged ones build the bank: no image is lost for it, but the"
        f" {FOLDS} banks of the folds are smaller, so distances to them are larger, and alarms fewer."
    )
    beyond = Table(f"False alarms at extrapolated rates, {words}", _BEYOND, [one for one in rows if one["beyond"]])
    beyond.notes.append("A tail is fitted to the largest scores; nothing is promised at these rates.")
    return [table, beyond]


def _sources(pool: int, data: Path | None) -> Iterator[tuple[str, np.ndarray]]:
    """Yield words for normal images, and their features (images, P, D)."""
    extractor = make_rgb_extractor(BUNDLED_RGB, layers=BUNDLED_STAGES, grid=GRID)
    if data is not None:
        yield f"{data.name} (photographs)", _of_pictures(data, extractor)
    textures = texture_images(pool, texture="gravel")
    yield "gravel (crops of a photograph)", extract(textures, extractor)
    yield "bagel_ring (rendered)", extract(np.stack([_part(index) for index in range(pool)]), extractor)


def _part(index: int) -> np.ndarray:
    """Return the picture of a normal part of the synthetic data set, (224, 224, 3) uint8."""
    rgb = render("bagel_ring", size=224, index=index).rgb
    return rgb if rgb.dtype == np.uint8 else (rgb * 255).round().astype(np.uint8)


def _of_pictures(folder: Path, extractor: nn.Module) -> np.ndarray:
    """Return the features of all normal images of a data set, padded to squares."""
    keep, images = Preprocessing.recipe("keep"), []
    for split in ("train", "test"):
        dataset = open_dataset(folder, None, split).without_truths()
        images += [preprocess(dataset[i], keep).rgb for i, one in enumerate(dataset.records) if one.defect == GOOD]
    with torch.no_grad():
        parts = [extractor(torch.stack(images[first : first + _AT_ONCE])) for first in range(0, len(images), _AT_ONCE)]
    return torch.cat(parts).numpy()


def _judged(job: _Job) -> dict[str, dict[float, tuple[int, int]]]:
    """Return the number of false alarms and of judged images of a split, by way and rate."""
    torch.set_num_threads(1)
    features = torch.from_numpy(np.load(job.file))
    order = torch.from_numpy(np.random.default_rng(job.split).permutation(len(features)))
    own, held_out, judged = order.tensor_split([job.bank, job.bank + job.calibration])
    bank = MemoryBank.build(features[own], RATIO)
    bank.calibrate(features[held_out], reweight=RULE)
    all_but_judged = features[torch.cat([own, held_out])]
    whole = MemoryBank.build(all_but_judged, RATIO)
    whole.calibrate(all_but_judged, folds=FOLDS, reweight=RULE)
    alarms = {}
    for way, one in (("held-out images", bank), (f"{FOLDS} folds", whole)):
        scores = one.score(features[judged], reweight=RULE)
        rates = [rate for rate in (*RATES, *BEYOND) if len(held_out) >= LEAST_FOR_TAIL or rate in RATES[:1]]
        alarms[way] = {rate: (int(one.judge(scores, rate).bad.sum()), len(judged)) for rate in rates}
    return alarms


def _rows(
    source: str, way: str, splits: list[dict[float, tuple[int, int]]], n_calibration: int
) -> Iterator[dict[str, Any]]:
    """Yield a row for each rate: the mean over the splits, and whether it goes with the promise."""
    for rate in splits[0]:
        shares = [bad / judged for bad, judged in (one[rate] for one in splits)]
        mean, error = statistics.fmean(shares), 1.96 * statistics.stdev(shares) / len(shares) ** 0.5
        beyond = rate not in RATES
        yield {
            "source": source, "way": way, "rate": rate, "measured": mean, "error": error, "beyond": beyond,
            "promise": "kept" if mean - error <= rate else "broken", "splits": len(splits),
            "judged": splits[0][rate][1], "calibration_images": n_calibration,
            "within": "yes" if abs(mean - rate) <= error else "milder" if mean < rate else "no",
        }  # fmt: skip
