"""What only a GPU can show: streams, graphs, several devices, host memory, full sizes, and no growth.

Kernels against the references, with poisoned workspaces and outputs, are in test_cuda_kernels.py.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shard_loop import parts_of, select_over
from torch import Tensor

from mmad_bank import MemoryBank, ops
from mmad_bank.bank.indices import FaissIndex
from mmad_bank.errors import InputError
from mmad_bank.ops import _cuda
from mmad_bank.ops._cuda import operand
from mmad_bank.ops._torch.farthest_point_sample import farthest_point_sample as fps_by_torch
from mmad_bank.ops._torch.interpolate_features import interpolate_features as interpolate_by_torch
from mmad_bank.ops._torch.k_center_greedy import select as select_by_torch
from mmad_bank.ops._torch.k_center_shards import TorchShard
from mmad_bank.ops._torch.knn_group import knn_group as group_by_torch
from mmad_bank.ops.k_center_shards import KCenterCoordinator, KCenterShard
from mmad_bank.scoring import anomaly_map

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
    index._operand = operand.Operand(bank, index.center, int8=False)
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


@pytest.mark.parametrize("k", [33, 100])
def test_long_lists_in_a_graph(k: int) -> None:
    bank, queries = random(3000, 96), random(200, 96, seed=1)
    index = _cuda.CudaIndex(bank)
    index.search(queries, k)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        distances, indices = index.search(queries, k)
    queries.copy_(random(200, 96, seed=2))
    graph.replay()
    expected = brute_force(queries, bank, k)
    assert torch.equal(indices, expected[1])
    assert torch.equal(distances, expected[0])


def score_and_map(bank: MemoryBank, patches: Tensor, reweight: Any) -> tuple[Tensor, Tensor, Tensor]:
    scores = bank.score(patches, reweight=reweight)
    return scores.patch, scores.image, anomaly_map(scores.patch, (28, 28), (224, 224))


@pytest.mark.parametrize("vectors_on", ["device", "host"])
@pytest.mark.parametrize("reweight", ["m3dm", "patchcore", "max", "top"])
def test_the_way_to_the_score(reweight: Any, vectors_on: Any) -> None:
    """Equal to the CPU's to 1e-4; no synchronisation but for the check of the patches; capturable in a graph."""
    rows, patches = manifold(3000, 96), manifold(2 * 784, 96, seed=5).view(2, 784, 96)
    patches[1, 300:310] += 0.5
    host = MemoryBank(rows.cpu())
    bank = host.to("cuda", vectors_on=vectors_on)
    expected = score_and_map(host, patches.cpu(), reweight)
    for found, wanted in zip(score_and_map(bank, patches, reweight), expected, strict=True):
        torch.testing.assert_close(found.cpu(), wanted, rtol=1e-4, atol=1e-4)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # a synchronisation or a copy from the host would end the capture
        captured = score_and_map(bank, patches, reweight)
    fresh = manifold(2 * 784, 96, seed=9).view(2, 784, 96)
    patches.copy_(fresh)
    graph.replay()
    for found, wanted in zip(captured, score_and_map(host, fresh.cpu(), reweight), strict=True):
        torch.testing.assert_close(found.cpu(), wanted, rtol=1e-4, atol=1e-4)


def test_bad_patches_are_named_on_the_device() -> None:
    patches = random(1, 9, 8)
    patches[0, 4, 2] = float("nan")
    with pytest.raises(InputError, match="patches: image 0, patch 4 holds NaN or infinity"):
        MemoryBank(random(50, 8)).score(patches)


def test_faiss_index_on_the_gpu() -> None:
    faiss = pytest.importorskip("faiss")
    if not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() == 0:
        pytest.skip("faiss-gpu finds no device")
    rows, queries = manifold(3000, 96), manifold(200, 96, seed=5)
    exact = brute_force(queries, rows, 3)
    for factory, recall in (("Flat", 0.99), ("IVF64,Flat", 0.8)):
        bank = MemoryBank(rows, index=factory)
        assert isinstance(bank.search_index.faiss_index, faiss.GpuIndex)
        bank.search_index.faiss_index.nprobe = 32
        distances, indices = bank.search(queries, 3)
        assert indices.device == queries.device
        assert float((indices == exact[1]).float().mean()) >= recall
        assert float((distances - exact[0]).abs().median()) < 1e-3
        saved = bank.search_index.serialize()
        assert FaissIndex.deserialize(rows, saved).faiss_index.ntotal == 3000
        bank.score(queries.view(2, 100, 96))


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


