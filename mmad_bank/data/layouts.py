"""One door to all data sets: the layout is told from the folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mmad_bank._internal.units import check_units
from mmad_bank.data import mvtec3d
from mmad_bank.data.dataset import SampleDataset
from mmad_bank.data.eyecandies import EyecandiesDataset
from mmad_bank.data.folder import FolderDataset
from mmad_bank.data.mvtec3d import MVTec3DDataset
from mmad_bank.data.mvtec_ad import MVTecADDataset
from mmad_bank.data.names import describe, split_named, subfolders
from mmad_bank.data.real3d import Real3DDataset
from mmad_bank.data.visa import VisADataset
from mmad_bank.errors import InputError

_Reader = type[MVTec3DDataset | EyecandiesDataset | FolderDataset | MVTecADDataset | VisADataset | Real3DDataset]
_LAYOUTS: dict[str, _Reader] = {
    "mvtec3d": MVTec3DDataset,
    "eyecandies": EyecandiesDataset,
    "folder": FolderDataset,
    "mvtec_ad": MVTecADDataset,
    "visa": VisADataset,
    "real3d": Real3DDataset,
}
# Those that know a category by its folders, in the order in which they are asked: Eyecandies' pictures would pass for
# those of a kind of defect called "data". MVTec 3D-AD's categories are known by their names.
_ASKED: tuple[_Reader, ...] = (EyecandiesDataset, FolderDataset, VisADataset, Real3DDataset, MVTecADDataset)


def open_dataset(
    path: str | Path,
    category: str | None = None,
    split: str = "train",
    layout: str = "auto",
    *,
    units: str | None = None,
) -> SampleDataset:
    """Open a split of a data set; samples are read when they are asked for.

    Args:
        path: Folder of the categories, or one category's own folder.
        category: One of them; default: all.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        layout: ``"mvtec3d"``, ``"eyecandies"``, ``"folder"`` (MVTec 3D-AD's layout with any names), ``"mvtec_ad"``
            (with any names), ``"visa"``, ``"real3d"``, or ``"auto"``.
        units: Unit of the clouds' files, ``"m"``, ``"cm"``, ``"mm"`` or ``"um"``; samples are in metres then, and a
            model that is fitted on them reads other files in the same unit. Default: metres, which is checked; of
            ``"real3d"`` millimetres.

    Raises:
        InputError: The folder, category or split is not there, or is in none of the layouts, or ``units`` are given for
            data that have been prepared.

    Example:
        >>> from mmad_bank.data import few_shot
        >>> train = open_dataset("mvtec_3d", "bagel")  # doctest: +SKIP
        >>> len(few_shot(train, 10, seed=0))  # doctest: +SKIP
        10
    """
    root, category = _root(Path(path), category)
    dataset = _reader(root, layout)(root, category, split)
    dataset.units = check_units(units) or dataset.units
    if units is not None and dataset.preparation is not None:
        raise InputError(f"units: {root} has been prepared, its clouds are in metres; found {units!r}")
    return dataset


def categories_of(path: str | Path, layout: str = "auto") -> list[str]:
    """Name the categories of a data set, sorted.

    Args:
        path: Folder of the categories, or one category's own folder.
        layout: Layout, as in :func:`open_dataset`.

    Raises:
        InputError: There is no data set.
    """
    root, category = _root(Path(path), None)
    return [category] if category is not None else _reader(root, layout).find_categories(root)


def layout_of(path: str | Path, layout: str = "auto") -> str:
    """Name the layout in which :func:`open_dataset` would read a folder."""
    return _reader(_root(Path(path), None)[0], layout).layout


def unread_folders(path: str | Path, categories: Sequence[str] | None = None, layout: str = "auto") -> list[Path]:
    """List the folders that hold samples as a split does, but have no split's name: nothing reads them.

    Args:
        path: Folder of the categories, or one category's own folder.
        categories: Names of the categories to look in; default: all.
        layout: Layout, as in :func:`open_dataset`.
    """
    root, own = _root(Path(path), None)
    names = [own] if own is not None else categories or categories_of(path, layout)
    reader = _LAYOUTS[layout_of(path, layout)]
    return [
        entry
        for name in names
        for entry in subfolders(root / name)
        if split_named(entry.name) is None and reader.holds_samples(entry)
    ]


def _root(path: Path, category: str | None) -> tuple[Path, str | None]:
    """Return the folder of the categories and the category, where the path may be a category's own."""
    subfolders(path)  # says so when it is no folder
    if not any(reader.is_category(path) for reader in _ASKED):
        return path, category
    if category not in (None, Path(os.path.abspath(path)).name):
        raise InputError(f"category: {path} is the folder of one category; expected {path.name!r}, found {category!r}")
    # The name that the user gives, also where it is a link to a folder of another name.
    path = Path(os.path.abspath(path))
    return path.parent, path.name


def _reader(root: Path, layout: str) -> _Reader:
    """Return the reader of a layout, or of the folder's own."""
    if layout in _LAYOUTS:
        return _LAYOUTS[layout]
    if layout != "auto":
        raise InputError(f"layout: expected auto, {', '.join(_LAYOUTS)}, found {layout!r}")
    found = _reader_in(root)
    if found is None:
        raise _no_data_set(root)
    if found is FolderDataset and set(found.find_categories(root)) <= set(mvtec3d.CATEGORIES):
        return MVTec3DDataset
    return found


def _reader_in(root: Path) -> _Reader | None:
    """Return the reader of the categories in a folder; None if there are none."""
    folders = subfolders(root)
    return next((one for one in _ASKED if any(map(one.is_category, folders))), None)


def _no_data_set(root: Path) -> InputError:
    """Return the error that says that a folder holds no category, and perhaps that one in it does."""
    inner = [f"{entry.name}/" for entry in subfolders(root) if _reader_in(entry) is not None]
    if inner:
        return InputError(
            f"{root}: expected the folder of the categories, found data sets in it: {', '.join(inner[:6])}"
        )
    layouts = f"{FolderDataset.folders} (MVTec 3D-AD), {EyecandiesDataset.folders} (Eyecandies)"
    layouts += f", {MVTecADDataset.folders} (MVTec AD), {VisADataset.folders} (VisA)"
    layouts += f" or {Real3DDataset.folders} (Real3D-AD)"
    return InputError(f"{root}: expected {layouts} in it, found {describe(root)}")
