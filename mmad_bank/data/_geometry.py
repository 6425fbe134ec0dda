"""Planes and clusters of point clouds, seeded and exact."""

from __future__ import annotations

from itertools import product

import numpy as np

NOISE = -1


def fit_plane(
    points: np.ndarray, *, distance: float = 0.004, n_sample: int = 50, n_hypotheses: int = 1000, seed: int = 0
) -> tuple[np.ndarray, float]:
    """Fit a plane by RANSAC (Fischler and Bolles, 1981).

    Each hypothesis is the least-squares plane of ``n_sample`` points drawn at random; the one with the most inliers
    wins (at equality the first) and is fitted again to all its inliers. Written here and not taken from Open3D: its
    generator is one for the whole process, so that the result would depend on what else ran, and in parallel.

    Args:
        points: (N, 3), metres.
        distance: Largest distance of an inlier from the plane, in metres.
        n_sample: Number of points per hypothesis; all of them if there are fewer.
        n_hypotheses: Number of hypotheses.
        seed: Seed of the draws.

    Returns:
        Unit normal (3,) and offset d of the plane ⟨normal, p⟩ = d, float64; d is not negative.
    """
    points = points.astype(np.float64)
    rng = np.random.default_rng(seed)
    # With replacement where there are many points: one drawn twice only counts twice in a fit that is a guess anyway.
    drawn = points[rng.integers(len(points), size=(n_hypotheses, n_sample))] if len(points) > n_sample else points[None]
    centres = drawn.mean(axis=1)
    residuals = drawn - centres[:, None]
    normals = np.linalg.eigh(residuals.transpose(0, 2, 1) @ residuals)[1][:, :, 0]
    offsets = (normals * centres).sum(axis=1)
    # float32 about the mean: rounding stays below a micrometre, and a row of distances in the processor's cache.
    middle = points.mean(axis=0)
    x, y, z = np.ascontiguousarray((points - middle).T, dtype=np.float32)
    shifted = (offsets - normals @ middle).astype(np.float32)
    counts = [
        np.count_nonzero(np.abs(x * nx + y * ny + z * nz - d) < distance)
        for (nx, ny, nz), d in zip(normals.astype(np.float32), shifted, strict=True)
    ]
    best = int(np.argmax(counts))
    inliers = points[np.abs(points @ normals[best] - offsets[best]) < distance]
    if len(inliers) < 3:
        inliers = drawn[best]
    centre = inliers.mean(axis=0)
    normal = np.linalg.eigh((inliers - centre).T @ (inliers - centre))[1][:, 0]
    offset = float(normal @ centre)
    return (normal, offset) if offset >= 0 else (-normal, -offset)


def dbscan(points: np.ndarray, *, eps: float = 0.006, min_points: int = 30) -> np.ndarray:
    """Label the clusters of DBSCAN (Ester et al., 1996), exactly, in the order of scikit-learn's labels.

    A part's cloud has hundreds of points within eps of every point, and the textbook method lists them all. Here
    space is cut into cubes of diagonal eps (Gan and Tao, *DBSCAN Revisited*, SIGMOD 2015): the points of a cube are
    all neighbours, so a cube of ``min_points`` holds core points only, and the core points of a cube are in one
    cluster. What is left is to count neighbours in thin cubes, and to join neighbouring cubes by one pair of core
    points within eps.

    Args:
        points: (N, 3), metres.
        eps: Radius of the neighbourhood, in metres, its border included.
        min_points: Number of points in the neighbourhood of a core point, itself included.

    Returns:
        Labels (N,), int64: clusters counted from 0 by their first core point; −1 for noise. A point that is no core
        point but near some belongs to the first of their clusters.
    """
    from scipy.spatial import cKDTree

    points = points.astype(np.float64)
    if not len(points):
        return np.empty(0, dtype=np.int64)
    # A little less than eps/√3: two points of a cube stay within eps after rounding.
    cells, cell_of = _cells(points, eps / np.sqrt(3) * (1 - 1e-9))
    core = np.bincount(cell_of)[cell_of] >= min_points
    tree = cKDTree(points)
    thin = np.flatnonzero(~core)
    core[thin] = tree.query_ball_point(points[thin], eps, return_length=True) >= min_points
    labels = np.full(len(points), NOISE, dtype=np.int64)
    members = np.flatnonzero(core)
    if not len(members):
        return labels
    component = _join_cells(points, cells, cell_of, members, eps)[cell_of[members]]
    _, first, index = np.unique(component, return_index=True, return_inverse=True)
    labels[members] = np.argsort(np.argsort(first))[index]
    border = np.flatnonzero(~core)
    for point, near in zip(border, tree.query_ball_point(points[border], eps), strict=True):
        found = labels[[other for other in near if core[other]]]
        labels[point] = found.min() if len(found) else NOISE
    return labels


