"""Unsupervised feature fusion (M3DM, section 3.3): two projections learnt by patch-wise contrast between modalities."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmad_bank._internal.checks import check_index
from mmad_bank._internal.equal_rows import on_distinct
from mmad_bank._internal.files import replacing
from mmad_bank._internal.former import formerly
from mmad_bank._internal.precision import ComputeDtype
from mmad_bank._internal.state_dicts import load_state, save_state
from mmad_bank.errors import InputError

HEAD_DIM = 256
Modality = Literal["xyz", "rgb"]

_BLOCK = 2048  # queries whose similarities to all keys exist at a time


class _Mlp(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class FeatureFusion(nn.Module):
    """UFF: a norm and an MLP per modality, whose outputs side by side are the fused feature of a patch (eq. 3).

    Args:
        xyz_dim: Number of values of a 3-D patch feature.
        rgb_dim: Number of values of an RGB patch feature.
        double_loss: Whether the loss is twice the cross-entropy, as in the published code.

    Raises:
        InputError: A dimension is not positive.

    Example:
        >>> uff = FeatureFusion(xyz_dim=12, rgb_dim=8)
        >>> uff.fuse(torch.randn(2, 5, 12), torch.randn(2, 5, 8)).shape
        torch.Size([2, 5, 20])
    """

    def __init__(self, xyz_dim: int = 1152, rgb_dim: int = 768, *, double_loss: bool = False) -> None:
        super().__init__()
        self.xyz_dim = check_index(xyz_dim, "xyz_dim", 1, 2**20, "values of a feature")
        self.rgb_dim = check_index(rgb_dim, "rgb_dim", 1, 2**20, "values of a feature")
        self.double_loss = double_loss
        self.xyz_norm, self.xyz_mlp = nn.LayerNorm(xyz_dim), _Mlp(xyz_dim)
        self.rgb_norm, self.rgb_mlp = nn.LayerNorm(rgb_dim), _Mlp(rgb_dim)
        self.rgb_head, self.xyz_head = nn.Linear(rgb_dim, HEAD_DIM), nn.Linear(xyz_dim, HEAD_DIM)

    @property
    def dim(self) -> int:
        """Values of a fused feature."""
        return self.xyz_dim + self.rgb_dim

    @formerly(precision="compute_dtype")
    def fuse(self, xyz: Tensor, rgb: Tensor, *, compute_dtype: ComputeDtype = "float32") -> Tensor:
        """Fuse features of the same patches: (..., xyz_dim) and (..., rgb_dim) to (..., xyz_dim + rgb_dim) float32.

        No gradients; :meth:`loss` is what trains. ``"bfloat16"`` runs the products in bfloat16.

        Raises:
            InputError: The shapes do not fit.
        """
        self._check(xyz, rgb)
        halves = (
            self.fuse_half("xyz", xyz, compute_dtype=compute_dtype),
            self.fuse_half("rgb", rgb, compute_dtype=compute_dtype),
        )
        return torch.cat(halves, dim=-1)

    def fuse_half(self, modality: Modality, features: Tensor, *, compute_dtype: ComputeDtype = "float32") -> Tensor:
        """Return a modality's half of the fused features: (..., dim) to (..., dim) float32.

        A half depends on its own modality alone: where patches of one modality are repeated beside finer ones of the
        other, their half is computed once; and patches that are equal, such as those without a point, once as well.

        Raises:
            InputError: The shape does not fit.
        """
        self._check_one(modality, features)
        norm, mlp = (self.xyz_norm, self.xyz_mlp) if modality == "xyz" else (self.rgb_norm, self.rgb_mlp)
        device = features.device.type
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=compute_dtype == "bfloat16"):
            (fused,) = on_distinct(lambda rows: (mlp(norm(rows)).float(),), features.reshape(-1, features.shape[-1]))
            return fused.view_as(features)

    def loss(self, xyz: Tensor, rgb: Tensor) -> Tensor:
        """InfoNCE between the modalities (eq. 2): each RGB patch is to be told which 3-D patch lies at its place.

        Cross-entropy of the cosine similarities (temperature 1) of every RGB patch to all 3-D patches given, with its
        own as the target; patches whose 3-D feature is all zeros are left out. The matrix of similarities exists a
        block of rows at a time, also for the gradient.

        Args:
            xyz: (..., xyz_dim), patches of one or more images.
            rgb: (..., rgb_dim), the same patches.

        Returns:
            A scalar; 0, with zero gradients, if every 3-D feature is zero.

        Raises:
            InputError: The shapes do not fit.
        """
        self._check(xyz, rgb)
        there = (xyz != 0).any(dim=-1)
        xyz, rgb = xyz[there], rgb[there]
        queries = F.normalize(self.rgb_head(self.rgb_mlp(self.rgb_norm(rgb))), dim=1)
        keys = F.normalize(self.xyz_head(self.xyz_mlp(self.xyz_norm(xyz))), dim=1)
        total = info_nce_sum(queries, keys) / max(1, len(queries))
        return 2 * total if self.double_loss else total

    def load_checkpoint(self, path: str | os.PathLike[str]) -> FeatureFusion:
        """Load a published checkpoint (a torch file with the key ``model``) or what :meth:`save` wrote.

        Raises:
            InputError: There is no such file.
            FormatError: It is no such checkpoint, or for another architecture or other dimensions.
        """
        return load_state(self, path, "model")

    @property
    def sizes(self) -> dict[str, int]:
        """Lengths of the features that it fuses."""
        return {"xyz_dim": self.xyz_dim, "rgb_dim": self.rgb_dim}

    @staticmethod
    def sizes_in(state: Mapping[str, Tensor]) -> dict[str, int] | None:
        """Return the same of a file's tensors; None if they are another network's."""
        norms = [state.get(f"{name}_norm.weight") for name in ("xyz", "rgb")]
        if any(norm is None for norm in norms) or "xyz_mlp.fc1.weight" not in state:
            return None
        return {f"{name}_dim": len(norm) for name, norm in zip(("xyz", "rgb"), norms, strict=True) if norm is not None}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save the weights: as safetensors if the name ends so, else as a torch file in the published format.

        Raises:
            InputError: The file cannot be written; an old one is still there then.
        """
        with replacing(path) as partial:
            if Path(path).suffix == ".safetensors":
                save_state(self, partial)
            else:
                torch.save({"model": {name: tensor.cpu() for name, tensor in self.state_dict().items()}}, partial)

    def _check(self, xyz: Tensor, rgb: Tensor) -> None:
        self._check_one("xyz", xyz)
        self._check_one("rgb", rgb)
        if xyz.shape[:-1] != rgb.shape[:-1]:
            raise InputError(
                f"rgb: expected the patches of xyz, {tuple(xyz.shape[:-1])}, found {tuple(rgb.shape[:-1])}"
            )

    def _check_one(self, modality: Modality, value: Tensor) -> None:
        dim = self.xyz_dim if modality == "xyz" else self.rgb_dim
        if value.ndim == 0 or value.shape[-1] != dim:
            raise InputError(f"{modality}: expected (..., {dim}), found shape {tuple(value.shape)}")


def info_nce_sum(queries: Tensor, keys: Tensor) -> Tensor:
    """Sum over rows i of -log softmax(queries @ keys.T)[i, i], for normalised (M, C) queries and keys."""
    total = 0 * (queries.sum() + keys.sum())  # of no patches: a zero that still has gradients
    for first in range(0, len(queries), _BLOCK):
        block = queries[first : first + _BLOCK]
        if torch.is_grad_enabled():  # the gradient computes the block's similarities again
            total = total + checkpoint(_block_sum, block, keys, first, use_reentrant=False)
        else:
            total = total + _block_sum(block, keys, first)
    return total


def _block_sum(block: Tensor, keys: Tensor, first: int) -> Tensor:
    target = torch.arange(first, first + len(block), device=keys.device)
    return F.cross_entropy(block @ keys.T, target, reduction="sum")
