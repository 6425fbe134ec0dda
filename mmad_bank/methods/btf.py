"""BTF (Horwitz and Hoshen 2023, "Back to the Feature"): PatchCore on colour features with FPFH beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from mmad_bank import scoring
from mmad_bank.features.factory import BUNDLED_STAGES, PRETRAINED, make_xyz_extractor
from mmad_bank.features.rgb import Precision
from mmad_bank.methods.bank_method import BankMethod
from mmad_bank.ops.knn import Precision as Storage


class BTF(BankMethod):
    """One bank of RGB features and fast point feature histograms, concatenated patch by patch.

    Args:
        rgb: a model's name in timm, or ``"efficientnet_lite0"``.
        rgb_weights: ``"pretrained"``, a checkpoint file, or ``"random"``.
        rgb_layers: stages or blocks; None for the extractor's own (WideResNet: layers 2 and 3).
        image_size: pixels a side of the prepared images.
        grid: (h, w) of the patches.
        ratio: share of the training patches that the bank keeps.
        projection_dim: select in a sparse random projection; None selects on the features themselves.
        reweight: of the image score.
        n_neighbors: of the reweighting; None for the rule's own.
        sigma: of the map's Gaussian, pixels.
        precision: of the RGB extractor's products.
        storage: of the bank's copy in memory; scores do not change.
        seed: of the projection.
        device: where to extract and search; FPFH is computed on the CPU.

    Example:
        >>> BTF("efficientnet_lite0").rgb
        'efficientnet_lite0'
    """

    name: ClassVar[str] = "btf"
    bundled: ClassVar[Mapping[str, Any]] = {"rgb_layers": BUNDLED_STAGES}

    def __init__(
        self,
        rgb: str = "wide_resnet50_2.tv_in1k",
        rgb_weights: str = PRETRAINED,
        *,
        rgb_layers: tuple[int, ...] | None = None,
        image_size: int = 224,
        grid: tuple[int, int] = (28, 28),
        ratio: float = 0.1,
        projection_dim: int | Literal["auto"] | None = None,
        reweight: scoring.Reweight = "m3dm",
        n_neighbors: int | None = None,
        sigma: float = 4.0,
        precision: Precision = "float32",
        storage: Storage = "auto",
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        self.rgb, self.rgb_weights, self.rgb_layers = rgb, rgb_weights, rgb_layers
        self.image_size, self.grid = image_size, grid
        self.ratio, self.projection_dim = ratio, projection_dim
        self.reweight, self.n_neighbors, self.sigma = reweight, n_neighbors, sigma
        self.precision, self.storage = precision, storage
        self.seed, self.device = seed, device
        self._begin()

    def _networks(self, weights: str | None) -> dict[str, nn.Module]:
        return {"rgb": self._rgb_network(weights), "xyz": make_xyz_extractor("fpfh", grid=self.grid)}

    def _bank_names(self) -> tuple[str, ...]:
        return ("concatenated",)

    def _compose(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"concatenated": torch.cat([features["rgb"], features["xyz"]], dim=2)}
