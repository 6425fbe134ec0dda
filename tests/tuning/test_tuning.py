"""Settings of a bank measured against each other, the front, the recommendation, the picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmad_bank import tuning
from mmad_bank.bank import MemoryBank, file_format
from mmad_bank.bank.projection import SparseProjection
from mmad_bank.errors import InputError
from mmad_bank.metrics import auroc
from mmad_bank.tuning import Measured, Setting, Sweep, measuring
from mmad_bank.tuning.picks import Picks
from mmad_bank.tuning.scored import Scored

N_PATCHES, DIM = 60, 72  # search copies of up to 32 values take the same memory in half and int8, on AMX


def clustered(n_images: int, seed: int) -> torch.Tensor:
    """Return patches around 30 centres, the same for all seeds, as a network's features are."""
    centres = np.random.default_rng(0).normal(size=(30, DIM))
    rng = np.random.default_rng([seed, 1])
    rows = centres[rng.integers(0, 30, (n_images, N_PATCHES))] + 0.2 * rng.normal(size=(n_images, N_PATCHES, DIM))
    return torch.from_numpy(rows.astype(np.float32))


@pytest.fixture(scope="module")
def normal() -> torch.Tensor:
    return clustered(25, 1)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    made_up = clustered(6, 2)
    made_up[3:, :4] += 1.0
    return made_up


LABELS = [0, 0, 0, 1, 1, 1]


@pytest.fixture(scope="module")
def swept(normal: torch.Tensor, images: torch.Tensor) -> Sweep:
    return tuning.sweep(normal, images, labels=LABELS, ratios=[0.01, 0.1, 0.5, 1], indices=["exact"])


def made(memory: int = 100, seconds: float = 1.0, error: float = 0.1, auroc: float | None = None) -> Measured:
    return Measured(
        0.1, "exact", "half", vectors=10, dim=4, memory=memory, resident=memory, vector_bytes=160, fps=1 / seconds,
        seconds=seconds, build_seconds=0.0, patch_error=error, patch_error_max=error, image_error=error,
        image_error_max=error, index_patch_error=0.0, index_patch_error_max=0.0, index_image_error=0.0,
        index_image_error_max=0.0, auroc=auroc,
    )  # fmt: skip


def test_every_ratio_has_every_precision(swept: Sweep) -> None:
    expected = [Setting(r, "exact", p) for r in (0.01, 0.1, 0.5, 1.0) for p in tuning.PRECISIONS]
    assert [one.setting for one in swept.settings] == expected
    assert [one.vectors for one in swept.settings[::4]] == [15, 150, 750, 1500]
    assert (swept.rows, swept.dim, swept.images, swept.patches) == (1500, DIM, 6, N_PATCHES)


def test_precision_costs_no_accuracy_and_saves_memory(swept: Sweep) -> None:
    for first in range(0, len(swept.settings), 4):
        auto, float32, half, int8 = swept.settings[first : first + 4]
        for one in (auto, half, int8):
            assert one.index_patch_error == one.index_image_error == 0
            assert (one.patch_error, one.image_error, one.auroc) == (
                float32.patch_error, float32.image_error, float32.auroc
            )  # fmt: skip
        assert int8.memory < half.memory < float32.memory


def test_smaller_banks_are_less_accurate(swept: Sweep) -> None:
    errors = [one.patch_error for one in swept.settings[::4]]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == 0 < errors[-2]
    assert swept.settings[-1].auroc == 1.0


def test_errors_are_those_of_the_banks_that_build_selects(
    swept: Sweep, normal: torch.Tensor, images: torch.Tensor
) -> None:
    whole = MemoryBank(normal.view(-1, DIM)).score(images)
    for one in swept.settings[2::4]:
        scores = MemoryBank.build(normal, one.ratio).score(images)
        gaps = (scores.patch.double() - whole.patch.double()).abs() / whole.patch.double().mean()
        assert one.patch_error == pytest.approx(float(gaps.mean()), abs=1e-12)
        assert one.patch_error_max == pytest.approx(float(gaps.max()), abs=1e-12)
        gaps = (scores.image.double() - whole.image.double()).abs() / whole.image.double().mean()
        assert one.image_error == pytest.approx(float(gaps.mean()), abs=1e-12)


