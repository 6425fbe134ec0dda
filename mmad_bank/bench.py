"""End-to-end inference of the methods at the papers' sizes: speed, time by stage, memory.

From prepared arrays in memory to image score and map, as CFM's paper measures (table 5): warm-up left out, GPUs waited
for, training-only steps not counted. Weights are random: neither speed nor memory depends on their values. Banks are
exact coresets of real features of those random networks, of the sizes that the papers' runs had (:func:`bank_sizes`).
"""

from __future__ import annotations

import importlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmad_bank._internal import sections
from mmad_bank._internal.progress import progress_bar, within
from mmad_bank._internal.timing import collect_times
from mmad_bank.bank import MemoryBank, MultiBank
from mmad_bank.data import Preprocessing, Sample, preprocess
from mmad_bank.errors import InputError, did_you_mean
from mmad_bank.features.factory import RANDOM
from mmad_bank.methods import Method, method_class
from mmad_bank.methods import names as method_names
from mmad_bank.methods.bank_method import BankMethod
from mmad_bank.synthetic.dataset import render

CATEGORY = "stud_tray"
"""The synthetic part that covers more of its image than the others, about a fifth."""
IMAGES = 244
"""Number of training images of a category (bagel)."""
SMALL_VECTORS = 19_129
"""Number of vectors that 10 % of the patches of these images make on a 28×28 grid."""
QUICK_VECTORS = 300
"""Number of vectors in each bank of tiny networks."""
UNTRAINED: dict[str, Any] = {
    "rgb_weights": RANDOM, "xyz_weights": RANDOM, "uff_weights": RANDOM, "rgb_to_xyz_weights": RANDOM,
    "xyz_to_rgb_weights": RANDOM, "adaptation_steps": 1, "adaptation_batch": 1, "queue_size": 784, "teacher_steps": 1,
    "teacher_images": "own", "student_steps": 1, "sdf_weights": RANDOM,
}  # fmt: skip
"""Arguments that leave out what training would take, or cut it short, of the methods that have them."""
SIZES: dict[str, Any] = {"group_size": 128}
"""Arguments that all methods which have them share, so that their work is alike."""
_SMALL: dict[str, Any] = {
    "rgb": "efficientnet_lite0", "rgb_layers": (1,), "num_groups": 64, "group_size": 16, "pdn_width": 8, "channels": 16,
    "sdf_width": 16, "map_size": 28,
}  # fmt: skip
_FEW = 2  # images to fit on: what else than banks is learnt from them costs inference nothing
_FEW_RATIO = 0.05  # of their patches, in banks whose place others take
_EVERY = 4  # of the images is described in color; of the others only the point bank sees the clouds
_ENOUGH = 15  # images in color, if there are so many
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


def find_methods(text: str) -> list[str]:
    """Read names of methods, joined by commas; capitals and spaces do not count.

    Raises:
        InputError: A name is unknown; all of the unknown ones are named, and those that there are.

    Example:
        >>> find_methods("M3DM, patchcore")
        ['m3dm', 'patchcore']
    """
    known = method_names()
    words = list(dict.fromkeys(word.strip().lower() for word in text.split(",") if word.strip()))
    unknown = [word for word in words if word not in known]
    if unknown or not words:
        wrong = ", ".join(f"{word!r}{did_you_mean(word, known)}" for word in unknown) or "none"
        raise InputError(f"methods: expected some of {', '.join(known)}, found {wrong}")
    return words


def samples_of(
    n: int, *, size: int = 224, category: str = CATEGORY, seed: int = 0, recipe: str = "m3dm"
) -> list[Sample]:
    """Make prepared samples, in memory.

    Example:
        >>> samples_of(1)[0].size
        (224, 224)
    """
    return [_sample(index, size, category, seed, recipe) for index in range(n)]


@lru_cache(maxsize=2 * IMAGES)  # the methods of one run see the same ones
def _sample(index: int, size: int, category: str, seed: int, recipe: str) -> Sample:
    scene = render(category, size=512, seed=seed, index=index)
    rgb, xyz = (torch.from_numpy(x.transpose(2, 0, 1).copy()) for x in (scene.rgb, scene.xyz))
    sample = Sample(rgb.float() / 255, xyz, None, category=category, split="train", id=f"bench/{index:03d}")
    return preprocess(sample, Preprocessing.recipe(recipe, size=size))


