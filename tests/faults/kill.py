"""Kill every command that writes with kill -9 at random moments, and look at what is left.

    python tests/faults/kill.py --kills 1000 --seed 0 [--commands build,fit-patchcore] [--keep FOLDER]

Half of the runs begin with an older output at the same place, made with other settings, and replace it. Some are killed
at a random time, some right at (or shortly after) one of the moments when a file is opened, flushed, renamed or
removed. Then every output must be the old one or the new one, byte for byte, and no file half-written; the same
command, given again, must end well with the result of an undisturbed run; and no stray file or folder may be left after
it.

One process imports everything and forks a child for each run, so that a run takes as long as its work.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import arguments

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MMAD_BANK_DEBUG"] = ""

LIMIT = 300  # seconds for one run
OLD, NEW = 0, 1
KINDS = ("lost", "half-written", "rerun", "differs", "stray")
CATEGORY = "stud_tray"

Snapshot = dict[str, bytes | None]
"""By relative name, a file's content; None for a folder."""


@dataclass(frozen=True)
class Command:
    """A command that writes.

    Attributes:
        name: Name of the row in the table.
        run: What a child does: arguments of the program, or a function. They take the folder for outputs, the folder
            of inputs, and which of two settings.
        outputs: Names of files and folders in the folder for outputs; other things in it are the command's own.
        prepare: Puts what must be there into a new folder for outputs.
        share: Share of the kills, in proportion.
        replaces: Whether an older output can be replaced.
        varies: Files that say how they came to be, and need to be whole only.
        in_pieces: Whether the files of an output are replaced one by one, with a note that the work is unfinished.
        between: Beginnings of names within the outputs of what is there while the command works only.
    """

    name: str
    run: Callable[[Path, Path, int], Sequence[object] | Callable[[], None]]
    outputs: tuple[str, ...]
    prepare: Callable[[Path, Path], None] = lambda out, inputs: None
    share: float = 1.0
    replaces: bool = True
    varies: tuple[str, ...] = ()
    in_pieces: bool = False
    between: tuple[str, ...] = ()


_SMALL = ("--set", "rgb_weights=random", "--set", "image_size=64", "--set", "grid=8,8", "--set", "rgb_layers=1")


def _fit(method: str, *more: str) -> Callable[[Path, Path, int], Sequence[object]]:
    def arguments(out: Path, inputs: Path, which: int) -> Sequence[object]:
        return (
            "fit",
            method,
            inputs / "prepared",
            "--categories",
            CATEGORY,
            "--out",
            out / "model",
            "--seed",
            which,
            "--set",
            "rgb=efficientnet_lite0",
            *_SMALL,
            *more,
        )

    return arguments


def _of_both(*command: str, out: str) -> Callable[[Path, Path, int], Sequence[object]]:
    """A command that trains one fusion for two categories."""
    uff = ("xyz=fpfh", "uff_steps=2", "uff_batch=2", "uff_patches=16", "rgb=efficientnet_lite0")
    settings = [word for one in uff for word in ("--set", one)]

    def arguments(folder: Path, inputs: Path, which: int) -> Sequence[object]:
        return (*command, inputs / "both", "--out", folder / out, "--seed", which, *_SMALL, *settings)

    return arguments


def _extract(inputs: Path, out: Path, grid: int) -> Sequence[object]:
    networks = ("--rgb-weights", "random", "--xyz", "none", "--image-size", 64)
    return ("extract", inputs / "prepared", "--categories", CATEGORY, "--out", out, "--grid", grid, *networks)


def _demo(out: Path, inputs: Path, which: int) -> Callable[[], None]:
    def run() -> None:
        from mmad_bank.demo import run

        run(out / "demo", n_train=4, n_test=6, size=64, seed=which, overwrite=True)

    return run


def _save_bank(out: Path, inputs: Path, which: int) -> Callable[[], None]:
    def save() -> None:
        from mmad_bank import MemoryBank

        _bank(MemoryBank, which).save(out / "bank")

    return save


def _bank(kind, which: int, dim: int = 64):
    import torch

    return kind(torch.rand(3000, dim, generator=torch.Generator().manual_seed(which)))


