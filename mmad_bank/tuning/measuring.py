"""Settings of a bank measured on test images, the most telling ones first, within a time if one is given."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mmad_bank import ops
from mmad_bank._internal.checks import ArrayLike, as_float_tensor, check_finite, check_index
from mmad_bank._internal.checksum import checksum
from mmad_bank._internal.files import replacing
from mmad_bank._internal.resume import Stages, counted, files_of, fingerprint_of
from mmad_bank.bank import file_format
from mmad_bank.bank._progress import Progress, Report, reporting
from mmad_bank.bank.dumps import open_dump
from mmad_bank.bank.faiss_index import make_faiss
from mmad_bank.bank.memory_bank import Features, MemoryBank
from mmad_bank.bank.projection import SparseProjection
from mmad_bank.bank.provenance import Source
from mmad_bank.bank.selection import coreset_size, selection_space
from mmad_bank.errors import InputError, NoneUsableError
from mmad_bank.ops.knn import Precision, check_precision
from mmad_bank.scoring import Reweight, check_reweight
from mmad_bank.tuning.drawing import share
from mmad_bank.tuning.settings import Measured, Setting
from mmad_bank.tuning.uncertainty import AUROCs

RATIOS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
PRECISIONS: tuple[Precision, ...] = ("auto", "float32", "half", "int8")

_FIRST_RATIO = 0.01
_POINTS_A_CENTROID = 39  # FAISS's own least for a k-means that it does not warn of
_LEAST_FOR_FAISS = 1000  # below, the exact search takes about a millisecond
# OpenMP runtimes keep their threads spinning for a while: the pause keeps FAISS's away from the search that follows.
_PAUSE_S = 0.02


@dataclass
class Sweep:
    """What :func:`sweep` returns: the settings measured, and why others were not."""

    settings: list[Measured]
    rows: int
    dim: int
    images: int
    patches: int
    left_out: dict[str, str] = field(default_factory=dict)
    """By setting, why it cannot be measured."""
    waiting: list[str] = field(default_factory=list)
    """Settings that there was no time for."""
    reference: float = 1.0
    """Ratio of the exact bank that errors and gaps are against: 1, or where there was no time for it the largest."""
    aurocs: AUROCs | None = None
    """Of the image scores; None without labels of both classes."""
    notes: list[str] = field(default_factory=list)
    """Lines on what an earlier run has left in the folder and is not taken, and why."""


def sweep(
    features: Features,
    images: ArrayLike,
    *,
    labels: ArrayLike | Sequence[int] | None = None,
    ratios: Sequence[float] = RATIOS,
    precisions: Sequence[Precision] = PRECISIONS,
    indices: Sequence[str] | None = None,
    reweight: Reweight = "m3dm",
    n_neighbors: int | None = None,
    projection_dim: int | Literal["auto"] | None = None,
    seed: int = 0,
    rounds: int = 5,
    timed: float = 0.0,
    time_limit: float | None = None,
    workdir: str | os.PathLike[str] | None = None,
    found: Callable[[Sweep], None] = lambda sofar: None,
    progress: Progress = False,
) -> Sweep:
    """Measure settings of a bank: error of the scores, AUROC, memory, frames a second.

    Ratios come in an order that spreads them (:func:`order_of_ratios`); within a limit of time, all with the first
    precision before the other precisions and indices. What is measured together scores the images in turn, one image at
    a time, so that what disturbs the machine disturbs all of it; a first image is not counted. In memory are all rows
    as float32, the selection, and the search copies and indices of one ratio.

    Args:
        features: of normal samples, as for :meth:`MemoryBank.build`.
        images: (B, P, D) patch features of images that are not among them.
        labels: (B,) 0 for normal images, above 0 for anomalous ones.
        ratios: of the coreset; 1 takes all rows.
        precisions: of the exact search's resident copy.
        indices: ``"exact"`` and FAISS factory strings. Default: exact, and with FAISS installed an inverted file, a
            graph and product quantisers of a size that suits the number of vectors (:func:`faiss_indices`).
        reweight: rule of the image score.
        n_neighbors: of the rule.
        projection_dim: select in a random projection.
        seed: of the projection.
        rounds: the timed images of a setting are cut into so many rounds, and there are at least as many; with fewer
            images, they come again.
        timed: seconds that each setting is timed for at least.
        time_limit: seconds in all; what cannot be expected to end by then is left out. Default: no limit. The first
            setting is measured in any case.
        workdir: folder for results as they come; a later call with the same features, images, rule and projection goes
            on from there. What was timed in fewer rounds or for less time is measured again.
        found: called with what is known so far, each time that something was measured.
        progress: True for bars on a terminal, or a function (stage, done, total).

    Raises:
        InputError: Features, images or labels that do not fit together, an argument out of range, images that are
            among the features, an index that FAISS does not know or can build with no ratio.
        MissingExtraError: An index of FAISS is asked for, which is not installed.

    Example:
        >>> import torch
        >>> normal, test = torch.rand(5, 100, 8), torch.rand(2, 100, 8)
        >>> result = sweep(normal, test, ratios=[0.1, 1], precisions=["half"], indices=["exact"])
        >>> [(one.ratio, one.vectors, one.patch_error > 0) for one in result.settings]
        [(0.1, 50, True), (1.0, 500, False)]
    """
    begin = time.monotonic()
    check_reweight(reweight, n_neighbors)
    check_index(rounds, "rounds", 1, 10**6, "rounds of timed images")
    for name, value in (("timed", timed), ("time_limit", time_limit)):
        if value is not None and not 0 <= value < math.inf:
            raise InputError(f"{name}: expected a finite number of seconds, at least 0, found {value!r}")
    asked = _Asked(_check_ratios(ratios), [check_precision(one) for one in precisions], indices)
    dump = open_dump(features)
    tests = _check_images(images, dump.dim)
    truth = _check_labels(labels, len(tests))
    projection = SparseProjection.create(dump.dim, len(dump), projection_dim, seed)
    with reporting(progress) as report:
        rows = selection_space(dump, None, report, n_select=1).cpu()
        _check_indices(asked, rows)
        stages = None
        notes: list[str] = []
        if workdir is not None:
            told = {
                "rows": checksum(rows.numpy()), "shape": list(rows.shape), "images": checksum(tests.numpy()),
                "tests": list(tests.shape), "rule": [reweight, n_neighbors], "projection": [projection_dim, seed],
                "threads": torch.get_num_threads(), "instructions": ops.system_info()["cpu"]["in use"],
            }  # fmt: skip
            fingerprint = json.loads(json.dumps(told))
            notes = _notes_of_dropped(Path(workdir), fingerprint)
            stages = Stages(Path(workdir), fingerprint)
        picks = _Picks(rows, projection, stages, report)
        clock = _Clock(begin, time_limit)
        measuring = _Measuring(asked, picks, tests, truth, reweight, n_neighbors, rounds, timed, clock, stages, report)
        measuring.notes = notes
        measuring.run(found)
        return measuring.result()


def order_of_ratios(ratios: Sequence[float]) -> list[float]:
    """Return ratios in the order in which they tell most: the one nearest 1 %, then always the farthest from these.

    Example:
        >>> order_of_ratios([0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0])
        [0.01, 1.0, 0.1, 0.001, 0.3, 0.03, 0.003]
    """
    left = sorted(set(ratios))
    order: list[float] = []
    while left:
        if order:
            # The nearest of those before; of equally far ones the larger, whose scores are nearer to all rows'.
            best = max(left, key=lambda one: (round(min(abs(math.log(one / o)) for o in order), 1), one))
        else:
            best = min(left, key=lambda one: abs(math.log(one / _FIRST_RATIO)))
        left.remove(best)
        order.append(best)
    return order


def faiss_indices(n_vectors: int, dim: int) -> list[str]:
    """Return FAISS factory strings that suit a bank: none where FAISS is not installed or the bank is small.

    An inverted file has 4 √M lists, rounded down to a power of two, and no more than its k-means can be trained with. A
    product quantiser takes 4 bits for 4, 3 or 2 dimensions, whichever divides the vectors' length first, in the layout
    that FAISS scans in registers: with 8 bits it would take minutes to train and seconds to search.

    Example:
        >>> faiss_indices(500, 768)
        []
    """
    if n_vectors < _LEAST_FOR_FAISS or importlib.util.find_spec("faiss") is None:
        return []
    most = min(4 * n_vectors**0.5, n_vectors / _POINTS_A_CENTROID)
    inverted = f"IVF{2 ** (int(most).bit_length() - 1)}"
    found = [f"{inverted},Flat", "HNSW32"]
    step = next((step for step in (4, 3, 2) if dim % step == 0), None)
    if step is not None:
        found += [f"PQ{dim // step}x4fs", f"{inverted},PQ{dim // step}x4fs"]
    return found


# ---------------------------------------------------------------------------------------------------------------------
# What is asked for


@dataclass(frozen=True)
class _Asked:
    """What is to be measured."""

    ratios: list[float]
    precisions: list[Precision]
    indices: Sequence[str] | None

    def settings(self, ratio: float, n_vectors: int, dim: int) -> list[Setting]:
        """Return the settings of a ratio, the exact ones first."""
        if ratio not in self.ratios:
            return []
        names = ["exact", *faiss_indices(n_vectors, dim)] if self.indices is None else list(dict.fromkeys(self.indices))
        exact = [Setting(ratio, "exact", precision) for precision in self.precisions if "exact" in names]
        return exact + [Setting(ratio, name) for name in names if name != "exact"]

    def reference(self, ratio: float) -> Setting:
        """Return the exact setting that others of its ratio are compared with; all precisions give the same scores."""
        wanted = self.indices is None or "exact" in self.indices
        return Setting(ratio, "exact", self.precisions[0] if wanted and self.precisions else "auto")


def _check_ratios(ratios: Sequence[float]) -> list[float]:
    for ratio in ratios:
        coreset_size(1, ratio, None)
    if not ratios:
        raise InputError("ratios: expected at least one, found none")
    return [float(ratio) for ratio in dict.fromkeys(ratios)]


def _check_images(images: ArrayLike, dim: int) -> Tensor:
    tests = as_float_tensor(images, "images", ndim=3).cpu()
    if tests.numel() == 0 or tests.shape[2] != dim:
        raise InputError(f"images: expected shape (B, P, {dim}) as the features have, found {tuple(tests.shape)}")
    source = Source("images", tests.shape[0] * tests.shape[1], tests.shape[1])
    check_finite(tests.view(-1, dim), "images", place=source.place)
    return tests


def _check_labels(labels: ArrayLike | Sequence[int] | None, n_images: int) -> Tensor | None:
    """Return whether each image is anomalous; None without labels of both classes."""
    if labels is None:
        return None
    anomalous = torch.as_tensor(labels).cpu() > 0
    if anomalous.shape != (n_images,):
        raise InputError(f"labels: expected one for each of {n_images} images, found shape {tuple(anomalous.shape)}")
    return anomalous if 0 < int(anomalous.sum()) < n_images else None


def _check_indices(asked: _Asked, rows: Tensor) -> None:
    """Refuse before the work an index that FAISS does not know, or that not even the largest bank can have."""
    for name in asked.indices or ():
        if name != "exact":
            make_faiss(name, rows.shape[1], coreset_size(len(rows), max(asked.ratios), None))


# ---------------------------------------------------------------------------------------------------------------------
# Time, and what is kept


@dataclass(frozen=True)
class _Clock:
    """How much time is left."""

    begin: float
    limit: float | None

    @property
    def left(self) -> float:
        return math.inf if self.limit is None else self.begin + self.limit - time.monotonic()


def _notes_of_dropped(workdir: Path, fingerprint: Mapping[str, Any]) -> list[str]:
    """Say which measured settings are dropped because they were measured of something else, and of what."""
    before = fingerprint_of(workdir)
    n_measured = sum(path.suffix == ".npz" for path in files_of(workdir))
    changed = dict.fromkeys(_DEPENDS[name] for name, value in fingerprint.items() if before.get(name) != value)
    if not n_measured or before == fingerprint:
        return []
    changed = changed or {"versions of mmad-bank": None}
    dropped = counted(n_measured, "measured setting")
    return [f"dropped {dropped} of an earlier run, of other {', '.join(changed)}: {workdir}"]


_DEPENDS = {
    "rows": "features", "shape": "features", "images": "test images", "tests": "test images",
    "rule": "image score (reweight)", "projection": "projection (projection_dim, seed)", "threads": "number of threads",
    "instructions": "processor instructions",
}  # fmt: skip
"""What measurements depend on, by its name in the fingerprint."""


class _Picks:
    """The greedy selection, as far as it has been needed: its first n picks are the coreset of size n."""

    def __init__(
        self, rows: Tensor, projection: SparseProjection | None, stages: Stages | None, report: Report
    ) -> None:
        self.rows, self._report = rows, report
        self._space = rows
        if projection is not None:
            self._space = torch.cat([projection(block) for block in rows.split(16384)])
        self._indices = torch.empty(0, dtype=torch.int64)
        self._seconds = 0.0
        self._path = None if stages is None else stages.state("picks.npy")
        if self._path is not None and self._path.exists():
            self._indices = torch.from_numpy(np.load(self._path))

    def size(self, ratio: float) -> int:
        """Return how many rows a ratio takes."""
        return coreset_size(len(self.rows), ratio, None)

    def expected_seconds(self, ratio: float) -> float:
        """Guess how long the selection takes: every pick costs about the same."""
        more = 0 if ratio == 1 else max(0, self.size(ratio) - len(self._indices))
        return more * self._seconds / max(1, len(self._indices))

    def vectors(self, ratio: float) -> Tensor:
        """Return the coreset of a ratio; of 1 all rows in their own order."""
        if ratio == 1:
            return self.rows
        wanted = self.size(ratio)
        if wanted > len(self._indices):
            begin = time.monotonic()
            self._grow(wanted, lambda done, total: self._report(f"Selecting {share(ratio)}", done, total))
            self._seconds += time.monotonic() - begin
        return self.rows[self._indices[:wanted]]

    def _grow(self, wanted: int, progress: Callable[[int, int], None]) -> None:
        have = len(self._indices)
        if not have:
            self._indices = ops.k_center_greedy(self._space, wanted, progress=progress)
        else:
            more = ops.extend_coreset(
                self._space, self._space[self._indices], n_select=wanted - have, progress=progress
            ).indices
            self._indices = torch.cat([self._indices, more])
            if len(self._indices) < wanted:  # all others are copies: the greedy selection takes the lowest rows
                free = torch.ones(len(self.rows), dtype=torch.bool)
                free[self._indices] = False
                self._indices = torch.cat([self._indices, free.nonzero()[: wanted - len(self._indices), 0]])
        if self._path is not None:
            with replacing(self._path) as partial, partial.open("wb") as file:
                np.save(file, self._indices.numpy())


@dataclass
class _Scored:
    """The scores that a setting gave the test images, its times and sizes."""

    patch: Tensor
    """(B, P)"""
    image: Tensor
    """(B,)"""
    seconds: list[float]
    """Of each timed image, in order."""
    build_seconds: float
    vectors: int
    resident: int
    memory: int
    vector_bytes: int
    timing: tuple[int, float]
    """Rounds and seconds that it was to be timed for at least."""

    def save(self, path: Path) -> None:
        facts = [self.build_seconds, self.vectors, self.resident, self.memory, self.vector_bytes]
        with path.open("wb") as file:
            np.savez(
                file, patch=self.patch.numpy(), image=self.image.numpy(), seconds=self.seconds, facts=facts,
                timing=self.timing,
            )  # fmt: skip

    @classmethod
    def load(cls, path: Path) -> _Scored:
        with np.load(path) as arrays:
            facts = arrays["facts"].tolist()
            scores = torch.from_numpy(arrays["patch"]), torch.from_numpy(arrays["image"])
            rounds, timed = arrays["timing"].tolist()
            vectors, *sizes = (int(fact) for fact in facts[1:])
            return cls(
                *scores, arrays["seconds"].tolist(), facts[0], vectors, sizes[0], sizes[1], sizes[2],
                (int(rounds), timed),
            )  # fmt: skip

    def is_timed_for(self, rounds: int, timed: float) -> bool:
        """Whether it was to be timed for as long as this at least."""
        return self.timing[0] >= rounds and self.timing[1] >= timed

    def rounds(self, n: int) -> list[float]:
        """Cut the times into ``n`` rounds and return each one's median, sorted."""
        return sorted(float(np.median(part)) for part in np.array_split(self.seconds, min(n, len(self.seconds))))

    def difference(self, reference: _Scored) -> tuple[float, float, float, float]:
        """Return the mean and the largest difference of patch scores and of image scores, see :class:`Measured`."""
        found: list[float] = []
        for own, other in ((self.patch, reference.patch), (self.image, reference.image)):
            expected = other.double()
            gaps = (own.double() - expected).abs_()
            scale = max(float(expected.mean()), torch.finfo(torch.float32).tiny)
            found += [float(gaps.mean()) / scale, float(gaps.max()) / scale]
        return found[0], found[1], found[2], found[3]


