"""What a data set hands out: a colour image, its organised point cloud, and what is known of its defects."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from mmad_bank._internal.files import changed
from mmad_bank._internal.units import UNITS, check_units
from mmad_bank.data._images import read_mask, read_rgb, read_xyz
from mmad_bank.data._values import mask_tensor, rgb_tensor, xyz_tensor
from mmad_bank.data.frame import Frame
from mmad_bank.data.names import ANOMALOUS, GOOD, in_order
from mmad_bank.data.prepared import MANIFEST, frame_of, is_prepared
from mmad_bank.data.projection import Points
from mmad_bank.data.recipes import Preprocessing
from mmad_bank.data.relief import relief
from mmad_bank.errors import InputError

MODALITIES = frozenset({"rgb", "xyz"})
"""What sensors give: pictures and point clouds."""


@dataclass(frozen=True, repr=False)
class Sample:
    """One image with its point cloud, or one of the two.

    Attributes:
        rgb: (3, H, W), float32, from 0 to 1; of a point cloud alone a gray picture of its relief.
        xyz: (3, H, W), float32, in ``units``; zeros where nothing was measured; of a picture alone ones.
        mask: (H, W), bool, True on defects; all False for a normal sample, None where it is not known.
        label: 0 for normal, 1 for anomalous.
        defect: ``"good"`` or the kind of defect.
        category: Category of the part.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        id: ``category/split/defect/name``, unique within a data set.
        rgb_path: The colour image's file.
        xyz_path: The point cloud's (or depth image's) file.
        mask_path: The mask's file, if there is one.
        preparation: The settings that it was preprocessed with (:func:`mmad_bank.data.preprocess`); None for one as
            a sensor made it.
        units: Unit of ``xyz``, see :data:`mmad_bank.data.UNITS`; readers that are told a unit make metres of it.
            None where nobody said: the unit of the data that a model was fitted on then, or else metres.
        frame: Place of a preprocessed sample's pixels in the picture that it was made of; None where that is not known.
        points: The scattered points that ``xyz`` is a projection of; None where the sensor has pixels.
        modalities: What a sensor has given, ``"rgb"``, ``"xyz"``, or both. The other one's tensor is a stand-in, which
            is looked at by people and by no method.
    """

    rgb: torch.Tensor
    xyz: torch.Tensor
    mask: torch.Tensor | None
    label: int = 0
    defect: str = GOOD
    category: str = ""
    split: str = "test"
    id: str = ""
    rgb_path: Path | None = None
    xyz_path: Path | None = None
    mask_path: Path | None = None
    preparation: Preprocessing | None = None
    frame: Frame | None = None
    units: str | None = None
    points: Points | None = None
    modalities: frozenset[str] = MODALITIES

    def __repr__(self) -> str:
        names = [name for name in ("rgb", "xyz", "mask") if name == "mask" or name in self.modalities]
        shapes = {name: tuple(getattr(getattr(self, name), "shape", ())) for name in names}
        known = ", ".join(f"{name} {'×'.join(map(str, shape))}" for name, shape in shapes.items() if shape)
        return f"<Sample {self.id or 'without id'}: {known}, {self.defect}, {'prepared' if self.prepared else 'raw'}>"

    @property
    def prepared(self) -> bool:
        """Whether it has been preprocessed."""
        return self.preparation is not None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return int(self.rgb.shape[-2]), int(self.rgb.shape[-1])

    @property
    def measured(self) -> torch.Tensor:
        """(H, W), bool: where the sensor measured a point, that is where all three components are non-zero."""
        return (self.xyz != 0).all(dim=0)


def check_sample(sample: Sample) -> Sample:
    """Check a sample that may come from a program, and give it memory of its own.

    Files are read by readers that make no others; the arrays of a caller may hold anything. All doors that take a
    sample go through here.

    Args:
        sample: Its ``rgb`` may be (3, H, W) floats of any width from 0 to 1, uint8 from 0 to 255 or uint16 from 0 to
            65535; its ``xyz`` (3, H, W) floats of any width, zeros, NaN or infinity where nothing was measured; its
            ``mask`` None or (H, W), not zero on defects. Tensors on any device, with gradients or without, and NumPy
            arrays, of any strides.

    Returns:
        The sample as :class:`Sample` describes it, on the CPU, in metres if its ``units`` are known. Nothing in it
        shares memory with the caller's.

    Raises:
        InputError: A shape, a type or a range is another, sizes differ, or the cloud has no points; the line names the
            sample (by file or id) and the field.

    Example:
        >>> from mmad_bank.data import Sample
        >>> made = Sample(rgb=np.full((3, 4, 4), 255, np.uint8), xyz=np.ones((3, 4, 4)), mask=None)
        >>> check_sample(made).rgb.max()
        tensor(1.)
    """
    if not isinstance(sample, Sample):
        raise InputError(f"sample: expected a Sample, found {type(sample).__name__}")

    def name(field: str) -> str:
        where = getattr(sample, f"{field}_path") or sample.id
        return f"{where}: {field}" if where else field

    rgb, xyz = rgb_tensor(sample.rgb, name("rgb")), xyz_tensor(sample.xyz, name("xyz"))
    mask = None if sample.mask is None else mask_tensor(sample.mask, name("mask"))
    height, width = rgb.shape[1:]
    for field, found in (("xyz", xyz), ("mask", mask)):
        if found is not None and found.shape[-2:] != rgb.shape[-2:]:
            words = "×".join(map(str, found.shape[-2:]))
            raise InputError(f"{name(field)}: expected {height}×{width} pixels as rgb, found {words}")
    return in_metres(replace(sample, rgb=rgb, xyz=xyz, mask=mask), sample.units)


def in_metres(sample: Sample, units: str | None) -> Sample:
    """Return a sample whose cloud is in a unit with the cloud in metres; as it is if the unit is not known.

    Raises:
        InputError: There is no such unit.
    """
    if check_units(units) is None:
        return sample
    if units == "m":
        return replace(sample, units="m")
    meter, points = UNITS[str(units)], sample.points
    return replace(
        sample, xyz=sample.xyz * meter, units="m",
        points=None if points is None else replace(points, xyz=points.xyz * meter),
    )  # fmt: skip


@dataclass(frozen=True)
class Record:
    """Where one sample lies and what its place says of it; nothing has been read."""

    category: str
    split: str
    defect: str
    name: str
    rgb: Path | None
    xyz: Path | None
    mask: Path | None

    @property
    def id(self) -> str:
        """``category/split/defect/name``."""
        return f"{self.category}/{self.split}/{self.defect}/{self.name}"

    @property
    def label(self) -> int:
        """0 normal, 1 anomalous."""
        return int(self.defect != GOOD)

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that the sample is read from; a folder of masks is not one of them, but what is in it."""
        masks = sorted(self.mask.iterdir()) if self.mask is not None and self.mask.is_dir() else [self.mask]
        return tuple(path for path in (self.rgb, self.xyz, *masks) if path is not None)

    @property
    def modalities(self) -> frozenset[str]:
        """What a sensor has given, ``"rgb"``, ``"xyz"``, or both."""
        return frozenset(name for name in MODALITIES if getattr(self, name) is not None)

    @property
    def main_file(self) -> Path:
        """The point cloud's file, or the picture's where there is no cloud: the one that says how it was prepared."""
        file = self.xyz or self.rgb
        assert file is not None
        return file

    @property
    def changed(self) -> int:
        """When the last of the files that are there was changed or put there, in ns since 1970; 0 if none is there."""
        return max((changed(path) for path in self.files if path.is_file()), default=0)


