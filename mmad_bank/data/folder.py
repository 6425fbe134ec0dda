"""One's own parts, in the layout of MVTec 3D-AD: ``CATEGORY/{train,validation,test}/{good|DEFECT}/{rgb,xyz,gt}/NAME``.

Colour images may be PNG, JPEG, BMP or TIFF, point clouds are TIFF. A defect without a mask is scored, not localised.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from mmad_bank.data._images import read_mask, read_rgb, read_xyz
from mmad_bank.data._names import GOOD, SPLITS
from mmad_bank.data.sample import Record, Sample, SampleDataset, check_split, make_sample
from mmad_bank.errors import InputError

_IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
_CLOUDS = (".tiff", ".tif")
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
            where = root / (category or "*") / split
            raise InputError(f"{where}: found no samples; expected {{good|DEFECT}}/{{rgb,xyz}}/NAME in it")
        super().__init__(root, records)

    @classmethod
    def find_categories(cls, root: Path) -> list[str]:
        """Name the categories in a folder, sorted.

        Raises:
            InputError: There are none.
        """
        names = sorted(folder.name for folder in subfolders(root) if is_category(folder))
        if not names:
            raise InputError(f"{root}: expected {LAYOUT} in it, found {describe(root)}")
        return names

    def read(self, record: Record) -> Sample:
        """Read the sample that a record stands for."""
        rgb, xyz = read_rgb(record.rgb), read_xyz(record.xyz)
        return make_sample(record, rgb, xyz, None if record.mask is None else read_mask(record.mask))


def subfolders(path: Path) -> list[Path]:
    """Return a folder's visible subfolders, sorted.

    Raises:
        InputError: It is no folder.
    """
    if not path.is_dir():
        found = "a file" if path.exists() else "nothing"
        raise InputError(f"{path}: expected a folder with a data set, found {found}")
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def describe(path: Path) -> str:
    """Name what a folder holds, for an error's line."""
    names = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in path.iterdir())
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "") if names else "nothing"


def is_category(folder: Path) -> bool:
    """Say whether a folder has a split with at least one folder of point clouds."""
    return any(
        (kind / "xyz").is_dir() for split in SPLITS if (folder / split).is_dir() for kind in subfolders(folder / split)
    )


def _files(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Map the names of a folder's files, without suffix, to their paths."""
    if not folder.is_dir():
        return {}
    files = (path for path in folder.iterdir() if path.suffix.lower() in suffixes and not path.name.startswith("."))
    return {path.stem: path for path in files}


def _records(folder: Path, category: str, split: str) -> list[Record]:
    """List a category's samples.

    A sample is listed if it has either modality; reading it says which one is missing, so that one incomplete sample
    does not stop the others.
    """
    records = []
    for kind in subfolders(folder / split) if (folder / split).is_dir() else []:
        rgb, xyz = _files(kind / "rgb", _IMAGES), _files(kind / "xyz", _CLOUDS)
        masks = _files(kind / "gt", _IMAGES)
        for name in sorted(rgb.keys() | xyz.keys()):
            image, cloud = rgb.get(name, kind / "rgb" / f"{name}.png"), xyz.get(name, kind / "xyz" / f"{name}.tiff")
            mask = masks.get(name)
            records.append(Record(category, split, kind.name, name, image, cloud, mask))
    order = {GOOD: ""}
    return sorted(records, key=lambda record: (order.get(record.defect, record.defect), record.name))
