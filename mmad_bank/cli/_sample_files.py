"""Samples of ``predict`` given by their files: pictures, pairs of a picture and its cloud, scattered points."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mmad_bank.cli._swapped import check_pair
from mmad_bank.errors import InputError

if TYPE_CHECKING:
    from mmad_bank.data import Sample

Read = Callable[[], "Sample | Path"]
Samples = list[tuple[str, Read]]
"""Ids, and functions that read the samples."""


def main_files(paths: Sequence[Path]) -> list[Path]:
    """Return the picture of each sample, or its scattered points, in the order of :func:`read_files`."""
    return [rgb for rgb, _ in _pairs(paths)]


def read_files(paths: Sequence[Path], units: str | None) -> Iterator[tuple[str, Read]]:
    """Yield ids of samples given by their files, and functions that read them."""
    from mmad_bank.data import open_points, open_sample
    from mmad_bank.data.names import POINTS

    names: set[str] = set()
    for rgb, xyz in _pairs(paths):
        name, number = rgb.stem, len(names)
        while name in names:
            name, number = f"{rgb.stem}-{number}", number + 1
        names.add(name)
        if rgb.suffix.lower() in POINTS:
            yield name, partial(open_points, rgb, units=units)
        else:  # whether a picture alone does, the method knows
            yield name, partial(Path, rgb) if xyz is None else partial(open_sample, rgb, xyz, units=units)


def _pairs(paths: Sequence[Path]) -> Iterator[tuple[Path, Path | None]]:
    """Yield pictures and their clouds; if no file can be a cloud, all are pictures whose clouds may lie beside them."""
    from mmad_bank.data.names import CLOUDS, POINTS
    from mmad_bank.data.picture_files import may_be_cloud
    from mmad_bank.methods.inputs import cloud_beside

    scattered = [path for path in paths if path.suffix.lower() in POINTS]
    if scattered and len(scattered) < len(paths):
        other = next(path for path in paths if path not in scattered)
        raise InputError(f"SAMPLES: expected files of one kind, found {scattered[0]} of scattered points and {other}")
    if len(paths) == 1 or scattered or not any(path.suffix.lower() in CLOUDS and may_be_cloud(path) for path in paths):
        yield from ((path, cloud_beside(path)) for path in paths)
        return
    if len(paths) % 2:
        raise InputError(
            "SAMPLES: expected pairs of a picture and its point cloud, pictures alone, or a data set's folder,"
            f" found {len(paths)} files"
        )
    for rgb, xyz in zip(paths[::2], paths[1::2], strict=True):
        check_pair(rgb, xyz)
        yield rgb, xyz