def by_defect(record: Record) -> tuple[object, ...]:
    """Return a key that sorts a split's records: the good ones first, then by kind of defect and name."""
    return record.defect != GOOD, in_order(record.defect), in_order(record.name)


def each_once(records: Iterable[Record]) -> list[Record]:
    """Return a category's records, sorted, of which no two may have one id.

    Raises:
        InputError: Two have.
    """
    known: dict[str, Record] = {}
    for record in records:
        other = known.setdefault(record.id, record)
        if other is not record:
            found = f"{other.rgb or other.xyz} and {record.rgb or record.xyz}"
            raise InputError(f"{record.id}: expected one sample of this name, found {found}")
    return sorted(known.values(), key=by_defect)


def make_sample(record: Record, rgb: np.ndarray | None, xyz: np.ndarray | None, mask: np.ndarray | None) -> Sample:
    """Put together what was read, checking that it fits together.

    Args:
        record: Record of the sample.
        rgb: (H, W, 3), uint8; None for a point cloud alone.
        xyz: (H, W, 3), float32, metres; None for a picture alone.
        mask: (H, W), bool, or None where there is none: all False for a normal sample then.

    Raises:
        InputError: Sizes differ, or the cloud has no points.
    """
    given = rgb if rgb is not None else xyz
    assert given is not None
    size = given.shape[:2]
    for name, path, found in (("point cloud", record.xyz, xyz), ("mask", record.mask, mask)):
        if found is not None and found.shape[:2] != size:
            words = f"{found.shape[0]}×{found.shape[1]}"
            as_ = record.xyz if rgb is None else record.rgb
            raise InputError(f"{path}: expected a {name} of {size[0]}×{size[1]} as {as_}, found {words}")
    if xyz is not None and not (xyz != 0).all(axis=-1).any():
        raise InputError(f"{record.xyz}: expected measured points, found none in {size[0]}×{size[1]} pixels")
    modalities = frozenset(name for name, found in (("rgb", rgb), ("xyz", xyz)) if found is not None)
    rgb = relief(xyz) if rgb is None and xyz is not None else rgb
    xyz = np.ones((*size, 3), dtype=np.float32) if xyz is None else xyz
    assert rgb is not None
    if mask is None and record.label == 0:
        mask = np.zeros(size, dtype=bool)
    return Sample(
        rgb=torch.from_numpy(rgb.transpose(2, 0, 1).astype(np.float32) / 255),
        xyz=torch.from_numpy(np.ascontiguousarray(xyz.transpose(2, 0, 1))),
        mask=None if mask is None else torch.from_numpy(np.array(mask)),
        label=record.label,
        defect=record.defect,
        category=record.category,
        split=record.split,
        id=record.id,
        rgb_path=record.rgb,
        xyz_path=record.xyz,
        mask_path=record.mask,
        modalities=modalities,
    )


