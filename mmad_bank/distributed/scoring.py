"""The images of feature dumps, scored against a saved bank by several processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from mmad_bank.bank import FeatureDump, MemoryBank, Scores
from mmad_bank.bank.dump_scores import Block, blocks_of, in_images, score_block
from mmad_bank.bank.scores import Rule
from mmad_bank.distributed.batches import in_order
from mmad_bank.errors import InputError


@dataclass(frozen=True)
class DumpScoring:
    """What a process needs to know to score blocks of a dump: paths, and how they are read.

    Attributes:
        bank: The bank file, as every process sees it.
        loading: Keyword arguments of :meth:`MemoryBank.load`.
        open: What opens the dump; the same files in the same order in every process.
        per_image: Number of patches per image.
        rule: Rule of the image scores.
    """

    bank: str | os.PathLike[str]
    loading: Mapping[str, Any]
    open: Callable[[], FeatureDump]
    per_image: int
    rule: Rule

    def make(self) -> Callable[[Block], Scores | InputError]:
        """Load the bank and open the dump; return what scores a block of it."""
        bank = MemoryBank.load(self.bank, **self.loading)
        score = partial(
            bank.score, reweight=self.rule.reweight, n_neighbors=self.rule.n_neighbors, divisor=self.rule.divisor
        )
        return partial(score_block, score, in_images(self.open(), self.per_image), self.per_image)


def scored_blocks(
    scoring: DumpScoring, dump: FeatureDump, *, workers: int, address: str | None = None
) -> Iterator[Scores | InputError]:
    """Yield the scores of a dump's blocks in order, or why their rows cannot be read or used.

    The scores are those of one process: the images of a block are scored together there, too.

    Args:
        scoring: What the processes do.
        dump: The dump, as :attr:`DumpScoring.open` opens it, in images.
        workers: Number of processes.
        address: Address of a Ray cluster; default: the Ray that this process has joined, or one of its own.

    Raises:
        InputError: As :func:`mmad_bank.distributed.batches.in_order`; the bank or the dump cannot be opened.
    """
    yield from in_order(scoring.make, blocks_of(dump, scoring.per_image), workers=workers, address=address)


__all__ = ["DumpScoring", "scored_blocks"]
