"""MVTec 3D-AD: ten categories of parts, RGB images and point clouds of an industrial structured-light sensor.

P. Bergmann et al., *The MVTec 3D-AD Dataset for Unsupervised 3D Anomaly Detection and Localization*, VISAPP 2022.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from mmad_bank.data.folder import FolderDataset
from mmad_bank.data.names import describe
from mmad_bank.data.sample import Record, Sample
from mmad_bank.errors import InputError

CATEGORIES = ("bagel", "cable_gland", "carrot", "cookie", "dowel", "foam", "peach", "potato", "rope", "tire")


class MVTec3DDataset(FolderDataset):
    """MVTec 3D-AD as it is distributed; ``calibration/`` beside the categories is left alone.

    Images are not always square (rope is 400×900). Normal test samples may have a ground-truth mask or none; a defect
    without one is an error when the sample is read.

    Args:
        path: Folder of the categories.
        category: One of the ten; default: those that are there.
        split: ``"train"``, ``"validation"`` or ``"test"``.

    Raises:
        InputError: The folder, the category or the split is not there, or holds no samples.

    Example:
        >>> dataset = MVTec3DDataset("mvtec_3d", "rope", "test")  # doctest: +SKIP
        >>> dataset[0].xyz.shape  # doctest: +SKIP
        torch.Size([3, 400, 900])
    """

    layout: ClassVar[str] = "mvtec3d"

    @classmethod
    def find_categories(cls, root: Path) -> list[str]:
        """Name those of the ten categories that are in a folder, sorted."""
        names = [name for name in super().find_categories(root) if name in CATEGORIES]
        if not names:
            raise InputError(f"{root}: expected {cls.folders} of {', '.join(CATEGORIES)}, found {describe(root)}")
        return names

    def read(self, record: Record) -> Sample:
        """Read the sample that a record stands for."""
        if self.truths and record.label and record.mask is None:
            mask = record.main_file.parent.parent / "gt" / f"{record.name}.png"
            raise InputError(f"{mask}: file not found; expected the mask of a {record.defect!r} defect")
        return super().read(record)