def open_sample(
    rgb: str | Path, xyz: str | Path, mask: str | Path | None = None, *, units: str | None = None
) -> Sample:
    """Read one sample from its files.

    Args:
        rgb: Colour image.
        xyz: TIFF of H×W×3 floats.
        mask: Image that is not zero on defects, if the sample is known to be anomalous.
        units: Unit of the cloud's file, see :data:`mmad_bank.data.UNITS`; default: the unit of the data that the model
            was fitted on, or else metres.

    Raises:
        InputError: A file is missing or damaged, sizes differ, or the cloud has no points.
    """
    rgb, xyz = Path(rgb), Path(xyz)
    truth = None if mask is None else read_mask(Path(mask))
    defect = GOOD if truth is None or not truth.any() else ANOMALOUS
    record = Record("", "test", defect, rgb.stem, rgb, xyz, None if mask is None else Path(mask))
    sample = make_sample(record, read_rgb(rgb), read_xyz(xyz), truth)
    sample = replace(sample, id=rgb.stem)
    preparation = _preparation_around(rgb) or _preparation_around(xyz)  # one of the two may have been copied elsewhere
    if preparation is None:
        check_raw(xyz, xyz)
        return in_metres(sample, units)
    if units is not None:
        raise InputError(f"units: {rgb} has been prepared, its clouds are in metres; found {units!r}")
    return as_prepared(sample, preparation)


def _preparation_around(file: Path) -> Preprocessing | None:
    """Return how the data set of ``ROOT/CATEGORY/SPLIT/DEFECT/KIND/NAME`` was prepared; None if it was not."""
    from mmad_bank.data.prepared import preparation_of

    folders = file.absolute().parents
    return preparation_of(folders[3]) if len(folders) > 3 else None


def check_raw(file: Path, place: Path) -> None:
    """Refuse a prepared sample that lies where nothing says how it was prepared: it would be prepared a second time."""
    if is_prepared(file):
        raise InputError(
            f"{place}: has been prepared, but {MANIFEST} is missing, which says how; expected it beside the categories,"
            " copied from the prepared data set"
        )


def as_prepared(sample: Sample, preparation: Preprocessing) -> Sample:
    """Add to a sample of a prepared data set what is known of its preparation."""
    file = sample.xyz_path or sample.rgb_path
    frame = None if file is None else frame_of(file, sample.size)
    return replace(sample, preparation=preparation, frame=frame)
