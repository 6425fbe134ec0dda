"""Page locks on host memory: how long they are held, and that giving them back breaks no capture of a CUDA graph."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

import pytest
import torch

from mmad_bank.errors import InputError
from mmad_bank.ops._cuda import host_rows
from mmad_bank.ops._cuda.host_rows import page_locked


class Device:
    """Stands for a CUDA device and the native core: what was locked, and what was waited for."""

    name = torch.device("cuda", 0)

    def __init__(self) -> None:
        self.locked: set[int] = set()
        self.events: list[str] = []
        self.capturing = False
        self.refused = 0  # locks that the system does not allow

    def page_lock(self, address: int, n_bytes: int) -> bool:
        if self.refused > 0:
            self.refused -= 1
            return False
        self.locked.add(address)
        return True

    def page_unlock(self, address: int) -> None:
        assert not self.capturing
        self.events.append("unlock")
        self.locked.remove(address)

    def synchronize(self, device: torch.device) -> None:
        assert not self.capturing, "a capture would end with an error"
        assert device == self.name
        self.events.append("wait")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    gc.collect()
    device = Device()
    monkeypatch.setattr(host_rows, "_leaving", type(host_rows._leaving)())
    monkeypatch.setattr(torch.cuda, "synchronize", device.synchronize)
    monkeypatch.setattr(torch.cuda, "device", lambda name: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: device.capturing)
    return device


def test_the_lock_goes_when_the_device_has_done_its_work(device: Device) -> None:
    rows = torch.rand(8, 4)
    first, one = page_locked(rows, device.name, device)
    second, other = page_locked(rows[2:], device.name, device)
    assert first is rows
    assert other is one  # one storage
    assert second.data_ptr() == rows[2:].data_ptr()
    del one
    assert device.events == []
    del other
    assert device.events == ["wait", "unlock"]
    assert device.locked == set()


def test_nobody_waits_while_a_graph_is_captured(device: Device) -> None:
    """Neither for a lock that goes during the capture nor for one that waits from earlier on."""
    _, first = page_locked(torch.rand(8, 4), device.name, device)
    _, second = page_locked(torch.rand(8, 4), device.name, device)
    device.capturing = True
    del first, second
    assert device.events == []
    assert len(device.locked) == 2
    device.capturing = False
    _, third = page_locked(torch.rand(8, 4), device.name, device)
    assert device.events == ["wait", "unlock"] * 2
    assert len(device.locked) == 1
    del third
    assert device.locked == set()


def test_what_waited_goes_with_the_next_lock_that_goes(device: Device) -> None:
    _, first = page_locked(torch.rand(8, 4), device.name, device)
    _, second = page_locked(torch.rand(8, 4), device.name, device)
    device.capturing = True
    del first
    device.capturing = False
    del second
    assert device.locked == set()


def test_a_storage_that_waits_is_kept_and_can_be_locked_anew(device: Device) -> None:
    rows = torch.rand(8, 4)
    _, lock = page_locked(rows, device.name, device)
    device.capturing = True
    del lock
    device.capturing = False
    _, again = page_locked(rows, device.name, device)
    assert device.events == ["wait", "unlock"]
    assert device.locked == {rows.untyped_storage().data_ptr()}
    del again


def test_page_locked_memory_of_others_is_held_until_the_device_is_done(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's allocator for such memory does not know of the kernels that read it."""
    rows = torch.rand(8, 4)
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda tensor: True)
    same, lock = page_locked(rows, device.name, device)
    assert same is rows
    assert device.locked == set()
    del lock
    assert device.events == ["wait"]


def test_memory_that_cannot_be_locked_is_copied(device: Device) -> None:
    rows = torch.rand(8, 4)
    device.refused = 1
    copy, lock = page_locked(rows, device.name, device)
    assert copy.data_ptr() != rows.data_ptr()
    assert torch.equal(copy, rows)
    del lock
    device.refused = 2
    with pytest.raises(InputError, match="features: 128 bytes of host memory cannot be page-locked"):
        page_locked(rows, device.name, device)
