"""The preparation of pictures in ONNX against the one of Python."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

for package in ("onnx", "onnxruntime", "PIL"):
    pytest.importorskip(package)

import onnx

from mmad_bank.data import Preprocessing, Sample, preprocess
from mmad_bank.data.recipes import PADS
from mmad_bank.exporting.preparing import preparation_graph
from mmad_bank.exporting.writing import run

SIZE, GRID = 96, (12, 8)
SHAPES = ((96, 96), (120, 200), (201, 77), (30, 40), (300, 31), (1, 64), (64, 1))


def smooth(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A picture (height, width, 3) uint8 of waves with a little noise."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 9 + channel) * np.cos(y / 7 - channel) for channel in range(3)]
    values = 128 + 90 * np.stack(waves, axis=2) + generator.normal(0, 6, (height, width, 3))
    return np.asarray(values.clip(0, 255).astype(np.uint8))


def prepared(picture: np.ndarray, settings: Preprocessing) -> Sample:
    rgb = torch.from_numpy(picture.transpose(2, 0, 1).astype(np.float32) / 255)
    xyz = torch.ones(3, *picture.shape[:2])  # nothing of it is looked at
    return preprocess(Sample(rgb, xyz, None), settings)


@pytest.mark.parametrize("multiple", [1, 100])
@pytest.mark.parametrize("pad", PADS)
def test_it_is_that_of_python_but_for_the_last_digit(pad: str, multiple: int, tmp_path: Path) -> None:
    settings = Preprocessing.recipe("keep", size=SIZE, pad=pad, pad_multiple=multiple)
    path = tmp_path / "preparation.onnx"
    onnx.save(preparation_graph(settings, SIZE, GRID), str(path))
    others = 0.0
    for height, width in SHAPES:
        picture = smooth(height, width)
        expected = prepared(picture, settings)
        found = run(path, {"picture": picture[None]})
        levels = (expected.rgb * 255).round().to(torch.int64).numpy()
        assert found["images"].shape == (1, 3, SIZE, SIZE)
        differences = np.abs(found["images"][0].astype(np.int64) - levels)
        assert differences.max() <= 1, (height, width)
        others += float((differences > 0).mean()) / len(SHAPES)
        assert expected.frame is not None
        rows, columns = expected.frame.cells(GRID)
        assert found["window"].tolist() == [rows.start, rows.stop, columns.start, columns.stop]
    assert others < 5e-4
