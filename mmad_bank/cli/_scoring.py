"""The work of ``mmad-bank score``: a dump scored a few images at a time."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmad_bank._internal.files import replacing
from mmad_bank._internal.progress import progress_bar
from mmad_bank._internal.terminal import printable
from mmad_bank.bank import FeatureDump, MemoryBank, Scores, Verdicts
from mmad_bank.bank.dump_scores import Scored, cut_in_images, gather_scores, in_images, patches_of_an_image, score_dump
from mmad_bank.bank.dumps import Part
from mmad_bank.bank.scores import Rule
from mmad_bank.cli._verdicts import verdict_facts, word_verdict
from mmad_bank.errors import InputError
from mmad_bank.scoring import Reweight, anomaly_map

_PIXELS_A_PATCH = 8
_COLUMNS = (
    "name", "file", "score", "worst_patch", "worst_row", "worst_column", "worst_score", "nearest", "source",
    "source_file", "source_patch", "source_row", "source_column",
)  # fmt: skip
_OF_VERDICTS = ("p_value", "verdict")

Elsewhere = Callable[[FeatureDump, int], Iterator[Scored]]
"""What scores the blocks of a dump that is cut into images of so many patches."""


class Image(NamedTuple):
    """An image that is scored."""

    name: str
    file: str
    grid: tuple[int, int] | None
    size: tuple[int, int] | None
    """(H, W) of its map: the image's where that is known, otherwise eight pixels per patch; None without a grid."""


@dataclass(frozen=True)
class ScoredImages:
    """Images and their scores, in the order of the dump."""

    images: list[Image]
    scores: Scores
    dim: int
    left_out: dict[str, str]
    """Reasons why images have no scores, by file."""

    def __len__(self) -> int:
        return len(self.images)

    def worst(self) -> Tensor:
        """Return the patch of each image that has the highest score, int64 (B,)."""
        return self.scores.patch.argmax(dim=1)

    def place(self, image: int, patch: int) -> tuple[int, int] | None:
        """Return (row, column) of a patch, if the grid is known."""
        grid = self.images[image].grid
        return None if grid is None else divmod(patch, grid[1])


def images_of(part: Part, per_image: int) -> list[Image]:
    """Return the images of a part whose images have ``per_image`` patches."""
    whole = cut_in_images(part.source, per_image)
    size = None if whole.grid is None else (whole.grid[0] * _PIXELS_A_PATCH, whole.grid[1] * _PIXELS_A_PATCH)
    if size is not None and part.image_size is not None:
        size = part.image_size, part.image_size
    return [Image(whole.name(number), whole.file, whole.grid, size) for number in range(whole.images)]


