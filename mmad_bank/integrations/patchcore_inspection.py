"""The nearest-neighbor search and the samplers of amazon-science/patchcore-inspection, in that project's shapes.

``patchcore.patchcore.PatchCore.load`` takes them as ``featuresampler`` and ``nn_method``. Neither FAISS nor that
project need be installed.
"""

from __future__ import annotations

import os
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from mmad_bank import ops
from mmad_bank._internal.checks import as_features, check_index
from mmad_bank._internal.torch_state import plain_torch
from mmad_bank.errors import InputError, NotFittedError
from mmad_bank.integrations.faiss import IndexFlatL2, read_index, write_index
from mmad_bank.ops.knn import Precision

Features = TypeVar("Features", Tensor, np.ndarray)


class FaissNN:
    """Exact search in the shape of ``patchcore.common.FaissNN``.

    Distances are squared, as there. Files are those of FAISS's flat index: a model that was saved with one class can be
    loaded with the other. Reading them runs no code, whoever wrote them.

    Args:
        on_gpu: Whether to search on the CUDA device.
        num_workers: Taken for the shape's sake: searches use as many threads as PyTorch does.
        bank_precision: Precision of the copy that is searched first, see :class:`mmad_bank.ops.SearchIndex`.

    Attributes:
        search_index: :class:`~mmad_bank.integrations.faiss.IndexFlatL2`, or None before :meth:`fit`.

    Example:
        >>> search = FaissNN()
        >>> search.fit(np.array([[0.0, 0.0], [3.0, 4.0]], np.float32))
        >>> distances, rows = search.run(1, np.array([[3.0, 0.0]], np.float32))
        >>> distances.tolist(), rows.tolist()
        ([[9.0]], [[0]])
    """

    def __init__(self, on_gpu: bool = False, num_workers: int = 4, *, bank_precision: Precision = "auto") -> None:
        del num_workers
        self.on_gpu = on_gpu
        self.search_index: IndexFlatL2 | None = None
        self._device = ops.resolve_device("cuda" if on_gpu else "cpu")
        self._precision: Precision = bank_precision

    def fit(self, features: np.ndarray) -> None:
        """Take vectors (N, D) to search in, instead of earlier ones."""
        self.search_index = self._index_of(features, self._precision)

    def run(
        self, n_nearest_neighbours: int, query_features: np.ndarray, index_features: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find nearest neighbors.

        Args:
            n_nearest_neighbours: Number of neighbors.
            query_features: (Q, D).
            index_features: (N, D) to search in, this once; default: those of :meth:`fit`.

        Returns:
            Squared distances float32 (Q, k) and rows int64 (Q, k), nearest first.

        Raises:
            NotFittedError: There is nothing to search in. It is an AttributeError too, as that project's is.
        """
        if index_features is not None:  # measuring what would be fastest takes longer than one search
            return self._index_of(index_features, "half").search(query_features, n_nearest_neighbours)
        return self._fitted().search(query_features, n_nearest_neighbours)

    def save(self, filename: str | os.PathLike[str]) -> None:
        """Write the vectors as a file of FAISS's flat index."""
        write_index(self._fitted(), filename)

    def load(self, filename: str | os.PathLike[str]) -> None:
        """Read the vectors of a file of FAISS's flat index."""
        self.fit(read_index(filename).reconstruct_n())

    def reset_index(self) -> None:
        """Forget the vectors."""
        self.search_index = None

    def _fitted(self) -> IndexFlatL2:
        if self.search_index is None:
            raise NotFittedError("search_index: expected vectors of fit or load, found none")
        return self.search_index

    def _index_of(self, features: np.ndarray, precision: Precision) -> IndexFlatL2:
        dim = np.shape(features)[-1] if np.ndim(features) else 0
        index = IndexFlatL2(dim, bank_precision=precision, device=self._device)
        index.add(features)
        return index


class GreedyCoresetSampler:
    """Greedy coreset selection in the shape of ``patchcore.sampler.GreedyCoresetSampler``.

    The first row is the one that is farthest from all others together. From there on it is plain greedy k-center.

    Args:
        percentage: Share of the rows to keep, above 0 and below 1; at least one row is kept.
        device: Where to select.
        dimension_to_project_features_to: Dimensions of a random projection to select in, that project's
            ``torch.nn.Linear`` with PyTorch's random numbers; None selects in the features' own space.

    Example:
        >>> sampler = GreedyCoresetSampler(0.5, "cpu", dimension_to_project_features_to=None)
        >>> sampler.run(np.array([[0.0], [1.0], [9.0], [8.5]], np.float32)).tolist()
        [[0.0], [9.0]]
    """

    def __init__(
        self,
        percentage: float,
        device: torch.device | str = "cpu",
        dimension_to_project_features_to: int | None = 128,
    ) -> None:
        if isinstance(percentage, bool) or not isinstance(percentage, (int, float)) or not 0 < percentage < 1:
            raise InputError(f"percentage: expected a share above 0 and below 1, such as 0.1, found {percentage!r}")
        if dimension_to_project_features_to is not None:
            check_index(dimension_to_project_features_to, "dimension_to_project_features_to", 1, 2**31 - 1, "a length")
        self.percentage = percentage
        self.device = ops.resolve_device(device)
        self.dimension_to_project_features_to = dimension_to_project_features_to

    def run(self, features: Features) -> Features:
        """Return a coreset of rows (N, D), of the same kind, on the same device, in order of selection.

        Raises:
            InputError: They are no finite floating-point rows.
        """
        with plain_torch(), torch.no_grad():
            rows = self._projected(as_features(features).to(self.device))
            n_select = max(1, int(len(rows) * self.percentage))
            picks = ops.k_center_greedy(rows, n_select, start=self._first(rows))
        if isinstance(features, Tensor):
            return features[picks.to(features.device)]
        return features[picks.cpu().numpy()]

    def _projected(self, rows: Tensor) -> Tensor:
        dim = self.dimension_to_project_features_to
        if dim is None or dim == rows.shape[1]:
            return rows
        mapping = nn.Linear(rows.shape[1], dim, bias=False)
        return mapping.to(self.device)(rows)

    def _first(self, rows: Tensor) -> int:
        """Return the row whose distances to all rows have the largest norm: their squares need no distance matrix."""
        centered = (rows - rows.mean(0)).double()
        return int(centered.square().sum(1).argmax())


class ApproximateGreedyCoresetSampler(GreedyCoresetSampler):
    """Greedy coreset selection in the shape of ``patchcore.sampler.ApproximateGreedyCoresetSampler``.

    The first row is the farthest, in the mean, from some that NumPy's global generator draws, as in that project. What
    that project approximates is exact here: it never lets a row's distance rise above that mean, and so takes other
    rows at the beginning.

    Args:
        percentage: As for :class:`GreedyCoresetSampler`.
        device: As there.
        number_of_starting_points: How many rows are drawn.
        dimension_to_project_features_to: As there.
    """

    def __init__(
        self,
        percentage: float,
        device: torch.device | str = "cpu",
        number_of_starting_points: int = 10,
        dimension_to_project_features_to: int | None = 128,
    ) -> None:
        super().__init__(percentage, device, dimension_to_project_features_to)
        self.number_of_starting_points = check_index(
            number_of_starting_points, "number_of_starting_points", 1, 2**31 - 1, "at least one row"
        )

    def _first(self, rows: Tensor) -> int:
        count = min(self.number_of_starting_points, len(rows))
        drawn: Any = np.random.choice(len(rows), count, replace=False)  # noqa: NPY002 - that project's generator
        return int(torch.cdist(rows, rows[torch.from_numpy(drawn).to(rows.device)]).mean(1).argmax())
