"""Growth of selection and search with their sizes, and where each index overtakes the exact search."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from common import Column, Options, Table, alternate
from inputs import SearchSet, search_set
from peers import FLAT, Graph, Search, Searcher, graphs, greedy_loop, import_faiss, inverted_files, searchers

import mmad_bank as mb
from mmad_bank.synthetic.textures import texture_features
from parts.search import brute_force

OWN, LOOP, EXACT = "mmad-bank", "field's loop", "mmad-bank, exact"


@dataclass(frozen=True)
class Sizes:
    """Sizes that are measured: full ones, or small ones just to see whether it runs."""

    images: int  # of the selection's features, 784 rows each
    selection_rows: tuple[int, ...]
    selection_dims: tuple[int, ...]
    selection_picks: tuple[float, ...]  # shares of the rows
    fixed_rows: int  # where the rows do not vary
    loop_picks: int  # that the field's loop is timed for
    bank_images: int
    banks: tuple[int, ...]
    search_dims: tuple[int, ...]
    neighbors: tuple[int, ...]
    bank_counts: tuple[int, ...]
    fixed_bank: int  # where its size does not vary


FULL = Sizes(
    images=80, selection_rows=(3920, 7840, 15680, 31360, 62720), selection_dims=(82, 164, 328, 656),
    selection_picks=(0.01, 0.025, 0.05, 0.1, 0.2, 0.4), fixed_rows=31360, loop_picks=10, bank_images=244,
    banks=(598, 1196, 2391, 4782, 9565, 19129, 38258, 76516), search_dims=(96, 192, 384, 768),
    neighbors=(1, 2, 4, 8, 16, 32), bank_counts=(1, 2, 3, 4, 6), fixed_bank=19129,
)  # fmt: skip
QUICK = Sizes(
    images=2, selection_rows=(392, 784, 1568), selection_dims=(82, 328), selection_picks=(0.05, 0.1), fixed_rows=784,
    loop_picks=2, bank_images=2, banks=(75, 150, 300), search_dims=(96, 384), neighbors=(1, 4), bank_counts=(1, 2),
    fixed_bank=300,
)  # fmt: skip

CURVE_COLUMNS = [
    Column("job", "job"),
    Column("over", "grows with"),
    Column("name", "program"),
    Column("fixed", "held fixed"),
    Column("range", "range"),
    Column("first_ms", "ms at the smallest", ".1f"),
    Column("last_ms", "ms at the largest", ".1f"),
    Column("exponent", "exponent", ".2f"),
    Column("stderr", "± standard error", ".2f"),
    Column("r2", "R²", ".3f"),
]
OVERTAKING_COLUMNS = [
    Column("name", "index"),
    Column("overtakes", "faster than mmad-bank's exact search from"),
    Column("overtakes_recall", "recall@1 there", ".1%"),
    Column("overtakes_flat", "faster than faiss Flat from", detail=True),
    Column("last_speedup", "× as fast at the largest bank", ".2f"),
    Column("last_recall", "recall@1 there", ".1%"),
    Column("last_build_s", "preparation s there", ".1f", detail=True),
]

Point = dict[str, Any]
"""``x``, ``median``, ``min``, ``max``, ``samples`` in seconds; of an index ``recall``, ``ratio``, ``build_s``."""


def run(options: Options, limits: Mapping[str, float]) -> list[Table]:
    """Measure the curves of both jobs, and all indices over bank sizes."""
    del limits
    sizes = QUICK if options.quick else FULL
    rounds = min(options.rounds, 3)  # of the selection, which takes seconds
    curves = _selection_curves(sizes, options.threads, rounds)
    data = search_set(sizes.bank_images, max(sizes.banks))
    indices = _over_banks(data, sizes.banks, options)
    shape = f"{len(data.queries['good'])} queries, D = {data.bank.shape[1]}, k = 1"
    curves += [_curve("search", "bank size M", name, shape, indices[name]) for name in (EXACT, FLAT) if indices[name]]
    curves += _search_curves(data, sizes, options)
    return [_curves_table(curves), _sizes_table(indices, data, shape), overtaking_table(indices)]


# ---------------------------------------------------------------------------------------------------------------------
# Fits


def fit(points: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Fit ``seconds = scale · x ** exponent`` by least squares of the logarithms.

    Returns:
        ``scale``, ``exponent``, and from three points on ``stderr``, the exponent's standard error, and ``r2``.
        Nothing for fewer than two points.
    """
    if len(points) < 2:
        return {}
    x, y = (np.log([point[key] for point in points]) for key in ("x", "median"))
    spread = x - x.mean()
    exponent = float(spread @ y / (spread @ spread))
    fitted = {"scale": float(np.exp(y.mean() - exponent * x.mean())), "exponent": exponent}
    if len(points) < 3:
        return fitted
    errors, total = y - y.mean() - exponent * spread, y - y.mean()
    left, whole = float(errors @ errors), float(total @ total)
    stderr = math.sqrt(left / (len(points) - 2) / float(spread @ spread))
    return {**fitted, "stderr": stderr, "r2": 1.0 - left / whole if whole else 1.0}


