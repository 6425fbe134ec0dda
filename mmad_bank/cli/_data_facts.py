"""What ``info`` says of a data set: its layout, what sensors gave, its preparation, and how many samples it has."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmad_bank.errors import InputError, MissingSplitError

if TYPE_CHECKING:
    from mmad_bank.data import SampleDataset

_SENSED = {"rgb": "pictures", "xyz": "point clouds"}


def is_dataset(folder: Path) -> bool:
    """Say whether a folder is a data set's, or one category's of one."""
    from mmad_bank.data import categories_of

    try:
        return bool(categories_of(folder))
    except InputError:
        return False


def describe_data(place: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Describe a data set by the names of its files; no sample is read.

    Returns:
        JSON-able values, and the same for people.

    Raises:
        InputError: There is no data set.
    """
    from mmad_bank.data import categories_of
    from mmad_bank.data.layouts import layout_of

    if layout_of(place) == "pictures":
        return _describe_pictures(place)
    categories = {name: _splits(place, name) for name in categories_of(place)}
    datasets = [one for splits in categories.values() for one in splits.values()]
    modalities = sorted(frozenset.intersection(*(one.modalities for one in datasets))) if datasets else []
    preparation = datasets[0].preparation if datasets else None
    counts = {
        name: {split: dict(Counter(record.defect for record in one.records)) for split, one in splits.items()}
        for name, splits in categories.items()
    }
    facts: dict[str, Any] = {
        "dataset": str(place), "layout": layout_of(place), "modalities": modalities,
        "preparation": None if preparation is None else preparation.as_json(), "categories": counts,
    }  # fmt: skip
    rows = {
        "layout": facts["layout"],
        "holds": " and ".join(_SENSED[name] for name in modalities) + (" alone" if len(modalities) == 1 else ""),
        "prepared": "no"
        if preparation is None
        else f"{preparation.size} pixels per side, background {preparation.background}",
        **{name: _word_splits(splits) for name, splits in counts.items()},
    }
    return facts, {name: value for name, value in rows.items() if value}


def _describe_pictures(place: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Describe plain pictures, and say where they do not look as if all were normal."""
    from mmad_bank.data import PicturesDataset
    from mmad_bank.data.picture_files import doubt_of, unread_kinds

    dataset = PicturesDataset(place, split="test")
    n, unread = len(dataset), unread_kinds(place)
    doubt = doubt_of(record.id for record in dataset.records)
    facts = {
        "dataset": str(place), "layout": dataset.layout, "modalities": ["rgb"], "preparation": None,
        "categories": {dataset.name: {"pictures": n}}, "doubt": doubt, "not_read": unread,
    }  # fmt: skip
    rows = {
        "layout": f"{dataset.layout} (none of a data set)",
        "holds": f"{n:,} picture{'s' if n > 1 else ''}, of which nothing is known; fit takes all as normal",
        "in doubt": "" if doubt is None else f"{doubt}; fit takes them only with --layout pictures",
        "not read": ", ".join(f"{n:,} {kind}" for kind, n in unread.items()),
    }
    return facts, {name: value for name, value in rows.items() if value}


def _splits(place: Path, category: str) -> dict[str, SampleDataset]:
    """Open the splits that a category has."""
    from mmad_bank.data import open_dataset
    from mmad_bank.data.names import SPLITS

    found = {}
    for split in SPLITS:
        try:
            found[split] = open_dataset(place, category, split)
        except MissingSplitError:
            continue
    return found


def _word_splits(splits: dict[str, dict[str, int]]) -> str:
    """Return a category's samples in words.

    Example:
        >>> _word_splits({"train": {"good": 30}, "test": {"good": 8, "hole": 3, "cut": 2}})
        'train 30; test 8 good, 5 defective (hole 3, cut 2)'
    """
    return "; ".join(f"{split} {_word_kinds(kinds)}" for split, kinds in splits.items()) or "no samples"


def _word_kinds(kinds: dict[str, int]) -> str:
    from mmad_bank.data.names import GOOD

    defects = {name: n for name, n in kinds.items() if name != GOOD}
    if not defects:
        return f"{kinds[GOOD]:,}"
    named = ", ".join(f"{name} {n:,}" for name, n in list(defects.items())[:6])
    more = f" and {len(defects) - 6} other kinds" if len(defects) > 6 else ""
    return f"{kinds.get(GOOD, 0):,} good, {sum(defects.values()):,} defective ({named}{more})"
