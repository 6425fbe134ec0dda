"""The command that watches scores over time: monitor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmad_bank._internal.files import replacing
from mmad_bank._internal.folders import read_folder
from mmad_bank._internal.json_values import inside
from mmad_bank._internal.progress import doing
from mmad_bank._internal.shares import percent
from mmad_bank._internal.terminal import printable, say
from mmad_bank.cli._command import add
from mmad_bank.cli._options import Json, Overwrite
from mmad_bank.cli._output import check_output, emit, end, say_left_out
from mmad_bank.cli._score_tables import NamedScore, read_scores
from mmad_bank.cli._values import check_once, check_plot, parse_share
from mmad_bank.cli._words import option
from mmad_bank.errors import InputError

if TYPE_CHECKING:
    from mmad_bank.calibration import Calibration
    from mmad_bank.monitoring import DriftMonitor

DRIFT = 5
"""Exit code of a command that has found drift."""
_RECENT = 50
_WATCHED = 0.1


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    add(app, monitor)


def monitor(
    scores: Annotated[
        list[Path],
        typer.Argument(
            metavar="SCORES...",
            help="CSV files with a column score, as score --csv writes them, or files with a JSON object per line; in"
            " the order of time.",
            show_default=False,
        ),
    ],
    bank: Annotated[Path | None, option("--bank")] = None,
    model: Annotated[Path | None, option("--model")] = None,
    normal: Annotated[Path | None, option("--normal")] = None,
    false_warning_rate: Annotated[str, option("--false-warning-rate")] = "1%",
    plot: Annotated[Path | None, option("--plot", "the scores and the evidence")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Say whether scores are still what they were when they were calibrated, with a chance of false warnings.

    The exit code is 5 if drift is found. Lines and files that cannot be used are named and left out, and the exit code
    is 3 otherwise.
    """
    given = [path for path in (bank, model, normal) if path is not None]
    if len(given) != 1:
        found = "several" if given else "none"
        raise InputError(f"--bank, --model and --normal: expected one of them, found {found}")
    read = (*scores, *given)
    check_once(scores, "SCORES")
    if plot is not None:
        check_plot(plot)
        check_output(plot, "--plot", inputs=read, overwrite=overwrite)
    rate = parse_share(false_warning_rate, "--false-warning-rate")
    import numpy as np

    from mmad_bank.monitoring import DriftMonitor, check_drawing, figure

    if plot is not None:
        check_drawing()
    left_out: dict[str, str] = {}
    reference = _reference(bank, model, normal, left_out)
    images = read_scores(scores, left_out, None if normal is not None else reference)
    values = np.array([one.score for one in images])
    made = DriftMonitor(reference, rate).extend(values)
    if plot is not None:
        with doing(f"drawing {plot}"), replacing(plot) as partial:
            drawn = figure(made, values, title=", ".join(str(path) for path in scores[:3]))
            drawn.savefig(partial, metadata={"Software": None} if plot.suffix == ".png" else None)
    facts = _facts(made, images)
    result = {"plot": plot and str(plot), **facts, "left_out": left_out}
    rows = _rows(made, images)
    if normal is None:
        rows |= _unchecked(images, "bank" if model is None else "model")
    emit(result, rows, title=f"monitored {len(images):,} {reference.unit}", as_json=as_json)
    say_left_out(left_out)
    if made.found is not None:
        raise typer.Exit(DRIFT)
    end(left_out, said=True)


def _reference(bank: Path | None, model: Path | None, normal: Path | None, left_out: dict[str, str]) -> Calibration:
    """Return the scores of normal images, of the one place that is given."""
    if bank is not None:
        return _of_bank(bank)
    if model is not None:
        return _of_model(model)
    assert normal is not None
    return _of_normal(normal, left_out)


def _of_bank(path: Path) -> Calibration:
    """Return the image scores that a bank was calibrated with.

    Raises:
        InputError: It is not calibrated.
    """
    from mmad_bank.bank import MemoryBank

    with doing(f"loading {path}"):
        found = MemoryBank.load(path).calibration
    if found is None:
        raise InputError(f"{path}: expected a calibrated bank, found none; mmad-bank calibrate makes one of it")
    if found.outdated:
        say(f"note: {path} was extended after it was calibrated; its scores have fallen since")
    return found.images