def _save_banks(out: Path, inputs: Path, which: int) -> Callable[[], None]:
    def save() -> None:
        from mmad_bank import MemoryBank, MultiBank

        MultiBank({"rgb": _bank(MemoryBank, which), "xyz": _bank(MemoryBank, which + 2, 32)}).save(out / "banks")

    return save


def _save_model(out: Path, inputs: Path, which: int) -> Callable[[], None]:
    def save() -> None:
        from mmad_bank import methods

        methods.load(inputs / f"model-{which}").save(out / "model")

    return save


def _fill_cache(out: Path, inputs: Path, which: int) -> Callable[[], None]:
    def fill() -> None:
        from mmad_bank.synthetic.textures import texture_features

        os.environ["MMAD_BANK_CACHE"] = str(out / "cache")
        texture_features(2, seed=which)

    return fill


def _commands() -> list[Command]:
    """List all commands that write, and the savers of the Python interface."""
    return [
        Command(
            "synth",
            lambda out, inputs, which: (
                "synth",
                out / "data",
                "--image-size",
                64,
                "--train-images",
                1,
                "--validation-images",
                0,
                "--test-images",
                1,
                "--categories",
                CATEGORY,
                "--seed",
                which,
                "--workers",
                1,
            ),
            ("data",),
        ),
        Command(
            "prepare",
            lambda out, inputs, which: (
                "prepare",
                inputs / "raw",
                "--out",
                out / "data",
                "--image-size",
                (48, 32)[which],
                "--workers",
                1,
            ),
            ("data",),
            varies=("data/prepared.json",),
        ),
        Command(
            "extract",
            lambda out, inputs, which: _extract(inputs, out / "dumps", (4, 8)[which]),
            ("dumps",),
        ),
        Command(
            "extract-beside",
            lambda out, inputs, which: _extract(inputs, out, 8),
            (),
            lambda out, inputs: (out / "mine.txt").write_text("mine"),
            replaces=False,
            share=0.5,
        ),
        Command(
            "build",
            lambda out, inputs, which: (
                "build",
                inputs / "dump.npy",
                "--out",
                out / "bank",
                "--bank-size",
                (50, 60)[which],
            ),
            ("bank",),
        ),
        Command(
            "extend",
            lambda out, inputs, which: (
                "extend",
                inputs / "bank",
                inputs / "more.npy",
                "--out",
                out / "bank",
                "--at-most",
                (5, 9)[which],
            ),
            ("bank",),
        ),
        Command(
            "extend-in-place",
            lambda out, inputs, which: ("extend", out / "bank", inputs / "more.npy", "--in-place", "--at-most", 5),
            ("bank",),
            lambda out, inputs: shutil.copy(inputs / "bank", out / "bank"),
            replaces=False,
        ),
        Command(
            "calibrate",
            lambda out, inputs, which: (
                "calibrate",
                inputs / "bank",
                inputs / "more.npy",
                "--out",
                out / "bank",
                "--reweight",
                ("max", "m3dm")[which],
            ),
            ("bank",),
        ),
        Command(
            "score",
            lambda out, inputs, which: (
                "score",
                inputs / "bank",
                inputs / "maps.npy",
                "--axes",
                "bhwc",
                "--out",
                out / "scores.npz",
                "--csv",
                out / "scores.csv",
                "--maps",
                out / "maps",
                "--reweight",
                ("max", "m3dm")[which],
            ),
            ("scores.npz", "scores.csv", "maps"),
            in_pieces=True,
        ),
        Command("fit-patchcore", _fit("patchcore"), ("model",)),
        Command(
            "fit-m3dm",
            _fit(
                "m3dm", "--set", "xyz=fpfh", "--set", "uff_steps=2", "--set", "uff_batch=2", "--set", "uff_patches=16"
            ),
            ("model",),
            share=0.7,
        ),
        Command("fit-m3dm-both", _of_both("fit", "m3dm", out="models"), ("models",), share=0.7),
        Command("train-uff", _of_both("train-uff", out="uff.safetensors"), ("uff.safetensors",), share=0.7),
        Command(
            "fit-cfm",
            _fit(
                "cfm",
                "--set",
                "xyz=fpfh",
                "--set",
                "map_size=16",
                "--set",
                "epochs=1",
                "--set",
                "batch=1",
                "--set",
                "pixels_per_image=50",
            ),
            ("model",),
            share=0.7,
        ),
        Command(
            "evaluate",
            lambda out, inputs, which: (
                "evaluate",
                inputs / f"model-{which}",
                inputs / "prepared",
                "--categories",
                CATEGORY,
                "--report",
                out / "report",
                "--out",
                out / "result.json",
                "--markdown",
                out / "result.md",
            ),
            ("report", "result.json", "result.md"),
            share=0.4,
            varies=("result.md",),
        ),
        Command(
            "predict",
            lambda out, inputs, which: (
                "predict",
                inputs / f"model-{which}",
                inputs / "prepared",
                "--categories",
                CATEGORY,
                "--out",
                out / "found",
                "--maps",
                out / "maps",
            ),
            ("found", "maps"),
            share=0.7,
            in_pieces=True,
        ),
        Command(
            "tune",
            lambda out, inputs, which: (
                "tune",
                inputs / "dump.npy",
                "--test",
                inputs / "more.npy",
                "--ratios",
                ("5%", "10%")[which],
                "--bank-precisions",
                "float32",
                "--index",
                "exact",
                "--threads",
                1,
                "--out",
                out / "tune.json",
                "--plot",
                out / "tune.png",
            ),
            ("tune.json", "tune.png"),
            share=0.4,
        ),
        Command(
            "bench",
            lambda out, inputs, which: (
                "bench",
                "--quick",
                "--methods",
                "patchcore",
                "--times-only",
                "--rounds",
                1,
                "--batches",
                1,
                "--threads",
                1,
                "--out",
                out / "bench.json",
            ),
            ("bench.json",),
            share=0.2,
        ),
        Command(
            "demo",
            _demo,
            ("demo",),
            share=0.2,
            varies=("demo/demo.json", "demo/prepared/prepared.json"),
            in_pieces=True,
            between=("demo/prepared.prepare/", "demo/model.fit/"),
        ),
        Command("bank.save", _save_bank, ("bank",), share=2),
        Command("MultiBank.save", _save_banks, ("banks",), share=2),
        Command("Method.save", _save_model, ("model",), share=1.5),
        Command("cache", _fill_cache, ("cache",), share=0.3, replaces=False),
    ]


