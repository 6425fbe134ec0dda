from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmad_bank.errors import InputError
from mmad_bank.ops import knn_group, reference
from mmad_bank.ops._torch.knn_group import knn_group as group_by_torch


def points_of(kind: str, n: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    if kind == "normal":
        return torch.randn(n, 3, generator=generator)
    if kind == "lattice":
        return torch.randint(0, 6, (n, 3), generator=generator).float()
    if kind == "collinear":
        return torch.arange(float(n))[:, None] * torch.tensor([0.0, 0.25, 0.0])
    if kind == "duplicates":
        return torch.randn(n // 40, 3, generator=generator).repeat(40, 1)
    if kind == "zeros":
        return torch.zeros(n, 3)
    if kind == "extreme":
        return torch.randn(n, 3, generator=generator) * torch.logspace(-30, 38, n)[:, None]
    raise ValueError(kind)


@pytest.mark.parametrize("kind", ["normal", "lattice", "collinear", "duplicates", "zeros", "extreme"])
@pytest.mark.parametrize("k", [1, 2, 5, 64, 128, 1000])
def test_equals_the_reference(kind: str, k: int) -> None:
    points = points_of(kind, 1000)
    centers = torch.cat([points[::50], torch.randn(10, 3), torch.full((1, 3), -1e30)])
    expected = reference.knn_group(points, centers, k)
    assert torch.equal(knn_group(points, centers, k), expected)
    assert torch.equal(group_by_torch(points, centers, k), expected)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 3), st.integers(0, 2**31), st.data())
def test_small_lattices_full_of_ties(n: int, extent: int, seed: int, data: st.DataObject) -> None:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randint(0, extent + 1, (n, 3), generator=generator).float()
    centers = torch.randint(0, 2 * extent + 2, (7, 3), generator=generator).float() / 2
    k = data.draw(st.integers(1, n))
    assert torch.equal(knn_group(points, centers, k), reference.knn_group(points, centers, k))


def test_a_batch_is_its_clouds_one_by_one() -> None:
    points, centers = torch.randn(3, 200, 3), torch.randn(3, 9, 3)
    result = knn_group(points, centers, 20)
    assert result.shape == (3, 9, 20)
    for b in range(3):
        assert torch.equal(result[b], reference.knn_group(points[b], centers[b], 20))


def test_a_single_point_serves_every_centre() -> None:
    assert knn_group(torch.ones(1, 3), torch.randn(4, 3), 1).tolist() == [[0]] * 4


def test_thread_counts_views_and_other_floats_agree() -> None:
    points, centers = points_of("normal", 900), points_of("normal", 50)
    expected = reference.knn_group(points, centers, 33)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(knn_group(points, centers, 33), expected)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(knn_group(points.T.contiguous().T, centers.double().numpy(), 33), expected)


@pytest.mark.parametrize("isa", ["generic", "avx2"])
def test_every_instruction_set_gives_the_same_groups(isa: str, tmp_path) -> None:
    points, centers = points_of("normal", 2000), points_of("normal", 100)
    np.savez(tmp_path / "in.npz", points=points.numpy(), centers=centers.numpy())
    code = (
        "import sys, numpy as np; from mmad_bank.ops import knn_group; data = np.load(sys.argv[1]);"
        "np.save(sys.argv[2], knn_group(data['points'], data['centers'], 100).numpy())"
    )
    paths = [str(tmp_path / "in.npz"), str(tmp_path / "out.npy")]
    subprocess.run([sys.executable, "-c", code, *paths], env={**os.environ, "MMAD_BANK_ISA": isa}, check=True)
    assert np.array_equal(np.load(tmp_path / "out.npy"), reference.knn_group(points, centers, 100).numpy())


POINTS, CENTERS = torch.randn(10, 3), torch.randn(4, 3)


@pytest.mark.parametrize(
    ("points", "centers", "k", "message"),
    [
        (POINTS, CENTERS, 11, r"^k: expected 1 to 10 \(the number of points\), found 11$"),
        (POINTS, CENTERS, 0, r"^k: expected 1 to 10"),
        (POINTS[:, :2], CENTERS, 1, r"^points: expected 3 columns"),
        (POINTS, CENTERS[:, :1], 1, r"^centers: expected 3 columns"),
        (POINTS[:0], CENTERS, 1, r"^points: expected at least one point"),
        (POINTS, CENTERS[:0], 1, r"^centers: expected at least one point"),
        (POINTS[0], CENTERS, 1, r"^points: expected 2-D or 3-D array"),
        (POINTS[None], CENTERS, 1, r"^centers: expected the batch dimensions of points"),
        (POINTS.expand(2, 10, 3), CENTERS.expand(3, 4, 3), 1, r"^centers: expected the batch dimensions of points"),
        (POINTS * torch.inf, CENTERS, 1, r"^points: row 0 holds NaN or infinity"),
        (POINTS, CENTERS.long(), 1, r"^centers: expected floating-point"),
    ],
)
def test_bad_input_is_named(points, centers, k: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        knn_group(points, centers, k)
