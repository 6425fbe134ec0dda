"""The bagel-size job: a feature dump of 765 184 × 1152 on disk to a saved bank of 76 518 vectors.

Run as a program it is the measured process itself: one JSON argument in, one JSON line out.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from common import Column, Options, Table
from inputs import BAGEL_IMAGES, write_wide_dump

from mmad_bank.bank import MemoryBank, open_dump
from mmad_bank.bank.dumps import FeatureDump
from parts.process import cached_share, drop_from_cache, reading_seconds, run_fresh, watching

RATIO, PROJECTION_DIM = 0.1, 334
MAX_SECONDS, MAX_GIB = 400, 9

COLUMNS = [
    Column("start", "dump in the page cache"),
    Column("seconds", "seconds", ".1f"),
    Column("read", "read + project", ".1f", detail=True),
    Column("select", "select", ".1f", detail=True),
    Column("gather", "gather", ".1f", detail=True),
    Column("save", "save", ".1f", detail=True),
    Column("anonymous_gib", "peak GiB, anonymous", ".2f"),
    Column("resident_gib", "peak GiB, resident set", ".2f", detail=True),
    Column("verdict", f"< {MAX_SECONDS} s and < {MAX_GIB} GiB"),
]


def run(options: Options, limits: Mapping[str, float]) -> list[Table]:
    """Build the bank in a fresh process, once with the dump dropped from the page cache and once with it there."""
    n_images = 5 if options.quick else BAGEL_IMAGES
    with _workdir(options) as folder:
        dump = folder / f"dump-v1-{n_images}.npy"
        begin = time.perf_counter()
        if not dump.exists():
            write_wide_dump(dump, n_images)
        made_s = time.perf_counter() - begin
        drop_from_cache(dump)
        read_s = reading_seconds(dump)
        states = (True,) if options.quick else (True, False)
        rows = [_build(dump, folder / "bank.safetensors", options, cold=cold) for cold in states]
    shape = rows[0]["shape"]
    title = f"Bagel-size job: {shape[0]} × {shape[1]} float32 on disk → {rows[0]['vectors']} vectors"
    table = Table(title, COLUMNS, rows, headline=True)
    flop = 2.0 * shape[0] * rows[0]["vectors"] * PROJECTION_DIM
    table.notes = [
        f"The dump: real CNN features of {n_images} texture crops on a 56×56 grid, turned from 768 to {shape[1]}"
        f" dimensions by a random orthonormal map, with 1 % Gaussian noise; made in {made_s:.0f} s, not counted.",
        f"MemoryBank.build(ratio={RATIO}, projection_dim={PROJECTION_DIM}) and save, in a fresh process; its start-up"
        " (imports) is not counted in the seconds, but its memory is in the peaks.",
        f"Ceilings: a plain read of the dump, dropped from the page cache, takes {read_s:.1f} s; the N×n×d product has"
        f" {flop / 1e12:.1f} TFLOP, {flop / limits['fp32_gflops'] / 1e9:.0f} s at the machine's float32 product.",
        "'anonymous' is the process's own memory (the highest of samples 50 ms apart), 'resident set' the kernel's"
        " high-water mark with mapped file pages, which it can take back.",
    ]
    return [table]


@contextmanager
def _workdir(options: Options) -> Iterator[Path]:
    """Yield the folder for the dump; one that was made here goes away again."""
    if options.workdir is not None:
        options.workdir.mkdir(parents=True, exist_ok=True)
        yield options.workdir
        if not options.keep:
            for file in (*options.workdir.glob("dump-v1-*.npy"), options.workdir / "bank.safetensors"):
                file.unlink(missing_ok=True)
        return
    folder = Path(tempfile.mkdtemp(prefix="mmad-bank-bagel-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _build(dump: Path, bank: Path, options: Options, *, cold: bool) -> dict[str, Any]:
    if cold:
        drop_from_cache(dump)
    else:
        reading_seconds(dump)
    share = cached_share(dump)
    row = run_fresh("bagel", {"dump": str(dump), "bank": str(bank), "threads": options.threads})
    kept = row["seconds"] < MAX_SECONDS and row["resident_gib"] < MAX_GIB
    start = "unknown" if share is None else f"{share:.0%}"
    return {"start": f"{'dropped' if cold else 'read before'} ({start})", **row, "verdict": "yes" if kept else "NO"}


# ---------------------------------------------------------------------------------------------------------------------
# The measured process


class _TimedDump(FeatureDump):
    """A dump that notes when its rows are gathered, which the progress reports do not tell."""

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        self.take_began = time.perf_counter()
        return super().take(rows)


def measure(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Build and save a bank; return seconds by stage and the peaks of memory."""
    torch.set_num_threads(arguments["threads"])
    last: dict[str, float] = {}

    def note(stage: str, done: int, total: int) -> None:
        last[stage] = time.perf_counter()

    with watching() as memory:
        begin = time.perf_counter()
        dump = _TimedDump(open_dump(arguments["dump"]).parts)
        bank = MemoryBank.build(dump, RATIO, projection_dim=PROJECTION_DIM, progress=note)
        built = time.perf_counter()
        bank.save(arguments["bank"])
        saved = time.perf_counter()
    _check(open_dump(arguments["dump"]), bank)
    read_ended = last["Reading features"]
    return {
        "shape": [len(dump), dump.dim],
        "vectors": len(bank),
        "seconds": saved - begin,
        "read": read_ended - begin,
        "select": dump.take_began - read_ended,
        "gather": built - dump.take_began,
        "save": saved - built,
        "anonymous_gib": memory.anonymous / 2**30,
        "resident_gib": memory.resident / 2**30,
    }


def _check(dump: FeatureDump, bank: MemoryBank) -> None:
    """Make sure that what was timed is a bank: distinct rows, and the dump's own values."""
    if len(bank.source_rows.unique()) != len(bank) or len(bank) != int(len(dump) * RATIO):
        raise RuntimeError("the bank holds a row twice, or another number of rows than was asked for")
    sample = torch.linspace(0, len(bank) - 1, min(len(bank), 100)).long()
    if not torch.equal(dump.take(bank.source_rows[sample]), bank.vectors[sample]):
        raise RuntimeError("the bank's vectors are not the dump's rows")


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
