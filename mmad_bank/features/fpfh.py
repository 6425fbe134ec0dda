"""FPFH descriptors (Rusu et al. 2009) of organized point clouds through Open3D: BTF's 3-D features."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmad_bank._internal import units
from mmad_bank._internal.checks import ArrayLike, check_index
from mmad_bank.errors import InputError, MissingExtraError
from mmad_bank.features.point_alignment import measured_points, pool_to_grid

# Neighbours that a plane needs, and points that are looked at for them.
_PLANE, _LOOKED_AT = 3, 200


class FPFH:
    """Fast point feature histograms of the measured points, averaged over the cells of a patch grid.

    As in BTF (Horwitz and Hoshen 2023): 33 values per point, zeros where nothing is measured, 3×3 average pooling, then
    the grid. On clouds in metres the default radii span the whole object, so that the numbers of neighbours decide.

    Args:
        grid: (h, w) of the patches.
        normal_radius: Radius of the search for a point's normal, in the clouds' unit.
        normal_neighbors: Largest number of neighbours for a normal.
        feature_radius: Radius of the search for a point's descriptor, in the clouds' unit.
        feature_neighbors: Largest number of neighbours for a descriptor.

    Warns:
        UserWarning: Most points of the first cloud have too few neighbours within ``normal_radius``, as those
            of a cloud in millimetres have.

    Raises:
        InputError: An argument is out of range.
        MissingExtraError: Open3D is not installed.

    Example:
        >>> FPFH()(torch.rand(1, 224, 224, 3) + 1).shape  # doctest: +SKIP
        torch.Size([1, 784, 33])
    """

    dim = 33

    def __init__(
        self,
        grid: tuple[int, int] = (28, 28),
        *,
        normal_radius: float = 0.1,
        normal_neighbors: int = 30,
        feature_radius: float = 0.25,
        feature_neighbors: int = 100,
    ) -> None:
        self.grid = (grid[0], grid[1])
        self.normal_radius, self.normal_neighbors = normal_radius, normal_neighbors
        self.feature_radius, self.feature_neighbors = feature_radius, feature_neighbors
        self._looked = False
        for side in self.grid:
            check_index(side, "grid", 1, 2**15, "patches along a side")
        for name in ("normal", "feature"):
            radius = getattr(self, f"{name}_radius")
            if not 0 < radius < float("inf"):
                raise InputError(f"{name}_radius: expected a positive finite number, found {radius}")
            check_index(getattr(self, f"{name}_neighbors"), f"{name}_neighbors", 3, 2**31 - 1, "a plane needs three")
        try:
            import open3d  # noqa: F401 (is it there?)
        except ModuleNotFoundError as error:
            raise MissingExtraError("open3d", "multimodal", "the extractor FPFH") from error
        except (ImportError, OSError) as error:  # it is there, but a system library that it wants is not
            raise InputError(f"open3d: installed, but it cannot be loaded ({error})") from error

    @property
    def _open3d(self) -> Any:  # its stubs lag behind its defaults; a module cannot be pickled with the extractor
        import open3d

        return open3d

    @property
    def name(self) -> str:
        """Name of the extractor, as a bank file records it."""
        normal, feature = (self.normal_radius, self.normal_neighbors), (self.feature_radius, self.feature_neighbors)
        return f"fpfh normals {normal[0]:g}/{normal[1]} features {feature[0]:g}/{feature[1]}"

    def __call__(self, xyz: ArrayLike | Sequence[ArrayLike]) -> Tensor:
        """Describe organized clouds.

        Args:
            xyz: (B, H, W, 3), or a sequence of (H, W, 3); zeros or NaN where nothing is measured.

        Returns:
            float32 (B, h·w, 33) on the CPU, row by row over the grid.

        Raises:
            InputError: A cloud has another shape or no measured point.
        """
        pooled = [pool_to_grid(self.describe(cloud, f"xyz[{b}]"), self.grid) for b, cloud in enumerate(xyz)]
        if not pooled:
            raise InputError("xyz: expected at least one cloud, found none")
        return torch.stack(pooled).flatten(2).transpose(1, 2).contiguous()

    def describe(self, xyz: ArrayLike, name: str = "xyz") -> Tensor:
        """Return the map (33, H, W) of one organized cloud, zeros where nothing is measured."""
        points, pixels = measured_points(xyz, name)
        coordinates = points.cpu().double().numpy()
        self._look(coordinates, name)
        coordinates, copies = _distinct(coordinates)
        cloud = self._open3d.geometry.PointCloud()
        cloud.points = self._open3d.utility.Vector3dVector(coordinates)
        search = self._open3d.geometry.KDTreeSearchParamHybrid
        cloud.estimate_normals(search_param=search(radius=self.normal_radius, max_nn=self.normal_neighbors))
        histograms = self._open3d.pipelines.registration.compute_fpfh_feature(
            cloud, search(radius=self.feature_radius, max_nn=self.feature_neighbors)
        )
        maps = torch.zeros(self.dim, xyz.shape[0] * xyz.shape[1])
        values = np.array(histograms.data, dtype=np.float32)
        maps[:, pixels.cpu()] = torch.from_numpy(values if copies is None else values[:, copies])
        return maps.view(self.dim, *xyz.shape[:2])

    def _look(self, points: np.ndarray, name: str) -> None:
        """Warn when most points of the first cloud have no neighbours to be described by: its unit is another then."""
        if self._looked:
            return
        self._looked = True
        # Resizing to the nearest pixel repeats points; a copy of itself is no neighbour.
        distinct = np.unique(points, axis=0)
        cloud = self._open3d.geometry.PointCloud(self._open3d.utility.Vector3dVector(distinct))
        tree = self._open3d.geometry.KDTreeFlann(cloud)
        some = distinct[:: -(-len(distinct) // _LOOKED_AT)]
        found = [tree.search_hybrid_vector_3d(point, self.normal_radius, _PLANE + 1)[0] for point in some]
        share = float(np.mean(np.array(found) <= _PLANE))
        if share > 0.5:
            lonely = f"{share:.0%} of the points have fewer than {_PLANE} neighbours within {self.normal_radius:g}"
            advice = "; if that is right, FPFH needs larger radii"
            warnings.warn(f"{name}: FPFH says little here, {lonely}; {units.describe(points)}{advice}", stacklevel=4)


def _distinct(points: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the distinct ones of points (N, 3), and for each of the N its number among them; None where all are.

    An image that is enlarged to the nearest pixel repeats its points, first of all beside each other. Copies would take
    the places of neighbours, of which a descriptor counts no more than a given number.
    """
    if not (points[1:] == points[:-1]).all(axis=1).any():
        return points, None
    distinct, numbers = np.unique(points, axis=0, return_inverse=True)
    return distinct, numbers.reshape(-1)
