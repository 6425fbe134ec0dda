"""The command that tells what a selection will cost: plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmad_bank._internal.argument_names import argument_called
from mmad_bank._internal.progress import doing
from mmad_bank._internal.resume import counted
from mmad_bank.cli._command import add
from mmad_bank.cli._dumps import AxesOfMaps, ByImage, Key, Reading
from mmad_bank.cli._options import Json, Overwrite, ProjectionDim
from mmad_bank.cli._output import check_output, emit, size
from mmad_bank.cli._values import (
    check_positive,
    parse_count,
    parse_duration,
    parse_projection,
    parse_share,
    parse_size,
)
from mmad_bank.cli._words import option
from mmad_bank.errors import InputError

if TYPE_CHECKING:
    from mmad_bank.bank import FeatureDump
    from mmad_bank.distributed.pace import Pace
    from mmad_bank.distributed.planning import Plan

_DOUBLING = (1, 2, 4, 8, 16, 32, 64)
_FAR = 10  # times as many vectors as were measured, beyond which a plan is a guess by the growth so far
_UNSURE = 0.1  # of an exponent, by which those of a sample and of all rows may differ


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    add(app, plan)


def plan(
    features: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="FEATURES...",
            help="Feature files or folders, or a part of them, to measure with.",
            show_default=False,
        ),
    ] = None,
    rows: Annotated[str | None, option("--rows")] = None,
    dim: Annotated[int | None, option("--dim")] = None,
    ratio: Annotated[str | None, option("--ratio")] = None,
    bank_size: Annotated[int | None, option("--bank-size", "to select, in place of a share")] = None,
    projection_dim: ProjectionDim = None,
    workers: Annotated[int | None, option("--workers", "1 to 64, doubling")] = None,
    threads: Annotated[int | None, option("--threads", "a worker (default: 1, as those of build have)")] = None,
    machines: Annotated[int | None, option("--machines")] = None,
    within: Annotated[str | None, option("--within")] = None,
    spill: Annotated[bool, option("--spill")] = False,
    disk: Annotated[str, option("--disk")] = "1GB",
    network: Annotated[float, option("--network")] = 10.0,
    pace: Annotated[Path | None, option("--pace")] = None,
    save_pace: Annotated[Path | None, option("--save-pace")] = None,
    key: Key = None,
    axes: AxesOfMaps = "auto",
    by_image: ByImage = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Predict time, memory and network of a selection over workers, from some seconds of measuring on this machine.

    Nothing is selected, and no Ray is needed. FEATURES are measured with, or synthetic rows that lie near 64 directions
    if there are none: real ones tell more.
    """
    for name, number in (("--dim", dim), ("--bank-size", bank_size), ("--workers", workers), ("--threads", threads),
                         ("--machines", machines)):  # fmt: skip
        check_positive(name, number)
    if ratio is not None and bank_size is not None:
        raise InputError("--ratio and --bank-size: expected one of them, found both")
    if not 1e-6 <= network < float("inf"):
        raise InputError(f"--network: expected gigabits per second, at least 1e-6, found {network:g}")
    if machines is not None and workers is not None and machines > workers:
        raise InputError(f"--machines: expected at most {workers}, the workers, found {machines}")
    limit = None if within is None else parse_duration(within, "--within")
    settings: dict[str, Any] = {
        "machines": machines,
        "scratch": spill,
        "disk_rate": parse_size(disk, "--disk"),
        "bandwidth": network * 1e9 / 8,
    }
    if save_pace is not None:
        check_output(save_pace, "--save-pace", overwrite=overwrite)
    dump = Reading(key, axes, by_image).open(features) if features else None
    n_rows, length = _sizes(rows, dim, dump)
    from mmad_bank.bank.projection import SparseProjection
    from mmad_bank.bank.selection import coreset_size
    from mmad_bank.distributed import planning

    n_select = coreset_size(n_rows, 0.1 if ratio is None else parse_share(ratio, "--ratio"), bank_size)
    projection = SparseProjection.create(length, n_rows, parse_projection(projection_dim), 0)
    space = length if projection is None else projection.dim_out
    settings["row_bytes"] = 4 * length
    # Without a number of vectors of its own, that is a share of the rows.
    with argument_called(n_rows="--rows", size="--rows" if bank_size is None else "--bank-size", threads="--threads"):
        measured = _pace(pace, space, (n_rows, n_select), threads, dump, projection, spill)
        if save_pace is not None:
            measured.save(save_pace)
        several = [workers] if workers else _DOUBLING
        plans = [planning.plan(measured, n_rows, n_select, n, **settings) for n in several]
        few = None if limit is None else planning.enough(measured, n_rows, n_select, limit, **settings)
    result: dict[str, Any] = {
        "pace": asdict(measured),
        "plans": [{**asdict(one), "seconds": one.seconds} for one in plans],
    }
    if limit is not None:
        result["within"] = {"seconds": limit, "workers": None if few is None else few.workers}
    facts = {
        "select": f"{n_select:,} of {n_rows:,} rows of {length}"
        + ("" if projection is None else f", in a random projection to {space}"),
        "measured": f"{measured.picks:,} of {measured.rows:,} rows of {measured.dim},"
        f" {counted(measured.threads, 'thread')}, {measured.machine}",
        "growth": f"per row as (vectors selected)^{measured.meet_exponent:.2f}",
        **_doubts(measured, n_select),
        "plan": _lines(plans),
        "program": f"{size(plans[0].coordinator_memory)} of memory where the command runs: the bank is made there",
    }
    if limit is not None:
        facts[f"within {within}"] = "no number of workers is enough" if few is None else _lines([few])
    emit(result, facts, title="plan of a selection", as_json=as_json)


