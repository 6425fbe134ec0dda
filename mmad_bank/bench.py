"""End-to-end inference of the methods at the papers' sizes: speed, time by stage, memory.

From prepared arrays in memory to image score and map, as CFM's paper measures (table 5): warm-up left out, GPUs waited
for, training-only steps not counted. Weights are random: neither speed nor memory depends on their values. Banks hold
real features of those random networks.
"""

from __future__ import annotations

import importlib
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from mmad_bank._internal import sections
from mmad_bank._internal.resume import Stages, fingerprint_of
from mmad_bank._internal.timing import collect_times
from mmad_bank.bank import MemoryBank, MultiBank
from mmad_bank.data import Preprocessing, Sample, preprocess
from mmad_bank.errors import InputError, did_you_mean
from mmad_bank.extraction import Extractors
from mmad_bank.features.factory import RANDOM
from mmad_bank.fusion import FeatureFusion
from mmad_bank.methods import Method, method_class
from mmad_bank.methods.bank_method import BankMethod
from mmad_bank.methods.cfm import CFM
from mmad_bank.methods.cfm.mappings import make_mappings
from mmad_bank.methods.lsfa import LSFA
from mmad_bank.methods.m3dm import M3DM
from mmad_bank.methods.training_features import files_of_split
from mmad_bank.synthetic.dataset import render

CATEGORY = "stud_tray"
"""The synthetic part that covers more of its image than the others, about a fifth."""
IMAGES = 244
"""Training images of a category (bagel)."""
VECTORS = 19_129
"""In each bank: 10 % of their patches on a 28×28 grid."""
_OF_EXTRACTORS = (
    "rgb", "rgb_weights", "rgb_layers", "xyz", "xyz_weights", "num_groups", "group_size", "image_size", "grid",
    "recipe", "compute_dtype", "seed",
)  # fmt: skip
_BATCHES_EVERY = 6  # rounds: images one by one tell more, and take less time

_ONE_STEP = {"teacher_steps": 1, "student_steps": 1, "sdf_steps": 1}
CONTESTANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "PatchCore": ("patchcore", {}),
    "BTF": ("btf", {}),
    "M3DM": ("m3dm", {}),
    "M3DM, 8-bit banks": ("m3dm", {"bank_precision": "int8"}),
    "M3DM, RGB bank": ("m3dm", {"banks": ("rgb",)}),
    "M3DM, point bank": ("m3dm", {"banks": ("xyz",)}),
    "M3DM, fusion bank": ("m3dm", {"banks": ("fusion",)}),
    "M3DM, two banks": ("m3dm", {"banks": ("xyz", "rgb"), "decision": "add"}),
    "LSFA": ("lsfa", {"grid": (28, 28), "adaptation_steps": 1, "adaptation_batch": 1, "queue_size": 784}),
    "CFM": ("cfm", {}),
    "CFM-M": ("cfm", {"variant": "M"}),
    "CFM-S": ("cfm", {"variant": "S"}),
    "CFM-T": ("cfm", {"variant": "T"}),
    "MDSS": ("mdss", _ONE_STEP),
}
"""By name: the method and the arguments that differ from its paper's; training steps are cut, inference is whole."""
_SMALL: dict[str, Any] = {
    "rgb": "efficientnet_lite0", "rgb_layers": (1,), "num_groups": 64, "group_size": 16, "pdn_width": 8, "channels": 16,
    "sdf_width": 16, "map_size": 28,
}  # fmt: skip


@dataclass
class Inference:
    """What was measured of one method.

    Attributes:
        name: Of the contestant.
        latencies: Seconds of every timed image, one at a time.
        stages: Median seconds an image by stage; what belongs to none is under ``"other"``.
        throughput: Images a second by batch size.
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
        """Median seconds an image."""
        return statistics.median(self.latencies)

    @property
    def fps(self) -> float:
        """Images a second, one at a time."""
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


def find_contestants(text: str) -> list[str]:
    """Read names of :data:`CONTESTANTS`, or of methods, from a list with commas between.

    Capitals and spaces around commas do not count. Some names have a comma of their own: of several names that the
    text can go on with, the longest is meant. A method's name stands for its first contestant.

    Raises:
        InputError: A name is unknown; all of the unknown ones are named, and those that there are.

    Example:
        >>> find_contestants("m3dm, 8-bit banks,CFM-m,patchcore")
        ['M3DM, 8-bit banks', 'CFM-M', 'PatchCore']
    """
    by_method = {kind: name for name, (kind, _) in reversed(CONTESTANTS.items())}
    known = by_method | {_plain(name): name for name in CONTESTANTS}
    pieces = [piece for piece in map(str.strip, text.split(",")) if piece]
    longest = max(name.count(",") for name in CONTESTANTS) + 1
    found: list[str] = []
    unknown: list[str] = []
    while pieces:
        for n in range(min(longest, len(pieces)), 0, -1):
            name = known.get(_plain(",".join(pieces[:n])))
            if name is not None or n == 1:
                (unknown if name is None else found).append(pieces[0] if name is None else name)
                del pieces[:n]
                break
    if unknown or not found:
        wrong = ", ".join(f"{name!r}{did_you_mean(_plain(name), known)}" for name in unknown) or "none"
        raise InputError(f"methods: expected some of {'; '.join(CONTESTANTS)}, found {wrong}")
    return list(dict.fromkeys(found))


def _plain(name: str) -> str:
    """Return a contestant's name in small letters, without spaces beside its commas."""
    return ",".join(part.strip() for part in name.lower().split(","))


