"""The certified search returns the float64 neighbours, whatever is stored and whichever unit multiplies it."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import mmad_bank as mb
from mmad_bank import _core
from mmad_bank.errors import InputError
from mmad_bank.ops import reference
from mmad_bank.ops._torch.knn import TorchIndex

PRECISIONS = ["auto", "float32", "half", "int8"]


def _low_rank(rng: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    """Rows near a 20-dimensional plane: the coarse level of the screen is used for these."""
    basis = rng.standard_normal((20, dim))
    return (rng.standard_normal((rows, 20)) @ basis + 0.05 * rng.standard_normal((rows, dim))).astype(np.float32)


def _clustered(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Queries and a bank in clusters near a plane of which one direction dominates, with copies and zeros in both.

    The bank is large enough for the coarse level's trial to end; far queries end it the other way.
    """
    basis = rng.standard_normal((20, 200)) * np.array([8.0] + [1.0] * 19)[:, None]
    centers = rng.standard_normal((30, 20))

    def draw(rows: int) -> np.ndarray:
        near = centers[rng.integers(0, 30, rows)] + 0.1 * rng.standard_normal((rows, 20))
        return (near @ basis + 0.02 * rng.standard_normal((rows, 200))).astype(np.float32)

    bank = draw(2500)
    bank[1100:1150] = bank[:50]
    bank[[3, 1500, 2499]] = 0
    queries = np.concatenate([draw(30), bank[:5], bank[1100:1105], np.zeros((2, 200), np.float32), 1e3 * draw(3)])
    return queries, bank


def _inputs() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(11)
    normal = rng.standard_normal((900, 64)).astype(np.float32)
    queries = rng.standard_normal((37, 64)).astype(np.float32)
    duplicates = np.repeat(normal[:150], 4, axis=0)
    outliers = normal.copy()
    outliers[5] *= 1e6
    outliers[77] *= 1e3
    far = queries.copy()
    far[3] *= 1e5
    low_rank = _low_rank(rng, 1000, 256)
    mixed = np.concatenate([low_rank[:30], rng.standard_normal((7, 256)).astype(np.float32) * 20])
    # Patches without a measurement are one and the same vector, in the bank and among the queries.
    unmeasured = low_rank[:900].copy()
    unmeasured[100:700] = 0
    unmeasured[[50, 700]] = 0
    unmeasured[50, 0] = unmeasured[700, 7] = 1e-30  # not zero, though the squares are too small for float32
    return {
        "normal": (queries, normal),
        "equal by the hundred": (np.concatenate([unmeasured[[50, 700]], np.zeros((9, 256), np.float32)]), unmeasured),
        "duplicates": (np.concatenate([queries, normal[:5]]), duplicates),
        "queries in the bank": (normal[::30].copy(), normal),
        "offset by 1e4": (queries + np.float32(1e4), normal + np.float32(1e4)),
        "scaled by 1e-3": (queries * np.float32(1e-3), normal * np.float32(1e-3)),
        "scaled by 1e-25": (queries * np.float32(1e-25), normal * np.float32(1e-25)),
        "unit norm": (
            queries / np.linalg.norm(queries, axis=1, keepdims=True),
            normal / np.linalg.norm(normal, axis=1, keepdims=True),
        ),
        "huge outliers": (far, outliers),
        "grid": (rng.integers(0, 3, (20, 6)).astype(np.float32), rng.integers(0, 3, (500, 6)).astype(np.float32)),
        "zeros": (np.zeros((3, 8), np.float32), np.zeros((40, 8), np.float32)),
        "low rank": (low_rank[:40] + np.float32(0.01), low_rank[40:]),
        "low rank bank, far queries": (mixed, low_rank[30:]),
        "clustered low rank": _clustered(rng),
        "odd width": (queries[:, :33].copy(), normal[:, :33].copy()),
        "one column": (queries[:, :1].copy(), normal[:, :1].copy()),
        "one row": (queries[:2], normal[:1]),
    }


INPUTS = _inputs()


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("k", [1, 9, "all"])
def test_equals_float64_brute_force(name: str, precision: str, k: int | str) -> None:
    queries, bank = (torch.from_numpy(part) for part in INPUTS[name])
    count = len(bank) if k == "all" else min(int(k), len(bank))
    expected_distances, expected = reference.knn(queries, bank, count)
    distances, indices = mb.ops.knn(queries, bank, count, precision=precision)
    assert torch.equal(indices, expected)
    torch.testing.assert_close(distances, expected_distances, rtol=3e-7, atol=0.0)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_real_features(texture_features: np.ndarray, precision: str) -> None:
    rows = torch.from_numpy(texture_features)
    queries, bank = rows[-784::8], rows[:5000]
    index = mb.ops.SearchIndex(bank, precision=precision)
    for k in (1, 9):
        distances, indices = index.search(queries, k)
        expected_distances, expected = reference.knn(queries, bank, k)
        assert torch.equal(indices, expected)
        torch.testing.assert_close(distances, expected_distances, rtol=3e-7, atol=0.0)


