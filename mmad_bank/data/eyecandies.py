"""Eyecandies: ten categories of rendered sweets on a conveyor belt, with depth from the renderer.

L. Bonfiglioli et al., *The Eyecandies Dataset for Unsupervised Multimodal Anomaly Detection and Localization*,
ACCV 2022. Layout: ``CATEGORY/{train,val,test_public}/data/NNN_{image_0..5,depth,normals,mask}.png`` and so on.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np

from mmad_bank.data._images import read_depth, read_mask, read_rgb
from mmad_bank.data.dataset import SampleDataset, check_split
from mmad_bank.data.names import ANOMALOUS, GOOD, in_order, split_folder
from mmad_bank.data.sample import Record, Sample, make_sample
from mmad_bank.errors import InputError

CATEGORIES = (
    "CandyCane",
    "ChocolateCookie",
    "ChocolatePraline",
    "Confetto",
    "GummyBear",
    "HazelnutTruffle",
    "LicoriceSandwich",
    "Lollipop",
    "Marshmallow",
    "PeppermintCandy",
)
FOCAL_LENGTH = 711.11
"""Pixels, for the data set's images of 512×512."""
IMAGE_SIDE = 512
_N_LIGHTS = 6
_NOT_QUITE_ZERO = 1e-12
_DEFECTS = ("bumps", "colors", "dents", "normals")


class EyecandiesDataset(SampleDataset):
    """Eyecandies as it is distributed; of the test set the part that has masks.

    The point clouds are unprojected from depth into the frame that the pose names; the preprocessing recipe
    ``"eyecandies"`` brings them to the frame in which the published methods work.

    Args:
        path: Folder of the categories.
        category: One of them; default: all that are there.
        split: ``"train"``, ``"validation"`` (``val``) or ``"test"`` (``test_public``).
        light: Number of one of the six images of a sample, 0 to 5.

    Raises:
        InputError: The folder, the category or the split is not there, or holds no samples.

    Example:
        >>> dataset = EyecandiesDataset("eyecandies", "Lollipop", "test")  # doctest: +SKIP
        >>> dataset[0].xyz.shape  # doctest: +SKIP
        torch.Size([3, 512, 512])
    """

    layout: ClassVar[str] = "eyecandies"
    folders: ClassVar[str] = "CATEGORY/{train,val,test_public}/data"

    def __init__(self, path: str | Path, category: str | None = None, split: str = "train", *, light: int = 4) -> None:
        split = check_split(split)
        if not 0 <= light < _N_LIGHTS:
            raise InputError(f"light: expected 0 to {_N_LIGHTS - 1}, found {light}")
        wanted = f"data/NNN_image_{light}.png and NNN_depth.png"
        self._open(path, category, split, wanted, partial(_records, light=light))

    @property
    def recipe(self) -> str:
        """Recipe of preprocessing that its raw samples need whatever the method."""
        return self.layout

    @staticmethod
    def holds_samples(split: Path) -> bool:
        """Say whether a folder holds samples as a split does."""
        return (split / "data").is_dir()

    def read(self, record: Record) -> Sample:
        """Read the sample that a record stands for."""
        assert record.rgb is not None
        assert record.xyz is not None
        rgb = read_rgb(record.rgb)
        prefix = str(record.xyz).removesuffix("depth.png")
        low, high = (_read_number(Path(f"{prefix}info_depth.yaml"), key) for key in ("min", "max"))
        depth = read_depth(record.xyz) / 65535 * (high - low) + low
        xyz = unproject(depth, _read_pose(Path(f"{prefix}pose.txt")))
        return make_sample(record, rgb, xyz, None if record.mask is None else read_mask(record.mask))


def unproject(depth: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Turn a depth image into points: pinhole camera, principal point in the middle of the image.

    A pixel (u, v) of depth d is the point d·((u − W/2)/f, (v − H/2)/f, 1) in the camera's frame, which the inverse of
    the pose takes to the frame that the pose is given in. f grows with the image, so that a smaller copy of an image
    sees the same scene.

    Args:
        depth: (H, W), metres along the optical axis.
        pose: (4, 4), from that frame to the camera's.

    Returns:
        (H, W, 3), float32, metres.
    """
    height, width = depth.shape
    focal = FOCAL_LENGTH * width / IMAGE_SIDE
    v, u = np.mgrid[:height, :width]
    camera = np.stack([(u - width / 2) / focal * depth, (v - height / 2) / focal * depth, depth], axis=-1)
    inverse = np.linalg.inv(pose)
    xyz = (camera @ inverse[:3, :3].T + inverse[:3, 3]).astype(np.float32)
    # The renderer measures every pixel, but a zero coordinate (the optical axis) would count as unmeasured.
    xyz[xyz == 0] = _NOT_QUITE_ZERO
    return xyz


def _records(folder: Path, category: str, split: str, light: int) -> list[Record]:
    """List a category's samples; a number has as many digits as it has."""
    place = split_folder(folder, split)
    data = None if place is None else place / "data"
    if data is None or not data.is_dir():
        return []
    pattern = re.compile(rf"([0-9]+)_(?:image_{light}|depth)\.png")
    names = {match[1] for match in map(pattern.fullmatch, (path.name for path in data.iterdir())) if match}
    records = []
    for name in sorted(names, key=in_order):
        mask = data / f"{name}_mask.png"
        records.append(
            Record(
                category, split, _defect(data / f"{name}_metadata.yaml"), name, data / f"{name}_image_{light}.png",
                data / f"{name}_depth.png", mask if mask.is_file() else None,
            )
        )  # fmt: skip
    return records


def _defect(path: Path) -> str:
    """Read a sample's kind of defect: ``good``, or the kinds that its metadata name."""
    if not path.is_file():
        return GOOD
    values = _read_values(path)
    if not _truth(values.get("anomalous", "0")):
        return GOOD
    return "+".join(kind for kind in _DEFECTS if _truth(values.get(kind, "0"))) or ANOMALOUS


def _truth(text: str) -> bool:
    return text.lower() in ("1", "1.0", "true", "yes")


def _read_values(path: Path) -> dict[str, str]:
    """Read the scalars of a YAML file by their own names, wherever they are nested.

    The data set's files hold a handful of numbers, in block style or in braces; a YAML library would be a dependency
    for that.
    """
    if not path.is_file():
        raise InputError(f"{path}: file not found; expected it beside the depth image")
    text = path.read_text(encoding="utf-8", errors="replace")
    return dict(re.findall(r"(?:^|[{,\s])[\"']?(\w+)[\"']?:[ \t]*([^\s,{}]+)", text))


def _read_number(path: Path, key: str) -> float:
    """Read one finite number of a YAML file."""
    text = _read_values(path).get(key)
    try:
        value = float(text or "")
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise InputError(f"{path}: expected a number named {key!r}, found {text or 'none'}")
    return value


def _read_pose(path: Path) -> np.ndarray:
    """Read a rigid motion, (4, 4)."""
    if not path.is_file():
        raise InputError(f"{path}: file not found; expected it beside the depth image")
    try:
        pose = np.array(path.read_text(encoding="utf-8").replace(",", " ").split(), dtype=np.float64)
    except (ValueError, UnicodeDecodeError):
        pose = np.empty(0)
    if pose.size != 16 or not np.isfinite(pose).all() or abs(np.linalg.det(pose.reshape(4, 4))) < 1e-12:
        raise InputError(f"{path}: expected 16 numbers of an invertible 4×4 matrix, found {pose.size} numbers")
    return pose.reshape(4, 4)
