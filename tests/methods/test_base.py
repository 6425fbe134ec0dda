"""Saved models: replaced whole or not at all, refused when they are something else; stages of a training."""

from __future__ import annotations

import copy
import json
import os
import pickle
import random
import shutil
import signal
import stat
import time
from pathlib import Path
from typing import Any

import pytest
from small_parts import RGB, a_part

from mmad_bank import MemoryBank, MultiBank, methods
from mmad_bank._internal.resume import Stages
from mmad_bank.data import Sample
from mmad_bank.errors import FormatError, InputError
from mmad_bank.methods import PatchCore
from mmad_bank.methods.model_folder import checksum_of

pytest.importorskip("timm")


@pytest.fixture(scope="module")
def parts() -> list[Sample]:
    return [a_part(seed) for seed in range(2)]


@pytest.fixture(scope="module")
def saved(parts: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that is only read."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    PatchCore(**RGB).fit(parts).save(folder)
    return folder


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    """A copy of it, which a test may alter."""
    return shutil.copytree(saved, tmp_path / "model")


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
        ({"format": [[]]}, "foreign, expected the format 'mmad-bank method', found a list of 1"),
        ({"version": 3}, "newer, format version 3; this mmad-bank reads up to version 2"),
        ({"version": "1"}, "altered, expected an integer for 'version', found '1'"),
        ({"version": None}, "altered, expected an integer for 'version', found None"),
        ({"method": "magic"}, "a saved magic; this version has patchcore"),
        ({"method": 5}, "altered, expected a text for 'method', found 5"),
        ({"arguments": {"colour": 1}}, "altered or of another version"),
        ({"arguments": 3}, "altered or of another version"),
        ({"preprocessing": None}, "altered or of another version"),
        ({"preprocessing": {"size": 10**9}}, "altered, expected 0 to 16384 for 'size', found 1000000000"),
        ({"arguments": {"sigma": 1e300}}, r"altered or of another version \(sigma: expected a number from 0 to 10000"),
        ({"arguments": {"image_size": -4}}, r"altered or of another version \(image_size: expected an integer from 1"),
        ({"preprocessing": {"background": [None]}}, r"altered or of another version \(background: expected one of"),
        ({"frames": {"frames": ["../x"], "of": []}}, r"altered or of another version \(frame: expected six numbers"),
        ({"train_ids": 4}, "altered or of another version"),
        ({"skipped": []}, "altered or of another version"),
        ({"files": []}, "altered, expected a JSON object, found a list of 0"),
        ({"files": {"../../etc/passwd": {"bytes": 1, "checksum": ""}}}, "expected files in the model's folder"),
        ({"files": {"extractor-rgb.safetensors": {"bytes": "1"}}}, "expected an integer for 'bytes'"),
        ({"files": {"more.safetensors": {"bytes": 1, "checksum": ""}}}, "more.safetensors: missing"),
    ],
    ids=str,
)
def test_altered_manifests_are_refused(change: dict[str, Any], message: str, model: Path) -> None:
    path = model / "model.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **change}))
    with pytest.raises(FormatError, match=r"altered, it does not match its checksum|foreign|newer|expected an integer"):
        methods.load(model)
    content |= change
    path.write_text(json.dumps({**content, "checksum": checksum_of(content)}))  # by somebody who means it
    with pytest.raises(FormatError, match=message) as caught:
        methods.load(model)
    assert str(caught.value).startswith(str(model))


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"format": "mmad-bank method", "version": 1e999, "method": "btf"}', "[]", "5", "", '"\\ud800"',
     '{"format": "mmad-bank method", "version": ' + "9" * 5000 + "}", '{"format": "mmad-bank method", "version": NaN}',
     '{"format": "mmad-bank method", "version": true, "method": "btf"}'],
    ids=lambda text: text[:12],
)  # fmt: skip
def test_manifests_that_are_none_are_refused(text: str, model: Path) -> None:
    (model / "model.json").write_text(text)
    for load in (lambda: methods.load(model), lambda: PatchCore.load(model)):
        with pytest.raises(FormatError, match=r"^[^\n]*model\.json: (truncated or altered|altered), ") as caught:
            load()
        assert len(str(caught.value)) < 500
    (model / "model.json").write_bytes(b"\xff\xfe")
    with pytest.raises(FormatError, match="truncated or altered"):
        methods.load(model)


