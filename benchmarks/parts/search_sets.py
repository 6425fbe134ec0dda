"""One search with the instruction set of this process: mmad-bank and FAISS's IndexFlatL2, alternating.

Run as a program it is the measured process itself: one JSON argument in, one JSON line out. The environment holds the
sets of instructions: MMAD_BANK_ISA for this project, FAISS_OPT_LEVEL for FAISS and OPENBLAS_CORETYPE for the matrix
product in it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from common import Contestant, alternate, set_threads
from inputs import extract_768, search_set, widening
from peers import CORE_TYPES, FLAT, searchers

import mmad_bank as mb
from mmad_bank import _core
from mmad_bank.synthetic import textures
from parts.process import run_fresh

SETS = {
    isa: {"MMAD_BANK_ISA": isa, "FAISS_OPT_LEVEL": level, "OPENBLAS_CORETYPE": CORE_TYPES[isa]}
    for isa, level in {"amx": "avx512", "avx512": "avx512", "avx2": "avx2"}.items()
}
"""What holds both sides to a set of instructions."""
PUBLISHED = {"xyz": (3136, 76518, 1152), "rgb": (784, 7652, 768), "fusion": (3136, 7652, 1920)}
"""Queries, bank and dimensions of M3DM's published run on bagel."""
NAMES = ("one image", *PUBLISHED)


def rows_of(isa: str, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Measure in a fresh process with a set of instructions; an empty list where the processor lacks it.

    It is asked before: OpenBLAS believes OPENBLAS_CORETYPE and dies of the first instruction that is not there.
    """
    if isa not in mb.ops.system_info()["cpu"]["can run"]:
        return []
    return run_fresh("search_sets", dict(options), SETS[isa])["rows"]


def published_set(name: str, *, quick: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return a bank and queries of the sizes of M3DM's published run: real features, of two textures.

    xyz: a brick's features at 56×56, turned to 1152 dimensions; rgb: gravel's at 28×28; fusion: both side by side,
    gravel's repeated. The bank is drawn at random from the patches of its images.
    """
    n_queries, n_bank, dim = PUBLISHED[name]
    grid = 28 if name == "rgb" else 56
    n_bank, n_images = (300, 1) if quick else (n_bank, -(-n_bank // grid**2))
    bank = _patches(name, textures.texture_images(n_images, texture="brick"), textures.texture_images(n_images))
    test = [textures.texture_images(1, texture=texture, split="test") for texture in ("brick", "gravel")]
    chosen = np.sort(np.random.default_rng(0).permutation(len(bank))[:n_bank])
    queries = _patches(name, *test)[: 98 if quick else n_queries]
    assert queries.shape[1] == dim
    return np.ascontiguousarray(bank[chosen]), np.ascontiguousarray(queries)


def _patches(name: str, bricks: np.ndarray, gravel: np.ndarray) -> np.ndarray:
    if name == "rgb":
        return extract_768(gravel)
    xyz = extract_768(bricks, (56, 56)) @ widening(768, 1152)
    if name == "xyz":
        return xyz
    rgb = extract_768(gravel).reshape(-1, 28, 28, 768).repeat(2, 1).repeat(2, 2).reshape(-1, 768)
    return np.concatenate([xyz, rgb], 1)


def measure(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rows of one shape with k = 1 and k = 9."""
    name, quick = arguments["name"], arguments["quick"]
    set_threads(arguments["threads"])
    if name == "one image":
        whole = search_set(*((2, 300) if quick else (244, 19129)), n_queries=98 if quick else 784)
        bank, queries = whole.bank, whole.queries["good"]
    else:
        bank, queries = published_set(name, quick=quick)
    index, flat = mb.ops.SearchIndex(bank), searchers(bank, arguments["threads"], [FLAT])[FLAT]
    rows = []
    for k in (1, 9):
        contestants: dict[str, Contestant] = {"auto": lambda k=k: index.search(queries, k)}
        if flat is not None:
            contestants["faiss"] = lambda k=k: flat.search(queries, k)
        timings = alternate(contestants, arguments["rounds"], warmup=0 if quick else 1)
        row = {"name": f"{name}: {len(queries)} × {len(bank)} × {bank.shape[1]}", "k": k, "isa": _core.active_isa()}
        row["auto_ms"] = timings.of("auto")["median"] * 1e3
        if flat is not None:
            row |= {"faiss_ms": timings.of("faiss")["median"] * 1e3, "times": timings.ratio("faiss", "auto")}
        row["exact"] = _verdict(index.search(queries, k), bank, queries, k)
        rows.append(row)
    return {"rows": rows}


def _verdict(found: tuple[torch.Tensor, torch.Tensor], bank: np.ndarray, queries: np.ndarray, k: int) -> str:
    """Compare with float64 brute force, on every query of one image and on every sixteenth of the large sets."""
    from parts.search import brute_force

    step = 1 if len(queries) * len(bank) < 2e7 else 16
    truth = brute_force(queries[::step], bank, k)
    wrong = int((found[1].numpy()[::step] != truth).any(1).sum())
    return "all equal" if wrong == 0 else f"{wrong} of {len(truth)} queries differ"


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
