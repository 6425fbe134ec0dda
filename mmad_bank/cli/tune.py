"""The command that chooses a bank's settings: tune."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mmad_bank._internal.files import cache_dir, replacing, write_text
from mmad_bank.cli._dumps import ByImage, DumpLayout, Features, Key, Reading
from mmad_bank.cli._going_on import going_on
from mmad_bank.cli._labels import Labels, labels_of_file, labels_of_names
from mmad_bank.cli._options import Json, Overwrite, parse_share
from mmad_bank.cli._output import are_unfinished, check_outputs, show_progress, size, unfinished_outputs
from mmad_bank.cli.bank import parse_projection
from mmad_bank.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from mmad_bank.bank import FeatureDump
    from mmad_bank.tuning import Choice, Measured, Sweep

_NOTE_OF_AUROC = (
    "I-AUROC: 95 % of bootstrap samples of the images lie within; to all rows: the difference to the exact bank of all"
    " rows, of the same samples"
)
_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_WIDE = 110
_NOTES = (
    "patches, images: error of their scores against the exact bank of all rows, over its mean score; of index: error of"
    " the patches' against the exact bank of the same ratio",
    "memory: search copy or FAISS index, and source rows; the float32 vectors stay in the bank file, memory-mapped and"
    " cached by the system while it has room.\n  The exact search reads a few of them for each patch; a FAISS index"
    " with an image score other than max reads all, which are counted",
    "fps: of scoring, an image at a time, on this machine; extracting the features comes on top",
    "*: no other setting is as small, as fast and as accurate, and better in one of the three",
)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command()(tune)


def tune(
    features: Features,
    test: Annotated[
        list[Path],
        typer.Option(help="Features of images that the bank is not built from; repeatable.", show_default=False),
    ],
    anomalous: Annotated[
        list[Path] | None,
        typer.Option(
            help="Features of anomalous images, those of --test being normal; repeatable.", show_default=False
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="Labels of the images of --test, 0 or 1: .npy, lines of text, or extraction.json as extract writes it"
            " (default: by the images' names, if all lie in folders and one of these is called good, ok or normal).",
            show_default=False,
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Largest memory of the bank, such as 200MB or 1.5GiB.", show_default=False),
    ] = None,
    fps: Annotated[
        float | None, typer.Option(help="Frame rate to reach, images per second.", show_default=False)
    ] = None,
    by: Annotated[
        Literal["error", "auroc"], typer.Option(help="Measure by which the most accurate setting is recommended.")
    ] = "error",
    budget: Annotated[
        str, typer.Option(metavar="TIME", help="Time to measure in, such as 90s, 10m or 2h; none for all of it.")
    ] = "10m",
    timing: Annotated[str, typer.Option(metavar="TIME", help="Time that each setting is timed for at least.")] = "1s",
    ratios: Annotated[
        str | None,
        typer.Option(metavar="A,B,...", help="Shares of the rows to try, such as 0.1%,10% or 0.1.", show_default=False),
    ] = None,
    precisions: Annotated[
        str, typer.Option(metavar="A,B,...", help="Precisions of the exact search's copy to try.")
    ] = "auto,float32,half,int8",
    index: Annotated[
        list[str] | None,
        typer.Option(
            help="Index to try: exact or a FAISS factory string; repeatable (default: some of each).",
            show_default=False,
        ),
    ] = None,
    images: Annotated[int, typer.Option(help="Number of test images to score, spread over all; 0 takes all.")] = 32,
    patches: Annotated[
        int | None, typer.Option(help="Number of patches per test image, for (N, D) files.", show_default=False)
    ] = None,
    key: Key = None,
    layout: DumpLayout = "auto",
    by_image: ByImage = False,
    reweight: Annotated[
        Literal["m3dm", "patchcore", "max"],
        typer.Option(help="Rule that makes an image's score of its patches' scores."),
    ] = "m3dm",
    projection_dim: Annotated[
        str | None, typer.Option(metavar="D|auto", help="Select in a random projection to D dimensions.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random projection.")] = 0,
    threads: Annotated[
        int | None, typer.Option(help="Number of the search's threads (default: one per core).", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write, with all results.", show_default=False)] = None,
    workdir: Annotated[
        Path | None,
        typer.Option(
            help="Folder for results as they come (default: OUT.tune, or in the cache folder).", show_default=False
        ),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Picture of the settings to write, .png, .svg or .pdf.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Measure a bank's ratios, storages and indices on test images; recommend one for a memory or a frame rate.

    Results are kept as they come: after a stop, or when the time was up, the same command goes on where it was. Those
    of other features, images or settings are dropped, and a line says so. Exit code 1 if no setting keeps to the budget
    of memory and frame rate.
    """
    limits = _check_limits(None if memory is None else parse_size(memory), fps)
    read = (*features, *test, *(anomalous or ()), *(() if labels is None else (labels,)))
    outputs = (out, plot)
    job = {"tune": [str(path.resolve()) for path in (*read, *outputs) if path is not None], "plots": plot is not None}
    check_outputs({"--out": out, "--plot": plot}, inputs=read, overwrite=overwrite or are_unfinished(outputs, job))
    if anomalous and labels is not None:
        raise InputError("--anomalous and --labels: expected one of them, found both")
    chosen = _parse_ratios(ratios), [name.strip() for name in precisions.split(",")]
    time_limit, timed = parse_duration(budget, "--budget"), parse_duration(timing, "--timing")
    dimensions = parse_projection(projection_dim)
    from mmad_bank import tuning
    from mmad_bank._internal.resume import remove_stages

    if plot is not None:
        _check_plot(plot)
    _set_threads(threads)
    reading = Reading(key, layout, by_image)
    dump = reading.open(features)
    queries, truth = _read_tests(reading, dump, test, anomalous or [], labels, patches, images)
    if by == "auroc" and not truth.of_both_kinds:
        raise InputError("--by auroc: expected normal and anomalous images (--labels or --anomalous), found one kind")
    folder = workdir or _default_workdir(out, [*features, *test, *(anomalous or [])])
    progress = show_progress(as_json)
    with going_on():
        swept = tuning.sweep(
            dump, queries, labels=truth.values, ratios=chosen[0] or tuning.RATIOS,
            precisions=chosen[1],  # type: ignore[arg-type]
            indices=index or None, reweight=reweight, projection_dim=dimensions, seed=seed, timed=timed or 0.0,
            time_limit=time_limit, workdir=folder, found=_Telling(truth, progress=progress, quiet=as_json),
            progress=progress,
        )  # fmt: skip
    choice = tuning.choose(swept.settings, by=by, aurocs=swept.aurocs, **limits) if limits else None
    options = _Build(features, test, reading, projection_dim, seed, patches, reweight)
    result = _facts(swept, choice, limits, by, options, time_limit) | {"labels": truth.as_json()}
    text = json.dumps(result, indent=2, allow_nan=False)
    with unfinished_outputs(outputs, job):
        if out is not None:
            write_text(out, text + "\n")
        if plot is not None:
            _save_plot(plot, swept, None if choice is None else choice.best, by, limits)
        if workdir is None and not swept.waiting:
            remove_stages(folder)
    if as_json:
        print(text)
    else:
        _print(swept, result)
    if limits and choice is None:
        sys.stdout.flush()
        nearest = result["nearest"]
        print(
            f"no setting keeps to {_word_limits(limits)}; nearest: {nearest['words']}: {nearest['command']}",
            file=sys.stderr,
        )
        raise typer.Exit(1)


