"""Synthetic data sets in the layout of MVTec 3D-AD: parts on a table, seen by a colour and a depth camera.

Five categories, one of them with wide images, and four kinds of defects, which are the names of the test folders:

- ``color``: a stain, with the shape unchanged;
- ``shape``: a dent or a bump, with the colour unchanged;
- ``both``: a hole or a cut, to be seen in either;
- ``combination``: marks that have the colour of the raised ones and are sunken, or the other way round. Each colour
  and each relief is normal, only the two together are not.

The light is diffuse: it shades the body, while relief on it changes the colour image not at all. So a defect of shape
cannot be seen in the colour image, one of colour not in the cloud, and one of combination in neither alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmad_bank._internal.extras import import_extra
from mmad_bank._internal.file_names import SYNTHETIC as MANIFEST
from mmad_bank._internal.files import check_not_current
from mmad_bank._internal.folders import replacing_folder
from mmad_bank._internal.parallel import run_parallel
from mmad_bank._internal.progress import progress_bar
from mmad_bank.data.names import GOOD, SPLITS
from mmad_bank.data.replacing import check_replaceable, is_empty, read_manifest
from mmad_bank.data.writing import write_png, write_xyz
from mmad_bank.errors import InputError, did_you_mean
from mmad_bank.synthetic.parts import COMMON_FIELD, PARTS, WIDE, Mark, Part, smooth_noise

DEFECTS = ("color", "shape", "both", "combination")
CATEGORIES = tuple(PARTS)
_VERSION = 1
_CAMERA_HEIGHT = 400.0
_STAINS = np.array([[0.1, 0.14, 0.3], [0.22, 0.4, 0.16], [0.3, 0.1, 0.1], [0.92, 0.9, 0.86], [0.1, 0.09, 0.09]])


@dataclass(frozen=True)
class Scene:
    """A rendered part.

    Attributes:
        rgb: (H, W, 3), uint8.
        xyz: (H, W, 3), float32, metres in the camera's frame; zeros where nothing was measured.
        mask: (H, W), bool: the defect.
    """

    rgb: np.ndarray
    xyz: np.ndarray
    mask: np.ndarray


def render(
    category: str, kind: str = GOOD, *, size: int = 256, seed: int = 0, split: str = "train", index: int = 0
) -> Scene:
    """Render one sample.

    The part, its defect and the sensors' noise have random streams of their own: a sample with a defect is the normal
    sample of the same place in the series with the defect put on it.

    Args:
        category: One of :data:`CATEGORIES`.
        kind: ``"good"`` or one of :data:`DEFECTS`.
        size: Side of a square image in pixels; a wide one is 3/2 of it wide and 3/4 high.
        seed: Seed of everything random.
        split: Name of the series.
        index: Place in the series.

    Raises:
        InputError: An argument is unknown or too small.

    Example:
        >>> scene = render("chip_cookie", "shape", size=128)
        >>> scene.rgb.shape, scene.xyz.dtype, bool(scene.mask.any())
        ((128, 128, 3), dtype('float32'), True)
    """
    _check(size, [category], kind, split)
    shape = (size * 3 // 4, size * 3 // 4 * 2) if category in WIDE else (size, size)
    pitch = COMMON_FIELD * (1.5 if category in WIDE else 1.0) / shape[1]
    # Half a pixel off the middle: no measured point has a zero among its coordinates.
    y, x = (np.mgrid[: shape[0], : shape[1]] - (np.array(shape)[:, None, None] - 1) / 2) * pitch
    key = [seed, list(PARTS).index(category), SPLITS.index(split), index]
    streams = [np.random.default_rng([*key, stream]) for stream in range(3)]
    part = PARTS[category](streams[0], x, y)
    relief, albedo = _apply_marks(part, [mark.kind for mark in part.marks], [mark.kind for mark in part.marks])
    body = part.height > 2
    mask = np.zeros(shape, dtype=bool)
    if kind != GOOD:
        relief, albedo, mask = _DEFECT_MAKERS[kind](streams[1], part, relief, albedo, body, pitch)
    height = np.where(body, np.maximum(part.height + relief, 0.4), np.maximum(part.height, 0))
    rgb = _photograph(np.random.default_rng([*key, 3]), part.height, albedo, pitch)
    return Scene(rgb, _measure(streams[2], height, part.height, x, y, pitch), mask)


def _check(size: int, categories: Sequence[str], kind: str = GOOD, split: str = "train") -> None:
    if size < 64:
        raise InputError(f"size: expected at least 64 pixels, found {size}")
    for name, value, allowed in (
        *(("categories", category, CATEGORIES) for category in categories),
        ("kind", kind, (GOOD, *DEFECTS)),
        ("split", split, SPLITS),
    ):
        if value not in allowed:
            near = did_you_mean(value, allowed)
            raise InputError(f"{name}: expected one of {', '.join(allowed)}, found {value!r}{near}")


def _apply_marks(part: Part, relief_kinds: Sequence[int], colour_kinds: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Raise or sink and paint the marks: relief (H, W) and albedo (H, W, 3)."""
    relief, albedo = np.zeros_like(part.height), part.albedo.copy()
    for mark, relief_kind, colour_kind in zip(part.marks, relief_kinds, colour_kinds, strict=True):
        box, distance = _around(mark, part)
        relief[box] += (1, -1)[relief_kind] * mark.amount * np.clip(1.25 * (1 - distance**4), 0, 1)
        alpha = np.clip((1.04 - distance) * 8, 0, 1)[..., None]
        # The body's mottling goes through the paint, a little.
        texture = 0.75 + 0.25 * part.albedo[box] / part.albedo[box].mean()
        albedo[box] += alpha * (part.mark_colours[colour_kind] * texture - albedo[box])
    return relief, albedo


