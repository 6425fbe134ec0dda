"""Rows of a table that are equal: what is computed of each row alone is computed once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_SAMPLED = 16  # values of a row that are looked at first
_AT_ONCE = 2048  # rows that are compared whole at a time
_WORTH = 0.9  # largest share of rows left for which taking rows apart pays


def on_distinct(function: Callable[[Tensor], tuple[Tensor, ...]], rows: Tensor) -> tuple[Tensor, ...]:
    """Return what a function of each row alone gives, calling it with one of equal rows.

    An image's patches without a point are equal, and so are patches that an enlarged grid repeats. On a GPU all rows
    are computed: to know how many are equal the host would have to wait.

    Args:
        function: Function of a table (N, D) that gives tensors (N, ...), each row from the same row of the table.
        rows: (N, D); of other types than float32 all are computed, too.

    Example:
        >>> calls = []
        >>> total, = on_distinct(lambda x: (calls.append(len(x)) or x.sum(1),), torch.tensor([[1.0, 2.0]] * 5))
        >>> total, calls
        (tensor([3., 3., 3., 3., 3.]), [1])
    """
    found = _distinct(rows) if rows.device.type == "cpu" and rows.dtype == torch.float32 else None
    if found is None:
        return function(rows)
    chosen, place = found
    return tuple(one[place] for one in function(rows[chosen]))


def _distinct(rows: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the numbers (U,) of rows to take, and for each row which of these is equal to it; None if nearly all.

    A few values tell most rows apart; those that have them in common are compared whole, and stay apart if they differ.
    """
    columns = torch.linspace(0, rows.shape[1] - 1, min(_SAMPLED, rows.shape[1])).long()
    bits = rows[:, columns].contiguous().view(torch.int32).long()
    odd = 2 * torch.arange(1, len(columns) + 1) * 0x9E3779B1 + 1  # products wrap around; any mixing does
    groups, group = (bits * odd).sum(1).unique(return_inverse=True)
    if len(groups) > _WORTH * len(rows):
        return None
    numbers = torch.arange(len(rows))
    first = torch.full((len(groups),), len(rows)).scatter_reduce_(0, group, numbers, "amin")
    parts = zip(rows.split(_AT_ONCE), first[group].split(_AT_ONCE), strict=True)
    equal = torch.cat([(part == rows[own]).all(1) for part, own in parts])
    taken = ~equal | (first[group] == numbers)
    place = taken.cumsum(0) - 1
    return taken.nonzero()[:, 0], torch.where(taken, place, place[first[group]])
