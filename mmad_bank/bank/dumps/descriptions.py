"""What is known of a dump beside its values: ``extraction.json``, the images' names, the grid of the patches."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmad_bank._internal.file_names import EXTRACTION as DESCRIPTION
from mmad_bank.bank.dumps.layouts import Layout, Part, check_layout
from mmad_bank.bank.provenance import Source
from mmad_bank.errors import InputError

_LARGEST = 1 << 28  # bytes


@dataclass(frozen=True)
class Description:
    """What ``extraction.json`` says of a dump; None or empty where it says nothing."""

    path: Path
    extractor: str | None = None
    ids: tuple[str, ...] | None = None
    grid: tuple[int, int] | None = None
    dim: int | None = None
    layout: Layout = "auto"
    split: str | None = None
    image_size: int | None = None


def read_description(path: Path) -> dict[str, Any]:
    """Read ``extraction.json``.

    Raises:
        InputError: It is no JSON object, or cannot be read.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise InputError(f"{path}: expected at most {_LARGEST} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: damaged or no JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


class Descriptions:
    """The ``extraction.json`` of each folder, read once."""

    def __init__(self) -> None:
        self._found: dict[Path, dict[str, Any] | None] = {}

    def of(self, file: Path, root: Path) -> Description | None:
        """Return what is said of a file: beside it, or in a folder above it up to ``root``."""
        for folder in (file.parent, *file.parent.parents):
            content = self._read(folder)
            if content is not None:
                return _describe(folder / DESCRIPTION, content, file)
            if folder == root or root not in folder.parents:
                return None
        return None

    def _read(self, folder: Path) -> dict[str, Any] | None:
        if folder not in self._found:
            path = folder / DESCRIPTION
            self._found[folder] = read_description(path) if path.is_file() else None
        return self._found[folder]


def _describe(path: Path, content: Mapping[str, Any], file: Path) -> Description | None:
    """Return what the description says of a file; None if it lists the dumps and this one is not among them."""
    dumps = content.get("dumps")
    own: Any = {}
    if isinstance(dumps, Mapping) and dumps:
        own = next((one for name, one in dumps.items() if _is_of(file, path.parent, name, one)), None)
        if own is None:
            return None
    facts = {**content, **own}
    grid, dim, size = facts.get("grid"), facts.get("dim"), facts.get("image_size")
    layout, ids, extractor = facts.get("layout", "auto"), facts.get("ids"), facts.get("extractor")
    if grid is not None and not (_is_list(grid, int) and len(grid) == 2 and min(grid) > 0):
        raise InputError(f"{path}: expected grid to be [rows, columns], found {grid!r}")
    if ids is not None and not _is_list(ids, str):
        raise InputError(f"{path}: expected ids to be a list of text, found something else")
    for name, value, kind in (("dim", dim, int), ("image_size", size, int), ("extractor", extractor, str)):
        if value is not None and not isinstance(value, kind):
            raise InputError(f"{path}: expected {name} to be {kind.__name__}, found {value!r}")
    try:
        check_layout(layout)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    split = facts.get("split")
    return Description(
        path, extractor, None if ids is None else tuple(ids), None if grid is None else (grid[0], grid[1]), dim, layout,
        split if isinstance(split, str) else None, size,
    )  # fmt: skip


def _is_of(file: Path, folder: Path, name: str, one: Any) -> bool:
    """Whether an entry of ``dumps`` describes a file: by the file's name, or by the entry's."""
    if not isinstance(one, Mapping):
        return False
    told = one.get("file")
    if isinstance(told, str) and Path(told).name == file.name:
        return True
    return file.parent == folder and file.stem == name


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(one, kind) and not isinstance(one, bool) for one in value)


def names_of_files(files: Sequence[Path], root: Path) -> dict[Path, str]:
    """Name the files of a folder: by their paths in it, without suffix where that tells them apart.

    Example:
        >>> names_of_files([Path("a/good/0.npy"), Path("a/good/1.npy"), Path("a/good/1.pt")], Path("a")).values()
        dict_values(['good/0', 'good/1.npy', 'good/1.pt'])
    """
    whole = {file: os.fsencode(file.relative_to(root).as_posix()).decode("utf-8", "replace") for file in files}
    bare = {file: name.removesuffix(file.suffix) for file, name in whole.items()}
    count = Counter(bare.values())
    return {file: bare[file] if count[bare[file]] == 1 else whole[file] for file in files}


def with_grid(part: Part, grid: tuple[int, int] | None, told_by: Path) -> Part:
    """Tell a part its grid, and so the patches of an image, if it does not know them from its shape."""
    source = part.source
    if grid is None or source.grid is not None:
        return part
    patches = math.prod(grid)
    if source.patches not in (None, patches) or source.rows % patches:
        raise InputError(
            f"{told_by}: expected the grid of {source.file}, whose images have {source.patches or source.rows} patches,"
            f" found {grid[0]} x {grid[1]}"
        )
    return replace(part, source=source._replace(patches=patches, grid=grid))


def with_names(parts: Sequence[Part], names: Sequence[str] | None, told_by: object) -> list[Part]:
    """Give the images of parts their names, in order.

    A part of (N, D) rows takes as many of an image as the names say, if there is one such part only.

    Raises:
        InputError: There are more or fewer names than images.
    """
    if names is None:
        return list(parts)
    sources = [part.source for part in parts]
    if len(sources) == 1 and sources[0].patches is None and names and sources[0].rows % len(names) == 0:
        sources = [sources[0]._replace(patches=sources[0].rows // len(names))]
    if sum(source.images for source in sources) != len(names):
        where = sources[0].file + (f" and {len(sources) - 1} more files" if len(sources) > 1 else "")
        images = sum(source.images for source in sources)
        raise InputError(f"{told_by}: expected a name for each of the {images} images of {where}, found {len(names)}")
    named: list[Source] = []
    first = 0
    for source in sources:
        named.append(source._replace(names=tuple(names[first : first + source.images])))
        first += source.images
    return [replace(part, source=source) for part, source in zip(parts, named, strict=True)]
