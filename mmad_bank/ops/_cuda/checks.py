"""What must hold before a kernel gets an address, for it reads where it is told to.

The public functions have checked more, the values too. Here is what the host knows without waiting for the device, for
whoever comes past them (the operators), in the same words.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mmad_bank._internal.checks import check_index
from mmad_bank.errors import InputError
from mmad_bank.ops._point_checks import check_columns, check_same_device

_MAX_ROWS = 2**31 - 1  # the kernels number rows with 32 bits; the largest number says that there is none


def check_float32(rows: Tensor, name: str, *, ndim: int = 2) -> None:
    """Refuse what is not an array of float32 with ``ndim`` dimensions."""
    if rows.dtype != torch.float32:
        raise InputError(f"{name}: expected float32 values, found {rows.dtype}")
    if rows.ndim != ndim:
        raise InputError(f"{name}: expected {ndim}-D array, found shape {tuple(rows.shape)}")


def check_rows(rows: Tensor, name: str, *, ndim: int = 2) -> None:
    """Refuse what is not a table of float32, or a batch of them, with at least one row and one column."""
    check_float32(rows, name, ndim=ndim)
    if rows.numel() == 0:
        raise InputError(f"{name}: expected at least one row and one column, found shape {tuple(rows.shape)}")
    _check_count(rows, name)


def check_search(queries: Tensor, bank: Tensor, k: int, device: torch.device) -> None:
    """Refuse queries that a bank with these vectors cannot be asked on ``device``; there may be none."""
    check_float32(queries, "queries")
    if queries.shape[1] != bank.shape[1]:
        raise InputError(f"queries: expected {bank.shape[1]} columns as in the bank, found {queries.shape[1]}")
    check_index(k, "k", 1, len(bank), "the number of vectors in the bank")
    if queries.device != device:
        raise InputError(f"queries: expected a tensor on {device} as the bank is, found {queries.device}")


def check_points(points: Tensor, name: str, beside: Tensor, *, ndim: int = 2) -> None:
    """Refuse what are no float32 points, at least one, on the device of ``beside``."""
    check_float32(points, name, ndim=ndim)
    check_columns(points, name)
    check_same_device(points, name, beside)
    _check_count(points, name)


def check_sampling(first_rows: np.ndarray, sizes: np.ndarray, count: int, n_select: int, start: int) -> None:
    """Refuse clouds that are no parts of the ``count`` points, or too small for the picks."""
    if first_rows.ndim != 1 or first_rows.shape != sizes.shape or len(sizes) == 0:
        raise InputError(f"sizes: expected one for each of the first rows, found {sizes.shape} for {first_rows.shape}")
    if int(first_rows.min()) < 0 or int(sizes.min()) < 1 or int((first_rows + sizes).max()) > count:
        raise InputError(f"sizes: expected clouds of at least one point inside the {count} points")
    smallest = int(sizes.min())
    check_index(n_select, "n_select", 1, smallest, "the number of points in the smallest cloud")
    check_index(start, "start", 0, smallest - 1, "the rows of the smallest cloud")


def _check_count(rows: Tensor, name: str) -> None:
    count = rows.shape[:-1].numel()
    if count > _MAX_ROWS:
        raise InputError(f"{name}: expected at most {_MAX_ROWS} rows on a CUDA device, found {count}")
