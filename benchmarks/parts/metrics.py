"""AUPRO of a whole test set at full size, against the field's loops in Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from common import Column, Options, Table, alternate
from scipy.ndimage import gaussian_filter, label

from mmad_bank.metrics import AUPRO

LIMIT, N_THRESHOLDS = 0.3, 100
OWN = "mmad-bank AUPRO"
COLUMNS = [
    Column("what", "AUPRO at 0.3"),
    Column("median", "s", ".3f"),
    Column("min", "min", ".3f", detail=True),
    Column("max", "max", ".3f", detail=True),
    Column("ratio", "× mmad-bank", ".2f"),
    Column("value", "value", ".7f", detail=True),
    Column("difference", "difference", ".1e"),
]
_EIGHT = np.ones((3, 3), dtype=int)


def run(options: Options, limits: Mapping[str, float]) -> list[Table]:
    """Measure the maps of a category's test set: 110 images of 224×224, most with one to three defects."""
    masks, maps = make_maps(6 if options.quick else 110, 48 if options.quick else 224)
    values: dict[str, float] = {}

    def contestant(name: str, measure: Callable[[np.ndarray, np.ndarray], float]) -> Callable[[], None]:
        def work() -> None:
            values[name] = measure(masks, maps)

        return work

    contestants = {
        name: contestant(name, measure)
        for name, measure in (
            (OWN, streaming), ("loop of MVTec's evaluation (M3DM)", evaluation_loop),
            ("loop over thresholds and regions", threshold_loop),
        )
    }  # fmt: skip
    timings = alternate(contestants, options.rounds)
    table = Table(f"AUPRO: {len(masks)} maps of {maps.shape[1]}×{maps.shape[2]}", COLUMNS, headline=True)
    for name in contestants:
        difference = None if name == OWN else abs(values[name] - values[OWN])
        row = {"what": name, **timings.of(name), "ratio": timings.ratio(name, OWN), "value": values[name]}
        table.rows.append({**row, "difference": difference})
    table.notes = [
        f"{N_THRESHOLDS} thresholds at equal steps of the normal pixels' scores. MVTec's evaluation, which M3DM and its"
        " successors carry, sorts each region once and steps through it; the other loop compares every region's pixels"
        " with every threshold.",
    ]
    return [table]


def make_maps(n_images: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return masks with rectangles, three images in four, and smooth maps that are somewhat higher there."""
    rng = np.random.default_rng(0)
    masks = np.zeros((n_images, side, side), dtype=bool)
    for number in range(n_images):
        for _ in range(rng.integers(1, 4) if number % 4 else 0):
            top, left = rng.integers(side // 10, side * 4 // 5, 2)
            height, width = rng.integers(3, side // 6, 2)
            masks[number, top : top + height, left : left + width] = True
    noise = np.stack([gaussian_filter(rng.normal(size=(side, side)), 4) for _ in range(n_images)])
    return masks, (noise + 0.05 * masks).astype(np.float32)


def streaming(masks: np.ndarray, maps: np.ndarray) -> float:
    """Measure image by image, as an evaluation does."""
    metric = AUPRO((LIMIT,), N_THRESHOLDS)
    for mask, scores in zip(masks, maps, strict=True):
        metric.update(mask, scores)
    return metric.compute()[LIMIT]


def _regions(masks: np.ndarray, maps: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the scores of each region, and those of all normal pixels, sorted."""
    regions, normal = [], []
    for mask, scores in zip(masks, maps, strict=True):
        labelled, n_regions = label(mask, _EIGHT)
        normal.append(scores[labelled == 0].astype(np.float64))
        regions += [scores[labelled == number + 1] for number in range(n_regions)]
    return regions, np.sort(np.concatenate(normal))


def _thresholds(normal: np.ndarray) -> tuple[np.ndarray, list[float]]:
    positions = np.linspace(0, len(normal) - 1, num=N_THRESHOLDS, dtype=int)
    return normal[positions], [1.0, *(1.0 - (positions + 1) / len(normal))]


def evaluation_loop(masks: np.ndarray, maps: np.ndarray) -> float:
    """Step through each region's sorted scores, threshold by threshold."""
    regions, normal = _regions(masks, maps)
    regions = [np.sort(region) for region in regions]
    thresholds, fprs = _thresholds(normal)
    places, pros = [0] * len(regions), [1.0]
    for threshold in thresholds:
        overlap = 0.0
        for number, region in enumerate(regions):
            while places[number] < len(region) and region[places[number]] <= threshold:
                places[number] += 1
            overlap += 1.0 - places[number] / len(region)
        pros.append(overlap / len(regions))
    return _area(fprs[::-1], pros[::-1])


def threshold_loop(masks: np.ndarray, maps: np.ndarray) -> float:
    """Compare every region with every threshold."""
    regions, normal = _regions(masks, maps)
    thresholds, fprs = _thresholds(normal)
    pros = [1.0, *(float(np.mean([(region > t).mean() for region in regions])) for t in thresholds)]
    return _area(fprs[::-1], pros[::-1])


def _area(fprs: list[float], pros: list[float]) -> float:
    """Integrate up to the limit by trapezoids."""
    inside = np.array(fprs) < LIMIT
    x, y = np.array(fprs)[inside], np.array(pros)[inside]
    x, y = np.append(x, LIMIT), np.append(y, np.interp(LIMIT, fprs, pros))
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2) / LIMIT)
