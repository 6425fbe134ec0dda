"""The way from patches to the anomaly map on a CUDA device, traced with fake tensors: nothing goes back to the host."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from mmad_bank import MemoryBank, scoring


class NoCopies(TorchDispatchMode):
    """Refuses copies between the host and the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            devices = {value.device.type for value in (*args, result) if isinstance(value, Tensor)}
            assert len(devices) == 1, f"{func} between {devices}"
        return result


class FakeEngine:
    """Shapes and devices of a search."""

    def __init__(self, vectors: Tensor) -> None:
        self.vectors = vectors

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        shape = len(queries), k
        return queries.new_empty(shape), queries.new_empty(shape, dtype=torch.int64)

    def gather(self, rows: Tensor) -> Tensor:
        return torch.empty(*rows.shape, self.vectors.shape[1], device=rows.device)

    def neighbors(self, rows: Tensor, k: int) -> Tensor:
        return self.search(self.gather(rows), k)[1]


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorMode]:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)  # leaves the check of the patches out
    scoring._enlarge_and_blur_on.cache_clear()
    with FakeTensorMode() as mode:
        yield mode
    scoring._enlarge_and_blur_on.cache_clear()


def fake_bank(vectors_on: str) -> MemoryBank:
    vectors = torch.empty(50, 12, device="cuda" if vectors_on == "device" else "cpu")
    bank = MemoryBank.__new__(MemoryBank)
    bank._set(vectors, torch.empty(50, dtype=torch.int64), "exact", "auto")
    bank._device = torch.device("cuda", 0)
    bank._index = FakeEngine(vectors)  # type: ignore[assignment]
    return bank


@pytest.mark.parametrize("vectors_on", ["device", "host"])
@pytest.mark.parametrize("reweight", ["m3dm", "patchcore", "max", "top"])
def test_from_patches_to_the_map(traced: FakeTensorMode, reweight: Any, vectors_on: str) -> None:
    bank = fake_bank(vectors_on)
    patches = torch.empty(2, 28 * 28, 12, device="cuda")
    scoring.anomaly_map(torch.empty(2, 28 * 28, device="cuda"), (28, 28), (224, 224))  # puts its matrices there
    with NoCopies():
        scores = bank.score(patches, reweight=reweight)
        maps = scoring.anomaly_map(scores.patch, (28, 28), (224, 224))
    assert (scores.patch.shape, scores.image.shape, maps.shape) == ((2, 784), (2,), (2, 224, 224))
    assert {value.device.type for value in (*scores, maps)} == {"cuda"}


def test_the_trace_sees_what_goes_back(traced: FakeTensorMode) -> None:
    values = torch.empty(5, device="cuda")
    with pytest.raises(AssertionError, match="between"), NoCopies():
        values.cpu()
    with pytest.raises(DynamicOutputShapeException):
        values[values > 0]
