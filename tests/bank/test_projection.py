import numpy as np
import pytest
import torch

from mmad_bank.bank.projection import SparseProjection, johnson_lindenstrauss_dim
from mmad_bank.errors import InputError


def matrix(projection):
    return projection(torch.eye(projection.dim_in))


@pytest.mark.parametrize("n_rows", [2, 10, 784, 62720, 765184])
def test_dimension_is_scikit_learns(n_rows):
    random_projection = pytest.importorskip("sklearn.random_projection")
    assert johnson_lindenstrauss_dim(n_rows) == random_projection.johnson_lindenstrauss_min_dim(n_rows, eps=0.9)


def test_entries_follow_the_sparse_distribution():
    projection = SparseProjection(900, 300, seed=3)
    entries = matrix(projection)
    density = 1 / 30
    value = 1 / np.sqrt(density * 300)
    assert set(np.unique(entries.abs().numpy())) == {np.float32(0), np.float32(value)}
    count = 900 * 300
    for share, expected in (((entries > 0), density / 2), ((entries < 0), density / 2)):
        deviation = np.sqrt(expected * (1 - expected) / count)
        assert abs(share.double().mean().item() - expected) < 5 * deviation


def test_projection_is_the_matrix_product():
    projection = SparseProjection(100, 20, seed=0)
    rows = torch.randn(1300, 100)
    expected = rows.double() @ matrix(projection).double()
    torch.testing.assert_close(projection(rows).double(), expected, rtol=0, atol=1e-5)


def test_result_depends_neither_on_blocks_nor_on_threads():
    projection = SparseProjection(257, 40, seed=5)
    rows = torch.randn(1500, 257)
    whole = projection(rows)
    assert torch.equal(torch.cat([projection(block) for block in rows.split(7)]), whole)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(projection(rows), whole)
    finally:
        torch.set_num_threads(threads)


def test_seed_decides_the_matrix_and_its_stream_stays_fixed():
    assert torch.equal(matrix(SparseProjection(64, 16, seed=7)), matrix(SparseProjection(64, 16, seed=7)))
    assert not torch.equal(matrix(SparseProjection(64, 16, seed=7)), matrix(SparseProjection(64, 16, seed=8)))
    # A change here would make saved banks extend in another space than they were selected in.
    assert matrix(SparseProjection(8, 3, seed=0)).sign().int().T.tolist() == [
        [0, -1, 1, -1, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, -1, 0, 1],
        [0, 0, 1, 0, 1, 1, 0, 0],
    ]


def test_distances_are_kept_on_average():
    rows = torch.randn(40, 2000)
    ratio = torch.pdist(SparseProjection(2000, 400, seed=1)(rows)) / torch.pdist(rows)
    assert abs(ratio.mean().item() - 1) < 0.05


def test_create():
    assert SparseProjection.create(64, 100, None, 0) is None
    assert SparseProjection.create(128, 765184, "auto", 0) is None  # 334 would be longer than 128
    assert SparseProjection.create(1152, 765184, "auto", 0).dim_out == 334
    assert SparseProjection.create(4, 1, "auto", 0).dim_out == 1
    with pytest.raises(InputError, match="projection_dim: expected 1 to 64"):
        SparseProjection.create(64, 100, 65, 0)
    with pytest.raises(InputError, match="seed: expected"):
        SparseProjection.create(64, 100, 8, -1)
