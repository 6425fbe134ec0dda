"""docs/how-to/own-pictures.md's programs run, and what they make can be read."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

for package in ("tifffile", "PIL"):
    pytest.importorskip(package)

from PIL import Image

from mmad_bank.data import open_dataset

PAGE = (Path(__file__).parents[2] / "docs/how-to/own-pictures.md").read_text(encoding="utf-8")
CLOUDS, COPY = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
MARK = np.zeros((24, 32), dtype=np.uint8)
MARK[4:8, 6:12] = 255


def run(program: str, capsys: pytest.CaptureFixture[str]) -> str:
    exec(compile(program, "own-pictures.md", "exec"), {})
    return capsys.readouterr().out


def draw(path: Path, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    colours = np.random.default_rng(0).integers(1, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(colours).save(path, **options)  # type: ignore[arg-type]


def test_all_kinds_of_pictures_get_clouds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(CLOUDS, capsys) == "no pictures in parts/CATEGORY/SPLIT/KIND/rgb\n"
    names = ("0.png", "1.jpg", "2.JPEG", "3.bmp", "4.tif")
    for name in names:
        draw(tmp_path / "parts/tile/train/good/rgb" / name)
    turned = Image.Exif()
    turned[0x0112] = 6
    draw(tmp_path / "parts/tile/train/good/rgb/5.jpg", exif=turned)
    assert run(CLOUDS, capsys) == "6 clouds\n"
    samples = list(open_dataset("parts"))
    assert [sample.size for sample in samples] == [(24, 32)] * len(names) + [(32, 24)]
    assert all(bool(sample.measured.all()) for sample in samples)


def test_mvtec_ad_comes_into_the_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(COPY, capsys) == "no pictures in mvtec_ad/CATEGORY/SPLIT/KIND\n"
    tile = tmp_path / "mvtec_ad" / "tile"
    for place in ("train/good/000", "train/good/001", "test/good/000", "test/crack/000", "test/crack/001"):
        draw(tile / f"{place}.png")
    for name in ("000", "001"):
        mask = tile / "ground_truth" / "crack" / f"{name}_mask.png"
        mask.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(MARK).save(mask)
    (tile / "license.txt").write_text("words")
    assert run(COPY, capsys) == "7 files\n"
    assert run(CLOUDS, capsys) == "5 clouds\n"
    assert len(open_dataset("parts", "tile")) == 2
    good, *cracks = open_dataset("parts", "tile", "test")
    assert good.label == 0
    assert [sample.id for sample in cracks] == ["tile/test/crack/000", "tile/test/crack/001"]
    for sample in cracks:
        assert sample.mask is not None
        assert np.array_equal(sample.mask.numpy(), MARK > 0)
