"""Vectors rebuilt from a few of their neighbors: orthogonal matching pursuit, many small problems at once."""

from __future__ import annotations

import torch
from torch import Tensor

from mmad_bank._internal.checks import check_index
from mmad_bank.errors import InputError

_DEPENDENT = (
    1e-10  # of a Gram matrix's largest eigenvalue: directions below it are those of atoms that are combinations
)


def reconstruct(vectors: Tensor, atoms: Tensor, n_atoms: int = 3) -> Tensor:
    """Return the sums of a few weighted atoms that come nearest to vectors (Pati et al. 1993).

    Orthogonal matching pursuit, as Shape-guided (Chu et al. 2023, section 3.3) has it of scikit-learn: the atom whose
    product with what is left is largest is taken, and the vector is projected onto the atoms taken so far. Atoms are
    not normalized. The Gram matrices are inverted by their eigenvalues, so that equal atoms, which a bank of patches
    that overlap has, do no harm.

    Args:
        vectors: (Q, D).
        atoms: (Q, k, D), those of each vector.
        n_atoms: Largest number of atoms in a sum; 3 in the published code.

    Returns:
        (Q, D) float32, on the vectors' device.

    Raises:
        InputError: The shapes do not fit, or ``n_atoms`` is out of range.

    Example:
        >>> atoms = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.9, 0.1, 0.0]]])
        >>> reconstruct(torch.tensor([[2.0, 1.0, 5.0]]), atoms, n_atoms=2)
        tensor([[2., 1., 0.]])
    """
    if vectors.ndim != 2 or atoms.ndim != 3 or (len(vectors), vectors.shape[1]) != (len(atoms), atoms.shape[2]):
        raise InputError(
            f"atoms: expected (Q, k, D) for vectors (Q, D), found {tuple(atoms.shape)} for {tuple(vectors.shape)}"
        )
    check_index(n_atoms, "n_atoms", 1, 2**31 - 1, "atoms in a sum")
    a, x = atoms.double(), vectors.double()[:, :, None]
    products, gram = a @ x, a @ a.transpose(1, 2)  # (Q, k, 1), (Q, k, k)
    taken = torch.zeros(products.shape[:2], dtype=torch.bool, device=a.device)
    left = products
    for _ in range(min(n_atoms, a.shape[1])):
        best = left[..., 0].abs().masked_fill(taken, -1).argmax(1, keepdim=True)
        taken.scatter_(1, best, value=True)
        weights = _projection(gram, products, taken)
        left = products - gram @ weights
    return (a.transpose(1, 2) @ weights)[..., 0].float()


def _projection(gram: Tensor, products: Tensor, taken: Tensor) -> Tensor:
    """Return the weights (Q, k, 1) of the projections onto the atoms that are taken; those of others are zero."""
    both = taken[:, :, None] & taken[:, None]
    inverse = torch.linalg.pinv(gram.masked_fill(~both, 0.0), rtol=_DEPENDENT, hermitian=True)
    return inverse @ products.masked_fill(~taken[..., None], 0.0)
