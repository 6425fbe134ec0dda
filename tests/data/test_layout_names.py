"""Names of folders and files: which are the same, which are refused, which are left alone, and their order."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tifffile")
pytest.importorskip("PIL")

from data_trees import add_eyecandy, add_sample, scene
from PIL import Image

from mmad_bank.data import categories_of, few_shot, open_dataset
from mmad_bank.data.layouts import unread_folders
from mmad_bank.data.preparation import prepare
from mmad_bank.errors import InputError, MissingSplitError

SMALL = scene(20, 20)


def names(root: Path, split: str = "train") -> list[str]:
    return [record.id for record in open_dataset(root, split=split).records]


@pytest.mark.parametrize("good", ["good", "Good", "GOOD", "ok", "OK", "normal", "Normal"])
def test_good_samples_go_by_several_names(tmp_path: Path, good: str) -> None:
    add_sample(tmp_path / "part/test" / good, xyz=SMALL)
    add_sample(tmp_path / "part/test/hole", xyz=SMALL)
    test = open_dataset(tmp_path, split="test")
    assert test.labels == [0, 1]
    assert [sample.id for sample in test] == ["part/test/good/000", "part/test/hole/000"]
    assert test[0].mask is not None


def test_two_folders_of_good_samples_are_one_kind(tmp_path: Path) -> None:
    add_sample(tmp_path / "part/test/OK", "000", xyz=SMALL)
    add_sample(tmp_path / "part/test/good", "001", xyz=SMALL)
    assert open_dataset(tmp_path, split="test").labels == [0, 0]
    add_sample(tmp_path / "part/test/good", "000", xyz=SMALL)
    with pytest.raises(
        InputError, match=r"part/test/good/000: expected one sample of this name, found .*OK.* and .*good"
    ):
        open_dataset(tmp_path, split="test")


@pytest.mark.parametrize(
    ("split", "folder"),
    [
        ("train", "Train"), ("train", "training"), ("validation", "val"), ("validation", "valid"),
        ("validation", "Validation"), ("test", "TEST"), ("test", "testing"),
    ],
)  # fmt: skip
def test_splits_go_by_several_names(tmp_path: Path, split: str, folder: str) -> None:
    add_sample(tmp_path / "part" / folder / "good", xyz=SMALL)
    assert categories_of(tmp_path) == ["part"]
    assert names(tmp_path, split) == [f"part/{split}/good/000"]
    assert names(tmp_path, folder) == [f"part/{split}/good/000"]
    assert open_dataset(tmp_path / "part", split=split)[0].split == split


def test_two_folders_of_one_split_are_refused(tmp_path: Path) -> None:
    for folder in ("val", "Validation"):
        add_sample(tmp_path / "part" / folder / "good", xyz=SMALL)
    with pytest.raises(
        InputError, match="part: expected one folder of the validation split, found Validation/ and val/"
    ):
        open_dataset(tmp_path, split="validation")
    depth = np.linspace(0.6, 1.4, 64).reshape(8, 8)
    for folder in ("test", "test_public"):
        add_eyecandy(tmp_path / "candy/Lollipop" / folder / "data", "000", depth)
    with pytest.raises(InputError, match="expected one folder of the test split, found test/ and test_public/"):
        open_dataset(tmp_path / "candy", split="test")


def test_a_split_that_is_not_there_is_said_with_what_is(tmp_path: Path) -> None:
    add_sample(tmp_path / "part/train/good", xyz=SMALL)
    add_sample(tmp_path / "part/holdout/good", xyz=SMALL)
    (tmp_path / "part/notes").mkdir()
    with pytest.raises(
        MissingSplitError,
        match=r"part: found no samples of the validation split; .*; folders found: holdout/, notes/, train/",
    ):
        open_dataset(tmp_path, split="validation")
    assert unread_folders(tmp_path) == unread_folders(tmp_path / "part") == [tmp_path / "part/holdout"]
    (tmp_path / "part/validation/good/rgb").mkdir(parents=True)
    with pytest.raises(MissingSplitError):
        open_dataset(tmp_path, split="validation")
    depth = np.linspace(0.6, 1.4, 64).reshape(8, 8)
    for folder in ("train", "extra"):
        add_eyecandy(tmp_path / "candy/Lollipop" / folder / "data", "000", depth)
    assert unread_folders(tmp_path / "candy") == [tmp_path / "candy/Lollipop/extra"]


@pytest.mark.parametrize(
    ("folder", "first", "second"),
    [
        ("rgb", "000.png", "000.jpg"),
        ("rgb", "000.png", "000.PNG"),
        ("xyz", "000.tiff", "000.tif"),
        ("gt", "000.png", "000.bmp"),
    ],
)
def test_two_files_of_one_sample_are_named(tmp_path: Path, folder: str, first: str, second: str) -> None:
    add_sample(tmp_path / "part/test/hole", xyz=SMALL, mask=np.ones((20, 20)))
    place = tmp_path / "part/test/hole" / folder
    shutil.copy(place / first, place / second)
    with pytest.raises(InputError, match=rf"{folder}: expected one file per sample, found {second} and {first}"):
        open_dataset(tmp_path, split="test")


def test_suffixes_and_folders_in_capitals_are_taken(tmp_path: Path) -> None:
    place = tmp_path / "part/test/hole"
    add_sample(place, xyz=SMALL, mask=np.eye(20))
    (place / "rgb/000.png").rename(place / "rgb/000.PNG")
    (place / "xyz/000.tiff").rename(place / "xyz/000.TIFF")
    (place / "gt/000.png").rename(place / "gt/000.Png")
    for name in ("rgb", "xyz", "gt"):
        (place / name).rename(place / name.upper())
    sample = open_dataset(tmp_path, split="test")[0]
    assert sample.mask is not None
    assert int(sample.mask.sum()) == 20
    for suffix in ("JPG", "JPEG", "BMP", "TIF", "TIFF"):
        (next((place / "RGB").iterdir())).unlink()
        Image.new("RGB", (20, 20)).save(place / f"RGB/000.{suffix}")
        assert open_dataset(tmp_path, split="test")[0].rgb_path.suffix == f".{suffix}"


def test_litter_is_left_alone(tmp_path: Path) -> None:
    place = tmp_path / "part/train/good"
    add_sample(place, xyz=SMALL)
    for folder in (place / "rgb", place / "xyz", place, tmp_path / "part", tmp_path / "part/train", tmp_path):
        for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._000.png", ".hidden.tiff"):
            (folder / name).write_bytes(b"\0")
        (folder / "__MACOSX/xyz").mkdir(parents=True)
        (folder / ".git/xyz").mkdir(parents=True)
    assert names(tmp_path) == ["part/train/good/000"]


def test_the_order_is_that_of_counting_whatever_the_file_system_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = ["1", "2", "10", "01", "100", "9b", "9"]
    for name in listed:
        add_sample(tmp_path / "part10/train/good", "0", xyz=SMALL)
        for folder, suffix in (("rgb", "png"), ("xyz", "tiff")):
            place = tmp_path / "part10/train/good" / folder
            (place / f"0.{suffix}").rename(place / f"{name}.{suffix}")
    add_sample(tmp_path / "part9/train/good", xyz=SMALL)
    order = ["01", "1", "2", "9", "9b", "10", "100"]
    wanted = ["part9/train/good/000", *(f"part10/train/good/{name}" for name in order)]
    assert names(tmp_path) == wanted
    listing = Path.iterdir
    for reverse in (False, True):
        monkeypatch.setattr(Path, "iterdir", lambda self, r=reverse: iter(sorted(listing(self), reverse=r)))
        assert names(tmp_path) == wanted
    assert categories_of(tmp_path) == ["part9", "part10"]


@pytest.mark.parametrize(
    "name", ["a b", "50%", "#1", "a,b", "é", "零", "-x", "[a]", "a'b\"", "a\nb", os.fsdecode(b"\xff\xfe")]
)
def test_names_of_all_characters(tmp_path: Path, name: str) -> None:
    root = tmp_path / name
    add_sample(root / name / "train/good", xyz=scene())
    for folder, suffix in (("rgb", "png"), ("xyz", "tiff")):
        place = root / name / "train/good" / folder
        (place / f"000.{suffix}").rename(place / f"{name}.{suffix}")
    broken = root / name / "test" / name / "rgb"
    broken.mkdir(parents=True)
    (broken / f"{name}.png").write_bytes(b"")
    train = few_shot(open_dataset(root), 1)
    assert train[0].id == f"{name}/train/good/{name}"
    result = prepare(root, tmp_path / f"out{name}")
    assert (result.written, list(result.failed)) == (1, [f"{name}/test/{name}/{name}"])
    assert open_dataset(tmp_path / f"out{name}")[0].id == train[0].id


def test_an_accent_may_be_spelled_in_two_ways(tmp_path: Path) -> None:
    place = tmp_path / "part/train/good"
    add_sample(place, xyz=SMALL)
    (place / "rgb/000.png").rename(place / "rgb/é.png")
    (place / "xyz/000.tiff").rename(place / "xyz/e\u0301.tiff")
    (sample,) = open_dataset(tmp_path)
    assert sample.id == "part/train/good/é"


def test_links_are_followed(tmp_path: Path) -> None:
    add_sample(tmp_path / "store/v2/train/good", xyz=SMALL)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/bracket").symlink_to(tmp_path / "store/v2")
    (tmp_path / "data/loop").symlink_to(tmp_path / "data/loop")
    assert names(tmp_path / "data") == names(tmp_path / "data/bracket") == ["bracket/train/good/000"]
    assert open_dataset(tmp_path / "data/bracket", "bracket")[0].category == "bracket"
    place = tmp_path / "store/v2/train/good"
    (place / "rgb/001.png").symlink_to(tmp_path / "nowhere.png")
    shutil.copy(place / "xyz/000.tiff", place / "xyz/001.tiff")
    dataset = open_dataset(tmp_path / "data")
    assert [record.changed > 0 for record in dataset.records] == [True, True]
    with pytest.raises(InputError, match=r"001\.png: file not found"):
        dataset[1]