@lru_cache(maxsize=2)  # the methods of one run are fitted on the same ones
def samples_of(n: int, *, size: int = 224, category: str = CATEGORY, seed: int = 0) -> list[Sample]:
    """Make prepared samples, in memory.

    Example:
        >>> samples_of(1)[0].size
        (224, 224)
    """
    settings = Preprocessing.recipe("m3dm", size=size)
    made = []
    for index in range(n):
        scene = render(category, size=512, seed=seed, index=index)
        rgb, xyz = (torch.from_numpy(x.transpose(2, 0, 1).copy()) for x in (scene.rgb, scene.xyz))
        sample = Sample(rgb.float() / 255, xyz, None, category=category, split="train", id=f"bench/{index:03d}")
        made.append(preprocess(sample, settings))
    return made


def make_method(
    name: str, folder: Path, *, images: int = IMAGES, vectors: int = VECTORS, small: bool = False, device: str = "cpu",
    precision: str = "float32", progress: bool = False,
) -> Method:  # fmt: skip
    """Fit a contestant with random weights, its banks of exactly ``vectors`` vectors, its trainings cut short.

    Args:
        name: One of :data:`CONTESTANTS`.
        folder: For what several contestants share, for weights, and for what the stages of a fit leave: a later call
            goes on from there.
        images: Training images; their patches must be at least ``vectors``.
        vectors: In each bank.
        small: Tiny networks, to see whether everything runs.
        device: Where inference runs.
        precision: Of the extractors' products.
        progress: Show bars on a terminal.

    Raises:
        InputError: There is no such contestant, or too few images for the vectors.
    """
    if name not in CONTESTANTS:
        raise InputError(f"methods: expected some of {', '.join(CONTESTANTS)}, found {name!r}")
    kind, changes = CONTESTANTS[name]
    cls = method_class(kind)
    arguments: dict[str, Any] = {
        "rgb_weights": RANDOM, "xyz_weights": RANDOM, "group_size": 128, "compute_dtype": precision, "device": device,
    }  # fmt: skip
    arguments |= changes | (_SMALL if small else {})
    method = cls(**{key: value for key, value in arguments.items() if key in cls.argument_names()})
    if isinstance(method, M3DM):
        return _m3dm(method, folder, images, vectors, progress)
    if isinstance(method, BankMethod):
        method.ratio = _ratio(method, images, vectors)
        samples = samples_of(images, size=method.image_size)
        if isinstance(method, LSFA):
            _take_features(method, samples, folder / "m3dm", folder / name)
        return method.fit(samples, workdir=folder / name, progress=progress)
    if isinstance(method, CFM):
        return _cfm(method, folder)
    few = samples_of(2, size=method.image_size)
    return method.fit(few, validation=few, progress=progress)


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
    sets = {size: samples_of(max(batches), size=size, seed=1) for size in {m.image_size for m in methods.values()}}
    stages: dict[str, list[dict[str, float]]] = {name: [] for name in methods}
    totals: dict[tuple[str, int], list[float]] = {}
    for round_ in range(rounds + 1):
        sizes = dict.fromkeys((1, *(batches if round_ % _BATCHES_EVERY == 1 else ())))
        for name, method in methods.items():
            samples = sets[method.image_size]
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
        result.banks = methods[name].banks_.nbytes if isinstance(methods[name], BankMethod) else 0  # type: ignore[attr-defined]
    return list(results.values())


