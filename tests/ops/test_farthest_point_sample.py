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
from mmad_bank.ops import farthest_point_sample, reference
from mmad_bank.ops._torch.farthest_point_sample import farthest_point_sample as fps_by_torch


def depth_surface(n_side: int, seed: int = 0) -> torch.Tensor:
    """Return a scan-like cloud: a raster of a curved surface in metres with the sensor's noise in depth."""
    u, v = torch.meshgrid(torch.linspace(-0.05, 0.05, n_side), torch.linspace(-0.05, 0.05, n_side), indexing="xy")
    noise = torch.randn(n_side, n_side, generator=torch.Generator().manual_seed(seed)) * 2e-4
    return torch.stack([u, v, 0.5 + 0.02 * torch.sin(60 * u) * torch.cos(40 * v) + noise], -1).reshape(-1, 3)


def cloud(kind: str, n: int = 500) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    if kind == "normal":
        return torch.randn(n, 3, generator=generator)
    if kind == "surface":
        return depth_surface(23)[:n]
    if kind == "grid":  # every distance many times over
        side = torch.arange(8.0)
        return torch.cartesian_prod(side, side, side)[torch.randperm(512, generator=generator)][:n]
    if kind == "collinear":
        return torch.arange(float(n))[:, None] * torch.tensor([1.0, 0.0, 0.0])
    if kind == "duplicates":
        return torch.randn(n // 20, 3, generator=generator).repeat(20, 1)
    if kind == "zeros":
        return torch.zeros(n, 3)
    if kind == "far outlier":
        points = torch.randn(n, 3, generator=generator)
        points[13] = 1e30
        return points
    if kind == "offset":  # float32 coordinates with few bits left below the offset
        return torch.randn(n, 3, generator=generator) + 1e4
    raise ValueError(kind)


KINDS = ["normal", "surface", "grid", "collinear", "duplicates", "zeros", "far outlier", "offset"]


def on_torch_path(points: torch.Tensor, n_select: int, start: int = 0) -> torch.Tensor:
    eligible = torch.ones(points.shape[:2], dtype=torch.bool)
    return fps_by_torch(points, eligible, n_select, start)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("start", [0, 321])
def test_equals_the_reference_until_every_point_is_taken(kind: str, start: int) -> None:
    points = cloud(kind)[None]
    expected = reference.farthest_point_sample(points, points.shape[1], start=start)
    chosen = farthest_point_sample(points, points.shape[1], start=start)
    assert torch.equal(chosen, expected)
    assert sorted(chosen[0].tolist()) == list(range(points.shape[1]))
    assert torch.equal(on_torch_path(points, points.shape[1], start), expected)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 63, 64, 65, 66, 129, 257])
def test_sizes_around_the_leaves_and_lanes(n: int) -> None:
    points = cloud("normal", n)[None]
    assert torch.equal(farthest_point_sample(points, n), reference.farthest_point_sample(points, n))


def test_point_mae_sampling_of_a_scan_equals_the_reference() -> None:
    points = depth_surface(100)[None]
    assert torch.equal(farthest_point_sample(points, 784), reference.farthest_point_sample(points, 784))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.integers(1, 4), st.integers(0, 2**31), st.data())
def test_small_lattices_full_of_ties(n: int, extent: int, seed: int, data: st.DataObject) -> None:
    points = torch.randint(0, extent + 1, (1, n, 3), generator=torch.Generator().manual_seed(seed)).float()
    n_select, start = data.draw(st.integers(1, n)), data.draw(st.integers(0, n - 1))
    expected = reference.farthest_point_sample(points, n_select, start=start)
    assert torch.equal(farthest_point_sample(points, n_select, start=start), expected)


def test_a_batch_is_its_clouds_one_by_one_whatever_the_thread_count() -> None:
    batch = torch.stack([cloud(kind, 480) for kind in ("normal", "surface", "grid", "duplicates", "collinear")])
    single = torch.cat([farthest_point_sample(one[None], 100) for one in batch])
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(farthest_point_sample(batch, 100), single)
    finally:
        torch.set_num_threads(before)


def test_clouds_of_different_sizes_as_a_sequence_and_padded() -> None:
    clouds = [cloud("normal", 300), cloud("surface", 77), cloud("grid", 150)]
    expected = torch.cat([reference.farthest_point_sample(one[None], 60, start=5) for one in clouds])
    assert torch.equal(farthest_point_sample(clouds, 60, start=5), expected)
    padded = torch.full((3, 300, 3), torch.nan)
    for row, one in zip(padded, clouds, strict=True):
        row[: len(one)] = one
    lengths = [300, 77, 150]
    assert torch.equal(farthest_point_sample(padded, 60, start=5, lengths=lengths), expected)
    assert torch.equal(farthest_point_sample(padded, 60, start=5, lengths=torch.tensor(lengths)), expected)
    assert torch.equal(reference.farthest_point_sample(padded, 60, start=5, lengths=lengths), expected)


