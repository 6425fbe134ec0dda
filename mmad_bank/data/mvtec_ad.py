"""MVTec AD's layout, for pictures without depth: ``CATEGORY/{train,test}/{good|DEFECT}/NAME.png``.

P. Bergmann et al., *MVTec AD – A Comprehensive Real-World Dataset for Unsupervised Anomaly Detection*, CVPR 2019. Many
data sets take it over, with their own names: VisA as its script prepares it, MVTec AD 2, MVTec LOCO. They differ in
where the masks lie:

- ``CATEGORY/ground_truth/DEFECT/NAME_mask.png`` (MVTec AD), or ``NAME.png`` there (VisA);
- ``CATEGORY/ground_truth/{train,test}/DEFECT/NAME.png`` (VisA with two classes);
- ``CATEGORY/test_public/ground_truth/DEFECT/NAME_mask.png`` (MVTec AD 2);
- ``CATEGORY/ground_truth/DEFECT/NAME/NNN.png`` (MVTec LOCO), several masks of one picture, which are joined.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np

from mmad_bank.data._images import read_mask, read_rgb
from mmad_bank.data.dataset import SampleDataset
from mmad_bank.data.names import (
    GOOD,
    IMAGES,
    defect_named,
    files_by_stem,
    holds_files,
    split_folder,
    subfolder,
    subfolders,
)
from mmad_bank.data.sample import Record, Sample, each_once, make_sample
from mmad_bank.errors import InputError

_TRUTHS = "ground_truth"


class MVTecADDataset(SampleDataset):
    """Pictures without depth in the layout of MVTec AD, with any names of categories and defects.

    MVTec AD has no validation split; where a data set has one (``validation/``, ``val/``), it is read. Of MVTec AD 2
    the test set is ``test_public``, the part that has masks. A defect without a mask is scored, not localised, unless
    others of its kind have one: then it is an error when the sample is read.

    Args:
        path: Folder of the categories.
        category: One of them; default: all.
        split: ``"train"``, ``"validation"`` or ``"test"``.

    Raises:
        InputError: The folder, the category or the split is not there, or holds no samples.

    Example:
        >>> dataset = MVTecADDataset("mvtec_ad", "bottle", "test")  # doctest: +SKIP
        >>> dataset[0].modalities  # doctest: +SKIP
        frozenset({'rgb'})
    """

    layout: ClassVar[str] = "mvtec_ad"
    folders: ClassVar[str] = "CATEGORY/{train,test}/{good|DEFECT}/NAME.png"

    def __init__(self, path: str | Path, category: str | None = None, split: str = "train") -> None:
        self._open(path, category, split, "{good|DEFECT}/NAME.png", _records)

    @staticmethod
    def holds_samples(split: Path) -> bool:
        """Say whether a folder holds samples as a split does; masks are none."""
        return split.name.casefold() != _TRUTHS and any(holds_files(kind, IMAGES) for kind in _kinds(split))

    def read(self, record: Record) -> Sample:
        """Read the sample that a record stands for."""
        assert record.rgb is not None
        mask = None if record.mask is None else _read_masks(record.mask)
        return make_sample(record, read_rgb(record.rgb), None, mask)


def _kinds(split: Path) -> list[Path]:
    return [kind for kind in subfolders(split) if kind.name.casefold() != _TRUTHS]


def _records(folder: Path, category: str, split: str) -> list[Record]:
    """List a category's samples."""
    place = split_folder(folder, split)
    records: list[Record] = []
    for kind in [] if place is None else _kinds(place):
        masks, defect = _masks(folder, kind), defect_named(kind.name)
        for name, picture in files_by_stem(kind, IMAGES).items():
            mask = masks.get(f"{name}_mask") or masks.get(name)
            if mask is None and masks and defect != GOOD:
                mask = next(iter(masks.values())).parent / f"{name}_mask.png"  # reading says that it is missing
            records.append(Record(category, split, defect, name, picture, None, mask))
    return each_once(records)


def _masks(folder: Path, kind: Path) -> dict[str, Path]:
    """Map names to the masks of a kind of defect, files or folders; empty if it has none."""
    truths, beside = subfolder(folder, _TRUTHS), subfolder(kind.parent, _TRUTHS)
    for place in (truths / kind.parent.name / kind.name, truths / kind.name, beside / kind.name):
        if place.is_dir():
            return {**{entry.name: entry for entry in subfolders(place)}, **files_by_stem(place, IMAGES)}
    return {}


def _read_masks(path: Path) -> np.ndarray:
    """Read a mask, or the union of the masks in a folder."""
    if not path.is_dir():
        return read_mask(path)
    masks = [read_mask(mask) for mask in files_by_stem(path, IMAGES).values()]
    if not masks or any(mask.shape != masks[0].shape for mask in masks):
        found = ", ".join("×".join(map(str, mask.shape)) for mask in masks) or "none"
        raise InputError(f"{path}: expected masks of one size, found {found}")
    return np.any(masks, axis=0)