def score_images(
    bank: MemoryBank,
    dump: FeatureDump,
    patches: int | None,
    reweight: Reweight,
    neighbors: int | None,
    *,
    divisor: float = 1.0,
    progress: bool = False,
    elsewhere: Elsewhere | None = None,
) -> ScoredImages:
    """Score all images of a dump; in memory are a few images' features and the scores.

    A file with rows that cannot be read or used is left out as a whole. ``elsewhere`` scores the dump's blocks in other
    processes.

    Raises:
        InputError: Features and bank do not fit together, or no file can be used; the reason is the first one's.
    """
    dump.check_dim(bank.dim, "the bank")
    per_image = patches_of_an_image(dump, patches)
    left_out: dict[str, str] = {}
    score = partial(bank.score, reweight=reweight, n_neighbors=neighbors, divisor=divisor)
    bar = progress_bar("scoring images", len(dump) // per_image) if progress else nullcontext(lambda done: None)
    with bar as report:
        images = in_images(dump, per_image)
        if elsewhere is None:
            parts, scores = score_dump(score, images, per_image, left_out=left_out, report=report)
        else:
            blocks = elsewhere(images, per_image)
            parts, scores = gather_scores(images, per_image, blocks, left_out=left_out, report=report)
    return ScoredImages([image for part in parts for image in images_of(part, per_image)], scores, dump.dim, left_out)


def score_elsewhere(
    bank: Path, loading: Mapping[str, Any], reopen: Callable[[], FeatureDump], rule: Rule, workers: int
) -> Elsewhere:  # fmt: skip
    """Return what scores a dump's blocks in other processes, which load the bank and open the dump themselves."""
    from mmad_bank.distributed.scoring import DumpScoring, scored_blocks

    def score(dump: FeatureDump, per_image: int) -> Iterator[Scored]:
        job = DumpScoring(bank, {**loading, "verify": False}, reopen, per_image, rule)
        return scored_blocks(job, dump, workers=workers)

    return score


def save(
    bank: MemoryBank, scored: ScoredImages, verdicts: Verdicts | None, out: Path | None, csv: Path | None,
    maps: Path | None,
) -> None:  # fmt: skip
    """Write what was asked for, as the functions below do."""
    if out is not None:
        save_scores(out, scored, verdicts)
    if csv is not None:
        save_table(csv, bank, scored, verdicts)
    if maps is not None:
        save_maps(maps, scored)


def save_scores(path: Path, scored: ScoredImages, verdicts: Verdicts | None = None) -> None:
    """Write the arrays ``patch`` (B, P) and ``image`` (B,) float32, ``nearest`` (B, P) int64, ``names`` (B,) text.

    With verdicts also ``p_value`` (B,) float64, ``bad`` (B,) and ``bad_patches`` (B, P) bool.
    """
    scores = scored.scores
    arrays = {name: getattr(scores, name).numpy() for name in ("patch", "image", "nearest")}
    if verdicts is not None:
        arrays |= {"p_value": verdicts.p_values.numpy(), "bad": verdicts.bad.numpy()}
        arrays |= {"bad_patches": verdicts.bad_patches.numpy()}
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays, names=np.array([image.name for image in scored.images], dtype=np.str_))


def save_table(path: Path, bank: MemoryBank, scored: ScoredImages, verdicts: Verdicts | None = None) -> None:
    """Write a line of CSV for each image: its name, score, worst patch, and the bank vector nearest to that.

    Cells are empty where a grid is not known. With verdicts there are two columns more.
    """
    worst = scored.worst()
    order = torch.arange(len(scored))
    nearest = scored.scores.nearest[order, worst]
    origins = bank.provenance(nearest)
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file)
        table.writerow([*_COLUMNS, *([] if verdicts is None else _OF_VERDICTS)])
        for number, (patch, vector, origin) in enumerate(zip(worst.tolist(), nearest.tolist(), origins, strict=True)):
            image = scored.images[number]
            table.writerow(
                [image.name, image.file, _digits(scored.scores.image[number]), patch,
                 *(scored.place(number, patch) or ("", "")), _digits(scored.scores.patch[number, patch]), vector,
                 origin.name, origin.file, origin.row if origin.patch is None else origin.patch,
                 *(origin.place or ("", "")), *_cells(verdicts, number)]
            )  # fmt: skip


def _cells(verdicts: Verdicts | None, image: int) -> list[str]:
    if verdicts is None:
        return []
    return [f"{float(verdicts.p_values[image]):.9g}", word_verdict(bool(verdicts.bad[image]))]