def parse_size(text: str) -> int:
    """Read a number of bytes with its unit: kB, MB, GB are powers of 1000; KiB, MiB, GiB of 1024.

    Raises:
        InputError: No positive number, or an unknown unit.

    Example:
        >>> parse_size("200MB"), parse_size("1.5 GiB")
        (200000000, 1610612736)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]+)\s*", text)
    factor = _UNITS.get(found[2].lower()) if found else None
    if found is None or factor is None or float(found[1]) * factor < 1:
        raise InputError(f"--memory: expected a size such as 200MB or 1.5GiB, found {text!r}")
    return int(float(found[1]) * factor)


def parse_duration(text: str, name: str) -> float | None:
    """Read a time with its unit, s, m or h, in seconds; None for "none".

    Raises:
        InputError: No number, or an unknown unit; ``name`` is the option's.

    Example:
        >>> parse_duration("90s", "--budget"), parse_duration("1.5h", "--budget"), parse_duration("none", "--budget")
        (90.0, 5400.0, None)
    """
    if text.strip().lower() == "none":
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([smh])\s*", text.lower())
    if found is None:
        raise InputError(f"{name}: expected a time such as 90s, 10m or 2h, or none, found {text!r}")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]


def _default_workdir(out: Path | None, inputs: Sequence[Path]) -> Path:
    """Return the folder for what is measured: beside ``--out``, or in the cache by the names of the inputs."""
    if out is not None:
        return out.with_name(f"{out.name}.tune")
    names = json.dumps([str(path.resolve()) for path in inputs])
    return cache_dir() / "tune" / hashlib.blake2b(names.encode(errors="replace"), digest_size=8).hexdigest()


class _Telling:
    """Says on standard error where the labels came from, what of an earlier run is not taken, and what was measured.

    It begins with the first result, when all arguments have been found right. What was measured is told, a line for
    each setting, with ``progress`` alone; ``quiet`` leaves all else out.
    """

    def __init__(self, labels: Labels, *, progress: bool, quiet: bool) -> None:
        self._labels, self._quiet, self._progress = labels, quiet, progress
        self._told: set[Any] = set()

    def __call__(self, sofar: Sweep) -> None:
        """Say what is new."""
        for note in () if self._quiet else (self._labels.describe(), *sofar.notes):
            if note not in self._told:
                self._told.add(note)
                print(note, file=sys.stderr)
        for one in sofar.settings if self._progress else ():
            if one.setting not in self._told:
                self._told.add(one.setting)
                print(f"measured: {_words(one)}", file=sys.stderr)


class _Build:
    """The commands and the calls that build, load and use a bank with a setting."""

    def __init__(
        self, features: Sequence[Path], test: Sequence[Path], reading: Reading, projection_dim: str | None, seed: int,
        patches: int | None, reweight: str,
    ) -> None:  # fmt: skip
        self.features, self.test = ([_argument(path) for path in paths] for paths in (features, test))
        self.reading, self.patches, self.reweight = reading, patches, reweight
        self.bank = str(_unused(Path(f"{Path(features[0]).resolve().stem}.bank")))
        self.more: dict[str, str] = {}
        if projection_dim is not None:
            self.more = {"projection_dim": projection_dim} | ({"seed": str(seed)} if seed else {})

    def command(self, one: Measured) -> str:
        """Return the command line that builds the bank."""
        words = ["mmad-bank", "build", *self.features, "--out", self.bank, "--ratio", f"{one.ratio:.12g}"]
        words += ["--index", one.index] if one.index != "exact" else []
        words += ["--precision", one.precision] if one.precision != "auto" else []
        for name, value in self.more.items():
            words += [f"--{name.replace('_', '-')}", value]
        return shlex.join([*words, *self.reading.options()])

    def score_command(self, one: Measured) -> str:
        """Return the command line that scores the test images; the precision must be named again."""
        words = ["mmad-bank", "score", self.bank, *self.test, "--csv", str(_unused(Path("scores.csv")))]
        words += ["--precision", one.precision] if one.precision != "auto" else []
        words += ["--reweight", self.reweight] if self.reweight != "m3dm" else []
        words += ["--patches", str(self.patches)] if self.patches is not None else []
        return shlex.join([*words, *self.reading.options()])

    def call(self, one: Measured) -> str:
        """Return the call in Python."""
        words = [f"ratio={one.ratio:.12g}"]
        words += [f"index={one.index!r}"] if one.index != "exact" else []
        words += [f"bank_precision={one.precision!r}"] if one.precision != "auto" else []
        words += [f"{name}={value if value.isdigit() else repr(value)}" for name, value in self.more.items()]
        words += [f"{name}={value!r}" for name, value in self.reading.arguments().items()]
        features = repr(self.features[0] if len(self.features) == 1 else self.features)
        return f"MemoryBank.build({features}, {', '.join(words)})"

    def load(self) -> str:
        """Return the call that loads the bank, whose file says with which precision."""
        return f"MemoryBank.load({self.bank!r})"


def _argument(path: Path) -> str:
    """Return a path so that it is not taken for an option."""
    return f"./{path}" if str(path).startswith("-") else str(path)


def _unused(path: Path) -> Path:
    """Return a path at which nothing is, with a number if need be."""
    number, found = 2, path
    while found.exists():
        number, found = number + 1, path.with_name(f"{path.stem}-{number}{path.suffix}")
    return found


def _check_limits(memory: int | None, fps: float | None) -> dict[str, Any]:
    if fps is not None and not 0 < fps < float("inf"):
        raise InputError(f"--fps: expected a number above 0, found {fps:g}")
    return {name: value for name, value in (("memory", memory), ("fps", fps)) if value is not None}


def _save_plot(path: Path, swept: Any, best: Any, by: Any, limits: dict[str, Any]) -> None:
    from mmad_bank import tuning

    title = f"{swept.rows:,} × {swept.dim}, {swept.images} images of {swept.patches} patches"
    drawn = tuning.figure(swept.settings, by=by, recommended=best, title=title, **limits)
    with replacing(path) as partial:
        drawn.savefig(partial, metadata={"Software": None} if path.suffix == ".png" else None)


def _check_plot(path: Path) -> None:
    from mmad_bank import tuning

    if path.suffix not in (".png", ".svg", ".pdf"):
        raise InputError(f"--plot: expected a .png, .svg or .pdf file, found {path.suffix!r}")
    tuning.check_drawing()


def _parse_ratios(text: str | None) -> list[float] | None:
    return None if text is None else [parse_share(word, "--ratios") for word in text.split(",")]


def _set_threads(threads: int | None) -> None:
    import torch

    if threads is None:
        return
    if threads < 1:
        raise InputError(f"--threads: expected at least 1, found {threads}")
    torch.set_num_threads(threads)


# ---------------------------------------------------------------------------------------------------------------------
# What is read


def _read_tests(
    reading: Reading, normal: FeatureDump, test: Sequence[Path], anomalous: Sequence[Path], labels: Path | None,
    patches: int | None, most: int,
) -> tuple[Tensor, Labels]:  # fmt: skip
    """Return the test images' features (B, P, D) and labels, at most ``most`` images, spread over all."""
    import torch

    from mmad_bank.cli._scoring import images_of, in_images, patches_of_an_image

    if most < 0:
        raise InputError(f"--images: expected a number, or 0 for all, found {most}")
    dump = reading.open([*test, *anomalous], normal.dim)
    dump.check_dim(normal.dim, normal.sources[0].file)
    dump.check_extractor(normal.extractor, normal.sources[0].file)
    per_image = patches_of_an_image(dump, patches)
    dump = in_images(dump, per_image)
    names = [image.name for part in dump.parts for image in images_of(part, per_image)]
    if anomalous:
        n_normal = len(reading.open(test, normal.dim)) // per_image
        truth = Labels([0] * n_normal + [1] * (len(names) - n_normal), "--anomalous")
    else:
        truth = labels_of_names(names) if labels is None else labels_of_file(labels, len(names))
    kept = torch.linspace(0, len(names) - 1, min(most or len(names), len(names)), dtype=torch.float64).round().long()
    rows = (kept[:, None] * per_image + torch.arange(per_image)).view(-1)
    return dump.take(rows).cpu().view(len(kept), per_image, dump.dim), truth.of(kept.tolist())