@pytest.mark.parametrize("mapped", [True, False], ids=["mapped", "read"])
@pytest.mark.parametrize(
    "setting", [Setting(0.5, "exact", "int8"), Setting(0.5, "exact", "half"), Setting(0.5, "Flat")], ids=str
)
def test_memory_is_what_a_loaded_bank_holds(
    setting: Setting, mapped: bool, normal: torch.Tensor, images: torch.Tensor, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(file_format, "LARGEST_READ", 0 if mapped else 1 << 20)
    if setting.index != "exact":
        pytest.importorskip("faiss")
    found = tuning.sweep(
        normal, images, ratios=[setting.ratio], indices=[setting.index], precisions=[setting.precision]
    ).settings[0]
    MemoryBank.build(normal, setting.ratio, index=setting.index).save(tmp_path / "bank")
    loaded = MemoryBank.load(tmp_path / "bank", bank_precision=setting.precision)
    loaded.score(images)
    assert found.resident == loaded.nbytes
    assert found.vector_bytes == loaded.vectors.nbytes
    assert found.memory == found.resident + (found.vector_bytes if mapped and setting.index != "exact" else 0)


def test_a_faiss_index_whose_image_score_asks_nothing_needs_no_vectors(
    normal: torch.Tensor, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faiss")
    monkeypatch.setattr(file_format, "LARGEST_READ", 0)
    for reweight, counted in (("max", False), ("patchcore", True)):
        (one,) = tuning.sweep(normal, images, ratios=[1], indices=["Flat"], reweight=reweight).settings
        assert one.memory == one.resident + counted * one.vector_bytes


def test_an_approximate_index_is_told_from_its_ratio(normal: torch.Tensor, images: torch.Tensor) -> None:
    pytest.importorskip("faiss")
    found = tuning.sweep(normal, images, ratios=[0.2, 1], indices=["Flat", "PQ6x4fs"])
    flat, coarse, whole_flat, whole_coarse = found.settings
    assert flat.index_patch_error < 1e-5 < whole_coarse.index_patch_error
    assert flat.patch_error > 1e-3 > whole_flat.patch_error
    assert whole_coarse.patch_error == whole_coarse.index_patch_error
    assert coarse.index_patch_error > 1e-3


def test_an_index_that_small_banks_cannot_train_is_left_out(normal: torch.Tensor, images: torch.Tensor) -> None:
    pytest.importorskip("faiss")
    found = tuning.sweep(normal, images, ratios=[0.01, 1], indices=["IVF16,Flat"])
    assert [one.ratio for one in found.settings] == [1]
    assert list(found.left_out) == ["1 %, IVF16,Flat"]
    with pytest.raises(InputError, match="index: expected 'exact' or a FAISS factory string"):
        tuning.sweep(normal, images, ratios=[0.01, 1], indices=["Magic"])


def test_default_indices_suit_the_bank() -> None:
    pytest.importorskip("faiss")
    assert tuning.faiss_indices(999, 768) == []
    assert tuning.faiss_indices(19129, 768) == ["IVF256,Flat", "HNSW32", "PQ192x4fs", "IVF256,PQ192x4fs"]
    assert tuning.faiss_indices(1000, 33)[2:] == ["PQ11x4fs", "IVF16,PQ11x4fs"]
    assert tuning.faiss_indices(1000, 31) == ["IVF16,Flat", "HNSW32"]


def test_few_images_come_again_until_there_are_rounds(normal: torch.Tensor, images: torch.Tensor) -> None:
    stages: list[tuple[str, int, int]] = []
    tuning.sweep(
        normal, images[:2], ratios=[0.1], precisions=["half"], indices=["exact"], rounds=7,
        progress=lambda *stage: stages.append(stage),
    )  # fmt: skip
    names = ["Reading features", "Selecting 10 %", "Preparing with 10 %", "Scoring with 10 %", "Scoring with 100 %"]
    assert list(dict.fromkeys(name for name, _, _ in stages if name in names)) == names
    assert [done for name, done, total in stages if (name, total) == ("Scoring with 10 %", 7)] == [*range(1, 8)]


def test_labels_of_one_class_give_no_auroc(normal: torch.Tensor, images: torch.Tensor) -> None:
    (one,) = tuning.sweep(
        normal, images[:2], labels=[0, 0], ratios=[1], precisions=["half"], indices=["exact"]
    ).settings
    assert one.auroc is None
    with pytest.raises(InputError, match="by: expected 'error'"):
        tuning.recommend([one], by="auroc")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"timed": -1.0}, "timed: expected a finite number of seconds"),
        ({"time_limit": float("nan")}, "time_limit: expected a finite number of seconds"),
        ({"images": torch.zeros(2, 3, 5)}, r"images: expected shape \(B, P, 72\)"),
        ({"images": torch.full((1, 3, DIM), torch.nan)}, "images: image 0, patch 0 holds NaN"),
        ({"labels": [0, 1]}, "labels: expected one for each of 6 images"),
        ({"ratios": []}, "ratios: expected at least one"),
        ({"ratios": [0.5, 1.5]}, "ratio: expected more than 0 and at most 1, such as 0.1 for 10%, found 1.5"),
        ({"precisions": ["int4"]}, "precision: expected one of auto"),
        ({"reweight": "softmax"}, "reweight: expected one of m3dm"),
        ({"rounds": 0}, "rounds: expected 1 to"),
    ],
)
def test_bad_arguments(normal: torch.Tensor, images: torch.Tensor, changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        tuning.sweep(normal, **({"images": images} | changes))


def test_training_images_are_no_test(normal: torch.Tensor) -> None:
    with pytest.raises(InputError, match="images: expected others than the features are of"):
        tuning.sweep(normal, normal[:2], ratios=[1], indices=["exact"])


def test_front_against_its_definition() -> None:
    costs = np.random.default_rng(3).integers(0, 6, (60, 3)).tolist()
    expected = [
        not any(
            all(b <= a for a, b in zip(own, other, strict=True)) and any(b < a for a, b in zip(own, other, strict=True))
            for other in costs
        )
        for own in costs
    ]
    assert tuning.non_dominated(costs) == expected
    assert 0 < sum(expected) < 60


def test_pareto_sees_memory_speed_and_accuracy() -> None:
    best, small, fast, worse = made(), made(memory=50, error=0.2), made(seconds=0.5, error=0.2), made(101, 1.0, 0.1)
    assert tuning.pareto([best, small, fast, worse]) == [True, True, True, False]


def test_recommendation_within_budgets() -> None:
    exact, middle, small = made(400, 4.0, 0.0, 0.7), made(100, 1.0, 0.1, 0.9), made(20, 0.2, 0.4, 0.9)
    settings = [small, exact, middle]
    assert tuning.recommend(settings) is exact
    assert tuning.recommend(settings, memory=400) is exact
    assert tuning.recommend(settings, memory=399) is middle
    assert tuning.recommend(settings, fps=2) is small
    assert tuning.recommend(settings, memory=100, fps=1) is middle
    assert tuning.recommend(settings, memory=19) is None
    assert tuning.recommend(settings, by="auroc") is middle
    assert tuning.nearest(settings, memory=19) is small
    assert tuning.nearest(settings, memory=90, fps=6) is small
    assert tuning.nearest([exact, middle], memory=90, fps=1.1) is middle


def test_of_equally_accurate_ones_the_budget_decides() -> None:
    fast, small = made(200, 0.5), made(100, 1.0)
    assert tuning.recommend([small, fast], memory=300) is fast
    assert tuning.recommend([fast, small], fps=0.5) is small


@pytest.mark.parametrize("by", ["error", "auroc"])
def test_picture_draws_every_setting(swept: Sweep, by: tuning.By) -> None:
    pytest.importorskip("matplotlib")
    others = replace(swept.settings[0], index="IVF16,PQ6x4fs"), replace(made(auroc=0.5), index="X9")
    settings = [*swept.settings, *others]
    best = tuning.recommend(settings, memory=20_000, by=by)
    drawn = tuning.figure(
        [Measured.from_json({**one.as_json(), "more": 1}) for one in settings], by=by, recommended=best, memory=20_000
    )
    for axes in drawn.axes:
        points = [offset for series in axes.collections for offset in series.get_offsets().tolist()]
        assert len(points) == len(settings) + 1  # and the ring
        (low, high), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        assert all(low < x < high and bottom < y < top for x, y in points)
        drawn.canvas.draw()
    names = [text.get_text() for text in drawn.legends[0].get_texts()]
    assert {"front", "exact, int8", "FAISS IVF,PQ", "FAISS X"} < set(names)


@pytest.mark.parametrize("by", ["error", "auroc"])
def test_picture_of_one_setting_without_error(by: tuning.By) -> None:
    pytest.importorskip("matplotlib")
    drawn = tuning.figure([made(error=0.0, auroc=1.0)], by=by, fps=2.0)
    drawn.canvas.draw()
    assert [text.get_text() for text in drawn.axes[0].texts] == ["10 %"]
    assert drawn.axes[1].lines[-1].get_xdata() == [2.0, 2.0]


def test_ratios_spread_from_the_first_on(normal: torch.Tensor, images: torch.Tensor) -> None:
    assert tuning.order_of_ratios([0.5]) == [0.5]
    assert tuning.order_of_ratios([1.0, 0.02, 0.3, 1.0]) == [0.02, 1.0, 0.3]
    told: list[list[float]] = []
    whole = tuning.sweep(
        normal, images, ratios=[0.5, 0.01, 0.1, 1], precisions=["half", "int8"], indices=["exact"],
        found=lambda sofar: told.append([one.ratio for one in sofar.settings]),
    )  # fmt: skip
    steps = [[0.01], [0.01, 1.0], [0.01, 0.1, 1.0], [0.01, 0.1, 0.5, 1.0]]
    assert told == [[ratio for ratio in step for _ in ("half", "int8")] for step in steps]
    assert told[-1] == [one.ratio for one in whole.settings]
    told.clear()  # within a time, the first precision of all comes first
    tuning.sweep(
        normal, images, ratios=[0.5, 0.01, 0.1, 1], precisions=["half", "int8"], indices=["exact"], time_limit=60,
        found=lambda sofar: told.append([one.ratio for one in sofar.settings]),
    )  # fmt: skip
    assert told[:5] == [*steps, [0.01, 0.01, 0.1, 0.5, 1.0]]


def test_the_time_ends_it_with_what_there_is(
    normal: torch.Tensor, images: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments: dict[str, Any] = {
        "ratios": [0.01, 0.1, 1], "precisions": ["half", "int8"], "indices": ["exact"], "labels": LABELS,
    }  # fmt: skip
    first = tuning.sweep(normal, images, time_limit=0.0, workdir=tmp_path / "w", **arguments)
    assert [one.setting for one in first.settings] == [Setting(0.01, "exact", "half")]
    assert first.reference == 0.01
    assert (first.settings[0].patch_error, first.settings[0].gap) == (0.0, 0.0)
    assert first.waiting == ["1 %, int8", "10 %, half", "10 %, int8", "100 %, half", "100 %, int8"]
    measured: list[Setting] = []
    original = measuring.Measuring._make
    monkeypatch.setattr(
        measuring.Measuring, "_make", lambda self, rows, one: measured.append(one) or original(self, rows, one)
    )
    again = tuning.sweep(normal, images, workdir=tmp_path / "w", **arguments)
    assert Setting(0.01, "exact", "half") not in measured
    assert len(measured) == 5
    assert (again.reference, again.waiting) == (1.0, [])
    whole = tuning.sweep(normal, images, **arguments)
    for one, other in zip(again.settings, whole.settings, strict=True):
        assert (one.setting, one.patch_error, one.image_error, one.auroc, one.gap_low, one.memory) == (
            other.setting, other.patch_error, other.image_error, other.auroc, other.gap_low, other.memory
        )  # fmt: skip
    assert again.settings[0].seconds == first.settings[0].seconds  # kept, not timed again
    measured.clear()
    tuning.sweep(normal, images + 1, workdir=tmp_path / "w", **arguments)
    assert len(measured) == 6  # of other images nothing is taken over


def test_selection_in_steps_is_that_of_one_go() -> None:
    rng = np.random.default_rng(0)
    many = torch.from_numpy(rng.normal(size=(40, 4)).astype(np.float32))
    rows = torch.cat([many, many[:20], many[:20]])  # half of the rows are copies
    for projection_dim in (None, 3):
        projection = SparseProjection.create(4, len(rows), projection_dim, 0)
        picks = Picks(rows, projection, None, lambda stage, done, total: None)
        for ratio in (0.05, 0.2, 0.7):
            found = picks.vectors(ratio)
            assert torch.equal(found, MemoryBank.build(rows, ratio, projection_dim=projection_dim).vectors)


def test_rounds_and_times(normal: torch.Tensor, images: torch.Tensor) -> None:
    (one,) = tuning.sweep(normal, images, ratios=[1], precisions=["half"], indices=["exact"], timed=0.05).settings
    assert one.fps_low is not None
    assert one.fps_high is not None
    assert one.fps_low <= one.fps <= one.fps_high
    times = [5.0, 1.0, 1.0, 2.0, 2.0, 2.0]
    scored = Scored(torch.zeros(1, 1), torch.zeros(1), times, 0.0, 1, 1, 1, 1, (3, 0.0))
    assert scored.rounds(3) == [1.5, 2.0, 3.0]
    assert scored.rounds(9) == [1.0, 1.0, 2.0, 2.0, 2.0, 5.0]


def test_bootstrap_against_its_definition() -> None:
    rng = np.random.default_rng(4)
    labels = torch.tensor([False] * 9 + [True] * 7)
    first, second = Setting(0.1), Setting(0.2)
    scores = {one: torch.from_numpy(rng.integers(0, 9, 16) + 2.0 * labels.numpy()) for one in (first, second)}
    found = tuning.AUROCs.of(labels, scores, seed=3)
    again = np.random.default_rng(3)
    normal = again.multinomial(9, np.full(9, 1 / 9), tuning.uncertainty.SAMPLES)
    anomalous = again.multinomial(7, np.full(7, 1 / 7), tuning.uncertainty.SAMPLES)
    for one, image in scores.items():
        assert found.own[one] == pytest.approx(auroc(labels, image))
        for sample in range(0, tuning.uncertainty.SAMPLES, 400):
            drawn = np.repeat(np.arange(16), np.concatenate([normal[sample], anomalous[sample]]))
            assert found.samples[one][sample] == pytest.approx(auroc(labels[drawn], image[drawn]))
        low, high = found.interval(one)
        assert low < found.own[one] < high
    gap, low, high = found.difference(first, second)
    assert gap == found.own[first] - found.own[second]
    assert (low, high) == pytest.approx(np.quantile(found.samples[first] - found.samples[second], (0.025, 0.975)))


def test_an_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    truth, held = 0.760, 0  # of normal distributions one standard deviation apart
    labels = torch.tensor([False] * 40 + [True] * 40)
    for _ in range(60):
        scores = {Setting(0.1): torch.from_numpy(rng.normal(size=80) + labels.numpy())}
        low, high = tuning.AUROCs.of(labels, scores).interval(Setting(0.1))
        held += low <= truth <= high
    assert 51 <= held <= 60


def choice_of(n_images: int, noise: float, shifts: tuple[float, ...]) -> tuning.Choice:
    """Choose among banks of rising size and these qualities by as many images of each class."""
    rng = np.random.default_rng(1)
    labels = torch.tensor([False] * n_images + [True] * n_images)
    shared = rng.normal(size=2 * n_images)
    settings = [replace(made(memory), ratio=memory / 100) for memory in (10, 20, 40)]
    scores = {
        one.setting: torch.from_numpy(shared + shift * labels.numpy() + noise * rng.normal(size=2 * n_images))
        for one, shift in zip(settings, shifts, strict=True)
    }
    aurocs = tuning.AUROCs.of(labels, scores)
    settings = [replace(one, auroc=aurocs.own[one.setting]) for one in settings]
    found = tuning.choose(settings, fps=0.5, by="auroc", aurocs=aurocs)
    assert found is not None
    return found


def test_of_settings_that_images_cannot_tell_apart_the_cheapest_is_taken() -> None:
    many = choice_of(100, 0.3, (0.2, 1.9, 2.0))
    assert (many.best.memory, many.alike, many.within) == (20, 2, 3)
    assert "2 of 3 settings cannot be told from the highest I-AUROC" in many.note
    few = choice_of(4, 1.0, (1.9, 1.9, 2.0))
    assert (few.best.memory, few.alike) == (10, 3)
    assert "cannot tell the 3 settings apart" in few.note
    assert "more test images are needed" in few.note
    alone = tuning.choose([made(auroc=0.5)], memory=100, by="error")
    assert alone is not None
    assert alone.note == ""
    assert tuning.choose([made()], memory=99) is None
