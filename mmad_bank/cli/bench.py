"""The command that measures methods: bench."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial as bind
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmad_bank._internal.files import write_text
from mmad_bank._internal.terminal import say
from mmad_bank.cli._command import add
from mmad_bank.cli._going_on import going_on
from mmad_bank.cli._options import Device, Json, Overwrite, ResultsFile
from mmad_bank.cli._output import check_output, check_output_folder, end, seconds, show_progress, size
from mmad_bank.cli._values import check_device, check_positive, parse_numbers
from mmad_bank.cli._words import ComputeDtype, option
from mmad_bank.errors import InputError, MmadBankError

if TYPE_CHECKING:
    from mmad_bank.cli._arguments import Settings
    from mmad_bank.methods import Method


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    add(app, bench)


def bench(
    methods: Annotated[str | None, option("--methods")] = None,
    settings: Annotated[list[str] | None, option("--set")] = None,
    batches: Annotated[str, option("--batches")] = "1,4",
    rounds: Annotated[int, option("--rounds")] = 5,
    bank_size: Annotated[int | None, option("--bank-size", "in each bank (default: the paper's own)")] = None,
    train_images: Annotated[int | None, option("--train-images", "whose patches fill the banks (default: 244)")] = None,
    compute_dtype: Annotated[ComputeDtype, option("--compute-dtype")] = "float32",
    device: Device = "cpu",
    threads: Annotated[int | None, option("--threads", "PyTorch (default: one per core)")] = None,
    times_only: Annotated[bool, option("--times-only")] = False,
    quick: Annotated[bool, option("--quick")] = False,
    workdir: Annotated[Path | None, option("--workdir", "the fitted models in, from which a later run starts")] = None,
    out: ResultsFile = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Measure frames per second, time by section and memory of the methods, end to end, with random weights.

    A method that cannot run here is named and left out, and the exit code is 3.
    What --set says is for those of the methods that have such an argument.
    """
    import torch

    from mmad_bank import bench as core
    from mmad_bank.methods import names as method_names

    target = check_device(device)
    for name, number in (
        ("--threads", threads), ("--rounds", rounds), ("--train-images", train_images), ("--bank-size", bank_size)
    ):  # fmt: skip
        check_positive(name, number)
    if threads is not None:
        torch.set_num_threads(threads)
    if workdir is not None:
        check_output_folder(workdir, "--workdir")
    sizes = parse_numbers(batches, "--batches", "1,8")
    if out is not None:
        check_output(out, "--out", overwrite=overwrite)
    names = list(method_names()) if methods is None else core.find_methods(methods)
    chosen = _settings(names, settings or [])
    wanted = bank_size or (core.QUICK_VECTORS if quick else None)
    with (
        tempfile.TemporaryDirectory(prefix="mmad-bank-bench-") as temporary,
        nullcontext() if workdir is None else going_on(),  # what is in a temporary folder goes
    ):
        folder = temporary if workdir is None else str(workdir)
        Path(folder).mkdir(parents=True, exist_ok=True)
        make = bind(
            core.make_method, folder=Path(folder), images=2 if quick else train_images or core.IMAGES, vectors=wanted,
            small=quick, device=str(target), compute_dtype=compute_dtype, progress=show_progress(as_json),
        )  # fmt: skip
        made, left_out = _make_all(chosen, make)
        report = say if show_progress(as_json) else (lambda line: None)
        results = core.measure(made, rounds=rounds, batches=sizes, report=report)
        for result in () if times_only else results:
            try:
                core.measure_memory(result, made[result.name], Path(temporary) / "saved")
            except InputError as error:  # the times are good all the same
                left_out[f"{result.name}, memory"] = str(error)
    banks = {name: core.banks_of(method) for name, method in made.items()}
    facts = _facts(results, banks, rounds, str(target), compute_dtype, quick) | {"left_out": left_out}
    text = json.dumps(facts, indent=2, allow_nan=False)
    if out is not None:
        write_text(out, text + "\n")
    if as_json:
        print(text)
    else:
        _print(facts, results)
    end({name: f"{name}: {reason}" for name, reason in left_out.items()})