@pytest.mark.parametrize("coarse", [64, 256])
@pytest.mark.parametrize("name", INPUTS)
def test_two_levels_equal_float64_brute_force(name: str, coarse: int) -> None:
    """Whatever the data: also where no coarse level would be chosen, and with more coordinates than columns."""
    queries, bank = INPUTS[name]
    index = _core.KnnIndex(bank, "int8", 2, coarse)
    for k in {1, min(9, len(bank)), len(bank)}:
        expected_distances, expected = reference.knn(torch.from_numpy(queries), torch.from_numpy(bank), k)
        distances, indices = index.search(queries, k, 2)
        assert np.array_equal(indices, expected.numpy())
        torch.testing.assert_close(torch.from_numpy(distances), expected_distances, rtol=3e-7, atol=0.0)


@pytest.mark.parametrize("precision", ["auto", "int8"])
def test_the_coarse_level_is_used_where_the_data_allow_it(texture_features: np.ndarray, precision: str) -> None:
    noise = np.random.default_rng(5).standard_normal((1500, 656)).astype(np.float32)
    assert _core.KnnIndex(texture_features[:5000], precision, 1).coarse in (64, 128, 256)
    assert _core.KnnIndex(noise, precision, 1).coarse == 0


@pytest.mark.parametrize("coarse", [0, 64])
def test_original_rows_are_left_alone_where_8_bits_tell_them_apart(coarse: int) -> None:
    """Rows that were overwritten by the query would be its neighbours at distance 0, if they were read."""
    rng = np.random.default_rng(2)
    rows = _low_rank(rng, 3000, 256)
    queries, bank = rows[:1], rows[1:].copy()
    expected_distances, expected = reference.knn(torch.from_numpy(queries), torch.from_numpy(bank), 9)
    apart = np.linalg.norm(bank - queries, axis=1) > 1.25 * expected_distances.max().item()
    assert apart.mean() > 0.9
    vectors = bank.copy()
    index = _core.KnnIndex(vectors, "int8", 1, coarse)
    vectors[apart] = queries
    assert np.array_equal(index.search(queries, 9, 1)[1], expected.numpy())


@pytest.mark.parametrize("coarse", [64, 128])
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("name", ["low rank", "clustered low rank"])
def test_threads_and_the_coarse_level(name: str, threads: int, coarse: int) -> None:
    queries, bank = INPUTS[name]
    expected = reference.knn(torch.from_numpy(queries), torch.from_numpy(bank), 4)[1]
    index = _core.KnnIndex(bank, "int8", threads, coarse)
    for count in (1, 2, 7, len(queries)):
        assert np.array_equal(index.search(queries[:count], 4, threads)[1], expected[:count].numpy())


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("count", [1, 2, 7, 37])
def test_threads_and_few_queries(threads: int, count: int) -> None:
    queries, bank = (torch.from_numpy(part) for part in INPUTS["normal"])
    expected = reference.knn(queries[:count], bank, 4)[1]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert torch.equal(mb.ops.knn(queries[:count], bank, 4)[1], expected)
    finally:
        torch.set_num_threads(before)


SLOW = pytest.mark.slow  # each in a process of its own; two of four are enough at every run


@pytest.mark.parametrize("isa", ["generic", *(pytest.param(isa, marks=SLOW) for isa in ("avx2", "avx512", "amx"))])
def test_every_instruction_set_agrees(isa: str) -> None:
    """A set that this processor lacks falls back to the next lower one."""
    code = (
        "import torch, mmad_bank as mb; g = torch.Generator().manual_seed(5);"
        "b = torch.randn(300, 70, generator=g); q = torch.randn(20, 70, generator=g);"
        "print([mb.ops.knn(q, b, 3, precision=p)[1].tolist() for p in ('auto', 'float32', 'half', 'int8')])"
    )
    environment = {**os.environ, "MMAD_BANK_ISA": isa}
    out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    generator = torch.Generator().manual_seed(5)
    bank, queries = torch.randn(300, 70, generator=generator), torch.randn(20, 70, generator=generator)
    assert out.stdout.strip() == str([reference.knn(queries, bank, 3)[1].tolist()] * 4)


def test_an_unknown_instruction_set_is_named() -> None:
    code = "import torch, mmad_bank as mb; mb.ops.knn(torch.zeros(1, 2), torch.zeros(1, 2))"
    environment = {**os.environ, "MMAD_BANK_ISA": "mmx"}
    out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert out.returncode != 0
    assert "MMAD_BANK_ISA: expected generic, avx2, avx512 or amx, found 'mmx'" in out.stderr


def test_resident_copy_is_half_or_a_quarter() -> None:
    bank = torch.randn(4000, 512, generator=torch.Generator().manual_seed(0))
    sizes = {p: mb.ops.SearchIndex(bank, precision=p).nbytes / bank.nbytes for p in ("float32", "half", "int8")}
    assert sizes["float32"] == pytest.approx(1.0, abs=0.03)
    assert sizes["half"] == pytest.approx(0.5, abs=0.03)
    assert sizes["int8"] == pytest.approx(0.25, abs=0.03)


