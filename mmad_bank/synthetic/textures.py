"""Real images and real features for tests, examples and benchmarks, with nothing to download.

scikit-image's wheel carries three photographs of textures, 512×512 grey: brick, grass and gravel (CC0, from
cc0textures.com). Crops of them stand for the images of a production line: the left five eighths of the photograph for
training, the rest, never seen in training, for tests.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from mmad_bank._internal.checks import check_choice
from mmad_bank._internal.files import cache_dir, replacing
from mmad_bank.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from pathlib import Path

    from mmad_bank.features import EfficientNetLite0

TEXTURES = ("brick", "grass", "gravel")
# Raise it when images or features change, so that no cached file outlives the code that made it.
_CACHE_VERSION = 1
_TRAIN_COLUMNS = 320
_CROP_SIDES = (144, 192)
_BATCH = 16


def _photograph(texture: str) -> np.ndarray:
    """Read one of scikit-image's textures, (512, 512) uint8."""
    check_choice(texture, TEXTURES, "texture")
    try:
        import skimage.data
    except ImportError as error:
        raise MissingExtraError("scikit-image", "demo", "the texture images") from error
    return getattr(skimage.data, texture)()


def _crop(region: np.ndarray, size: int, rng: np.random.Generator, *, turn: bool) -> np.ndarray:
    """Cut a random square out of a grey region, flip and light it at random, and bring it to (size, size) uint8."""
    from PIL import Image

    side = int(rng.integers(_CROP_SIDES[0], _CROP_SIDES[1] + 1))
    top, left = (int(rng.integers(0, limit - side + 1)) for limit in region.shape)
    crop = region[top : top + side, left : left + side]
    if turn:
        crop = np.rot90(crop, int(rng.integers(4)))
    if rng.integers(2):
        crop = crop[:, ::-1]
    square = Image.fromarray(np.ascontiguousarray(crop)).resize((size, size), Image.Resampling.BICUBIC)
    gain, offset = rng.uniform(0.92, 1.08), rng.uniform(-6, 6)
    noise = rng.normal(0.0, 1.5, (size, size))
    return np.clip(np.asarray(square, dtype=np.float64) * gain + offset + noise, 0, 255).round().astype(np.uint8)


def texture_images(
    n_images: int, *, texture: str = "gravel", split: str = "train", size: int = 224, seed: int = 0
) -> np.ndarray:
    """Cut images out of a photographed texture: random place, scale, flip, light and a little sensor noise.

    Image i depends on the seed and on i only, so a longer series begins with the shorter one. Brick, which has an up
    and a down, is not turned by quarters; grass and gravel are.

    Args:
        n_images: Number of images.
        texture: ``"brick"``, ``"grass"`` or ``"gravel"``.
        split: ``"train"``, the left part of the photograph, or ``"test"``, the rest.
        size: Side of the images in pixels.
        seed: Seed of the random generator.

    Returns:
        Images (n_images, size, size, 3), uint8; the three channels are equal.

    Raises:
        InputError: An argument is unknown or not positive.
        MissingExtraError: scikit-image is not installed.

    Example:
        >>> texture_images(2, texture="brick").shape
        (2, 224, 224, 3)
    """
    if n_images < 1 or size < 1:
        raise InputError(f"n_images and size: expected at least 1, found {n_images} and {size}")
    if split not in ("train", "test"):
        raise InputError(f"split: expected 'train' or 'test', found {split!r}")
    photograph = _photograph(texture)
    region = photograph[:, :_TRAIN_COLUMNS] if split == "train" else photograph[:, _TRAIN_COLUMNS:]
    stream = [seed, TEXTURES.index(texture), split == "test"]
    images = [
        _crop(region, size, np.random.default_rng([*stream, i]), turn=texture != "brick") for i in range(n_images)
    ]
    return np.repeat(np.stack(images)[..., None], 3, axis=-1)


def extract(images: np.ndarray, extractor: EfficientNetLite0 | None = None) -> np.ndarray:
    """Extract patch features, a few images at a time.

    Args:
        images: (B, H, W, 3), uint8.
        extractor: Default: the embedded one with its default stages.

    Returns:
        (B, P, D), float32; (B, 784, 656) by default.
    """
    import torch

    from mmad_bank.features import EfficientNetLite0

    extractor = extractor or EfficientNetLite0()
    batches = []
    for start in range(0, len(images), _BATCH):
        batch = torch.from_numpy(images[start : start + _BATCH]).permute(0, 3, 1, 2)
        batches.append(extractor(batch).numpy())
    return np.concatenate(batches)