def _doubts(pace: Pace, n_select: int) -> dict[str, str]:
    """Say how far the plan goes beyond what was measured, if it is far."""
    beyond = n_select / pace.picks
    if beyond <= _FAR:
        return {}
    other = beyond**_UNSURE
    return {
        "doubts": f"{beyond:,.0f} times as many vectors as were measured: if the growth is off by {_UNSURE:g}, meet is"
        f" {other:.1f} times as long or as short"
    }


def _sizes(rows: str | None, dim: int | None, dump: FeatureDump | None) -> tuple[int, int]:
    """Return the number of rows and their length."""
    if dump is None and (rows is None or dim is None):
        raise InputError("--rows and --dim: expected both, or FEATURES to take them from, found neither or one")
    n_rows = len(dump) if rows is None and dump is not None else parse_count(rows or "", "--rows")
    if dump is not None and dim not in (None, dump.dim):
        raise InputError(f"--dim: expected {dump.dim} as in FEATURES, found {dim}")
    return n_rows, dump.dim if dump is not None else dim or 0


def _pace(
    path: Path | None,
    dim: int,
    sizes: tuple[int, int],
    threads: int | None,
    dump: FeatureDump | None,
    projection: Any,
    spill: bool,
) -> Pace:
    from mmad_bank.distributed.pace import Pace, measure_pace

    if path is not None:
        pace = Pace.load(path)
        if pace.dim != dim:
            raise InputError(f"{path}: expected a pace of rows of length {dim}, found one of {pace.dim}")
        if threads not in (None, pace.threads):
            raise InputError(f"--threads: expected {pace.threads}, which {path} was measured with, found {threads}")
        return pace
    sample = None if dump is None else _sample(dump, projection)
    n_rows, n_select = sizes
    with doing("measuring"):
        return measure_pace(
            dim, n_select, threads=threads or 1, features=sample, n_rows=n_rows,
            projected_from=None if projection is None else projection.dim_in, on_disk=spill,
        )  # fmt: skip


def _sample(dump: FeatureDump, projection: Any) -> Any:
    """Return rows from all over a dump, in the space that is selected in."""
    import torch

    from mmad_bank.distributed.pace import LEAST_SAMPLE, sample_rows

    wanted = min(len(dump), sample_rows(dump.dim))
    drawn = torch.randperm(len(dump), generator=torch.Generator().manual_seed(0))[:wanted]
    if wanted < LEAST_SAMPLE:
        raise InputError(f"FEATURES: expected at least {LEAST_SAMPLE} rows to measure with, found {wanted}")
    rows = dump.take(drawn.sort()[0])
    return rows if projection is None else projection(rows)


_TIMES = ("read", "prepare", "meet", "reread", "choose", "network")


def _lines(plans: Sequence[Plan]) -> str:
    """Return the plans as a table: a line for each, times first, then what one of the workers holds and moves."""
    times = [name for name in _TIMES if any(getattr(one, name) for one in plans)]
    sizes = {"memory": "memory", "scratch": "scratch", "up": "sends", "down": "gets"}
    kept = {name: word for name, word in sizes.items() if any(getattr(one, name) for one in plans)}
    cells = [["workers", "time", *times, *kept.values()]]
    cells += [
        [f"{one.workers:,}", _time(one.seconds)]
        + [_time(getattr(one, name)) for name in times]
        + [size(getattr(one, name)) for name in kept]
        for one in plans
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in cells)


def _time(value: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if value >= 2 * length:
            return f"{value / length:.1f} {unit}"
    return f"{value:.1f} s" if value >= 1 else f"{1000 * value:.0f} ms"
