"""A bank in shards answers as the bank in one process does, to the bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from mmad_bank import MemoryBank
from mmad_bank.bank import file_format
from mmad_bank.distributed import ShardedBank, sharded_bank
from mmad_bank.distributed.sharded_bank import Shard, ShardedIndex, checksum_of, cut
from mmad_bank.errors import FormatError, InputError
from mmad_bank.scoring import Reweight


def features(images: int, patches: int = 30, dim: int = 16, seed: int = 0) -> torch.Tensor:
    """Features of which every fifth is there twice, far apart: equal vectors lie in different shards."""
    made = torch.rand(images, patches, dim, generator=torch.Generator().manual_seed(seed))
    made[-1, ::5] = made[0, ::5]
    return made


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank that has what a bank can have, of 97 vectors: no number of shards divides them."""
    made = MemoryBank.build(features(10), size=97, standardize=True, extractor="some network", projection_dim=8)
    vectors = torch.cat([made.vectors[:90], made.vectors[:7]])  # the last are the first ones again
    bank = MemoryBank(vectors, standardization=made.standardization, extractor="some network")
    bank.calibrate(features(30, seed=1))
    path = tmp_path_factory.mktemp("bank") / "line.bank"
    bank.save(path)
    return path


@pytest.fixture(scope="module")
def sharded(cluster: Any, path: Path) -> Iterator[ShardedBank]:
    with ShardedBank.load(path, workers=3) as bank:
        assert bank.shards == [range(32), range(32, 64), range(64, 97)]
        yield bank


class Called:
    """A method of an actor that is an object of this process."""

    def __init__(self, method: Any) -> None:
        self.remote = method


class Actor:
    """A shard in this process."""

    def __init__(self, *arguments: Any) -> None:
        self._shard = Shard(*arguments, threads=torch.get_num_threads())

    def __getattr__(self, name: str) -> Called:
        return Called(getattr(self._shard, name))


IN_PROCESS = SimpleNamespace(
    put=lambda value: value,
    get=lambda answer: answer,
    exceptions=SimpleNamespace(RayTaskError=ZeroDivisionError, RayActorError=ZeroDivisionError),
)
"""Ray without processes, which take seconds to start."""


def in_process(path: Path, shards: int, precision: Any = "auto") -> ShardedBank:
    bank, known = MemoryBank.load(path), checksum_of(file_format.read(path))
    parts = cut(len(bank), shards)
    actors = [Actor(str(path), known, (own.start, own.stop), precision) for own in parts]
    index = ShardedIndex(IN_PROCESS, [actors], bank.vectors.__getitem__, (len(bank), bank.dim))
    return ShardedBank(bank, index, parts, ExitStack())


def check_equal(sharded: ShardedBank, bank: MemoryBank) -> None:
    patches = features(4, dim=bank.dim, seed=2)
    patches[0, :9] = bank.vectors[:9]
    queries = patches.view(-1, bank.dim)
    for k in (1, 3, 40, len(bank)):  # more than a shard has, and all
        for one, expected in zip(sharded.search(queries, k), bank.search(queries, k), strict=True):
            assert torch.equal(one, expected)
    for rule in get_args(Reweight):
        found, expected_scores = sharded.score(patches, reweight=rule), bank.score(patches, reweight=rule)
        assert found.rule == expected_scores.rule
        for one, expected in zip(found, expected_scores, strict=True):
            assert torch.equal(one, expected)
    found = sharded.score(patches, n_neighbors=60, divisor=10.0)
    assert torch.equal(found.image, bank.score(patches, n_neighbors=60, divisor=10.0).image)


def test_answers_are_those_of_one_bank(sharded: ShardedBank, path: Path) -> None:
    check_equal(sharded, MemoryBank.load(path))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 7])
def test_answers_of_any_number_of_processes_are_those_of_one_bank(cluster: Any, path: Path, workers: int) -> None:
    with ShardedBank.load(path, workers=workers) as sharded:
        check_equal(sharded, MemoryBank.load(path))


@pytest.mark.parametrize("precision", ["auto", "float32", "half", "int8"])
@pytest.mark.parametrize("shards", [1, 2, 3, 7, 97, 200])
def test_answers_depend_neither_on_shards_nor_on_precision(path: Path, shards: int, precision: str) -> None:
    check_equal(in_process(path, shards, precision), MemoryBank.load(path))


