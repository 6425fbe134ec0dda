"""One training for several categories: what a method can share between them is learnt once, on all of them.

M3DM's feature fusion, LSFA's adaptors and the signed distances of MDSS and Shape-guided need no labels of categories,
and their papers or their code train one for all. A method says which of its parts are such
(:attr:`mmad_bank.methods.Method.shareable`).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from torch import nn

from mmad_bank._internal.files import replacing, write_text
from mmad_bank._internal.manifest import Manifest, read_json
from mmad_bank._internal.progress import within
from mmad_bank._internal.resume import Stages, remove_stages, wording
from mmad_bank._internal.state_dicts import save_state
from mmad_bank._internal.torch_state import plain_torch
from mmad_bank._internal.training import seeded
from mmad_bank.data.sequences import Samples
from mmad_bank.errors import FormatError, InputError, NoneUsableError
from mmad_bank.methods.base import AnyMethod, Method
from mmad_bank.methods.shareable import CategoryData, Shared, SharedPart, TrainedOn, read_trained_on

__all__ = ["CategoryData", "Shared", "SharedPart", "TrainedOn", "fit_categories", "read_trained_on", "train_shared"]

FOLDER = ".shared"  # in the workdir, beside the categories' folders; no category's name begins with a dot
_SKIPPED = "skipped.json"

Datasets = Mapping[str, Samples]
"""Normal samples by category."""
Validation = Mapping[str, Samples | None]
"""Normal samples held out, by category."""


def train_shared(
    method: Method,
    datasets: Datasets,
    *,
    validation: Validation | None = None,
    workdir: str | os.PathLike[str],
    progress: bool = False,
) -> Shared:
    """Train the parts that a method's categories can share, on all of them together.

    What a category's fit in ``workdir/CATEGORY`` begins with, such as the features of its samples, is made here and
    lies there when that fit comes: it is made once. All of it is on the disk at the same time, and mapped, so that
    memory does not grow with the number of categories.

    Args:
        method: Method with the arguments of all fits; it stays as it is.
        datasets: Normal samples by category, as for :meth:`mmad_bank.methods.Method.fit`.
        validation: Validation samples of the fits to come.
        workdir: Folder for the results. With the same arguments and samples, a later call goes on where one
            was stopped.
        progress: Whether to show bars on a terminal.

    Returns:
        What ``fit(..., workdir=workdir/CATEGORY, shared=...)`` takes for each category. Samples that cannot be used
        take no part, nor do categories without any that can; they are named in ``skipped``.

    Raises:
        InputError: There is no category, or no sample of any can be used, or an argument does not fit the data.
        MmadBankError: A training diverged; the message names the step.

    Example:
        >>> shared = train_shared(M3DM(), {"bagel": bagels, "rope": ropes}, workdir="work")  # doctest: +SKIP
        >>> M3DM().fit(bagels, workdir="work/bagel", shared=shared).trained_on_["uff"].categories  # doctest: +SKIP
        ('bagel', 'rope')
    """
    if not datasets:
        raise InputError("datasets: expected normal samples of one or more categories, found none")
    trainer, folder = type(method)(**method.arguments()), Path(workdir)
    parts, identity = trainer.parts_to_train(), _identity(method, datasets)
    stages = Stages(folder / FOLDER, {"shared": identity, "parts": [part.name for part in parts]}, progress=progress)
    files = {part.argument: str(stages.folder / f"{part.name}.safetensors") for part in parts}
    kept = _kept(stages.folder / _SKIPPED, files.values())
    if kept is not None:
        return Shared(files, identity, kept)
    skipped: dict[str, str] = {}
    members = list(_training_data(trainer, datasets, validation or {}, folder, Shared({}, identity), skipped, progress))
    if not members:
        raise NoneUsableError("datasets: no sample of any category can be used", skipped)
    with plain_torch(), seeded(trainer.seed), within(f"all {len(members)} categories"):
        trainer.learn_parts(members, stages)
    for part in parts:
        trained_on = TrainedOn.of(members, trainer.features_of(part.name))
        _write(getattr(trainer, part.attribute), stages, f"{part.name}.safetensors", trained_on)
    write_text(stages.state(_SKIPPED), json.dumps(skipped))
    return Shared(files, identity, skipped)


def fit_categories(
    method: AnyMethod,
    datasets: Datasets,
    *,
    validation: Validation | None = None,
    workdir: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Iterator[tuple[str, AnyMethod]]:
    """Fit a method on several categories, with one training for what they can share; one model at a time.

    Args:
        method: Method with the arguments of all fits; it stays as it is.
        datasets: Normal samples by category.
        validation: Validation samples by category.
        workdir: Folder for the results of all stages, see :func:`train_shared`. Default: a temporary folder, in which a
            category's results go when the next one comes.
        progress: Whether to show bars on a terminal.

    Yields:
        Each category with its fitted model.

    Raises:
        InputError: As by :func:`train_shared` and :meth:`mmad_bank.methods.Method.fit`.

    Example:
        >>> for category, model in fit_categories(M3DM(), {"bagel": bagels, "rope": ropes}):  # doctest: +SKIP
        ...     model.save(f"m3dm/{category}")
    """
    with ExitStack() as stack:
        folder = Path(workdir or stack.enter_context(tempfile.TemporaryDirectory(prefix="mmad-bank-fit-")))
        shared = None
        if len(datasets) > 1 and method.parts_to_train():
            shared = train_shared(method, datasets, validation=validation, workdir=folder, progress=progress)
        for number, (category, dataset) in enumerate(datasets.items(), 1):
            with within(category, number, len(datasets)):
                model = type(method)(**method.arguments()).fit(
                    dataset, validation=(validation or {}).get(category), workdir=folder / category, progress=progress,
                    shared=shared,
                )  # fmt: skip
            yield category, model
            if workdir is None:
                remove_stages(folder / category)


def _kept(reasons: Path, files: Iterable[str]) -> dict[str, str] | None:
    """Return why samples took no part in an earlier training of parts; None if it is to be done again.

    Warns:
        UserWarning: A file of it is damaged; it goes.
    """
    found, whole = {}, True
    for path in [reasons, *map(Path, files)]:
        try:
            if not path.is_file():
                whole = False
            elif path == reasons:
                found = Manifest(str(path), read_json(path)).content
            else:
                read_trained_on(path)
        except FormatError as error:
            warnings.warn(f"{error}; what categories share is trained anew", stacklevel=3)
            path.unlink()
            whole = False
    return {str(name): str(why) for name, why in found.items()} if whole else None


def _training_data(
    trainer: Method,
    datasets: Datasets,
    validation: Validation,
    folder: Path,
    shared: Shared,
    skipped: dict[str, str],
    progress: bool,
) -> Iterator[CategoryData]:
    """Yield what a method trains on of each category; note why a category has nothing."""
    for number, (category, dataset) in enumerate(datasets.items(), 1):
        with within(category, number, len(datasets)):
            given = trainer.fitting(dataset, validation.get(category), folder / category, shared, progress)
            try:
                with given as (samples, _, stages):
                    data = trainer.training_data(samples, stages)
            except NoneUsableError as error:
                skipped[category] = f"{category}: {error}"
                continue
        skipped |= trainer.skipped_
        yield data._replace(category=category)


def _identity(method: Method, datasets: Datasets) -> str:
    """Return what a shared training depends on, as a short text."""
    facts = {category: method.fingerprint_on(dataset) for category, dataset in datasets.items()}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _write(network: nn.Module, stages: Stages, name: str, trained_on: TrainedOn) -> None:
    stages.run(name, lambda path: save_state(network, path, trained_on.as_metadata()))


def copy_part(shared: Shared, part: SharedPart, path: str | os.PathLike[str]) -> None:
    """Copy a shared part to a file of its own, which its argument takes.

    Raises:
        InputError: The file cannot be written; an old one is still there then.
    """
    with replacing(path) as partial:
        shutil.copyfile(shared.files[part.argument], partial)


@wording(r"(uff|adaptation|sdf)\.safetensors")
def _word_part(path: Path, name: str) -> str:
    """Say that a shared part is trained; a model's own stages leave no such file."""
    found = read_trained_on(path)
    return f"the shared {name}" + (f", trained on {found.in_words()}" if found else "")
