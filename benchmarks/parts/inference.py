"""Frames per second, time by stage and memory of all methods at the papers' sizes, in one run; weights are random.

The sizes are those of the published runs: M3DM has 56×56 patches of points and of fused features, 28×28 of RGB, and
banks of 76 518, 7 652 and 7 652 vectors (bagel). What the literal reading of its paper has stands beside it as a small
one: 28×28 patches and 19 129 vectors in each bank. Beside M3DM stands its plain rendering (plain.py): same networks,
same banks, scored as it usually is.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from common import Column, Table, chosen, precision_for, working_folder
from contestants import CONTESTANTS, Contestant, Contestants
from plain import PlainM3DM

from mmad_bank import bench
from mmad_bank._internal import sections
from mmad_bank.bench import Inference
from mmad_bank.evaluation import FUSED
from mmad_bank.methods import Method

PLAIN = "M3DM, plain PyTorch"
BATCHES = (1, 4)
_SCORING = (sections.SEARCH, sections.DECISION)
_SMALL = {"images": 2, "vectors": 300, "small": True}
_PROGRAM = (str(Path(__file__).resolve().parent.parent / "plain.py"),)


def check(arguments: argparse.Namespace) -> None:
    """Refuse arguments that this part cannot take.

    Raises:
        InputError: There is one.
    """
    chosen(CONTESTANTS, arguments.methods)


def run(arguments: argparse.Namespace, limits: Mapping[str, float]) -> list[Table]:
    """Make the methods, time them in turn, and measure their memory one by one."""
    precision = precision_for(arguments.precision, limits)
    names = chosen(CONTESTANTS, arguments.methods)
    with working_folder(arguments.workdir, "inference") as folder:
        methods, setup = _make({name: CONTESTANTS[name] for name in names}, folder, arguments, precision)
        results = bench.measure(methods, rounds=_rounds(arguments), batches=BATCHES, report=_say)
        _measure_memory(results, methods)
        agreement = _agreement(methods["M3DM"], methods[PLAIN]) if PLAIN in methods else []
    by_name = {result.name: result for result in results}
    vectors = {name: " + ".join(f"{n:,}" for n in bench.banks_of(one).values()) for name, one in methods.items()}
    title = f"{_size(arguments)}, {precision}, random weights"
    tables = [_speed(title, results, vectors), _stages(title, results), _memory(title, results)]
    if agreement:
        tables.append(_engine(title, agreement))
    if {"M3DM", "CFM"} <= set(by_name):
        tables.append(_targets(by_name, agreement))
    tables.append(_setup(setup, arguments))
    return tables


def measured(
    contestants: Mapping[str, Contestant], arguments: argparse.Namespace, limits: Mapping[str, float], folder: Path
) -> list[Inference]:
    """Measure speed and memory of some contestants, as the benchmark does with its own."""
    methods, _ = _make(contestants, folder, arguments, precision_for(arguments.precision, limits))
    results = bench.measure(methods, rounds=_rounds(arguments), report=_say)
    _measure_memory(results, methods)
    return results


def _rounds(arguments: argparse.Namespace) -> int:
    return 2 if arguments.quick else 2 * int(arguments.rounds)


def _measure_memory(results: list[Inference], methods: Mapping[str, Method]) -> None:
    """Measure each method's memory in a fresh process, two of them at a time: nothing is timed here."""

    def measure(result: Inference) -> None:
        plain = result.name == PLAIN
        method = methods["M3DM"] if plain else methods[result.name]
        if plain:
            result.banks = methods[PLAIN].bank_bytes  # type: ignore[attr-defined]
        with working_folder(None, "saved") as folder:
            bench.measure_memory(result, method, folder, _PROGRAM if plain else ("-m", "mmad_bank.bench"))
        _say(f"memory: {result.name}")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(measure, results))


def _size(arguments: argparse.Namespace) -> str:
    if arguments.quick:
        return "tiny networks and banks"
    of = "the papers' sizes" if arguments.images == bench.IMAGES else f"banks of {arguments.images} images"
    return f"{of}, {bench.SIZES['group_size']} points in a group"


def _make(
    known: Mapping[str, Contestant], folder: Path, arguments: argparse.Namespace, precision: str
) -> tuple[dict[str, Method], dict[str, float]]:
    sizes = _SMALL if arguments.quick else {"images": arguments.images}
    methods: dict[str, Method] = {}
    setup = {}
    contestants = Contestants(folder, known, progress=sys.stderr.isatty(), compute_dtype=precision, **sizes)
    for name in known:
        begin = time.perf_counter()
        methods[name] = contestants.make(name)
        setup[name] = time.perf_counter() - begin
        _say(f"made: {name} ({setup[name]:.0f} s)")
        if name == "M3DM":
            methods[PLAIN] = PlainM3DM.of(methods[name])
    return methods, setup