def test_the_check_tells_a_wrong_merge(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def joined(queries: Tensor, found: list[tuple[Tensor, Tensor]], k: int, gather: Any) -> tuple[Tensor, ...]:
        return tuple(torch.cat(part, 1)[:, :k] for part in zip(*found, strict=True))

    monkeypatch.setattr(sharded_bank, "merged", joined)
    with pytest.raises(AssertionError):
        check_equal(in_process(path, 3), MemoryBank.load(path))


def test_it_knows_what_the_bank_knows(path: Path) -> None:
    bank, sharded = MemoryBank.load(path), in_process(path, 2)
    assert (len(sharded), sharded.dim, sharded.extractor) == (97, 16, "some network")
    assert (sharded.sources, sharded.radius) == (bank.sources, bank.radius)
    assert sharded.provenance([3, 96]) == bank.provenance([3, 96])
    assert sharded.calibration is not None
    verdicts, expected = (one.judge(one.score(features(3, seed=3))) for one in (sharded, bank))
    assert torch.equal(verdicts.p_values, expected.p_values)
    assert torch.equal(verdicts.bad, expected.bad)
    assert sharded.nbytes > 0


def test_a_shard_reads_its_own_rows_only(path: Path) -> None:
    shard = Shard(str(path), checksum_of(file_format.read(path)), (90, 97), "float32", torch.get_num_threads())
    distances, rows = shard.search(features(1)[0].numpy(), 50)
    assert distances.shape == rows.shape == (30, 7)
    assert (rows.min(), rows.max()) == (90, 96)


def processes(sharded: ShardedBank, cluster: Any) -> list[int]:
    return cluster.get([one.process.remote() for shards in sharded._index._replicas for one in shards])


def test_a_shard_that_dies_is_loaded_again(sharded: ShardedBank, path: Path, cluster: Any) -> None:
    queries = features(2, seed=5).view(-1, 16)
    before = processes(sharded, cluster)
    os.kill(before[1], signal.SIGKILL)
    for one, expected in zip(sharded.search(queries, 4), MemoryBank.load(path).search(queries, 4), strict=True):
        assert torch.equal(one, expected)
    after = processes(sharded, cluster)
    assert [one != other for one, other in zip(before, after, strict=True)] == [False, True, False]


def test_copies_share_the_searches(cluster: Any, path: Path) -> None:
    bank, many = MemoryBank.load(path), [features(1, seed=seed).view(-1, 16) for seed in range(12)]
    with ShardedBank.load(path, workers=1, replicas=2) as sharded:
        index = sharded._index
        with ThreadPoolExecutor(4) as pool:
            for queries, (_, rows) in zip(many, pool.map(sharded.search, many), strict=True):
                assert torch.equal(rows, bank.search(queries)[1])
        assert index._busy == [0, 0]
        used: list[int] = []
        index._replicas = [[_Noting(number, used, one) for one in own] for number, own in enumerate(index._replicas)]
        index._busy = [1, 0]
        sharded.search(many[0])
        index._busy = [3, 4]
        sharded.search(many[0])
        assert used == [1, 0]


class _Noting:
    """A shard that notes when it is asked."""

    def __init__(self, number: int, used: list[int], shard: Any) -> None:
        self.search, self.number, self.used, self.shard = self, number, used, shard

    def remote(self, *arguments: Any) -> Any:
        self.used.append(self.number)
        return self.shard.search.remote(*arguments)


def test_bad_queries_are_refused_as_the_bank_refuses_them(path: Path) -> None:
    bad = features(1)[0]
    bad[7, 2] = torch.nan
    bank, sharded = MemoryBank.load(path), in_process(path, 2)
    for queries, k in ((bad, 1), (features(1)[0], 98), (features(1)[0], 0), (torch.rand(3, 5), 1)):
        said = []
        for one in (bank, sharded):
            with pytest.raises(InputError) as error:
                one.search(queries, k)
            said.append(str(error.value))
        assert said[0] == said[1]
    sharded.close()
    with pytest.raises(InputError, match=r"^queries: expected a sharded bank that is open, found a closed one$"):
        sharded.search(features(1)[0])


def test_arguments_are_checked(path: Path, tmp_path: Path) -> None:
    for arguments in ({"workers": 0}, {"replicas": 0}, {"threads": 0}):
        with pytest.raises(InputError, match=rf"^{next(iter(arguments))}: expected 1 to "):
            ShardedBank.load(path, **arguments)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^.*none\.bank: cannot be read "):
        ShardedBank.load(tmp_path / "none.bank")


def test_a_file_that_another_bank_has_replaced_is_refused(cluster: Any, tmp_path: Path) -> None:
    path = tmp_path / "line.bank"
    MemoryBank(features(3).view(-1, 16)).save(path)
    with ShardedBank.load(path, workers=1) as sharded:
        MemoryBank(features(3, seed=9).view(-1, 16)).save(path)
        with pytest.raises(FormatError, match=r"^.*line\.bank: expected the bank that was opened, found another one$"):
            sharded.search(features(1)[0])


def test_a_faiss_index_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    MemoryBank(features(3).view(-1, 16), index="HNSW8").save(tmp_path / "graph.bank")
    with pytest.raises(InputError, match=r"graph\.bank: expected a bank with the exact index, found 'HNSW8'$"):
        ShardedBank.load(tmp_path / "graph.bank")


@pytest.mark.slow
def test_without_a_cluster_one_is_started_and_ended(path: Path) -> None:
    program = (
        "import sys, ray, torch\n"
        "from mmad_bank.distributed import ShardedBank\n"
        "with ShardedBank.load(sys.argv[1], workers=2) as bank:\n"
        "    print(bank, len(bank.search(torch.rand(3, 16))[1]))\n"
        "print(ray.is_initialized())"
    )
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("ShardedBank(97 x 16, 2 shards) 3\nFalse\n", "")


def test_a_closed_bank_starts_no_ray_to_count_its_bytes(path: Path) -> None:
    sharded = in_process(path, 2)
    sharded.close()
    with pytest.raises(InputError, match=r"^nbytes: expected a sharded bank that is open"):
        _ = sharded.nbytes


def test_all_answers_are_fetched_before_the_first_error_is_raised(path: Path) -> None:
    fetched: list[int] = []

    def get(call: int) -> int:
        fetched.append(call)
        if call:
            raise InputError(f"queries: {call}")
        return call

    index = ShardedIndex(SimpleNamespace(get=get), [], torch.zeros(1).__getitem__, (1, 1))
    with pytest.raises(InputError, match="queries: 1"):
        index._answers([1, 0, 2])
    assert fetched == [1, 0, 2]
