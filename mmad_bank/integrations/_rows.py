"""Vectors of other libraries' files: whether they can be searched, said with the file's name."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from mmad_bank._internal.checks import check_finite
from mmad_bank.errors import FormatError, InputError

_LONGEST = 1e18  # norm of a vector whose squared distances fit float32


def check_rows(rows: Tensor, path: str | os.PathLike[str]) -> None:
    """Refuse vectors (N, D) of a file that no search takes.

    Raises:
        FormatError: One is not finite, or so long that squared distances overflow; or they have no values.
    """
    try:
        check_finite(rows, "vectors")
    except InputError as error:
        raise FormatError(f"{path}: {error}") from None
    if len(rows) and not rows.shape[1]:
        raise FormatError(f"{path}: expected vectors of at least one value, found none")
    long = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64) > _LONGEST
    if bool(long.any()):
        raise FormatError(
            f"{path}: vector {int(long.int().argmax())} is longer than {_LONGEST:g}, so that squared distances would"
            " not fit float32"
        )