def test_a_flipped_bit_in_any_file_is_noticed(model: Path) -> None:
    for path in sorted(path for path in model.rglob("*") if path.is_file()):
        content = bytearray(path.read_bytes())
        for place in range(1, len(content), max(1, len(content) // 7)):
            content[place] ^= 4
            path.write_bytes(content)
            with pytest.raises(FormatError) as caught:
                methods.load(model)
            assert path.name in str(caught.value)
            content[place] ^= 4
        path.write_bytes(content)
    methods.load(model)


def test_models_of_version_0_1_are_read(model: Path, parts: list[Sample]) -> None:
    expected = methods.load(model).predict(parts[0]).score
    content = json.loads((model / "model.json").read_text())
    del content["checksum"], content["files"]
    (model / "model.json").write_text(json.dumps(content, indent=2) + "\n")
    assert methods.load(model).predict(parts[0]).score == expected
    methods.load(model).save(model)
    assert "files" in json.loads((model / "model.json").read_text())


def test_a_saved_model_can_be_read_by_others(model: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    for path in [model, *model.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o777 if path.is_dir() else 0o666) & ~umask, path


def test_an_index_of_a_stranger_is_left_alone(model: Path, parts: list[Sample], monkeypatch: Any) -> None:
    faiss = pytest.importorskip("faiss")
    method = methods.load(model)
    bank = method.banks_["rgb"]
    method.banks_ = MultiBank({"rgb": MemoryBank(bank.vectors, source_rows=bank.source_rows, index="Flat")})
    method.save(model)
    calls, deserialize = [], faiss.deserialize_index
    monkeypatch.setattr(faiss, "deserialize_index", lambda data: (calls.append(1), deserialize(data))[1])
    expected = method.predict(parts[0]).score
    assert methods.load(model).predict(parts[0]).score == expected
    assert not calls
    assert methods.load(model, trust_index=True).predict(parts[0]).score == expected
    assert calls


@pytest.mark.parametrize("how", ["pickle", "deepcopy"])
def test_methods_are_copied_before_and_after_a_prediction(how: str, model: Path, parts: list[Sample]) -> None:
    method = methods.load(model)
    expected = methods.load(model).predict(parts[0]).score
    for _ in range(2):
        twin = pickle.loads(pickle.dumps(method)) if how == "pickle" else copy.deepcopy(method)
        assert twin.predict(parts[0]).score == expected
        assert method.predict(parts[0]).score == expected


def test_every_extractor_is_pickled() -> None:
    pytest.importorskip("open3d")
    from mmad_bank.features.factory import make_xyz_extractor

    twin = pickle.loads(pickle.dumps(make_xyz_extractor("fpfh")))
    assert twin.name == make_xyz_extractor("fpfh").name


def test_saves_and_loads_beside_each_other_and_kills_leave_one_model(model: Path) -> None:
    method, draw = methods.load(model), random.Random(0)
    for _ in range(6):
        pid = os.fork()
        if pid == 0:
            while True:
                method.save(model)
        time.sleep(draw.uniform(0.0, 0.05))
        methods.load(model)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        methods.load(model)
    method.save(model)
    assert [path.name for path in model.parent.iterdir()] == ["model"]


def test_truncated_and_missing_files_are_refused(model: Path, tmp_path: Path) -> None:
    weights = model / "extractor-rgb.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(FormatError, match=r"extractor-rgb\.safetensors: truncated, expected \d+ bytes, found 500"):
        methods.load(model)
    weights.unlink()
    with pytest.raises(FormatError, match=r"extractor-rgb\.safetensors: missing"):
        methods.load(model)
    (model / "banks" / "rgb.safetensors").unlink()
    content = json.loads((model / "model.json").read_text())
    (model / "model.json").write_text(json.dumps({**content, "files": {}, "checksum": None}))
    with pytest.raises(FormatError, match="expected a text for 'checksum', found None"):
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


def test_a_projection_takes_no_negative_seed() -> None:
    PatchCore(seed=-1)
    with pytest.raises(InputError, match=r"^seed: expected 0 to .* \(the projection takes no negative seed\)"):
        PatchCore(seed=-1, projection_dim="auto")
