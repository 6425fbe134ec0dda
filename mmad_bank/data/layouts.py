"""One door to all data sets: the layout is told from the folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mmad_bank._internal.units import check_units
from mmad_bank.data import eyecandies, folder, mvtec3d, mvtec_ad, real3d, visa
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
# Modules that know a category by its folders, in the order in which they are asked: Eyecandies' pictures would pass for
# those of a kind of defect called "data".
_MODULES = {"eyecandies": eyecandies, "folder": folder, "visa": visa, "real3d": real3d, "mvtec_ad": mvtec_ad}


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
    module = {"mvtec3d": folder, **_MODULES}[layout_of(path, layout)]
    if module is visa:
        return []  # its table says what is read
    return [
        entry
        for name in names
        for entry in subfolders(root / name)
        if split_named(entry.name) is None and module.holds_samples(entry)
    ]


def _root(path: Path, category: str | None) -> tuple[Path, str | None]:
    """Return the folder of the categories and the category, where the path may be a category's own."""
    subfolders(path)  # says so when it is no folder
    if not any(module.is_category(path) for module in _MODULES.values()):
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
    found = _layout_in(root)
    if found is None:
        raise _no_data_set(root)
    if found != "folder":
        return _LAYOUTS[found]
    parts = {entry.name for entry in subfolders(root) if folder.is_category(entry)}
    return MVTec3DDataset if parts <= set(mvtec3d.CATEGORIES) else FolderDataset


def _layout_in(root: Path) -> str | None:
    """Name the layout of the categories in a folder; None if there are none."""
    folders = subfolders(root)
    return next((name for name, one in _MODULES.items() if any(map(one.is_category, folders))), None)


def _no_data_set(root: Path) -> InputError:
    """Return the error that says that a folder holds no category, and perhaps that one in it does."""
    inner = [f"{entry.name}/" for entry in subfolders(root) if _layout_in(entry) is not None]
    if inner:
        return InputError(
            f"{root}: expected the folder of the categories, found data sets in it: {', '.join(inner[:6])}"
        )
    layouts = f"{folder.LAYOUT} (MVTec 3D-AD), {eyecandies.LAYOUT} (Eyecandies), {mvtec_ad.LAYOUT} (MVTec AD)"
    layouts += f", {visa.LAYOUT} (VisA) or {real3d.LAYOUT} (Real3D-AD)"
    return InputError(f"{root}: expected {layouts} in it, found {describe(root)}")
