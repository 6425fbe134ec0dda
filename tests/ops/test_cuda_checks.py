"""What the host checks before a kernel gets an address."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmad_bank import ops
from mmad_bank.errors import InputError
from mmad_bank.ops import _cuda, _registration
from mmad_bank.ops._cuda import checks
from mmad_bank.ops._cuda import device as device_module

META = torch.device("meta")  # stands for another device


def random(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


POINTS, CENTERS, FEATURES = random(40, 3), random(6, 3), random(6, 10)
QUERIES, BANK = random(7, 12), random(50, 12)


class Untouchable:
    """Stands for the native core: a check that comes too late is seen."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the core was asked for {name}")


@pytest.fixture(autouse=True)
def core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "native", Untouchable())
    monkeypatch.setattr(_registration, "_native", lambda tensor: True)


def prepared(vectors: Tensor = BANK) -> _cuda.CudaIndex:
    """An index that nothing was prepared for."""
    index = object.__new__(_cuda.CudaIndex)
    index.vectors, index.device = vectors, vectors.device
    return index


def search(queries: Tensor, k: int) -> object:
    return prepared().search(queries, k)


def sample(points: Tensor, first_rows: list[int], sizes: list[int], n_select: int, start: int = 0) -> object:
    return _cuda.farthest_point_sample(points, np.array(first_rows), np.array(sizes), n_select, start, -1.0)


def select(rows: Tensor, centers: Tensor | None, n_select: int, start: int = 0) -> object:
    return _cuda.k_center_greedy(rows, centers, n_select, start, -1.0, None)


def interpolate(points: Tensor, centers: Tensor, features: Tensor, k: int = 3, power: float = 2.0) -> object:
    return _cuda.interpolate_features(points, centers, features, k, power, 1e-8)


ENTRIES: list[tuple[Callable[..., object], tuple[Any, ...], str]] = [
    (_cuda.CudaIndex, (BANK.double(),), "bank: expected float32 values, found torch.float64"),
    (_cuda.CudaIndex, (BANK[0],), r"bank: expected 2-D array, found shape \(12,\)"),
    (_cuda.CudaIndex, (BANK[:0],), r"bank: expected at least one row and one column, found shape \(0, 12\)"),
    (search, (QUERIES[:, :11], 3), "queries: expected 12 columns as in the bank, found 11"),
    (search, (QUERIES[0], 3), "queries: expected 2-D array"),
    (search, (QUERIES.half(), 3), "queries: expected float32 values"),
    (search, (QUERIES, 51), r"k: expected 1 to 50 \(the number of vectors in the bank\), found 51"),
    (search, (QUERIES, 0), "k: expected 1 to 50"),
    (search, (QUERIES.to(META), 3), "queries: expected a tensor on cpu as the bank is, found meta"),
    (prepared().gather, (torch.zeros(3, dtype=torch.int32),), "rows: expected int64 on cpu, found torch.int32 on cpu"),
    (prepared().gather, (torch.zeros(3, dtype=torch.int64, device=META),), "rows: expected int64 on cpu"),
    (sample, (POINTS, [0], [40], 41), r"n_select: expected 1 to 40 \(the number of points in the smallest cloud\)"),
    (sample, (POINTS, [0], [40], 4, 40), r"start: expected 0 to 39 \(the rows of the smallest cloud\), found 40"),
    (sample, (POINTS, [0, 30], [30, 11], 4), "sizes: expected clouds of at least one point inside the 40 points"),
    (sample, (POINTS, [-1, 30], [30, 10], 4), "sizes: expected clouds"),
    (sample, (POINTS, [0, 30], [30, 0], 4), "sizes: expected clouds"),
    (sample, (POINTS, [0, 30], [30], 4), "sizes: expected one for each of the first rows"),
    (sample, (POINTS, [], [], 4), "sizes: expected one for each of the first rows"),
    (sample, (POINTS[:, :2], [0], [40], 4), r"points: expected 3 columns \(x, y, z\), found shape \(40, 2\)"),
    (_cuda.sample_batch, (POINTS, 4, 0), "points: expected 3-D array"),
    (_cuda.sample_batch, (POINTS[None], 41, 0), "n_select: expected 1 to 40"),
    (_cuda.sample_batch, (POINTS[None], 4, -1), "start: expected 0 to 39"),
    (_cuda.sample_batch, (POINTS[None, :0], 4, 0), "points: expected at least one point"),
    (_cuda.knn_group, (POINTS, CENTERS, 41), r"k: expected 1 to 40 \(the number of points\), found 41"),
    (_cuda.knn_group, (POINTS, CENTERS[:, :2], 4), "centers: expected 3 columns"),
    (_cuda.knn_group, (POINTS, CENTERS[:0], 4), "centers: expected at least one point"),
    (_cuda.knn_group, (POINTS, CENTERS.to(META), 4), "centers: expected a tensor on cpu as points are, found meta"),
    (_cuda.knn_group, (POINTS.double(), CENTERS, 4), "points: expected float32 values"),
    (interpolate, (POINTS, CENTERS, FEATURES, 7), r"k: expected 1 to 6 \(the number of centers\), found 7"),
    (interpolate, (POINTS, CENTERS, FEATURES[:5]), "features: expected 6 rows, one per centre, found 5"),
    (interpolate, (POINTS, CENTERS, FEATURES[:, :0]), "features: expected at least one row and one column"),
    (interpolate, (POINTS, CENTERS, FEATURES.to(META)), "features: expected a tensor on cpu as points are"),
    (interpolate, (POINTS, CENTERS.to(META), FEATURES), "centers: expected a tensor on cpu as points are"),
    (interpolate, (POINTS, CENTERS, FEATURES, 3, float("nan")), "power: expected a positive finite number"),
    (select, (BANK, None, 51), r"n_select: expected 1 to 50 \(the number of rows\), found 51"),
    (select, (BANK, None, 0), "n_select: expected 1 to 50"),
    (select, (BANK, QUERIES, 51), "n_select: expected 0 to 50"),
    (select, (BANK, None, 5, 50), r"start: expected 0 to 49 \(the row numbers\), found 50"),
    (select, (BANK, QUERIES[:, :5], 5), "features: expected 5 columns as in the bank, found 12"),
    (select, (BANK.half(), None, 5), "features: expected float32 values"),
]


