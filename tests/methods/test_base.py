"""Saved models: replaced whole or not at all, refused when they are something else; stages of a training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_cfm import SIZE, a_part

from mmad_bank import methods
from mmad_bank._stages import Stages
from mmad_bank.data import Sample
from mmad_bank.errors import FormatError, InputError
from mmad_bank.methods import PatchCore

pytest.importorskip("timm")

SMALL: dict[str, Any] = {
    "rgb": "efficientnet_lite0", "rgb_weights": "random", "rgb_layers": (1,), "image_size": SIZE, "grid": (8, 8),
}  # fmt: skip


@pytest.fixture(scope="module")
def parts() -> list[Sample]:
    return [a_part(seed) for seed in range(2)]


@pytest.fixture
def model(parts: list[Sample], tmp_path: Path) -> Path:
    PatchCore(**SMALL).fit(parts).save(tmp_path / "model")
    return tmp_path / "model"


def test_a_model_is_a_folder_of_safetensors_and_json(model: Path) -> None:
    files = {path.suffix for path in model.rglob("*") if path.is_file()}
    assert files == {".safetensors", ".json"}
    content = json.loads((model / "model.json").read_text())
    assert content["method"] == "patchcore"
    assert content["train_ids"] == ["part/train/good/000", "part/train/good/001"]
    assert not list(model.parent.glob(".model*"))


def test_nothing_in_a_model_tells_where_it_was_made(model: Path) -> None:
    for path in model.rglob("*"):
        if path.is_file():
            assert str(model.parent).encode() not in path.read_bytes()
            assert b"mmad-bank-fit-" not in path.read_bytes()


def test_a_model_moves(model: Path, parts: list[Sample], tmp_path: Path) -> None:
    score = methods.load(model).predict(parts[0]).score
    moved = model.rename(tmp_path / "elsewhere")
    assert methods.load(moved).predict(parts[0]).score == score
    assert PatchCore.load(moved).rgb_layers == (1,)


def test_saving_replaces_a_model_and_nothing_else(model: Path, parts: list[Sample], tmp_path: Path) -> None:
    method = methods.load(model)
    before = method.predict(parts[0]).score
    method.save(model)  # the banks are mapped from the files that go
    assert method.predict(parts[0]).score == before
    assert methods.load(model).predict(parts[0]).score == before
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="expected a new folder or a saved model to replace, found something else"):
        method.save(mine)
    assert (mine / "thesis.txt").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    method.save(tmp_path / "empty")


def test_a_save_that_fails_leaves_the_old_model(
    model: Path, parts: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    method = methods.load(model)
    old = (model / "model.json").read_text()

    def full(self: Any, folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(method), "_save", full)
    with pytest.raises(InputError, match=r"cannot be written \(the disk is full: No space left"):
        method.save(model)
    assert (model / "model.json").read_text() == old
    assert [path.name for path in model.parent.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "foreign, expected the format 'mmad-bank method', found 'other'"),
        ({"version": 2}, "newer, version 2; this mmad-bank reads up to 1"),
        ({"method": "magic"}, "a saved magic; this version has patchcore"),
        ({"arguments": {"colour": 1}}, "altered or of another version"),
        ({"preprocessing": None}, "altered or of another version"),
    ],
    ids=["foreign", "newer", "unknown", "arguments", "preprocessing"],
)
def test_altered_manifests_are_refused(change: dict[str, Any], message: str, model: Path) -> None:
    path = model / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(FormatError, match=message):
        methods.load(model)


def test_truncated_and_missing_files_are_refused(model: Path, tmp_path: Path) -> None:
    weights = model / "extractor-rgb.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(FormatError, match=r"extractor-rgb.safetensors: not a safetensors file, or a truncated one"):
        methods.load(model)
    weights.unlink()
    with pytest.raises(InputError, match=r"extractor-rgb.safetensors: no such checkpoint file"):
        methods.load(model)
    (model / "model.json").write_text("{")
    with pytest.raises(FormatError, match="truncated or altered"):
        methods.load(model)
    with pytest.raises(InputError, match=r"expected a folder with model.json that a method saved, found none"):
        methods.load(tmp_path)


def test_a_model_of_another_method_is_told(model: Path) -> None:
    from mmad_bank.methods import M3DM

    with pytest.raises(FormatError, match="expected a saved m3dm, found a saved patchcore"):
        M3DM.load(model)
    with pytest.raises(InputError, match="method: expected one of patchcore"):
        methods.method_class("magic")


def test_stages_remove_only_what_they_wrote(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    first = Stages(tmp_path, {"seed": 0})
    first.run("a.txt", lambda path: path.write_text("1"))
    with pytest.raises(ZeroDivisionError):
        first.run("b.txt", lambda path: path.write_text(str(1 / 0)))
    again = Stages(tmp_path, {"seed": 0})
    assert again.run("a.txt", lambda path: path.write_text("2")).read_text() == "1"
    assert again.run("b.txt", lambda path: path.write_text("3")).read_text() == "3"
    other = Stages(tmp_path, {"seed": 1})
    assert other.run("a.txt", lambda path: path.write_text("4")).read_text() == "4"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "notes.txt", "stages.json"]
    with pytest.raises(InputError, match="cannot be written"):
        Stages(tmp_path / "notes.txt", {})