def _cells(points: np.ndarray, side: float) -> tuple[np.ndarray, np.ndarray]:
    """Sort points into cubes: the occupied cubes' integer coordinates (C, 3), and every point's cube (N,)."""
    places = np.floor((points - points.min(axis=0)) / side)
    grid = np.empty(points.shape, dtype=np.int64)
    for axis in range(3):
        # An empty stretch of three cubes separates as well as a longer one; with a stray point a kilometre away the
        # keys below would not fit into 64 bits.
        values, index = np.unique(places[:, axis], return_inverse=True)
        grid[:, axis] = np.concatenate([[0], np.minimum(np.diff(values), 3).cumsum()])[index]
    extent = grid.max(axis=0) + 1
    keys = (grid[:, 0] * extent[1] + grid[:, 1]) * extent[2] + grid[:, 2]
    _, first, cell_of = np.unique(keys, return_index=True, return_inverse=True)
    return grid[first], cell_of


def _join_cells(
    points: np.ndarray, cells: np.ndarray, cell_of: np.ndarray, members: np.ndarray, eps: float
) -> np.ndarray:
    """Give each cube the smallest number of a cube that its core points are connected with, (C,)."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    order = members[np.argsort(cell_of[members], kind="stable")]
    occupied, starts = np.unique(cell_of[order], return_index=True)
    groups = dict(zip(occupied.tolist(), np.split(order, starts[1:]), strict=True))
    pairs = _near_cells(cells, occupied)
    # Most pairs are settled by their first points; what these connect need not be looked at again.
    some = np.zeros(len(cells), dtype=np.int64)
    some[occupied] = order[starts]
    gaps = np.linalg.norm(points[some[pairs[:, 0]]] - points[some[pairs[:, 1]]], axis=1)
    joined = gaps <= eps

    def components() -> np.ndarray:
        edges = pairs[joined]
        graph = coo_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(len(cells), len(cells)))
        return connected_components(graph, directed=False)[1]

    label = components()
    for i in np.flatnonzero(~joined):
        a, b = pairs[i]
        if label[a] == label[b]:
            continue
        distance, _ = cKDTree(points[groups[a]]).query(points[groups[b]], distance_upper_bound=eps * (1 + 1e-9))
        if distance.min() <= eps:
            joined[i] = True
            label[label == label[b]] = label[a]
    return label


def _near_cells(cells: np.ndarray, occupied: np.ndarray) -> np.ndarray:
    """List the pairs of cubes that can lie within eps of each other, (P, 2): at most two cubes apart on each axis."""
    extent = cells.max(axis=0) + 5
    keys = ((cells[occupied, 0] * extent[1]) + cells[occupied, 1]) * extent[2] + cells[occupied, 2]
    order = np.argsort(keys)
    ordered = keys[order]
    pairs = []
    for offset in product(range(-2, 3), repeat=3):
        # One of each pair of opposite offsets; the cubes at the corners of the 5×5×5 block touch the sphere at most.
        step = (offset[0] * extent[1] + offset[1]) * extent[2] + offset[2]
        if offset <= (0, 0, 0):
            continue
        place = np.minimum(np.searchsorted(ordered, keys + step), len(ordered) - 1)
        hit = ordered[place] == keys + step
        pairs.append(np.stack([occupied[hit], occupied[order[place[hit]]]], axis=1))
    return np.concatenate(pairs)