def samples_for(method: Method, n: int, seed: int = 0) -> list[Sample]:
    """Make samples that are prepared as a method takes them."""
    return samples_of(n, size=method.image_size, seed=seed, recipe=method.preparation)


def new_method(
    name: str, *, settings: Mapping[str, Any] | None = None, small: bool = False, device: str = "cpu",
    compute_dtype: str = "float32",
) -> Method:  # fmt: skip
    """Make a method with random networks and trainings cut short; it is not fitted yet.

    Args:
        name: Name of the method, see :func:`mmad_bank.methods.names`.
        settings: Constructor arguments that differ from :data:`UNTRAINED`, :data:`SIZES` and the method's defaults.
        small: Whether to take tiny networks, to see whether everything runs.
        device: Device that inference runs on.
        compute_dtype: Number type of the networks' products.

    Raises:
        InputError: There is no such method, or an argument is out of its range.
    """
    cls = method_class(name)
    arguments = {**UNTRAINED, **SIZES, **(_SMALL if small else {}), "compute_dtype": compute_dtype, "device": device}
    given = {key: value for key, value in arguments.items() if key in cls.argument_names()} | dict(settings or {})
    if issubclass(cls, BankMethod):
        if "ratio" in (settings or {}):
            raise InputError("ratio: expected the vectors of a bank (vectors, --bank-size) in its place")
        given["ratio"] = _FEW_RATIO
    return cls(**given)


