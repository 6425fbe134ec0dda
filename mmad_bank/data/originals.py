"""The raw samples that prepared ones were made of, where they are still at hand."""

from __future__ import annotations

from pathlib import Path

from mmad_bank.data.dataset import SampleDataset
from mmad_bank.data.layouts import open_dataset
from mmad_bank.data.prepared import key_of, manifest_around
from mmad_bank.data.sample_preparation import key_for
from mmad_bank.errors import MmadBankError


def originals_of(dataset: SampleDataset) -> SampleDataset | None:
    """Return the raw samples of a prepared data set, in its order; None where not all of them are at hand.

    Args:
        dataset: A prepared data set; its ``prepared.json`` names the folder that each category came from.

    Example:
        >>> prepared = open_dataset("mvtec3d-m3dm", "bagel")  # doctest: +SKIP
        >>> originals_of(prepared)[0].prepared  # doctest: +SKIP
        False
    """
    preparation = dataset.preparation
    if preparation is None or not dataset.records:
        return None
    try:
        sources = manifest_around(dataset.path).get("sources", {})
        places = {sources.get(category) for category in dataset.categories}
        if len(places) != 1 or not isinstance(place := places.pop(), str):
            return None
        splits = {(record.category, record.split) for record in dataset.records}
        opened = [open_dataset(Path(place), *split, units=preparation.units) for split in sorted(splits)]
    except MmadBankError:
        return None
    known = {record.id: record for one in opened for record in one.records}
    if opened[0].preparation is not None or not all(record.id in known for record in dataset.records):
        return None
    originals = opened[0].select([])
    originals.records = tuple(known[record.id] for record in dataset.records)
    return originals


def changed_originals(dataset: SampleDataset, originals: SampleDataset) -> list[str]:
    """Name the samples whose raw files are not known to be those that were prepared.

    A prepared file carries a key of the names, sizes and dates of the files that it was made of. One that another
    program or an older version has written has none, or another.

    Args:
        dataset: The prepared data set.
        originals: What :func:`originals_of` returned for it.
    """
    assert dataset.preparation is not None
    changed = []
    for own, raw in zip(dataset.records, originals.records, strict=True):
        file = own.xyz or own.rgb
        if file is None or key_of(file) != key_for(originals, raw, dataset.preparation):
            changed.append(own.id)
    return changed
