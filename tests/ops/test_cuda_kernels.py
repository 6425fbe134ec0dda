"""The CUDA kernels against the references: on the CPU through the emulator, and on a GPU where there is one.

Workspaces and outputs are poisoned before every call, so that a value nobody wrote is seen.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shard_loop import parts_of, select_over, squared_in_one_order
from torch import Tensor

from mmad_bank import MemoryBank, ops
from mmad_bank.errors import InputError
from mmad_bank.ops import _cuda, _dispatch, k_center_shards, reference
from mmad_bank.ops._cuda import device as device_module
from mmad_bank.ops._cuda import operand
from mmad_bank.ops._torch.interpolate_features import interpolate_features as interpolate_by_torch
from mmad_bank.ops._torch.k_center_greedy import select as select_by_torch
from mmad_bank.ops.k_center_shards import KCenterCoordinator, KCenterShard

knn_module = importlib.import_module("mmad_bank.ops.knn")  # the package has a function of that name
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "csrc"))
import cuda_emulator

GPU = pytest.mark.skipif(not _cuda.available("cuda"), reason="needs a CUDA device and the compiled kernels")


@pytest.fixture(scope="session")
def emulated_core() -> Any:
    pytest.importorskip("pybind11")
    try:
        cuda_emulator.find_compiler()
    except FileNotFoundError as missing:
        pytest.skip(str(missing))
    return cuda_emulator.load(ROOT / "build" / "cuda_emulated")


@pytest.fixture(params=["emulated", pytest.param("gpu", marks=[pytest.mark.gpu, GPU])])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    monkeypatch.setattr(
        device_module, "workspace", lambda n, where: torch.full((max(1, n),), 255, dtype=torch.uint8, device=where)
    )
    if request.param == "gpu":
        yield torch.device("cuda", 0)
        return
    monkeypatch.setattr(device_module, "native", request.getfixturevalue("emulated_core"))
    monkeypatch.setattr(device_module, "stream_of", lambda where: (0, 0))
    monkeypatch.setattr(device_module, "current", lambda where: contextlib.nullcontext())
    monkeypatch.setattr(_dispatch, "free_memory", lambda where: 1 << 40)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch.device("cpu")
    torch.set_num_threads(threads)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def grid_points(side: int) -> Tensor:
    axis = torch.arange(float(side)) * 0.1
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)


# ---- k-NN ------------------------------------------------------------------------------------------------------------


def with_outlier(rows: Tensor, factor: float) -> Tensor:
    rows = rows.clone()
    rows[3] *= factor
    return rows


def all_scales(count: int) -> Tensor:
    return 10.0 ** torch.linspace(-44, 17, count)[:, None]


def with_tiny_row(rows: Tensor) -> Tensor:
    rows = rows.clone()
    rows[200] = 1e-38
    return rows


def near_copies(rows: Tensor) -> Tensor:
    """Rows that differ in the last bit of one value: float32 distances cannot tell them apart."""
    copies = rows.repeat(6, 1)
    for copy in range(6):
        block = copies[copy * len(rows) : (copy + 1) * len(rows), copy]
        block.copy_(torch.nextafter(block, torch.tensor(float("inf"))))
    return copies


def prepared(operand_: operand.Operand, count: int, dim: int, int8: bool) -> dict[str, Tensor]:
    """What csrc/include/mmad/cuda_operand.hpp says of rows, read from an operand's buffer; values as float64."""
    tiles, blocks, place = (count + 127) // 128, (dim + 63) // 64, 0

    def take(size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        nonlocal place
        part = operand_.buffer[place : place + size * dtype.itemsize].view(dtype).cpu()
        place += (size * dtype.itemsize + 255) // 256 * 256
        return part

    raw = take(tiles * blocks * 128 * 64, torch.int8 if int8 else torch.bfloat16).view(tiles, blocks, 128, 64).double()
    if not int8:
        swizzled = torch.arange(8) ^ (torch.arange(128)[:, None] & 7)  # 16-byte chunks of a row
        raw = raw.view(tiles, blocks, 128, 8, 8).gather(3, swizzled[..., None].expand(tiles, blocks, 128, 8, 8))
    found = {name: take(tiles * 128) for name in ("squared", "norm", "residual")}
    scale = take(tiles * 128).double() if int8 else torch.ones(tiles * 128)
    found |= {"tile_norm": take(tiles), "tile_residual": take(tiles), "largest_norm": take(1)}
    values = raw.reshape(tiles, blocks, 128, 64).transpose(1, 2).reshape(tiles * 128, blocks * 64)
    return found | {"values": values * scale[:, None]}


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("scale", [1.0, 1e-18, 1e14])
@pytest.mark.parametrize("dim", [33, 50, 64, 200, 520])  # read one, two and four columns at a time
def test_prepared_rows_keep_their_bounds(device: torch.device, dim: int, scale: float, int8: bool) -> None:
    rows, center = scale * (random(300, dim) + 3.0), scale * (random(dim, seed=1) + 3.0)
    rows[7] = center
    rows[8] = scale * random(dim, seed=2).bfloat16().float()
    found = prepared(operand.Operand(rows.to(device), center.to(device), int8=int8), 300, dim, int8)
    padded = torch.zeros(384, found["values"].shape[1], dtype=torch.float64)
    padded[:300, :dim] = rows.double() - center.double()
    exact, rounded = padded.norm(dim=1), found["values"].norm(dim=1)
    gap = (padded - found["values"]).norm(dim=1)
    norm, residual = found["norm"].double(), found["residual"].double()
    assert bool((norm >= torch.maximum(exact, rounded)).all())
    assert bool((norm <= torch.maximum(exact, rounded) * (1 + 1e-6)).all())
    assert bool((residual >= gap).all())
    assert bool((residual <= gap * (1 + 1e-6) + 1e-6 * norm).all())
    smallest = torch.finfo(torch.float32).tiny
    assert bool(
        ((found["squared"][:300].double() - exact[:300] ** 2).abs() <= 3 * 2**-24 * norm[:300] ** 2 + smallest).all()
    )
    assert bool(torch.isinf(found["squared"][300:]).all())
    assert torch.equal(found["tile_norm"], found["norm"].view(3, 128).amax(1))
    assert torch.equal(found["tile_residual"], found["residual"].view(3, 128).amax(1))
    assert float(found["largest_norm"]) == float(found["norm"].max())


def many_near_copies(rows: Tensor, count: int) -> Tensor:
    copies = rows.repeat(count, 1)
    return copies + 1e-4 * random(*copies.shape, seed=2)


KNN_CASES: dict[str, Callable[[], tuple[Tensor, Tensor, int]]] = {
    "tiny": lambda: (random(5, 8), random(7, 8, seed=1), 1),
    "one row": lambda: (random(3, 8), random(1, 8, seed=1), 1),
    "whole bank": lambda: (random(9, 3), random(20, 3, seed=1), 20),
    "several tiles": lambda: (random(300, 40), random(700, 40, seed=1), 3),
    "several depth blocks": lambda: (random(140, 200), random(400, 200, seed=1), 1),
    "widest list": lambda: (random(30, 100), random(1500, 100, seed=1), 32),
    "odd dimension": lambda: (random(50, 33), random(333, 33, seed=1), 9),
    "queries from the bank": lambda: (random(500, 24)[100:200], random(500, 24), 4),
    "duplicates": lambda: (random(50, 33), random(50, 33).repeat(10, 1), 8),
    "near copies": lambda: (random(40, 48), near_copies(random(40, 48)), 6),
    "hundreds of near copies": lambda: (random(20, 48), many_near_copies(random(4, 48, seed=1), 200), 3),
    "more near copies than are kept": lambda: (random(3, 24), many_near_copies(random(1, 24, seed=1), 1500), 2),
    "zero rows": lambda: (torch.zeros(4, 5), torch.zeros(300, 5), 3),
    "equal distances": lambda: (torch.zeros(3, 150), torch.eye(150), 7),
    "offset": lambda: (random(20, 16) + 1e4, random(300, 16, seed=1) + 1e4, 4),
    "small": lambda: (random(20, 16) * 1e-3, random(300, 16, seed=1) * 1e-3, 4),
    "below the bound's floor": lambda: (random(20, 16) * 1e-15, random(300, 16, seed=1) * 1e-15, 4),
    "squares underflow": lambda: (random(20, 16) * 1e-23, random(300, 16, seed=1) * 1e-23, 4),
    "subnormal": lambda: (random(20, 16) * 1e-39, random(300, 16, seed=1) * 1e-39, 4),
    "one tiny row among zeros": lambda: (torch.full((2, 16), 1e-38), with_tiny_row(torch.zeros(300, 16)), 4),
    "rows of all scales": lambda: (random(20, 16), random(300, 16, seed=1) * all_scales(300), 4),
    "squares overflow": lambda: (random(20, 16) * 1e19, random(300, 16, seed=1) * 1e19, 4),
    "unit norm": lambda: tuple(torch.nn.functional.normalize(random(n, 64, seed=n)) for n in (40, 600)) + (5,),
    "outlier": lambda: (random(20, 16), with_outlier(random(300, 16, seed=1), 1e8), 4),
    "outlier beyond float32 squares": lambda: (random(20, 16), with_outlier(random(300, 16, seed=1), 1e20), 4),
    "far clusters": lambda: (random(20, 16), torch.cat([random(200, 16, seed=1), random(200, 16, seed=2) + 3e3]), 4),
}


@pytest.mark.parametrize(("precision", "wgmma"), [("half", "1"), ("half", "0"), ("int8", "0")])
@pytest.mark.parametrize("case", KNN_CASES)
def test_knn_is_the_reference(
    device: torch.device, case: str, precision: str, wgmma: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the product of sm_90a, which other devices do not have, and with the one of all devices."""
    monkeypatch.setenv("MMAD_BANK_WGMMA", wgmma)
    queries, bank, k = KNN_CASES[case]()
    index = _cuda.CudaIndex(bank.to(device), precision)
    distances, indices = index.search(queries.to(device), k)
    expected_distances, expected_indices = reference.knn(queries, bank, k)
    assert torch.equal(indices.cpu(), expected_indices)
    assert torch.equal(distances.cpu(), expected_distances)


def test_knn_on_real_features(device: torch.device, texture_features: np.ndarray) -> None:
    features = torch.from_numpy(np.ascontiguousarray(texture_features))
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))
    queries, bank = features[order[:40]], features[order[40:640]]
    distances, indices = _cuda.CudaIndex(bank.to(device)).search(queries.to(device), 9)
    expected_distances, expected_indices = reference.knn(queries, bank, 9)
    assert torch.equal(indices.cpu(), expected_indices)
    assert torch.equal(distances.cpu(), expected_distances)


def test_knn_takes_views(device: torch.device) -> None:
    """Storage offsets that break the alignment, and strides."""
    flat = random(1 + 200 * 8).to(device)
    bank, queries = flat[1:].view(200, 8), flat[1:].view(200, 8)[::7]
    _, indices = _cuda.CudaIndex(bank).search(queries, 2)
    assert torch.equal(indices.cpu(), reference.knn(queries.cpu(), bank.cpu(), 2)[1])


def test_knn_without_queries(device: torch.device) -> None:
    distances, indices = _cuda.CudaIndex(random(20, 4).to(device)).search(random(0, 4).to(device), 3)
    assert distances.shape == indices.shape == (0, 3)


LONG_LISTS: dict[str, Callable[[], tuple[Tensor, Tensor, int]]] = {
    "two passes": lambda: (random(5, 6), random(300, 6, seed=1), 50),
    "one more than a pass": lambda: (random(150, 6), random(200, 6, seed=1), 33),
    "whole bank": lambda: (random(3, 6), random(100, 6, seed=1), 100),
    "duplicates": lambda: (random(9, 33), random(9, 33).repeat(20, 1), 70),
    "equal distances": lambda: (torch.zeros(3, 90), torch.eye(90), 65),
    "squares overflow": lambda: (random(20, 16) * 1e19, random(300, 16, seed=1) * 1e19, 70),
    "beyond the kernels": lambda: (random(3, 4), random(300, 4, seed=1), _cuda.MAX_NEIGHBORS + 1),
}


@pytest.mark.parametrize("precision", ["half", "int8"])
@pytest.mark.parametrize("case", LONG_LISTS)
def test_knn_with_long_lists(device: torch.device, case: str, precision: str) -> None:
    queries, bank, k = LONG_LISTS[case]()
    index = _cuda.CudaIndex(bank.to(device), precision)
    distances, indices = index.search(queries.to(device), k)
    expected_distances, expected_indices = reference.knn(queries, bank, k)
    assert torch.equal(indices.cpu(), expected_indices)
    torch.testing.assert_close(distances.cpu(), expected_distances, rtol=1e-6, atol=0)
    assert (index._wide is not None) == (k > _cuda.MAX_NEIGHBORS)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_knn_answers_a_bad_query_with_rows_of_the_bank(device: torch.device, bad: float) -> None:
    """Nobody waits for the device to refuse it; but no later step may be led out of the bank."""
    queries, bank = random(5, 6), random(300, 6, seed=1)
    queries[2, 3] = bad
    distances, indices = _cuda.CudaIndex(bank.to(device)).search(queries.to(device), 40)
    assert not bool(torch.isfinite(distances[2]).any())
    assert 0 <= int(indices.min()) <= int(indices.max()) < 300
    others = [0, 1, 3, 4]
    assert torch.equal(indices[others].cpu(), reference.knn(queries[others], bank, 40)[1])


@pytest.mark.parametrize("dim", [3, 8, 70])
def test_gather_from_host_memory(device: torch.device, dim: int) -> None:
    bank = random(200, dim)
    index = _cuda.CudaIndex(bank, device=device)
    numbers = torch.randint(0, 200, (5, 4), generator=torch.Generator().manual_seed(0))
    assert torch.equal(index.gather(numbers.to(device)).cpu(), bank[numbers])
    assert index.gather(numbers[:0].to(device)).shape == (0, 4, dim)
    beyond = torch.tensor([3, -1, 200, 1 << 40])
    assert index.gather(beyond.to(device)).isnan().all(1).tolist() == [False, True, True, True]
    resident = _cuda.CudaIndex(bank.to(device))
    assert torch.equal(resident.gather(numbers.to(device)).cpu(), bank[numbers])
    assert resident.gather(beyond.to(device)).isnan().all(1).tolist() == [False, True, True, True]
    queries = random(20, dim, seed=1)
    assert torch.equal(index.search(queries.to(device), 4)[1].cpu(), reference.knn(queries, bank, 4)[1])


@pytest.mark.parametrize("reweight", ["m3dm", "patchcore"])
@pytest.mark.parametrize("copies", [1, 12])
def test_bank_scores_with_vectors_in_host_memory(
    device: torch.device, reweight: Any, copies: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, patches = random(40, 20).repeat(copies, 1), random(2, 30, 20, seed=1)
    expected = MemoryBank(rows).score(patches, reweight=reweight)
    monkeypatch.setattr(knn_module, "_make_engine", lambda v, p, where: _cuda.CudaIndex(v, p, device=where))
    bank = MemoryBank(rows).to(device, vectors_on="host")
    found = bank.score(patches, reweight=reweight)
    assert isinstance(bank.search_index._index._engine, _cuda.CudaIndex)
    assert torch.equal(found.nearest.cpu(), expected.nearest)
    torch.testing.assert_close(found.patch.cpu(), expected.patch, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.image.cpu(), expected.image, rtol=1e-6, atol=0)


def test_longest_rows(device: torch.device) -> None:
    """The bounds are derived for rows of up to MAX_DIM values."""
    queries, bank = random(2, _cuda.MAX_DIM), random(5, _cuda.MAX_DIM, seed=1)
    indices = _cuda.CudaIndex(bank.to(device)).search(queries.to(device), 2)[1]
    assert torch.equal(indices.cpu(), reference.knn(queries, bank, 2)[1])
    longer = torch.zeros(3, _cuda.MAX_DIM + 1)
    for refuse in (lambda: _cuda.CudaIndex(longer), lambda: _cuda.k_center_greedy(longer, None, 1, 0, -1.0, None)):
        with pytest.raises(InputError, match="features: expected at most 16384 columns on a CUDA device, found 16385"):
            refuse()


@pytest.mark.parametrize(
    ("archs", "capability", "expected"),
    [
        ("80;90a", (8, 0), True),
        ("80;90a", (8, 9), True),
        ("80;90a", (9, 0), True),
        ("80;90a", (12, 0), True),
        ("80;90a", (7, 5), False),
        ("90a", (9, 0), True),
        ("90a", (10, 0), False),
        ("90a", (8, 0), False),
        ("", (9, 0), False),
    ],
)
def test_covered_devices(archs: str, capability: tuple[int, int], expected: bool) -> None:
    assert _cuda.covers(archs, capability) is expected


def test_nothing_is_available_on_the_cpu() -> None:
    assert not _cuda.available("cpu")


def test_resident_copies_are_half_and_a_quarter(device: torch.device) -> None:
    bank = random(1280, 256).to(device)
    sizes = [_cuda.CudaIndex(bank, precision).nbytes / bank.nbytes for precision in ("half", "int8")]
    assert sizes[0] < 0.52
    assert sizes[1] < 0.28


# ---- k-centre -----------------------------------------------------------------------------------------------

K_CENTER_CASES: dict[str, Callable[[], tuple[Tensor, int]]] = {
    "subnormal": lambda: (random(300, 16) * 1e-39, 60),
    "rows of all scales": lambda: (random(300, 16) * all_scales(300), 200),
    "one tiny row among zeros": lambda: (with_tiny_row(torch.zeros(300, 16)), 40),
    "random": lambda: (random(300, 16), 60),
    "odd dimension": lambda: (random(200, 33), 50),
    "all rows": lambda: (random(100, 5), 100),
    "one row": lambda: (random(1, 3), 1),
    "duplicates": lambda: (random(10, 8).repeat(8, 1), 80),
    "equal distances": lambda: (torch.eye(90), 90),
    "zero rows": lambda: (torch.zeros(50, 4), 50),
    "grid": lambda: (grid_points(5), 125),
    "near copies": lambda: (near_copies(random(30, 48)), 60),
    "offset": lambda: (random(200, 12) + 1e4, 60),
    "small": lambda: (random(200, 12) * 1e-3, 60),
    "squares underflow": lambda: (random(100, 12) * 1e-23, 30),
    "outlier": lambda: (with_outlier(random(200, 12), 1e8), 60),
    "outlier beyond float32 squares": lambda: (with_outlier(random(200, 12), 1e20), 60),
    "far clusters": lambda: (torch.cat([random(90, 12), random(90, 12, seed=1) + 3e3]), 60),
}


@pytest.mark.parametrize("pool", [0, 9])
@pytest.mark.parametrize("case", K_CENTER_CASES)
def test_k_center_is_the_textbook_loop(device: torch.device, case: str, pool: int) -> None:
    features, n_select = K_CENTER_CASES[case]()
    start = 7 % len(features)
    seen: list[int] = []
    picks, radii, covering = _cuda.k_center_greedy(
        features.to(device), None, n_select, start, -1.0, seen.append, pool=pool
    )
    expected_picks, expected_radii, expected_covering = select_by_torch(features, None, n_select, start, -1.0, None)
    assert torch.equal(picks.cpu(), expected_picks)
    torch.testing.assert_close(radii.cpu(), expected_radii, rtol=1e-6, atol=0)
    assert covering == pytest.approx(expected_covering, rel=1e-12)
    assert seen == sorted(seen)
    assert n_select == 1 or seen[-1] == n_select


@pytest.mark.parametrize("multiprocessors", [40, pytest.param(170, marks=pytest.mark.slow)])
def test_k_center_on_a_wide_device(device: torch.device, multiprocessors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lane waits for the offers of several blocks: two here of 40, and more than it takes at a time of 170."""
    monkeypatch.setenv("MMAD_EMULATED_MULTIPROCESSORS", str(multiprocessors))
    features = random(400, 8)
    picks, _, _ = _cuda.k_center_greedy(features.to(device), None, 12, 0, -1.0, None)
    assert torch.equal(picks.cpu(), reference.k_center_greedy(features, 12))


@pytest.mark.parametrize("shared_kib", [5, 6, 8])
def test_k_center_in_little_shared_memory(
    device: torch.device, shared_kib: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the last pick a block has room for one, two and three rows (of 1600 bytes)."""
    monkeypatch.setenv("MMAD_EMULATED_SHARED_KIB", str(shared_kib))
    features = random(60, 400)
    picks, _, _ = _cuda.k_center_greedy(features.to(device), None, 25, 0, -1.0, None)
    assert torch.equal(picks.cpu(), reference.k_center_greedy(features, 25))


@pytest.mark.parametrize("pool", [25, 130, 300])
def test_k_center_with_any_number_of_rows_per_warp(device: torch.device, pool: int) -> None:
    """Groups of rows that are not full: 9, 44 and 100 rows per block, and so one to thirteen per warp."""
    features = random(400, 20)
    picks, _, _ = _cuda.k_center_greedy(features.to(device), None, 60, 0, -1.0, None, pool=pool)
    assert torch.equal(picks.cpu(), reference.k_center_greedy(features, 60))


def test_k_center_without_wgmma(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMAD_BANK_WGMMA", "0")
    features = random(300, 16)
    picks, _, _ = _cuda.k_center_greedy(features.to(device), None, 40, 0, -1.0, None, pool=30)
    assert torch.equal(picks.cpu(), reference.k_center_greedy(features, 40))


@pytest.mark.parametrize(("radius", "n_select"), [(-1.0, 25), (3.0, 200), (0.0, 200), (1e9, 200), (-1.0, 0)])
def test_k_center_continues_from_earlier_centers(device: torch.device, radius: float, n_select: int) -> None:
    features, earlier = torch.cat([random(180, 12), random(20, 12, seed=1)]), random(150, 12, seed=1)
    arguments = n_select, 0, radius, None
    picks, _, covering = _cuda.k_center_greedy(features.to(device), earlier.to(device), *arguments, pool=30)
    expected_picks, _, expected_covering = select_by_torch(features, earlier, *arguments)
    assert torch.equal(picks.cpu(), expected_picks)
    assert covering == pytest.approx(expected_covering, rel=1e-12)


def test_k_center_on_real_features(device: torch.device, texture_features: np.ndarray) -> None:
    order = np.random.default_rng(0).permutation(len(texture_features))[:700]
    features = torch.from_numpy(np.ascontiguousarray(texture_features[order]))
    picks, _, _ = _cuda.k_center_greedy(features.to(device), None, 60, 5, -1.0, None, pool=90)
    assert torch.equal(picks.cpu(), reference.k_center_greedy(features, 60, start=5))


STREAMED = 3400  # rows: with the emulator's three multiprocessors, three chunks of tiles


def keep_resident(tiles: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operand, "resident_tiles", lambda *_: tiles)


@pytest.fixture(params=["copies come late", "work comes late"])
def streams(request: pytest.FixtureRequest, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """How the emulator's streams run against each other; a GPU has its own ways."""
    if device.type == "cuda" or request.param == "copies come late":
        yield
        return
    stream = device_module.native.late_stream()
    monkeypatch.setattr(device_module, "stream_of", lambda where: (0, stream))
    yield
    device_module.native.destroy_stream(stream)


@pytest.mark.parametrize("tiles", [0, 5, 26])
def test_k_center_with_streamed_rows(
    device: torch.device, streams: None, tiles: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows whose bfloat16 copy does not fit on the device: none, some, or all but one of its 27 tiles are there."""
    keep_resident(tiles, monkeypatch)
    features = random(STREAMED, 8)
    picks, _, _ = _cuda.k_center_greedy(features, None, 40, 3, -1.0, None, device=device, pool=60)
    assert torch.equal(picks.cpu(), reference.k_center_greedy(features, 40, start=3))


def test_k_center_extends_with_streamed_rows(
    device: torch.device, streams: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_resident(9, monkeypatch)
    features, earlier = random(STREAMED, 8), random(150, 8, seed=1)
    arguments = 20, 0, -1.0, None
    picks, _, covering = _cuda.k_center_greedy(features, earlier, *arguments, device=device, pool=60)
    expected_picks, _, expected_covering = select_by_torch(features, earlier, *arguments)
    assert torch.equal(picks.cpu(), expected_picks)
    assert covering == pytest.approx(expected_covering, rel=1e-12)


def test_k_center_stops_a_stream_when_progress_raises(
    device: torch.device, streams: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    keep_resident(0, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        _cuda.k_center_greedy(random(STREAMED, 8), None, 40, 0, -1.0, stop, device=device, pool=60)


@pytest.mark.parametrize(("spare", "expected"), [(0, 0), (2, 2), (3, 27)])
def test_k_center_in_little_memory(
    device: torch.device, spare: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The least memory, with two buffers of twelve tiles, and some tiles more: what is there is used."""
    if device.type == "cuda":
        pytest.skip("the buffers are larger there")
    features, seen = random(STREAMED, 8), []
    count, dim = features.shape
    least = device_module.native.operand_bytes(count, dim, False, 0) + 16 * 40
    empty = device_module.native.Operand(0, count, dim, False, 0, 0)
    least += device_module.native.k_center_workspace(device_module.stream_of(device)[0], empty, 0, 40, 60)
    original = operand.resident_tiles
    monkeypatch.setattr(operand, "resident_tiles", lambda *given: seen.append(original(*given)) or seen[-1])
    arguments = features, None, 40, 0, -1.0, None
    memory = least + spare * device_module.native.tile_bytes(dim, False)
    picks, _, _ = _cuda.k_center_greedy(*arguments, device=device, pool=60, memory=memory)
    assert seen == [expected]
    assert torch.equal(picks.cpu(), reference.k_center_greedy(features, 40))
    with pytest.raises(
        InputError, match=rf"features: the selection needs {least} bytes on the device, found {least - 1}"
    ):
        _cuda.k_center_greedy(*arguments, device=device, pool=60, memory=least - 1)


@pytest.mark.parametrize(("memory", "expected"), [(1000, 8), (100, 8), (99, 1), (89, 0), (80, 0)])
def test_resident_tiles(memory: int, expected: int) -> None:
    """All, or what is left beside two buffers of three tiles each; rows take 20 bytes, a tile 10."""

    def needed(resident: int) -> int:
        return 20 + 10 * resident + 2 * 10 * min(3, 8 - resident)

    assert operand.resident_tiles(8, 10, needed, memory) == expected


def test_page_locks_go_when_nobody_reads_any_more(device: torch.device) -> None:
    if device.type == "cuda":
        pytest.skip("counts the emulator's locks")
    bank = random(200, 8)
    gc.collect()
    before = device_module.native.locked()
    first, second = _cuda.CudaIndex(bank, device=device), _cuda.CudaIndex(bank[10:], device=device)
    assert device_module.native.locked() == before + 1  # one storage
    del first
    assert device_module.native.locked() == before + 1
    del second
    assert device_module.native.locked() == before


def test_k_center_stops_when_progress_raises(device: torch.device) -> None:
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _cuda.k_center_greedy(random(200, 8).to(device), None, 100, 0, -1.0, stop, pool=9)


# ---- shards of a k-centre selection -------------------------------------------------------------------------


def shards_on(
    device: torch.device, features: Tensor, sizes: list[int], n_centers: int, *, mixed: bool = False
) -> list[KCenterShard]:
    """Shards on the device, emulated or not; of mixed ones, every other is on the CPU."""
    shards = []
    for number, part in enumerate(parts_of(features, sizes)):
        shard = KCenterShard(part, n_centers=n_centers)
        if len(part) and not (mixed and number % 2):
            shard._kernel = _cuda.CudaShard(part.to(device), n_centers, device=device)
        shards.append(shard)
    return shards


SHARD_SIZES = {  # of seven, one is empty
    1: [1.0],
    2: [0.3, 0.7],
    3: [0.5, 0.05, 0.45],
    7: [0.2, 0.0, 0.1, 0.3, 0.01, 0.2, 0.19],
}


def cut(count: int, n_shards: int) -> list[int]:
    sizes = [int(count * share) for share in SHARD_SIZES[n_shards]]
    return [count - sum(sizes[1:]), *sizes[1:]]


def check_shards(shards: list[KCenterShard], features: Tensor, n_select: int, start: int, pool: int = 0) -> None:
    coordinator = KCenterCoordinator(len(features), n_select, start=start, pool=pool)
    found = select_over(shards, features, coordinator)
    expected = ops.k_center_greedy(features, n_select, start=start, return_radius=True)
    assert torch.equal(found.rows, expected.indices)
    assert torch.equal(found.radii.float(), expected.radii)
    assert found.covering_radius == expected.covering_radius


@pytest.mark.parametrize("case", [case for case in K_CENTER_CASES if case != "outlier beyond float32 squares"])
def test_shards_pick_the_rows_of_one_array(device: torch.device, case: str) -> None:
    features, n_select = K_CENTER_CASES[case]()
    sizes = cut(len(features), 3)
    check_shards(shards_on(device, features, sizes, n_select), features, n_select, 7 % len(features), pool=9)


@pytest.mark.parametrize(("n_shards", "mixed"), [(1, False), (2, False), (2, True), (7, True)])
@pytest.mark.parametrize("case", ["random", "duplicates", "grid", "near copies"])
def test_any_number_of_shards_anywhere(device: torch.device, n_shards: int, case: str, mixed: bool) -> None:
    features, n_select = K_CENTER_CASES[case]()
    features = features[torch.randperm(len(features), generator=torch.Generator().manual_seed(1))]
    shards = shards_on(device, features, cut(len(features), n_shards), n_select, mixed=mixed)
    check_shards(shards, features, n_select, 3)


@pytest.mark.parametrize(("radius", "n_select"), [(-1.0, 25), (3.0, 200), (0.0, 200), (1e9, 200)])
def test_shards_continue_from_earlier_centers(device: torch.device, radius: float, n_select: int) -> None:
    features, earlier = torch.cat([random(180, 12), random(20, 12, seed=1)]), random(150, 12, seed=1)
    shards = shards_on(device, features, [90, 0, 110], 150 + n_select)
    coordinator = KCenterCoordinator(200, n_select, n_earlier=150, radius=radius)
    found = select_over(shards, features, coordinator, earlier)
    expected_picks, _, expected_covering = select_by_torch(features, earlier, n_select, 0, radius, None)
    assert torch.equal(found.rows, expected_picks)
    assert found.covering_radius == pytest.approx(expected_covering, rel=1e-12)


@pytest.mark.parametrize("tiles", [0, 5])
def test_shards_with_streamed_rows(
    device: torch.device, streams: None, tiles: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_resident(tiles, monkeypatch)
    features = random(STREAMED, 8)
    shards = [KCenterShard(part, n_centers=40) for part in parts_of(features, [2000, 1400])]
    for shard in shards:
        shard._kernel = _cuda.CudaShard(shard._features, 40, device=device)
    check_shards(shards, features, 40, 3)


@pytest.mark.parametrize("dim", [3, 32, 33, 100])
def test_values_of_a_shard_are_those_of_the_cpu(device: torch.device, dim: int) -> None:
    """Two rounds: the second decides among the first's values, the new centres' and those that were settled."""
    features, centers = random(300, dim), random(5, dim, seed=1)
    shards = [_cuda.CudaShard(features.to(device), 5, device=device), KCenterShard(features, n_centers=5)._kernel]
    expected = torch.full((300,), float("inf"), dtype=torch.float64)
    none = torch.full((5,), -1)
    for first, last in ((0, 1), (1, 5)):
        for center in centers[first:last]:
            expected = torch.minimum(expected, squared_in_one_order(features, center))
        bar = float(expected.sort().values[200])
        for shard in shards:
            shard.meet(centers[first:last], none[first:last])
            shard.settle(expected[:40].clone(), torch.arange(40))
            squared, rows, above, below = shard.rise(bar, 300)
            assert above == len(rows) == 100
            assert torch.equal(squared, expected[rows])
            assert float(expected[expected < bar].max()) <= below < bar


def test_a_shard_offers_its_farthest_rows(device: torch.device) -> None:
    features = torch.tensor([[2.0], [1.0], [-2.0], [2.0], [0.5], [3.0]])
    shard = _cuda.CudaShard(features.to(device), 2, device=device)
    assert shard.rise(0.0, 2)[0].tolist() == [float("inf")] * 2
    shard.meet(torch.tensor([[0.0], [3.0]]), torch.tensor([-1, 5]))
    shard.settle(torch.tensor([4.0], dtype=torch.float64), torch.tensor([0]))
    squared, rows, above, below = shard.rise(0.3, at_most=2)
    assert (squared.tolist(), sorted(rows.tolist()), above) == ([4.0, 4.0], [0, 2], 4)
    assert 0.25 <= below < 0.3  # an upper bound
    squared, rows, above, below = shard.rise(4.5, at_most=2)
    assert (squared.tolist(), rows.tolist(), above, below) == ([], [], 0, 4.0)
    assert shard.rise(0.0, at_most=0)[2] == 5  # all but the one that is picked
    with pytest.raises(InputError, match=r"centers: expected at most 2 in all \(n_centers\), found 3"):
        shard.meet(torch.zeros(1, 1), torch.tensor([-1]))


def test_a_public_shard_has_the_kernels_of_its_device(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(k_center_shards, "cuda_kernels", lambda where: _cuda)
    features = random(5, 3).to(device)
    assert isinstance(k_center_shards._on_device(features, 1, device), _cuda.CudaShard)
    none = k_center_shards._on_device(features[:0], 1, device)
    none.meet(torch.zeros(1, 3), torch.tensor([-1]))
    squared, rows, above, below = none.rise(0.0, 3)
    assert (len(squared), len(rows), above, below) == (0, 0, 0, 0.0)
    features[3, 1] = float("nan")
    with pytest.raises(InputError, match=r"^features: row 3 holds NaN or infinity"):
        k_center_shards._on_device(features, 1, device)


def test_a_shard_far_from_its_centers(device: torch.device) -> None:
    """A centre whose squares float32 does not hold leaves all to float64, also that which comes behind it."""
    features = random(200, 12)
    shard, other = _cuda.CudaShard(features.to(device), 9, device=device), KCenterShard(features, n_centers=9)
    for far in (1e17, 1e10, 1.0):
        centers = far * random(3, 12, seed=int(far) % 7)
        shard.meet(centers, torch.full((3,), -1))
        other.meet(centers)
        found, expected = shard.rise(0.0, 50), other.rise(0.0, 50)
        order, expected_order = found[1].argsort(), expected.rows.argsort()
        assert torch.equal(found[1][order], expected.rows[expected_order])
        assert torch.equal(found[0][order], expected.squared[expected_order])


# ---- point clouds ------------------------------------------------------------------------------------------

SAMPLE_CASES: dict[str, Callable[[], tuple[list[Tensor], int]]] = {
    "two sizes": lambda: ([random(300, 3), random(1000, 3, seed=1)], 100),
    "24 points per thread": lambda: ([random(5000, 3)], 40),
    "40 points per thread": lambda: ([random(13000, 3)], 15),
    "beyond registers": lambda: ([random(21000, 3), random(60, 3)], 10),
    "ties": lambda: ([grid_points(6)], 216),
    "ties beyond registers": lambda: ([grid_points(6).repeat(100, 1)], 12),
    "duplicates": lambda: ([random(20, 3).repeat(10, 1)], 200),
    "many duplicates": lambda: ([random(7, 3).repeat(900, 1), random(5, 3)], 5),
    "one point": lambda: ([random(1, 3), random(4, 3)], 1),
    "zero points": lambda: ([torch.zeros(50, 3)], 50),
    "offset": lambda: ([random(300, 3) * 1e-3 + 1], 80),
    "squares overflow": lambda: ([random(300, 3) * 1e19], 80),
    "squares underflow": lambda: ([random(300, 3) * 1e-23], 80),
}


@pytest.mark.parametrize("multiprocessors", [1, 9])  # one block per cloud, or several that share a large one
@pytest.mark.parametrize("case", SAMPLE_CASES)
def test_farthest_point_sample_is_the_reference(
    device: torch.device, case: str, multiprocessors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMAD_EMULATED_MULTIPROCESSORS", str(multiprocessors))
    clouds, n_select = SAMPLE_CASES[case]()
    sizes = np.array([len(cloud) for cloud in clouds])
    start = 17 % int(sizes.min())
    picks = _cuda.farthest_point_sample(
        torch.cat(clouds).to(device), np.cumsum(sizes) - sizes, sizes, n_select, start, -1.0
    )
    expected = [reference.farthest_point_sample(cloud[None], n_select, start=start) for cloud in clouds]
    assert torch.equal(picks.cpu(), torch.cat(expected))


def test_farthest_point_sample_leaves_out_short_points(device: torch.device) -> None:
    cloud = random(300, 3)
    cloud[::3] *= 0.01
    picks = _cuda.farthest_point_sample(cloud.to(device), np.array([0]), np.array([300]), 100, 3, 0.01)
    assert torch.equal(picks.cpu(), reference.farthest_point_sample(cloud[None], 100, start=3, min_norm_sq=0.01))


def damaged(rows: Tensor, bad: float) -> tuple[Tensor, Tensor]:
    """Return the rows with every third of them spoilt, and the numbers of the others."""
    rows = rows.clone()
    rows[::3, 1] = bad
    return rows, torch.isfinite(rows).all(1).nonzero()[:, 0]


BAD_VALUES = [float("nan"), float("inf"), -float("inf")]


@pytest.mark.parametrize("multiprocessors", [1, 3])
@pytest.mark.parametrize("count", [300, 21000])
@pytest.mark.parametrize("bad", BAD_VALUES)
def test_farthest_point_sample_leaves_out_what_is_not_finite(
    device: torch.device, bad: float, count: int, multiprocessors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if such points were not there; where too few others are left, the last pick comes again."""
    monkeypatch.setenv("MMAD_EMULATED_MULTIPROCESSORS", str(multiprocessors))
    cloud, good = damaged(random(count, 3), bad)
    start, n_select = 7, 9
    picks = _cuda.sample_batch(cloud[None].to(device), n_select, start).cpu()
    expected = good[reference.farthest_point_sample(cloud[good][None], n_select, start=int((good < start).sum()))]
    assert torch.equal(picks, expected)
    few = cloud[: 3 * 2]  # four of them finite
    picks = _cuda.sample_batch(few[None].to(device), 6, 1).cpu()
    assert torch.equal(picks[0, :4].sort().values, torch.tensor([1, 2, 4, 5]))
    assert torch.equal(picks[0, 4:], picks[0, 3].expand(2))


def test_farthest_point_sample_from_a_start_that_is_not_finite(device: torch.device) -> None:
    cloud, _ = damaged(random(300, 3), float("nan"))
    picks = _cuda.sample_batch(cloud[None].to(device), 5, 0).cpu()[0]
    assert picks[0] == 0
    assert torch.equal(picks[1:], _cuda.sample_batch(cloud[None].to(device), 4, 1).cpu()[0])


GROUP_CASES: dict[str, Callable[[], tuple[Tensor, Tensor, int]]] = {
    "largest group": lambda: (random(3000, 3), random(20, 3, seed=1), 128),
    "on a shell": lambda: (torch.nn.functional.normalize(random(900, 3)), torch.zeros(2, 3), 100),
    "some squares overflow": lambda: (
        random(700, 3) * 1e19 * 10.0 ** (torch.arange(700) % 3)[:, None],
        random(9, 3),
        90,
    ),
    "one neighbour": lambda: (random(2500, 3), random(9, 3, seed=1), 1),
    "all points": lambda: (random(100, 3), random(9, 3, seed=1), 100),
    "beyond the kernel": lambda: (random(300, 3), random(9, 3, seed=1), 200),
    "ties": lambda: (grid_points(7), grid_points(7)[:50], 33),
    "duplicates": lambda: (random(20, 3).repeat(10, 1), random(5, 3, seed=1), 64),
    "squares overflow": lambda: (random(300, 3) * 1e19, random(5, 3, seed=1) * 1e19, 20),
    "squares underflow": lambda: (random(300, 3) * 1e-23, random(5, 3, seed=1) * 1e-23, 20),
    "one place": lambda: (torch.ones(700, 3), random(5, 3, seed=1), 128),
    "duplicates at the last place": lambda: (torch.eye(3).repeat(300, 1)[:, [2, 0, 1]], torch.eye(3), 128),
    "all of a large group": lambda: (random(128, 3), random(9, 3, seed=1), 128),
    "two chunks": lambda: (random(2049, 3), random(9, 3, seed=1), 128),
    "columns of 256 pixels": lambda: (image_cloud(40, 256), image_cloud(40, 256)[5000:5040:7], 128),
    "one class of points is near": lambda: (one_class_near(), torch.zeros(1, 3), 60),
    "20000 points": lambda: (random(20000, 3), random(9, 3, seed=1), 128),
    "nearest come last": lambda: (random(2000, 3).sort(0, descending=True).values, torch.tensor([[-3.0, -3, -3]]), 128),
}


def image_cloud(height: int, width: int) -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    return torch.stack([columns, rows, (columns * 0.1).sin()], -1).reshape(-1, 3)


def one_class_near() -> Tensor:
    """Only one point in 256 is near: a bound from the minima of such classes lets everything through."""
    cloud = random(256 * 40, 3) + 50
    turned = torch.arange(40) * 256 + 4 * ((12 * torch.arange(40)) % 32)  # the kernel turns its lanes like this
    cloud[turned] = random(40, 3, seed=1)
    return cloud


@pytest.mark.parametrize("case", GROUP_CASES)
def test_knn_group_is_the_reference(device: torch.device, case: str) -> None:
    points, centers, k = GROUP_CASES[case]()
    indices = _cuda.knn_group(points.to(device), centers.to(device), k)
    assert torch.equal(indices.cpu(), reference.knn_group(points, centers, k))


@pytest.mark.parametrize("k", [5, 66])
def test_knn_group_with_values_that_are_not_finite(device: torch.device, k: int) -> None:
    """Points without a distance are left out; what is missing is the nearest again, or row 0 around such a center."""
    cloud, good = damaged(random(99, 3), float("nan"))
    centers, _ = damaged(random(9, 3, seed=1), float("nan"))
    rows = _cuda.knn_group(cloud.to(device), centers.to(device), k + 3).cpu()
    expected = good[reference.knn_group(cloud[good], centers[1:2], min(k, len(good)))]
    assert torch.equal(rows[1:2, :k], expected)
    assert bool((rows[::3] == 0).all())
    if k == len(good):
        assert torch.equal(rows[1, k:], rows[1, 0].expand(3))


@pytest.mark.parametrize("bad", BAD_VALUES[1:])
def test_knn_group_takes_points_at_infinity_last(device: torch.device, bad: float) -> None:
    cloud, good = damaged(random(150, 3), bad)
    rows = _cuda.knn_group(cloud.to(device), random(3, 3, seed=1).to(device), 128).cpu()
    assert torch.equal(rows[:, :100], good[reference.knn_group(cloud[good], random(3, 3, seed=1), 100)])
    assert torch.equal(rows[:, 100:], (torch.arange(28) * 3).expand(3, 28))


@pytest.mark.parametrize("k", [1, 33, 130])
def test_knn_group_takes_batches(device: torch.device, k: int) -> None:
    """Clouds and centers whose numbers are no multiples of what a block takes."""
    points, centers = random(3, 301, 3), random(3, 11, 3, seed=1)
    rows = _cuda.knn_group(points.to(device), centers.to(device), k)
    expected = [reference.knn_group(one, around, k) for one, around in zip(points, centers, strict=True)]
    assert torch.equal(rows.cpu(), torch.stack(expected))


def test_batches_are_checked(device: torch.device) -> None:
    points, centers, features = random(3, 30, 3), random(3, 5, 3), random(3, 5, 7)
    with pytest.raises(InputError, match="centers: expected the batch dimensions"):
        _cuda.knn_group(points.to(device), centers[:2].to(device), 4)
    with pytest.raises(InputError, match="k: "):
        _cuda.knn_group(points.to(device), centers.to(device), 31)
    with pytest.raises(InputError, match="features: expected the batch dimensions"):
        _cuda.interpolate_features(points.to(device), centers.to(device), features[:2].to(device), 3, 2.0, 1e-8)
    with pytest.raises(InputError, match="features: expected 5 rows"):
        _cuda.interpolate_features(points.to(device), centers.to(device), features[:, :4].to(device), 3, 2.0, 1e-8)


@pytest.mark.parametrize("k", [3, 40])
def test_interpolation_takes_batches(device: torch.device, k: int) -> None:
    points, centers, features = random(3, 21, 3), random(3, 41, 3, seed=1), random(3, 41, 12, seed=2)
    output = _cuda.interpolate_features(points.to(device), centers.to(device), features.to(device), k, 2.0, 1e-8)
    for b in range(3):
        expected = reference.interpolate_features(points[b], centers[b], features[b], k=k)
        torch.testing.assert_close(output[b].cpu(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", BAD_VALUES)
@pytest.mark.parametrize("k", [3, 6])
def test_interpolation_with_values_that_are_not_finite(device: torch.device, k: int, bad: float) -> None:
    """A center that is not finite weighs nothing, whatever its features; a point that is not finite has NaN."""
    points, _ = damaged(random(20, 3), bad)
    centers, good = damaged(random(9, 3, seed=1), bad)
    features, _ = damaged(random(9, 8, seed=2), bad)
    output = _cuda.interpolate_features(points.to(device), centers.to(device), features.to(device), k, 2.0, 1e-8).cpu()
    finite = torch.isfinite(points).all(1)
    assert bool(output[~finite].isnan().all())
    expected = reference.interpolate_features(points[finite], centers[good], features[good], k=min(k, len(good)))
    torch.testing.assert_close(output[finite], expected, rtol=1e-5, atol=1e-6)
    none = torch.full((9, 3), bad, device=device)
    assert bool(_cuda.interpolate_features(points.to(device), none, features.to(device), k, 2.0, 1e-8).isnan().all())


@pytest.mark.parametrize("power", [1.0, 2.0, 1.5])
@pytest.mark.parametrize(("n_centers", "dim", "k"), [(40, 70, 3), (40, 128, 32), (7, 7, 7), (1, 4, 1), (50, 12, 50)])
def test_interpolation_is_the_reference(device: torch.device, n_centers: int, dim: int, k: int, power: float) -> None:
    points, centers, features = random(50, 3), random(n_centers, 3, seed=1), random(n_centers, dim, seed=2)
    points[0] = centers[0]
    output = _cuda.interpolate_features(points.to(device), centers.to(device), features.to(device), k, power, 1e-8)
    expected = reference.interpolate_features(points, centers, features, k=k, power=power)
    torch.testing.assert_close(output.cpu(), expected, rtol=1e-5, atol=1e-6)


def test_interpolation_takes_views(device: torch.device) -> None:
    points, centers = random(50, 3).to(device), random(9, 3, seed=1).to(device)
    features = random(1 + 9 * 8, seed=2).to(device)[1:].view(9, 8)
    output = _cuda.interpolate_features(points, centers, features, 3, 2.0, 1e-8)
    expected = interpolate_by_torch(points, centers, features, 3, 2.0, 1e-8, dense=False)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-6)
