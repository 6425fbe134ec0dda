"""Speed, time by stage and memory of fitted methods, by predictions in turn and in a fresh process."""

from __future__ import annotations

import importlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mmad_bank import methods as kinds
from mmad_bank._internal import sections
from mmad_bank._internal.timing import collect_times
from mmad_bank.bench.contestants import samples_for, samples_of
from mmad_bank.data import Sample
from mmad_bank.errors import InputError
from mmad_bank.methods import Method, method_class

_BATCHES_EVERY = 6  # rounds: images one by one tell more, and take less time


@dataclass
class Inference:
    """Measurements of one method.

    Attributes:
        name: Name of the method, or of what it is compared as.
        latencies: Seconds of every timed image, one at a time.
        stages: Median seconds per image by stage; what belongs to none is under ``"other"``.
        throughput: Images per second by batch size.
        weights: Bytes of the networks' parameters.
        banks: Bytes of the banks that inference holds in memory.
        activations: Bytes that a fresh process took beyond those at its peak, scoring one image; None if unknown.
        peak: Bytes of that process at its peak: resident memory, or a GPU's allocations.
    """

    name: str
    latencies: list[float] = field(default_factory=list)
    stages: dict[str, float] = field(default_factory=dict)
    throughput: dict[int, float] = field(default_factory=dict)
    weights: int = 0
    banks: int = 0
    activations: int | None = None
    peak: int | None = None

    @property
    def median(self) -> float:
        """Median seconds per image."""
        return statistics.median(self.latencies)

    @property
    def fps(self) -> float:
        """Images per second, one at a time."""
        return 1 / self.median

    @property
    def memory(self) -> int:
        """Parameters, banks and activations together, in bytes (CFM's protocol)."""
        return self.weights + self.banks + (self.activations or 0)

    def quantile(self, share: float) -> float:
        """Return the time that this share of the images kept within."""
        return float(torch.quantile(torch.tensor(self.latencies, dtype=torch.float64), share))

    def as_json(self) -> dict[str, Any]:
        """Return JSON-able values: seconds and bytes."""
        return {
            **vars(self), "median": self.median, "p95": self.quantile(0.95), "p99": self.quantile(0.99),
            "fps": self.fps, "memory": self.memory, "throughput": {str(b): x for b, x in self.throughput.items()},
        }  # fmt: skip


def measure(
    methods: Mapping[str, Method],
    *,
    rounds: int = 5,
    batches: Sequence[int] = (1,),
    report: Callable[[str], None] = lambda line: None,
) -> list[Inference]:
    """Time the methods' predictions, alternating between them.

    Every round scores one image with every method, every sixth one a batch of each size too. A round before them warms
    up and is not counted.
    """
    results = {name: Inference(name, weights=_weights(method)) for name, method in methods.items()}
    sets = {name: samples_for(method, max(batches), seed=1) for name, method in methods.items()}
    stages: dict[str, list[dict[str, float]]] = {name: [] for name in methods}
    totals: dict[tuple[str, int], list[float]] = {}
    for round_ in range(rounds + 1):
        sizes = dict.fromkeys((1, *(batches if round_ % _BATCHES_EVERY == 1 else ())))
        for name, method in methods.items():
            samples = sets[name]
            for batch in sizes:
                images = samples[:batch] if batch > 1 else [samples[round_ % len(samples)]]
                seconds, split = _timed_prediction(method, images)
                if round_:
                    totals.setdefault((name, batch), []).append(seconds / batch)
                    if batch == 1:
                        stages[name].append(split)
            report(f"round {round_} of {rounds}: {name}")
    for name, result in results.items():
        result.latencies = totals[name, 1]
        names = dict.fromkeys(stage for split in stages[name] for stage in split)
        result.stages = {stage: statistics.median(split.get(stage, 0.0) for split in stages[name]) for stage in names}
        result.throughput = {batch: 1 / statistics.median(totals[name, batch]) for batch in batches}
        result.banks = _bank_bytes(methods[name])
    return list(results.values())


def measure_memory(
    result: Inference, method: Method, folder: Path, program: Sequence[str] = ("-m", "mmad_bank.bench")
) -> None:
    """Score one image with the saved method in a fresh process, and note what memory that took.

    Args:
        result: Measurements of this method; its ``peak`` and ``activations`` are set.
        method: A fitted method.
        folder: Folder to save it in.
        program: Python's arguments for a program that takes the folder and the device and prints what
            :func:`score_once` returns as JSON.

    Raises:
        InputError: The process failed.
    """
    method.save(folder)
    device = getattr(method, "device", "cpu")
    command = [sys.executable, *program, str(folder), device]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise InputError(f"{result.name}: scoring in a fresh process failed ({_last_line(done.stderr)})")
    facts = json.loads(done.stdout.splitlines()[-1])
    result.peak = facts["peak"]
    result.activations = max(0, facts["peak"] - facts["before"] - result.weights - result.banks)


def _last_line(text: str) -> str:
    """Return the line of a program's errors that says most."""
    return (text.strip().splitlines() or ["it said nothing"])[-1]


def _timed_prediction(method: Method, samples: list[Sample]) -> tuple[float, dict[str, float]]:
    with collect_times() as stages:
        begin = time.perf_counter()
        method.predict_batch(samples)
        seconds = time.perf_counter() - begin
    split = {stage: value for stage, value in stages.items() if stage != sections.PREPROCESSING}
    return seconds, {**split, sections.OTHER: max(0.0, seconds - sum(split.values()))}


def _weights(method: Method) -> int:
    """Return the bytes of all networks that a method holds."""
    return getattr(method, "nbytes", 0) - _bank_bytes(method)


def _bank_bytes(method: Method) -> int:
    return sum(bank.nbytes for bank in method.memory_banks.values())


def _status(key: str) -> int:
    """Read a line of this process's status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return 0


def score_once(folder: str, device: str, wrap: Callable[[Method], Method] = lambda method: method) -> dict[str, int]:
    """Load a saved method and score an image, twice.

    Returns:
        Bytes that the process (or the device) held before it loaded the method, and at the peak of the second time:
        what loading takes for a moment and what the first image leaves are not inference.
    """
    with suppress(ImportError):
        importlib.import_module("timm")  # a library's code is not a method's memory
    model = json.loads((Path(folder) / "model.json").read_text())
    recipe = method_class(model["method"]).preparation
    samples = samples_of(1, size=int(model["arguments"]["image_size"]), seed=1, recipe=recipe)
    cuda = device.startswith("cuda")
    before = 0 if cuda else _status("VmRSS")
    method = wrap(kinds.load(folder, device))
    method.predict_batch(samples)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again (proc(5))
    method.predict_batch(samples)
    return {"before": before, "peak": torch.cuda.max_memory_allocated() if cuda else _status("VmHWM")}
