"""What --bundled asks of the size of images gives way to what the user says, and to data that are prepared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmad_bank.cli._job import Job
from mmad_bank.data import Preprocessing, prepare
from mmad_bank.methods import PatchCore
from mmad_bank.synthetic import write_synthetic


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_synthetic(root / "raw", size=64, n_train=1, n_validation=1, n_test=1, categories=["stud_tray"])
    prepare(root / "raw", root / "prepared", Preprocessing.recipe("keep", size=80))
    return root


@pytest.fixture(autouse=True)
def preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PatchCore, "bundled", {"image_size": 160, "grid": (20, 20)})


def job_of(folder: Path, *settings: str, bundled: bool = True) -> dict[str, Any]:
    job = Job(PatchCore, folder, None, "auto", None, None, 0)
    job.choose_arguments(list(settings), bundled=bundled, device="cpu")
    job.open()
    return {"image_size": 224, "grid": (28, 28), **job.arguments}


@pytest.mark.parametrize(
    ("settings", "size", "grid"),
    [
        ((), 160, (20, 20)),
        (("image_size=96",), 96, (12, 12)),
        (("image-size=96", "grid=7,7"), 96, (7, 7)),
        (("grid=7,7",), 160, (7, 7)),
        (("image_size=4",), 4, (1, 1)),
    ],
)
def test_the_users_word_counts(data: Path, settings: tuple[str, ...], size: int, grid: tuple[int, int]) -> None:
    arguments = job_of(data / "raw", *settings)
    assert (arguments["image_size"], tuple(arguments["grid"])) == (size, grid)


def test_prepared_data_are_taken_as_they_are(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = job_of(data / "prepared")
    assert (arguments["image_size"], arguments["grid"]) == (80, (10, 10))
    said = capsys.readouterr().err
    assert f"note: {data / 'prepared'} was prepared in 80 pixels, which are taken; --bundled would take 160" in said
    assert "mmad-bank prepare --image-size 160" in said


@pytest.mark.parametrize("settings", [("image_size=160",), ("image_size=80",)])
def test_a_size_that_was_asked_for_stays(
    data: Path, settings: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert job_of(data / "prepared", *settings)["image_size"] == int(settings[0].split("=")[1])
    assert "prepared in" not in capsys.readouterr().err


def test_without_the_preset_nothing_changes(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = job_of(data / "prepared", bundled=False)
    assert (arguments["image_size"], arguments["grid"]) == (224, (28, 28))
    assert "prepared in" not in capsys.readouterr().err