def _agreement(engine: Method, plain: Method) -> list[dict[str, Any]]:
    """Compare the scores of both on the same features: in float64, and as it is timed.

    Both sides take one image at a time: networks in bf16 round otherwise in a batch of two, and that is not scoring.
    """
    samples = bench.samples_for(engine, 2, seed=2)
    ours = [engine.predict_batch([sample])[0] for sample in samples]
    rows: dict[str, dict[str, Any]] = {}
    for in_float64 in (True, False):
        plain.in_float64 = in_float64  # type: ignore[attr-defined]
        for own, other in zip(ours, plain.predict_batch(samples), strict=True):
            pairs = [(name, part, other.parts[name]) for name, part in own.parts.items()]
            gaps = {name: (_apart(a.score, b.score), _apart(a.scores, b.scores)) for name, a, b in pairs}
            gaps[FUSED] = _apart(own.score, other.score), _apart(own.map, other.map)
            for name, (image, patch) in gaps.items():
                row = rows.setdefault(name, {"scores": name})
                for what, gap in (("image", image), ("patch", patch)):
                    key = what if in_float64 else f"{what}_timed"
                    row[key] = max(gap, row.get(key, 0.0))
    return list(rows.values())


def _apart(own: Any, other: Any) -> float:
    """Return the largest difference, relative to the largest value."""
    a, b = (torch.as_tensor(x, dtype=torch.float64) for x in (own, other))
    return float((a - b).abs().max() / b.abs().max())


def _speed(title: str, results: list[Inference], vectors: Mapping[str, str]) -> Table:
    table = Table(
        f"Inference, end to end: {title}",
        [
            Column("method", "method"), Column("vectors", "vectors"), Column("fps", "fps", ".2f"),
            Column("times_cfm", "× CFM's fps", ".2f"), Column("median_ms", "median ms", ".0f"),
            Column("p95_ms", "p95 ms", ".0f", detail=True), Column("p99_ms", "p99 ms", ".0f", detail=True),
            *(Column(f"fps_{b}", f"fps, batch {b}", ".2f") for b in BATCHES if b > 1), Column("memory_mb", "MB", ".0f"),
        ],
        headline=True,
    )  # fmt: skip
    reference = next((result for result in results if result.name == "CFM"), None)
    for one in results:
        ratios = [a / b for a, b in zip(reference.latencies, one.latencies, strict=True)] if reference else []
        table.rows.append({
            "method": one.name, "vectors": vectors[one.name] or None, "fps": one.fps,
            "times_cfm": statistics.median(ratios) if ratios else None,
            "median_ms": one.median * 1e3, "p95_ms": one.quantile(0.95) * 1e3, "p99_ms": one.quantile(0.99) * 1e3,
            **{f"fps_{b}": value for b, value in one.throughput.items()}, "memory_mb": one.memory / 1e6,
            "median_s": one.median, "p95_s": one.quantile(0.95), "p99_s": one.quantile(0.99), "stages": one.stages,
            "latencies": one.latencies, "fps_batch": {str(b): value for b, value in one.throughput.items()},
            "memory_bytes": one.memory, "weights_bytes": one.weights, "banks_bytes": one.banks,
            "activations_bytes": one.activations, "peak_bytes": one.peak,
        })  # fmt: skip
    table.notes = [
        "From prepared arrays in memory to image score and map; contestants alternate, one image of each per round."
        " All have the extractors of their papers in one precision (ViT-B/8 at 224×224, Point-MAE with 1024 groups of"
        " 128 points, both cut for CFM-M, -S and -T; WideResNet-50-2; FPFH). Weights are random: the"
        " networks' speed and memory do not depend on their values.",
        "× CFM's fps: the median of the ratios within each round. MB: parameters + banks + activations.",
        "Vectors: of the banks, xyz + rgb + fusion with M3DM's three. M3DM as in its published code: 56×56 patches for"
        " points and fusion, 28×28 for RGB, a point bank of 10 % of all patches, the others of 10 % of that. Small:"
        " 28×28 patches and 10 % of them in all three, as its paper can be read. LSFA: 56×56 patches, 10 %.",
        "Banks are exact coresets of real features of these networks: point banks of all training images' patches,"
        " those of which no point is in counting once; the other banks of every fourth image's.",
    ]
    return table