def _curve(job: str, over: str, name: str, fixed: str, points: Sequence[Point]) -> dict[str, Any]:
    """Return a curve's row, with all its points."""
    first, last = points[0], points[-1]
    return {
        "job": job, "over": over, "name": name, "fixed": fixed, "range": f"{first['x']} to {last['x']}",
        "first_ms": first["median"] * 1e3, "last_ms": last["median"] * 1e3, **fit(points), "points": list(points),
    }  # fmt: skip


def _time(work: Mapping[tuple[str, int], Callable[[], Any]], rounds: int) -> dict[str, list[Point]]:
    """Time every program at every size in turn; return the points by program."""
    timings = alternate({f"{name}\n{x}": job for (name, x), job in work.items()}, rounds)
    points: dict[str, list[Point]] = {}
    for name, x in work:
        points.setdefault(name, []).append({"x": x, **timings.of(f"{name}\n{x}")})
    return points


def _curves_of(
    job: str, over: str, fixed: str, work: Mapping[tuple[str, int], Callable[[], Any]], rounds: int
) -> list[dict[str, Any]]:
    return [_curve(job, over, name, fixed, points) for name, points in _time(work, rounds).items()]


def _thread_counts(threads: int) -> list[int]:
    """Return the powers of two below the threads that were asked for, and these."""
    return [1 << i for i in range((threads - 1).bit_length())] + [threads]


def _with_threads(threads: int, restore: int, work: Callable[[], Any]) -> None:
    """Work with so many threads of PyTorch's, mmad-bank's and FAISS's pools."""
    _set_pools(threads)
    try:
        work()
    finally:
        _set_pools(restore)


def _set_pools(threads: int) -> None:
    torch.set_num_threads(threads)
    with suppress(ImportError):
        import_faiss(threads)


# ---------------------------------------------------------------------------------------------------------------------
# Selection


