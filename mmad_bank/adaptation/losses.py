"""LSFA's losses (Tu et al. 2024, sections 3.2 and 3.3) and the banks of features that they are taken against."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mmad_bank._internal.checks import as_features, check_index
from mmad_bank.ops import k_center_greedy
from mmad_bank.ops.knn import knn

Compactness = Literal["distance", "mse"]
Prototype = Literal["kmeans", "mean"]

LOSSES = ("local_alignment", "global_alignment", "local_compactness", "global_compactness")
"""CLC's two and IFC's two: the rows of the paper's tables 4 to 6."""

_LLOYD_STEPS = 10


class FeatureQueue:
    """A first-in-first-out bank of features (LSFA, eq. 5 to 7).

    Args:
        capacity: Largest number of rows that it holds.
        dim: Length of a feature.
        device: Device that it is on.

    Example:
        >>> queue = FeatureQueue(3, 1)
        >>> queue.enqueue(torch.tensor([[0.0], [1.0], [2.0], [3.0]]))
        >>> len(queue), queue.nearest(torch.tensor([[0.2]]))
        (3, tensor([[1.]]))
    """

    def __init__(self, capacity: int, dim: int, device: torch.device | str = "cpu") -> None:
        check_index(capacity, "capacity", 1, 2**31 - 1, "rows of the bank")
        self._rows = torch.zeros(capacity, dim, device=device)
        self._filled, self._next = 0, 0

    def __len__(self) -> int:
        return self._filled

    def enqueue(self, features: Tensor) -> None:
        """Append rows (n, D); the oldest leave when there are too many."""
        capacity = len(self._rows)
        kept = features.detach()[-capacity:]
        places = (self._next + torch.arange(len(kept), device=self._rows.device)) % capacity
        self._rows[places] = kept.to(self._rows)
        self._next = (self._next + len(kept)) % capacity
        self._filled = min(capacity, self._filled + len(kept))

    def nearest(self, queries: Tensor) -> Tensor:
        """Return the entry (n, D) that is nearest to each query, found by the exact search of :mod:`mmad_bank.ops`."""
        _, rows = knn(as_features(queries.detach(), "queries"), self._rows[: self._filled])
        return self._rows[rows[:, 0]]

    def state_dict(self) -> dict[str, Any]:
        """Return all rows and where the next goes."""
        return {"rows": self._rows[: self._filled].clone(), "next": self._next}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Take back what :meth:`state_dict` returned."""
        self._filled, self._next = len(state["rows"]), int(state["next"])
        self._rows[: self._filled] = state["rows"]


def alignment_loss(rgb: Tensor, xyz: Tensor) -> Tensor:
    """Return the InfoNCE of projected features (n, d), row i of one against all of the other (LSFA, eq. 2 and 3).

    Cross-entropy of the inner products with the diagonal as target, the mean over rows. Local: the patches of an image;
    global: the images of a batch.

    Example:
        >>> alignment_loss(torch.eye(2) * 20, torch.eye(2)).round(decimals=6)
        tensor(0.)
    """
    return F.cross_entropy(rgb @ xyz.T, torch.arange(len(rgb), device=rgb.device))


def compactness_loss(features: Tensor, queue: FeatureQueue, kind: Compactness = "distance") -> Tensor:
    """Return how far features (n, D) are from their nearest entries of a bank (LSFA, eq. 5 and 6).

    The search gives the entry; the distance to it is computed again, so that the gradient reaches the feature. The mean
    over features, where the equations have a sum: the weight of the loss should not grow with the patch grid.

    Args:
        features: The queries.
        queue: The bank; an empty one gives 0.
        kind: ``"distance"``, Euclidean as in the equations, or ``"mse"``, mean squared error as in the text.
    """
    if len(queue) == 0:
        return features.sum() * 0
    difference = features - queue.nearest(features)
    return difference.square().mean() if kind == "mse" else difference.norm(dim=1).mean()


def prototype(patches: Tensor, clusters: int = 4) -> Tensor:
    """Return the vector (D,) that stands for an image: the centre of the largest k-means cluster of patches (n, D).

    The paper says k-means, not how many clusters nor which of them. Centres start farthest-first, so that nothing is
    drawn. The gradient goes through the mean of the cluster's patches. One cluster gives the mean of all.

    Example:
        >>> prototype(torch.tensor([[0.0], [0.2], [9.0]]), clusters=2)
        tensor([0.1000])
    """
    clusters = min(clusters, len(patches))
    if clusters == 1:
        return patches.mean(0)
    rows = patches.detach()
    centres = rows[k_center_greedy(rows, clusters)]
    own = torch.zeros(len(rows), dtype=torch.long, device=rows.device)
    for _ in range(_LLOYD_STEPS):
        own = torch.cdist(rows, centres).argmin(1)
        member = F.one_hot(own, clusters).to(rows)
        counts = member.sum(0)
        centres = torch.where(counts[:, None] > 0, member.T @ rows / counts.clamp(min=1)[:, None], centres)
    largest = torch.bincount(own, minlength=clusters).argmax()
    return patches[own == largest].mean(0)
