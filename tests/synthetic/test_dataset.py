"""Synthetic data sets: the same for the same seed, and defects where they are said to be and nowhere else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tifffile")
pytest.importorskip("scipy")

from mmad_bank._internal.parallel import run_parallel
from mmad_bank.data import open_dataset, preprocess
from mmad_bank.errors import InputError
from mmad_bank.synthetic import dataset, write_synthetic
from mmad_bank.synthetic.dataset import CATEGORIES, DEFECTS, render

SIZE = 128


def pair(category: str, kind: str, index: int = 0) -> tuple[dataset.Scene, dataset.Scene]:
    """A normal sample, and the same with a defect."""
    return tuple(render(category, k, size=SIZE, seed=3, split="test", index=index) for k in ("good", kind))  # type: ignore[return-value]


def changed(a: np.ndarray, b: np.ndarray, limit: float) -> np.ndarray:
    """Where two images differ by more than a limit."""
    return (np.abs(a.astype(np.float64) - b.astype(np.float64)) > limit).any(axis=-1)


@pytest.mark.parametrize("category", CATEGORIES)
def test_scenes_are_seeded_and_vary(category: str) -> None:
    one, same = (render(category, size=SIZE, seed=1, index=2) for _ in range(2))
    assert all(np.array_equal(getattr(one, name), getattr(same, name)) for name in ("rgb", "xyz", "mask"))
    for other in ({"seed": 2, "index": 2}, {"seed": 1, "index": 3}, {"seed": 1, "index": 2, "split": "test"}):
        assert not np.array_equal(one.rgb, render(category, size=SIZE, **other).rgb)
    height, width = one.mask.shape
    assert (height, width) == ((96, 192) if category == "laid_rope" else (128, 128))
    measured = (one.xyz != 0).all(axis=-1)
    assert 0.8 < measured.mean() < 0.999  # drop-outs
    assert (one.xyz[~measured] == 0).all()
    assert 0.3 < one.xyz[measured][:, 2].min() < one.xyz[measured][:, 2].max() < 0.5


@pytest.mark.parametrize("category", CATEGORIES)
def test_color_leaves_the_cloud_and_shape_leaves_the_image(category: str) -> None:
    for index in range(3):
        good, stained = pair(category, "color", index)
        assert np.array_equal(good.xyz, stained.xyz)
        seen = changed(good.rgb, stained.rgb, 12)
        assert seen[stained.mask].mean() > 0.6
        good, dented = pair(category, "shape", index)
        assert np.array_equal(good.rgb, dented.rgb)
        depth = np.abs(good.xyz[..., 2] - dented.xyz[..., 2]) > 2e-4
        assert depth[dented.mask].mean() > 0.8
        assert not depth[~dented.mask & (changed(good.xyz, dented.xyz, 6e-4))].any()


@pytest.mark.parametrize("category", CATEGORIES)
def test_both_shows_in_either(category: str) -> None:
    good, cut = pair(category, "both")
    assert changed(good.rgb, cut.rgb, 12)[cut.mask].mean() > 0.5
    assert changed(good.xyz, cut.xyz, 8e-4)[cut.mask].mean() > 0.5
    assert not changed(good.rgb, cut.rgb, 30)[~np_dilate(cut.mask)].any()


def np_dilate(mask: np.ndarray) -> np.ndarray:
    from scipy.ndimage import binary_dilation

    return binary_dilation(mask, iterations=5)


@pytest.mark.parametrize("category", CATEGORIES)
def test_combination_exchanges_in_one_modality_what_is_normal_there(category: str) -> None:
    """Either the colours or the reliefs change, never both; as many marks are raised as are lowered."""
    modes = set()
    for index in range(8):
        good, swapped = pair(category, "combination", index)
        colour, shape = not np.array_equal(good.rgb, swapped.rgb), not np.array_equal(good.xyz, swapped.xyz)
        assert colour != shape
        modes.add(colour)
        assert swapped.mask.any()
        if shape:
            change = (good.xyz[..., 2] - swapped.xyz[..., 2])[swapped.mask]
            assert (change > 2e-3).any()
            assert (change < -2e-3).any()
    assert modes == {True, False}


def test_the_sets_layout_and_contents(tmp_path: Path) -> None:
    facts = write_synthetic(tmp_path / "set", size=64, n_train=2, n_validation=1, n_test=7, seed=5)
    assert facts["samples"] == 10 * len(CATEGORIES)
    train, test = open_dataset(tmp_path / "set"), open_dataset(tmp_path / "set", split="test")
    assert train.categories == CATEGORIES
    assert (len(train), len(test)) == (10, 35)
    assert set(train.labels) == {0}
    assert {record.defect for record in test.records} == {"good", *DEFECTS}
    for sample in test:
        assert sample.mask is not None
        assert bool(sample.mask.any()) == bool(sample.label)
    expected = render("chip_cookie", size=64, seed=5, index=1)
    sample = open_dataset(tmp_path / "set", "chip_cookie")[1]
    assert np.array_equal(sample.xyz.numpy().transpose(1, 2, 0), expected.xyz)
    assert [entry.name for entry in tmp_path.iterdir()] == ["set"]


def test_parts_survive_preparation(tmp_path: Path) -> None:
    """What is left after background removal is the part: neither empty nor the table."""
    write_synthetic(tmp_path / "set", size=160, n_train=1, n_validation=0, n_test=1)
    for sample in open_dataset(tmp_path / "set"):
        share = preprocess(sample).measured.float().mean().item()
        assert 0.03 < share < 0.5, sample.id


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    options = {"size": 64, "n_train": 6, "n_validation": 1, "n_test": 6, "categories": ["stud_tray"]}
    write_synthetic(tmp_path / "a", seed=1, **options)
    write_synthetic(tmp_path / "b", seed=1, **options)
    write_synthetic(tmp_path / "c", seed=2, **options)

    def read(name: str) -> dict[str, bytes]:
        root = tmp_path / name
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.*") if path.is_file()}

    assert read("a") == read("b")
    assert read("a") != read("c")


def test_a_failed_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dataset, "write_xyz", full)
    with pytest.raises(InputError, match=r"set: cannot be written \(the disk is full"):
        write_synthetic(tmp_path / "set", size=64, n_train=1, n_test=1)
    assert list(tmp_path.iterdir()) == []


def test_bad_arguments_are_named(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    for arguments, message in (
        ({"path": tmp_path / "full"}, "full: expected a new or empty folder, found one that holds files"),
        ({"path": tmp_path / "full" / "mine.txt"}, "found a file"),
        ({"size": 32}, "size: expected at least 64 pixels, found 32"),
        ({"categories": ["moon"]}, "categories: expected one of bagel_ring, .*, found 'moon'"),
        ({"n_train": 0}, "n_train: expected at least 1"),
        ({"seed": -1}, "at least 0, found 6 and -1"),
    ):
        with pytest.raises(InputError, match=message):
            write_synthetic(**{"path": tmp_path / "new", **arguments})
    assert (tmp_path / "full" / "mine.txt").read_text() == "x"
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_an_error_in_a_process_ends_the_run() -> None:
    results: list[tuple[int, int]] = []
    run_parallel(abs, range(-20, 0), 2, lambda done, result: results.append((done, result)))
    assert sorted(result for _, result in results) == list(range(1, 21))
    assert [done for done, _ in results] == list(range(1, 21))
    with pytest.raises(ZeroDivisionError):
        run_parallel(_divide, range(20), 2, lambda done, result: None)


def _divide(value: int) -> float:
    return 1 / (value - 10)
