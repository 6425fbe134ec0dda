"""The memory bank: a coreset of normal patch features, searched to score new ones.

One class, with all that a user does with a bank; more than half of the module are its docstrings.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mmad_bank import ops, scoring
from mmad_bank._internal.argument_names import argument_called
from mmad_bank._internal.checks import ArrayLike, as_features, as_float_tensor, check_choice, check_finite, check_index
from mmad_bank._internal.decoding import decoding
from mmad_bank._internal.former import formerly
from mmad_bank._internal.locks import ForkedOpen
from mmad_bank._internal.sending import sent_by_value
from mmad_bank.bank import file_format
from mmad_bank.bank.calibrating import (
    HELD_OUT,
    OR_FOLDS,
    BankCalibration,
    Verdicts,
    check_all_of_bank,
    check_files_held_out,
    check_held_out,
    check_rule,
    score_by_folds,
    score_held_out,
)
from mmad_bank.bank.dump_scores import ScoreImages, patches_of_an_image
from mmad_bank.bank.dumps import FeatureDump, Layout, PathLike, open_dump
from mmad_bank.bank.exact_index import ExactIndex
from mmad_bank.bank.faiss_index import FaissIndex, check_factory
from mmad_bank.bank.file_format import BankFile, FileState
from mmad_bank.bank.indices import AS_IT_TAKES, Index, check_search, make_index
from mmad_bank.bank.projection import SparseProjection
from mmad_bank.bank.provenance import Origin, Source, check_rows, describe_images, locate, restore_sources
from mmad_bank.bank.recall import SearchSettings
from mmad_bank.bank.reporting import Progress, reporting
from mmad_bank.bank.scores import Rule, Scores, score_images
from mmad_bank.bank.selection import SelectHere, Selector, check_radius, coreset_size, left_out
from mmad_bank.bank.standardization import Standardization, check_standardization
from mmad_bank.bank.stream_state import StreamState
from mmad_bank.errors import FormatError, InputError
from mmad_bank.ops.knn import Precision, check_precision

_NO_BANK = "altered, its header does not describe a memory bank"

VectorsOn = Literal["device", "host"]
Features = FeatureDump | ArrayLike | PathLike | Sequence[PathLike]


@sent_by_value
class MemoryBank:
    """Normal patch features to compare new ones with.

    :meth:`build` selects a bank from a feature dump, :meth:`load` reads a saved one; the constructor takes vectors that
    were chosen elsewhere.

    Vectors are kept as they came. A bank that standardizes does not store (f - mean)/std: with one scalar
    mean and std the mean drops out of every difference, so it divides distances by std instead.

    Threads may search, extend and save one bank at the same time: a search sees the bank before an extension or after
    it. Banks can be pickled and copied (their vectors with them, also where these are a mapped file).

    Args:
        vectors: (M, D) features; copied, so that what happens to the array later does not change the bank.
        source_rows: int64 (M,) row of each vector in the dump it was taken from; default 0 to M - 1.
        index: ``"exact"`` or a FAISS index_factory string.
        bank_precision: Precision of the exact search's resident copy, see ``precision`` of
            :class:`mmad_bank.ops.SearchIndex`; answers do not change. Kept in the file.
        standardization: (mean, std) of the features, or None.
        extractor: Name of the feature extractor, kept in the file for whoever reads it.
        nprobe: Number of lists of an inverted file (``"IVF..."``) that a query looks into; default: as many as it takes
            to find 99 % of the nearest vectors of a sample. Kept in the file.
        ef_search: Number of candidates that the search of a graph (``"HNSW..."``) keeps; default and file as for
            ``nprobe``.

    Attributes:
        sources: The files that the features came from, in order.
        index: Name of the index, as given.
        projection: The random projection to the selection space, or None.
        standardization: :class:`Standardization` or None.
        calibration: What scores of normal images are, or None, see :meth:`calibrate`. It goes with copies and into the
            file.
        stream: What :class:`mmad_bank.bank.StreamingBank` needs to go on with a bank of its own, or None. It goes with
            copies and into the file.

    Example:
        >>> import torch
        >>> bank = MemoryBank(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
        >>> distances, rows = bank.search(torch.tensor([[3.0, 3.0]]))
        >>> distances, rows
        (tensor([[1.]]), tensor([[1]]))
    """

    sources: list[Source]
    projection: SparseProjection | None
    standardization: Standardization | None
    extractor: str | None
    calibration: BankCalibration | None = None
    stream: StreamState | None = None
    _device: torch.device  # where it searches
    _raw_radius: float | None  # in the selection space, before standardization
    _mapped: FileState | None  # the file on disk that the vectors are
    _file: str | None  # where it was loaded from, for messages
    _index: Index | None  # None until it is needed
    _faiss_bytes: Tensor | None  # the saved index, until it is needed
    _settings: SearchSettings  # of a FAISS index that is not made yet
    _lock: ForkedOpen  # held by whoever changes the bank or needs all of it as it is now

    @formerly(precision="bank_precision", standardisation="standardization")
    def __init__(
        self,
        vectors: ArrayLike,
        *,
        source_rows: Tensor | None = None,
        index: str = "exact",
        bank_precision: Precision = "auto",
        standardization: tuple[float, float] | None = None,
        extractor: str | None = None,
        nprobe: int | None = None,
        ef_search: int | None = None,
    ) -> None:
        rows = as_features(vectors, "vectors")
        check_finite(rows, "vectors")
        check_search(index, bank_precision, SearchSettings(nprobe, ef_search))
        given = torch.arange(len(rows)) if source_rows is None else source_rows.detach().clone()
        self._set(_own(rows, vectors), given, index, bank_precision)
        self._settings = SearchSettings(nprobe, ef_search)
        if self.source_rows.dtype != torch.int64 or self.source_rows.shape != (len(rows),):
            raise InputError(
                f"source_rows: expected int64 ({len(rows)},), found {self.source_rows.dtype}"
                f" {tuple(self.source_rows.shape)}"
            )
        self.sources = [Source("vectors", int(self.source_rows.max()) + 1, None)]
        self.standardization = None if standardization is None else check_standardization(standardization)
        self.extractor = extractor
        self.search_index  # noqa: B018 (made here, so that what FAISS cannot build is told here)

    def _set(self, vectors: Tensor, source_rows: Tensor, index: str, bank_precision: Precision) -> None:
        self._vectors = vectors
        self._device = vectors.device
        self._source_rows = source_rows
        self.sources = []
        self.index = index
        self.bank_precision: Precision = bank_precision
        self.projection = None
        self.standardization = None
        self.extractor = None
        self.calibration = None
        self.stream = None
        self._raw_radius = None
        self._mapped = None
        self._file = None
        self._index = None
        self._faiss_bytes = None
        self._settings = SearchSettings()
        self._lock = ForkedOpen()

    @classmethod
    @formerly(precision="bank_precision", standardise="standardize")
    def build(
        cls,
        features: Features,
        ratio: float = 0.1,
        *,
        size: int | None = None,
        index: str = "exact",
        projection_dim: int | Literal["auto"] | None = None,
        seed: int = 0,
        start: int = 0,
        progress: Progress = False,
        standardize: bool | tuple[float, float] = False,
        bank_precision: Precision = "auto",
        device: torch.device | str | None = None,
        vectors_on: VectorsOn = "device",
        extractor: str | None = None,
        key: str | Sequence[str] | None = None,
        layout: Layout = "auto",
        by_image: bool = False,
        nprobe: int | None = None,
        ef_search: int | None = None,
        selector: Selector | None = None,
    ) -> MemoryBank:
        """Select a bank by exact greedy k-center (Sener and Savarese 2018; PatchCore's coreset).

        A dump on disk is streamed: in memory are the selection space (N x D, or N x projection_dim, float32), the bank,
        and one block of a few MiB. On a CUDA device the selection space is in the device's memory if it fits there
        beside the 16-bit copy that is selected from; otherwise in host memory (see
        :func:`mmad_bank.ops.k_center_greedy`). The bank is the same.

        Args:
            features: (N, D) or (images, patches, D) array, or maps of four axes; a path, a folder or a list of paths;
                or a :class:`FeatureDump`.
            ratio: Share of the rows that the bank takes, rounded down, at least one row.
            size: Number of rows instead of a ratio.
            index: ``"exact"`` or a FAISS index_factory string such as ``"IVF256,Flat"``.
            projection_dim: Dimensions of a sparse random projection to select in; ``"auto"`` takes the
                Johnson-Lindenstrauss dimension for eps 0.9, as PatchCore and M3DM do. The bank's vectors are the
                unprojected rows in any case.
            seed: Seed of the projection.
            start: Row that is selected first.
            progress: True for a bar on a terminal, or a function (stage, done, total).
            standardize: Whether to measure distances on (f - mean)/std with the dump's scalar mean and std; or a (mean,
                std) to take.
            bank_precision: Precision of the resident search copy; kept in the file as the default of :meth:`load`.
            device: Where to select and search; default: where the features are.
            vectors_on: Where the bank's vectors are kept, see :meth:`to`.
            extractor: Name of the feature extractor; default: the one in ``extraction.json`` beside the features.
            key: Array or layers to take of files that hold several, see :func:`mmad_bank.bank.open_dump`.
            layout: Layout of maps, see there.
            by_image: Whether every array of a file is one image, see there.
            nprobe: Number of lists that a query of a FAISS index with inverted lists looks into, see
                :class:`MemoryBank`. With a FAISS index the recall on a sample of the rows that were not selected is
                measured, see :attr:`recall`.
            ef_search: Number of candidates that the search of a FAISS index with a graph keeps.
            selector: Who selects; default: this process, on ``device``. :func:`mmad_bank.distributed.build` has workers
                do it.

        Raises:
            InputError: Features that are empty, not floating-point, of a wrong shape, NaN or infinite; an argument
                out of range; an index that FAISS cannot build.

        Example:
            >>> import torch
            >>> features = torch.rand(4, 100, 16)                    # 4 images of 100 patches
            >>> bank = MemoryBank.build(features, ratio=0.1, projection_dim=8)
            >>> len(bank), bank.dim
            (40, 16)
            >>> bank.provenance([0])
            [Origin(file='features', row=0, image=0, patch=0, name='features[0]', place=None)]
        """
        dump = open_dump(features, key=key, layout=layout, by_image=by_image)
        n_select = coreset_size(len(dump), ratio, size)
        check_index(start, "start", 0, len(dump) - 1, "the row numbers")
        projection = SparseProjection.create(dump.dim, len(dump), projection_dim, seed)
        check_search(index, bank_precision, SearchSettings(nprobe, ef_search))
        if index != "exact":  # said now, not after the selection
            FaissIndex.check(index, n_select, dump.dim, SearchSettings(nprobe, ef_search))
        target = None if device is None else ops.resolve_device(device)
        _check_vectors_on(vectors_on)
        given = None if isinstance(standardize, bool) else check_standardization(standardize)
        with reporting(progress) as report:
            selected = (selector or SelectHere(target)).select(
                dump, n_select, start=start, projection=projection, standardize=standardize is True, report=report
            )
        bank = cls.__new__(cls)
        bank._set(selected.vectors, selected.rows.cpu(), index, bank_precision)
        bank.sources = list(dump.sources)
        bank.projection = projection
        bank.standardization = selected.standardization if given is None else given
        bank.extractor = dump.extractor if extractor is None else extractor
        bank._raw_radius = selected.covering_radius
        bank._settings = SearchSettings(nprobe, ef_search)
        bank = bank.to(selected.rows.device if target is None else target, vectors_on=vectors_on)
        bank._index = bank._made_index(None if index == "exact" else left_out(dump, bank.source_rows))
        return bank

    def taken_from(self, sources: Sequence[Source], rows: Tensor | None = None) -> None:
        """Say which larger table the rows were taken from that the bank was built of.

        Args:
            sources: Sources of that table.
            rows: int64 (N,), the number in it of each of the N rows that the bank was built of; None where these were
                all of it.

        Raises:
            InputError: A row is not of the sources.

        Example:
            >>> import torch
            >>> bank = MemoryBank.build(torch.rand(4, 8), size=2)
            >>> bank.taken_from([Source("table", 40, 10)], torch.tensor([3, 13, 23, 33]))
            >>> bank.provenance([0])[0].patch
            3
        """
        numbers = self.source_rows if rows is None else rows.to(self.source_rows.device)[self.source_rows]
        check_rows(numbers, sources)
        self._source_rows, self.sources, self.stream = numbers, list(sources), None

    def of_stream(self, state: StreamState, radius: float) -> None:
        """Say what stream the vectors are of, and within which distance, not standardized, they cover all of it.

        :class:`mmad_bank.bank.StreamingBank` does.
        """
        self.stream, self._raw_radius = state, check_radius(radius)

    def __len__(self) -> int:
        return self._vectors.shape[0]

    def __repr__(self) -> str:
        facts = [f"{len(self)} x {self.dim}", f"index={self.index!r}"]
        settings = self._settings_now()
        facts += [f"{name}={value:.4g}" for name, value in settings._asdict().items() if value is not None]
        facts += [] if self.radius is None else [f"radius={self.radius:.4g}"]
        facts += [] if self.extractor is None else [f"extractor={self.extractor!r}"]
        facts += [f"device={str(self.device)!r}"] + ([] if self._mapped is None else [f"mapped={self._mapped.path!r}"])
        return f"MemoryBank({', '.join(facts)})"

    @property
    def device(self) -> torch.device:
        """Where the bank searches, and where its results are. The vectors are there too, or in host memory."""
        return self._device

    @property
    def vectors(self) -> Tensor:
        """(M, D) float32 features, as they came; not to be written to.

        Raises:
            InputError: They are a mapped file that was changed in place.
        """
        self._check_file()
        return self._vectors

    @property
    def source_rows(self) -> Tensor:
        """int64 (M,): the row of each vector in the dump it was taken from, counted through all of ``sources``."""
        return self._source_rows

    @property
    def dim(self) -> int:
        """Length of a feature vector."""
        return self._vectors.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes held in memory: the search copy once it is made, and the vectors unless they are memory-mapped."""
        held = 0 if self._mapped else self._vectors.nbytes
        return held + self.source_rows.nbytes + (self._index.nbytes if self._index is not None else 0)

    @property
    def mapped_nbytes(self) -> int:
        """Bytes of the vectors that are a mapped file, which come to memory as searches touch them; 0 for others."""
        return self._vectors.nbytes if self._mapped else 0

    @property
    def recall(self) -> float | None:
        """Share of a sample of queries whose nearest vector a FAISS index finds with its present settings.

        Measured against the exact search when the index is made: on rows of the dump that were not selected
        (:meth:`build`) or on the bank's own vectors, each without itself. None for the exact search, and where it was
        not measured with these settings.
        """
        return self._settings_now().recall

    def _settings_now(self) -> SearchSettings:
        return self._index.settings if isinstance(self._index, FaissIndex) else self._settings

    @property
    def radius(self) -> float | None:
        """Covering radius: no row that the bank was selected from is farther from it, in the selection space.

        In the unit of the bank's distances. None if unknown (vectors chosen elsewhere).
        """
        return None if self._raw_radius is None else self._raw_radius / self._std

    @property
    def _std(self) -> float:
        return 1.0 if self.standardization is None else self.standardization.std

    @property
    def search_index(self) -> Index:
        """What the bank is searched with; ``search_index.faiss_index`` takes FAISS settings such as ``nprobe``."""
        self._check_file()
        index = self._index
        if index is None:
            with self._lock:
                index = self._index = self._index or self._made_index()
        return index

    def _made_index(self, sample: Tensor | None = None) -> Index:
        """Make the index; ``sample`` are features to measure the recall of FAISS's on, by default the bank's own."""
        return make_index(
            self.index, self._vectors, self.bank_precision, self.device, mapped=self._mapped is not None,
            file=self._file, saved=self._faiss_bytes, settings=self._settings, sample=sample,
        )  # fmt: skip

    def _check_file(self) -> None:
        if self._mapped is not None:
            self._mapped.check()

    def search(self, queries: ArrayLike, k: int = 1) -> tuple[Tensor, Tensor]:
        """Find the k nearest bank vectors of each query.

        Args:
            queries: (Q, D) features, not standardized: the bank does that.
            k: Number of neighbours per query, 1 to ``len(bank)``.

        Returns:
            Euclidean distances float32 (Q, k) and bank rows int64 (Q, k), nearest first, on the bank's device.
        """
        rows = as_features(queries, "queries").to(self.device)
        distances, found = self.search_index.search(rows, k)
        return distances / self._std if self.standardization else distances, found

    def score(
        self,
        patches: ArrayLike,
        *,
        reweight: scoring.Reweight = "m3dm",
        n_neighbors: int | None = None,
        divisor: float = 1.0,
    ) -> Scores:
        """Score the patches of images and the images themselves (M3DM eq. 6 to 8; see :func:`scoring.image_score`).

        On a CUDA device everything after the check of the patches (one flag that the host waits for; left out while a
        CUDA graph is captured) is queued on the current stream, and with the exact index the host waits for nothing.

        Args:
            patches: (B, P, D) patch features of B images.
            reweight: ``"m3dm"``, ``"patchcore"``, ``"max"`` or ``"top"`` (the mean of the top 1 % of the patch scores).
            n_neighbors: Number of bank vectors around m*, m* included; default 3 for ``"m3dm"``, 9 for ``"patchcore"``.
                A smaller bank gives all it has.
            divisor: Number that an image's largest patch score is divided by before the rule, above 0: one of M3DM's
                published variants takes 1000.

        Example:
            >>> import torch
            >>> scores = MemoryBank(torch.rand(50, 4)).score(torch.rand(2, 9, 4))
            >>> scores.patch.shape, scores.image.shape, scores.nearest.dtype
            (torch.Size([2, 9]), torch.Size([2]), torch.int64)
        """
        wanted = scoring.check_reweight(reweight, n_neighbors)
        scoring.check_divisor(divisor)
        rows = as_float_tensor(patches, "patches", ndim=3).to(self.device)
        if rows.numel() == 0 or rows.shape[2] != self.dim:
            raise InputError(f"patches: expected shape (B, P, {self.dim}), not empty, found {tuple(rows.shape)}")
        if not (rows.is_cuda and torch.cuda.is_current_stream_capturing()):
            images = Source("patches", rows.shape[0] * rows.shape[1], rows.shape[1])
            check_finite(rows.view(-1, self.dim), "patches", place=images.place)
        scores = score_images(self.search_index, rows, self._std, reweight, min(wanted, len(self)), divisor)
        return scores.by(Rule(reweight, wanted, float(divisor)))

    def calibrate(
        self,
        features: Features,
        *,
        folds: int | None = None,
        reweight: scoring.Reweight = "m3dm",
        n_neighbors: int | None = None,
        divisor: float = 1.0,
        patches: int | None = None,
        origin: str | None = None,
        progress: Progress = False,
        key: str | Sequence[str] | None = None,
        layout: Layout = "auto",
        by_image: bool = False,
        left_out: dict[str, str] | None = None,
        selector: Selector | None = None,
    ) -> BankCalibration:
        """Score normal images that took no part in the bank, and keep the scores to judge others by.

        With ``folds`` the images are those that the bank was built from: each is scored by a bank of the others, which
        takes the same share of the rows by the same projection, standardization and index. That takes as long as
        ``folds`` selections and one scoring of all images. Banks of fewer images give slightly higher scores, so
        verdicts are rather too mild than too strict; proven is the false-alarm rate of held-out images only.

        Args:
            features: Normal images, as for :meth:`build`, which the bank was not built from; with ``folds`` all that
                it was built from, in their order.
            folds: Number of runs of neighboring images that are left out in turn, at least 2; equal images go together.
                Default: none.
            reweight: Rule of the image scores that are to be judged, see :meth:`score`.
            n_neighbors: As for :meth:`score`.
            divisor: As for :meth:`score`.
            patches: Number of patches per image in (N, D) features; default: a file or array is one image.
            origin: Words for which images they are; default: ``"held-out images"``, or that they are of folds.
            progress: As for :meth:`build`.
            key: As for :meth:`build`.
            layout: As for :meth:`build`.
            by_image: As for :meth:`build`.
            left_out: Dictionary that takes up why a file cannot be used, by file; the others are taken. Default: the
                first one is an error.
            selector: Who selects the banks of the folds, as for :meth:`build`; default: this process.

        Returns:
            What the bank keeps as :attr:`calibration`.

        Raises:
            InputError: Bad features, or of another extractor; images that the bank was built from without ``folds``, or
                others with it; an argument out of range; ``selector`` without ``folds``.

        Example:
            >>> import torch
            >>> features = torch.rand(20, 9, 4, generator=torch.Generator().manual_seed(0))
            >>> bank = MemoryBank.build(features, ratio=0.5)
            >>> bank.calibrate(features, folds=5).images
            <Calibration of 20 images of the bank, in 5 folds: 0.1399 to 0.1883>
        """
        rule = check_rule(reweight, n_neighbors, divisor)
        if selector is not None and folds is None:
            raise InputError("selector: expected folds beside it, found none; nothing is selected for held-out images")
        dump = self._open(features, key=key, layout=layout, by_image=by_image, left_out=left_out)
        return self._calibrated(dump, rule, patches, folds, origin, progress, left_out, OR_FOLDS, selector)

    def _calibrated(
        self,
        dump: FeatureDump,
        rule: Rule,
        patches: int | None,
        folds: int | None,
        origin: str | None,
        progress: Progress,
        left_out: dict[str, str] | None,
        or_else: str,
        selector: Selector | None = None,
    ) -> BankCalibration:
        """Do the work of :meth:`calibrate`; ``or_else`` tells what to do with the bank's own images."""
        per_image = patches_of_an_image(dump, patches)
        bank = self.__copy__()  # as it is now, whatever extends it meanwhile
        with reporting(progress) as report:
            if folds is None:
                check_files_held_out(bank.sources, dump, or_else)
                scores = score_held_out(bank._scorer(rule), dump, per_image, left_out, report)
                check_held_out(scores, bank.source_rows, bank.sources, or_else)
            else:
                check_all_of_bank(bank.vectors, bank.source_rows, bank.sources, dump)
                scores = score_by_folds(
                    lambda rest: bank._of_fold(rest, len(dump), rule, selector), dump, per_image, folds, report
                )
        words = HELD_OUT if folds is None else f"images of the bank, in {folds} folds"
        calibration = BankCalibration.of(scores, rule, words if origin is None else origin)
        with self._lock:
            self.calibration = calibration if len(self) == len(bank) else calibration.aged()
            return self.calibration

    def calibrate_again(
        self, features: Features, *, progress: Progress = False, left_out: dict[str, str] | None = None
    ) -> BankCalibration:
        """Calibrate with other held-out images, by the rule that the bank is calibrated by, see :meth:`calibrate`.

        Args:
            features: As for :meth:`calibrate`; of (N, D) features an image has as many patches as before.
            progress: As for :meth:`calibrate`.
            left_out: As for :meth:`calibrate`.

        Example:
            >>> import torch
            >>> bank = MemoryBank.build(torch.rand(5, 9, 4))
            >>> calibration = bank.calibrate(torch.rand(30, 9, 4), reweight="max")
            >>> bank.extend(torch.rand(2, 9, 4) + 9) > 0, bank.calibration.outdated
            (True, True)
            >>> bank.calibrate_again(torch.rand(270, 4)).rule
            Rule(reweight='max', n_neighbors=1, divisor=1.0)
        """
        dump = self._open(features, key=None, layout="auto", by_image=False, left_out=left_out)
        known = self.calibration
        rule, patches = (check_rule("m3dm", None), None) if known is None else (known.rule, known.patches)
        return self._calibrated(dump, rule, patches, None, None, progress, left_out, "")

    def _scorer(self, rule: Rule) -> ScoreImages:
        return partial(self.score, reweight=rule.reweight, n_neighbors=rule.n_neighbors, divisor=rule.divisor)

    def _of_fold(self, rest: FeatureDump, rows_in_all: int, rule: Rule, selector: Selector | None) -> ScoreImages:
        """Return what scores with a bank like this one, of some of its features."""
        settings = self._settings_now()
        made = MemoryBank.build(
            rest, size=max(1, len(self) * len(rest) // rows_in_all), index=self.index,
            projection_dim=None if self.projection is None else self.projection.dim_out,
            seed=0 if self.projection is None else self.projection.seed,
            standardize=False if self.standardization is None else self.standardization,
            bank_precision=self.bank_precision, device=self.device, nprobe=settings.nprobe,
            ef_search=settings.ef_search, selector=selector,
        )  # fmt: skip
        return made._scorer(rule)

    def judge(self, scores: Scores, false_alarm_rate: float | None = None) -> Verdicts:
        """Say which images are bad, at a false-alarm rate that held-out images promise.

        Args:
            scores: What :meth:`score` has returned, by the rule of the calibration.
            false_alarm_rate: Share of the normal images that may be called bad; default: 0.01, or the smallest that the
                calibration can promise if that is larger.

        Returns:
            P-values, verdicts of images and patches, and the limits behind them, on the CPU.

        Raises:
            InputError: The bank is not calibrated; the scores are by another rule, of images of another size or NaN;
                the rate is out of range.
        """
        if self.calibration is None:
            raise InputError("scores: expected a bank that is calibrated, found none; MemoryBank.calibrate does it")
        return self.calibration.judge(scores, false_alarm_rate)

    def provenance(self, rows: Tensor | Sequence[int] | None = None) -> list[Origin]:
        """Say where bank vectors came from: file, row in it, image and its name, place of the patch if it is known.

        Args:
            rows: Bank rows, for instance ``scores.nearest[0]``; default: all.

        Example:
            >>> import torch
            >>> bank = MemoryBank.build(torch.rand(2, 5, 3), size=1, start=7)
            >>> bank.provenance()
            [Origin(file='features', row=7, image=1, patch=2, name='features[1]', place=None)]
        """
        chosen = torch.arange(len(self), device="cpu") if rows is None else _on_cpu(rows).reshape(-1)
        if chosen.is_floating_point() or (len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < len(self)):
            raise InputError(f"rows: expected bank rows 0 to {len(self) - 1}, found others")
        return locate(self.source_rows[chosen.long()], self.sources)

    def extend(
        self,
        features: Features,
        *,
        radius: float | None = None,
        size: int | None = None,
        calibration: Features | None = None,
        progress: Progress = False,
        key: str | Sequence[str] | None = None,
        layout: Layout = "auto",
        by_image: bool = False,
        selector: Selector | None = None,
    ) -> int:
        """Add normal samples collected since, by continuing the greedy selection against the bank's own vectors.

        The farthest new row is added until every new row lies within ``radius`` of the bank, or ``size`` rows have been
        added, whichever comes first. The dump that the bank was built from is not needed. Old vectors keep
        their rows, new ones are appended.

        A calibration is kept, and marked as of before the extension
        (:attr:`~mmad_bank.bank.calibrating.BankCalibration.outdated`) if rows were added.

        Args:
            features: As for :meth:`build`.
            radius: Distance within which a row counts as covered, in the unit of :attr:`radius`, which is the default.
                0 takes every row that is new, up to ``size``.
            size: Largest number of rows to add.
            calibration: Normal images that are neither in the bank nor among ``features``, to calibrate the extended
                bank with, by the rule of its calibration (see :meth:`calibrate`).
            progress: As for :meth:`build`.
            key: As for :meth:`build`.
            layout: As for :meth:`build`; the bank's own dimensions help to tell layouts apart.
            by_image: As for :meth:`build`.
            selector: Who selects; default: this process, where the bank searches.

        Returns:
            The number of rows added.

        Raises:
            InputError: Bad features, or features of another extractor; or neither ``radius`` nor ``size`` is given and
                the bank does not know its radius.

        Example:
            >>> import torch
            >>> features = torch.rand(100, 4)
            >>> bank = MemoryBank.build(features, size=10)
            >>> bank.extend(features), bank.extend(features + 5, size=3)
            (0, 3)
        """
        opened = partial(self._open, key=key, layout=layout, by_image=by_image)
        dump, held_out = opened(features), None if calibration is None else opened(calibration)
        if held_out is not None:
            with argument_called(features="calibration"):
                check_files_held_out([*self.sources, *dump.sources], held_out)
        wanted = None if radius is None else check_radius(radius) * self._std
        if wanted is None and self._raw_radius is None and size is None:
            raise InputError("radius: expected a radius or a size, the bank does not know its own radius")
        if size is not None:
            size = min(check_index(size, "size", 1, 2**31 - 1, "rows to add"), len(dump))
        with reporting(progress) as report, self._lock:
            limit = self._raw_radius if wanted is None else wanted
            selected = (selector or SelectHere(self.device)).extend(
                dump,
                self.vectors if self.projection is None else self._projected_vectors(),
                # A row that lies exactly at the radius is covered, whichever way its distance was rounded.
                radius=None if limit is None else limit * (1 + 2.0**-23),
                n_select=size,
                projection=self.projection,
                report=report,
            )
            if len(selected.rows):
                self._append(selected.vectors.to(self.vectors.device), selected.rows.cpu(), dump.sources)
            if self._raw_radius is not None:
                self._raw_radius = max(self._raw_radius, selected.covering_radius)
        if held_out is not None:
            with argument_called(features="calibration"):
                self.calibrate_again(held_out, progress=progress)
        return len(selected.rows)

    def _open(
        self,
        features: Features,
        *,
        key: str | Sequence[str] | None,
        layout: Layout,
        by_image: bool,
        left_out: dict[str, str] | None = None,
    ) -> FeatureDump:
        """Open features that are to be compared with the bank's."""
        dim = None if isinstance(features, FeatureDump) else self.dim
        dump = open_dump(features, key=key, layout=layout, by_image=by_image, left_out=left_out, dim=dim)
        dump.check_dim(self.dim, "the bank")
        dump.check_extractor(self.extractor, "the bank")
        return dump

    def _projected_vectors(self) -> Tensor:
        assert self.projection is not None
        return torch.cat([self.projection(block) for block in self.vectors.split(16384)])

    def _append(self, new: Tensor, picks: Tensor, sources: Sequence[Source]) -> None:
        vectors = torch.cat([self.vectors, new])
        old = self.search_index
        if isinstance(old, FaissIndex):
            index: Index = old.extended(new, vectors, self.index)
        else:
            index = ExactIndex(vectors, self.bank_precision, self.device)
        # Searches go on meanwhile, with the old index or the new one, and a process may be forked: all in one step.
        before = sum(source.rows for source in self.sources)
        self.__dict__.update(
            sources=[*self.sources, *sources],
            _source_rows=torch.cat([self.source_rows, picks + before]),
            _vectors=vectors,
            _mapped=None,
            _faiss_bytes=None,
            _index=index,
            calibration=self.calibration and self.calibration.aged(),
            stream=None,
        )

    def to(self, device: torch.device | str, *, vectors_on: VectorsOn = "device") -> MemoryBank:
        """Return the bank with its exact search on ``device``; itself if it is there already.

        Args:
            device: Where to search.
            vectors_on: ``"device"`` takes the float32 vectors along. ``"host"`` leaves them in host memory: a CUDA
                device then holds only the 16-bit or int8 copy (``bank_precision``), a half or a quarter of their size,
                and the few vectors that decide are fetched from host memory, which is page-locked for that. The answers
                are the same. The two mean the same on the CPU.

        Raises:
            InputError: The device cannot be used.

        Example:
            >>> import torch
            >>> bank = MemoryBank(torch.rand(5, 3))
            >>> bank.to("cpu", vectors_on="host") is bank
            True
        """
        _check_vectors_on(vectors_on)
        target = ops.resolve_device(device)
        vectors = self.vectors.to("cpu" if vectors_on == "host" else target)
        if vectors is self.vectors and target == self.device:
            return self
        moved = self.__copy__()
        mapped = self._mapped if vectors is self._vectors else None
        moved._vectors, moved._device, moved._mapped, moved._index = vectors, target, mapped, None
        if isinstance(self._index, FaissIndex):
            moved._faiss_bytes, moved._settings = self._index.serialize(), self._index.settings
        return moved

    def with_precision(self, bank_precision: Precision) -> MemoryBank:
        """Return a bank of the same vectors with another resident search copy; itself if it has that one already.

        Scores do not depend on it. A bank with a FAISS index goes on searching with that.

        Args:
            bank_precision: Precision of the copy, as in :meth:`load`.

        Raises:
            InputError: There is no such precision.

        Example:
            >>> import torch
            >>> MemoryBank(torch.rand(5, 3)).with_precision("int8").bank_precision
            'int8'
        """
        if check_precision(bank_precision, "bank_precision") == self.bank_precision:
            return self
        other = self.__copy__()
        other.bank_precision = bank_precision
        if self.index == "exact":
            other._index = None
        return other

    def searched_by(self, index: Index) -> MemoryBank:
        """Return a bank of the same vectors that another index searches, such as one whose vectors are elsewhere.

        Args:
            index: What finds the same rows in the same order.

        Example:
            >>> import torch
            >>> bank = MemoryBank(torch.rand(5, 3))
            >>> bank.searched_by(ExactIndex(bank.vectors, "int8")).search(bank.vectors[3:4])[1]
            tensor([[3]])
        """
        other = self.__copy__()
        other._index = index
        return other

    def __copy__(self) -> MemoryBank:
        """Return a bank of its own that shares vectors and index; extending one leaves the other as it is."""
        twin = type(self).__new__(type(self))
        with self._lock:
            twin.__dict__.update(self.__dict__)
        twin.sources, twin._lock = list(self.sources), ForkedOpen()
        return twin

    def __getstate__(self) -> dict[str, Any]:
        """Return what makes the bank anew elsewhere: only FAISS's bytes of an index, and vectors in memory."""
        with self._lock:
            self._check_file()
            state = dict(self.__dict__)
        index = state["_index"]
        if isinstance(index, FaissIndex):
            state["_faiss_bytes"], state["_settings"] = index.serialize(), index.settings
        state |= {name: _alone(state[name]) for name in ("_vectors", "_source_rows", "_faiss_bytes")}
        state |= {"_index": None, "_mapped": None}
        del state["_lock"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = ForkedOpen()

    def metadata(self) -> dict[str, Any]:
        """Return what the bank knows about itself, as JSON-ready values; the header of its file."""
        settings = self._settings_now()
        return {
            "metric": "euclidean",
            "dtype": "float32",
            "vectors": len(self),
            "dim": self.dim,
            "index": self.index,
            "bank_precision": self.bank_precision,
            "search": None if settings == AS_IT_TAKES else settings._asdict(),
            "radius": self._raw_radius,
            "projection": self.projection and {"dim": self.projection.dim_out, "seed": self.projection.seed},
            "standardisation": self.standardization and self.standardization._asdict(),
            "extractor": self.extractor,
            "sources": [{"file": one.file, "rows": one.rows, "patches": one.patches} for one in self.sources],
            "images": describe_images(self.sources),
            **({} if self.calibration is None else {"calibration": self.calibration.header()}),
            **({} if self.stream is None else {"stream": self.stream.header()}),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the bank to one checksummed safetensors file; a file that is there already is replaced, in one step.

        The file appears under its name when it is whole: after a full disk or a crash there is the old file or none.

        Raises:
            InputError: The file cannot be written; the message says why.
        """
        with self._lock:
            tensors = {"vectors": self.vectors, "source_rows": self.source_rows}
            if isinstance(self._index, FaissIndex):
                tensors["faiss_index"] = self._index.serialize()
            elif self._faiss_bytes is not None:
                tensors["faiss_index"] = self._faiss_bytes
            if self.calibration is not None:
                tensors |= self.calibration.tensors()
            if self.stream is not None:
                tensors |= self.stream.tensors()
            header = self.metadata()
        file_format.write(path, header, tensors)

    @classmethod
    @formerly(precision="bank_precision")
    def load(
        cls,
        path: str | os.PathLike[str],
        device: torch.device | str = "cpu",
        *,
        bank_precision: Precision | None = None,
        verify: bool = True,
        rebuild_index: bool | None = None,
        trust_index: bool = False,
        vectors_on: VectorsOn = "device",
        mapped: bool | None = None,
    ) -> MemoryBank:
        """Load a saved bank. Vectors of more than 16 MiB stay on disk, memory-mapped, until they are touched.

        Trust: reading the file runs no code, whoever wrote it. A FAISS index in it is left alone and built anew from
        the vectors at the first search, because FAISS's reader is not made for hostile bytes. That takes a while for
        graphs over millions of vectors: take ``trust_index`` for a file that you have saved yourself.

        A mapped file may be replaced (by :meth:`save`, by renaming) or removed at any time. It must not be overwritten
        or cut in place: a search says so where it can, see docs/reference/files.md.

        Args:
            path: The file.
            device: Where to search.
            bank_precision: Precision of the resident search copy; default: the file's own. A later
                :meth:`save` keeps the one given here.
            verify: Whether to compare the vectors with their checksum (one pass over the file, several GB/s). The
                header is always checked.
            rebuild_index: The contrary of ``trust_index``; it wins over it.
            trust_index: Whether FAISS may read the index that is in the file.
            vectors_on: Where the vectors are kept, see :meth:`to`.
            mapped: False to read the vectors into memory, whatever their size: then nothing that happens to the file
                later matters. True to map them in any case.

        Raises:
            InputError: No such file, or it cannot be read.
            FormatError: Truncated, altered, newer or foreign.

        Example:
            >>> import pathlib, tempfile, torch
            >>> path = pathlib.Path(tempfile.mkdtemp()) / "rgb.safetensors"
            >>> MemoryBank(torch.rand(5, 3)).save(path)
            >>> len(MemoryBank.load(path))
            5
        """
        if bank_precision is not None:
            check_precision(bank_precision, "bank_precision")
        trusted = trust_index if rebuild_index is None else not rebuild_index
        file = file_format.read(path, verify=verify, mapped=mapped)
        bank = cls.__new__(cls)
        with decoding(path, _NO_BANK, error=FormatError):
            try:
                bank._restore(file, bank_precision, trusted)
                bank._file = os.fspath(path)
            except InputError as error:  # about a value of the header
                raise FormatError(f"{path}: {_NO_BANK} ({error})") from error
        return bank.to(device, vectors_on=vectors_on)

    def _restore(self, file: BankFile, wanted: Precision | None, trusted: bool) -> None:
        header, tensors = file.header, file.tensors
        shape = (header.integer("vectors", 1), header.integer("dim", 1))
        vectors, source_rows = tensors["vectors"], tensors["source_rows"]
        if (vectors.dtype, vectors.shape) != (torch.float32, shape):
            raise ValueError(f"vectors are {vectors.dtype} {tuple(vectors.shape)}")
        if (source_rows.dtype, source_rows.shape) != (torch.int64, (len(vectors),)):
            raise ValueError(f"source rows are {source_rows.dtype} {tuple(source_rows.shape)}")
        known = header.text("bank_precision") if "bank_precision" in header.content else "auto"  # of older files
        stored = check_precision(known, "bank_precision")
        self._set(vectors, source_rows, header.text("index"), stored if wanted is None else wanted)
        self._mapped = file.mapped
        self.sources = restore_sources(header)
        check_rows(source_rows, self.sources)
        projection, standardization = header.optional_table("projection"), header.optional_table("standardisation")
        if projection is not None:
            self.projection = SparseProjection(
                self.dim, projection.integer("dim"), projection.integer("seed", 0, 2**63)
            )
        if standardization is not None:
            pair = (standardization.number("mean"), standardization.number("std"))
            self.standardization = check_standardization(pair)
        self.extractor = header.optional_text("extractor")
        calibration = header.optional_table("calibration")
        if calibration is not None:
            self.calibration = BankCalibration.restore(calibration, tensors)
        stream = header.optional_table("stream")
        if stream is not None:
            self.stream = StreamState.restore(stream, tensors, shape, sum(source.rows for source in self.sources))
        radius = header.optional_number("radius")
        self._raw_radius = None if radius is None else check_radius(radius)
        if self.index != "exact":
            check_factory(self.index, *shape)
            search = header.optional_table("search")
            if search is not None:
                self._settings = SearchSettings(
                    search.optional_integer("nprobe", 1), search.optional_integer("ef_search", 1),
                    search.optional_number("recall"),
                )  # fmt: skip
            self._faiss_bytes = tensors.get("faiss_index") if trusted else None


def _alone(rows: Tensor | None) -> Tensor | None:
    """Return a tensor whose storage holds nothing else: a pickle takes the storage."""
    return rows if rows is None or rows.untyped_storage().nbytes() == rows.nbytes else rows.clone()


def _own(rows: Tensor, given: ArrayLike) -> Tensor:
    """Return rows that share no memory with what the caller gave."""
    address = given.data_ptr() if isinstance(given, Tensor) else given.__array_interface__["data"][0]
    return rows.clone() if rows.data_ptr() == address else rows


def _check_vectors_on(vectors_on: str) -> None:
    check_choice(vectors_on, get_args(VectorsOn), "vectors_on")


def _on_cpu(rows: Any) -> Tensor:
    """Return row numbers in host memory, whatever the caller's default device is."""
    return rows.cpu() if isinstance(rows, Tensor) else torch.as_tensor(rows, device="cpu")