COMMANDS = {command.name: command for command in _commands()}


def main() -> int:
    given = arguments.parser_of(__doc__, "kills", 100, "commands").parse_args()
    chosen = arguments.choose("commands", given.commands, COMMANDS)
    with tempfile.TemporaryDirectory(prefix="mmad-kill-") as folder:
        keep = given.keep or Path(tempfile.gettempdir()) / f"mmad-kill-faults-{os.getpid()}"
        return 1 if run(chosen, given.kills, given.seed, Path(folder), keep) else 0


def run(commands: Sequence[Command], kills: int, seed: int, folder: Path, keep: Path) -> int:
    """Kill the commands, print a table, and return the number of faults."""
    import_all()
    inputs = folder / "inputs"
    fork(lambda: make_inputs(inputs, {command.name for command in commands}), folder / "log").must_end_well()
    shares = sum(command.share for command in commands)
    total: Counter[str] = Counter()
    print(f"{'command':16}" + "".join(f"{name:>13}" for name in ("kills", "in time", *KINDS, "seconds")), flush=True)
    for command in commands:
        begin = time.monotonic()
        work = folder / command.name
        work.mkdir()
        trial = Trial(command, inputs, work, keep, random.Random(f"{seed} {command.name}"))
        trial.begin()
        for number in range(max(1, round(kills * command.share / shares))):
            trial.kill(number)
        total += trial.counts
        print_row(command.name, trial.counts, time.monotonic() - begin)
        shutil.rmtree(work)
    print_row("all", total, None)
    return sum(total[kind] for kind in KINDS)


