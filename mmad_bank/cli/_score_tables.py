"""Files of scores, as ``score --csv`` and ``predict --csv`` write them: CSV, or a JSON object per line."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mmad_bank._internal.manifest import parse_json
from mmad_bank.errors import InputError, MmadBankError, NoneUsableError

if TYPE_CHECKING:
    from mmad_bank.calibration import Calibration

_SCORE, _P_VALUE, _LEFT_OUT = "score", "p_value", "left_out"
_NAMES = ("name", "part", "id")
_ROUNDED = 1e-6  # relative error of a score, and of a p-value, that went through a file with all their digits


class NamedScore(NamedTuple):
    """An image's score."""

    name: str
    score: float
    p_value: float | None = None


def read_scores(
    paths: Sequence[Path], left_out: dict[str, str], calibration: Calibration | None = None
) -> list[NamedScore]:
    """Read the scores of files in their order.

    Args:
        paths: CSV files with a column ``score``, or files with a JSON object per line that has one. Images are named
            by ``name``, ``part`` or ``id``, else by file and line; a ``p_value`` is read where there is one. Lines
            of pictures that were left out, with ``left_out`` and no score, are none; other columns are not looked at.
        left_out: Dictionary that takes up why lines and files cannot be used, by file or line.
        calibration: Calibration by which the scores were judged. A file with p-values of another one cannot be used.

    Raises:
        NoneUsableError: There is no score in any of them.
    """
    found: list[NamedScore] = []
    for path in paths:
        try:
            own = _read(path, left_out)
            if calibration is not None:
                _check_judged_by(calibration, own, path)
            found += own
        except MmadBankError as error:
            left_out[str(path)] = str(error)
    if not found:
        raise NoneUsableError("", left_out)
    return found


def _read(path: Path, left_out: dict[str, str]) -> list[NamedScore]:
    found = []
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            head = file.read(4096)
            if "\0" in head:
                raise InputError(f"{path}: expected CSV or a JSON object per line, found a file that is no text")
            is_json = head.lstrip().startswith("{")
            file.seek(0)
            for line, row in _json_rows(file, path) if is_json else _csv_rows(file, path):
                if isinstance(row, Mapping) and row.get(_LEFT_OUT) and not row.get(_SCORE):
                    continue  # predict could not use the picture, and has said so
                try:
                    found.append(_named(row, f"{path}: line {line}"))
                except MmadBankError as error:
                    left_out[f"{path}: line {line}"] = str(error)
    except (OSError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if not found:
        raise InputError(f"{path}: expected lines with a score, found none")
    return found


def _check_judged_by(calibration: Calibration, images: Sequence[NamedScore], path: Path) -> None:
    """Refuse a file whose p-values another calibration has given: its scores are on another scale."""
    import torch

    judged = [one for one in images if one.p_value is not None]
    scores = torch.tensor([one.score for one in judged], dtype=torch.float64)
    # A score that equals a held-out one may lie beside it after its digits were written and read.
    errors = torch.tensor([_rounding(one.score) for one in judged], dtype=torch.float64)
    least, most = (calibration.p_values(scores + sign * errors).tolist() for sign in (1, -1))
    for one, low, high in zip(judged, least, most, strict=True):
        assert one.p_value is not None
        error = _rounding(one.p_value)
        if not low - error <= one.p_value <= high + error:
            raise InputError(
                f"{path}: expected scores that were judged by this calibration, found p-value {one.p_value:.3g} of"
                f" {one.name}, which would have {low:.3g}; they are of another model, bank or calibration"
            )


def _rounding(value: float) -> float:
    """Return by how much a number may have been another one before it was written: half a unit of its last digit.

    Tables are rounded on their way through other programs.

    Example:
        >>> _rounding(0.016)
        0.0005
    """
    digits = Decimal(repr(value)).as_tuple()
    last = digits.exponent if isinstance(digits.exponent, int) else 0
    return max(_ROUNDED * abs(value), 0.5 * 10.0**last)


def _json_rows(file: Any, path: Path) -> Iterator[tuple[int, Any]]:
    for number, text in enumerate(file, 1):
        if text.strip():
            try:
                yield number, parse_json(text.strip(), f"{path}: line {number}")
            except MmadBankError as error:
                yield number, error


def _csv_rows(file: Any, path: Path) -> Iterator[tuple[int, Any]]:
    table = csv.DictReader(file)
    if _SCORE not in (table.fieldnames or ()):
        names = ", ".join(map(repr, (table.fieldnames or ())[:8])) or "none"
        raise InputError(f"{path}: expected a column 'score' in the first line, found {names}")
    for row in table:
        yield table.line_num, row


def _named(row: Any, place: str) -> NamedScore:
    """Read a line, or say what is wrong with it."""
    if isinstance(row, MmadBankError):
        raise row
    if not isinstance(row, Mapping) or _SCORE not in row:
        raise InputError(f"{place}: expected an object with 'score', found {str(row)[:60]}")
    try:
        score = math.nan if isinstance(row[_SCORE], bool) else float(row[_SCORE])
    except (TypeError, ValueError, OverflowError):  # JSON has integers that no float holds
        score = math.nan
    if not math.isfinite(score):
        raise InputError(f"{place}: expected a finite number for 'score', found {str(row[_SCORE])[:60]!r}")
    return NamedScore(next((str(row[name]) for name in _NAMES if row.get(name)), place), score, _p_value(row))


def _p_value(row: Mapping[str, Any]) -> float | None:
    """Return a line's p-value; None where it has none that can be read."""
    with suppress(TypeError, ValueError, OverflowError):
        value = float(row.get(_P_VALUE) or math.nan)
        return value if 0 < value <= 1 else None
    return None
