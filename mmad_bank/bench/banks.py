"""Banks of the sizes that the papers' runs had, for methods fitted on two images."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmad_bank._internal.progress import progress_bar, within
from mmad_bank._internal.resume import Stages
from mmad_bank.bank import MemoryBank, MultiBank
from mmad_bank.bench.contestants import CATEGORY, IMAGES, new_method, sample_of, samples_for
from mmad_bank.errors import InputError
from mmad_bank.methods import Method, ShapeGuided
from mmad_bank.methods.bank_method import BankMethod

_FEW = 2  # images to fit on: what else than banks is learnt from them costs inference nothing
_EVERY = 4  # of the images is described in color; of the others only the point bank sees the clouds
_ENOUGH = 15  # images in color, if there are so many


def bank_sizes(
    method: Method, patches: Mapping[str, int], *, images: int = IMAGES, vectors: int | None = None
) -> dict[str, int]:
    """Return the numbers of vectors that a method's banks have in its paper's runs.

    They are 10 % of the patches of the images. M3DM's RGB and fusion banks are 10 % of the point bank's vectors, as in
    the published code: of bagel's 244 images 76 518, 7 652 and 7 652.

    Args:
        method: The method.
        patches: Number of patches in an image, by bank.
        images: Number of training images of the category.
        vectors: Number of vectors in each bank, in the place of all this.

    Raises:
        InputError: The images have fewer patches than ``vectors``.

    Example:
        >>> bank_sizes(new_method("m3dm"), {"xyz": 3136, "rgb": 784, "fusion": 3136})
        {'xyz': 76518, 'rgb': 7652, 'fusion': 7652}
    """
    if vectors is not None:
        most = min(rows * len(images_of(name, images)) for name, rows in patches.items())
        if not 0 < vectors <= most:
            raise InputError(f"vectors: expected 1 to {most}, the patches of {images} images, found {vectors}")
        return dict.fromkeys(patches, vectors)
    sizes = {name: max(1, images * rows // 10) for name, rows in patches.items()}
    if method.name == "m3dm" and "xyz" in sizes:
        sizes |= {name: max(1, round(sizes["xyz"] / 10)) for name in sizes if name != "xyz"}
    return sizes


def banks_of(method: Method) -> dict[str, int]:
    """Return the numbers of vectors of a fitted method's banks; none without banks."""
    return {name: len(bank) for name, bank in method.memory_banks.items()}


