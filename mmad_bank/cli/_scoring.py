"""The work of ``mmad-bank score``: a dump scored a few images at a time."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmad_bank._internal.files import replacing
from mmad_bank._internal.progress import progress_bar
from mmad_bank.bank import FeatureDump, MemoryBank, Scores, Source
from mmad_bank.bank.dumps import Part
from mmad_bank.errors import InputError, NoneUsableError
from mmad_bank.scoring import Reweight, anomaly_map

_ROWS_AT_ONCE = 16384
_PIXELS_A_PATCH = 8
_COLUMNS = (
    "name", "file", "score", "worst_patch", "worst_row", "worst_column", "worst_score", "nearest", "source",
    "source_file", "source_patch", "source_row", "source_column",
)  # fmt: skip


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


def patches_of_an_image(dump: FeatureDump, patches: int | None) -> int:
    """Find the number of patches per image of the dump.

    Args:
        dump: The features.
        patches: Number of patches per image in (N, D) files; default: a file is one image.

    Raises:
        InputError: Files disagree with each other or with ``patches``, or N is no multiple of ``patches``.
    """
    first = dump.sources[0]
    expected = patches if patches is not None else first.patches or first.rows
    if expected < 1:
        raise InputError(f"--patches: expected at least 1, found {expected}")
    for source in dump.sources:
        found = source.patches or (expected if patches is not None else source.rows)
        if found != expected:
            raise InputError(f"{source.file}: expected images of {expected} patches, found {found}")
        if source.rows % expected:
            raise InputError(f"{source.file}: expected a multiple of {expected} rows (--patches), found {source.rows}")
    return expected


def in_images(dump: FeatureDump, per_image: int) -> FeatureDump:
    """Return a dump whose (N, D) files are known to be images of ``per_image`` patches."""
    return FeatureDump([replace(part, source=_cut(part.source, per_image)) for part in dump.parts])


def images_of(part: Part, per_image: int) -> list[Image]:
    """Return the images of a part whose images have ``per_image`` patches."""
    whole = _cut(part.source, per_image)
    size = None if whole.grid is None else (whole.grid[0] * _PIXELS_A_PATCH, whole.grid[1] * _PIXELS_A_PATCH)
    if size is not None and part.image_size is not None:
        size = part.image_size, part.image_size
    return [Image(whole.name(number), whole.file, whole.grid, size) for number in range(whole.images)]


def _cut(source: Source, per_image: int) -> Source:
    """Return a (N, D) source cut into images."""
    if source.patches is not None:
        return source
    cut = source._replace(patches=per_image)
    if source.names is None or cut.images == 1:
        return cut
    return cut._replace(names=tuple(f"{source.names[0]}[{number}]" for number in range(cut.images)))


def score_images(
    bank: MemoryBank,
    dump: FeatureDump,
    patches: int | None,
    reweight: Reweight,
    neighbors: int | None,
    *,
    progress: bool = False,
) -> ScoredImages:
    """Score all images of a dump; in memory are a few images' features and the scores.

    A file with rows that cannot be read or used is left out as a whole.

    Raises:
        InputError: Features and bank do not fit together, or no file can be used; the reason is the first one's.
    """
    dump.check_dim(bank.dim, "the bank")
    per_image = patches_of_an_image(dump, patches)
    parts: list[Scores] = []
    images: list[Image] = []
    left_out: dict[str, str] = {}
    bar = progress_bar("scoring images", len(dump) // per_image) if progress else nullcontext(lambda done: None)
    with bar as report:
        for part in in_images(dump, per_image).parts:
            own: list[Scores] = []
            try:
                for rows in _blocks(part, per_image):
                    found = bank.score(rows.view(-1, per_image, dump.dim), reweight=reweight, n_neighbors=neighbors)
                    own.append(Scores(*(column.cpu() for column in found)))
                    report(len(images) + sum(len(one.image) for one in own))
            except _Unusable as error:
                left_out[part.label] = str(error)
                continue
            parts += own
            images += images_of(part, per_image)
    if not parts:
        raise NoneUsableError("", left_out)
    scores = Scores(*(torch.cat(columns) for columns in zip(*parts, strict=True)))
    return ScoredImages(images, scores, dump.dim, left_out)


class _Unusable(Exception):
    """A file's rows cannot be read or used."""


def _blocks(part: Part, per_image: int) -> Iterator[Tensor]:
    """Yield the rows of a few images at a time."""
    step = max(1, _ROWS_AT_ONCE // per_image) * per_image
    for first in range(0, part.source.rows, step):
        try:
            rows = part.read(first, min(step, part.source.rows - first))
            part.check(rows, first.__add__)
        except InputError as error:
            raise _Unusable(error) from error
        yield rows


def save_scores(path: Path, scored: ScoredImages) -> None:
    """Write the arrays ``patch`` (B, P) and ``image`` (B,) float32, ``nearest`` (B, P) int64, ``names`` (B,) text."""
    scores = scored.scores
    arrays = {name: getattr(scores, name).numpy() for name in ("patch", "image", "nearest")}
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays, names=np.array([image.name for image in scored.images], dtype=np.str_))


def save_table(path: Path, bank: MemoryBank, scored: ScoredImages) -> None:
    """Write a line of CSV for each image: its name, score, worst patch, and the bank vector nearest to that.

    Cells are empty where a grid is not known.
    """
    worst = scored.worst()
    order = torch.arange(len(scored))
    nearest = scored.scores.nearest[order, worst]
    origins = bank.provenance(nearest)
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file)
        table.writerow(_COLUMNS)
        for number, (patch, vector, origin) in enumerate(zip(worst.tolist(), nearest.tolist(), origins, strict=True)):
            image = scored.images[number]
            table.writerow(
                [image.name, image.file, _digits(scored.scores.image[number]), patch,
                 *(scored.place(number, patch) or ("", "")), _digits(scored.scores.patch[number, patch]), vector,
                 origin.name, origin.file, origin.row if origin.patch is None else origin.patch,
                 *(origin.place or ("", ""))]
            )  # fmt: skip


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
    bank: MemoryBank, scored: ScoredImages, top: int, reweight: Reweight
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
    result: dict[str, Any] = {"images": n_images, "patches": n_patches, "dim": scored.dim, "vectors": len(bank)}
    result |= {"reweight": reweight, "image_scores": spread, "highest": highest}
    width = max(len(entry["name"]) for entry in highest)
    lines = [
        f"{entry['name']:<{width}}  {_word_score(entry, reweight)}, patch {_place(entry['patch'], entry['place'])},"
        f" nearest to {_word_origin(entry)}"
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


def _place(patch: int, place: tuple[int, int] | None) -> str:
    """Say where a patch is: row and column, or its number."""
    return str(patch) if place is None else f"at row {place[0]}, column {place[1]}"


def _word_origin(entry: dict[str, Any]) -> str:
    """Say where a bank vector came from."""
    if entry["origin_image"] is None:
        return f"row {entry['origin_row']} of {entry['origin_file']}"
    return f"{entry['origin_name']}, patch {_place(entry['origin_patch'], entry['origin_place'])}"
