"""Parts that several pictures show, as predict sorts them, judges them and says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmad_bank._internal.terminal import printable, say
from mmad_bank.cli._predicted import row_of, verdict_summary

if TYPE_CHECKING:
    from mmad_bank.data import PartView, ViewPattern
    from mmad_bank.methods.parts import PartViews

_OF_A_VIEW = ("view", "id", "score", "p_value", "verdict", "folder")
_SHOWN = 3


def parts_shown(
    pattern: ViewPattern, ids: Sequence[str], files: Sequence[Path], *, alone: bool, category: str = ""
) -> tuple[dict[str, PartView], dict[str, str]]:
    """Return part and view of pictures by their ids, part after part, and why others are left out.

    Args:
        pattern: Pattern of their names.
        ids: Ids of the pictures.
        files: Their files.
        alone: Whether they were given file by file, so that their ids say nothing of their folders.
        category: Category that they are of where there are several, whose parts may have the same names.
    """
    from mmad_bank.data.views import group_views, names_below

    found = group_views(pattern, names_below(files) if alone else ids, files)
    views = [
        one if not category or one.part.startswith(f"{category}/") else one._replace(part=f"{category}/{one.part}")
        for one in found.views
    ]
    shown = dict(zip((ids[number] for number in found.order), views, strict=True))
    return shown, {ids[number]: reason for number, reason in found.left_out.items()}


def judge(results: Sequence[Mapping[str, Any]], known: PartViews | None) -> list[dict[str, Any]]:
    """Return one result for each part, that of its worst picture, with what is to be said of the part beside it.

    Args:
        results: Results of pictures, with their part and view; those of a part lie beside each other.
        known: What the model knows of the views of parts; None for one that is not calibrated.
    """
    members: dict[str, list[Mapping[str, Any]]] = {}
    for one in results:
        members.setdefault(one["part"], []).append(one)
    judged = []
    for own in members.values():
        worst, names = max(own, key=lambda one: one["score"]), [one["view"] for one in own]
        judged.append(
            {
                **worst,
                "views": [{name: one[name] for name in _OF_A_VIEW} for one in own],
                "missing_views": [] if known is None else list(known.missing(names)),
                "promised": known is not None and known.promised(names),
                "part_notes": [] if known is None else list(known.remarks(names)),
            }
        )
    return judged


def name_of(result: Mapping[str, Any]) -> str:
    """Return the name under which the list has a part, or a picture that is judged by itself."""
    return str(result.get("part", result["id"]))


def word_row(result: Mapping[str, Any], width: int) -> str:
    """Return what the list says of a part, or of a picture that is judged by itself, see :func:`row_of`."""
    row = row_of(result, width)
    return row if "part" not in result else f"{row}  (view {printable(result['view'])} of {len(result['views'])})"


def summary(judged: Sequence[Mapping[str, Any]], n_out: int, n_samples: int) -> dict[str, str]:
    """Return rows that count parts, verdicts, and samples that were left out."""
    parts = [one for one in judged if "part" in one]
    rows = verdict_summary(judged, n_out, n_samples)
    if parts:
        n = sum(len(one["views"]) for one in parts)
        rows = {"parts": f"{len(parts):,}, shown by {n:,} picture{'' if n == 1 else 's'}", **rows}
    return rows


def say_notes(judged: Sequence[Mapping[str, Any]]) -> None:
    """Say on standard error what a reader of the verdicts must know of parts' views, a line for each remark."""
    named: dict[str, list[str]] = {}
    for one in judged:
        for line in one.get("part_notes", ()):
            named.setdefault(line, []).append(one["part"])
    for line, parts in named.items():
        more = f" and {len(parts) - _SHOWN:,} more" if len(parts) > _SHOWN else ""
        kind = "part" if len(parts) == 1 else "parts"
        words = f"note: {kind} {', '.join(parts[:_SHOWN])}{more}: {line}"
        say(words)