def measure_memory(
    result: Inference, method: Method, folder: Path, program: Sequence[str] = ("-m", "mmad_bank.bench")
) -> None:
    """Score one image with the saved method in a fresh process, and note what memory that took.

    Args:
        result: Of this method; its ``peak`` and ``activations`` are set.
        method: A fitted one.
        folder: To save it in.
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


def _m3dm(method: M3DM, folder: Path, images: int, vectors: int, progress: bool) -> M3DM:
    """Fit all three banks once; the variants take theirs of them."""
    all_banks = {"banks": ("xyz", "rgb", "fusion"), "decision": "dlf", "bank_precision": "auto"}
    whole = M3DM(**{**method.arguments(), **all_banks})
    path = folder / "uff.safetensors"
    whole.uff_weights, whole.ratio = str(path), _ratio(whole, images, vectors)
    if not path.exists():
        dims = Extractors(whole._networks(RANDOM)).dims
        FeatureFusion(dims["xyz"], dims["rgb"]).save(path)
    whole.fit(samples_of(images, size=whole.image_size), workdir=folder / "m3dm", progress=progress)
    if (method.banks, method.decision, method.bank_precision) == (whole.banks, whole.decision, whole.bank_precision):
        return whole
    method.preprocessing_, method.train_ids_ = whole.preprocessing_, whole.train_ids_
    wanted = {"xyz", "rgb"} if "fusion" in method.banks else set(method.banks)
    networks = {name: network for name, network in whole.extractors_.networks.items() if name in wanted}
    method.extractors_ = Extractors(networks, method.device)
    method.uff_ = whole.uff_ if "fusion" in method.banks else None
    method.dlf_ = whole.dlf_ if method.decision == "dlf" and method.banks == whole.banks else None
    files = {name: folder / "m3dm" / f"bank-{name}.safetensors" for name in whole.banks if name in method.banks}
    options: dict[str, Any] = {"device": method.device, "bank_precision": method.bank_precision}
    method.banks_ = MultiBank({name: MemoryBank.load(path, **options) for name, path in files.items()})
    return method


def _take_features(method: LSFA, samples: list[Sample], source: Path, target: Path) -> None:
    """Let a fit begin with the features that M3DM's has left, if the same extractors made them of the same samples."""
    method.preprocessing_ = method._choose_preprocessing(samples)
    own = method._fingerprint(samples, None)
    names = files_of_split("train", ("xyz", "rgb"))
    if _of_features(own) != _of_features(fingerprint_of(source)) or not (source / names[-1]).exists():
        return
    stages = Stages(target, own)
    for name in names:
        stages.run(name, partial(shutil.copyfile, source / name))


def _of_features(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Return that part of a fit's fingerprint on which its extracted features depend."""
    arguments = fingerprint.get("arguments", {})
    extractors = {name: arguments.get(name) for name in _OF_EXTRACTORS}
    return {**extractors, "data": fingerprint.get("data"), "preprocessing": fingerprint.get("preprocessing")}


def _cfm(method: CFM, folder: Path) -> CFM:
    """Give the mappings random weights by way of their files; no training."""
    dims = Extractors(method._networks(RANDOM)).dims
    for name, mapping in make_mappings(dims, architecture=method.architecture, mode=method.mode).items():
        path = folder / f"cfm-{method.variant}-{name}.pt"
        torch.save(mapping.state_dict(), path)
        setattr(method, "rgb_to_xyz_weights" if name == "xyz" else "xyz_to_rgb_weights", str(path))
    return method.fit(samples_of(1, size=method.image_size))


def _ratio(method: BankMethod, images: int, vectors: int) -> float:
    """Return the share of the images' patches that makes so many vectors."""
    patches = images * method.grid[0] * method.grid[1]
    if not 0 < vectors <= patches:
        raise InputError(f"vectors: expected 1 to {patches}, the patches of {images} images, found {vectors}")
    return (vectors + 0.5) / patches if vectors < patches else 1.0


def _weights(method: Method) -> int:
    """Return the bytes of all networks that a method holds."""
    held = getattr(method, "nbytes", 0)
    return held - method.banks_.nbytes if isinstance(method, BankMethod) else held


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
    from mmad_bank import methods

    with suppress(ImportError):
        importlib.import_module("timm")  # a library's code is not a method's memory
    side = int(json.loads((Path(folder) / "model.json").read_text())["arguments"]["image_size"])
    samples = samples_of(1, size=side, seed=1)
    cuda = device.startswith("cuda")
    before = 0 if cuda else _status("VmRSS")
    method = wrap(methods.load(folder, device))
    method.predict_batch(samples)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again (proc(5))
    method.predict_batch(samples)
    return {"before": before, "peak": torch.cuda.max_memory_allocated() if cuda else _status("VmHWM")}


if __name__ == "__main__":
    print(json.dumps(score_once(sys.argv[1], sys.argv[2])))