def map_files(images: Sequence[Image], maps: Path) -> list[Path]:
    """Return the file of each image's map in a folder: by its name, which may have folders in it.

    Raises:
        InputError: A grid is not known, two images have one name, or a name leads out of the folder.
    """
    files: dict[Path, str] = {}
    for image in images:
        if image.grid is None:
            raise InputError(
                f"--maps: expected the grid of the patches of {image.file}, found none; maps of four axes have it, and"
                " extraction.json may tell it"
            )
        name = PurePosixPath(image.name.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts or not name.name:
            raise InputError(f"--maps: expected names that stay in the folder, found {image.name!r}")
        path = maps / f"{name}.tiff"
        if path in files:
            raise InputError(f"--maps: expected a name for each image, found {image.name!r} twice")
        files[path] = image.name
    return list(files)


def save_maps(maps: Path, scored: ScoredImages) -> None:
    """Write the anomaly map of each image, float32, as TIFF."""
    from mmad_bank.data.writing import write_map

    for number, (image, path) in enumerate(zip(scored.images, map_files(scored.images, maps), strict=True)):
        assert image.grid is not None
        assert image.size is not None
        write_map(path, anomaly_map(scored.scores.patch[number : number + 1], image.grid, image.size)[0].numpy())


def _digits(value: Tensor) -> str:
    """Return a float32 in words that can be read back."""
    return f"{float(value):.9g}"


def summarise(
    bank: MemoryBank, scored: ScoredImages, top: int, reweight: Reweight, verdicts: Verdicts | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return JSON-able values, and the same for people: the highest scores and why, counts, the scores' spread."""
    scores = scored.scores
    n_images, n_patches = scores.patch.shape
    image = scores.image.double()
    spread = {"min": float(image.min()), "mean": float(image.mean()), "max": float(image.max())}
    order = image.argsort(descending=True, stable=True)[:top].tolist()
    worst = scored.worst()[order]
    nearest = scores.nearest[order, worst]
    highest = []
    for row, patch, vector, origin in zip(order, worst.tolist(), nearest, bank.provenance(nearest), strict=True):
        highest.append(
            {"image": row, "name": scored.images[row].name, "file": scored.images[row].file, "score": float(image[row]),
             "distance": float(scores.patch[row, patch]), "patch": patch, "place": scored.place(row, patch),
             "nearest": int(vector),
             **{f"origin_{name}": value for name, value in origin._asdict().items()}}
        )  # fmt: skip
        if verdicts is not None:
            highest[-1] |= {"p_value": float(verdicts.p_values[row]), "verdict": word_verdict(bool(verdicts.bad[row]))}
    result: dict[str, Any] = {"images": n_images, "patches": n_patches, "dim": scored.dim, "vectors": len(bank)}
    result |= {"reweight": reweight, "image_scores": spread, "highest": highest}
    if verdicts is not None:
        result["verdicts"] = verdict_facts(verdicts, [one.name for one in scored.images], image.tolist())
    width = max(len(printable(entry["name"])) for entry in highest)
    lines = [
        f"{printable(entry['name']):<{width}}  {_word_score(entry, reweight)}{_word_verdict(entry)},"
        f" patch {_place(entry['patch'], entry['place'])}, nearest to {printable(_word_origin(entry))}"
        for entry in highest
    ]
    rows = {
        "highest": "\n".join(lines),
        "images": f"{n_images:,} of {n_patches:,} patches, {scored.dim} dimensions",
        "bank": f"{len(bank):,} vectors",
        "image scores": f"{spread['min']:.4g} to {spread['max']:.4g}, mean {spread['mean']:.4g}",
    }
    return result, rows


def _word_score(entry: dict[str, Any], reweight: Reweight) -> str:
    """Return an image's score in words, with the distance of its worst patch unless the two are one."""
    if reweight == "max":
        return f"{entry['score']:.4g}"
    if reweight == "top":
        return f"{entry['score']:.4g} (mean of the top 1 %, distance {entry['distance']:.4g})"
    return f"{entry['score']:.4g} (distance {entry['distance']:.4g}, re-weighted by {reweight})"


def _word_verdict(entry: dict[str, Any]) -> str:
    """Return an image's verdict in words, where it was judged."""
    return f", {entry['verdict']} (p = {entry['p_value']:.3g})" if "verdict" in entry else ""


def _place(patch: int, place: tuple[int, int] | None) -> str:
    """Say where a patch is: row and column, or its number."""
    return str(patch) if place is None else f"at row {place[0]}, column {place[1]}"


def _word_origin(entry: dict[str, Any]) -> str:
    """Say where a bank vector came from."""
    if entry["origin_image"] is None:
        return f"row {entry['origin_row']} of {entry['origin_file']}"
    return f"{entry['origin_name']}, patch {_place(entry['origin_patch'], entry['origin_place'])}"
