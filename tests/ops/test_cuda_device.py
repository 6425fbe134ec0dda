"""What only a GPU can show: streams, graphs, several devices, host memory, full sizes, and no growth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from mmad_bank import ops
from mmad_bank.ops import _cuda, _k_center_torch, _points_torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not _cuda.available("cuda"), reason="needs a CUDA device and the compiled kernels"),
]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).cuda()


def manifold(count: int, dim: int, seed: int = 0) -> Tensor:
    """Rows near a 24-dimensional set, as features of a network are."""
    latent = random(count, 24, seed=seed)
    return torch.tanh(latent @ random(24, dim, seed=99)) + 0.05 * random(count, dim, seed=seed + 1)


def brute_force(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """float64 differences, a block of the bank at a time; ties to the lowest row."""
    distances, indices = [], []
    for query in queries:
        squared = torch.cat([(part.double() - query.double()).square_().sum(1) for part in bank.split(1 << 15)])
        order = torch.sort(squared, stable=True)
        distances.append(order.values[:k].sqrt().float())
        indices.append(order.indices[:k])
    return torch.stack(distances), torch.stack(indices)


@pytest.mark.parametrize(("precision", "wgmma"), [("half", "0"), ("half", "1"), ("int8", "0")])
@pytest.mark.parametrize("k", [1, 9, 32])
def test_knn_at_full_size(k: int, precision: str, wgmma: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMAD_BANK_WGMMA", wgmma)
    bank, queries = manifold(19129, 768), manifold(784, 768, seed=5)
    distances, indices = _cuda.CudaIndex(bank, precision).search(queries, k)
    expected_distances, expected_indices = brute_force(queries[::7], bank, k)
    assert torch.equal(indices[::7], expected_indices)
    assert torch.equal(distances[::7], expected_distances)


def test_knn_at_the_largest_target() -> None:
    bank, queries = manifold(76518, 1152), manifold(3136, 1152, seed=5)
    _, indices = _cuda.CudaIndex(bank).search(queries, 1)
    assert torch.equal(indices[::56], brute_force(queries[::56], bank, 1)[1])


@pytest.mark.parametrize("wgmma", ["0", "1"])
@pytest.mark.parametrize("dim", [64, 1024, 16384])
def test_knn_where_the_matrix_unit_rounds_worst(dim: int, wgmma: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values of one sign just off a bfloat16, so that every product and every addition loses as much as it can."""
    monkeypatch.setenv("MMAD_BANK_WGMMA", wgmma)
    base = 1.0 + 1.0 / 512 - 1e-4 * torch.rand(600, dim, generator=torch.Generator().manual_seed(0))
    bank = base.cuda()
    queries = (bank[:50] + 1e-4 * random(50, dim)).contiguous()
    index = _cuda.CudaIndex(bank)
    index.center.zero_()  # keep the rows far from the origin
    index._operand = _cuda._Operand(bank, index.center, int8=False)
    assert torch.equal(index.search(queries, 3)[1], brute_force(queries, bank, 3)[1])


def test_knn_in_a_graph() -> None:
    bank, queries = random(3000, 96), random(200, 96, seed=1)
    index = _cuda.CudaIndex(bank)
    index.search(queries, 3)  # loads the kernels
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        distances, indices = index.search(queries, 3)
    for seed in (2, 3):
        fresh = random(200, 96, seed=seed)
        queries.copy_(fresh)
        distances.fill_(-1)
        indices.fill_(-1)
        graph.replay()
        expected = index.search(fresh, 3)
        assert torch.equal(indices, expected[1])
        assert torch.equal(distances, expected[0])


def test_operators_in_a_graph() -> None:
    cloud, rows = random(2, 900, 3), random(40, 8)
    torch.ops.mmad_bank.farthest_point_sample(cloud, 30)
    torch.ops.mmad_bank.knn(rows, rows, 2)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        picks = torch.ops.mmad_bank.farthest_point_sample(cloud, 30)
        indices = torch.ops.mmad_bank.knn(rows, rows, 2)[1]
    cloud.copy_(random(2, 900, 3, seed=7))
    rows.copy_(random(40, 8, seed=7))
    graph.replay()
    assert torch.equal(picks, ops.farthest_point_sample(cloud, 30))
    assert torch.equal(indices, ops.knn(rows, rows, 2)[1])


