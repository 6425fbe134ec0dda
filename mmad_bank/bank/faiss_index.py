"""Any FAISS index as the index of a bank, with true distances."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmad_bank._internal.arrays import array_of
from mmad_bank._internal.checks import ArrayLike, as_features, check_finite, check_index
from mmad_bank.bank.recall import Sample, SearchSettings, exact_search
from mmad_bank.errors import FormatError, InputError, MissingExtraError

_BLOCK_BYTES = 32 << 20
_LONGEST_FACTORY = 200  # characters
_CANDIDATES = 4  # looked at for each neighbour where FAISS's own distances are of something else
_FIRST_EFFORT = 8  # lists or candidates
_LARGEST_EF = 1024
_WANTED_RECALL = 0.99
_LEAST_GAIN = 0.005


class FaissIndex:
    """A FAISS index over the bank's vectors, Euclidean, on the GPU where faiss-gpu finds one and can use it.

    Which vectors are found is FAISS's own, approximate where the index is. Their distances are computed from the
    vectors themselves, also where FAISS's are of something else (product quantisers, PCA, normalisation): a distance
    is always the Euclidean one to the vector that it names, and the nearest of those found come first. Where FAISS's
    own distances differ, four times as many are looked at. Where it finds fewer than k vectors (an inverted file whose
    probed lists are short) exact search completes the answer.

    ``faiss_index`` is the FAISS object.

    Args:
        vectors: (M, D) float32.
        factory: An index_factory string.

    Raises:
        MissingExtraError: FAISS is not installed.
        InputError: FAISS does not know the factory string, or cannot train it on this few vectors.
    """

    def __init__(self, vectors: Tensor, factory: str) -> None:
        faiss = _faiss()
        check_finite(vectors, "bank")
        index = make_faiss(factory, vectors.shape[1], len(vectors))
        rows = _to_numpy(vectors)
        try:
            index.train(rows)
            index.add(rows)
            self._take(faiss, vectors, index)
        except RuntimeError as error:
            raise InputError(
                f"index: FAISS cannot build {factory!r} on {len(rows)} vectors ({_reason(error)})"
            ) from error

    @staticmethod
    def check(factory: str, n_vectors: int, dim: int, settings: SearchSettings) -> None:
        """Refuse what FAISS cannot build or search so, as far as that can be said without vectors.

        Raises:
            MissingExtraError: FAISS is not installed.
            InputError: It does not know the string, or has no such setting.
        """
        index = FaissIndex.__new__(FaissIndex)
        index.faiss_index, index._recall = make_faiss(factory, dim, n_vectors), None
        index.set(settings)

    @classmethod
    def deserialize(cls, vectors: Tensor, data: Tensor) -> FaissIndex:
        """Restore an index from :meth:`serialize`; FAISS parses the bytes (see :meth:`MemoryBank.load` on trust)."""
        faiss = _faiss()
        try:
            index = faiss.deserialize_index(data.numpy())
        except RuntimeError as error:
            raise FormatError(f"faiss_index: altered or from another FAISS version ({_reason(error)})") from error
        if (index.d, index.ntotal) != (vectors.shape[1], vectors.shape[0]) or index.metric_type != faiss.METRIC_L2:
            raise FormatError(
                f"faiss_index: altered, expected {vectors.shape[0]} x {vectors.shape[1]} Euclidean vectors,"
                f" found {index.ntotal} x {index.d}"
            )
        return cls._of(faiss, vectors, index)

    @classmethod
    def _of(cls, faiss: Any, vectors: Tensor, index: Any) -> FaissIndex:
        restored = cls.__new__(cls)
        restored._take(faiss, vectors, index)
        return restored

    def _take(self, faiss: Any, vectors: Tensor, index: Any) -> None:
        self._vectors = vectors
        self._recall: tuple[int | None, int | None, float] | None = None
        self._more = _CANDIDATES if _distances_differ(index, vectors) else 1
        self.faiss_index = _to_gpu(faiss, index)

    def serialize(self) -> Tensor:
        """Return the index as uint8 bytes."""
        return torch.from_numpy(_faiss().serialize_index(self._on_host()))

    def _on_host(self) -> Any:
        faiss, index = _faiss(), self.faiss_index
        return faiss.index_gpu_to_cpu(index) if _is_on_gpu(faiss, index) else index

    @property
    def nbytes(self) -> int:
        """Bytes of the index, as FAISS would write it."""
        return self.serialize().nbytes

    def extended(self, vectors: Tensor, all_vectors: Tensor, factory: str) -> FaissIndex:
        """Return a copy with vectors appended; ``all_vectors`` are the bank's with the new ones at the end.

        This one stays as it is: FAISS's indices must not be searched while vectors are added. Some kinds cannot be
        copied (L2norm, ITQ) or added to (NSG): these are built anew.
        """
        faiss = _faiss()
        host = self._on_host()
        settings = self.settings._replace(recall=None)
        try:
            index = host if host is not self.faiss_index else faiss.clone_index(host)
            index.add(_to_numpy(vectors))
        except RuntimeError:
            return FaissIndex(all_vectors, factory).set(settings)
        return self._of(faiss, all_vectors, index).set(settings)

    @property
    def settings(self) -> SearchSettings:
        """What the index searches with now."""
        lists, graph = _lists_of(self.faiss_index), _graph_of(self.faiss_index)
        found = (None if lists is None else int(lists.nprobe), None if graph is None else int(graph.efSearch))
        known = self._recall is not None and self._recall[:2] == found
        return SearchSettings(*found, self._recall[2] if known and self._recall is not None else None)

    def set(self, settings: SearchSettings) -> FaissIndex:
        """Take settings over, those that are not None.

        Raises:
            InputError: The index has no such setting, or the value is out of range.
        """
        lists, graph = _lists_of(self.faiss_index), _graph_of(self.faiss_index)
        if settings.nprobe is not None:
            if lists is None:
                raise InputError(f"nprobe: expected an index with inverted lists (IVF...), found nprobe={settings[0]}")
            lists.nprobe = min(check_index(settings.nprobe, "nprobe", 1, 2**31 - 1, "lists"), int(lists.nlist))
        if settings.ef_search is not None:
            if graph is None:
                raise InputError(f"ef_search: expected an index with a graph (HNSW), found ef_search={settings[1]}")
            graph.efSearch = check_index(settings.ef_search, "ef_search", 1, 2**31 - 1, "candidates")
        if settings.recall is not None:
            self._recall = (*self.settings[:2], settings.recall)
        return self

    def measure(self, sample: Sample) -> float:
        """Measure and note which share of sampled queries finds its nearest vector with the present settings."""
        distances, _ = self.search(sample.queries, sample.k)
        right = distances[:, -1] <= sample.distances.to(distances.device) * (1 + 1e-5)
        recall = float(right.double().mean())
        self._recall = (*self.settings[:2], recall)
        return recall

    def tune(self, sample: Sample) -> None:
        """Search as thoroughly as it takes to find 99 % of the sample's nearest vectors, if more effort brings more."""
        lists, graph = _lists_of(self.faiss_index), _graph_of(self.faiss_index)
        largest = int(lists.nlist) if lists is not None else min(len(self._vectors), _LARGEST_EF) if graph else 0
        effort, recall = min(_FIRST_EFFORT, largest), -1.0
        while largest:
            self.set(SearchSettings(effort if lists is not None else None, effort if lists is None else None))
            before, recall = recall, self.measure(sample)
            if recall >= _WANTED_RECALL or effort >= largest:
                return
            if recall - before < _LEAST_GAIN and self._more > 1:
                return  # it is the codes that do not tell these vectors apart
            effort = min(2 * effort, largest)
        self.measure(sample)

    def search(self, queries: ArrayLike, k: int) -> tuple[Tensor, Tensor]:
        """Return distances float32 (Q, k) and rows int64 (Q, k), nearest first."""
        rows = as_features(queries, "queries")
        dim = self._vectors.shape[1]
        if rows.shape[1] != dim:
            raise InputError(f"queries: expected {dim} columns as in the bank, found {rows.shape[1]}")
        check_index(k, "k", 1, len(self._vectors), "the number of vectors in the bank")
        check_finite(rows, "queries")
        _faiss()
        _, found = self.faiss_index.search(_to_numpy(rows), min(len(self._vectors), self._more * k))
        distances, indices = self._true_distances(rows, torch.from_numpy(found), k)
        short = (indices < 0).any(1)
        if bool(short.any()):
            exact = exact_search(rows[short].to(self._vectors.device), self._vectors, k)
            distances[short], indices[short] = exact[0].to(rows.device), exact[1].to(rows.device)
        return distances, indices

    def _true_distances(self, queries: Tensor, found: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the k nearest of the rows that were found, (Q, F) -> (Q, k), on the queries' device."""
        if len(found) and int(found.max()) >= len(self._vectors):
            raise FormatError("faiss_index: altered, it names vectors that the bank does not have")
        distances = torch.empty(len(queries), k, dtype=torch.float32, device=queries.device)
        indices = torch.empty(len(queries), k, dtype=torch.int64, device=queries.device)
        step = max(1, _BLOCK_BYTES // (8 * found.shape[1] * queries.shape[1]))
        for first in range(0, len(queries), step):
            block = slice(first, first + step)
            rows = found[block].sort(dim=1).values.to(queries.device)  # equal distances: lowest row first
            gaps = self.gather(rows.clamp(min=0)).double() - queries[block, None].double()
            exact = gaps.square_().sum(-1).sqrt_().masked_fill_(rows < 0, torch.inf)
            order = exact.sort(dim=1, stable=True)
            distances[block] = order.values[:, :k].float()
            indices[block] = rows.gather(1, order.indices)[:, :k]
        return distances, indices

    def gather(self, rows: Tensor) -> Tensor:
        """Return vectors by number: int64 (...) -> (..., D) on the device of ``rows``."""
        return self._vectors[rows.to(self._vectors.device)].to(rows.device)

    def neighbors(self, rows: Tensor, k: int) -> Tensor:
        """Return the k exact nearest vectors of the bank's own ``rows``: int64 (Q, k)."""
        own = self._vectors[rows.to(self._vectors.device)]
        return exact_search(own, self._vectors, k)[1].to(rows.device)


def check_factory(factory: str, n_vectors: int, dim: int) -> None:
    """Refuse what FAISS could not build, and what would take memory out of all proportion to the bank.

    Raises:
        InputError: More lists or codes than vectors, or numbers out of any use.
    """
    expected = f"index: expected 'exact' or a FAISS factory string for {n_vectors} vectors of {dim} dimensions"
    if len(factory) > _LONGEST_FACTORY:
        raise InputError(f"{expected}, found {len(factory)} characters")
    if not factory.isascii() or not factory.isprintable():
        raise InputError(f"{expected}, found {factory!r}")
    for number in re.findall(r"IVF(\d+)", factory):
        if int(number) > n_vectors:
            raise InputError(f"{expected}, found {factory!r} with {number} lists; a list needs at least one vector")
    limits = {  # FAISS allocates these at once, whatever the number of vectors
        r"IMI\d+x(\d+)": min(12, max(1, n_vectors.bit_length())),
        r"(?:PQ|RQ|LSQ)\d+x(\d+)": max(12, n_vectors.bit_length()),
        r"(?:IVF)?(\d+)": max(n_vectors, 4 * dim, 1024),
    }
    for pattern, largest in limits.items():
        for number in re.findall(pattern, factory):
            if len(number) > 12 or int(number) > largest:
                raise InputError(f"{expected}, found {factory!r} with {number}, more than {largest}")


def make_faiss(factory: str, dim: int, n_vectors: int) -> Any:
    """Make an empty FAISS index of a factory string, to hold ``n_vectors`` Euclidean vectors.

    Raises:
        MissingExtraError: FAISS is not installed.
        InputError: FAISS does not know the string, or cannot build it for so many vectors.
    """
    check_factory(factory, n_vectors, dim)
    faiss = _faiss()
    try:
        return faiss.index_factory(dim, factory, faiss.METRIC_L2)
    except RuntimeError as error:
        raise InputError(
            f"index: expected 'exact' or a FAISS factory string for {dim} dimensions, found {factory!r}"
        ) from error


def _lists_of(index: Any) -> Any:
    """Return the inverted file within an index, None if there is none."""
    faiss = _faiss()
    if _is_on_gpu(faiss, index):
        return index if hasattr(index, "nprobe") else None
    return faiss.try_extract_index_ivf(index)


def _graph_of(index: Any) -> Any:
    """Return the parameters of the HNSW graph within an index (not those of an inverted file's centres)."""
    faiss = _faiss()
    while index is not None and not _is_on_gpu(faiss, index):
        if isinstance(index, faiss.IndexHNSW):
            return index.hnsw
        inner = getattr(index, "base_index", None) or getattr(index, "index", None)  # refined, or transformed first
        index = None if inner is None else faiss.downcast_index(inner)
    return None


def _is_on_gpu(faiss: Any, index: Any) -> bool:
    return hasattr(faiss, "GpuIndex") and isinstance(index, faiss.GpuIndex)


def _distances_differ(index: Any, vectors: Tensor) -> bool:
    """Whether FAISS's distances are other than the Euclidean ones to the vectors: of codes, projections, directions."""
    few = vectors[:: max(1, len(vectors) // 16)][:16].detach().cpu()
    queries = (few + few.roll(1, 0)) / 2 if len(few) > 1 else few * 1.5 + 1
    squared, found = index.search(_to_numpy(queries), 1)
    there = torch.from_numpy(found[:, 0]) >= 0
    named = vectors[torch.from_numpy(found[:, 0])[there].to(vectors.device)].detach().cpu().double()
    exact = (named - queries[there].double()).square().sum(1)
    scale = named.square().sum(1) + queries[there].double().square().sum(1)
    return bool(((exact - torch.from_numpy(squared[:, 0])[there].double()).abs() > 1e-4 * scale).any())


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise MissingExtraError("faiss", "faiss", "a FAISS index") from error
    # FAISS brings an OpenMP runtime of its own: keep it to the threads that PyTorch was given.
    faiss.omp_set_num_threads(torch.get_num_threads())
    return faiss


def _to_gpu(faiss: Any, index: Any) -> Any:
    """Move an index to the first GPU, unless there is none or FAISS has no GPU version of it."""
    if not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() == 0:
        return index
    try:
        return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
    except RuntimeError:
        return index


def _to_numpy(rows: Tensor) -> np.ndarray:
    return array_of(rows.detach().cpu().contiguous())


def _reason(error: Exception) -> str:
    """Return the text of a FAISS message, written 'Error in FUNCTION at FILE:LINE: Error: CONDITION failed: TEXT'."""
    text = re.sub(r"^.*?\.\w+:\d+: ", "", " ".join(str(error).split()))
    return text.rsplit("failed: ", 1)[-1][:200]
