"""The nearest of several parts of a bank are those of one index, to the bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmad_bank import ops
from mmad_bank.distributed.merging import merged


def in_parts(queries: Tensor, vectors: Tensor, ends: list[int], k: int) -> list[tuple[Tensor, Tensor]]:
    found = []
    for first, last in zip([0, *ends], [*ends, len(vectors)], strict=True):
        distances, rows = ops.knn(queries, vectors[first:last], min(k, last - first))
        found.append((distances, rows + first))
    return found


def by_float32(parts: list[tuple[Tensor, Tensor]], k: int) -> Tensor:
    """What would come of the distances that the parts return."""
    distances, rows = (torch.cat(columns, 1) for columns in zip(*parts, strict=True))
    return rows.gather(1, distances.sort(dim=1, stable=True).indices[:, :k])


def near_ties(dim: int = 9, copies: int = 40, seed: int = 0) -> Tensor:
    """Vectors that differ in the last bit of some values, and others whose values are in another order."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.rand(dim, generator=generator) + 1
    moved = torch.nextafter(base, base + 1)
    choice = torch.randint(0, 2, (copies, dim), generator=generator).bool()
    turned = torch.stack([base[torch.randperm(dim, generator=generator)] for _ in range(copies)])
    return torch.cat([torch.where(choice, base, moved), turned])


@pytest.mark.parametrize("k", [1, 2, 9, 40])
def test_near_ties_are_decided_as_one_index_decides_them(k: int) -> None:
    by_float32_alone = []
    for seed in range(5):
        vectors = near_ties(seed=seed)
        vectors = vectors[torch.randperm(len(vectors), generator=torch.Generator().manual_seed(seed))]
        queries = torch.cat([torch.zeros(1, 9), vectors[:7], torch.full((1, 9), 1e6)])
        expected = ops.knn(queries, vectors, k)
        parts = in_parts(queries, vectors, [3, 20, 21, 55], k)
        found = merged(queries, parts, k, vectors.__getitem__)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
        by_float32_alone.append(torch.equal(by_float32(parts, k), expected[1]))
    assert not all(by_float32_alone)  # float32 distances would not have decided them


@pytest.mark.parametrize("k", [1, 3, 12])
def test_equal_vectors_come_by_their_rows(k: int) -> None:
    vectors = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0]]).repeat(5, 1)
    queries = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 2.0]]).repeat(300, 1)  # more than are decided together
    parts = in_parts(queries, vectors, [4, 5, 11], k)
    found = merged(queries, parts, k, vectors.__getitem__)
    for one, expected in zip(found, ops.knn(queries, vectors, k), strict=True):
        assert torch.equal(one, expected)


def test_a_run_of_equal_distances_that_ends_beyond_k_is_decided_whole() -> None:
    """The third shard's vector is the nearest of those that float32 cannot tell apart, behind k of the second's."""
    far = torch.tensor([1.0, 1.0, 1.0, 1.0])
    nearer = torch.nextafter(far, torch.zeros(4))
    nearer[:3] = 1.0
    vectors = torch.stack([far / 2, far, far, far, nearer])
    queries = torch.zeros(1, 4)
    parts = in_parts(queries, vectors, [1, 4], 3)
    assert len(torch.cat([distances for distances, _ in parts], 1).unique()) == 2
    assert ops.knn(queries, vectors, 3)[1].tolist() == [[0, 4, 1]]
    assert merged(queries, parts, 3, vectors.__getitem__)[1].tolist() == [[0, 4, 1]]


def test_nothing_is_gathered_where_float32_decides() -> None:
    def refuse(rows: Tensor) -> Tensor:
        raise AssertionError(rows)

    vectors = torch.arange(20.0)[:, None]
    queries = torch.tensor([[0.3], [7.9]])
    found = merged(queries, in_parts(queries, vectors, [6, 13], 4), 4, refuse)
    assert torch.equal(found[1], ops.knn(queries, vectors, 4)[1])
