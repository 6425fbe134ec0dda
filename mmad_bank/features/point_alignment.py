"""Point feature alignment (M3DM, section 3.2): features of point groups to patches of the image plane.

Three linear steps: interpolate the groups' features to every point (eq. 1), put them on the points' pixels, average
over 3×3 pixels and then over the cells of the patch grid. Their product is one matrix of patches by groups, so the
features of single points, tens of thousands by 1152, never exist: the matrix is built from weights alone and multiplied
with the tokens once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor

from mmad_bank._internal.checks import ArrayLike, as_float_tensor, check_choice, check_index
from mmad_bank.errors import InputError
from mmad_bank.ops import knn_group

Interpolation = Literal["three_nearest", "all_centers"]

_EPS = 1e-8
_NEIGHBOURS = 3  # of the published weighting
_WINDOW = 3  # pixels per side of the average before the grid


def measured_points(xyz: ArrayLike, name: str = "xyz") -> tuple[Tensor, Tensor]:
    """Return the measured points of an organized cloud and the pixels they lie on.

    A point is measured when its three components are finite and none is zero (some exports mark a missing measurement
    with NaN, others with zeros).

    Args:
        xyz: (H, W, 3), metres.
        name: Name of the cloud in errors.

    Returns:
        Points (N, 3) float32, and pixels (N,) int64, numbered row by row: y·W + x.

    Raises:
        InputError: The shape is another one, or nothing is measured.

    Example:
        >>> xyz = torch.zeros(2, 2, 3)
        >>> xyz[1, 0] = torch.tensor([0.1, 0.2, 0.3])
        >>> measured_points(xyz)
        (tensor([[0.1000, 0.2000, 0.3000]]), tensor([2]))
    """
    cloud = as_float_tensor(xyz, name, ndim=3)
    if cloud.shape[2] != 3:
        raise InputError(f"{name}: expected (H, W, 3), found shape {tuple(cloud.shape)}")
    rows = cloud.flatten(0, 1)
    pixels = (torch.isfinite(rows) & (rows != 0)).all(dim=1).nonzero()[:, 0]
    if len(pixels) == 0:
        raise InputError(f"{name}: expected measured points, found a cloud with none")
    return rows[pixels], pixels


def measured_points_of(clouds: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return :func:`measured_points` of each of several clouds (B, 3, H, W), metres; errors name the cloud's number."""
    return [measured_points(cloud.permute(1, 2, 0), f"xyz[{b}]") for b, cloud in enumerate(clouds)]


@lru_cache(maxsize=64)
def pooling_matrix(n_in: int, n_out: int) -> Tensor:
    """Return the (n_out, n_in) float32 matrix of 3-wide averages without padding, then adaptive average pooling.

    Both poolings are separable: a map (H, W) is pooled to (h, w) by ``pooling_matrix(H, h) @ map @ pooling_matrix(W,
    w).T``. Adaptive pooling averages for cell i the entries from ⌊i·n/n_out⌋ up to ⌈(i+1)·n/n_out⌉, as PyTorch's does.

    Example:
        >>> pooling_matrix(4, 1)
        tensor([[0.1667, 0.3333, 0.3333, 0.1667]])
    """
    n = n_in - _WINDOW + 1
    averages = torch.zeros(n, n_in, dtype=torch.float64)
    for offset in range(_WINDOW):
        averages.diagonal(offset).fill_(1 / _WINDOW)
    cells = torch.zeros(n_out, n, dtype=torch.float64)
    for i in range(n_out):
        first, last = i * n // n_out, -(-(i + 1) * n // n_out)
        cells[i, first:last] = 1 / (last - first)
    return (cells @ averages).float()


