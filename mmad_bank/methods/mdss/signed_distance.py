"""Signed distances of points to the normal surface, learnt from patches of normal clouds (MDSS, section 3.2).

The model is that of Shape-guided (Chu et al. 2023): a PointNet (Qi et al. 2017) describes a patch by a code, and an
implicit function (Ma et al. 2022) of point and code says how far the point is from the patch's surface. Nobody knows
true distances: the function is trained by pulling points onto the surface along its gradient.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from mmad_bank._internal.checks import ArrayLike, as_float_tensor, check_finite, check_index
from mmad_bank._internal.state_dicts import load_matching, read_torch
from mmad_bank._internal.training import as_tensor, check_rate, cosine_rate, generator_at, sample_order, seeded, train
from mmad_bank.errors import InputError
from mmad_bank.ops import farthest_point_sample, knn_group

Aggregation = Literal["min", "mean"]

PATCH_SIZE, WIDTH = 500, 512
_CODE, _HIDDEN_LAYERS = 128, 7
_NEIGHBOUR = 50  # whose distance is the noise's unit
_NEAR, _FAR, _P_NEAR = 0.5, 1.0, 13 / 20  # standard deviations of the queries' noise, and how often the first
_TINY = 1e-12
_SCORED_AT_ONCE = 1 << 12  # points: what the widest layer makes of them stays in a CPU's cache


@dataclass(frozen=True)
class CloudPatches:
    """Overlapping patches of one cloud.

    Attributes:
        points: (P, K, 3) float32, each patch centred on its mean and divided by its extent (the longest side of its
            bounding box).
        rows: (P, K) int64, which points of the cloud these are.
        count: How many of the K are distinct points: K, or all points of a smaller cloud, which are repeated in order.
    """

    points: Tensor
    rows: Tensor
    count: int


def cut_patches(points: ArrayLike, *, size: int = PATCH_SIZE, coverage: float = 5.0) -> CloudPatches:
    """Cut a cloud into patches of its nearest points around farthest-point samples (MDSS, section 4.2).

    Every point is in one patch at least: around a point that the sampled patches leave out, the first in order, one
    more patch is cut until none is left.

    Args:
        points: (N, 3), in any unit.
        size: K, points a patch. A cloud of fewer points is one patch in which they repeat.
        coverage: In how many patches a point lies on average; round(coverage · N / K) patches are sampled.
            Shape-guided's code takes 5 in training and 10 in inference.

    Returns:
        The patches, on the points' device.

    Raises:
        InputError: An argument has the wrong shape, holds NaN or infinity, or is out of range.

    Example:
        >>> patches = cut_patches(torch.rand(1200, 3), size=100, coverage=2.0)
        >>> patches.points.shape[1:], patches.count, len(patches.points) >= 24
        (torch.Size([100, 3]), 100, True)
    """
    cloud = as_float_tensor(points, "points")
    if cloud.shape[1] != 3 or len(cloud) == 0:
        raise InputError(f"points: expected (N, 3) with at least one point, found shape {tuple(cloud.shape)}")
    check_finite(cloud, "points")
    check_index(size, "size", 1, 2**20, "points a patch")
    if not 0 < coverage < math.inf:
        raise InputError(f"coverage: expected a positive finite number, found {coverage!r}")
    count = min(size, len(cloud))
    n_patches = 1 if len(cloud) <= size else min(len(cloud), max(1, round(coverage * len(cloud) / size)))
    centres = farthest_point_sample(cloud[None], n_patches)[0]
    rows = knn_group(cloud, cloud[centres], count)
    left = torch.ones(len(cloud), dtype=torch.bool, device=cloud.device)
    left[rows] = False
    while bool(left.any()):
        # With many duplicates a point need not be among its own nearest: it takes the last place then.
        centre = int(left.nonzero()[0, 0])
        more = knn_group(cloud, cloud[centre][None], count)
        more[0, -1] = torch.where((more == centre).any(), more[0, -1], centre)
        rows = torch.cat([rows, more])
        left[more] = False
    repeated = rows[:, torch.arange(size, device=rows.device) % count]
    patches = cloud[repeated].double()
    low, high = patches.amin(1, keepdim=True), patches.amax(1, keepdim=True)
    extent = (high - low).amax(2, keepdim=True)
    centred = patches - cloud[rows].double().mean(1, keepdim=True)
    scaled = centred / torch.where(extent > 0, extent, 1.0)
    return CloudPatches(scaled.float(), repeated, count)


class PointEncoder(nn.Module):
    """PointNet without its transforms: patches (B, K, 3) to codes (B, 128), by shared layers and a maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = nn.Conv1d(3, 64, 1), nn.Conv1d(64, 128, 1), nn.Conv1d(128, 1024, 1)
        self.bn1, self.bn2, self.bn3 = nn.BatchNorm1d(64), nn.BatchNorm1d(128), nn.BatchNorm1d(1024)
        self.fc1, self.fc2 = nn.Linear(1024, 512), nn.Linear(512, _CODE)
        self.bn4, self.bn5 = nn.BatchNorm1d(512), nn.BatchNorm1d(_CODE)

    def forward(self, patches: Tensor) -> Tensor:
        """Encode patches."""
        x = self._largest_in_training(patches) if self.training else self._largest(patches)
        x = F.relu(self.bn4(self.fc1(x)))
        return F.relu(self.bn5(self.fc2(x)))

    def _largest(self, patches: Tensor) -> Tensor:
        """Return the maxima (B, 1024) over the points, with fixed statistics, which are a part of the weights then.

        Adding a bias and cutting off below zero are monotone, so in the widest layer they come after the maximum: its
        1024 values a point are passed over once instead of four times.
        """
        x = patches
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2)):
            x = F.relu(F.linear(x, *_folded(conv, norm)))
        weight, bias = _folded(self.conv3, self.bn3)
        return F.relu(F.linear(x, weight).amax(1) + bias)

    def _largest_in_training(self, patches: Tensor) -> Tensor:
        """Return the same with the batch's statistics, without the widest layer's gradient at every point.

        That layer is linear. So mean and variance of its outputs W x are W μ and the diagonal of W Σ Wᵀ, with μ and Σ
        of its 128 inputs; and the norm being monotone in each output, which point is the largest is known before it.
        Only those points need a gradient.
        """
        x = patches.transpose(1, 2)
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2)):
            x = F.relu(norm(conv(x)))
        x = x.transpose(1, 2).contiguous()
        weight, bias, norm = self.conv3.weight[..., 0], self.conv3.bias, self.bn3
        assert bias is not None
        with torch.no_grad():  # a negative scale of the norm turns the order round
            signed = weight * torch.where(norm.weight < 0, -1.0, 1.0)[:, None]
            places = F.linear(x, signed).argmax(1) + x.shape[1] * torch.arange(len(x), device=x.device)[:, None]
        rows = x.flatten(0, 1)
        # index_select adds its gradients in one order; an index in brackets would add them as threads come.
        chosen = rows.index_select(0, places.flatten()).unflatten(0, places.shape)
        largest = torch.einsum("bcd,cd->bc", chosen, weight) + bias
        mean = rows.mean(0)
        centred = rows - mean
        means = weight @ mean + bias
        variances = ((weight @ (centred.T @ centred / len(rows))) * weight).sum(1)
        _update_statistics(norm, means, variances, len(rows))
        return F.relu((largest - means) * (variances + norm.eps).rsqrt() * norm.weight + norm.bias)


