"""Mean and standard deviation of streams: accurate, and the same bits whoever sums up which block."""

from __future__ import annotations

import pytest
import torch

from mmad_bank.bank.standardization import BlockSums, Moments, first_shift


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 5), (1001, 33)])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_moments_are_those_of_all_values(shape: tuple[int, int], offset: float) -> None:
    blocks = torch.randn(4, *shape, generator=torch.Generator().manual_seed(1)) + offset
    moments = Moments()
    for block in blocks:
        moments.update(block)
    mean, std = moments.result()
    assert mean == pytest.approx(float(blocks.double().mean()), rel=1e-7, abs=1e-7)
    assert std == pytest.approx(float(blocks.double().std()), rel=1e-6)


def test_bits_do_not_depend_on_threads_or_on_who_sums() -> None:
    blocks = torch.randn(3, 4001, 129, generator=torch.Generator().manual_seed(2)) + 3.0
    found, threads = [], torch.get_num_threads()
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            moments = Moments()
            for block in blocks:
                moments.update(block)
            found.append(moments.result())
    finally:
        torch.set_num_threads(threads)
    shift = first_shift(blocks[0])
    sums = {number: BlockSums.of(blocks[number], shift) for number in (2, 0, 1)}
    joined = Moments()
    joined.shift = shift
    for number in range(3):
        joined.add(sums[number])
    assert found == [joined.result()] * 3


def test_summing_leaves_the_values_alone() -> None:
    block = torch.randn(9, 4)
    before = block.clone()
    Moments().update(block)
    assert torch.equal(block, before)
