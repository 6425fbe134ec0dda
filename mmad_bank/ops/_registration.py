"""The ops as PyTorch custom operators, ``torch.ops.mmad_bank.*``, with fake kernels.

``torch.compile``, ``torch.export`` and CUDA graphs see one opaque node with known output shapes. On the CPU an operator
is the public function, checks and all. On a CUDA device that the native kernels run on, what the host knows (types,
shapes, devices, numbers) is checked, in the same words, and nobody waits for the device, so that it can be captured in
a CUDA graph; :func:`k_center_greedy` alone cannot, nor can :func:`knn` with more neighbours or columns than the kernels
take. Whether values are finite is not looked at then. Points that are not finite are never sampled (but as the start)
where there are others, nor grouped, nor do centres that are not weigh anything; a point or query that is not finite has
NaN, or any rows of the argument. There is no gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmad_bank._internal.checks import as_features, as_float_tensor
from mmad_bank.ops import _cuda
from mmad_bank.ops._point_checks import check_batch, check_columns
from mmad_bank.ops.farthest_point_sample import farthest_point_sample as _farthest_point_sample
from mmad_bank.ops.interpolate_features import interpolate_features as _interpolate_features
from mmad_bank.ops.k_center_greedy import k_center_greedy as _k_center_greedy
from mmad_bank.ops.knn import knn as _knn
from mmad_bank.ops.knn_group import knn_group as _knn_group

_library = torch.library.Library("mmad_bank", "DEF")
_register_fake = getattr(torch.library, "register_fake", None) or torch.library.impl_abstract  # the name before 2.4


def _native(tensor: Tensor) -> bool:
    return tensor.is_cuda and _cuda.available(tensor.device)


def knn(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Prepare the bank and search it: (Q, D), (M, D) -> float32 (Q, k), int64 (Q, k)."""
    if _native(bank) and k <= _cuda.MAX_NEIGHBORS and (bank.ndim != 2 or bank.shape[1] <= _cuda.MAX_DIM):
        vectors, rows = as_features(bank, "bank"), as_features(queries, "queries")
        _cuda.check_search(rows, vectors, k, vectors.device)  # before the bank is prepared for them
        return _cuda.CudaIndex(vectors).search(rows, k)
    return _knn(queries, bank, k)


def _knn_fake(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    shape = (queries.shape[0], k)
    return queries.new_empty(shape, dtype=torch.float32), queries.new_empty(shape, dtype=torch.int64)


def k_center_greedy(features: Tensor, n_select: int, start: int = 0) -> Tensor:
    """Select rows: (N, D) -> int64 (n_select,)."""
    return _k_center_greedy(features, n_select, start=start)


def _k_center_greedy_fake(features: Tensor, n_select: int, start: int = 0) -> Tensor:
    return features.new_empty((n_select,), dtype=torch.int64)


def farthest_point_sample(points: Tensor, n_select: int, start: int = 0) -> Tensor:
    """Sample clouds: (B, N, 3) -> int64 (B, n_select)."""
    if _native(points):
        return _cuda.sample_batch(as_float_tensor(points, "points", ndim=3), n_select, start)
    return _farthest_point_sample(points, n_select, start=start)


def _farthest_point_sample_fake(points: Tensor, n_select: int, start: int = 0) -> Tensor:
    return points.new_empty((points.shape[0], n_select), dtype=torch.int64)


def knn_group(points: Tensor, centers: Tensor, k: int) -> Tensor:
    """Group points around centres: (N, 3), (G, 3) -> int64 (G, k), or batches of them."""
    if _native(points):
        cloud = as_float_tensor(points, "points", ndim=(2, 3))
        groups = as_float_tensor(centers, "centers", ndim=(2, 3))
        check_batch(cloud, groups)
        check_columns(cloud, "points")
        return _cuda.knn_group(cloud, groups, k)
    return _knn_group(points, centers, k)


def _knn_group_fake(points: Tensor, centers: Tensor, k: int) -> Tensor:
    return points.new_empty((*centers.shape[:-1], k), dtype=torch.int64)


def interpolate_features(
    points: Tensor, centers: Tensor, features: Tensor, k: int = 3, power: float = 2.0, eps: float = 1e-8
) -> Tensor:
    """Spread features to points: (N, 3), (G, 3), (G, D) -> float32 (N, D)."""
    if _native(points):
        cloud, groups = as_float_tensor(points, "points"), as_float_tensor(centers, "centers")
        return _cuda.interpolate_features(cloud, groups, as_features(features), k, power, eps)
    return _interpolate_features(points, centers, features, k=k, power=power, eps=eps)


def _interpolate_features_fake(
    points: Tensor, centers: Tensor, features: Tensor, k: int = 3, power: float = 2.0, eps: float = 1e-8
) -> Tensor:
    return features.new_empty((points.shape[0], features.shape[1]), dtype=torch.float32)


def _register(schema: str, function: Callable[..., Any], fake: Callable[..., Any]) -> None:
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    name = schema.partition("(")[0]
    for device in ("CPU", "CUDA"):
        _library.impl(name, function, device)
    _register_fake(f"mmad_bank::{name}", fake)


_register("knn(Tensor queries, Tensor bank, int k) -> (Tensor, Tensor)", knn, _knn_fake)
_register(
    "k_center_greedy(Tensor features, int n_select, int start=0) -> Tensor", k_center_greedy, _k_center_greedy_fake
)
_register(
    "farthest_point_sample(Tensor points, int n_select, int start=0) -> Tensor",
    farthest_point_sample,
    _farthest_point_sample_fake,
)
_register("knn_group(Tensor points, Tensor centers, int k) -> Tensor", knn_group, _knn_group_fake)
_register(
    "interpolate_features(Tensor points, Tensor centers, Tensor features, int k=3, float power=2.0, float eps=1e-08)"
    " -> Tensor",
    interpolate_features,
    _interpolate_features_fake,
)
