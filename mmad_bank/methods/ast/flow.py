"""AST's teacher: a normalizing flow of conditional coupling blocks on maps of features.

A flow is an invertible network z = f(x) with a cheap Jacobian determinant, so that the density of x follows from the
standard normal one of z: log p(x) = log N(f(x); 0, I) + log |det ∂f/∂x|. A coupling block (Real-NVP, Dinh et al. 2017)
cuts the channels into two, and scales and shifts each part by functions of the other one: whatever these functions
are, the block is inverted by dividing and subtracting, and its determinant is the product of the scales.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmad_bank._internal.checks import check_index

CLAMP = 1.9
_TO_ONE = 0.636  # about 2/π, FrEIA's: log scales lie within ± clamp
KERNEL, LAST_KERNEL = 3, 5


class Subnet(nn.Module):
    """Scales and shifts of one half of the channels, from the other half and the condition: convolution, ReLU,
    convolution, times a learnt γ that starts at 0, so that an untrained block is the identity.

    Args:
        channels: Channels of what comes in.
        out: Channels of what comes out.
        width: Channels between the convolutions.
        kernel: Side of both kernels, odd.
    """

    def __init__(self, channels: int, out: int, width: int, kernel: int) -> None:
        super().__init__()
        padded = {"padding": kernel // 2, "padding_mode": "replicate"}
        self.first = nn.Conv2d(channels, width, kernel, **padded)  # type: ignore[arg-type]
        self.second = nn.Conv2d(width, out, kernel, **padded)  # type: ignore[arg-type]
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, h, w) to (B, out, h, w)."""
        return self.second(self.first(x).relu()) * self.gamma


class CouplingBlock(nn.Module):
    """A permutation of the channels, and two half-couplings: each half is scaled and shifted by the other.

    Args:
        channels: Channels of the maps.
        condition: Channels of the condition.
        width: Channels within the subnets.
        kernel: Side of the subnets' kernels.
        clamp: Bound of the log scales.
        seed: Seed of the permutation, which is fixed.

    Example:
        >>> block = CouplingBlock(4, 0, width=8, kernel=3, clamp=1.9, seed=0)
        >>> x = torch.rand(1, 4, 2, 2)
        >>> y, log_det = block(x, x[:, :0])
        >>> torch.equal(block.inverse(y, x[:, :0]), x), log_det.shape
        (True, torch.Size([1, 2, 2]))
    """

    permutation: Tensor

    def __init__(self, channels: int, condition: int, *, width: int, kernel: int, clamp: float, seed: int) -> None:
        super().__init__()
        self.n_first, self.clamp = channels // 2, clamp
        rest = channels - self.n_first
        self.of_first = Subnet(self.n_first + condition, 2 * rest, width, kernel)
        self.of_rest = Subnet(rest + condition, 2 * self.n_first, width, kernel)
        order = torch.randperm(channels, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("permutation", order)  # kept with the weights, which mean nothing under another one

    @property
    def one_to_one(self) -> bool:
        """Whether its order of the channels holds each of them once."""
        return torch.equal(self.permutation.sort().values.cpu(), torch.arange(len(self.permutation)))

    def forward(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Transform x (B, C, h, w) under a condition (B, D, h, w).

        Returns:
            y (B, C, h, w), and each cell's share of log |det ∂y/∂x|, (B, h, w).
        """
        first, rest = self._halves(x[:, self.permutation])
        log_scale, shift = self._coupling(self.of_rest, rest, condition)
        first = first * log_scale.exp() + shift
        log_det = log_scale.sum(1)
        log_scale, shift = self._coupling(self.of_first, first, condition)
        rest = rest * log_scale.exp() + shift
        return torch.cat([first, rest], dim=1), log_det + log_scale.sum(1)

    def inverse(self, y: Tensor, condition: Tensor) -> Tensor:
        """Return the x of which :meth:`forward` makes y under the same condition."""
        first, rest = self._halves(y)
        log_scale, shift = self._coupling(self.of_first, first, condition)
        rest = (rest - shift) * (-log_scale).exp()
        log_scale, shift = self._coupling(self.of_rest, rest, condition)
        first = (first - shift) * (-log_scale).exp()
        return torch.cat([first, rest], dim=1)[:, self.permutation.argsort()]

    def _halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, : self.n_first], x[:, self.n_first :]

    def _coupling(self, subnet: Subnet, half: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Return log scales, between the clamp's bounds, and shifts of the other half.

        Under autocast the convolutions are of bfloat16, and all that follows is of the maps' own type.
        """
        log_scale, shift = subnet(torch.cat([half, condition], dim=1)).to(half.dtype).chunk(2, dim=1)
        return self.clamp * _TO_ONE * torch.atan(log_scale / self.clamp), shift


class Flow(nn.Module):
    """A normalizing flow of maps (B, C, h, w) under a condition (B, D, h, w).

    Args:
        channels: Channels C of the maps, 2 or more.
        condition: Channels D of the condition.
        blocks: Number of coupling blocks. The kernels are 3×3, those of the last block 5×5.
        width: Channels within the blocks' subnets.
        clamp: Bound of the log scales of one half-coupling.

    Raises:
        InputError: A number is out of its range.

    Example:
        >>> flow = Flow(6, 4, blocks=2, width=8)
        >>> z, log_det = flow(torch.rand(1, 6, 3, 3), torch.rand(1, 4, 3, 3))
        >>> z.shape, log_det.shape
        (torch.Size([1, 6, 3, 3]), torch.Size([1, 3, 3]))
    """

    def __init__(
        self, channels: int, condition: int, *, blocks: int = 4, width: int = 64, clamp: float = CLAMP
    ) -> None:
        super().__init__()
        check_index(channels, "channels", 2, 2**20, "a coupling cuts them in two")
        check_index(blocks, "blocks", 1, 2**10, "a flow has one")
        check_index(width, "width", 1, 2**15, "channels within a block")
        self.channels, self.condition = channels, condition
        kernels = [KERNEL] * (blocks - 1) + [LAST_KERNEL]
        self.blocks = nn.ModuleList(
            CouplingBlock(channels, condition, width=width, kernel=kernel, clamp=clamp, seed=number)
            for number, kernel in enumerate(kernels)
        )

    @property
    def one_to_one(self) -> bool:
        """Whether all its blocks are so; those of a damaged file need not be."""
        return all(block.one_to_one for block in self.blocks)

    def forward(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Transform x (B, C, h, w) to z.

        Returns:
            z (B, C, h, w), and each cell's share of log |det ∂z/∂x|, (B, h, w), whose sum over cells it is.
        """
        log_det = x.new_zeros(x.shape[0], *x.shape[2:])
        for block in self.blocks:
            x, own = block(x, condition)
            log_det = log_det + own
        return x, log_det

    def inverse(self, z: Tensor, condition: Tensor) -> Tensor:
        """Return the x of which :meth:`forward` makes z under the same condition."""
        for block in reversed(list(self.blocks)):
            z = block.inverse(z, condition)  # type: ignore[operator]
        return z


def negative_log_likelihood(z: Tensor, log_det: Tensor) -> Tensor:
    """Return ½‖z‖² − log |det| of every cell, (B, h, w): −log p of x but for a constant.

    Args:
        z: What the flow gives, (B, C, h, w).
        log_det: The cells' shares of the log determinant, (B, h, w).

    Example:
        >>> negative_log_likelihood(torch.full((1, 2, 1, 1), 3.0), torch.ones(1, 1, 1))
        tensor([[[8.]]])
    """
    return 0.5 * z.square().sum(1) - log_det
