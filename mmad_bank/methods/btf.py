"""BTF (Horwitz and Hoshen 2023, "Back to the Feature"): PatchCore on colour features with FPFH beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmad_bank.features.factory import BUNDLED_STAGES, make_xyz_extractor
from mmad_bank.methods.one_grid_method import OneGridMethod
from mmad_bank.methods.options import accepts_former_names


@accepts_former_names
@dataclass(kw_only=True, eq=False, repr=False)
class BTF(OneGridMethod):
    """One bank of RGB features and fast point feature histograms, concatenated patch by patch.

    The network and its weights are those that the published code gets by asking timm for ``wide_resnet50_2``: timm's
    own training on ImageNet, not torchvision's, which PatchCore takes.

    Example:
        >>> BTF("efficientnet_lite0").rgb
        'efficientnet_lite0'
    """

    name: ClassVar[str] = "btf"
    bundled: ClassVar[Mapping[str, Any]] = {"rgb_layers": BUNDLED_STAGES}

    rgb: str = field(default="wide_resnet50_2.racm_in1k", kw_only=False)

    def _networks(self, weights: str | None) -> dict[str, nn.Module]:
        return {"rgb": self._rgb_network(weights), "xyz": make_xyz_extractor("fpfh", grid=self.grid)}

    def _bank_names(self) -> tuple[str, ...]:
        return ("concatenated",)

    def _compose(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"concatenated": torch.cat([features["rgb"], features["xyz"]], dim=2)}
