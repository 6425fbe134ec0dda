"""Scores, times and sizes that one setting gave, and how they are kept in a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


@dataclass
class Scored:
    """The scores that a setting gave the test images, its times and sizes."""

    patch: Tensor
    """(B, P) patch scores."""
    image: Tensor
    """(B,) image scores."""
    seconds: list[float]
    """Seconds of each timed image, in order."""
    build_seconds: float
    vectors: int
    resident: int
    memory: int
    vector_bytes: int
    timing: tuple[int, float]
    """Rounds and seconds that it was to be timed for at least."""

    def save(self, path: Path) -> None:
        """Write it to an ``.npz`` file."""
        facts = [self.build_seconds, self.vectors, self.resident, self.memory, self.vector_bytes]
        with path.open("wb") as file:
            np.savez(
                file, patch=self.patch.numpy(), image=self.image.numpy(), seconds=self.seconds, facts=facts,
                timing=self.timing,
            )  # fmt: skip

    @classmethod
    def load(cls, path: Path) -> Scored:
        """Read what :meth:`save` wrote."""
        with np.load(path) as arrays:
            facts = arrays["facts"].tolist()
            scores = torch.from_numpy(arrays["patch"]), torch.from_numpy(arrays["image"])
            rounds, timed = arrays["timing"].tolist()
            vectors, *sizes = (int(fact) for fact in facts[1:])
            return cls(
                *scores, arrays["seconds"].tolist(), facts[0], vectors, sizes[0], sizes[1], sizes[2],
                (int(rounds), timed),
            )  # fmt: skip

    def is_timed_for(self, rounds: int, timed: float) -> bool:
        """Whether it was to be timed for as long as this at least."""
        return self.timing[0] >= rounds and self.timing[1] >= timed

    def rounds(self, n: int) -> list[float]:
        """Cut the times into ``n`` rounds and return each one's median, sorted."""
        return sorted(float(np.median(part)) for part in np.array_split(self.seconds, min(n, len(self.seconds))))

    def difference(self, reference: Scored) -> tuple[float, float, float, float]:
        """Return the mean and the largest difference of patch scores and of image scores, see :class:`Measured`."""
        found: list[float] = []
        for own, other in ((self.patch, reference.patch), (self.image, reference.image)):
            expected = other.double()
            gaps = (own.double() - expected).abs_()
            scale = max(float(expected.mean()), torch.finfo(torch.float32).tiny)
            found += [float(gaps.mean()) / scale, float(gaps.max()) / scale]
        return found[0], found[1], found[2], found[3]
