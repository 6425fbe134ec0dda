"""The memory bank: a coreset of normal patch features, searched to score new ones."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from mmad_bank import ops, scoring
from mmad_bank._checks import ArrayLike, as_features, as_float_tensor, check_finite, check_index
from mmad_bank.bank import file_format
from mmad_bank.bank._progress import Progress, reporting
from mmad_bank.bank.dumps import FeatureDump, Layout, PathLike, open_dump
from mmad_bank.bank.indices import ExactIndex, FaissIndex
from mmad_bank.bank.projection import SparseProjection
from mmad_bank.bank.provenance import Origin, Source, describe_images, locate, restore_sources
from mmad_bank.bank.selection import Moments, Standardisation, coreset_size, selection_space
from mmad_bank.errors import FormatError, InputError
from mmad_bank.ops.knn import Precision, check_precision

VectorsOn = Literal["device", "host"]
Features = FeatureDump | ArrayLike | PathLike | Sequence[PathLike]


class Scores(NamedTuple):
    """What :meth:`MemoryBank.score` returns."""

    patch: Tensor
    """(B, P) float32: Euclidean distance of each patch to its nearest bank vector."""
    image: Tensor
    """(B,) float32: anomaly score of each image."""
    nearest: Tensor
    """(B, P) int64: the bank row of that vector, which explains the score (see :meth:`MemoryBank.provenance`)."""


class MemoryBank:
    """Normal patch features to compare new ones with.

    :meth:`build` selects a bank from a feature dump, :meth:`load` reads a saved one; the constructor takes vectors that
    were chosen elsewhere.

    Vectors are kept as they came. A bank that standardises does not store (f - mean)/std: with one scalar
    mean and std the mean drops out of every difference, so it divides distances by std instead.

    Args:
        vectors: (M, D) features.
        source_rows: int64 (M,) row of each vector in the dump it was taken from; default 0 to M - 1.
        index: ``"exact"`` or a FAISS index_factory string.
        precision: of the exact search's resident copy, see :class:`mmad_bank.ops.SearchIndex`; answers do not change.
        standardisation: (mean, std) of the features, or None.
        extractor: name of the feature extractor, kept in the file for whoever reads it.

    Attributes:
        sources: the files that the features came from, in order.
        index: as given.
        projection: the random projection to the selection space, or None.
        standardisation: :class:`Standardisation` or None.

    Example:
        >>> import torch
        >>> bank = MemoryBank(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
        >>> distances, rows = bank.search(torch.tensor([[3.0, 3.0]]))
        >>> distances, rows
        (tensor([[1.]]), tensor([[1]]))
    """

    sources: list[Source]
    projection: SparseProjection | None
    standardisation: Standardisation | None
    extractor: str | None
    _device: torch.device  # where it searches
    _raw_radius: float | None  # in the selection space, before standardisation
    _mapped: bool  # the vectors are a file on disk
    _index: ExactIndex | FaissIndex | None  # None until it is needed
    _faiss_bytes: Tensor | None  # the saved index, until it is needed

    def __init__(
        self,
        vectors: ArrayLike,
        *,
        source_rows: Tensor | None = None,
        index: str = "exact",
        precision: Precision = "auto",
        standardisation: tuple[float, float] | None = None,
        extractor: str | None = None,
    ) -> None:
        rows = as_features(vectors, "vectors")
        check_finite(rows, "vectors")
        _check_search(index, precision)
        self._set(rows, torch.arange(len(rows)) if source_rows is None else source_rows, index, precision)
        if self.source_rows.dtype != torch.int64 or self.source_rows.shape != (len(rows),):
            raise InputError(
                f"source_rows: expected int64 ({len(rows)},), found {self.source_rows.dtype}"
                f" {tuple(self.source_rows.shape)}"
            )
        self.sources = [Source("vectors", int(self.source_rows.max()) + 1, None)]
        self.standardisation = None if standardisation is None else _check_standardisation(standardisation)
        self.extractor = extractor
        self._make_index()

    def _set(self, vectors: Tensor, source_rows: Tensor, index: str, precision: Precision) -> None:
        self._vectors = vectors
        self._device = vectors.device
        self._source_rows = source_rows
        self.sources = []
        self.index = index
        self.precision = precision
        self.projection = None
        self.standardisation = None
        self.extractor = None
        self._raw_radius = None
        self._mapped = False
        self._index = None
        self._faiss_bytes = None

    @classmethod
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
        standardise: bool | tuple[float, float] = False,
        precision: Precision = "auto",
        device: torch.device | str | None = None,
        vectors_on: VectorsOn = "device",
        extractor: str | None = None,
        key: str | Sequence[str] | None = None,
        layout: Layout = "auto",
        by_image: bool = False,
    ) -> MemoryBank:
        """Select a bank by exact greedy k-centre (Sener and Savarese 2018; PatchCore's coreset).

        A dump on disk is streamed: in memory are the selection space (N x D, or N x projection_dim, float32), the bank,
        and one block of a few MiB. On a CUDA device the selection space is in the device's memory if it fits there
        beside the 16-bit copy that is selected from; otherwise in host memory (see
        :func:`mmad_bank.ops.k_center_greedy`). The bank is the same.

        Args:
            features: (N, D) or (images, patches, D) array, or maps of four axes; a path, a folder or a list of paths;
                or a :class:`FeatureDump`.
            ratio: share of the rows that the bank takes, rounded down, at least one row.
            size: number of rows instead of a ratio.
            index: ``"exact"`` or a FAISS index_factory string such as ``"IVF256,Flat"``.
            projection_dim: select in a sparse random projection to this many dimensions; ``"auto"`` takes the
                Johnson-Lindenstrauss dimension for eps 0.9, as PatchCore and M3DM do. The bank's vectors are the
                unprojected rows in any case.
            seed: of the projection.
            start: row that is selected first.
            progress: True for a bar on a terminal, or a function (stage, done, total).
            standardise: measure distances on (f - mean)/std with the dump's scalar mean and std, or with a given
                (mean, std).
            precision: of the resident search copy.
            device: where to select and search; default: where the features are.
            vectors_on: where the bank's vectors are kept, see :meth:`to`.
            extractor: name of the feature extractor; default: the one in ``extraction.json`` beside the features.
            key: array or layers to take of files that hold several, see :func:`mmad_bank.bank.open_dump`.
            layout: of maps, likewise.
            by_image: likewise.

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
        _check_search(index, precision)
        target = None if device is None else ops.resolve_device(device)
        _check_vectors_on(vectors_on)
        given = None if isinstance(standardise, bool) else _check_standardisation(standardise)
        moments = Moments() if standardise is True else None
        with reporting(progress) as report:
            space = selection_space(dump, projection, report, device=target, n_select=n_select, moments=moments)
            standardisation = given if moments is None else moments.result()
            coreset = ops.k_center_greedy(
                space,
                n_select,
                start=start,
                progress=lambda done, total: report("Selecting the coreset", done, total),
                return_radius=True,
                device=target,
            )
            rows = coreset.indices
            vectors = space[rows] if projection is None else dump.take(rows)
        del space
        bank = cls.__new__(cls)
        bank._set(vectors, rows.cpu(), index, precision)
        bank.sources = list(dump.sources)
        bank.projection = projection
        bank.standardisation = standardisation
        bank.extractor = dump.extractor if extractor is None else extractor
        bank._raw_radius = coreset.covering_radius
        bank = bank.to(coreset.indices.device if target is None else target, vectors_on=vectors_on)
        bank._make_index()
        return bank

    def __len__(self) -> int:
        return self.vectors.shape[0]

    def __repr__(self) -> str:
        return f"MemoryBank({len(self)} x {self.dim}, index={self.index!r}, device={str(self.device)!r})"

    @property
    def device(self) -> torch.device:
        """Where the bank searches, and where its results are. The vectors are there too, or in host memory."""
        return self._device

    @property
    def vectors(self) -> Tensor:
        """(M, D) float32 features, as they came."""
        return self._vectors

    @property
    def source_rows(self) -> Tensor:
        """int64 (M,): the row of each vector in the dump it was taken from, counted through all of ``sources``."""
        return self._source_rows

    @property
    def dim(self) -> int:
        """Length of a feature vector."""
        return self.vectors.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes held in memory: the search copy once it is made, and the vectors unless they are memory-mapped."""
        held = 0 if self._mapped else self.vectors.nbytes
        return held + self.source_rows.nbytes + (self._index.nbytes if self._index is not None else 0)

    @property
    def radius(self) -> float | None:
        """Covering radius: no row that the bank was selected from is farther from it, in the selection space.

        In the unit of the bank's distances. None if unknown (vectors chosen elsewhere).
        """
        return None if self._raw_radius is None else self._raw_radius / self._std

    @property
    def _std(self) -> float:
        return 1.0 if self.standardisation is None else self.standardisation.std

    @property
    def search_index(self) -> ExactIndex | FaissIndex:
        """What the bank is searched with; ``search_index.faiss_index`` takes FAISS settings such as ``nprobe``."""
        if self._index is None:
            self._make_index()
        assert self._index is not None
        return self._index

    def _make_index(self) -> None:
        if self.index == "exact":
            self._index = ExactIndex(self.vectors, self.precision, self.device, mapped=self._mapped)
        elif self._faiss_bytes is not None:
            self._index = FaissIndex.deserialize(self.vectors, self._faiss_bytes)
        else:
            self._index = FaissIndex(self.vectors, self.index)

    def search(self, queries: ArrayLike, k: int = 1) -> tuple[Tensor, Tensor]:
        """Find the k nearest bank vectors of each query.

        Args:
            queries: (Q, D) features, not standardised: the bank does that.
            k: neighbours a query, 1 to ``len(bank)``.

        Returns:
            Euclidean distances float32 (Q, k) and bank rows int64 (Q, k), nearest first, on the bank's device.
        """
        rows = as_features(queries, "queries").to(self.device)
        distances, found = self.search_index.search(rows, k)
        return distances / self._std if self.standardisation else distances, found

    def score(
        self, patches: ArrayLike, *, reweight: scoring.Reweight = "m3dm", n_neighbors: int | None = None
    ) -> Scores:
        """Score the patches of images and the images themselves (M3DM eq. 6 to 8; see :func:`scoring.image_score`).

        On a CUDA device everything after the check of the patches (one flag that the host waits for; left out while a
        CUDA graph is captured) is queued on the current stream, and with the exact index the host waits for nothing.

        Args:
            patches: (B, P, D) patch features of B images.
            reweight: ``"m3dm"``, ``"patchcore"`` or ``"max"``.
            n_neighbors: bank vectors around m*, m* included; default 3 for ``"m3dm"``, 9 for ``"patchcore"``. A
                smaller bank gives all it has.

        Example:
            >>> import torch
            >>> scores = MemoryBank(torch.rand(50, 4)).score(torch.rand(2, 9, 4))
            >>> scores.patch.shape, scores.image.shape, scores.nearest.dtype
            (torch.Size([2, 9]), torch.Size([2]), torch.int64)
        """
        wanted = scoring.check_reweight(reweight, n_neighbors)
        rows = as_float_tensor(patches, "patches", ndim=3).to(self.device)
        if rows.numel() == 0 or rows.shape[2] != self.dim:
            raise InputError(f"patches: expected shape (B, P, {self.dim}), not empty, found {tuple(rows.shape)}")
        if not (rows.is_cuda and torch.cuda.is_current_stream_capturing()):
            check_finite(rows.view(-1, self.dim), "patches")
        distances, nearest = self.search(rows.view(-1, self.dim))
        patch, nearest = distances.view(rows.shape[:2]), nearest.view(rows.shape[:2])
        largest, where = patch.max(dim=1)
        if reweight == "max":
            return Scores(patch, largest, nearest)
        image = torch.arange(len(rows), device=rows.device)
        around = self._neighborhood(nearest[image, where], min(wanted, len(self)))
        # The distances from the few patches f* are taken from differences: nothing cancels.
        gaps = self.search_index.gather(around).double() - rows[image, where].double()[:, None]
        spread = gaps.square_().sum(-1).sqrt_() / self._std
        return Scores(patch, scoring.image_score(largest, spread, self.dim, reweight), nearest)

    def _neighborhood(self, center: Tensor, n: int) -> Tensor:
        """Return bank row m* and its n - 1 nearest others, (B,) -> (B, n), also where the bank holds m* many times."""
        if n == 1:
            return center[:, None]
        found = self.search_index.neighbors(center, n)
        absent = ~(found == center[:, None]).any(1)  # n copies of m* with lower row numbers came first
        last = torch.where(absent, center, found[:, -1])
        found = torch.cat([found[:, :-1], last[:, None]], 1)
        first = (found != center[:, None]).int().argsort(dim=1, stable=True)
        return found.gather(1, first)

    def provenance(self, rows: Tensor | Sequence[int] | None = None) -> list[Origin]:
        """Say where bank vectors came from: file, row in it, image and its name, place of the patch if it is known.

        Args:
            rows: bank rows, for instance ``scores.nearest[0]``; default: all.

        Example:
            >>> import torch
            >>> bank = MemoryBank.build(torch.rand(2, 5, 3), size=1, start=7)
            >>> bank.provenance()
            [Origin(file='features', row=7, image=1, patch=2, name='features[1]', place=None)]
        """
        chosen = torch.arange(len(self)) if rows is None else torch.as_tensor(rows).cpu().reshape(-1)
        if chosen.is_floating_point() or (len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < len(self)):
            raise InputError(f"rows: expected bank rows 0 to {len(self) - 1}, found others")
        return locate(self.source_rows[chosen.long()], self.sources)

    def extend(
        self,
        features: Features,
        *,
        radius: float | None = None,
        size: int | None = None,
        progress: Progress = False,
        key: str | Sequence[str] | None = None,
        layout: Layout = "auto",
        by_image: bool = False,
    ) -> int:
        """Add normal samples collected since, by continuing the greedy selection against the bank's own vectors.

        The farthest new row is added until every new row lies within ``radius`` of the bank, or ``size`` rows have been
        added, whichever comes first. The dump that the bank was built from is not needed. Old vectors keep
        their rows, new ones are appended.

        Args:
            features: as for :meth:`build`.
            radius: in the unit of :attr:`radius`, which is the default. 0 takes every row that is new, up to ``size``.
            size: at most this many rows.
            progress: as for :meth:`build`.
            key: as for :meth:`build`.
            layout: as for :meth:`build`; the bank's own dimensions help to tell layouts apart.
            by_image: as for :meth:`build`.

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
        own = isinstance(features, FeatureDump)
        dump = open_dump(features, key=key, layout=layout, by_image=by_image, dim=None if own else self.dim)
        if dump.dim != self.dim:
            raise InputError(f"features: expected vectors of length {self.dim} as in the bank, found {dump.dim}")
        dump.check_extractor(self.extractor, "the bank")
        limit = self._raw_radius if radius is None else _check_radius(radius) * self._std
        if limit is None and size is None:
            raise InputError("radius: expected a radius or a size, the bank does not know its own radius")
        if size is not None:
            size = min(check_index(size, "size", 1, 2**31 - 1, "rows to add"), len(dump))
        with reporting(progress) as report:
            space = selection_space(dump, self.projection, report, device=self.device, n_select=size or len(dump))
            covered = self.vectors if self.projection is None else self._projected_vectors()
            coreset = ops.extend_coreset(
                space,
                covered.to(space.device),
                # A row that lies exactly at the radius is covered, whichever way its distance was rounded.
                radius=None if limit is None else limit * (1 + 2.0**-23),
                n_select=size,
                progress=lambda done, total: report("Extending the coreset", done, total),
                device=self.device,
            )
            rows = coreset.indices
            if len(rows):
                new = space[rows] if self.projection is None else dump.take(rows)
                self._append(new.to(self.vectors.device), rows.cpu(), dump.sources)
        if self._raw_radius is not None:
            self._raw_radius = max(self._raw_radius, coreset.covering_radius)
        return len(rows)

    def _projected_vectors(self) -> Tensor:
        assert self.projection is not None
        return torch.cat([self.projection(block) for block in self.vectors.split(16384)])

    def _append(self, new: Tensor, picks: Tensor, sources: Sequence[Source]) -> None:
        vectors = torch.cat([self.vectors, new])
        index = self.search_index
        if isinstance(index, FaissIndex):
            index.add(new, vectors)
        self._source_rows = torch.cat([self.source_rows, picks + sum(source.rows for source in self.sources)])
        self.sources = [*self.sources, *sources]
        self._vectors, self._mapped, self._faiss_bytes = vectors, False, None
        if not isinstance(index, FaissIndex):
            self._make_index()

    def to(self, device: torch.device | str, *, vectors_on: VectorsOn = "device") -> MemoryBank:
        """Return the bank with its exact search on ``device``; itself if it is there already.

        Args:
            device: where to search.
            vectors_on: ``"device"`` takes the float32 vectors along. ``"host"`` leaves them in host memory: on a CUDA
                device is then only the 16-bit or int8 copy (``precision``), a half or a quarter of their size, and the
                few vectors that decide are fetched from host memory, which is page-locked for that. The answers are the
                same. On the CPU the two mean the same.

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
        moved = copy.copy(self)
        moved._vectors, moved._device, moved._mapped, moved._index = vectors, target, False, None
        if isinstance(self._index, FaissIndex):
            moved._faiss_bytes = self._index.serialize()
        return moved

    def metadata(self) -> dict[str, Any]:
        """Return what the bank knows about itself, as JSON-ready values; the header of its file."""
        return {
            "metric": "euclidean",
            "dtype": "float32",
            "vectors": len(self),
            "dim": self.dim,
            "index": self.index,
            "radius": self._raw_radius,
            "projection": self.projection and {"dim": self.projection.dim_out, "seed": self.projection.seed},
            "standardisation": self.standardisation and self.standardisation._asdict(),
            "extractor": self.extractor,
            "sources": [{"file": one.file, "rows": one.rows, "patches": one.patches} for one in self.sources],
            "images": describe_images(self.sources),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the bank to one checksummed safetensors file.

        The file appears under its name when it is whole: after a full disk or a crash there is the old file or none.

        Raises:
            InputError: The file cannot be written; the message says why.
        """
        tensors = {"vectors": self.vectors, "source_rows": self.source_rows}
        if isinstance(self._index, FaissIndex):
            tensors["faiss_index"] = self._index.serialize()
        elif self._faiss_bytes is not None:
            tensors["faiss_index"] = self._faiss_bytes
        file_format.write(path, self.metadata(), tensors)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        device: torch.device | str = "cpu",
        *,
        precision: Precision = "auto",
        verify: bool = True,
        rebuild_index: bool = False,
        vectors_on: VectorsOn = "device",
    ) -> MemoryBank:
        """Load a saved bank. On the CPU its vectors stay on disk, memory-mapped, until they are touched.

        Trust: reading the file runs no code, whoever wrote it. A FAISS index in it is parsed by FAISS, whose reader is
        not made for hostile bytes, at the first search; take ``rebuild_index`` for a file from a stranger.

        Args:
            path: the file.
            device: where to search.
            precision: of the resident search copy.
            verify: compare the vectors with their checksum (one pass over the file, several GB/s). The header is
                always checked.
            rebuild_index: build the FAISS index anew from the vectors instead of reading it from the file.
            vectors_on: where the vectors are kept, see :meth:`to`.

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
        _check_search("exact", precision)
        header, tensors = file_format.read(path, verify=verify)
        bank = cls.__new__(cls)
        try:
            bank._restore(header, tensors, precision, rebuild_index)
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"{path}: altered, its header does not describe a memory bank ({error})") from error
        return bank.to(device, vectors_on=vectors_on)

    def _restore(
        self, header: dict[str, Any], tensors: dict[str, Tensor], precision: Precision, rebuild_index: bool
    ) -> None:
        vectors, source_rows = tensors["vectors"], tensors["source_rows"]
        if (vectors.dtype, vectors.shape) != (torch.float32, (header["vectors"], header["dim"])) or not vectors.numel():
            raise ValueError(f"vectors are {vectors.dtype} {tuple(vectors.shape)}")
        if (source_rows.dtype, source_rows.shape) != (torch.int64, (len(vectors),)):
            raise ValueError(f"source rows are {source_rows.dtype} {tuple(source_rows.shape)}")
        self._set(vectors, source_rows, str(header["index"]), precision)
        self._mapped = True
        self.sources = restore_sources(header["sources"], header.get("images", []))
        if header["projection"] is not None:
            self.projection = SparseProjection(self.dim, header["projection"]["dim"], header["projection"]["seed"])
        if header["standardisation"] is not None:
            self.standardisation = _check_standardisation(tuple(header["standardisation"].values()))
        self.extractor = header["extractor"]
        self._raw_radius = None if header["radius"] is None else _check_radius(header["radius"])
        if self.index != "exact" and not rebuild_index:
            self._faiss_bytes = tensors["faiss_index"]


def _check_search(index: str, precision: str) -> None:
    """Say what is wrong before the long work, not at the first search."""
    if not isinstance(index, str):
        raise InputError(f"index: expected 'exact' or a FAISS factory string, found {index!r}")
    check_precision(precision)


def _check_vectors_on(vectors_on: str) -> None:
    if vectors_on not in get_args(VectorsOn):
        raise InputError(f"vectors_on: expected one of {', '.join(get_args(VectorsOn))}, found {vectors_on!r}")


def _check_standardisation(pair: Any) -> Standardisation:
    if not isinstance(pair, tuple) or len(pair) != 2 or not all(isinstance(v, (int, float)) for v in pair):
        raise InputError(f"standardise: expected True, False or (mean, std), found {pair!r}")
    mean, std = pair
    if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
        raise InputError(f"standardise: expected a finite mean and a std above 0, found {pair!r}")
    return Standardisation(float(mean), float(std))


def _check_radius(radius: float) -> float:
    if isinstance(radius, bool) or not isinstance(radius, (int, float)) or not 0 <= radius < math.inf:
        raise InputError(f"radius: expected a finite number of at least 0, found {radius!r}")
    return float(radius)
