"""Settings of a bank measured on test images, the most telling ones first, within a time if one is given."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mmad_bank import ops
from mmad_bank._internal.checks import ArrayLike, as_float_tensor, check_finite, check_index
from mmad_bank._internal.checksum import checksum
from mmad_bank._internal.resume import Stages, counted, files_of, fingerprint_of
from mmad_bank.bank.dumps import open_dump
from mmad_bank.bank.memory_bank import Features
from mmad_bank.bank.projection import SparseProjection
from mmad_bank.bank.provenance import Source
from mmad_bank.bank.reporting import Progress, reporting
from mmad_bank.bank.selection import selection_space
from mmad_bank.errors import InputError
from mmad_bank.ops.knn import Precision, check_precision
from mmad_bank.scoring import Reweight, check_reweight
from mmad_bank.tuning.measuring import Clock, Measuring, Sweep
from mmad_bank.tuning.picks import Picks
from mmad_bank.tuning.plan import PRECISIONS, RATIOS, Asked, check_indices, check_ratios


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
    """Measure settings of a bank: error of the scores, AUROC, memory, frames per second.

    Ratios come in an order that spreads them (:func:`order_of_ratios`); within a limit of time, all with the first
    precision before the other precisions and indices. What is measured together scores the images in turn, one image at
    a time, so that what disturbs the machine disturbs all of it; a first image is not counted. All rows
    as float32, the selection, and the search copies and indices of one ratio are in memory.

    Args:
        features: Features of normal samples, as for :meth:`MemoryBank.build`.
        images: (B, P, D) patch features of images that are not among them.
        labels: (B,) 0 for normal images, above 0 for anomalous ones.
        ratios: Ratios of the coreset; 1 takes all rows.
        precisions: Precisions of the exact search's resident copy.
        indices: ``"exact"`` and FAISS factory strings. Default: exact, and with FAISS installed an inverted file, a
            graph and product quantisers of a size that suits the number of vectors (:func:`faiss_indices`).
        reweight: Rule of the image score.
        n_neighbors: Number of neighbours of the rule.
        projection_dim: Dimensions of a random projection to select in.
        seed: Seed of the projection.
        rounds: Number of rounds that the timed images of a setting are cut into; images come again where there are
            fewer.
        timed: Seconds that each setting is timed for at least.
        time_limit: Seconds in all; what cannot be expected to end by then is left out. Default: no limit. The first
            setting is measured in any case.
        workdir: Folder for results as they come; a later call with the same features, images, rule and projection goes
            on from there. What was timed in fewer rounds or for less time is measured again.
        found: Function that is called with what is known so far, each time that something was measured.
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
    asked = Asked(check_ratios(ratios), [check_precision(one) for one in precisions], indices)
    dump = open_dump(features)
    tests = _check_images(images, dump.dim)
    truth = _check_labels(labels, len(tests))
    projection = SparseProjection.create(dump.dim, len(dump), projection_dim, seed)
    with reporting(progress) as report:
        rows = selection_space(dump, None, report, n_select=1).cpu()
        check_indices(asked, rows)
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
        picks = Picks(rows, projection, stages, report)
        clock = Clock(begin, time_limit)
        measuring = Measuring(asked, picks, tests, truth, reweight, n_neighbors, rounds, timed, clock, stages, report)
        measuring.notes = notes
        measuring.run(found)
        return measuring.result()


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
"""Names of what measurements depend on, by its name in the fingerprint."""