def images_of(bank: str, images: int = IMAGES) -> range:
    """Return the numbers of the images whose patches a bank is the coreset of.

    A point bank sees all of them: most of their patches have no point, and count once. The patches of every fourth one
    are plenty for the others.
    """
    return range(0, images, 1 if bank == "xyz" else max(1, min(_EVERY, images // _ENOUGH)))


def fit_method(
    method: Method, workdir: Path, *, images: int = IMAGES, vectors: int | None = None, progress: bool = False
) -> Method:
    """Fit what :func:`new_method` made on two rendered images and fill its banks, if it has some; return it.

    Shape-guided keeps all that its training images show, and is fitted on as many as there are.

    Args:
        method: Method that is not fitted.
        workdir: Folder for the banks, which the method goes on reading: a later call with the same arguments takes
            them from there.
        images: Number of training images that banks are filled from.
        vectors: Number of vectors in each bank that is a coreset; none takes :func:`bank_sizes`.
        progress: Whether to show bars on a terminal.

    Raises:
        InputError: The images have too few patches for the vectors, or the folder cannot be written.
    """
    if isinstance(method, ShapeGuided):
        return method.fit(samples_for(method, images), workdir=workdir, progress=progress)
    few = samples_for(method, _FEW)
    method.fit(few, validation=few, progress=progress)
    if isinstance(method, BankMethod):
        _fill_banks(method, workdir, images, vectors, progress)
    return method


def _fill_banks(method: BankMethod, workdir: Path, images: int, vectors: int | None, progress: bool) -> None:
    """Put coresets of many images' patches in the place of a method's banks; a folder keeps each of them."""
    patches = {name: rows.shape[1] for name, rows in method.describe(samples_for(method, 1)).items()}
    sizes = bank_sizes(method, patches, images=images, vectors=vectors)
    facts = {"arguments": method.arguments(), "images": images, "sizes": sizes}
    stages = Stages(workdir, json.loads(json.dumps(facts, default=str)), progress=progress)
    files = {name: f"bank-{name}.safetensors" for name in sizes}
    missing = [name for name, file in files.items() if not (workdir / file).exists()]
    tables = _tables(method, missing, images, progress) if missing else {}
    banks = {}
    for number, (name, file) in enumerate(files.items(), 1):
        with within(f"{name} bank", number, len(files)):
            path = stages.run(file, partial(_select, method, name, tables, sizes[name], images, progress))
        banks[name] = MemoryBank.load(path, method.device, bank_precision=method.bank_precision)
    method.banks_ = MultiBank(banks)


def _tables(method: BankMethod, names: Sequence[str], images: int, progress: bool) -> dict[str, Tensor]:
    """Describe the images: what banks are selected from, (N, D) by bank."""
    rows: dict[str, list[Tensor]] = {name: [] for name in names}
    with progress_bar("describing images", images) if progress else nullcontext(lambda done: None) as report:
        for i, described in _described(method, names, images):
            for name in rows.keys() & described.keys():
                if i in images_of(name, images):
                    rows[name].append(_distinct(described[name], bool(rows[name])))
            report(i + 1)
    return {name: torch.cat(rows.pop(name)) for name in names}


def _select(
    method: BankMethod, name: str, tables: dict[str, Tensor], size: int, images: int, progress: bool, path: Path
) -> None:
    """Select a bank, the exact coreset of its table in the features themselves, and write it."""
    old, table = method.banks_[name], tables.pop(name)
    if size > len(table):
        raise InputError(f"vectors: expected 1 to {len(table)}, those that differ in {images} images, found {size}")
    MemoryBank.build(
        table, size=size, standardize=old.standardization or False, device=method.device, extractor=old.extractor,
        progress=progress,
    ).save(path)  # fmt: skip


def _distinct(patches: Tensor, later: bool) -> Tensor:
    """Leave out patches without a point, which are all alike; the first image keeps one, if it has some."""
    there = patches.any(1)
    if not later and not bool(there.all()):
        there[int(there.int().argmin())] = True
    return patches[there].cpu()


def _described(method: BankMethod, banks: Sequence[str], images: int) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Yield numbers of images, and their patches (P, D) by bank; where only the point bank looks, no other."""
    points = method
    if {"xyz", "fusion"} <= method.banks_.keys():
        with suppress(InputError):  # banks that depend on each other stay together
            points = method.with_arguments(banks=("xyz",))
    in_color = {i for name in banks if name != "xyz" for i in images_of(name, images)}
    for i in range(images):
        if i in in_color or "xyz" in banks:
            sample = sample_of(i, method.image_size, CATEGORY, 0, method.preparation)
            described = (method if i in in_color else points).describe([sample])
            yield i, {name: one[0] for name, one in described.items()}


def make_method(
    name: str, folder: Path, *, settings: Mapping[str, Any] | None = None, images: int = IMAGES,
    vectors: int | None = None, progress: bool = False, **options: Any,
) -> Method:  # fmt: skip
    """Make a method and fit it in a folder of its name, see :func:`new_method` and :func:`fit_method`.

    Args:
        name: Name of the method.
        folder: Folder for the banks, also of other methods.
        settings: Constructor arguments.
        images: Number of training images that banks are filled from.
        vectors: Number of vectors in each bank; none takes :func:`bank_sizes`.
        progress: Whether to show bars on a terminal.
        options: The other options of :func:`new_method`.
    """
    method = new_method(name, settings=settings, **options)
    return fit_method(method, folder / name, images=images, vectors=vectors, progress=progress)
