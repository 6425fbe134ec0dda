"""Where the ops compute: names of devices, what fits on one, and rows that stay in host memory."""

from __future__ import annotations

import pytest
import torch

from mmad_bank import ops
from mmad_bank.errors import InputError
from mmad_bank.ops import _dispatch

NOT_THERE = "no_such_device"


def test_a_device_by_its_full_name() -> None:
    assert ops.resolve_device("cpu") == torch.device("cpu")
    assert ops.resolve_device(torch.device("meta")) == torch.device("meta")


@pytest.mark.parametrize("device", [NOT_THERE, "cuda:99", "meta:x"])
def test_a_device_that_cannot_be_used_is_named(device: str) -> None:
    rows = torch.rand(9, 3)
    for refuse in (
        lambda: ops.resolve_device(device),
        lambda: ops.SearchIndex(rows, device=device),
        lambda: ops.k_center_greedy(rows, 3, device=device),
        lambda: ops.extend_coreset(rows, rows[:2], device=device),
    ):
        with pytest.raises(InputError, match=rf"device: '{device}' cannot be used \(.+\)"):
            refuse()


def test_rows_on_another_device_are_refused() -> None:
    rows = torch.empty(9, 3, device="meta")
    with pytest.raises(InputError, match="features: expected a tensor on cpu or in host memory, found meta"):
        ops.k_center_greedy(rows, 3, device="cpu")
    with pytest.raises(InputError, match="bank: expected a tensor on cpu or in host memory, found meta"):
        ops.SearchIndex(rows, device="cpu")


def test_the_device_of_the_rows_is_the_default() -> None:
    rows = torch.rand(30, 4)
    assert torch.equal(ops.k_center_greedy(rows, 5, device="cpu"), ops.k_center_greedy(rows, 5))
    index = ops.SearchIndex(rows, device="cpu")
    assert index.device == torch.device("cpu")
    assert torch.equal(index.gather(torch.tensor([[3, 0]])), rows[[3, 0]][None])
    with pytest.raises(InputError, match=r"rows: expected int64 on cpu, found torch\.float32 on cpu"):
        index.gather(torch.zeros(2))


def test_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """6 bytes per value and 170 per row to select from; 6 per value and 32 per row that is selected."""
    needed = 1000 * (6 * 64 + 170) + 100 * (6 * 64 + 32)
    device = torch.device("cuda")
    monkeypatch.setattr(_dispatch, "free_memory", lambda _: needed)
    assert ops.selection_fits(1000, 64, 100, device)
    assert not ops.selection_fits(1000, 64, 101, device)
    assert ops.selection_fits(10**9, 1000, 10**8, torch.device("cpu"))


def test_free_memory_counts_what_pytorch_holds_in_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000, 4000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 600)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 500)
    assert _dispatch.free_memory(torch.device("cuda")) == 990


def test_other_devices_take_the_rows_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no kernels run, PyTorch selects on the device; the results come back to the rows."""
    seen: list[torch.device] = []

    def select(rows: torch.Tensor, *_: object) -> tuple[torch.Tensor, torch.Tensor, float]:
        seen.append(rows.device)
        return torch.tensor([4, 2]), torch.tensor([1.0, 0.5]), 0.25

    monkeypatch.setattr("mmad_bank.ops._torch.k_center_greedy.select", select)
    coreset = ops.k_center_greedy(torch.rand(9, 3), 2, device="meta", return_radius=True)
    assert seen == [torch.device("meta")]
    assert coreset.indices.tolist() == [4, 2]
    assert coreset.covering_radius == 0.25
