"""Plain pictures: folders however nested, lists, patterns; what is told from a data set, and what is doubted."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

pytest.importorskip("tifffile")
pytest.importorskip("PIL")

from data_trees import add_mvtec_ad, add_picture, add_sample

from mmad_bank.data import PicturesDataset, categories_of, few_shot, open_dataset, prepare
from mmad_bank.data.layouts import layout_of, unread_folders
from mmad_bank.data.names import category_of
from mmad_bank.data.picture_files import doubt_of, find_pictures, may_be_cloud, unread_kinds
from mmad_bank.data.sequences import as_samples
from mmad_bank.errors import InputError, MissingSplitError

IDS = ["10.png", "2.png", "b/deep/er/x.jpg", "b/deep/y.png"]


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    folder = tmp_path / "parts"
    for number, name in enumerate(IDS):
        add_picture(folder / name, seed=number)
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden").mkdir()
    add_picture(folder / ".hidden" / "z.png")
    return folder


def test_any_folder_of_pictures_is_read(parts: Path) -> None:
    assert layout_of(parts) == "pictures"
    assert categories_of(parts) == ["parts"]
    assert unread_folders(parts) == []
    train = open_dataset(parts)
    assert isinstance(train, PicturesDataset)
    assert [record.id for record in train.records] == ["2.png", "10.png", "b/deep/er/x.jpg", "b/deep/y.png"]
    assert (train.labels, train.modalities, train.recipe, train.preparation) == ([0] * 4, {"rgb"}, "keep", None)
    sample = train[2]
    assert (sample.id, sample.category, sample.size, sample.label) == ("b/deep/er/x.jpg", "", (48, 64), 0)
    assert sample.mask is not None
    assert not sample.mask.any()
    assert open_dataset(parts, split="test")[0].mask is None  # nothing is known of it
    assert "4 samples (4 good); raw" in repr(train)
    with pytest.raises(MissingSplitError, match="found no validation split, as plain pictures have no splits"):
        open_dataset(parts, split="validation")
    assert len(open_dataset(parts, "parts")) == 4
    with pytest.raises(InputError, match=r"category: expected 'parts', as plain pictures have no categories"):
        open_dataset(parts, "bottle")


def test_ids_name_no_category(parts: Path) -> None:
    assert category_of(open_dataset(parts)[2].id) == ""
    assert category_of("bottle/train/good/000") == "bottle"


def test_few_shot_draws_of_plain_pictures(parts: Path) -> None:
    train = open_dataset(parts)
    assert set(few_shot(train, 2, seed=1).records) < set(few_shot(train, 3, seed=1).records)
    with pytest.raises(InputError, match=r"n: expected at most 4, the normal samples of .*parts, found 5"):
        few_shot(train, 5)


def test_a_list_names_pictures(parts: Path, tmp_path: Path) -> None:
    listing = parts / "list.txt"
    listing.write_bytes("\ufeff# good ones\n\n b/deep/y.png \r\n10.png\nb/../10.png\nlost.png\n".encode())
    dataset = open_dataset(listing)
    assert [record.id for record in dataset.records] == ["b/deep/y.png", "10.png", "lost.png"]
    assert categories_of(listing) == ["list"]
    assert dataset[0].size == (48, 64)
    with pytest.raises(InputError, match=r"lost\.png: file not found"):
        dataset[2]
    add_picture(tmp_path / "other" / "o.png")
    listing.write_text("10.png\n../other/o.png\n")
    ids = [record.id for record in open_dataset(listing).records]
    assert ids[0] == "10.png"
    assert re.fullmatch(r"[0-9a-f]{8}/other/o\.png", ids[1])
    listing.write_text("# nothing\n")
    with pytest.raises(InputError, match=r"list\.txt: expected a list of pictures, one path per line, found none"):
        open_dataset(listing)
    listing.write_bytes(b"\x00\xff\x00")
    with pytest.raises(InputError, match=r"list\.txt: cannot be read as a list of pictures"):
        open_dataset(listing)


def test_ids_of_a_list_are_short_unique_and_stable(tmp_path: Path) -> None:
    """Whatever the mixture of relative and absolute paths is: each is that of its line, and a folder's name is kept."""
    folder, far = tmp_path / "a" / "b" / "work", tmp_path / "far" / "data"
    for place in (
        folder / "good",
        folder / "good" / "am",
        folder.parent / "good",
        far / "good",
        far / "bad",
        far / "x" / "good",
    ):
        add_picture(place / "1.png", seed=len(str(place)))
    (folder / "link").symlink_to(far)
    (tmp_path / "short").symlink_to(folder)
    lines = [
        "good/1.png", str(folder / "good" / "am" / "1.png"), "../good/1.png", str(far / "good" / "1.png"),
        str(far / "bad" / "1.png"), str(far / "x" / "good" / "1.png"), "lost.png", "/lost.png",
    ]  # fmt: skip
    listing = folder / "list.txt"

    def ids(*chosen: str, place: Path = listing) -> list[str]:
        listing.write_text("".join(f"{line}\n" for line in chosen))
        return find_pictures(place).ids

    found = ids(*lines)
    assert [found[0], found[1], found[6]] == ["good/1.png", "good/am/1.png", "lost.png"]
    assert [re.sub("^[0-9a-f]{8}/", "#/", name) for name in found[2:6]] == ["#/good/1.png"] * 2 + [
        "#/bad/1.png",
        "#/good/1.png",
    ]
    assert re.fullmatch("[0-9a-f]{8}/lost.png", found[7])
    assert len(set(found)) == len(lines)
    assert found[3].split("/")[0] == found[4].split("/")[0] != found[5].split("/")[0], "folders side by side stay so"
    for number, line in enumerate(lines):
        assert ids(lines[0], line)[-1] == found[number], "whatever the other lines are"
    assert ids(*reversed(lines)) == found[::-1]
    assert ids(*lines, place=tmp_path / "short" / "list.txt") == found, "by another way to the list"
    assert ids(*lines[3:5]) == ["good/1.png", "bad/1.png"], "none lies below the list's folder: they share another one"
    assert ids("link/good/1.png", lines[3]) == ["link/good/1.png"], "one picture, by its first line"
    assert doubt_of(ids(lines[3], lines[4])) == "bad/ in it, as of defective parts"
    moved = tmp_path / "moved"
    shutil.copytree(folder.parent, moved / "b")
    (moved / "b" / "work" / "list.txt").write_text("good/1.png\n../good/1.png\n")
    assert find_pictures(moved / "b" / "work" / "list.txt").ids == [found[0], found[2]], (
        "a relative path may move with its list"
    )


