"""Samples that a saved model scores in several processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from mmad_bank import methods
from mmad_bank.distributed.batches import in_order
from mmad_bank.methods import Method


@dataclass(frozen=True)
class ModelWork:
    """What a process needs to know to work with a model: its path, and what is done with it.

    Attributes:
        model: Folder of the model, as every process sees it.
        loading: Keyword arguments of :func:`mmad_bank.methods.load`.
        changes: Arguments that it gets otherwise than it was fitted, see
            :meth:`mmad_bank.methods.Method.with_arguments`.
        work: What is done with the model and an item; its results are small, and large ones are written to files.
    """

    model: str | os.PathLike[str]
    loading: Mapping[str, Any]
    changes: Mapping[str, Any]
    work: Callable[[Method, Any], Any]

    def make(self) -> Callable[[Any], Any]:
        """Load the model; return what works on an item."""
        method = methods.load(self.model, **self.loading)
        return partial(self.work, method.with_arguments(**self.changes) if self.changes else method)


def worked_by_model(
    work: ModelWork, items: Sequence[Any], *, workers: int, address: str | None = None
) -> Iterator[Any]:
    """Yield what comes of each item, in order; a sample is scored by itself, as in one process.

    Args:
        work: What the processes do.
        items: A sample each, such as a function that reads it.
        workers: Number of processes.
        address: Address of a Ray cluster; default: the Ray that this process has joined, or one of its own.

    Raises:
        InputError: As :func:`mmad_bank.distributed.batches.in_order`.
    """
    yield from in_order(work.make, items, workers=workers, address=address)


__all__ = ["ModelWork", "worked_by_model"]