def print_row(name: str, counts: Counter[str], seconds: float | None) -> None:
    cells = "".join(f"{counts[kind]:13}" for kind in ("kills", "in time", *KINDS))
    print(f"{name:16}{cells}" + ("" if seconds is None else f"{seconds:13.1f}"), flush=True)


def import_all() -> None:
    """Import what the commands use, so that children need not."""
    import faiss  # noqa: F401
    import matplotlib.figure  # noqa: F401
    import scipy.ndimage  # noqa: F401
    import sklearn.cluster  # noqa: F401
    import tifffile  # noqa: F401
    import timm  # noqa: F401
    import torch

    import mmad_bank.bench
    import mmad_bank.cli._app
    import mmad_bank.demo
    import mmad_bank.evaluation
    import mmad_bank.methods
    import mmad_bank.report
    import mmad_bank.synthetic.dataset
    import mmad_bank.synthetic.textures
    import mmad_bank.tuning  # noqa: F401

    torch.set_num_threads(1)


def make_inputs(inputs: Path, names: set[str]) -> None:
    """Write what the commands read."""
    import numpy as np

    from mmad_bank import MemoryBank
    from mmad_bank.data import prepare
    from mmad_bank.data.recipes import Preprocessing
    from mmad_bank.synthetic import write_synthetic

    inputs.mkdir()
    rng = np.random.default_rng(0)
    np.save(inputs / "dump.npy", rng.random((10, 60, 32)).astype(np.float32))
    np.save(inputs / "more.npy", rng.random((4, 60, 32)).astype(np.float32) * 2)
    np.save(inputs / "maps.npy", rng.random((4, 6, 10, 32)).astype(np.float32) * 2)
    MemoryBank.build(inputs / "dump.npy", size=60).save(inputs / "bank")
    if names <= {
        "build",
        "extend",
        "extend-in-place",
        "calibrate",
        "score",
        "bank.save",
        "MultiBank.save",
        "cache",
        "synth",
        "tune",
    }:
        return
    write_synthetic(inputs / "raw", size=64, n_train=2, n_validation=1, n_test=2, categories=[CATEGORY])
    from dataclasses import replace

    prepare(inputs / "raw", inputs / "prepared", replace(Preprocessing.recipe("m3dm"), size=64))
    if names & {"fit-m3dm-both", "train-uff"}:
        categories = [CATEGORY, "chip_cookie"]
        write_synthetic(inputs / "raw-both", size=64, n_train=2, n_validation=1, n_test=1, categories=categories)
        prepare(inputs / "raw-both", inputs / "both", replace(Preprocessing.recipe("m3dm"), size=64))
    if names & {"evaluate", "predict", "Method.save"}:
        from mmad_bank.data import open_dataset
        from mmad_bank.methods import PatchCore

        for which in (OLD, NEW):
            model = PatchCore("efficientnet_lite0", "random", rgb_layers=(1,), image_size=64, grid=(8, 8), seed=which)
            model.fit(open_dataset(inputs / "prepared", CATEGORY, "train")).save(inputs / f"model-{which}")


