"""Several pictures of one part: which part a picture shows, and from which view, as its name says.

A pattern such as ``{part}_{view}`` names both fields in a picture's name. Nothing is read: names are all that counts.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from mmad_bank.data.names import CLOUDS, IMAGES, POINTS
from mmad_bank.errors import InputError

_FIELDS = {"{part}": "(?P<part>.+)", "{view}": "(?P<view>.+?)", "*": ".*"}
_TOKEN = re.compile(r"(\{part\}|\{view\}|\*)")
_STARS = 2
"""Largest number of stars between two slashes: matching takes longer with each."""
_SHOWN = 3


class PartView(NamedTuple):
    """A part, and the view from which a picture shows it."""

    part: str
    view: str


@dataclass(frozen=True)
class ViewPattern:
    """A pattern of pictures' names that tells the part from the view.

    It is compared with the end of a name, without the suffix of its file: as many folders of it as the pattern has
    slashes. Folders before those belong to the part's name, so ``monday/p1_top.png`` and ``tuesday/p1_top.png`` are of
    two parts. A star stands for anything that names neither. The view is as short as can be, and the part as long.

    Args:
        text: The pattern, with ``{part}`` and ``{view}`` once each.

    Raises:
        InputError: It is none.

    Example:
        >>> pattern = ViewPattern("{part}_{view}")
        >>> pattern.split("monday/plate_12_left.png")
        PartView(part='monday/plate_12', view='left')
        >>> pattern.split("notes.png") is None
        True
        >>> ViewPattern("{part}_C{view}_*").split("plate_0007_C3_20260102.jpg")
        PartView(part='plate_0007', view='3')
        >>> ViewPattern("{view}/{part}").split("camera1/0007.png")
        PartView(part='0007', view='camera1')
    """

    text: str

    def __post_init__(self) -> None:
        steps = self.text.split("/")
        for name in ("{part}", "{view}"):
            if self.text.count(name) != 1:
                raise self._error(f"with {name} once")
        if re.search(r"[{}]", _TOKEN.sub("", self.text)):
            raise self._error("with no other braces")
        if "" in steps or "." in steps or ".." in steps or "\0" in self.text:
            raise self._error("of folders' names and a file's name, joined by slashes")
        if re.search(r"\}\**\{", self.text):
            raise self._error("with something between {part} and {view}")
        if _without_suffix(self.text) != self.text:
            raise self._error("without the pictures' suffix")
        if any(step.count("*") > _STARS for step in steps):
            raise self._error(f"with at most {_STARS} stars between slashes")

    def _error(self, expected: str) -> InputError:
        return InputError(f"views: expected a pattern {expected}, such as '{{part}}_{{view}}', found {self.text!r}")

    @cached_property
    def _steps(self) -> list[re.Pattern[str]]:
        """What each folder's name, and last the file's, is compared with."""
        text = unicodedata.normalize("NFC", self.text)
        return [
            re.compile("".join(_FIELDS.get(token) or re.escape(token) for token in _TOKEN.split(step)), re.DOTALL)
            for step in text.split("/")
        ]

    def split(self, name: str, file: str | os.PathLike[str] | None = None) -> PartView | None:
        """Return which part a picture shows, and from which view; None if its name is not of the pattern.

        Letters that can be written in several ways (é as one character or two) count as the same.

        Args:
            name: The sample's id: a path with slashes, with or without the file's suffix.
            file: The picture's file, whose path is looked at where the name has fewer folders than the pattern.
        """
        parts = _without_suffix(unicodedata.normalize("NFC", name)).split("/")
        n = len(self._steps)
        if len(parts) < n and file is not None:
            path = Path(os.path.abspath(file)).as_posix()
            parts = _without_suffix(unicodedata.normalize("NFC", path)).split("/")[-n:]
        if len(parts) < n:
            return None
        found: dict[str, str] = {}
        for step, part in zip(self._steps, parts[-n:], strict=True):
            match = step.fullmatch(part)
            if match is None:
                return None
            found |= match.groupdict()
        return PartView("/".join([*parts[:-n], found["part"]]), found["view"])


def _without_suffix(name: str) -> str:
    """Return a name without the suffix of a file that is read; other dots belong to the name."""
    root, suffix = os.path.splitext(name)
    return root if suffix.lower() in (*IMAGES, *CLOUDS, *POINTS) else name


@dataclass
class GroupedViews:
    """Pictures, sorted by the parts that they show.

    Attributes:
        parts: Numbers of the pictures by view, by part, in the order in which they were given.
        left_out: Reasons why the others are left out, by their numbers; pictures with one reason share one line.
    """

    parts: dict[str, dict[str, int]] = field(default_factory=dict)
    left_out: dict[int, str] = field(default_factory=dict)

    @property
    def order(self) -> list[int]:
        """Numbers of the pictures that are left, part after part."""
        return [number for views in self.parts.values() for number in views.values()]

    @property
    def views(self) -> list[PartView]:
        """Part and view of these pictures, in the same order."""
        return [PartView(part, view) for part, views in self.parts.items() for view in views]


def group_views(
    pattern: ViewPattern, names: Sequence[str], files: Sequence[str | os.PathLike[str] | None] | None = None
) -> GroupedViews:
    """Sort pictures by part.

    Pictures whose names are not of the pattern are left out, and so is a part that has two pictures of one view: nobody
    knows which of them counts, or whether they show one part at all.

    Args:
        pattern: Pattern of the names.
        names: Names of the pictures.
        files: Their files, where they are known.

    Example:
        >>> found = group_views(ViewPattern("{part}_{view}"), ["1_a.png", "2_a.png", "1_b.png", "x.png", "2_a.jpg"])
        >>> found.parts
        {'1': {'a': 0, 'b': 2}}
        >>> for line in dict.fromkeys(found.left_out.values()):
        ...     print(line)
        part 2: expected one picture of view a, found 2_a.png and 2_a.jpg
        expected names of the form {part}_{view}, found x.png
    """
    found, twice, others = GroupedViews(), dict[str, str](), list[int]()
    members: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        place = pattern.split(name, None if files is None else files[number])
        if place is None:
            others.append(number)
            continue
        members.setdefault(place.part, []).append(number)
        first = found.parts.setdefault(place.part, {}).setdefault(place.view, number)
        if first != number:
            reason = f"expected one picture of view {place.view}, found {names[first]} and {name}"
            twice.setdefault(place.part, f"part {place.part}: {reason}")
    for part, reason in twice.items():
        del found.parts[part]
        found.left_out |= dict.fromkeys(members[part], reason)
    if others:
        words = ", ".join(names[number] for number in others[:_SHOWN])
        words += f" and {len(others) - _SHOWN:,} more" if len(others) > _SHOWN else ""
        reason = f"expected names of the form {pattern.text}, found {words}"
        found.left_out |= dict.fromkeys(others, reason)
    return found


def usual_number(views: Iterable[int]) -> int:
    """Return the number of views that most parts have, the larger one of two; 0 if there is no part.

    Example:
        >>> usual_number([3, 3, 2]), usual_number([2, 3]), usual_number([])
        (3, 3, 0)
    """
    counts = Counter(views)
    return max(counts, key=lambda n: (counts[n], n), default=0)


def names_below(files: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Name files by their paths relative to the folder that all of them share, with slashes.

    Example:
        >>> names_below(["new/monday/1_a.png", "new/tuesday/1_a.png"])
        ['monday/1_a.png', 'tuesday/1_a.png']
    """
    paths = [os.path.abspath(file) for file in files]
    try:
        root = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ""
    except ValueError:  # two drives
        return [Path(path).as_posix() for path in paths]
    return [Path(os.path.relpath(path, root)).as_posix() for path in paths]
