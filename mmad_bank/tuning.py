"""Memory against accuracy against speed: what a smaller bank, another storage or another index costs and saves.

:func:`sweep` measures settings of one bank on test images, :func:`recommend` picks the most accurate one within a
budget, :func:`figure` draws them.

What is compared: the ratio of the coreset changes the scores, and so does an approximate index; the precision of the
exact search's resident copy changes memory and speed alone, and the measured errors show it. One greedy selection
serves all ratios, because its first n picks are the coreset of size n.
"""

from __future__ import annotations

import importlib.util
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mmad_bank._checks import ArrayLike, as_float_tensor, check_finite, check_index
from mmad_bank.bank import file_format
from mmad_bank.bank._progress import Progress, Report, reporting
from mmad_bank.bank.dumps import open_dump
from mmad_bank.bank.memory_bank import Features, MemoryBank
from mmad_bank.bank.selection import coreset_size, selection_space
from mmad_bank.errors import InputError, MissingExtraError
from mmad_bank.metrics import auroc
from mmad_bank.ops.knn import Precision, check_precision
from mmad_bank.scoring import Reweight, check_reweight

RATIOS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
PRECISIONS: tuple[Precision, ...] = ("auto", "float32", "half", "int8")
By = Literal["error", "auroc"]

_POINTS_A_CENTROID = 39  # FAISS's own least for a k-means that it does not warn of
_LEAST_FOR_FAISS = 1000  # below, the exact search takes about a millisecond
# OpenMP runtimes keep their threads spinning for a while: the pause keeps FAISS's away from the search that follows.
_PAUSE_S = 0.02


@dataclass(frozen=True)
class Setting:
    """What a bank is built and loaded with: the arguments of :meth:`mmad_bank.MemoryBank.build` of these names."""

    ratio: float
    index: str = "exact"
    precision: Precision = "auto"

    @property
    def is_exact(self) -> bool:
        """Whether the search is this project's own."""
        return self.index == "exact"


@dataclass(frozen=True)
class Measured:
    """A setting and what was measured of it.

    Errors are differences of scores over the mean score of the bank that they are compared with: 0.05 says that
    scores are off by 5 % of a usual score.
    """

    ratio: float
    index: str
    precision: Precision
    vectors: int
    dim: int
    memory: int
    """Bytes that scoring needs in memory: ``resident``, and the vectors where every image reads all of them."""
    resident: int
    """``MemoryBank.nbytes`` of the loaded bank: the search copy or FAISS's index, the source rows, and vectors that are
    few enough to be read instead of mapped."""
    vector_bytes: int
    """The float32 vectors in the bank file, memory-mapped: the system caches the pages that are read and lets them go
    when memory is short. The exact search reads a few vectors for each patch; a FAISS index reads none for patch
    scores, and all of them for an image score other than ``max``."""
    fps: float
    """Frames a second of :meth:`MemoryBank.score`, an image at a time, with the vectors in memory (or in the cache)."""
    seconds: float
    """Median of an image."""
    build_seconds: float
    """To make the search copy or the index, without the selection."""
    patch_error: float
    """Mean over patches, against the exact bank of all rows."""
    patch_error_max: float
    image_error: float
    """Mean over images, likewise."""
    image_error_max: float
    index_patch_error: float
    """Mean over patches, against the exact bank of the same ratio: what the index alone costs."""
    index_patch_error_max: float
    index_image_error: float
    index_image_error_max: float
    auroc: float | None = None
    """Of the image scores; None without labels of both classes."""

    @property
    def setting(self) -> Setting:
        """What was measured."""
        return Setting(self.ratio, self.index, self.precision)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Measured:
        """Return what :meth:`as_json` described; other keys are passed over."""
        return cls(**{one.name: row[one.name] for one in fields(cls)})

    def as_json(self) -> dict[str, Any]:
        """Return JSON-ready values: bytes, seconds, shares."""
        return asdict(self)

    def cost(self, by: By) -> float:
        """Return what is to be small: the patch error against all rows, or 1 - AUROC."""
        if by == "error":
            return self.patch_error
        if self.auroc is None:
            raise InputError("by: expected 'error' for images without labels of both classes, found 'auroc'")
        return 1.0 - self.auroc


