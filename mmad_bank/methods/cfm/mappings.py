"""CFM's mappings: features of one modality predicted from those of the other (section 3.2)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import pairwise
from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from mmad_bank._internal.checks import check_choice, check_index
from mmad_bank._internal.state_dicts import load_state
from mmad_bank.errors import InputError

Architecture = Literal["projection", "encoder_decoder", "convolutional"]
Mode = Literal["crossmodal", "intramodal"]

MODALITIES = ("rgb", "xyz")


class CrossmodalMapping(nn.Module):
    """Predicts the features of one modality from those of the other, pixel by pixel (CFM, section 3.2, eq. 1).

    The architectures of the supplement, section B:

    - ``"projection"``, the paper's own and the one that is published: three linear layers, GELU after the first two;
      the hidden width is the mean of input and output, 960 for 768 and 1152;
    - ``"encoder_decoder"``: five linear layers, GELU after all but the last; 768 is mapped over 384, 192, 192 and 384
      to 1152;
    - ``"convolutional"``: two 3×3 convolutions, 2×2 max-pooling, a 3×3 convolution and a 2×2 transposed convolution,
      ReLU after all but the last; all but the last keep the input's channels. It needs whole maps with even sides.

    Args:
        in_dim: Length of a given feature.
        out_dim: Length of a predicted feature.
        architecture: Architecture, one of the above.
        hidden_dim: Width of the hidden layers of ``"projection"``, if it is not the mean.

    Raises:
        InputError: An argument is out of range.

    Example:
        >>> import torch
        >>> mapping = CrossmodalMapping(768, 1152)
        >>> mapping(torch.zeros(5, 768)).shape, mapping.projection.out_features
        (torch.Size([5, 1152]), 960)
    """

    def __init__(
        self, in_dim: int, out_dim: int, *, architecture: Architecture = "projection", hidden_dim: int | None = None
    ) -> None:
        super().__init__()
        self.in_dim = check_index(in_dim, "in_dim", 1, 2**20, "length of a feature")
        self.out_dim = check_index(out_dim, "out_dim", 1, 2**20, "length of a feature")
        check_choice(architecture, get_args(Architecture), "architecture")
        self.architecture = architecture
        if architecture == "projection":
            hidden = (in_dim + out_dim) // 2 if hidden_dim is None else hidden_dim
            self.input = nn.Linear(in_dim, hidden)
            self.projection = nn.Linear(hidden, hidden)
            self.output = nn.Linear(hidden, out_dim)
        elif architecture == "encoder_decoder":
            half, quarter = max(1, in_dim // 2), max(1, in_dim // 4)
            widths = (in_dim, half, quarter, quarter, half, out_dim)
            self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        else:
            self.encode = nn.Sequential(
                nn.Conv2d(in_dim, in_dim, 3, padding=1), nn.ReLU(), nn.Conv2d(in_dim, in_dim, 3, padding=1), nn.ReLU(),
                nn.MaxPool2d(2),
            )  # fmt: skip
            self.decode = nn.Sequential(
                nn.Conv2d(in_dim, in_dim, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(in_dim, out_dim, 2, 2)
            )

    @property
    def needs_maps(self) -> bool:
        """Whether it takes whole maps; else features are mapped one by one."""
        return self.architecture == "convolutional"

    def load_checkpoint(self, path: str | os.PathLike[str]) -> CrossmodalMapping:
        """Load a state dict: CFM's published ones are plain and hold ``input.*``, ``projection.*`` and ``output.*``.

        Raises:
            InputError: There is no such file.
            FormatError: It is no checkpoint, or of another architecture or size.
        """
        return load_state(self, path)

    @property
    def sizes(self) -> dict[str, int]:
        """Lengths of the given and of the predicted features."""
        return {"in_dim": self.in_dim, "out_dim": self.out_dim}

    @staticmethod
    def sizes_in(state: Mapping[str, Tensor]) -> dict[str, int] | None:
        """Return the same of a file's tensors; None if they are not those of the published architecture."""
        if not {"input.weight", "output.weight"} <= state.keys():
            return None
        return {"in_dim": state["input.weight"].shape[1], "out_dim": len(state["output.weight"])}

    def forward(self, x: Tensor) -> Tensor:
        """Map features (..., in_dim) to (..., out_dim); the convolutional architecture takes maps (B, H, W, in_dim)."""
        if x.shape[-1] != self.in_dim:
            raise InputError(f"x: expected (..., {self.in_dim}), found {tuple(x.shape)}")
        if self.architecture == "projection":
            return self.after_input(self.input(x))
        if self.architecture == "encoder_decoder":
            for layer in self.layers[:-1]:
                x = F.gelu(layer(x))
            return self.layers[-1](x)
        if x.ndim != 4 or x.shape[1] % 2 or x.shape[2] % 2:
            raise InputError(f"x: expected maps (B, H, W, {self.in_dim}) with even sides, found {tuple(x.shape)}")
        return self.decode(self.encode(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)

    def after_input(self, hidden: Tensor) -> Tensor:
        """Go on behind the input layer of ``"projection"``: (..., hidden_dim) to (..., out_dim)."""
        return self.output(F.gelu(self.projection(F.gelu(hidden))))


def make_mappings(
    dims: Mapping[str, int], *, architecture: Architecture = "projection", mode: Mode = "crossmodal"
) -> dict[str, CrossmodalMapping]:
    """Make the two mappings, each under the modality that it predicts.

    Args:
        dims: Length of a feature of ``"rgb"`` and of ``"xyz"``.
        architecture: Architecture, see :class:`CrossmodalMapping`.
        mode: ``"intramodal"`` predicts a modality from itself, the ablation of the paper's table 7: the input layer
            alone differs.

    Example:
        >>> make_mappings({"rgb": 768, "xyz": 1152})["rgb"].in_dim
        1152
    """
    hidden = sum(dims[name] for name in MODALITIES) // 2
    return {
        name: CrossmodalMapping(
            dims[source_of(name, mode)], dims[name], architecture=architecture,
            hidden_dim=hidden if architecture == "projection" else None,
        )
        for name in MODALITIES
    }  # fmt: skip


def source_of(modality: str, mode: Mode) -> str:
    """Name the modality that another one is predicted from."""
    check_choice(mode, get_args(Mode), "mode")
    return modality if mode == "intramodal" else {"rgb": "xyz", "xyz": "rgb"}[modality]
