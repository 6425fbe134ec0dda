"""Plain pictures on the command line: a folder of them, files, lists and patterns, and what is said of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmad_bank._internal.terminal import say

if TYPE_CHECKING:
    from mmad_bank.data import SampleDataset

_SHOWN = 3
PICTURES = "pictures"
"""The layout."""


def one_or_several(places: Sequence[Path]) -> Path | list[Path]:
    """Return the one place that may be a data set's folder, or else several places of pictures."""
    return places[0] if len(places) == 1 else list(places)


def in_words(places: Path | Sequence[Path]) -> str:
    """Name places in a message.

    Example:
        >>> in_words([Path("a.png"), Path("b.png"), Path("c.png"), Path("d.png"), Path("e.png")])
        'a.png, b.png, c.png and 2 more'
    """
    if isinstance(places, Path):
        return str(places)
    more = len(places) - _SHOWN
    return ", ".join(map(str, places[:_SHOWN])) + (f" and {more} more" if more > 0 else "")


def are_pictures(places: Sequence[Path], layout: str) -> bool:
    """Say whether places are plain pictures that are not given one by one: a folder, a list or a pattern is among them.

    Raises:
        InputError: A folder is in no layout, and holds no picture.
    """
    from mmad_bank.data.layouts import layout_of
    from mmad_bank.data.picture_files import is_list, is_pattern

    if len(places) == 1 and places[0].is_dir():
        return layout_of(places[0], layout) == PICTURES
    return layout == PICTURES or any(one.is_dir() or is_list(one) or is_pattern(one) for one in places)


def say_pictures(places: Path | Sequence[Path], datasets: Sequence[SampleDataset], layout: str) -> None:
    """Say on standard error that places were taken for plain pictures, and which files in them nobody reads."""
    from mmad_bank.data.picture_files import unread_kinds

    found = [one for one in datasets if one.layout == PICTURES]
    if not found:
        return
    folders = [place for place in ([places] if isinstance(places, Path) else places) if place.is_dir()]
    if layout == "auto" and folders:
        n = sum(len(one) for one in found)
        take = "takes the one picture" if n == 1 else f"takes all {n:,} pictures"
        say(f"note: {in_words(places)}: in no data set's layout; {take} in it (layout pictures)")
    kinds: dict[str, int] = {}
    for folder in folders:
        for kind, n in unread_kinds(folder).items():
            kinds[kind] = kinds.get(kind, 0) + n
    if kinds:
        words = ", ".join(f"{n:,} {kind}" for kind, n in kinds.items())
        say(f"note: {in_words(places)}: files of these kinds are not read: {words}; convert them")