def _around(mark: Mark, part: Part) -> tuple[tuple[slice, slice], np.ndarray]:
    """Return the image's box around a mark, and the distances from its centre there."""
    if np.isinf(mark.radii[1]):
        near = np.abs(part.u - mark.u) < 1.1 * mark.radii[0]
    else:
        reach = 1.1 * max(mark.radii)
        near = (np.abs(part.u - mark.u) < reach) & (np.abs(part.v - mark.v) < reach)
    rows, columns = np.flatnonzero(near.any(axis=1)), np.flatnonzero(near.any(axis=0))
    if not len(rows):
        return (slice(0, 0), slice(0, 0)), np.empty((0, 0))
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    return box, mark.distance(part.u[box], part.v[box])


def _spot(rng: np.random.Generator, body: np.ndarray, margin: float) -> tuple[int, int]:
    """Draw a pixel of the body that lies at least ``margin`` pixels from its outline, or as far as there is."""
    from scipy.ndimage import distance_transform_edt

    depth = distance_transform_edt(body)
    rows, columns = np.nonzero(depth >= min(margin, 0.8 * depth.max()))
    i = int(rng.integers(len(rows)))
    return int(rows[i]), int(columns[i])


def _blob(
    rng: np.random.Generator, spot: tuple[int, int], shape: tuple[int, int], radii: tuple[float, float], rough: float
) -> np.ndarray:
    """Return distances (H, W) from a spot in units of an ellipse's radii (pixels), its outline roughened: 1 on it."""
    angle = rng.uniform(0, np.pi)
    dy, dx = np.mgrid[: shape[0], : shape[1]] - np.array(spot)[:, None, None]
    a, b = np.cos(angle) * dx + np.sin(angle) * dy, np.cos(angle) * dy - np.sin(angle) * dx
    return np.asarray(np.hypot(a / radii[0], b / radii[1]) + rough * smooth_noise(rng, shape, 16))


Change = tuple[np.ndarray, np.ndarray, np.ndarray]


