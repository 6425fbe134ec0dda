"""Files of scores, as ``score --csv`` and ``predict --csv`` write them: CSV, or a JSON object per line."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmad_bank._internal.manifest import parse_json
from mmad_bank.errors import InputError, MmadBankError, NoneUsableError

_SCORE = "score"
_NAMES = ("name", "id")


class NamedScore(NamedTuple):
    """An image's score."""

    name: str
    score: float


def read_scores(paths: Sequence[Path], left_out: dict[str, str]) -> list[NamedScore]:
    """Read the scores of files in their order.

    Args:
        paths: CSV files with a column ``score``, or files with a JSON object per line that has one. Images are named
            by ``name`` or ``id``, else by file and line; other columns are not looked at.
        left_out: Dictionary that takes up why lines and files cannot be used, by file or line.

    Raises:
        NoneUsableError: There is no score in any of them.
    """
    found: list[NamedScore] = []
    for path in paths:
        try:
            found += _read(path, left_out)
        except MmadBankError as error:
            left_out[str(path)] = str(error)
    if not found:
        raise NoneUsableError("", left_out)
    return found


def _read(path: Path, left_out: dict[str, str]) -> list[NamedScore]:
    found = []
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            is_json = file.read(4096).lstrip().startswith("{")
            file.seek(0)
            for line, row in _json_rows(file, path) if is_json else _csv_rows(file, path):
                try:
                    found.append(_named(row, f"{path}: line {line}"))
                except MmadBankError as error:
                    left_out[f"{path}: line {line}"] = str(error)
    except (OSError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if not found:
        raise InputError(f"{path}: expected lines with a score, found none")
    return found


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
    return NamedScore(next((str(row[name]) for name in _NAMES if row.get(name)), place), score)