# ---------------------------------------------------------------------------------------------------------------------
# What is said


def _facts(
    swept: Sweep, choice: Choice | None, limits: dict[str, Any], by: Literal["error", "auroc"], options: _Build,
    time_limit: float | None,
) -> dict[str, Any]:  # fmt: skip
    """Return what the JSON says: the settings, the front, the recommendation or what comes nearest to it."""
    import torch

    from mmad_bank import ops, tuning

    front = tuning.pareto(swept.settings, by)
    missed = tuning.nearest(swept.settings, **limits) if limits and choice is None else None
    return {
        "rows": swept.rows, "dim": swept.dim, "images": swept.images, "patches": swept.patches,
        "threads": torch.get_num_threads(), "instructions": ops.system_info()["cpu"]["in use"],
        "budget": limits, "by": by, "time_limit": time_limit, "reference": swept.reference,
        "settings": [{**one.as_json(), "pareto": on} for one, on in zip(swept.settings, front, strict=True)],
        "left_out": swept.left_out, "waiting": swept.waiting, "notes": swept.notes,
        "recommendation": None if choice is None else _describe(choice.best, options) | {
            "alike": choice.alike, "within": choice.within, "note": choice.note,
        },
        "nearest": None if missed is None else _describe(missed, options),
    }  # fmt: skip


