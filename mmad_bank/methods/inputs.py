"""Inputs that :meth:`Method.predict` takes in place of a sample: files, arrays, pictures alone."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from mmad_bank.data import open_points, read_rgb, read_xyz
from mmad_bank.data.names import CLOUDS, POINTS
from mmad_bank.data.sample import Sample, open_sample
from mmad_bank.errors import InputError

Input = Sample | str | os.PathLike[str] | np.ndarray | torch.Tensor | tuple[Any, Any]
"""One sample: as such, a picture alone (file, array, tensor), or a pair of picture and point cloud."""

_EXPECTED = "a Sample, a picture (file, array or tensor), a pair (rgb, xyz), or a list of those"


def is_dataset(value: Any) -> bool:
    """Say whether a value is a PyTorch data set or loader."""
    return isinstance(value, (Dataset, DataLoader))


def to_sample(value: Any, *, needs_cloud: bool) -> Sample:
    """Return what was given as a sample; its values are checked when it is prepared.

    Args:
        value: Value that was given, see :data:`Input`.
        needs_cloud: Whether a picture alone is not enough.

    Raises:
        InputError: It is something else, a file cannot be read, or the point cloud is missing.

    Example:
        >>> to_sample((np.zeros((4, 6), np.uint8), np.ones((4, 6, 3), np.float32)), needs_cloud=True).size
        (4, 6)
    """
    if isinstance(value, Sample):
        return value
    if isinstance(value, tuple):
        if len(value) != 2:
            raise InputError(f"sample: expected a pair (rgb, xyz), found a tuple of {len(value)}")
        return _of_pair(*value)
    if isinstance(value, (str, os.PathLike)):
        return _of_file(Path(value), needs_cloud)
    if needs_cloud and _is_picture(value):
        raise InputError("sample: expected (rgb, xyz), as the model needs the point cloud, found a picture alone")
    return _without_cloud(_planes(value, "rgb"))


def _of_pair(rgb: Any, xyz: Any) -> Sample:
    """Return the sample of a picture and its cloud, each a file or an array."""
    files = [isinstance(one, (str, os.PathLike)) for one in (rgb, xyz)]
    if all(files):
        return open_sample(rgb, xyz)
    picture = read_rgb(Path(rgb)).transpose(2, 0, 1) if files[0] else _planes(rgb, "rgb")
    cloud = read_xyz(Path(xyz)).transpose(2, 0, 1) if files[1] else _planes(xyz, "xyz")
    name = Path(rgb if files[0] else xyz).stem if any(files) else ""
    return Sample(picture, cloud, None, id=name)  # type: ignore[arg-type]


def cloud_beside(path: Path) -> Path | None:
    """Return the point cloud that lies beside a picture as in a data set; None if there is none."""
    folder = path.absolute().parent.parent / "xyz"
    clouds = [folder / f"{path.stem}{suffix}" for suffix in CLOUDS if path.absolute().parent.name == "rgb"]
    return next((cloud for cloud in clouds if cloud.is_file()), None)


def _of_file(path: Path, needs_cloud: bool) -> Sample:
    """Read a picture with the point cloud that lies beside it as in a data set, or alone; or scattered points."""
    if path.suffix.lower() in POINTS:
        return open_points(path)
    if path.is_dir():
        raise InputError(f"{path}: expected a picture's file, found a folder; open_dataset reads data sets")
    cloud = cloud_beside(path)
    if cloud is not None:
        return open_sample(path, cloud)
    picture = read_rgb(path)
    if needs_cloud:
        folder = path.absolute().parent.parent / "xyz"
        raise InputError(f"{path}: expected its point cloud too, (rgb, xyz), or in {folder}; found a picture alone")
    sample = _without_cloud(picture.transpose(2, 0, 1))
    return replace(sample, id=path.stem, rgb_path=path)


def _without_cloud(picture: Any) -> Sample:
    """Return the sample of a picture whose cloud nobody looks at: every pixel counts as measured."""
    cloud = torch.ones(3, *picture.shape[1:], dtype=torch.float32)
    return Sample(picture, cloud, None, modalities=frozenset({"rgb"}))


def _is_picture(value: Any) -> bool:
    return isinstance(value, (np.ndarray, torch.Tensor)) or type(value).__module__.split(".")[0] == "PIL"


def _planes(value: Any, name: str) -> Any:
    """Return an array's or a picture's channels first: (H, W, 3) as cameras give it becomes (3, H, W)."""
    if type(value).__module__.split(".")[0] == "PIL":
        from PIL import ImageOps

        value = np.asarray(ImageOps.exif_transpose(value).convert("RGB"))
    if not isinstance(value, (np.ndarray, torch.Tensor)):
        raise InputError(f"{name}: expected {_EXPECTED}, found {type(value).__name__}")
    if name == "rgb" and value.ndim == 2:  # grey, as a picture's file may be
        return np.stack([value] * 3) if isinstance(value, np.ndarray) else torch.stack([value] * 3)
    if value.ndim == 3 and value.shape[-1] == 3 and value.shape[0] != 3:
        return value.transpose(2, 0, 1) if isinstance(value, np.ndarray) else value.permute(2, 0, 1)
    if value.ndim != 3 or value.shape[0] != 3:
        raise InputError(f"{name}: expected shape (H, W, 3) or (3, H, W), found {tuple(value.shape)}")
    return value
