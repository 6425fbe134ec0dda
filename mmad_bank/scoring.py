"""From nearest-neighbour distances to anomaly maps and image scores (PatchCore scoring; M3DM eq. 6 to 8).

Pure tensor functions: any device, no search and no bank in here, so that every method can use them on distances that
it got elsewhere.
"""

from __future__ import annotations

from functools import lru_cache
from numbers import Real
from typing import Literal, get_args

import torch
from torch import Tensor

from mmad_bank._internal.checks import ArrayLike, as_float_tensor, check_choice, check_index
from mmad_bank._internal.precision import exact_float32
from mmad_bank.errors import InputError

Reweight = Literal["m3dm", "patchcore", "max", "top"]

DEFAULT_NEIGHBORS: dict[str, int] = {"m3dm": 3, "patchcore": 9, "max": 1, "top": 1}
"""Neighbours of m* that each rule takes, m* itself among them (M3DM's code; PatchCore's b = 9)."""

UNWEIGHTED = ("max", "top")
"""Rules that look at no neighbours of m*: the score is a number of the patches' scores alone."""

TOP_ONE_IN = 100
"""The rule ``top`` averages one patch in so many, those with the highest scores: the top 1 %, at least one patch."""

_TRUNCATE = 4.0  # the Gaussian is cut at 4 sigma, as in scipy.ndimage


def check_reweight(reweight: str, n_neighbors: int | None, name: str = "n_neighbors") -> int:
    """Return how many neighbours of m* the rule needs, or say what is wrong with ``reweight`` or ``n_neighbors``.

    ``name`` is what messages call the number.
    """
    check_choice(reweight, get_args(Reweight), "reweight")
    if n_neighbors is None:
        return DEFAULT_NEIGHBORS[reweight]
    least = 2 if reweight == "m3dm" else 1
    why = "m3dm needs a neighbour besides m* itself" if least == 2 else "m* itself counts"
    return check_index(n_neighbors, name, least, 2**31 - 1, why)


def check_divisor(divisor: float) -> None:
    """Say what is wrong with a number that scores are divided by."""
    if isinstance(divisor, bool) or not isinstance(divisor, Real) or not 0 < float(divisor) < float("inf"):
        raise InputError(f"divisor: expected a finite number above 0, found {divisor!r}")


def check_sigma(sigma: float) -> None:
    """Say what is wrong with a Gaussian's standard deviation."""
    if isinstance(sigma, bool) or not isinstance(sigma, Real) or not 0 <= float(sigma) < float("inf"):
        raise InputError(f"sigma: expected a finite number of at least 0, found {sigma!r}")


