"""Readers of pictures without depth: MVTec AD's layout and its relatives, VisA; their preparation."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tifffile")
pytest.importorskip("PIL")

from data_trees import add_mask, add_mvtec_ad, add_picture, add_sample, add_visa
from PIL import Image

from mmad_bank.data import (
    FolderDataset,
    MVTecADDataset,
    Preprocessing,
    SampleDataset,
    VisADataset,
    categories_of,
    few_shot,
    open_dataset,
    prepare,
    preprocess,
)
from mmad_bank.data.layouts import layout_of, unread_folders
from mmad_bank.errors import InputError, MissingSplitError

KEEP = Preprocessing.recipe("keep", size=32)


@pytest.fixture
def bottles(tmp_path: Path) -> Path:
    root = tmp_path / "mvtec_ad"
    add_mvtec_ad(root / "bottle")
    add_mvtec_ad(root / "tile", defect="crack")
    (root / "license.txt").write_text("words")
    return root


@pytest.fixture
def visa(tmp_path: Path) -> Path:
    root = tmp_path / "VisA"
    add_visa(root, "candle")
    add_visa(root, "pcb1")
    return root


def check_marked(dataset: SampleDataset, number: int) -> None:
    """See that a sample has the mask that :func:`data_trees.add_mask` writes."""
    mask = dataset[number].mask
    assert mask is not None
    assert int(mask.sum()) == 8 * 16
    assert mask.nonzero().min(dim=0).values.tolist() == [12, 16]


# MVTec AD.


def test_mvtec_ad_is_recognized_and_read(bottles: Path) -> None:
    assert layout_of(bottles) == layout_of(bottles / "tile") == "mvtec_ad"
    assert categories_of(bottles) == ["bottle", "tile"]
    train, test = open_dataset(bottles, "bottle"), open_dataset(bottles, "bottle", "test")
    assert isinstance(train, MVTecADDataset)
    assert [record.id for record in train.records] == [f"bottle/train/good/{i:03d}" for i in range(4)]
    assert test.labels == [0, 0, 1, 1]
    sample = test[2]
    assert (sample.id, sample.size) == ("bottle/test/broken/000", (48, 64))
    assert sample.modalities == test.modalities == {"rgb"}
    assert (sample.xyz_path, sample.prepared) == (None, False)
    check_marked(test, 2)
    assert test[0].mask is not None
    assert not test[0].mask.any()
    stored = np.asarray(Image.open(bottles / "bottle/test/broken/000.png"))
    assert np.array_equal((sample.rgb.numpy().transpose(1, 2, 0) * 255).round(), stored)
    assert open_dataset(bottles / "tile", split="test").categories == ("tile",)
    assert len(open_dataset(bottles, split="test")) == 8
    with pytest.raises(MissingSplitError, match=r"bottle: found no samples of the validation split; .*test/, train/"):
        open_dataset(bottles, "bottle", "validation")
    assert unread_folders(bottles) == []
    (bottles / "tile" / "test").rename(bottles / "tile" / "held-out")
    assert unread_folders(bottles) == [bottles / "tile" / "held-out"]


def test_few_shot_draws_of_pictures_alone(bottles: Path, visa: Path) -> None:
    for root in (bottles, visa):
        train = open_dataset(root)
        three, two = few_shot(train, 3, seed=1), few_shot(train, 2, seed=1)
        assert (len(three), len(two)) == (6, 4)
        assert set(two.records) < set(three.records)
        with pytest.raises(InputError, match="n: expected at most 4"):
            few_shot(train, 5)


@pytest.mark.parametrize("place", ["ground_truth/bad/000.png", "ground_truth/test/bad/000.png"])
def test_masks_as_visas_script_writes_them(tmp_path: Path, place: str) -> None:
    add_picture(tmp_path / "1cls/candle/test/bad/000.JPG", spot=True)
    add_mask(tmp_path / "1cls/candle" / place)
    check_marked(open_dataset(tmp_path / "1cls", "candle", "test"), 0)
    with pytest.raises(InputError, match=r"expected the folder of the categories, found data sets in it: 1cls/"):
        open_dataset(tmp_path)


def test_mvtec_ad_2(tmp_path: Path) -> None:
    can = tmp_path / "can"
    for split in ("train", "validation"):
        add_picture(can / split / "good" / "000_regular.png")
    for name in ("000_regular", "000_overexposed"):
        add_picture(can / "test_public" / "good" / f"{name}.png")
        add_picture(can / "test_public" / "bad" / f"{name}.png", spot=True)
        add_mask(can / "test_public" / "ground_truth" / "bad" / f"{name}_mask.png")
    add_picture(can / "test_private" / "000_regular.png")
    assert layout_of(tmp_path) == "mvtec_ad"
    assert len(open_dataset(tmp_path, "can", "validation")) == 1
    test = open_dataset(tmp_path, "can", "test")
    assert test.labels == [0, 0, 1, 1]
    check_marked(test, 2)
    check_marked(test, 3)


def test_mvtec_loco_joins_the_masks_of_a_picture(tmp_path: Path) -> None:
    box, truth = tmp_path / "juice_bottle", tmp_path / "juice_bottle/ground_truth/logical_anomalies/000"
    add_picture(box / "train" / "good" / "000.png")
    add_picture(box / "test" / "logical_anomalies" / "000.png", spot=True)
    for number, rows in enumerate((slice(12, 16), slice(16, 20))):
        mask = np.zeros((48, 64), np.uint8)
        mask[rows, 16:32] = 255
        truth.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(truth / f"{number:03d}.png")
    test = open_dataset(tmp_path, split="test")
    check_marked(test, 0)
    assert test.records[0].files[1:] == (truth / "000.png", truth / "001.png")
    assert prepare(tmp_path, tmp_path.parent / "prepared", KEEP).failed == {}
    add_mask(truth / "002.png", size=(10, 10))
    with pytest.raises(InputError, match=r"000: expected masks of one size, found 48×64, 48×64, 10×10"):
        test[0]


def test_a_missing_mask_is_named_where_others_have_one(bottles: Path) -> None:
    (bottles / "bottle/ground_truth/broken/000_mask.png").unlink()
    test = open_dataset(bottles, "bottle", "test")
    with pytest.raises(InputError, match=r"broken.000_mask\.png: file not found; expected a mask"):
        test[2]
    check_marked(test, 3)
    shutil.rmtree(bottles / "bottle/ground_truth")
    assert open_dataset(bottles, "bottle", "test")[2].mask is None


def test_two_pictures_of_one_name_are_refused(bottles: Path) -> None:
    add_picture(bottles / "bottle/test/OK/000.png")
    with pytest.raises(InputError, match=r"bottle/test/good/000: expected one sample of this name, found .*OK"):
        open_dataset(bottles, "bottle", "test")


# VisA.


def test_visa_is_recognized_and_read(visa: Path) -> None:
    assert layout_of(visa) == layout_of(visa / "pcb1") == "visa"
    assert categories_of(visa) == ["candle", "pcb1"]
    train, test = open_dataset(visa, "candle"), open_dataset(visa, "candle", "test")
    assert isinstance(test, VisADataset)
    assert (len(train), train.labels) == (4, [0] * 4)
    assert test.labels == [0, 0, 1, 1]
    assert test.records[2].id == "candle/test/chunk of wax missing+weird-odd wick/000"
    assert test[2].modalities == {"rgb"}
    check_marked(test, 2)  # a mask of ones
    check_marked(test, 3)  # of twos
    assert [record.category for record in open_dataset(visa, split="test").records] == ["candle"] * 4 + ["pcb1"] * 4
    with pytest.raises(MissingSplitError, match="candle: found no samples of the validation split"):
        open_dataset(visa, "candle", "validation")
    assert unread_folders(visa) == []


def test_visas_masks_may_have_a_palette(visa: Path) -> None:
    add_mask(visa / "candle/Data/Masks/Anomaly/000.png", value=3, palette=True)
    check_marked(open_dataset(visa, "candle", "test"), 2)


def test_visas_setups_and_tables(visa: Path) -> None:
    table = visa / "split_csv" / "1cls.csv"
    rows = table.read_text().replace("test,anomaly", "train,anomaly")
    (visa / "split_csv" / "2cls_fewshot.csv").write_text(rows)
    assert VisADataset(visa, "candle", "train", setup="2cls_fewshot").labels == [0] * 4 + [1] * 2
    with pytest.raises(InputError, match="setup: expected one of 1cls, 2cls_highshot, 2cls_fewshot, found '3cls'"):
        VisADataset(visa, setup="3cls")  # type: ignore[arg-type]
    (visa / "candle" / "image_anno.csv").unlink()
    assert open_dataset(visa, "candle", "test").records[2].defect == "anomalous"
    for text, message in (
        (
            rows.replace("candle/Data/Masks", "../../Masks"),
            r"csv: expected a path inside the data set, found '\.\./",
        ),
        (
            rows.replace("candle/Data/Images/Normal/0001.JPG", '"a\nb.JPG"'),
            r"csv: expected a path .*, found 'a\\nb\.JPG'",
        ),
        (rows.replace("0001.JPG", "1" * 5000 + ".JPG"), r"csv: expected a path inside the data set, found 'candle"),
        (
            rows + rows.splitlines()[1] + "\n",
            r"1cls\.csv: expected each sample once, found candle/train/good/0000 more than once",
        ),
        ("object,split\n", r"1cls\.csv: expected the columns object,split,label,image,mask, found 'object,split'"),
        ("", r"1cls\.csv: expected the columns .*found none"),
        (b"\xff\xfe".decode("latin1"), "expected the columns"),
    ):
        table.write_text(text)
        with pytest.raises(InputError, match=message):
            open_dataset(visa, "candle", "train")
    table.unlink()
    with pytest.raises(InputError, match=r"1cls\.csv: file not found; expected VisA's table"):
        open_dataset(visa, "candle", "train")


# Preparation.


@pytest.mark.parametrize("root", ["bottles", "visa"])
def test_prepared_pictures_are_the_raw_ones_preprocessed(
    root: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    source = request.getfixturevalue(root)
    result = prepare(source, tmp_path / "out", KEEP)
    assert (result.written, result.failed) == (16, {})
    assert not list((tmp_path / "out").rglob("xyz"))
    raw, made = open_dataset(source, split="test"), open_dataset(tmp_path / "out", split="test")
    assert isinstance(made, FolderDataset)
    assert made.modalities == {"rgb"}
    assert [record.id for record in made.records] == [record.id for record in raw.records]
    for one, other in zip(raw, made, strict=True):
        expected = preprocess(one, KEEP)
        assert expected.rgb.equal(other.rgb)
        assert other.mask is not None
        assert expected.mask is not None
        assert expected.mask.equal(other.mask)
        assert (other.preparation, other.frame) == (KEEP, expected.frame)
    assert prepare(source, tmp_path / "out", KEEP).cached == 16


def test_pictures_alone_are_kept_by_default(bottles: Path, tmp_path: Path) -> None:
    assert prepare(bottles, tmp_path / "out").settings["background"] == "keep"
    with pytest.raises(InputError, match=r"mvtec_ad: expected point clouds, .*plane.*, found pictures alone"):
        prepare(bottles, tmp_path / "other", Preprocessing.recipe("m3dm"))
    assert not (tmp_path / "other").exists()
    with pytest.raises(InputError, match=r"000\.png: expected point clouds, by which the background is found"):
        preprocess(open_dataset(bottles)[0])
    add_sample(bottles / "parts" / "bracket" / "train" / "good")
    shutil.copytree(bottles / "tile" / "train" / "good", bottles / "parts" / "tile" / "train" / "good" / "rgb")
    with pytest.raises(InputError, match=r"one recipe prepares, found some for m3dm \(bracket\) and keep \(tile\)"):
        prepare(bottles / "parts", tmp_path / "mixed")


def test_what_was_prepared_of_pictures_is_known_again(bottles: Path, tmp_path: Path) -> None:
    prepare(bottles, tmp_path / "out", KEEP)
    with pytest.raises(InputError, match="is prepared already"):
        prepare(tmp_path / "out", tmp_path / "twice", KEEP)
    (bottles / "tile/train/good/003.png").unlink()
    assert prepare(bottles, tmp_path / "out", KEEP).set_aside == ["tile/train/good/003"]
    add_picture(bottles / "tile/train/good/002.png", seed=7)
    assert prepare(bottles, tmp_path / "out", KEEP).written == 1
    (tmp_path / "out" / "prepared.json").unlink()
    with pytest.raises(InputError, match=r"has been prepared, but prepared\.json is missing"):
        open_dataset(tmp_path / "out")[0]
