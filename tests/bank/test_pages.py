"""Mapped vectors: their memory is given back, their contents are not lost, and other memory is left alone."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from mmad_bank import MemoryBank
from mmad_bank.bank._pages import MappedPages

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
ROWS, DIM = 4000, 256


def draw(rows: int, rank: int, seed: int) -> torch.Tensor:
    """White noise, or rows near a plane: with these the search has a coarse level."""
    noise = torch.randn(rows, DIM, generator=torch.Generator().manual_seed(seed))
    plane = torch.randn(DIM, rank, generator=torch.Generator().manual_seed(9))
    return noise if rank == DIM else noise[:, :rank] @ plane.T + 0.1 * noise


@pytest.fixture(params=[DIM, 20])
def rank(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture
def saved(tmp_path: Path, rank: int) -> Path:
    path = tmp_path / "bank.safetensors"
    MemoryBank(draw(ROWS, rank, seed=0)).save(path)
    return path


def resident(path: Path) -> int:
    """Bytes of a mapped file that are in this process's memory."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            inside = line.endswith(str(path))
        elif inside and first == "Rss:":
            total += int(line.split()[1]) * 1024
    return total


def test_the_first_search_leaves_little_of_a_mapped_bank_in_memory(saved: Path) -> None:
    bank = MemoryBank.load(saved, mapped=True)
    before = bank.vectors.clone()
    assert resident(saved) > ROWS * DIM * 3, "reading the vectors brings them in"
    bank.search_index.gather(torch.tensor([7]))
    assert resident(saved) < ROWS * DIM
    assert torch.equal(bank.vectors, before)


def test_compact_banks_keep_nothing_between_searches_and_find_the_same(saved: Path, rank: int) -> None:
    queries = draw(500, rank, seed=1)
    held, found = {}, {}
    for precision in ("auto", "int8"):
        bank = MemoryBank.load(saved, bank_precision=precision, mapped=True)
        found[precision] = bank.search(queries, 3)
        held[precision] = resident(saved)
        again = bank.search(queries, 3)
        assert all(torch.equal(a, b) for a, b in zip(found[precision], again, strict=True))
        del bank
    assert all(torch.equal(a, b) for a, b in zip(found["auto"], found["int8"], strict=True))
    assert held["int8"] < ROWS * DIM < held["auto"]


def test_memory_that_is_no_file_keeps_its_contents() -> None:
    numbers = torch.arange(100_000.0)
    MappedPages(numbers).release()
    assert torch.equal(numbers, torch.arange(100_000.0))
    MappedPages(numbers[:0]).release()
