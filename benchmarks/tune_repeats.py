"""How well mmad-bank tune's frame rates repeat: the same settings measured twice, one after the other.

    python benchmarks/tune_repeats.py [--seconds 1] [--tolerance 0.1] [--json PATH]

Prints for each setting both rates, their ratio, and the range of the rounds. Exit code 1 where the median ratio, or the
ratio of nine settings in ten, is farther from 1 than the tolerance (0.1: ten per cent). Run it on a quiet machine: what
else runs there is measured too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

import numpy as np

from mmad_bank import tuning
from mmad_bank._internal.shares import percent

_ROWS, _DIM, _PATCHES, _IMAGES = 20_000, 256, 784, 8


def main() -> int:
    """Measure twice and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="time that each setting is timed for at least")
    parser.add_argument("--tolerance", type=float, default=0.1, help="largest deviation of both rates' ratio from 1")
    parser.add_argument("--rows", type=int, default=_ROWS, help="number of rows of the bank's features")
    parser.add_argument("--json", type=Path, help="file to write the rates to")
    arguments = parser.parse_args()
    normal, images = _features(arguments.rows, 1), _features(_IMAGES * _PATCHES, 2).reshape(_IMAGES, _PATCHES, _DIM)
    first, second = (
        tuning.sweep(normal, images, ratios=[0.01, 0.1, 1], indices=["exact"], timed=arguments.seconds).settings
        for _ in range(2)
    )
    rows = []
    for one, other in zip(first, second, strict=True):
        ratio = other.fps / one.fps
        rows.append({"ratio": one.ratio, "precision": one.precision, "fps": [one.fps, other.fps], "repeats": ratio})
        print(
            f"{percent(one.ratio):>6}  {one.precision:<8}{one.fps:9.2f} ({one.fps_low:.2f} to {one.fps_high:.2f})"
            f"{other.fps:9.2f} ({other.fps_low:.2f} to {other.fps_high:.2f})   × {ratio:.3f}"
        )
    off = sorted(max(row["repeats"], 1 / row["repeats"]) - 1 for row in rows)
    median, most = statistics.median(off), off[int(0.9 * (len(off) - 1))]
    print(f"off by {median:.1%} in the median, {most:.1%} in nine of ten, {off[-1]:.1%} at most")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"settings": rows, "median": median, "nine_of_ten": most}) + "\n")
    return int(median > arguments.tolerance or most > arguments.tolerance)


def _features(n_rows: int, seed: int) -> np.ndarray:
    """Return rows around a hundred centres, as a network's features lie."""
    centers = np.random.default_rng(0).normal(size=(100, _DIM))
    rng = np.random.default_rng(seed)
    return (centers[rng.integers(0, 100, n_rows)] + 0.3 * rng.normal(size=(n_rows, _DIM))).astype(np.float32)


if __name__ == "__main__":
    sys.exit(main())
