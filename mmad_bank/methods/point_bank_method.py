"""Common parts of the methods with banks of point features, beside :mod:`mmad_bank.methods.bank_method`."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from mmad_bank.features.factory import make_xyz_extractor
from mmad_bank.methods.bank_method import BankMethod
from mmad_bank.methods.options import GROUP_SIZE, PointOptions


@dataclass(kw_only=True, eq=False, repr=False)
class PointBankMethod(BankMethod, PointOptions):
    """A method with banks whose point features are Point-MAE's, or FPFH in their place."""

    def _xyz_network(self, weights: str | None) -> nn.Module:
        """Make the extractor of point clouds that the arguments ask for."""
        return make_xyz_extractor(
            self.xyz, weights or self.xyz_weights, num_groups=self.num_groups,
            group_size=self.group_size or GROUP_SIZE, grid=self.grid, image_size=self.image_size, recipe=self.recipe,
            compute_dtype=self.compute_dtype,
        )  # fmt: skip
