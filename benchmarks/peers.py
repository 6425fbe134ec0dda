"""The contestants that mmad-bank is measured against. One that is not installed is None, never an error."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
import os
import sys
import time
import types
from collections.abc import Callable, Container, Iterable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from mmad_bank import _core

# ---------------------------------------------------------------------------------------------------------------------
# Selection


def project_sparsely(features: np.ndarray, seed: int = 0) -> Tensor:
    """Project to the Johnson-Lindenstrauss dimension for eps 0.9 with scikit-learn, as M3DM and BTF do."""
    from sklearn.random_projection import SparseRandomProjection

    return torch.from_numpy(SparseRandomProjection(eps=0.9, random_state=seed).fit_transform(features))


def greedy_loop(features: Tensor, n_select: int, start: int = 0) -> Tensor:
    """Select with the loop that the field's published code runs: all distances to the latest pick, one pick at a time.

    It is M3DM's and BTF's selection in float32 on the CPU; their float16 is meant for a GPU.
    """
    picks = torch.empty(n_select, dtype=torch.int64)
    picks[0] = start
    nearest = torch.full((len(features),), torch.inf)
    for i in range(1, n_select):
        distances = torch.linalg.norm(features - features[picks[i - 1]], dim=1)
        nearest = torch.minimum(nearest, distances)
        nearest[picks[i - 1]] = 0.0
        picks[i] = torch.argmax(nearest)
    return picks


def anomalib_k_center_greedy() -> AnomalibSelection | None:
    """Return anomalib's own KCenterGreedy, or None without anomalib.

    Importing it the usual way runs anomalib's package code, which needs Lightning and a dozen more packages that the
    selection does not. So its two files, the selection and the random projection, are loaded by path, with a stand-in
    for the one package that the first imports from the second. The classes themselves are untouched.
    """
    spec = importlib.util.find_spec("anomalib")
    if spec is None or not spec.submodule_search_locations:
        return None
    components = Path(spec.submodule_search_locations[0]) / "models" / "components"
    try:
        projection = _load(components / "dimensionality_reduction" / "random_projection.py")
        with _stand_in("anomalib.models.components.dimensionality_reduction", projection):
            return AnomalibSelection(_load(components / "sampling" / "k_center_greedy.py"))
    except ImportError:
        return None


class AnomalibSelection:
    """Runs anomalib's ``KCenterGreedy.select_coreset_idxs`` and tells its preparation and its loop apart.

    The module's progress bar is replaced by a function that notes when the loop begins, and shows nothing.
    """

    def __init__(self, module: types.ModuleType) -> None:
        self._class = module.KCenterGreedy
        self._loop_began = 0.0
        module.tqdm = self._note  # type: ignore[attr-defined]

    def _note(self, picks: Iterable[int], **_: object) -> Iterable[int]:
        self._loop_began = time.perf_counter()
        return picks

    def seconds(self, features: Tensor, n_select: int) -> tuple[float, float]:
        """Select, and return the seconds of the preparation (the projection) and of the loop."""
        torch.manual_seed(0)
        sampler = self._class(features, 1.0)
        sampler.coreset_size = n_select
        begin = time.perf_counter()
        sampler.select_coreset_idxs()
        return self._loop_began - begin, time.perf_counter() - self._loop_began


def _load(path: Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(f"_anomalib_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ImportError(f"{path}: no such module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def _stand_in(name: str, module: types.ModuleType) -> Any:
    """Put ``module`` in the place of the package ``name``, and empty packages in those above it, for a while."""
    parts = name.split(".")
    names = [".".join(parts[: i + 1]) for i in range(len(parts))]
    before = {key: sys.modules.get(key) for key in names}
    sys.modules.update({key: types.ModuleType(key) for key in names[:-1]})
    sys.modules[name] = module
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del sys.modules[key]
            else:
                sys.modules[key] = value


# ---------------------------------------------------------------------------------------------------------------------
# Search

Search = Callable[..., np.ndarray]
"""Queries (Q, D) and k in, bank rows (Q, k) out."""
Peer = TypeVar("Peer")


@dataclass
class Searcher:
    """A peer with its bank prepared: what searches, and how long the preparation took."""

    search: Search
    build_s: float


def _installed(build: Callable[[], Peer]) -> Peer | None:
    """Return what is built, or None where its package is not installed."""
    try:
        return build()
    except ImportError:
        return None


def _prepared(build: Callable[[], Search]) -> Searcher | None:
    begin = time.perf_counter()
    search = _installed(build)
    return search and Searcher(search, time.perf_counter() - begin)


@dataclass
class Graph:
    """A graph index that vectors are added to: what adds, what searches, how many it holds, how long adding took."""

    add: Callable[[np.ndarray], object]
    search: Search
    size: int = 0
    build_s: float = 0.0

    def grow(self, bank: np.ndarray) -> Searcher:
        """Add what the index has not of a bank (M, D) whose first vectors it holds."""
        begin = time.perf_counter()
        self.add(bank[self.size :])
        self.build_s += time.perf_counter() - begin
        self.size = len(bank)
        return Searcher(self.search, self.build_s)


FLAT, HNSWLIB, USEARCH = "faiss IndexFlatL2", "hnswlib (approximate)", "usearch (approximate)"
FAISS_GRAPH = "faiss HNSW"
PROBES = (1, 8, 32)
CORE_TYPES = {"amx": "SkylakeX", "avx512": "SkylakeX", "avx2": "Haswell"}
"""Names of processors by their sets of instructions, as OpenBLAS spells them; it has no AMX product of float32."""


def searchers(bank: np.ndarray, threads: int, names: Container[str] | None = None) -> dict[str, Searcher | None]:
    """Prepare all peers, or those of some names, for a bank (M, D) float32; None for one that is not installed."""
    builders: dict[str, Callable[[], Search]] = {
        FLAT: lambda: _faiss_flat(bank, threads),
        "torch.cdist + topk": lambda: _torch_cdist(bank),
        "scikit-learn brute": lambda: _sklearn_brute(bank, threads),
    }
    found = {name: _prepared(build) for name, build in builders.items() if names is None or name in names}
    wanted = [name for name in (HNSWLIB, USEARCH) if names is None or name in names]
    empty = graphs(bank.shape[1], len(bank), threads, wanted)
    return {**found, **{name: graph and graph.grow(bank) for name, graph in empty.items()}}


def inverted_files(bank: np.ndarray, threads: int) -> dict[str, Searcher | None]:
    """Prepare FAISS's inverted file, with several numbers of probed lists."""
    inverted = _prepared(lambda: _faiss_ivf(bank, threads))
    return {f"faiss IVF, nprobe {probes}": inverted and _probing(inverted, probes) for probes in PROBES}


