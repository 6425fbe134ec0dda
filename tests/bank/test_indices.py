import builtins

import pytest
import torch
from safetensors.torch import load_file

from mmad_bank import MemoryBank
from mmad_bank.bank.indices import ExactIndex, FaissIndex
from mmad_bank.bank.recall import exact_search
from mmad_bank.errors import FormatError, InputError, MissingExtraError

faiss = pytest.importorskip("faiss")


def features(n=400, dim=16, seed=0):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


FACTORIES = ["Flat", "IVF8,Flat", "HNSW16", "PQ4x4", "IVF4,PQ4x4", "PCA8,Flat"]


@pytest.mark.parametrize(
    "factory", [*FACTORIES, "L2norm,Flat", "OPQ4,IVF4,PQ4x4", "IVF8,PQ4x4,RFlat", "LSH", "SQ8", "Pad32,Flat"]
)
def test_the_nearest_of_what_faiss_finds_with_true_distances(factory):
    vectors, queries = features(), features(30, seed=1)
    bank = MemoryBank(vectors, index=factory)
    distances, rows = bank.search(queries, k=3)
    exact = (queries[:, None].double() - vectors[rows].double()).norm(dim=-1)
    torch.testing.assert_close(distances.double(), exact, rtol=1e-6, atol=0)
    assert (distances.diff(dim=1) >= 0).all()
    _, found = bank.search_index.faiss_index.search(queries.numpy(), 3 * bank.search_index._more)
    assert all(set(row.tolist()) <= set(more.tolist()) for row, more in zip(rows, found, strict=True))
    assert bank.search_index._more == (
        1 if factory in ("Flat", "IVF8,Flat", "HNSW16", "Pad32,Flat") else 4
    ) or factory in ("SQ8", "IVF8,PQ4x4,RFlat")
    assert bank.nbytes > vectors.nbytes


def test_equal_distances_go_to_the_lowest_row():
    vectors = features(40).repeat(3, 1)
    for factory in ("Flat", "HNSW16"):
        found = MemoryBank(vectors, index=factory).search(vectors[:40], k=3)[1]
        assert (found.diff(dim=1) > 0).all(), factory


class TestThoroughness:
    """nprobe, ef_search, and the recall that they give."""

    def test_the_default_finds_nearly_everything(self):
        bank = MemoryBank.build(features(3000), size=2000, index="IVF64,Flat")
        settings = bank.search_index.settings
        assert 8 <= settings.nprobe <= 64
        assert settings.recall >= 0.99 or settings.nprobe == 64
        right = bank.search(features(500, seed=5))[1] == MemoryBank(bank.vectors).search(features(500, seed=5))[1]
        assert abs(float(right.double().mean()) - bank.recall) < 0.03
        assert f"nprobe={settings.nprobe}, recall={bank.recall:.4g}" in repr(bank)

    @pytest.mark.parametrize(("index", "name"), [("IVF64,Flat", "nprobe"), ("HNSW8", "ef_search")])
    def test_what_is_asked_for_is_kept_in_the_file(self, index, name, tmp_path):
        bank = MemoryBank.build(features(1500), size=1000, index=index, **{name: 3})
        assert getattr(bank.search_index.settings, name) == 3
        assert bank.recall < 0.9
        bank.save(tmp_path / "b")
        for trusted in (False, True):
            loaded = MemoryBank.load(tmp_path / "b", trust_index=trusted)
            assert loaded.recall == bank.recall
            assert loaded.search_index.settings == bank.search_index.settings
        bank.extend(features(40, seed=2) + 20, size=40)
        assert getattr(bank.search_index.settings, name) == 3
        assert bank.recall is None  # not measured since

    def test_settings_by_hand_forget_the_recall(self):
        bank = MemoryBank(features(), index="IVF8,Flat")
        assert bank.recall is not None
        bank.search_index.faiss_index.nprobe = 2
        assert bank.recall is None
        assert bank.metadata()["search"] == {"nprobe": 2, "ef_search": None, "recall": None}

    @pytest.mark.parametrize("index", ["exact", "Flat", "PQ4x4"])
    def test_indices_without_settings(self, index):
        bank = MemoryBank(features(), index=index)
        assert (bank.recall is None) == (index == "exact")
        assert (bank.recall == 1.0) == (index == "Flat")
        with pytest.raises(InputError, match="nprobe: expected an index with inverted lists"):
            MemoryBank(features(), index=index, nprobe=4)
        with pytest.raises(InputError, match=r"ef_search: expected an index with a graph \(HNSW\)"):
            MemoryBank(features(), index=index, ef_search=4)

    def test_wrong_settings(self):
        for value in (0, -1, 1.5, True):
            with pytest.raises(InputError, match="nprobe: expected"):
                MemoryBank(features(), index="IVF8,Flat", nprobe=value)

    def test_inner_indices_are_reached(self):
        for factory in ("OPQ4,IVF8,PQ4x4", "IVF8,PQ4x4,RFlat"):
            assert MemoryBank(features(), index=factory, nprobe=5).search_index.settings.nprobe == 5
        assert MemoryBank(features(), index="PCA8,HNSW8", ef_search=5).search_index.settings.ef_search == 5


