"""PatchCore (Roth et al. 2022): one memory bank of RGB patch features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from mmad_bank import scoring
from mmad_bank.features.factory import BUNDLED_STAGES
from mmad_bank.methods.one_grid_method import OneGridMethod
from mmad_bank.methods.options import accepts_former_names


@accepts_former_names
@dataclass(kw_only=True, eq=False, repr=False)
class PatchCore(OneGridMethod):
    """Patches of mid-level feature maps, a greedy coreset of the normal ones, and the distance to the nearest.

    Locally aware patch features of WideResNet-50-2 (section 3.1), a coreset of 10 % (section 3.2), the image score
    reweighted by the crowding around the nearest vector (section 3.3). The weights are the published code's:
    torchvision's first ones on ImageNet (``IMAGENET1K_V1``), which timm names ``tv_in1k``.

    Example:
        >>> from mmad_bank.data import open_dataset
        >>> method = PatchCore("efficientnet_lite0")
        >>> method.fit(open_dataset("parts", "bagel", "train"))  # doctest: +SKIP
        >>> method.predict(open_dataset("parts", "bagel", "test")[0]).score  # doctest: +SKIP
        1.84
    """

    name: ClassVar[str] = "patchcore"
    bundled: ClassVar[Mapping[str, Any]] = {"rgb_layers": BUNDLED_STAGES, "image_size": 320, "grid": (40, 40)}
    """Chosen on painted pictures, see benchmarks/README.md, ``bundled``."""

    reweight: scoring.Reweight = "patchcore"

    def _networks_needed(self) -> set[str]:
        return {"rgb"}

    def _networks(self, weights: str | None) -> dict[str, nn.Module]:
        return {"rgb": self._rgb_network(weights)}

    def _bank_names(self) -> tuple[str, ...]:
        return ("rgb",)