def _stain(
    rng: np.random.Generator, part: Part, relief: np.ndarray, albedo: np.ndarray, body: np.ndarray, pitch: float
) -> Change:
    """Put a stain on the part: colour only."""
    radius = rng.uniform(4, 7) / pitch
    spot = _spot(rng, body, radius)
    distance = _blob(rng, spot, body.shape, (radius, radius * rng.uniform(0.6, 1)), 0.18)
    # Not any stain shows on any colour: take one of the three that differ most.
    contrast = np.abs(_STAINS - albedo[spot]).sum(axis=1)
    colour = _STAINS[rng.choice(np.argsort(contrast)[-3:])]
    alpha = rng.uniform(0.45, 0.8) * np.clip((1.1 - distance) * 4, 0, 1) * body
    return relief, albedo + alpha[..., None] * (colour - albedo), alpha > 0.15


def _dent(
    rng: np.random.Generator, part: Part, relief: np.ndarray, albedo: np.ndarray, body: np.ndarray, pitch: float
) -> Change:
    """Put a dent or a bump into the part: shape only."""
    radius = rng.uniform(6, 9) / pitch
    distance = _blob(rng, _spot(rng, body, radius), body.shape, (radius, radius * rng.uniform(0.7, 1)), 0.08)
    change = rng.choice([-1, 1]) * rng.uniform(2.6, 4) * np.exp(-2 * distance**2) * body
    return relief + change, albedo, np.abs(change) > 0.5


def _hole_or_cut(
    rng: np.random.Generator, part: Part, relief: np.ndarray, albedo: np.ndarray, body: np.ndarray, pitch: float
) -> Change:
    """Pierce or cut the part: in either modality."""
    if rng.integers(2):
        radii, depth, colour = (rng.uniform(3.4, 5), rng.uniform(3.4, 5)), 9.0, 0.3 * albedo
    else:
        # What a cut lays open is paler and less saturated than the surface.
        radii, depth = (rng.uniform(10, 14), rng.uniform(1.5, 2.1)), rng.uniform(3.5, 5)
        colour = 0.35 * albedo + 0.6
    spot = _spot(rng, body, min(6.0, radii[0]) / pitch)
    distance = _blob(rng, spot, body.shape, (radii[0] / pitch, radii[1] / pitch), 0.1)
    alpha = np.clip((1.15 - distance) * 5, 0, 1) * body
    return relief - depth * alpha, albedo + 0.85 * alpha[..., None] * (colour - albedo), alpha > 0.2


def _swap(
    rng: np.random.Generator, part: Part, relief: np.ndarray, albedo: np.ndarray, body: np.ndarray, pitch: float
) -> Change:
    """Let one or two pairs of marks exchange their reliefs, or their colours: in the combination only.

    A raised and a sunken mark take part in an exchange, so that either modality shows as many of each kind as before.
    """
    kinds = np.array([mark.kind for mark in part.marks])
    raised, sunken = (rng.permutation(np.flatnonzero(kinds == kind)) for kind in (0, 1))
    n_pairs = min(len(raised), len(sunken), int(rng.integers(1, 3)))
    chosen = np.concatenate([raised[:n_pairs], sunken[:n_pairs]])
    swapped = kinds.copy()
    swapped[chosen] = 1 - kinds[chosen]
    reliefs, colours = (swapped, kinds) if rng.integers(2) else (kinds, swapped)
    relief, albedo = _apply_marks(part, reliefs.tolist(), colours.tolist())
    mask = np.zeros_like(body)
    for i in chosen:
        box, distance = _around(part.marks[i], part)
        mask[box] |= distance <= 1
    return relief, albedo, mask & body


_DEFECT_MAKERS = {"color": _stain, "shape": _dent, "both": _hole_or_cut, "combination": _swap}


