"""Planes by RANSAC, and DBSCAN against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest

cluster = pytest.importorskip("sklearn.cluster")

from mmad_bank.data._geometry import dbscan, fit_plane


def test_the_plane_is_found_among_outliers() -> None:
    rng = np.random.default_rng(0)
    normal = np.array([0.1, -0.2, 0.9])
    normal /= np.linalg.norm(normal)
    x, y = rng.uniform(-0.1, 0.1, (2, 4000))
    z = (0.4 - normal[0] * x - normal[1] * y) / normal[2] + rng.normal(0, 3e-4, 4000)
    plane = np.stack([x, y, z], axis=1)
    # A tenth of the points stands on the plane, one-sided, as an object that reaches into the border.
    plane[:400] -= normal * rng.uniform(0.006, 0.03, (400, 1))
    found, offset = fit_plane(plane)
    assert abs(found @ normal) > 1 - 1e-5  # 0.26 degrees
    assert np.abs(plane[400:] @ found - offset).mean() < 4e-4
    again, same = fit_plane(plane)
    assert np.array_equal(found, again)
    assert same == offset


def test_three_points_define_a_plane() -> None:
    points = np.array([[0, 0, 1], [1, 0, 1], [0, 1, 1]], dtype=np.float32)
    normal, offset = fit_plane(points)
    assert np.allclose(np.abs(normal), [0, 0, 1], atol=1e-7)
    assert offset == pytest.approx(1)


@pytest.mark.parametrize("seed", range(12))
def test_dbscan_labels_are_scikit_learns(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, min_points = int(rng.integers(30, 2500)), int(rng.integers(1, 40))
    points = rng.uniform(0, rng.uniform(0.01, 0.1), (n, 3))
    points[:, 2] *= rng.uniform()
    expected = cluster.DBSCAN(eps=0.006, min_samples=min_points).fit(points).labels_
    assert np.array_equal(dbscan(points, eps=0.006, min_points=min_points), expected)


def test_dbscan_of_degenerate_clouds() -> None:
    assert dbscan(np.empty((0, 3))).shape == (0,)
    assert dbscan(np.zeros((29, 3))).tolist() == [-1] * 29
    assert dbscan(np.zeros((30, 3))).tolist() == [0] * 30
    far = np.zeros((61, 3))
    far[30:60] = 1e30
    far[60] = -1e6  # stray points, as a sensor's error may be
    assert dbscan(far).tolist() == [0] * 30 + [1] * 30 + [-1]


def test_clusters_join_through_a_chain_and_part_beyond_the_radius() -> None:
    """Two dense balls touch only by points just within, or just beyond, eps of each other."""
    rng = np.random.default_rng(1)
    ball = rng.normal(0, 1e-4, (50, 3))
    for gap, n_clusters in ((0.0059, 1), (0.0061, 2)):
        points = np.concatenate([ball - ball[0], ball - ball[0] + [gap, 0, 0]])
        points[:50, 0] = -np.abs(points[:50, 0])
        points[50:, 0] = gap + np.abs(points[50:, 0] - gap)
        labels = dbscan(points)
        assert labels.max() + 1 == n_clusters
        assert np.array_equal(labels, cluster.DBSCAN(eps=0.006, min_samples=30).fit(points).labels_)
