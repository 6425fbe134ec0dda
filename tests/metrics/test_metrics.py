"""Metrics against scikit-learn and against a plain loop over thresholds and components."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mmad_bank.errors import InputError
from mmad_bank.metrics import AUPRO, AUROC, UndefinedMetricWarning, aupro, auroc, score_set

measure = pytest.importorskip("skimage.measure")


def published_pro_curve(masks, maps, n_thresholds: int) -> tuple[list[float], list[float]]:
    """The evaluation's definition, word by word: thresholds are normal pixels' scores at equal steps of their order."""
    regions, normal = [], []
    for mask, scores in zip(masks, maps, strict=True):
        labelled = measure.label(mask > 0, connectivity=2)
        regions += [scores[labelled == region] for region in range(1, labelled.max() + 1)]
        normal += scores[labelled == 0].tolist()
    normal = sorted(normal)
    fprs, pros = [1.0], [1.0]
    for position in np.linspace(0, len(normal) - 1, num=n_thresholds, dtype=int):
        overlaps = [1.0 - np.count_nonzero(region <= normal[position]) / region.size for region in regions]
        fprs.append(1.0 - (position + 1) / len(normal))
        pros.append(sum(overlaps) / len(overlaps))
    return fprs[::-1], pros[::-1]


def exact_pro_curve(masks, maps) -> tuple[list[float], list[float]]:
    """Every score of any pixel is a threshold; false positives are counted."""
    labelled = [measure.label(mask > 0, connectivity=2) for mask in masks]
    normal = np.concatenate([s[lab == 0] for s, lab in zip(maps, labelled, strict=True)])
    fprs, pros = [0.0], [0.0]
    for threshold in np.unique(np.stack(maps))[::-1]:
        overlaps = [
            np.mean(s[lab == r] >= threshold)
            for s, lab in zip(maps, labelled, strict=True)
            for r in range(1, lab.max() + 1)
        ]
        fprs.append(float(np.mean(normal >= threshold)))
        pros.append(float(np.mean(overlaps)))
    return fprs, pros


def integrate(fprs: list[float], pros: list[float], limit: float) -> float:
    """Trapezoids up to the limit, the last one cut there."""
    area = 0.0
    for x0, x1, y0, y1 in zip(fprs, fprs[1:], pros, pros[1:], strict=False):
        if x0 >= limit or x1 == x0:
            continue
        cut = min(x1, limit)
        y_cut = y0 + (y1 - y0) * (cut - x0) / (x1 - x0)
        area += (cut - x0) * (y0 + y_cut) / 2
    return area / limit


def images(seed: int, n: int = 5, size: int = 40, levels: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Noise maps, and masks with squares (two of which touch at a corner) whose scores are somewhat higher."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((n, size, size), dtype=np.uint8)
    masks[0, 2:6, 3:9] = 255
    masks[0, 6:9, 9:11] = 255
    masks[1, 20:22, 20:30] = 255
    masks[1, 30, 30] = 255
    masks[3, :, -1] = 255
    maps = rng.normal(size=masks.shape) + 1.2 * (masks > 0)
    if levels:
        maps = np.round(maps * levels) / levels
    return masks, maps.astype(np.float32)


@pytest.mark.parametrize("levels", [None, 5, 1])
@pytest.mark.parametrize("n_thresholds", [2, 7, 100, 3000])
def test_aupro_is_the_published_evaluation(n_thresholds: int, levels: int | None) -> None:
    masks, maps = images(1, levels=levels)
    fprs, pros = published_pro_curve(masks, maps, n_thresholds)
    accumulator = AUPRO(n_thresholds=n_thresholds)
    for mask, scores in zip(masks, maps, strict=True):
        accumulator.update(mask, scores)
    for limit, value in accumulator.compute().items():
        assert value == pytest.approx(integrate(fprs, pros, limit), abs=1e-9)
        assert aupro(masks, maps, limit, n_thresholds) == value
    assert np.allclose(accumulator.curve(), (fprs, pros), atol=1e-12)


@pytest.mark.parametrize("levels", [None, 4, 1])
@pytest.mark.parametrize("limit", [1.0, 0.3, 0.01])
def test_exact_aupro_looks_at_every_threshold(limit: float, levels: int | None) -> None:
    masks, maps = images(2, n=4, size=36, levels=levels)
    expected = integrate(*exact_pro_curve(masks, maps), limit)
    assert aupro(masks, maps, limit, None) == pytest.approx(expected, abs=1e-9)


def test_components_that_touch_at_a_corner_are_one() -> None:
    mask = np.zeros((9, 9))
    mask[1, 1] = mask[2, 2] = mask[6, 6] = 1
    accumulator = AUPRO()
    accumulator.update(mask, mask)
    assert accumulator.n_components == 2


def test_images_of_different_sizes() -> None:
    masks, maps = images(3)
    cut = [mask[: 20 + 4 * i] for i, mask in enumerate(masks)], [m[: 20 + 4 * i] for i, m in enumerate(maps)]
    assert aupro(*cut) == pytest.approx(integrate(*published_pro_curve(*cut, 100), 0.3), abs=1e-9)


@pytest.mark.parametrize("levels", [None, 3])
@pytest.mark.parametrize("kind", [np.float32, np.float64, torch.tensor])
def test_auroc_is_scikit_learns(kind, levels: int | None) -> None:
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    masks, maps = images(4, levels=levels)
    expected = sklearn_metrics.roc_auc_score(masks.ravel() > 0, maps.ravel())
    scores = maps.astype(kind) if isinstance(kind, type) else kind(maps)
    assert auroc(masks, scores) == pytest.approx(expected, abs=1e-12)


def test_roc_curve_has_every_corner_when_scores_are_few() -> None:
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    masks, maps = images(5, levels=3)
    labels, scores = masks[0].ravel() > 0, maps[0].ravel()
    accumulator = AUROC()
    accumulator.update(labels, scores)
    fpr, tpr = accumulator.curve(n_points=2000)
    expected_fpr, expected_tpr, _ = sklearn_metrics.roc_curve(labels, scores, drop_intermediate=False)
    assert np.allclose(np.unique(np.stack([fpr, tpr]), axis=1), np.unique([expected_fpr, expected_tpr], axis=1))
    corners = set(zip(fpr, tpr, strict=True))
    assert 4 < len(accumulator.curve(n_points=20)[0]) <= 42
    assert set(zip(*accumulator.curve(n_points=20), strict=True)) < corners


def test_scores_past_the_memory_limit_go_to_a_file_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    masks, maps = images(6, n=8, levels=50)
    maps[2] *= -1e30
    expected = AUPRO(), AUPRO(n_thresholds=None), AUROC()
    monkeypatch.setattr(score_set, "_RUN", 1000)
    small = AUPRO(memory=8000), AUPRO(n_thresholds=None, memory=0), AUROC(memory=0)
    for one, other in zip(expected, small, strict=True):
        one.update(masks, maps)
        for mask, scores in zip(masks, maps, strict=True):
            other.update(mask, scores)
        assert other.compute() == one.compute()
        assert np.array_equal(other.curve(), one.curve())
    runs = [run.sorted() for run in small[0]._normal.runs()]
    assert sum(run.nbytes for run in runs if not isinstance(run, np.memmap)) <= 8000
    assert sum(isinstance(run, np.memmap) for run in runs) > 5
    assert max(map(len, runs)) <= 1000


def test_computing_in_between_changes_nothing() -> None:
    masks, maps = images(7)
    metric = AUPRO()
    for mask, scores in zip(masks, maps, strict=True):
        metric.update(mask, scores)
        metric.compute()
    assert metric.compute()[0.3] == aupro(masks, maps)


@pytest.mark.parametrize("value", [0.0, -0.0, -3.5, 1e-45, -1e-45, 3.4e38, -3.4e38])
def test_ranks_of_extreme_scores(value: float) -> None:
    values = np.array([value, 1.0, -1.0, 0.5, value], dtype=np.float32)
    store = score_set.ScoreSet(1 << 20)
    store.add(values + np.float32(0))
    assert np.array_equal(store.at(np.arange(5)), np.sort(values))
    assert np.array_equal(store.at(np.array([3, 0])), np.sort(values)[[3, 0]])


@pytest.mark.parametrize("spread", [1e-6, 1.0, 1e30])
def test_ranks_and_counts_are_those_of_the_sorted_whole(monkeypatch: pytest.MonkeyPatch, spread: float) -> None:
    monkeypatch.setattr(score_set, "_RUN", 700)
    rng = np.random.default_rng(8)
    values = (spread * rng.normal(size=3000)).astype(np.float32)
    values[::7] = values[3]  # many of one score
    store = score_set.ScoreSet(4000)
    for part in np.split(values, [5, 1000, 1001]):
        store.add(part)
    whole, ranks = np.sort(values), rng.integers(0, 3000, 40)
    for _ in range(2):  # before and after the runs are sorted
        assert np.array_equal(store.at(ranks), whole[ranks])
        assert np.array_equal(store.count_below(whole[ranks]), np.searchsorted(whole, whole[ranks], "left"))
        assert np.array_equal(store.count_up_to(whole[ranks]), np.searchsorted(whole, whole[ranks], "right"))


@pytest.mark.parametrize(("labels", "reason"), [([0, 0], "normal"), ([1, 1], "anomalous"), ([], "no scores")])
def test_auroc_of_one_class_is_nan_with_a_reason(labels: list[int], reason: str) -> None:
    with pytest.warns(UndefinedMetricWarning, match=reason):
        assert math.isnan(auroc(labels, np.zeros(len(labels))))
    accumulator = AUROC()
    accumulator.update(labels, np.zeros(len(labels)))
    assert math.isnan(accumulator.compute())
    assert reason in (accumulator.undefined or "")
    assert accumulator.curve()[0].size == 0


@pytest.mark.parametrize(("fill", "reason"), [(0, "no mask holds a defect"), (1, "every pixel")])
def test_aupro_without_defects_or_normal_pixels_is_nan_with_a_reason(fill: int, reason: str) -> None:
    with pytest.warns(UndefinedMetricWarning, match=reason):
        assert math.isnan(aupro(np.full((2, 5, 5), fill), np.zeros((2, 5, 5))))
    accumulator = AUPRO()
    accumulator.update(np.full((2, 5, 5), fill), np.zeros((2, 5, 5)))
    assert all(math.isnan(value) for value in accumulator.compute().values())
    assert reason in (accumulator.undefined or "")


def test_perfect_and_constant_maps() -> None:
    masks, _ = images(8)
    assert aupro(masks, masks / 255.0, n_thresholds=None) == pytest.approx(1.0)
    assert aupro(masks, np.zeros(masks.shape), n_thresholds=None) == pytest.approx(0.15)  # the diagonal
    assert auroc(masks, np.zeros(masks.shape)) == 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: auroc([0, 1], [0.1, float("nan")]), "scores: expected finite"),
        (lambda: auroc([0, 1], [0.1, 1e300]), "scores: expected finite"),
        (lambda: auroc([-1, 1], [0.1, 0.2]), "labels: expected 0 for normal"),
        (lambda: auroc([0, float("nan")], [0.1, 0.2]), "labels: expected 0 for normal"),
        (lambda: auroc([0, 1, 1], [0.1, 0.2]), r"scores: expected the shape of labels, \(3,\), found \(2,\)"),
        (lambda: auroc(["a", "b"], [0.1, 0.2]), "labels: expected numbers"),
        (lambda: auroc([[0], [1, 2]], [0.1, 0.2]), "labels: expected an array"),
        (lambda: aupro(np.zeros((2, 4, 4)), np.zeros((3, 4, 4))), "maps: expected 2 images as in masks, found 3"),
        (lambda: aupro(np.zeros((2, 4, 4)), np.zeros((2, 4, 5))), r"maps\[0\]: expected \(H, W\)"),
        (lambda: aupro(np.zeros((4, 4)), np.zeros((4, 4)), limit=0), "limit: expected"),
        (lambda: aupro(np.zeros((4, 4)), np.zeros((4, 4)), limit=1.5), "limit: expected"),
        (lambda: aupro(np.zeros((4, 4)), np.zeros((4, 4)), n_thresholds=1), "n_thresholds: expected 2"),
    ],
)
def test_bad_input_is_named(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.parametrize("n_thresholds", [None, 100])
def test_union_is_all_images_together(n_thresholds: int | None) -> None:
    masks, maps = images(3, levels=20)
    groups = [AUPRO(limits=(0.3, 0.05), n_thresholds=n_thresholds, memory=4096) for _ in range(3)]
    for i, group in zip((0, 1, 2, 1, 0), range(5), strict=True):
        groups[i].update(masks[group], maps[group])
    order = [0, 4, 1, 3, 2]
    whole = AUPRO(limits=(0.3, 0.05), n_thresholds=n_thresholds)
    whole.update(masks[order], maps[order])
    union = AUPRO.union(groups)
    assert union.compute() == pytest.approx(whole.compute(), abs=1e-12)
    assert union.n_components == whole.n_components
    assert union.auroc() == auroc(masks, maps)
    pair = AUPRO.union([groups[0], groups[2]])
    assert pair.auroc() == auroc(masks[[0, 4, 2]], maps[[0, 4, 2]])


def test_pixel_auroc_without_defects_is_undefined() -> None:
    metric = AUPRO()
    metric.update(np.zeros((1, 4, 4)), np.zeros((1, 4, 4)))
    assert math.isnan(metric.auroc())
