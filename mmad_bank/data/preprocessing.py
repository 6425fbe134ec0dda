"""From a sensor's data to the field's input: background removed, one object, a square of 224×224.

The steps are those of M3DM (section 4.1), which BTF, LSFA and MDSS share; CFM's and Eyecandies' differ in what is done
to the colour image and in how the background is told.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import torch

from mmad_bank._internal.extras import import_extra
from mmad_bank._internal.units import describe, looks_like, spans
from mmad_bank.data._geometry import NOISE, dbscan, fit_plane
from mmad_bank.data._limits import check_square
from mmad_bank.data.frame import Frame, nearest_places
from mmad_bank.data.recipes import Preprocessing
from mmad_bank.data.sample import Sample, check_sample, in_metres
from mmad_bank.errors import InputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Eyecandies, metres in the belt's frame: what is within 2 cm of the belt, behind it or beside it.
_BELT_HEIGHT, _BELT_DEPTH, _BELT_WIDTH = 0.02, 1.8, 1.0
_BELT_SCALE = (0.1, -0.1, 0.1)
_PAD_MODES: dict[str, Literal["constant", "edge", "reflect"]] = {
    "zero": "constant", "edge": "edge", "reflect": "reflect",
}  # fmt: skip
_KEEP = "; of a flat cloud, Preprocessing.recipe('keep') keeps all (mmad-bank prepare --recipe keep)"


def preprocess(sample: Sample, settings: Preprocessing | None = None) -> Sample:
    """Remove a sample's background, keep its largest object, pad it to a square and resize it.

    The colour image is resized bicubically, cloud and mask by the nearest pixel (the one that the new pixel's centre
    falls on, so that the three stay aligned). It becomes 8-bit in between, as a file does: prepared data and data
    preprocessed on the way are the same to the bit.

    Args:
        sample: The sample, as read.
        settings: The settings; default: those of M3DM, :meth:`Preprocessing.recipe`.

    Returns:
        The sample with rgb (3, size, size) from 0 to 1 (:func:`normalize_rgb` is for the extractor), xyz and mask; its
        ``preparation`` holds the settings, its ``frame`` the way back to the picture's pixels.

    Raises:
        InputError: There is no background plane, or nothing but background, or the sample is prepared already, or is so
            narrow that its square is too large.
        MissingExtraError: scikit-learn or Pillow is not installed.
    """
    settings, sample = settings or Preprocessing(), check_sample(sample)
    if sample.preparation is not None:
        known = f"{sample.preparation.size} pixels, background {sample.preparation.background}"
        raise InputError(
            f"{sample.rgb_path or sample.id or 'sample'}: is prepared already ({known}); expected a raw sample"
        )
    if sample.units is None:
        sample = in_metres(sample, settings.units)
    check_told_by_cloud(settings, sample.modalities, str(sample.rgb_path or sample.id or "sample"))
    square = round_up(max(sample.size), settings.pad_multiple)
    check_square(str(sample.rgb_path or sample.id or "sample"), *sample.size, square)
    rgb = (sample.rgb.numpy().transpose(1, 2, 0) * 255).round().astype(np.uint8)
    xyz = sample.xyz.numpy().transpose(1, 2, 0).copy()
    mask = None if sample.mask is None else sample.mask.numpy()
    name = sample.xyz_path or sample.id or "sample"
    _check_metres(xyz, settings, str(name))
    xyz, removed = _remove_background(xyz, settings, str(name))
    if settings.zero_rgb:
        rgb[removed] = 0
    rgb, xyz = pad_square(rgb, square, settings.pad), pad_square(xyz, square, "zero")
    mask = None if mask is None else pad_square(mask, square, settings.pad)
    if settings.size is not None:
        rgb, xyz = resize_bicubic(rgb, settings.size), resize_nearest(xyz, settings.size)
        mask = None if mask is None else resize_nearest(mask, settings.size)
    if not measured(xyz).any():
        raise InputError(f"{name}: nothing is left of the object in {settings.size}×{settings.size} pixels")
    return replace(
        sample,
        preparation=settings,
        frame=Frame.centred(sample.size, square, settings.size),
        rgb=torch.from_numpy(rgb.transpose(2, 0, 1).astype(np.float32) / 255),
        xyz=torch.from_numpy(np.ascontiguousarray(xyz.transpose(2, 0, 1))),
        mask=None if mask is None else torch.from_numpy(mask.copy()),
    )


def check_told_by_cloud(settings: Preprocessing, modalities: frozenset[str], name: str) -> None:
    """Refuse pictures without a point cloud where the background is told by the cloud.

    Args:
        settings: Settings of the preprocessing.
        modalities: What sensors have given, ``"rgb"``, ``"xyz"``, or both.
        name: Name of the data, for the error's line.

    Raises:
        InputError: The recipe needs a cloud.
    """
    if "xyz" not in modalities and (settings.background != "keep" or settings.eps is not None):
        raise InputError(
            f"{name}: expected point clouds, by which the background is found (background: {settings.background}),"
            " found pictures alone; Preprocessing.recipe('keep') keeps it (mmad-bank prepare --recipe keep)"
        )


def normalize_rgb(rgb: torch.Tensor) -> torch.Tensor:
    """Subtract ImageNet's mean and divide by its standard deviation.

    Args:
        rgb: (3, H, W) or (B, 3, H, W), from 0 to 1.

    Example:
        >>> normalize_rgb(torch.full((3, 2, 2), 0.5))[:, 0, 0]
        tensor([0.0655, 0.1964, 0.4178])
    """
    mean, std = (torch.tensor(values, dtype=rgb.dtype, device=rgb.device) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (rgb - mean[:, None, None]) / std[:, None, None]


def measured(xyz: np.ndarray) -> np.ndarray:
    """Say which points of a cloud were measured: all three components are non-zero. (..., 3) → (...), bool."""
    return np.asarray((xyz != 0).all(axis=-1))


def _check_metres(xyz: np.ndarray, settings: Preprocessing, name: str) -> None:
    """Refuse a cloud too large for metres where lengths in metres come next, unless the user says that it is metres."""
    if settings.units == "m" or (settings.background != "plane" and settings.eps is None):
        return
    if looks_like(spans(xyz)) is not None:
        raise InputError(f"{name}: {describe(xyz)}" + (f", found {settings.units}" if settings.units else ""))


def _remove_background(xyz: np.ndarray, settings: Preprocessing, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Set background points to zero: the new cloud (H, W, 3), and which pixels were removed (H, W)."""
    there = measured(xyz)
    if not there.any():
        raise InputError(f"{name}: expected measured points, found none")
    if settings.background == "plane":
        keep = there & ~near_plane(xyz, settings, name)
    elif settings.background == "belt":
        keep, xyz = off_belt(xyz)
    else:
        keep = there
    if not keep.any():
        is_flat = np.ptp(xyz[there], axis=0).min() == 0
        hint = _KEEP if is_flat else ""
        raise InputError(f"{name}: expected an object, found background only; {describe(xyz)}{hint}")
    if settings.eps is not None:
        import_extra("scikit-learn", "scipy.spatial", "clustering point clouds")
        labels = dbscan(xyz[keep], eps=settings.eps, min_points=settings.min_points)
        if not (labels != NOISE).any():
            found = f"{len(labels)} scattered points"
            wanted = f"an object of {settings.min_points} points or more"
            raise InputError(f"{name}: expected {wanted}, found {found}; {describe(xyz)}")
        keep[keep] = labels == np.bincount(labels[labels != NOISE]).argmax()
    xyz[~keep] = 0
    return xyz, there & ~keep


