"""Exact greedy selection over workers: who holds which rows decides about nothing, so the picks are those of one array.

The decisions are those of :class:`~mmad_bank.ops.k_center_shards.KCenterCoordinator`, in this process. A block of picks
costs two round trips: the workers meet the newest picks and offer their farthest rows, and those that made it into the
pool are gathered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from mmad_bank._internal.arrays import array_of
from mmad_bank.bank.reporting import Report
from mmad_bank.bank.standardization import Moments
from mmad_bank.distributed.shares import Cut
from mmad_bank.distributed.workers import Memory, Offer, ReadSoFar
from mmad_bank.errors import InputError
from mmad_bank.ops.k_center_shards import IN_MEMORY, ON_DISK, Candidates, KCenterCoordinator

Arguments = tuple[Any, ...]
CatchUp = Callable[[], Arguments]
"""Returns the arguments of :meth:`~mmad_bank.distributed.workers.Worker.catch_up` for a worker that is made anew."""

_STEPS = 64  # in which a share is read, for the bar


@dataclass
class Traffic:
    """What went between workers and this process.

    Attributes:
        round_trips: How many times workers were asked something and answered.
        down: Bytes sent to workers.
        up: Bytes that came from them.
    """

    round_trips: int = 0
    down: int = 0
    up: int = 0

    def since(self, before: Traffic) -> Traffic:
        """Return what was added to what was ``before``."""
        return Traffic(self.round_trips - before.round_trips, self.down - before.down, self.up - before.up)

    @staticmethod
    def size(message: Any) -> int:
        """Return the bytes of a message's arrays, and 8 for each number.

        Example:
            >>> Traffic.size((np.zeros(3), 5, None, (2.5,)))
            40
        """
        if isinstance(message, np.ndarray):
            return message.nbytes
        if isinstance(message, (tuple, list)):
            return sum(map(Traffic.size, message))
        return 8 * isinstance(message, (int, float))


@dataclass
class Tally:
    """What a selection has asked for, and so what it should move.

    Attributes:
        told: How often the workers were told of centres.
        rises: How often they offered rows: then, and where the bar had to sink.
        gathers: How often rows were gathered.
        met: Number of centres that they were told of.
        offered: Number of rows that they offered.
        gathered: Number of rows that were gathered for pools.
        settled: Number of rows whose values went back.
    """

    told: int = 0
    rises: int = 0
    gathers: int = 0
    met: int = 0
    offered: int = 0
    gathered: int = 0
    settled: int = 0

    def traffic(self, n_workers: int, dim: int) -> Traffic:
        """Return what that moves between so many workers and this process; see docs/how-to/many-machines.md.

        Example:
            >>> Tally(told=2, rises=2, gathers=2, met=3, offered=5, gathered=3, settled=1).traffic(2, dim=10)
            Traffic(round_trips=5, down=432, up=264)
        """
        to_each = 8 + self.met * (4 * dim + 8) + 16 * self.rises + 8 * self.told
        down = n_workers * to_each + 8 * self.gathered + 8 * self.settled
        up = 16 * n_workers * self.rises + 16 * self.offered + 4 * dim * self.gathered
        return Traffic(1 + self.rises + self.gathers, down, up)


class Crew(Protocol):
    """Workers, wherever they are."""

    traffic: Traffic

    def ask(self, method: str, calls: Sequence[Arguments | None], catch_up: CatchUp) -> list[Any]:
        """Call a method of all workers at once, and return their answers.

        Args:
            method: Name of the method.
            calls: Arguments for each worker; None where it is not asked.
            catch_up: What a new worker is to do first that takes the place of one.
        """
        ...


class LocalCrew:
    """Workers in this process, asked one after the other."""

    def __init__(self, workers: Sequence[Any]) -> None:
        self._workers = workers
        self.traffic = Traffic()

    def ask(self, method: str, calls: Sequence[Arguments | None], catch_up: CatchUp) -> list[Any]:
        """Call a method of the workers."""
        answers = [
            None if arguments is None else getattr(worker, method)(*arguments)
            for worker, arguments in zip(self._workers, calls, strict=True)
        ]
        self.traffic.round_trips += 1
        self.traffic.down += Traffic.size(calls)
        self.traffic.up += Traffic.size(answers)
        return answers


class Picks(NamedTuple):
    """What a selection chose.

    Attributes:
        rows: int64 (n,), rows in order of selection.
        radii: float64 (n,), distance of each pick to its nearest centre before it; infinity for the first of all.
        covering_radius: Distance of the farthest row that was not chosen.
    """

    rows: np.ndarray
    radii: np.ndarray
    covering_radius: float


class Selection:
    """A selection over the workers of a crew that hold the shares of a cut.

    Args:
        crew: The workers, new.
        cut: What they hold.
        report: Function that the work reports to.
        on_disk: Whether the workers' rows are in scratch files: then they are asked to rise less often.

    Attributes:
        tally: What :meth:`run` has asked for.
        moved: What that moved; of workers that were made anew, too.

    Example:
        >>> from mmad_bank.bank.dumps import open_dump
        >>> from mmad_bank.distributed.workers import Worker
        >>> cut = Cut(open_dump(torch.tensor([[0.0], [1.0], [9.0], [4.0]])), 2, rows_at_once=1)
        >>> crew = LocalCrew([Worker(share) for share in cut.shares()])
        >>> selection = Selection(crew, cut, lambda stage, done, total: None)
        >>> selection.read()
        >>> selection.run(3, start=0).rows, selection.take(np.array([3, 0]))
        (array([0, 2, 3]), tensor([[4.],
                [0.]]))
    """

    def __init__(self, crew: Crew, cut: Cut, report: Report, *, on_disk: bool = False) -> None:
        self._crew, self._cut, self._report = crew, cut, report
        self._settings = ON_DISK if on_disk else IN_MEMORY
        self._n_rows = sum(count for _, count in cut.ranges)
        self._blocks_read = 0
        self._n_centers: int | None = None
        self._centers: list[np.ndarray] = []
        self._numbers: list[np.ndarray] = []
        self.tally = Tally()
        self.moved = Traffic()

    def start(self) -> list[Memory]:
        """Wait for all workers, and return the memory that each takes before it holds anything."""
        memory = self.memory()
        self._report("Starting workers", self._cut.n_shares, self._cut.n_shares)
        return memory

    def read(self, moments: Moments | None = None) -> None:
        """Have the workers read their shares; ``moments`` takes up the blocks' sums.

        Raises:
            InputError: A file or a row cannot be used; of several the first is told.
        """
        n_blocks = -(-len(self._cut.ranges) // self._cut.n_shares)
        step = -(-n_blocks // _STEPS)
        while self._blocks_read < n_blocks:
            answers: list[ReadSoFar] = self._ask_all("read", (step,))
            problems = [answer.problem for answer in answers if answer.problem is not None]
            if problems:
                raise InputError(min(problems)[1])
            self._blocks_read += step
            if moments is not None:  # blocks were dealt out in turn
                longest = max(len(answer.sums) for answer in answers)
                for at in range(longest):
                    for answer in answers:
                        if at < len(answer.sums):
                            moments.add(answer.sums[at])
            self._report("Reading features", sum(answer.rows for answer in answers), self._n_rows)

    def run(
        self,
        n_select: int,
        *,
        start: int = 0,
        earlier: np.ndarray | None = None,
        radius: float = -1.0,
        stage: str = "Selecting the coreset",
    ) -> Picks:
        """Select, see :func:`mmad_bank.ops.k_center_greedy` and :func:`mmad_bank.ops.extend_coreset`.

        Args:
            n_select: Largest number of rows to choose.
            start: Row that is chosen first, without earlier centres.
            earlier: float32 (M, d) centres to go on from.
            radius: Distance within which a row counts as covered; negative: none does.
            stage: Name of the work for the bar.
        """
        n_earlier, before = 0 if earlier is None else len(earlier), replace(self._crew.traffic)
        self._ask_all("begin", (n_earlier + n_select,))
        self._n_centers = n_earlier + n_select
        coordinator = KCenterCoordinator(
            self._n_rows, n_select, n_earlier=n_earlier, start=start, radius=radius, **self._settings
        )
        if earlier is None:
            first = np.array([start])
            self._go_on(coordinator, self._gather(first), first, first, np.array([-1.0]))
        else:
            nothing = np.empty(0, np.int64)
            self._go_on(coordinator, earlier, np.full(n_earlier, -1), nothing, np.empty(0))
        while coordinator.covering_radius is None:
            pool = array_of(coordinator.pool)
            features = self._gather(pool)
            known = len(coordinator.rows)
            coordinator.pick(torch.from_numpy(features))
            self._report(stage, len(coordinator.rows), n_select)
            if coordinator.covering_radius is None:
                picks = array_of(coordinator.rows_from(known))
                centers = features[np.searchsorted(pool, picks)]
                self._go_on(coordinator, centers, picks, pool, array_of(coordinator.values))
        self.moved = self._crew.traffic.since(before)
        rows = array_of(coordinator.rows)
        return Picks(rows, array_of(coordinator.radii), coordinator.covering_radius)

    def take(self, rows: np.ndarray) -> torch.Tensor:
        """Gather rows as they are in the dump: float32 (n, D)."""
        return torch.from_numpy(self._collect("take", rows))

    def memory(self) -> list[Memory]:
        """Return each worker's memory."""
        return self._ask_all("memory", ())

    def _go_on(
        self,
        coordinator: KCenterCoordinator,
        centers: np.ndarray,
        rows: np.ndarray,
        pool: np.ndarray,
        values: np.ndarray,
    ) -> None:
        """Tell the workers of new centres, and have the coordinator join their offers to a pool."""
        known = sum(map(len, self._centers))
        self._centers.append(centers)
        self._numbers.append(rows)
        self.tally.told += 1
        self.tally.met += len(centers)
        self.tally.settled += len(pool)
        owners = self._cut.owners(pool)
        bar, wanted = coordinator.bar, coordinator.wanted
        calls = [(known, centers, rows, values[owners == number], bar, wanted) for number in range(self._cut.n_shares)]
        offers: list[Offer] = self._crew.ask("go_on", calls, self._catch_up)
        while True:
            self.tally.rises += 1
            for offer in offers:
                self.tally.offered += len(offer.rows)
                squared, numbers = torch.tensor(offer.squared), torch.tensor(offer.rows)
                coordinator.offer(Candidates(squared, numbers, offer.above, offer.below))
            if coordinator.join():
                return
            offers = self._ask_all("rise", (coordinator.bar, coordinator.wanted))

    def _gather(self, rows: np.ndarray) -> np.ndarray:
        self.tally.gathers += 1
        self.tally.gathered += len(rows)
        return self._collect("gather", rows)

    def _collect(self, method: str, rows: np.ndarray) -> np.ndarray:
        """Ask the owners of rows for them, and put the answers together in the order of the rows."""
        owners = self._cut.owners(rows)
        own = [rows[owners == number] for number in range(self._cut.n_shares)]
        answers = self._crew.ask(method, [(part,) if len(part) else None for part in own], self._catch_up)
        dim = next(answer.shape[1] for answer in answers if answer is not None)
        found = np.empty((len(rows), dim), np.float32)
        for number, answer in enumerate(answers):
            if answer is not None:
                found[owners == number] = answer
        return found

    def _ask_all(self, method: str, arguments: Arguments) -> list[Any]:
        return self._crew.ask(method, [arguments] * self._cut.n_shares, self._catch_up)

    def _catch_up(self) -> Arguments:
        """Return what a new worker is to be told: how far the others have read, and all centres."""
        if len(self._centers) > 1:
            self._centers = [np.concatenate(self._centers)]
            self._numbers = [np.concatenate(self._numbers)]
        centers = self._centers[0] if self._centers else np.empty((0, 0), np.float32)
        numbers = self._numbers[0] if self._numbers else np.empty(0, np.int64)
        return self._blocks_read, self._n_centers, centers, numbers
