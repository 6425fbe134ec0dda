"""Patch features of both modalities from prepared samples, and feature dumps from a data set."""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor, nn

from mmad_bank._internal import sections
from mmad_bank._internal.batches import run_batch
from mmad_bank._internal.files import replacing, write_text
from mmad_bank._internal.manifest import Manifest, read_json
from mmad_bank._internal.progress import progress_bar
from mmad_bank._internal.state_dicts import load_state, save_state
from mmad_bank._internal.tensor_files import new_array
from mmad_bank._internal.timing import timed
from mmad_bank.data.recipes import OtherPreparation
from mmad_bank.data.sample import Sample
from mmad_bank.errors import InputError, MmadBankError, NoneUsableError
from mmad_bank.features.runtimes import Frozen, Runtime
from mmad_bank.features.tiles import TiledExtractor

Modality = Literal["rgb", "xyz"]
AnyExtractors = TypeVar("AnyExtractors", bound="Extractors")
_NOTED_EVERY = 10.0  # seconds


class Extractors:
    """The extractors of the modalities that a method uses.

    Args:
        networks: The networks, by modality: ``"rgb"`` or ``"xyz"``.
        device: Device that they run on.

    Raises:
        InputError: A modality is unknown or none is given.

    Example:
        >>> from mmad_bank.features import make_rgb_extractor
        >>> extractors = Extractors({"rgb": make_rgb_extractor("efficientnet_lite0", "random")})
        >>> extractors.dims
        {'rgb': 656}
    """

    def __init__(self, networks: dict[str, nn.Module], device: str | torch.device = "cpu") -> None:
        if not networks or not set(networks) <= set(get_args(Modality)):
            raise InputError(f"modalities: expected rgb, xyz or both, found {', '.join(networks) or 'none'}")
        self.networks = {name: network.to(device).eval() for name, network in networks.items()}
        self.device = torch.device(device)

    @property
    def dims(self) -> dict[str, int]:
        """Dimensions of a patch feature, by modality."""
        return {name: int(network.dim) for name, network in self.networks.items()}  # type: ignore[arg-type]

    @property
    def names(self) -> dict[str, str]:
        """Names of the extractors by modality, as bank files record them."""
        return {name: str(network.name) for name, network in self.networks.items()}

    @torch.no_grad()
    def __call__(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Extract the patch features (B, P, D) float32 of prepared samples, by modality.

        Raises:
            InputError: A sample cannot be used; the message names its file.
        """
        features: dict[str, Tensor] = {}
        for modality, network in self.networks.items():
            with timed(sections.features_of(modality)), _naming(samples, modality):
                batch = torch.stack([getattr(sample, modality) for sample in samples]).to(self.device)
                features.update(self._describe(modality, network, batch))
        return features

    def by(self: AnyExtractors, runtime: Runtime) -> AnyExtractors:
        """Return the same extractors, with the same weights, run by a library, see :mod:`mmad_bank.features.runtimes`.

        Raises:
            InputError: There is no such library.
            MissingExtraError: It is not installed.
        """
        other = copy.copy(self)
        other.networks = {
            name: network.by(runtime) if isinstance(network, (Frozen, TiledExtractor)) else network
            for name, network in self.networks.items()
        }
        return other

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what is extracted: the modalities, unless a method's own extractors give more."""
        return tuple(self.networks)

    def _describe(self, modality: str, network: nn.Module, batch: Tensor) -> dict[str, Tensor]:
        """Return float32 tensors (B, ...) by output."""
        return {modality: network(batch)}

    def save(self, folder: Path) -> None:
        """Write the weights of each network that has some to ``extractor-MODALITY.safetensors``."""
        for name, network in self.networks.items():
            if network.state_dict():
                save_state(network, folder / f"extractor-{name}.safetensors")

    def load(self, folder: Path) -> None:
        """Read what :meth:`save` wrote.

        Raises:
            InputError: A file is missing.
            FormatError: A file is damaged or for another architecture.
        """
        for name, network in self.networks.items():
            if network.state_dict():
                load_state(network, folder / f"extractor-{name}.safetensors")


class _naming:
    """Let an error about one of a batch's samples name its file."""

    def __init__(self, samples: Sequence[Sample], modality: str) -> None:
        self.samples, self.modality = samples, modality

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, InputError):
            return
        message = str(error)
        for b, sample in enumerate(self.samples):
            for name in ("xyz", "points", "images"):
                if message.startswith(f"{name}[{b}]: "):
                    path = getattr(sample, f"{self.modality}_path") or sample.id or f"sample {b}"
                    raise InputError(f"{path}: {message.split(': ', 1)[1]}") from error


