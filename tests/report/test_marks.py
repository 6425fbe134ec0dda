"""What is drawn on pictures: outlines that can be seen and hide nothing, labels, the region of interest."""

from __future__ import annotations

import numpy as np
import pytest
import torch

for package in ("scipy", "matplotlib", "PIL"):
    pytest.importorskip(package)

from mmad_bank.data import RegionOfInterest
from mmad_bank.report import pictures
from mmad_bank.report.marks import LABELLED, SIDE, Marks, annotated, drawn, enlarged


def a_region(size: tuple[int, int], *boxes: tuple[int, int, int, int]) -> torch.Tensor:
    numbers = torch.zeros(size, dtype=torch.int32)
    for number, (top, left, bottom, right) in enumerate(boxes, 1):
        numbers[top:bottom, left:right] = number
    return numbers


@pytest.mark.parametrize("shade", [0, 128, 255])
@pytest.mark.parametrize("size", [(48, 64), (900, 1200)])
def test_outlines_can_be_seen_on_every_shade_and_hide_no_pixel_of_the_region(shade: int, size: tuple[int, int]) -> None:
    height, width = size
    numbers = a_region(size, (height // 3, width // 3, height // 2, width // 2))
    picture = np.full((*size, 3), shade, np.uint8)
    found = drawn(picture, Marks(numbers)).astype(int)
    assert (found[numbers.numpy() > 0] == shade).all()
    row = found[5 * height // 12, :, 0]
    assert np.abs(np.diff(row)).max() > 100, "light beside dark"
    changed = (found != shade).any(axis=2)
    assert 0 < changed.mean() < 0.15
    lines = np.flatnonzero(row[: width // 3] != shade)
    assert len(lines) >= width / 640, "lines are as wide as a large picture needs"


def test_a_region_of_one_pixel_gets_an_outline() -> None:
    found = drawn(np.zeros((300, 400, 3), np.uint8), Marks(a_region((300, 400), (100, 100, 101, 101))))
    assert (found == 255).all(axis=2).sum() == 8
    assert tuple(found[100, 100]) == (0, 0, 0)


@pytest.mark.parametrize("shade", [0, 255])
def test_a_region_that_is_the_whole_picture_has_a_line_at_its_border(shade: int) -> None:
    picture = np.full((320, 400, 3), shade, np.uint8)
    found = drawn(picture, Marks(torch.ones(320, 400, dtype=torch.int32)))
    assert (found[0] == 255).all()
    assert (found[1, 1:-1] == 17).all()
    assert (found[2:-2, 2:-2] == shade).all()


def test_labels_stand_beside_their_regions_and_cover_none() -> None:
    boxes = ((0, 0, 40, 60), (380, 540, 400, 600), (150, 200, 200, 300), (205, 200, 240, 300), (100, 200, 145, 300))
    numbers = a_region((400, 600), *boxes)
    picture = np.full((400, 600, 3), 90, np.uint8)
    with_labels = drawn(picture, Marks(numbers, [f"{i}: 12.3" for i in range(1, 6)]))
    assert (with_labels[6:-6, 6:-6][numbers.numpy()[6:-6, 6:-6] > 0] == 90).all(), "but for lines at the border"
    outlines = drawn(picture, Marks(numbers))
    places = (with_labels != outlines).any(axis=2)
    from scipy import ndimage

    labels = ndimage.find_objects(ndimage.label(places, np.ones((3, 3)))[0])
    assert len(labels) == 5, "none covers another"
    for one, (top, left, bottom, right) in zip(labels, sorted(boxes), strict=False):
        rows, columns = one
        assert rows.stop > top - 60
        assert rows.start < bottom + 60
        assert columns.start < right + 160
        assert columns.stop > left - 160


def test_many_regions_have_outlines_and_a_few_labels() -> None:
    boxes = [(20 * i + 5, 20 * j + 5, 20 * i + 9, 20 * j + 9) for i in range(10) for j in range(10)]
    numbers, picture = a_region((200, 200), *boxes), np.zeros((200, 200, 3), np.uint8)
    few = drawn(picture, Marks(numbers, [str(i) for i in range(1, 101)]))
    assert np.array_equal(few, drawn(picture, Marks(numbers, [str(i) for i in range(1, LABELLED + 1)])))
    assert not np.array_equal(few, drawn(picture, Marks(numbers, [str(i) for i in range(1, LABELLED)])))


@pytest.mark.parametrize("shade", [0, 255])
def test_what_lies_outside_the_region_of_interest_is_washed_out(shade: int) -> None:
    region = RegionOfInterest(polygons=(((10, 10), (50, 10), (50, 30), (10, 30)),))
    inside = region.inside(60, 80)
    picture = np.full((60, 80, 3), shade, np.uint8)
    found = drawn(picture, Marks(torch.zeros(60, 80, dtype=torch.int32), inside=inside))
    assert (found[inside.numpy()] == shade).all()
    assert 40 < abs(int(found[50, 70, 0]) - shade) < 128
    assert int(found[20, 9, 0]) > int(found[50, 70, 0]) + 20, "the line at its border"
    whole = torch.ones_like(inside)
    assert np.array_equal(drawn(picture, Marks(torch.zeros(60, 80), inside=whole)), picture)


def test_small_pictures_are_enlarged_by_a_whole_number() -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, (30, 45, 1)).astype(np.uint8).repeat(3, axis=2)
    marks = Marks(a_region((30, 45), (10, 10, 15, 20)), ["1: 3"])
    found = annotated(picture, np.zeros((30, 45)), (0.0, 1.0), marks)
    factor = SIDE // 45
    assert found.shape == (30 * factor, 45 * factor, 3)
    assert np.array_equal(found[10 * factor : 15 * factor, 10 * factor : 20 * factor],
                          enlarged(picture, factor)[10 * factor : 15 * factor, 10 * factor : 20 * factor])  # fmt: skip
    large = np.zeros((20, SIDE + 1, 3), np.uint8)
    assert annotated(large, np.zeros(large.shape[:2]), (0.0, 1.0), Marks(a_region((20, SIDE + 1)))).shape == large.shape


def test_heat_leaves_normal_pixels_alone_and_hides_no_defect() -> None:
    picture = np.zeros((4, 4, 3), np.uint8)
    picture[2:, :] = 200  # a defect's own contrast
    scores = np.repeat([[0.0, 1.0, 2.0, 9.0]], 4, axis=0)
    found = pictures.overlay(picture, scores, (1.0, 2.0)).astype(int)
    assert np.array_equal(found[:, :2], picture[:, :2])
    assert np.array_equal(found[:, 2], found[:, 3])
    assert (np.abs(found[2, 3] - found[1, 3]) > 80).all()
    red = pictures.overlay(np.full((1, 1, 3), (250, 20, 20), np.uint8), np.zeros((1, 1)), (1.0, 2.0))[0, 0].astype(int)
    assert 30 < red[0] - red[1] < 120, "paler, so that colors of the picture are not taken for heat"


def test_small_regions_stay_when_a_picture_is_made_small() -> None:
    marks = Marks(a_region((400, 600), (10, 10, 11, 11), (300, 300, 340, 380)), ["1", "2"]).resized((40, 60))
    assert int(marks.numbers[1, 1]) == 1
    assert int((marks.numbers == 2).sum()) == 4 * 8
    assert marks.words == ["1", "2"]