def top_mean(patch_scores: Tensor) -> Tensor:
    """Average the top 1 % of each image's patch scores (one in :data:`TOP_ONE_IN`, rounded up): the rule ``top``.

    Where a single patch's score is noisy, the mean of several tells more than the largest; a defect smaller than 1 % of
    the patches is averaged with normal ones. The mean is taken in float64 and rounded once: it does not depend on the
    order in which a processor adds.

    Args:
        patch_scores: (B, P) scores of the patches.

    Returns:
        (B,) image scores, in the dtype of ``patch_scores``.

    Example:
        >>> top_mean(torch.arange(200.0)[None])
        tensor([198.5000])
    """
    largest = patch_scores.topk(-(-patch_scores.shape[1] // TOP_ONE_IN), dim=1).values
    return largest.double().mean(1).to(patch_scores.dtype)


def image_score(
    largest: Tensor, neighbor_distances: Tensor, dim: int, reweight: Reweight = "m3dm", *, divisor: float = 1.0
) -> Tensor:
    """Reweight each image's largest patch score s* by how crowded the bank is around its nearest vector m*.

    With f* the patch that has the score s*, and N a set of bank vectors around m* (m* first):

    - ``m3dm`` (M3DM eq. 7 and 8): ``w = 1 - exp(s*/sqrt(D)) / sum over N without m* of exp(|f* - m|/sqrt(D))``;
    - ``patchcore`` (Roth et al. 2022, eq. 7): ``w = 1 - softmax over N of |f* - m|, at m*``;
    - ``max``: ``w = 1``;
    - ``top``: ``w = 1``, and s* is not the largest score, but :func:`top_mean`.

    Both quotients are taken as ``exp(a - logsumexp(b))``, which cannot overflow. A set of one vector has nothing to
    compare m* with, and leaves the score as it is.

    Args:
        largest: (B,) the largest patch score s* of each image; of the rule ``top`` the mean of the largest.
        neighbor_distances: (B, n) distances from f* to the vectors of N, m* in column 0. Give float64 where distances
            are large: the rules compare exponentials of them.
        dim: D, the length of a feature vector.
        reweight: Rule of the image score.
        divisor: Number that s* is divided by before all else; |f* - m| stay as they are.

    Returns:
        (B,) image scores ``w * s*``, in the dtype of ``largest``.

    Example:
        >>> import torch
        >>> image_score(torch.tensor([2.0]), torch.tensor([[2.0, 2.0, 2.0]]), dim=4)
        tensor([1.])
    """
    check_reweight(reweight, None)
    if reweight in UNWEIGHTED or neighbor_distances.shape[1] == 1:
        return largest if divisor == 1 else largest / divisor
    distances = neighbor_distances.double()
    if reweight == "m3dm":
        scale = dim**-0.5
        # s* as column 0 has it: in float32 it would be off by more than the gaps between large distances.
        exponent = distances[:, 0] / divisor * scale - torch.logsumexp(distances[:, 1:] * scale, dim=1)
    else:
        exponent = distances[:, 0] / divisor - torch.logsumexp(distances, dim=1)
    return (largest.double() / divisor * -torch.expm1(exponent.clamp(max=0.0))).to(largest.dtype)


def anomaly_map(patch_scores: ArrayLike, grid: tuple[int, int], size: tuple[int, int], sigma: float = 4.0) -> Tensor:
    """Enlarge patch scores to the image bilinearly and smooth them with a Gaussian.

    Both steps are linear and act on rows and columns apart, so each side is one small matrix (image size by grid
    size) and the map is ``rows @ scores @ columns.T``: no image-sized intermediate, the same on every device.

    Args:
        patch_scores: (B, P) scores, row by row over the patch grid.
        grid: (h, w) of the patch grid, h * w = P.
        size: (H, W) of the image in pixels.
        sigma: Standard deviation of the Gaussian in pixels; 0 leaves the blur out. The kernel ends at 4 sigma and the
            border is mirrored about the pixel edge, as ``scipy.ndimage.gaussian_filter`` does.

    Returns:
        (B, H, W) float32 anomaly maps.

    Raises:
        InputError: The scores do not fit the grid, or a size or sigma is out of range.

    Example:
        >>> import torch
        >>> anomaly_map(torch.ones(2, 6), (2, 3), (20, 30)).shape
        torch.Size([2, 20, 30])
    """
    scores = as_float_tensor(patch_scores, "patch_scores", ndim=2)
    for name, pair in (("grid", grid), ("size", size)):
        for side in pair:
            check_index(side, name, 1, 2**20, "a side's length")
    if scores.shape[1] != grid[0] * grid[1]:
        raise InputError(
            f"patch_scores: expected {grid[0]} x {grid[1]} = {grid[0] * grid[1]} scores per image, as the grid has,"
            f" found {scores.shape[1]}"
        )
    check_sigma(sigma)
    rows, columns = (
        _enlarge_and_blur_on(int(n_in), int(n_out), float(sigma), scores.device)
        for n_in, n_out in zip(grid, size, strict=True)
    )
    with exact_float32(scores.device):
        return rows @ scores.view(-1, *grid) @ columns.T


@lru_cache(maxsize=64)
def _enlarge_and_blur_on(n_in: int, n_out: int, sigma: float, device: torch.device) -> Tensor:
    """Keep the matrices where they are used: later maps of a size copy nothing to the device."""
    return _enlarge_and_blur(n_in, n_out, sigma).to(device, torch.float32)


def _enlarge_and_blur(n_in: int, n_out: int, sigma: float) -> Tensor:
    """Return the (n_out, n_in) float64 matrix of bilinear resampling (align_corners=False) followed by the blur."""
    centre = ((torch.arange(n_out, dtype=torch.float64) + 0.5) * n_in / n_out - 0.5).clamp(0, n_in - 1)
    left = centre.floor().long().clamp(max=max(n_in - 2, 0))
    right = (left + 1).clamp(max=n_in - 1)
    fraction = centre - left
    enlarge = torch.zeros(n_out, n_in, dtype=torch.float64)
    enlarge.scatter_add_(1, left[:, None], (1 - fraction)[:, None])
    enlarge.scatter_add_(1, right[:, None], fraction[:, None])
    return _blur(n_out, sigma) @ enlarge if sigma > 0 else enlarge


def _blur(n: int, sigma: float) -> Tensor:
    """Return the (n, n) matrix of a Gaussian blur whose border repeats as ``d c b a | a b c d | d c b a``."""
    radius = int(_TRUNCATE * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1)
    kernel = torch.exp(-0.5 * (offsets.double() / sigma) ** 2)
    kernel /= kernel.sum()
    # Mirrored indices have period 2n: 0 .. n-1 forwards, then n-1 .. 0 backwards.
    taps = (torch.arange(n)[:, None] + offsets) % (2 * n)
    taps = torch.minimum(taps, 2 * n - 1 - taps)
    return torch.zeros(n, n, dtype=torch.float64).scatter_add_(1, taps, kernel.expand(n, -1))
