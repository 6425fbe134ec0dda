"""Commands that are stopped say that they go on, and with what; run again, they say in a line what they take over."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import call, small_settings

for package in ("scipy", "tifffile", "timm", "PIL"):
    pytest.importorskip(package)

from mmad_bank import MemoryBank, bench, extraction, tuning
from mmad_bank.data import preparation
from mmad_bank.extraction import Extractors
from mmad_bank.features.efficientnet_lite import EfficientNetLite0
from mmad_bank.methods.cfm import CFM
from mmad_bank.synthetic import write_synthetic

SIZE = 32
SMALL = small_settings(SIZE, 4, 0.1)
GOES_ON = "error: interrupted; the same command goes on from here: "


def good(*arguments: object) -> str:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result.stderr


def stopped(*arguments: object) -> list[str]:
    result = call(*arguments)
    assert result.exit_code == 130, result.output
    return result.stderr.splitlines()


def stops_at(number: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """Let the call of a number, and all after it, be interrupted."""
    calls: list[int] = []

    def stopping(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) >= number:
            raise KeyboardInterrupt
        return function(*arguments, **options)

    return stopping


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two categories, raw and prepared."""
    folder = tmp_path_factory.mktemp("parts")
    names = ["chip_cookie", "stud_tray"]
    write_synthetic(folder / "raw", size=64, n_train=4, n_validation=1, n_test=1, categories=names, workers=1)
    options = ("--recipe", "keep", "--image-size", SIZE, "--workers", 1)
    good("prepare", folder / "raw", "--out", folder / "prepared", *options)
    return folder