def usable(
    samples: Sequence[Sample] | Any,
    prepare: Callable[[Sample], Sample],
    skipped: dict[str, str],
    *,
    normal: bool = False,
    numbers: Iterable[int] | None = None,
) -> Iterator[Sample]:
    """Yield the prepared samples that can be read and used; note by id why the others cannot.

    Args:
        samples: A data set.
        prepare: Function that prepares a sample first.
        skipped: Dictionary that is filled with the reasons, by id.
        normal: Whether to leave out samples that are labelled anomalous too: nothing may learn them as normal.
        numbers: Numbers of the samples to yield, in order; default: all.

    Raises:
        OtherPreparation: Samples were prepared in different ways.
    """
    records = getattr(samples, "records", None)
    for number in range(len(samples)) if numbers is None else numbers:
        if records is not None and normal and records[number].label:
            skipped[records[number].id] = _say_anomalous(records[number])
            continue
        name = records[number].id if records is not None else str(number)
        try:
            sample = samples[number]
            if isinstance(sample, Sample):  # whatever else a list holds, prepare says so
                name = sample.id or name
            if normal and isinstance(sample, Sample) and sample.label:
                skipped[name] = _say_anomalous(sample)
                continue
            yield prepare(sample)
        except OtherPreparation:
            raise
        except InputError as error:
            skipped[name] = str(error)


def _say_anomalous(sample: Any) -> str:
    """Say why a sample (or its record) is not learnt."""
    return f"{sample.id or 'sample'}: labelled anomalous ({sample.defect!r}), expected normal samples to learn"


class Described(NamedTuple):
    """What another process says of a sample that it could read: features (P, D) by output, or why there are none."""

    id: str
    features: dict[str, Tensor] | None
    reason: str = ""


class Journal:
    """Record of how far an extraction into files has come: a stopped one goes on behind its last whole batch.

    The rows are on the disk before the journal says so, also after a power failure.

    Args:
        path: JSON file, written every ten seconds and when the extraction is stopped.
        save: Function of a number of samples that returns, JSON-able, what else is known of so many in the files.
        restore: Function that takes that back.
    """

    def __init__(
        self, path: Path, save: Callable[[int], dict[str, Any]], restore: Callable[[dict[str, Any]], None]
    ) -> None:
        self.path, self._save, self._restore = path, save, restore
        self._written = time.monotonic()
        self._due: dict[str, Any] | None = None

    def note(self, number: int, total: int, ids: list[str], skipped: dict[str, str]) -> bool:
        """Take down what has been done before the sample of a number; say whether it is time to write."""
        self._due = {
            "number": number, "total": total, "ids": ids, "n_ids": len(ids), "skipped": skipped,
            "n_skipped": len(skipped),
        }  # fmt: skip
        return time.monotonic() - self._written > _NOTED_EVERY

    def write(self, tables: Iterable[np.memmap]) -> None:
        """Write what was noted last; what has been begun since is done again."""
        if self._due is None or not self._due["n_ids"]:
            return
        for table in tables:
            table.flush()
        due, n_ids = self._due, self._due["n_ids"]
        content = {
            "number": due["number"], "total": due["total"], "ids": due["ids"][:n_ids],
            "skipped": dict(list(due["skipped"].items())[: due["n_skipped"]]), **self._save(n_ids),
        }  # fmt: skip
        write_text(self.path, json.dumps(content))
        self._written = time.monotonic()

    def read(
        self, paths: dict[str, Path], total: int
    ) -> tuple[int, list[str], dict[str, str], dict[str, np.memmap]] | None:
        """Return the number to go on with, ids and reasons up to there, and the tables; None to begin anew.

        What cannot be gone on with is removed: with tables that were begun anew it would be believed the next time.
        """
        done = None
        with suppress(OSError, MmadBankError, ValueError, KeyError, TypeError, AttributeError):
            done = self._read(paths, total)
        if done is None:
            self.path.unlink(missing_ok=True)
        return done

    def _read(
        self, paths: dict[str, Path], total: int
    ) -> tuple[int, list[str], dict[str, str], dict[str, np.memmap]] | None:
        found = Manifest(str(self.path), read_json(self.path))
        number, ids, skipped = found.integer("number"), found.texts("ids"), found.texts_by_name("skipped")
        for path in paths.values():
            np.load(path, mmap_mode="r")  # a file that is cut off is an error; opened to be written, it is made longer
        tables = {name: np.lib.format.open_memmap(path, mode="r+") for name, path in paths.items()}
        fitting = all((table.dtype, len(table)) == (np.float32, total) for table in tables.values())
        if not fitting or found.integer("total") != total or not 0 < len(ids) <= number <= total:
            return None
        self._restore(found.content)
        return number, ids, skipped, tables


