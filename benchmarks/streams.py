"""Banks with a fixed budget over streams of real features: how well they cover all that they have seen, and how fast.

    python benchmarks/streams.py [--images 40] [--size 1000] [--json PATH] [--picture PATH]

Two streams of features of photographed textures (EfficientNet-Lite0, 656 dimensions, 784 rows per image), one image
after another: *one product* (gravel) and *three products* (gravel, then brick, then grass). The contestants have the
same budget: ``StreamingBank`` with several proved factors; *merge and reduce*, which selects greedily from the bank
and each image's rows together; *random rows* (reservoir sampling); and *offline*, the exact greedy selection, which
needs all rows at once. Prints for each the covering radius of all rows at the end, in units of the offline one, what
is proved of it, the mean distance of a row from the bank, and rows per second of processor time, of the whole stream
and of its last quarter. ``--picture`` draws the radius over the
stream, with the offline selection of the same rows beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import canvas
import numpy as np
import torch
from common import describe_machine, versions
from torch import Tensor

from mmad_bank import StreamingBank, ops
from mmad_bank._internal.files import replacing
from mmad_bank.synthetic.textures import texture_features

FACTORS = (8.0, 4.0, 3.0)
COLORS = {"StreamingBank": "#0b6e75", "merge and reduce": "#b5651d", "random rows": "#8a8f98", "offline": "#1b1f24"}
_POINTS = 16  # of a curve


class Stream:
    """The streaming bank with a proved factor."""

    def __init__(self, size: int, factor: float) -> None:
        self.bank = StreamingBank(size, factor=factor)

    def update(self, rows: Tensor) -> None:
        """Take an image's rows."""
        self.bank.update(rows)

    @property
    def vectors(self) -> Tensor:
        """The bank."""
        return self.bank.bank.vectors


class MergeReduce:
    """The greedy selection over the bank and each image's rows."""

    def __init__(self, size: int) -> None:
        self.size, self.vectors = size, torch.empty(0)

    def update(self, rows: Tensor) -> None:
        """Take an image's rows."""
        together = torch.cat([self.vectors, rows]) if len(self.vectors) else rows
        self.vectors = together[ops.k_center_greedy(together, min(self.size, len(together)))]


class Reservoir:
    """Random rows (Vitter's algorithm R)."""

    def __init__(self, size: int) -> None:
        self.size, self.seen, self.rng = size, 0, np.random.default_rng(0)
        self.vectors = torch.empty(0)

    def update(self, rows: Tensor) -> None:
        """Take an image's rows."""
        room = max(0, self.size - self.seen)
        kept = [self.vectors, rows[:room]] if len(self.vectors) else [rows[:room]]
        self.vectors = torch.cat(kept) if room else self.vectors
        for number in range(min(room, len(rows)), len(rows)):
            place = int(self.rng.integers(self.seen + number + 1))
            if place < self.size:
                self.vectors[place] = rows[number]
        self.seen += len(rows)


