"""Feature dumps: patch features on disk or in memory, read in blocks so that a dump may be larger than memory.

A file is opened, sliced and let go for every block or every few. Mapped pages that have been read therefore never pile
up in the process, and a .npy file is read with plain sequential reads, which the kernel's read-ahead serves best.

``stored`` opens the files, ``layouts`` reads shapes as rows, ``descriptions`` knows ``extraction.json`` and names.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmad_bank._internal.checks import ArrayLike
from mmad_bank.bank.dumps.descriptions import (
    Description,
    Descriptions,
    names_of_files,
    with_grid,
    with_names,
)
from mmad_bank.bank.dumps.files import SUFFIXES, dumps_in, is_dump, read_contents
from mmad_bank.bank.dumps.layouts import Expected, Layout, Part, check_layout, make_part, read_layers
from mmad_bank.bank.dumps.stored import Contents, Stored, in_memory, joined
from mmad_bank.errors import InputError, NoneUsableError

PathLike = str | os.PathLike[str]
_BLOCK_BYTES = 8 << 20  # small enough that the allocator keeps the pages for the next block
_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


class FeatureDump:
    """Patch features from one or more files or arrays, as one long run of rows.

    Make one with :func:`open_dump`. ``len(dump)`` is the number of rows in all, ``dump.dim`` their length,
    ``dump.sources`` the files with their images' names and grids, and ``dump.extractor`` what made the features, if
    ``extraction.json`` tells.

    Example:
        >>> import torch
        >>> dump = open_dump(torch.rand(4, 10, 8))       # 4 images of 10 patches
        >>> len(dump), dump.dim, dump.sources[0].patches
        (40, 8, 10)
        >>> dump.take(torch.tensor([39, 0])).shape
        torch.Size([2, 8])
        >>> dump
        FeatureDump(40 × 8, features, 4 images)
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        if not parts:
            raise InputError("features: expected at least one file or array, found none")
        self.parts = list(parts)
        self.dim = parts[0].dim
        self.extractor: str | None = None
        for part in parts:
            if part.dim != self.dim:
                raise InputError(
                    f"{part.source.file}: expected vectors of length {self.dim} as in {parts[0].source.file},"
                    f" found {part.dim}"
                )
            if part.extractor is not None and self.extractor not in (None, part.extractor):
                raise InputError(
                    f"{part.source.file}: expected features of the extractor {self.extractor!r} as in the files before"
                    f" it, found {part.extractor!r}"
                )
            self.extractor = self.extractor or part.extractor
        self.sources = [part.source for part in parts]
        self._starts = list(accumulate((source.rows for source in self.sources), initial=0))[:-1]

    def __len__(self) -> int:
        return sum(source.rows for source in self.sources)

    def __repr__(self) -> str:
        files = list(dict.fromkeys(source.file for source in self.sources))  # a file may have several parts
        words = [f"{len(self)} × {self.dim}", files[0] if len(files) == 1 else f"{len(files)} files"]
        if all(source.patches is not None for source in self.sources):  # (N, D) rows do not tell their images
            n_images = sum(source.images for source in self.sources)
            words.append(f"{n_images} image{'s' * (n_images != 1)}")
        return f"FeatureDump({', '.join(words)})"

    def blocks(self, rows: int | None = None) -> Iterator[tuple[int, Tensor]]:
        """Yield (number of the first row, float32 rows), at most ``rows`` rows (default: 8 MiB of them) at a time.

        Raises:
            InputError: A row holds NaN or infinity (file, image and patch are named), or a file cannot be read.
        """
        for first, count in self.ranges(rows):
            yield first, self.read(first, count)

    def ranges(self, rows: int | None = None) -> Iterator[tuple[int, int]]:
        """Yield (number of the first row, number of rows) of the blocks of :meth:`blocks`, and read nothing."""
        start = 0
        for part in self.parts:
            step = rows or self._block_rows(part)
            for first in range(0, part.source.rows, step):
                yield start + first, min(step, part.source.rows - first)
            start += part.source.rows

    def read(self, first: int, count: int) -> Tensor:
        """Return rows ``first`` to ``first + count``, which are of one part, as float32 (count, D).

        Raises:
            InputError: As for :meth:`blocks`.
        """
        which = bisect_right(self._starts, first) - 1
        part, within = self.parts[which], first - self._starts[which]
        block = part.read(within, count)
        part.check(block, within.__add__)
        return block

    def take(self, rows: Tensor) -> Tensor:
        """Gather rows by number: int64 (n,) -> float32 (n, D) in that order; the files are read front to back once.

        Raises:
            InputError: As for :meth:`blocks`, or no row is asked for.
        """
        wanted, order = rows.cpu().sort()
        taken: Tensor | None = None
        start = 0
        for part in self.parts:
            step = self._block_rows(part)
            for first in range(0, part.source.rows, step):
                low, high = torch.searchsorted(
                    wanted, torch.tensor([start + first, start + min(first + step, part.source.rows)])
                ).tolist()
                if low == high:
                    continue
                inside = wanted[low:high] - start
                span = part.read(int(inside[0]), int(inside[-1] - inside[0]) + 1)
                if taken is None:
                    taken = torch.empty(len(rows), self.dim, dtype=torch.float32, device=span.device)
                found = span[(inside - inside[0]).to(span.device)]
                part.check(found, inside.tolist().__getitem__)
                taken[order[low:high].to(span.device)] = found
            start += part.source.rows
        if taken is None:
            raise InputError("rows: expected at least one row number of the dump, found none")
        return taken

    def check_extractor(self, extractor: str | None, name: str) -> None:
        """Refuse features of another extractor than ``extractor``, that of ``name``; where one is unknown, all is well.

        Raises:
            InputError: Both are known and differ.
        """
        if None not in (extractor, self.extractor) and extractor != self.extractor:
            raise InputError(
                f"{self.sources[0].file}: expected features of the extractor {extractor!r} as in {name}, found"
                f" {self.extractor!r}"
            )

    def check_dim(self, dim: int, name: str) -> None:
        """Refuse vectors of another length than ``dim``, that of ``name``.

        Raises:
            InputError: They differ; the message names the file.
        """
        if self.dim != dim:
            raise InputError(f"{self.sources[0].file}: expected vectors of length {dim} as in {name}, found {self.dim}")

    def _block_rows(self, part: Part) -> int:
        """Return how many rows are read at once: of parts that are kept image by image, those of whole images."""
        n_rows = max(1, _BLOCK_BYTES // (4 * self.dim))
        return max(part.unit, n_rows // part.unit * part.unit)


def open_dump(
    features: FeatureDump | ArrayLike | PathLike | Sequence[PathLike],
    *,
    key: str | Sequence[str] | None = None,
    layout: Layout = "auto",
    by_image: bool = False,
    dim: int | None = None,
    left_out: dict[str, str] | None = None,
) -> FeatureDump:
    """Open features: an array, a file, a folder of files, or several of these paths (see docs/how-to/feature-dumps.md).

    Files: ``.npy``, ``.npz``, ``.safetensors``, ``.pt`` (plain tensors only: pickled code is never run), each with
    float16, bfloat16, float32 or float64 values of shape (N, D), (images, patches, D), or maps of four axes. A folder
    is read with the folders in it, in the order of the paths. ``extraction.json`` beside the files is heeded.

    Args:
        features: The array, the path, or a list of paths.
        key: Name of the array to take from a file that holds several; several names: these are brought to the largest
            grid and joined, value by value. Default: the only floating-point array, or the one called ``features``.
        layout: ``"bchw"`` or ``"bhwc"`` says which axes of maps are the places; the first of three axes then belongs to
            a single image and does not count images. ``"rows"`` refuses maps. ``"auto"`` takes rows as they
            are, and maps where only one layout fits ``dim`` or what ``extraction.json`` says.
        by_image: Whether every array of a file is one image, named by its key. Keys with suffixes of pictures say so
            too.
        dim: Length that the vectors are expected to have, to tell layouts apart.
        left_out: Dictionary that takes up why some of the files cannot be used, by file; the others are opened.
            Default: the first such file is an error. If all are, that is one in any case.

    Raises:
        InputError: Nothing to read, a file that cannot be read, no floating-point values, a shape that is wrong or can
            be read in two ways, or vectors of different lengths; the message names the file.

    Example:
        >>> import numpy as np, pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "features.npz"
        >>> np.savez(path, layer2=np.zeros((3, 4, 8, 8)), layer3=np.zeros((3, 6, 4, 4)), names=["a", "b", "c"])
        >>> dump = open_dump(path, key=["layer2", "layer3"], layout="bchw")
        >>> len(dump), dump.dim, dump.sources[0].grid, dump.sources[0].names
        (192, 10, (8, 8), ('a', 'b', 'c'))
    """
    check_layout(layout)
    opener = _Opener(_check_key(key), layout, by_image, dim, left_out)
    if isinstance(features, FeatureDump):
        if opener != _Opener():
            raise InputError("features: expected key, layout, by_image and dim of open_dump, found an open dump")
        return features
    if isinstance(features, (np.ndarray, Tensor)):
        return FeatureDump([opener.open_array(in_memory("features", features))])
    if isinstance(features, (str, os.PathLike)):
        features = [features]
    if not isinstance(features, Sequence) or not all(isinstance(path, (str, os.PathLike)) for path in features):
        raise InputError(f"features: expected an array, a path or a list of paths, found {type(features).__name__}")
    parts = [part for path in features for part in opener.open_path(Path(path))]
    if not parts and left_out:
        raise NoneUsableError("", left_out)
    return FeatureDump(parts)


def _check_key(key: str | Sequence[str] | None) -> tuple[str, ...]:
    keys = () if key is None else (key,) if isinstance(key, str) else tuple(key)
    if not all(isinstance(one, str) for one in keys) or len(set(keys)) < len(keys):
        raise InputError(f"key: expected a name or several different names, found {key!r}")
    return keys


@dataclass
class _Opener:
    """What :func:`open_dump` was asked for, and the descriptions that it has read."""

    keys: tuple[str, ...] = ()
    layout: Layout = "auto"
    by_image: bool = False
    dim: int | None = None
    left_out: dict[str, str] | None = field(default=None, compare=False)
    descriptions: Descriptions = field(default_factory=Descriptions, compare=False)

    def open_path(self, path: Path) -> list[Part]:
        """Open a file, or a folder of files."""
        files = _files_of(path)
        root = path if path.is_dir() else path.parent
        told = {file: self.descriptions.of(file, root) for file in files}
        parts = {file: found for file in files if (found := self._try_file(file, told[file])) is not None}
        for by, all_ids, all_files in _groups(told):
            own, ids = [file for file in all_files if file in parts], all_ids
            if len(own) < len(all_files):
                if len(ids) != len(all_files):
                    continue  # whose ids those of the files that are left out were cannot be told
                ids = tuple(name for name, file in zip(ids, all_files, strict=True) if file in parts)
            together = [part for file in own for part in parts[file]]
            if all(part.source.names is None for part in together):  # a file's own names are closer to it
                named = iter(with_names(together, ids, by))
                parts |= {file: [next(named) for _ in parts[file]] for file in own}
        labels = names_of_files(files, root) if path.is_dir() else {}
        return [_labelled(part, labels.get(file, file.stem)) for file in parts for part in parts[file]]

    def _try_file(self, path: Path, told: Description | None) -> list[Part] | None:
        """Open a file; None if it cannot be used and may be left out."""
        try:
            parts = self._open_file(path, told)
            if self.left_out is not None and self.dim is not None and parts[0].dim != self.dim:
                raise InputError(f"{path}: expected vectors of length {self.dim} as in the bank, found {parts[0].dim}")
        except InputError as error:
            if self.left_out is None:
                raise
            self.left_out[str(path)] = str(error)
            return None
        return parts

    def open_array(self, stored: Stored, told: Description | None = None) -> Part:
        """Open an array that is there by itself."""
        if self.keys:
            raise InputError(f"{stored.name}: expected several arrays with names, found one without; leave the key out")
        return self._part(stored.name, [stored], told)

    def _open_file(self, path: Path, told: Description | None) -> list[Part]:
        """Return the parts of a file: one, unless its images differ in shape."""
        contents = read_contents(path)
        by_image = self.by_image or (bool(contents.entries) and all(_is_picture(key) for key in contents.entries))
        if contents.kind == "array":
            parts = [self.open_array(contents.open(""), told)]
        elif contents.kind == "list" or (by_image and not self.keys):
            parts = self._open_images(contents, told)
        else:
            layers = [contents.open(key) for key in _pick(contents, self.keys)]
            parts = [self._part(str(path), layers, told)]
        if told is not None:
            parts = [
                replace(with_grid(part, told.grid, told.path), extractor=told.extractor, image_size=told.image_size)
                for part in parts
            ]
        return with_names(parts, contents.names, path)

    def _open_images(self, contents: Contents, told: Description | None) -> list[Part]:
        """Open a list of arrays, or a dictionary of images."""
        listed = contents.kind == "list"
        if listed and self.keys:
            raise InputError(f"{contents.path}: expected arrays with names, found a list; leave the key out")
        if not contents.entries:
            raise InputError(f"{contents.path}: expected at least one array, found none")
        arrays = {key: contents.open(key) for key in contents.entries}
        names = [f"{contents.path.stem}[{key}]" for key in arrays] if listed else list(arrays)
        file = str(contents.path)
        # Three axes are (images, patches, D) in a list, unless a layout makes them the axes of one image.
        axes = (2, 3) if not listed or self._layout(told) in ("bchw", "bhwc") else (2,)
        shapes = {array.shape for array in arrays.values()}
        if len(shapes) == 1 and len(shapes.pop()) in axes:
            part = self._part(file, [joined(file, list(arrays.values()))], told)
            return with_names([part], None if listed else names, file)
        parts = []
        for array, key, name in zip(arrays.values(), arrays, names, strict=True):
            part = self._part(file, [array], told, one_image=not listed)
            own = (name,) if part.source.images == 1 else tuple(f"{name}[{i}]" for i in range(part.source.images))
            parts.append(replace(part, key=key, source=part.source._replace(names=own)))
        return parts

    def _part(self, file: str, layers: Sequence[Stored], told: Description | None, *, one_image: bool = False) -> Part:
        expected = Expected(self.dim) if told is None else Expected(self.dim or told.dim, told.grid)
        readings = read_layers(layers, self._layout(told), one_image=one_image, expected=expected)
        return make_part(file, layers, readings)

    def _layout(self, told: Description | None) -> Layout:
        return told.layout if self.layout == "auto" and told is not None else self.layout


def _groups(told: Mapping[Path, Description | None]) -> Iterator[tuple[Path, tuple[str, ...], list[Path]]]:
    """Yield the ids that are told, and the files whose images they are together."""
    groups: dict[tuple[Path, tuple[str, ...]], list[Path]] = {}
    for file, description in told.items():
        if description is not None and description.ids is not None:
            groups.setdefault((description.path, description.ids), []).append(file)
    for (by, ids), files in groups.items():
        yield by, ids, files


def _labelled(part: Part, label: str) -> Part:
    """Name the images of a part that has no names by their file's place in its folder, unless its stem says it all."""
    source = part.source
    if source.names is not None or label == Path(source.file).stem:
        return part
    names = (label,) if source.images == 1 else tuple(f"{label}[{image}]" for image in range(source.images))
    return replace(part, source=source._replace(names=names))


def _pick(contents: Contents, keys: Sequence[str]) -> list[str]:
    """Choose among the arrays of a file."""
    missing = [key for key in keys if key not in contents.entries]
    if missing:
        raise InputError(f"{contents.path}: expected an array called {missing[0]!r}, found {contents.listing()}")
    if keys:
        return list(keys)
    if "features" in contents.entries:
        return ["features"]
    candidates = contents.features() or list(contents.entries)
    if len(candidates) == 1:
        return candidates
    raise InputError(
        f"{contents.path}: expected one array, or one called 'features' among several, or a key (--key; --by-image if"
        f" each is an image), found {contents.listing()}"
    )


def _is_picture(key: str) -> bool:
    return key.lower().endswith(_PICTURES)


def _files_of(path: Path) -> list[Path]:
    if path.is_dir():
        files = dumps_in(path)
        if not files:
            raise InputError(f"{path}: expected a folder with {', '.join(SUFFIXES)} files, found none")
        return files
    if not path.is_file():
        raise InputError(f"{path}: no such file or folder")
    if not is_dump(path.name):
        raise InputError(f"{path}: expected a {', '.join(SUFFIXES)} file, found {path.suffix!r}")
    return [path]
