"""LSFA's adaptors (Tu et al. 2024, section 3.1 and table 7), of each modality's patches."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from mmad_bank._internal.checks import check_choice, check_index
from mmad_bank._internal.files import replacing
from mmad_bank._internal.state_dicts import load_matching, read_torch, save_state
from mmad_bank.errors import InputError

Layer = Literal["vanilla", "residual", "two_layers", "linear", "convolution"]

MODALITIES = ("xyz", "rgb")

_HEADS = 12


class Adaptor(nn.Module):
    """What adapts the patches of an image: one vanilla transformer encoder layer (LSFA, section 3.1), or another.

    The kinds are those of the paper's table 7, and one more:

    - ``"vanilla"``: post-norm, ReLU, four times the width inside, and in training a dropout of 0.1 on what is added to
      the residual stream, as in Vaswani et al. 2017. (PyTorch's layer also drops attention weights, which costs most of
      a step's time on a CPU; that is left out.) Its last norm takes the length from features; those that come out of a
      layer norm have none to lose. It starts as a random mixture of patches.
    - ``"two_layers"``: two of them, one after the other.
    - ``"linear"``: a linear projection of each patch.
    - ``"convolution"``: 1×1 convolutions over the grid of patches. A single one is the linear projection, so these are
      two with a ReLU between, as a module of the published code that nothing there uses.
    - ``"residual"``, for other extractors and little data: the vanilla layer with its norms before attention and MLP,
      whose last weights start at zero. It starts as the identity.

    The paper's inputs come out of a layer norm; those of other extractors need not be near unit size, so that one
    scalar mean and standard deviation of the training features bring them there.

    Args:
        dim: Length of a feature.
        heads: Number of heads of the attention; default: the largest divisor of ``dim`` up to 12. The kinds without
            attention do not look at it.
        layer: Kind of adaptor.

    Raises:
        InputError: ``heads`` does not divide ``dim``, or there is no such kind.

    Example:
        >>> adaptor = Adaptor(33).eval()
        >>> adaptor.heads, adaptor(torch.zeros(2, 5, 33)).shape
        (11, torch.Size([2, 5, 33]))
        >>> [sum(p.numel() for p in Adaptor(8, layer=kind).parameters()) for kind in ("linear", "convolution")]
        [72, 144]
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
        self.kind = layer
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))
        # A file says by this one and by its names which kind it holds.
        self.register_buffer("residual", torch.tensor(layer == "residual"))
        self.layer = self._layers()

    def forward(self, patches: Tensor) -> Tensor:
        """Adapt patches (B, P, D); one that is exactly zero, where nothing was measured, is not attended to and stays.

        An image needs one patch that is not zero.
        """
        present = (patches != 0).any(dim=2)
        adapted = (patches - self.mean) / self.std
        if self.kind in ("linear", "convolution"):
            adapted = self.layer(adapted)
        else:
            for layer in self.layer if isinstance(self.layer, nn.ModuleList) else [self.layer]:
                adapted = layer(adapted, src_key_padding_mask=~present)
        return torch.where(present[..., None], adapted, adapted.new_zeros(()))

    def _layers(self) -> nn.Module:
        dim = self.dim
        if self.kind == "linear":
            return nn.Linear(dim, dim)
        if self.kind == "convolution":
            return nn.Sequential(_PatchConvolution(dim, dim, 1), nn.ReLU(), _PatchConvolution(dim, dim, 1))
        if self.kind == "two_layers":
            return nn.ModuleList([self._encoder_layer(), self._encoder_layer()])
        return self._encoder_layer()

    def _encoder_layer(self) -> nn.TransformerEncoderLayer:
        layer = nn.TransformerEncoderLayer(self.dim, self.heads, 4 * self.dim, batch_first=True)
        layer.self_attn.dropout = 0.0
        if self.kind == "residual":
            layer.norm_first = True
            for last in (layer.self_attn.out_proj, layer.linear2):
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)
        return layer


class _PatchConvolution(nn.Conv1d):
    """A convolution over patches (B, P, D), channels last; of width 1, so that the grid's shape does not matter."""

    def forward(self, patches: Tensor) -> Tensor:
        return super().forward(patches.transpose(1, 2)).transpose(1, 2)


class FeatureAdaptation(nn.Module):
    """The adaptors of both modalities, Ψ_P and Ψ_I.

    Args:
        xyz_dim: Length of a point feature.
        rgb_dim: Length of an RGB feature.
        layer: Kind of adaptor, see :class:`Adaptor`.

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

    @property
    def sizes(self) -> dict[str, int]:
        """Lengths of the features that they adapt."""
        return {f"{name}_dim": int(self.adaptors[name].dim) for name in MODALITIES}  # type: ignore[arg-type]

    @staticmethod
    def sizes_in(state: Mapping[str, Tensor]) -> dict[str, int] | None:
        """Return the same of a file's tensors; None if they are another network's."""
        layers = {
            name: [one for key, one in state.items() if key.startswith(f"adaptors.{name}.layer.") and one.ndim]
            for name in MODALITIES
        }
        # No tensor of a layer, of whatever kind, has fewer rows than a feature has values; norms have as many.
        return {f"{name}_dim": min(map(len, own)) for name, own in layers.items()} if all(layers.values()) else None

    def load_checkpoint(self, path: str | os.PathLike[str]) -> FeatureAdaptation:
        """Read what :meth:`save` wrote; the adaptors become those of the file's kind.

        Raises:
            InputError: There is no such file.
            FormatError: It is damaged, or of features of other lengths.
        """
        state = read_torch(path)
        dims = {name: adaptor.dim for name, adaptor in self.adaptors.items()}
        read = FeatureAdaptation(dims["xyz"], dims["rgb"], layer=kind_in(state))  # type: ignore[arg-type]
        load_matching(read, state, path)
        place = next(self.parameters()).device
        self.adaptors = read.to(place).train(self.training).adaptors
        return self


def kind_in(state: Mapping[str, Tensor]) -> Layer:
    """Return the kind of adaptors that a file holds; the first versions had vanilla and residual ones only."""
    layer = "adaptors.xyz.layer."
    for kind, name in (("linear", "weight"), ("convolution", "2.weight"), ("two_layers", "1.linear1.weight")):
        if layer + name in state:
            return kind  # type: ignore[return-value]
    return "residual" if bool(state.get("adaptors.xyz.residual", torch.zeros(1)).any()) else "vanilla"
