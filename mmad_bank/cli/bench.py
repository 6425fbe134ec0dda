"""The command that measures methods: bench."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial as bind
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmad_bank._internal.files import write_text
from mmad_bank.cli._going_on import going_on
from mmad_bank.cli._options import Device, Json, Overwrite, check_device
from mmad_bank.cli._output import check_output, end, seconds, show_progress, size
from mmad_bank.errors import InputError, MmadBankError

if TYPE_CHECKING:
    from mmad_bank.methods import Method


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command()(bench)


def bench(
    methods: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...", help="Methods or rows of the table to measure (default: all).", show_default=False
        ),
    ] = None,
    batch: Annotated[str, typer.Option(metavar="N,M,...", help="Batch sizes to measure the throughput at.")] = "1,4",
    rounds: Annotated[int, typer.Option(help="Number of timed images per method; the methods take turns.")] = 5,
    vectors: Annotated[
        int | None, typer.Option(help="Number of vectors in each bank (default: 19129).", show_default=False)
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(help="Number of images whose patches fill the banks (default: 244).", show_default=False),
    ] = None,
    precision: Annotated[str, typer.Option(help="Compute dtype of the extractors: float32 or bfloat16.")] = "float32",
    device: Device = "cpu",
    threads: Annotated[
        int | None, typer.Option(help="Number of PyTorch's threads (default: one per core).", show_default=False)
    ] = None,
    memory: Annotated[bool, typer.Option(help="Measure the memory too, each method in a process of its own.")] = True,
    quick: Annotated[
        bool, typer.Option("--quick", help="Take tiny networks and banks, to see whether it runs.")
    ] = False,
    workdir: Annotated[
        Path | None,
        typer.Option(help="Folder to keep the fitted models in, which a later run starts from.", show_default=False),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write, with all results.", show_default=False)] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Measure frames a second, time by stage and memory of the methods, end to end, with random weights.

    A method that cannot run here is named and left out, and the exit code is 3.
    """
    import torch

    from mmad_bank import bench as core

    target = check_device(device)
    if threads is not None:
        _positive("--threads", threads)
        torch.set_num_threads(threads)
    _positive("--rounds", rounds)
    if images is not None:
        _positive("--images", images)
    if vectors is not None:
        _positive("--vectors", vectors)
    batches = _batches(batch)
    if out is not None:
        check_output(out, "--out", overwrite=overwrite)
    names = list(core.CONTESTANTS) if methods is None else core.find_contestants(methods)
    wanted = vectors or (min(300, 2 * 784) if quick else core.VECTORS)
    with (
        tempfile.TemporaryDirectory(prefix="mmad-bank-bench-") as temporary,
        nullcontext() if workdir is None else going_on(),  # what is in a temporary folder goes
    ):
        folder = temporary if workdir is None else str(workdir)
        Path(folder).mkdir(parents=True, exist_ok=True)
        make = bind(
            core.make_method, folder=Path(folder), images=2 if quick else images or core.IMAGES, vectors=wanted,
            small=quick, device=str(target), precision=precision, progress=show_progress(as_json),
        )  # fmt: skip
        made, left_out = _make_all(names, make)
        say = (lambda line: print(line, file=sys.stderr)) if show_progress(as_json) else (lambda line: None)
        results = core.measure(made, rounds=rounds, batches=batches, report=say)
        for result in results if memory else ():
            try:
                core.measure_memory(result, made[result.name], Path(temporary) / "saved")
            except InputError as error:  # the times are good all the same
                left_out[f"{result.name}, memory"] = str(error)
    facts = _facts(results, wanted, rounds, str(target), precision, quick) | {"left_out": left_out}
    text = json.dumps(facts, indent=2, allow_nan=False)
    if out is not None:
        write_text(out, text + "\n")
    if as_json:
        print(text)
    else:
        _print(facts, results)
    end({name: f"{name}: {reason}" for name, reason in left_out.items()})


def _make_all(names: Sequence[str], make: Callable[[str], Method]) -> tuple[dict[str, Method], dict[str, str]]:
    """Fit the contestants; return those that can run, and by name why others cannot.

    Raises:
        MmadBankError: None can; the reason is the first one's.
    """
    made: dict[str, Method] = {}
    failed: dict[str, MmadBankError] = {}
    for name in names:
        try:
            made[name] = make(name)
        except MmadBankError as error:
            failed[name] = error
    if not made:
        raise next(iter(failed.values()))
    return made, {name: str(error) for name, error in failed.items()}


def _facts(results: list[Any], vectors: int, rounds: int, device: str, precision: str, quick: bool) -> dict[str, Any]:
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
        "settings": {"vectors": vectors, "rounds": rounds, "precision": precision, "device": device, "quick": quick},
        "results": [result.as_json() for result in results],
    }  # fmt: skip


def _print(facts: dict[str, Any], results: list[Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    settings, versions = facts["settings"], facts["versions"]
    title = (
        f"{facts['machine']['device']}, {facts['machine']['threads']} threads, torch {versions['torch']},"
        f" mmad-bank {versions['mmad_bank']}; {settings['vectors']:,} vectors a bank, {settings['precision']},"
        f" random weights, {settings['rounds']} rounds"
    )
    table = Table()
    batches = list(results[0].throughput)
    for heading in ("method", "fps", "median", "p95", *(f"fps, batch {b}" for b in batches if b > 1), "memory", "peak"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    table.add_column("time by stage")
    for result in results:
        split = ", ".join(f"{name} {value / result.median:.0%}" for name, value in result.stages.items())
        table.add_row(
            result.name, f"{result.fps:.2f}", seconds(result.median), seconds(result.quantile(0.95)),
            *(f"{result.throughput[b]:.2f}" for b in batches if b > 1),
            size(result.memory) if result.activations is not None else "–",
            size(result.peak) if result.peak is not None else "–", split,
        )  # fmt: skip
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 180)
    console.print(title, markup=False)
    console.print(table, markup=False)
    console.print("memory: parameters + banks + activations; peak: of a process that scores one image", markup=False)


def _batches(text: str) -> list[int]:
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise InputError(f"--batch: expected batch sizes such as 1,8, found {text!r}")
    return sorted(set(sizes))


def _positive(name: str, value: int) -> None:
    if value < 1:
        raise InputError(f"{name}: expected at least 1, found {value}")
