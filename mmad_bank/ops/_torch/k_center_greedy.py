"""Greedy k-center selection in plain PyTorch, for devices without a native kernel."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_REPORT_EVERY = 256


def select(
    rows: Tensor,
    centers: Tensor | None,
    n_select: int,
    start: int,
    radius: float,
    report: Callable[[int], None] | None,
) -> tuple[Tensor, Tensor, float]:
    """The textbook loop in float64; the picks stay on the device: one synchronisation in _REPORT_EVERY of them."""
    wide = rows.double()
    nearest = torch.full((len(rows),), float("inf"), dtype=torch.float64, device=rows.device)
    for center in () if centers is None else centers.double():
        torch.minimum(nearest, (wide - center).square_().sum(1), out=nearest)
    indices = torch.empty(n_select, dtype=torch.int64, device=rows.device)
    distances = torch.empty(n_select, dtype=torch.float64, device=rows.device)
    for done in range(n_select):
        given = centers is None and done == 0
        pick = torch.tensor(start, device=rows.device) if given else _first_of_the_largest(nearest)
        indices[done], distances[done] = pick, nearest[pick].sqrt()
        torch.minimum(nearest, (wide - wide[pick]).square_().sum(1), out=nearest)
        nearest[pick] = -1.0
        if (done + 1) % _REPORT_EVERY == 0:
            if report is not None:
                report(done + 1)
            if float(distances[done]) <= radius:
                n_select = done + 1
                break
    indices, distances = indices[:n_select], distances[:n_select]
    covered = (distances <= radius).nonzero()
    if len(covered):  # the first pick within the radius was one too many, and its distance is what was left uncovered
        enough = int(covered[0, 0])
        return indices[:enough], distances[:enough].float(), float(distances[enough])
    return indices, distances.float(), float(nearest.max().clamp(min=0.0).sqrt())


def _first_of_the_largest(values: Tensor) -> Tensor:
    return (values == values.max()).int().argmax()
