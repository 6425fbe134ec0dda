"""A data set: a list of samples that are read when they are asked for."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np
import torch

from mmad_bank.data.names import GOOD, SPLITS, describe, split_named, subfolders
from mmad_bank.data.prepared import preparation_of
from mmad_bank.data.recipes import Preprocessing
from mmad_bank.data.roi import RegionOfInterest
from mmad_bank.data.sample import MODALITIES, Record, Sample, as_prepared, check_raw, in_metres
from mmad_bank.errors import InputError, MissingSplitError, did_you_mean

AnyDataset = TypeVar("AnyDataset", bound="SampleDataset")


class SampleDataset(torch.utils.data.Dataset[Sample]):
    """A list of samples that are read when they are asked for.

    Attributes:
        path: The data set's folder.
        records: Places of the samples, in order.
        units: Unit of the clouds' files; samples are in metres. None where nobody said.
        truths: Whether masks are read.
        roi: Region of interest, outside of which a method that is fitted on the data set looks at nothing.
    """

    layout: ClassVar[str]
    """Name of the layout."""
    folders: ClassVar[str]
    """Folders of a category in this layout, for an error's line."""
    labeled: ClassVar[bool] = True
    """Whether it is known of each sample whether it is normal."""
    units: str | None = None
    truths: bool = True
    roi: RegionOfInterest | None = None

    def __init__(self, path: str | Path, records: Sequence[Record]) -> None:
        self.path = Path(path)
        self.records = tuple(records)

    def _open(
        self, path: str | Path, category: str | None, split: str, wanted: str,
        list_records: Callable[[Path, str, str], Sequence[Record]],
    ) -> None:  # fmt: skip
        """Open a split of one category or of all.

        Args:
            path: Folder of the categories.
            category: One of them; None takes all.
            split: Any name of a split.
            wanted: What a split's folder holds, for an error's line.
            list_records: Function that lists the samples of a category's folder, given its name and the split's.

        Raises:
            InputError: The folder, the category or the split is not there, or holds no samples.
        """
        root, split = Path(path), check_split(split)
        names = self.choose_categories(root, category)
        records = [record for name in names for record in list_records(root / name, name, split)]
        if not records:
            raise missing_split(root, names, split, wanted)
        SampleDataset.__init__(self, root, records)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        """Read a sample.

        Raises:
            InputError: A file is missing or damaged, image and cloud differ in size, or the cloud has no points.
            IndexError: There is no such sample.
        """
        sample = self.read(self.records[index])
        return in_metres(sample, self.units) if self.preparation is None else as_prepared(sample, self.preparation)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        splits = ", ".join(sorted({record.split for record in self.records}))
        kinds = Counter(record.defect for record in self.records)
        counts = ", ".join(f"{kinds[kind]} {kind}" for kind in sorted(kinds, key=lambda kind: (kind != GOOD, kind)))
        what = f"{len(self)} samples" + (f" ({counts})" if counts else "")
        of = f" of {', '.join(self.categories)}" if any(self.categories) else ""
        try:
            preparation = self.preparation
        except InputError:  # the manifest is damaged; whoever reads a sample is told so
            how = "prepared in an unknown way"
        else:
            how = "raw"
            if preparation is not None:
                how = f"prepared: {preparation.size} pixels, background {preparation.background}"
        return f"<{type(self).__name__} {str(self.path)!r}, {self.layout}, {splits or 'empty'}: {what}{of}; {how}>"

    @cached_property
    def preparation(self) -> Preprocessing | None:
        """The settings that the data set was prepared with; None for one as a sensor made it."""
        found = preparation_of(self.path)
        if found is None and self.records:
            check_raw(self.records[0].main_file, self.path)
        return found

    @property
    def recipe(self) -> str | None:
        """Recipe of preprocessing that its raw samples need whatever the method; None where the method's own will do.

        The others tell the background by the cloud.
        """
        return None if "xyz" in self.modalities else "keep"

    @property
    def modalities(self) -> frozenset[str]:
        """What sensors have given of every sample: ``"rgb"``, ``"xyz"``, or both."""
        return MODALITIES.intersection(*(record.modalities for record in self.records))

    @property
    def categories(self) -> tuple[str, ...]:
        """The categories, sorted."""
        return tuple(sorted({record.category for record in self.records}))

    @property
    def labels(self) -> list[int]:
        """One label per sample, 0 normal or 1 anomalous; nothing is read for it."""
        return [record.label for record in self.records]

    def select(self: AnyDataset, indices: Iterable[int]) -> AnyDataset:
        """Return the data set of some of the samples, in the given order."""
        part = copy(self)
        part.records = tuple(self.records[index] for index in indices)
        return part

    def without_truths(self: AnyDataset) -> AnyDataset:
        """Return the data set of the same samples, of which no mask is read: none may be missing or damaged."""
        part = copy(self)
        part.records, part.truths = tuple(replace(record, mask=None) for record in self.records), False
        return part

    @staticmethod
    @abstractmethod
    def holds_samples(split: Path) -> bool:
        """Say whether a folder holds samples as a split does."""

    @classmethod
    def is_category(cls, folder: Path) -> bool:
        """Say whether a folder is a category in this layout: one of its splits holds samples."""
        return any(cls.holds_samples(entry) for entry in subfolders(folder) if split_named(entry.name) is not None)

    @classmethod
    def find_categories(cls, root: Path) -> list[str]:
        """Name the categories in a folder, in order.

        Raises:
            InputError: There are none.
        """
        names = [folder.name for folder in subfolders(root) if cls.is_category(folder)]
        if not names:
            raise InputError(f"{root}: expected {cls.folders} in it, found {describe(root)}")
        return names

    @classmethod
    def choose_categories(cls, root: Path, category: str | None) -> list[str]:
        """Return the one category asked for, or all that are in a folder.

        Raises:
            InputError: It is not there, or none is.
        """
        names = cls.find_categories(root)
        if category is None:
            return names
        if category not in names:
            near = did_you_mean(category, names)
            raise InputError(f"category: expected one of {', '.join(names)} (in {root}), found {category!r}{near}")
        return [category]

    @abstractmethod
    def read(self, record: Record) -> Sample:
        """Read the sample that a record stands for."""


