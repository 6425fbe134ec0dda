"""Pictures on which settings are chosen: crops of photographs and rendered parts, with defects painted in.

Nothing of it is a data set that figures are reported on. Three textures of scikit-image come in crops of any aspect.
Three scenes (of scikit-image and scikit-learn) are seen again and again by an unsteady camera, in their own aspect.
Three synthetic parts lie on their table, one of them in wide pictures. The defects are scratches, stains, blurred spots
and pieces of another picture, faint or clear, anywhere in the picture, on its border too; those of the parts are their
own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmad_bank.synthetic.dataset import render

TEXTURES = ("brick", "grass", "gravel")
SCENES = ("coffee", "coins", "china")
RENDERED = ("bagel_ring", "laid_rope", "stud_tray")
CATEGORIES = (*TEXTURES, *SCENES, *RENDERED)
KINDS = ("scratch", "stain", "blur", "piece")
_OWN_KINDS = ("color", "both")
"""Defects of the rendered parts that a picture shows."""
_TRAIN_PART = 0.6
"""Part of a texture's photograph that training images are cut out of; test images come from the rest."""

Painted = tuple[np.ndarray, np.ndarray]
"""A picture (H, W, 3), uint8, and its defect (H, W), bool."""


@dataclass(frozen=True)
class Counts:
    """Pictures of a category: to train on, good ones to test, and defective ones of each kind."""

    train: int = 24
    good: int = 20
    of_a_kind: int = 5


def write(folder: Path, categories: tuple[str, ...], counts: Counts, seed: int = 0) -> None:
    """Write categories in the layout of MVTec AD; the same arguments give the same pictures."""
    for category in categories:
        root = folder / category
        for i in range(counts.train):
            _save(root / "train/good" / f"{i:03}.png", _normal(category, "train", i, seed))
        for i in range(counts.good):
            _save(root / "test/good" / f"{i:03}.png", _normal(category, "test", i, seed))
        for number, kind in enumerate(_OWN_KINDS if category in RENDERED else KINDS):
            for i in range(counts.of_a_kind):
                index = counts.good + number * counts.of_a_kind + i
                picture, mask = _defective(category, kind, index, seed)
                _save(root / "test" / kind / f"{i:03}.png", picture)
                _save(root / "ground_truth" / kind / f"{i:03}_mask.png", mask.astype(np.uint8) * 255)


def _save(path: Path, pixels: np.ndarray) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _rng(category: str, split: str, index: int, seed: int, stream: int) -> np.random.Generator:
    return np.random.default_rng([seed, CATEGORIES.index(category), split == "test", index, stream])


def _photograph(name: str) -> np.ndarray:
    """Return a photograph (H, W, 3), uint8."""
    if name == "china":
        from sklearn.datasets import load_sample_image

        return np.asarray(load_sample_image("china.jpg"))
    import skimage.data

    picture = getattr(skimage.data, name)()
    return picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)


def _normal(category: str, split: str, index: int, seed: int) -> np.ndarray:
    rng = _rng(category, split, index, seed, 0)
    if category in RENDERED:
        return render(category, split=split, index=index, seed=seed).rgb
    photograph = _photograph(category)
    crop = _texture_crop(photograph, split, rng) if category in TEXTURES else _scene_view(photograph, rng)
    light = crop * rng.uniform(0.92, 1.08) + rng.uniform(-6, 6) + rng.normal(0, 1.5, (*crop.shape[:2], 1))
    return np.clip(light, 0, 255).round().astype(np.uint8)


def _texture_crop(photograph: np.ndarray, split: str, rng: np.random.Generator) -> np.ndarray:
    """Cut a rectangle of any aspect from 1:2.4 to 2.4:1 out of the split's part of a photograph."""
    border = int(_TRAIN_PART * photograph.shape[1])
    region = photograph[:, :border] if split == "train" else photograph[:, border:]
    aspect, area = np.exp(rng.uniform(-0.875, 0.875)), rng.uniform(120, 160) ** 2
    sides = [min(round(side), limit) for side, limit in zip((area**0.5 * aspect**0.5, area**0.5 / aspect**0.5),
                                                            region.shape, strict=False)]  # fmt: skip
    top, left = (int(rng.integers(limit - side + 1)) for limit, side in zip(region.shape, sides, strict=False))
    crop = region[top : top + sides[0], left : left + sides[1]].astype(float)
    return crop[:, ::-1] if rng.integers(2) else crop