def main() -> int:
    """Measure both streams."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=40, help="number of images of a stream")
    parser.add_argument("--size", type=int, default=1000, help="number of vectors of the banks")
    parser.add_argument("--json", type=Path, help="file to write the results to")
    parser.add_argument("--picture", type=Path, help="file to write the curves to")
    arguments = parser.parse_args()
    machine, known = describe_machine(torch.get_num_threads()), versions()
    print(f"{machine['cpu']}, {machine['threads']} threads, {machine['isa']}, load {machine['load_average']:.1f}")
    print(", ".join(f"{name} {known[name]}" for name in ("mmad-bank", "python", "torch", "numpy")))
    streams = {name: _measure(name, made(arguments.images), arguments.size) for name, made in STREAMS.items()}
    if arguments.json is not None:
        values = {"machine": machine, "versions": known, "size": arguments.size, "streams": streams}
        with replacing(arguments.json) as partial:
            partial.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    if arguments.picture is not None:
        draw(arguments.picture, streams, arguments.size)
    return 0


def _one(images: int) -> list[Tensor]:
    return list(torch.from_numpy(texture_features(images)).split(784))


def _three(images: int) -> list[Tensor]:
    parts = np.array_split(np.arange(images), 3)
    products = zip(("gravel", "brick", "grass"), parts, strict=True)
    found = [texture_features(len(part), texture=texture) for texture, part in products if len(part)]
    return list(torch.from_numpy(np.concatenate(found)).split(784))


STREAMS: dict[str, Callable[[int], list[Tensor]]] = {"one product": _one, "three products": _three}


def _measure(name: str, images: list[Tensor], size: int) -> dict[str, Any]:
    """Give all contestants one stream, and print how they did."""
    rows = torch.cat(images)
    ends = sorted({max(1, len(images) * step // _POINTS) for step in range(1, _POINTS + 1)})
    offline = [_offline(rows[: end * 784], size) for end in ends]
    print(f"\n{name}: {len(images)} images, {len(rows):,} × {rows.shape[1]}, banks of {size:,}")
    heads = {"vectors": 8, "radius": 9, "/offline": 10, "proved": 9, "best ≥": 9, "mean": 8, "rows/s": 11, "last ¼": 11}
    print(" " * 26 + "".join(f"{head:>{width}}" for head, width in heads.items()))
    found = {"ends": [end * 784 for end in ends], "contestants": {"offline": offline[-1] | {"curve": _radii(offline)}}}
    _print("offline (all rows)", found["contestants"]["offline"], offline[-1]["radius"])
    made: dict[str, Callable[[], Any]] = {
        f"StreamingBank, factor {factor:g}": lambda factor=factor: Stream(size, factor) for factor in FACTORS
    }
    made |= {"merge and reduce": lambda: MergeReduce(size), "random rows": lambda: Reservoir(size)}
    for contestant, make in made.items():
        row = _run(make(), images, rows, ends)
        found["contestants"][contestant] = row
        _print(contestant, row, offline[-1]["radius"])
    return found


def _radii(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"radius": point["radius"]} for point in points]


def _offline(rows: Tensor, size: int) -> dict[str, Any]:
    begin = time.process_time()
    picks = ops.k_center_greedy(rows, min(size, len(rows)))
    seconds = time.process_time() - begin
    return {**_cover(rows, rows[picks]), "vectors": len(picks), "rows_per_second": len(rows) / seconds}


def _cover(rows: Tensor, bank: Tensor) -> dict[str, float]:
    """Return how far rows lie from a bank, at most and in the mean."""
    distances = ops.knn(rows, bank)[0]
    return {"radius": float(distances.max()), "mean": float(distances.mean())}


def _run(contestant: Any, images: list[Tensor], rows: Tensor, ends: list[int]) -> dict[str, Any]:
    """Give a contestant the images; its time does not count what is measured between them."""
    seconds, curve = [], []
    for number, image in enumerate(images, 1):
        begin = time.process_time()
        contestant.update(image)
        seconds.append(time.process_time() - begin)
        if number in ends:
            point = _cover(rows[: number * 784], contestant.vectors)
            if isinstance(contestant, Stream):
                point |= {"proved": contestant.bank.radius, "optimum": contestant.bank.optimum}
            curve.append(point)
    last = max(1, len(images) // 4)
    return {
        **curve[-1],
        "vectors": len(contestant.vectors),
        "rows_per_second": len(rows) / sum(seconds),
        "last_rows_per_second": last * 784 / sum(seconds[-last:]),
        "curve": curve,
    }


def _print(name: str, row: dict[str, Any], offline: float) -> None:
    proved = f"{row['proved']:9.2f}{row['optimum']:9.2f}" if "proved" in row else f"{'':>18}"
    last = f"{row['last_rows_per_second']:>11,.0f}" if "last_rows_per_second" in row else ""
    print(
        f"{name:<26}{row['vectors']:>8,}{row['radius']:>9.2f}{row['radius'] / offline:>9.2f}×{proved}"
        f"{row['mean']:>8.2f}{row['rows_per_second']:>11,.0f}{last}"
    )


def draw(path: Path, streams: dict[str, Any], size: int) -> None:
    """Draw the radius of all rows seen over the stream."""
    with canvas.styled(), replacing(path) as partial:
        figure = canvas.empty(3.1)
        axes = figure.subplots(1, len(streams), sharey=True)
        for place, (name, stream) in zip(axes, streams.items(), strict=True):
            thousands = [end / 1000 for end in stream["ends"]]
            for contestant, row in stream["contestants"].items():
                kind = contestant.split(",")[0]
                if kind == "StreamingBank" and "factor 4" not in contestant:
                    continue
                radii = [point["radius"] for point in row["curve"]]
                label = {"offline": "offline greedy, all rows at once", "StreamingBank": contestant}.get(kind, kind)
                dashes = "--" if kind == "offline" else "-"
                place.plot(thousands, radii, dashes, color=COLORS[kind], label=label, linewidth=1.6)
                if kind == "StreamingBank":
                    proved = [point["proved"] for point in row["curve"]]
                    told = "its proved radius"
                    place.plot(thousands, proved, ":", color=COLORS[kind], label=told, linewidth=1.4)
            place.set(title=name, xlabel="thousand rows seen")
            place.grid(axis="y")
        axes[0].set(ylabel=f"covering radius, {size:,} vectors", ylim=(0, None))
        axes[1].legend(loc="lower right")
        figure.savefig(partial, format=path.suffix[1:], metadata={"Software": None} if path.suffix == ".png" else None)


if __name__ == "__main__":
    sys.exit(main())
