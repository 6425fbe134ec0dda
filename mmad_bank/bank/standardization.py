"""One scalar mean and standard deviation of all features, taken block by block."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmad_bank.errors import InputError


class Standardization(NamedTuple):
    """One scalar mean and standard deviation for all values of a bank, as M3DM takes them."""

    mean: float
    std: float


def check_standardization(pair: Any) -> Standardization:
    """Return (mean, std) that distances can be divided by, or say what is wrong with it."""
    if not isinstance(pair, tuple) or len(pair) != 2 or not all(isinstance(v, (int, float)) for v in pair):
        raise InputError(f"standardize: expected True, False or (mean, std), found {pair!r}")
    mean, std = pair
    if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
        raise InputError(f"standardize: expected a finite mean and a std above 0, found {pair!r}")
    return Standardization(float(mean), float(std))


class BlockSums(NamedTuple):
    """Sums of a block's values about a shift, and of their squares."""

    n_values: int
    total: float
    squares: float

    @classmethod
    def of(cls, block: Tensor, shift: float) -> BlockSums:
        """Sum up a block.

        Example:
            >>> BlockSums.of(torch.tensor([[1.0, 2.0, 6.0]]), 2.0)
            BlockSums(n_values=3, total=3.0, squares=17.0)
        """
        shifted = block - shift
        return cls(block.numel(), _folded(shifted), _folded(shifted.square_()))


def first_shift(block: Tensor) -> float:
    """Return the mean of the first block, which the sums of all blocks are taken about, rounded to float32."""
    return float(torch.tensor(_folded(block) / block.numel(), dtype=torch.float32))


class Moments:
    """Mean and sample standard deviation of a stream of values, in float64 about the first block's mean.

    The same blocks give the same bits, whoever sums up which of them: see :meth:`add`.

    Example:
        >>> whole, parts = Moments(), Moments()
        >>> blocks = torch.rand(2, 5, 3, generator=torch.Generator().manual_seed(0))
        >>> for block in blocks:
        ...     whole.update(block)
        >>> parts.shift = first_shift(blocks[0])
        >>> for sums in [BlockSums.of(block, parts.shift) for block in blocks]:
        ...     parts.add(sums)
        >>> whole.result() == parts.result()
        True
    """

    def __init__(self) -> None:
        self.shift: float | None = None
        self._count = 0
        self._sum = self._squares = 0.0

    @classmethod
    def of(cls, count: int, shift: float, total: float, squares: float) -> Moments:
        """Return what :meth:`state` told."""
        made = cls()
        made._count, made.shift, made._sum, made._squares = count, shift, total, squares
        return made

    def state(self) -> tuple[int, float, float, float]:
        """Return the number of values, the shift, and the sums of the shifted values and of their squares."""
        return self._count, self.shift or 0.0, self._sum, self._squares

    def update(self, block: Tensor) -> None:
        """Take in all values of a block."""
        if self.shift is None:
            self.shift = first_shift(block)
        self.add(BlockSums.of(block, self.shift))

    def add(self, sums: BlockSums) -> None:
        """Take in the next block's sums about :attr:`shift`."""
        self._count += sums.n_values
        self._sum += sums.total
        self._squares += sums.squares

    @property
    def _variance(self) -> float:
        return (self._squares - self._count * (self._sum / self._count) ** 2) / max(self._count - 1, 1)

    @property
    def vary(self) -> bool:
        """Whether there are different values, so that there is a standard deviation to divide by."""
        return self._count > 0 and self._variance > 0

    def result(self) -> Standardization:
        """Return mean and standard deviation (n - 1 in the denominator)."""
        mean, variance = self._sum / self._count, self._variance
        if variance <= 0:
            raise InputError("standardize: expected features that vary, found one value throughout")
        return Standardization((self.shift or 0.0) + mean, math.sqrt(variance))


def _folded(values: Tensor) -> float:
    """Return the sum of float32 values in float64: halves are added to each other until one value is left.

    PyTorch's own sum depends on the number of threads and on the width of the processor's vectors.
    """
    line = values.reshape(-1)
    while len(line) > 1:
        half = len(line) // 2
        sums = line[:half].double().add_(line[half : 2 * half])  # a copy of float32 values, then in place
        if len(line) % 2:
            sums[0] += line[-1]
        line = sums
    return float(line[0])
