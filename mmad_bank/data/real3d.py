"""Real3D-AD: twelve toys as scattered points of a scanner, without pictures.

J. Liu et al., *Real3D-AD: A Dataset of Point Cloud Anomaly Detection*, NeurIPS 2023. Layout:
``CATEGORY/train/NAME.pcd`` (whole parts, scanned from all sides), ``CATEGORY/test/NUMBER_{good|bulge|sink}….pcd``
(scanned from one side), ``CATEGORY/gt/NAME.txt`` (x, y, z and label of every point of a defective part). PLY files are
read as well.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from mmad_bank._internal.extras import import_extra
from mmad_bank.data._images import naming
from mmad_bank.data.dataset import SampleDataset
from mmad_bank.data.names import (
    ANOMALOUS,
    GOOD,
    POINTS,
    defect_named,
    files_by_stem,
    holds_files,
    split_folder,
    subfolder,
)
from mmad_bank.data.point_files import read_points
from mmad_bank.data.projection import project
from mmad_bank.data.sample import Record, Sample, each_once, in_metres, make_sample
from mmad_bank.errors import InputError

UNIT = "mm"
BACK = "-back"
"""Ending of the name of a training sample that shows a part's other side."""
# Words of a test file's name that are no kind of defect: what was done to a good or defective cloud.
_EDITS = ("cut", "copy", "ply", "pcd")
_GOOD_TOO = "positive"  # Anomaly-ShapeNet's word
# The labels' file repeats the points as text; so far apart, in lengths of the part, the two may be.
_ROUNDING = 1e-3
_FARTHEST = 1e30


class Real3DDataset(SampleDataset):
    """Point clouds alone in the layout of Real3D-AD, seen as organized clouds along their thinnest axis.

    A sample is what :func:`mmad_bank.data.projection.project` makes of a cloud: ``xyz`` of the pixels, a gray relief as
    a stand-in for the picture, and in ``points`` all the points with their labels and the pixels on which they fall.
    Parts to learn from are whole, so each gives two samples, NAME and NAME-back, one of either side.

    Args:
        path: Folder of the categories.
        category: One of them; default: all that are there.
        split: ``"train"``, ``"validation"`` or ``"test"``.

    Raises:
        InputError: The folder, the category or the split is not there, or holds no samples.

    Example:
        >>> dataset = Real3DDataset("Real3D-AD-PCD", "airplane", "test")  # doctest: +SKIP
        >>> dataset[0].points  # doctest: +SKIP
        <Points: 351,000, 4,100 on defects, 96% seen>
    """

    layout: ClassVar[str] = "real3d"
    folders: ClassVar[str] = "CATEGORY/{train,test}/NAME.pcd"
    units: str | None = UNIT

    def __init__(self, path: str | Path, category: str | None = None, split: str = "train") -> None:
        self._open(path, category, split, "NAME.pcd or NAME.ply", _records)

    @property
    def recipe(self) -> str:
        """Recipe of preprocessing that its raw samples need whatever the method: there is no background."""
        return "keep"

    @staticmethod
    def holds_samples(split: Path) -> bool:
        """Say whether a folder holds samples as a split does."""
        return holds_files(split, POINTS)

    def read(self, record: Record) -> Sample:
        """Read the sample that a record stands for."""
        assert record.xyz is not None
        points = _finite(record.xyz, read_points(record.xyz))
        labels = np.zeros(len(points), dtype=bool) if record.defect == GOOD else None
        if record.mask is not None:
            labels = _labels(record.mask, record.xyz, points)
        return cloud_sample(record, points, labels)


def cloud_sample(record: Record, points: np.ndarray, labels: np.ndarray | None) -> Sample:
    """Make the sample of a cloud's points (N, 3), float64, and their labels."""
    try:
        xyz, mask, known = project(points, labels, back=_is_back(record))
    except InputError as error:
        raise InputError(f"{record.xyz}: {error}") from None
    return replace(make_sample(record, None, xyz, mask), points=known)