def _describe(one: Measured, options: _Build) -> dict[str, Any]:
    return {
        **one.as_json(), "words": _words(one), "command": options.command(one),
        "score_command": options.score_command(one), "call": options.call(one), "load": options.load(),
    }  # fmt: skip


def _words(one: Measured) -> str:
    """Word a setting and what was measured of it."""
    from mmad_bank.tuning import share

    search = f"exact, {one.precision}" if one.setting.is_exact else one.index
    said = [size(one.memory), f"{_rate(one.fps)} fps", f"patch error {one.patch_error:.2%}"]
    if one.auroc is not None:
        said.append(f"I-AUROC {one.auroc:.3f} ({one.auroc_low:.3f} to {one.auroc_high:.3f})")
    return f"{share(one.ratio)}, {search} ({', '.join(said)})"


def _rate(fps: float) -> str:
    return f"{fps:,.0f}" if fps >= 100 else f"{fps:.1f}"


def _percent(value: float) -> str:
    return f"{value:.0%}" if value >= 1 else f"{value:.1%}" if value >= 0.1 else f"{value:.2%}"


def _word_limits(limits: dict[str, Any]) -> str:
    words = {"memory": size, "fps": lambda value: f"{value:g} fps"}
    return " and ".join(words[name](value) for name, value in limits.items())


