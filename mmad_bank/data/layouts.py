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
from mmad_bank.data.names import IMAGES, describe, split_named, subfolders
from mmad_bank.data.picture_files import LISTS, doubt_of, holds_pictures, is_pattern
from mmad_bank.data.pictures import PicturesDataset, Places
from mmad_bank.data.real3d import Real3DDataset
from mmad_bank.data.roi import RegionOfInterest, as_region
from mmad_bank.data.visa import VisADataset
from mmad_bank.errors import InputError

_Reader = type[
    MVTec3DDataset | EyecandiesDataset | FolderDataset | MVTecADDataset | VisADataset | Real3DDataset | PicturesDataset
]
_LAYOUTS: dict[str, _Reader] = {
    "mvtec3d": MVTec3DDataset,
    "eyecandies": EyecandiesDataset,
    "folder": FolderDataset,
    "mvtec_ad": MVTecADDataset,
    "visa": VisADataset,
    "real3d": Real3DDataset,
    "pictures": PicturesDataset,
}
# Those that know a category by its folders, in the order in which they are asked: Eyecandies' pictures would pass for
# those of a kind of defect called "data". MVTec 3D-AD's categories are known by their names.
_ASKED: tuple[_Reader, ...] = (EyecandiesDataset, FolderDataset, VisADataset, Real3DDataset, MVTecADDataset)


def open_dataset(
    path: Places,
    category: str | None = None,
    split: str = "train",
    layout: str = "auto",
    *,
    units: str | None = None,
    roi: str | Path | RegionOfInterest | None = None,
) -> SampleDataset:
    """Open a split of a data set; samples are read when they are asked for.

    Args:
        path: Folder of the categories, or one category's own folder; or plain pictures, as a folder of them, a list of
            paths (.txt), a pattern, or several of these or of files (:class:`mmad_bank.data.PicturesDataset`).
        category: One of them; default: all.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        layout: ``"mvtec3d"``, ``"eyecandies"``, ``"folder"`` (MVTec 3D-AD's layout with any names), ``"mvtec_ad"``
            (with any names), ``"visa"``, ``"real3d"``, ``"pictures"`` (in no layout), or ``"auto"``, which takes a
            folder for plain pictures where it is in no other layout.
        units: Unit of the clouds' files, ``"m"``, ``"cm"``, ``"mm"`` or ``"um"``; samples are in metres then, and a
            model that is fitted on them reads other files in the same unit. Default: metres, which is checked; of
            ``"real3d"`` millimetres.
        roi: Region of interest of all pictures: a mask's picture, polygons in a JSON file, or a
            :class:`mmad_bank.data.RegionOfInterest`. A model that is fitted on the samples keeps it: patches outside
            are neither in its bank nor scored.

    Raises:
        InputError: The folder, category or split is not there, or is in none of the layouts, or ``units`` are given for
            data that have been prepared. Or the folder is to be learned from, is in none of the layouts, and does not
            look as if all of its pictures were normal; the layout ``"pictures"`` takes them all the same.

    Example:
        >>> from mmad_bank.data import few_shot
        >>> train = open_dataset("mvtec_3d", "bagel")  # doctest: +SKIP
        >>> len(few_shot(train, 10, seed=0))  # doctest: +SKIP
        10
    """
    dataset = _open(path, category, split, layout)
    dataset.units = check_units(units) or dataset.units
    dataset.roi = as_region(roi)
    if units is not None and dataset.preparation is not None:
        raise InputError(f"units: {dataset.path} has been prepared, its clouds are in metres; found {units!r}")
    return dataset


def _open(path: Places, category: str | None, split: str, layout: str) -> SampleDataset:
    place = _folder(path, layout)
    if place is None:
        dataset: SampleDataset = PicturesDataset(path, category, split)
    else:
        root, category = _root(place, category)
        dataset = _reader(root, layout)(root, category, split)
    if layout == "auto" and isinstance(dataset, PicturesDataset) and split_named(split) == "train":
        places = map(Path, [path] if isinstance(path, (str, os.PathLike)) else path)
        doubt = doubt_of(record.id for record in dataset.records)
        # Files that are named one by one, and lists, are meant.
        if doubt is not None and any(one.is_dir() or is_pattern(one) for one in places):
            raise InputError(
                f"{dataset.path}: expected a data set in a known layout, or normal pictures alone, found {doubt};"
                " name the folder of the normal ones, or take all of it by the layout pictures (--layout pictures)"
            )
    return dataset