# ---------------------------------------------------------------------------------------------------------------------
# Measuring


@dataclass
class _Measuring:
    """What every ratio is measured with, and what has been measured."""

    asked: _Asked
    picks: _Picks
    tests: Tensor
    labels: Tensor | None
    reweight: Reweight
    n_neighbors: int | None
    rounds: int
    timed: float
    clock: _Clock
    stages: Stages | None
    report: Report
    scored: dict[Setting, _Scored] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    waiting: dict[Setting, None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    _NOTE_OF_SHORT = "settings that an earlier run timed for less are measured again; its selected rows are kept"

    def run(self, found: Callable[[Sweep], None]) -> None:
        """Measure group after group."""
        for ratio, settings, stage in self._plan():
            self.scored |= self._kept(settings)
            new = [one for one in settings if one not in self.scored]
            reference = self.asked.reference(ratio)
            lone = reference not in self.scored and reference not in new  # there was no time for it
            if new and self.scored and (lone or self._expected_seconds(ratio, new[:1]) > self.clock.left):
                self.waiting |= dict.fromkeys(new)
                continue
            if new:
                self._measure(ratio, new, stage)
            if any(one in self.scored for one in settings):
                found(self.result())
        if not self.result().settings and self.left_out:
            raise NoneUsableError("", self.left_out)

    def _plan(self) -> Iterator[tuple[float, list[Setting], str]]:
        """Yield ratio, settings and a word for the bar: an exact setting of each ratio, then the rest.

        Without a limit of time all of a ratio come together, and so are timed in turn.
        """
        order = order_of_ratios([*self.asked.ratios, 1.0])
        if self.clock.limit is None:
            for ratio in order:
                yield ratio, [self.asked.reference(ratio), *self._rest(ratio)], f"Scoring with {share(ratio)}"
            return
        # All rows tell most, but may take most of the time: after the first they come if half of it is left over.
        delayed: list[float] = []
        for ratio in order:
            reference = self.asked.reference(ratio)
            if ratio == 1 and self._expected_seconds(ratio, [reference]) > self.clock.left / 2:
                delayed.append(ratio)
                continue
            yield ratio, [reference], f"Scoring with {share(ratio)}"
        for ratio in delayed:
            yield ratio, [self.asked.reference(ratio)], f"Scoring with {share(ratio)}"
        for ratio in order:
            rest = self._rest(ratio)
            if rest:
                yield ratio, rest, f"Comparing at {share(ratio)}"

    def _rest(self, ratio: float) -> list[Setting]:
        """Return the settings of a ratio that are not its reference."""
        settings = self.asked.settings(ratio, self.picks.size(ratio), self.tests.shape[2])
        return [one for one in settings if one != self.asked.reference(ratio)]

    def _expected_seconds(self, ratio: float, settings: Sequence[Setting]) -> float:
        """Guess how long settings will take, by the nearest ratio at which their like was measured."""
        total = self.picks.expected_seconds(ratio)
        for one in settings:
            like = [other for other in self.scored if _kind(other) == _kind(one)]
            like = like or [other for other in self.scored if other.is_exact]
            if not like:
                continue
            near = min(like, key=lambda other: abs(math.log(other.ratio / ratio)))
            known = self.scored[near]
            growth = self.picks.size(ratio) / known.vectors
            # Building grows a little faster than the number of vectors; scoring does not shrink to nothing.
            scoring = max(len(self.tests) * statistics.median(known.seconds) * max(growth, 0.2), self.timed)
            total += known.build_seconds * growth * max(1.0, growth**0.2) + scoring
        return total

    def _kept(self, settings: Sequence[Setting]) -> dict[Setting, _Scored]:
        """Return what an earlier run has measured."""
        if self.stages is None:
            return {}
        paths = {one: self.stages.folder / _file_name(one) for one in settings}
        kept = {one: _Scored.load(path) for one, path in paths.items() if path.exists()}
        short = [one for one, scored in kept.items() if not scored.is_timed_for(self.rounds, self.timed)]
        if short and self._NOTE_OF_SHORT not in self.notes:
            self.notes.append(self._NOTE_OF_SHORT)
        return {one: scored for one, scored in kept.items() if one not in short}

    def _measure(self, ratio: float, settings: Sequence[Setting], stage: str) -> None:
        """Build the settings of one ratio, score the images with them in turn, and keep what comes out."""
        vectors = self.picks.vectors(ratio)
        banks: dict[Setting, MemoryBank] = {}
        build_seconds: dict[Setting, float] = {}
        needed = 0.0
        for number, setting in enumerate(settings):
            self.report(f"Preparing {stage.split(' ', 1)[1]}", number, len(settings))
            if self.scored and self._expected_seconds(ratio, [setting]) + needed > self.clock.left:
                self.waiting[setting] = None
                continue
            begin = time.perf_counter()
            bank = self._make(vectors, setting)
            if bank is None:
                continue
            self._score(bank, 0)  # the exact index makes its copy at the first search
            build_seconds[setting] = time.perf_counter() - begin
            begin = time.perf_counter()
            self._score(bank, 0)
            needed += (time.perf_counter() - begin) * len(self.tests)
            if self.scored and needed > self.clock.left:
                self.waiting[setting] = None
                break
            banks[setting] = bank
        self.waiting |= {one: None for one in settings if one not in banks and _word(one) not in self.left_out}
        for setting, (patch, image, seconds) in self._score_in_turn(banks, stage).items():
            bank = banks[setting]
            mapped = bank.vectors.nbytes > file_format.LARGEST_READ  # where its vectors stay when it is loaded
            resident = bank.nbytes - (bank.vectors.nbytes if mapped else 0)
            reads_all = not setting.is_exact and self.reweight != "max"
            self._keep(setting, _Scored(
                patch, image, seconds, build_seconds[setting], len(bank), resident,
                resident + (bank.vectors.nbytes if reads_all and mapped else 0), bank.vectors.nbytes,
                (self.rounds, self.timed),
            ))  # fmt: skip

    def _keep(self, setting: Setting, scored: _Scored) -> None:
        if setting.is_exact and setting.ratio == 1 and not float(scored.patch.max()) > 0:
            raise InputError("test images: expected others than the features are of, found no patch unlike them")
        self.scored[setting] = scored
        if self.stages is not None:
            with replacing(self.stages.state(_file_name(setting))) as partial:  # what was timed for less gives way
                scored.save(partial)

    def _make(self, vectors: Tensor, setting: Setting) -> MemoryBank | None:
        """Return the bank, or None where a ratio is too small for its index; then say why in ``left_out``."""
        try:
            return MemoryBank(vectors, index=setting.index, bank_precision=setting.precision)
        except InputError as error:
            if setting.is_exact:
                raise
            self.left_out[_word(setting)] = str(error)
            return None

    def _score(self, bank: MemoryBank, number: int) -> tuple[Tensor, Tensor]:
        scores = bank.score(self.tests[number : number + 1], reweight=self.reweight, n_neighbors=self.n_neighbors)
        return scores.patch, scores.image

    def _score_in_turn(
        self, banks: Mapping[Setting, MemoryBank], stage: str
    ) -> dict[Setting, tuple[Tensor, Tensor, list[float]]]:
        """Score the images one by one, each with every bank before the next, until all have been timed long enough."""
        n_images, least = len(self.tests), max(self.rounds, len(self.tests))
        patch: dict[Setting, list[Tensor]] = {setting: [] for setting in banks}
        image: dict[Setting, list[Tensor]] = {setting: [] for setting in banks}
        seconds: dict[Setting, list[float]] = {setting: [] for setting in banks}
        active, turn, last_exact = list(banks), 0, True
        while active:
            for setting in active:
                if setting.is_exact != last_exact:
                    time.sleep(_PAUSE_S)
                    last_exact = setting.is_exact
                begin = time.perf_counter()
                patches, images = self._score(banks[setting], turn % n_images)
                seconds[setting].append(time.perf_counter() - begin)
                if turn < n_images:
                    patch[setting].append(patches)
                    image[setting].append(images)
            turn += 1
            self.report(stage, min(turn, least), least)
            short = [one for one in active if sum(seconds[one]) < self.timed]
            active = active if turn < least else short if self.clock.left > 0 else []
        return {one: (torch.cat(patch[one]), torch.cat(image[one]), seconds[one]) for one in banks}

    def result(self) -> Sweep:
        """Describe what has been measured so far."""
        largest = max(one.ratio for one in self.scored if one.is_exact)
        whole = self.asked.reference(largest)
        aurocs = None
        if self.labels is not None:
            aurocs = AUROCs.of(self.labels, {setting: scored.image for setting, scored in self.scored.items()})
        order = [
            setting
            for ratio in sorted(self.asked.ratios)
            for setting in self.asked.settings(ratio, self.picks.size(ratio), self.tests.shape[2])
        ]
        settings = [self._describe(one, whole, aurocs) for one in order if one in self.scored]
        n_images, n_patches, dim = self.tests.shape
        waiting = [_word(one) for one in order if one in self.waiting]
        return Sweep(
            settings,
            len(self.picks.rows),
            dim,
            n_images,
            n_patches,
            dict(self.left_out),
            waiting,
            largest,
            aurocs,
            list(self.notes),
        )

    def _describe(self, setting: Setting, whole: Setting, aurocs: AUROCs | None) -> Measured:
        scored = self.scored[setting]
        medians = scored.rounds(self.rounds)
        median = statistics.median(medians)
        values: dict[str, Any] = dict(zip(_ERRORS, scored.difference(self.scored[whole]), strict=True))
        reference = self.scored[self.asked.reference(setting.ratio)]
        for name, value in zip(_ERRORS, scored.difference(reference), strict=True):
            values[f"index_{name}"] = value
        if aurocs is not None:
            values["auroc"] = aurocs.own[setting]
            values["auroc_low"], values["auroc_high"] = aurocs.interval(setting)
            values["gap"], values["gap_low"], values["gap_high"] = aurocs.difference(setting, whole)
        return Measured(
            setting.ratio, setting.index, setting.precision, vectors=scored.vectors, dim=self.tests.shape[2],
            memory=scored.memory, resident=scored.resident, vector_bytes=scored.vector_bytes, fps=1 / median,
            seconds=median, build_seconds=scored.build_seconds, fps_low=1 / medians[-1],
            fps_high=1 / medians[0], **values,
        )  # fmt: skip


_ERRORS = ("patch_error", "patch_error_max", "image_error", "image_error_max")


def _word(setting: Setting) -> str:
    """Name a setting for people."""
    return f"{share(setting.ratio)}, {setting.precision if setting.is_exact else setting.index}"


def _kind(setting: Setting) -> str:
    """Return what settings of other ratios are alike in."""
    return f"exact {setting.precision}" if setting.is_exact else re.sub(r"\d+", "", setting.index)


def _file_name(setting: Setting) -> str:
    words = f"{setting.ratio:.12g}-{setting.index}-{setting.precision}"
    digest = hashlib.blake2b(words.encode(), digest_size=6).hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9.]+', '-', words)}-{digest}.npz"
