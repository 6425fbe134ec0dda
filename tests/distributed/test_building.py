"""Banks built and extended over Ray workers: those of one process, byte for byte, also where workers die."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mmad_bank.bank.dumps
from mmad_bank import MemoryBank, distributed, ops
from mmad_bank.bank.dumps import open_dump
from mmad_bank.distributed.crew import RayCrew
from mmad_bank.distributed.selection import Selection
from mmad_bank.distributed.shares import Cut, Share
from mmad_bank.distributed.workers import WorkerProcess
from mmad_bank.errors import InputError


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 50 rows of 24 values: both workers get several."""
    monkeypatch.setattr(mmad_bank.bank.dumps, "_BLOCK_BYTES", 50 * 24 * 4)


def features(seed: int = 0, images: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((images, 100, 24), dtype=np.float32)


def saved(bank: MemoryBank, path: Path) -> bytes:
    bank.save(path)
    return path.read_bytes()


@pytest.mark.usefixtures("cluster", "small_blocks")
def test_a_bank_of_files_is_the_local_one(tmp_path: Path) -> None:
    """Maps are read by whole images, projected and standardized by the workers, and kept in a scratch folder."""
    maps, scratch = tmp_path / "maps", tmp_path / "scratch"
    maps.mkdir()
    scratch.mkdir()
    for number, image in enumerate(features().reshape(6, 1, 10, 10, 24)):
        np.save(maps / f"{number}.npy", image)
    asked: dict[str, Any] = {"projection_dim": 9, "standardize": True, "seed": 4, "start": 17, "layout": "bhwc"}
    local = MemoryBank.build(maps, 0.2, **asked)
    stages: set[str] = set()
    bank = distributed.build(
        maps, 0.2, workers=2, scratch=scratch, progress=lambda stage, *_: stages.add(stage), **asked
    )
    assert saved(bank, tmp_path / "a") == saved(local, tmp_path / "b")
    assert bank.provenance(range(9)) == local.provenance(range(9))
    assert stages == {"Starting workers", "Reading features", "Selecting the coreset"}
    assert list(scratch.iterdir()) == []

    new = torch.from_numpy(features(1, 2) * 1.5).half()  # widened by whoever sends it
    added = local.extend(new, radius=local.radius * 0.9)
    with distributed.selecting_over(2) as selector:
        assert bank.extend(new, radius=bank.radius * 0.9, selector=selector) == added > 0
    assert saved(bank, tmp_path / "a") == saved(local, tmp_path / "b")
    work = selector.work
    assert work is not None
    assert (work.workers, work.replaced, len(work.memory)) == (2, 0, 2)
    assert min(one.peak for one in work.memory) >= min(one.own for one in work.memory) > 0


@pytest.mark.usefixtures("cluster", "small_blocks")
def test_relative_paths_are_those_of_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray has been started in another folder, as a cluster may have been that is joined."""
    monkeypatch.chdir(tmp_path)
    np.save("rows.npy", features())
    Path("scratch").mkdir()
    bank = distributed.build("rows.npy", workers=2, scratch="scratch")
    assert saved(bank, tmp_path / "a") == saved(MemoryBank.build("rows.npy"), tmp_path / "b")


@pytest.mark.usefixtures("cluster")
def test_workers_that_were_let_go_select_no_more() -> None:
    with distributed.selecting_over(2) as selector:
        pass
    with pytest.raises(InputError, match=r"^selector: expected one that is used inside its `with"):
        MemoryBank.build(features(), selector=selector)


@pytest.mark.usefixtures("cluster")
def test_more_workers_than_the_cluster_has_are_refused() -> None:
    with pytest.raises(InputError, match=r"^workers: expected at most 2, the CPUs of the Ray cluster, found 3$"):
        distributed.build(features(), workers=3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.usefixtures("cluster")
def test_gpus_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^workers: expected at most 0, the GPUs of the Ray cluster, found 2$"):
        distributed.build(features(), workers=2, worker_device="cuda")
    with pytest.raises(InputError, match=r"^worker_device: expected cpu or cuda, of which each takes one, found 'mps'"):
        distributed.build(features(), workers=2, worker_device="mps")
    with pytest.raises(InputError, match=r"^scratch: expected workers on CPUs, found cuda$"):
        distributed.build(features(), workers=2, worker_device="cuda", scratch=tmp_path)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.gpu
@pytest.mark.usefixtures("cluster", "small_blocks")
def test_a_bank_of_workers_with_gpus_is_the_local_one(tmp_path: Path) -> None:
    bank = distributed.build(features(), 0.2, workers=1, worker_device="cuda")
    assert saved(bank, tmp_path / "a") == saved(MemoryBank.build(features(), 0.2), tmp_path / "b")


@pytest.mark.usefixtures("cluster", "small_blocks")
def test_what_a_worker_finds_is_said_as_in_one_process(tmp_path: Path) -> None:
    rows = features()
    rows[4, 1, 3] = np.inf
    np.save(tmp_path / "rows.npy", rows)
    with pytest.raises(InputError) as local:
        MemoryBank.build(tmp_path / "rows.npy")
    with pytest.raises(InputError) as spread:
        distributed.build(tmp_path / "rows.npy", workers=2)
    assert str(spread.value) == str(local.value)


class Dying(RayCrew):
    """Ends some workers before they come to some requests."""

    plan: dict[int, int] = {}  # noqa: RUF012 (the worker, by the number of the request)
    asked = 0

    def ask(self, method: str, calls: Any, catch_up: Any) -> list[Any]:
        self.asked += 1
        victim = self.plan.get(self.asked)
        if victim is not None:
            self._actors[victim].__ray_call__.remote(lambda worker: os._exit(1))
        return super().ask(method, calls, catch_up)


@pytest.mark.usefixtures("small_blocks")
def test_rows_are_the_same_where_workers_die(cluster: Any, tmp_path: Path) -> None:
    """One dies while it reads, one in the middle of the selection."""
    rows = torch.from_numpy(features().reshape(600, 24))
    np.save(tmp_path / "rows.npy", rows.numpy())
    cut = Cut(open_dump(tmp_path / "rows.npy"), 2)
    with Dying(cluster, cut.shares()) as crew:
        crew.plan = {2: 0, 9: 1}
        selection = Selection(crew, cut, lambda *_: None)
        selection.read()
        found = selection.run(120)
        assert torch.equal(selection.take(found.rows), rows[found.rows])
        assert crew.replaced == 2
        assert crew.asked > 9
    assert found.rows.tolist() == ops.k_center_greedy(rows, 120).tolist()


def test_no_actors_are_left(cluster: Any) -> None:
    """Whatever stops the work: here a progress that is interrupted, as by Ctrl-C."""

    def interrupt(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distributed.build(features(), workers=2, progress=interrupt)
    end = time.monotonic() + 20
    while cluster.available_resources().get("CPU", 0) < 2:
        assert time.monotonic() < end, cluster.available_resources()
        time.sleep(0.1)


def test_workers_take_the_threads_that_they_are_given(cluster: Any) -> None:
    """Whatever the environment says: theirs is that of the program, which may have all cores."""

    class Asked(WorkerProcess):
        def n_threads(self) -> int:
            return torch.get_num_threads()

    environment = {"env_vars": {"OMP_NUM_THREADS": "3"}}
    actor = cluster.remote(runtime_env=environment)(Asked).remote(Share([(0, 1)], rows=np.zeros((1, 2), np.float32)))
    assert cluster.get(actor.n_threads.remote()) == 1
    cluster.kill(actor)
