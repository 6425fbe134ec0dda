"""Plain pictures, in no data set's layout: a folder of good parts, however nested, a list of files, a pattern.

The last resort of :func:`mmad_bank.data.open_dataset`. Nothing says which of the pictures are normal but whoever gives
them to :meth:`Method.fit`, so a folder that looks as if it held defects, masks or splits is not taken unasked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from mmad_bank.data._images import read_rgb
from mmad_bank.data.dataset import SampleDataset, check_split
from mmad_bank.data.names import GOOD
from mmad_bank.data.picture_files import find_pictures
from mmad_bank.data.sample import Record, Sample, make_sample
from mmad_bank.errors import InputError, MissingSplitError

Places = str | Path | Sequence[str | Path]
"""Pictures as :func:`mmad_bank.data.picture_files.find_pictures` takes them."""


@dataclass(frozen=True)
class PictureRecord(Record):
    """Where a plain picture lies."""

    @property
    def id(self) -> str:
        """Path of the picture, relative to the folder or to the list, with its suffix."""
        return self.name


class PicturesDataset(SampleDataset):
    """Plain pictures, one sample each, whose ids are relative paths, and which have no category.

    They have no splits either. As the ``"train"`` split all are normal samples: learn from good pictures alone. As
    ``"test"`` all are samples of which no truth is known; there is no ``"validation"``.

    Args:
        path: A folder, of which all pictures are taken, however nested; a picture; a list of paths (.txt); a pattern;
            or several of these.
        category: The name that all of them together have, :attr:`name`, or None.
        split: ``"train"`` or ``"test"``.

    Raises:
        InputError: There is no picture, or a place is not there.
        MissingSplitError: The validation split is asked for.

    Example:
        >>> dataset = PicturesDataset("parts")  # doctest: +SKIP
        >>> dataset[0].id  # doctest: +SKIP
        'monday/IMG_2041.jpg'
    """

    layout: ClassVar[str] = "pictures"
    folders: ClassVar[str] = "NAME.png, at any depth"
    labeled: ClassVar[bool] = False

    def __init__(self, path: Places, category: str | None = None, split: str = "train") -> None:
        split, found = check_split(split), find_pictures(path)
        self.name = found.name
        if category not in (None, self.name):
            expected = f"expected {self.name!r}, as plain pictures have no categories"
            raise InputError(f"category: {expected} (in {found.root}), found {category!r}")
        if split == "validation":
            raise MissingSplitError(f"{found.root}: found no validation split, as plain pictures have no splits")
        super().__init__(
            found.root,
            [
                PictureRecord("", split, GOOD, name, file, None, None)
                for name, file in zip(found.ids, found.files, strict=True)
            ],
        )

    @staticmethod
    def holds_samples(split: Path) -> bool:
        """Say that no folder is read as a split's: plain pictures have none."""
        del split
        return False

    def read(self, record: Record) -> Sample:
        """Read the sample that a record stands for."""
        assert record.rgb is not None
        sample = make_sample(record, read_rgb(record.rgb), None, None)
        return sample if record.split == "train" else replace(sample, mask=None)
