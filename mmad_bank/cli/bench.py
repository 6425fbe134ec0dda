"""The command that measures methods: bench."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from mmad_bank._files import replacing
from mmad_bank.cli._options import Device, Json, check_device
from mmad_bank.cli._output import check_output, seconds, show_progress, size
from mmad_bank.errors import InputError


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command()(bench)


def bench(
    methods: Annotated[
        str | None,
        typer.Option(metavar="A,B,...", help="Contestants, by their names (default: all).", show_default=False),
    ] = None,
    batch: Annotated[str, typer.Option(metavar="N,M,...", help="Batch sizes for the throughput.")] = "1,4",
    rounds: Annotated[int, typer.Option(help="Timed images a contestant, alternating.")] = 5,
    vectors: Annotated[int | None, typer.Option(help="In each bank (default: 19129).", show_default=False)] = None,
    images: Annotated[
        int | None, typer.Option(help="Whose patches fill the banks (default: 244).", show_default=False)
    ] = None,
    precision: Annotated[str, typer.Option(help="Of the extractors: float32 or bfloat16.")] = "float32",
    device: Device = "cpu",
    threads: Annotated[int | None, typer.Option(help="Of PyTorch (default: all cores).", show_default=False)] = None,
    memory: Annotated[bool, typer.Option(help="Measure memory too, each method in a process of its own.")] = True,
    quick: Annotated[bool, typer.Option("--quick", help="Tiny networks and banks: does it run?")] = False,
    workdir: Annotated[
        Path | None, typer.Option(help="Keep the fits here; a later run starts from them.", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the JSON to a file.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Measure frames a second, time by stage and memory of the methods, end to end, with random weights."""
    import torch

    from mmad_bank import bench as core

    target = check_device(device)
    if threads is not None:
        _positive("--threads", threads)
        torch.set_num_threads(threads)
    _positive("--rounds", rounds)
    if images is not None:
        _positive("--images", images)
    batches = _batches(batch)
    if out is not None:
        check_output(out, "--out")
    names = list(core.CONTESTANTS) if methods is None else [name.strip() for name in methods.split(",")]
    wanted = vectors or (min(300, 2 * 784) if quick else core.VECTORS)
    with tempfile.TemporaryDirectory(prefix="mmad-bank-bench-") as temporary:
        folder = temporary if workdir is None else str(workdir)
        Path(folder).mkdir(parents=True, exist_ok=True)
        made = {
            name: core.make_method(
                name, Path(folder), images=2 if quick else images or core.IMAGES, vectors=wanted, small=quick,
                device=str(target), precision=precision, progress=show_progress(as_json),
            )
            for name in names
        }  # fmt: skip
        say = (lambda line: print(line, file=sys.stderr)) if show_progress(as_json) else (lambda line: None)
        results = core.measure(made, rounds=rounds, batches=batches, report=say)
        for result in results if memory else ():
            core.measure_memory(result, made[result.name], Path(temporary) / "saved")
    facts = _facts(results, wanted, rounds, str(target), precision, quick)
    text = json.dumps(facts, indent=2, allow_nan=False)
    if out is not None:
        with replacing(out) as partial:
            partial.write_text(text + "\n")
    if as_json:
        print(text)
    else:
        _print(facts, results)


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