def test_work_is_queued_on_the_current_stream() -> None:
    bank, source = random(3000, 96), random(200, 96, seed=1)
    expected = _cuda.CudaIndex(bank).search(source, 3)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        late = torch.full_like(source, float("nan"))
        torch.cuda._sleep(50_000_000)  # what follows must wait for this
        late.copy_(source)
        distances, indices = _cuda.CudaIndex(bank).search(late, 3)
        picks = ops.k_center_greedy(late, 50)
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(indices, expected[1])
    assert torch.equal(distances, expected[0])
    assert torch.equal(picks, ops.k_center_greedy(source, 50))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
def test_second_device() -> None:
    bank, queries = random(3000, 96), random(200, 96, seed=1)
    expected = _cuda.CudaIndex(bank).search(queries, 3)
    other = _cuda.CudaIndex(bank.to("cuda:1")).search(queries.to("cuda:1"), 3)
    assert torch.cuda.current_device() == 0
    assert torch.equal(other[1].cpu(), expected[1].cpu())
    picks = ops.k_center_greedy(bank.to("cuda:1"), 100)
    assert torch.equal(picks.cpu(), ops.k_center_greedy(bank, 100).cpu())


def test_rows_in_host_memory() -> None:
    bank, queries = manifold(5000, 130), manifold(300, 130, seed=5)
    host = _cuda.CudaIndex(bank.cpu(), device="cuda")
    assert torch.equal(host.search(queries, 4)[1], _cuda.CudaIndex(bank).search(queries, 4)[1])
    arguments = None, 400, 3, -1.0, None
    found = _cuda.k_center_greedy(bank.cpu(), *arguments, device="cuda")[0]
    assert torch.equal(found, _cuda.k_center_greedy(bank, *arguments)[0])


@pytest.mark.parametrize("pool", [0, 700])
def test_k_center_at_size(pool: int) -> None:
    features = manifold(40000, 256)
    picks, radii, covering = _cuda.k_center_greedy(features, None, 3000, 11, -1.0, None, pool=pool)
    expected = _k_center_torch.select(features, None, 3000, 11, -1.0, None)
    assert torch.equal(picks, expected[0])
    torch.testing.assert_close(radii, expected[1], rtol=1e-6, atol=0)
    assert covering == pytest.approx(expected[2], rel=1e-12)


def test_k_center_with_many_duplicates() -> None:
    features = random(500, 64).repeat(40, 1)
    picks = _cuda.k_center_greedy(features, None, 2000, 0, -1.0, None)[0]
    assert len(picks.unique()) == 2000
    assert torch.equal(picks, _k_center_torch.select(features, None, 2000, 0, -1.0, None)[0])


def test_point_clouds_at_size() -> None:
    clouds = random(16, 20000, 3)
    sizes = np.full(16, 20000)
    picks = _cuda.farthest_point_sample(clouds.flatten(0, 1), np.arange(16) * 20000, sizes, 1024, 0, -1.0)
    eligible = torch.ones(16, 20000, dtype=torch.bool, device="cuda")
    assert torch.equal(picks, _points_torch.farthest_point_sample(clouds, eligible, 1024, 0))
    centers = clouds[0][picks[0]]
    assert torch.equal(_cuda.knn_group(clouds[0], centers, 128), _points_torch.knn_group(clouds[0], centers, 128))
    features = random(1024, 1152)
    found = _cuda.interpolate_features(clouds[0], centers, features, 3, 2.0, 1e-8)
    expected = _points_torch.interpolate_features(clouds[0], centers, features, 3, 2.0, 1e-8, dense=False)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_no_growth_in_many_searches() -> None:
    index, queries = _cuda.CudaIndex(random(2000, 64)), random(128, 64, seed=1)
    for _ in range(50):
        index.search(queries, 1)
    torch.cuda.synchronize()
    before = torch.cuda.mem_get_info()[0], torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    for _ in range(10_000):
        index.search(queries, 1)
    torch.cuda.synchronize()
    assert (torch.cuda.mem_get_info()[0], torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) == before
