"""Point-BERT's transformer (Yu et al. 2022, "Pre-training 3D Point Cloud Transformers with Masked Point Modeling").

M3DM compares it with Point-MAE. The parameter names are those of the published checkpoint.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from mmad_bank.features.point_transformer import WIDTH, PointTransformer


class PointBERT(PointTransformer):
    """Tokens of groups of points: as :class:`PointMAE`, whose arguments it takes, with three differences.

    The group encoder gives 256 values, which a linear layer brings to 384. A class token, with a position of its own,
    goes through the blocks with the groups' tokens, and is left out of what is returned. The checkpoint is that of the
    pre-training (``Point-BERT.pth``): of the two transformers in it the one that was trained, ``transformer_q``, is
    taken, as M3DM's published code does.

    Args:
        num_groups: G, number of centres sampled in each cloud.
        group_size: S, number of nearest points of each centre (pre-training: 32).
        layers: Numbers of the blocks, counted from 0 and rising, whose outputs go through the final norm and are
            concatenated.
        batch_norm: Mean and variance of the batch normalisations, ``"batch"`` or ``"running"``.
        skip_near_origin: Whether sampling passes over points with ‖p‖² ≤ 1e-3.
        compute_dtype: ``"bfloat16"`` runs the matrix products in bfloat16; the tokens come as float32 either way.

    Raises:
        InputError: An argument is out of range.

    Example:
        >>> net = PointBERT(num_groups=16, group_size=8)
        >>> tokens, centers = net(torch.rand(2, 100, 3))
        >>> tokens.shape, centers.shape
        (torch.Size([2, 16, 1152]), torch.Size([2, 16, 3]))
    """

    kind: ClassVar[str] = "point_bert"
    prefixes: ClassVar[tuple[str, ...]] = ("module.", "transformer_q.", "base_model.")
    group_width: ClassVar[int] = 256
    n_prefix: ClassVar[int] = 1

    def _add_layers(self) -> None:
        self.reduce_dim = nn.Linear(self.group_width, WIDTH)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.cls_pos = nn.Parameter(torch.randn(1, 1, WIDTH))

    def _sequence(self, groups: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        n = len(groups)
        tokens = torch.cat([self.cls_token.expand(n, -1, -1), self.reduce_dim(groups)], dim=1)
        return tokens, torch.cat([self.cls_pos.expand(n, -1, -1).to(position), position], dim=1)