def _of_model(folder: Path) -> Calibration:
    """Return the image scores that a saved model was calibrated with, by its manifest alone.

    Raises:
        InputError: There is no model, or it is not calibrated.
        FormatError: It is damaged.
    """
    from mmad_bank.methods.model_folder import blaming_manifest, read_manifest
    from mmad_bank.methods.verdicts import ModelCalibration

    content = read_folder(folder, lambda: read_manifest(folder)).get("calibration")
    if content is None:
        raise InputError(f"{folder}: expected a calibrated model, found none; fit calibrates where it can")
    with blaming_manifest(folder), inside("calibration"):
        return ModelCalibration.from_json(content).own


def _of_normal(path: Path, left_out: dict[str, str]) -> Calibration:
    """Return the scores of a file of normal images."""
    import numpy as np

    from mmad_bank.calibration import Calibration

    return Calibration(np.array([one.score for one in read_scores([path], left_out)]), f"images of {path.name}")


def _facts(made: DriftMonitor, images: Sequence[NamedScore]) -> dict[str, Any]:
    """Return JSON-able values; numbers of images begin at 0."""
    found = made.found
    return {
        "images": len(made),
        "drift": found is not None,
        "direction": None if found is None else found.direction,
        "found_at": None if found is None else {"image": found.image, "name": images[found.image].name},
        "since": None if found is None else {"image": found.since, "name": images[found.since].name},
        "evidence": {"log10_largest": max(made.evidence), "log10_now": made.evidence[-1],
                     "log10_warning": made.warning_level},
        "false_warning_rate": made.false_warning_rate,
        "reference": {"images": len(made.calibration), "origin": made.calibration.origin},
    }  # fmt: skip


def _rows(made: DriftMonitor, images: Sequence[NamedScore]) -> dict[str, str]:
    """Return the same for people; numbers of images, or of parts, begin at 1."""
    unit = made.calibration.unit
    one = unit.removesuffix("s")
    recent = made.p_values[-_RECENT:]
    low = sum(p <= _WATCHED for p in recent)
    largest = max(range(len(made)), key=made.evidence.__getitem__)
    return {
        "state": _state(made, images),
        "evidence": f"{_factor(made.evidence[largest])} at most ({one} {largest + 1:,}),"
        f" {_factor(made.evidence[-1])} now; drift is found from {_factor(made.warning_level)} on",
        "recent": f"{low} of the last {len(recent)} {unit} have p-values of at most {_WATCHED:g}, where"
        f" {_WATCHED * len(recent):.3g} are expected",
        "reference": f"{len(made.calibration):,} {made.calibration.origin}, and each {one}'s predecessors",
        "false warnings": f"a chance of at most {percent(made.false_warning_rate)}, however long this goes on",
    }


def _unchecked(images: Sequence[NamedScore], maker: str) -> dict[str, str]:
    """Say how many scores do not show whether they are a bank's or model's own."""
    n = sum(one.p_value is None for one in images)
    writes = "score --false-alarm-rate" if maker == "bank" else "predict"
    words = f"{n:,} of {len(images):,} scores have no p-value, which {writes} writes: nothing tells if they are of this"
    return {"not checked": f"{words} {maker}"} if n else {}


def _state(made: DriftMonitor, images: Sequence[NamedScore]) -> str:
    unit = made.calibration.unit
    if made.found is None:
        return f"no drift in {len(made):,} {unit}"
    image, since, direction = made.found
    one = unit.removesuffix("s")
    return (
        f"drift: scores have {'risen' if direction == 'up' else 'fallen'} since about {one} {since + 1:,}"
        f" ({printable(images[since].name)}), found at {one} {image + 1:,} ({printable(images[image].name)})"
    )


def _factor(log10: float) -> str:
    return f"{10**log10:.3g}" if log10 < 300 else f"1e{log10:.0f}"