def _selection_curves(sizes: Sizes, threads: int, rounds: int) -> list[dict[str, Any]]:
    features = texture_features(sizes.images)
    rows, dim = features[: sizes.fixed_rows], features.shape[1]
    tenth = len(rows) // 10
    mixed = np.random.default_rng(0).permutation(dim)  # any part of them mixes the stages alike
    narrow = {d: np.ascontiguousarray(rows[:, mixed[:d]]) for d in sizes.selection_dims}
    few = _reordered(rows[: len(rows) // 4], max(sizes.bank_counts))
    select = mb.ops.k_center_greedy
    work: dict[str, tuple[str, dict[tuple[str, int], Callable[[], Any]]]] = {
        "rows N": (f"10 % selected, D = {dim}", {
            (name, n): partial(job, features[:n], n // 10)
            for n in sizes.selection_rows for name, job in ((OWN, select), (LOOP, partial(_loop, sizes.loop_picks)))
        }),
        "dimensions D": (f"{len(rows)} → {tenth}", {(OWN, d): partial(select, narrow[d], tenth) for d in narrow}),
        "vectors selected": (f"N = {len(rows)}, D = {dim}", {
            (OWN, n): partial(select, rows, n) for n in (int(len(rows) * share) for share in sizes.selection_picks)
        }),
        "number of banks": (f"{len(few[0])} × {dim} → {len(few[0]) // 10} each", {
            (OWN, n): partial(_select_banks, few[:n]) for n in sizes.bank_counts
        }),
        "threads": (f"{len(rows)} × {dim} → {tenth}", {
            (OWN, n): partial(_with_threads, n, threads, partial(select, rows, tenth)) for n in _thread_counts(threads)
        }),
    }  # fmt: skip
    found = [_curves_of("selection", over, fixed, jobs, rounds) for over, (fixed, jobs) in work.items()]
    return [curve for curves in found for curve in curves]


def _reordered(rows: np.ndarray, count: int) -> list[np.ndarray]:
    """Return the rows several times, each time with the dimensions in another order, which no distance notices."""
    orders = [np.random.default_rng(seed).permutation(rows.shape[1]) for seed in range(count)]
    return [np.ascontiguousarray(rows[:, order]) for order in orders]


def _select_banks(banks: Sequence[np.ndarray]) -> None:
    for rows in banks:
        mb.ops.k_center_greedy(rows, len(rows) // 10)


def _loop(picks: int, features: np.ndarray, n_select: int) -> float:
    """Return the seconds that the field's loop would take: every pick costs the same, a few are timed."""
    rows = torch.from_numpy(features)
    begin = time.perf_counter()
    greedy_loop(rows, picks + 1)
    return (time.perf_counter() - begin) / picks * n_select


# ---------------------------------------------------------------------------------------------------------------------
# Search


def _search_curves(data: SearchSet, sizes: Sizes, options: Options) -> list[dict[str, Any]]:
    """Measure what is not the bank's size: dimensions, neighbors, banks, threads."""
    bank, queries = data.bank[: sizes.fixed_bank], data.queries["good"]
    shape = f"{len(queries)} × {len(bank)}"
    mixed = np.random.default_rng(0).permutation(bank.shape[1])
    narrow = {d: data.columns(mixed[:d]) for d in sizes.search_dims}
    whole, many = _exact_searches(bank, options.threads), _many_banks(bank, queries, max(sizes.bank_counts))
    by_dim = {
        (name, d): partial(search, part.queries["good"], 1)
        for d, part in narrow.items()
        for name, search in _exact_searches(part.bank[: len(bank)], options.threads).items()
    }
    by_k = {(name, k): partial(search, queries, k) for k in sizes.neighbors for name, search in whole.items()}
    by_banks = {(EXACT, n): partial(_search_banks, *many, n) for n in sizes.bank_counts}
    by_threads = {
        (name, n): partial(_with_threads, n, options.threads, partial(search, queries, 1))
        for n in _thread_counts(options.threads) for name, search in whole.items()
    }  # fmt: skip
    found = _curves_of("search", "dimensions D", f"{shape}, k = 1", by_dim, options.rounds)
    full = f"{shape} × {bank.shape[1]}"
    found += _curves_of("search", "neighbors k", full, by_k, options.rounds)
    found += _curves_of("search", "number of banks", f"{full} each, k = 1", by_banks, options.rounds)
    return found + _curves_of("search", "threads", f"{full}, k = 1", by_threads, options.rounds)


def _exact_searches(bank: np.ndarray, threads: int) -> dict[str, Search]:
    """Return mmad-bank's search, and FAISS's exact one where it is installed."""
    flat = searchers(bank, threads, (FLAT,))[FLAT]
    return {EXACT: _own(bank), **({} if flat is None else {FLAT: flat.search})}


def _own(bank: np.ndarray) -> Search:
    index = mb.ops.SearchIndex(bank)
    return lambda queries, k: index.search(queries, k)[1].numpy()


def _many_banks(bank: np.ndarray, queries: np.ndarray, count: int) -> tuple[mb.MultiBank, dict[str, np.ndarray]]:
    """Return banks of equal cost, with the queries of each."""
    names = [f"bank{i}" for i in range(count)]
    banks = {name: mb.MemoryBank(rows) for name, rows in zip(names, _reordered(bank, count), strict=True)}
    return mb.MultiBank(banks), dict(zip(names, _reordered(queries, count), strict=True))


def _search_banks(banks: mb.MultiBank, queries: Mapping[str, np.ndarray], count: int) -> None:
    names = list(banks)[:count]
    mb.MultiBank({name: banks[name] for name in names}).search({name: queries[name] for name in names})


# ---------------------------------------------------------------------------------------------------------------------
# Indices


def _over_banks(data: SearchSet, sizes: Sequence[int], options: Options) -> dict[str, list[Point]]:
    """Measure every index in banks of several sizes; return its points.

    The bank's vectors are in the order of their selection, so its first M are the coreset of size M, and the graphs
    only take what comes to it.
    """
    growing = graphs(data.bank.shape[1], max(sizes), options.threads)
    found: dict[str, list[Point]] = {}
    for size in sorted(sizes):
        for name, points in _indices_at(data, size, growing, options).items():
            found.setdefault(name, []).extend(points)
    return found


def _indices_at(
    data: SearchSet, size: int, growing: Mapping[str, Graph | None], options: Options
) -> dict[str, list[Point]]:
    """Measure every index in a bank of one size; one that is not installed has no point."""
    bank, queries = data.bank[:size], data.queries["good"]
    begin = time.perf_counter()
    prepared: dict[str, Searcher | None] = {EXACT: Searcher(_own(bank), time.perf_counter() - begin)}
    prepared |= searchers(bank, options.threads, (FLAT,)) | inverted_files(bank, options.threads)
    prepared |= {name: graph and graph.grow(bank) for name, graph in growing.items()}
    ready = {name: index for name, index in prepared.items() if index is not None}
    timings = alternate({name: partial(index.search, queries, 1) for name, index in ready.items()}, options.rounds)
    asked = np.concatenate(list(data.queries.values()))
    truth = brute_force(asked, bank, 1)
    points: dict[str, list[Point]] = {name: [] for name in prepared}
    for name, index in ready.items():
        recall = float((index.search(asked, 1) == truth).mean())
        ratios = {"ratio": timings.ratio(name, EXACT), "ratios": timings.ratios(name, EXACT)}
        points[name].append({"x": size, **timings.of(name), **ratios, "recall": recall, "build_s": index.build_s})
    return points


def overtakes(points: Sequence[Point], exact: Sequence[Point]) -> int | None:
    """Return the smallest size from which on an index is the faster one; None if it is not at the largest."""
    first = None
    for point, reference in zip(reversed(points), reversed(exact), strict=True):
        if point["median"] >= reference["median"]:
            break
        first = int(point["x"])
    return first


def overtaking_table(indices: Mapping[str, Sequence[Point]]) -> Table:
    """Return where each index overtakes the exact search, and its recall there."""
    exact, flat = indices[EXACT], indices[FLAT]
    largest = exact[-1]["x"]
    table = Table(f"Where each index overtakes the exact search: banks to {largest} × 768", OVERTAKING_COLUMNS)
    table.headline = True
    for name, points in indices.items():
        if name == EXACT:
            continue
        if not points:
            table.rows.append({"name": name, "overtakes": "not installed"})
            continue
        last, first = points[-1], overtakes(points, exact)
        table.rows.append({
            "name": name, "overtakes": _from(first, largest), "overtakes_at": first,
            "overtakes_recall": next((point["recall"] for point in points if point["x"] == first), None),
            "overtakes_flat": _from(overtakes(points, flat), largest) if flat and name != FLAT else None,
            "last_speedup": exact[-1]["median"] / last["median"], "last_recall": last["recall"],
            "last_build_s": last["build_s"],
        })  # fmt: skip
    table.notes = [
        "From: the smallest measured bank from which on the index is faster at every size, by medians."
        " Preparation is not counted in the search; that of a graph is of all vectors up to there, added in steps.",
        "Recall@1: share of the patches of two unseen images, without and with defects, whose nearest vector by float64"
        " was found. Times are of the image without defects.",
        "faiss IVF has 4 √M lists; the graphs M 16, ef 200 while they are built and 64 in the search (usearch: its"
        " defaults).",
    ]
    return table


def _from(size: int | None, largest: int) -> str:
    return f"not up to {largest}" if size is None else f"{size}"


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def _curves_table(curves: list[dict[str, Any]]) -> Table:
    table = Table("Scaling: how the time grows", CURVE_COLUMNS, curves)
    table.notes = [
        "Exponent: b of time = a · size^b, by least squares of the logarithms over all points of the range; fixed costs"
        " flatten it at small sizes. Its standard error and R² need three points.",
        "Selection of the field's loop: extrapolated from a few picks in every round, all of which cost the same.",
        "Number of banks: the same vectors in each, its dimensions in an order of its own, so that all cost the same.",
    ]
    return table


def _sizes_table(indices: Mapping[str, Sequence[Point]], data: SearchSet, shape: str) -> Table:
    """Return the times of all indices by bank size."""
    sizes = [int(point["x"]) for point in indices[EXACT]]
    columns = [Column("name", "search, ms by bank size"), *(Column(f"at_{size}", f"{size}", ".2f") for size in sizes)]
    table = Table(f"Search by bank size: {shape}", columns)
    for name, points in indices.items():
        times = {f"at_{point['x']}": point["median"] * 1e3 for point in points}
        table.rows.append({"name": name, **times, "points": list(points)})
    table.notes = [f"Bank: the first vectors of a {data.origin}, which are the coreset of that size."]
    return table
