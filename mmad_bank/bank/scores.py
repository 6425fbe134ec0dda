"""Scores of images: every patch's distance to its nearest vector, and the image's score from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmad_bank import scoring
from mmad_bank._internal.equal_rows import on_distinct
from mmad_bank.bank.indices import Index


class Rule(NamedTuple):
    """How image scores were made of patch scores; scores of two rules cannot be compared."""

    reweight: scoring.Reweight
    """Rule of the image score, see :func:`mmad_bank.scoring.image_score`."""
    n_neighbors: int
    """Number of vectors around m* that the rule asks for, m* included; a smaller bank gives all it has."""
    divisor: float = 1.0
    """Number that the largest patch score was divided by before the rule."""

    def in_full(self) -> str:
        """Return it as arguments of :meth:`MemoryBank.score`.

        Example:
            >>> Rule("max", 1).in_full()
            "reweight='max', n_neighbors=1, divisor=1"
        """
        return f"reweight={self.reweight!r}, n_neighbors={self.n_neighbors}, divisor={self.divisor:g}"

    def __str__(self) -> str:
        divided = "" if self.divisor == 1 else f", divisor={self.divisor:g}"
        return f"reweight={self.reweight!r}, n_neighbors={self.n_neighbors}{divided}"


class _Columns(NamedTuple):
    patch: Tensor
    image: Tensor
    nearest: Tensor


class Scores(_Columns):
    """What :meth:`MemoryBank.score` returns: a tuple of three tensors, by name.

    Attributes:
        patch: (B, P) float32: Euclidean distance of each patch to its nearest bank vector.
        image: (B,) float32: anomaly score of each image.
        nearest: (B, P) int64: the bank row of that vector, which explains the score (see
            :meth:`MemoryBank.provenance`).
        rule: :class:`Rule` that made ``image`` of ``patch``; None if it is not known.
    """

    rule: Rule | None = None

    def by(self, rule: Rule | None) -> Scores:
        """Return the scores, with the rule that made them noted."""
        self.rule = rule
        return self

    def cpu(self) -> Scores:
        """Return the scores in host memory."""
        return Scores(*(column.cpu() for column in self)).by(self.rule)

    @classmethod
    def of(cls, parts: Sequence[Scores]) -> Scores:
        """Return the scores of images, in the order of the parts, as one; they were made by one rule."""
        return cls(*(torch.cat(columns) for columns in zip(*parts, strict=True))).by(parts[0].rule)


def score_images(
    index: Index, rows: Tensor, std: float, reweight: scoring.Reweight, n_neighbors: int, divisor: float = 1.0
) -> Scores:
    """Score images (M3DM eq. 6 to 8).

    Args:
        index: Index for all that follows, also if the bank is extended meanwhile.
        rows: (B, P, D) float32 on the index's device.
        std: Number that distances are divided by.
        reweight: Rule of the image score, see :func:`mmad_bank.scoring.image_score`.
        n_neighbors: Number of vectors around m*, m* included, at most as many as there are.
        divisor: Number that the largest patch score, or the mean of the largest, is divided by before the rule.
    """
    n_images, n_patches, dim = rows.shape
    distances, nearest = on_distinct(lambda queries: index.search(queries, 1), rows.view(-1, dim))
    distances = distances / std if std != 1.0 else distances
    patch, nearest = distances.view(n_images, n_patches), nearest.view(n_images, n_patches)
    if reweight in scoring.UNWEIGHTED:
        score = scoring.top_mean(patch) if reweight == "top" else patch.amax(1)
        return Scores(patch, score if divisor == 1 else score / divisor, nearest)
    largest, where = patch.max(dim=1)
    image = torch.arange(n_images, device=rows.device)
    around = _neighborhood(index, nearest[image, where], n_neighbors)
    # The distances from the few patches f* are taken from differences: nothing cancels.
    gaps = index.gather(around).double() - rows[image, where].double()[:, None]
    spread = gaps.square_().sum(-1).sqrt_() / std
    return Scores(patch, scoring.image_score(largest, spread, dim, reweight, divisor=divisor), nearest)


def _neighborhood(index: Index, center: Tensor, n: int) -> Tensor:
    """Return bank row m* and its n - 1 nearest others, (B,) -> (B, n), also where the bank holds m* many times."""
    if n == 1:
        return center[:, None]
    found = index.neighbors(center, n)
    absent = ~(found == center[:, None]).any(1)  # n copies of m* with lower row numbers came first
    last = torch.where(absent, center, found[:, -1])
    found = torch.cat([found[:, :-1], last[:, None]], 1)
    first = (found != center[:, None]).int().argsort(dim=1, stable=True)
    return found.gather(1, first)