def texture_features(n_images: int = 80, *, texture: str = "gravel", split: str = "train", seed: int = 0) -> np.ndarray:
    """Real CNN features of real textures: the array that tests, examples and benchmarks share.

    The images of :func:`texture_images` at 224×224 through :class:`mmad_bank.features.EfficientNetLite0`: 784 patches
    per image, 656 dimensions, so that the 80 images of the default give 62720×656. They are kept in the user's cache
    folder (``MMAD_BANK_CACHE``, else ``XDG_CACHE_HOME/mmad-bank``, else ``~/.cache/mmad-bank``).

    Returns:
        Features (n_images · 784, 656), float32, image by image, patches in row-major order.

    Raises:
        InputError: An argument is unknown or not positive.
        MissingExtraError: timm, scikit-image or the weights' package is not installed.

    Example:
        >>> texture_features(1).shape
        (784, 656)
    """
    path = cache_dir() / f"textures-v{_CACHE_VERSION}-{texture}-{split}-n{n_images}-seed{seed}.npy"
    cached = _read_cached(path, rows=n_images * 784)
    if cached is not None:
        return cached
    features = extract(texture_images(n_images, texture=texture, split=split, seed=seed))
    features = features.reshape(-1, features.shape[-1])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            np.save(partial, features)
    except (OSError, InputError) as error:
        warnings.warn(f"the features could not be kept in the cache: {error}", stacklevel=2)
    return features


def _read_cached(path: Path, *, rows: int) -> np.ndarray | None:
    """Return a cached array, or None when there is none or it is not what was asked for."""
    try:
        features = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return features if features.shape == (rows, 656) and features.dtype == np.float32 else None


def draw_scratch(image: np.ndarray, *, seed: int = 0, width: float = 1.2) -> tuple[np.ndarray, np.ndarray]:
    """Draw a bright, slightly bent scratch across an image.

    Args:
        image: (H, W, 3), uint8.
        seed: Seed of its place and direction.
        width: Half its width in pixels.

    Returns:
        The image with the scratch, uint8, and the scratch's mask (H, W), bool.
    """
    rng = np.random.default_rng([seed, 1])
    height, wide = image.shape[:2]
    extent = min(height, wide)
    centre = np.array([height, wide]) * rng.uniform(0.35, 0.65, 2)
    angle, bend = rng.uniform(0, np.pi), rng.uniform(-0.08, 0.08)
    along, across = np.array([np.sin(angle), np.cos(angle)]), np.array([np.cos(angle), -np.sin(angle)])
    t = np.linspace(-0.5, 0.5, 4 * extent)[:, None]
    line = centre + extent * (0.55 * t * along + bend * (1 - 4 * t**2) * across)
    rows, columns = np.mgrid[:height, :wide]
    pixels = np.stack([rows, columns], axis=-1).reshape(-1, 1, 2).astype(np.float32)
    nearest = np.full(len(pixels), np.inf, dtype=np.float32)
    for point in line[::2].astype(np.float32):
        np.minimum(nearest, ((pixels[:, 0] - point) ** 2).sum(axis=-1), out=nearest)
    distance = np.sqrt(nearest).reshape(height, wide)
    opacity = 0.85 * np.clip(width + 0.5 - distance, 0, 1)[..., None]
    scratched = image * (1 - opacity) + 235 * opacity
    return scratched.round().astype(np.uint8), distance <= width + 0.5


def paste_patch(
    image: np.ndarray, donor: np.ndarray, *, seed: int = 0, radius: float = 0.11
) -> tuple[np.ndarray, np.ndarray]:
    """Paste a round patch of another texture into an image, brought to the light of the place it covers.

    Args:
        image: (H, W, 3), uint8.
        donor: The image that the patch is taken from, of the same shape.
        seed: Seed of its place.
        radius: Radius as a part of the image's shorter side.

    Returns:
        The image with the patch, uint8, and the patch's mask (H, W), bool.

    Raises:
        InputError: The shapes differ.
    """
    if image.shape != donor.shape:
        raise InputError(f"donor: expected the image's shape {image.shape}, found {donor.shape}")
    rng = np.random.default_rng([seed, 2])
    height, wide = image.shape[:2]
    centre = np.array([height, wide]) * rng.uniform(0.3, 0.7, 2)
    rows, columns = np.mgrid[:height, :wide]
    distance = np.hypot(rows - centre[0], columns - centre[1]) - radius * min(height, wide)
    mask = distance <= 0
    # The same mean grey: what stands out is the texture, not the brightness.
    patch = donor.astype(np.float64) + image[mask].mean() - donor[mask].mean()
    opacity = np.clip(0.5 - distance / 3, 0, 1)[..., None]
    pasted = image * (1 - opacity) + patch * opacity
    return np.clip(pasted, 0, 255).round().astype(np.uint8), mask