def categories_of(path: Places, layout: str = "auto") -> list[str]:
    """Name the categories of a data set, sorted; of plain pictures the one name of all of them together.

    Args:
        path: Folder of the categories, or one category's own folder.
        layout: Layout, as in :func:`open_dataset`.

    Raises:
        InputError: There is no data set.
    """
    place = _folder(path, layout)
    if place is None:
        return [PicturesDataset(path).name]
    root, category = _root(place, None)
    if category is not None:
        return [category]
    reader = _reader(root, layout)
    return [PicturesDataset(root).name] if reader is PicturesDataset else reader.find_categories(root)


def layout_of(path: Places, layout: str = "auto") -> str:
    """Name the layout in which :func:`open_dataset` would read a folder, or plain pictures."""
    place = _folder(path, layout)
    return PicturesDataset.layout if place is None else _reader(_root(place, None)[0], layout).layout


def unread_folders(path: Places, categories: Sequence[str] | None = None, layout: str = "auto") -> list[Path]:
    """List the folders that hold samples as a split does, but have no split's name: nothing reads them.

    Args:
        path: Folder of the categories, or one category's own folder.
        categories: Names of the categories to look in; default: all.
        layout: Layout, as in :func:`open_dataset`.
    """
    reader, place = _LAYOUTS[layout_of(path, layout)], _folder(path, layout)
    if place is None or reader is PicturesDataset:
        return []
    root, own = _root(place, None)
    names = [own] if own is not None else categories or categories_of(path, layout)
    return [
        entry
        for name in names
        for entry in subfolders(root / name)
        if split_named(entry.name) is None and reader.holds_samples(entry)
    ]


def _folder(path: Places, layout: str) -> Path | None:
    """Return the folder that may be a data set's; None for plain pictures, which are asked for by what is given."""
    if layout == PicturesDataset.layout or not isinstance(path, (str, os.PathLike)):
        if layout not in ("auto", PicturesDataset.layout):
            raise InputError(f"layout: expected auto or pictures for several files or folders, found {layout!r}")
        return None
    place = Path(path)
    meant = is_pattern(place) or (place.is_file() and place.suffix.lower() in (*IMAGES, *LISTS))
    return None if layout == "auto" and meant else place


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
        if _data_sets_in(root) or not holds_pictures(root):
            raise _no_data_set(root)
        return PicturesDataset
    if found is FolderDataset and set(found.find_categories(root)) <= set(mvtec3d.CATEGORIES):
        return MVTec3DDataset
    return found


def _reader_in(root: Path) -> _Reader | None:
    """Return the reader of the categories in a folder; None if there are none."""
    folders = subfolders(root)
    return next((one for one in _ASKED if any(map(one.is_category, folders))), None)


def _data_sets_in(root: Path) -> list[str]:
    """Name the folders in a folder that hold categories."""
    return [f"{entry.name}/" for entry in subfolders(root) if _reader_in(entry) is not None]


def _no_data_set(root: Path) -> InputError:
    """Return the error that says that a folder holds no category, and perhaps that one in it does."""
    inner = _data_sets_in(root)
    if inner:
        return InputError(
            f"{root}: expected the folder of the categories, found data sets in it: {', '.join(inner[:6])}"
        )
    layouts = f"{FolderDataset.folders} (MVTec 3D-AD), {EyecandiesDataset.folders} (Eyecandies)"
    layouts += f", {MVTecADDataset.folders} (MVTec AD), {VisADataset.folders} (VisA)"
    layouts += f" or {Real3DDataset.folders} (Real3D-AD), or pictures"
    return InputError(f"{root}: expected {layouts} in it, found {describe(root)}")
