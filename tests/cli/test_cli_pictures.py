"""Pictures without depth, from the shell: every command that takes data, on MVTec AD's layout and on VisA."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

for package in ("timm", "tifffile"):
    pytest.importorskip(package)

from data_trees import add_mvtec_ad, add_visa
from helpers import call, facts, good, refused

SMALL = ("--set", "rgb=efficientnet_lite0", "--set", "rgb-weights=random", "--set", "rgb-layers=1",
         "--set", "image-size=64", "--set", "grid=8,8", "--set", "ratio=20%")  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    add_mvtec_ad(folder / "mvtec_ad" / "bottle")
    add_mvtec_ad(folder / "mvtec_ad" / "tile", defect="crack")
    add_visa(folder / "VisA")
    return folder


@pytest.mark.parametrize(("name", "category"), [("mvtec_ad", "bottle"), ("VisA", "candle")])
def test_pictures_alone_end_to_end(data: Path, tmp_path: Path, name: str, category: str) -> None:
    source, only = data / name, ("--categories", category)
    prepared = facts("prepare", source, "--out", tmp_path / "prepared", *only, "--image-size", 64, "--workers", 1)
    assert (prepared["written"], prepared["settings"]["background"]) == (8, "keep")
    for place, model in ((source, tmp_path / "raw.model"), (tmp_path / "prepared", tmp_path / "model")):
        done = facts("fit", "patchcore", place, *only, "--out", model, *SMALL)
        assert done["models"][0]["images"] == 4
        found = facts("evaluate", model, place, *only, "--report", tmp_path / f"{model.name}.report")
        assert found["left_out"] == {}
        metrics = found["categories"][0]["metrics"]["fused"]
        assert metrics["image_auroc"] == 1.0  # a bright spot on dark noise
        assert metrics["pixel_auroc"] > 0.9
    scored = facts("predict", tmp_path / "raw.model", source, *only, "--out", tmp_path / "out")["samples"]
    assert len(scored) == 4
    spots = [one for one in scored if "/good/" not in one["id"]]
    assert spots[0]["size"] == [48, 64]
    row, column = np.unravel_index(np.load(Path(spots[0]["folder"]) / "map.npy").argmax(), (48, 64))
    assert 8 <= row < 24
    assert 12 <= column < 36
    picture = next(source.joinpath(category).rglob("0000.JPG" if name == "VisA" else "000.png"))
    assert facts("predict", tmp_path / "raw.model", picture, "--out", tmp_path / "one")["samples"][0]["score"] >= 0
    few = facts("fit", "patchcore", source, *only, "--few-shot", 2, "--out", tmp_path / "few", *SMALL)
    assert few["models"][0]["images"] == 2


def test_predict_asks_for_no_truth(data: Path, tmp_path: Path) -> None:
    add_mvtec_ad(tmp_path / "data" / "bottle", test=3)
    masks = sorted((tmp_path / "data" / "bottle" / "ground_truth").rglob("*.png"))
    masks[0].unlink()
    masks[1].write_bytes(b"none")
    good("fit", "patchcore", data / "mvtec_ad", "--categories", "bottle", "--out", tmp_path / "model", *SMALL)
    scored = facts("predict", tmp_path / "model", tmp_path / "data", "--out", tmp_path / "out")
    assert (len(scored["samples"]), scored["left_out"]) == (6, {})
    left_out = json.loads(call("evaluate", tmp_path / "model", tmp_path / "data", "--json").stdout)["left_out"]
    assert sorted(left_out) == [f"bottle/test/broken/{number:03d}" for number in range(2)]


def test_predict_takes_files_of_one_kind(data: Path, tmp_path: Path) -> None:
    picture, cloud = tmp_path / "a.png", tmp_path / "b.ply"
    line = refused("predict", tmp_path / "model", picture, cloud, "--out", tmp_path / "out")
    assert f"SAMPLES: expected files of one kind, found {cloud} of scattered points and {picture}" in line


@pytest.mark.parametrize("method", ["m3dm", "btf", "cfm", "lsfa", "mdss", "ast"])
def test_methods_that_need_clouds_say_so_in_one_line(data: Path, tmp_path: Path, method: str) -> None:
    command = ("fit", method, data / "mvtec_ad", "--categories", "bottle", "--out", tmp_path / "model", "--bundled")
    line = refused(*command)
    assert f"mvtec_ad: expected pictures and point clouds for {method}, found pictures alone; patchcore takes" in line
    assert not (tmp_path / "model").exists()


def test_m3dms_bank_of_pictures(data: Path, tmp_path: Path) -> None:
    options = ("--categories", "bottle", "--set", "banks=rgb", *SMALL)
    good("fit", "m3dm", data / "mvtec_ad", "--out", tmp_path / "model", *options)
    assert facts("evaluate", tmp_path / "model", data / "mvtec_ad", "--categories", "bottle")["left_out"] == {}


def test_extract_of_pictures_alone(data: Path, tmp_path: Path) -> None:
    command = ("extract", data / "mvtec_ad", "--categories", "tile", "--rgb-weights", "random", "--image-size", 64,
               "--grid", 4, "--out", tmp_path / "out")  # fmt: skip
    assert "--xyz: expected none, as " in refused(*command)
    assert len(facts(*command, "--xyz", "none")["ids"]) == 4


def test_prepare_refuses_a_recipe_that_needs_clouds(data: Path, tmp_path: Path) -> None:
    line = refused("prepare", data / "mvtec_ad", "--recipe", "m3dm", "--out", tmp_path / "out")
    assert "expected point clouds, by which the background is found" in line


def test_info_of_data(data: Path, tmp_path: Path) -> None:
    found = facts("info", data / "mvtec_ad")
    assert (found["layout"], found["modalities"], found["preparation"]) == ("mvtec_ad", ["rgb"], None)
    assert found["categories"]["tile"] == {"train": {"good": 4}, "test": {"good": 2, "crack": 2}}
    assert list(facts("info", data / "mvtec_ad" / "tile")["categories"]) == ["tile"]
    words = call("info", data / "VisA").stdout
    assert "pictures alone" in words
    assert "train 4; test 2 good, 2 defective (chunk of wax missing+weird-odd wick 2)" in words
    good("prepare", data / "VisA", "--out", tmp_path / "out", "--image-size", 32, "--workers", 1)
    assert "32 pixels per side, background keep" in call("info", tmp_path / "out").stdout


def test_cfm_takes_the_raw_data_where_the_pictures_lost_their_background(tmp_path: Path) -> None:
    pytest.importorskip("open3d")
    command = ("--image-size", 96, "--train-images", 3, "--validation-images", 0, "--test-images", 3, "--workers", 1)
    good("synth", tmp_path / "raw", "--categories", "stud_tray", *command)
    good("prepare", tmp_path / "raw", "--out", tmp_path / "black", "--image-size", 64, "--workers", 1)
    settings = ("xyz=fpfh", "epochs=1", "pixels-per-image=50", "map-size=16")
    tiny = (*(word for one in settings for word in ("--set", one)), *SMALL[:-2])
    words = r"background, which is removed here; takes the raw data instead, .*raw, and prepares them anew"
    with pytest.warns(UserWarning, match=words):
        good("fit", "cfm", tmp_path / "black", "--out", tmp_path / "model", *tiny)
    with pytest.warns(UserWarning, match=words):
        found = facts("predict", tmp_path / "model", tmp_path / "black", "--out", tmp_path / "out")["samples"]
    scores = {one["id"]: one["score"] for one in found}
    again = facts("predict", tmp_path / "model", tmp_path / "raw", "--out", tmp_path / "again")["samples"]
    assert scores == {one["id"]: one["score"] for one in again}
    (tmp_path / "raw").rename(tmp_path / "elsewhere")
    for arguments in (
        ("fit", "cfm", tmp_path / "black", "--out", tmp_path / "other", *tiny),
        ("evaluate", tmp_path / "model", tmp_path / "black"),
        ("predict", tmp_path / "model", tmp_path / "black", "--out", tmp_path / "more"),
    ):
        line = refused(*arguments)
        assert "expected pictures with their background, which cfm compares, found it removed" in line
        assert line.count(str(tmp_path / "black")) == 1