def test_a_small_bank_is_not_measured_before_it_is_searched(texture_features: np.ndarray) -> None:
    """Measuring costs more than it saves on so few rows."""
    rows = texture_features[:1000]
    auto, half, short = (_core.KnnIndex(rows, precision, 1) for precision in ("auto", "half", "int8"))
    assert auto.format == half.format or _core.active_isa() == "generic"
    assert (auto.coarse, short.coarse) == (0, 0)
    assert _core.KnnIndex(texture_features[:5000], "auto", 1).coarse


def test_the_coarse_level_of_8_bit_rows_takes_little() -> None:
    bank = _low_rank(np.random.default_rng(4), 8000, 1152)
    for coarse, most in ((0, 0.26), (64, 0.285), (128, 0.305)):
        assert 0.25 < _core.KnnIndex(bank, "int8", 1, coarse).nbytes / bank.nbytes < most


def test_narrow_and_non_contiguous_queries() -> None:
    queries, bank = (torch.from_numpy(part) for part in INPUTS["normal"])
    half = queries.to(torch.bfloat16)
    assert torch.equal(mb.ops.knn(half, bank, 2)[1], reference.knn(half.float(), bank, 2)[1])
    strided = queries.T.contiguous().T
    assert torch.equal(mb.ops.knn(strided, bank[::2], 2)[1], reference.knn(queries, bank[::2], 2)[1])


def test_no_queries_give_no_rows() -> None:
    index = mb.ops.SearchIndex(torch.zeros(3, 4))
    with pytest.raises(InputError, match="queries: expected at least one row"):
        index.search(torch.zeros(0, 4))


@pytest.mark.parametrize("name", ["normal", "duplicates", "offset by 1e4", "huge outliers", "low rank", "one row"])
def test_the_pytorch_path_agrees(name: str) -> None:
    """What runs on devices without native kernels."""
    queries, bank = (torch.from_numpy(part) for part in INPUTS[name])
    for k in {1, min(9, len(bank))}:
        distances, indices = TorchIndex(bank).search(queries, k)
        expected_distances, expected = reference.knn(queries, bank, k)
        assert torch.equal(indices, expected)
        torch.testing.assert_close(distances, expected_distances, rtol=3e-7, atol=0.0)


NAN = float("nan")


@pytest.mark.parametrize(
    ("queries", "bank", "k", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(4, 5), 1, "queries: expected 5 columns as in the bank, found 3"),
        (torch.zeros(2, 3), torch.zeros(4, 3), 5, "k: expected 1 to 4 (the number of vectors in the bank), found 5"),
        (torch.zeros(2, 3), torch.zeros(4, 3), 0, "k: expected 1 to 4 (the number of vectors in the bank), found 0"),
        (torch.zeros(2, 3, 1), torch.zeros(4, 3), 1, "queries: expected 2-D array, found shape (2, 3, 1)"),
        (torch.zeros(2, 3).int(), torch.zeros(4, 3), 1, "queries: expected floating-point values, found torch.int32"),
        (torch.zeros(2, 3), torch.zeros(0, 3), 1, "bank: expected at least one row and one column, found shape (0, 3)"),
        (torch.tensor([[0.0], [NAN]]), torch.zeros(4, 1), 1, "queries: row 1 holds NaN or infinity"),
        (torch.zeros(2, 1), torch.tensor([[0.0], [0.0], [NAN]]), 1, "bank: row 2 holds NaN or infinity"),
    ],
)
def test_bad_input_is_named(queries: torch.Tensor, bank: torch.Tensor, k: int, message: str) -> None:
    with pytest.raises(InputError) as error:
        mb.ops.knn(queries, bank, k)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        (torch.ones(2, 3).to_sparse(), "queries: expected a dense tensor, found torch.sparse_coo"),
        (np.ones((2, 3), np.longdouble), "queries: expected floating-point values, found NumPy dtype"),
        (np.ma.masked_greater(np.eye(3), 0.5), "queries: expected an array without masked values, found 3"),
    ],
)
def test_arrays_that_are_not_plain_are_refused(queries: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        mb.ops.knn(queries, torch.ones(4, 3))


def test_negated_views_are_negated() -> None:
    bank = torch.tensor([[1.0, 2.0], [-1.0, -2.0]])
    assert mb.ops.knn(torch._neg_view(bank), bank)[1].tolist() == [[1], [0]]


def test_a_bad_precision_is_named() -> None:
    with pytest.raises(InputError, match="precision: expected one of auto, float32, half, int8, found 'fp16'"):
        mb.ops.knn(torch.zeros(1, 2), torch.zeros(1, 2), precision="fp16")  # type: ignore[arg-type]


def test_two_thread_pools_live_together() -> None:
    """PyTorch brings its own OpenMP runtime: calls in turn must neither hang nor slow each other down beyond reason."""
    queries, bank = torch.randn(64, 128), torch.randn(2000, 128)
    index = mb.ops.SearchIndex(bank)
    for _ in range(50):
        index.search(queries)
        _ = queries @ bank.T
    assert torch.get_num_threads() >= 1