def _settings(names: Sequence[str], words: Sequence[str]) -> dict[str, Settings]:
    """Read ``--set`` for each of the methods: what it has no such argument for is left to the others.

    Raises:
        InputError: No method has the argument, or its value is of another type.
    """
    from mmad_bank.cli._arguments import argument_named, parse_settings
    from mmad_bank.methods import method_class

    classes = {name: method_class(name) for name in names}
    for word in words:
        if not any(argument_named(one, word) for one in classes.values()):
            parse_settings(next(iter(classes.values())), [word])  # says what is wrong with it
    return {
        name: parse_settings(one, [word for word in words if argument_named(one, word)])
        for name, one in classes.items()
    }


def _make_all(chosen: Mapping[str, Settings], make: Callable[..., Method]) -> tuple[dict[str, Method], dict[str, str]]:
    """Fit methods with their settings; return those that can run, and by name why others cannot.

    Raises:
        MmadBankError: None can; the reason is the first one's.
    """
    from mmad_bank.cli._group import spelling
    from mmad_bank.methods import method_class

    made: dict[str, Method] = {}
    failed: dict[str, MmadBankError] = {}
    for method, settings in chosen.items():
        name = method_class(method).__name__
        try:
            with spelling(settings.spelled):
                made[name] = make(method, settings=settings.arguments)
        except MmadBankError as error:
            failed[name] = error
    if not made:
        raise next(iter(failed.values()))
    return made, {name: str(error) for name, error in failed.items()}


def _facts(
    results: list[Any], banks: dict[str, dict[str, int]], rounds: int, device: str, dtype: str, quick: bool
) -> dict[str, Any]:
    """Describe the run: machine, versions, settings, results."""
    import platform

    import torch

    from mmad_bank import __version__, ops

    return {
        "machine": {
            "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.machine(),
            "system": f"{platform.system()} {platform.release()}", "threads": torch.get_num_threads(),
            "instructions": ops.system_info()["cpu"]["in use"],
        },
        "versions": {"mmad_bank": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "settings": {
            "rounds": rounds, "compute_dtype": dtype, "device": device, "quick": quick
        },
        "results": [{**result.as_json(), "vectors": banks[result.name]} for result in results],
    }  # fmt: skip


def _joined(vectors: Mapping[str, int]) -> str:
    """Return the banks' sizes in words."""
    return " + ".join(f"{n:,}" for n in vectors.values()) or "–"


def _print(facts: dict[str, Any], results: list[Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    settings, versions = facts["settings"], facts["versions"]
    title = (
        f"{facts['machine']['device']}, {facts['machine']['threads']} threads, torch {versions['torch']},"
        f" mmad-bank {versions['mmad_bank']}; {settings['compute_dtype']},"
        f" random weights, {settings['rounds']} rounds"
    )
    table = Table()
    batches = list(results[0].throughput)
    by_batch = (f"fps, batch {b}" for b in batches if b > 1)
    for heading in ("method", "vectors", "fps", "median", "p95", *by_batch, "memory", "peak"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    table.add_column("time by section")
    for result, found in zip(results, facts["results"], strict=True):
        split = ", ".join(f"{name} {value / result.median:.0%}" for name, value in result.stages.items())
        table.add_row(
            result.name, _joined(found["vectors"]), f"{result.fps:.2f}", seconds(result.median),
            seconds(result.quantile(0.95)), *(f"{result.throughput[b]:.2f}" for b in batches if b > 1),
            size(result.memory) if result.activations is not None else "–",
            size(result.peak) if result.peak is not None else "–", split,
        )  # fmt: skip
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 180)
    console.print(title, markup=False)
    console.print(table, markup=False)
    console.print("memory: parameters + banks + activations; peak: that of a process scoring one image", markup=False)
