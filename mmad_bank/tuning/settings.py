"""Settings of a bank, what was measured of them, the front, and the most accurate one within a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Literal

from mmad_bank.errors import InputError
from mmad_bank.ops.knn import Precision

By = Literal["error", "auroc"]


@dataclass(frozen=True)
class Setting:
    """Settings that a bank is built and loaded with: arguments of :meth:`mmad_bank.MemoryBank.build` by their names."""

    ratio: float
    index: str = "exact"
    precision: Precision = "auto"

    @property
    def is_exact(self) -> bool:
        """Whether the search is this project's own."""
        return self.index == "exact"


@dataclass(frozen=True)
class Measured:
    """A setting and what was measured of it.

    Errors are differences of scores over the mean score of the bank that they are compared with: 0.05 says that
    scores are off by 5 % of a usual score.
    """

    ratio: float
    index: str
    precision: Precision
    vectors: int
    dim: int
    memory: int
    """Bytes that scoring needs in memory: ``resident``, and the vectors where every image reads all of them."""
    resident: int
    """``MemoryBank.nbytes`` of the loaded bank: the search copy or FAISS's index, the source rows, and vectors that are
    few enough to be read instead of mapped."""
    vector_bytes: int
    """The float32 vectors in the bank file, memory-mapped: the system caches the pages that are read and lets them go
    when memory is short. The exact search reads a few vectors for each patch; a FAISS index reads none for patch
    scores, and all of them for an image score other than ``max``."""
    fps: float
    """Frames per second of :meth:`MemoryBank.score`, one image at a time, with the vectors in memory (or in the cache):
    the median of the rounds' medians."""
    seconds: float
    """Seconds per image, likewise."""
    build_seconds: float
    """Seconds to make the search copy or the index, without the selection."""
    patch_error: float
    """Mean error over patches, against the exact bank of all rows."""
    patch_error_max: float
    image_error: float
    """Mean error over images, likewise."""
    image_error_max: float
    index_patch_error: float
    """Mean error over patches, against the exact bank of the same ratio: what the index alone costs."""
    index_patch_error_max: float
    index_image_error: float
    index_image_error_max: float
    auroc: float | None = None
    """AUROC of the image scores; None without labels of both classes."""
    auroc_low: float | None = None
    """2.5 % and 97.5 % quantiles of the AUROC over bootstrap samples of the images, drawn within each class."""
    auroc_high: float | None = None
    gap: float | None = None
    """AUROC less that of the exact bank which errors are against; its quantiles are of the same bootstrap samples of
    both."""
    gap_low: float | None = None
    gap_high: float | None = None
    fps_low: float | None = None
    """Frames per second of the slowest and the fastest round."""
    fps_high: float | None = None

    @property
    def setting(self) -> Setting:
        """The setting that was measured."""
        return Setting(self.ratio, self.index, self.precision)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Measured:
        """Return what :meth:`as_json` described; other keys are passed over."""
        needed = {one.name for one in fields(cls) if one.default is MISSING}
        return cls(**{one.name: row[one.name] for one in fields(cls) if one.name in needed | set(row)})

    def as_json(self) -> dict[str, Any]:
        """Return JSON-ready values: bytes, seconds, shares."""
        return asdict(self)

    def cost(self, by: By) -> float:
        """Return what is to be small: the patch error against all rows, or 1 - AUROC."""
        if by == "error":
            return self.patch_error
        if self.auroc is None:
            raise InputError("by: expected 'error' for images without labels of both classes, found 'auroc'")
        return 1.0 - self.auroc


def non_dominated(costs: Sequence[Sequence[float]]) -> list[bool]:
    """Tell for each point of a set whether it is on the Pareto front: no other is as good in all and better in one.

    Args:
        costs: Costs of each point; smaller is better in every column.

    Example:
        >>> non_dominated([(1, 9), (2, 5), (3, 5), (4, 1)])
        [True, True, False, True]
    """
    return [
        not any(all(a <= b for a, b in zip(other, own, strict=True)) and tuple(other) != tuple(own) for other in costs)
        for own in costs
    ]


def pareto(settings: Sequence[Measured], by: By = "error") -> list[bool]:
    """Tell for each setting whether no other is as small, as fast and as accurate, and better in one of the three."""
    return non_dominated([(one.memory, one.seconds, one.cost(by)) for one in settings])


def recommend(
    settings: Sequence[Measured], *, memory: int | None = None, fps: float | None = None, by: By = "error"
) -> Measured | None:
    """Return the most accurate setting within a budget, or None if none keeps to it.

    Among equally accurate settings it is the fastest where memory is limited, otherwise the smallest.

    Args:
        settings: Settings of a :class:`Sweep`.
        memory: Largest number of bytes, see :attr:`Measured.memory`.
        fps: Smallest number of frames per second.
        by: ``"error"`` takes the smallest patch error; ``"auroc"`` the highest AUROC, and among equal ones the
            smallest patch error.
    """
    within = [one for one in settings if _excess(one, memory, fps) <= 1]

    def rank(one: Measured) -> tuple[float, ...]:
        accuracy = (one.cost(by), one.patch_error)
        return (*accuracy, one.memory, one.seconds) if memory is None else (*accuracy, one.seconds, one.memory)

    return min(within, key=rank, default=None)


def nearest(settings: Sequence[Measured], *, memory: int | None = None, fps: float | None = None) -> Measured:
    """Return the setting that misses a budget by the smallest factor."""
    return min(settings, key=lambda one: _excess(one, memory, fps))


def _excess(one: Measured, memory: int | None, fps: float | None) -> float:
    """Return the factor by which a setting misses a budget; up to 1, it keeps to it."""
    return max(0.0 if memory is None else one.memory / memory, 0.0 if fps is None else fps / one.fps)
