"""The program with its commands."""

from __future__ import annotations

from typing import Annotated

import typer

import mmad_bank
from mmad_bank.cli import (
    bank,
    bench,
    calibrate,
    data,
    demo,
    evaluation,
    export,
    extract,
    fit,
    follow,
    info,
    monitor,
    plan,
    predict,
    serve,
    train,
    tune,
)
from mmad_bank.cli._group import Group

app = typer.Typer(
    name="mmad-bank",
    cls=Group,
    help="Memory-bank anomaly detection: select a bank from patch features, search it exactly, score with it.",
    epilog="Exit codes: 0 done; 2 bad input, in one line; 3 done, but for samples that could not be used, each named in"
    " a line; 4 an image is bad, with --fail-on-bad; 5 drift is found, by monitor; 130 and 143 stopped by Ctrl-C and"
    " SIGTERM; 1 anything else.",
    invoke_without_command=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"mmad-bank {mmad_bank.__version__}")
        raise typer.Exit


@app.callback()
def _program(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


bank.register(app)
follow.register(app)
calibrate.register(app)
monitor.register(app)
info.register(app)
data.register(app)
extract.register(app)
fit.register(app)
train.register(app)
evaluation.register(app)
predict.register(app)
export.register(app)
serve.register(app)
bench.register(app)
tune.register(app)
plan.register(app)
demo.register(app)