@pytest.mark.parametrize("k", [3, _cuda.MAX_NEIGHBORS + 1])
def test_another_stream_waits_for_the_index(k: int) -> None:
    """It is made after a pause on one stream and searched at once on another."""
    bank, queries = random(3000, 96), random(200, 96, seed=1)
    expected = _cuda.CudaIndex(bank).search(queries, k)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(50_000_000)
        index = _cuda.CudaIndex(bank)
    assert torch.equal(index.search(queries, k)[1], expected[1])


@pytest.mark.parametrize("vectors_on", ["device", "host"])
def test_the_memory_of_an_index_waits_for_its_searches(vectors_on: str) -> None:
    """It goes while a search on another stream is still queued; what is allocated next must not come in its place."""
    bank, queries = random(3000, 96), random(200, 96, seed=1)
    expected = _cuda.CudaIndex(bank).search(queries, 3)[1]
    index = _cuda.CudaIndex(bank.clone() if vectors_on == "device" else bank.cpu().pin_memory(), device="cuda")
    sizes = index._operand.buffer.numel(), bank.nbytes, index.center.nbytes
    index.search(queries, 3)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        found = index.search(queries, 3)[1]
    del index
    taken = [torch.full((size,), 255, dtype=torch.uint8, device="cuda") for size in sizes]
    host = torch.full((bank.nbytes,), 255, dtype=torch.uint8, pin_memory=True)
    stream.synchronize()
    assert torch.equal(found, expected)
    del taken, host


def test_a_page_lock_that_goes_breaks_no_capture() -> None:
    bank, queries = random(3000, 96), random(200, 96, seed=1)
    rows = bank.cpu()
    index, other = _cuda.CudaIndex(bank), _cuda.CudaIndex(rows, device="cuda")
    index.search(queries, 3)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        indices = index.search(queries, 3)[1]
        del other
    assert rows.is_pinned()
    graph.replay()
    assert torch.equal(indices, index.search(queries, 3)[1])
    _cuda.CudaIndex(random(9, 4).cpu(), device="cuda")
    assert not rows.is_pinned()


def test_threads_search_at_once() -> None:
    """Kernels with different needs of shared memory, started by several threads, each on a stream of its own."""
    bank, queries = random(3000, 96), random(200, 96, seed=1)
    indices = {precision: _cuda.CudaIndex(bank, precision) for precision in ("half", "int8")}
    expected = indices["half"].search(queries, 40)[1]
    torch.cuda.synchronize()

    def search(number: int) -> Tensor:
        with torch.cuda.stream(torch.cuda.Stream()):
            found = indices[("half", "int8")[number % 2]].search(queries, (1, 9, 40)[number % 3])[1]
            torch.cuda.current_stream().synchronize()
        return found

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(search, range(60)):
            assert torch.equal(found, expected[:, : found.shape[1]])