def check_split(split: str) -> str:
    """Return the split's own name for any of its names.

    Example:
        >>> check_split("val")
        'validation'
    """
    name = split_named(split)
    if name is None:
        raise InputError(f"split: expected one of {', '.join(SPLITS)}, found {split!r}")
    return name


def missing_split(root: Path, categories: Sequence[str], split: str, layout: str) -> MissingSplitError:
    """Return the error that says that categories have no samples of a split, and which folders they have."""
    folder = root / categories[0]
    there = ", ".join(f"{entry.name}/" for entry in subfolders(folder)) or "none"
    also = f" and {len(categories) - 1} other categories" if len(categories) > 1 else ""
    return MissingSplitError(
        f"{folder}{also}: found no samples of the {split} split; expected {layout} in {split}/; folders found: {there}"
    )


def few_shot(dataset: AnyDataset, n: int, seed: int = 0) -> AnyDataset:
    """Draw n normal samples of every category at random.

    With one seed the smaller draw is part of the larger one, so that few-shot curves (5, 10, 50 images) differ by what
    was added and by nothing else.

    Args:
        dataset: The data set, usually a training split.
        n: Number of samples per category.
        seed: Seed of the draw.

    Returns:
        The samples drawn, in the data set's order.

    Raises:
        InputError: A category has fewer than ``n`` normal samples.
    """
    if n < 1:
        raise InputError(f"n: expected at least 1 sample, found {n}")
    chosen: list[int] = []
    for category in dataset.categories:
        normal = [i for i, record in enumerate(dataset.records) if record.category == category and record.label == 0]
        if len(normal) < n:
            of = repr(category) if category else str(dataset.path)
            raise InputError(f"n: expected at most {len(normal)}, the normal samples of {of}, found {n}")
        # The category's name is part of the seed: a category's draw does not depend on which others are open.
        order = np.random.default_rng([seed, *os.fsencode(category)]).permutation(len(normal))
        chosen += [normal[i] for i in order[:n]]
    return dataset.select(sorted(chosen))