def test_fit(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("fit", "patchcore", parts / "prepared", "--out", tmp_path / "m", *SMALL)
    work = tmp_path / "m.fit"
    with monkeypatch.context() as patch:
        patch.setattr(MemoryBank, "build", stops_at(2, MemoryBank.build))
        lines = stopped(*command)
    holds = [f"{work} holds the model of chip_cookie", f"{work}/stud_tray holds features of 4 training samples"]
    assert lines == [GOES_ON + "; ".join(holds)]
    with monkeypatch.context() as patch:
        patch.setattr(MemoryBank, "build", stops_at(1, MemoryBank.build))
        assert stopped(*command) == [*(f"going on: {words}" for words in holds), lines[0]]
    other = (*command, "--seed", 3, "--set", "ratio=50%", "--overwrite")
    assert good(*command).splitlines() == [f"going on: {words}" for words in holds]
    assert good(*other) == "", "a new job takes nothing over"


def test_fit_of_other_settings_takes_nothing_over(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("fit", "patchcore", parts / "prepared", "--categories", "stud_tray", "--out", tmp_path / "m", *SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(MemoryBank, "build", stops_at(1, MemoryBank.build))
        stopped(*command)
    assert good(*command, "--set", "grid=2,2") == ""


def test_nothing_is_promised_where_nothing_is_kept(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Extractors, "__init__", stops_at(1, Extractors.__init__))
    assert stopped("fit", "patchcore", parts / "prepared", "--out", tmp_path / "m", *SMALL) == ["error: interrupted"]


def test_a_training_says_how_far_it_is(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("fit", "cfm", parts / "prepared", "--categories", "stud_tray", "--out", tmp_path / "m")
    command = (
        *command,
        *SMALL[:-2],
        "--set",
        "xyz=fpfh",
        "--set",
        "epochs=2",
        "--set",
        "batch=2",
        "--set",
        "map_size=32",
    )
    with monkeypatch.context() as patch:
        patch.setattr(CFM, "_scale_maps", stops_at(1, CFM._scale_maps))
        (line,) = stopped(*command)
    words = "features of 4 training samples, 4 of 4 steps of the cfm training"
    assert line == f"{GOES_ON}{tmp_path}/m.fit/stud_tray holds {words}"
    assert good(*command) == f"going on: {tmp_path}/m.fit/stud_tray holds {words}\n"


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Eleven training samples, two of which cannot be used, and PatchCore fitted on them in one go."""
    folder = tmp_path_factory.mktemp("many")
    options: dict[str, Any] = {"n_validation": 0, "n_test": 1, "categories": ["stud_tray"], "workers": 1}
    write_synthetic(folder / "raw", size=64, n_train=11, **options)
    for number in (2, 9):
        (folder / f"raw/stud_tray/train/good/rgb/{number:03}.png").write_bytes(b"no picture")
    assert call("fit", "patchcore", folder / "raw", "--out", folder / "m", *SMALL).exit_code == 3
    return folder / "raw", folder / "m"


def contents(model: Path) -> dict[str, bytes]:
    return {str(path.relative_to(model)): path.read_bytes() for path in model.rglob("*") if path.is_file()}


@pytest.mark.parametrize("end", ["interrupt", "kill"])
def test_features_are_extracted_once(
    end: str, many: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, whole = many
    command = ("fit", "patchcore", data, "--out", tmp_path / "m", *SMALL)
    describe = Extractors.__call__
    described: list[str] = []

    def noting(self: Extractors, samples: Any) -> Any:
        described.extend(sample.id for sample in samples)
        return describe(self, samples)

    with monkeypatch.context() as patch:
        patch.setattr(Extractors, "__call__", stops_at(3, describe))
        if end == "kill":  # nothing can be written at the end, but was on the way
            write = extraction.Journal.write
            patch.setattr(extraction, "_NOTED_EVERY", -1.0)
            patch.setattr(extraction.Journal, "write", lambda *journal: None if sys.exc_info()[0] else write(*journal))
        (line,) = stopped(*command)
    assert line == f"{GOES_ON}{tmp_path}/m.fit/stud_tray holds features of 8 of 11 training samples"
    monkeypatch.setattr(Extractors, "__call__", noting)
    result = call(*command)
    assert result.exit_code == 3
    assert result.stderr.startswith(f"going on: {tmp_path}/m.fit/stud_tray holds features of 8 of 11 training samples")
    assert described == ["stud_tray/train/good/010"]
    assert contents(tmp_path / "m") == contents(whole)


@pytest.mark.parametrize(
    "damage",
    ["text", "cut", *(pytest.param(damage, marks=pytest.mark.slow) for damage in ("frames", "number", "table"))],
)
def test_a_damaged_journal_begins_anew(
    damage: str, many: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, whole = many
    command = ("fit", "patchcore", data, "--out", tmp_path / "m", *SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(Extractors, "__call__", stops_at(2, Extractors.__call__))
        stopped(*command)
    work = tmp_path / "m.fit" / "stud_tray"
    journal = work / "train-so-far.json"
    if damage == "table":
        np.save(work / "train-rgb.npy", np.load(work / "train-rgb.npy")[:7])
    elif damage == "cut":
        os.truncate(work / "train-rgb.npy", 4096)
    else:
        content = {**json.loads(journal.read_text()), **({"frames": [None]} if damage == "frames" else {"number": 4.5})}
        journal.write_text("{" if damage == "text" else json.dumps(content))
    assert call(*command).exit_code == 3
    assert contents(tmp_path / "m") == contents(whole)


def test_a_journal_of_tables_that_are_gone_is_never_believed(
    many: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, whole = many
    command = ("fit", "patchcore", data, "--out", tmp_path / "m", *SMALL)
    describe = Extractors.__call__
    table = tmp_path / "m.fit" / "stud_tray" / "train-rgb.npy"
    with monkeypatch.context() as patch:
        patch.setattr(Extractors, "__call__", stops_at(3, describe))
        stopped(*command)
        table.unlink()
        patch.setattr(extraction.Journal, "write", lambda *journal: None)  # nor is the next run's written
        patch.setattr(Extractors, "__call__", stops_at(2, describe))
        stopped(*command)
    assert table.is_file()
    assert call(*command).exit_code == 3
    assert contents(tmp_path / "m") == contents(whole)


@pytest.mark.parametrize("change", ["weights", "sample of an older time", "permissions"])
def test_features_of_other_files_are_not_taken_over(
    change: str, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, weights = tmp_path / "data", tmp_path / "weights.pth"
    shutil.copytree(parts / "raw" / "stud_tray", data / "stud_tray")
    torch.manual_seed(1)
    torch.save(EfficientNetLite0(pretrained=False).state_dict(), weights)
    settings = [word.replace("rgb_weights=random", f"rgb_weights={weights}") for word in SMALL]
    command = ("fit", "patchcore", data, "--out", tmp_path / "m", *settings)
    with monkeypatch.context() as patch:
        patch.setattr(MemoryBank, "build", stops_at(1, MemoryBank.build))
        stopped(*command)
    picture, other = (data / f"stud_tray/train/good/rgb/00{n}.png" for n in (1, 2))
    if change == "weights":
        torch.save(EfficientNetLite0(pretrained=False).state_dict(), weights)
    elif change == "permissions":
        picture.chmod(0o600)  # perhaps it could not be read before
    else:
        before = picture.stat()
        picture.write_bytes(other.read_bytes())
        os.utime(picture, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "going on" not in good(*command)


def test_prepare(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("prepare", parts / "raw", "--out", tmp_path / "p", "--recipe", "keep", "--image-size", SIZE)
    command = (*command, "--workers", 1)
    with monkeypatch.context() as patch:
        patch.setattr(preparation, "run_task", stops_at(4, preparation.run_task))
        assert stopped(*command) == [f"{GOES_ON}{tmp_path}/p holds 3 of 12 prepared samples"]
    assert good(*command) == f"going on: {tmp_path}/p holds 3 of 12 prepared samples\n"
    assert good(*command) == "", "nothing is left to go on with"


def test_tune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).normal(size=(6, 8, 4)).astype(np.float32)
    np.save(tmp_path / "a.npy", rows[:4])
    np.save(tmp_path / "b.npy", rows[4:])
    command = ("tune", tmp_path / "a.npy", "--test", tmp_path / "b.npy", "--ratios", "50%,100%", "--timing", "0s")
    command = (*command, "--bank-precisions", "float32", "--index", "exact", "--workdir", tmp_path / "w")
    measuring = tuning.measuring.Measuring
    with monkeypatch.context() as patch:
        patch.setattr(measuring, "_measure", stops_at(2, measuring._measure))
        about_labels, line = stopped(*command)
    assert about_labels.startswith("labels: none")
    assert line.startswith(f"{GOES_ON}{tmp_path}/w holds ")
    assert line.endswith("1 measured setting")
    assert good(*command).startswith(f"going on: {tmp_path}/w holds ")


def test_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("bench", "--methods", "PatchCore", "--quick", "--rounds", 1, "--batches", 1, "--times-only")
    kept = (*command, "--workdir", tmp_path / "w")
    with monkeypatch.context() as patch:
        patch.setattr(bench, "measure", stops_at(1, bench.measure))
        (line,) = stopped(*kept)
        assert line.startswith(f"{GOES_ON}{tmp_path}/w/")
        assert line.endswith("w/patchcore holds the rgb bank")
        assert stopped(*command) == ["error: interrupted"], "a temporary folder goes"
    (line,) = good(*kept).splitlines()
    assert line.startswith(f"going on: {tmp_path}/w/")


def test_json_says_it_too(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("fit", "patchcore", parts / "prepared", "--categories", "stud_tray", "--out", tmp_path / "m", *SMALL)
    monkeypatch.setattr(MemoryBank, "build", stops_at(1, MemoryBank.build))
    result = call(*command, "--json")
    error = json.loads(result.stdout)["error"]
    assert (error["kind"], error["exit_code"]) == ("interrupted", 130)
    assert error["message"].endswith("m.fit/stud_tray holds features of 4 training samples")
    assert result.stderr == f"error: {error['message']}\n"


def test_sigterm(parts: Path, tmp_path: Path) -> None:
    """A real process is stopped, also through a library that makes another error of it."""
    script = (
        "import os, signal, sys\n"
        "from mmad_bank import MemoryBank\n"
        "from mmad_bank.cli import main\n"
        "def build(*arguments, **options):\n"
        "    try:\n        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    except BaseException as error:\n        raise ImportError('cannot import') from error\n"
        "MemoryBank.build = build\n"
        "main()\n"
    )
    command = ["fit", "patchcore", str(parts / "prepared"), "--categories", "stud_tray", "--out", str(tmp_path / "m")]
    done = subprocess.run([sys.executable, "-c", script, *command, *SMALL], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (143, "")
    assert done.stderr == (
        "error: terminated; the same command goes on from here:"
        f" {tmp_path}/m.fit/stud_tray holds features of 4 training samples\n"
    )