@torch.no_grad()
def _update_statistics(norm: nn.BatchNorm1d, means: Tensor, variances: Tensor, n: int) -> None:
    """Let a batch norm's running statistics follow a batch of n rows, as PyTorch's own does."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.momentum is not None
    assert norm.num_batches_tracked is not None
    norm.running_mean.lerp_(means, norm.momentum)
    norm.running_var.lerp_(variances * (n / (n - 1)), norm.momentum)
    norm.num_batches_tracked += 1


def _folded(conv: nn.Conv1d, norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Return weight (out, in) and bias (out,) of a pointwise convolution and a batch norm of fixed statistics."""
    assert conv.bias is not None
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return conv.weight[..., 0] * scale[:, None], (conv.bias - norm.running_mean) * scale + norm.bias


class ImplicitFunction(nn.Module):
    """Signed distance of a point, given the code of a patch.

    It begins as roughly a sphere of radius 1/2: the last layer adds up the activations with equal weights and
    subtracts 1/2 (Atzmon and Lipman 2020).
    """

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.width = width
        self.point, self.code = nn.Linear(3, width), nn.Linear(_CODE, width)
        self.joint = nn.Linear(2 * width, width)
        hidden = [nn.Linear(width, width) for _ in range(_HIDDEN_LAYERS)]
        for layer in (self.joint, *hidden):
            nn.init.normal_(layer.weight, 0.0, math.sqrt(2 / width))
            nn.init.zeros_(layer.bias)
        self.hidden = nn.ModuleList(weight_norm(layer) for layer in hidden)
        self.out = nn.Linear(width, 1)
        nn.init.normal_(self.out.weight, 2 * math.sqrt(math.pi / width), 1e-6)
        nn.init.constant_(self.out.bias, -0.5)

    def forward(self, points: Tensor, codes: Tensor) -> Tensor:
        """Return signed distances (B, Q) of points (B, Q, 3), given codes (B, 128)."""
        # A patch's code is the same for all its points, so its half of the product is taken once.
        of_points, of_codes = self.joint.weight.split(self.width, dim=1)
        whole = F.linear(F.relu(self.code(codes)), of_codes, self.joint.bias)
        x = F.relu(F.linear(F.relu(self.point(points)), of_points) + whole[:, None])
        for layer in self.hidden:
            x = F.relu(layer(x))
        return self.out(x)[..., 0]


