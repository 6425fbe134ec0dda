"""LSFA's adaptors (Tu et al. 2024, section 3.1): a transformer layer for each modality's patches."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from mmad_bank._internal.checks import check_choice, check_index
from mmad_bank._internal.files import replacing
from mmad_bank._internal.state_dicts import load_state, save_state
from mmad_bank.errors import InputError

Layer = Literal["vanilla", "residual"]

MODALITIES = ("xyz", "rgb")

_HEADS = 12


class Adaptor(nn.Module):
    """One vanilla transformer encoder layer over the patches of an image (LSFA, section 3.1 and table 7).

    Post-norm, ReLU, four times the width inside, and in training a dropout of 0.1 on what is added to the residual
    stream, as in Vaswani et al. 2017. (PyTorch's layer also drops attention weights, which costs most of a step's time
    on a CPU; that is left out.) The paper's inputs come out of a layer norm; those of other extractors need not be near
    unit size, so that one scalar mean and standard deviation of the training features bring them there.

    Its last norm takes the length from features; those that come out of a layer norm have none to lose. It starts as a
    random mixture of patches. ``"residual"``, for other extractors and little data, is the same layer with
    its norms before attention and MLP, whose last weights start at zero: it starts as the identity.

    Args:
        dim: Length of a feature.
        heads: Number of heads of the attention; default: the largest divisor of ``dim`` up to 12.
        layer: Kind of layer, ``"vanilla"`` or ``"residual"``.

    Raises:
        InputError: ``heads`` does not divide ``dim``, or there is no such layer.

    Example:
        >>> adaptor = Adaptor(33).eval()
        >>> adaptor.heads, adaptor(torch.zeros(2, 5, 33)).shape
        (11, torch.Size([2, 5, 33]))
    """

    mean: Tensor
    std: Tensor
    residual: Tensor

    def __init__(self, dim: int, heads: int | None = None, *, layer: Layer = "vanilla") -> None:
        super().__init__()
        self.dim = check_index(dim, "dim", 1, 2**20, "length of a feature")
        self.heads = heads or max(n for n in range(1, _HEADS + 1) if dim % n == 0)
        if dim % self.heads:
            raise InputError(f"heads: expected a divisor of {dim}, found {heads}")
        check_choice(layer, get_args(Layer), "layer")
        self.layer = nn.TransformerEncoderLayer(dim, self.heads, 4 * dim, batch_first=True)
        self.layer.self_attn.dropout = 0.0
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))
        self.register_buffer("residual", torch.tensor(layer == "residual"))  # a file says which layer it holds
        self.layer.norm_first = layer == "residual"
        if layer == "residual":
            for last in (self.layer.self_attn.out_proj, self.layer.linear2):
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)

    def forward(self, patches: Tensor) -> Tensor:
        """Adapt patches (B, P, D); one that is exactly zero, where nothing was measured, is not attended to and stays.

        An image needs one patch that is not zero.
        """
        present = (patches != 0).any(dim=2)
        adapted = self.layer((patches - self.mean) / self.std, src_key_padding_mask=~present)
        return torch.where(present[..., None], adapted, adapted.new_zeros(()))


class FeatureAdaptation(nn.Module):
    """The adaptors of both modalities, Ψ_P and Ψ_I.

    Args:
        xyz_dim: Length of a point feature.
        rgb_dim: Length of an RGB feature.
        layer: Kind of layer, see :class:`Adaptor`.

    Example:
        >>> adaptation = FeatureAdaptation(xyz_dim=12, rgb_dim=8).eval()
        >>> {name: rows.shape[2] for name, rows in adaptation.adapt({"xyz": torch.rand(1, 4, 12)}).items()}
        {'xyz': 12}
    """

    def __init__(self, xyz_dim: int, rgb_dim: int, *, layer: Layer = "vanilla") -> None:
        super().__init__()
        self.adaptors = nn.ModuleDict({"xyz": Adaptor(xyz_dim, layer=layer), "rgb": Adaptor(rgb_dim, layer=layer)})

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Adapt the patches (B, P, D) of the modalities that are given."""
        return {name: self.adaptors[name](patches) for name, patches in features.items()}

    @torch.no_grad()
    def adapt(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Adapt without gradients."""
        return self(features)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the weights to a safetensors file.

        Raises:
            InputError: The file cannot be written; an old one is still there then.
        """
        with replacing(path) as partial:
            save_state(self, partial)

    def load_checkpoint(self, path: str | os.PathLike[str]) -> FeatureAdaptation:
        """Read what :meth:`save` wrote, of either kind of layer.

        Raises:
            InputError: There is no such file.
            FormatError: It is damaged, or of features of other lengths.
        """
        load_state(self, path)
        for adaptor in self.adaptors.values():
            adaptor.layer.norm_first = bool(adaptor.residual)  # type: ignore[union-attr]
        return self
