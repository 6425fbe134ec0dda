"""Values at the ends of float32's range: answers are float64's, and calls end. tests/fuzz holds far more of these."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from mmad_bank import ops
from mmad_bank.errors import InputError
from mmad_bank.ops import reference
from mmad_bank.ops._torch.knn import TorchIndex

PRECISIONS = ["auto", "float32", "half", "int8"]
SMALLEST = 2.0**-149


def _check(queries: np.ndarray, bank: np.ndarray, k: int, precision: str, *, ties: bool = True) -> None:
    """Compare with float64; without ``ties``, rows that float64 itself hardly tells apart may change places."""
    distances, rows = ops.knn(queries, bank, k, precision=precision)
    right, expected = reference.knn(torch.from_numpy(queries), torch.from_numpy(bank), k)
    torch.testing.assert_close(distances, right, rtol=2e-7, atol=SMALLEST)
    if ties:
        assert torch.equal(rows, expected)
    squared = np.square(queries[:, None].astype(np.float64) - bank[None].astype(np.float64)).sum(-1)
    found, nearest = np.take_along_axis(squared, rows.numpy(), 1), np.take_along_axis(squared, expected.numpy(), 1)
    np.testing.assert_allclose(found, nearest, rtol=1e-12, atol=0.0)
    assert all(len(set(row)) == k for row in rows.tolist())


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("scale", [SMALLEST, 1e-40, 1e-36, 1e-30, 1e-20, 1e-10, 1.0, 1e10, 1e16])
@pytest.mark.parametrize("count", [1, 60])
def test_scales(scale: float, count: int, precision: str) -> None:
    rng = np.random.default_rng(0)
    bank = np.rint(rng.normal(size=(count, 8)) * 8) * scale
    queries = np.concatenate([np.rint(rng.normal(size=(5, 8)) * 8) * scale, np.zeros((1, 8)), bank[:1]])
    _check(queries.astype(np.float32), bank.astype(np.float32), min(count, 7), precision)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_queries_far_from_a_tiny_bank_and_the_reverse(precision: str) -> None:
    rng = np.random.default_rng(1)
    ends = 10.0 ** np.array([-45, -38, -30, -19, -8, 0, 8, 17])[:, None]
    rows = (rng.normal(size=(8, 16)) * ends).astype(np.float32)
    for i in range(8):
        cloud = (rng.normal(size=(40, 16)) * ends[i]).astype(np.float32)
        _check(rows, cloud, 3, precision, ties=False)
        _check(cloud, rows, 8, precision, ties=False)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_one_tiny_row_among_zeros(precision: str) -> None:
    bank = np.zeros((100, 16), np.float32)
    bank[7] = 1e-38
    _check(np.stack([bank[7], bank[0], bank[7] * 0.4]), bank, 100, precision)


@pytest.mark.parametrize("scale", [SMALLEST * 64, 1e-36, 1e-20, 1.0, 1e16])
def test_selection_of_all_scales(scale: float) -> None:
    rng = np.random.default_rng(2)
    rows = torch.from_numpy((rng.normal(size=(300, 16)) * scale).astype(np.float32))
    rows[200:] = rows[100]
    assert torch.equal(ops.k_center_greedy(rows, 300), reference.k_center_greedy(rows, 300))


def test_selection_where_most_rows_are_tiny() -> None:
    rng = np.random.default_rng(3)
    rows = np.zeros((300, 16), np.float32)
    rows[200:250] = rng.normal(size=(50, 16)) * 1e-38
    rows[250:] = rng.normal(size=(50, 16))
    rows[7] = 1e-38
    found = ops.k_center_greedy(rows, 150)
    assert torch.equal(found, reference.k_center_greedy(torch.from_numpy(rows), 150))


def test_the_fallback_certifies_nothing_that_overflowed() -> None:
    rng = np.random.default_rng(4)
    bank = np.zeros((200, 1), np.float32)
    bank[::5] = rng.normal(size=(40, 1)) * 1e-15
    queries = torch.tensor([[8e15], [1e-20], [0.0]])
    distances, rows = TorchIndex(torch.from_numpy(bank)).search(queries, 30)
    right, expected = reference.knn(queries, torch.from_numpy(bank), 30)
    assert torch.equal(rows, expected)
    assert torch.equal(distances, right)


WIDE = """
import numpy as np, torch
from mmad_bank import ops
rng = np.random.default_rng(0)
sign = np.sign(rng.normal(size=135_000)).astype(np.float32)
bank = np.stack([side * sign * (1 + 0.01 * i) for side in (1, -1) for i in range(8)]).astype(np.float32)
rows = ops.knn(torch.from_numpy(bank[[3, 7, 12]]), torch.from_numpy(bank), 1, precision="int8")[1]
raise SystemExit(rows[:, 0].tolist() != [3, 7, 12])
"""


@pytest.mark.parametrize("isa", ["generic", *(pytest.param(isa, marks=pytest.mark.slow) for isa in ("avx2", "avx512"))])
def test_sums_of_very_wide_rows_do_not_overflow(isa: str) -> None:
    if isa not in ops.system_info()["cpu"]["can run"]:
        pytest.skip(f"no {isa}")
    environment = {**os.environ, "MMAD_BANK_ISA": isa}
    assert subprocess.run([sys.executable, "-c", WIDE], env=environment, check=False).returncode == 0


def test_rows_that_are_too_long_are_named() -> None:
    bank = np.zeros((9, 4), np.float32)
    bank[6] = 3e18
    with pytest.raises(InputError, match="bank: row 6 has a norm above 1e18"):
        ops.SearchIndex(bank)
    with pytest.raises(InputError, match="queries: row 1 holds NaN"):
        ops.knn(np.array([[0.0], [np.nan]], np.float32), np.ones((3, 1), np.float32))


def test_many_rows_at_one_distance_keep_their_order() -> None:
    """More equal candidates than are kept: they are decided on the way."""
    rng = np.random.default_rng(5)
    bank = np.eye(64, dtype=np.float32)[rng.integers(0, 63, 9000)] * 3
    queries = np.concatenate([np.zeros((1, 64)), np.eye(64)[63:] * 2, np.eye(64)[:1] * 2]).astype(np.float32)
    for precision in PRECISIONS:
        _check(queries, bank, 5, precision)