def bank_sizes(
    method: Method, patches: Mapping[str, int], *, images: int = IMAGES, vectors: int | None = None
) -> dict[str, int]:
    """Return the numbers of vectors that a method's banks have in its paper's runs.

    They are 10 % of the patches of the images. M3DM's RGB and fusion banks are 10 % of the point bank's vectors, as in
    the published code: of bagel's 244 images 76 518, 7 652 and 7 652.

    Args:
        method: The method.
        patches: Number of patches in an image, by bank.
        images: Number of training images of the category.
        vectors: Number of vectors in each bank, in the place of all this.

    Raises:
        InputError: The images have fewer patches than ``vectors``.

    Example:
        >>> bank_sizes(method_class("m3dm")(), {"xyz": 3136, "rgb": 784, "fusion": 3136})
        {'xyz': 76518, 'rgb': 7652, 'fusion': 7652}
    """
    if vectors is not None:
        most = min(rows * len(images_of(name, images)) for name, rows in patches.items())
        if not 0 < vectors <= most:
            raise InputError(f"vectors: expected 1 to {most}, the patches of {images} images, found {vectors}")
        return dict.fromkeys(patches, vectors)
    sizes = {name: max(1, images * rows // 10) for name, rows in patches.items()}
    if method.name == "m3dm" and "xyz" in sizes:
        sizes |= {name: max(1, round(sizes["xyz"] / 10)) for name in sizes if name != "xyz"}
    return sizes


def banks_of(method: Method) -> dict[str, int]:
    """Return the numbers of vectors of a fitted method's banks; none without banks."""
    return {name: len(bank) for name, bank in method.banks_.items()} if isinstance(method, BankMethod) else {}


def images_of(bank: str, images: int = IMAGES) -> range:
    """Return the numbers of the images whose patches a bank is the coreset of.

    A point bank sees all of them: most of their patches have no point, and count once. The patches of every fourth one
    are plenty for the others.
    """
    return range(0, images, 1 if bank == "xyz" else max(1, min(_EVERY, images // _ENOUGH)))


def fit_method(
    method: Method, workdir: Path, *, images: int = IMAGES, vectors: int | None = None, progress: bool = False
) -> Method:
    """Fit what :func:`new_method` made on two rendered images and fill its banks, if it has some; return it.

    Args:
        method: Method that is not fitted.
        workdir: Folder for the banks, which the method goes on reading: a later call with the same arguments takes
            them from there.
        images: Number of training images that banks are filled from.
        vectors: Number of vectors in each bank; none takes :func:`bank_sizes`.
        progress: Whether to show bars on a terminal.

    Raises:
        InputError: The images have too few patches for the vectors, or the folder cannot be written.
    """
    few = samples_for(method, _FEW)
    method.fit(few, validation=few, progress=progress)
    if isinstance(method, BankMethod):
        _fill_banks(method, workdir / "banks", images, vectors, progress)
    return method


def _fill_banks(method: BankMethod, folder: Path, images: int, vectors: int | None, progress: bool) -> None:
    """Put coresets of many images' patches in the place of a method's banks, from a folder or into it."""
    patches = {name: rows.shape[1] for name, rows in method.describe(samples_for(method, 1)).items()}
    sizes = bank_sizes(method, patches, images=images, vectors=vectors)
    facts = json.dumps({"arguments": method.arguments(), "images": images, "sizes": sizes}, default=str)
    note = folder.parent / "banks-of.json"
    if not note.exists() or note.read_text() != facts:
        note.unlink(missing_ok=True)
        _selected(method, sizes, images, progress).save(folder)
        note.write_text(facts)
    method.banks_ = MultiBank.load(folder, method.device, bank_precision=method.bank_precision)


def _selected(method: BankMethod, sizes: Mapping[str, int], images: int, progress: bool) -> MultiBank:
    """Select the banks: exact coresets of the patches of the images, in the features themselves."""
    rows: dict[str, list[Tensor]] = {name: [] for name in sizes}
    with progress_bar("describing images", images) if progress else nullcontext(lambda done: None) as report:
        for i, described in _described(method, images):
            for name, own in described.items():
                if i in images_of(name, images):
                    rows[name].append(_distinct(own, bool(rows[name])))
            report(i + 1)
    banks = {}
    for number, (name, size) in enumerate(sizes.items(), 1):
        old = method.banks_[name]
        table = torch.cat(rows.pop(name))
        if size > len(table):
            raise InputError(f"vectors: expected 1 to {len(table)}, those that differ in {images} images, found {size}")
        with within(f"{name} bank", number, len(sizes)):
            banks[name] = MemoryBank.build(
                table, size=size, standardize=old.standardization or False, device=method.device,
                extractor=old.extractor, progress=progress,
            )  # fmt: skip
    return MultiBank(banks)


def _distinct(patches: Tensor, later: bool) -> Tensor:
    """Leave out patches without a point, which are all alike; the first image keeps one, if it has some."""
    there = patches.any(1)
    if not later and not bool(there.all()):
        there[int(there.int().argmin())] = True
    return patches[there].cpu()


def _described(method: BankMethod, images: int) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Yield numbers of images, and their patches (P, D) by bank; where only the point bank looks, no other."""
    banks, points = tuple(method.banks_), method
    if {"xyz", "fusion"} <= {*banks}:
        with suppress(InputError):  # banks that depend on each other stay together
            points = method.with_arguments(banks=("xyz",))
    in_color = {i for name in banks if name != "xyz" for i in images_of(name, images)}
    for i in range(images):
        if i in in_color or "xyz" in banks:
            sample = _sample(i, method.image_size, CATEGORY, 0, method.preparation)
            described = (method if i in in_color else points).describe([sample])
            yield i, {name: one[0] for name, one in described.items()}


def make_method(
    name: str, folder: Path, *, settings: Mapping[str, Any] | None = None, images: int = IMAGES,
    vectors: int | None = None, progress: bool = False, **options: Any,
) -> Method:  # fmt: skip
    """Make a method and fit it in a folder of its name, see :func:`new_method` and :func:`fit_method`.

    Args:
        name: Name of the method.
        folder: Folder for the banks, also of other methods.
        settings: Constructor arguments.
        images: Number of training images that banks are filled from.
        vectors: Number of vectors in each bank; none takes :func:`bank_sizes`.
        progress: Whether to show bars on a terminal.
        options: The other options of :func:`new_method`.
    """
    method = new_method(name, settings=settings, **options)
    return fit_method(method, folder / name, images=images, vectors=vectors, progress=progress)


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
        result.banks = methods[name].banks_.nbytes if isinstance(methods[name], BankMethod) else 0  # type: ignore[attr-defined]
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
    model = json.loads((Path(folder) / "model.json").read_text())
    recipe = method_class(model["method"]).preparation
    samples = samples_of(1, size=int(model["arguments"]["image_size"]), seed=1, recipe=recipe)
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