@dataclass
class Sweep:
    """What :func:`sweep` returns: the settings measured, and why others were not."""

    settings: list[Measured]
    rows: int
    dim: int
    images: int
    patches: int
    left_out: dict[str, str] = field(default_factory=dict)


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
    progress: Progress = False,
) -> Sweep:
    """Measure settings of a bank: error of the scores, AUROC, memory, frames a second.

    For every ratio its settings score the images in turn, one image at a time, so that what disturbs the machine
    disturbs all of them; a round more is not counted. In memory are all rows as float32, the selection, and the
    search copies and indices of one ratio.

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
        rounds: least number of timed images a setting; with fewer images, they come again.
        progress: True for bars on a terminal, or a function (stage, done, total).

    Raises:
        InputError: Features, images or labels that do not fit together, an argument out of range, images that are
            among the features, an index that FAISS cannot build with the largest ratio (smaller ones are left out).
        MissingExtraError: An index of FAISS is asked for, which is not installed.

    Example:
        >>> import torch
        >>> normal, test = torch.rand(5, 100, 8), torch.rand(2, 100, 8)
        >>> result = sweep(normal, test, ratios=[0.1, 1], precisions=["half"], indices=["exact"])
        >>> [(one.ratio, one.vectors, one.patch_error > 0) for one in result.settings]
        [(0.1, 50, True), (1.0, 500, False)]
    """
    check_reweight(reweight, n_neighbors)
    check_index(rounds, "rounds", 1, 10**6, "timed images")
    asked = _Asked(_check_ratios(ratios), [check_precision(one) for one in precisions], indices)
    dump = open_dump(features)
    tests = _check_images(images, dump.dim)
    truth = _check_labels(labels, len(tests))
    with reporting(progress) as report:
        rows = selection_space(dump, None, report, n_select=1).cpu()
        measuring = _Measuring(asked, tests, truth, reweight, n_neighbors, rounds, report)
        # All rows first, as the reference. The order of the picks does not matter there: nothing is selected.
        measured = measuring.run(rows, 1.0)
        if asked.smaller:
            largest = max(asked.smaller)
            picks = MemoryBank.build(rows, largest, projection_dim=projection_dim, seed=seed, progress=report).vectors
            counts = {ratio: coreset_size(len(rows), ratio, None) for ratio in asked.smaller}
            del rows
            for ratio in sorted(counts, reverse=True):
                measured += measuring.run(picks[: counts[ratio]], ratio)
    measured.sort(key=lambda one: one.ratio)
    return Sweep(measured, len(dump), dump.dim, len(tests), tests.shape[1], measuring.left_out)


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
# Measuring


@dataclass
class _Scored:
    """The scores that a setting gave the test images, and its times."""

    patch: list[Tensor] = field(default_factory=list)
    image: list[Tensor] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def difference(self, reference: _Scored) -> tuple[float, float, float, float]:
        """Return the mean and the largest difference of patch scores and of image scores, see :class:`Measured`."""
        found: list[float] = []
        for own, other in ((self.patch, reference.patch), (self.image, reference.image)):
            expected = torch.cat(other).double()
            gaps = (torch.cat(own).double() - expected).abs_()
            scale = max(float(expected.mean()), torch.finfo(torch.float32).tiny)
            found += [float(gaps.mean()) / scale, float(gaps.max()) / scale]
        return found[0], found[1], found[2], found[3]


@dataclass(frozen=True)
class _Asked:
    """What is to be measured."""

    ratios: list[float]
    precisions: list[Precision]
    indices: Sequence[str] | None

    @property
    def smaller(self) -> list[float]:
        """The ratios that need a selection."""
        return [ratio for ratio in self.ratios if ratio < 1]

    def settings(self, ratio: float, n_vectors: int, dim: int) -> list[Setting]:
        """Return the settings of a ratio, the exact ones first."""
        if ratio not in self.ratios:
            return []
        names = ["exact", *faiss_indices(n_vectors, dim)] if self.indices is None else list(dict.fromkeys(self.indices))
        exact = [Setting(ratio, "exact", precision) for precision in self.precisions if "exact" in names]
        return exact + [Setting(ratio, name) for name in names if name != "exact"]