def _is_back(record: Record) -> bool:
    """Say whether a sample shows its part's other side; a file's own name may end as such a sample's does."""
    assert record.xyz is not None
    return record.name == unicodedata.normalize("NFC", record.xyz.stem) + BACK


def open_points(path: str | Path, *, units: str | None = None) -> Sample:
    """Read one sample from a file of points alone, PCD or PLY.

    Args:
        path: The file.
        units: Unit of the file, see :data:`mmad_bank.data.UNITS`; default: the unit of the data that the model was
            fitted on, or else metres.

    Raises:
        InputError: The file is missing or damaged, or has too few points.
    """
    file = Path(path)
    record = Record("", "test", GOOD, file.stem, None, file, None)
    sample = cloud_sample(record, _finite(file, read_points(file)), None)
    return in_metres(replace(sample, id=file.stem, mask=None), units)


def _records(folder: Path, category: str, split: str) -> list[Record]:
    """List a category's samples."""
    place = split_folder(folder, split)
    truths = files_by_stem(subfolder(folder, "gt"), (".txt",))
    records = []
    for name, cloud in ({} if place is None else files_by_stem(place, POINTS)).items():
        if split == "train":
            records += [Record(category, split, GOOD, f"{name}{side}", None, cloud, None) for side in ("", BACK)]
            continue
        defect = _defect(name, category)
        if defect is not None:
            truth = truths.get(name) if defect != GOOD else None
            records.append(Record(category, split, defect, name, None, cloud, truth))
    return each_once(records)


def _defect(name: str, category: str) -> str | None:
    """Read the kind of defect off a test file's name; None for a template, which is no test.

    Example:
        >>> _defect("482_bulge_cut", "duck"), _defect("7_good", "duck"), _defect("1_template", "duck")
        ('bulge', 'good', None)
    """
    own = category.lower()
    words = [word for word in re.findall("[a-z]+", name.lower().replace(own, " ")) if word not in _EDITS]
    if any(word.startswith("temp") and word not in own for word in words):
        return None
    if any(defect_named(word) == GOOD or word == _GOOD_TOO for word in words):
        return GOOD
    words = [word for word in words if word not in own]
    return "+".join(words) or ANOMALOUS


def _finite(path: Path, points: np.ndarray) -> np.ndarray:
    """Return the points that are finite, also once float32 has been made of them."""
    kept = points[(np.abs(points) < _FARTHEST).all(axis=1)]
    if len(kept) < 3:
        raise InputError(f"{path}: expected three points or more, found {len(kept)}")
    return kept


def _labels(truth: Path, cloud: Path, points: np.ndarray) -> np.ndarray:
    """Return the labels (N,) of points, each that of the nearest one in the file of the labels.

    The file repeats the points, rounded and perhaps in another order.
    """
    with naming(truth, "labels of points"):
        table = np.loadtxt(truth, ndmin=2)
    if table.shape[1] != 4:
        raise InputError(f"{truth}: expected four numbers in a line, x y z label, found {table.shape[1]}")
    wrong = ~np.isfinite(table).all(axis=1)
    if wrong.any():
        row = int(wrong.argmax())
        found = " ".join(f"{value:g}" for value in table[row])
        raise InputError(f"{truth}: expected finite numbers, found {found!r} as the points' line {row + 1}")
    length = np.ptp(points, axis=0).max()
    if len(table) == len(points) and np.abs(table[:, :3] - points).max() <= _ROUNDING * length:
        return np.asarray(table[:, 3] > 0)
    spatial = import_extra("scikit-learn", "scipy.spatial", "finding points' labels")
    distance, nearest = spatial.cKDTree(table[:, :3]).query(points)
    apart = float(distance.max() / length)
    if apart > _ROUNDING:
        found = f"some that are {apart:.1%} of its length away"
        raise InputError(f"{truth}: expected labels of the points of {cloud}, found {found}")
    return np.asarray(table[nearest, 3] > 0)
