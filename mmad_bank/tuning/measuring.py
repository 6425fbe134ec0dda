"""Measurement of settings: they are built, scored in turn, timed and described."""

from __future__ import annotations

import hashlib
import math
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmad_bank._internal.files import replacing
from mmad_bank._internal.resume import Stages, counting
from mmad_bank._internal.shares import percent
from mmad_bank.bank import file_format
from mmad_bank.bank.memory_bank import MemoryBank
from mmad_bank.bank.reporting import Report
from mmad_bank.errors import InputError, NoneUsableError
from mmad_bank.scoring import UNWEIGHTED, Reweight
from mmad_bank.tuning.picks import Picks
from mmad_bank.tuning.plan import Asked, order_of_ratios
from mmad_bank.tuning.scored import Scored
from mmad_bank.tuning.settings import Measured, Setting
from mmad_bank.tuning.uncertainty import AUROCs

counting(r".+\.npz", "measured setting")

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
    """Reasons why settings cannot be measured, by setting."""
    waiting: list[str] = field(default_factory=list)
    """Settings that there was no time for."""
    reference: float = 1.0
    """Ratio of the exact bank that errors and gaps are against: 1, or where there was no time for it the largest."""
    aurocs: AUROCs | None = None
    """AUROCs of the image scores; None without labels of both classes."""
    notes: list[str] = field(default_factory=list)
    """Lines on what an earlier run has left in the folder and is not taken, and why."""


@dataclass(frozen=True)
class Clock:
    """Clock that tells how much time is left."""

    begin: float
    limit: float | None

    @property
    def left(self) -> float:
        """Seconds that are left; infinite without a limit."""
        return math.inf if self.limit is None else self.begin + self.limit - time.monotonic()


@dataclass
class Measuring:
    """Inputs that every ratio is measured with, and what has been measured."""

    asked: Asked
    picks: Picks
    tests: Tensor
    labels: Tensor | None
    reweight: Reweight
    n_neighbors: int | None
    rounds: int
    timed: float
    clock: Clock
    stages: Stages | None
    report: Report
    scored: dict[Setting, Scored] = field(default_factory=dict)
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
                yield ratio, [self.asked.reference(ratio), *self._rest(ratio)], f"Scoring with {percent(ratio)}"
            return
        # All rows tell most, but may take most of the time: after the first they come if half of it is left over.
        delayed: list[float] = []
        for ratio in order:
            reference = self.asked.reference(ratio)
            if ratio == 1 and self._expected_seconds(ratio, [reference]) > self.clock.left / 2:
                delayed.append(ratio)
                continue
            yield ratio, [reference], f"Scoring with {percent(ratio)}"
        for ratio in delayed:
            yield ratio, [self.asked.reference(ratio)], f"Scoring with {percent(ratio)}"
        for ratio in order:
            rest = self._rest(ratio)
            if rest:
                yield ratio, rest, f"Comparing at {percent(ratio)}"

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

    def _kept(self, settings: Sequence[Setting]) -> dict[Setting, Scored]:
        """Return what an earlier run has measured."""
        if self.stages is None:
            return {}
        paths = {one: self.stages.folder / _file_name(one) for one in settings}
        kept = {one: Scored.load(path) for one, path in paths.items() if path.exists()}
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
            reads_all = not setting.is_exact and self.reweight not in UNWEIGHTED
            self._keep(setting, Scored(
                patch, image, seconds, build_seconds[setting], len(bank), resident,
                resident + (bank.vectors.nbytes if reads_all and mapped else 0), bank.vectors.nbytes,
                (self.rounds, self.timed),
            ))  # fmt: skip

    def _keep(self, setting: Setting, scored: Scored) -> None:
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
    return f"{percent(setting.ratio)}, {setting.precision if setting.is_exact else setting.index}"


def _kind(setting: Setting) -> str:
    """Return what settings of other ratios are alike in."""
    return f"exact {setting.precision}" if setting.is_exact else re.sub(r"\d+", "", setting.index)


def _file_name(setting: Setting) -> str:
    words = f"{setting.ratio:.12g}-{setting.index}-{setting.precision}"
    digest = hashlib.blake2b(words.encode(), digest_size=6).hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9.]+', '-', words)}-{digest}.npz"
