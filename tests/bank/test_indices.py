import builtins

import numpy as np
import pytest
import torch

from mmad_bank import MemoryBank
from mmad_bank.bank.indices import ExactIndex, FaissIndex, exact_search
from mmad_bank.errors import FormatError, InputError, MissingExtraError

faiss = pytest.importorskip("faiss")


def features(n=400, dim=16, seed=0):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


FACTORIES = ["Flat", "IVF8,Flat", "HNSW16", "PQ4x4", "IVF4,PQ4x4", "PCA8,Flat"]


@pytest.mark.parametrize("factory", FACTORIES)
def test_is_what_faiss_gives(factory):
    vectors, queries = features(), features(30, seed=1)
    bank = MemoryBank(vectors, index=factory)
    distances, rows = bank.search(queries, k=3)
    index = faiss.index_factory(16, factory)
    index.train(vectors.numpy())
    index.add(vectors.numpy())
    squared, expected = index.search(queries.numpy(), 3)
    assert (rows.numpy() == expected).all()
    np.testing.assert_allclose(distances.numpy(), np.sqrt(squared.clip(0)), rtol=1e-5)
    assert bank.nbytes > vectors.nbytes


@pytest.mark.parametrize("factory", FACTORIES)
def test_scores_and_survives_a_file_and_an_extension(tmp_path, factory):
    bank = MemoryBank.build(features(), size=300, index=factory)
    patches = features(40, seed=2).reshape(2, 20, 16)
    before = bank.score(patches)
    assert torch.isfinite(before.image).all()
    bank.save(tmp_path / "b.safetensors")
    loaded = MemoryBank.load(tmp_path / "b.safetensors")
    after = loaded.score(patches)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert loaded.extend(features(20, seed=3) + 30, size=2) == 2
    assert loaded.search_index.faiss_index.ntotal == 302
    assert loaded.search(features(20, seed=3) + 30)[1].min() >= 300 or "PQ" in factory
    loaded.save(tmp_path / "b.safetensors")
    assert MemoryBank.load(tmp_path / "b.safetensors").search_index.faiss_index.ntotal == 302