@dataclass
class Trial:
    """One command, killed many times."""

    command: Command
    inputs: Path
    work: Path
    keep: Path
    rng: random.Random
    counts: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(default_factory=Counter)

    def begin(self) -> None:
        """Run undisturbed: what comes out, how long it takes, how many moments of writing there are."""
        self.out = self.work / "out"
        self.old = self._clean(OLD)[0] if self.command.replaces else None
        first, *_ = self._clean(NEW)
        self.new, self.seconds, self.events = self._clean(NEW)
        # Files with times and rates in them are different each time: they need to be whole only.
        self.volatile = {name for name in first if first[name] != self.new.get(name)} | {*self.command.varies}
        if set(first) != set(self.new):
            sys.exit(f"{self.command.name}: two undisturbed runs left {sorted(set(first) ^ set(self.new))}")

    def _clean(self, which: int) -> tuple[Snapshot, float, int]:
        self._put(None)
        begin = time.monotonic()
        child = self._child(which, count=True)
        child.must_end_well()
        return snapshot(self.out), time.monotonic() - begin, child.events

    def _put(self, content: Snapshot | None) -> None:
        """Make the folder for outputs anew."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()
        if content is None:
            self.command.prepare(self.out, self.inputs)
            return
        for name, data in sorted(content.items()):
            path = self.out / name
            path.mkdir(exist_ok=True) if data is None else path.write_bytes(data)

    def _child(self, which: int, *, overwrite: bool = False, count: bool = False, stop_at: int = 0) -> Child:
        work = self.command.run(self.out, self.inputs, which)
        if callable(work):
            function = work
        else:
            words = [str(one) for one in work] + (["--overwrite"] if overwrite else [])

            def function() -> None:
                from mmad_bank.cli._app import app

                app(words)

        return fork(function, self.work / "log", self.out if count or stop_at else None, stop_at)

    def kill(self, number: int) -> None:
        """Run, kill, look, and run again."""
        before = self.old if self.command.replaces and self.rng.random() < 0.5 else None
        self._put(before)
        started = snapshot(self.out)
        if self.rng.random() < 0.7 and self.events:
            # At a moment of writing, by its own hand, or a little later.
            child = self._child(NEW, overwrite=before is not None, stop_at=self.rng.randint(1, self.events))
            child.wait_for_moment()
            time.sleep(self.rng.choice((0, 0, 0.0003, 0.001, 0.003)))
        else:
            child = self._child(NEW, overwrite=before is not None)
            time.sleep(self.rng.uniform(0, self.seconds))
        self.counts["kills"] += 1
        self.counts["in time"] += child.kill()
        left = snapshot(self.out)
        self._judge_left(number, started, left)
        self._run_again(number, before is not None)

    def _judge_left(self, number: int, before: Snapshot, left: Snapshot) -> None:
        roots = self.command.outputs
        mine = {name for name in before if name.split("/")[0] in roots or not roots}
        for root in roots:
            was, now = (self._of(content, root) for content in (before, left))
            whole = self._of(self.new, root)
            if (was and now == was) or self._same(now, whole):
                continue
            if was and not self.command.in_pieces:
                kind = "lost" if set(was) - set(now) and set(whole) - set(now) else "half-written"
                names = sorted(name for name in {*was, *now} if now.get(name) not in (was.get(name), whole.get(name)))
                self._note(kind, number, f"{root}: neither the old nor the new one {names[:3]}", left)
                break
        for name in mine - set(left):
            if not roots:
                self._note("lost", number, name, left)
        for name, data in left.items():
            if hidden(name) or data is None or (roots and name.split("/")[0] not in roots):
                continue
            if name.startswith(self.command.between):
                continue
            if data not in (before.get(name), self.new.get(name)) and not (
                name in self.volatile and is_whole(name, data)
            ):
                self._note("half-written", number, f"{name}: {len(data)} bytes", left)
                break

    @staticmethod
    def _of(content: Snapshot, root: str) -> Snapshot:
        return {
            name: data
            for name, data in content.items()
            if (name == root or name.startswith(f"{root}/")) and not hidden(name)
        }

    def _same(self, found: Snapshot, wanted: Snapshot) -> bool:
        return set(found) == set(wanted) and all(
            found[name] == wanted[name] or (name in self.volatile and is_whole(name, found[name])) for name in wanted
        )

    def _run_again(self, number: int, overwrite: bool) -> None:
        child = self._child(NEW, overwrite=overwrite)
        code = child.wait()
        if code == 2 and not overwrite and self._done():
            # It was killed after the work: the output is there, and to make it again is to replace it.
            child = self._child(NEW, overwrite=True)
            code = child.wait()
        left = snapshot(self.out)
        if code != 0:
            self._note("rerun", number, f"exit code {code}: {child.said()}", left)
            return
        stray, missing = sorted(set(left) - set(self.new)), sorted(set(self.new) - set(left))
        if stray:
            self._note("stray", number, f"{stray[:4]}", left)
        if missing:
            self._note("lost", number, f"after the second run {missing[:4]}", left)
        if self.command.name == "extend-in-place":  # a second run adds to what the first has added
            return
        changed = [
            name for name in self.new if name in left and left[name] != self.new[name] and name not in self.volatile
        ]
        if changed:
            self._note("differs", number, f"after the second run {changed[:4]}", left)

    def _done(self) -> bool:
        left = snapshot(self.out)
        return all(self._of(left, root) for root in self.command.outputs)

    def _note(self, kind: str, number: int, why: str, left: Snapshot) -> None:
        self.counts[kind] += 1
        self.noted[kind] += 1
        if self.noted[kind] > 3:
            return
        place = self.keep / f"{self.command.name}-{number}-{kind}"
        shutil.copytree(self.out, place, dirs_exist_ok=True)
        print(
            f"  {kind}: {self.command.name}, kill {number}: {why}\n    left: {sorted(left)[:12]}\n    kept: {place}",
            flush=True,
        )


def snapshot(folder: Path) -> Snapshot:
    """Read a folder, hidden files too; a file that goes meanwhile is left out."""
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


def hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def is_whole(name: str, data: bytes | None) -> bool:
    """Tell whether a file whose content varies is complete."""
    if data is None:
        return True
    if name.endswith(".json"):
        try:
            json.loads(data)
        except ValueError:
            return False
        return True
    ends = {".png": b"IEND\xaeB`\x82", ".html": b"</html>\n", ".npz": b"PK\x05\x06", ".md": b"|\n"}
    end = ends.get(Path(name).suffix)
    return bool(data) and (end is None or end in data[-64:])


# Children.


class Child:
    """A forked process that does one piece of work."""

    def __init__(self, pid: int, log: Path, moments: int) -> None:
        self.pid, self.log, self.moments = pid, log, moments
        self.status: int | None = None
        self.events = 0

    def wait_for_moment(self) -> None:
        """Return when the child has come to its moment, or has ended."""
        os.read(self.moments, 1)

    def kill(self) -> bool:
        """Kill it; tell whether it was at work still."""
        os.kill(self.pid, signal.SIGKILL)
        return self.wait() == -signal.SIGKILL

    def wait(self) -> int:
        """Return the exit code, negative for a signal."""
        if self.status is None:
            begin = time.monotonic()
            while True:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    break
                if time.monotonic() - begin > LIMIT:
                    os.kill(self.pid, signal.SIGKILL)
                time.sleep(0.002)
            self.status = os.waitstatus_to_exitcode(status)
            said = os.read(self.moments, 64)
            self.events = int(said) if said.isdigit() else 0
            os.close(self.moments)
        return self.status

    def said(self) -> str:
        return " | ".join(self.log.read_text(errors="replace").strip().splitlines()[-3:])

    def must_end_well(self) -> None:
        if self.wait() != 0:
            sys.exit(f"ended with {self.status}:\n{self.log.read_text(errors='replace')}")


def fork(function: Callable[[], object], log: Path, watched: Path | None = None, stop_at: int = 0) -> Child:
    """Run a function in a child; it counts the moments of writing in a folder, and says so or stops at one of them."""
    read, write = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        os.close(write)
        return Child(pid, log, read)
    code = 1
    try:
        os.close(read)
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115 (pytest has its own)
        moments = Moments(watched, stop_at, write) if watched is not None else None
        try:
            function()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if moments is not None and not stop_at:
            os.write(write, str(moments.count).encode())
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


class Moments:
    """Counts what happens to files of a folder: opened for writing, flushed to disk, renamed, removed, made."""

    _WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
    _EVENTS = frozenset(("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.truncate", "os.link"))

    def __init__(self, folder: Path, stop_at: int, write: int) -> None:
        self.folder, self.stop_at, self.write, self.count = str(folder), stop_at, write, 0
        sync = os.fsync

        def fsync(handle: int) -> None:
            self._tick()
            sync(handle)

        os.fsync = fsync
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple) -> None:
        if event == "open":
            path, _, flags = arguments
            if not isinstance(flags, int) or not flags & self._WRITING:
                return
        elif event in self._EVENTS:
            path = arguments[0]
        else:
            return
        if isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(self.folder):
            self._tick()

    def _tick(self) -> None:
        self.count += 1
        if self.count == self.stop_at:
            os.write(self.write, b".")
            if self.count % 2:
                time.sleep(LIMIT)  # the parent kills it here


if __name__ == "__main__":
    sys.exit(main())
