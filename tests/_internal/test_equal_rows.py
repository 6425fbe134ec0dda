"""Equal rows are computed once, and rows that only look equal each."""

from __future__ import annotations

import pytest
import torch

from mmad_bank._internal.equal_rows import on_distinct


def counted(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    calls: list[int] = []

    def function(part: torch.Tensor) -> tuple[torch.Tensor, ...]:
        calls.append(len(part))
        return 2 * part, part.sum(1)

    doubled, sums = on_distinct(function, rows)
    return doubled, sums, calls[0]


@pytest.mark.parametrize(("n", "dim", "distinct"), [(50, 3, 7), (5000, 40, 300), (1, 4, 1), (6, 1, 2), (4000, 100, 1)])
def test_rows_come_back_in_their_places(n: int, dim: int, distinct: int) -> None:
    generator = torch.Generator().manual_seed(n)
    rows = torch.randn(distinct, dim, generator=generator)[torch.randint(distinct, (n,), generator=generator)]
    doubled, sums, called = counted(rows)
    assert torch.equal(doubled, 2 * rows)
    assert torch.equal(sums, rows.sum(1))
    assert called == len(rows.unique(dim=0))


def test_rows_that_differ_where_nobody_looks_first_stay_apart() -> None:
    rows = torch.zeros(300, 1000)
    rows[100:200, 7] = torch.arange(100.0)  # no sampled column
    rows[250, 999] = 1.0
    doubled, _, called = counted(rows)
    assert torch.equal(doubled, 2 * rows)
    assert 100 < called < 110


def test_rows_without_equal_ones_are_passed_on() -> None:
    rows = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    given: list[torch.Tensor] = []
    on_distinct(lambda part: (given.append(part) or part,), rows)  # type: ignore[func-returns-value]
    assert given[0] is rows