def test_flat_scores_as_the_exact_search_does():
    patches = features(40, seed=2).reshape(2, 20, 16)
    exact, flat = (MemoryBank(features(), index=index).score(patches) for index in ("exact", "Flat"))
    assert torch.equal(exact.nearest, flat.nearest)
    torch.testing.assert_close(exact.patch, flat.patch, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(exact.image, flat.image, rtol=1e-5, atol=1e-4)


def test_short_inverted_lists_are_completed_exactly():
    bank = MemoryBank(features(), index="IVF64,Flat")  # one probed list holds about 6 of the 400 vectors
    distances, rows = bank.search(features(50, seed=1), k=40)
    assert rows.min() >= 0
    assert torch.isfinite(distances).all()
    expected = exact_search(features(50, seed=1), features(), 40)
    assert torch.equal(rows, expected[1])


def test_settings_of_faiss_can_be_reached():
    bank = MemoryBank(features(), index="IVF8,Flat")
    bank.search_index.faiss_index.nprobe = 8
    queries = features(30, seed=1)
    assert torch.equal(bank.search(queries, 5)[1], MemoryBank(features()).search(queries, 5)[1])


@pytest.mark.parametrize("factory", ["IVF", "Fat", "", "exacT", "PQ5x4", "IVF8,", "IDMap,Flat"])
def test_bad_factory_strings(factory):
    with pytest.raises(InputError, match=r"^index: ") as caught:
        MemoryBank(features(), index=factory)
    assert repr(factory) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_too_few_vectors_to_train():
    with pytest.raises(InputError, match="index: FAISS cannot build 'IVF256,Flat' on 20 vectors"):
        MemoryBank(features(20), index="IVF256,Flat")


def test_bad_queries():
    bank = MemoryBank(features(10), index="Flat")
    with pytest.raises(InputError, match="k: expected 1 to 10"):
        bank.search(features(2), k=11)
    with pytest.raises(InputError, match="queries: expected 16 columns as in the bank, found 3"):
        bank.search(torch.rand(2, 3))
    with pytest.raises(InputError, match="queries: row 0 holds NaN"):
        bank.search(torch.full((1, 16), float("nan")))


def test_saved_bytes_are_checked_against_the_bank():
    data = FaissIndex(features(50), "Flat").serialize()
    with pytest.raises(FormatError, match="expected 60 x 16 Euclidean vectors, found 50 x 16"):
        FaissIndex.deserialize(features(60), data)
    with pytest.raises(FormatError, match="faiss_index: altered"):
        FaissIndex.deserialize(features(50), data[:100])
    inner = faiss.IndexFlatIP(16)
    inner.add(features(50).numpy())
    with pytest.raises(FormatError, match="Euclidean"):
        FaissIndex.deserialize(features(50), torch.from_numpy(faiss.serialize_index(inner)))


def test_rebuild_index_never_shows_faiss_the_bytes(tmp_path, monkeypatch):
    MemoryBank(features(), index="IVF8,Flat").save(tmp_path / "b.safetensors")
    monkeypatch.setattr(faiss, "deserialize_index", lambda data: pytest.fail("parsed"))
    bank = MemoryBank.load(tmp_path / "b.safetensors", rebuild_index=True)
    assert bank.search_index.faiss_index.ntotal == 400


class FakeGpuIndex:
    """An index that FAISS has moved to a GPU."""

    def __init__(self, index):
        self.index = index


class FaissWithGpu:
    """As much of faiss-gpu as moving an index takes."""

    GpuIndex = FakeGpuIndex
    StandardGpuResources = object

    def __init__(self, n_gpus=1, error=None):
        self.get_num_gpus = lambda: n_gpus
        self.error = error

    def index_cpu_to_gpu(self, resources, number, index):
        if self.error is not None:
            raise self.error
        assert number == 0
        return FakeGpuIndex(index)

    def index_gpu_to_cpu(self, index):
        return index.index

    def __getattr__(self, name):
        return getattr(faiss, name)


@pytest.mark.parametrize(
    ("module", "moved"),
    [
        (faiss, False),
        (FaissWithGpu(), True),
        (FaissWithGpu(n_gpus=0), False),
        (FaissWithGpu(error=RuntimeError("no GPU version of this index")), False),
    ],
)
def test_an_index_goes_to_the_gpu_where_it_can(module, moved, monkeypatch):
    """A stand-in for faiss-gpu; a GPU test has the real one."""
    monkeypatch.setattr("mmad_bank.bank.indices._faiss", lambda: module)
    index = FaissIndex(features(50), "Flat")
    assert isinstance(index.faiss_index, FakeGpuIndex) == moved
    restored = FaissIndex.deserialize(features(50), index.serialize())
    assert isinstance(restored.faiss_index, FakeGpuIndex) == moved


def test_missing_faiss_says_which_extra(monkeypatch):
    original = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "faiss":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtraError, match=r"mmad-bank\[faiss\]"):
        MemoryBank(features(), index="Flat")


def test_exact_search_is_brute_force_over_blocks(monkeypatch):
    monkeypatch.setattr("mmad_bank.bank.indices._BLOCK_ROWS", 7)
    vectors = torch.cat([features(30), features(30)])  # every vector twice
    queries = features(9, seed=1)
    distances, rows = exact_search(queries, vectors, 5)
    wide = (queries[:, None].double() - vectors[None].double()).norm(dim=-1)
    order = wide.sort(dim=1, stable=True)
    torch.testing.assert_close(distances.double(), order.values[:, :5], rtol=1e-5, atol=0)
    assert torch.equal(rows, order.indices[:, :5])


def test_exact_index_makes_its_copy_when_it_is_first_needed():
    index = ExactIndex(features(10))
    assert index.nbytes == 0
    assert torch.equal(index.neighbors(torch.tensor([3]), 1), torch.tensor([[3]]))
    assert index.nbytes > 0
