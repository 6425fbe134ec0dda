"""Several pictures of one part in a fit: folds and calibrations count parts, and never separate a part's pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from torch.utils.data import Dataset, Subset

from mmad_bank._internal.json_values import count_in, inside, text_in, texts_in
from mmad_bank.data.sample import Sample
from mmad_bank.data.sequences import Samples, as_samples, named
from mmad_bank.data.views import PartView, ViewPattern, group_views, usual_number
from mmad_bank.errors import InputError

IMAGES, PARTS = "images", "parts"
"""What a calibration counts."""


@dataclass(frozen=True)
class PartViews:
    """What a calibration on parts knows of their views.

    Attributes:
        pattern: Pattern of the pictures' names, see :class:`mmad_bank.data.ViewPattern`.
        usual: Number of views that most of the held-out parts have. Parts with fewer are not among the calibration's.
        names: Names of these views; empty where they differ from part to part.
        incomplete: Number of held-out parts with fewer views.
    """

    pattern: str
    usual: int
    names: tuple[str, ...] = ()
    incomplete: int = 0

    def missing(self, views: Sequence[str]) -> tuple[str, ...]:
        """Name the views that a part lacks, as far as they have names."""
        return tuple(name for name in self.names if name not in views)

    def promised(self, views: Sequence[str]) -> bool:
        """Say whether the false-alarm rate is promised for a part with some views: it has no more, and no others.

        Its score is the largest of its pictures'. Of fewer pictures it is smaller, and the part is called bad more
        rarely; of more it is larger.
        """
        return len(views) <= self.usual and not (self.names and set(views) - set(self.names))

    def remarks(self, views: Sequence[str]) -> tuple[str, ...]:
        """Say what a reader of a part's verdict must know of its views.

        Example:
            >>> known = PartViews("{part}_{view}", 3, ("left", "right", "top"))
            >>> known.remarks(["left", "right", "top"]), known.remarks(["left"])
            ((), ('judged by 1 of 3 views, without right, top',))
        """
        lines = []
        if not self.promised(views):
            others = [name for name in views if name not in self.names] if self.names else []
            found = f"the views {', '.join(others)}" if others else f"{len(views)} views"
            own = f"of {', '.join(self.names)}" if others else f"of {self.usual}"
            lines.append(f"has {found}, while the model is calibrated on parts {own}: no false-alarm rate is promised")
        missing = self.missing(views)
        if missing or len(views) < self.usual:
            without = f", without {', '.join(missing)}" if missing else ""
            lines.append(f"judged by {len(views) - self._unknown(views)} of {self.usual} views{without}")
        return tuple(lines)

    def _unknown(self, views: Sequence[str]) -> int:
        return len(set(views) - set(self.names)) if self.names else 0

    def as_json(self) -> dict[str, Any]:
        """Return JSON-able values, from which :meth:`from_json` makes the same again."""
        names = list(self.names)
        return {"pattern": self.pattern, "usual": self.usual, "names": names, "incomplete": self.incomplete}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> PartViews:
        """Return what :meth:`as_json` made.

        Raises:
            InputError: It is something else; the message names the field.
        """
        usual, incomplete = count_in(content, "usual", 1), count_in(content, "incomplete")
        names, pattern = texts_in(content, "names"), text_in(content, "pattern")
        if len(set(names)) != len(names) or len(names) not in (0, usual):
            raise InputError(f"names: expected {usual} different ones, or none, found {', '.join(names)}")
        with inside("pattern"):
            ViewPattern(pattern)
        return cls(pattern, usual, tuple(names), incomplete)


class HeldOutParts(NamedTuple):
    """Which parts held-out pictures show.

    Attributes:
        pattern: Pattern of their names.
        views: Part and view of each picture, in order.
    """

    pattern: str
    views: Sequence[PartView]

    def of_one_part(self) -> list[list[int]]:
        """Return for each picture the numbers of those that show its part, itself among them.

        Example:
            >>> HeldOutParts("{part}_{view}", [PartView(part, view) for part, view in ("1a", "1b", "2a")]).of_one_part()
            [[0, 1], [0, 1], [2]]
        """
        members = self._members()
        return [members[one.part] for one in self.views]

    def whole(self) -> tuple[PartViews, list[list[int]]]:
        """Return what is known of the views, and the pictures' numbers by part, of the parts that count.

        These are the parts with as many views as most have, or more: of fewer views the largest score is smaller, and a
        threshold among such scores would be too low for whole parts.

        Example:
            >>> views = [PartView(part, view) for part, view in zip("112233", "abab")] + [PartView("3", "a")]
            >>> HeldOutParts("{part}_{view}", views).whole()
            (PartViews(pattern='{part}_{view}', usual=2, names=('a', 'b'), incomplete=1), [[0, 1], [2, 3]])
        """
        members = self._members()
        usual = usual_number(map(len, members.values()))
        whole = [numbers for numbers in members.values() if len(numbers) >= usual]
        seen = Counter(self.views[number].view for numbers in whole for number in numbers)
        names = sorted(name for name, n in seen.items() if 2 * n >= len(whole))
        known = tuple(names) if len(names) == usual else ()
        return PartViews(self.pattern, usual, known, len(members) - len(whole)), whole

    def _members(self) -> dict[str, list[int]]:
        """Return the numbers of the pictures that show each part."""
        members: dict[str, list[int]] = {}
        for number, one in enumerate(self.views):
            members.setdefault(one.part, []).append(number)
        return members


def judged_together(n: int, shown: HeldOutParts | None) -> list[list[int]]:
    """Return for each of n pictures the numbers of those that are judged with it: of its part, or it alone."""
    return [[number] for number in range(n)] if shown is None else shown.of_one_part()


class FitParts:
    """The parts that the samples of a fit show.

    Args:
        pattern: Pattern of the samples' ids.

    Attributes:
        left_out: Reasons why samples take no part, by id.
    """

    def __init__(self, pattern: ViewPattern) -> None:
        self.pattern = pattern
        self.left_out: dict[str, str] = {}
        self._known: dict[str, PartView] = {}

    def sorted(self, samples: Samples, name: str) -> Samples:
        """Return samples part after part, without those that cannot be sorted; nothing is read.

        Args:
            samples: Samples whose ids are known: a data set, or a list.
            name: Name of the argument, for the error's line.

        Raises:
            InputError: None can be sorted, or two samples of different parts have one id.
        """
        if len(samples) == 0:
            return samples
        names = [own for own, _ in named(samples)]
        found = group_views(self.pattern, names, _files_of(samples))
        if not found.parts and names == [str(number) for number in range(len(names))]:
            raise InputError(f"{name}: expected samples whose ids are known without reading them, found none with one")
        if not found.parts:
            raise InputError(f"{name}: {next(iter(found.left_out.values()))}")
        own = dict(zip((names[number] for number in found.order), found.views, strict=True))
        if len(own) < len(found.order):
            raise InputError(f"{name}: expected samples with ids of their own, to sort them by part, found some twice")
        self.left_out |= {names[number]: reason for number, reason in found.left_out.items()}
        self._known |= own
        return samples if found.order == list(range(len(samples))) else some_of(samples, found.order)

    def of(self, ids: Sequence[str]) -> HeldOutParts:
        """Return which parts samples show, by their ids."""
        return HeldOutParts(self.pattern.text, [self._known[name] for name in ids])

    def count(self, ids: Sequence[str]) -> int:
        """Return the number of parts that samples show and that count in a calibration, see :class:`HeldOutParts`."""
        return len(self.of(ids).whole()[1]) if ids else 0


def _files_of(samples: Samples) -> list[Any]:
    """Return the samples' files, None where they are not known."""
    records = getattr(samples, "records", None)
    if records is not None:
        return [record.main_file for record in records]
    if isinstance(samples, (list, tuple)):
        return [sample.rgb_path or sample.xyz_path for sample in samples]
    return [None] * len(samples)


def some_of(samples: Samples, numbers: Sequence[int]) -> Samples:
    """Return some of the samples, which are read when they are asked for."""
    if isinstance(samples, (list, tuple)):
        return [samples[number] for number in numbers]
    return as_samples(Subset(cast("Dataset[Sample]", samples), numbers), "dataset")
