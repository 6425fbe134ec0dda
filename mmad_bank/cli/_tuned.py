"""Output of ``mmad-bank tune``: its settings as a table and as JSON, and the commands that build the best one."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mmad_bank._internal.files import real_path
from mmad_bank._internal.shares import percent
from mmad_bank._internal.terminal import printable
from mmad_bank.cli._dumps import Reading
from mmad_bank.cli._output import size

if TYPE_CHECKING:
    from mmad_bank.tuning import Choice, Measured, Sweep

_NOTE_OF_AUROC = (
    "I-AUROC: 95 % of bootstrap samples of the images lie within; to all rows: the difference to the exact bank of all"
    " rows, of the same samples"
)
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


class Commands:
    """The commands and the calls that build, load and use a bank with a setting."""

    def __init__(
        self, features: Sequence[Path], test: Sequence[Path], reading: Reading, projection_dim: str | None, seed: int,
        patches: int | None, reweight: str,
    ) -> None:  # fmt: skip
        self.features, self.test = ([_argument(path) for path in paths] for paths in (features, test))
        self.reading, self.patches, self.reweight = reading, patches, reweight
        self.bank = str(_unused(Path(f"{real_path(features[0]).stem}.bank")))
        self.more: dict[str, str] = {}
        if projection_dim is not None:
            self.more = {"projection_dim": projection_dim} | ({"seed": str(seed)} if seed else {})

    def command(self, one: Measured) -> str:
        """Return the command line that builds the bank."""
        words = ["mmad-bank", "build", *self.features, "--out", self.bank, "--ratio", f"{one.ratio:.12g}"]
        words += ["--index", one.index] if one.index != "exact" else []
        words += ["--bank-precision", one.precision] if one.precision != "auto" else []
        for name, value in self.more.items():
            words += [f"--{name.replace('_', '-')}", value]
        return shlex.join([*words, *self.reading.options()])

    def score_command(self) -> str:
        """Return the command line that scores the test images by the bank, whose file says with which precision."""
        words = ["mmad-bank", "score", self.bank, *self.test, "--csv", str(_unused(Path("scores.csv")))]
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


def facts_of(
    swept: Sweep, choice: Choice | None, limits: dict[str, Any], by: Literal["error", "auroc"], options: Commands,
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


def _describe(one: Measured, options: Commands) -> dict[str, Any]:
    return {
        **one.as_json(), "words": words_of(one), "command": options.command(one),
        "score_command": options.score_command(), "call": options.call(one), "load": options.load(),
    }  # fmt: skip


def words_of(one: Measured) -> str:
    """Return words for a setting and what was measured of it."""
    search = f"exact, {one.precision}" if one.setting.is_exact else one.index
    said = [size(one.memory), f"{_rate(one.fps)} fps", f"patch error {one.patch_error:.2%}"]
    if one.auroc is not None:
        said.append(f"I-AUROC {one.auroc:.3f} ({one.auroc_low:.3f} to {one.auroc_high:.3f})")
    return f"{percent(one.ratio)}, {search} ({', '.join(said)})"


def _rate(fps: float) -> str:
    return f"{fps:,.0f}" if fps >= 100 else f"{fps:.1f}"


def _percent(value: float) -> str:
    return f"{value:.0%}" if value >= 1 else f"{value:.1%}" if value >= 0.1 else f"{value:.2%}"


def word_limits(limits: dict[str, Any]) -> str:
    words = {"memory": size, "fps": lambda value: f"{value:g} fps"}
    return " and ".join(words[name](value) for name, value in limits.items())


def show(swept: Sweep, result: dict[str, Any]) -> None:
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
        plain.print(Text(printable(line), style="dim"))
    if swept.waiting:
        plain.print(Text(f"not measured, the time was up: {'; '.join(swept.waiting)}", style="dim"))
        plain.print(Text("the same command goes on with them; --budget gives it longer", style="dim"))
    best = result["recommendation"]
    if best is not None:
        plain.print(Text("recommended: ", style="bold").append(best["words"], style="not bold"))
        if best["note"]:
            plain.print(Text(f"  {best['note']}"))
        plain.print(Text(printable(f"  {best['command']}")))
        plain.print(Text(printable(f"  {best['score_command']}")))
    elif not result["budget"]:
        plain.print(Text("no recommendation without a budget: --memory 200MB, --fps 30, or both"))


def _table(settings: Sequence[Measured], front: Sequence[bool], *, wide: bool) -> Any:
    """Return a table of the settings, a section for each ratio."""
    from rich import box
    from rich.table import Table

    columns: dict[str, Callable[[Measured], str]] = {
        "ratio": lambda one: percent(one.ratio),
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
