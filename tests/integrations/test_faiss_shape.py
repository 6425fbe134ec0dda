"""The index in FAISS's shape, held against FAISS itself where it is installed, and against its definition anywhere."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmad_bank.errors import FormatError, InputError
from mmad_bank.integrations.faiss import IndexFlatL2, read_index, write_index

LARGEST = np.finfo(np.float32).max


def rows(n: int, dim: int = 24, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, dim), dtype=np.float32)


def filled(vectors: np.ndarray, kind: Any = IndexFlatL2) -> Any:
    index = kind(vectors.shape[1])
    index.add(vectors)
    return index


@pytest.fixture
def faiss() -> Any:
    return pytest.importorskip("faiss")


@pytest.mark.parametrize(("n", "k"), [(500, 1), (500, 9), (3, 5), (1, 1), (0, 2)])
def test_searches_are_those_of_faiss(faiss: Any, n: int, k: int) -> None:
    vectors, queries = rows(n), rows(40, seed=1)
    mine, theirs = filled(vectors), filled(vectors, faiss.IndexFlatL2)
    for name in ("d", "ntotal", "is_trained", "metric_type", "metric_arg", "code_size"):
        assert getattr(mine, name) == getattr(theirs, name), name
    (distances, labels), (expected, numbers) = mine.search(queries, k), theirs.search(queries, k)
    assert (distances.dtype, labels.dtype) == (expected.dtype, numbers.dtype)
    np.testing.assert_array_equal(labels, numbers)
    np.testing.assert_allclose(distances, expected, rtol=1e-5)
    np.testing.assert_array_equal(mine.assign(queries, k), theirs.assign(queries, k))
    for found, wanted in zip(
        mine.search_and_reconstruct(queries, k), theirs.search_and_reconstruct(queries, k), strict=True
    ):
        if not (found.ndim == 3 and n < k):  # FAISS leaves a vector that is not there as it finds the memory
            np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_distances_are_float64s_rounded() -> None:
    vectors, queries = rows(300), rows(50, seed=1)
    distances, labels = filled(vectors).search(queries, 4)
    exact = ((queries[:, None].astype(np.float64) - vectors[labels]) ** 2).sum(axis=2)
    np.testing.assert_allclose(distances, exact, rtol=4e-7)
    every = ((queries[:, None].astype(np.float64) - vectors) ** 2).sum(axis=2)
    np.testing.assert_array_equal(labels, every.argsort(axis=1)[:, :4])


@pytest.mark.parametrize("threshold", [0.0, 20.0, 1000.0])
def test_a_range_search_is_that_of_faiss(faiss: Any, threshold: float) -> None:
    vectors, queries = rows(5000), rows(300, seed=1)
    mine, theirs = (filled(vectors, kind).range_search(queries, threshold) for kind in (IndexFlatL2, faiss.IndexFlatL2))
    for found, wanted in zip(mine, theirs, strict=True):
        assert found.dtype == wanted.dtype
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert len(filled(vectors).range_search(queries[:0], threshold)[1]) == 0
    assert IndexFlatL2(24).range_search(queries[:2], threshold)[0].tolist() == [0, 0, 0]


def test_vectors_come_back_as_faiss_gives_them(faiss: Any) -> None:
    vectors = rows(20)
    mine, theirs = filled(vectors), filled(vectors, faiss.IndexFlatL2)
    for index in (mine, theirs):
        np.testing.assert_array_equal(index.reconstruct(7), vectors[7])
        np.testing.assert_array_equal(index.reconstruct_n(), vectors)
        np.testing.assert_array_equal(index.reconstruct_n(3, 5), vectors[3:8])
        np.testing.assert_array_equal(index.reconstruct_batch([4, 1]), vectors[[4, 1]])
        assert index.remove_ids(np.array([0, 2, 99])) == 2
        np.testing.assert_array_equal(index.reconstruct_n(), np.delete(vectors, [0, 2], axis=0))
        index.reset()
        assert index.ntotal == 0
        index.add(vectors[:2])
        assert index.search(vectors[1:2], 1)[1].tolist() == [[1]]
    mine.reconstruct(0)[:] = 9  # a copy: the index keeps its own
    np.testing.assert_array_equal(mine.reconstruct(0), vectors[0])


def test_vectors_that_are_added_later_are_found() -> None:
    vectors = rows(60)
    index = IndexFlatL2(24)
    for first in range(0, 60, 20):
        index.add(vectors[first : first + 20])
        assert index.search(vectors[first + 19 :][:1], 1)[1].tolist() == [[first + 19]]
    assert index.ntotal == 60
    np.testing.assert_array_equal(index.reconstruct_n(), vectors)
    given = rows(1, seed=5)
    index.add(given)
    given[:] = 0  # what happens to the array later does not change the index
    assert index.search(rows(1, seed=5), 1)[0].tolist() == [[0.0]]


def test_results_go_into_the_callers_arrays() -> None:
    index, queries = filled(rows(9)), rows(4, seed=1)
    distances, labels = np.empty((4, 12), np.float32), np.empty((4, 12), np.int64)
    found = index.search(queries, 12, D=distances, I=labels)
    assert found[0] is distances
    assert found[1] is labels
    assert (labels[:, 9:] == -1).all()
    assert (distances[:, 9:] == LARGEST).all()
    place = np.empty(24, np.float32)
    assert index.reconstruct(3, place) is place
    for wrong in ({"D": distances[:2]}, {"I": labels.astype(np.int32)}, {"D": [1.0]}):
        with pytest.raises(InputError, match=r"^[DI]: expected (float32|int64) \(4, 12\), found"):
            index.search(queries, 12, **wrong)


@pytest.mark.parametrize("kind", ["int", "float64", "tensor", "strided"])
def test_numbers_of_any_kind_are_taken(kind: str) -> None:
    values = np.arange(12, dtype=np.int64).reshape(4, 3) ** 2
    given = {
        "int": values,
        "float64": values.astype(float),
        "tensor": torch.tensor(values).half(),
        "strided": values[::1],
    }
    index = filled(given[kind])
    assert index.search(given[kind], 1)[1][:, 0].tolist() == [0, 1, 2, 3]


def test_a_query_that_is_not_finite_has_no_neighbors() -> None:
    queries = rows(3)
    queries[1, 0] = np.nan
    distances, labels = filled(rows(9)).search(queries, 2)
    assert labels[1].tolist() == [-1, -1]
    assert distances[1].tolist() == [LARGEST, LARGEST]
    assert (labels[[0, 2]] >= 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda index: index.add(rows(2, 5)), r"^x: expected shape \(n, 24\), found \(2, 5\)$"),
        (lambda index: index.add(np.full((1, 24), np.nan)), "^x: row 0 holds NaN or infinity; expected finite values$"),
        (lambda index: index.search(rows(2)[0], 1), r"^x: expected shape \(n, 24\), found \(24,\)$"),
        (lambda index: index.search(rows(2), 0), "^k: expected 1 to"),
        (lambda index: index.search(np.array([["a"]]), 1), "^x: expected numbers, found NumPy dtype <U1$"),
        (lambda index: index.reconstruct(9), "^key: expected 0 to 8"),
        (lambda index: index.reconstruct_n(5, 9), "^ni: expected 0 to 4"),
        (lambda index: index.reconstruct_batch([0, -1]), "^key: expected numbers"),
        (lambda index: index.reconstruct(0, np.empty(3, np.float32)), r"^x: expected an array float32 \(24,\)"),
        (lambda index: IndexFlatL2(-1), "^d: expected 0 to"),
        (lambda index: IndexFlatL2(3, bank_precision="half a byte"), "^bank_precision: expected one of"),
    ],
)
def test_bad_arguments_are_told_in_a_line(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(filled(rows(9)))


def test_files_go_to_faiss_and_come_from_it(faiss: Any, tmp_path: Path) -> None:
    for vectors in (rows(30), rows(0)):
        theirs = filled(vectors, faiss.IndexFlatL2)
        faiss.write_index(theirs, str(tmp_path / "theirs"))
        write_index(filled(vectors), tmp_path / "mine")
        assert (tmp_path / "mine").read_bytes() == (tmp_path / "theirs").read_bytes()
        np.testing.assert_array_equal(read_index(tmp_path / "theirs").reconstruct_n(), vectors)
        assert faiss.read_index(str(tmp_path / "mine")).ntotal == len(vectors)
    for name in ("IVF2,Flat", "SQ8"):
        other = faiss.index_factory(24, name)
        other.train(rows(99))
        faiss.write_index(other, str(tmp_path / "other"))
        with pytest.raises(FormatError, match="other: expected a flat FAISS index"):
            read_index(tmp_path / "other")
    faiss.write_index(faiss.IndexFlat(24, faiss.METRIC_L1), str(tmp_path / "metric"))
    with pytest.raises(FormatError, match=r"metric: expected (a flat|an index of Euclidean)"):
        read_index(tmp_path / "metric")


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "i"
    write_index(filled(rows(4)), path)
    whole = path.read_bytes()
    assert read_index(path).ntotal == 4
    huge = whole[:8] + (2**60).to_bytes(8, "little") + whole[16:]
    for damaged in (b"", whole[:3], whole[:30], whole[:-1], whole + b"1", huge, b"IxFI" + whole[4:]):
        path.write_bytes(damaged)
        with pytest.raises(FormatError, match=f"^{path}: "):
            read_index(path)
    with pytest.raises(InputError, match="absent: cannot be read"):
        read_index(tmp_path / "absent")
    with pytest.raises(InputError, match="cannot be read"):
        read_index(tmp_path)


def test_indices_are_pickled_and_shared_by_threads() -> None:
    vectors = rows(400)
    index = filled(vectors)
    twin = pickle.loads(pickle.dumps(index))
    expected = twin.search(vectors[:50], 3)
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(index.search(vectors[:50], 3))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    for distances, labels in found:
        np.testing.assert_array_equal(labels, expected[1])
        np.testing.assert_array_equal(distances, expected[0])


def test_faiss_need_not_be_installed() -> None:
    code = """
import sys
sys.modules["faiss"] = None
import numpy as np, mmad_bank as mb
index = mb.integrations.faiss.IndexFlatL2(2)
index.add(np.eye(2))
print(index.search(np.eye(2), 1)[1].tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[[0], [1]]\n", "")