def near_plane(xyz: np.ndarray, settings: Preprocessing, name: str = "xyz") -> np.ndarray:
    """Find the points on the plane that the image's border shows.

    Args:
        xyz: (H, W, 3), metres, zeros where nothing was measured.
        settings: Settings with the frame's width and RANSAC's numbers.
        name: Name of the cloud, for the error's line.

    Returns:
        (H, W), bool: within ``removal_distance`` of the plane. Unmeasured points may be either.

    Raises:
        InputError: The border has fewer than three measured points.
    """
    frame = np.ones(xyz.shape[:2], dtype=bool)
    frame[settings.frame : -settings.frame, settings.frame : -settings.frame] = False
    border = xyz[frame & measured(xyz)]
    if len(border) < 3:
        found = f"{len(border)} measured points in the image's {settings.frame}-pixel border"
        raise InputError(f"{name}: expected a background plane, found {found}")
    normal, offset = fit_plane(
        border, distance=settings.inlier_distance, n_sample=settings.n_sample, n_hypotheses=settings.n_hypotheses,
        seed=settings.seed,
    )  # fmt: skip
    return np.asarray(np.abs(xyz.astype(np.float64) @ normal - offset) < settings.removal_distance)


def off_belt(xyz: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find an Eyecandies object by its belt, and bring the cloud into the frame and scale of the published methods.

    A border column shows the belt from its near end (bottom) to its far one (top). The frame starts at the near end,
    z runs along the belt away from the camera, y down through it; what is less than 2 cm above the belt, farther than
    1.8 m or more than 1 m to the side is background. The result is back in the unrotated frame, its axes reordered to
    (x, z, y) and scaled by (0.1, −0.1, 0.1).

    Args:
        xyz: (H, W, 3), metres, x to the right.

    Returns:
        Which points are the object's (H, W), and the cloud (H, W, 3).
    """
    there = measured(xyz)
    column = xyz[there[:, 1], 1].astype(np.float64)
    if len(column) < 2 or not np.linalg.norm(column[0, 1:] - column[-1, 1:]) > 0:
        raise InputError("xyz: expected the belt in the image's left border, found fewer than two measured points")
    near, far = column[-1], column[0]
    dy, dz = (far - near)[1:]
    sine, cosine = dy / np.hypot(dy, dz), dz / np.hypot(dy, dz)
    start = np.array([0.0, near[1], near[2]])
    rotation = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
    x, y, z = np.moveaxis((xyz - start) @ rotation.T, -1, 0)
    keep = there & (y <= -_BELT_HEIGHT) & (z <= _BELT_DEPTH) & (np.abs(x) <= _BELT_WIDTH)
    return keep, (xyz[..., [0, 2, 1]] * np.array(_BELT_SCALE)).astype(np.float32)


def round_up(side: int, multiple: int) -> int:
    """Return the smallest multiple that is not less than ``side``.

    Example:
        >>> round_up(400, 100), round_up(401, 100)
        (400, 500)
    """
    return -(-side // multiple) * multiple


def pad_square(image: np.ndarray, side: int, mode: str) -> np.ndarray:
    """Put an image (H, W) or (H, W, C) in the middle of a square, padded as :attr:`Preprocessing.pad` says."""
    before = [(side - length) // 2 for length in image.shape[:2]]
    widths = [(b, side - length - b) for b, length in zip(before, image.shape[:2], strict=True)]
    widths += [(0, 0)] * (image.ndim - 2)
    return np.pad(image, widths, _PAD_MODES[mode])


def resize_bicubic(image: np.ndarray, size: int) -> np.ndarray:
    """Resize (H, W, 3) uint8 to (size, size, 3), low-pass filtered where it shrinks."""
    image_module = import_extra("pillow", "PIL.Image", "resizing images")
    return np.asarray(image_module.fromarray(image).resize((size, size), image_module.Resampling.BICUBIC))


def resize_nearest(image: np.ndarray, size: int) -> np.ndarray:
    """Resize (H, W) or (H, W, C): a pixel takes the value under its centre."""
    rows, columns = (nearest_places(length, size).numpy() for length in image.shape[:2])
    return image[rows[:, None], columns]
