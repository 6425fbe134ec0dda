"""Coreset selection: mmad-bank against the field's loop and anomalib's class, on the same real features."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import peers
import torch
from common import Column, Contestant, Options, Table, Timings, alternate

import mmad_bank as mb
from mmad_bank.bank.projection import SparseProjection
from mmad_bank.synthetic.textures import texture_features

EXACT = "mmad-bank k_center_greedy"
PROJECTED = "mmad-bank, projected first"
LOOP = "field's loop (M3DM, BTF), projected first"
PLAIN = "field's loop without the projection"
ANOMALIB = "anomalib KCenterGreedy, projected first"
PRODUCT = "bare N×n×D product, float32"

COLUMNS = [
    Column("name", "selection"),
    Column("dim", "D used", "d", detail=True),
    Column("median", "seconds", ".2f"),
    Column("min", "min", ".2f", detail=True),
    Column("max", "max", ".2f", detail=True),
    Column("ms_per_pick", "ms per pick", ".3f", detail=True),
    Column("ratio", "× mmad-bank", ".2f"),
    Column("how", "how measured"),
]


def run(options: Options, limits: Mapping[str, float]) -> list[Table]:
    """Measure the selection of 10 % of 62 720 × 656 real features."""
    n_images, picks = (2, 20) if options.quick else (80, 100)
    features = texture_features(n_images)
    n_select = len(features) // 10
    race = _Race(features, n_select, picks)
    timings = alternate(race.contestants(), options.rounds, warmup=0 if options.quick else 1)
    table = Table(f"Selection: {len(features)} × {features.shape[1]} → {n_select}", COLUMNS, headline=True)
    table.rows = [race.row(name, timings) for name in timings.seconds]
    table.rows += [{"name": name, "how": "not installed"} for name in (LOOP, ANOMALIB) if name not in timings.seconds]
    if race.anomalib is not None and options.full:
        table.rows.append(_whole_anomalib(race, timings))
    table.notes = _notes(features, n_select, picks, race.dim, limits)
    return [table]


def _whole_anomalib(race: _Race, timings: Timings) -> dict[str, Any]:
    assert race.anomalib is not None
    seconds = sum(race.anomalib.seconds(torch.from_numpy(race.features), race.n_select))
    return {
        "name": ANOMALIB,
        "dim": race.dim,
        **dict.fromkeys(("median", "min", "max"), seconds),
        "ms_per_pick": seconds / race.n_select * 1e3,
        "ratio": seconds / timings.of(EXACT)["median"],
        "how": "run whole, once",
    }


def _notes(features: np.ndarray, n_select: int, picks: int, dim: int, limits: Mapping[str, float]) -> list[str]:
    flop = 2.0 * len(features) * n_select * features.shape[1]
    peak = limits["fp32_gflops"]
    return [
        f"Extrapolated rows: {picks} picks are timed in every round, and as every pick of a loop costs the same, the"
        f" total is the preparation plus {n_select} times the pick. Ratios are medians over the rounds.",
        f"Ceiling: the product has {flop / 1e9:.0f} GFLOP, {flop / 1e9 / peak:.2f} s at the {peak:.0f} GFLOP/s of this"
        " machine's float32 matrix product. mmad-bank's laziness may stay below it.",
        f"'Projected first' selects in {dim} random dimensions and gives another, approximate selection;"
        " mmad-bank k_center_greedy selects in all of them.",
    ]


class _Race:
    """The contestants of one feature array, and what they measure beside their time."""

    def __init__(self, features: np.ndarray, n_select: int, picks: int) -> None:
        self.features = features
        self.n_select = n_select
        self.picks = picks
        self.anomalib = peers.anomalib_k_center_greedy()
        projection = SparseProjection.create(features.shape[1], len(features), "auto", seed=0)
        assert projection is not None
        self.projection = projection
        self.dim = projection.dim_out
        self.per_pick: dict[str, list[float]] = {}

    def contestants(self) -> dict[str, Contestant]:
        """Return what is there, the reference first."""
        found: dict[str, Contestant] = {
            EXACT: lambda: mb.ops.k_center_greedy(self.features, self.n_select),
            PROJECTED: self._projected,
            PLAIN: lambda: self._loop(PLAIN, project=False),
            PRODUCT: self._product,
        }
        try:
            import sklearn  # noqa: F401
        except ImportError:
            pass
        else:
            found[LOOP] = lambda: self._loop(LOOP, project=True)
        if self.anomalib is not None:
            found[ANOMALIB] = self._anomalib
        return found

    def _projected(self) -> None:
        mb.ops.k_center_greedy(self.projection(torch.from_numpy(self.features)), self.n_select)

    def _loop(self, name: str, *, project: bool) -> float:
        begin = time.perf_counter()
        rows = peers.project_sparsely(self.features) if project else torch.from_numpy(self.features)
        prepared = time.perf_counter()
        peers.greedy_loop(rows, self.picks + 1)
        return self._extrapolate(name, prepared - begin, time.perf_counter() - prepared)

    def _anomalib(self) -> float:
        assert self.anomalib is not None
        return self._extrapolate(ANOMALIB, *self.anomalib.seconds(torch.from_numpy(self.features), self.picks + 1))

    def _extrapolate(self, name: str, preparation: float, loop: float) -> float:
        pick = loop / self.picks
        self.per_pick.setdefault(name, []).append(pick)
        return preparation + self.n_select * pick

    def _product(self) -> None:
        """Multiply all rows with as many centres as are selected: what no method with a distance matrix goes below."""
        rows = torch.from_numpy(self.features)
        centers = rows[: self.n_select].T.contiguous()
        out = torch.empty(4096, self.n_select)
        for block in rows.split(4096):
            torch.mm(block, centers, out=out[: len(block)])

    def row(self, name: str, timings: Timings) -> dict[str, Any]:
        """Return a contestant's row."""
        projected = name not in (EXACT, PLAIN, PRODUCT)
        of = timings.of(name)
        picks = self.per_pick.get(name)
        return {
            "name": name,
            "dim": self.dim if projected else self.features.shape[1],
            **of,
            "ms_per_pick": float(np.median(picks)) * 1e3 if picks else of["median"] / self.n_select * 1e3,
            "ratio": timings.ratio(name, EXACT),
            "ratios": timings.ratios(name, EXACT),
            "how": f"extrapolated from {self.picks} picks" if picks else "run whole",
        }
