"""Regions of interest: masks and polygons read, scaled, brought to patches, and kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("PIL")
pytest.importorskip("tifffile")

from data_trees import add_mvtec_ad
from PIL import Image

from mmad_bank.data import RegionOfInterest, few_shot, open_dataset, read_region
from mmad_bank.data.frame import Frame
from mmad_bank.errors import InputError

MASK = np.zeros((48, 64), bool)
MASK[6:30, 16:40] = True
SQUARE = [[16, 6], [39, 6], [39, 29], [16, 29]]


def written(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_a_mask_and_its_polygon_are_one_region(tmp_path: Path) -> None:
    Image.fromarray(MASK.astype(np.uint8) * 7).save(tmp_path / "roi.png")
    for name, content in (
        ("a.json", SQUARE),
        ("b.json", [SQUARE]),
        ("c.json", {"polygons": [SQUARE]}),
        ("d.json", {"polygons": SQUARE, "size": [64, 48]}),
    ):
        drawn = read_region(written(tmp_path / name, content)).inside(48, 64)
        assert np.array_equal(drawn.numpy(), MASK), name
    assert np.array_equal(read_region(tmp_path / "roi.png").inside(48, 64).numpy(), MASK)


def test_several_polygons_are_joined_and_may_leave_the_picture() -> None:
    left, right = ((-5, -5), (3, -5), (3, 60), (-5, 60)), ((60, 0), (90, 0), (90, 47), (60, 47))
    inside = RegionOfInterest(polygons=(left, right)).inside(48, 64)
    assert inside.any(dim=0).nonzero().flatten().tolist() == [0, 1, 2, 3, 60, 61, 62, 63]


def test_another_size_of_one_shape_is_scaled_and_another_shape_refused(tmp_path: Path) -> None:
    for region in (RegionOfInterest(mask=MASK), read_region(_sized(tmp_path))):
        large = region.inside(480, 640)
        assert abs(float(large.float().mean()) - MASK.mean()) < 0.02
        assert bool(large[100, 200])
        assert not bool(large[400, 200])
        with pytest.raises(InputError, match=r"of the shape of 64×48 pixels, found 48×64"):
            region.inside(64, 48)
    assert RegionOfInterest(polygons=(tuple(map(tuple, SQUARE)),)).inside(64, 48).shape == (
        64,
        48,
    )  # pixels of every picture


def _sized(folder: Path) -> Path:
    return written(folder / "sized.json", {"polygons": SQUARE, "size": [64, 48]})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([[0, 0], [1, 1]], "no list of at least three corners"),
        ([[0, 0], [1, 1], [2]], "no list of at least three corners"),
        ([], "no list of polygons"),
        ("corners", "no list of polygons"),
        ({"size": [4, 4]}, "an object without 'polygons'"),
        ([[0, 0], [1, 1], [1e9, 0]], "corners that are no pixels"),
        ([[0, 0], [1, 1], [float("nan"), 0]], "corners that are no pixels"),
        ({"polygons": SQUARE, "size": [0, 4]}, "size"),
        ([[10**400, 0], [1, 1], [2, 0]], "found something else"),
        ([["a", "b"], ["c", "d"], ["e", "f"]], "no list of at least three corners"),
    ],
)
def test_what_is_no_region_is_one_line(tmp_path: Path, content: Any, words: str) -> None:
    with pytest.raises(InputError, match=rf"roi\.json: expected corners of a polygon .*{words}") as error:
        read_region(written(tmp_path / "roi.json", content))
    assert "\n" not in str(error.value)


def test_files_that_hold_no_region_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no\.json: file not found; expected corners"):
        read_region(tmp_path / "no.json")
    (tmp_path / "bad.json").write_text("[[")
    with pytest.raises(InputError, match=r"bad\.json: expected corners .* found something else"):
        read_region(tmp_path / "bad.json")
    with pytest.raises(InputError, match=r"no\.png: file not found"):
        read_region(tmp_path / "no.png")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "black.png")
    with pytest.raises(
        InputError, match=r"black\.png: expected a region of interest, pixels that are not black, found"
    ):
        read_region(tmp_path / "black.png")
    with pytest.raises(InputError, match="no pixel of a picture of 64×48 lies inside"):
        RegionOfInterest(polygons=(((100, 100), (120, 100), (110, 120)),)).inside(48, 64)


def test_patches_inside_at_least_in_part() -> None:
    frame = Frame.centred((48, 64), 64, 64)  # 8 rows of padding above
    cells = RegionOfInterest(mask=MASK).cells(frame, (8, 8))
    expected = np.zeros((8, 8), bool)
    expected[1:5, 2:5] = True  # rows 14 to 37 of the square, columns 16 to 39
    assert np.array_equal(cells.numpy(), expected)
    square = RegionOfInterest(mask=MASK).cells(frame, (64, 64)).numpy()
    assert np.array_equal(square[8:56], MASK)
    assert not square[:8].any()
    assert not square[56:].any()


def test_what_a_model_keeps_is_the_same_region() -> None:
    for region in (
        RegionOfInterest(mask=MASK),
        RegionOfInterest(polygons=(((1.5, 2), (30, 2), (30, 40)),), size=(48, 64)),
    ):
        again = RegionOfInterest.from_json(json.loads(json.dumps(region.as_json())))
        assert again.inside(48, 64).equal(region.inside(48, 64))
        assert again.as_json() == region.as_json()
    kept = RegionOfInterest(mask=MASK).as_json()
    changes = ({"size": [4800, 6400]}, {"size": [2**16, 2**16]}, {"size": None}, {"mask": "x"})
    for wrong in [{**kept, **change} for change in changes]:
        with pytest.raises(ValueError):  # noqa: PT011 (whatever it is, the model's reader says that it was altered)
            RegionOfInterest.from_json(wrong)


def test_a_data_set_keeps_it(tmp_path: Path) -> None:
    add_mvtec_ad(tmp_path / "data" / "bottle")
    Image.fromarray(MASK).save(tmp_path / "roi.png")
    dataset = open_dataset(tmp_path / "data", roi=tmp_path / "roi.png")
    assert dataset.roi is few_shot(dataset, 2).roi is dataset.without_truths().roi
    assert open_dataset(tmp_path / "data", roi=dataset.roi).roi is dataset.roi
    assert open_dataset(tmp_path / "data").roi is None
