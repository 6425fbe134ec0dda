"""One's own parts, in the layout of MVTec 3D-AD: ``CATEGORY/{train,validation,test}/{good|DEFECT}/{rgb,xyz,gt}/NAME``.

Colour images and masks may be PNG, JPEG, BMP or TIFF, point clouds are TIFF. A defect without a mask is scored, not
localised. docs/how-to/own-pictures.md lists the names that are taken for a split and for good samples.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from mmad_bank.data._images import read_mask, read_rgb, read_xyz
from mmad_bank.data.dataset import SampleDataset, check_split, missing_split
from mmad_bank.data.names import (
    CLOUDS,
    GOOD,
    IMAGES,
    SPLITS,
    defect_named,
    describe,
    files_by_stem,
    in_order,
    split_folder,
    split_named,
    subfolder,
    subfolders,
)
from mmad_bank.data.sample import Record, Sample, make_sample
from mmad_bank.errors import InputError

LAYOUT = "CATEGORY/{train,validation,test}/{good|DEFECT}/{rgb,xyz,gt}"


class FolderDataset(SampleDataset):
    """Samples in the layout of MVTec 3D-AD, with any names of categories and defects.

    Args:
        path: Folder of the categories.
        category: One of them; default: all.
        split: ``"train"``, ``"validation"`` or ``"test"``.

    Raises:
        InputError: The folder, the category or the split is not there, or holds no samples.

    Example:
        >>> dataset = FolderDataset("parts", "cookie", "train")  # doctest: +SKIP
        >>> dataset[0].rgb.shape  # doctest: +SKIP
        torch.Size([3, 256, 256])
    """

    layout: ClassVar[str] = "folder"

    def __init__(self, path: str | Path, category: str | None = None, split: str = "train") -> None:
        root, split = Path(path), check_split(split)
        names = self.choose_categories(root, category)
        records = [record for name in names for record in _records(root / name, name, split)]
        if not records:
            raise missing_split(root, names, split, "{good|DEFECT}/{rgb,xyz}/NAME")
        super().__init__(root, records)

    @classmethod
    def find_categories(cls, root: Path) -> list[str]:
        """Name the categories in a folder, in order.

        Raises:
            InputError: There are none.
        """
        names = [folder.name for folder in subfolders(root) if is_category(folder)]
        if not names:
            raise no_data_set(root, LAYOUT)
        return names

    def read(self, record: Record) -> Sample:
        """Read the sample that a record stands for."""
        rgb, xyz = read_rgb(record.rgb), read_xyz(record.xyz)
        return make_sample(record, rgb, xyz, None if record.mask is None else read_mask(record.mask))


def is_category(folder: Path) -> bool:
    """Say whether a folder has a split with at least one folder of point clouds."""
    splits = [entry for entry in subfolders(folder) if split_named(entry.name) in SPLITS]
    return any(subfolder(kind, "xyz").is_dir() for split in splits for kind in subfolders(split))


def no_data_set(root: Path, layout: str) -> InputError:
    """Return the error that says that a folder holds no category, and what pictures without clouds lack."""
    for category in (root, *subfolders(root)):
        for kind in (kind for split in subfolders(category) if split_named(split.name) for kind in subfolders(split)):
            if subfolder(kind, "rgb").is_dir():
                found = "rgb/ but no xyz/"
            elif pictures := files_by_stem(kind, IMAGES):
                found = f"{next(iter(pictures.values())).name}, no rgb/ and xyz/"
            else:
                continue
            return InputError(
                f"{kind}: expected rgb/NAME.png and xyz/NAME.tiff in it, found {found}"
                " (pictures without depth need flat clouds, see docs/how-to/own-pictures.md)"
            )
    return InputError(f"{root}: expected {layout} in it, found {describe(root)}")


def _records(folder: Path, category: str, split: str) -> list[Record]:
    """List a category's samples.

    A sample is listed if it has either modality; reading it says which one is missing, so that one incomplete sample
    does not stop the others.
    """
    records: dict[str, Record] = {}
    place = split_folder(folder, split)
    for kind in [] if place is None else subfolders(place):
        images, clouds, truths = (subfolder(kind, name) for name in ("rgb", "xyz", "gt"))
        rgb, xyz, masks = files_by_stem(images, IMAGES), files_by_stem(clouds, CLOUDS), files_by_stem(truths, IMAGES)
        for name in rgb.keys() | xyz.keys():
            image, cloud = rgb.get(name, images / f"{name}.png"), xyz.get(name, clouds / f"{name}.tiff")
            record = Record(category, split, defect_named(kind.name), name, image, cloud, masks.get(name))
            other = records.setdefault(record.id, record)
            if other is not record:
                raise InputError(f"{record.id}: expected one sample of this name, found {other.rgb} and {record.rgb}")
    return sorted(records.values(), key=lambda one: (one.defect != GOOD, in_order(one.defect), in_order(one.name)))