def _print(swept: Sweep, result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 180)
    console.print(
        f"{swept.rows:,} rows × {swept.dim}, {swept.images} test images of {swept.patches:,} patches,"
        f" {result['threads']} threads, {result['instructions']}", markup=False,
    )  # fmt: skip
    front = [row["pareto"] for row in result["settings"]]
    console.print(_table(swept.settings, front, wide=console.width >= _WIDE), markup=False)
    plain = Console(highlight=False, soft_wrap=True)
    about = () if swept.aurocs is None else (_NOTE_OF_AUROC,)
    for line in (*_NOTES, *about, *(f"left out: {name}: {reason}" for name, reason in swept.left_out.items())):
        plain.print(Text(line, style="dim"))
    if swept.waiting:
        plain.print(Text(f"not measured, the time was up: {'; '.join(swept.waiting)}", style="dim"))
        plain.print(Text("the same command goes on with them; --budget gives it longer", style="dim"))
    best = result["recommendation"]
    if best is not None:
        plain.print(Text("recommended: ", style="bold").append(best["words"], style="not bold"))
        if best["note"]:
            plain.print(Text(f"  {best['note']}"))
        plain.print(Text(f"  {best['command']}"))
        if best["precision"] != "auto":
            plain.print(Text(f"load it with precision {best['precision']} too:"))
        plain.print(Text(f"  {best['score_command']}"))
    elif not result["budget"]:
        plain.print(Text("no recommendation without a budget: --memory 200MB, --fps 30, or both"))


def _table(settings: Sequence[Measured], front: Sequence[bool], *, wide: bool) -> Any:
    """Return a table of the settings, a section for each ratio."""
    from rich import box
    from rich.table import Table

    from mmad_bank.tuning import share

    columns: dict[str, Callable[[Measured], str]] = {
        "ratio": lambda one: share(one.ratio),
        "search": lambda one: f"exact, {one.precision}" if one.setting.is_exact else one.index,
        "memory": lambda one: size(one.memory),
        "fps": lambda one: _rate(one.fps),
        "patches": lambda one: _percent(one.patch_error),
        "images": lambda one: _percent(one.image_error),
    }
    if wide or settings[0].auroc is None:
        columns["of index"] = lambda one: _percent(one.index_patch_error)
    if wide:
        columns |= {
            "fps of rounds": lambda one: f"{_rate(one.fps_low or one.fps)} to {_rate(one.fps_high or one.fps)}",
            "vectors": lambda one: f"{one.vectors:,}", "in the file": lambda one: size(one.vector_bytes),
        }  # fmt: skip
    if settings[0].auroc is not None:
        columns["I-AUROC"] = lambda one: f"{one.auroc:.3f}"
        columns["95 %"] = lambda one: f"{one.auroc_low:.2f}–{one.auroc_high:.2f}"
        if wide:
            columns["to all rows"] = lambda one: f"{one.gap:+.3f} ({one.gap_low:+.2f} to {one.gap_high:+.2f})"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1 if wide else 0))
    for heading in ("", *columns):
        table.add_column(heading, justify="left" if heading == "search" else "right", no_wrap=True)
    for one, on_front, after in zip(settings, front, [*settings[1:], None], strict=True):
        table.add_row(
            "*" if on_front else "", *(word(one) for word in columns.values()),
            style="bold" if on_front else None, end_section=after is not None and after.ratio != one.ratio,
        )  # fmt: skip
    return table
