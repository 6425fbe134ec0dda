"""Part of the methods: M3DM and CFM end to end at the papers' sizes, with random weights."""

from __future__ import annotations

import statistics
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from common import Column, Table

from gpu_parts.measuring import Report, last_words
from mmad_bank import MemoryBank, MultiBank, bench
from mmad_bank._internal import sections
from mmad_bank.bench import Inference
from mmad_bank.methods import Method
from mmad_bank.methods.bank_method import BankMethod

BATCH = 8
IMAGES = 2  # that a method is fitted on, before its banks are replaced by ones of the papers' sizes
SMALL_VECTORS, SMALL_BATCH = 300, 2
_NOISE = 0.1  # of the new vectors, in standard deviations of the features


CFM = "CFM"


@dataclass(frozen=True)
class Contestant:
    """A method, and the vectors of its banks."""

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    vectors: Mapping[str, int] = field(default_factory=dict)


CONTESTANTS: dict[str, Contestant] = {
    CFM: Contestant("cfm"),
    "M3DM, banks of 76 518, 7 652, 7 652": Contestant("m3dm", {}, {"xyz": 76_518, "rgb": 7_652, "fusion": 7_652}),
    "M3DM, small (28×28), banks of 19 129": Contestant(
        "m3dm", {"grid": (28, 28)}, dict.fromkeys(("xyz", "rgb", "fusion"), bench.SMALL_VECTORS)
    ),
    "M3DM, banks of 76 518, 19 129, 76 518": Contestant(
        "m3dm", {}, {"xyz": 76_518, "rgb": bench.SMALL_VECTORS, "fusion": 76_518}
    ),
}
"""By name. The second has grids and banks as in the published code, the third those of the paper's sentences, and the
fourth a tenth of all patches in each bank."""


def run_methods(report: Report) -> None:
    """Time each method in turn with CFM, stage by stage, one image and a batch at a time, and note their memory."""
    speed = report.table("M3DM and CFM, end to end", _SPEED, *_NOTES, headline=True)
    stages = report.table("Milliseconds by stage", [Column("method", "method"), *_STAGES])
    for kind in ("float32",) if report.sizes.small else ("bfloat16", "float32"):
        cfm: Method | None = None
        for name, method in contestants(kind, report):
            if name == CFM:
                cfm = method
            else:
                _measure(report, speed, stages, kind, {name: method} if cfm is None else {CFM: cfm, name: method})


_SPEED = [
    Column("method", "method"), Column("fps", "fps", ".2f"), Column("fps_batch", f"fps, batch {BATCH}", ".2f"),
    Column("times_cfm", "× CFM's fps", ".2f"), Column("median_ms", "ms", ".2f"),
    Column("memory_mb", "MB", ".0f"), Column("banks_mb", "MB of banks", ".0f"), Column("peak_mb", "MB at peak", ".0f"),
]  # fmt: skip
_STAGES = [
    Column("rgb", "RGB features", ".2f"), Column("xyz", "point features", ".2f"), Column("fusion", "fusion", ".2f"),
    Column("mappings", "mappings", ".2f"), Column("search", "search and scores", ".2f"),
    Column("decision", "decision and map", ".2f"), Column("other", "other", ".2f"),
]  # fmt: skip
_KEYS = {
    "rgb": sections.features_of("rgb"), "xyz": sections.features_of("xyz"), "fusion": sections.FUSION,
    "mappings": sections.MAPPINGS, "search": sections.SEARCH, "decision": sections.DECISION, "other": sections.OTHER,
}  # fmt: skip
_NOTES = (
    "From prepared samples in host memory to image score and map; the device is waited for behind every stage."
    " Each method takes turns with CFM, whose rows are therefore several. ViT-B/8 at 224×224 and Point-MAE with 1024"
    " groups of 128 points, random weights.",
    "Banks hold mixtures of features of these networks with noise, as many as the papers' banks; they are no coresets."
    " Patches: 56×56 of points and fused, 28×28 of RGB, or 28×28 of all (small).",
    "MB: parameters, banks, and what a batch of one allocates beyond (CFM's protocol). At peak: with all that were made"
    " before on the device.",
    "As published on an RTX 4090 (CFM, table 5): M3DM 0.514 fps, CFM 21.755 fps.",
)


