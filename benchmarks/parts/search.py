"""Exact search: mmad-bank against exact and approximate peers, bank prepared beforehand, on real features."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from common import Column, Contestant, Options, Table, alternate, emulates_bfloat16
from inputs import COLUMNS_656, SearchSet, search_set
from peers import searchers

import mmad_bank as mb
from parts import search_sets

# What mmad-bank offers; float32 is the search with its low-precision path switched off.
PRECISIONS = ("auto", "half", "int8", "float32")
REFERENCE, FLOAT32 = "mmad-bank, auto", "mmad-bank, float32"

COLUMNS = [
    Column("name", "search"),
    Column("median", "ms", ".1f"),
    Column("min", "min", ".1f", detail=True),
    Column("max", "max", ".1f", detail=True),
    Column("ratio", "× auto", ".2f"),
    Column("ratio_float32", "× float32", ".2f", detail=True),
    Column("recall", "recall", ".3%"),
    Column("exact", "neighbors as float64", detail=True),
    Column("build_ms", "preparation ms", ".0f", detail=True),
    Column("resident_mb", "resident MB", ".1f", detail=True),
]

GENERAL_NOTES = [
    "× auto, × float32: how many times longer than mmad-bank's search with those precisions, medians over the rounds;"
    " float32 is the search without its low-precision path. All banks are prepared beforehand, the peers' too.",
    "Recall: share of float64 brute force's k neighbors among those returned. FAISS and torch.cdist are exact up to"
    " float32 rounding; FAISS's matrix product is told the processor's instructions; the approximate peers run with"
    " M 16, ef 200 / 64 (hnswlib) and defaults (usearch).",
]


def run(options: Options, limits: Mapping[str, float]) -> list[Table]:
    """Measure the search of one image's 784 patches in a bank of 19 129 vectors, k = 1 and k = 9."""
    n_images, n_bank = (2, 300) if options.quick else (244, 19129)
    whole = search_set(n_images, n_bank, n_queries=98 if options.quick else 784)
    tables = []
    for data in (whole.columns(COLUMNS_656), whole):
        prepared = _prepare(data.bank, options)
        for kind, queries in data.queries.items():
            tables += [_measure(prepared, data, queries, kind, k, options, limits) for k in (1, 9)]
    tables[-1].notes += GENERAL_NOTES
    return [*tables, _by_instruction_set(options)]


SET_COLUMNS = [
    Column("name", "queries × bank × dimensions"),
    Column("k", "k", "d"),
    Column("isa", "instruction set"),
    Column("auto_ms", "mmad-bank ms", ".1f"),
    Column("faiss_ms", "IndexFlatL2 ms", ".1f"),
    Column("times", "times as fast", ".2f"),
    Column("exact", "neighbors as float64"),
]


def _by_instruction_set(options: Options) -> Table:
    """Measure one image and the shapes of M3DM's published run with each set of instructions that is there."""
    table = Table("Search by instruction set: mmad-bank, auto, against FAISS IndexFlatL2", SET_COLUMNS)
    for name in search_sets.NAMES:
        for isa in search_sets.SETS:
            settings = {"name": name, "quick": options.quick, "threads": options.threads, "rounds": options.rounds}
            table.rows += search_sets.rows_of(isa, settings)
    table.notes = [
        "Both sides are held to the set: FAISS by FAISS_OPT_LEVEL, its matrix product by OPENBLAS_CORETYPE. Each row is"
        " measured in a process of its own, the contestants in turn; the ratio is the median over the rounds.",
        "One image: patches of a texture against a coreset of 244 images. xyz, rgb, fusion: the sizes of M3DM's"
        " published run, with real features of two textures; the neighbors of every sixteenth query are checked.",
    ]
    return table


@dataclass
class _Prepared:
    """The contestants with their banks prepared: what searches, preparation in seconds, resident bytes."""

    search: dict[str, Any]
    build_s: dict[str, float]
    nbytes: dict[str, int]
    missing: list[str]


def _prepare(bank: np.ndarray, options: Options) -> _Prepared:
    prepared = _Prepared({}, {}, {}, [])
    for precision in PRECISIONS:
        name = f"mmad-bank, {precision}"
        begin = time.perf_counter()
        index = mb.ops.SearchIndex(bank, precision=precision)
        prepared.build_s[name] = time.perf_counter() - begin
        prepared.search[name] = lambda queries, k, index=index: index.search(queries, k)[1].numpy()
        prepared.nbytes[name] = index.nbytes
    prepared.search["mmad-bank, one shot (ops.knn)"] = lambda queries, k: mb.ops.knn(queries, bank, k)[1].numpy()
    for name, searcher in searchers(bank, options.threads).items():
        if searcher is None:
            prepared.missing.append(name)
        else:
            prepared.search[name], prepared.build_s[name] = searcher.search, searcher.build_s
    return prepared