def _stages(title: str, results: list[Inference]) -> Table:
    names = list(dict.fromkeys(stage for one in results for stage in one.stages if stage != sections.OTHER))
    columns = [
        Column("method", "method"),
        *(Column(name, name, ".0f") for name in names),
        Column("share", "scoring, %", ".1f"),
    ]
    table = Table(f"Milliseconds by stage: {title}", columns)
    for one in results:
        split = {name: seconds * 1e3 for name, seconds in one.stages.items()}
        table.rows.append(
            {"method": one.name, **split, "share": 100 * _scoring_share(one) if sections.SEARCH in split else None}
        )
    table.notes = [
        "Medians per stage. 'scoring': bank search, image score, decision and map, as a share of the whole time."
    ]
    return table


def _scoring_share(one: Inference) -> float:
    return sum(one.stages.get(name, 0.0) for name in _SCORING) / one.median


def _memory(title: str, results: list[Inference]) -> Table:
    keys = {
        "weights": "parameters",
        "banks": "banks",
        "activations": "activations",
        "memory": "together",
        "peak": "process",
    }
    table = Table(
        f"Memory at inference, MB: {title}",
        [Column("method", "method"), *(Column(k, h, ".0f") for k, h in keys.items())],
    )
    for one in results:
        sizes = {key: getattr(one, key) for key in keys}
        table.rows.append({"method": one.name, **{k: None if v is None else v / 1e6 for k, v in sizes.items()}})
    table.notes = [
        "Each method in a fresh process that loads it and scores an image twice. 'process' is its highest resident"
        " memory the second time, Python and PyTorch included; 'activations' is the rest of it, without them,"
        " parameters and banks.",
        "'banks' are the resident search copies; the vectors themselves are a mapped file that the system may drop."
        " What was touched of it counts under 'activations'; 8-bit banks give it back after every search.",
    ]
    return table


def _engine(title: str, agreement: list[dict[str, Any]]) -> Table:
    columns = [
        Column("scores", "scores of"), Column("image", "image scores", ".1e"), Column("patch", "patches, map", ".1e"),
        Column("image_timed", "image scores, as timed", ".1e"), Column("patch_timed", "patches, map, as timed", ".1e"),
    ]  # fmt: skip
    table = Table(f"Engine and plain rendering on the same features, apart by: {title}", columns, agreement)
    table.notes = [
        "Largest differences over two images, relative to the largest value. The plain rendering computes distances in"
        " float64 here; as it is timed, PyTorch's float32 cdist takes |a|² + |b|² - 2ab, of which little is left near"
        " zero. The engine's distances are those of float64, rounded.",
    ]
    return table


def _targets(results: Mapping[str, Inference], agreement: list[dict[str, Any]]) -> Table:
    """What the project promises, beside what this run measured."""
    cfm, own = results["CFM"], results["M3DM"]
    table = Table(
        "What was promised",
        [Column("what", "what"), Column("wanted", "wanted"), Column("measured", "measured"), Column("met", "met")],
        headline=True,
    )

    def row(what: str, wanted: str, measured: str, met: bool) -> None:
        table.rows.append({"what": what, "wanted": wanted, "measured": measured, "met": "yes" if met else "no"})

    ratio = statistics.median(a / b for a, b in zip(cfm.latencies, own.latencies, strict=True))
    row("M3DM's frame rate", "at least CFM's (aim 1.3 ×)", f"{ratio:.2f} ×", ratio >= 1)
    share = _scoring_share(own)
    row("scoring of M3DM's three banks", "under 15 % of an image's time", f"{share:.1%}", share < 0.15)
    if PLAIN in results:
        plain = results[PLAIN]
        faster = plain.stages[sections.SEARCH] / own.stages[sections.SEARCH]
        row("M3DM's scoring against the plain rendering", "at least 20 ×", f"{faster:.1f} ×", faster >= 20)
        gap = max(max(row_["image"], row_["patch"]) for row_ in agreement)
        row("scores of the two apart by", "at most 1e-4", f"{gap:.1e}", gap <= 1e-4)
    compact = results.get("M3DM, 8-bit banks", own)
    over = (compact.memory - cfm.memory) / 1e6
    row(f"memory of {compact.name}", "under CFM's + 150 MB (aim: less)", f"CFM's {over:+.0f} MB", over < 150)
    return table


def _setup(setup: Mapping[str, float], arguments: argparse.Namespace) -> Table:
    table = Table(
        f"Making the banks of this run: {2 if arguments.quick else arguments.images} images, trainings cut short",
        [Column("method", "method"), Column("seconds", "seconds", ".0f")],
    )
    table.rows = [{"method": name, "seconds": seconds} for name, seconds in setup.items()]
    table.notes = ["Variants of M3DM share its banks; with --workdir, so do runs: those of a kept folder take no time."]
    return table


def _say(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)
