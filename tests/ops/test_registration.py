"""The custom operators: PyTorch's own checks, and the answers of the public functions, compiled or not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mmad_bank import ops
from mmad_bank.errors import InputError
from mmad_bank.ops import _cuda, _registration

GPU = pytest.mark.skipif(not _cuda.available("cuda"), reason="needs a CUDA device and the compiled kernels")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, GPU])]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


CASES: dict[str, tuple[Any, ...]] = {
    "knn": (random(7, 12), random(50, 12, seed=1), 3),
    "k_center_greedy": (random(60, 5), 9, 2),
    "farthest_point_sample": (random(2, 40, 3), 8, 1),
    "knn_group": (random(40, 3), random(6, 3, seed=1), 4),
    "knn_group of a batch": (random(2, 40, 3), random(2, 6, 3, seed=1), 4),
    "interpolate_features": (random(9, 3), random(6, 3, seed=1), random(6, 10, seed=2), 3, 2.0, 1e-8),
}


def on(device: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.to(device) if isinstance(value, Tensor) else value for value in arguments)


def operator(name: str) -> Any:
    return getattr(torch.ops.mmad_bank, name.split(maxsplit=1)[0])


def public(name: str, arguments: tuple[Any, ...]) -> Any:
    if name == "k_center_greedy" or name == "farthest_point_sample":
        return getattr(ops, name)(*arguments[:2], start=arguments[2])
    if name == "interpolate_features":
        return ops.interpolate_features(*arguments[:3], k=arguments[3], power=arguments[4], eps=arguments[5])
    return getattr(ops, name.split(maxsplit=1)[0])(*arguments)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CASES)
def test_opcheck(name: str, device: str) -> None:
    torch.library.opcheck(operator(name).default, on(device, CASES[name]))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CASES)
def test_operator_is_the_public_function(name: str, device: str) -> None:
    arguments = on(device, CASES[name])
    found = operator(name)(*arguments)
    expected = public(name, arguments)
    for a, b in zip(*((x if isinstance(x, tuple) else (x,)) for x in (found, expected)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("device", DEVICES)
def test_compiles_without_a_break(device: str) -> None:
    queries, bank, _ = on(device, CASES["knn"])

    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def largest(rows: Tensor) -> Tensor:
        return torch.ops.mmad_bank.knn(rows * 2, bank, 2)[0].max()

    assert largest(queries) == ops.knn(queries * 2, bank, 2)[0].max()


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("knn", (random(7, 12), random(50, 11), 3), "queries: expected 11 columns"),
        ("knn", (random(7, 12), random(50, 12), 51), "k: expected"),
        ("knn", (random(7, 12).int(), random(50, 12), 1), "queries: expected"),
        ("farthest_point_sample", (random(40, 3), 8, 1), "points: expected"),
        ("farthest_point_sample", (random(2, 40, 3), 41, 1), "n_select: expected"),
        ("farthest_point_sample", (random(2, 40, 3), 8, 40), "start: expected"),
        ("knn_group", (random(40, 2), random(6, 3), 4), "points: expected 3 columns"),
        ("knn_group", (random(40, 3), random(6, 3), 0), "k: expected"),
        ("interpolate_features", (random(9, 3), random(6, 3), random(5, 8), 3, 2.0, 1e-8), "features: expected 6"),
        ("interpolate_features", (random(9, 3), random(6, 3), random(6, 10), 3, 9.0, 1e-8), "power: expected"),
    ],
)
def test_what_the_host_knows_is_checked_before_the_kernels(
    name: str, arguments: tuple[Any, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device with kernels the operators skip the checks that would wait for it, and only those."""
    monkeypatch.setattr(_registration, "_native", lambda tensor: True)
    with pytest.raises(InputError, match=message):
        getattr(torch.ops.mmad_bank, name)(*arguments)
