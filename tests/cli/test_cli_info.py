"""``mmad-bank info`` of folders: several banks, a model, one model per category."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import call, facts, good, refused, small_settings

for package in ("scipy", "tifffile", "timm", "PIL"):
    pytest.importorskip(package)

from mmad_bank import MemoryBank, MultiBank, methods
from mmad_bank.methods.model_folder import checksum_of
from mmad_bank.synthetic import write_synthetic

SIZE = 32
SMALL = small_settings(SIZE, 4, 0.5)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PatchCore of two categories; one training picture of the first cannot be used."""
    folder = tmp_path_factory.mktemp("info")
    names = ["chip_cookie", "stud_tray"]
    write_synthetic(folder / "raw", size=64, n_train=3, n_validation=0, n_test=1, categories=names, workers=1)
    (folder / "raw/chip_cookie/train/good/rgb/000.png").write_bytes(b"no picture")
    result = call("fit", "patchcore", folder / "raw", "--out", folder / "models", "--seed", 7, *SMALL)
    assert result.exit_code == 3, result.output
    return folder / "models"


@pytest.fixture
def models(fitted: Path, tmp_path: Path) -> Path:
    """The same, to be damaged."""
    return Path(shutil.copytree(fitted, tmp_path / "models"))


@pytest.fixture
def banks(tmp_path: Path) -> Path:
    rows = torch.rand(30, 6)
    rgb = MemoryBank.build(rows, size=12)
    rgb.extractor = "my network"
    MultiBank({"rgb": rgb, "xyz": MemoryBank(rows[:, :3])}).save(tmp_path / "banks")
    return tmp_path / "banks"


def alter(path: Path, place: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def rewrite(model: Path, **changes: Any) -> None:
    """Change values of a manifest whose checksum is right, as a stranger may."""
    content = {**json.loads((model / "model.json").read_text()), **changes}
    content["checksum"] = checksum_of(content)
    (model / "model.json").write_text(json.dumps(content))


def test_a_model_is_described(fitted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*arguments: Any, **options: Any) -> None:
        raise AssertionError("describing a model makes no network")

    monkeypatch.setattr(methods.PatchCore, "_for_loading", load)
    model = fitted / "chip_cookie"
    found = facts("info", model)
    assert (found["method"], found["categories"], found["images"]) == ("patchcore", ["chip_cookie"], 2)
    assert found["train_ids"] == ["chip_cookie/train/good/001", "chip_cookie/train/good/002"]
    assert list(found["skipped"]) == ["chip_cookie/train/good/000"]
    assert found["settings"] == {
        "rgb": "efficientnet_lite0", "rgb_weights": "random", "image_size": SIZE, "grid": [4, 4], "ratio": 0.5,
        "calibration": "none",
    }  # fmt: skip
    assert (found["arguments"]["seed"], found["preprocessing"]["size"]) == (7, SIZE)
    assert found["files"] == {
        path.relative_to(model).as_posix(): path.stat().st_size for path in model.rglob("*") if path.is_file()
    }
    assert found["bytes"] == sum(found["files"].values())
    bank = MemoryBank.load(model / "banks" / "rgb.safetensors")
    assert found["parts"] == list(found["banks"]) == ["rgb"]
    assert (found["banks"]["rgb"]["vectors"], found["banks"]["rgb"]["dim"]) == (len(bank), bank.dim) == (16, 656)
    assert found["banks"]["rgb"]["extractor"] == bank.extractor
    text = good("info", model)
    for words in (
        "method      patchcore\n", "2 images of chip_cookie, 1 left out", "rgb: 16 × 656, index exact", "grid=4,4\n",
        "rgb: efficientnet_lite0, weights random", "extractor-rgb.safetensors", "--verify checks the data",
    ):  # fmt: skip
        assert words in text, text


def test_settings_are_what_fit_takes(fitted: Path, tmp_path: Path) -> None:
    rows = good("info", fitted / "stud_tray").split("settings")[1].split("extractors")[0].split()
    again = [word for row in rows for word in ("--set", row)]
    data = fitted.parent / "raw"
    good("fit", "patchcore", data, "--categories", "stud_tray", "--out", tmp_path / "m", "--seed", 7, *again)
    mine, theirs = (facts("info", place) for place in (tmp_path / "m", fitted / "stud_tray"))
    assert {**mine, "model": ""} == {**theirs, "model": ""}


def test_one_model_a_category_is_a_line_each(models: Path) -> None:
    lines = good("info", models).splitlines()
    assert lines[0] == f"{models}: 2 models"
    assert [line.split()[0] for line in lines[1:]] == ["chip_cookie", "stud_tray"]
    assert "patchcore; fitted on 3 images of stud_tray; banks rgb 24 × 656; 11.5 MiB" in lines[2]
    assert facts("info", models)["models"]["stud_tray"]["images"] == 3
    alter(models / "chip_cookie" / "model.json", 40)
    result = call("info", models, "--json")
    assert result.exit_code == 3
    assert list(json.loads(result.stdout)["models"]) == ["stud_tray"]
    assert result.stderr.startswith(f"left out: {models}/chip_cookie/model.json: ")
    assert call("info", models).stdout.startswith(f"{models}: 1 model\n")
    alter(models / "stud_tray" / "model.json", 40)
    assert call("info", models).exit_code == 2


@pytest.mark.parametrize("file", ["extractor-rgb.safetensors", "banks/rgb.safetensors"])
def test_verify_reads_all_data_of_a_model(file: str, models: Path) -> None:
    model = models / "stud_tray"
    assert facts("info", model, "--verify")["verified"]
    assert "list of contents, files and banks agree" in good("info", model, "--verify")
    alter(model / file)
    good("info", model)
    line = refused("info", model, "--verify")
    assert f"{model / file}: altered" in line
    assert "does not match its checksum" in line
    assert call("info", models, "--verify").exit_code == 3
    (model / file).write_bytes((model / file).read_bytes()[:-5])
    assert "truncated" in refused("info", model)
    (model / file).unlink()
    assert f"{model / file}" in refused("info", model)


def test_banks_are_described(banks: Path) -> None:
    found = facts("info", banks, "--verify")
    assert found["verified"]
    assert {name: (one["vectors"], one["dim"]) for name, one in found["banks"].items()} == {
        "rgb": (12, 6), "xyz": (30, 3)
    }  # fmt: skip
    assert found["bytes"] == sum(path.stat().st_size for path in banks.glob("*.safetensors"))
    text = good("info", banks)
    assert "12 × 6, index exact" in text
    assert "my network" in text
    alter(banks / "xyz.safetensors")
    good("info", banks)
    assert f"{banks}/xyz.safetensors: altered" in refused("info", banks, "--verify")
    (banks / "banks.json").write_text("[]")
    assert f"{banks}/banks.json: altered" in refused("info", banks)


def test_readings_are_told_by_their_arguments(tmp_path: Path) -> None:
    bank = MemoryBank(torch.rand(3, 6))
    bank.extractor = "point_mae 8x4 layers 3,7,11 published grid 4x4 aligned as published"
    bank.save(tmp_path / "xyz.bank")
    told = "point_mae 8x4 layers 3,7,11 batch_norm=batch skip_near_origin=true grid 4x4 interpolation=three_nearest\n"
    assert told in good("info", tmp_path / "xyz.bank")
    assert facts("info", tmp_path / "xyz.bank")["extractor"] == bank.extractor


def test_other_folders_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 4), np.float32))
    assert "expected a bank file, a folder of banks (banks.json), a saved model" in refused("info", tmp_path)


