"""Preparation of whole data sets: resumed, cached, in parallel, and the originals as they were."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("tifffile")
pytest.importorskip("scipy")

from data_trees import add_eyecandy, add_sample, scene

from mmad_bank.data import (
    Frame,
    Preprocessing,
    open_dataset,
    open_sample,
    preparation,
    preparation_of,
    prepare,
    preprocess,
)
from mmad_bank.data._images import read_tag, read_xyz
from mmad_bank.data.writing import write_xyz
from mmad_bank.errors import InputError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "raw"
    for i in range(10):
        add_sample(root / "part" / "train" / "good", f"{i:03d}", xyz=scene(40, 60, seed=i))
    add_sample(root / "part" / "test" / "good", xyz=scene(40, 60, seed=20))
    mask = np.zeros((40, 60), dtype=bool)
    mask[15:20, 25:30] = True
    add_sample(root / "part" / "test" / "dent", xyz=scene(40, 60, seed=21), mask=mask)
    return root


def contents(root: Path) -> dict[str, tuple[str, int]]:
    """Hash and time of every file."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {
        str(path.relative_to(root)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in files
    }


def test_prepared_samples_are_what_preprocess_gives(source: Path, tmp_path: Path) -> None:
    before = contents(source)
    out = tmp_path / "out"
    result = prepare(source, out)
    assert contents(source) == before
    assert (result.written, result.cached, result.failed) == (12, 0, {})
    raw, prepared = open_dataset(source, split="test"), open_dataset(out, split="test")
    assert [record.id for record in raw.records] == [record.id for record in prepared.records]
    for expected, found in zip(map(preprocess, raw), prepared, strict=True):
        assert torch.equal(expected.rgb, found.rgb)
        assert torch.equal(expected.xyz, found.xyz)
        assert expected.mask is not None
        assert found.mask is not None
        assert torch.equal(expected.mask, found.mask)
        assert expected.preparation == found.preparation == Preprocessing()
        assert expected.frame == found.frame == Frame(40, 60, 30, 20, 100, 224)
    files = [open_sample(record.rgb, record.xyz) for record in open_dataset(out, split="test").records]
    assert {sample.preparation for sample in files} == {Preprocessing()}
    assert {sample.frame for sample in files} == {Frame(40, 60, 30, 20, 100, 224)}
    assert not any(sample.prepared for sample in raw)
    manifest = json.loads((out / "prepared.json").read_text())
    assert manifest["complete"] is True
    assert manifest["settings"] == Preprocessing().as_json()
    assert preparation_of(out) == preparation_of(out / "part") == Preprocessing()
    assert preparation_of(source) is None