@dataclass
class _Measuring:
    """What every ratio is measured with."""

    asked: _Asked
    tests: Tensor
    labels: Tensor | None
    reweight: Reweight
    n_neighbors: int | None
    rounds: int
    report: Report
    left_out: dict[str, str] = field(default_factory=dict)
    whole: _Scored | None = None  # by the exact bank of all rows

    def run(self, vectors: Tensor, ratio: float) -> list[Measured]:
        """Measure the settings of one ratio, beside the exact float32 bank of that ratio."""
        reference = Setting(ratio, "exact", "float32")
        asked = self.asked.settings(ratio, *vectors.shape)
        banks: dict[Setting, MemoryBank] = {}
        build_seconds: dict[Setting, float] = {}
        wanted = dict.fromkeys([reference, *asked])
        for number, setting in enumerate(wanted):
            self.report(f"Preparing {share(ratio)}", number, len(wanted))
            begin = time.perf_counter()
            bank = self._make(vectors, setting)
            if bank is not None:
                self._score(bank, 0)  # the exact index makes its copy at the first search
                banks[setting], build_seconds[setting] = bank, time.perf_counter() - begin
        scored = self._score_in_turn(banks, f"Scoring with {share(ratio)}")
        if self.whole is None:
            self.whole = scored[reference]
            if not float(torch.cat(self.whole.patch).max()) > 0:
                raise InputError("images: expected others than the features are of, found no patch unlike them")
        return [
            self._describe(setting, banks[setting], scored[setting], scored[reference], build_seconds[setting])
            for setting in asked
            if setting in banks
        ]

    def _make(self, vectors: Tensor, setting: Setting) -> MemoryBank | None:
        """Return the bank, or None where a ratio is too small for its index; then say why in ``left_out``."""
        try:
            return MemoryBank(vectors, index=setting.index, precision=setting.precision)
        except InputError as error:
            if setting.ratio == max(self.asked.ratios):
                raise
            self.left_out[f"{share(setting.ratio)}, {setting.index}"] = str(error)
            return None

    def _score(self, bank: MemoryBank, number: int) -> tuple[Tensor, Tensor]:
        scores = bank.score(self.tests[number : number + 1], reweight=self.reweight, n_neighbors=self.n_neighbors)
        return scores.patch, scores.image

    def _score_in_turn(self, banks: Mapping[Setting, MemoryBank], stage: str) -> dict[Setting, _Scored]:
        """Score the images one by one, each with every bank before the next."""
        scored = {setting: _Scored() for setting in banks}
        turns = max(self.rounds, len(self.tests))
        last_exact = True
        for turn in range(turns):
            for setting, bank in banks.items():
                if setting.is_exact != last_exact:
                    time.sleep(_PAUSE_S)
                    last_exact = setting.is_exact
                begin = time.perf_counter()
                patch, image = self._score(bank, turn % len(self.tests))
                scored[setting].seconds.append(time.perf_counter() - begin)
                if turn < len(self.tests):
                    scored[setting].patch.append(patch)
                    scored[setting].image.append(image)
            self.report(stage, turn + 1, turns)
        return scored

    def _describe(
        self, setting: Setting, bank: MemoryBank, scored: _Scored, reference: _Scored, build_seconds: float
    ) -> Measured:
        assert self.whole is not None
        mapped = bank.vectors.nbytes > file_format.LARGEST_READ  # where its vectors stay when it is loaded
        resident = bank.nbytes - (bank.vectors.nbytes if mapped else 0)
        reads_all = not setting.is_exact and self.reweight != "max"
        median = statistics.median(scored.seconds)
        errors: dict[str, Any] = dict(zip(_ERRORS, scored.difference(self.whole), strict=True))
        for name, value in zip(_ERRORS, scored.difference(reference), strict=True):
            errors[f"index_{name}"] = value
        return Measured(
            setting.ratio, setting.index, setting.precision, vectors=len(bank), dim=bank.dim,
            memory=resident + (bank.vectors.nbytes if reads_all and mapped else 0), resident=resident,
            vector_bytes=bank.vectors.nbytes, fps=1 / median, seconds=median, build_seconds=build_seconds,
            **errors, auroc=None if self.labels is None else auroc(self.labels, torch.cat(scored.image)),
        )  # fmt: skip


_ERRORS = ("patch_error", "patch_error_max", "image_error", "image_error_max")


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
    check_finite(tests.view(-1, dim), "images")
    return tests


def _check_labels(labels: ArrayLike | Sequence[int] | None, n_images: int) -> Tensor | None:
    """Return whether each image is anomalous; None without labels of both classes."""
    if labels is None:
        return None
    anomalous = torch.as_tensor(labels).cpu() > 0
    if anomalous.shape != (n_images,):
        raise InputError(f"labels: expected one for each of {n_images} images, found shape {tuple(anomalous.shape)}")
    return anomalous if 0 < int(anomalous.sum()) < n_images else None


# ---------------------------------------------------------------------------------------------------------------------
# Choosing


def non_dominated(costs: Sequence[Sequence[float]]) -> list[bool]:
    """Tell for each point of a set whether it is on the Pareto front: no other is as good in all and better in one.

    Args:
        costs: of each point; smaller is better in every column.

    Example:
        >>> non_dominated([(1, 9), (2, 5), (3, 5), (4, 1)])
        [True, True, False, True]
    """
    return [
        not any(all(a <= b for a, b in zip(other, own, strict=True)) and tuple(other) != tuple(own) for other in costs)
        for own in costs
    ]