def test_a_model_of_an_older_version_is_described(models: Path) -> None:
    model = models / "stud_tray"
    content = json.loads((model / "model.json").read_text())
    for name in ("checksum", "files", "map_scale", "categories", "frames"):
        del content[name]
    (model / "model.json").write_text(json.dumps(content))
    found = facts("info", model)
    assert (found["categories"], found["parts"]) == (["stud_tray"], ["rgb"])
    assert set(found["files"]) == {"model.json", "extractor-rgb.safetensors", "banks/rgb.safetensors"}


def test_a_strangers_model_is_described_or_refused(models: Path) -> None:
    model = models / "stud_tray"
    rewrite(model, method="newer", arguments={"depth": [1, 2], "word": "\x1b[31mred\x07", "on": True, "off": None})
    text = good("info", model)
    assert "newer  (this version has no such method)" in text
    assert "depth=1,2\n" in text
    assert "on=true\n" in text
    assert "off=none\n" in text
    assert "word=\\x1b[31mred\\x07\n" in text, "nothing steers the terminal"
    for changes in (
        {"arguments": []}, {"train_ids": [1]}, {"skipped": {"a": 2}}, {"files": {"../x": {"bytes": 1}}}, {"files": 3},
        {"categories": "all"}, {"map_scale": {"quantiles": 1}}, {"preprocessing": None},
    ):  # fmt: skip
        before = (model / "model.json").read_text()
        rewrite(model, **changes)
        assert f"{model / 'model.json'}: altered" in refused("info", model), changes
        (model / "model.json").write_text(before)


def test_the_parameters_of_a_method_are_listed() -> None:
    found = facts("info", "--parameters", "CFM")
    assert found["method"] == "cfm"
    assert tuple(one["name"] for one in found["parameters"]) == methods.CFM.argument_names()
    told = {one["name"]: one for one in found["parameters"]}
    assert told["normalize_for"] == {
        "name": "normalize_for", "type": "text", "default": "aupro", "bundled": "aupro", "limits": "aupro, p_auroc",
        "choices": ["aupro", "p_auroc"], "documentation": told["normalize_for"]["documentation"],
        "former": ["normalise_for"],
    }  # fmt: skip
    assert (told["epochs"]["default"], told["epochs"]["bundled"]) == (250, methods.CFM.bundled_arguments()["epochs"])
    words = good("info", "--parameters", "cfm")
    assert "default 250, with --bundled 50\n" in words
    assert "default aupro\n" in words, "nothing is said where the two are the same"
    text = good("info", "--parameters", "m3dm")
    for words in (
        "number (above 0 and at most 1, such as 0.1 for 10%), default 0.1\n",
        "default none, with --bundled 28,28\n",
        "default none\n",
    ):
        assert words in text
    assert "``" not in text
    assert ":func:" not in text
