"""Run every check of CASES on the emulated processor: `python cpu_emulated_checks.py LIBRARY FOLDER`, failures as JSON.

A process of its own, because its whole memory is mapped into the emulator: it imports nothing large.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np

KERNELS = ("generic", "avx2", "avx512", "avx512_vnni", "amx")
FORMATS = ("float32", "fixed16", "fixed8", "signed8", "signed7", "bfloat16")
ISAS = ("generic", "avx2", "avx512", "amx")
PRODUCTS = [(kernels, fmt) for kernels in KERNELS[:4] for fmt in FORMATS[:3]] + [("amx", "fixed8"), ("amx", "bfloat16")]
CASES = [
    *(f"tile {kernels} {fmt} {depth}" for kernels, fmt in PRODUCTS for depth in (64, 192, 256)),
    *(
        f"{what} {isa} {precision}"
        for isa in ("avx512", "amx")
        for what, precisions in (
            ("knn", ("float32", "half", "int8")),
            ("coarse_knn", ("int8",)),
            ("k_center", ("float32", "half")),  # no selection is made in int8
        )
        for precision in precisions
    ),
]


class Tile(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("kernels", "format", "rows", "panels")),
        ("a", ctypes.c_void_p), ("row_bytes", ctypes.c_int64),
        ("b", ctypes.c_void_p), ("panel_bytes", ctypes.c_int64), ("depth", ctypes.c_int64),
        ("accumulators", ctypes.c_void_p), ("screened_rows", ctypes.c_int64), ("terms", ctypes.c_void_p),
        *((name, ctypes.c_void_p) for name in ("base", "scale", "norm", "residual", "lower", "passed")),
        ("any", ctypes.c_int64),
    ]  # fmt: skip


class Search(ctypes.Structure):
    _fields_ = [
        ("isa", ctypes.c_int64), ("precision", ctypes.c_char_p),
        ("bank", ctypes.c_void_p), ("size", ctypes.c_int64), ("queries", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("count", "dim", "k", "coarse")),
        ("distances", ctypes.c_void_p), ("indices", ctypes.c_void_p),
    ]  # fmt: skip


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_bfloat16(values: np.ndarray) -> np.ndarray:
    return (values.astype(np.uint32) << 16).view(np.float32)


class Operands:
    """Rows and columns of one tile, as values and as the kernel reads them."""

    def __init__(self, kernels: str, fmt: str, rows: int, panels: int, depth: int, rng: np.random.Generator) -> None:
        columns = 16 * panels
        self.floating = fmt in ("float32", "bfloat16")
        if fmt == "fixed8":
            self.b = stored = rng.integers(1, 256, (columns, depth)).astype(np.uint8)  # with the bias
        elif fmt == "fixed16":
            self.b = stored = rng.integers(-1500, 1501, (columns, depth)).astype(np.int16)
        else:
            stored = rng.normal(size=(columns, depth)).astype(np.float32)
            self.b = stored if fmt == "float32" else from_bfloat16(to_bfloat16(stored))
            stored = stored if fmt == "float32" else to_bfloat16(stored)
        if fmt == "bfloat16":
            packed = to_bfloat16(rng.normal(size=(rows, depth)))
            self.a = from_bfloat16(packed)
        elif fmt == "float32":
            self.a = packed = rng.normal(size=(rows, depth)).astype(np.float32)
        elif fmt == "fixed8":
            largest = 63 if kernels in ("avx2", "avx512") else 127
            self.a = packed = rng.integers(-largest, largest + 1, (rows, depth)).astype(np.int8)
            self.a[0], self.b[0] = largest, 255  # the largest sums of pairs
        else:
            self.a = packed = rng.integers(-1500, 1501, (rows, depth)).astype(np.int16)
            if fmt == "fixed16":  # the largest sum that the format allows: just below 2^31
                for side in (self.a, self.b):
                    side[0] = 0
                    side[0, :2] = 32767
        self.rows = np.full((rows, depth + 32), 99, packed.dtype)  # a longer row stride, and something to misread
        self.rows[:, :depth] = packed
        group = 4 // stored.itemsize  # values that lie together
        shaped = stored.reshape(panels, 16, depth // group, group)
        self.panels = np.ascontiguousarray(shaped.transpose(0, 2, 1, 3))


def check_tile(run: Any, kernels: str, fmt: str, depth: str) -> None:
    rng = np.random.default_rng(5)
    tile = Tile(kernels=KERNELS.index(kernels), format=FORMATS.index(fmt), depth=int(depth))
    run("tile_shape", tile)
    assert tile.rows > 0, "there is no such kernel"
    operands = Operands(kernels, fmt, tile.rows, tile.panels, tile.depth, rng)
    sums = np.full((tile.rows, 16 * tile.panels), -77, np.float32 if operands.floating else np.int32)
    tile.a, tile.row_bytes = operands.rows.ctypes.data, operands.rows.strides[0]
    tile.b, tile.panel_bytes = operands.panels.ctypes.data, operands.panels.strides[0]
    tile.accumulators = sums.ctypes.data
    run("tile_multiply", tile)
    exact = operands.a.astype(np.float64) @ operands.b.T.astype(np.float64)
    if operands.floating:
        unit = tile.depth * 2.0**-24
        bound = np.outer(*(np.linalg.norm(side.astype(np.float64), axis=1) for side in (operands.a, operands.b)))
        assert (np.abs(sums - exact) <= unit / (1 - unit) * bound).all(), "beyond the accumulation bound"
    else:
        assert np.array_equal(sums, exact.astype(np.int64)), "integer sums differ"
    check_screen(run, tile, sums, rng)


def check_screen(run: Any, tile: Tile, sums: np.ndarray, rng: np.random.Generator) -> None:
    """All rows but the last are screened; what belongs to that one stays as it was."""
    rows, columns = sums.shape[0] - 1, sums.shape[1]
    terms = rng.random((rows + 1, 5), dtype=np.float32)
    offsets = terms.view(np.int32)[:, 4]
    offsets[:] = 0 if sums.dtype == np.float32 else rng.integers(-5000, 5000, rows + 1)
    sums = sums - offsets[:, None].astype(sums.dtype)
    base, scale, norm, residual = rng.random((4, columns), dtype=np.float32)
    scale /= np.abs(sums.astype(np.float64)).max()
    base[5] = np.inf
    factor = [terms[:rows, i : i + 1].astype(np.float64) for i in range(3)]
    exact = base - factor[0] * (scale * sums[:rows].astype(np.float64)) - factor[1] * norm - factor[2] * residual
    terms[:rows, 3] = np.median(exact, axis=1)
    lower = np.full(sums.shape, -77, np.float32)
    passed = np.full(rows + 1, 0xDEADBEEF, np.uint32)
    tile.screened_rows, tile.terms = rows, terms.ctypes.data
    tile.base, tile.scale, tile.norm, tile.residual = (x.ctypes.data for x in (base, scale, norm, residual))
    tile.lower, tile.passed = lower.ctypes.data, passed.ctypes.data
    run("tile_screen", tile)
    bits = (passed[:rows, None] >> np.arange(columns) & 1).astype(bool)
    finite = np.isfinite(exact)
    assert (np.abs(lower[:rows][finite] - exact[finite]) < 1e-6).all(), "lower bounds differ"
    assert np.array_equal(bits, lower[:rows] <= terms[:rows, 3:4]), "bits differ"
    assert tile.any & 1, "nothing passed"
    assert passed[rows] == 0xDEADBEEF, "a row too many"
    assert (lower[rows] == -77).all(), "a row too many"
    terms[:, 3] = -1e30
    run("tile_screen", tile)
    assert not tile.any & 1, "something passed"
    assert not passed[:rows].any(), "something passed"


def rows_with_ties(count: int, dim: int) -> np.ndarray:
    rng = np.random.default_rng(9)
    rows = (rng.normal(size=(count, dim)) + 3).astype(np.float32)
    rows[count // 3 : count // 3 + 9] = rows[0]
    return rows


def check_knn(run: Any, isa: str, precision: str) -> None:
    search_and_compare(run, isa, precision, rows_with_ties(333, 77), coarse=0)


def check_coarse_knn(run: Any, isa: str, precision: str) -> None:
    """Wide rows near a plane, where a coarse level rules most pairs out."""
    basis = np.random.default_rng(8).normal(size=(8, 208))
    search_and_compare(run, isa, precision, (rows_with_ties(333, 8) @ basis).astype(np.float32), coarse=64)


def search_and_compare(run: Any, isa: str, precision: str, bank: np.ndarray, *, coarse: int) -> None:
    rng, dim = np.random.default_rng(10), bank.shape[1]
    queries = bank[rng.integers(0, len(bank), 45)] + rng.normal(scale=0.01, size=(45, dim)).astype(np.float32)
    queries[0] = bank[0]
    squared = np.square(queries[:, None].astype(np.float64) - bank[None].astype(np.float64)).sum(-1)
    order = np.argsort(squared, axis=1, kind="stable")[:, :5]
    distances, indices = np.full((45, 5), -1, np.float32), np.full((45, 5), -1, np.int64)
    search = Search(
        ISAS.index(isa), precision.encode(), bank.ctypes.data, len(bank), queries.ctypes.data, 45, dim, 5, coarse,
        distances.ctypes.data, indices.ctypes.data,
    )  # fmt: skip
    run("knn", search)
    assert np.array_equal(indices, order), "indices differ"
    assert np.allclose(distances, np.sqrt(np.take_along_axis(squared, order, 1)), rtol=1e-6, atol=0), "distances differ"


def check_k_center(run: Any, isa: str, precision: str) -> None:
    rows = rows_with_ties(300, 53)
    wide, nearest, picks = rows.astype(np.float64), np.full(len(rows), np.inf), [0]
    while len(picks) < 90:
        nearest = np.minimum(nearest, np.square(wide - wide[picks[-1]]).sum(1))
        nearest[picks[-1]] = -1
        picks.append(int(nearest.argmax()))
    indices = np.full(90, -1, np.int64)
    search = Search(
        ISAS.index(isa), precision.encode(), rows.ctypes.data, len(rows), None, 0, 53, 90, 0, None, indices.ctypes.data
    )
    run("k_center_greedy", search)
    assert indices.tolist() == picks, "picks differ"


def main(library: Path, folder: Path) -> None:
    from cpu_emulator import Cpu

    kernels = ctypes.CDLL(str(library))
    cpu = Cpu(folder)
    assert cpu.trap_tiles(library) > 0, "no AMX instruction in the library"
    checks = {"tile": check_tile, "knn": check_knn, "coarse_knn": check_coarse_knn, "k_center": check_k_center}
    failures = {}
    for case in CASES:
        what, *arguments = case.split()
        before = sum(cpu.tiles.executed.values())
        try:
            checks[what](lambda name, argument: cpu.call(getattr(kernels, name), argument), *arguments)
            uses_tiles = arguments[0] == "amx" and arguments[1] != "float32"
            used = sum(cpu.tiles.executed.values()) > before
            assert used == uses_tiles, "AMX instructions where none belong, or none where they do"
        except Exception:
            failures[case] = traceback.format_exc(limit=-2)
    print(json.dumps(failures))
    sys.stdout.flush()
    os._exit(0)  # the emulator's bindings complain about objects that are alive when Python ends


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]))
