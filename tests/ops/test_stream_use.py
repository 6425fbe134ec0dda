"""How lasting tensors are shared between streams; test_cuda_device.py has the same on real ones."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from mmad_bank.ops._cuda.device import StreamUse


class Stream:
    """Stands for a CUDA stream; ``log`` is shared by all of them."""

    def __init__(self, number: int, log: list[tuple[str, int]]) -> None:
        self.cuda_stream = number
        self.log = log

    def record_event(self) -> str:
        self.log.append(("record", self.cuda_stream))
        return f"made on {self.cuda_stream}"

    def wait_event(self, event: str) -> None:
        assert event == "made on 1"
        self.log.append(("wait", self.cuda_stream))


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    log: list[tuple[str, int]] = []
    state = SimpleNamespace(log=log, current=Stream(1, log), other=Stream(2, log), capturing=False)
    state.tensor = SimpleNamespace(is_cuda=True, record_stream=lambda s: log.append(("keep", s.cuda_stream)))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: state.current)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: state.capturing)
    return state


CUDA = torch.device("cuda", 0)


def test_another_stream_waits_once_and_keeps_the_memory(streams: SimpleNamespace) -> None:
    use = StreamUse([streams.tensor, torch.zeros(3)], CUDA)
    made = ["record", "wait", "keep"]  # to wait for one's own event is nothing
    assert [word for word, _ in streams.log] == made
    use.join()
    assert len(streams.log) == len(made)
    streams.current = streams.other
    use.join()
    use.join()
    assert streams.log[len(made) :] == [("wait", 2), ("keep", 2)]


def test_a_capture_neither_waits_nor_counts(streams: SimpleNamespace) -> None:
    """An event from outside must not be waited for in a capture; a stream that captured still has to wait later."""
    use = StreamUse([streams.tensor], CUDA)
    streams.log.clear()
    streams.current, streams.capturing = streams.other, True
    use.join()
    assert streams.log == []
    streams.capturing = False
    use.join()
    assert streams.log == [("wait", 2), ("keep", 2)]


def test_what_is_made_in_a_capture_records_no_event(streams: SimpleNamespace) -> None:
    streams.capturing = True
    use = StreamUse([streams.tensor], CUDA)
    use.join()
    assert streams.log == []


def test_tensors_in_host_memory_need_no_stream(streams: SimpleNamespace) -> None:
    use = StreamUse([torch.zeros(3)], CUDA)
    use.join()
    assert streams.log == []
