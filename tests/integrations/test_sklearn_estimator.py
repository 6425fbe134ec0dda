"""The estimator of scikit-learn: its own checks, NearestNeighbors' answers, scores and verdicts."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn", minversion="1.6")

from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from mmad_bank import MemoryBank, ops
from mmad_bank.errors import InputError
from mmad_bank.integrations.sklearn import ExactNeighbors


def rows(n: int = 400, dim: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, dim), dtype=np.float32)


@parametrize_with_checks([ExactNeighbors(), ExactNeighbors(3, ratio=0.25, false_alarm_rate=0.2)])
def test_scikit_learns_checks_hold(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.parametrize("k", [1, 7])
def test_neighbors_are_those_of_scikit_learn(k: int) -> None:
    mine = ExactNeighbors(k).fit(rows())
    theirs = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(rows().astype(np.float64))
    for queries in (rows(60, seed=1), None):
        (distances, found), (expected, indices) = mine.kneighbors(queries), theirs.kneighbors(queries)
        np.testing.assert_array_equal(found, indices)
        np.testing.assert_allclose(distances, expected, rtol=1e-6)
        np.testing.assert_array_equal(mine.kneighbors(queries, 2, return_distance=False)[:, 0], indices[:, 0])
        np.testing.assert_array_equal(mine.kneighbors(queries, return_distance=False), indices)


def test_a_row_is_not_its_own_neighbor_among_copies() -> None:
    values = np.repeat(rows(3), 4, axis=0)
    distances, found = ExactNeighbors(2).fit(values).kneighbors()
    assert (distances == 0).all()
    assert (found != np.arange(12)[:, None]).all()
    assert (found // 4 == np.arange(12)[:, None] // 4).all()


def test_a_coreset_is_that_of_the_selection_and_names_training_rows() -> None:
    made = ExactNeighbors(2, ratio=0.1, start=5).fit(rows())
    picks = ops.k_center_greedy(torch.from_numpy(rows()), 40, start=5)
    np.testing.assert_array_equal(made.coreset_indices_, picks)
    distances, found = made.kneighbors(rows(50, seed=1))
    assert set(found.ravel()) <= set(picks.tolist())
    bank = MemoryBank(rows()[picks])
    np.testing.assert_array_equal(found, picks.numpy()[bank.search(rows(50, seed=1), 2)[1]])
    np.testing.assert_array_equal(made.score_samples(rows(50, seed=1)), -distances.mean(axis=1, dtype=np.float64))
    assert (made.n_samples_fit_, len(made.bank_)) == (400, 40)


@pytest.mark.parametrize("ratio", [1.0, 0.2])
def test_normal_rows_are_called_novelties_as_often_as_promised(ratio: float) -> None:
    """4000 normal rows: four standard deviations of their share, and of the training rows' quantile."""
    made = ExactNeighbors(2, ratio=ratio, false_alarm_rate=0.1).fit(rows(2000))
    normal, far = rows(4000, seed=1), rows(50, seed=2) + 9
    share = (made.predict(normal) == -1).mean()
    assert share == pytest.approx(0.1, abs=4 * np.sqrt(0.1 * 0.9 * (1 / 4000 + 1 / 2000)))
    assert (made.predict(far) == -1).all()
    assert made.score_samples(far).max() < made.score_samples(normal).min()
    np.testing.assert_array_equal(made.decision_function(far), made.score_samples(far) - made.offset_)
    assert (made.training_scores_ < made.offset_).mean() == pytest.approx(0.1, abs=0.001)


def test_training_scores_leave_each_row_out() -> None:
    made = ExactNeighbors(3).fit(rows(50))
    for row in (0, 17):
        rest = ExactNeighbors(3).fit(np.delete(rows(50), row, axis=0))
        assert made.training_scores_[row] == pytest.approx(rest.score_samples(rows(50)[row][None])[0], rel=1e-6)


def test_it_works_in_pipelines_and_copies() -> None:
    line = make_pipeline(StandardScaler(), ExactNeighbors(ratio=0.5)).fit(rows())
    expected = line.score_samples(rows(9, seed=1))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(line)).score_samples(rows(9, seed=1)), expected)
    np.testing.assert_array_equal(clone(line).fit(rows()).score_samples(rows(9, seed=1)), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_neighbors": 0}, r"^n_neighbors: expected 1 to"),
        ({"n_neighbors": 2.5}, r"^n_neighbors: expected an integer"),
        ({"ratio": 0}, r"^ratio: expected more than 0"),
        ({"false_alarm_rate": 1.0}, r"^false_alarm_rate: expected"),
        ({"false_alarm_rate": 1e-9}, r"^false_alarm_rate: expected at least .* held-out rows"),
        ({"bank_precision": "short"}, r"^bank_precision: expected one of"),
        ({"start": 400}, r"^start: expected 0 to 399"),
    ],
)
def test_bad_arguments_are_told_in_a_line(arguments: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ExactNeighbors(**arguments).fit(rows())


def test_more_neighbors_than_rows_are_refused_but_scores_take_what_there_is() -> None:
    made = ExactNeighbors(9).fit(rows(5))
    assert made.score_samples(rows(2)).shape == (2,)
    with pytest.raises(InputError, match=r"^n_neighbors: expected 1 to 5 "):
        made.kneighbors(rows(2))
    with pytest.raises(InputError, match=r"^n_neighbors: expected 1 to 4 "):
        made.kneighbors()
    with pytest.raises(NotFittedError):
        ExactNeighbors().kneighbors(rows(2))


def test_a_missing_scikit_learn_is_told_in_a_line() -> None:
    code = "import sys; sys.modules['sklearn.base'] = None; import mmad_bank.integrations.sklearn"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].endswith(
        "an estimator of scikit-learn needs the package 'scikit-learn>=1.6': pip install 'mmad-bank[sklearn]'"
    )
