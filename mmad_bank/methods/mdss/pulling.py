"""The training of signed distances: points pulled onto the surface (MDSS, section 3.2; Ma et al. 2022).

Nobody knows true distances. The function learns them where a point that is moved along its gradient by its distance
lands on the surface.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from mmad_bank._internal.argument_names import argument_called
from mmad_bank._internal.checks import ArrayLike, check_index
from mmad_bank._internal.training import as_tensor, check_rate, cosine_rate, generator_at, sample_order, seeded, train
from mmad_bank.errors import InputError
from mmad_bank.methods.mdss.point_patches import PATCH_SIZE, JoinedPatches, cut_patches
from mmad_bank.methods.mdss.signed_distance import WIDTH, SignedDistance

_NEIGHBOUR = 50  # whose distance is the noise's unit
_NEAR, _FAR, _P_NEAR = 0.5, 1.0, 13 / 20  # standard deviations of the queries' noise, and how often the first


def draw_queries(patches: Tensor, counts: Tensor, n_queries: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw points near the surface of patches, and find the surface points that they should be pulled onto.

    A query is a point of the patch plus Gaussian noise; with σ the distance from that point to its 50th neighbour, the
    standard deviation is 0.5 σ for 13 queries in 20 and 1 σ for 7 (Shape-guided's code).

    Args:
        patches: (B, K, 3).
        counts: (B,) int64, distinct points of each, which come first.
        n_queries: Q, at most K; they are different points as long as there are.
        generator: Random generator on the CPU.

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
    clouds: Iterable[ArrayLike],
    *,
    patch_size: int = PATCH_SIZE,
    coverage: float | None = None,
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
    """Train signed distances on normal clouds, of one category (MDSS, section 3.2) or of several (Shape-guided).

    The clouds are looked at once, in order, and cut into patches; these go to a temporary file, so that all categories
    of a data set need not fit in memory. :meth:`SignedDistance.save` writes what the argument ``sdf_weights`` of
    :class:`mmad_bank.methods.MDSS` takes.

    Args:
        clouds: Clouds (N, 3), in any unit.
        patch_size: Number of points per patch.
        coverage: Number of patches that a point lies in on average; None takes as few as hold every point, see
            :func:`mmad_bank.methods.mdss.point_patches.cut_patches`.
        width: Width of the network, see :class:`SignedDistance`.
        steps: Number of optimizer steps.
        batch: Number of patches per step, 2 or more.
        queries: Number of points drawn for each patch; None for all, as in the papers.
        lr: Initial learning rate; it falls as a cosine.
        seed: Seed of initial weights, order of patches, and queries.
        resume: File of the training's state, see :func:`mmad_bank.fusion.train_fusion`.
        save_every: Number of steps between saved states.
        device: Where to train.
        progress: Whether to show a bar on a terminal.

    Returns:
        The trained network on ``device``, in evaluation mode.

    Raises:
        InputError: There is no cloud, one has the wrong shape or holds NaN, or an argument is out of range.
        FormatError: ``resume`` is no state of a training, or of one with other arguments.
        MmadBankError: The loss is not finite; the message names the step.

    Example:
        >>> bagels, ropes = torch.rand(2, 400, 3), torch.rand(2, 300, 3)
        >>> net = train_signed_distance([*bagels, *ropes], patch_size=64, width=8, steps=2, batch=4, queries=16)
        >>> net.width
        8
    """
    counts: list[int] = []
    with tempfile.TemporaryFile() as file:
        for number, cloud in enumerate(clouds):
            with argument_called(points=f"clouds[{number}]", size="patch_size"):
                cut = cut_patches(cloud, size=patch_size, coverage=coverage)
            cut.points.cpu().numpy().tofile(file)
            counts += [cut.count] * len(cut.points)
        if not counts:
            raise InputError("clouds: expected at least one cloud, found none")
        patches = np.memmap(file, np.float32, "r", shape=(len(counts), patch_size, 3))
        return train_on_patches(
            patches, torch.tensor(counts), width=width, steps=steps, batch=batch, queries=queries, lr=lr, seed=seed,
            resume=resume, save_every=save_every, device=device, progress=progress,
        )  # fmt: skip


def train_on_patches(
    patches: Tensor | np.ndarray | JoinedPatches,
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
    """Train encoder and implicit function on normal patches (MDSS, section 3.2, table 1).

    The loss is the mean distance between pulled queries and their targets. Adam; the learning rate falls as a cosine.
    MDSS gives neither steps nor the initial rate; Shape-guided trains its model at 1e-4 for 3001 passes over the
    patches of all categories.

    Args:
        patches: (P, K, 3) of all training clouds (:func:`cut_patches`).
        counts: (P,) int64, distinct points of each; None if all are.
        width: Width of the network, see :class:`SignedDistance`.
        steps: Number of optimizer steps.
        batch: Number of patches per step, 2 or more (batch normalisation needs them).
        queries: Number of points drawn for each patch; None for K, as in the papers.
        lr: Initial learning rate.
        seed: Seed of initial weights, order of patches, and queries.
        resume: File of the training's state, see :func:`mmad_bank.fusion.train_fusion`.
        save_every: Number of steps between saved states.
        device: Where to train.
        progress: Whether to show a bar on a terminal.

    Returns:
        The trained network on ``device``, in evaluation mode.

    Raises:
        InputError: An argument is out of range.
        FormatError: ``resume`` is no state of a training, or of one with other arguments.
        MmadBankError: The loss is not finite; the message names the step.

    Example:
        >>> from mmad_bank.methods.mdss.point_patches import cut_patches
        >>> patches = cut_patches(torch.rand(400, 3), size=64).points
        >>> train_on_patches(patches, width=8, steps=2, batch=4, queries=16).width
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
