"""What becomes of workers that die: many deaths in no time, by a stand-in for Ray with actors in this process."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mmad_bank import ops
from mmad_bank.bank.dumps import open_dump
from mmad_bank.bank.projection import SparseProjection
from mmad_bank.distributed import workers
from mmad_bank.distributed.crew import RayCrew
from mmad_bank.distributed.selection import Selection
from mmad_bank.distributed.shares import Cut
from mmad_bank.errors import InputError, WorkersError
from mmad_bank.ops.k_center_shards import KCenterShard


class ActorError(Exception):
    """An actor is gone."""


class TaskError(Exception):
    """A method raised."""

    def __init__(self, cause: Exception) -> None:
        self.cause = cause


class StandIn:
    """The part of Ray that a crew uses. ``dies`` is asked before every call whether its actor dies of it."""

    def __init__(self, dies: Any = lambda: False) -> None:
        self.dies, self.alive, self.made = dies, 0, 0
        self.exceptions = SimpleNamespace(
            RayActorError=ActorError, OutOfMemoryError=ActorError, ObjectLostError=ActorError, RayTaskError=TaskError
        )

    def put(self, value: Any) -> Any:
        return value

    def get(self, promised: list[Any]) -> list[Any]:
        return [answer() for answer in promised]

    def kill(self, actor: Any) -> None:
        self.alive -= 1
        actor.dead = True

    def remote(self, **taken: Any) -> Any:
        self.taken = taken
        return lambda kind: SimpleNamespace(remote=lambda *given, **named: Actor(self, kind(*given, **named)))


class Actor:
    """A worker that may die before or after it has done what it was asked for."""

    def __init__(self, ray: StandIn, worker: Any) -> None:
        self._ray, self._worker, self.dead = ray, worker, False
        ray.alive += 1
        ray.made += 1

    def __getattr__(self, method: str) -> Any:
        def call(*arguments: Any) -> Any:
            before, after = self._ray.dies(), self._ray.dies()
            self.dead = self.dead or before
            answer, raised = None, None
            if not self.dead:
                try:
                    answer = getattr(self._worker, method)(*arguments)
                except InputError as error:
                    raised = error
            self.dead = self.dead or after
            gone = self.dead

            def promised() -> Any:
                if gone:
                    raise ActorError("the actor died\nin many lines")
                if raised is not None:
                    raise TaskError(raised)
                return answer

            return promised

        return SimpleNamespace(remote=call)


@pytest.mark.parametrize("seed", range(12))
def test_rows_are_the_same_however_many_workers_die(seed: int) -> None:
    draw, rows = random.Random(seed), torch.randn(400, 12, generator=torch.Generator().manual_seed(seed))
    projection, earlier = SparseProjection(12, 7, 0), torch.randn(20, 7)
    deaths = iter(lambda: draw.randrange(15, 40), None)  # calls until the next one, more than it takes to catch up
    left = [next(deaths)]

    def dies() -> bool:
        left[0] -= 1
        if left[0]:
            return False
        left[0] = next(deaths)
        return True

    ray = StandIn(dies)
    cut = Cut(open_dump(rows), 3, 20)
    with RayCrew(ray, cut.shares(), (projection,)) as crew:
        selection = Selection(crew, cut, lambda *_: None)
        selection.read()
        extended = seed % 2 == 1
        found = selection.run(150, earlier=earlier.numpy() if extended else None, radius=0.0 if extended else -1.0)
        assert torch.equal(selection.take(found.rows), rows[found.rows])
        assert ray.made == 3 + crew.replaced
        assert crew.replaced > 0
    assert ray.alive == 0
    space = projection(rows)
    expected = ops.extend_coreset(space, earlier, n_select=150).indices if extended else ops.k_center_greedy(space, 150)
    assert found.rows.tolist() == expected.tolist()


def test_a_worker_that_dies_again_and_again_ends_the_work() -> None:
    ray, cut = StandIn(lambda: True), Cut(open_dump(torch.rand(50, 3)), 2, 10)
    with pytest.raises(WorkersError, match=r"^worker 0 died 3 times without an answer: the actor died$"):
        with RayCrew(ray, cut.shares()) as crew:
            Selection(crew, cut, lambda *_: None).read()
    assert ray.alive == 0


def test_what_a_new_worker_cannot_read_any_more_is_told(tmp_path: Any) -> None:
    torch.save(torch.rand(50, 3), tmp_path / "rows.pt")
    deaths: list[bool] = []
    ray = StandIn(lambda: bool(deaths) and deaths.pop())
    cut = Cut(open_dump(tmp_path / "rows.pt"), 2, 10)
    with RayCrew(ray, cut.shares()) as crew:
        selection = Selection(crew, cut, lambda *_: None)
        selection.read()
        (tmp_path / "rows.pt").unlink()
        deaths.append(True)
        with pytest.raises(InputError, match=r"rows\.pt"):
            selection.run(10)


def test_a_worker_with_a_gpu_takes_one_and_works_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shards are asked for there, of rows in host memory, and are given the processor's here."""
    places: list[str] = []

    def shard(rows: torch.Tensor, *, device: str, **named: Any) -> KCenterShard:
        places.append(device)
        return KCenterShard(rows, device="cpu", **named)

    monkeypatch.setattr(workers, "KCenterShard", shard)
    ray, rows = StandIn(), torch.randn(90, 5)
    cut = Cut(open_dump(rows), 2, 20)
    for device, gpus in (("cuda", 1), ("cpu", 0)):
        with RayCrew(ray, cut.shares(), device=device) as crew:
            selection = Selection(crew, cut, lambda *_: None)
            selection.read()
            assert selection.run(30).rows.tolist() == ops.k_center_greedy(rows, 30).tolist()
        assert (ray.taken["num_cpus"], ray.taken["num_gpus"]) == (1, gpus)
        assert places == [device, device]
        places.clear()