def test_what_faiss_cannot_build_is_said_before_the_selection(monkeypatch):
    monkeypatch.setattr("mmad_bank.ops.k_center_greedy", lambda *a, **b: pytest.fail("selected"))
    for factory in ("Fat", "IVF41,Flat", "PQ5x4", "IVF100000000,Flat", "PQ1x24"):
        with pytest.raises(InputError, match=r"^index: ") as caught:
            MemoryBank.build(features(), size=40, index=factory)
        assert repr(factory) in str(caught.value)
    with pytest.raises(InputError, match="nprobe"):
        MemoryBank.build(features(), size=40, index="HNSW8", nprobe=3)


@pytest.mark.parametrize("factory", FACTORIES)
def test_scores_and_survives_a_file_and_an_extension(tmp_path, factory):
    bank = MemoryBank.build(features(), size=300, index=factory)
    patches = features(40, seed=2).reshape(2, 20, 16)
    before = bank.score(patches)
    assert torch.isfinite(before.image).all()
    bank.save(tmp_path / "b.safetensors")
    loaded = MemoryBank.load(tmp_path / "b.safetensors", trust_index=True)
    after = loaded.score(patches)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert loaded.extend(features(20, seed=3) + 30, size=2) == 2
    assert loaded.search_index.faiss_index.ntotal == 302
    assert loaded.search(features(20, seed=3) + 30)[1].min() >= 300
    loaded.save(tmp_path / "b.safetensors")
    assert MemoryBank.load(tmp_path / "b.safetensors").search_index.faiss_index.ntotal == 302


def test_flat_scores_as_the_exact_search_does():
    patches = features(40, seed=2).reshape(2, 20, 16)
    exact, flat = (MemoryBank(features(), index=index).score(patches) for index in ("exact", "Flat"))
    assert torch.equal(exact.nearest, flat.nearest)
    torch.testing.assert_close(exact.patch, flat.patch, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(exact.image, flat.image, rtol=1e-5, atol=1e-4)


def test_short_inverted_lists_are_completed_exactly():
    bank = MemoryBank(features(), index="IVF64,Flat", nprobe=1)  # one list holds about 6 of the 400 vectors
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
    with pytest.raises(InputError, match="for 20 vectors of 16 dimensions, found 'IVF256,Flat' with 256 lists"):
        MemoryBank(features(20), index="IVF256,Flat")
    with pytest.raises(InputError, match="index: FAISS cannot build 'PQ4x8' on 20 vectors"):
        MemoryBank(features(20), index="PQ4x8")


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


@pytest.mark.parametrize(
    ("arguments", "parsed"),
    [({}, 0), ({"rebuild_index": True}, 0), ({"trust_index": True}, 1), ({"rebuild_index": False}, 1),
     ({"rebuild_index": True, "trust_index": True}, 0)],
)  # fmt: skip
def test_faiss_sees_the_bytes_of_a_file_only_if_it_is_trusted(arguments, parsed, tmp_path, monkeypatch):
    path = tmp_path / "b.safetensors"
    bank = MemoryBank(features(), index="IVF8,Flat")
    bank.save(path)
    calls, deserialize = [], faiss.deserialize_index
    monkeypatch.setattr(faiss, "deserialize_index", lambda data: (calls.append(len(data)), deserialize(data))[1])
    loaded = MemoryBank.load(path, **arguments)
    assert not calls
    assert torch.equal(loaded.search(features(9, seed=1), 3)[1], bank.search(features(9, seed=1), 3)[1])
    loaded.extend(features(3, seed=2) + 30, size=3)
    assert len(calls) == parsed


def test_a_strangers_bytes_are_not_passed_on(tmp_path):
    MemoryBank(features(), index="IVF8,Flat").save(tmp_path / "b")
    MemoryBank.load(tmp_path / "b").save(tmp_path / "c")
    assert "faiss_index" in load_file(tmp_path / "b")
    assert "faiss_index" not in load_file(tmp_path / "c")
    assert MemoryBank.load(tmp_path / "c", trust_index=True).search_index.faiss_index.ntotal == 400


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
    monkeypatch.setattr("mmad_bank.bank.faiss_index._faiss", lambda: module)
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
    monkeypatch.setattr("mmad_bank.bank.recall._BLOCK_ROWS", 7)
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


@pytest.mark.parametrize("index", ["L2norm,Flat", "ITQ,Flat", "NSG8"])
def test_indices_that_cannot_be_copied_or_added_to_are_extended(index: str) -> None:
    bank = MemoryBank(torch.randn(300, 16, generator=torch.Generator().manual_seed(0)), index=index)
    more = 9 * torch.randn(20, 16, generator=torch.Generator().manual_seed(1))
    assert bank.extend(more, size=20) == 20
    found = bank.search(bank.vectors[300:])[1][:, 0]
    assert len(bank) == 320
    assert index == "NSG8" or torch.equal(found, torch.arange(300, 320))  # NSG is approximate
