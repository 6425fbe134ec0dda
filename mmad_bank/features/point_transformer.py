"""The transformers of point groups that extractors of point clouds have in common: Point-MAE's and Point-BERT's.

Farthest point sampling, groups of nearest points, a small PointNet for each group, and a transformer over the groups,
with the parameter names of the published checkpoints.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, TypeVar, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmad_bank._internal.checks import ArrayLike, as_float_tensor, check_choice, check_index
from mmad_bank._internal.former import formerly
from mmad_bank._internal.precision import ComputeDtype, check_compute_dtype
from mmad_bank._internal.state_dicts import load_matching, read_torch
from mmad_bank.errors import InputError
from mmad_bank.ops import farthest_point_sample, knn_group

BatchNorm = Literal["batch", "running"]
AnyTransformer = TypeVar("AnyTransformer", bound="PointTransformer")

DEPTH, WIDTH, HEADS = 12, 384, 6

_PUBLISHED_FLOOR = 1e-3  # the published sampling kernel passes over points with ‖p‖² up to this
READINGS = {
    ("batch", False): "batch statistics", ("batch", True): "published",
    ("running", False): "paper", ("running", True): "running statistics, not near the origin",
}  # fmt: skip
"""Words for the statistics and for passing over points; two of them stand in files of version 0.1."""
_CHUNK = {"cpu": 1 << 13}  # grouped points encoded at a time: they stay in the caches
_CHUNK_ELSEWHERE = 1 << 18


class _Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(WIDTH, 4 * WIDTH)
        self.fc2 = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, WIDTH // HEADS)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(WIDTH), _Attention()
        self.norm2, self.mlp = nn.LayerNorm(WIDTH), _Mlp()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _GroupEncoder(nn.Module):
    """A small PointNet: points of a group, relative to its centre, to one token.

    The second part sees each point's 256 features behind the group's maximum of them, which is the same for all points
    of a group: its half of the product is taken once per group. No nonlinearity lies between the 256 features and that
    product, so a point's half of it comes from the 128 values before, by the product of both weights.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first_conv = nn.Sequential(nn.Conv1d(3, 128, 1), nn.BatchNorm1d(128), nn.ReLU(), nn.Conv1d(128, 256, 1))
        self.second_conv = nn.Sequential(
            nn.Conv1d(512, 512, 1), nn.BatchNorm1d(512), nn.ReLU(), nn.Conv1d(512, width, 1)
        )

    def forward(self, groups: Tensor, batch_statistics: bool) -> Tensor:
        """Encode (G, S, 3) to (G, width); with ``batch_statistics`` the G·S points normalise themselves.

        Some groups are encoded at a time, so that what comes between stays in the caches.
        """
        parts = groups.split(max(1, _CHUNK.get(groups.device.type, _CHUNK_ELSEWHERE) // groups.shape[1]))
        first = _folded(
            self.first_conv[1], *_weights(self.first_conv[0]), _spread(groups) if batch_statistics else None
        )
        (wide, wide_bias), (last, last_bias) = (_weights(one[3]) for one in (self.first_conv, self.second_conv))
        maxima, sums = [], _Sums()
        for part in parts:
            points = F.relu(F.linear(part, *first))
            maxima.append(F.linear(points, wide).amax(1))
            if batch_statistics:
                sums.add(points)
        whole = torch.cat(maxima).float() + wide_bias
        weight, bias = _behind(self.second_conv[0], wide, wide_bias)
        weight, bias = _folded(self.second_conv[1], weight, bias, sums.beside(whole) if batch_statistics else None)
        of_groups = F.linear(whole, weight[:, 128:], bias)[:, None]
        tokens = []
        for part, of_group in zip(parts, of_groups.split([len(part) for part in parts]), strict=True):
            points = F.linear(F.relu(F.linear(part, *first)), weight[:, :128])
            tokens.append(F.linear(F.relu(points + of_group), last).amax(1))
        return torch.cat(tokens) + last_bias


Spread = tuple[Tensor, Tensor]
"""Mean (C,) and covariance (C, C) of rows, float64."""


def _weights(convolution: Any) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a convolution of width 1."""
    return convolution.weight[:, :, 0], convolution.bias


def _spread(groups: Tensor) -> Spread:
    rows = groups.flatten(0, 1).double()
    mean = rows.mean(0)
    rows = rows - mean
    return mean, rows.T @ rows / len(rows)


class _Sums:
    """First and second moments of points (G, S, C), and sums of each group, added up over parts of the groups."""

    def __init__(self) -> None:
        self.of_groups: list[Tensor] = []
        self.products: list[Tensor] = []
        self.count = 0

    def add(self, points: Tensor) -> None:
        with torch.autocast(points.device.type, enabled=False):
            rows = points.float()
            self.of_groups.append(rows.sum(1).double())
            flat = rows.flatten(0, 1)
            self.products.append((flat.T @ flat).double())
            self.count += len(flat)

    def beside(self, whole: Tensor) -> Spread:
        """Return mean and covariance of rows that hold a point and, behind it, a vector of its group (G, C')."""
        with torch.autocast(whole.device.type, enabled=False):
            sums, own = torch.cat(self.of_groups), whole.double()
            mean = torch.cat([sums.sum(0) / self.count, own.mean(0)])
            mixed = sums.T @ own / self.count
            squares = torch.stack(self.products).sum(0) / self.count
            moments = torch.cat([torch.cat([squares, mixed], 1), torch.cat([mixed.T, own.T @ own / len(own)], 1)])
            return mean, moments - mean[:, None] * mean


def _behind(convolution: Any, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return the second part's first layer as one of a point's 128 values and its group's 256 maxima.

    Its input is [m, V p + v] of maxima m and a point's values p: W [m, V p + v] + b = (W₂ V) p + W₁ m + (W₂ v + b).
    """
    own, own_bias = (one.double() for one in _weights(convolution))
    n = len(weight)
    with torch.autocast(own.device.type, enabled=False):
        of_points, shift = own[:, n:] @ weight.double(), own[:, n:] @ bias.double()
    return torch.cat([of_points, own[:, :n]], 1).float(), (shift + own_bias).float()


def _folded(norm: Any, weight: Tensor, bias: Tensor, spread: Spread | None) -> tuple[Tensor, Tensor]:
    """Put a batch normalisation into the layer before it.

    Normalising is a scale and a shift of the layer's output. Mean and variance of the output are the norm's running
    ones, or those of the layer's own inputs: an input of mean μ and covariance C gives W μ + b and the diagonal of
    W C Wᵀ, whatever its distribution.
    """
    with torch.autocast(weight.device.type, enabled=False):
        rows, shift = weight.double(), bias.double()
        if spread is None:
            mean, variance = norm.running_mean.double(), norm.running_var.double()
        else:
            mean = rows @ spread[0] + shift
            variance = ((rows @ spread[1]) * rows).sum(1).clamp(min=0)
        scale = norm.weight.double() * torch.rsqrt(variance + norm.eps)
        return (rows * scale[:, None]).float(), ((shift - mean) * scale + norm.bias.double()).float()


class _Blocks(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Block() for _ in range(depth))


class PointTransformer(nn.Module):
    """Tokens of groups of points; :class:`PointMAE` and :class:`PointBERT` say what is special to each.

    Args:
        num_groups: G, number of centres sampled in each cloud.
        group_size: S, number of nearest points of each centre.
        layers: Numbers of the blocks whose outputs go through the final norm and are concatenated.
        batch_norm: Mean and variance of the batch normalisations.
        skip_near_origin: Whether sampling passes over points with ‖p‖² ≤ 1e-3.
        compute_dtype: Number type of the products.

    Raises:
        InputError: An argument is out of range.
    """

    kind: ClassVar[str]
    """Name in arguments and files."""
    prefixes: ClassVar[tuple[str, ...]]
    """What published checkpoints have before the names."""
    group_width: ClassVar[int] = WIDTH
    """Values that the group encoder gives."""
    n_prefix: ClassVar[int] = 0
    """Tokens before those of the groups."""

    @formerly(precision="compute_dtype")
    def __init__(
        self,
        num_groups: int = 1024,
        group_size: int = 128,
        *,
        layers: Sequence[int] = (3, 7, 11),
        batch_norm: BatchNorm = "batch",
        skip_near_origin: bool = False,
        compute_dtype: ComputeDtype = "float32",
    ) -> None:
        super().__init__()
        self.num_groups = check_index(num_groups, "num_groups", 1, 2**31 - 1, "groups in a cloud")
        self.group_size = check_index(group_size, "group_size", 1, 2**31 - 1, "points in a group")
        self.layers = tuple(layers)
        self.batch_norm, self.skip_near_origin, self.compute_dtype = batch_norm, skip_near_origin, compute_dtype
        if not self.layers or sorted(set(self.layers)) != list(self.layers) or not set(self.layers) <= {*range(DEPTH)}:
            raise InputError(f"layers: expected rising numbers from 0 to {DEPTH - 1}, found {self.layers}")
        check_choice(batch_norm, get_args(BatchNorm), "batch_norm")
        check_compute_dtype(compute_dtype)
        self.encoder = _GroupEncoder(self.group_width)
        self.pos_embed = nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, WIDTH))
        self.blocks = _Blocks(self.layers[-1] + 1)
        self.norm = nn.LayerNorm(WIDTH)
        self._add_layers()
        self.requires_grad_(False).eval()

    def _add_layers(self) -> None:
        """Make what a network has beside the common parts."""

    def _sequence(self, groups: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the blocks take of encoded groups: tokens and their positions, (B, n_prefix + G, 384)."""
        return groups, position

    @property
    def dim(self) -> int:
        """Number of values in a token: 384 per layer."""
        return WIDTH * len(self.layers)

    @property
    def name(self) -> str:
        """Name of the extractor, as a bank file records it."""
        reading = READINGS[self.batch_norm, self.skip_near_origin]
        return f"{self.kind} {self.num_groups}x{self.group_size} layers {','.join(map(str, self.layers))} {reading}"

    def train(self: AnyTransformer, mode: bool = True) -> AnyTransformer:
        """Stay in evaluation mode: the extractor is frozen, also as a part of a network that is trained."""
        return super().train(False)

    def load_checkpoint(self: AnyTransformer, path: str | os.PathLike[str]) -> AnyTransformer:
        """Load a published checkpoint: a torch file with the key ``base_model``; what is not needed of it is ignored.

        Raises:
            InputError: There is no such file.
            FormatError: It is no such checkpoint, an entry is missing (named), or it is of another architecture.
        """
        state = read_torch(path, "base_model")
        for prefix in self.prefixes:
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
        load_matching(self, state, path)
        return self

    @torch.no_grad()
    def forward(
        self, points: ArrayLike | Sequence[ArrayLike], lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Extract the tokens of a batch of clouds.

        Args:
            points: (B, N, 3), or a sequence of (N_i, 3) clouds of different sizes; finite, in metres for the published
                weights; at least ``num_groups`` and ``group_size`` points each.
            lengths: Number of leading rows of each cloud that count, for a batch padded to N rows.

        Returns:
            Tokens (B, G, 384·layers) float32 and the groups' centres (B, G, 3), in the order of sampling.

        Raises:
            InputError: The shape is another one, a value is not finite, or a cloud has too few points.
        """
        return self.features(points, lengths)

    def features(
        self, points: ArrayLike | Sequence[ArrayLike], lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Extract as :meth:`forward` does, with gradients for weights that want them."""
        device = self.norm.weight.device
        clouds = [cloud.to(device) for cloud in self._clouds(points, lengths)]
        floor = _PUBLISHED_FLOOR if self.skip_near_origin else None
        picks = farthest_point_sample(clouds, self.num_groups, min_norm_sq=floor)
        centers = torch.stack([cloud[rows] for cloud, rows in zip(clouds, picks, strict=True)])
        return self.tokens(self._groups(clouds, centers), centers), centers

    def tokens(self, groups: Tensor, centers: Tensor) -> Tensor:
        """Describe groups of points.

        Args:
            groups: (B·G, S, 3), the points of each group, relative to its center.
            centers: (B, G, 3).

        Returns:
            Tokens (B, G, 384·layers) float32.
        """
        with torch.autocast(centers.device.type, torch.bfloat16, enabled=self.compute_dtype == "bfloat16"):
            encoded = self._encode(groups).view(*centers.shape[:2], self.group_width)
            x, position = self._sequence(encoded, self.pos_embed(centers))
            outputs = []
            for i, block in enumerate(self.blocks.blocks):
                x = block(x + position)
                if i in self.layers:
                    outputs.append(self.norm(x)[:, self.n_prefix :])
        return torch.cat(outputs, dim=-1).float()

    def _encode(self, groups: Tensor) -> Tensor:
        """Encode groups: (B·G, group_width)."""
        if self.batch_norm == "batch":
            return torch.cat([self.encoder(own, True) for own in groups.split(self.num_groups)])
        encoded: Tensor = self.encoder(groups, False)
        return encoded

    def _groups(self, clouds: list[Tensor], centers: Tensor) -> Tensor:
        """Gather the points of every group, relative to its center: (B·G, k, 3)."""
        if len({len(cloud) for cloud in clouds}) == 1:  # one launch on a GPU
            rows = list(knn_group(torch.stack(clouds), centers, self.group_size))
        else:
            rows = [knn_group(cloud, own, self.group_size) for cloud, own in zip(clouds, centers, strict=True)]
        parts = zip(clouds, rows, centers, strict=True)
        return torch.cat([cloud[own_rows] - own_centers[:, None] for cloud, own_rows, own_centers in parts])

    def _clouds(self, points: ArrayLike | Sequence[ArrayLike], lengths: Sequence[int] | None) -> list[Tensor]:
        if isinstance(points, (list, tuple)):
            if lengths is not None:
                raise InputError("lengths: expected None with a sequence of clouds, whose sizes are known")
            clouds = [as_float_tensor(cloud, f"points[{b}]") for b, cloud in enumerate(points)]
        else:
            batch = as_float_tensor(points, "points", ndim=3)
            sizes = [batch.shape[1]] * len(batch) if lengths is None else [int(length) for length in lengths]
            if len(sizes) != len(batch):
                raise InputError(f"lengths: expected {len(batch)} integers, one per cloud, found {len(sizes)}")
            clouds = [cloud[:size] for cloud, size in zip(batch, sizes, strict=True)]
        if not clouds:
            raise InputError("points: expected at least one cloud, found none")
        for b, cloud in enumerate(clouds):
            for name in ("num_groups", "group_size"):
                least = getattr(self, name)
                if len(cloud) < least:
                    raise InputError(f"points[{b}]: expected at least {least} points ({name}), found {len(cloud)}")
        return clouds