def _photograph(rng: np.random.Generator, body: np.ndarray, albedo: np.ndarray, pitch: float) -> np.ndarray:
    """Light, blur and expose the scene, (H, W, 3) uint8. The light falls on the smooth body, not on its relief."""
    from scipy.ndimage import gaussian_filter

    shape = body.shape
    dy, dx = np.gradient(gaussian_filter(body, 1.2 / pitch), pitch)
    azimuth, zenith = rng.uniform(0, 2 * np.pi), rng.uniform(0.25, 0.5)
    light = np.array([np.cos(azimuth) * np.sin(zenith), np.sin(azimuth) * np.sin(zenith), np.cos(zenith)])
    lambert = np.clip((light[2] - dx * light[0] - dy * light[1]) / np.sqrt(1 + dx**2 + dy**2), 0, None)
    on = body > 0.8
    cloth = np.array([0.2, 0.21, 0.23]) * rng.uniform(0.75, 1.25) + rng.normal(0, 0.012, 3)
    ground = cloth * (1 + 0.05 * smooth_noise(rng, shape, 120) + 0.06 * smooth_noise(rng, shape, 3))[..., None]
    near = gaussian_filter(on.astype(np.float64), 4 / pitch)
    ground = ground * (1 - 0.5 * near)[..., None]  # ambient occlusion: the body takes light from what is beside it
    shade = (0.42 + 0.58 * lambert)[..., None]
    coverage = gaussian_filter(on.astype(np.float64), 0.7)[..., None]
    image = (coverage * np.clip(albedo, 0.01, 1) * shade + (1 - coverage) * ground) * rng.uniform(0.93, 1.07)
    image = gaussian_filter(image, (0.6, 0.6, 0)) * (1 + rng.normal(0, 0.012, 3))
    image += rng.normal(0, 0.008, image.shape)
    return (np.clip(image, 0, 1) * 255).round().astype(np.uint8)


def _measure(
    rng: np.random.Generator, height: np.ndarray, body: np.ndarray, x: np.ndarray, y: np.ndarray, pitch: float
) -> np.ndarray:
    """See the scene with a depth camera above a slightly tilted table: (H, W, 3), float32, metres.

    Noise grows with the slope. Steep flanks, the projector's shadow beside the part and some specks give no point.
    Where points are lost depends on the smooth body: a relief does not show by them.
    """
    from scipy.ndimage import gaussian_filter, shift

    tilt = rng.normal(0, 0.012, 2)
    slope = np.hypot(*np.gradient(gaussian_filter(body, 0.8), pitch))
    noise = rng.normal(0, 1, height.shape) * (0.1 + 0.06 * np.clip(slope, 0, 2))
    waves = 0.08 * smooth_noise(rng, height.shape, 20)
    depth = _CAMERA_HEIGHT - height + tilt[0] * x + tilt[1] * y + noise + waves
    # Perspective: a pixel looks along (x, y, camera height); x and y are where it meets the table.
    xyz = np.stack([x * depth / _CAMERA_HEIGHT, y * depth / _CAMERA_HEIGHT, depth], axis=-1) / 1000
    towards = rng.uniform(0, 2 * np.pi)
    side = np.array([np.sin(towards), np.cos(towards)]) * 3.5 / pitch
    on = (body > 2).astype(np.float64)
    shadow = (shift(on, side, order=0) > 0.5) & (on == 0)
    chance = np.clip(0.45 * (slope - 2.2), 0, 0.7) + 0.75 * shadow + 0.002
    specks = smooth_noise(rng, height.shape, 45) > 2.6
    xyz[(rng.uniform(size=height.shape) < chance) | specks] = 0
    return xyz.astype(np.float32)


@dataclass(frozen=True)
class _Task:
    """One sample to render, and the folder of its kind."""

    folder: Path
    category: str
    split: str
    index: int
    kind: str
    size: int
    seed: int


def _write_sample(task: _Task) -> None:
    """Render a sample and write its files."""
    scene = render(task.category, task.kind, size=task.size, seed=task.seed, split=task.split, index=task.index)
    name = f"{task.index:03d}"
    write_png(task.folder / "rgb" / f"{name}.png", scene.rgb)
    write_xyz(task.folder / "xyz" / f"{name}.tiff", scene.xyz)
    if task.split == "test":
        write_png(task.folder / "gt" / f"{name}.png", scene.mask.astype(np.uint8) * 255)