def test_prepared_data_of_other_programs_have_no_frame(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(source, out)
    path = open_dataset(out).records[0].xyz
    cloud, tag = read_xyz(path), read_tag(path)
    for other in ("a cloud", tag.partition(" frame ")[0], f"{tag} 7", tag[:-3] + "100", None):
        write_xyz(path, cloud, other)
        sample = open_dataset(out)[0]
        assert sample.frame is None
        assert sample.prepared
    assert prepare(source, out).written == 1
    assert open_dataset(out)[0].frame == Frame(40, 60, 30, 20, 100, 224)


def test_only_what_has_changed_is_done_again(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(source, out)
    first = contents(out)
    again = prepare(source, out)
    assert (again.written, again.cached) == (0, 12)
    add_sample(source / "part" / "train" / "good", "003", xyz=scene(40, 60, seed=99))
    add_sample(source / "part" / "train" / "good", "010", xyz=scene(40, 60, seed=98))
    (out / "part/test/dent/gt/000.png").unlink()
    third = prepare(source, out)
    assert (third.written, third.cached) == (3, 10)
    now = contents(out)
    unchanged = [name for name in first if now.get(name) == first[name]]
    assert len(unchanged) == 2 * 10 + 0  # rgb and xyz of the ten that were done


def test_samples_that_are_gone_are_set_aside(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(source, out)
    for part, suffix in (("rgb", "png"), ("xyz", "tiff")):
        (source / f"part/train/good/{part}/004.{suffix}").unlink()
    (out / "part/train/good/xyz/note.tiff").write_bytes(b"somebody else's")
    cloud = (out / "part/train/good/xyz/004.tiff").read_bytes()
    assert prepare(source, out).set_aside == ["part/train/good/004"]
    assert not (out / "part/train/good/xyz/004.tiff").exists()
    assert not (out / "part/train/good/rgb/004.png").exists()
    assert (out / ".set_aside/part/train/good/xyz/004.tiff").read_bytes() == cloud
    assert (out / ".set_aside/part/train/good/rgb/004.png").exists()
    assert "004" not in [record.name for record in open_dataset(out).records]
    assert prepare(source, out).set_aside == []
    assert (out / "part/train/good/xyz/note.tiff").read_bytes() == b"somebody else's"


def test_bad_samples_are_reported_and_the_others_done(source: Path, tmp_path: Path) -> None:
    folder, out = source / "part" / "train" / "good", tmp_path / "out"
    prepare(source, out)
    data = (folder / "xyz/001.tiff").read_bytes()
    (folder / "xyz/001.tiff").write_bytes(data[: len(data) // 2])
    (folder / "rgb/002.png").unlink()
    add_sample(folder, "005", xyz=scene(40, 60), rgb=np.zeros((40, 50, 3), np.uint8))
    add_sample(folder, "006", xyz=scene(40, 60) * 0)
    (folder / "rgb/007.png").write_bytes(b"\x89PNG")
    result = prepare(source, out)
    assert sorted(result.failed) == [f"part/train/good/{i:03d}" for i in (1, 2, 5, 6, 7)]
    assert all("\n" not in line and str(source) in line for line in result.failed.values())
    assert result.cached == 7
    # What an earlier run wrote for a sample that is bad now is not left to be trained on.
    assert [record.name for record in open_dataset(out).records] == ["000", "003", "004", "008", "009"]
    assert json.loads((out / "prepared.json").read_text())["failed"] == result.failed


def test_parallel_and_serial_runs_write_the_same(source: Path, tmp_path: Path) -> None:
    prepare(source, tmp_path / "one")
    prepare(source, tmp_path / "two", workers=2)
    one, two = ({k: v[0] for k, v in contents(tmp_path / name).items()} for name in ("one", "two"))
    assert one == two


KILLED = """
import os, signal, sys
from mmad_bank.data import preparation, sample_preparation
encode_xyz, done = sample_preparation.encode_xyz, []
def dying(*arguments):
    if len(done) == 4:
        os.kill(os.getpid(), signal.SIGKILL)  # the picture is whole beside its place, the cloud is not
    done.append(encode_xyz(*arguments))
sample_preparation.encode_xyz = dying
preparation.prepare(sys.argv[1], sys.argv[2])
"""


@pytest.mark.slow
def test_a_killed_run_is_resumed(source: Path, tmp_path: Path) -> None:
    out, before = tmp_path / "out", contents(source)
    process = subprocess.run([sys.executable, "-c", KILLED, str(source), str(out)], check=False, timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert json.loads((out / "prepared.json").read_text())["complete"] is False
    result = prepare(source, out)
    assert (result.written, result.cached) == (8, 4)
    prepare(source, tmp_path / "whole")
    resumed, whole = ({k: v[0] for k, v in contents(root).items()} for root in (out, tmp_path / "whole"))
    for files in (resumed, whole):
        del files["prepared.json"]  # how many were cached differs
    assert resumed == whole
    assert contents(source) == before


def test_ctrl_c_leaves_whole_files(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "mmad_bank.cli", "prepare", str(source), "--out", str(out), "--workers", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    limit = time.monotonic() + 60
    while not list(out.rglob("[!.]*.tiff")) and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (0, 130)
    assert "Traceback" not in errors
    assert not list(out.rglob("*partial*"))
    assert prepare(source, out).cached >= 1


def test_folders_that_are_not_ours_are_refused(source: Path, tmp_path: Path) -> None:
    before = contents(source)
    for out in (source, source / "part", source / "new", tmp_path):
        with pytest.raises(InputError, match="expected a folder outside the data set"):
            prepare(source, out)
    foreign = tmp_path / "foreign"
    add_sample(foreign / "part" / "train" / "good")
    with pytest.raises(InputError, match=r"foreign: expected a new or prepared folder, found one that holds files"):
        prepare(source, foreign)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="expected a folder, found a file"):
        prepare(source, tmp_path / "file")
    with pytest.raises(InputError, match=r"categories: expected some of part .*, found 'whole'"):
        prepare(source, tmp_path / "out", categories=["whole"])
    with pytest.raises(InputError, match="workers: expected at least 1"):
        prepare(source, tmp_path / "out", workers=0)
    assert contents(source) == before


def test_what_is_prepared_is_not_prepared_again(source: Path, tmp_path: Path) -> None:
    add_sample(source / "other" / "train" / "good", xyz=scene(40, 60))
    out, keep = tmp_path / "out", Preprocessing.recipe("keep")
    prepare(source, out)
    raw = re.escape(str(source))
    for path in (out, out / "part"):
        line = rf"{re.escape(str(path))}: is prepared already \(224 pixels, background plane\); expected the raw data: "
        with pytest.raises(InputError, match=f"^{line}{raw}$"):
            prepare(path, tmp_path / "again", keep)
    with pytest.raises(InputError, match="is prepared already"):
        prepare(out, tmp_path / "again", keep, overwrite=True, categories=["other"])
    # Neither a copy of some samples nor a link, without the manifest, is taken for raw.
    good = shutil.copytree(out / "part" / "train", tmp_path / "few" / "part" / "train") / "good"
    for path in [*good.glob("*/*")][::2]:
        path.unlink()
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "part").symlink_to(out / "part")
    for path in (tmp_path / "few", linked, linked / "part"):
        with pytest.raises(InputError, match=f"^{re.escape(str(path))}: is prepared already; expected the raw data$"):
            prepare(path, tmp_path / "again", keep)
    assert not (tmp_path / "again").exists()


def test_prepared_samples_without_their_manifest_are_not_taken_for_raw(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(source, out)
    few = tmp_path / "few"
    shutil.copytree(out / "part", few / "part")
    dataset = open_dataset(few)
    line = "has been prepared, but prepared.json is missing"
    with pytest.raises(InputError, match=f"^{re.escape(str(few))}: {line}"):
        dataset[0]
    assert "prepared in an unknown way" in repr(dataset)
    rgb, xyz = (shutil.copy(path, tmp_path) for path in dataset.records[0].files)
    with pytest.raises(InputError, match=f"^{re.escape(str(xyz))}: {line}"):
        open_sample(rgb, xyz)
    shutil.copy(out / "prepared.json", few)
    assert open_dataset(few)[0].preparation == Preprocessing()


def test_two_settings_do_not_share_a_folder(source: Path, tmp_path: Path) -> None:
    add_sample(source / "other" / "train" / "good", xyz=scene(40, 60))
    out = tmp_path / "out"
    prepare(source, out, categories=["part"])
    other = Preprocessing.recipe("cfm")
    with pytest.raises(InputError, match=r"other settings \(.*pad zero, not edge.*\); name another .*--overwrite"):
        prepare(source, out, other, categories=["other"])
    with pytest.raises(InputError, match="holds part too, which would go"):
        prepare(source, out, other, categories=["other"], overwrite=True)
    prepare(source, out, categories=["other"])
    assert json.loads((out / "prepared.json").read_text())["categories"] == ["other", "part"]


def test_other_settings_replace_what_is_there_on_request_and_whole(source: Path, tmp_path: Path) -> None:
    """Each way in which the new data set does not become whole leaves the one before as it was."""
    out, work = tmp_path / "out", tmp_path / "out.prepare"
    other = Preprocessing.recipe(size=64)
    prepare(source, out)
    before = contents(out)
    with pytest.raises(InputError, match=r"out: prepared with other settings \(size 224, not 64\)"):
        prepare(source, out, other)
    (out / "notes.txt").write_text("a user's")
    with pytest.raises(InputError, match=r"cannot be replaced, as it holds .*notes\.txt"):
        prepare(source, out, other, overwrite=True)
    (out / "notes.txt").unlink()
    work.mkdir()
    (work / "mine").write_text("a user's")
    with pytest.raises(InputError, match=r"out\.prepare: expected a new or prepared folder"):
        prepare(source, out, other, overwrite=True)
    (work / "mine").unlink()
    never = Preprocessing.recipe(size=64, min_points=10**6)
    with pytest.raises(InputError, match=r"no sample can be used, .*out stays as it is"):
        prepare(source, out, never, overwrite=True)
    assert contents(out) == before
    assert not work.exists()
    result = prepare(source, out, other, overwrite=True)
    assert (result.path, result.written) == (out, 12)
    assert open_dataset(out)[0].size == (64, 64)
    assert {path.name for path in tmp_path.iterdir()} == {"raw", "out"}
    assert prepare(source, out, other).cached == 12


def test_what_a_stopped_replacement_left_goes_when_the_data_set_is_there_all_the_same(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, work = tmp_path / "out", tmp_path / "out.prepare"
    prepare(source, out)
    for settings, left in ((Preprocessing.recipe(), False), (Preprocessing.recipe(size=64), True)):
        with monkeypatch.context() as patch:
            patch.setattr(preparation, "put_in_place", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                prepare(source, out, settings, overwrite=True)
        assert (work / "prepared.json").exists()
        assert prepare(source, out).cached == 12
        assert work.exists() == left, "only other settings may be wanted still"
    assert prepare(source, out, settings, overwrite=True).cached == 12
    work.mkdir()
    prepare(source, out, settings)
    assert not work.exists(), "killed before it was removed"


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("place", ["replaced", "renamed", "link", "file"])
def test_a_users_data_of_the_name_of_a_replacement_stay(
    place: str, overwrite: bool, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prepared with the same settings of the same data, and themselves a replacement once."""
    shutil.rmtree(source / "part" / "train")  # the two samples of the test split are enough
    settings, out, work = Preprocessing.recipe(size=32), tmp_path / "out", tmp_path / "out.prepare"
    mine = work if place == "replaced" else out
    prepare(source, mine, settings)
    prepare(source, mine, settings, overwrite=True)
    if place == "renamed":
        out.rename(work)
    elif place != "replaced":
        monkeypatch.setattr(preparation, "put_in_place", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(source, out, settings, overwrite=True)
        monkeypatch.undo()
        if place == "link":
            work.rename(tmp_path / "elsewhere")
            work.symlink_to("elsewhere")
        else:
            (work / "notes.txt").write_text("a user's")
    before = contents(work)
    prepare(source, out, settings)
    if overwrite:
        with pytest.raises(InputError, match="expected no folder of this name"):
            prepare(source, out, settings, overwrite=True)
    assert contents(work) == before


def test_a_replacement_takes_place_beside_the_folder_that_a_link_leads_to(source: Path, tmp_path: Path) -> None:
    """A link may lead to another disk, to which nothing can be moved in one step."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "data")
    (tmp_path / "link.prepare").write_text("somebody's")
    (tmp_path / "disk" / "data").mkdir()
    prepare(source, tmp_path / "link", Preprocessing.recipe(size=64))
    result = prepare(source, tmp_path / "link", Preprocessing.recipe(size=96), overwrite=True)
    assert result.written
    assert (tmp_path / "link").is_symlink()
    assert open_dataset(tmp_path / "disk" / "data")[0].size == (96, 96)
    assert (tmp_path / "link.prepare").read_text() == "somebody's"
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["data"]


@pytest.mark.slow
def test_a_killed_replacement_goes_on(source: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "out", Preprocessing.recipe(size=64)
    prepare(source, out)
    before = contents(out)
    script = KILLED.replace("sys.argv[2])", "sys.argv[2], preparation.Preprocessing.recipe(size=64), overwrite=True)")
    process = subprocess.run([sys.executable, "-c", script, str(source), str(out)], check=False, timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert contents(out) == before
    with pytest.raises(InputError, match="other settings"):
        prepare(source, out, other)
    result = prepare(source, out, other, overwrite=True)
    assert (result.written, result.cached) == (8, 4)
    assert {path.name for path in tmp_path.iterdir()} == {"raw", "out"}


def test_where_no_sample_can_be_used_what_was_there_stays(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(source, out)
    before = contents(out)
    for cloud in source.rglob("*.tiff"):
        cloud.write_bytes(b"II*\0")
    result = prepare(source, out)
    assert (result.written, result.cached, len(result.failed), result.set_aside) == (0, 0, 12, [])
    now = contents(out)
    assert {name: x[0] for name, x in now.items()} == {name: x[0] for name, x in before.items()}


def test_another_data_set_does_not_take_the_place_of_the_first(source: Path, tmp_path: Path) -> None:
    out, moved, other = tmp_path / "out", tmp_path / "moved", tmp_path / "other"
    prepare(source, out)
    before = contents(out)
    add_sample(other / "part" / "train" / "good", "000", xyz=scene(40, 60, seed=77))
    with pytest.raises(InputError, match=r"part in it was prepared from .*raw, not .*other; name another"):
        prepare(other, out)
    assert contents(out) == before
    source.rename(moved)
    assert prepare(moved, out).cached == 12, "the same files in another place"


def test_a_first_run_killed_at_its_manifest_is_resumed(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / ".prepared.abcd1234.partial.json").write_text("")
    (out / ".prepared.mmad-0123abcd.partial.json").write_text("")
    assert prepare(source, out).written == 12
    assert sorted(path.name for path in out.iterdir()) == ["part", "prepared.json"]


def test_eyecandies_come_out_in_the_common_layout(tmp_path: Path) -> None:
    v = (np.mgrid[:64, :64][0] - 32) / (711.11 / 8)
    depth = 0.3 / (np.sin(0.8) + v * np.cos(0.8))
    depth[20:40, 20:40] *= 0.8
    raw, out = tmp_path / "raw", tmp_path / "out"
    for split, name in (("train", "000"), ("val", "000"), ("test_public", "00")):
        add_eyecandy(raw / "Confetto" / split / "data", name, depth, low=0.2, high=0.9)
    words = "anomalous: 1\ndents: 1\n"
    add_eyecandy(raw / "Confetto/test_public/data", "01", depth, anomalous=words, mask=np.eye(64), low=0.2, high=0.9)
    result = prepare(raw, out)
    assert result.failed == {}
    assert result.settings == Preprocessing.recipe("eyecandies").as_json()
    test = open_dataset(out, "Confetto", "test")
    assert [record.id for record in test.records] == ["Confetto/test/good/00", "Confetto/test/dents/01"]
    assert test[1].mask is not None
    assert test[1].mask.any()
    assert prepare(raw, out).cached == 4
    pose = raw / "Confetto/train/data/000_pose.txt"
    os.utime(pose, ns=(1, 1))
    assert prepare(raw, out).written == 1


def test_an_unknown_manifest_is_refused(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / preparation.MANIFEST).write_text("[1")
    with pytest.raises(InputError, match=r"prepared\.json: expected the manifest"):
        prepare(source, out)
