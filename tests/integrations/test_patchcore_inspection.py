"""Search and samplers in patchcore-inspection's shapes, held against their definitions and FAISS's files."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmad_bank.errors import FormatError, InputError, NotFittedError
from mmad_bank.integrations.patchcore_inspection import (
    ApproximateGreedyCoresetSampler,
    FaissNN,
    GreedyCoresetSampler,
)
from mmad_bank.ops import reference

SAMPLERS = (GreedyCoresetSampler, ApproximateGreedyCoresetSampler)


def rows(n: int, dim: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, dim), dtype=np.float32)


def test_a_search_is_the_same_with_and_without_a_fit() -> None:
    vectors, queries = rows(200), rows(30, seed=1)
    search = FaissNN(False, 4)
    once = search.run(3, queries, vectors)
    assert search.search_index is None
    search.fit(rows(5))
    search.fit(vectors)  # instead of the five
    for found in (search.run(3, queries), copy.deepcopy(search).run(3, queries)):
        np.testing.assert_array_equal(found[0], once[0])
        np.testing.assert_array_equal(found[1], once[1])
    exact = ((queries[:, None].astype(np.float64) - vectors) ** 2).sum(axis=2)
    np.testing.assert_array_equal(once[1], exact.argsort(axis=1)[:, :3])
    np.testing.assert_allclose(once[0], np.sort(exact, axis=1)[:, :3], rtol=4e-7)


def test_without_vectors_there_is_an_error_as_in_that_project(tmp_path: Path) -> None:
    search = FaissNN()
    calls = (lambda: search.run(2, rows(3)), lambda: search.save(tmp_path / "i"))
    for call in calls:
        with pytest.raises(
            AttributeError, match=r"^search_index: expected vectors of fit or load, found none$"
        ) as found:
            call()
        assert isinstance(found.value, NotFittedError)
    search.fit(rows(9))
    search.reset_index()
    with pytest.raises(NotFittedError):
        search.run(2, rows(3))
    with pytest.raises(InputError, match=r"^x: expected shape"):
        search.fit(np.float32(3))


def test_files_are_faisss(tmp_path: Path) -> None:
    faiss = pytest.importorskip("faiss")
    vectors, queries = rows(60), rows(7, seed=1)
    search, other = FaissNN(), FaissNN()
    search.fit(vectors)
    search.save(str(tmp_path / "mine"))
    theirs = faiss.read_index(str(tmp_path / "mine"))
    np.testing.assert_array_equal(theirs.search(queries, 4)[1], search.run(4, queries)[1])
    faiss.write_index(theirs, str(tmp_path / "theirs"))
    other.load(str(tmp_path / "theirs"))
    for found, expected in zip(other.run(4, queries), search.run(4, queries), strict=True):
        np.testing.assert_array_equal(found, expected)
    (tmp_path / "theirs").write_bytes(pickle.dumps(theirs.ntotal))
    with pytest.raises(FormatError, match="theirs: expected a flat FAISS index"):
        other.load(tmp_path / "theirs")


@pytest.mark.parametrize("kind", ["numpy", "tensor", "float64"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sample_is_greedy_k_center_from_the_first_row(sampler: Any, kind: str) -> None:
    values = rows(300)
    values[123] = 40.0  # the farthest from the others, whichever of them are drawn
    given: Any = {"numpy": values, "tensor": torch.from_numpy(values), "float64": values.astype(np.float64)}[kind]
    found = sampler(0.1, torch.device("cpu"), dimension_to_project_features_to=16).run(given)
    assert (type(found), found.dtype) == (type(given), given.dtype)
    picks = reference.k_center_greedy(torch.from_numpy(values), 30, start=123)
    np.testing.assert_array_equal(np.asarray(found), values[picks.numpy()])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_projection_keeps_the_features_own_values(sampler: Any) -> None:
    values = rows(200, 40)
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002 - that project's generator
    one = sampler(0.25, dimension_to_project_features_to=8).run(values)
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002 - that project's generator
    again = sampler(0.25, dimension_to_project_features_to=8).run(torch.from_numpy(values))
    assert one.shape == (50, 40)
    np.testing.assert_array_equal(one, again.numpy())
    own = {row.tobytes() for row in values}
    assert len({row.tobytes() for row in one} & own) == 50
    plain = sampler(0.25, dimension_to_project_features_to=None).run(values)
    assert {row.tobytes() for row in plain} != {row.tobytes() for row in one}


def test_the_first_row_is_the_farthest_from_all() -> None:
    values = torch.from_numpy(rows(150))
    wanted = torch.cdist(values.double(), values.double()).norm(dim=1).argmax()
    found = GreedyCoresetSampler(0.01, dimension_to_project_features_to=None).run(values)
    assert torch.equal(found, values[wanted][None])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_equal_rows_and_a_callers_settings_make_no_difference(sampler: Any, callers_settings: Any) -> None:
    values = torch.ones(100, 4, dtype=torch.float32)
    values[50:] = float(rows(50, 4)[0][0])
    expected = sampler(0.5, dimension_to_project_features_to=None).run(values)
    with callers_settings, torch.inference_mode():
        assert torch.equal(sampler(0.5, dimension_to_project_features_to=None).run(values), expected)
    assert len(expected) == 50
    assert len(sampler(0.001).run(values)) == 1


@pytest.mark.parametrize("percentage", [0, 1, 1.5, -0.1, True, "half", float("nan")])
def test_a_share_out_of_range_is_refused(percentage: Any) -> None:
    for sampler in SAMPLERS:
        with pytest.raises(ValueError, match=r"^percentage: expected a share above 0 and below 1"):
            sampler(percentage, "cpu")


def test_other_bad_arguments_are_told_in_a_line() -> None:
    with pytest.raises(InputError, match=r"^dimension_to_project_features_to: expected"):
        GreedyCoresetSampler(0.1, dimension_to_project_features_to=0)
    with pytest.raises(InputError, match=r"^number_of_starting_points: expected"):
        ApproximateGreedyCoresetSampler(0.1, number_of_starting_points=0)
    with pytest.raises(InputError, match=r"^features: "):
        GreedyCoresetSampler(0.1).run(np.full((9, 128), np.nan, np.float32))
    with pytest.raises(InputError, match=r"^device: "):
        GreedyCoresetSampler(0.1, "no device")
