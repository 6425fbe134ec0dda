"""The way from a prepared square back to the picture's pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmad_bank.data import Frame
from mmad_bank.data.preprocessing import pad_square, resize_nearest
from mmad_bank.errors import InputError
from mmad_bank.scoring import anomaly_map

SHAPES = [(96, 96), (400, 900), (900, 400), (60, 61), (31, 97), (224, 224), (500, 333)]
SIDES = {shape: -(-max(shape) // 100) * 100 for shape in SHAPES}


@pytest.mark.parametrize("size", [64, 224])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_hot_patch_is_found_where_it_was(shape: tuple[int, int], size: int) -> None:
    """A patch's score, enlarged and blurred, has its centre within a pixel of the patch's in the picture."""
    frame, grid = Frame.centred(shape, SIDES[shape], size), (16, 16)
    rows, columns = frame.cells(grid)
    for place in (
        ((rows.start + rows.stop) // 2, (columns.start + columns.stop) // 2),
        (rows.start + 3, columns.start + 3),
    ):
        scores = torch.zeros(1, *grid)
        scores[0, place[0], place[1]] = 1
        found = frame.to_picture(anomaly_map(scores.flatten(1), grid, (size, size), size / 56)[0]).double()
        assert found.shape == shape
        top, left, bottom, right = frame.box(place, grid)
        if min(top, left) == 0 or bottom == shape[0] or right == shape[1]:
            continue  # the border cuts a part of the blurred patch off
        exact = [(at + 0.5) * frame.side / 16 - pad for at, pad in zip(place, (frame.top, frame.left), strict=True)]
        for axis, length in ((0, shape[0]), (1, shape[1])):
            centre = (found.sum(1 - axis) * (torch.arange(length) + 0.5)).sum() / found.sum()
            assert abs(float(centre) - exact[axis]) < 0.25
        assert top - 1e-9 <= exact[0] <= bottom
        assert left - 1e-9 <= exact[1] <= right
    assert rows.stop - rows.start >= 5, "the test has looked at patches of the picture"


@pytest.mark.parametrize("size", [50, 224, 900])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_interpolation_of_the_square_cut_to_the_picture(shape: tuple[int, int], size: int) -> None:
    frame = Frame.centred(shape, SIDES[shape], size)
    maps = torch.rand(2, size, size, dtype=torch.float64)
    found = frame.to_picture(maps)
    rows, columns = (torch.arange(size).clamp(shown.start, shown.stop - 1) for shown in (frame.rows, frame.columns))
    maps = maps[:, rows][:, :, columns]  # what the padding holds is of no account
    square = F.interpolate(maps[None], size=(frame.side, frame.side), mode="bilinear", align_corners=False)[0]
    expected = square[:, frame.top : frame.top + shape[0], frame.left : frame.left + shape[1]]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_nothing_changes_where_nothing_was_done() -> None:
    frame, maps = Frame.centred((200, 200), 200), torch.rand(200, 200)
    assert torch.equal(frame.to_picture(maps), maps)
    assert (frame.rows, frame.columns) == (slice(0, 200), slice(0, 200))
    assert frame.cells((28, 28)) == (slice(0, 28), slice(0, 28))


@pytest.mark.parametrize("size", [33, 64, 224])
@pytest.mark.parametrize("shape", SHAPES)
def test_shown_pixels_are_those_that_are_no_padding(shape: tuple[int, int], size: int) -> None:
    frame = Frame.centred(shape, SIDES[shape], size)
    prepared = resize_nearest(pad_square(np.ones(shape, bool), frame.side, "zero"), size)
    shown = np.zeros((size, size), bool)
    shown[frame.rows, frame.columns] = True
    assert np.array_equal(prepared, shown)
    back = frame.nearest_to_picture(torch.from_numpy(prepared))
    assert back.shape == shape
    assert back.all()
    patches = np.zeros((7, 7), bool)
    patches[frame.cells((7, 7))] = True
    square = pad_square(np.ones(shape, bool), frame.side, "zero").repeat(7, 0).repeat(7, 1)  # a cell is `side` pixels
    touched = square.reshape(7, frame.side, 7, frame.side).any(axis=(1, 3))
    assert np.array_equal(patches, touched)


def test_boxes_cover_the_picture_and_nothing_else() -> None:
    frame, grid = Frame.centred((31, 97), 100, 224), (9, 9)
    covered = np.zeros((31, 97), int)
    for row in range(9):
        for column in range(9):
            top, left, bottom, right = frame.box((row, column), grid)
            assert 0 <= top <= bottom <= 31
            assert 0 <= left <= right <= 97
            covered[top:bottom, left:right] += 1
            rows, columns = frame.cells(grid)
            inside = rows.start <= row < rows.stop and columns.start <= column < columns.stop
            assert inside == (top < bottom and left < right)
    assert (covered >= 1).all()


def test_frames_come_back_from_text_and_bad_ones_are_refused() -> None:
    frame = Frame.centred((400, 900), 900, 224)
    assert Frame.from_text(frame.as_text()) == frame
    for text in (
        "", "1 2 3", "400 900 250 0 900 -224", "a b c d e f", "400 900 600 0 900 224", "1e3 1 1 1 1 1", "0 9 0 0 9 9",
        "999999999 1 0 0 999999999 1", "60000 60000 0 0 60000 224", "2 900 449 0 900 100",
    ):  # fmt: skip
        with pytest.raises(InputError, match="frame: "):
            Frame.from_text(text)
    with pytest.raises(InputError, match=r"maps: expected 224×224 pixels as the frame has, found 3×224"):
        frame.to_picture(torch.zeros(3, 224))
