"""The reader of Eyecandies' layout, and the geometry of its point clouds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL")

from data_trees import add_eyecandy

from mmad_bank.data import EyecandiesDataset, Preprocessing, open_dataset, prepare, preprocess
from mmad_bank.data.eyecandies import FOCAL_LENGTH, unproject
from mmad_bank.data.preprocessing import off_belt
from mmad_bank.errors import InputError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    depth = np.linspace(0.6, 1.4, 64 * 64).reshape(64, 64)
    lollipop = tmp_path / "Lollipop"
    for name in ("000", "001", "010"):
        add_eyecandy(lollipop / "train" / "data", name, depth)
    add_eyecandy(lollipop / "val" / "data", "000", depth)
    add_eyecandy(lollipop / "test_public" / "data", "00", depth, mask=np.zeros((64, 64)))
    words = "anomalous: 1\nbumps: 0\ncolors: 1\ndents: 1\nnormals: 0\n"
    add_eyecandy(lollipop / "test_public" / "data", "01", depth, anomalous=words, mask=np.eye(64))
    return tmp_path


def test_samples_of_all_widths_and_splits(root: Path) -> None:
    train, test = open_dataset(root, "Lollipop"), open_dataset(root, "Lollipop", "test")
    assert isinstance(train, EyecandiesDataset)
    assert [record.name for record in train.records] == ["000", "001", "010"]
    assert [record.name for record in test.records] == ["00", "01"]
    assert test.labels == [0, 1]
    sample = test[1]
    assert (sample.id, sample.defect) == ("Lollipop/test/colors+dents/01", "colors+dents")
    assert sample.mask is not None
    assert int(sample.mask.sum()) == 64
    assert len(open_dataset(root, split="validation")) == 1


def test_light_and_depth(root: Path) -> None:
    sample = open_dataset(root, "Lollipop")[0]
    assert sample.rgb[0, 0, 0].item() == pytest.approx(160 / 255)
    assert EyecandiesDataset(root, "Lollipop", light=1)[0].rgb[0, 0, 0].item() == pytest.approx(40 / 255)
    depth = np.linspace(0.6, 1.4, 64 * 64).reshape(64, 64)
    assert np.allclose(sample.xyz[2].numpy(), depth, atol=2e-5)  # 1 m in 65 535 steps
    with pytest.raises(InputError, match="light: expected 0 to 5, found 6"):
        EyecandiesDataset(root, light=6)


def test_unprojection_inverts_the_projection() -> None:
    """Points projected by the pinhole model come back from their depth, through a pose with rotation and shift."""
    rng = np.random.default_rng(0)
    depth = rng.uniform(0.8, 1.2, (512, 512))
    angle = 0.4
    pose = np.eye(4)
    pose[:3, :3] = [[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]]
    pose[:3, 3] = [0.1, -0.2, 0.3]
    world = unproject(depth, pose)
    camera = world.astype(np.float64) @ pose[:3, :3].T + pose[:3, 3]
    v, u = np.mgrid[:512, :512]
    assert np.allclose(camera[..., 2], depth, atol=1e-6)
    assert np.allclose(FOCAL_LENGTH * camera[..., 0] / camera[..., 2] + 256, u, atol=1e-3)
    assert np.allclose(FOCAL_LENGTH * camera[..., 1] / camera[..., 2] + 256, v, atol=1e-3)


def _belt_depth(side: int, pitch: float, bump: np.ndarray) -> np.ndarray:
    """Depth of a belt 0.3 m below a camera that looks at it at an angle, with a bump (metres) on it."""
    focal = FOCAL_LENGTH * side / 512
    v = (np.mgrid[:side, :side][0] - side / 2) / focal
    down, ahead = np.sin(pitch) + v * np.cos(pitch), np.cos(pitch) - v * np.sin(pitch)
    assert (down > 0).all()
    assert (ahead > 0).all()
    return (0.3 - bump) / down


def test_the_belt_is_removed_and_the_object_kept(tmp_path: Path) -> None:
    bump = np.zeros((128, 128))
    bump[40:80, 50:90] = 0.05
    bump[90:100, 20:30] = 0.01  # less than the 2 cm that belong to the belt
    depth = _belt_depth(128, 0.8, bump)
    add_eyecandy(tmp_path / "Confetto" / "train" / "data", "000", depth, low=0.2, high=0.8)
    sample = open_dataset(tmp_path)[0]
    keep, cloud = off_belt(sample.xyz.numpy().transpose(1, 2, 0))
    assert np.array_equal(keep, bump > 0.02)
    assert np.allclose(cloud[..., 0], sample.xyz[0].numpy() * 0.1)
    assert np.allclose(cloud[..., 1], sample.xyz[2].numpy() * -0.1)
    assert np.allclose(cloud[..., 2], sample.xyz[1].numpy() * 0.1)
    prepared = preprocess(sample, Preprocessing.recipe("eyecandies", size=None))
    assert prepared.rgb.shape == (3, 128, 128)  # square already: nothing is padded
    assert int(prepared.measured.sum()) == 1600
    assert (prepared.rgb > 0).all()  # the colour background stays


def test_data_that_were_padded_are_read_and_told_apart(tmp_path: Path) -> None:
    """Version 0.1 padded 512×512 pixels to 600×600."""
    bump = np.zeros((128, 128))
    bump[40:80, 50:90] = 0.05
    depth = _belt_depth(128, 0.8, bump)
    add_eyecandy(tmp_path / "raw" / "Confetto" / "train" / "data", "000", depth, low=0.2, high=0.8)
    now, before = (Preprocessing.recipe("eyecandies", size=64, **pad) for pad in ({}, {"pad_multiple": 100}))
    prepare(tmp_path / "raw", tmp_path / "now", now)
    prepare(tmp_path / "raw", tmp_path / "before", before)
    padded, whole = (open_dataset(tmp_path / name)[0] for name in ("before", "now"))
    assert float((padded.rgb == 0).all(dim=0).float().mean()) > 0.5  # 128×128 pixels in 200×200
    assert not (whole.rgb == 0).all(dim=0).any()
    assert padded.preparation is not None
    assert padded.preparation.differences(now) == ["pad_multiple: 100 against 1"]
    with pytest.raises(InputError, match=r"before: prepared with other settings \(pad_multiple 100, not 1\)"):
        prepare(tmp_path / "raw", tmp_path / "before", now)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("info_depth.yaml", "normalization:\n  min: 0.5\n", "expected a number named 'max', found none"),
        ("info_depth.yaml", "normalization: {min: x, max: 2}\n", "expected a number named 'min', found x"),
        ("info_depth.yaml", None, "file not found"),
        ("pose.txt", "1 0 0", "16 numbers .* found 3"),
        ("pose.txt", "0 " * 16, "invertible"),
        ("pose.txt", None, "file not found"),
    ],
)
def test_bad_files_are_named(root: Path, file: str, text: str | None, message: str) -> None:
    path = root / "Lollipop" / "train" / "data" / f"001_{file}"
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    dataset = open_dataset(root, "Lollipop")
    with pytest.raises(InputError, match=rf"001_{file}: .*{message}"):
        dataset[1]
    assert dataset[2].label == 0


def test_yaml_in_braces(root: Path) -> None:
    path = root / "Lollipop" / "train" / "data" / "000_info_depth.yaml"
    path.write_text("normalization: {min: 5.0e-1, max: 2.5}\n")
    assert open_dataset(root, "Lollipop")[0].xyz[2].max().item() == pytest.approx(0.5 + 0.9 * 2.0, abs=1e-4)
