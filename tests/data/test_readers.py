"""Readers of the layout of MVTec 3D-AD, and what all data sets have in common."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("tifffile")
pytest.importorskip("PIL")

import tifffile
from data_trees import add_sample, scene
from PIL import Image

from mmad_bank.data import FolderDataset, MVTec3DDataset, categories_of, few_shot, open_dataset, open_sample
from mmad_bank.errors import InputError, MissingSplitError


@pytest.fixture
def mvtec(tmp_path: Path) -> Path:
    root = tmp_path / "mvtec"
    (root / "calibration").mkdir(parents=True)
    (root / "calibration" / "camera_parameters.json").write_text("{}")
    for name in ("000", "001", "002"):
        add_sample(root / "rope" / "train" / "good", name, xyz=scene(40, 90))
    add_sample(root / "rope" / "validation" / "good", xyz=scene(40, 90))
    add_sample(root / "rope" / "test" / "good", xyz=scene(40, 90))
    mask = np.zeros((40, 90), dtype=bool)
    mask[10:14, 50:60] = True
    add_sample(root / "rope" / "test" / "cut", xyz=scene(40, 90), mask=mask)
    add_sample(root / "bagel" / "train" / "good")
    return root


def test_a_non_square_category_is_read_as_it_is(mvtec: Path) -> None:
    dataset = open_dataset(mvtec, "rope", "test")
    assert isinstance(dataset, MVTec3DDataset)
    assert len(dataset) == 2
    good, cut = dataset[0], dataset[1]
    assert (good.defect, good.label, cut.defect, cut.label) == ("good", 0, "cut", 1)
    assert dataset.labels == [0, 1]
    assert cut.id == "rope/test/cut/000"
    assert cut.rgb.shape == cut.xyz.shape == (3, 40, 90)
    assert cut.size == (40, 90)
    assert cut.rgb.dtype == cut.xyz.dtype == torch.float32
    assert good.mask is not None
    assert good.mask.dtype == torch.bool
    assert not good.mask.any()  # a normal sample without a mask file
    assert cut.mask is not None
    assert cut.mask.nonzero().min(dim=0).values.tolist() == [10, 50]
    assert int(cut.mask.sum()) == 40
    stored = np.asarray(Image.open(mvtec / "rope/test/cut/rgb/000.png"))
    assert np.array_equal((cut.rgb.numpy().transpose(1, 2, 0) * 255).round().astype(np.uint8), stored)
    assert np.array_equal(cut.xyz.numpy().transpose(1, 2, 0), scene(40, 90))


def test_categories_splits_and_order(mvtec: Path) -> None:
    assert categories_of(mvtec) == ["bagel", "rope"]
    assert [record.id for record in open_dataset(mvtec).records] == [
        "bagel/train/good/000", "rope/train/good/000", "rope/train/good/001", "rope/train/good/002",
    ]  # fmt: skip
    assert len(open_dataset(mvtec, "rope", "val")) == 1
    assert open_dataset(mvtec / "rope", split="test").categories == ("rope",)
    assert sum(1 for _ in open_dataset(mvtec, "rope")) == 3
    with pytest.raises(IndexError):
        open_dataset(mvtec, "rope")[3]


def test_unmeasured_points_are_zero(tmp_path: Path) -> None:
    xyz = scene()
    xyz[3, 4] = np.nan
    xyz[5, 6, 2] = np.nan
    xyz[7, 8, 0] = np.inf
    xyz[9, 9] = 0
    add_sample(tmp_path / "part" / "train" / "good", xyz=xyz)
    sample = open_dataset(tmp_path)[0]
    assert torch.isfinite(sample.xyz).all()
    for row, column in ((3, 4), (5, 6), (7, 8), (9, 9)):
        assert sample.xyz[:, row, column].tolist() == [0, 0, 0]
    assert int((~sample.measured).sum()) == 4


def test_own_parts_take_any_names_and_need_no_masks(tmp_path: Path) -> None:
    folder = tmp_path / "left bracket" / "test" / "rust"
    add_sample(folder)
    (folder / "rgb" / "000.png").rename(folder / "rgb" / "000.PNG")
    dataset = open_dataset(tmp_path, split="test")
    assert type(dataset) is FolderDataset
    sample = dataset[0]
    assert (sample.category, sample.label, sample.mask) == ("left bracket", 1, None)


def test_mvtec_defects_need_masks(mvtec: Path) -> None:
    (mvtec / "rope/test/cut/gt/000.png").unlink()
    with pytest.raises(InputError, match=r"cut.gt.000\.png: file not found; expected the mask of a 'cut' defect"):
        open_dataset(mvtec, "rope", "test")[1]


def test_one_sample_from_files(mvtec: Path) -> None:
    folder = mvtec / "rope/test/cut"
    sample = open_sample(folder / "rgb/000.png", folder / "xyz/000.tiff", folder / "gt/000.png")
    assert sample.label == 1
    assert open_sample(folder / "rgb/000.png", folder / "xyz/000.tiff").label == 0


def test_few_shot_draws_are_seeded_and_nested(tmp_path: Path) -> None:
    for category in ("a", "b"):
        for i in range(12):
            add_sample(tmp_path / category / "train" / "good", f"{i:03d}", xyz=scene(20, 20))
    dataset = open_dataset(tmp_path)
    ten, five = few_shot(dataset, 10, seed=1), few_shot(dataset, 5, seed=1)
    assert len(ten) == 20
    assert set(five.records) < set(ten.records)
    assert five.records == few_shot(dataset, 5, seed=1).records
    assert five.records != few_shot(dataset, 5, seed=2).records
    assert few_shot(open_dataset(tmp_path, "b"), 5, seed=1).records == five.records[5:]
    with pytest.raises(InputError, match="n: expected at most 12, the normal samples of 'a', found 13"):
        few_shot(dataset, 13)
    with pytest.raises(InputError, match="at least 1"):
        few_shot(dataset, 0)


def test_wrong_layouts_are_named(mvtec: Path, tmp_path: Path) -> None:
    (tmp_path / "odd" / "images").mkdir(parents=True)
    (tmp_path / "table.csv").write_text("a,b")
    for path, message in (
        (tmp_path / "odd", r"odd: expected CATEGORY/.* in it, found images/"),
        (tmp_path / "nowhere", "nowhere: expected a folder with a data set, found nothing"),
        (tmp_path / "table.csv", "found a file"),
    ):
        with pytest.raises(InputError, match=message):
            open_dataset(path)
    with pytest.raises(InputError, match=r"category: expected one of bagel, rope \(in .*\), found 'tire'"):
        open_dataset(mvtec, "tire")
    with pytest.raises(MissingSplitError, match=r"bagel: found no samples of the test split; .* folders found: train/"):
        open_dataset(mvtec, "bagel", "test")
    with pytest.raises(InputError, match="split: expected one of train, validation, test, found 'dev'"):
        open_dataset(mvtec, "rope", "dev")
    with pytest.raises(InputError, match="layout: expected auto"):
        open_dataset(mvtec, layout="coco")
    with pytest.raises(InputError, match="expected 'rope', found 'bagel'"):
        open_dataset(mvtec / "rope", "bagel")


def _write(path: Path, values: np.ndarray) -> None:
    tifffile.imwrite(path, values, photometric="rgb" if values.ndim == 3 else "minisblack")


def _truncate(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: _truncate(f / "rgb/000.png"), r"rgb.000\.png: cannot be read as a picture"),
        (lambda f: _truncate(f / "xyz/000.tiff"), r"xyz.000\.tiff: (truncated|cannot be read as a TIFF)"),
        (lambda f: (f / "xyz/000.tiff").write_bytes(b""), r"xyz.000\.tiff: (truncated|cannot be read as a TIFF)"),
        (lambda f: (f / "rgb/000.png").write_text("no image"), r"rgb.000\.png: cannot be read"),
        (lambda f: _truncate(f / "gt/000.png"), r"gt.000\.png: cannot be read as a mask"),
        (lambda f: (f / "xyz/000.tiff").unlink(), r"xyz.000\.tiff: file not found"),
        (lambda f: (f / "rgb/000.png").unlink(), r"rgb.000\.png: file not found"),
        (lambda f: _write(f / "xyz/000.tiff", scene(50, 60)), r"expected a point cloud of 60×60 as .*50×60"),
        (lambda f: _write(f / "xyz/000.tiff", scene()[..., 2]), r"expected H×W×3 floats, found shape \(60, 60\)"),
        (lambda f: _write(f / "xyz/000.tiff", np.ones((60, 60, 3), np.uint8)), "uint8"),
        (lambda f: _write(f / "xyz/000.tiff", scene() * 0), "expected measured points, found none"),
        (lambda f: Image.new("L", (9, 9)).save(f / "gt/000.png"), "expected a mask of 60×60 as .*found 9×9"),
        (lambda f: Image.new("I;16", (60, 60)).save(f / "rgb/000.png"), "expected 16 bits per channel in use, found"),
    ],
)
def test_bad_files_are_one_line_and_stop_nothing_else(tmp_path: Path, spoil, message: str) -> None:
    folder = tmp_path / "part" / "test" / "hole"
    for name in ("000", "001"):
        add_sample(folder, name, mask=np.ones((60, 60)))
    spoil(folder)
    dataset = open_dataset(tmp_path, split="test")
    assert len(dataset) == 2
    with pytest.raises(InputError, match=message) as error:
        dataset[0]
    assert "\n" not in str(error.value)
    assert dataset[1].label == 1


@pytest.mark.parametrize("missing", ["rgb", "xyz"])
def test_what_the_whole_category_lacks_is_missing_nowhere(tmp_path: Path, missing: str) -> None:
    for split in ("train", "test"):
        add_sample(tmp_path / "tile" / split / "good")
        (tmp_path / "tile" / split / "good" / missing).rename(tmp_path / f"{missing}-{split}")
    (kept,) = {"rgb", "xyz"} - {missing}
    dataset = open_dataset(tmp_path, "tile")
    sample = dataset[0]
    assert dataset.modalities == sample.modalities == {kept}
    assert getattr(sample, f"{missing}_path") is None
    assert sample.rgb.shape == sample.xyz.shape == (3, 60, 60)
    assert bool(sample.measured.all())
    assert f"{missing} " not in repr(sample)
    (tmp_path / "tile" / "test" / "good" / missing).mkdir()  # of another split: now it is this sample's own fault
    with pytest.raises(InputError, match=rf"good.{missing}.000\.\w+: file not found"):
        open_dataset(tmp_path, "tile")[0]


def test_a_relief_stands_in_for_the_picture_of_a_cloud_alone(tmp_path: Path) -> None:
    xyz = scene(tilt=0)
    xyz[5, 7] = 0
    add_sample(tmp_path / "tile" / "train" / "good", xyz=xyz)
    (tmp_path / "tile" / "train" / "good" / "rgb").rename(tmp_path / "rgb")
    sample = open_dataset(tmp_path, "tile")[0]
    assert sample.rgb[:, 5, 7].tolist() == [0, 0, 0]
    assert float(sample.rgb[0, 30, 30]) > 0.95  # the box is nearer than the plane
    assert float(sample.rgb[0, 3, 3]) < 0.4