def extract_to(
    folder: str | os.PathLike[str],
    samples: Sequence[Sample] | Any,
    extractors: Extractors,
    prepare: Callable[[Sample], Sample],
    *,
    names: dict[str, str] | None = None,
    kept: Callable[[Sample], Any] | None = None,
    batch: int = 4,
    normal: bool = False,
    progress: bool = False,
    name: str = "dataset",
    journal: Journal | None = None,
    elsewhere: Callable[[dict[str, str]], Iterator[Described]] | None = None,
) -> tuple[list[str], dict[str, str]]:
    """Write the features of samples to one ``.npy`` file per modality (or output), a few images at a time.

    Args:
        folder: Folder for ``rgb.npy`` and ``xyz.npy``, float32 (images, P, D); it must be there.
        samples: A data set.
        extractors: Extractors that describe them.
        prepare: Function that prepares a sample first.
        names: Other names for the files, by output.
        kept: Function that is called with each prepared sample whose features are in the files, in their order.
        batch: Number of images described together.
        normal: Whether to leave out samples that are labelled anomalous.
        progress: Whether to show a bar on a terminal.
        name: Name of the samples in errors.
        journal: Journal that goes on where an extraction with the same arguments was stopped.
        elsewhere: Function that yields the samples in order as other processes have described them, and notes by id
            why others cannot be read; ``prepare``, ``normal``, ``kept`` and ``journal`` count for nothing then.

    Returns:
        The ids of the samples in the files, in order, and why others were left out, by id.

    Raises:
        InputError: No sample can be used; the reason is the first one's.
    """
    paths = {output: Path(folder) / (names or {}).get(output, f"{output}.npy") for output in extractors.outputs}
    tables: dict[str, np.memmap] = {}
    ids: list[str] = []
    skipped: dict[str, str] = {}
    place, found = 0, None if journal is None else journal.read(paths, len(samples))
    if found is not None:
        place, ids, skipped, tables = found

    def numbers() -> Iterator[int]:
        nonlocal place
        for number in range(place, len(samples)):
            place = number + 1
            yield number

    given: Iterator[Any]
    if elsewhere is None:
        given = usable(samples, prepare, skipped, normal=normal, numbers=numbers())
        describe = partial(describe_each, extractors=extractors, skipped=skipped)
    else:
        given, describe = elsewhere(skipped), partial(_described, skipped=skipped)

    with progress_bar("extracting features", len(samples)) if progress else nullcontext(lambda done: None) as report:

        def write(part: list[Any]) -> None:
            for sample, features in zip(part, describe(part), strict=True):
                if features is None:
                    continue
                for output, rows in features.items():
                    if output not in tables:
                        tables[output] = new_array(paths[output], (len(samples), *rows.shape))
                    tables[output][len(ids)] = rows.cpu().numpy()
                ids.append(sample.id or str(len(ids)))
                if kept is not None:
                    kept(sample)
            report(len(ids) + len(skipped))
            if journal is not None and journal.note(place, len(samples), ids, skipped):
                journal.write(tables.values())

        report(len(ids) + len(skipped))
        waiting: list[Any] = []
        try:
            for sample in given:
                waiting.append(sample)
                if len(waiting) == batch:
                    write(waiting)
                    waiting = []
            if waiting:
                write(waiting)
        except BaseException:
            if journal is not None:
                with suppress(MmadBankError, OSError):  # what has stopped it may be a full disk
                    journal.write(tables.values())
            raise
    if not ids:
        raise NoneUsableError(f"{name}: no sample can be used", skipped)
    for output in list(tables):
        tables.pop(output).flush()
        if len(ids) < len(samples):
            _shorten(paths[output], len(ids))
    return ids, skipped


def describe_each(
    samples: list[Sample], extractors: Extractors, skipped: dict[str, str]
) -> list[dict[str, Tensor] | None]:
    """Describe a batch; one that cannot be used costs itself only: None, and the reason goes into ``skipped``."""

    def describe(part: list[Sample]) -> list[dict[str, Tensor]]:
        features = extractors(part)
        return [{name: rows[b] for name, rows in features.items()} for b in range(len(part))]

    def skip(sample: Sample, error: MmadBankError) -> None:
        skipped[sample.id or "sample"] = str(error)

    return run_batch(describe, samples, skip)


def _described(samples: list[Described], skipped: dict[str, str]) -> list[dict[str, Tensor] | None]:
    skipped |= {sample.id: sample.reason for sample in samples if sample.features is None}
    return [sample.features for sample in samples]


def _shorten(path: Path, n_images: int) -> None:
    """Rewrite a .npy file with its first images only, as long as it had room for samples that were left out."""
    whole = np.load(path, mmap_mode="r")
    with replacing(path) as partial:
        short = new_array(partial, (n_images, *whole.shape[1:]))
        for image in range(n_images):
            short[image] = whole[image]
        short.flush()