def contestants(kind: str, report: Report) -> Iterator[tuple[str, Method]]:
    """Make the contestants that run, one after the other; of one that does not, the table of targets says why.

    Those that differ in their banks' sizes share a fit.
    """
    fitted = dict[str, Method]()
    for name, own in CONTESTANTS.items():
        same = f"{own.method} {dict(own.settings)}"
        began = time.perf_counter()
        try:
            if same not in fitted:
                fitted[same] = _fitted(own, kind, report)
            method = _with_banks(fitted[same], own.vectors, report.sizes.small)
            method.predict_batch(bench.samples_for(method, 1, seed=1))
        except Exception as error:
            traceback.print_exc()
            report.target(f"{name}, {kind}", "runs", last_words(error), False)
            continue
        print(f"made: {name}, {kind}, in {time.perf_counter() - began:.1f} s", flush=True)
        yield name, method


def _fitted(own: Contestant, kind: str, report: Report) -> Method:
    """Fit a method on a few images, with small banks."""
    with tempfile.TemporaryDirectory(prefix="mmad-bank-gpu-") as folder:
        return bench.make_method(
            own.method, Path(folder), settings=own.settings, images=IMAGES, vectors=SMALL_VECTORS,
            small=report.sizes.small, device=report.device, compute_dtype=kind,
        )  # fmt: skip


def _with_banks(fitted: Method, vectors: Mapping[str, int], small: bool) -> Method:
    """Put banks of other sizes in the place of a method's own."""
    method = fitted.with_arguments()
    if isinstance(method, BankMethod):
        sizes = dict.fromkeys(vectors, SMALL_VECTORS) if small else vectors
        method.banks_ = MultiBank({name: _grown(bank, sizes[name]) for name, bank in method.banks_.items()})
    return method


def _grown(bank: MemoryBank, size: int) -> MemoryBank:
    """Return a bank of ``size`` vectors: mixtures of three of a bank's with noise.

    A coreset holds no near copies of a vector, so the vectors must not be copies with noise: the search would have to
    decide between hundreds of them in float64.
    """
    vectors = torch.as_tensor(bank.vectors)
    generator = torch.Generator(vectors.device).manual_seed(0)
    drawn = torch.randint(len(vectors), (3, size), generator=generator, device=vectors.device)
    shares = torch.rand(3, size, generator=generator, device=vectors.device).log_()  # uniform over the triangle
    shares /= shares.sum(0)
    rows = sum(share[:, None] * vectors[own] for share, own in zip(shares, drawn, strict=True))
    noise = torch.randn(size, bank.dim, generator=generator, device=vectors.device)
    return MemoryBank(
        rows + _NOISE * vectors.std() * noise, standardization=bank.standardization, extractor=bank.extractor
    )


def _measure(report: Report, speed: Table, stages: Table, kind: str, methods: Mapping[str, Method]) -> None:
    rounds = 1 if report.sizes.small else report.rounds
    batch = SMALL_BATCH if report.sizes.small else BATCH
    results = bench.measure(methods, rounds=rounds, batches=(1, batch))
    cfm = next((one for one in results if one.name == CFM), None)
    for one in results:
        _note_memory(one, methods[one.name], report.device)
        ratio = _times(cfm, one)
        peak = one.peak and one.peak / 1e6
        report.row(
            speed, method=f"{one.name}, {kind}", fps=one.fps, fps_batch=one.throughput[batch], times_cfm=ratio,
            median_ms=one.median * 1e3, memory_mb=one.memory / 1e6, banks_mb=one.banks / 1e6, peak_mb=peak,
            latencies=one.latencies,
        )  # fmt: skip
        split = {key: one.stages[name] * 1e3 for key, name in _KEYS.items() if name in one.stages}
        report.row(stages, method=f"{one.name}, {kind}", **split)
        if one is not cfm and ratio is not None:
            report.target(f"frame rate of {one.name}, {kind}", "at least CFM's", f"{ratio:.2f} ×", ratio >= 1)


def _times(cfm: Inference | None, one: Inference) -> float | None:
    return None if cfm is None else statistics.median(a / b for a, b in zip(cfm.latencies, one.latencies, strict=True))


def _note_memory(one: Inference, method: Method, device: str) -> None:
    """Note what an image allocates beyond what is there already, and the peak with it."""
    if not device.startswith("cuda"):
        return
    samples = bench.samples_for(method, 1, seed=1)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    method.predict_batch(samples)
    one.peak = torch.cuda.max_memory_allocated()
    one.activations = one.peak - before
