"""Methods with a region of interest: what lies outside is not in the bank, not scored and not flagged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

for package in ("timm", "tifffile"):
    pytest.importorskip(package)

from data_trees import add_picture
from small_parts import CFM_ARGUMENTS
from torch.utils.data import ConcatDataset, Subset

from mmad_bank import methods
from mmad_bank.calibration import Calibration
from mmad_bank.data import PicturesDataset, RegionOfInterest, open_dataset
from mmad_bank.data.frame import Frame
from mmad_bank.errors import FormatError, InputError
from mmad_bank.evaluation import evaluate
from mmad_bank.methods import CFM, M3DM, PatchCore
from mmad_bank.methods.padding import score_in_windows, window_cells
from mmad_bank.methods.roi import region_of, rows_inside
from mmad_bank.methods.verdicts import PIXEL_RATES

SIZE, GRID = (48, 64), (8, 8)
MASK = np.zeros(SIZE, bool)
MASK[:, :24] = True  # the left three of eight columns of patches; the spot of the defects lies in columns 16 to 31
RIGHT = np.zeros(SIZE, bool)
RIGHT[:, 40:] = True


def small(**changes: object) -> PatchCore:
    arguments = {"rgb_weights": "random", "rgb_layers": (1,), "image_size": 64, "grid": GRID, "ratio": 0.5, **changes}
    return PatchCore("efficientnet_lite0", **arguments)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    for number in range(4):
        add_picture(folder / "good" / f"{number}.png", seed=number)
    add_picture(folder / "bad.png", seed=9, spot=True)
    return folder


@pytest.fixture(scope="module")
def inside(parts: Path) -> PatchCore:
    return small().fit(open_dataset(parts / "good", roi=RegionOfInterest(mask=MASK)))


@pytest.fixture(scope="module")
def beside(parts: Path) -> PatchCore:
    """A model whose region the defect does not touch."""
    return small().fit(open_dataset(parts / "good", roi=RegionOfInterest(mask=RIGHT)))


def test_the_bank_is_made_of_patches_inside(inside: PatchCore) -> None:
    bank = inside.banks_["rgb"]
    # 6 rows of patches show the picture (16 of 64 rows are padding), 3 columns lie inside, in 4 pictures.
    assert len(bank) == 4 * 6 * 3 // 2
    places = [divmod(origin.patch, 8) for origin in bank.provenance(torch.arange(len(bank)))]
    assert {column for _, column in places} == {0, 1, 2}
    assert {row for row, _ in places} <= set(range(1, 7))
    assert {origin.image for origin in bank.provenance(torch.arange(len(bank)))} <= {0, 1, 2, 3}


def test_a_defect_outside_is_not_seen(parts: Path, inside: PatchCore, beside: PatchCore) -> None:
    whole = small().fit(open_dataset(parts / "good"))
    seen, unseen, without = (model.predict(parts / "bad.png") for model in (inside, beside, whole))
    # The same patches in another picture of the same noise, without the spot.
    add_picture(parts / "same.png", seed=9)
    assert unseen.score == pytest.approx(beside.predict(parts / "same.png").score, rel=0.05)
    assert seen.score > 1.5 * unseen.score
    assert without.map[:, 40:].max() > 0
    for prediction, mask in ((seen, MASK), (unseen, RIGHT)):
        assert prediction.map.shape == SIZE
        assert bool(torch.isfinite(prediction.map).all())
        assert float(prediction.map[torch.from_numpy(~mask)].abs().max()) == 0
        assert float(prediction.map[torch.from_numpy(mask)].min()) > 0
        left, right = prediction.box("rgb")[1::2]
        assert mask[:, left:right].any()
        assert float(prediction.parts["rgb"].map((64, 64)).max()) == float(prediction.prepared_map.max())


def test_no_region_lies_outside(parts: Path, inside: PatchCore) -> None:
    """As of a decision whose scores are negative: what was not scored stands above all thresholds at 0."""
    prediction = inside.predict(parts / "bad.png")
    assert prediction.calibration is not None
    peaks = Calibration(prediction.calibration.peaks.scores - 100)
    low = replace(prediction.calibration, peaks=peaks, pixels=(-100.0,) * len(PIXEL_RATES))
    (region,) = replace(prediction, calibration=low).regions
    assert (region.box, region.area) == ((0, 0, 48, 24), int(MASK.sum()))
    outside = replace(prediction, calibration=low, prepared_map=prediction.prepared_map - 50)
    assert [one.box for one in outside.regions] == [(0, 0, 48, 24)]


def test_scores_of_patches_inside_are_those_of_a_bank_of_them(parts: Path, inside: PatchCore) -> None:
    sample = inside.prepare(open_dataset(parts / "good")[1])
    patches = inside.describe([sample])["rgb"]
    cells = RegionOfInterest(mask=MASK).cells(sample.frame, GRID)  # type: ignore[arg-type]
    own = inside.banks_["rgb"].score(patches[:, cells.flatten()], reweight="patchcore", n_neighbors=inside.n_neighbors)
    prediction = inside.predict(sample)
    assert prediction.score == pytest.approx(float(own.image[0]), rel=1e-5)
    assert torch.allclose(prediction.parts["rgb"].scores[cells], own.patch[0], rtol=1e-5)


def test_it_is_kept_in_the_model_and_explained_inside(parts: Path, inside: PatchCore, tmp_path: Path) -> None:
    inside.save(tmp_path / "model")
    again = methods.load(tmp_path / "model")
    expected, found = (model.predict(parts / "bad.png") for model in (inside, again))
    assert found.score == expected.score
    assert found.map.equal(expected.map)
    for reason in again.explain(found, n=3):
        assert reason.place is not None
        assert reason.place[1] < 3
    with pytest.raises(InputError, match=r"place: expected a patch in the region of interest, found \(2, 6\)"):
        again.explain(found, place=(2, 6))
    assert again.with_arguments(sigma=0.0).predict(parts / "bad.png").score == expected.score
    text = (tmp_path / "model" / "model.json").read_text()
    (tmp_path / "model" / "model.json").write_text(text.replace('"mask": "', '"mask": "A'))
    with pytest.raises(FormatError):
        methods.load(tmp_path / "model")


def test_another_shape_of_picture_is_named_and_left_out(parts: Path, tmp_path: Path) -> None:
    for number in range(2):
        add_picture(tmp_path / f"{number}.png", seed=number)
    add_picture(tmp_path / "turned.png", size=(64, 48))
    model = small().fit(open_dataset(tmp_path, roi=RegionOfInterest(mask=MASK)))
    assert model.train_ids_ == ["0.png", "1.png"]
    assert "turned.png: region of interest: expected a picture of the shape of 64×48" in model.skipped_["turned.png"]
    with pytest.raises(InputError, match=r"turned\.png: region of interest: expected a picture of the shape of 64×48"):
        model.predict(tmp_path / "turned.png")
    assert model.predict([tmp_path / "0.png", tmp_path / "1.png"])[1].score >= 0


def test_pictures_of_several_sizes(tmp_path: Path) -> None:
    for number, size in enumerate(((48, 64), (96, 128), (48, 64))):
        add_picture(tmp_path / f"{number}.png", size=size, seed=number)
    model = small().fit(open_dataset(tmp_path, roi=RegionOfInterest(mask=MASK)))
    assert [prediction.map.shape for prediction in model.predict(PicturesDataset(tmp_path))] == [(48, 64), (96, 128),
                                                                                               (48, 64)]  # fmt: skip


def test_it_goes_with_subsets_and_one_for_all(parts: Path) -> None:
    dataset = open_dataset(parts / "good", roi=RegionOfInterest(mask=MASK))
    other = open_dataset(parts / "good", roi=RegionOfInterest(mask=RIGHT))
    assert small().fit(Subset(dataset, [0, 1])).roi_ is dataset.roi
    assert small().fit(ConcatDataset([Subset(dataset, [0, 1]), Subset(dataset, [2])])).roi_ is dataset.roi
    assert small().fit(Subset(ConcatDataset([dataset]), [0, 1])).roi_ is dataset.roi
    with pytest.raises(InputError, match="roi: expected one region of interest for all data sets, found several"):
        small().fit(ConcatDataset([dataset, other]))
    assert small().fingerprint_on(dataset) != small().fingerprint_on(other)
    assert "roi" not in small().fingerprint_on(open_dataset(parts / "good"))


def test_methods_that_score_whole_pictures_take_none(parts: Path) -> None:
    dataset = open_dataset(parts / "good", roi=RegionOfInterest(mask=MASK))
    with pytest.raises(InputError, match="roi: expected none for cfm, which scores whole pictures, found one"):
        region_of(dataset, CFM(**CFM_ARGUMENTS))
    assert not M3DM(banks=("xyz",), sampling="groups", xyz="point_mae", xyz_weights="random").takes_roi
    assert M3DM(banks=("rgb",)).takes_roi


def test_an_evaluation_leaves_the_rest_out_but_for_the_rectangle_around(tmp_path: Path) -> None:
    from data_trees import add_mvtec_ad

    add_mvtec_ad(tmp_path / "bottle")
    model = small().fit(open_dataset(tmp_path, roi=RegionOfInterest(mask=MASK)))
    found = evaluate(model, open_dataset(tmp_path, split="test"))
    assert (found.failed, found.metrics["fused"].image_auroc) == ({}, 1.0)
    assert (found.metrics["fused"].pixel_auroc or 0) > 0.9


# Patches.


def test_any_shape_of_window_is_scored_as_a_rectangle_is() -> None:
    from mmad_bank.bank import Scores

    def score(rows: torch.Tensor) -> Scores:
        patch = rows[..., 0]
        return Scores(patch, patch.amax(dim=1), patch.long())

    patches = torch.rand(3, 12, 2) * 100
    window = (slice(1, 3), slice(0, 2))
    mask = torch.zeros(3, 4, dtype=torch.bool)
    mask[window] = True
    for one, other in zip(
        score_in_windows(score, patches, [window] * 3, (3, 4)),
        score_in_windows(score, patches, [mask] * 3, (3, 4)),
        strict=True,
    ):
        assert one.equal(other)
    ragged = torch.tensor([[True, False, False, False]] * 2 + [[False, False, False, True]])
    mixed = score_in_windows(score, patches, [window, ragged, mask], (3, 4))
    assert mixed.patch[0].equal(score_in_windows(score, patches, [window] * 3, (3, 4)).patch[0])
    assert set(mixed.patch[1].tolist()) == {float(patches[1, n, 0]) for n in (0, 4, 11)}
    inside, repeated = window_cells((3, 4), ragged)
    assert inside.tolist() == [0, 4, 11]
    assert repeated.tolist() == [0, 0, 0, 2, 1, 1, 2, 2, 1, 1, 2, 2] or repeated[10] == 2


def test_rows_of_a_table_that_lie_inside() -> None:
    frame = Frame.centred(SIZE, 64, 64)
    rows = rows_inside(RegionOfInterest(mask=MASK), [frame, frame], GRID)
    assert rows is not None
    assert len(rows) == 2 * 6 * 3
    assert bool((rows % 8 < 3).all())
    assert rows_inside(None, [frame], GRID) is None


def test_verdicts_are_calibrated_on_what_counts(parts: Path, inside: PatchCore) -> None:
    """Each picture is a fold: it is scored by a model of the others that has the same region."""
    expected, peaks = [], []
    for number in range(4):
        others = open_dataset(parts / "good", roi=RegionOfInterest(mask=MASK)).select(
            [i for i in range(4) if i != number]
        )
        prediction = small(calibration="none").fit(others).predict(parts / "good" / f"{number}.png")
        expected.append(prediction.score)
        peaks.append(float(prediction.prepared_map.max()))
    assert inside.calibration_.own.scores.tolist() == pytest.approx(sorted(expected), rel=1e-5)
    assert inside.calibration_.peaks.scores.tolist() == pytest.approx(sorted(peaks), rel=1e-5)
    assert inside.predict(parts / "bad.png").verdict == "bad"
    for region in inside.predict(parts / "bad.png").regions:
        assert region.box[3] <= 24, "columns of the region of interest"