def pareto(settings: Sequence[Measured], by: By = "error") -> list[bool]:
    """Tell of each setting whether no other is as small, as fast and as accurate, and better in one of the three."""
    return non_dominated([(one.memory, one.seconds, one.cost(by)) for one in settings])


def recommend(
    settings: Sequence[Measured], *, memory: int | None = None, fps: float | None = None, by: By = "error"
) -> Measured | None:
    """Return the most accurate setting within a budget, or None if none keeps to it.

    Of equally accurate ones, the fastest where memory is limited, otherwise the smallest.

    Args:
        settings: of a :class:`Sweep`.
        memory: bytes at most, see :attr:`Measured.memory`.
        fps: frames a second at least.
        by: ``"error"`` takes the smallest patch error; ``"auroc"`` the highest AUROC, and of equal ones the smallest
            patch error.
    """
    within = [one for one in settings if _excess(one, memory, fps) <= 1]

    def rank(one: Measured) -> tuple[float, ...]:
        accuracy = (one.cost(by), one.patch_error)
        return (*accuracy, one.memory, one.seconds) if memory is None else (*accuracy, one.seconds, one.memory)

    return min(within, key=rank, default=None)


def nearest(settings: Sequence[Measured], *, memory: int | None = None, fps: float | None = None) -> Measured:
    """Return the setting that misses a budget by the smallest factor."""
    return min(settings, key=lambda one: _excess(one, memory, fps))


def _excess(one: Measured, memory: int | None, fps: float | None) -> float:
    """Return the factor by which a setting misses a budget; up to 1, it keeps to it."""
    return max(0.0 if memory is None else one.memory / memory, 0.0 if fps is None else fps / one.fps)


# ---------------------------------------------------------------------------------------------------------------------
# Drawing

_INK, _FAINT, _FRONT, _CHOSEN = "#16191d", "#8b949e", "#b4bac2", "#c62a36"
_STYLES: dict[str, tuple[str, str]] = {
    "exact, auto": ("o", "#2563eb"), "exact, float32": ("o", "#d97706"), "exact, half": ("o", "#059669"),
    "exact, int8": ("o", "#7c3aed"), "IVF,Flat": ("s", "#db2777"), "HNSW": ("^", "#0891b2"), "PQ": ("D", "#65a30d"),
    "IVF,PQ": ("v", "#92400e"),
}  # fmt: skip
_ERROR_TICKS = (0, 1e-4, 1e-3, 0.003, 0.01, 0.03, 0.06, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 2, 4)
_LABEL_HEIGHT = 0.04  # of the axis
_OTHER_STYLES = (("P", "#64748b"), ("X", "#0f172a"), ("*", "#be123c"), ("<", "#4d7c0f"), (">", "#7e22ce"))


def share(ratio: float) -> str:
    """Word a share.

    Example:
        >>> share(0.001), share(0.1)
        ('0.1 %', '10 %')
    """
    return f"{ratio * 100:.3g} %"


