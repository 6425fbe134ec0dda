"""One's own parts, in the layout of MVTec 3D-AD: ``CATEGORY/{train,validation,test}/{good|DEFECT}/{rgb,xyz,gt}/NAME``.

Colour images and masks may be of any format that is read, point clouds are TIFF. A category may have pictures alone, or
point clouds alone. A defect without a mask is scored, not localised.

docs/how-to/own-pictures.md lists the names that are taken for a split and for good samples.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from mmad_bank.data._images import read_mask, read_rgb, read_xyz
from mmad_bank.data.dataset import SampleDataset
from mmad_bank.data.names import (
    CLOUDS,
    IMAGES,
    SPLITS,
    defect_named,
    files_by_stem,
    split_folder,
    split_named,
    subfolder,
    subfolders,
)
from mmad_bank.data.sample import Record, Sample, each_once, make_sample


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
    folders: ClassVar[str] = "CATEGORY/{train,validation,test}/{good|DEFECT}/{rgb,xyz,gt}"

    def __init__(self, path: str | Path, category: str | None = None, split: str = "train") -> None:
        self._open(path, category, split, "{good|DEFECT}/{rgb,xyz}/NAME", _records)

    @staticmethod
    def holds_samples(split: Path) -> bool:
        """Say whether a folder holds samples as a split does."""
        return any(subfolder(kind, name).is_dir() for kind in subfolders(split) for name in ("xyz", "rgb"))

    def read(self, record: Record) -> Sample:
        """Read the sample that a record stands for."""
        rgb = None if record.rgb is None else read_rgb(record.rgb)
        xyz = None if record.xyz is None else read_xyz(record.xyz)
        return make_sample(record, rgb, xyz, None if record.mask is None else read_mask(record.mask))


def _modalities(folder: Path) -> set[str]:
    """Name the modalities of a category: those of which any split has a folder."""
    kinds = [kind for split in subfolders(folder) if split_named(split.name) in SPLITS for kind in subfolders(split)]
    return {name for name in ("rgb", "xyz") if any(subfolder(kind, name).is_dir() for kind in kinds)}


def _records(folder: Path, category: str, split: str) -> list[Record]:
    """List a category's samples.

    A sample is listed if it has either modality; reading it says which one is missing, so that one incomplete sample
    does not stop the others. What the whole category lacks is missing nowhere.
    """
    records: list[Record] = []
    place, there = split_folder(folder, split), _modalities(folder)
    for kind in [] if place is None else subfolders(place):
        images, clouds, truths = (subfolder(kind, name) for name in ("rgb", "xyz", "gt"))
        rgb, xyz, masks = files_by_stem(images, IMAGES), files_by_stem(clouds, CLOUDS), files_by_stem(truths, IMAGES)
        for name in rgb.keys() | xyz.keys():
            image = rgb.get(name, images / f"{name}.png") if "rgb" in there else None
            cloud = xyz.get(name, clouds / f"{name}.tiff") if "xyz" in there else None
            records.append(Record(category, split, defect_named(kind.name), name, image, cloud, masks.get(name)))
    return each_once(records)
