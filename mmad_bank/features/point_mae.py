"""Point-MAE's encoder (Pang et al. 2022, "Masked Autoencoders for Point Cloud Self-supervised Learning").

The point cloud extractor of M3DM (section 3.2) and CFM, with the parameter names of the published checkpoints.
"""

from __future__ import annotations

from typing import ClassVar

from mmad_bank.features.point_transformer import PointTransformer


class PointMAE(PointTransformer):
    """Tokens of groups of points: farthest point sampling, k-NN groups, a group encoder, a transformer.

    The network is frozen: no gradients, and always in evaluation mode. Weights are random until
    :meth:`load_checkpoint`.

    Args:
        num_groups: G, number of centres sampled in each cloud (M3DM: 1024, or 784).
        group_size: S, number of nearest points of each centre (M3DM: 128, or 64).
        layers: Numbers of the blocks, counted from 0 and rising, whose outputs go through the final norm and are
            concatenated. Blocks after the last of them are not created. CFM's variants: M ``(1, 4, 7)``, S ``(1, 2,
            3)``, T ``(0,)``.
        batch_norm: Mean and variance of the batch normalisations. ``"batch"``: those of the cloud's own groups, a cloud
            at a time, whatever the batch, as in the published code of M3DM and CFM, which never leaves training mode
            (random depth is left out). ``"running"``: those of the checkpoint. They were measured on clouds in the unit
            sphere; on clouds in metres, whose groups are fifty times smaller, they leave all groups nearly alike.
        skip_near_origin: Whether sampling passes over points with ‖p‖² ≤ 1e-3, as the published sampling kernel does.
        compute_dtype: ``"bfloat16"`` runs the matrix products in bfloat16; the tokens come as float32 either way.

    Raises:
        InputError: An argument is out of range.

    Example:
        >>> import torch
        >>> net = PointMAE(num_groups=16, group_size=8)
        >>> tokens, centers = net(torch.rand(2, 100, 3))
        >>> tokens.shape, centers.shape
        (torch.Size([2, 16, 1152]), torch.Size([2, 16, 3]))
    """

    kind: ClassVar[str] = "point_mae"
    prefixes: ClassVar[tuple[str, ...]] = ("module.", "MAE_encoder.", "base_model.")