def _scene_view(photograph: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Look at a scene again: turned by up to two degrees, moved and zoomed by a few percent, at 300 pixels' width."""
    from PIL import Image

    height, width = photograph.shape[:2]
    turned = Image.fromarray(photograph).rotate(rng.uniform(-2, 2), Image.Resampling.BICUBIC)
    scale = rng.uniform(0.86, 0.9)
    left, top = (0.5 * (1 - scale) + rng.uniform(-0.02, 0.02, 2)) * (width, height)
    box = (left, top, left + scale * width, top + scale * height)
    size = (300, round(300 * height / width))
    return np.asarray(turned.resize(size, Image.Resampling.BICUBIC, box), dtype=float)


def _defective(category: str, kind: str, index: int, seed: int) -> Painted:
    if category in RENDERED:
        scene = render(category, kind, split="test", index=index, seed=seed)
        return scene.rgb, scene.mask
    picture = _normal(category, "test", index, seed)
    others = TEXTURES if category in TEXTURES else SCENES
    other = others[(others.index(category) + 1) % len(others)]
    donor = _normal(other, "test", index, seed)
    if _is_gray(picture):
        donor = np.repeat(donor.mean(2, keepdims=True).round().astype(np.uint8), 3, axis=2)
    return _PAINTERS[kind](picture, donor, _rng(category, "test", index, seed, 1))


def _is_gray(picture: np.ndarray) -> bool:
    return bool((picture == picture[..., :1]).all())


def _blend(picture: np.ndarray, paint: np.ndarray, opacity: np.ndarray) -> Painted:
    """Lay paint over a picture; where it covers a quarter of what it covers at most is the defect."""
    mixed = picture + opacity[..., None] * (paint - picture)
    return np.clip(mixed, 0, 255).round().astype(np.uint8), opacity > 0.25 * opacity.max()


def _spot(picture: np.ndarray, rng: np.random.Generator, radii: tuple[float, float]) -> np.ndarray:
    """Return the soft opacity (H, W), up to 1, of an ellipse anywhere in the picture; radii as parts of its side."""
    height, width = picture.shape[:2]
    y, x = np.mgrid[:height, :width] - (rng.uniform(0, 1, 2) * (height, width))[:, None, None]
    angle, side = rng.uniform(0, np.pi), (height * width) ** 0.5
    a, b = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    one, other = (side * rng.uniform(*radii) for _ in range(2))
    return np.clip((1.2 - np.hypot(a / one, b / other)) * 4, 0, 1)


def _scratch(picture: np.ndarray, donor: np.ndarray, rng: np.random.Generator) -> Painted:
    """Draw a thin straight line, bright or dark."""
    del donor
    height, width = picture.shape[:2]
    side = (height * width) ** 0.5
    y, x = np.mgrid[:height, :width] - (rng.uniform(0.05, 0.95, 2) * (height, width))[:, None, None]
    angle = rng.uniform(0, np.pi)
    along, across = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    opacity = np.clip(1.3 - np.abs(across), 0, 1) * (np.abs(along) < side * rng.uniform(0.08, 0.25))
    return _blend(picture, np.full(3, rng.choice([25.0, 230.0])), opacity * rng.uniform(0.35, 0.8))


def _stain(picture: np.ndarray, donor: np.ndarray, rng: np.random.Generator) -> Painted:
    """Tint a spot, of a gray picture in gray."""
    del donor
    opacity, paint = _spot(picture, rng, (0.03, 0.08)), rng.uniform(20, 220, 3)
    return _blend(picture, np.full(3, paint[0]) if _is_gray(picture) else paint, opacity * rng.uniform(0.25, 0.5))


def _blur(picture: np.ndarray, donor: np.ndarray, rng: np.random.Generator) -> Painted:
    """Wipe out the details of a spot."""
    from scipy.ndimage import gaussian_filter

    del donor
    soft = gaussian_filter(picture.astype(float), (3, 3, 0))
    return _blend(picture, soft, _spot(picture, rng, (0.06, 0.12)))


def _piece(picture: np.ndarray, donor: np.ndarray, rng: np.random.Generator) -> Painted:
    """Put a spot of another picture in, in the light of the place."""
    opacity = _spot(picture, rng, (0.03, 0.08))
    rows, columns = (np.arange(n) % limit for n, limit in zip(picture.shape, donor.shape[:2], strict=False))
    paint = donor[rows[:, None], columns].astype(float)
    if (opacity > 0).any():
        paint += picture[opacity > 0].mean(0) - paint[opacity > 0].mean(0)
    return _blend(picture, paint, opacity * rng.uniform(0.5, 1))


_PAINTERS: dict[str, Callable[[np.ndarray, np.ndarray, np.random.Generator], Painted]] = {
    "scratch": _scratch, "stain": _stain, "blur": _blur, "piece": _piece,
}  # fmt: skip
