"""The loop of whoever owns the shards of a selection, for tests of shards of all kinds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from mmad_bank.ops.k_center_shards import KCenterCoordinator, KCenterShard


def parts_of(features: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    return [part.contiguous() for part in features.split(list(sizes))]


def select_over(
    shards: Sequence[KCenterShard],
    features: Tensor,
    coordinator: KCenterCoordinator,
    earlier: Tensor | None = None,
) -> KCenterCoordinator:
    """Select from features, whose rows lie one behind another in the shards."""
    firsts = list(accumulate(map(len, shards), initial=0))

    def inside(rows: Tensor, k: int) -> Tensor:
        return (rows >= firsts[k]) & (rows < firsts[k + 1])

    def tell(picks: Tensor) -> None:
        for k, shard in enumerate(shards):
            shard.meet(features[picks], own=torch.where(inside(picks, k), picks - firsts[k], -1))

    if earlier is None:
        tell(coordinator.rows)
    else:
        for shard in shards:
            shard.meet(earlier)
    while True:
        while True:
            for first, shard in zip(firsts, shards, strict=False):
                found = shard.rise(coordinator.bar, coordinator.wanted)
                coordinator.offer(found.numbered(found.rows + first))
            if coordinator.join():
                break
        if coordinator.covering_radius is not None:
            return coordinator
        known = len(coordinator.rows)
        coordinator.pick(features[coordinator.pool])
        if coordinator.covering_radius is not None:
            return coordinator
        tell(coordinator.rows_from(known))
        pool, values = coordinator.pool, coordinator.values
        for k, shard in enumerate(shards):
            shard.settle(pool[inside(pool, k)] - firsts[k], values[inside(pool, k)])


def squared_in_one_order(features: Tensor, center: Tensor) -> Tensor:
    """Squared distances as csrc/include/mmad/operand.hpp defines them, to the last bit."""
    padded = torch.zeros(len(features), -(-features.shape[1] // 32) * 32, dtype=torch.float64)
    padded[:, : features.shape[1]] = (features.double() - center.double()).square()
    sums = torch.zeros(len(features), 32, dtype=torch.float64)
    for columns in padded.split(32, dim=1):
        sums += columns
    while sums.shape[1] > 1:
        low, high = sums.chunk(2, dim=1)
        sums = low + high
    return sums[:, 0]
