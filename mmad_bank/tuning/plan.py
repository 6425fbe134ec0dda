"""The plan of a sweep: ratios in the order in which they tell most, precisions, and indices that suit."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from mmad_bank.bank.faiss_index import make_faiss
from mmad_bank.bank.selection import coreset_size
from mmad_bank.errors import InputError
from mmad_bank.ops.knn import Precision
from mmad_bank.tuning.settings import Setting

RATIOS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
PRECISIONS: tuple[Precision, ...] = ("auto", "float32", "half", "int8")

_FIRST_RATIO = 0.01
_POINTS_A_CENTROID = 39  # FAISS's own least for a k-means that it does not warn of
_LEAST_FOR_FAISS = 1000  # below, the exact search takes about a millisecond


def order_of_ratios(ratios: Sequence[float]) -> list[float]:
    """Return ratios in the order in which they tell most: the one nearest 1 %, then always the farthest from these.

    Example:
        >>> order_of_ratios([0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0])
        [0.01, 1.0, 0.1, 0.001, 0.3, 0.03, 0.003]
    """
    left = sorted(set(ratios))
    order: list[float] = []
    while left:
        if order:
            # The nearest of those before; of equally far ones the larger, whose scores are nearer to all rows'.
            best = max(left, key=lambda one: (round(min(abs(math.log(one / o)) for o in order), 1), one))
        else:
            best = min(left, key=lambda one: abs(math.log(one / _FIRST_RATIO)))
        left.remove(best)
        order.append(best)
    return order


def faiss_indices(n_vectors: int, dim: int) -> list[str]:
    """Return FAISS factory strings that suit a bank: none where FAISS is not installed or the bank is small.

    An inverted file has 4 √M lists, rounded down to a power of two, and no more than its k-means can be trained with. A
    product quantiser takes 4 bits for 4, 3 or 2 dimensions, whichever divides the vectors' length first, in the layout
    that FAISS scans in registers: with 8 bits it would take minutes to train and seconds to search.

    Example:
        >>> faiss_indices(500, 768)
        []
    """
    if n_vectors < _LEAST_FOR_FAISS or importlib.util.find_spec("faiss") is None:
        return []
    most = min(4 * n_vectors**0.5, n_vectors / _POINTS_A_CENTROID)
    inverted = f"IVF{2 ** (int(most).bit_length() - 1)}"
    found = [f"{inverted},Flat", "HNSW32"]
    step = next((step for step in (4, 3, 2) if dim % step == 0), None)
    if step is not None:
        found += [f"PQ{dim // step}x4fs", f"{inverted},PQ{dim // step}x4fs"]
    return found


@dataclass(frozen=True)
class Asked:
    """Settings that are to be measured."""

    ratios: list[float]
    precisions: list[Precision]
    indices: Sequence[str] | None

    def settings(self, ratio: float, n_vectors: int, dim: int) -> list[Setting]:
        """Return the settings of a ratio, the exact ones first."""
        if ratio not in self.ratios:
            return []
        names = ["exact", *faiss_indices(n_vectors, dim)] if self.indices is None else list(dict.fromkeys(self.indices))
        exact = [Setting(ratio, "exact", precision) for precision in self.precisions if "exact" in names]
        return exact + [Setting(ratio, name) for name in names if name != "exact"]

    def reference(self, ratio: float) -> Setting:
        """Return the exact setting that others of its ratio are compared with; all precisions give the same scores."""
        wanted = self.indices is None or "exact" in self.indices
        return Setting(ratio, "exact", self.precisions[0] if wanted and self.precisions else "auto")


def check_ratios(ratios: Sequence[float]) -> list[float]:
    """Return the ratios, each once, or say what is wrong with one."""
    for ratio in ratios:
        coreset_size(1, ratio, None)
    if not ratios:
        raise InputError("ratios: expected at least one, found none")
    return [float(ratio) for ratio in dict.fromkeys(ratios)]


def check_indices(asked: Asked, rows: Tensor) -> None:
    """Refuse before the work an index that FAISS does not know, or that not even the largest bank can have."""
    for name in asked.indices or ():
        if name != "exact":
            make_faiss(name, rows.shape[1], coreset_size(len(rows), max(asked.ratios), None))
