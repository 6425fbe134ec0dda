"""Samples in whatever shape a program has them: data sets, lists, and PyTorch's wrappers around either."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset

from mmad_bank.data.dataset import SampleDataset
from mmad_bank.data.eyecandies import EyecandiesDataset
from mmad_bank.data.pictures import PicturesDataset
from mmad_bank.data.recipes import Preprocessing
from mmad_bank.data.sample import MODALITIES, Record, Sample
from mmad_bank.errors import InputError, MmadBankError

Samples = SampleDataset | Sequence[Sample]


def as_samples(data: Any, name: str = "dataset") -> Samples:
    """Return samples as something that has a length and gives samples by number, and has read none of them.

    Args:
        data: A :class:`SampleDataset`; a list or tuple of samples, or of paths of pictures; any map-style PyTorch data
            set of samples; a ``Subset``, ``ConcatDataset`` or ``DataLoader`` of those. A loader's samples come one by
            one, in the order of their data set, whatever its batches and its order.
        name: Name of the argument, for the error's line.

    Raises:
        InputError: It is something else.

    Example:
        >>> import torch
        >>> one = Sample(torch.zeros(3, 4, 4), torch.ones(3, 4, 4), None)
        >>> len(as_samples(Subset([one, one, one], [0, 2])))
        2
    """
    if isinstance(data, DataLoader):
        return as_samples(_of_loader(data, name), name)
    if isinstance(data, Subset):
        whole, numbers = as_samples(data.dataset, name), [int(i) for i in data.indices]
        return whole.select(numbers) if isinstance(whole, SampleDataset) else Chosen(whole, numbers)
    if isinstance(data, ConcatDataset):
        return Joined([as_samples(one, name) for one in data.datasets])
    if isinstance(data, (list, tuple)):
        if data and all(isinstance(one, (str, os.PathLike)) for one in data):
            return PicturesDataset(data)
        for number, one in enumerate(data):
            if not isinstance(one, Sample):
                raise InputError(f"{name}[{number}]: expected a Sample, found {type(one).__name__}")
        return data
    numbered = hasattr(data, "__len__") and hasattr(data, "__getitem__") and not isinstance(data, IterableDataset)
    if numbered and isinstance(data, (Dataset, Sequence)) and not isinstance(data, (str, bytes)):
        return data  # type: ignore[return-value]
    expected = "expected a data set, a list of samples or a list of pictures' files"
    raise InputError(f"{name}: {expected}, found {type(data).__name__}")


def _of_loader(loader: DataLoader[Any], name: str) -> Any:
    """Return the samples that a loader would give in one pass."""
    if isinstance(loader.dataset, IterableDataset):
        raise InputError(f"{name}: expected a DataLoader of samples that have numbers, found one of an IterableDataset")
    batches = [loader.sampler] if loader.batch_sampler is None else loader.batch_sampler
    return Subset(loader.dataset, sorted({int(number) for batch in batches for number in batch}))


class Chosen(Sequence[Sample]):
    """Some of the samples of a sequence."""

    def __init__(self, whole: Samples, numbers: list[int]) -> None:
        self.whole, self.numbers = whole, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: Any) -> Any:
        return self.whole[self.numbers[index]]

    @property
    def records(self) -> tuple[Record, ...] | None:
        """Where the samples lie, if that is known of all."""
        known = getattr(self.whole, "records", None)
        return None if known is None else tuple(known[number] for number in self.numbers)


class Joined(Sequence[Sample]):
    """The samples of several sequences, one after the other."""

    def __init__(self, parts: list[Samples]) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, index: Any) -> Any:
        number = range(len(self))[index]
        for part in self.parts:
            if number < len(part):
                return part[number]
            number -= len(part)
        raise IndexError(index)

    @property
    def records(self) -> tuple[Record, ...] | None:
        """Where the samples lie, if that is known of all."""
        known = [getattr(part, "records", None) for part in self.parts]
        return None if any(one is None for one in known) else tuple(record for one in known for record in one or ())


def named(samples: Samples) -> Iterator[tuple[str, int]]:
    """Yield every sample's name and number without reading it where its name is known from its place.

    One whose name is not known is called by its number; some of a sequence keep the numbers that they have there.
    """
    for number, name in enumerate(_names(samples)):
        yield name or str(number), number


def _names(samples: Samples) -> list[str]:
    """Return the samples' names, empty where one is not known without reading."""
    records = getattr(samples, "records", None)
    if records is not None:
        return [record.id for record in records]
    if isinstance(samples, Chosen):
        whole = _names(samples.whole)
        return [whole[number] or str(number) for number in samples.numbers]
    if isinstance(samples, Joined):
        return [name for part in samples.parts for name in _names(part)]
    return [sample.id for sample in samples] if isinstance(samples, (list, tuple)) else [""] * len(samples)


