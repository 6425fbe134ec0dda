"""A bank with a fixed budget for features that never end: a line that runs, a dump that is still being written."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from mmad_bank import ops
from mmad_bank._internal.argument_names import argument_called
from mmad_bank._internal.checks import check_index, naming_long_row
from mmad_bank.bank.calibrating import BankCalibration
from mmad_bank.bank.dumps import FeatureDump, Layout, open_dump
from mmad_bank.bank.memory_bank import Features, MemoryBank
from mmad_bank.bank.provenance import Source
from mmad_bank.bank.reporting import Progress, reporting
from mmad_bank.bank.standardization import Moments
from mmad_bank.bank.stream_cover import Cover
from mmad_bank.bank.stream_nets import LEAST_FACTOR
from mmad_bank.bank.stream_state import StreamState
from mmad_bank.errors import InputError
from mmad_bank.ops.knn import Precision, check_precision

FORGOTTEN = "(rows of which no vector is kept)"
"""Name of the sources that stand for all files between two of which vectors are kept."""


class StreamingBank:
    """A memory bank of at most ``size`` vectors that covers all rows it has ever been given.

    Every row is looked at once and then forgotten. At any time, every row seen lies within :attr:`radius` of the
    bank. This is proved: the radius is at most ``factor`` times :attr:`optimum`, and no choice of ``size`` centers,
    with all rows at hand and unlimited time, has a covering radius below that. (The exact greedy selection of
    :meth:`MemoryBank.build`, which needs all rows at once, is within 2 times.) The proof is that of the doubling
    algorithm at several scales (see References), whose centers are in the bank. The farthest other rows fill it up, so
    that it is mostly much better than what is proved.

    A smaller factor needs more memory beside the bank: up to as many vectors as the bank's for each scale. 8 takes
    one scale, 4 takes four, 3 takes eight; none reaches 2. In practice most scales hold few vectors.

    The result depends on the order of the rows and on how they come in blocks, but not on restarts: a bank that is
    saved, loaded and updated is the one that was updated at once.

    Args:
        size: Largest number of vectors, at least 1.
        factor: Proved factor, at least 2.17.
        standardize: Whether the bank measures distances on (f - mean)/std with the stream's scalar mean and std, as
            they are when it is asked for.
        bank_precision: As for :class:`MemoryBank`.
        extractor: Name of the feature extractor; default: the one in ``extraction.json`` beside the features.
        device: Where to select and search; default: where the features are.

    Attributes:
        note: JSON-able values that go into the file with the bank, see :meth:`update`.

    Raises:
        InputError: An argument out of range.

    References:
        Charikar, Chekuri, Feder, Motwani: Incremental clustering and dynamic information retrieval, SIAM J. Comput. 33
        (2004). McCutchen, Khuller: Streaming algorithms for k-center clustering with outliers and with anonymity,
        APPROX 2008. Guha: Tight results for clustering and summarizing data streams, ICDT 2009.

    Example:
        >>> import torch
        >>> stream = StreamingBank(100)
        >>> generator = torch.Generator().manual_seed(0)
        >>> for _ in range(20):                                      # a line that goes on and on
        ...     _ = stream.update(torch.rand(4, 49, 16, generator=generator))
        >>> stream.rows_seen, len(stream.bank) <= 100
        (3920, True)
        >>> stream.radius <= 4 * stream.optimum
        True
        >>> stream.bank.score(torch.rand(1, 49, 16)).image.shape
        torch.Size([1])
    """

    size: int
    factor: float
    note: dict[str, Any]

    def __init__(
        self,
        size: int,
        *,
        factor: float = 4.0,
        standardize: bool = False,
        bank_precision: Precision = "auto",
        extractor: str | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.size = check_index(size, "size", 1, 2**31 - 1, "vectors")
        if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not LEAST_FACTOR <= factor < 1e9:
            raise InputError(f"factor: expected at least {LEAST_FACTOR:.3g} (4 is the default), found {factor!r}")
        self.factor = float(factor)
        self.bank_precision: Precision = check_precision(bank_precision, "bank_precision")
        self.note = {}
        self.extractor = extractor
        self._device = None if device is None else ops.resolve_device(device)
        self._cover = Cover(self.size, self.factor)
        self._moments = Moments() if standardize else None
        self._sources: list[Source] = []
        self._calibration: BankCalibration | None = None
        self._made: MemoryBank | None = None

    def __len__(self) -> int:
        return len(self._cover)

    def __repr__(self) -> str:
        seen = f"{self.rows_seen:,} rows seen"
        return f"StreamingBank({len(self)} of {self.size} vectors, {seen}, radius={self._cover.radius:.4g})"

    @property
    def rows_seen(self) -> int:
        """Number of rows that the bank has been given."""
        return sum(source.rows for source in self._sources)

    @property
    def dim(self) -> int | None:
        """Length of a feature vector; None before the first."""
        return self._cover.vectors.shape[1] if len(self) else None

    @property
    def standardizes(self) -> bool:
        """Whether distances are in units of the stream's standard deviation."""
        return self._moments is not None

    @property
    def has_bank(self) -> bool:
        """Whether rows have been seen, and different values where distances are standardized: there is a bank then."""
        return len(self) > 0 and (self._moments is None or self._moments.vary)

    @property
    def radius(self) -> float:
        """Distance within which every row seen has a vector, as far as it is proved; in the unit of the distances."""
        return self._cover.radius / self._std

    @property
    def optimum(self) -> float:
        """Lower bound of the covering radius of the best ``size`` centers, wherever they lie; in the same unit.

        0 as long as no more than ``size`` different rows have been seen: then the bank holds all of them.
        """
        return self._cover.optimum / self._std

    @property
    def _std(self) -> float:
        return 1.0 if self._moments is None or not len(self) else self._moments.result().std

    def update(
        self,
        features: Features,
        *,
        note: Mapping[str, Any] | None = None,
        progress: Progress = False,
        key: str | Sequence[str] | None = None,
        layout: Layout = "auto",
        by_image: bool = False,
    ) -> int:
        """Take normal features, whole or not at all: after an error or Ctrl-C the bank is as it was before.

        Args:
            features: As for :meth:`MemoryBank.build`.
            note: What :attr:`note` is from now on, for instance which files have been taken.
            progress: As there.
            key: As there.
            layout: As there.
            by_image: As there.

        Returns:
            The number of rows that are vectors of the bank now.

        Raises:
            InputError: Bad features, or features of another length or extractor.

        Example:
            >>> import torch
            >>> stream = StreamingBank(3)
            >>> stream.update(torch.tensor([[0.0], [9.0]])), stream.update(torch.tensor([[0.0], [5.0]]))
            (2, 1)
        """
        dim = None if isinstance(features, FeatureDump) else self.dim
        dump = open_dump(features, key=key, layout=layout, by_image=by_image, dim=dim)
        if self.dim is not None:
            dump.check_dim(self.dim, "the bank")
        dump.check_extractor(self.extractor, "the bank")
        cover, moments, before = copy.copy(self._cover), copy.copy(self._moments), self.rows_seen
        with reporting(progress) as report:
            for first, rows in dump.blocks():
                block = rows if self._device is None else rows.to(self._device)
                with _naming(block, first):
                    cover.take(block, before + first)
                if moments is not None:
                    moments.update(block)
                report("Taking features", first + len(block), len(dump))
        kept = torch.cat([cover.rows, *(net.rows for net in cover.nets)])
        self.__dict__.update(
            _cover=cover, _moments=moments, _made=None, _sources=_forgetting([*self._sources, *dump.sources], kept),
            extractor=dump.extractor if self.extractor is None else self.extractor,
            note=self.note if note is None else dict(note), _calibration=self._aged(cover),
        )  # fmt: skip
        return int((cover.rows >= before).sum())

    def _aged(self, cover: Cover) -> BankCalibration | None:
        """Return the calibration, marked as of before if another bank comes out of it."""
        same = torch.equal(cover.rows, self._cover.rows)
        return self._calibration if same or self._calibration is None else self._calibration.aged()

    @property
    def bank(self) -> MemoryBank:
        """The bank as it is now: to search, to score with, to calibrate, to save. It stays as it is.

        Its file holds what the stream needs to go on; :meth:`MemoryBank.extend` takes that out, as what it adds is
        beyond the budget. A calibration that was loaded goes with it, marked as outdated once the vectors are others.

        Raises:
            InputError: No row has been seen; or all values are one, and distances are to be standardized.
        """
        if not len(self):
            raise InputError("bank: expected features before it is asked for, found none")
        if self._made is None:
            bank = MemoryBank(
                self._cover.vectors, source_rows=self._cover.rows, bank_precision=self.bank_precision,
                standardization=None if self._moments is None else self._moments.result(), extractor=self.extractor,
            )  # fmt: skip
            bank.taken_from(self._sources)
            bank.calibration = self._calibration
            bank.of_stream(self._state(), self._cover.radius)
            self._made = bank
        return copy.copy(self._made)

    def _state(self) -> StreamState:
        cover = self._cover
        return StreamState(
            self.size, self.factor, cover.spacing, cover.floor, cover.reach, cover.nets,
            None if self._moments is None else self._moments.state(), self.note,
        )  # fmt: skip

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the bank with what it needs to go on: a bank file as any other, see :meth:`MemoryBank.save`.

        A process that is killed leaves the file as it was saved last. Commands and :meth:`MemoryBank.load` take it.

        Raises:
            InputError: No row has been seen, or the file cannot be written.
        """
        self.bank.save(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: torch.device | str | None = None) -> StreamingBank:
        """Load a bank to go on with.

        Args:
            path: The file.
            device: As for :class:`StreamingBank`.

        Raises:
            InputError: No such file, it cannot be read, or it is the bank of no stream.
            FormatError: Truncated, altered, newer or foreign.

        Example:
            >>> import pathlib, tempfile, torch
            >>> path = pathlib.Path(tempfile.mkdtemp()) / "line.bank"
            >>> stream = StreamingBank(10)
            >>> stream.update(torch.rand(500, 8), note={"day": 1}) > 0
            True
            >>> stream.save(path)
            >>> again = StreamingBank.load(path)
            >>> again.rows_seen, again.note
            (500, {'day': 1})
        """
        bank = MemoryBank.load(path, device="cpu" if device is None else device, mapped=False)
        state = bank.stream
        if state is None:
            raise InputError(
                f"{path}: expected the bank of a stream, as StreamingBank.save and mmad-bank follow write it, found"
                " one that was built or extended"
            )
        stream = cls(
            state.size, factor=state.factor, standardize=state.moments is not None,
            bank_precision=bank.bank_precision, extractor=bank.extractor, device=device,
        )  # fmt: skip
        cover = Cover(state.size, state.factor)
        cover.restore(bank.vectors, bank.source_rows.cpu(), state)
        stream.__dict__.update(
            _cover=cover,
            _moments=None if state.moments is None else Moments.of(*state.moments),
            _sources=list(bank.sources), note=dict(state.note), _calibration=bank.calibration,
        )  # fmt: skip
        return stream


@contextmanager
def _naming(block: torch.Tensor, first: int) -> Iterator[None]:
    """Name features as such, and rows by their numbers in all of them."""
    named = naming_long_row(block, "features", "features", lambda row: f"row {first + row}")
    with named, argument_called(queries="features", bank="features"):
        yield


def _forgetting(sources: Sequence[Source], kept: torch.Tensor) -> list[Source]:
    """Put sources together of which no row is kept, so that a stream without end has a list with one."""
    ends = torch.tensor([source.rows for source in sources]).cumsum(0)
    used = set(torch.searchsorted(ends, kept, right=True).tolist())
    told: list[Source] = []
    for number, source in enumerate(sources):
        if number in used:
            told.append(source)
        elif told and told[-1].file == FORGOTTEN:
            told[-1] = told[-1]._replace(rows=told[-1].rows + source.rows)
        else:
            told.append(Source(FORGOTTEN, source.rows, None))
    return told