def test_patterns_files_and_several_places(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(parts)
    assert find_pictures("**/*.png").ids == ["2.png", "10.png", "b/deep/y.png"]
    assert find_pictures(parts / "*.png").ids == ["2.png", "10.png"]
    assert find_pictures(["b", "10.png", "./b/deep/y.png"]).ids == ["b/deep/er/x.jpg", "b/deep/y.png", "10.png"]
    assert find_pictures("10.png").ids == ["10.png"]
    assert [one.id for one in as_samples(["10.png", Path("2.png")])] == ["10.png", "2.png"]
    with pytest.raises(InputError, match=r"\*\.gif: expected a pattern of pictures' files, found no file that it"):
        find_pictures("*.gif")
    with pytest.raises(InputError, match="nowhere: expected a picture, a folder, a list"):
        find_pictures(["10.png", "nowhere"])
    (parts / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: expected pictures \(\.png, .*\), found nothing"):
        find_pictures("empty")
    with pytest.raises(InputError, match="layout: expected auto or pictures for several files or folders, found 'vis"):
        open_dataset(["10.png", "2.png"], layout="visa")


@pytest.mark.skipif(os.name == "nt", reason="links need a right there")
def test_links_in_a_circle_are_followed_once(parts: Path) -> None:
    (parts / "b" / "round").symlink_to(parts, target_is_directory=True)
    assert len(open_dataset(parts)) == 4


@pytest.mark.skipif(os.name == "nt", reason="links need a right there")
def test_a_picture_that_several_links_lead_to_is_taken_once(parts: Path) -> None:
    (parts / "c").symlink_to(parts / "b", target_is_directory=True)
    (parts / "again.png").symlink_to(parts / "2.png")
    for places in (parts, str(parts / "**" / "*.*"), [parts, parts / "b", parts / "c"]):
        files = find_pictures(places).files
        assert len(files) == len({os.path.realpath(file) for file in files}) == len(IDS)


def test_what_predict_has_drawn_is_no_picture_to_read(parts: Path) -> None:
    add_picture(parts / "out" / "10.png" / "image.png")
    (parts / "out" / "10.png" / "score.json").write_text("{}")
    assert len(open_dataset(parts)) == 4


def test_kinds_that_nobody_reads_are_counted(parts: Path) -> None:
    (parts / "a.HEIC").write_bytes(b"x")
    (parts / "b" / "c.heic").write_bytes(b"x")
    (parts / "table.csv").write_bytes(b"x")
    assert unread_kinds(parts) == {".heic": 2}


# What is a data set, and what is in doubt.


def test_a_data_set_is_not_taken_for_plain_pictures(tmp_path: Path) -> None:
    add_mvtec_ad(tmp_path / "data" / "bottle")
    assert layout_of(tmp_path / "data") == layout_of(tmp_path / "data" / "bottle") == "mvtec_ad"
    with pytest.raises(InputError, match=r"expected the folder of the categories, found data sets in it: data/"):
        open_dataset(tmp_path)
    # Asked for, everything is taken, masks too.
    assert len(open_dataset(tmp_path / "data", layout="pictures")) == 4 + 4 + 2
    # One of its folders is one of plain pictures.
    good = open_dataset(tmp_path / "data" / "bottle" / "train")
    assert (good.layout, len(good)) == ("pictures", 4)


@pytest.mark.parametrize(
    ("names", "doubt"),
    [
        (("good/0.png", "scratch/0.png"), "good/ beside scratch/"),
        (("line1/OK/0.png", "line1/hole/x/0.png"), "OK/ beside hole/"),
        (("train/0.png", "test/0.png"), "test/ and train/ in it, as data sets have splits"),
        (("test/0.png",), "test/ in it, as data sets have splits"),
        (("a/0.png", "Ground_Truth/0.png"), "Ground_Truth/ in it, as data sets have masks or clouds"),
        (("a/rgb/0.png", "a/xyz/0.tiff"), "xyz/ in it, as data sets have masks or clouds"),
        (("monday/0.png", "monday/NOK/0.png"), "NOK/ in it, as of defective parts"),
    ],
)
def test_a_folder_that_is_not_surely_of_good_pictures_is_not_learned_unasked(
    tmp_path: Path, names: tuple[str, ...], doubt: str
) -> None:
    for name in names:
        add_picture(tmp_path / "parts" / name)
    with pytest.raises(InputError, match=f"parts: expected a data set in a known layout, .* found {doubt}"):
        open_dataset(tmp_path / "parts")
    assert len(open_dataset(tmp_path / "parts", layout="pictures")) == len(names)
    assert len(open_dataset(tmp_path / "parts", split="test")) == len(names)  # to score: nothing is learned


def test_several_folders_are_doubted_together(tmp_path: Path) -> None:
    for name in ("good/0.png", "scratch/0.png"):
        add_picture(tmp_path / name)
    for places in ([tmp_path / "good", tmp_path / "scratch"], [tmp_path / "*" / "*.png"]):
        with pytest.raises(InputError, match="found good/ beside scratch/"):
            open_dataset(places)
    assert len(open_dataset([tmp_path / "good" / "0.png", tmp_path / "scratch" / "0.png"])) == 2  # named one by one


@pytest.mark.parametrize("names", [("good/0.png", "normal/0.png"), ("train/0.png",), ("cam1/good/0.png", "cam2/0.png")])
def test_folders_of_good_pictures_are_not_doubted(names: tuple[str, ...]) -> None:
    assert doubt_of(names) is None


def test_preparing_plain_pictures_is_refused(parts: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"parts: expected a data set, found plain pictures; fit and predict take them"
    ):
        prepare(parts, tmp_path / "out")


def test_prepared_pictures_are_not_taken_for_raw_ones(tmp_path: Path) -> None:
    add_mvtec_ad(tmp_path / "data" / "bottle")
    prepare(tmp_path / "data", tmp_path / "prepared")
    with pytest.raises(InputError, match=r"has been prepared, but prepared\.json is missing"):
        open_dataset(tmp_path / "prepared" / "bottle" / "train" / "good" / "rgb")[0]


def test_clouds_are_told_from_pictures_by_their_header(tmp_path: Path) -> None:
    add_sample(tmp_path / "good")
    add_picture(tmp_path / "a.tif")
    assert may_be_cloud(next((tmp_path / "good" / "xyz").iterdir()))
    assert not may_be_cloud(tmp_path / "a.tif")
    (tmp_path / "b.tif").write_bytes(b"damaged")
    assert may_be_cloud(tmp_path / "b.tif")