def preparation_of_samples(samples: Samples, name: str = "dataset") -> Preprocessing | None:
    """Tell how samples were prepared; None for raw ones. Nothing is read but, of a foreign data set, one sample.

    Raises:
        InputError: They were prepared in different ways.

    Example:
        >>> preparation_of_samples([]) is None
        True
    """
    found = list(preparations_of_samples(samples))
    for other in found[1:]:
        if (found[0] is None) != (other is None):
            raise InputError(f"{name}: expected samples prepared in one way, found raw and prepared ones")
        differences = found[0].differences(other) if found[0] is not None and other is not None else []
        if differences:
            raise InputError(f"{name}: expected samples prepared in one way, found {'; '.join(differences)}")
    return found[0] if found else None


def preparations_of_samples(samples: Samples) -> Iterator[Preprocessing | None]:
    """Yield how samples were prepared: every one of a list, a whole data set, the first of a foreign data set."""
    if isinstance(samples, SampleDataset):
        yield samples.preparation
    elif isinstance(samples, Joined):
        for part in samples.parts:
            yield from preparations_of_samples(part)
    elif isinstance(samples, (list, tuple)):
        yield from (sample.preparation for sample in samples)
    else:
        first = _first(samples)
        if first is not None:
            yield first.preparation


def _first(samples: Samples) -> Sample | None:
    """Read the first sample that can be read."""
    for number in range(len(samples)):
        try:
            return samples[number]
        except MmadBankError:
            continue
    return None


def recipe_of_samples(samples: Samples, name: str = "dataset") -> str | None:
    """Name the recipe that raw samples need whatever the method; None where the method's own will do.

    Raises:
        InputError: Some need another than others.
    """
    kinds = set(_recipes(samples))
    if len(kinds) > 1:
        found = " and ".join(sorted(kind or "others" for kind in kinds))
        raise InputError(f"{name}: expected samples that one recipe prepares, found some for {found}")
    return kinds.pop() if kinds else None


def _recipes(samples: Samples) -> Iterator[str | None]:
    if isinstance(samples, SampleDataset):
        yield samples.recipe
    elif isinstance(samples, Joined):
        for part in samples.parts:
            yield from _recipes(part)
    else:
        some = samples if isinstance(samples, (list, tuple)) else filter(None, [_first(samples)])
        for sample in some:
            from_depth = sample.xyz_path is not None and sample.xyz_path.name.endswith("_depth.png")
            kept = sample.points is not None or "xyz" not in sample.modalities
            yield EyecandiesDataset.layout if from_depth else "keep" if kept else None


def modalities_of_samples(samples: Samples) -> frozenset[str]:
    """Name what sensors have given of every sample; nothing is read but, of a foreign data set, one sample.

    Example:
        >>> sorted(modalities_of_samples([]))
        ['rgb', 'xyz']
    """
    if isinstance(samples, SampleDataset):
        return samples.modalities
    if isinstance(samples, Joined):
        return MODALITIES.intersection(*map(modalities_of_samples, samples.parts))
    some = samples if isinstance(samples, (list, tuple)) else filter(None, [_first(samples)])
    return MODALITIES.intersection(*(sample.modalities for sample in some))


def categories_of_samples(samples: Samples) -> set[str]:
    """Name the categories of samples that are known without reading them."""
    records = getattr(samples, "records", None)
    if records is not None:
        return {record.category for record in records} - {""}
    return {sample.category for sample in samples} - {""} if isinstance(samples, (list, tuple)) else set()
