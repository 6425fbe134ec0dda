"""Loading a saved bank of 350 MB, memory-mapped, and the size of its resident search copies.

Run as a program it is the measured process itself: one JSON argument in, one JSON line out.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Column, Options, Table
from inputs import wide_blocks

from mmad_bank.bank import MemoryBank
from mmad_bank.ops import SearchIndex
from parts.process import anonymous_bytes, drop_from_cache, run_fresh

MAX_SECONDS = 0.2
PRECISIONS = ("float32", "half", "int8")

LOAD_COLUMNS = [
    Column("where", "MemoryBank.load"),
    Column("runs", "runs", "d", detail=True),
    Column("median", "ms", ".1f"),
    Column("min", "min", ".1f", detail=True),
    Column("max", "max", ".1f", detail=True),
    Column("own_mb", "MB of memory taken", ".1f", detail=True),
    Column("first_search_ms", "first search, ms", ".0f"),
    Column("verdict", f"< {MAX_SECONDS} s"),
]
COPY_COLUMNS = [
    Column("precision", "resident copy"),
    Column("mb", "MB", ".1f"),
    Column("share", "share of the vectors", ".1%"),
    Column("equal", "answers (k = 1, 9)"),
]


def run(options: Options, limits: Mapping[str, float]) -> list[Table]:
    """Save a bank of 76 518 × 1152, load it in fresh processes and in this one, and search it in three precisions."""
    vectors, queries = _features(options)
    with tempfile.TemporaryDirectory(prefix="mmad-bank-load-", dir=options.workdir) as folder:
        path, asked = Path(folder) / "bank.safetensors", Path(folder) / "queries.npy"
        MemoryBank(vectors).save(path)
        np.save(asked, queries)
        loads = _loads(path, asked, options)
    title = f"Loading a saved bank of {len(vectors)} × {vectors.shape[1]}, {vectors.nbytes / 1e6:.0f} MB"
    loading = Table(title, LOAD_COLUMNS, loads, headline=True)
    loading.notes = [
        "A fresh process has imported torch and mmad_bank before the clock starts. Loading maps the vectors and checks"
        " the file's checksums, unless 'unchecked'; 'from disk': the file was dropped from the page cache before.",
        "'first search': 784 queries, with the making of the resident copy.",
    ]
    return [loading, _copies(vectors, queries)]


def _features(options: Options) -> tuple[np.ndarray, np.ndarray]:
    """Return random rows of real features as a bank, and one image's 784 others as queries."""
    n_images, n_bank = (1, 1500) if options.quick else (25, 76518)
    rows = np.concatenate(list(wide_blocks(n_images, seed=1)))
    order = np.random.default_rng(0).permutation(len(rows))
    return rows[order[:n_bank]], rows[order[n_bank : n_bank + 784]]


def _loads(path: Path, queries: Path, options: Options) -> list[dict[str, Any]]:
    processes = 1 if options.quick else max(3, options.rounds)
    call = {"bank": str(path), "queries": str(queries), "threads": options.threads, "verify": True}
    warm = [run_fresh("load", call) for _ in range(processes)]
    here = [{"ms": _milliseconds(path)} for _ in range(5 * processes)]
    rows = [
        _row("fresh process", warm, required=True),
        _row("the same process again and again", here, required=True),
    ]
    if not options.quick:
        unchecked = [run_fresh("load", {**call, "verify": False}) for _ in range(processes)]
        cold = []
        for _ in range(processes):
            drop_from_cache(path)
            cold.append(run_fresh("load", call))
        rows += [_row("fresh process, unchecked", unchecked), _row("fresh process, from disk", cold)]
    return rows


def _row(where: str, runs: list[dict[str, float]], *, required: bool = False) -> dict[str, Any]:
    samples = [run["ms"] for run in runs]
    row: dict[str, Any] = {"where": where, "runs": len(runs), "samples": samples}
    row |= {"median": statistics.median(samples), "min": min(samples), "max": max(samples)}
    for key in ("own_mb", "first_search_ms"):
        if key in runs[0]:
            row[key] = statistics.median(run[key] for run in runs)
    if required:
        row["verdict"] = "yes" if row["median"] < MAX_SECONDS * 1e3 else "NO"
    return row


def _milliseconds(path: Path) -> float:
    begin = time.perf_counter()
    MemoryBank.load(path)
    return (time.perf_counter() - begin) * 1e3


def _copies(vectors: np.ndarray, queries: np.ndarray) -> Table:
    """Compare the answers of the resident copies with the float32 one's, bit for bit."""
    table = Table("Resident search copy", COPY_COLUMNS, headline=True)
    answers = {}
    for precision in PRECISIONS:
        index = SearchIndex(vectors, precision=precision)
        answers[precision] = [index.search(queries, k) for k in (1, 9)]
        pairs = zip(answers[precision], answers["float32"], strict=True)
        equal = all(torch.equal(a, b) for mine, theirs in pairs for a, b in zip(mine, theirs, strict=True))
        table.rows.append(
            {"precision": precision, "mb": index.nbytes / 1e6, "share": index.nbytes / vectors.nbytes,
             "equal": "the reference" if precision == "float32" else "equal" if equal else "DIFFERENT"}
        )  # fmt: skip
    table.notes = ["Equal: distances and rows of 784 queries are the same bits. The vectors stay on disk, mapped."]
    return table


# ---------------------------------------------------------------------------------------------------------------------
# The measured process


def measure(arguments: Mapping[str, Any]) -> dict[str, float]:
    """Load a bank and search it once."""
    torch.set_num_threads(arguments["threads"])
    queries = torch.from_numpy(np.load(arguments["queries"]))
    before = anonymous_bytes()
    begin = time.perf_counter()
    bank = MemoryBank.load(arguments["bank"], verify=arguments["verify"])
    loaded = time.perf_counter()
    own = anonymous_bytes() - before
    bank.search(queries)
    searched = time.perf_counter()
    return {"ms": (loaded - begin) * 1e3, "own_mb": own / 1e6, "first_search_ms": (searched - loaded) * 1e3}


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