def graphs(
    dim: int, room: int, threads: int, names: Sequence[str] = (HNSWLIB, USEARCH, FAISS_GRAPH)
) -> dict[str, Graph | None]:
    """Make empty graph indices with room for so many vectors; None for one that is not installed."""
    builders: dict[str, Callable[[], Graph]] = {
        HNSWLIB: lambda: _hnswlib(dim, room, threads),
        USEARCH: lambda: _usearch(dim, threads),
        FAISS_GRAPH: lambda: _faiss_hnsw(dim, threads),
    }
    return {name: _installed(builders[name]) for name in names}


def import_peers() -> None:
    """Load the peers of the search that are installed: a thread pool that comes later would not be set."""
    with suppress(ImportError):
        _load_faiss()
    for name in ("sklearn.neighbors", "hnswlib", "usearch"):
        with suppress(ImportError):
            importlib.import_module(name)


def import_faiss(threads: int) -> Any:
    """Return FAISS, held to so many threads."""
    faiss = _load_faiss()
    faiss.omp_set_num_threads(threads)
    return faiss


def _load_faiss() -> Any:
    """Return FAISS.

    Its wheel's OpenBLAS falls back to SSE on processors that are newer than itself, which makes the matrix product
    several times slower. It reads the instructions from the environment, once, when it is loaded.
    """
    told, known = os.environ.get("OPENBLAS_CORETYPE"), CORE_TYPES.get(_core.active_isa())
    try:
        if told is None and known is not None:
            os.environ["OPENBLAS_CORETYPE"] = known
        import faiss
    finally:
        if told is None:
            os.environ.pop("OPENBLAS_CORETYPE", None)
    return faiss


def _faiss_flat(bank: np.ndarray, threads: int) -> Search:
    faiss = import_faiss(threads)
    index = faiss.IndexFlatL2(bank.shape[1])
    index.add(bank)
    return lambda queries, k: index.search(queries, k)[1]


def _faiss_ivf(bank: np.ndarray, threads: int) -> Search:
    """Return the search of an inverted file of 4 √M lists, the fewest that FAISS's guidelines advise."""
    faiss = import_faiss(threads)
    quantizer = faiss.IndexFlatL2(bank.shape[1])
    index = faiss.IndexIVFFlat(quantizer, bank.shape[1], round(4 * math.sqrt(len(bank))))
    index.cp.min_points_per_centroid = 1  # small banks are asked about too: no warning
    index.train(bank)
    index.add(bank)

    def search(queries: np.ndarray, k: int, probes: int = 1) -> np.ndarray:
        index.nprobe = probes
        return index.search(queries, k)[1]

    return search


def _probing(inverted: Searcher, probes: int) -> Searcher:
    return Searcher(functools.partial(inverted.search, probes=probes), inverted.build_s)


def _faiss_hnsw(dim: int, threads: int) -> Graph:
    faiss = import_faiss(threads)
    index = faiss.IndexHNSWFlat(dim, 16)
    index.hnsw.efConstruction, index.hnsw.efSearch = 200, 64
    return Graph(index.add, lambda queries, k: index.search(queries, k)[1])


def _torch_cdist(bank: np.ndarray) -> Search:
    vectors = torch.from_numpy(bank)

    def search(queries: np.ndarray, k: int) -> np.ndarray:
        distances = torch.cdist(torch.from_numpy(queries), vectors)
        if k == 1:
            return distances.argmin(dim=1, keepdim=True).numpy()
        return distances.topk(k, largest=False).indices.numpy()

    return search


def _sklearn_brute(bank: np.ndarray, threads: int) -> Search:
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(algorithm="brute", n_jobs=threads).fit(bank)
    return lambda queries, k: index.kneighbors(queries, k, return_distance=False)


def _hnswlib(dim: int, room: int, threads: int) -> Graph:
    import hnswlib

    index = hnswlib.Index(space="l2", dim=dim)
    index.init_index(max_elements=room, M=16, ef_construction=200, random_seed=0)
    index.set_num_threads(threads)
    index.set_ef(64)
    return Graph(index.add_items, lambda queries, k: index.knn_query(queries, k)[0].astype(np.int64))


def _usearch(dim: int, threads: int) -> Graph:
    from usearch.index import Index

    index = Index(ndim=dim, metric="l2sq", dtype="f32")

    def add(rows: np.ndarray) -> None:
        index.add(np.arange(len(index), len(index) + len(rows)), rows, threads=threads)

    def search(queries: np.ndarray, k: int) -> np.ndarray:
        return index.search(queries, k, threads=threads).keys.astype(np.int64).reshape(len(queries), k)

    return Graph(add, search)