@pytest.mark.parametrize("stream", [False, True])
def test_poisoned_outputs(stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that PyTorch hands out holds NaN and wrong rows; every value of a result is written."""
    empty = torch.empty

    def poisoned(*size: object, **arguments: object) -> Tensor:
        tensor = empty(*size, **arguments)
        return tensor.view(torch.uint8).fill_(255).view(tensor.dtype) if tensor.numel() else tensor

    bank, queries = random(700, 40), random(300, 40, seed=1)
    expected = brute_force(queries, bank, 40), ops.k_center_greedy(bank, 90)
    torch.cuda.synchronize()
    monkeypatch.setattr(torch, "empty", poisoned)
    with torch.cuda.stream(torch.cuda.Stream() if stream else torch.cuda.current_stream()):
        distances, indices = _cuda.CudaIndex(bank).search(queries, 40)
        picks = _cuda.k_center_greedy(bank, None, 90, 0, -1.0, None)[0]
        torch.cuda.current_stream().synchronize()
    assert torch.equal(indices, expected[0][1])
    assert torch.equal(distances, expected[0][0])
    assert torch.equal(picks, expected[1])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
def test_second_device() -> None:
    bank, queries = random(3000, 96), random(200, 96, seed=1)
    expected = _cuda.CudaIndex(bank).search(queries, 3)
    other = _cuda.CudaIndex(bank.to("cuda:1")).search(queries.to("cuda:1"), 3)
    assert torch.cuda.current_device() == 0
    assert torch.equal(other[1].cpu(), expected[1].cpu())
    picks = ops.k_center_greedy(bank.to("cuda:1"), 100)
    assert torch.equal(picks.cpu(), ops.k_center_greedy(bank, 100).cpu())
    host = ops.SearchIndex(bank.cpu(), device="cuda:1")
    assert torch.equal(host.search(queries.to("cuda:1"), 3)[1].cpu(), expected[1].cpu())
    with pytest.raises(InputError, match="expected a tensor on cuda:1"):
        host.search(queries, 3)
    picks = ops.k_center_greedy(bank.cpu(), 100, device="cuda:1")
    assert torch.equal(picks, ops.k_center_greedy(bank, 100).cpu())
    moved = MemoryBank(bank).to("cuda:1")
    assert torch.equal(moved.search(queries, 3)[1].cpu(), expected[1].cpu())
    assert torch.cuda.current_device() == 0


def check_shards(shards: list[KCenterShard], features: Tensor, n_select: int, earlier: Tensor | None = None) -> None:
    """Held against the CPU's selection, to the last bit."""
    n_earlier = 0 if earlier is None else len(earlier)
    coordinator = KCenterCoordinator(len(features), n_select, n_earlier=n_earlier)
    found = select_over(shards, features, coordinator, earlier)
    if earlier is None:
        expected = ops.k_center_greedy(features, n_select, return_radius=True)
    else:
        expected = ops.extend_coreset(features, earlier, n_select=n_select)
    assert torch.equal(found.rows, expected.indices)
    assert torch.equal(found.radii.float(), expected.radii)
    assert found.covering_radius == expected.covering_radius


@pytest.mark.parametrize("places", [["cuda"], ["cuda"] * 3, ["cuda", "cpu"], ["cpu", "cuda", "cuda", "cpu", "cuda"]])
@pytest.mark.parametrize("kind", ["manifold", "duplicates", "odd dimension"])
def test_shards_of_one_selection(kind: str, places: list[str]) -> None:
    features = {
        "manifold": lambda: manifold(20_000, 256),
        "duplicates": lambda: random(500, 64).repeat(12, 1)[torch.randperm(6000)],
        "odd dimension": lambda: manifold(9000, 131),
    }[kind]().cpu()
    parts = parts_of(features, [len(part) for part in features.tensor_split(len(places))])
    on_device = [KCenterShard(part.to(place), n_centers=900) for part, place in zip(parts, places, strict=True)]
    check_shards(on_device, features, 900)
    in_host_memory = [
        KCenterShard(part, n_centers=909, device=place) for part, place in zip(parts, places, strict=True)
    ]
    check_shards(in_host_memory, features, 900, features[:9] + 0.01)


@pytest.mark.parametrize("tiles", [0, 300, 781])
def test_a_shard_with_streamed_rows_at_size(tiles: int, monkeypatch: pytest.MonkeyPatch) -> None:
    features = manifold(100_000, 64).cpu()
    monkeypatch.setattr(operand, "resident_tiles", lambda *_: tiles)
    check_shards([KCenterShard(features, n_centers=2000, device="cuda")], features, 2000)


def test_a_shard_keeps_its_stream() -> None:
    """It is made after a pause on one stream, and asked on others."""
    features = manifold(5000, 96)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(50_000_000)
        late = features.clone()
        shard = KCenterShard(late, n_centers=300)
    with torch.cuda.stream(torch.cuda.Stream()):
        check_shards([shard], features.cpu(), 300)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
def test_shards_on_two_devices() -> None:
    features = manifold(9000, 96).cpu()
    parts = parts_of(features, [4000, 5000])
    shards = [KCenterShard(part, n_centers=400, device=f"cuda:{k}") for k, part in enumerate(parts)]
    check_shards(shards, features, 400)
    assert torch.cuda.current_device() == 0


def test_a_shard_of_pytorch_has_the_same_values() -> None:
    features, centers = manifold(3000, 131), manifold(20, 131, seed=5).cpu()
    answers = []
    for kernel in (
        TorchShard(features),
        _cuda.CudaShard(features, 20),
        KCenterShard(features.cpu(), n_centers=20)._kernel,
    ):
        kernel.meet(centers, torch.full((20,), -1))
        squared, rows, above, _ = kernel.rise(0.0, 3000)
        assert above == 3000
        answers.append(squared[rows.argsort()])
    assert torch.equal(answers[0], answers[2])
    assert torch.equal(answers[1], answers[2])


def test_a_shard_that_does_not_fit_is_named() -> None:
    with pytest.raises(InputError, match=r"^features: the selection needs \d+ bytes on the device, found \d+ free"):
        KCenterShard(torch.zeros(2, 1000), n_centers=1 << 30, device="cuda")


def test_rows_in_host_memory() -> None:
    bank, queries = manifold(5000, 130), manifold(300, 130, seed=5)
    host = _cuda.CudaIndex(bank.cpu(), device="cuda")
    assert torch.equal(host.search(queries, 4)[1], _cuda.CudaIndex(bank).search(queries, 4)[1])
    arguments = None, 400, 3, -1.0, None
    found = _cuda.k_center_greedy(bank.cpu(), *arguments, device="cuda")[0]
    assert torch.equal(found, _cuda.k_center_greedy(bank, *arguments)[0])


def test_rows_in_host_memory_through_the_public_functions() -> None:
    bank, queries = manifold(5000, 130), manifold(300, 130, seed=5)
    for precision in ("auto", "int8", "float32"):
        index = ops.SearchIndex(bank.cpu(), precision=precision, device="cuda")
        distances, indices = index.search(queries, 4)
        assert distances.is_cuda
        assert torch.equal(indices, brute_force(queries, bank, 4)[1])
        assert torch.equal(index.gather(indices), bank[indices])
    coreset = ops.k_center_greedy(bank.cpu(), 400, device="cuda", return_radius=True)
    assert coreset.indices.device.type == "cpu"
    assert torch.equal(coreset.indices, ops.k_center_greedy(bank, 400).cpu())
    more = ops.extend_coreset(bank.cpu(), bank[:9].cpu(), n_select=50, device="cuda")
    assert torch.equal(more.indices, ops.extend_coreset(bank, bank[:9], n_select=50).indices.cpu())


def test_page_locks_are_given_back() -> None:
    rows, queries = manifold(5000, 130).cpu(), manifold(300, 130, seed=5)
    for part in (rows, rows[1000:]):  # one lock for both; then again, when the first has gone
        assert not part.is_pinned()
        index, other = ops.SearchIndex(part, device="cuda"), ops.SearchIndex(part[8:], device="cuda")
        assert part.is_pinned()
        found = index.search(queries)[1]
        del index
        assert part.is_pinned()
        assert torch.equal(found.cpu(), ops.knn(queries.cpu(), part)[1])
        del other
    assert not rows.is_pinned()


def test_a_read_only_mapping_is_copied(tmp_path: Path) -> None:
    rows = manifold(500, 64).cpu()
    np.save(tmp_path / "rows.npy", rows.numpy())
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    queries = manifold(30, 64, seed=5)
    assert torch.equal(ops.SearchIndex(mapped, device="cuda").search(queries)[1].cpu(), ops.knn(queries.cpu(), rows)[1])


@pytest.mark.parametrize("tiles", [0, 700, 1562])
def test_k_center_with_streamed_rows_at_size(tiles: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """1563 tiles: three chunks where four times the multiprocessors make one."""
    features = manifold(200_000, 64)
    expected = _cuda.k_center_greedy(features, None, 3000, 0, -1.0, None)[0]
    monkeypatch.setattr(operand, "resident_tiles", lambda *_: tiles)
    found = _cuda.k_center_greedy(features.cpu(), None, 3000, 0, -1.0, None, device="cuda")[0]
    assert torch.equal(found, expected)


def test_k_center_takes_no_more_memory_than_it_is_told() -> None:
    features = manifold(200_000, 256).cpu()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before, memory = torch.cuda.memory_allocated(), 110 << 20  # the bfloat16 copy is 98 MiB, the rows' state 28
    _cuda.k_center_greedy(features, None, 500, 0, -1.0, None, device="cuda", memory=memory)
    assert torch.cuda.max_memory_allocated() - before < memory + (32 << 20)  # a sample of the rows, for their centre


@pytest.mark.parametrize("pool", [0, 700])
def test_k_center_at_size(pool: int) -> None:
    features = manifold(40000, 256)
    picks, radii, covering = _cuda.k_center_greedy(features, None, 3000, 11, -1.0, None, pool=pool)
    expected = select_by_torch(features, None, 3000, 11, -1.0, None)
    assert torch.equal(picks, expected[0])
    torch.testing.assert_close(radii, expected[1], rtol=1e-6, atol=0)
    assert covering == pytest.approx(expected[2], rel=1e-12)


def test_k_center_with_many_duplicates() -> None:
    features = random(500, 64).repeat(40, 1)
    picks = _cuda.k_center_greedy(features, None, 2000, 0, -1.0, None)[0]
    assert len(picks.unique()) == 2000
    assert torch.equal(picks, select_by_torch(features, None, 2000, 0, -1.0, None)[0])


def test_point_clouds_at_size() -> None:
    clouds = random(16, 20000, 3)
    sizes = np.full(16, 20000)
    picks = _cuda.farthest_point_sample(clouds.flatten(0, 1), np.arange(16) * 20000, sizes, 1024, 0, -1.0)
    eligible = torch.ones(16, 20000, dtype=torch.bool, device="cuda")
    assert torch.equal(picks, fps_by_torch(clouds, eligible, 1024, 0))
    centers = clouds[0][picks[0]]
    assert torch.equal(_cuda.knn_group(clouds[0], centers, 128), group_by_torch(clouds[0], centers, 128))
    features = random(1024, 1152)
    found = _cuda.interpolate_features(clouds[0], centers, features, 3, 2.0, 1e-8)
    expected = interpolate_by_torch(clouds[0], centers, features, 3, 2.0, 1e-8, dense=False)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("vectors_on", ["device", "host"])
def test_no_growth_in_many_searches(vectors_on: str) -> None:
    vectors, queries = random(2000, 64), random(128, 64, seed=1)
    index = _cuda.CudaIndex(vectors if vectors_on == "device" else vectors.cpu(), device="cuda")
    for _ in range(50):
        index.search(queries, 1)
    torch.cuda.synchronize()
    before = torch.cuda.mem_get_info()[0], torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    for _ in range(10_000):
        index.search(queries, 1)
    torch.cuda.synchronize()
    assert (torch.cuda.mem_get_info()[0], torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) == before


def test_no_growth_in_many_banks_and_selections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Page locks, staging buffers, copy streams and events go with the call that made them."""
    monkeypatch.setattr(operand, "resident_tiles", lambda *_: 4)
    rows, queries = random(3000, 64).cpu(), random(128, 64, seed=1)

    def once() -> None:
        _cuda.CudaIndex(rows, device="cuda").search(queries, 1)
        _cuda.k_center_greedy(rows, None, 30, 0, -1.0, None, device="cuda")

    for _ in range(20):
        once()
    torch.cuda.synchronize()
    before = torch.cuda.mem_get_info()[0], torch.cuda.memory_allocated()
    for _ in range(300):
        once()
    torch.cuda.synchronize()
    assert (torch.cuda.mem_get_info()[0], torch.cuda.memory_allocated()) == before
