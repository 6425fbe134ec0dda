"""The sinusoidal map of positions that teacher and student of AST are given."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mmad_bank._internal.checks import check_index
from mmad_bank.errors import InputError

_LONGEST = 10_000.0  # of Transformers' encoding (Vaswani et al. 2017), which the map takes for each axis


def check_channels(channels: int, name: str = "channels") -> int:
    """Return a number of channels that an encoding of two axes by sines and cosines can have.

    Raises:
        InputError: It is no multiple of 4.
    """
    check_index(channels, name, 4, 2**15, "sine and cosine of rows and columns")
    if channels % 4:
        raise InputError(f"{name}: expected a multiple of 4, sine and cosine of rows and columns, found {channels}")
    return channels


def position_map(channels: int, grid: tuple[int, int]) -> Tensor:
    """Encode the place of every cell of a grid as CFLOW-AD and AST do.

    The first half of the channels encodes the column, the second half the row: channel 2k of a half is sin(x·f_k), and
    channel 2k + 1 is cos(x·f_k), with f_k = 10000^(-4k/channels).

    Args:
        channels: Number of channels C, a multiple of 4.
        grid: (h, w).

    Returns:
        (C, h, w), float32, from -1 to 1.

    Raises:
        InputError: ``channels`` is no multiple of 4.

    Example:
        >>> position_map(4, (1, 2)).squeeze(1)  # the rows say where, the columns are the two cells
        tensor([[0.0000, 0.8415],
                [1.0000, 0.5403],
                [0.0000, 0.0000],
                [1.0000, 1.0000]])
    """
    check_channels(channels)
    frequencies = torch.exp(torch.arange(channels // 4, dtype=torch.float64) * (-4 * math.log(_LONGEST) / channels))
    rows, columns = (_encoded(length, frequencies) for length in grid)
    h, w = grid
    both = [columns[:, None, :].expand(-1, h, w), rows[:, :, None].expand(-1, h, w)]
    return torch.cat(both).float()


def _encoded(length: int, frequencies: Tensor) -> Tensor:
    """Return sines and cosines of the places along an axis, in turn, (channels / 2, length)."""
    angles = frequencies[:, None] * torch.arange(length, dtype=torch.float64)
    return torch.stack([angles.sin(), angles.cos()], dim=1).flatten(0, 1)