def _measure(
    prepared: _Prepared,
    data: SearchSet,
    queries: np.ndarray,
    kind: str,
    k: int,
    options: Options,
    limits: Mapping[str, float],
) -> Table:
    contestants: dict[str, Contestant] = {
        name: lambda search=search: search(queries, k) for name, search in prepared.search.items()
    }
    contestants |= _products(queries, data.bank, limits)
    timings = alternate(contestants, options.rounds, warmup=0 if options.quick else 1)
    truth = brute_force(queries, data.bank, k)
    shape = f"{len(queries)} × {len(data.bank)} × {data.bank.shape[1]}"
    headline = kind == "good" and k == 1 and data.bank.shape[1] == 768
    table = Table(f"Search: {shape}, k = {k}, an image {_KINDS[kind]}", COLUMNS, headline=headline)
    for name in timings.seconds:
        row = {key: _milliseconds(value) for key, value in timings.of(name).items()}
        row |= {"name": name, "ratio": timings.ratio(name, REFERENCE), "ratio_float32": timings.ratio(name, FLOAT32)}
        if name in prepared.search:
            row |= _quality(prepared.search[name](queries, k), truth, exact=name.startswith("mmad-bank"))
        if name in prepared.build_s:
            row["build_ms"] = prepared.build_s[name] * 1e3
        if name in prepared.nbytes:
            row["resident_mb"] = prepared.nbytes[name] / 1e6
        table.rows.append(row)
    table.rows += [{"name": name, "exact": "not installed"} for name in prepared.missing]
    if emulates_bfloat16(limits):
        table.rows.append({"name": "bare matrix product, bfloat16", "exact": "emulated here, not run"})
    table.notes = _notes(data, queries, limits)
    return table


_KINDS = {"good": "without defects", "defect": "with a scratch and a pasted patch"}


def _notes(data: SearchSet, queries: np.ndarray, limits: Mapping[str, float]) -> list[str]:
    flop = 2.0 * len(queries) * data.bank.size
    peaks = {"float32": limits["fp32_gflops"], "bfloat16": limits["bf16_gflops"]}
    if emulates_bfloat16(limits):
        del peaks["bfloat16"]
    times = " and ".join(f"{flop / peak / 1e6:.1f} ms at the {name} product's" for name, peak in peaks.items())
    return [
        f"Bank: {data.origin}, float32 {data.bank.nbytes / 1e6:.1f} MB. Queries: the patches of an image cut from a"
        " part of the photograph that the bank never saw.",
        f"Ceiling: {flop / 1e9:.1f} GFLOP are {times} rate on this machine.",
    ]


def _milliseconds(value: Any) -> Any:
    return [sample * 1e3 for sample in value] if isinstance(value, list) else value * 1e3


def _products(queries: np.ndarray, bank: np.ndarray, limits: Mapping[str, float]) -> dict[str, Contestant]:
    """Return the bare matrix products of the same shape; bfloat16's only where the machine does not emulate it."""
    found = {}
    types = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    for name, dtype in types.items():
        if dtype == torch.bfloat16 and emulates_bfloat16(limits):
            continue
        a, b = torch.from_numpy(queries).to(dtype), torch.from_numpy(bank).to(dtype).T
        out = torch.empty(len(queries), len(bank), dtype=dtype)
        found[f"bare matrix product, {name}"] = lambda a=a, b=b, out=out: torch.mm(a, b, out=out)
    return found


def _quality(found: np.ndarray, truth: np.ndarray, *, exact: bool) -> dict[str, Any]:
    wrong = int((found != truth).any(1).sum())
    hits = (found[:, :, None] == truth[:, None, :]).any(2).mean()
    verdict = "all equal" if wrong == 0 else f"{wrong} of {len(truth)} queries differ"
    return {"recall": float(hits), "wrong_queries": wrong, "exact": verdict if exact or wrong == 0 else None}


def brute_force(queries: np.ndarray, bank: np.ndarray, k: int) -> np.ndarray:
    """Return the k nearest bank rows of each query by float64 distances, ties to the lowest row: int64 (Q, k).

    A float64 product shortlists, with a margin far above its own error; the shortlist's distances are then computed
    from differences. A query whose shortlist cannot be shown to be complete is compared with every vector.
    """
    q, m = torch.from_numpy(queries).double(), torch.from_numpy(bank).double()
    shift = m.mean(0)
    norms_q, norms_m = (q - shift).square().sum(1, keepdim=True), (m - shift).square().sum(1)
    gram = norms_q + norms_m - 2 * (q - shift) @ (m - shift).T
    # Error of a product of length D: below D times the unit roundoff 2^-53 times the norms, here with room.
    margin = 1e-12 * q.shape[1] * (norms_q[:, 0] + norms_m.max())
    short = gram.topk(min(k + 16, len(bank)), largest=False).values[:, -1]
    kth = gram.kthvalue(k, dim=1).values
    nearest = torch.empty(len(q), k, dtype=torch.int64)
    for i in range(len(q)):
        complete = len(bank) <= k + 16 or short[i] > kth[i] + 2 * margin[i]
        rows = (gram[i] <= short[i]).nonzero()[:, 0] if complete else torch.arange(len(m))
        order = (m[rows] - q[i]).square().sum(1).sort(stable=True).indices
        nearest[i] = rows[order[:k]]
    return nearest.numpy()