def kinds_of_test(n: int) -> list[str]:
    """Name the kinds of n test samples: a third is normal, the rest spread over the defects.

    Example:
        >>> kinds_of_test(6)
        ['good', 'good', 'color', 'shape', 'both', 'combination']
    """
    n_good = -(-n // 3)
    return [GOOD] * n_good + [DEFECTS[i % len(DEFECTS)] for i in range(n - n_good)]


def _check_target(target: Path, overwrite: bool) -> None:
    """Refuse what is there, unless it is a synthetic data set, nothing else, and is to be overwritten."""
    if target.exists() and not target.is_dir():
        raise InputError(f"{target}: expected a new or empty folder, found a file")
    check_not_current(target)
    if not target.exists() or is_empty(target, MANIFEST):
        return
    if not read_manifest(target / MANIFEST, "made_by", "synthetic"):
        raise InputError(f"{target}: expected a new or empty folder, found one that holds files")
    if not overwrite:
        raise InputError(
            f"{target}: expected a new or empty folder, found a synthetic data set; name another, or replace it with"
            " overwrite=True (--overwrite)"
        )
    check_replaceable(target, MANIFEST)


def write_synthetic(
    path: str | Path,
    *,
    size: int = 256,
    n_train: int = 30,
    n_validation: int = 6,
    n_test: int = 36,
    categories: Sequence[str] | None = None,
    seed: int = 0,
    workers: int = 1,
    overwrite: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Write a synthetic data set; it appears whole or not at all.

    Args:
        path: Folder to make; it must not exist, or be empty, unless it is overwritten.
        size: Side of a square image in pixels.
        n_train: Number of normal training samples per category.
        n_validation: Number of normal validation samples per category.
        n_test: Number of test samples per category: a third normal, the rest spread over the four kinds of defects.
        categories: Names of categories; default: all of :data:`CATEGORIES`.
        seed: Seed of everything random; the same seed gives the same files.
        workers: Number of processes. More than one need the caller's module guarded by ``if __name__ == "__main__"``.
        overwrite: Whether to replace a synthetic data set that is there, once the new one is whole.
        progress: Whether to show a bar.

    Returns:
        What was written, as in the folder's ``synthetic.json``.

    Raises:
        InputError: An argument is out of range, or the folder holds something.
        MissingExtraError: Pillow, SciPy or tifffile is not installed.
    """
    target, names = Path(path), list(dict.fromkeys(categories or CATEGORIES))
    _check(size, names)
    for name, count in (("n_train", n_train), ("n_test", n_test), ("workers", workers)):
        if count < 1:
            raise InputError(f"{name}: expected at least 1, found {count}")
    if n_validation < 0 or seed < 0:
        raise InputError(f"n_validation and seed: expected at least 0, found {n_validation} and {seed}")
    _check_target(target, overwrite)
    for package, module in (("pillow", "PIL.Image"), ("scikit-learn", "scipy.ndimage"), ("tifffile", "tifffile")):
        import_extra(package, module, "a synthetic data set")
    kinds = {"train": [GOOD] * n_train, "validation": [GOOD] * n_validation, "test": kinds_of_test(n_test)}
    settings = {"size": size, "seed": seed, "n_train": n_train, "n_validation": n_validation, "n_test": n_test}
    manifest = {"version": _VERSION, "made_by": "mmad-bank synth", **settings, "categories": names}
    with replacing_folder(target) as partial:
        tasks = [
            _Task(partial / name / split / kind, name, split, i, kind, size, seed)
            for name in names
            for split, listed in kinds.items()
            for i, kind in enumerate(listed)
        ]
        for folder in {task.folder for task in tasks}:
            for part in ("rgb", "xyz", *(("gt",) if folder.parent.name == "test" else ())):
                (folder / part).mkdir(parents=True, exist_ok=True)
        with progress_bar("rendering samples", len(tasks)) if progress else nullcontext(lambda done: None) as report:
            run_parallel(_write_sample, tasks, workers, lambda done, result: report(done))
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return {**manifest, "samples": len(tasks)}
