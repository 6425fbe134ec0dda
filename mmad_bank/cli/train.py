"""The commands that train, for all categories, what models share: train-uff, train-adaptors, train-sdf."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmad_bank._internal.files import named_after
from mmad_bank._internal.folders import working_alone
from mmad_bank.cli._command import add
from mmad_bank.cli._going_on import going_on
from mmad_bank.cli._job import Job
from mmad_bank.cli._options import Categories, DatasetFolder, Device, Json, Layout, Overwrite, Units
from mmad_bank.cli._output import check_output, emit, end, seconds, show_progress, size
from mmad_bank.cli._part_facts import taken_by
from mmad_bank.cli._values import check_device, parse_categories
from mmad_bank.cli._words import option
from mmad_bank.errors import InputError

if TYPE_CHECKING:
    from mmad_bank.methods.shareable import Shared, SharedPart

_COMMANDS = {"uff": "train-uff", "adaptation": "train-adaptors", "sdf": "train-sdf"}
"""Commands by the part that they train."""


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    add(
        app,
        _training(
            "train_uff", "m3dm", "uff",
            """Train M3DM's feature fusion (UFF) on all categories, and write it to a file.

            The command fit m3dm takes the file as --set uff-weights=FILE, for each category as it comes. Over several
            categories at once it trains one itself.
            """,
        ),
        _training(
            "train_adaptors", "lsfa", "adaptation",
            """Train LSFA's adaptors on all categories, and write the pair to a file.

            The commands fit lsfa and fit m3dm take the file as --set adaptation=FILE, for each category as it comes.
            Over several categories at once fit lsfa trains a pair itself.
            """,
        ),
        _training(
            "train_sdf", "mdss", "sdf",
            """Train the signed distances of MDSS and Shape-guided on all categories, and write them to a file.

            The commands fit mdss and fit shape_guided take the file as --set sdf-weights=FILE, for each category as it
            comes. Over several categories at once they train them themselves. The settings are those of mdss.
            """,
        ),
    )  # fmt: skip


def _training(name: str, method: str, part: str, documentation: str) -> Callable[..., None]:
    """Return the function of a command that trains a part of a method."""

    def train(
        dataset: DatasetFolder,
        out: Annotated[Path, option("--out", "Safetensors file", ", with the weights and what they were trained on")],
        categories: Categories = None,
        bundled: Annotated[bool, option("--bundled")] = False,
        settings: Annotated[list[str] | None, option("--set")] = None,
        few_shot: Annotated[int | None, option("--few-shot")] = None,
        seed: Annotated[int, option("--seed", "the method and of the few-shot draw")] = 0,
        workdir: Annotated[
            Path | None, option("--workdir", "the results of the stages in (default: OUT.train, removed at the end)")
        ] = None,
        layout: Layout = "auto",
        units: Units = None,
        device: Device = "cpu",
        overwrite: Overwrite = False,
        as_json: Json = False,
    ) -> None:
        from mmad_bank.methods import method_class

        job = Job(method_class(method), dataset, parse_categories(categories), layout, units, few_shot, seed)
        job.choose_arguments(settings or [], bundled, str(check_device(device)))
        wanted = _wanted(job, part)
        if out.suffix != ".safetensors":
            raise InputError(f"--out: expected a file name that ends in .safetensors, found {str(out)!r}")
        check_output(out, "--out", inputs=(dataset,), overwrite=overwrite)
        job.open()
        job.say_idle()
        begin = time.perf_counter()
        shared = _train(job, wanted, out, workdir, show_progress(as_json))
        _report(job, wanted, out, shared, time.perf_counter() - begin, as_json)

    train.__name__, train.__doc__ = name, documentation
    return train


def _wanted(job: Job, name: str) -> SharedPart:
    """Return the part to train, the only one that a fit with these arguments would train."""
    from mmad_bank.cli._group import as_typed
    from mmad_bank.methods.shareable import TRAIN

    method = job.make()
    (wanted,) = (part for part in method.shareable if part.name == name)
    parts = {part.name: part for part in method.parts_to_train()}
    if name not in parts:
        idle, found = method.idle_arguments(), getattr(method, wanted.argument)
        why = idle[wanted.argument] if found == TRAIN else f"{wanted.argument}={found}"
        raise InputError(
            as_typed(f"--set: expected settings with which fit {method.name} trains its {wanted.words}, found {why}",
                     job.spelled)
        )  # fmt: skip
    for part in parts.values():
        if part.name != name:
            raise InputError(
                f"{job.spelled.get(part.argument, f'--set {part.argument}')}: expected a file, found 'train'; mmad-bank"
                f" {_COMMANDS[part.name]} writes one"
            )
    return wanted


def _train(job: Job, part: SharedPart, out: Path, workdir: Path | None, progress: bool) -> Shared:
    """Train, or go on, and write the file."""
    from mmad_bank.methods.shared import copy_part

    folder = workdir or named_after(out, ".train")
    with working_alone(folder), going_on():
        try:
            shared = job.train_shared(folder, progress)
            copy_part(shared, part, out)
        finally:
            if workdir is None:
                job.remove_unused(folder)
        if workdir is None:
            job.remove_stages(folder)
    return shared


def _report(job: Job, part: SharedPart, out: Path, shared: Shared, taken: float, as_json: bool) -> None:
    """Say what was written, and end the command."""
    from mmad_bank.methods.shareable import read_trained_on

    trained_on, n_bytes = read_trained_on(out), out.stat().st_size
    assert trained_on is not None
    result: dict[str, Any] = {
        "part": part.name, "method": job.method.name, "arguments": job.arguments, "path": str(out), "bytes": n_bytes,
        **trained_on.as_json(), "left_out": dict(shared.skipped), "seconds": taken,
    }  # fmt: skip
    rows = {
        "file": f"{out}, {size(n_bytes)}",
        "trained on": f"{trained_on.in_words()}, in {seconds(taken)}",
        "taken by": taken_by(part, out),
    }
    emit(result, rows, title=f"trained {part.words}", as_json=as_json)
    end(shared.skipped)
