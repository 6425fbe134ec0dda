"""Orthogonal matching pursuit, many at once, against scikit-learn's one after the other."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn.decomposition import sparse_encode
from torch import Tensor

from mmad_bank.errors import InputError
from mmad_bank.methods.shape_guided import reconstruct


def drawn(n: int, k: int, dim: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dim, generator=generator), torch.randn(n, k, dim, generator=generator)


@pytest.mark.parametrize(("k", "n_atoms"), [(10, 3), (5, 3), (4, 1), (2, 3)])
def test_it_is_what_scikit_learn_finds(k: int, n_atoms: int) -> None:
    vectors, atoms = drawn(20, k, 16)
    found = reconstruct(vectors, atoms, n_atoms)
    for own, dictionary, one in zip(vectors.double().numpy(), atoms.double().numpy(), found, strict=True):
        code = sparse_encode(own[None], dictionary, algorithm="omp", n_nonzero_coefs=min(n_atoms, k))
        assert np.count_nonzero(code) == min(n_atoms, k)
        np.testing.assert_allclose(one.numpy(), (code @ dictionary)[0], rtol=1e-5, atol=1e-6)


def test_equal_and_zero_atoms_do_no_harm() -> None:
    vectors, atoms = drawn(8, 5, 6, seed=1)
    atoms[:, 1:4] = atoms[:, :1]
    found = reconstruct(vectors, atoms, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn says that it ends early
        for own, dictionary, one in zip(vectors.double().numpy(), atoms.double().numpy(), found, strict=True):
            code = sparse_encode(own[None], dictionary, algorithm="omp", n_nonzero_coefs=3)
            np.testing.assert_allclose(one.numpy(), (code @ dictionary)[0], rtol=1e-5, atol=1e-6)
    assert reconstruct(vectors, torch.zeros(8, 5, 6)).eq(0).all()


def test_a_vector_that_is_a_sum_of_atoms_is_found_again() -> None:
    _, atoms = drawn(6, 4, 12, seed=2)
    atoms = torch.linalg.qr(atoms.transpose(1, 2)).Q.transpose(1, 2)  # orthonormal: no other atom comes first
    vectors = 2 * atoms[:, 1] - 3 * atoms[:, 3]
    torch.testing.assert_close(reconstruct(vectors, atoms, 2), vectors)
    torch.testing.assert_close(reconstruct(vectors, atoms, 1), -3 * atoms[:, 3])


@pytest.mark.parametrize(
    ("vectors", "atoms", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 4, 5), r"atoms: expected \(Q, k, D\) .* found \(2, 4, 5\) for \(2, 3\)"),
        (torch.zeros(2, 3), torch.zeros(1, 4, 3), r"atoms: expected \(Q, k, D\)"),
        (torch.zeros(3), torch.zeros(2, 4, 3), r"atoms: expected \(Q, k, D\)"),
    ],
)
def test_shapes_that_do_not_fit(vectors: Tensor, atoms: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        reconstruct(vectors, atoms)
    with pytest.raises(InputError, match="n_atoms: expected 1 to"):
        reconstruct(torch.zeros(2, 3), torch.zeros(2, 4, 3), 0)
