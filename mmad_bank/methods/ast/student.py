"""AST's student: a plain convolutional network, of another architecture than its teacher.

Two networks of one kind tend to go on alike where neither has learnt anything, which hides anomalies. The teacher is
one-to-one, so that unusual features have unusual outputs; nothing in the student's layers makes it follow there.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmad_bank._internal.checks import check_index


class ResidualBlock(nn.Module):
    """Convolution, batch normalization and LeakyReLU, twice, added to what came in.

    Args:
        width: Channels of the maps.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.first_norm, self.second_norm = (nn.BatchNorm2d(width) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width, h, w) to the same shape."""
        inner = F.leaky_relu(self.first_norm(self.first(x)))
        return x + F.leaky_relu(self.second_norm(self.second(inner)))


class Student(nn.Module):
    """The network: features and positions in, the teacher's outputs out.

    Args:
        channels: Channels C of the features and of what comes out.
        condition: Channels D of the map of positions.
        blocks: Number of residual blocks.
        width: Channels within the network.

    Raises:
        InputError: A number is out of its range.

    Example:
        >>> Student(6, 4, blocks=1, width=8)(torch.rand(1, 6, 3, 3), torch.rand(1, 4, 3, 3)).shape
        torch.Size([1, 6, 3, 3])
    """

    def __init__(self, channels: int, condition: int, *, blocks: int = 4, width: int = 1024) -> None:
        super().__init__()
        check_index(blocks, "blocks", 0, 2**10, "residual blocks")
        check_index(width, "width", 1, 2**15, "channels within the student")
        self.first = nn.Conv2d(channels + condition, width, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(width) for _ in range(blocks)))
        self.last = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Map features (B, C, h, w) with their condition (B, D, h, w) to (B, C, h, w)."""
        inner = F.leaky_relu(self.first(torch.cat([x, condition], dim=1)))
        return self.last(self.blocks(inner))
