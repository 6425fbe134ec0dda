"""Exact nearest neighbors as an estimator of scikit-learn. Needs scikit-learn 1.6 or newer."""

from __future__ import annotations

from typing import Any, Literal, overload

import numpy as np
import torch

from mmad_bank import ops
from mmad_bank._internal.checks import check_index
from mmad_bank.bank.memory_bank import MemoryBank
from mmad_bank.bank.selection import coreset_size
from mmad_bank.calibration import Calibration
from mmad_bank.errors import InputError, MissingExtraError
from mmad_bank.ops.knn import Precision

try:
    from sklearn.base import BaseEstimator
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise MissingExtraError("scikit-learn>=1.6", "sklearn", "an estimator of scikit-learn") from error

_FOLDS = 5  # that a coreset's scores of its own training rows are made in


class ExactNeighbors(BaseEstimator):
    """Nearest neighbors of a coreset of the training rows, or of all of them, and scores of novelty by them.

    :meth:`kneighbors` is that of :class:`sklearn.neighbors.NearestNeighbors` with the Euclidean distance; scores, the
    offset and verdicts follow scikit-learn's detectors: higher is more normal, -1 is a novelty.

    The offset comes from scores that training rows get without themselves: with all rows in the bank each is left out
    in turn, with a coreset every fifth row is scored by a coreset of the others. Of normal rows like these, a share of
    ``false_alarm_rate`` is called a novelty; with a coreset slightly fewer may be.

    It is no ``OutlierMixin``, because ``fit_predict`` would have to be ``fit`` and then ``predict``: a training row
    finds itself at distance 0 then. ``training_scores_ < offset_`` are the outliers among the training rows.

    Args:
        n_neighbors: Number of neighbors that :meth:`kneighbors` finds, and whose mean distance is the score.
        ratio: Share of the training rows that exact greedy k-center selects; 1 keeps all of them, in their order.
        false_alarm_rate: Share of normal rows that :meth:`predict` may call novelties; default: 0.01, or the smallest
            that so many training rows can promise if that is larger.
        bank_precision: Precision of the resident search copy, see :class:`mmad_bank.MemoryBank`.
        start: Training row that a coreset begins with.

    Attributes:
        bank_: The :class:`mmad_bank.MemoryBank`; ``bank_.save`` keeps it for other programs.
        coreset_indices_: int64 (M,), the training rows in the bank, in order of selection.
        training_scores_: float64 (N,), the score of each training row without itself.
        offset_: Score below which a row is a novelty.
        n_samples_fit_: Number of training rows.
        n_features_in_: Number of values per row.
        feature_names_in_: Their names, if the training rows were a data frame.

    Example:
        >>> rows = np.random.default_rng(0).normal(size=(500, 8))
        >>> neighbors = ExactNeighbors(ratio=0.2).fit(rows)
        >>> distances, indices = neighbors.kneighbors(rows[:4], n_neighbors=3)
        >>> indices.shape, neighbors.predict([[0.0] * 8, [9.0] * 8]).tolist()
        ((4, 3), [1, -1])
    """

    def __init__(
        self,
        n_neighbors: int = 1,
        *,
        ratio: float = 1.0,
        false_alarm_rate: float | None = None,
        bank_precision: Precision = "auto",
        start: int = 0,
    ) -> None:
        self.n_neighbors = n_neighbors
        self.ratio = ratio
        self.false_alarm_rate = false_alarm_rate
        self.bank_precision = bank_precision
        self.start = start

    def fit(self, X: Any, y: Any = None) -> ExactNeighbors:
        """Keep a coreset of training rows, and score each row without itself.

        Args:
            X: (N, D) normal rows, N at least 2; computed with in float32.
            y: Not used.

        Raises:
            InputError: An argument is out of range. Other errors are scikit-learn's.
        """
        del y
        rows = torch.from_numpy(self._rows(X, reset=True))
        wanted = check_index(self.n_neighbors, "n_neighbors", 1, 2**31 - 1, "at least one neighbor")
        size = coreset_size(len(rows), self.ratio, None)
        check_index(self.start, "start", 0, len(rows) - 1, "the numbers of the training rows")
        if size == len(rows):
            self.bank_ = MemoryBank(rows, bank_precision=self.bank_precision)
        else:
            self.bank_ = MemoryBank.build(rows, size=size, start=self.start, bank_precision=self.bank_precision)
        self.coreset_indices_ = self.bank_.source_rows.numpy()
        self.n_samples_fit_ = len(rows)
        scores = self._scored_alone(wanted) if size == len(rows) else self._scored_in_folds(rows, wanted)
        calibration = Calibration(scores, "training rows", "rows")
        self.training_scores_ = -scores
        self.offset_ = -calibration.threshold(self.false_alarm_rate).score
        return self

    def _scored_alone(self, k: int) -> np.ndarray:
        """Return the mean distance of each vector of the bank to its k nearest others."""
        return self._others(min(k, len(self.bank_) - 1))[0].mean(axis=1, dtype=np.float64)

    def _scored_in_folds(self, rows: torch.Tensor, k: int) -> np.ndarray:
        """Return the mean distance of each training row to its k nearest in a coreset of other rows."""
        scores = np.empty(len(rows))
        fold = torch.arange(len(rows)) % _FOLDS
        for one in range(min(_FOLDS, len(rows))):
            rest, held_out = rows[fold != one], fold == one
            picks = ops.k_center_greedy(rest, coreset_size(len(rest), self.ratio, None))
            distances, _ = ops.knn(rows[held_out], rest[picks], min(k, len(picks)))
            scores[held_out.numpy()] = distances.double().mean(1)
        return scores

    @overload
    def kneighbors(
        self, X: Any = ..., n_neighbors: int | None = ..., return_distance: Literal[True] = ...
    ) -> tuple[np.ndarray, np.ndarray]: ...
    @overload
    def kneighbors(
        self, X: Any = ..., n_neighbors: int | None = ..., *, return_distance: Literal[False]
    ) -> np.ndarray: ...
    def kneighbors(
        self,
        X: Any = None,
        n_neighbors: int | None = None,
        return_distance: bool = True,
    ) -> tuple[np.ndarray, np.ndarray] | np.ndarray:
        """Find the nearest training rows of the bank.

        Args:
            X: (Q, D) queries; default: the bank's own rows, none of which is its own neighbor.
            n_neighbors: Number of neighbors; default: the estimator's.
            return_distance: Whether to return the distances, too.

        Returns:
            Distances float32 (Q, k), nearest first, and int64 (Q, k) numbers of training rows.

        Raises:
            InputError: There are not so many.
        """
        check_is_fitted(self)
        wanted = self.n_neighbors if n_neighbors is None else n_neighbors
        there = len(self.bank_) - (X is None)
        k = check_index(wanted, "n_neighbors", 1, there, "the number of rows in the bank")
        distances, found = self._others(k) if X is None else self._search(self._rows(X), k)
        indices = self.coreset_indices_[found]
        return (distances, indices) if return_distance else indices

    def score_samples(self, X: Any) -> np.ndarray:
        """Return minus the mean distance to the ``n_neighbors`` nearest in the bank (or all of it), float64 (Q,)."""
        check_is_fitted(self)
        distances, _ = self._search(self._rows(X), min(self.n_neighbors, len(self.bank_)))
        return -distances.mean(axis=1, dtype=np.float64)

    def decision_function(self, X: Any) -> np.ndarray:
        """Return the scores above the offset, float64 (Q,): what is negative is a novelty."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> np.ndarray:
        """Return int64 (Q,): 1 for normal rows, -1 for novelties."""
        return np.where(self.decision_function(X) >= 0, 1, -1)

    def _rows(self, values: Any, *, reset: bool = False) -> np.ndarray:
        least = 2 if reset else 1
        rows = validate_data(self, values, dtype=np.float32, order="C", reset=reset, ensure_min_samples=least)
        return rows if rows.flags.writeable else rows.copy()

    def _search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        distances, found = self.bank_.search(queries, k)
        return distances.numpy(), found.numpy()

    def _others(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return distances and bank rows (M, k) of each bank row's nearest others."""
        if k < 1:
            raise InputError("n_neighbors: expected a bank of at least two rows, found one")
        distances, found = self._search(self.bank_.vectors.numpy(), k + 1)
        other = found != np.arange(len(found))[:, None]
        other[other.all(axis=1), -1] = False  # among so many copies of it that it is not among the nearest itself
        return distances[other].reshape(-1, k), found[other].reshape(-1, k)


__all__ = ["ExactNeighbors"]