def nearest_groups(points: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Return the three nearest centres of each point and their weights, as the published code of M3DM and CFM has them.

    Args:
        points: (N, 3).
        centers: (G, 3), in the points' unit.

    Returns:
        int64 (N, k) and float32 (N, k), k = min(3, G): 1 / (d² + 1e-8), divided by their sum over the k.

    Example:
        >>> nearest_groups(torch.zeros(1, 3), torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]]))
        (tensor([[0, 1]]), tensor([[0.8000, 0.2000]]))
    """
    nearest = knn_group(centers, points, min(_NEIGHBOURS, len(centers)))
    squared = (points[:, None].double() - centers[nearest].double()).square().sum(-1)
    weights = 1.0 / (squared + _EPS)
    return nearest, (weights / weights.sum(1, keepdim=True)).float()


def pool_to_grid(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Average maps over 3×3 pixels without padding and then over the cells of a grid: (..., H, W) to (..., h, w)."""
    rows, columns = (pooling_matrix(n, m).to(maps) for n, m in zip(maps.shape[-2:], grid, strict=True))
    return rows @ maps @ columns.T


class PointFeatureAlignment:
    """Brings tokens of point groups to a patch grid: M3DM's PFA, and with a grid of the image's size CFM's.

    Args:
        grid: (h, w) of the patches: M3DM (28, 28) or (56, 56), CFM (224, 224).
        size: (H, W) of the organized clouds in pixels.
        interpolation: ``"three_nearest"`` weighs the three nearest centres by 1 / (d² + 1e-8), as the published code of
            M3DM and CFM does; ``"all_centers"`` weighs all by 1 / (d + 1e-8) (M3DM eq. 1), which smears a patch over
            hundreds of groups.

    Raises:
        InputError: A size is too small or the interpolation unknown.

    Example:
        >>> xyz = torch.rand(64, 64, 3) + 0.1
        >>> points, pixels = measured_points(xyz)
        >>> align = PointFeatureAlignment((8, 8), (64, 64))
        >>> align(torch.ones(1, 20, 5), points[None, :20], [points], [pixels]).shape
        torch.Size([1, 64, 5])
    """

    def __init__(
        self,
        grid: tuple[int, int] = (28, 28),
        size: tuple[int, int] = (224, 224),
        *,
        interpolation: Interpolation = "three_nearest",
    ) -> None:
        self.grid = (grid[0], grid[1])
        self.size = (size[0], size[1])
        self.interpolation = interpolation
        for side in self.grid:
            check_index(side, "grid", 1, 2**15, "patches along a side")
        for side in self.size:
            check_index(side, "size", _WINDOW, 2**15, "pixels along a side")
        check_choice(interpolation, get_args(Interpolation), "interpolation")

    def __call__(self, tokens: Tensor, centers: Tensor, points: Sequence[Tensor], pixels: Sequence[Tensor]) -> Tensor:
        """Align a batch of clouds of any sizes.

        Args:
            tokens: (B, G, D) features of the groups.
            centers: (B, G, 3) the groups' centres.
            points: B clouds (N_i, 3), in the centres' unit.
            pixels: B times (N_i,) int64, the pixel of each point (:func:`measured_points`), each at most once.

        Returns:
            float32 (B, h·w, D), row by row over the grid. A patch without a point is exactly zero.

        Raises:
            InputError: The arguments do not fit together.
        """
        tokens, centers = as_float_tensor(tokens, "tokens", ndim=3), as_float_tensor(centers, "centers", ndim=3)
        if centers.shape != (*tokens.shape[:2], 3):
            raise InputError(f"centers: expected {(*tokens.shape[:2], 3)} as tokens has, found {tuple(centers.shape)}")
        if not len(points) == len(pixels) == len(tokens):
            raise InputError(
                f"points: expected {len(tokens)} clouds and as many pixels, found {len(points)} and {len(pixels)}"
            )
        aligned = torch.empty(len(tokens), self.grid[0] * self.grid[1], tokens.shape[2], device=tokens.device)
        for b, cloud in enumerate(points):
            aligned[b] = self.weights(cloud, pixels[b], centers[b]) @ tokens[b]
        return aligned

    def weights(self, points: Tensor, pixels: Tensor, centers: Tensor) -> Tensor:
        """Return the (h·w, G) matrix from groups to patches: sparse for three neighbours, else dense."""
        cloud = as_float_tensor(points, "points")
        if pixels.shape != cloud.shape[:1]:
            raise InputError(f"pixels: expected {len(cloud)}, one per point, found shape {tuple(pixels.shape)}")
        if len(pixels) and not 0 <= int(pixels.min()) <= int(pixels.max()) < self.size[0] * self.size[1]:
            raise InputError(f"pixels: expected numbers of pixels of a {self.size[0]}x{self.size[1]} image")
        pixels = pixels.to(cloud.device)
        rule = self._three_nearest if self.interpolation == "three_nearest" else self._all_centres
        return rule(cloud, pixels, centers)

    def _pooling(self, device: torch.device) -> tuple[Tensor, Tensor]:
        rows, columns = (pooling_matrix(n, m) for n, m in zip(self.size, self.grid, strict=True))
        return rows.to(device), columns.to(device)

    def _three_nearest(self, points: Tensor, pixels: Tensor, centers: Tensor) -> Tensor:
        """Every point contributes to a few patches, and to each from three groups: all that is not zero."""
        nearest, weights = nearest_groups(points, centers)
        k = nearest.shape[1]
        rows, columns = self._pooling(points.device)
        row, by_row = _entries(rows, pixels // self.size[1])
        column, by_column = _entries(columns, pixels % self.size[1])
        # (points, rows of patches, columns of patches, neighbours)
        shape = (len(points), row.shape[1], column.shape[1], k)
        patch = (row[:, :, None, None] * self.grid[1] + column[:, None, :, None]).expand(shape)
        group = nearest[:, None, None, :].expand(shape)
        value = by_row[:, :, None, None] * by_column[:, None, :, None] * weights[:, None, None, :]
        kept = value != 0
        entries = torch.stack([patch[kept], group[kept]])
        size = (self.grid[0] * self.grid[1], len(centers))
        return torch.sparse_coo_tensor(entries, value[kept], size, check_invariants=False).coalesce()

    def _all_centres(self, points: Tensor, pixels: Tensor, centers: Tensor) -> Tensor:
        """Pool the weights of some rows of pixels at a time along the rows, then add them to the patches of these."""
        host = pooling_matrix(self.size[0], self.grid[0])  # the loops ask this one: nobody waits for a device
        rows, columns = self._pooling(points.device)
        table = torch.zeros(*self.grid, len(centers), device=points.device)
        order = pixels.argsort()
        counts = torch.bincount(pixels // self.size[1], minlength=self.size[0]).cpu()
        together = _rows_together(points.device)
        for first, own in enumerate(order.split([int(part.sum()) for part in counts.split(together)])):
            if len(own) == 0:
                continue
            weights = _inverse_distance(points[own], centers)
            # Each point's weights are to sum to one; scaling the few columns of the pooling is less work.
            shares = columns[:, pixels[own] % self.size[1]] / weights.sum(1)
            touched = host[:, first * together : (first + 1) * together].any(1).nonzero()[:, 0].tolist()
            if together > 1:
                patches = slice(touched[0], touched[-1] + 1)
                by_row = rows[patches, pixels[own] // self.size[1]]
                pooled = (by_row[:, None] * shares).flatten(0, 1) @ weights
                table[patches] += pooled.view(-1, *table.shape[1:])
                continue
            pooled = shares @ weights
            for i in touched:
                table[i].add_(pooled, alpha=float(host[i, first]))
        return table.flatten(0, 1)


def _entries(matrix: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Return, for columns of a pooling matrix, rows and values of the entries, padded to (n, most) with zeros."""
    most = int((matrix != 0).sum(0).max())
    values, rows = matrix.topk(most, dim=0)
    return rows.T[places], values.T[places]


def _rows_together(device: torch.device) -> int:
    """Return how many rows of pixels are pooled at a time: single ones would leave a GPU waiting for its host."""
    return 16 if device.type == "cuda" else 1


def _inverse_distance(points: Tensor, centers: Tensor) -> Tensor:
    """M3DM's eq. 1 before its division by the sum: (n, G), by differences, so that near centres lose no digits."""
    squared = points.new_zeros(len(points), len(centers))
    for own, center in zip(points.T, centers.T, strict=True):
        difference = own[:, None] - center
        squared.addcmul_(difference, difference)
    return squared.sqrt_().add_(_EPS).reciprocal_()