@pytest.mark.parametrize(("entry", "arguments", "message"), ENTRIES)
def test_no_entry_takes_what_would_lead_a_kernel_astray(
    entry: Callable[..., object], arguments: tuple[Any, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        entry(*arguments)


def test_rows_that_32_bits_cannot_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_MAX_ROWS", 39)
    for refuse in (lambda: _cuda.knn_group(POINTS, CENTERS, 4), lambda: _cuda.CudaIndex(BANK)):
        with pytest.raises(InputError, match="expected at most 39 rows on a CUDA device, found"):
            refuse()


OPERATORS: list[tuple[str, tuple[Any, ...]]] = [
    ("knn", (QUERIES, BANK[:, :11], 3)),
    ("knn", (QUERIES, BANK, 51)),
    ("knn", (QUERIES, BANK, 0)),
    ("knn", (QUERIES[:0], BANK, 1)),
    ("knn", (QUERIES, BANK[0], 1)),
    ("knn", (QUERIES.to(META), BANK, 1)),
    ("k_center_greedy", (BANK, 51)),
    ("k_center_greedy", (BANK, 5, 50)),
    ("farthest_point_sample", (POINTS[None], 41)),
    ("farthest_point_sample", (POINTS[None], 0)),
    ("farthest_point_sample", (POINTS[None], 4, 40)),
    ("farthest_point_sample", (POINTS[None, :, :2], 4)),
    ("farthest_point_sample", (POINTS[None, :0], 4)),
    ("farthest_point_sample", (POINTS[None].int(), 4)),
    ("knn_group", (POINTS, CENTERS, 41)),
    ("knn_group", (POINTS, CENTERS[:, :2], 4)),
    ("knn_group", (POINTS, CENTERS[:0], 4)),
    ("knn_group", (POINTS, CENTERS[None], 4)),
    ("knn_group", (POINTS[None], CENTERS[None].expand(2, -1, -1), 4)),
    ("knn_group", (POINTS[None], CENTERS[None], 41)),
    ("knn_group", (POINTS[None][:0], CENTERS[None][:0], 4)),
    ("interpolate_features", (POINTS, CENTERS, FEATURES, 7)),
    ("interpolate_features", (POINTS, CENTERS, FEATURES[:5])),
    ("interpolate_features", (POINTS, CENTERS, FEATURES[0])),
    ("interpolate_features", (POINTS, CENTERS, FEATURES, 3, 8.0)),
    ("interpolate_features", (POINTS, CENTERS, FEATURES, 3, 2.0, 0.0)),
    ("interpolate_features", (POINTS[:, :2], CENTERS, FEATURES)),
]


@pytest.mark.parametrize(("name", "arguments"), OPERATORS)
def test_operators_refuse_in_the_words_of_the_public_functions(name: str, arguments: tuple[Any, ...]) -> None:
    names = {
        "k_center_greedy": ["start"],
        "farthest_point_sample": ["start"],
        "interpolate_features": ["k", "power", "eps"],
    }
    tensors = sum(isinstance(value, Tensor) for value in arguments)
    positional = tensors + (name != "interpolate_features")
    named = dict(zip(names.get(name, []), arguments[positional:], strict=False))
    with pytest.raises(InputError) as expected:
        getattr(ops, name)(*arguments[:positional], **named)
    with pytest.raises(InputError) as found:
        getattr(_registration, name)(*arguments)
    assert str(found.value) == str(expected.value)
