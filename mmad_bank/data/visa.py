"""VisA as it is downloaded: pictures of twelve objects, without depth, and a table that says what is which split's.

Y. Zou et al., *SPot-the-Difference Self-Supervised Pre-training for Anomaly Detection and Segmentation*, ECCV 2022.
Layout: ``CATEGORY/Data/Images/{Normal,Anomaly}/NAME.JPG``, ``CATEGORY/Data/Masks/Anomaly/NAME.png``,
``CATEGORY/image_anno.csv`` (kinds of defects), ``split_csv/{1cls,2cls_highshot,2cls_fewshot}.csv`` (splits). What its
script makes of it (``VisA_pytorch/1cls``) is in MVTec AD's layout.
"""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import ClassVar, Literal, get_args

from mmad_bank.data._images import read_mask, read_rgb
from mmad_bank.data.dataset import SampleDataset, check_split, missing_split
from mmad_bank.data.names import ANOMALOUS, GOOD, defect_named, split_named, subfolder
from mmad_bank.data.sample import Record, Sample, by_defect, make_sample
from mmad_bank.errors import InputError

Setup = Literal["1cls", "2cls_highshot", "2cls_fewshot"]
_TABLES, _KINDS = "split_csv", "image_anno.csv"
_LONGEST_KIND, _LONGEST_NAME = 100, 200
_NO_NAME = re.compile(r"[^\w -]+")  # what has no place in a folder's name


class VisADataset(SampleDataset):
    """VisA as it is downloaded, split as ``split_csv/1cls.csv`` says: normal pictures to learn from, both to test with.

    Kinds of defects are those that ``image_anno.csv`` names, joined by +; masks mark them by any value but zero. There
    is no validation split.

    Args:
        path: Folder of the categories, with ``split_csv`` beside them.
        category: One of them; default: all that are there.
        split: ``"train"`` or ``"test"``.
        setup: Table of the splits; the other two have anomalous pictures in the training split, which no method learns.

    Raises:
        InputError: The folder, the category, the split or its table is not there, or the table is something else.

    Example:
        >>> dataset = VisADataset("VisA", "candle", "test")  # doctest: +SKIP
        >>> len(dataset)  # doctest: +SKIP
        200
    """

    layout: ClassVar[str] = "visa"
    folders: ClassVar[str] = "CATEGORY/Data/Images/{Normal,Anomaly}/NAME.JPG"

    def __init__(
        self, path: str | Path, category: str | None = None, split: str = "train", *, setup: Setup = "1cls"
    ) -> None:
        root, split = Path(path), check_split(split)
        if setup not in get_args(Setup):
            raise InputError(f"setup: expected one of {', '.join(get_args(Setup))}, found {setup!r}")
        names = self.choose_categories(root, category)
        table = root / _TABLES / f"{setup}.csv"
        records = list(_records(root, names, split, table))
        if not records:
            raise missing_split(root, names, split, f"rows in {_TABLES}/{setup}.csv")
        twice = next((name for name, n in Counter(record.id for record in records).items() if n > 1), None)
        if twice is not None:  # it would count twice in every measure
            raise InputError(f"{table}: expected each sample once, found {twice} more than once")
        super().__init__(root, sorted(records, key=lambda one: (names.index(one.category), *by_defect(one))))

    @staticmethod
    def holds_samples(split: Path) -> bool:
        """Say that no folder is read as a split's: the table says what is."""
        del split
        return False

    @classmethod
    def is_category(cls, folder: Path) -> bool:
        """Say whether a folder is a category in this layout."""
        data = subfolder(folder, "data")
        return data.is_dir() and subfolder(data, "images").is_dir()

    def read(self, record: Record) -> Sample:
        """Read the sample that a record stands for."""
        assert record.rgb is not None
        mask = None if record.mask is None else read_mask(record.mask, by_index=True)
        return make_sample(record, read_rgb(record.rgb), None, mask)


def _records(root: Path, names: list[str], split: str, table: Path) -> Iterator[Record]:
    """Give the samples of a split that a table lists, in its order."""
    kinds: dict[str, str] = {}
    for name in names:
        kinds |= _kinds(root / name / _KINDS)
    for row in _rows(table, ("object", "split", "label", "image", "mask")):
        if row["object"] not in names or split_named(row["split"]) != split:
            continue
        defect = defect_named(row["label"])
        if defect != GOOD:
            kind = kinds.get(row["image"], "")
            defect = kind if 0 < len(kind) <= _LONGEST_KIND and defect_named(kind) != GOOD else ANOMALOUS
        picture = _inside(root, row["image"], table)
        mask = _inside(root, row["mask"], table) if row["mask"] and defect != GOOD else None
        yield Record(row["object"], split, defect, picture.stem, picture, None, mask)


def _kinds(table: Path) -> dict[str, str]:
    """Return the kinds of defects by picture; nothing if there is no such table."""
    rows = _rows(table, ("image", "label")) if table.is_file() else ()
    return {row["image"]: "+".join(_words(row["label"])) for row in rows}


def _words(label: str) -> list[str]:
    """Return a label's kinds of defects as folders can be called."""
    words = (_NO_NAME.sub("-", word).strip(" -") for word in label.split(","))
    return [word for word in words if word]


def _rows(table: Path, columns: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """Read a table's rows.

    Raises:
        InputError: It is not there, or lacks a column.
    """
    if not table.is_file():
        raise InputError(f"{table}: file not found; expected VisA's table, which comes with its pictures")
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                found = ",".join(reader.fieldnames or ())
                expected = f"expected the columns {','.join(columns)}"
                raise InputError(f"{table}: {expected}, found {repr(found[:80]) if found else 'none'}")
            for row in reader:
                yield {name: row[name] or "" for name in columns}
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{table}: cannot be read as a table ({error})") from None


def _inside(root: Path, path: str, table: Path) -> Path:
    """Return a path that a table names; one that leads out of the data set is refused."""
    parts = PurePosixPath(path.replace("\\", "/"))
    a_name = parts.name and path.isprintable() and all(len(os.fsencode(part)) <= _LONGEST_NAME for part in parts.parts)
    if parts.is_absolute() or ".." in parts.parts or not a_name:
        raise InputError(f"{table}: expected a path inside the data set, found {path[:80]!r}")
    return root.joinpath(*parts.parts)
