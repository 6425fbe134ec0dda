"""anomalib's own Patchcore on features that are given to it: its coreset, search, image score, map and threshold.

Its network and the averaging of its maps are replaced, because the features come from elsewhere and are averaged
already. All other code that runs is anomalib's.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

HOW_TO_INSTALL = "pip install anomalib==2.7.0"
Describe = Callable[[Tensor], Tensor]
"""Pictures (B, 3, H, W) in, patch features (B, h·w, D) out."""


class Patchcore:
    """anomalib's model of Patchcore.

    Args:
        describe: Function that gives the features of pictures.
        grid: (h, w) of the features.

    Raises:
        ImportError: anomalib, or a package that it needs, is not installed.
    """

    RATIO = 0.1
    """Share of the patches that its coreset keeps, its default."""

    def __init__(self, describe: Describe, grid: tuple[int, int]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from anomalib.models.image.patchcore.torch_model import PatchcoreModel
        # The smallest network without weights: it is replaced before it sees a picture.
        self.model: Any = PatchcoreModel(layers=["layer1"], backbone="resnet18", pre_trained=False)
        self.model.feature_extractor = _Given(describe, grid, "layer1")
        self.model.feature_pooler = nn.Identity()

    def fit(self, pictures: Iterable[Tensor], seed: int = 0) -> Patchcore:
        """Collect the features of prepared pictures (3, H, W), and select the coreset by anomalib's own loop."""
        self.model.train()
        for picture in pictures:
            self.model(picture[None])
        torch.manual_seed(seed)  # the first pick, and the signs of the projection
        np.random.seed(seed)  # noqa: NPY002 - its projection draws its columns by scikit-learn's global generator
        self.model.subsample_embedding(self.RATIO)
        self.model.eval()
        return self

    def with_bank(self, vectors: Tensor) -> Patchcore:
        """Take vectors (M, D) for the bank."""
        self.model.memory_bank = vectors
        self.model.eval()
        return self

    def predict(self, picture: Tensor) -> tuple[float, Tensor]:
        """Return score and map (H, W) of a prepared picture (3, H, W)."""
        with torch.no_grad():
            found = self.model(picture[None])
        return float(found.pred_score[0]), found.anomaly_map[0, 0]

    def __len__(self) -> int:
        return len(self.model.memory_bank)


class _Given(nn.Module):
    """Stands in the place of anomalib's network."""

    def __init__(self, describe: Describe, grid: tuple[int, int], layer: str) -> None:
        super().__init__()
        self._describe, self._grid, self._layer = (describe,), grid, layer  # in a tuple: its mode is nobody's business

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        features = self._describe[0](pictures)
        return {self._layer: features.transpose(1, 2).reshape(len(features), -1, *self._grid)}


def f1_threshold(labels: Sequence[int], scores: Sequence[float]) -> float:
    """Return the score of the best F1 on images whose defects are known, as anomalib's F1AdaptiveThreshold finds it.

    Args:
        labels: 0 for good images, 1 for anomalous ones.
        scores: Their scores.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from anomalib.metrics.threshold.f1_adaptive_threshold import _F1AdaptiveThreshold as F1AdaptiveThreshold
    metric: Any = F1AdaptiveThreshold()
    metric.update(torch.tensor(scores), torch.tensor(labels))
    return float(metric.compute())
