"""Common parts of the methods with banks of point features, beside :mod:`mmad_bank.methods.bank_method`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from mmad_bank.features.factory import make_xyz_extractor
from mmad_bank.methods.bank_method import BankMethod
from mmad_bank.methods.options import AlignmentOptions


@dataclass(kw_only=True, eq=False, repr=False)
class PointBankMethod(BankMethod, AlignmentOptions):
    """A method with banks whose point features are Point-MAE's, or FPFH in their place."""

    def _readings(self) -> dict[str, Any]:
        """Return the readings of the point networks' pipeline."""
        return {name: self.reading(name) for name in ("group_size", "batch_norm", "interpolation", "skip_near_origin")}

    def _extraction_facts(self) -> dict[str, Any]:
        return {**super()._extraction_facts(), **self._readings()}

    def _xyz_network(self, weights: str | None) -> nn.Module:
        """Make the extractor of point clouds that the arguments ask for."""
        return make_xyz_extractor(
            self.xyz, weights or self.xyz_weights, num_groups=self.num_groups, grid=self._grid("xyz"),
            image_size=self.image_size, compute_dtype=self.compute_dtype,
            **self._readings(),
        )  # fmt: skip