def figure(
    settings: Sequence[Measured],
    *,
    by: By = "error",
    recommended: Measured | None = None,
    memory: int | None = None,
    fps: float | None = None,
    title: str = "",
) -> Any:
    """Draw accuracy over memory and over frames a second, each with its front as a line.

    Args:
        settings: of a :class:`Sweep`, or read back with :meth:`Measured.from_json`.
        by: what to draw upwards.
        recommended: to be ringed.
        memory: the budget in bytes, for a line where it ends.
        fps: likewise, frames a second.
        title: above the figure.

    Returns:
        A ``matplotlib.figure.Figure``, not shown and not saved.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    check_drawing()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(11, 5.2), dpi=120, facecolor="white", layout="constrained")
    FigureCanvasAgg(made)
    panels = made.subplots(1, 2, sharey=True)
    views: list[tuple[Callable[[Measured], float], str, float | None, int]] = [
        (lambda one: one.memory / 1e6, "memory, MB", None if memory is None else memory / 1e6, 1),
        (lambda one: one.fps, "frames a second", fps, -1),
    ]
    for axes, (value, name, limit, sign) in zip(panels, views, strict=True):
        _draw_panel(axes, settings, value, by, sign)
        _label_axes(axes, name, by)
        if by == "error" or sign > 0:  # over the frame rate, AUROC has many ratios in one place
            _label_ratios(axes, settings, value, by)
        if limit is not None:
            axes.axvline(limit, color=_FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
        if recommended is not None:
            place = value(recommended), _height(recommended, by)
            axes.scatter(*place, s=190, facecolors="none", edgecolors=_CHOSEN, linewidths=2, zorder=5)
    panels[0].set_ylabel("error of the patch scores against all rows" if by == "error" else "AUROC of the images")
    handles, names = panels[0].get_legend_handles_labels()
    made.legend(handles, names, loc="outside lower center", ncols=5, frameon=False, fontsize=9, labelcolor=_INK)
    if title:
        made.suptitle(title, fontsize=11, color=_INK)
    return made


def check_drawing() -> None:
    """Say before the work that there is nothing to draw with."""
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "multimodal", "drawing the settings")


def _height(one: Measured, by: By) -> float:
    return one.cost(by) if by == "error" else 1 - one.cost(by)


def _kind(one: Measured) -> str:
    """Return the series of a setting: the precision of an exact search, or the kind of a FAISS index."""
    return f"exact, {one.precision}" if one.setting.is_exact else re.sub(r"\d+(x\d+(fs)?)?", "", one.index)


def _draw_panel(axes: Any, settings: Sequence[Measured], value: Callable[[Measured], float], by: By, sign: int) -> None:
    """Draw the points of each series, and the front of the two quantities behind them."""
    on_front = non_dominated([(sign * value(one), one.cost(by)) for one in settings])
    front = sorted((value(one), _height(one, by)) for one, on in zip(settings, on_front, strict=True) if on)
    axes.plot(*zip(*front, strict=True), color=_FRONT, linewidth=2.4, zorder=1, label="front")
    others = [name for name in dict.fromkeys(map(_kind, settings)) if name not in _STYLES]
    styles = _STYLES | {name: _OTHER_STYLES[i % len(_OTHER_STYLES)] for i, name in enumerate(others)}
    for name, (marker, colour) in styles.items():
        points = [(value(one), _height(one, by)) for one in settings if _kind(one) == name]
        if points:
            axes.scatter(
                *zip(*points, strict=True), s=34, marker=marker, color=colour, alpha=0.9, linewidths=0, zorder=3,
                label=name if name.startswith("exact") else f"FAISS {name}",
            )  # fmt: skip


def _label_axes(axes: Any, name: str, by: By) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    left, right = axes.dataLim.intervalx
    axes.set_xscale("log")
    axes.margins(x=0.2)
    axes.set_xlabel(name, color=_INK)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3) if right > 100 * left else (1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    low, high = axes.dataLim.intervaly
    if by == "error":  # by its root: small errors are told apart, and 0 has a place
        axes.set_yscale("function", functions=(_signed_root, lambda y: y * abs(y)))
        top = max(1.12 * high, 1e-4)
        axes.set_ylim(-0.001 * top, top)
        axes.set_yticks([tick for tick in _ERROR_TICKS if tick <= top and not 0 < tick < top / 200])
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: share(value)))
    else:
        axes.set_ylim(low - max(0.08 * (1 - low), 0.005), 1 + max(0.08 * (1 - low), 0.005))
        axes.set_yticks([tick for tick in axes.get_yticks() if axes.get_ylim()[0] <= tick <= 1])
    axes.set_axisbelow(True)
    axes.grid(color="#e3e6ea", linewidth=0.8)
    axes.tick_params(colors=_INK, labelsize=9, length=3)
    for side, spine in axes.spines.items():
        spine.set(visible=side in ("left", "bottom"), color=_FAINT)


def _signed_root(y: Any) -> Any:
    return np.sign(y) * np.sqrt(np.abs(y))


def _label_ratios(axes: Any, settings: Sequence[Measured], value: Callable[[Measured], float], by: By) -> None:
    """Write each ratio left of its exact settings and of what lies at their height (its own, if none is exact)."""
    from matplotlib.patheffects import withStroke

    roots = [float(_signed_root(_height(one, by))) for one in settings]
    for ratio in dict.fromkeys(one.ratio for one in settings):
        own = [i for i, one in enumerate(settings) if one.ratio == ratio]
        shown = [i for i in own if settings[i].setting.is_exact] or own
        beside = [i for i, root in enumerate(roots) if abs(root - roots[shown[0]]) <= _LABEL_HEIGHT * max(roots)]
        left = min(value(settings[i]) for i in (beside if by == "error" else shown))
        offset, aligned = ((-11, -3), "right") if by == "error" else ((0, 9), "center")
        axes.annotate(
            share(ratio), (left, _height(settings[shown[0]], by)), xytext=offset, textcoords="offset points",
            ha=aligned, fontsize=8.5, color=_INK, zorder=2, path_effects=[withStroke(linewidth=3, foreground="white")],
        )  # fmt: skip