@pytest.mark.parametrize("start", [0, 40])
def test_points_near_the_origin_can_be_left_out(start: int) -> None:
    points = cloud("normal", 200) * 0.05
    points[::4] = 0.0
    floor = 1e-3
    far = points.double().square().sum(1) > floor
    n_select = int(far.sum()) + 1
    chosen = farthest_point_sample(points[None], n_select, start=start, min_norm_sq=floor)
    expected = reference.farthest_point_sample(points[None], n_select, start=start, min_norm_sq=floor)
    assert torch.equal(chosen, expected)
    assert far[chosen[0, 1:]].all()
    with pytest.raises(InputError, match=rf"min_norm_sq: .*{n_select + 1} points.*found {n_select} in points\[0\]"):
        farthest_point_sample(points[None], n_select + 1, start=start, min_norm_sq=floor)


def test_the_torch_path_of_other_devices_handles_padding_and_the_norm_floor() -> None:
    from mmad_bank.ops.farthest_point_sample import _as_clouds, _padded

    clouds = [cloud("normal", 90) * 0.05, cloud("surface", 50)]
    padded, eligible = _padded(*_as_clouds(clouds, None), 1e-3)
    result = fps_by_torch(padded, eligible, 30, 2)
    for row, one in zip(result, clouds, strict=True):
        expected = reference.farthest_point_sample(one[None], 30, start=2, min_norm_sq=1e-3)
        assert torch.equal(row, expected[0])


def test_takes_arrays_views_and_other_floats() -> None:
    points = cloud("normal", 120)
    expected = reference.farthest_point_sample(points[None], 50)
    wide = torch.zeros(120, 2, 3)
    wide[:, 1] = points
    assert torch.equal(farthest_point_sample(wide[:, 1][None], 50), expected)
    assert torch.equal(farthest_point_sample(points.T.contiguous().T[None], 50), expected)
    assert torch.equal(farthest_point_sample(points.double().numpy()[None], 50), expected)
    assert torch.equal(farthest_point_sample(np.ascontiguousarray(points.numpy()[::-1])[::-1][None], 50), expected)


@pytest.mark.parametrize("isa", ["generic", "avx2"])
def test_every_instruction_set_gives_the_same_picks(isa: str, tmp_path) -> None:
    points = torch.stack([cloud(kind, 480) for kind in ("normal", "surface", "grid", "offset")])
    np.save(tmp_path / "points.npy", points.numpy())
    code = (
        "import sys, numpy as np; from mmad_bank.ops import farthest_point_sample as sample;"
        "np.save(sys.argv[2], sample(np.load(sys.argv[1]), 300).numpy())"
    )
    environment = {**os.environ, "MMAD_BANK_ISA": isa}
    paths = [str(tmp_path / "points.npy"), str(tmp_path / "picks.npy")]
    subprocess.run([sys.executable, "-c", code, *paths], env=environment, check=True)
    expected = reference.farthest_point_sample(points, 300)
    assert np.array_equal(np.load(tmp_path / "picks.npy"), expected.numpy())


GOOD = torch.randn(2, 10, 3)
BAD_ROW = torch.zeros(2, 10, 3)
BAD_ROW[1, 4, 2] = torch.nan


@pytest.mark.parametrize(
    ("points", "options", "message"),
    [
        (GOOD[0], {}, r"^points: expected 3-D array, found shape \(10, 3\)$"),
        (GOOD[..., :2], {}, r"^points: expected 3 columns"),
        (GOOD[:, :0], {}, r"^points: expected at least one point"),
        (GOOD[:0], {}, r"^points: expected at least one point"),
        ([], {}, r"^points: expected at least one cloud"),
        ([GOOD[0], GOOD[1][:, :2]], {}, r"^points\[1\]: expected 3 columns"),
        ([GOOD[0]], {"lengths": [10]}, r"^lengths: expected None"),
        (GOOD.int(), {}, r"^points: expected floating-point"),
        (BAD_ROW, {}, r"^points\[1\]: row 4 holds NaN"),
        (GOOD, {"n_select": 11}, r"^n_select: expected 1 to 10"),
        (GOOD, {"n_select": 0}, r"^n_select: expected 1 to 10"),
        (GOOD, {"n_select": 2.0}, r"^n_select: expected an integer"),
        (GOOD, {"start": 10}, r"^start: expected 0 to 9"),
        (GOOD, {"start": -1}, r"^start: expected 0 to 9"),
        (GOOD, {"lengths": [10]}, r"^lengths: expected 2 integers"),
        (GOOD, {"lengths": [10.0, 4.0]}, r"^lengths: expected 2 integers"),
        (GOOD, {"lengths": [10, 11]}, r"^lengths\[1\]: expected 1 to 10"),
        (GOOD, {"lengths": [0, 10]}, r"^lengths\[0\]: expected 1 to 10"),
        (GOOD, {"lengths": [10, 3], "n_select": 4}, r"^n_select: expected 1 to 3"),
        (GOOD, {"min_norm_sq": -1.0}, r"^min_norm_sq: expected a finite number of at least 0"),
        (GOOD, {"min_norm_sq": float("nan")}, r"^min_norm_sq: expected a finite number"),
        (GOOD, {"min_norm_sq": "1e-3"}, r"^min_norm_sq: expected a number"),
        (GOOD, {"min_norm_sq": 1e6}, r"^min_norm_sq: expected at least 2 points"),
    ],
)
def test_bad_input_is_named(points, options, message: str) -> None:
    with pytest.raises(InputError, match=message):
        farthest_point_sample(points, **{"n_select": 2, **options})
