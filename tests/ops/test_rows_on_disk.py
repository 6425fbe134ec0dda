"""Shards whose rows are in a mapped file: the same answers, whatever of it memory and the system's cache hold."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
import torch
from benchmark_modules import importing
from shard_loop import select_over
from torch import Tensor

from mmad_bank import ops
from mmad_bank.errors import InputError
from mmad_bank.ops.k_center_shards import ON_DISK, KCenterCoordinator, KCenterShard


class OnDisk:
    """Rows in a file that is mapped, as workers keep them."""

    def __init__(self, features: Tensor, path: Path) -> None:
        path.write_bytes(features.numpy().tobytes())
        self.file: IO[bytes] = path.open("rb")
        self._mapped = mmap.mmap(self.file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
        self.rows = torch.frombuffer(self._mapped, dtype=torch.float32).view(features.shape)

    def forget(self) -> None:
        """Have the system's cache let go of the file."""
        os.fsync(self.file.fileno())
        self._mapped.madvise(mmap.MADV_DONTNEED)
        os.posix_fadvise(self.file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def share_in_cache(self) -> float:
        """Return how much of the file the system's cache holds."""
        with importing() as load:
            share = load("parts.process").cached_share(Path(self.file.name))
        assert share is not None
        return float(share)


@pytest.fixture(scope="module")
def features() -> Tensor:
    """Return rows of more than one part, in few directions for the most: both levels of the screen are on the disk."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(8500, 1536, generator=generator) * 0.98 ** torch.arange(1536.0)


@pytest.fixture
def on_disk(features: Tensor, tmp_path: Path) -> Iterator[OnDisk]:
    """Yield the rows in a file that the system's cache does not hold, if that can be had."""
    pytest.importorskip("fcntl")
    stored = OnDisk(features, tmp_path / "rows")
    stored.forget()
    yield stored
    stored.file.close()


@pytest.mark.parametrize("known", [True, False], ids=["file known", "file unknown"])
@pytest.mark.parametrize("cached", [True, False], ids=["in the cache", "on the disk"])
def test_the_picks_are_those_from_memory(
    features: Tensor, on_disk: OnDisk, tmp_path: Path, known: bool, cached: bool
) -> None:
    expected = ops.k_center_greedy(features, 300, return_radius=True)
    file = on_disk.file.fileno() if known else None
    shard = KCenterShard(on_disk.rows, n_centers=300, scratch=tmp_path, file=file)
    if not cached:
        on_disk.forget()
    found = select_over([shard], features, KCenterCoordinator(len(features), 300, **ON_DISK))
    assert torch.equal(found.rows, expected.indices)
    assert found.covering_radius == expected.covering_radius
    assert torch.equal(on_disk.rows, features)
    del shard
    on_disk.forget()
    assert torch.equal(on_disk.rows, features)


def test_many_rows_are_read_past_the_cache_and_few_are_not(features: Tensor, on_disk: OnDisk, tmp_path: Path) -> None:
    shard = KCenterShard(on_disk.rows, n_centers=2, scratch=tmp_path, file=on_disk.file.fileno())
    on_disk.forget()
    if on_disk.share_in_cache() > 0.1:
        pytest.skip("files are in memory here")
    shard.meet(features[:1], own=torch.tensor([0]))
    assert shard.rise(0.0, 3).above == len(features) - 1
    assert on_disk.share_in_cache() < 0.1
    near = features[5] + 1e-3
    shard.meet(near[None])
    far = float(((features - features[0]).double() ** 2).sum(1).sort().values[-4])
    shard.rise(far * 0.999999, 3)
    assert 0 < on_disk.share_in_cache() < 0.1


def test_another_file_than_the_mapped_one_is_refused(features: Tensor, on_disk: OnDisk, tmp_path: Path) -> None:
    file = on_disk.file.fileno()
    with pytest.raises(InputError, match=r"^file: expected the one that the features are mapped from, found other b"):
        KCenterShard(on_disk.rows[4096:], n_centers=1, scratch=tmp_path, file=file)
    on_disk.file.close()
    with pytest.raises(InputError, match=r"^file: cannot be read \(Bad file descriptor\)"):
        KCenterShard(on_disk.rows, n_centers=1, scratch=tmp_path, file=file)