class SignedDistance(nn.Module):
    """Encoder and implicit function together: what one category's normal surface looks like.

    Args:
        width: Of the implicit function's layers; 512 in the papers.

    Example:
        >>> net = SignedDistance(width=16).eval()
        >>> net.score(torch.rand(300, 3), size=100, coverage=2.0).shape
        torch.Size([300])
    """

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.width = check_index(width, "width", 1, 2**13, "width of the layers")
        self.encoder, self.implicit = PointEncoder(), ImplicitFunction(width)

    def forward(self, queries: Tensor, patches: Tensor) -> Tensor:
        """Return the signed distances (B, Q) of queries (B, Q, 3) to the surfaces of patches (B, K, 3)."""
        return self.implicit(queries, self.encoder(patches))

    def pull(self, queries: Tensor, patches: Tensor) -> Tensor:
        """Move queries (B, Q, 3) along the gradient by their signed distance: q - f(q) ∇f(q) / ‖∇f(q)‖."""
        with torch.enable_grad():
            queries = queries.detach().requires_grad_()
            distance = self(queries, patches)
            (gradient,) = torch.autograd.grad(distance.sum(), queries, create_graph=True)
        length = (gradient.square().sum(-1, keepdim=True) + _TINY).sqrt()
        return queries - distance[..., None] * gradient / length

    @torch.no_grad()
    def score(
        self,
        points: ArrayLike,
        *,
        size: int = PATCH_SIZE,
        coverage: float = 10.0,
        aggregation: Aggregation = "min",
    ) -> Tensor:
        """Score the points of a cloud by their distance to the surface that their patch should have.

        Args:
            points: (N, 3), on the network's device or the CPU.
            size: Points a patch, as in training.
            coverage: See :func:`cut_patches`.
            aggregation: Over the patches that hold a point: ``"min"`` (Shape-guided's code) or ``"mean"``; MDSS does
                not say.

        Returns:
            (N,) float32 on the CPU, |signed distance| in units of the patches' extents.

        Raises:
            InputError: An argument is out of range.
        """
        if aggregation not in get_args(Aggregation):
            raise InputError(f"aggregation: expected one of {', '.join(get_args(Aggregation))}, found {aggregation!r}")
        cloud = as_float_tensor(points, "points").cpu()
        cut = cut_patches(cloud, size=size, coverage=coverage)
        device = next(self.parameters()).device
        # Summed on the CPU, in one order: the same bytes on every run.
        scores = torch.full((len(cloud),), torch.inf) if aggregation == "min" else torch.zeros(len(cloud))
        for part in torch.arange(len(cut.points)).split(max(1, _SCORED_AT_ONCE // size)):
            patches = cut.points[part].to(device)
            distances = self(patches[:, : cut.count], patches).abs().cpu().flatten()
            rows = cut.rows[part, : cut.count].flatten()
            scores.scatter_reduce_(0, rows, distances, "amin" if aggregation == "min" else "sum")
        if aggregation == "mean":
            scores /= torch.bincount(cut.rows[:, : cut.count].flatten(), minlength=len(cloud))
        return scores

    def load(self, path: str | os.PathLike[str]) -> SignedDistance:
        """Load weights that were saved from such a network."""
        load_matching(self, read_torch(path), path)
        return self.eval()


def draw_queries(
    patches: Tensor, counts: Tensor, n_queries: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw points near the surface of patches, and find the surface points that they should be pulled onto.

    A query is a point of the patch plus Gaussian noise; with σ the distance from that point to its 50th neighbour, the
    standard deviation is 0.5 σ for 13 queries in 20 and 1 σ for 7 (Shape-guided's code).

    Args:
        patches: (B, K, 3).
        counts: (B,) int64, distinct points of each, which come first.
        n_queries: Q, at most K; different points as long as there are.
        generator: On the CPU.

    Returns:
        Queries and targets, both (B, Q, 3) on the patches' device.

    Example:
        >>> patches = torch.rand(2, 100, 3)
        >>> queries, targets = draw_queries(patches, torch.tensor([100, 100]), 30, torch.Generator().manual_seed(0))
        >>> queries.shape, bool((targets[:, :, None] == patches[:, None]).all(3).any(2).all())
        (torch.Size([2, 30, 3]), True)
    """
    n_patches, size, _ = patches.shape
    counts = counts.to(patches.device)
    rows = torch.rand(n_patches, size, generator=generator).argsort(1)[:, :n_queries].to(patches.device)
    near = torch.rand(n_patches, n_queries, generator=generator) < _P_NEAR
    noise = torch.randn(n_patches, n_queries, 3, generator=generator)
    noise = (noise * torch.where(near, _NEAR, _FAR)[..., None]).to(patches.device)
    chosen = _rows_of(patches, rows)
    repeated = torch.arange(size, device=patches.device) >= counts[:, None]
    distances = _distances(chosen, patches).masked_fill(repeated[:, None], torch.inf)
    nearest = distances.topk(min(_NEIGHBOUR + 1, size), largest=False).values  # the first is the point itself
    last = (counts - 1).clamp(max=nearest.shape[2] - 1)
    sigma = nearest.gather(2, last[:, None, None].expand(-1, n_queries, 1))
    queries = chosen + sigma * noise
    return queries, _rows_of(patches, _distances(queries, patches).argmin(2))


def train_signed_distance(
    patches: Tensor | np.ndarray,
    counts: Tensor | None = None,
    *,
    width: int = WIDTH,
    steps: int = 20_000,
    batch: int = 32,
    queries: int | None = None,
    lr: float = 1e-4,
    seed: int = 0,
    resume: str | os.PathLike[str] | None = None,
    save_every: int = 50,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> SignedDistance:
    """Train encoder and implicit function on normal patches of one category (MDSS, section 3.2, table 1).

    The loss is the mean distance between pulled queries and their targets. Adam; the learning rate falls as a cosine.
    MDSS gives neither steps nor the initial rate; Shape-guided trains its model at 1e-4 for 3001 passes over the
    patches of all categories.

    Args:
        patches: (P, K, 3) of all training clouds (:func:`cut_patches`).
        counts: (P,) int64, distinct points of each; None if all are.
        width: See :class:`SignedDistance`.
        steps: Optimizer steps.
        batch: Patches a step, 2 or more (batch normalisation needs them).
        queries: Points drawn for each; None for K, as the papers.
        lr: Initial learning rate.
        seed: Of initial weights, order of patches, and queries.
        resume: File of the training's state, see :func:`mmad_bank.fusion.train_fusion`.
        save_every: Steps between saved states.
        device: Where to train.
        progress: Show a bar on a terminal.

    Returns:
        The trained network on ``device``, in evaluation mode.

    Raises:
        InputError: An argument is out of range.
        FormatError: ``resume`` is no state of a training, or of one with other arguments.
        MmadBankError: The loss is not finite; the message names the step.

    Example:
        >>> patches = cut_patches(torch.rand(400, 3), size=64).points
        >>> train_signed_distance(patches, width=8, steps=2, batch=4, queries=16).width
        8
    """
    if patches.ndim != 3 or patches.shape[2] != 3 or 0 in patches.shape:
        raise InputError(f"patches: expected (P, K, 3), found shape {tuple(patches.shape)}")
    n_patches, size = int(patches.shape[0]), int(patches.shape[1])
    queries = size if queries is None else queries
    check_index(queries, "queries", 1, size, "the points of a patch")
    check_index(steps, "steps", 1, 2**31 - 1, "training needs one")
    check_index(batch, "batch", 2, 2**31 - 1, "batch normalisation needs two patches")
    counts = torch.full((n_patches,), size) if counts is None else counts
    arguments = {
        "steps": steps, "batch": batch, "queries": queries, "lr": check_rate(lr), "seed": seed, "width": width,
        "patches": n_patches, "size": size,
    }  # fmt: skip
    with seeded(seed):
        net = SignedDistance(width)
    net.to(device).train()

    def losses(step: int) -> Iterator[Tensor]:
        chosen = sample_order(n_patches, step * batch, batch, seed)
        part = as_tensor(patches[chosen], torch.float32).to(device)
        yield pulling_loss(net, part, *draw_queries(part, counts[chosen], queries, generator_at(seed, 1, step)))

    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    train(
        losses, {"model": net}, optimizer, kind="signed distance", caller="train_signed_distance", arguments=arguments,
        rate=lambda step: cosine_rate(step, steps=steps, lr=lr), resume=resume, save_every=save_every, device=device,
        progress=progress,
    )  # fmt: skip
    return net.eval()


def pulling_loss(net: SignedDistance, patches: Tensor, queries: Tensor, targets: Tensor) -> Tensor:
    """Return the mean distance, not squared, from pulled queries (B, Q, 3) to their targets (B, Q, 3)."""
    return torch.linalg.vector_norm(net.pull(queries, patches) - targets, dim=-1).mean()


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Distances (B, n, m) by differences: by products, the short ones would lose their digits."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def _rows_of(patches: Tensor, rows: Tensor) -> Tensor:
    return patches.gather(1, rows[..., None].expand(-1, -1, 3))
