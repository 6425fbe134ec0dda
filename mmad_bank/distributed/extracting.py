"""Samples whose features several processes compute."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

from mmad_bank.data.sample import Sample
from mmad_bank.distributed.batches import in_order
from mmad_bank.extraction import Described, Extractors, describe_each, usable

_LOOKED_AT = 16  # samples that a process reads at a time, to know which it can read
Unread = tuple[str, str]
"""Id of a sample that cannot be read, and why."""


@dataclass(frozen=True)
class Extraction:
    """What a process needs to know to describe samples of a data set.

    Attributes:
        samples: The data set, which every process sees at the same path.
        extractors: The networks, which go to the processes with their weights: random ones are drawn once.
        prepare: Function that prepares a sample first.
    """

    samples: Any
    extractors: Extractors
    prepare: Callable[[Sample], Sample]

    def make(self) -> Callable[[Sequence[int]], list[Described | Unread]]:
        """Return what describes the samples of some numbers together."""
        return self.describe

    def make_reading(self) -> Callable[[Sequence[int]], list[Unread | None]]:
        """Return what says of samples why they cannot be read; None of those that can."""
        return lambda numbers: [one if isinstance(one, tuple) else None for one in self._read(numbers)]

    def _read(self, numbers: Sequence[int]) -> list[Sample | Unread]:
        found: list[Sample | Unread] = []
        for number in numbers:
            unread: dict[str, str] = {}
            found += usable(self.samples, self.prepare, unread, numbers=[number])
            found += unread.items()
        return found

    def describe(self, numbers: Sequence[int]) -> list[Described | Unread]:
        """Read samples and describe those that can be used; one that cannot costs itself only."""
        found = self._read(numbers)
        skipped: dict[str, str] = {}
        features = iter(describe_each([one for one in found if isinstance(one, Sample)], self.extractors, skipped))
        return [self._said(one, next(features), skipped) if isinstance(one, Sample) else one for one in found]

    @staticmethod
    def _said(sample: Sample, features: dict[str, Any] | None, skipped: dict[str, str]) -> Described:
        if features is None:
            return Described(sample.id, None, skipped[sample.id or "sample"])
        # Copies: what is sent of a part of a tensor is all of it.
        return Described(sample.id, {name: rows.cpu().clone() for name, rows in features.items()})


def described_elsewhere(
    work: Extraction, batch: int, skipped: dict[str, str], *, workers: int, address: str | None = None
) -> Iterator[Described]:
    """Yield the samples that can be read, in order, as several processes have described them.

    Networks round otherwise in batches of another size, so the samples of a batch are those of one process. Where one
    cannot be read, these are others from there on: the rest is then read once more, to know them.

    Args:
        work: What the processes do.
        batch: Number of samples described together.
        skipped: Dictionary that is filled with why samples cannot be read, by id.
        workers: Number of processes.
        address: Address of a Ray cluster; default: the Ray that this process has joined, or one of its own.

    Raises:
        InputError: As :func:`mmad_bank.distributed.batches.in_order`.
    """
    do = partial(in_order, workers=workers, address=address)
    parts = _cut(range(len(work.samples)), batch)
    done = 0
    with closing(do(work.make, parts)) as results:
        for found in results:
            described = [one for one in found if isinstance(one, Described)]
            if len(described) < len(found):
                break  # in one process, others are described together from here on
            done += len(found)
            yield from described
    rest = range(done, len(work.samples))
    unread: dict[int, Unread] = {}
    for part, reasons in zip(_cut(rest, _LOOKED_AT), do(work.make_reading, _cut(rest, _LOOKED_AT)), strict=True):
        unread |= {number: one for number, one in zip(part, reasons, strict=True) if one is not None}
    usable_ones = [number for number in rest if number not in unread]
    given = iter(one for found in do(work.make, _cut(usable_ones, batch)) for one in found)
    for number in rest:
        one = unread[number] if number in unread else next(given)
        if isinstance(one, Described):
            yield one
        else:
            skipped.update([one])


def _cut(numbers: Sequence[int], size: int) -> list[Sequence[int]]:
    return [numbers[first : first + size] for first in range(0, len(numbers), size)]


__all__ = ["Extraction", "described_elsewhere"]
